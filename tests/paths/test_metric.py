"""The metric that a network's outputs put on its weights."""

import operator
import pickle
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import wmlib as wm
from wmlib.paths.metric import mean_distance, norm, remember

KEY = jax.random.key(0)
DISTANCES = ["squared_error", "kl", "hellinger", "bhattacharyya"]
IMAGE = (2, 8, 8)


def normal(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def with_context(net, x):
    return net(x[0], x[1])


def modulated():
    model = wm.models.CNN(IMAGE, 3, widths=(2,), units=4, key=KEY)
    return wm.modulate(model, wm.Ellipse(), key=KEY, spread=0.5)


class Tokens(eqx.Module):
    """An embedding, layer normalisation and a linear layer of every token."""

    embedding: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    output: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(KEY)
        self.embedding = eqx.nn.Embedding(5, 4, key=keys[0])
        self.norm, self.output = eqx.nn.LayerNorm(4), eqx.nn.Linear(4, 3, key=keys[1])

    def __call__(self, tokens):
        return jax.vmap(lambda t: self.output(jnp.tanh(self.norm(self.embedding(t)))))(tokens)


SMALL = {"in_shape": IMAGE, "classes": 3, "widths": (2,), "units": 4}
images, contexts = normal(4, *IMAGE), jnp.asarray([0.1, 0.4, 0.8, 0.5])
NETWORKS = {
    "fully connected": (lambda: wm.models.LeNet300(IMAGE, 3, (5, 4), key=KEY), operator.call, images),
    "convolutional": (lambda: wm.models.CNN(**SMALL, key=KEY), operator.call, images),
    "layer normalised": (lambda: wm.models.LayerNormCNN(IMAGE, 3, (2,), 4, key=KEY), operator.call, images),
    "residual, by layer": (lambda: wm.models.ResNet(IMAGE, 3, 2, (1, 1), key=KEY), operator.call, images),
    "residual, by group": (lambda: wm.models.ResNet(IMAGE, 3, 2, (1,), "group", key=KEY), operator.call, images),
    "tokens": (Tokens, operator.call, jnp.asarray([[0, 1], [3, 3], [4, 2], [1, 0]])),
    "concat": (lambda: wm.rivals.Concat(**SMALL, key=KEY), with_context, (images, contexts)),
    "embed": (lambda: wm.rivals.Embed(**SMALL, key=KEY), with_context, (images, contexts)),
    "film": (lambda: wm.rivals.FiLM(**SMALL, key=KEY), with_context, (images, contexts)),
    "modulated": (modulated, with_context, (images, contexts)),
}


def moving(net):
    return eqx.filter(net, eqx.is_inexact_array)


def movement(net, seed=2):
    return jax.tree.map(lambda w: normal(*w.shape, seed=seed), moving(net))


def dense_product(f, net, inputs, distance, v):
    """`JᵀHJ v / N` with the whole Jacobian and the whole Hessian of the outputs, in numpy and float64."""
    static = eqx.filter(net, eqx.is_inexact_array, inverse=True)
    flat, unravel = ravel_pytree(moving(net))

    @jax.jit
    def jacobian_and_hessian(x):
        def output(w):
            return f(eqx.combine(unravel(w), static), x)

        y = output(flat)
        # Reverse mode, where the metric goes forward and back; and the distance itself, where it uses an embedding.
        hessian = jax.hessian(lambda z: distance(z.reshape(y.shape), y))(y.reshape(-1))
        return jax.jacrev(output)(flat).reshape(y.size, -1), hessian

    total, count = np.zeros(flat.size), len(jax.tree.leaves(inputs)[0])
    for i in range(count):
        found = jacobian_and_hessian(jax.tree.map(lambda a, i=i: a[i], inputs))
        J, hessian = (np.asarray(a, np.float64) for a in found)
        total += J.T @ hessian @ J @ np.asarray(ravel_pytree(v)[0], np.float64)
    return total / count


def relative(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# Of what each layer does, one network; the others for the thorough.
_MORE = ("layer normalised", "residual, by layer", "residual, by group", "concat", "embed")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.thorough] * (kind in _MORE)) for kind in NETWORKS]
)
def test_a_product_equals_the_dense_one(kind):
    make, f, inputs = NETWORKS[kind]
    net = make()
    v = movement(net)
    metric = wm.FunctionMetric(f, net, inputs, batch=2)
    product = ravel_pytree(metric.mv(v))[0]
    assert relative(product, dense_product(f, net, inputs, wm.distances.squared_error, v)) < 1e-5


@pytest.mark.parametrize("name", DISTANCES)
def test_a_product_equals_the_dense_one_for_every_distance(name):
    make, f, inputs = NETWORKS["fully connected"]
    net, distance = make(), getattr(wm.distances, name)
    v = movement(net)
    product = ravel_pytree(wm.FunctionMetric(f, net, inputs, distance).mv(v))[0]
    assert relative(product, dense_product(f, net, inputs, distance, v)) < 1e-5


def linear(w, x):
    """The smallest network: one matrix. Its Jacobian is known: `JᵀJ = I ⊗ x xᵀ`."""
    return w @ x


def test_the_metric_of_a_linear_map_is_the_second_moment_of_its_inputs():
    x = normal(7, 3)
    matrix = wm.FunctionMetric(linear, normal(2, 3), x).as_matrix()
    np.testing.assert_allclose(matrix, np.kron(np.eye(2), np.asarray(x.T @ x) / 7), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(batch=st.integers(1, 12), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_batches_do_not_change_the_metric(batch, size, seed):
    w, x = normal(2, 3, seed=seed), normal(size, 3, seed=seed + 1)
    v = normal(2, 3, seed=seed + 2)
    whole = wm.FunctionMetric(linear, w, x, wm.distances.kl, batch=size).mv(v)
    np.testing.assert_allclose(wm.FunctionMetric(linear, w, x, wm.distances.kl, batch=batch).mv(v), whole, atol=1e-5)


def test_no_more_than_a_batch_is_linearised_at_once():
    seen = []

    def watched(w, x):
        seen.append(x.shape)  # when traced: under vmap, with the batch's size hidden
        return w @ x

    metric = wm.FunctionMetric(watched, normal(2, 3), normal(1_000, 3), batch=10)
    before = len(seen)
    metric.mv(normal(2, 3))
    assert len(seen) == before + 1  # one program serves all hundred batches


def test_a_product_needs_little_more_memory_than_a_gradient():
    """At most 1.1 times, and one vector of weights more, where the memory is that of what lies between the layers."""
    shape = dict(vocabulary=50, width=64, heads=4, units=256, depth=4, classes=7, positions=32, types=2)
    net = wm.models.Transformer(**shape, key=jax.random.key(0))
    texts = jnp.ones((200, 32), jnp.int32)
    dynamic, static = eqx.partition(net, eqx.is_inexact_array)

    def needs(function):
        return jax.jit(function).lower(dynamic).compile().memory_analysis().temp_size_in_bytes

    def loss(w):
        return jnp.mean(jax.vmap(lambda x: jax.nn.logsumexp(eqx.combine(w, static)(x)))(texts))

    def product(w):
        metric = wm.FunctionMetric(operator.call, eqx.combine(w, static), texts, wm.distances.kl)
        return metric.mv(jax.tree.map(jnp.ones_like, w))

    vector = sum(x.nbytes for x in jax.tree.leaves(dynamic))
    assert needs(product) <= 1.1 * needs(jax.grad(loss)) + vector


def test_half_the_quadratic_form_is_the_mean_distance_moved():
    with jax.enable_x64(True):
        net = eqx.nn.MLP(3, 3, 4, 1, jax.nn.tanh, key=KEY, dtype=jnp.float64)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
        v, t = jax.tree.map(jnp.ones_like, moving(net)), 1e-4
        moved = eqx.apply_updates(net, jax.tree.map(lambda w: t * w, v))
        for name in DISTANCES:
            distance = getattr(wm.distances, name)
            exact = jax.vmap(distance)(jax.vmap(moved)(x), jax.vmap(net)(x)).mean()
            product = wm.FunctionMetric(operator.call, net, x, distance).mv(v)
            form = jnp.vdot(ravel_pytree(v)[0], ravel_pytree(product)[0])
            np.testing.assert_allclose(exact, t**2 * form / 2, rtol=1e-3)


def test_is_symmetric_positive_and_of_low_rank():
    net = eqx.nn.MLP(3, 3, 4, 1, key=KEY)
    matrix = np.asarray(wm.FunctionMetric(operator.call, net, normal(4, 3)).as_matrix(), np.float64)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-5 * np.abs(matrix).max())
    values = np.linalg.eigvalsh(matrix)[::-1]
    assert len(values) > 12
    assert (np.abs(values[12:]) < 1e-5 * values[0]).all()  # four inputs with three outputs each
    assert values.min() > -1e-5 * values[0]


def test_is_an_operator_of_lineax():
    w, x = normal(2, 3), normal(7, 3)
    metric = wm.FunctionMetric(linear, w, x)
    assert lx.is_symmetric(metric)
    assert lx.is_positive_semidefinite(metric)
    assert not lx.is_diagonal(metric)
    assert metric.T is metric
    assert metric.in_size() == metric.out_size() == 6
    assert metric.in_structure() == metric.out_structure()
    assert metric.size == 7
    v = normal(2, 3, seed=5)
    for other in (lx.linearise(metric), lx.materialise(metric), lx.conj(metric)):
        np.testing.assert_allclose(other.mv(v), metric.mv(v), rtol=1e-5, atol=1e-6)
    matrix = metric.as_matrix()
    np.testing.assert_allclose(lx.diagonal(metric), jnp.diagonal(matrix))
    np.testing.assert_allclose(lx.tridiagonal(metric)[1], jnp.diagonal(matrix, -1))
    solved = lx.linear_solve(metric, metric.mv(v), lx.CG(rtol=1e-6, atol=1e-6)).value
    np.testing.assert_allclose(solved, v, atol=1e-3)


def test_what_is_not_a_floating_point_array_is_held_fixed():
    weights = {"moves": normal(3), "counts": jnp.arange(3), "name": "a"}

    def f(w, x):
        return w["moves"] * w["counts"].astype(jnp.float32) * x

    metric = wm.FunctionMetric(f, weights, jnp.ones(2))
    v = {"moves": jnp.ones(3), "counts": None, "name": None}
    np.testing.assert_allclose(metric.mv(v)["moves"], [0, 1, 4])
    assert metric.in_size() == 3


def test_a_plain_function_serves_as_a_distance():
    w, x, v = normal(2, 3), normal(7, 3), normal(2, 3, seed=4)
    plain = wm.FunctionMetric(linear, w, x, lambda y, y0: jnp.sum((y - y0) ** 2) / 2)
    np.testing.assert_allclose(plain.mv(v), wm.FunctionMetric(linear, w, x).mv(v), rtol=1e-5, atol=1e-6)


def test_batch_normalisation_is_refused():
    class Net(eqx.Module):
        norm: eqx.nn.BatchNorm

        def __call__(self, x):
            return x

    net = eqx.nn.make_with_state(lambda: Net(eqx.nn.BatchNorm(2, "batch", mode="ema")))()[0]
    with pytest.raises(ValueError, match=r"BatchNorm keeps a state.*LayerNorm or GroupNorm"):
        wm.FunctionMetric(operator.call, net, images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"w": jnp.arange(3)}}, "no floating-point array"),
        ({"weights": jnp.asarray([[1.0, np.nan, 0.0]])}, "diverged"),
        ({"inputs": jnp.zeros((0, 3))}, "at least one input"),
        ({"batch": 0}, "500 is the default"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    given = {"weights": normal(2, 3), "inputs": normal(4, 3), "batch": 2} | change
    with pytest.raises(ValueError, match=message):
        wm.FunctionMetric(linear, given["weights"], given["inputs"], batch=given["batch"])


@pytest.mark.parametrize("f", [lambda w, x: (w @ x, x), lambda w, x: jnp.argmax(w @ x)])
def test_an_output_that_is_no_floating_point_array_is_refused(f):
    with pytest.raises(TypeError, match="one floating-point array"):
        wm.FunctionMetric(f, normal(2, 3), normal(4, 3))


DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32]


@settings(deadline=None, max_examples=12)
@given(batch=st.sampled_from([1, 3, 7, 20]), size=st.sampled_from([1, 7]), name=st.sampled_from(DISTANCES))
def test_a_kept_linearisation_gives_the_same_products(batch, size, name):
    w, x, v = normal(2, 3), normal(size, 3, seed=2), normal(2, 3, seed=3)
    plain = wm.FunctionMetric(linear, w, x, getattr(wm.distances, name), batch=batch)
    kept = wm.FunctionMetric(linear, w, x, getattr(wm.distances, name), batch=batch, keep=True)
    np.testing.assert_allclose(kept.mv(v), plain.mv(v), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kept.as_matrix(), plain.as_matrix(), rtol=1e-5, atol=1e-6)


def test_a_kept_linearisation_is_made_once_and_its_products_do_not_evaluate_the_function():
    calls = []

    def watched(w, x):
        calls.append(0)
        return jnp.tanh(w @ x)

    metric = wm.FunctionMetric(watched, normal(2, 3), normal(5, 3), keep=True)
    before = len(calls)
    for seed in range(3):
        metric.mv(normal(2, 3, seed=seed))
    assert len(calls) == before


@pytest.mark.parametrize("keep", [False, True])
def test_a_metric_travels(keep):
    net = eqx.nn.Linear(3, 2, key=KEY)
    metric = wm.FunctionMetric(operator.call, net, normal(4, 3), wm.distances.kl, batch=3, keep=keep)
    there = pickle.loads(pickle.dumps(metric))
    v = movement(net)
    for a, b in zip(jax.tree.leaves(metric.mv(v)), jax.tree.leaves(there.mv(v)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert there.batch == 3
    assert (there.kept is not None) == keep


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=5)
@given(log_size=st.floats(-3, 4))
def test_a_norm_neither_overflows_nor_counts_in_half_precision(dtype, log_size):
    x = jnp.full(3000, 10**log_size, dtype)
    exact = np.linalg.norm(np.asarray(x, np.float64))
    found = norm([x, x])
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.sqrt(2) * exact, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_drift_in_half_precision_is_summed_in_single(dtype):
    w, x = jnp.asarray(normal(3, 3), dtype), jnp.asarray(normal(3000, 3), dtype)
    outputs = jax.vmap(lambda a: linear(w, a))(x) + jnp.asarray(1, dtype)
    found = mean_distance(linear, wm.distances.squared_error, w, x, outputs, 3000)
    np.testing.assert_allclose(found, 1.5, rtol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.complex64])
def test_complex_weights_are_refused_with_the_cure(dtype):
    weights = {"w": jnp.ones(3, dtype), "b": jnp.ones(3)}
    with pytest.raises(TypeError, match=r"complex64.*two\s+real"):
        wm.FunctionMetric(lambda w, x: jnp.abs(w["w"]) * x, weights, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="real numbers"):
        wm.FunctionMetric(lambda w, x: jax.lax.complex(w * x, w), jnp.ones(3), jnp.ones((2, 3)))


@pytest.mark.parametrize(
    "f", [lambda w, x: jax.vmap(lambda a: w @ a)(x), lambda w, x: jnp.einsum("nd,od->no", x, w)], ids=["vmap", "einsum"]
)
def test_a_function_of_a_batch_is_named(f):
    for ask in (
        lambda: wm.FunctionMetric(f, normal(2, 3), normal(4, 3)),
        lambda: remember(f, normal(2, 3), normal(4, 3), 2, "x"),
    ):
        with pytest.raises(ValueError, match=r"f is called with one input.*x\[None\]") as caught:
            ask()
        assert caught.value.__cause__ is not None


@pytest.mark.parametrize("batch", [0, -1, 2.0, True, np.nan, None])
def test_a_batch_that_is_no_count_is_refused(batch):
    with pytest.raises((ValueError, TypeError)):
        wm.FunctionMetric(linear, normal(2, 3), normal(4, 3), batch=batch)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("x64", [False, True])
@settings(deadline=None, max_examples=10)
@given(
    given=st.sampled_from([np.float16, jnp.bfloat16, np.float32, np.float64]),
    weights=st.sampled_from([jnp.float16, jnp.bfloat16, jnp.float32]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_vector_of_another_type_is_cast_to_that_of_the_weights(keep, x64, given, weights, seed):
    with jax.enable_x64(x64):
        metric = wm.FunctionMetric(linear, normal(2, 3).astype(weights), normal(4, 3).astype(weights), keep=keep)
        vector = np.asarray(normal(2, 3, seed=seed)).astype(given)
        product = metric.mv(vector)
        assert product.dtype == weights
        np.testing.assert_array_equal(product, metric.mv(jnp.asarray(vector, weights)))


@pytest.mark.parametrize("vector", [np.ones((2, 3), int), np.ones((2, 3), bool), np.ones((2, 3), complex)])
def test_a_vector_that_is_not_of_floating_point_numbers_is_refused(vector):
    with pytest.raises(TypeError, match=r"astype|two real arrays"):
        wm.FunctionMetric(linear, normal(2, 3), normal(4, 3)).mv(vector)


def test_weights_and_inputs_of_numpy_are_those_of_jax():
    w, x, v = normal(2, 3), normal(4, 3), normal(2, 3, seed=3)
    ours = wm.FunctionMetric(linear, np.asarray(w, float), np.asarray(x, float)).mv(v)
    np.testing.assert_array_equal(ours, wm.FunctionMetric(linear, w, x).mv(v))


ERRORS = [RuntimeError, KeyError, NotImplementedError, AttributeError, StopIteration, ZeroDivisionError, AssertionError]


@pytest.mark.parametrize("error", ERRORS)
def test_whatever_a_function_of_a_batch_raises_is_named(error):
    def f(w, x):
        if jnp.ndim(x) != 2:
            raise error("two axes")
        return x @ w.T

    w, x, labels = normal(2, 3), normal(4, 3), jnp.zeros(4, int)
    for ask in (
        lambda: wm.FunctionMetric(f, w, x),
        lambda: wm.acceleration(f, w, w, x),
        lambda: wm.objectives.Task(f, x, labels, 2).value(w, np.arange(2)),
        lambda: wm.rivals.replay_loss(f, w, x, labels),
        lambda: wm.rivals.fisher_diagonal(f, w, x),
        lambda: wm.rivals.ogd_basis(f, w, x, labels),
        lambda: wm.infer_context(lambda x, s: f(w, x), x, jnp.zeros(2)),
    ):
        with pytest.raises(ValueError, match=r"is called with one input.*two axes.*x\[None\]") as caught:
            ask()
        assert isinstance(caught.value.__cause__, error)


@pytest.mark.parametrize("error", [MemoryError, FloatingPointError, KeyboardInterrupt])
def test_what_is_no_fault_of_the_function_goes_through(error):
    def f(w, x):
        raise error

    with pytest.raises(error):
        wm.FunctionMetric(f, normal(2, 3), normal(4, 3))


SHARDED = """
import os
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
import operator, jax, jax.numpy as jnp, equinox as eqx, numpy as np, optax, wmlib as wm
from jax.sharding import AxisType, PartitionSpec as P, reshard
key = jax.random.key
net, x = eqx.nn.MLP(8, 3, 6, 1, activation=jnp.tanh, key=key(0)), jax.random.normal(key(1), (12, 8))
v = jax.tree.map(jnp.ones_like, eqx.filter(net, eqx.is_inexact_array))
def ask(net, x, v, batch, keep, divided=False):
    metric = wm.FunctionMetric(operator.call, net, x, wm.distances.kl, batch=batch, keep=keep)
    found = [metric.mv(v), wm.spectrum(metric, 3, key=key(2)).value, wm.direction(metric, v).value]
    found += [wm.spectral_density(metric, key=key(3), probes=1, dimension=3).nodes]
    found += [wm.geodesic(operator.call, net, v, x, time=0.1, points=2).lengths] if keep else []
    labels = reshard(jnp.arange(12) % 3, P("d")) if divided else jnp.arange(12) % 3
    task = wm.objectives.Task(operator.call, x, labels, 4)
    methods = [wm.PenalisedDescent(optax.sgd(0.1), memory_batch=None if keep else 4), wm.ExactDirections(1.0, 0.01, 3)]
    for method in methods:
        path = wm.walk(operator.call, net, task, x, method=method, steps=2, key=key(0), held_out=x, batch=batch)
        found += [path.lengths, path.drift]
    found += [wm.rivals.fisher_diagonal(operator.call, net, x, batch=batch)]
    found += [jnp.abs(wm.rivals.ogd_basis(operator.call, net, x, labels, batch=batch)).sum()]
    return [np.asarray(a) for a in jax.tree.leaves(found)]
def ask_once(net, x, v, divided=False):
    "What knows of no batches."
    labels = reshard(jnp.arange(12) % 3, P("d")) if divided else jnp.arange(12) % 3
    start = jax.tree.map(lambda a: 0.9 * a, v)
    found = [wm.rivals.replay_loss(operator.call, net, x, labels), wm.rivals.lwf_loss(operator.call, net, net, x, 2)]
    found += [wm.rivals.der_loss(operator.call, net, x, jax.vmap(net)(x) + 1, labels), wm.rivals.l2_penalty(v, start)]
    found += [jax.vmap(wm.objectives.cross_entropy)(jax.vmap(net)(x), labels), wm.rivals.agem_projection(v, start)]
    for name in ("squared_error", "kl", "hellinger", "bhattacharyya"):
        distance, y = getattr(wm.distances, name), reshard(jnp.arange(8.0), P("d")) if divided else jnp.arange(8.0)
        found += [jax.vmap(distance)(jax.vmap(net)(x), jax.vmap(net)(2 * x)), distance(y, jnp.ones(8))]
    return [np.asarray(a) for a in jax.tree.leaves(found)]
cases = [(500, False), (500, True), (5, False)]
alone = [*(ask(net, x, v, *case) for case in cases), ask_once(net, x, v)]
with jax.set_mesh(jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))):
    whole = lambda tree: jax.tree.map(lambda a: reshard(a, P()) if eqx.is_array(a) else a, tree)
    placed = whole(net), reshard(x, P("d")), whole(v)
    there = [*(ask(*placed, *case, True) for case in cases), ask_once(*placed, True)]
    for found, expected in zip(there, alone, strict=True):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
"""


def test_inputs_divided_among_devices_give_the_same():
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
