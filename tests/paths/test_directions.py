"""Directions: residuals with nothing left out, precision, zero gradients, arguments."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm

KEY = jax.random.key(0)


def dense(matrix) -> lx.MatrixLinearOperator:
    # As an array, so that one program does for all of a size.
    return lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)


def with_eigenvalues(values, rng) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(len(values),) * 2))
    return (q * np.asarray(values)) @ q.T


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def true_residual(matrix, gradient, found, beta) -> float:
    matrix, gradient = (np.asarray(x, np.float64) for x in (matrix, gradient))
    left = matrix @ flat(found.value) + found.stats["multiplier"] * flat(found.value) + beta / 2 * gradient
    return float(np.linalg.norm(left) / np.linalg.norm(beta / 2 * gradient))


@given(
    n=st.sampled_from([2, 9, 30]), rank=st.integers(1, 30), dimension=st.sampled_from([1, 3, 12]), hard=st.booleans(),
    log_beta=st.floats(-2, 2), log_epsilon=st.floats(-2, 3), wide=st.booleans(), seed=st.integers(0, 10_000),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_the_residual_is_the_true_one_whatever_the_outcome(n, rank, dimension, hard, log_beta, log_epsilon, wide, seed):
    with jax.enable_x64(wide):
        rng, dtype = np.random.default_rng(seed), np.float64 if wide else np.float32
        rank = min(rank, n)
        matrix = with_eigenvalues([*np.geomspace(1, 1e-2, rank), *[0.0] * (n - rank)], rng)
        gradient = matrix @ rng.normal(size=n) if hard else rng.normal(size=n)
        matrix, gradient = matrix.astype(dtype), gradient.astype(dtype)
        beta, epsilon = 10**log_beta, 10**log_epsilon
        found = wm.direction(dense(jnp.asarray(matrix)), jnp.asarray(gradient), beta, epsilon, dimension=dimension)
        true = true_residual(matrix, gradient, found, beta)
        # The rounding of a product grows with its length.
        noise = (20 + 2 * n) * np.finfo(dtype).eps * (1 + np.sqrt(epsilon) / np.linalg.norm(beta / 2 * gradient))
        # Dropped as rounding: products whose norm is below twenty units in the last place.
        np.testing.assert_allclose(found.stats["residual"], true, rtol=1e-3, atol=2 * noise)
        if found.stats["converged"]:
            assert true <= 1e-3 + noise
        assert np.linalg.norm(flat(found.value)) == pytest.approx(np.sqrt(epsilon), rel=1e-4)


def test_what_the_appended_vector_has_outside_the_basis_counts():
    # The gradient sees one eigenvector; the flat run of three products is far from the smallest eigenvalue of a wide spectrum.
    matrix = jnp.diag(jnp.concatenate([jnp.array([1e-3]), jnp.geomspace(2e-2, 30.0, 60)])).astype(jnp.float32)
    gradient = jnp.zeros(61).at[60].set(1.0)
    found = wm.direction(dense(matrix), gradient, epsilon=1.0, dimension=3)
    true = true_residual(matrix, gradient, found, 1.0)
    assert true > 0.1
    assert found.stats["residual"] == pytest.approx(true, rel=1e-3)
    assert not found.stats["converged"]


@given(
    n=st.sampled_from([2, 17, 40]), rank=st.integers(1, 40), dimension=st.sampled_from([1, 5, 20, 40]), log_smallest=st.floats(-4, 0),
    seed=st.integers(0, 10_000),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_a_flat_direction_that_has_converged_is_an_eigenvector_beside_its_own_value(
    n, rank, dimension, log_smallest, seed
):
    rng = np.random.default_rng(seed)
    values = np.concatenate([np.zeros(max(0, n - rank)), np.geomspace(10**log_smallest, 10, min(n, rank))])
    matrix = with_eigenvalues(values, rng).astype(np.float32)
    found = wm.direction(dense(jnp.asarray(matrix)), key=jax.random.key(seed), epsilon=4.0, dimension=dimension)
    v, value = flat(found.value), -found.stats["multiplier"]
    left = np.linalg.norm(matrix.astype(np.float64) @ v - value * v) / np.linalg.norm(v)
    largest, eps = values.max(), np.finfo(np.float32).eps
    if found.stats["converged"]:
        assert left <= max(1e-3 * value, 25 * eps * largest)
        assert np.abs(values - value).min() <= max(1e-3 * value, 25 * eps * largest)
    unit = max(value, 20 * eps / 1e-3 * largest)
    # The largest Ritz value stands for the largest eigenvalue, and may be less.
    assert found.stats["residual"] * unit >= left * 0.99 - 25 * eps * largest


def test_a_value_above_the_smallest_is_not_called_converged():
    matrix = jnp.diag(jnp.concatenate([jnp.array([0.1]), jnp.linspace(0.3, 1000.0, 300)])).astype(jnp.float32)
    found = wm.direction(dense(matrix), key=KEY, dimension=40, rtol=1e-3)
    assert -found.stats["multiplier"] > 0.11
    assert not found.stats["converged"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.thorough)])
def test_half_precision_is_judged_in_single(dtype):
    net = eqx.nn.MLP(8, 3, 16, 1, key=KEY, dtype=dtype)
    metric = wm.FunctionMetric(operator.call, net, jax.random.normal(KEY, (20, 8), dtype))
    found = wm.direction(metric, key=KEY, dimension=30)
    assert found.stats["dimension"] == 30  # not three
    assert not found.stats["converged"]
    assert found.stats["rounding"] > 1e-3
    assert {x.dtype for x in jax.tree.leaves(found.value)} == {jnp.dtype(dtype)}
    gradient = jax.tree.map(lambda x: jnp.full_like(x, 30), eqx.filter(net, eqx.is_inexact_array))
    of_gradient = wm.direction(metric, gradient, epsilon=0.01)
    assert np.isfinite(of_gradient.stats["residual"])
    assert np.linalg.norm(flat(of_gradient.value)) == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_size_of_the_gradient_neither_vanishes_nor_overflows(scale):
    matrix, gradient = jnp.diag(jnp.array([2.0, 1.0, 0.5])), jnp.array([1.0, 2.0, 3.0])
    one = wm.direction(dense(matrix), gradient, beta=1.0)
    other = wm.direction(dense(matrix), gradient * np.float32(scale), beta=1 / scale)
    np.testing.assert_allclose(other.value, one.value, rtol=1e-4)


class Level(wm.objectives.AbstractObjective):
    """An objective of a given slope."""

    slope: float

    def draws(self, key):
        while True:
            yield None

    def value(self, weights, draw=None):
        total = sum(jnp.sum(x) for x in jax.tree.leaves(eqx.filter(weights, eqx.is_inexact_array)))
        return total * jnp.asarray(self.slope, total.dtype)


def walk(objective, **rest):
    net = eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=KEY)
    method = wm.ExactDirections(1.0, 0.01, **rest)
    x = jax.random.normal(KEY, (3, 3))
    return wm.walk(operator.call, net, objective, x, method=method, steps=3, key=KEY, record=1)


@pytest.mark.parametrize("anchored", [True, False])
def test_a_zero_gradient_leaves_a_flat_direction(anchored):
    path = walk(Level(0.0), anchored=anchored)
    np.testing.assert_allclose(np.diff(path.lengths), 0.1, rtol=1e-4)
    assert path.drift[-1] < 1e-3


def test_a_gradient_that_is_not_finite_is_named():
    with pytest.raises(FloatingPointError, match=r"gradient of step 1 has the norm nan.*objective"):
        walk(Level(float("nan")))


@pytest.mark.parametrize(
    "wrong",
    [
        *[{"beta": b} for b in (0, -1.0, np.nan, np.inf, True, [1.0, -1.0], "one", 1j, np.array([True]))],
        *[{"epsilon": e} for e in (0, -1.0, np.nan, np.inf, True, None)],
        *[{"dimension": d} for d in (0, -3, 2.5, True)],
        *[{"rtol": r} for r in (0.0, -1e-3, np.nan, np.inf, True)],
        {"gradient": jnp.ones(4)}, {"gradient": jnp.zeros(3)}, {"gradient": jnp.full(3, jnp.inf)},
        {"gradient": None, "key": None},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_are_answered_before_any_product(wrong):
    products = []
    structure = jax.ShapeDtypeStruct((3,), jnp.float32)
    metric = lx.FunctionLinearOperator(lambda v: products.append(v) or v, structure, lx.positive_semidefinite_tag)
    products.clear()  # it was traced when it was made
    with pytest.raises((ValueError, TypeError)):
        wm.direction(metric, **({"gradient": jnp.ones(3)} | wrong))
    assert not products


@pytest.mark.parametrize(
    "wrong",
    [
        *[{name: x} for name in ("beta", "epsilon", "tolerance") for x in (0.0, -1.0, np.nan, True)],
        *[{"dimension": d} for d in (0, 1.5, True)],
        *[{"momentum": m} for m in (-0.1, 1.0, np.nan)],
        {"beta": np.inf}, {"epsilon": np.inf},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings_of_exact_directions_are_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        wm.ExactDirections(**({"beta": 1.0, "epsilon": 0.01} | wrong))


def test_complex_movements_are_refused():
    metric = dense(jnp.eye(3, dtype=jnp.complex64))
    with pytest.raises(TypeError, match=r"real numbers.*two"):
        wm.direction(metric, jnp.ones(3, jnp.complex64))
    with pytest.raises(TypeError, match="real"):
        wm.direction(dense(jnp.eye(3)), jnp.ones(3, jnp.complex64))
