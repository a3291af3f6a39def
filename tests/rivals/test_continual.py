"""The mechanisms that functionally invariant paths are compared with, each against an independent reference."""

import functools
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import wmlib as wm
from wmlib import rivals
from wmlib.models import LayerNormCNN
from wmlib.rivals.continual import ewc

KEY = jax.random.key(0)
SIZES = dict(in_shape=(1, 8, 8), classes=5, widths=(3, 4), units=6)


@pytest.fixture(scope="module")
def net():
    return LayerNormCNN(**SIZES, key=KEY)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (7, 1, 8, 8))


LABELS = jnp.arange(7) % 5


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in jax.tree.leaves(tree)])


def moved(net, size=0.1):
    dynamic, static = eqx.partition(net, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(dynamic)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    steps = [x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return eqx.combine(structure.unflatten(steps), static)


class TestLayerNormCNN:
    def test_is_the_network_that_torch_makes_of_the_same_weights(self, net, images):
        torch = pytest.importorskip("torch")

        def tensor(x):
            return torch.tensor(np.asarray(x))

        x = tensor(images)
        for convolution, norm in zip(net.convolutions, net.norms, strict=True):
            bias = tensor(convolution.bias).reshape(-1)
            x = torch.nn.functional.conv2d(x, tensor(convolution.weight), bias, stride=2, padding=1)
            x = torch.nn.functional.layer_norm(x, x.shape[1:])
            x = torch.relu(x * tensor(norm.weight)[:, None, None] + tensor(norm.bias)[:, None, None])
        x = torch.relu(torch.nn.functional.linear(x.flatten(1), tensor(net.hidden.weight), tensor(net.hidden.bias)))
        logits = torch.nn.functional.linear(x, tensor(net.output.weight), tensor(net.output.bias))
        np.testing.assert_allclose(jax.vmap(net)(images), logits.numpy(), atol=1e-5)

    def test_has_as_many_weights_as_it_says(self):
        net = eqx.filter_eval_shape(lambda: LayerNormCNN(key=KEY))
        count = sum(x.size for x in jax.tree.leaves(net) if hasattr(x, "size"))
        assert count == 16 * 9 + 16 + 32 * 16 * 9 + 32 + 2 * (16 + 32) + 100 * 32 * 49 + 100 + 20 * 100 + 20

    def test_takes_an_odd_size(self):
        net = LayerNormCNN((2, 7, 5), 3, (2, 2, 2), 4, key=KEY)
        assert net(jnp.ones((2, 7, 5))).shape == (3,)

    def test_keeps_no_state(self, net, images):
        wm.FunctionMetric(operator.call, net, images)

    def test_refuses_sizes_that_are_not_positive(self):
        with pytest.raises(ValueError, match="must be positive"):
            LayerNormCNN(widths=(4, 0), key=KEY)


class TestL2:
    def test_is_half_the_squared_distance(self, net):
        there = moved(net)
        expected = ((flat(eqx.filter(there, eqx.is_array)) - flat(eqx.filter(net, eqx.is_array))) ** 2).sum() / 2
        np.testing.assert_allclose(rivals.l2_penalty(there, net), expected, rtol=1e-5)
        assert rivals.l2_penalty(net, net) == 0


class TestEWC:
    def test_fisher_is_the_diagonal_of_the_metric_of_kl(self, net, images):
        metric = wm.FunctionMetric(operator.call, net, images, wm.distances.kl)
        ours = flat(rivals.fisher_diagonal(operator.call, net, images, batch=3))
        zero, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, eqx.filter(net, eqx.is_inexact_array)))
        for i in np.argsort(ours)[::-15]:  # from the largest entry to the smallest
            entry = flat(metric.mv(unravel(zero.at[i].set(1.0))))[i]
            np.testing.assert_allclose(ours[i], entry, rtol=1e-3, atol=1e-7)

    def test_fisher_is_the_mean_square_of_torch_gradients(self):
        torch = pytest.importorskip("torch")
        # A linear classifier, whose gradients are few enough for a loop.
        draw = np.random.default_rng(0)
        matrix, inputs = draw.normal(size=(4, 3)).astype(np.float32), draw.normal(size=(6, 3)).astype(np.float32)
        expected = np.zeros_like(matrix)
        for x in inputs:
            weight = torch.tensor(matrix, requires_grad=True)
            logp = torch.log_softmax(weight @ torch.tensor(x), 0)
            for c in range(4):
                (gradient,) = torch.autograd.grad(logp[c], weight, retain_graph=True)
                expected += logp[c].exp().item() * gradient.numpy() ** 2 / len(inputs)
        ours = rivals.fisher_diagonal(operator.matmul, jnp.asarray(matrix), jnp.asarray(inputs), batch=4)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)

    def test_penalty_is_the_quadratic_form(self, net, images):
        there, fisher = moved(net), rivals.fisher_diagonal(operator.call, net, images)
        step = flat(eqx.filter(there, eqx.is_array)) - flat(eqx.filter(net, eqx.is_array))
        expected = step @ (flat(fisher) * step) / 2
        np.testing.assert_allclose(rivals.ewc_penalty(there, net, fisher), expected, rtol=1e-4)

    def test_refuses_no_inputs(self, net):
        with pytest.raises(ValueError, match="at least one input"):
            rivals.fisher_diagonal(operator.call, net, jnp.zeros((0, 1, 8, 8)))


class TestGEM:
    @settings(max_examples=20, deadline=None)
    @given(
        st.sampled_from([1, 2, 5]), st.sampled_from([6, 7, 20]), st.integers(0, 10_000), st.sampled_from([0.0, 0.5])
    )  # fmt: skip
    def test_solves_the_quadratic_program(self, memories, size, seed, margin):
        draw = np.random.default_rng(seed)
        g, constraints = draw.normal(size=size), draw.normal(size=(memories, size))
        ours = rivals.gem_projection(jnp.float32(g), jnp.float32(constraints), margin)
        expected = g
        if (constraints @ g < 0).any():
            shift = g + margin * constraints.sum(axis=0)
            v, _ = scipy.optimize.nnls(constraints.T, -shift)  # min |shift + Gᵀ v|² over v ≥ 0
            expected = shift + v @ constraints
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=2e-3)

    def test_is_the_nearest_point_that_no_memory_objects_to(self):
        draw = np.random.default_rng(1)
        g, constraints = draw.normal(size=8), draw.normal(size=(3, 8))
        ours = np.asarray(rivals.gem_projection(jnp.float32(g), jnp.float32(constraints)))
        best = scipy.optimize.minimize(
            lambda z: ((z - g) ** 2).sum() / 2,
            g,
            jac=lambda z: z - g,
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda z: constraints @ z, "jac": lambda z: constraints},
        )
        np.testing.assert_allclose(ours, best.x, atol=1e-4)
        assert (constraints @ ours > -1e-5).all()

    def test_leaves_a_gradient_alone_that_no_memory_objects_to(self):
        g = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
        recalled = jax.tree.map(lambda x: x[None], g)
        assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), rivals.gem_projection(g, recalled, 0.5), g))

    def test_with_one_memory_is_the_averaged_form(self):
        a, b = jax.random.normal(KEY, (2, 30))
        for m in (b, -b):
            averaged = rivals.agem_projection(a, m)
            np.testing.assert_allclose(rivals.gem_projection(a, m[None]), averaged, atol=1e-5)
            assert averaged @ m > -1e-4
        assert jnp.array_equal(rivals.agem_projection(a, jnp.zeros(30)), a)

    def test_works_on_trees_inside_a_compiled_function(self, net, images):
        def loss(net, x, y):
            return rivals.replay_loss(operator.call, net, x, y)

        @eqx.filter_jit
        def step(net):
            g, m = eqx.filter_grad(loss)(net, images, LABELS), eqx.filter_grad(loss)(net, images[:3], LABELS[1:4])
            return g, m, rivals.gem_projection(g, jax.tree.map(lambda x: x[None], m))

        g, m, z = step(net)
        assert jax.tree.structure(g) == jax.tree.structure(z)
        assert flat(z) @ flat(m) > -1e-5


class TestOGD:
    def test_is_the_projection_that_qr_makes(self, net, images):
        basis = np.asarray(rivals.ogd_basis(operator.call, net, images, LABELS, batch=3))
        of_one = eqx.filter_jit(eqx.filter_grad(lambda n, x, y: n(x)[y]))
        rows = [flat(of_one(net, x, y)) for x, y in zip(images, LABELS, strict=True)]
        q, _ = np.linalg.qr(np.stack(rows).T)
        np.testing.assert_allclose(basis.T @ basis, q @ q.T, atol=1e-4)
        np.testing.assert_allclose(basis @ basis.T, np.eye(len(images)), atol=1e-5)

    def test_leaves_nothing_along_the_memories(self, net, images):
        basis = rivals.ogd_basis(operator.call, net, images, LABELS)
        gradient = eqx.filter_jit(eqx.filter_grad(lambda n: rivals.replay_loss(operator.call, n, images, LABELS)))(net)
        left = rivals.ogd_projection(gradient, basis)
        assert jax.tree.structure(left) == jax.tree.structure(gradient)
        assert np.abs(np.asarray(basis) @ flat(left)).max() < 1e-6
        again = rivals.ogd_projection(left, basis)
        np.testing.assert_allclose(flat(again), flat(left), atol=1e-7)

    def test_drops_memories_that_say_the_same(self, net, images):
        twice = jnp.concatenate([images, images])
        basis = rivals.ogd_basis(operator.call, net, twice, jnp.concatenate([LABELS, LABELS]))
        assert len(basis) == len(images)

    def test_refuses_an_empty_memory_and_outputs_without_weights(self, net):
        with pytest.raises(ValueError, match="at least one input"):
            rivals.ogd_basis(operator.call, net, jnp.zeros((0, 1, 8, 8)), jnp.zeros(0, jnp.int32))
        with pytest.raises(ValueError, match="depends on the weights"):
            rivals.ogd_basis(lambda w, x: 0 * w * x, jnp.ones(3), jnp.ones((2, 3)), jnp.zeros(2, jnp.int32))


class TestReplay:
    def test_is_the_cross_entropy_of_torch(self, net, images):
        torch = pytest.importorskip("torch")
        logits, labels = torch.tensor(np.asarray(jax.vmap(net)(images))), torch.tensor(np.asarray(LABELS)).long()
        expected = torch.nn.functional.cross_entropy(logits, labels).item()
        np.testing.assert_allclose(rivals.replay_loss(operator.call, net, images, LABELS), expected, rtol=1e-5)


class TestDER:
    def test_is_algorithm_1_with_the_squared_distance(self, net, images):
        stored, there = jax.vmap(net)(images), moved(net)
        kept = jax.vmap(lambda x, z: wm.distances.squared_error(there(x), z))(images, stored).mean()
        np.testing.assert_allclose(rivals.der_loss(operator.call, there, images, stored), 2 * kept, rtol=1e-5)

    def test_adds_replay_with_labels(self, net, images):
        stored, there = jax.vmap(net)(images), moved(net)
        plain = rivals.der_loss(operator.call, there, images, stored, alpha=0.5)
        both = rivals.der_loss(operator.call, there, images, stored, LABELS, alpha=0.5, beta=3.0)
        replay = rivals.replay_loss(operator.call, there, images, LABELS)
        np.testing.assert_allclose(both, plain + 3 * replay, rtol=1e-5)


class TestLwF:
    def test_is_the_divergence_of_torch(self, net, images):
        torch = pytest.importorskip("torch")
        there = moved(net)
        new, old = (torch.tensor(np.asarray(jax.vmap(n)(images)))[:, :3] / 2 for n in (there, net))
        log_softmax = torch.nn.functional.log_softmax
        expected = 4 * torch.nn.functional.kl_div(
            log_softmax(new, 1), log_softmax(old, 1), reduction="batchmean", log_target=True
        )
        ours = rivals.lwf_loss(operator.call, there, net, images, old=3)
        np.testing.assert_allclose(ours, expected.item(), rtol=1e-4)

    def test_is_zero_with_its_gradient_at_the_start(self, net, images):
        value, gradient = eqx.filter_value_and_grad(
            lambda n: rivals.lwf_loss(operator.call, n, net, images, old=3, temperature=1.0)
        )(net)
        assert abs(value) < 1e-6
        assert np.abs(flat(gradient)).max() < 1e-6


@eqx.filter_jit
def one_by_one(f, weights, inputs):
    """The diagonal of the Fisher matrix by its definition, from whole Jacobians."""
    dynamic, static = eqx.partition(weights, eqx.is_inexact_array)

    def of_one(x):
        def log_probabilities(w):
            return jax.nn.log_softmax(f(eqx.combine(w, static), x).astype(jnp.float32))

        p, rows = jnp.exp(log_probabilities(dynamic)), jax.jacrev(log_probabilities)(dynamic)
        return jax.tree.map(lambda row: jnp.tensordot(p, row.astype(jnp.float32) ** 2, 1), rows)

    return jax.tree.map(lambda x: x.mean(axis=0), jax.vmap(of_one)(inputs))


@functools.cache  # a program is compiled for each function
def a_kind(kind, size, classes):
    """A network of a kind, how it is called, and how many of its matrices are used once, with one vector."""
    keys = jax.random.split(jax.random.key(size), 4)
    first, last = eqx.nn.Linear(6, size, key=keys[0]), eqx.nn.Linear(size, classes, key=keys[1])
    square = eqx.nn.Linear(size, size, key=keys[2])
    if kind == "layers":
        return eqx.nn.MLP(6, classes, size, 2, key=keys[0]), operator.call, 3
    if kind == "without biases":
        return eqx.nn.MLP(6, classes, size, 1, use_bias=False, key=keys[0]), operator.call, 2
    if kind == "matrices on the right":
        return (first.weight.T, last.weight.T), (lambda w, x: jnp.tanh(x @ w[0]) @ w[1]), 2
    if kind == "a layer twice":
        return (first, square, last), (lambda w, x: w[2](jnp.tanh(w[1](jnp.tanh(w[1](w[0](x))))))), 2
    if kind == "many positions":
        return (first, last), (lambda w, x: w[1](jax.vmap(w[0])(jnp.stack([x, jnp.sin(x)])).sum(0))), 1
    if kind == "a loop":

        def f(w, x):
            return w[2](jax.lax.scan(lambda h, _: (jnp.tanh(w[1](h)), None), w[0](x), length=3)[0])

        return (first, square, last), f, 2
    if kind == "also read":  # its matrix is in the output by another way too
        return (first, last), (lambda w, x: w[1](w[0](x)) + jnp.sum(w[0].weight ** 2) * jnp.arange(float(classes))), 1
    if kind == "frozen":
        return (first, last), (lambda w, x: w[1](jax.lax.stop_gradient(w[0])(x))), 1
    if kind == "unused":
        return (first, square, last), (lambda w, x: w[2](w[0](x)) + 0 * jnp.sum(w[1](jnp.ones(size)))), 3
    if kind == "compiled within":
        return (first, last), (lambda w, x: w[1](jax.jit(lambda m, x: m @ x)(w[0].weight, x))), 1
    return LayerNormCNN((1, 2, 3), classes, (2,), size, key=keys[3]), (lambda w, x: w(x.reshape(1, 2, 3))), 2


KINDS = [
    "layers", "without biases", "matrices on the right", "a layer twice", "many positions", "a loop", "also read", "frozen",
    "unused", "compiled within", "convolutions",
]  # fmt: skip


# What the rule finds in these is asked of all kinds below; their numbers are for the thorough.
LIKE_OTHERS = ("without biases", "a layer twice", "also read", "frozen", "unused")


class TestFactors:
    @pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=[pytest.mark.thorough] * (kind in LIKE_OTHERS)) for kind in KINDS]
    )
    @settings(max_examples=4, deadline=None)
    @given(size=st.sampled_from([1, 2, 5]), classes=st.sampled_from([2, 4]), batch=st.sampled_from([None, 1, 3]))
    def test_fisher_is_its_definition_for_every_kind_of_network(self, kind, size, classes, batch):
        weights, f, _ = a_kind(kind, size, classes)
        inputs = jax.random.normal(jax.random.key(classes), (4, 6))
        ours, expected = rivals.fisher_diagonal(f, weights, inputs, batch=batch), one_by_one(f, weights, inputs)
        assert jax.tree.structure(ours) == jax.tree.structure(expected)
        for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6 * float(jnp.max(two)))

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_used_once_with_one_vector_is_factored(self, kind):
        weights, f, count = a_kind(kind, 5, 3)
        assert len(ewc._program(f, weights, jnp.ones((4, 6)))[1]) in ({count, 1} if kind == "frozen" else {count})

    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
    def test_half_precision_is_squared_in_float32(self, dtype):
        weights = jnp.asarray(jax.random.normal(KEY, (3, 4)), dtype)
        inputs = jnp.asarray(1000 * jax.random.normal(KEY, (5, 4)), dtype)  # whose squares float16 does not hold
        ours = rivals.fisher_diagonal(lambda w, x: w @ x / 1000, weights, inputs)
        assert ours.dtype == jnp.float32
        wide = one_by_one(lambda w, x: w @ x / 1000, weights.astype(jnp.float32), inputs.astype(jnp.float32))
        np.testing.assert_allclose(ours, wide, rtol=0.1, atol=0.02 * float(wide.max()))


class TestScales:
    @pytest.mark.thorough
    @settings(max_examples=25, deadline=None)
    @given(
        memories=st.sampled_from([1, 4]), seed=st.integers(0, 1000), power=st.integers(-24, 24), others=st.integers(-24, 24),
    )  # fmt: skip
    def test_a_projection_scales_with_the_gradient_and_not_with_the_memories(self, memories, seed, power, others):
        g, recalled = (
            jnp.asarray(x, jnp.float32)
            for x in np.split(np.random.default_rng(seed).normal(size=(memories + 1, 12)), [1])
        )
        g = g[0]
        plain = np.asarray(rivals.gem_projection(g, recalled), float)
        scaled = rivals.gem_projection(g * 10.0**power, recalled * 10.0**others)
        np.testing.assert_allclose(np.asarray(scaled, float) / 10.0**power, plain, atol=2e-4)
        # Nearest point of a cone: no memory objects, what was added is a positive sum of memories, and orthogonal.
        assert (np.asarray(recalled, float) @ plain > -1e-3).all()
        assert abs((plain - np.asarray(g, float)) @ plain) < 1e-3
        averaged = np.asarray(rivals.agem_projection(g * 10.0**power, recalled[0] * 10.0**others), float) / 10.0**power
        np.testing.assert_allclose(averaged, rivals.agem_projection(g, recalled[0]), atol=1e-4)

    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
    def test_large_numbers_of_every_type_are_added_up(self, dtype):
        g = jnp.full((400,), 100, dtype)
        for z in (rivals.gem_projection(g, -g[None]), rivals.agem_projection(g, -g)):
            assert z.dtype == dtype
            assert np.abs(np.asarray(z, float)).max() < 1
        weights, start = {"w": g}, {"w": jnp.zeros_like(g)}
        assert float(rivals.l2_penalty(weights, start)) == 400 * 100**2 / 2
        assert float(rivals.ewc_penalty(weights, start, {"w": jnp.ones(400)})) == 400 * 100**2 / 2
        basis = jnp.full((1, 400), 0.05)
        assert np.abs(np.asarray(rivals.ogd_projection(g, basis), float)).max() < 1

    def test_nothing_is_not_a_number_where_a_gradient_is_zero(self):
        zero, one = jnp.zeros(5), jnp.ones(5)
        for g, m in ((zero, one), (one, zero), (zero, zero)):
            assert jnp.array_equal(rivals.gem_projection(g, m[None]), g)
            assert jnp.array_equal(rivals.agem_projection(g, m), g)
        assert jnp.array_equal(rivals.ogd_projection(one, jnp.zeros((2, 5))), one)
        assert jnp.array_equal(jax.grad(lambda w: rivals.l2_penalty(w, one))(one), zero)

    def test_a_memory_that_is_not_a_number_is_told(self):
        assert jnp.isnan(rivals.gem_projection(jnp.ones(3), jnp.full((1, 3), jnp.nan))).all()
        assert jnp.isnan(rivals.agem_projection(jnp.ones(3), jnp.full(3, jnp.nan))).all()


@given(shift=st.integers(-7, 7))
@settings(max_examples=15, deadline=None)
def test_a_label_out_of_range_is_refused_and_under_jit_is_not_a_number(shift):
    net, x = eqx.nn.Linear(3, 4, key=KEY), jnp.ones((4, 3))
    labels = jnp.arange(4) + shift
    losses = (
        lambda y: rivals.replay_loss(operator.call, net, x, y),
        lambda y: rivals.der_loss(operator.call, net, x, jnp.ones((4, 4)), y),
    )
    for loss in losses:
        assert bool(jnp.isnan(jax.jit(loss)(labels))) == (shift != 0)
        if shift:
            with pytest.raises(ValueError, match="number the classes from 0"):
                loss(labels)


HALF = [jnp.float16, jnp.bfloat16]
INTEGERS = [np.int8, np.uint8, np.int16, np.int32, np.bool_]


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)


class TestTypes:
    @pytest.mark.parametrize("dtype", HALF)
    @settings(max_examples=8, deadline=None)
    @given(
        seed=st.integers(0, 99), temperature=st.sampled_from([0.5, 2.0, 300.0]), size=st.sampled_from([0.01, 1.0, 30.0])
    )
    def test_a_loss_of_half_precision_is_that_of_its_logits_in_single(self, dtype, seed, temperature, size):
        rng = np.random.default_rng(seed)
        w, start = (jnp.asarray(size * rng.normal(size=(5, 3)), dtype) for _ in range(2))
        x, outputs = jnp.asarray(rng.normal(size=(7, 3)), dtype), jnp.asarray(size * rng.normal(size=(7, 5)), dtype)

        def losses(f):
            return jnp.stack([
                rivals.replay_loss(f, w, x, LABELS), rivals.lwf_loss(f, w, start, x, 4, temperature),
                rivals.der_loss(f, w, x, outputs, LABELS),
            ])  # fmt: skip

        narrow, wide = losses(lambda w, x: w @ x), losses(lambda w, x: (w @ x).astype(jnp.float32))
        assert narrow.dtype == jnp.float32
        np.testing.assert_array_equal(narrow, wide)

    @pytest.mark.parametrize("dtype", [*HALF, jnp.float32])
    def test_a_difference_of_large_weights_is_taken_in_single(self, dtype):
        weights = {"w": jnp.full(3, 60000, dtype)}
        start, exact = {"w": -weights["w"]}, 3 * 120000.0**2 / 2
        for penalty in (
            rivals.l2_penalty(weights, start),
            rivals.ewc_penalty(weights, start, {"w": jnp.ones(3, dtype)}),
        ):
            np.testing.assert_allclose(penalty, exact, rtol=1e-2)

    @pytest.mark.parametrize("dtype", INTEGERS)
    def test_projections_of_whole_numbers_are_refused(self, dtype):
        g, m = np.ones(3, dtype), np.ones(3, np.float32)
        for ask in (
            lambda: rivals.gem_projection(g, m[None]), lambda: rivals.gem_projection(m, g[None]),
            lambda: rivals.agem_projection(g, m), lambda: rivals.agem_projection(m, g),
            lambda: rivals.ogd_projection(g, m[None]), lambda: rivals.ogd_projection(m, g[None]),
        ):  # fmt: skip
            with pytest.raises(TypeError, match="astype"):
                ask()

    def test_arrays_of_numpy_are_those_of_jax(self):
        rng = np.random.default_rng(0)
        w, x, outputs = (rng.normal(size=n).astype(np.float32) for n in ((5, 3), (7, 3), (7, 5)))

        def answers(of):
            a, b, c, labels = of(w), of(x), of(outputs), of(np.arange(7) % 5)
            f = jnp.matmul
            return [
                rivals.replay_loss(f, a, b, labels), rivals.der_loss(f, a, b, c, labels), rivals.lwf_loss(f, a, a, b, 3),
                rivals.fisher_diagonal(f, a, b), rivals.l2_penalty({"w": a}, {"w": 2 * a}), rivals.agem_projection(b, -b),
                rivals.gem_projection(b, -b[None]), rivals.ogd_projection(a, rivals.ogd_basis(f, a, b, labels)),
            ]  # fmt: skip

        for ours, theirs in zip(answers(np.asarray), answers(jnp.asarray), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_an_array_of_one_number_is_a_number_as_a_setting(self):
        w, x = jnp.ones((5, 3)), jnp.ones((7, 3))
        for one in (np.ones(1), jnp.ones((1, 1)), np.float32(1), jnp.ones(()), 1):
            assert rivals.der_loss(jnp.matmul, w, x, jnp.ones((7, 5)), LABELS, one, one).shape == ()
            assert rivals.lwf_loss(jnp.matmul, w, w, x, 3, one).shape == ()
            assert rivals.gem_projection(x[0], -x, one).shape == (3,)

    def test_settings_may_be_traced(self):
        w, x = jnp.ones((5, 3)), jnp.ones((7, 3))
        slope = jax.jit(jax.grad(lambda a: rivals.der_loss(jnp.matmul, w, x, jnp.ones((7, 5)), None, a)))(2.0)
        np.testing.assert_allclose(slope, 5 * 2.0**2)


class TestLabels:
    @settings(max_examples=20, deadline=None)
    @given(shape=st.lists(st.integers(1, 5), max_size=2), compiled=st.booleans())
    def test_those_of_another_shape_are_refused_with_the_cure(self, shape, compiled):
        w, x, labels = jnp.ones((5, 3)), jnp.ones((7, 3)), jnp.asarray(np.zeros((7, *shape), np.int32))
        losses = [
            lambda y: rivals.replay_loss(jnp.matmul, w, x, y),
            lambda y: rivals.der_loss(jnp.matmul, w, x, jnp.ones((7, 5)), y),
            *([] if compiled else [lambda y: rivals.ogd_basis(jnp.matmul, w, x, y)]),
        ]
        for loss in losses:
            loss = jax.jit(loss) if compiled else loss
            if shape:
                with pytest.raises(ValueError, match=r"labels\.reshape\(-1\).*argmax"):
                    loss(labels)
            else:
                assert jnp.isfinite(loss(labels)).all()
