"""Krylov bases, leading eigenpairs and spectral densities, against dense linear algebra and matfree."""

import functools
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import matfree.decomp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import wmlib as wm
from wmlib.paths import krylov

KEY = jax.random.key(0)


def normal(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def with_eigenvalues(values, seed: int = 1) -> lx.MatrixLinearOperator:
    """A symmetric operator with these eigenvalues."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))
    return lx.MatrixLinearOperator(jnp.asarray((q * np.asarray(values)) @ q.T, jnp.float32), lx.symmetric_tag)


def network_metric(distance=wm.distances.squared_error) -> wm.FunctionMetric:
    net = eqx.nn.MLP(4, 3, 6, 2, key=KEY)
    return wm.FunctionMetric(operator.call, net, normal(10, 4), distance, batch=4)


def dense(metric) -> np.ndarray:
    return np.asarray(metric.as_matrix(), np.float64)


class TestLanczos:
    @settings(deadline=None, max_examples=10)
    @given(seed=st.integers(0, 999), dimension=st.integers(1, 25))
    def test_makes_the_metric_tridiagonal_in_an_orthonormal_basis(self, seed, dimension):
        metric = with_eigenvalues(np.random.default_rng(seed).exponential(size=20), seed)
        start = normal(20, seed=seed)
        found = wm.lanczos(metric, start, dimension)
        Q = np.asarray(found.basis, np.float64)
        assert found.dimension <= min(dimension, 20)
        np.testing.assert_allclose(Q @ Q.T, np.eye(len(Q)), atol=2e-6)
        np.testing.assert_allclose(Q[0] * found.size, start, rtol=1e-4, atol=1e-6)
        T = np.diag(found.diagonal) + np.diag(found.off_diagonal, 1) + np.diag(found.off_diagonal, -1)
        np.testing.assert_allclose(Q @ dense(metric) @ Q.T, T, atol=1e-5)
        outside = Q @ dense(metric) - T @ Q
        np.testing.assert_allclose(np.linalg.norm(outside), found.residual, atol=1e-5)

    def test_agrees_with_matfree(self):
        metric = network_metric()
        _, unravel = ravel_pytree(eqx.filter(metric.weights, eqx.is_inexact_array))
        start = normal(metric.in_size(), seed=3)
        found = wm.lanczos(metric, unravel(start), 12)
        tridiagonalise = matfree.decomp.tridiag_sym(12, reortho="full", materialize=True)
        theirs = tridiagonalise(lambda v: ravel_pytree(metric.mv(unravel(v)))[0], start)
        np.testing.assert_allclose(np.diag(theirs.J_small), found.diagonal, atol=1e-5)
        np.testing.assert_allclose(np.abs(np.diag(theirs.J_small, 1)), found.off_diagonal, atol=1e-5)
        np.testing.assert_allclose(np.abs(theirs.Q_tall @ found.basis.T), np.eye(12), atol=2e-3)

    def test_stops_when_the_basis_holds_all_that_the_metric_makes_of_the_start(self):
        metric = with_eigenvalues([3.0, 2.0, 1.0, *[0.0] * 17])
        found = wm.lanczos(metric, normal(20), 20)
        assert found.dimension == 4  # three directions that matter and one that does not
        assert found.residual == 0
        assert found.basis.shape == (4, 20)

    def test_a_start_that_the_metric_does_not_see_is_coupled_to_nothing(self):
        metric = with_eigenvalues([1.0, *[0.0] * 9])
        values, vectors = np.linalg.eigh(dense(metric))
        found = wm.lanczos(metric, jnp.asarray(vectors[:, 0], jnp.float32), 5)
        assert abs(found.diagonal[0]) < 1e-6
        assert np.abs(found.off_diagonal[:1]).sum() < 1e-6

    def test_combines_its_vectors_into_a_tree(self):
        metric = network_metric()
        start = jax.tree.map(jnp.ones_like, eqx.filter(metric.weights, eqx.is_inexact_array))
        found = wm.lanczos(metric, start, 5)
        back = found.combine([found.size, 0, 0, 0, 0])
        assert jax.tree.structure(back) == jax.tree.structure(start)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), back, start)
        values, vectors = found.eigh()
        assert (np.diff(values) >= 0).all()

    def test_overwrites_its_blocks_where_they_lie(self):
        n = 50_000
        block, vector = krylov._begin(jnp.ones(n), 1.0, 8)
        memory = krylov._put.lower(block, vector, 1.0, 3).compile().memory_analysis()
        assert memory.alias_size_in_bytes >= 4 * n * 8
        memory = krylov._reject.lower(block, jnp.ones(n)).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 4 * n * 8

    @pytest.mark.parametrize(
        ("start", "dimension", "message"),
        [
            (jnp.zeros(5), 3, "not zero"),
            (jnp.full(5, jnp.inf), 3, "finite"),
            (jnp.ones(4), 3, "structure and shapes"),
            ({"a": jnp.ones(5)}, 3, "structure and shapes"),
            (jnp.ones(5), 0, "at least 1"),
        ],
    )
    def test_wrong_arguments_are_named(self, start, dimension, message):
        with pytest.raises(ValueError, match=message):
            wm.lanczos(with_eigenvalues(np.ones(5)), start, dimension)


class TestSpectrum:
    @pytest.mark.parametrize("distance", [wm.distances.squared_error, wm.distances.kl], ids=["squared", "kl"])
    def test_finds_the_leading_eigenpairs_of_a_network(self, distance):
        metric = network_metric(distance)
        values, vectors = np.linalg.eigh(dense(metric))
        found = wm.spectrum(metric, 6, key=KEY, rtol=1e-5)
        assert found.stats["outcome"] == "converged"
        assert found.stats["products"] < 27
        np.testing.assert_allclose(found.value, values[::-1][:6], atol=1e-5 * values[-1])
        ours = np.asarray(found.vectors, np.float64)
        np.testing.assert_allclose(ours @ ours.T, np.eye(6), atol=1e-5)
        np.testing.assert_allclose(np.abs(ours[0] @ vectors[:, -1]), 1, atol=1e-5)

    def test_its_residuals_are_true(self):
        metric = with_eigenvalues(1 / np.arange(1.0, 61) ** 0.5)
        found = wm.spectrum(metric, 4, key=KEY, dimension=12)
        off = np.asarray(found.vectors) @ dense(metric) - found.value[:, None] * np.asarray(found.vectors)
        np.testing.assert_allclose(np.linalg.norm(off, axis=1), found.stats["residuals"], rtol=1e-3, atol=1e-6)
        assert found.stats["outcome"].startswith("step limit")
        assert "increase dimension" in found.stats["outcome"]

    def test_an_eigenvector_comes_as_a_tree(self):
        metric = network_metric()
        found = wm.spectrum(metric, 2, key=KEY)
        u = found.vector(0)
        scaled = jax.tree.map(lambda x: np.float32(found.value[0]) * x, u)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), metric.mv(u), scaled)

    def test_goes_on_where_the_rank_ends(self):
        found = wm.spectrum(with_eigenvalues([4.0, 2.0, *[0.0] * 18]), 5, key=KEY)
        np.testing.assert_allclose(found.value, [4, 2, 0, 0, 0], atol=1e-5)
        ours = np.asarray(found.vectors, np.float64)
        np.testing.assert_allclose(ours @ ours.T, np.eye(5), atol=1e-5)

    def test_finds_an_eigenvalue_as_often_as_it_occurs(self):
        values = [3.0] * 3 + [2.0] * 2 + [1.0, *np.geomspace(0.1, 0.01, 60)]
        found = wm.spectrum(with_eigenvalues(values), 6, key=KEY)
        np.testing.assert_allclose(found.value, values[:6], atol=1e-3)
        ours = np.asarray(found.vectors, np.float64)
        np.testing.assert_allclose(ours @ ours.T, np.eye(6), atol=1e-5)
        assert found.stats["outcome"] == "converged"

    def test_finds_copies_that_units_which_are_off_leave(self):
        # Outputs that share a last layer with only its bias alive: m equal eigenvalues, of exactly 1.
        def f(w, x):
            return w["bias"] + w["matrix"] @ jax.nn.relu(x - 100)

        metric = wm.FunctionMetric(f, {"bias": jnp.zeros(4), "matrix": jnp.ones((4, 8))}, normal(5, 8))
        np.testing.assert_allclose(wm.spectrum(metric, 5, key=KEY).value, [1, 1, 1, 1, 0], atol=1e-6)

    def test_its_residuals_are_true_where_it_looked_again(self):
        metric = with_eigenvalues([2.0] * 2 + list(np.geomspace(1, 0.1, 70)))
        found = wm.spectrum(metric, 4, key=KEY, rtol=1e-3)
        off = np.asarray(found.vectors) @ dense(metric) - found.value[:, None] * np.asarray(found.vectors)
        assert (np.linalg.norm(off, axis=1) <= found.stats["residuals"] * 1.01 + 1e-5).all()
        assert found.stats["residuals"].max() < 2e-3

    def test_all_eigenpairs_of_a_small_metric(self):
        found = wm.spectrum(with_eigenvalues([3.0, 2.0, 1.0]), 3, key=KEY)
        np.testing.assert_allclose(found.value, [3, 2, 1], rtol=1e-5)

    def test_is_the_same_for_the_same_key(self):
        metric = with_eigenvalues(1 / np.arange(1.0, 31))
        first, second = (wm.spectrum(metric, 3, key=KEY) for _ in range(2))
        np.testing.assert_array_equal(first.vectors, second.vectors)
        np.testing.assert_array_equal(first.value, second.value)

    @pytest.mark.parametrize(
        ("k", "dimension", "message"),
        [(0, None, "between 1 and"), (6, None, "between 1 and"), (3, 2, "at least 3")],
    )
    def test_wrong_arguments_are_named(self, k, dimension, message):
        with pytest.raises(ValueError, match=message):
            wm.spectrum(with_eigenvalues(np.ones(5)), k, key=KEY, dimension=dimension)


class TestSpectralDensity:
    def test_counts_the_flat_directions_within_its_error(self):
        values = np.concatenate([np.geomspace(1, 10, 40), np.geomspace(1e-6, 1e-4, 260)])
        density = wm.spectral_density(with_eigenvalues(values), key=KEY, probes=12, dimension=40)
        flat = density.invariant_dimension(1e-2)
        assert abs(flat.value - 260) < 4 * flat.stats["standard_error"]
        assert flat.stats["probes"].shape == (12,)
        assert 0 < flat.stats["standard_error"] < 10

    def test_estimates_moments_of_the_spectrum(self):
        values = np.random.default_rng(0).exponential(size=200)
        density = wm.spectral_density(with_eigenvalues(values), key=KEY, probes=20, dimension=10)
        np.testing.assert_allclose(density.weights.sum(axis=1), 1, rtol=1e-5)
        for power in (1, 2, 3):
            each = (density.weights * density.nodes**power).sum(axis=1)
            assert abs(each.mean() - (values**power).mean()) < 4 * each.std() / np.sqrt(20)

    def test_the_quadrature_is_exact_for_its_probe(self):
        metric = with_eigenvalues(np.random.default_rng(0).exponential(size=30))
        density = wm.spectral_density(metric, key=KEY, probes=1, dimension=4)
        v = np.asarray(krylov._probe(jax.random.split(KEY, 1)[0], metric.in_structure()), np.float64)
        for power in range(8):  # 2 · 4 − 1 = 7
            exact = v @ np.linalg.matrix_power(dense(metric), power) @ v
            np.testing.assert_allclose((density.weights * density.nodes**power).sum(), exact, rtol=1e-4)

    def test_knows_the_bound_on_the_rank(self):
        metric = network_metric()
        density = wm.spectral_density(metric, key=KEY, probes=2, dimension=60)
        assert density.bound == min(metric.in_size(), 10 * 3)
        assert density.invariant_dimension(1e-12).value >= density.size - density.bound
        assert density.stats["products"] <= 2 * 60

    def test_a_smoothed_density_integrates_to_the_share_that_is_positive(self):
        density = wm.spectral_density(with_eigenvalues(np.geomspace(0.1, 10, 50)), key=KEY, probes=3, dimension=20)
        points = np.geomspace(1e-4, 1e4, 2_001)
        smooth = density.smoothed(points)
        assert smooth.shape == (3, 2_001)
        np.testing.assert_allclose(np.trapezoid(smooth, np.log10(points), axis=1), 1, rtol=1e-4)

    def test_one_probe_has_no_error(self):
        density = wm.spectral_density(with_eigenvalues(np.ones(5)), key=KEY, probes=1)
        assert np.isnan(density.invariant_dimension(0.5).stats["standard_error"])

    def test_wrong_arguments_are_named(self):
        metric = with_eigenvalues(np.ones(5))
        with pytest.raises(ValueError, match=r"probes .* must be at least 1, got 0"):
            wm.spectral_density(metric, key=KEY, probes=0)
        with pytest.raises(ValueError, match="at least 1"):
            wm.spectral_density(metric, key=KEY, dimension=0)
        density = wm.spectral_density(metric, key=KEY)
        with pytest.raises(ValueError, match="rank is at most"):
            density.invariant_dimension(0.0)
        for width in (0, -1.0, np.nan, np.inf):
            with pytest.raises(ValueError, match="decades"):
                density.smoothed([1.0], width=width)
        for points in ([-1.0], [1.0, 0.0], [np.nan], [np.inf], np.array([-1, 2])):
            with pytest.raises(ValueError, match="must be positive and finite; leave others out"):
                density.smoothed(points)
        for points in ([1j], [[1.0]]):
            with pytest.raises(ValueError, match=r"one axis of real numbers.*np\.ravel"):
                density.smoothed(points)


@pytest.mark.parametrize("ask", [lambda m: wm.spectrum(m, 2, key=KEY), lambda m: wm.spectral_density(m, key=KEY)])
class TestBadMetrics:
    def test_a_metric_of_zero_is_named(self, ask):
        with pytest.raises(ValueError, match=r"the metric is zero.*units that are all off"):
            ask(wm.FunctionMetric(lambda w, x: jax.nn.relu(w * x - 100), jnp.ones(30), jnp.ones((4, 30))))

    def test_a_product_that_is_not_finite_is_named(self, ask):
        with pytest.raises(ValueError, match="product 1 with the metric is not finite"):
            ask(wm.FunctionMetric(lambda w, x: jnp.sqrt(w * x), jnp.zeros(30), jnp.ones((4, 30))))


@settings(max_examples=20, deadline=None)
@given(st.integers(-10, 10), st.sampled_from([int, np.int8, np.int64, jnp.array]))
def test_an_eigenvector_is_one_that_there_is(index, kind):
    found = _three_pairs()
    if 0 <= index < 3:
        np.testing.assert_array_equal(found.vector(kind(index)), found.vectors[index])
        return
    with pytest.raises(IndexError, match=rf"between 0 and 2, got {index}; a larger k"):
        found.vector(kind(index))


@functools.cache
def _three_pairs():
    return wm.spectrum(with_eigenvalues([3.0, 2.0, 1.0, 0.5]), 3, key=KEY)


@pytest.mark.parametrize("index", [1.0, True, np.float32(1), slice(0, 1), "1"])
def test_an_eigenvector_has_a_whole_number(index):
    with pytest.raises(TypeError):
        _three_pairs().vector(index)


@pytest.mark.parametrize("coefficients", [np.ones(2), np.ones(4), np.ones((3, 3)), np.ones(3) * 1j])
def test_a_combination_has_a_coefficient_for_each_vector(coefficients):
    basis = wm.lanczos(with_eigenvalues([3.0, 2.0, 1.0, 0.5]), normal(4), np.int64(3))
    with pytest.raises(ValueError, match="give 3 real coefficients, one a vector"):
        basis.combine(coefficients)
