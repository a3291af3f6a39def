"""Steepest descent: the inverse metric as an optax transformation, and the matrix-free solve."""

import re
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm

KEY = jax.random.key(0)
SHAPES = [
    wm.Line(),
    wm.TetheredRod(),
    wm.Ellipse(),
    wm.BSpline(5),
    wm.Sphere(1),
    wm.Simplex(3),
    wm.Product(wm.Line(), wm.Ellipse()),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=repr)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def is_points(node: Any) -> bool:
    return isinstance(node, wm.BasisPoints)


def normal(*shape: int, seed: int = 1, dtype: Any = float) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.result_type(float)).astype(dtype)


class Affine(eqx.Module):
    weight: Any
    bias: Any

    def __call__(self, x):
        return jnp.tanh(self.weight @ x + self.bias)


def gradient_of(shape: wm.AbstractManifold, plain_bias: bool = False, dtype: Any = float) -> Affine:
    """The gradient of some network on a manifold."""
    bias = normal(2, seed=2, dtype=dtype) if plain_bias else wm.BasisPoints(normal(shape.size, 2, seed=2, dtype=dtype))
    return Affine(wm.BasisPoints(normal(shape.size, 2, 3, dtype=dtype)), bias)


def by_hand(inverse: Any, gradient: Any) -> Any:
    def leaf(node):
        if not is_points(node):
            return node
        return wm.BasisPoints(jnp.asarray(np.einsum("kl,l...->k...", np.asarray(inverse), np.asarray(node.value))))

    return jax.tree.map(leaf, gradient, is_leaf=is_points)


def assert_close(got: Any, wanted: Any, tolerance: float = 1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * float(np.abs(y).max()))


def apply(transformation: optax.GradientTransformation, gradient: Any, params: Any = None) -> Any:
    params = gradient if params is None else params
    return transformation.update(gradient, transformation.init(params), params)[0]


class TestPrecondition:
    @every_shape
    def test_multiplies_the_points_by_the_inverse_metric(self, shape):
        gradient = gradient_of(shape)
        assert_close(apply(wm.precondition(shape), gradient), by_hand(shape.inverse_gram(), gradient))

    def test_uses_the_density_it_is_given(self):
        density = np.array([0.1, 0.2, 0.25, 0.7])
        gradient = gradient_of(wm.Ellipse())
        a = np.asarray(jax.vmap(wm.Ellipse().basis)(jnp.asarray(density, "float32")), np.float64)
        inverse = np.linalg.inv(a.T @ a / 4)
        assert_close(apply(wm.precondition(wm.Ellipse(), density), gradient), by_hand(inverse, gradient), 1e-3)

    def test_leaves_what_is_no_basis_point_bitwise_alone(self):
        gradient = gradient_of(wm.Line(), plain_bias=True)
        updates = apply(wm.precondition(wm.Line()), gradient)
        np.testing.assert_array_equal(updates.bias, gradient.bias)
        assert (updates.weight.value != gradient.weight.value).any()

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
    def test_keeps_the_floating_type_of_the_points(self, dtype):
        gradient = gradient_of(wm.BSpline(5), dtype=dtype)
        updates = apply(wm.precondition(wm.BSpline(5)), gradient)
        assert updates.weight.value.dtype == dtype

    def test_is_exact_in_float64(self, float64):
        shape = wm.BSpline(6)
        gradient = gradient_of(shape)
        assert_close(apply(wm.precondition(shape), gradient), by_hand(np.linalg.inv(shape.gram()), gradient), 1e-10)

    @pytest.mark.parametrize(
        "optimiser",
        [
            optax.sgd(0.1),
            optax.sgd(0.1, momentum=0.9, nesterov=True),
            optax.adam(0.1),
            optax.adamw(0.1),
            optax.lion(0.1),
        ],
        ids=["sgd", "nesterov", "adam", "adamw", "lion"],
    )
    def test_chains_with_any_optimiser_under_jit(self, standard_promotion, optimiser):
        shape = wm.Ellipse()
        chain = optax.chain(wm.precondition(shape), optimiser)
        params = gradients = gradient_of(shape)
        state, wanted_state = chain.init(params), optimiser.init(params)
        update, wanted_update = jax.jit(chain.update), jax.jit(optimiser.update)
        for seed in range(3):
            gradients = jax.tree.map(lambda x, s=seed: normal(*x.shape, seed=s), gradients)
            got, state = update(gradients, state, params)
            wanted, wanted_state = wanted_update(by_hand(shape.inverse_gram(), gradients), wanted_state, params)
            assert_close(got, wanted, 1e-4)

    def test_can_come_after_another_transformation(self):
        gradient = gradient_of(wm.Line())
        chain = optax.chain(optax.scale(2.0), wm.precondition(wm.Line()), optax.scale(-0.5))
        expected = by_hand(-np.asarray(wm.Line().inverse_gram()), gradient)
        assert_close(apply(chain, gradient), expected)

    def test_can_be_made_inside_jit(self):
        gradient = gradient_of(wm.Ellipse())
        density = np.linspace(0, 0.9, 10)
        got = jax.jit(lambda g: apply(wm.precondition(wm.Ellipse(), density), g))(gradient)
        assert_close(got, apply(wm.precondition(wm.Ellipse(), density), gradient))

    @pytest.mark.parametrize("optimiser", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1)], ids=["momentum", "adam"])
    def test_does_not_move_a_tether(self, standard_promotion, optimiser):
        shape = wm.TetheredRod()
        chain = optax.chain(wm.precondition(shape), optimiser)
        params = start = gradient_of(shape)
        state = chain.init(params)
        for seed in range(3):
            gradients = jax.tree.map(lambda x, s=seed: normal(*x.shape, seed=s), params)
            updates, state = chain.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(before[0], after[0])
            assert (before[1] != after[1]).all()

    def test_passes_over_points_that_are_partitioned_away(self):
        full = gradient_of(wm.Line())
        partial = eqx.tree_at(lambda g: g.bias.value, full, None, is_leaf=lambda x: x is None)
        updates = apply(wm.precondition(wm.Line()), partial)
        assert updates.bias.value is None
        assert_close(updates.weight, apply(wm.precondition(wm.Line()), full).weight)

    def test_passes_over_points_that_optax_masks(self):
        gradient = gradient_of(wm.Line())
        mask = Affine(wm.BasisPoints(normal(2)), wm.BasisPoints(normal(2)))  # replaced below
        mask = eqx.tree_at(lambda m: (m.weight.value, m.bias.value), mask, (True, False))
        updates = apply(optax.masked(wm.precondition(wm.Line()), mask), gradient)
        np.testing.assert_array_equal(updates.bias.value, gradient.bias.value)
        assert_close(updates.weight, by_hand(wm.Line().inverse_gram(), gradient).weight)

    def test_takes_gradients_of_a_modulated_network(self):
        net = wm.modulate(Affine(normal(2, 3), normal(2)), wm.Ellipse(), key=KEY)
        params, static = eqx.partition(net, eqx.is_inexact_array)
        chain = optax.chain(wm.precondition(net.manifold), optax.sgd(0.1))
        x, s = normal(4, 3), jnp.linspace(0, 0.9, 4)

        def loss(params):
            return jnp.sum(jax.vmap(eqx.combine(params, static))(x, s) ** 2)

        @jax.jit
        def step(params, state):
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = chain.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        state, values = chain.init(params), []
        for _ in range(10):
            params, state, value = step(params, state)
            values.append(float(value))
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.7 * values[0]

    def test_needs_as_many_points_as_its_manifold_has(self):
        transformation = wm.precondition(wm.Ellipse())
        message = re.escape("Ellipse() has 3 basis points and the network has 2") + r".*wm.precondition\(net.manifold\)"
        with pytest.raises(ValueError, match=message):
            apply(transformation, gradient_of(wm.Line()))
        with pytest.raises(ValueError, match=message):
            jax.jit(lambda g: apply(transformation, g))(gradient_of(wm.Line()))

    def test_needs_basis_points(self):
        transformation = wm.precondition(wm.Line())
        plain = Affine(normal(2, 3), normal(2))
        message = r"no basis points to precondition here; give the gradient of a network that wm.modulate made"
        with pytest.raises(ValueError, match=message):
            transformation.init(plain)
        with pytest.raises(ValueError, match=message):
            transformation.update(plain, optax.EmptyState())

    def test_refuses_a_density_with_too_few_contexts_when_it_is_made(self):
        with pytest.raises(ValueError, match=r"rank 2 of 3 under this density of 2 distinct contexts"):
            wm.precondition(wm.Ellipse(), np.array([0.1, 0.4]))


@final
class Monomials(wm.AbstractManifold):
    """The cubic curves again, in the basis 1, s, s², s³."""

    @property
    def size(self):
        return 4

    @property
    def context_shape(self):
        return ()

    def sample(self, key, shape=()):
        return jax.random.uniform(key, shape)

    def _basis(self, s):
        return s ** jnp.arange(4).astype(s.dtype)

    def _uniform_gram(self):
        return 1 / (np.arange(4)[:, None] + np.arange(4) + 1)

    def _constant(self):
        return np.eye(4)[0]

    def _outside(self, s):
        return np.zeros(len(s), bool), "a number"


class TestSteepestDescent:
    S = np.linspace(0.02, 0.98, 25)

    def descend(self, shape: wm.AbstractManifold, points: np.ndarray, metric: bool, rate: float) -> np.ndarray:
        """The curve `M(s)` after some steps down a functional that is not convex."""
        s = jnp.asarray(self.S)
        chain = optax.chain(wm.precondition(shape) if metric else optax.identity(), optax.sgd(rate, momentum=0.5))

        def curve(points):
            return jax.vmap(shape.basis)(s) @ points.value

        def loss(points):
            m = curve(points)
            target = jnp.stack([jnp.cos(3 * s), jnp.sin(5 * s)], axis=1)
            return jnp.mean(jnp.sum(jnp.sin(m - target) ** 2 + 0.1 * m**4, axis=1))

        def step(carry, _):
            points, state = carry
            updates, state = chain.update(jax.grad(loss)(points), state)
            return (optax.apply_updates(points, updates), state), None

        points = wm.BasisPoints(jnp.asarray(points))
        (points, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, length=8))((points, chain.init(points)))
        return np.asarray(curve(points))

    def test_moves_a_curve_alike_in_every_basis_and_plain_descent_does_not(self, float64):
        spline, power = wm.BSpline(4), Monomials()
        change = np.linalg.lstsq(
            np.asarray(jax.vmap(power.basis)(jnp.asarray(self.S))),
            np.asarray(jax.vmap(spline.basis)(jnp.asarray(self.S))),
            rcond=None,
        )[0]  # a_spline = change^T a_power, so P_power = change P_spline
        points = np.random.default_rng(0).normal(size=(4, 2))
        np.testing.assert_allclose(change.T @ power.gram() @ change, spline.gram(), atol=1e-12)
        start = np.asarray(jax.vmap(spline.basis)(jnp.asarray(self.S)) @ points)
        with_metric = [
            self.descend(shape, p, metric=True, rate=0.05) for shape, p in ((spline, points), (power, change @ points))
        ]
        without = [
            self.descend(shape, p, metric=False, rate=0.05) for shape, p in ((spline, points), (power, change @ points))
        ]
        assert np.abs(with_metric[0] - start).max() > 0.1
        np.testing.assert_allclose(with_metric[0], with_metric[1], atol=1e-9)
        assert np.abs(without[0] - without[1]).max() > 0.05

    @settings(max_examples=25, deadline=None)
    @given(st.sampled_from(SHAPES), st.integers(0, 2**31))
    def test_is_the_steepest_for_its_volumetric_movement(self, shape, seed):
        rng = np.random.default_rng(seed)
        gram, inverse = (np.asarray(g, np.float64) for g in (shape.gram(), shape.inverse_gram()))
        gradient, other = rng.normal(size=(2, shape.size, 3))
        other[~shape._movable] = 0

        def decrease_for_its_movement(step):
            return np.sum(gradient * step) / np.sqrt(np.sum(step * (gram @ step)))

        assert decrease_for_its_movement(other) <= decrease_for_its_movement(inverse @ gradient) * (1 + 1e-5)


def curved(s, points):
    """A helix whose radius, pitch and phase are learned: not linear in its points."""
    angle = 2 * jnp.pi * s + points["phase"]
    return {
        "plane": jnp.exp(points["radius"]) * jnp.stack([jnp.cos(angle), jnp.sin(angle)]) + points["centre"],
        "height": jnp.tanh(points["pitch"] @ jnp.stack([s, s**2, jnp.ones_like(s)])),
    }


POINTS = {
    "phase": 0.3,
    "radius": -0.2,
    "centre": [0.5, -1.0],
    "pitch": [[0.7, -0.4, 0.2], [0.1, 0.9, -0.3]],
}


class TestSolveMetric:
    @pytest.fixture
    def problem(self, float64):
        points = jax.tree.map(jnp.asarray, POINTS, is_leaf=lambda x: isinstance(x, list))
        gradient = jax.tree.map(lambda x: normal(*x.shape), points)
        return points, gradient, jnp.linspace(0, 1, 17)

    def dense(self, function: Callable, points: Any, gradient: Any, contexts: Any, damping: float = 0.0) -> Any:
        flat, unflatten = jax.flatten_util.ravel_pytree(points)
        g, _ = jax.flatten_util.ravel_pytree(gradient)

        def jacobian(s):
            return jax.jacobian(lambda p: jax.flatten_util.ravel_pytree(function(s, unflatten(p)))[0])(flat)

        j = np.asarray(jax.jit(jax.vmap(jacobian))(contexts))
        metric = np.einsum("smk,sml->kl", j, j) / len(contexts) + damping * np.eye(len(flat))
        return unflatten(jnp.asarray(np.linalg.solve(metric, g)))

    @pytest.mark.parametrize("damping", [0, 0.5])
    def test_equals_the_dense_solution_for_a_curved_manifold(self, problem, damping):
        options = dict(rtol=1e-12, atol=1e-12, damping=float(damping))
        solution = jax.jit(lambda *arguments: wm.solve_metric(curved, *arguments, **options))(*problem)
        assert_close(solution.value, self.dense(curved, *problem, damping), 1e-8)
        assert 0 < int(solution.stats["steps"]) <= 40
        assert float(solution.stats["relative_residual"]) < 1e-9

    @pytest.mark.parametrize("shape", [wm.Line(), wm.BSpline(5)], ids=repr)
    def test_equals_the_inverse_gram_matrix_for_a_linear_manifold(self, shape, float64):
        contexts = np.linspace(0, 1, 30)
        points, gradient = (normal(shape.size, 4, seed=seed) for seed in (1, 2))

        def solve(contexts):
            return wm.solve_metric(lambda s, p: shape.basis(s) @ p, points, gradient, contexts, rtol=1e-12, atol=1e-12)

        solution = jax.jit(solve)(jnp.asarray(contexts))
        np.testing.assert_allclose(solution.value, shape.inverse_gram(contexts) @ gradient, rtol=1e-7)

    def test_works_in_single_precision_and_under_jit(self):
        contexts = jnp.linspace(0, 1, 30)
        points, gradient = normal(3, 4), normal(3, 4, seed=2)
        solve = jax.jit(lambda p, g: wm.solve_metric(lambda s, p: wm.Ellipse().basis(s) @ p, p, g, contexts))
        solution = solve(points, gradient)
        assert solution.value.dtype == "float32"
        wanted = np.asarray(wm.Ellipse().inverse_gram(np.asarray(contexts)) @ gradient)
        np.testing.assert_allclose(solution.value, wanted, rtol=1e-3, atol=1e-3)

    def test_never_builds_the_metric(self):
        points, contexts = normal(5, 200), jnp.linspace(0, 1, 7)

        def manifold(s, p):
            return jnp.sin(wm.BSpline(5).basis(s) @ p)

        jaxpr = jax.make_jaxpr(lambda p: wm.solve_metric(manifold, p, p, contexts).value)(points)
        text = str(jaxpr)
        sizes = [int(np.prod([int(d) for d in dims.split(",")])) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
        assert 1000 <= max(sizes) <= 7 * 1000  # the points, and the weights at each context

    def test_of_no_gradient_is_no_step(self, problem):
        points, gradient, contexts = problem
        solution = jax.jit(lambda *arguments: wm.solve_metric(curved, *arguments))(
            points, jax.tree.map(jnp.zeros_like, gradient), contexts
        )
        assert all(not leaf.any() for leaf in jax.tree.leaves(solution.value))
        assert solution.stats["relative_residual"] == 0

    def test_says_so_if_it_stops_short(self, problem):
        with pytest.raises(RuntimeError, match=r"did not reach its tolerance.*damping.*max_steps"):
            wm.solve_metric(curved, *problem, rtol=1e-12, atol=1e-12, max_steps=2)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (dict(gradient={"phase": np.zeros(())}), r"the structure and shapes of the points, got"),
            (dict(gradient="wrong shape"), r"the structure and shapes of the points, got"),
            (dict(contexts=np.zeros(0)), r"at least one context along its first axis; draw some with .sample"),
            (dict(contexts=np.zeros(())), r"at least one context"),
            (dict(damping=-0.1), r"damping must be at least 0, got -0.1"),
            (dict(damping=float("nan")), r"damping must be at least 0, got nan"),
            (dict(rtol=float("nan")), r"rtol must be at least 0, got nan; give a finite number, 1e-5"),
            (dict(rtol=float("inf")), r"rtol must be at least 0, got inf"),
            (dict(rtol=-1.0), r"rtol must be at least 0, got -1.0"),
            (dict(atol=float("inf")), r"atol must be at least 0, got inf"),
            (dict(max_steps=0), r"max_steps .* must be at least 1, got 0"),
            (dict(contexts=np.array([0.1, np.nan])), r"the contexts must be finite"),
            (dict(gradient="not finite"), r"the gradient must be finite; look for a loss that diverged"),
            (dict(points="not finite"), r"the points must be finite"),
        ],
    )
    def test_refuses_arguments_that_do_not_fit(self, problem, change, message):
        points, gradient, contexts = problem
        arguments = {"gradient": gradient, "contexts": contexts} | change
        if change.get("points") == "not finite":
            points = points | {"phase": jnp.array(jnp.inf)}
            del arguments["points"]
        if change.get("gradient") == "not finite":
            arguments["gradient"] = gradient | {"phase": jnp.array(jnp.nan)}
        if change.get("gradient") == "wrong shape":
            arguments["gradient"] = gradient | {"centre": jnp.zeros(3)}
        arguments = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, arguments)
        with pytest.raises(ValueError, match=message):
            wm.solve_metric(curved, points, **arguments)

    @pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
    def test_refuses_points_that_are_no_floating_point_numbers(self, dtype):
        points = jnp.ones((2, 3), dtype)
        with pytest.raises(TypeError, match=r"floating-point numbers, as the solution is; convert them by .astype"):
            wm.solve_metric(lambda s, p: p[0] * s, points, jnp.ones((2, 3)), jnp.linspace(0, 1, 5))
        with pytest.raises(ValueError, match="no points to solve for"):
            wm.solve_metric(lambda s, p: s, {}, {}, jnp.ones(3))

    def test_says_so_where_a_compiled_step_meets_nan(self):
        points = normal(3, 4)
        solve = eqx.filter_jit(
            lambda g: wm.solve_metric(lambda s, p: wm.Ellipse().basis(s) @ p, points, g, jnp.linspace(0, 1, 9))
        )
        with pytest.raises(RuntimeError, match="numbers that are not finite"):
            solve(points * jnp.nan)
