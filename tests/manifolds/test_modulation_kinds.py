"""Kinds of silent fault: the modulated network is the built one, whatever the types, fills, files, ties and meshes."""

import io
import pickle
import re
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm

KEY = jax.random.key(0)
MANIFOLDS = [
    wm.Line(),
    wm.TetheredRod(),
    wm.Simplex(2),
    wm.Ellipse(),
    wm.Fourier(1),
    wm.Simplex(3),
    wm.BSpline(3, degree=2),
    wm.BSpline(3, degree=2, periodic=True),
]


class OnWeight(eqx.Module):
    weight: jax.Array
    function: object = eqx.field(static=True)

    def __call__(self, *x):
        return self.function(self.weight, *x)


def numbers(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def modulated(weight: jax.Array, function, manifold=None, **options) -> wm.Modulated:
    return wm.modulate(OnWeight(weight, function), manifold or wm.Ellipse(), key=KEY, **options)


def worst(a: jax.Array, b: jax.Array) -> float:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return float(jnp.abs(a.astype(wide) - b.astype(wide)).max() / jnp.abs(b.astype(wide)).max())


@pytest.fixture(autouse=True)
def standard():
    with jax.numpy_dtype_promotion("standard"):
        yield


FLOATS = ["float32", "bfloat16", "float16"]


@pytest.mark.thorough
@settings(max_examples=25, deadline=None)
@given(
    of_weight=st.sampled_from(FLOATS),
    of_x=st.sampled_from([*FLOATS, "int32", "int8", "uint8", "bool", "complex64"]),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    positions=st.sampled_from([None, 1, 6]),
    memory=st.sampled_from([None, 0]),
)
def test_a_product_keeps_the_type_and_value_of_the_built_one(of_weight, of_x, sizes, positions, memory):
    _product(of_weight, of_x, sizes, positions, memory)


@pytest.mark.parametrize(
    ("of_weight", "of_x", "positions", "memory"),
    [
        ("float32", "bool", None, None),
        ("float32", "complex64", 6, 0),
        ("bfloat16", "float32", 6, None),
        ("float16", "int8", None, 0),
    ],
)
def test_a_product_of_two_types_is_the_built_one(of_weight, of_x, positions, memory):
    _product(of_weight, of_x, (4, 3), positions, memory)


def _product(of_weight, of_x, sizes, positions, memory):
    shape = (sizes[1],) if positions is None else (sizes[1], positions)
    x = (3 * numbers(*shape, seed=2)).at[0].set(1).astype(of_x)
    net = modulated(1 + 0.2 * numbers(*sizes, seed=1).astype(of_weight), jnp.matmul, memory=memory)

    @jax.jit  # one program, where operation by operation there would be many
    def both(s):
        def energy(s, forward):
            y = forward(s)
            return jnp.sum(jnp.abs(y).astype(jnp.float32)), y

        return [
            jax.value_and_grad(energy, has_aux=True)(s, forward)
            for forward in (lambda s: net(x, s), lambda s: net.at(s)(x))
        ]

    inexact = of_x if jnp.issubdtype(jnp.dtype(of_x), jnp.inexact) else of_weight
    eps = max(float(jnp.finfo(of_weight).eps), float(jnp.finfo(inexact).eps))
    wide = np.complex64 if of_x == "complex64" else np.float32
    scale = 1 + float(np.abs(np.asarray(x, wide)).sum())
    ((value, got), slope), ((wanted_value, wanted), wanted_slope) = both(np.float32(0.3))
    assert got.dtype == wanted.dtype
    assert float(np.abs(np.asarray(got, wide) - np.asarray(wanted, wide)).max()) <= 16 * eps * scale
    assert abs(value - wanted_value) <= 64 * eps * scale
    # The slope in s adds over all entries, in the type of the weights where they are built.
    assert abs(slope - wanted_slope) <= 64 * eps * scale * max(sizes)


@settings(max_examples=10, deadline=None)
@given(fill=st.sampled_from([None, 0.0, 1.0, -2.5, float("inf"), -float("inf"), float("nan")]), rows=st.booleans())
def test_a_gather_fills_with_the_value_and_not_with_a_combination_of_it(fill, rows):
    net = modulated(
        numbers(*((5, 2) if rows else (5,))), lambda w, i: jnp.take(w, i, axis=0, mode="fill", fill_value=fill)
    )
    i = jnp.array([0, 7, 4, -9])
    np.testing.assert_allclose(net(i, 0.3), net.at(0.3)(i), rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(value=st.sampled_from([0.0, 1.0, -jnp.inf]), low=st.integers(0, 2))
def test_a_pad_of_weights_is_not_combined(value, low):
    net = modulated(numbers(4), lambda w: jnp.pad(w, (low, 1), constant_values=value))
    np.testing.assert_allclose(net(0.3), net.at(0.3)(), rtol=1e-5)


def test_weights_may_index_weights():
    array = wm.ManifoldArray(jnp.arange(12.0).reshape(3, 4), jnp.array([1.0, 0.5, -0.5]))
    net = modulated(numbers(5), lambda w: w[(jnp.abs(w) * 10).astype(int) % 5])
    np.testing.assert_allclose(net(0.3), net.at(0.3)(), rtol=1e-5)
    assert array.materialise().shape == (4,)


SHAPES_OF_CONV = st.tuples(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2)
)


@pytest.mark.thorough
@settings(max_examples=8, deadline=None)
@given(sizes=SHAPES_OF_CONV, dilation=st.integers(1, 2), manifold=st.sampled_from([wm.Line(), wm.Ellipse()]))
def test_combining_and_building_any_convolution_agree_in_values_and_gradients(sizes, dilation, manifold):
    _convolution(sizes, dilation, manifold)


def test_combining_and_building_a_convolution_agree_in_values_and_gradients():
    _convolution((2, 3, 3, 2, 1), 2, wm.Ellipse())


def _convolution(sizes, dilation, manifold):
    c_in, c_out, kernel, stride, padding = sizes
    conv = eqx.nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, key=KEY)
    _agree(conv, (3, c_in, 7, 6), manifold)


@pytest.mark.parametrize("positions", [1, 4, 9])
def test_combining_and_building_a_sequence_agree_in_values_and_gradients(positions):
    _agree(OnWeight(numbers(5, 3), lambda w, x: (jnp.tanh(x @ w), w @ x[:, :3].T)), (3, positions, 5), wm.Ellipse())


def _agree(model, shape, manifold):
    x, s = numbers(*shape, seed=3), manifold.sample(KEY, (len(numbers(*shape)),))

    def run(memory):
        net = wm.modulate(model, manifold, key=KEY, memory=memory)
        weights, rest = eqx.partition(net, eqx.is_inexact_array)

        def loss(weights, x, s):
            y = jax.vmap(eqx.combine(weights, rest))(x, s)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(y)), y

        out = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(weights, x, s)
        return jax.tree.leaves(out)

    for built, combined in zip(run(10**9), run(0), strict=True):
        np.testing.assert_allclose(built, combined, rtol=0, atol=2e-5 * max(1, np.abs(combined).max()))


def _sizes(net: wm.Modulated, x: jax.Array) -> set[tuple[int, ...]]:
    batched = jax.vmap(net)
    program = jax.make_jaxpr(batched)(jnp.stack([x] * 7), net.manifold.sample(KEY, (7,))).jaxpr
    return {tuple(v.aval.shape) for e in program.eqns for v in e.outvars}


@pytest.mark.parametrize(
    ("positions", "points", "memory", "built"),
    [
        (4, 3, None, True),
        (3, 3, None, False),
        (64, 1, None, False),
        (4, 3, 4 * 6 * 5, True),
        (4, 3, 4 * 6 * 5 - 1, False),
    ],
)
def test_a_matrix_is_built_where_that_is_less_work_and_fits(positions, points, memory, built):
    manifold = wm.Ellipse() if points == 3 else wm.Simplex(points)
    net = modulated(numbers(6, 5), lambda w, x: jax.vmap(lambda row: w @ row)(x), manifold, memory=memory)
    shapes = _sizes(net, numbers(positions, 5))
    assert bool({(7, 6, 5), (7, 1, 6, 5)} & shapes) == built


@pytest.mark.parametrize(("memory", "built"), [(None, False), (10**6, True), (3_000, False)])
def test_a_convolution_is_built_only_where_its_patches_fit(memory, built):
    net = wm.modulate(eqx.nn.Conv1d(3, 4, 3, padding=1, key=KEY), wm.Ellipse(), key=KEY, memory=memory)
    names = str(jax.make_jaxpr(net)(numbers(3, 100), 0.3))
    assert ("conv_general_dilated" not in names) == built


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(MANIFOLDS), st.sampled_from(MANIFOLDS))
def test_a_network_and_its_files_know_their_manifold(tmp_path_factory, mine, other):
    model = eqx.nn.Linear(2, 2, key=KEY)
    net, theirs = (wm.modulate(model, m, key=KEY) for m in (mine, other))
    gradient = eqx.filter(net, eqx.is_inexact_array)
    path = tmp_path_factory.mktemp("files") / "net.eqx"
    eqx.tree_serialise_leaves(path, net)
    optimiser = wm.precondition(other)
    if mine == other:
        assert eqx.tree_equal(eqx.tree_deserialise_leaves(path, theirs), net)
        optimiser.update(gradient, optimiser.init(gradient))
        return
    with pytest.raises(RuntimeError):
        eqx.tree_deserialise_leaves(path, theirs)
    with pytest.raises(ValueError, match=r"network's own manifold, wm.precondition\(net.manifold\)"):
        optimiser.init(gradient)
    with pytest.raises(ValueError, match=r"network's own manifold, wm.precondition\(net.manifold\)"):
        optimiser.update(gradient, optax.EmptyState())


def test_the_error_of_a_file_of_another_manifold_names_the_cure(tmp_path):
    model = eqx.nn.Linear(2, 2, key=KEY)
    eqx.tree_serialise_leaves(tmp_path / "a.eqx", wm.modulate(model, wm.Ellipse(), key=KEY))
    with pytest.raises(RuntimeError) as error:
        eqx.tree_deserialise_leaves(tmp_path / "a.eqx", wm.modulate(model, wm.Simplex(3), key=KEY))
    causes, cause = "", error.value
    while cause is not None:
        causes, cause = causes + str(cause), cause.__cause__
    assert "modulate the model with the manifold that the file was written with" in causes


def test_the_mark_of_a_manifold_is_no_weight_and_survives_copies():
    net = wm.modulate(eqx.nn.Linear(2, 2, key=KEY), wm.Ellipse(), key=KEY)
    assert not eqx.is_array(net.stamp)
    again = pickle.loads(pickle.dumps(net))
    assert eqx.tree_equal(again, net)
    assert type(again.stamp) is type(net.stamp)
    for keep in (eqx.is_array, eqx.is_inexact_array):
        weights, adam = eqx.filter(net, keep), optax.adam(0.1)
        gradient = eqx.filter_grad(lambda net: jnp.sum(net(jnp.ones(2), 0.3)))(net)
        updates, _ = adam.update(gradient, adam.init(weights), weights)
        assert eqx.apply_updates(net, updates).stamp == net.stamp


def test_a_network_of_arrays_alone_has_a_plain_gradient_and_its_file_is_read():
    net = wm.modulate(eqx.nn.Linear(2, 2, key=KEY), wm.Ellipse(), key=KEY)
    gradient = jax.jit(jax.grad(lambda net: net.squared_norm(0.3)))(net)
    wanted = eqx.filter_grad(lambda net: net.squared_norm(0.3))(net)
    for got, right in zip(jax.tree.leaves(gradient.model), jax.tree.leaves(wanted.model), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-6)
    optimiser = optax.chain(wm.precondition(net.manifold), optax.adam(0.1))
    moved = optax.apply_updates(net, optimiser.update(gradient, optimiser.init(net), net)[0])
    eqx.tree_serialise_leaves(file := io.BytesIO(), moved)
    file.seek(0)
    read = eqx.tree_deserialise_leaves(file, net)
    assert eqx.tree_equal(read.model, moved.model)
    assert type(read.stamp) is type(net.stamp)


def test_a_manifold_that_was_exchanged_is_refused():
    net = wm.modulate(eqx.nn.Linear(2, 2, key=KEY), wm.Ellipse(), key=KEY)
    other = eqx.tree_at(lambda net: net.manifold, net, wm.Fourier(1))
    for use in (lambda: other.at(0.3), lambda: other(jnp.ones(2), 0.3), lambda: other.squared_norm(0.3)):
        with pytest.raises(
            ValueError, match=r"not made on Fourier\(order=1\), its manifold has been exchanged; modulate"
        ):
            use()


ENSEMBLES = st.sampled_from([[1], [3], [2, 3]])  # few shapes: each compiles anew


@pytest.mark.thorough
@settings(max_examples=8, deadline=None)
@given(st.sampled_from([wm.Line(), wm.Ellipse()]), ENSEMBLES, st.booleans())
def test_any_ensemble_is_called_network_by_network(manifold, sizes, compiled):
    _called(manifold, sizes, compiled)


@pytest.mark.parametrize(("sizes", "compiled"), [([3], False), ([2, 3], True)])
def test_an_ensemble_is_called_network_by_network(sizes, compiled):
    _called(wm.Ellipse(), sizes, compiled)


def _called(manifold, sizes, compiled):
    def make(key):
        return wm.modulate(eqx.nn.Linear(2, 2, key=key), manifold, key=key)

    keys, mapped = jax.random.split(KEY, tuple(sizes)), lambda net, x: (net(x, 0.3), net.squared_norm(0.3))
    for _ in sizes:
        make, mapped = eqx.filter_vmap(make), eqx.filter_vmap(mapped, in_axes=(eqx.if_array(0), None))
    nets, x = make(keys), jnp.ones(2)
    wrap = eqx.filter_jit if compiled else lambda f: f
    for use in (lambda n: n.at(0.3), lambda n: n(x, 0.3), lambda n: n.squared_norm(0.3)):
        with pytest.raises(ValueError, match=r"call an ensemble network by network, eqx\.filter_vmap"):
            wrap(use)(nets)
    outputs, norms = wrap(mapped)(nets, x)
    first = jax.tree.map(lambda leaf: leaf[(0,) * len(sizes)] if eqx.is_array(leaf) else leaf, nets)
    np.testing.assert_allclose(outputs[(0,) * len(sizes)], first(x, 0.3), rtol=1e-5)
    np.testing.assert_allclose(norms[(0,) * len(sizes)], first.squared_norm(0.3), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FLOATS), st.sampled_from([np.inf, -np.inf, np.nan]), st.integers(1, 4), st.data())
def test_weights_that_are_not_finite_are_no_centre(dtype, value, size, data):
    place = data.draw(st.integers(0, size - 1))
    mask = jnp.zeros(size, dtype).at[place].set(value)
    model = {"layer": {"mask": mask, "weight": jnp.ones(2)}}
    for manifold in (wm.Line(), wm.Simplex(1)):
        with pytest.raises(
            ValueError, match=r"weights\['layer'\]\['mask'\] are not finite; leave such an array, a mask"
        ):
            wm.modulate(model, manifold, key=KEY, spread=0)
    at = wm.modulate(model, wm.Line(), key=KEY, where=lambda m: m["layer"]["weight"]).at(0.3)
    assert at["layer"]["mask"] is mask


def test_weights_whose_points_overflow_are_refused():
    with pytest.raises(ValueError, match="too large for points around them; rescale them, give less spread or a wider"):
        wm.modulate({"w": jnp.array([6e4, -6e4], "float16")}, wm.Line(), key=KEY, spread=4)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FLOATS), st.sampled_from(FLOATS), st.floats(0, 1, width=32))
def test_a_cast_is_that_of_the_built_weights(of_weight, to, s):
    net = modulated(jnp.ones(2, of_weight), lambda w: w.astype(to), wm.Line())
    large = 6e4 if of_weight == "float16" else 9e4
    points = jnp.array([[large, 1.0], [-large, 3.0]], of_weight)
    net = eqx.tree_at(lambda net: net.model.weight.value, net, points)
    got, wanted = net(s), net.at(s)()
    assert got.dtype == wanted.dtype == to
    np.testing.assert_allclose(got.astype("float32"), wanted.astype("float32"), rtol=0.02, atol=large / 100)


@pytest.mark.parametrize("context", [0.3 + 1j, np.complex64(0.3), jnp.complex64(0.3), np.array(0.3, "complex128")])
def test_a_context_of_complex_numbers_is_refused(context):
    net = wm.modulate(eqx.nn.Linear(2, 2, key=KEY), wm.Ellipse(), key=KEY)
    many = np.full(5, np.asarray(context))
    for use in (
        lambda: net(jnp.ones(2), context),
        lambda: net.at(context),
        lambda: jax.vmap(net.squared_norm)(jnp.asarray(many)),
        lambda: net.manifold.check(many),
        lambda: net.manifold.gram(many),
        lambda: wm.precondition(net.manifold, many),
        lambda: wm.infer_context(net, jnp.ones((3, 2)), jnp.asarray(many)),
    ):
        with pytest.raises(TypeError, match=r"contexts of Ellipse\(\) are real numbers, got .*; give the real part"):
            use()


@pytest.mark.thorough
@settings(max_examples=10, deadline=None)
@given(st.sampled_from([wm.Line(), wm.Ellipse(), wm.Simplex(3)]), ENSEMBLES)
def test_all_ensembles_are_preconditioned_network_by_network(manifold, sizes):
    _preconditioned(manifold, sizes)


def test_ensembles_are_preconditioned_network_by_network():
    _preconditioned(wm.Simplex(3), [2, 3])


def _preconditioned(manifold, sizes):
    def make(key):
        return wm.modulate(eqx.nn.Linear(2, 3, key=key), manifold, key=key)

    keys = jax.random.split(KEY, tuple(sizes))
    for _ in sizes:
        make = eqx.filter_vmap(make)
    gradient = eqx.filter(make(keys), eqx.is_inexact_array)
    optimiser = wm.precondition(manifold)
    got = optimiser.update(gradient, optimiser.init(gradient))[0]
    inverse, over = np.asarray(manifold.inverse_gram()), len(sizes)
    for after, before in zip(jax.tree.leaves(got), jax.tree.leaves(gradient), strict=True):
        wanted = np.moveaxis(np.tensordot(inverse, np.asarray(before), (1, over)), 0, over)
        np.testing.assert_allclose(after, wanted, rtol=1e-4, atol=1e-5)


def test_complex_weights_are_refused_with_a_cure():
    layer = eqx.nn.Linear(3, 2, key=KEY, dtype=jnp.complex64)
    with pytest.raises(TypeError, match="real and the imaginary part"):
        wm.modulate(layer, wm.Line(), key=KEY)
    with pytest.raises(TypeError, match="real and imaginary parts"):
        wm.solve_metric(
            lambda s, p: p[0] * s, jnp.ones((2, 3), "complex64"), jnp.ones((2, 3), "complex64"), jnp.ones(2)
        )


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(FLOATS), st.sampled_from([1.0, 50.0, 200.0]))
def test_norms_and_draws_add_up_in_float32_at_least(dtype, size):
    layer = jax.tree.map(lambda w: (w * 0 + size).astype(dtype), eqx.nn.Linear(40, 30, key=KEY))
    layer = eqx.tree_at(lambda m: m.bias, layer, layer.bias * 0)
    net = wm.modulate(layer, wm.Line(), key=KEY)
    norm = net.squared_norm(0.3)
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, 1200 * size**2, rtol=0.02)
    spread = wm.modulate(eqx.nn.Linear(2, 2, key=KEY, dtype=dtype), wm.Line(), key=KEY)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(eqx.filter(spread, eqx.is_array)))


def test_half_precision_is_solved_for_in_float32():
    contexts = jnp.linspace(0, 1, 9)
    gradient = (100 * numbers(2, 300)).astype("float16")

    def line(s, p):
        return (1 - s) * p[0] + s * p[1]

    half = wm.solve_metric(line, jnp.zeros_like(gradient), gradient, contexts)
    full = wm.solve_metric(line, jnp.zeros((2, 300)), gradient.astype("float32"), contexts)
    assert half.value.dtype == jnp.float16
    assert half.stats["relative_residual"] < 1e-5
    np.testing.assert_array_equal(half.value, full.value.astype("float16"))


class Twice(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear

    def __call__(self, x):
        return self.b(self.a(x))


class Tied(eqx.Module):
    shared: eqx.nn.Shared

    def __init__(self, layer):
        self.shared = eqx.nn.Shared(
            Twice(layer, eqx.nn.Linear(3, 3, key=KEY)), lambda t: t.b.weight, lambda t: t.a.weight
        )

    def __call__(self, x):
        return self.shared()(x)


def test_an_array_with_two_places_is_refused_and_shared_works():
    layer = eqx.nn.Linear(3, 3, key=KEY)
    for options in ({}, {"where": lambda t: t.a}):
        with pytest.raises(ValueError, match=r"equinox.nn.Shared"):
            wm.modulate(Twice(layer, layer), wm.Ellipse(), key=KEY, **options)
    wm.modulate(Twice(layer, jax.tree.map(jnp.copy, layer)), wm.Ellipse(), key=KEY)  # equal is not the same
    eqx.filter_jit(lambda m: wm.modulate(m, wm.Ellipse(), key=KEY))(Twice(layer, jax.tree.map(jnp.copy, layer)))
    net = wm.modulate(Tied(layer), wm.Ellipse(), key=KEY)
    built, x = net.at(0.3), numbers(3)
    assert built.shared().a.weight is built.shared().b.weight
    np.testing.assert_allclose(net(x, 0.3), built(x), rtol=1e-5, atol=1e-6)


def test_one_logit_has_no_entropy_to_choose_by():
    for classes in (0, 1):
        with pytest.raises(ValueError, match="at least two classes"):
            wm.infer_context(lambda x, s, n=classes: jnp.zeros(n), numbers(3, 2), jnp.arange(3) / 3)


def test_a_memory_that_is_none_is_refused():
    # As users meet it, without the tests' own type checks.
    script = (
        "import jax, equinox as eqx, wmlib as wm; k = jax.random.key(0)\n"
        "for memory in (-1, 1.5, True, '1'):\n"
        "    try: print(wm.modulate(eqx.nn.Linear(2, 2, key=k), wm.Line(), key=k, memory=memory))\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    lines = answer.splitlines()
    assert len(lines) == 4
    for line, memory in zip(lines, ("-1", "1.5", "True", "'1'"), strict=True):
        assert re.search(
            rf"Error memory, a number of bytes or None for the default, must be .*{re.escape(memory)}", line
        ), line


SHARDED = """
import os
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
import equinox as eqx, jax, jax.numpy as jnp, wmlib as wm
from jax.sharding import AxisType, PartitionSpec as P, reshard
key = jax.random.key
class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    def __call__(self, h):
        return jax.vmap(self.mlp)(h + self.attention(h, h, h))
models = [
    (eqx.nn.MLP(8, 4, 16, 1, key=key(0)), (12, 8), wm.Fourier(2)),
    (eqx.nn.Conv2d(2, 4, 3, padding=1, key=key(0)), (12, 2, 5, 5), wm.Sphere(1)),
    (eqx.nn.Conv2d(4, 4, 3, groups=2, key=key(0)), (12, 4, 5, 5), wm.BSpline(5)),
    (Block(eqx.nn.MultiheadAttention(2, 8, key=key(0)), eqx.nn.MLP(8, 4, 16, 1, key=key(1))), (12, 6, 8), wm.Ellipse()),
]
mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
with jax.set_mesh(mesh):
    rows = P("d")
    x, w = reshard(jax.random.normal(key(1), (12, 8)), rows), reshard(jax.random.normal(key(2), (16, 8)), rows)
    net = wm.modulate(eqx.nn.MLP(8, 4, 16, 1, key=key(0)), wm.Ellipse(), key=key(1))
    grid = jnp.arange(4) / 4
    found = [wm.infer_context(net, x, s, batch=b) for s in (grid, reshard(grid, rows)) for b in (500, 5)]
    for spec in (P(), P("d"), P(None, "d")):
        wide = wm.modulate({"w": reshard(w, spec)}, wm.Ellipse(), key=key(1))
        assert jnp.allclose(wide.squared_norm(0.3), (wide.at(0.3)["w"] ** 2).sum(), rtol=1e-4)
        metric = wm.FunctionMetric(lambda w, x: w["w"] @ x, {"w": reshard(w, spec)}, reshard(x, P()))
        vector = wm.spectrum(metric, 1, key=key(0)).vector(0)["w"]
        assert jax.typeof(vector) == jax.typeof(reshard(w, spec))
    for spec in (P(), P(None, "d")):
        step = reshard(jnp.ones((2, 8)), spec)
        solved = wm.solve_metric(lambda s, p: p[0] * (1 - s) + p[1] * s, step, step, grid)
        assert jnp.allclose(solved.stats["relative_residual"], 0, atol=1e-4)
net, x = jax.device_get((net, x))
for one in found:
    wanted = wm.infer_context(net, x, jnp.arange(4) / 4).stats["entropy"]
    assert jnp.allclose(jax.device_get(one.stats["entropy"]), wanted, rtol=1e-4)
for model, shape, manifold in models:
    x, s = jax.random.normal(key(1), shape), manifold.sample(key(2), (12,))
    for memory in (None, 10**9):
        net = wm.modulate(model, manifold, key=key(3), memory=memory)
        weights, rest = eqx.partition(net, eqx.is_inexact_array)
        def loss(weights, x, s):
            net = eqx.combine(weights, rest)
            return (jax.vmap(net)(x, s) ** 2).sum() + jax.vmap(net.squared_norm)(s).sum()
        if memory is None:  # which changes no value
            wanted = jax.jit(jax.value_and_grad(loss))(weights, x, s)
        with jax.set_mesh(mesh):
            there = jax.tree.map(lambda a: reshard(a, P()), weights)
            placed = reshard(x, P("d")), reshard(s, P("d"))
            if memory is None:
                loss(there, *placed)
            got = jax.jit(jax.value_and_grad(loss))(there, *placed)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            assert jnp.allclose(jax.device_get(a), b, rtol=1e-3, atol=1e-3), (model, memory)
print("same")
"""


def test_explicit_meshes_change_nothing():
    out = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "same", out.stderr[-2000:]
