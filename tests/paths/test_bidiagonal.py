"""Krylov bases among the outputs: against dense matrices in float64, orthogonal, with a residual that is the true one."""

import math
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.paths import directions
from wmlib.paths.bidiagonal import among_outputs, bidiagonalise
from wmlib.paths.krylov import lanczos

KEY = jax.random.key(0)


def linear(w, x):
    """Outputs of which the derivative is a row of `x`: any matrix is one."""
    return x @ w


def metric_of(root, dtype, distance=wm.distances.squared_error, batch=500, keep=True) -> wm.FunctionMetric:
    rows = jnp.asarray(root, dtype)[:, None]
    return wm.FunctionMetric(linear, jnp.zeros(root.shape[1], dtype), rows, distance, batch=batch, keep=keep)


def with_singular(values, rows, n, rng) -> np.ndarray:
    p, _ = np.linalg.qr(rng.normal(size=(rows, len(values))))
    q, _ = np.linalg.qr(rng.normal(size=(n, len(values))))
    return (p * np.asarray(values)) @ q.T


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def minimum(matrix, gradient, beta, epsilon) -> float:
    """The least of Eq. 4 by all eigenvalues, with bisection for the multiplier."""
    values, vectors = np.linalg.eigh(matrix)
    slopes = beta / 2 * (vectors.T @ gradient)
    low, high = -values[0], -values[0] + 2 * np.linalg.norm(slopes) / math.sqrt(epsilon)
    for _ in range(200):
        middle = (low + high) / 2
        y = slopes / np.maximum(values + middle, 1e-300)
        low, high = (middle, high) if np.linalg.norm(y) > math.sqrt(epsilon) else (low, middle)
    y = -slopes / np.maximum(values + high, 1e-300)
    y[0] = -math.copysign(math.sqrt(max(0.0, epsilon - y[1:] @ y[1:])), slopes[0])  # the hard case too
    return float(values @ y**2 + 2 * slopes @ y)


SPECTRA = {
    "easy": lambda r: np.linspace(1.0, 0.3, r),
    "ill": lambda r: np.geomspace(1.0, 1e-4, r),
    "deficient": lambda r: np.r_[np.linspace(1.0, 0.5, (r + 1) // 2), np.zeros(r // 2)],
}


@given(
    kind=st.sampled_from(sorted(SPECTRA)), rows=st.sampled_from([4, 20]), dimension=st.sampled_from([1, 5, 12, 40]),
    of=st.sampled_from(["anywhere", "the range", "the null space"]), log_beta=st.floats(-2, 2), log_epsilon=st.floats(-2, 3),
    wide=st.booleans(), seed=st.integers(0, 10_000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_residual_is_the_true_one_and_the_minimum_is_that_of_the_dense_metric(
    kind, rows, dimension, of, log_beta, log_epsilon, wide, seed
):
    with jax.enable_x64(wide):
        rng, dtype, n = np.random.default_rng(seed), np.float64 if wide else np.float32, 40
        root = with_singular(SPECTRA[kind](rows), rows, n, rng).astype(dtype)
        exact = root.astype(np.float64).T @ root / rows
        start = rng.normal(size=n)
        if of == "the range":
            start = root.T @ rng.normal(size=rows)
        elif of == "the null space":
            start -= np.linalg.pinv(root.astype(np.float64), rcond=1e-5) @ (root @ start)
        start, beta, epsilon = start.astype(dtype), 10**log_beta, 10**log_epsilon
        metric = metric_of(root, dtype)
        assert among_outputs(metric)
        found = wm.direction(metric, jnp.asarray(start), beta, epsilon, dimension=dimension)
        v, pull = flat(found.value), beta / 2 * start.astype(np.float64)
        true = np.linalg.norm(exact @ v + found.stats["multiplier"] * v + pull) / np.linalg.norm(pull)
        # Between two vectors that are made orthogonal, rounding grows to 256 units.
        noise = 256 * np.finfo(dtype).eps * (1 + np.sqrt(epsilon) / np.linalg.norm(pull))
        np.testing.assert_allclose(found.stats["residual"], true, rtol=1e-3, atol=noise)
        assert np.linalg.norm(v) == pytest.approx(np.sqrt(epsilon), rel=1e-4)
        if found.stats["converged"]:
            # The objective is off by no more than the residual times the length, to first order.
            least, size = (
                minimum(exact, start.astype(np.float64), beta, epsilon),
                np.linalg.norm(pull) * np.sqrt(epsilon),
            )
            assert v @ exact @ v + 2 * v @ pull <= least + (2e-3 + noise) * size + noise * epsilon


@given(
    kind=st.sampled_from(sorted(SPECTRA)), in_range=st.booleans(), log_rest=st.floats(-6, 0), dimension=st.sampled_from([8, 30]),
    log_scale=st.sampled_from([-12, 0, 12]), seed=st.integers(0, 10_000),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_the_basis_is_orthonormal_and_gives_what_a_product_gives(kind, in_range, log_rest, dimension, log_scale, seed):
    rng, rows, n = np.random.default_rng(seed), 25, 60
    root = (10.0**log_scale * with_singular(SPECTRA[kind](rows), rows, n, rng)).astype(np.float32)
    exact = root.astype(np.float64).T @ root / rows
    start = root.T @ rng.normal(size=rows)
    start = start / np.linalg.norm(start) + (0 if in_range else 10**log_rest) * rng.normal(size=n)
    found = bidiagonalise(metric_of(root, np.float32), jnp.asarray(start, jnp.float32), dimension)
    basis = np.concatenate([np.asarray(b, np.float64) for b in found.blocks])
    np.testing.assert_allclose(basis @ basis.T, np.eye(found.dimension), atol=512 * np.finfo(np.float32).eps)
    largest = np.linalg.norm(exact, 2)
    left = exact @ basis.T - basis.T @ found.projected()
    rest = np.asarray(found.rest, np.float64) if found.residual else np.zeros(n)
    left[:, -1] -= rest
    np.testing.assert_allclose(left, 0, atol=256 * np.finfo(np.float32).eps * largest)
    assert np.linalg.norm(rest) == pytest.approx(found.residual, rel=1e-5)
    weights = rng.normal(size=found.dimension)
    np.testing.assert_allclose(np.asarray(found.combine(weights)), weights @ basis, atol=1e-5)
    np.testing.assert_allclose(found.size * basis[0], start, rtol=1e-5, atol=1e-6)


def test_it_is_the_basis_of_lanczos():
    net = eqx.nn.MLP(8, 5, 32, 1, activation=jnp.tanh, key=KEY)
    x = jax.random.normal(KEY, (20, 8))
    for distance in (wm.distances.squared_error, wm.distances.kl, wm.distances.hellinger):
        metric = wm.FunctionMetric(operator.call, net, x, distance, keep=True)
        start = jax.tree.map(jnp.ones_like, eqx.filter(net, eqx.is_inexact_array))
        one, other = bidiagonalise(metric, start, 6), lanczos(metric, start, 6)
        scale = np.abs(other.projected()).max()
        np.testing.assert_allclose(one.projected(), other.projected(), atol=1e-4 * scale)
        assert one.size == pytest.approx(other.size, rel=1e-6)
        assert one.residual == pytest.approx(other.residual, rel=1e-3)


@pytest.mark.parametrize("given_gradient", [True, False])
def test_directions_are_those_of_the_basis_in_weight_space(monkeypatch, given_gradient):
    net = eqx.nn.MLP(8, 5, 32, 1, activation=jnp.tanh, key=KEY)
    metric = wm.FunctionMetric(operator.call, net, jax.random.normal(KEY, (8, 8)), wm.distances.kl)
    gradient = None
    if given_gradient:
        gradient = jax.tree.map(lambda x: jax.random.normal(KEY, x.shape), eqx.filter(net, eqx.is_inexact_array))
    options = dict(beta=[0.01, 1.0], epsilon=0.1, key=KEY, dimension=60)
    found = wm.direction(metric, gradient, **options)
    monkeypatch.setattr(directions, "among_outputs", lambda metric: False)
    other = wm.direction(metric, gradient, **options)
    assert found.stats.keys() == other.stats.keys()
    np.testing.assert_allclose(found.stats["moved"], other.stats["moved"], rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(found.stats["gained"], other.stats["gained"], rtol=1e-4)
    if given_gradient:
        np.testing.assert_allclose(flat(found.value), flat(other.value), atol=1e-5)


def test_a_gradient_without_a_part_in_the_flat_directions_is_filled_up():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        root = with_singular([1.0, 0.7, 0.5], 6, 30, rng)
        metric, gradient = metric_of(root, np.float64), jnp.asarray(root.T @ rng.normal(size=6))
        found = wm.direction(metric, gradient, 1.0, 1e4)
        assert found.stats["converged"]
        assert found.stats["products"] > found.stats["dimension"]
        assert found.stats["multiplier"] == pytest.approx(0, abs=1e-10)
        v = flat(found.value)
        np.testing.assert_allclose(root.T @ (root @ v) / 6, -flat(gradient) / 2, atol=1e-8)
        assert v @ v == pytest.approx(1e4)


def test_what_cannot_be_taken_among_the_outputs():
    rng = np.random.default_rng(0)
    root = with_singular([1.0, 0.5], 6, 30, rng)
    assert among_outputs(metric_of(root, np.float32))
    assert not among_outputs(metric_of(root, np.float32, keep=False))
    assert not among_outputs(metric_of(root, np.float32, batch=3))
    assert not among_outputs(metric_of(root, jnp.bfloat16))
    assert not among_outputs(metric_of(root, np.float32, lambda y, y0: jnp.sum((y - y0) ** 2)))
    assert not among_outputs(metric_of(root.T, np.float32))


@pytest.mark.parametrize(
    ("start", "says"), [(jnp.ones(4), "structure"), (jnp.zeros(30), "not zero"), (jnp.full(30, jnp.nan), "finite")]
)
def test_wrong_starts_are_refused(start, says):
    root = with_singular([1.0, 0.5], 6, 30, np.random.default_rng(0))
    with pytest.raises(ValueError, match=says):
        bidiagonalise(metric_of(root, np.float32), start, 3)


def test_a_product_that_is_not_finite_is_named():
    metric = wm.FunctionMetric(lambda w, x: jnp.sqrt(w) * x, jnp.zeros(9), jnp.ones((2, 9)), keep=True)
    with pytest.raises(ValueError, match=r"product 1 .* not finite"):
        bidiagonalise(metric, jnp.ones(9), 3)


def test_a_metric_that_is_zero_has_a_basis_of_one_vector():
    metric = wm.FunctionMetric(lambda w, x: 0 * w[:2], jnp.ones(9), jnp.ones((2, 9)), keep=True)
    found = bidiagonalise(metric, jnp.ones(9), 3)
    assert (found.dimension, found.residual) == (1, 0.0)
    np.testing.assert_allclose(np.asarray(wm.direction(metric, jnp.ones(9)).value), -np.full(9, 1 / 3), rtol=1e-6)
