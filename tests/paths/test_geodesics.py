"""Geodesics: kinks are told, precision, arguments."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import wmlib as wm

KEY = jax.random.key(0)


def max_pool(h):
    """Of each unit and a line."""
    return jnp.max(jnp.stack([h, 0.1 - h / 2]), axis=0)


SMOOTH = {"tanh": jnp.tanh, "softplus": jax.nn.softplus, "gelu": jax.nn.gelu}
KINKED = {"relu": jax.nn.relu, "leaky relu": jax.nn.leaky_relu, "abs": jnp.abs, "max-pool": max_pool}


def _most(names, one):
    """All names, those but one for the thorough."""
    return [pytest.param(name, marks=[pytest.mark.thorough] * (name != one)) for name in names]


def network(activation, seed=0, dtype=jnp.float32):
    return eqx.nn.MLP(3, 2, 8, 2, activation=activation, key=jax.random.key(seed), dtype=dtype)


def inputs(dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), dtype)


def movement(net, size=0.3, seed=2):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(size * rng.normal(size=a.shape), a.dtype), moving(net))


def moving(net):
    return eqx.filter(net, eqx.is_inexact_array)


def flat_direction(net, seed):
    return wm.direction(wm.FunctionMetric(operator.call, net, inputs()), key=jax.random.key(seed)).value


@pytest.mark.parametrize("name", _most(SMOOTH, "tanh"))
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 100), flat=st.booleans(), time=st.sampled_from([0.1, 1.0, 4.0]))
def test_a_smooth_network_raises_no_alarm(name, seed, flat, time):
    net = network(SMOOTH[name], seed)
    v = flat_direction(net, seed) if flat else movement(net, seed=seed)
    path = wm.geodesic(operator.call, net, v, inputs(), time=time, points=3)
    assert path.stats["outcome"] == "arrived"
    assert not path.stats["kinked"].any()
    assert path.stats["unexplained"].max() < 1e-6


@pytest.mark.parametrize("name", _most(KINKED, "relu"))
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 100))
def test_kinks_that_a_flat_path_crosses_are_told_with_their_drift(name, seed):
    net = network(KINKED[name], seed)
    path = wm.geodesic(operator.call, net, flat_direction(net, seed), inputs(), time=3.0, points=3, max_steps=1000)
    assert path.stats["outcome"].startswith(("kinks: the outputs of", "step limit"))
    assume(len(path.drift) > 1)  # two seeds of a hundred use up their steps at a kink before the first point
    assert path.drift[-1] > 1e-6  # a flat path keeps the outputs but for the kinks
    assert path.stats["kinked"][-1] > 0
    # It sets out along a flat direction: all that it drifts is what the kinks cause.
    np.testing.assert_allclose(path.stats["unexplained"][-1], path.drift[-1], rtol=1e-2)


def test_a_path_that_crosses_no_kink_of_a_network_arrives():
    net = network(jax.nn.relu)
    path = wm.geodesic(operator.call, net, movement(net, 1e-4), inputs(), points=3, max_steps=1000)
    assert path.stats["outcome"] == "arrived"


# Without x64 there are no weights of float64. Of six mixes four: each type, and each distance, under two of the others.
@pytest.mark.parametrize(
    ("x64", "weights", "distance"),
    [
        (False, jnp.float32, wm.distances.kl),
        *(
            pytest.param(x64, of, distance, marks=pytest.mark.thorough)
            for x64, of, distance in (
                (True, jnp.float32, wm.distances.kl),
                (True, jnp.float64, wm.distances.squared_error),
                (False, jnp.float32, wm.distances.squared_error),
            )
        ),
    ],
    ids=["float32, kl", "x64, float32, kl", "x64, float64, squared", "float32, squared"],
)
def test_every_mix_of_types_gives_one_geodesic(x64, weights, distance):
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("standard"):
        net, x = network(jnp.tanh, dtype=weights), inputs(weights)
        v = movement(net)
        path = wm.geodesic(operator.call, net, v, x, distance, time=0.5, points=3)
        assert path.stats["outcome"] == "arrived"
        assert {a.dtype for a in jax.tree.leaves(moving(path.weights[-1]))} == {jnp.dtype(weights)}
        np.testing.assert_allclose(path.stats["speed"], path.stats["speed"][0], rtol=1e-3)
        reached = np.asarray(jax.tree.leaves(moving(path.weights[-1]))[0], float)
        found = wm.acceleration(operator.call, net, v, x, distance)
        assert {a.dtype for a in jax.tree.leaves(found)} == {jnp.dtype(weights)}
    if x64 and weights == jnp.float32:  # else there is no other
        single, at = network(jnp.tanh), inputs()
        again = wm.geodesic(operator.call, single, movement(single), at, distance, time=0.5, points=3)
        np.testing.assert_allclose(reached, jax.tree.leaves(moving(again.weights[-1]))[0], atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.complex64])
def test_half_precision_and_complex_weights_are_refused(dtype):
    net = eqx.nn.Linear(3, 2, key=KEY, dtype=dtype)
    v = jax.tree.map(jnp.ones_like, moving(net))
    for ask in (wm.geodesic, wm.acceleration):
        with pytest.raises(TypeError, match=r"convert the weights|two\s+real"):
            ask(operator.call, net, v, inputs())


@pytest.mark.parametrize(
    "wrong",
    [
        *[{"time": t} for t in (0, -1.0, np.nan, np.inf, True)],
        *[{"points": p} for p in (0, 1, -2, True, [0.0, 0.5], [0.5, 1.0], [0.0, np.nan, 1.0])],
        *[{name: t} for name in ("rtol", "atol", "solve_rtol") for t in (0.0, -1.0, np.nan)],
        *[{name: c} for name in ("max_steps", "solve_steps", "batch") for c in (0, -1, 1.5, True)],
        {"inputs": jnp.zeros((0, 3))}, {"inputs": jnp.zeros((4, 7))}, {"velocity": jnp.ones(3)},
        {"distance": wm.distances.OutputDistance(lambda y, y0: jnp.sum((y - y0) ** 2))},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_are_refused(wrong):
    net = network(jnp.tanh)
    given = {"velocity": movement(net), "inputs": inputs()} | wrong
    with pytest.raises((ValueError, TypeError)):
        wm.geodesic(operator.call, net, **given)


def test_a_velocity_that_is_not_finite_is_refused():
    net = network(jnp.tanh)
    with pytest.raises(ValueError, match="velocity is not finite"):
        wm.geodesic(operator.call, net, jax.tree.map(lambda x: x * np.float32(np.nan), movement(net)), inputs())


def shifted(w, x):
    """The outputs of a network with something added to them, of whole numbers: they stay what they are."""
    constant, of_input = w["added"].astype(jnp.float32)
    return w["network"](x) + (constant + of_input * x[0])


@pytest.mark.parametrize(
    "size", [10_000, *(pytest.param(s, marks=pytest.mark.thorough) for s in (0, 10, 1_000, -10_000))]
)
@pytest.mark.parametrize("by", ["constant", "input"])
def test_what_is_added_to_the_outputs_neither_hides_kinks_nor_makes_them(size, by):
    def path(net, **rest):
        # An array, so that one compiled program does for all sizes.
        weights = {"network": net, "added": jnp.array([size, 0] if by == "constant" else [0, size])}
        velocity = {"network": flat_direction(net, 5), "added": None}
        return wm.geodesic(shifted, weights, velocity, inputs(), time=3.0, points=3, **rest).stats

    kinked = path(network(jax.nn.relu), max_steps=1000)
    assert kinked["outcome"].startswith(("kinks: the outputs of", "step limit"))
    assert kinked["kinked"][-1] > 0
    assert path(network(jnp.tanh))["outcome"] == "arrived"


def layer(w, x):
    return jnp.tanh(w["w"].astype(x.dtype) @ x)


# Of 24 mixes six, among which each two settings meet.
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("x64", "given_inputs", "velocity", "weights"),
    [
        (False, np.float32, np.float16, np.float32),
        (True, np.float64, np.float16, np.float64),
        (False, np.float64, np.float32, np.float64),
        (True, np.float32, np.float32, np.float32),
        (False, np.float32, np.float64, np.float64),
        (True, np.float64, np.float64, np.float32),
    ],
)
def test_every_two_precisions_have_a_geodesic_in_that_of_the_weights(x64, given_inputs, velocity, weights):
    with jax.enable_x64(x64):
        w, v = {"w": np.ones((2, 3), weights)}, {"w": np.full((2, 3), 0.25, velocity)}
        x = np.random.default_rng(0).normal(size=(4, 3)).astype(given_inputs)
        found = wm.acceleration(layer, w, v, x)["w"]
        path = wm.geodesic(layer, w, v, x, time=0.1, points=2)
        kept = jnp.asarray(w["w"]).dtype
        assert found.dtype == path.weights[-1]["w"].dtype == path.velocities[-1]["w"].dtype == kept
        assert path.stats["outcome"] == "arrived"
        precise = wm.acceleration(layer, w, {"w": np.full((2, 3), 0.25, weights)}, x.astype(weights))["w"]
        np.testing.assert_allclose(found, precise, rtol=1e-3, atol=1e-5)


OUTPUTS = {
    "complex": lambda w, x: jax.lax.complex(w(x), w(x)),
    "whole": lambda w, x: w(x).astype(int),
    "boolean": lambda w, x: w(x) > 0,
    "pair": lambda w, x: (w(x), w(x)),
    "number": lambda w, x: 1.0,
    "none": lambda w, x: None,
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_is_no_array_of_floating_point_numbers_has_no_derivative(name):
    net, f, x = network(jnp.tanh), OUTPUTS[name], inputs()
    v, method = movement(net), wm.ExactDirections(1.0, 0.01)
    for ask in (
        lambda: wm.acceleration(f, net, v, x),
        lambda: wm.geodesic(f, net, v, x),
        lambda: wm.FunctionMetric(f, net, x),
        lambda: wm.walk(f, net, None, x, method=method, steps=1, key=KEY),
    ):
        with pytest.raises(TypeError, match="must return one floating-point array"):
            ask()


def test_one_array_at_two_places_is_refused():
    w, scale = jnp.ones(3), lambda w, x: w["a"] * x + w["b"]
    tied, apart = {"a": w, "b": w}, {"a": w, "b": jnp.ones(3)}
    for ask in (wm.acceleration, wm.geodesic):
        with pytest.raises(ValueError, match=r"eqx\.nn\.Shared"):
            ask(scale, tied, apart, inputs())
        ask(scale, apart, tied, inputs())
    with pytest.raises(ValueError, match=r"eqx\.nn\.Shared"):
        wm.FunctionMetric(scale, tied, inputs())
