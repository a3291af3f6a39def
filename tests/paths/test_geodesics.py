"""Geodesics: kinks are told, precision, arguments."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm

KEY = jax.random.key(0)


def max_pool(h):
    """Of each unit and a line."""
    return jnp.max(jnp.stack([h, 0.1 - h / 2]), axis=0)


SMOOTH = {"tanh": jnp.tanh, "softplus": jax.nn.softplus, "gelu": jax.nn.gelu}
KINKED = {"relu": jax.nn.relu, "leaky relu": jax.nn.leaky_relu, "abs": jnp.abs, "max-pool": max_pool}


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


@pytest.mark.parametrize("name", SMOOTH)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 100), flat=st.booleans(), time=st.sampled_from([0.1, 1.0, 4.0]))
def test_a_smooth_network_raises_no_alarm(name, seed, flat, time):
    net = network(SMOOTH[name], seed)
    v = flat_direction(net, seed) if flat else movement(net, seed=seed)
    path = wm.geodesic(operator.call, net, v, inputs(), time=time, points=3)
    assert path.stats["outcome"] == "arrived"
    assert not path.stats["kinked"].any()
    assert path.stats["unexplained"].max() < 1e-6


@pytest.mark.parametrize("name", KINKED)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 100))
def test_kinks_that_a_flat_path_crosses_are_told_with_their_drift(name, seed):
    net = network(KINKED[name], seed)
    path = wm.geodesic(operator.call, net, flat_direction(net, seed), inputs(), time=3.0, points=3, max_steps=1000)
    assert path.drift[-1] > 1e-6  # a flat path keeps the outputs but for the kinks
    assert path.stats["outcome"].startswith(("kinks: the outputs of", "step limit"))
    assert path.stats["kinked"][-1] > 0
    # It sets out along a flat direction: all that it drifts is what the kinks cause.
    np.testing.assert_allclose(path.stats["unexplained"][-1], path.drift[-1], rtol=1e-2)


def test_a_path_that_crosses_no_kink_of_a_network_arrives():
    net = network(jax.nn.relu)
    path = wm.geodesic(operator.call, net, movement(net, 1e-4), inputs(), points=2)
    assert path.stats["outcome"] == "arrived"


# Without x64 there are no weights of float64.
@pytest.mark.parametrize(("x64", "weights"), [(False, jnp.float32), (True, jnp.float32), (True, jnp.float64)])
@pytest.mark.parametrize("distance", [wm.distances.squared_error, wm.distances.kl], ids=["squared", "kl"])
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
    single, at = network(jnp.tanh), inputs()
    again = wm.geodesic(operator.call, single, movement(single), at, distance, time=0.5, points=3)
    if weights == jnp.float32:
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
