"""The shapes: basis functions, Gram matrices, densities, and what is refused."""

import functools
import itertools
import json
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm

SHAPES = [
    wm.Line(),
    wm.TetheredRod(),
    wm.Ellipse(),
    wm.Fourier(3),
    wm.BSpline(7),
    wm.BSpline(4),
    wm.BSpline(6, degree=1),
    wm.BSpline(5, degree=0),
    wm.BSpline(9, degree=4),
    wm.BSpline(7, periodic=True),
    wm.BSpline(4, periodic=True),
    wm.BSpline(6, degree=2, periodic=True),
    wm.Sphere(1),
    wm.Sphere(3),
    wm.Simplex(1),
    wm.Simplex(2),
    wm.Simplex(4),
    wm.Product(wm.Line(), wm.Line()),
    wm.Product(wm.Ellipse(), wm.Ellipse()),
    wm.Product(wm.Simplex(3), wm.Sphere(1)),
    wm.Product(wm.Ellipse(), wm.Product(wm.BSpline(4, degree=2), wm.TetheredRod())),
]
ONE_OF_EACH = [
    wm.Line(),
    wm.TetheredRod(),
    wm.Ellipse(),
    wm.Fourier(2),
    wm.BSpline(6),
    wm.BSpline(5, periodic=True),
    wm.Sphere(2),
    wm.Simplex(3),
    wm.Product(wm.Ellipse(), wm.Line()),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=repr)
one_of_each = pytest.mark.parametrize("shape", ONE_OF_EACH, ids=repr)
some = pytest.mark.parametrize("shape", [wm.Line(), wm.BSpline(6), wm.Sphere(1), ONE_OF_EACH[-1]], ids=repr)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def evaluate(shape: wm.AbstractManifold, contexts) -> np.ndarray:
    """`a(s)` at many contexts, in the floating type in use."""
    n, dtype = len(contexts), jnp.result_type(float)
    filled = np.concatenate([contexts, np.repeat(contexts[:1], -n % 256, axis=0)])  # few lengths: few compilations
    return np.asarray(_compiled(shape, dtype)(jnp.asarray(filled, dtype)), np.float64)[:n]


@functools.cache
def _compiled(shape: wm.AbstractManifold, dtype):
    return jax.jit(jax.vmap(shape.basis))


def samples(shape: wm.AbstractManifold, n: int, seed: int = 0) -> np.ndarray:
    """Uniform contexts, drawn by other means than the library's (and much faster than compiling those)."""
    rng = np.random.default_rng(seed)
    match shape:
        case wm.Sphere():
            direction = rng.normal(size=(n, 3))
            return direction / np.linalg.norm(direction, axis=1, keepdims=True)
        case wm.Simplex():
            return rng.dirichlet(np.ones(shape.vertices), n)
        case wm.Product():
            return np.concatenate([samples(f, n, seed + k).reshape(n, -1) for k, f in enumerate(shape.factors)], axis=1)
    return rng.uniform(size=n)


def quadrature(shape: wm.AbstractManifold) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a rule that integrates `a a^T` exactly over uniform contexts."""
    match shape:
        case wm.Line() | wm.TetheredRod():
            return _gauss(2)
        case wm.Ellipse():
            return _gauss(24)  # not the equidistant rule: that one would be exact by the same orthogonality
        case wm.Fourier():
            return _gauss(24 * shape.order)
        case wm.BSpline():
            x, w = _gauss(shape.degree + 1)
            spans = np.arange(shape.size if shape.periodic else shape.size - shape.degree)
            return ((spans[:, None] + x) / len(spans)).ravel(), np.tile(w / len(spans), len(spans))
        case wm.Sphere():
            z, of_z = np.polynomial.legendre.leggauss(shape.degree + 1)
            angle = 2 * np.pi * (np.arange(2 * shape.degree + 2) + 0.3) / (2 * shape.degree + 2)
            z, angle = (x.ravel() for x in np.meshgrid(z, angle, indexing="ij"))
            radius = np.sqrt(1 - z**2)
            weights = np.repeat(of_z / 2, 2 * shape.degree + 2) / (2 * shape.degree + 2)
            return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1), weights
        case wm.Simplex():
            # Break a stick: the j-th break takes a share of the rest, with the density (1 - t)^(d - 1 - j).
            rest, points, weights = np.ones(1), np.zeros((1, 0)), np.ones(1)
            for j in range(shape.vertices - 1):
                power = shape.vertices - 2 - j
                t, w = scipy.special.roots_sh_jacobi(3, power + 1, 1)
                points = np.concatenate([np.repeat(points, 3, axis=0), (rest[:, None] * t).reshape(-1, 1)], axis=1)
                weights = (weights[:, None] * (w / w.sum())).ravel()
                rest = (rest[:, None] * (1 - t)).ravel()
            return np.concatenate([points, rest[:, None]], axis=1), weights
        case wm.Product():
            rules = [quadrature(factor) for factor in shape.factors]
            nodes = [
                np.concatenate([np.ravel(rule[0][i]) for rule, i in zip(rules, index, strict=True)])
                for index in itertools.product(*(range(len(rule[0])) for rule in rules))
            ]
            weights = np.ones(1)
            for _, w in rules:
                weights = np.kron(weights, w)
            return np.stack(nodes), weights
    raise NotImplementedError(shape)


def _gauss(n: int) -> tuple[np.ndarray, np.ndarray]:
    x, w = np.polynomial.legendre.leggauss(n)
    return (x + 1) / 2, w / 2


def integrated_gram(shape: wm.AbstractManifold) -> np.ndarray:
    nodes, weights = quadrature(shape)
    a = evaluate(shape, nodes)
    return a.T @ (weights[:, None] * a)


class TestBasis:
    @every_shape
    def test_has_one_function_for_each_point(self, shape):
        s = jax.eval_shape(shape.sample, jax.random.key(0))
        assert s.shape == shape.context_shape
        assert jax.eval_shape(shape.basis, s).shape == (shape.size,)

    @every_shape
    def test_contains_the_constant_function(self, shape):
        a = evaluate(shape, samples(shape, 50))
        np.testing.assert_allclose(a @ shape._constant(), 1, atol=2e-6)

    @pytest.mark.parametrize(
        "shape", [s for s in SHAPES if isinstance(s, (wm.Line, wm.TetheredRod, wm.BSpline, wm.Simplex))], ids=repr
    )
    def test_is_a_partition_of_unity_without_negative_parts(self, shape):
        if shape.context_shape == ():
            contexts = np.linspace(0, 1, 101)  # ends and knots too
        else:
            contexts = np.concatenate([np.eye(shape.size), samples(shape, 50)])
        a = evaluate(shape, contexts)
        np.testing.assert_allclose(a.sum(axis=1), 1, atol=1e-6)
        assert (a >= -1e-7).all()

    @one_of_each
    def test_is_linearly_independent(self, shape):
        assert np.linalg.matrix_rank(evaluate(shape, samples(shape, 60)), tol=1e-3) == shape.size

    @one_of_each
    def test_agrees_under_every_transformation(self, shape):
        contexts = jnp.asarray(samples(shape, 5))
        batched = jax.jit(jax.vmap(shape.basis))(contexts)
        scanned = jax.lax.scan(lambda carry, s: (carry, shape.basis(s)), None, contexts)[1]
        np.testing.assert_allclose(scanned, batched, atol=1e-6)
        if not isinstance(shape, (wm.Sphere, wm.BSpline)):  # hundreds of small compilations
            np.testing.assert_allclose(shape.basis(contexts[1]), batched[1], atol=1e-6)

    @one_of_each
    def test_has_the_gradient_of_its_finite_differences(self, shape, float64):
        contexts = jnp.asarray(
            samples(shape, 4, seed=3) * (1 - 1e-5) if shape.context_shape == () else samples(shape, 4)
        )
        flat = jax.jit(jax.vmap(lambda s: shape.basis(s.reshape(shape.context_shape))))
        gradient = jax.jit(jax.vmap(jax.jacrev(shape.basis)))(contexts).reshape(4, shape.size, -1)
        contexts = contexts.reshape(4, -1)
        for axis, direction in enumerate(np.eye(contexts.shape[1])):
            difference = (flat(contexts + 1e-6 * direction) - flat(contexts - 1e-6 * direction)) / 2e-6
            np.testing.assert_allclose(gradient[:, :, axis], difference, atol=1e-7 * shape.size)

    @some
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_keeps_the_floating_type_of_the_context(self, shape, dtype):
        s = jnp.asarray(samples(shape, 1)[0], dtype)
        a = jax.jit(shape.basis)(s)
        assert a.dtype == dtype
        exact = evaluate(shape, s[None].astype("float32"))[0]
        np.testing.assert_allclose(a.astype("float32"), exact, atol=50 * float(jnp.finfo(dtype).eps))

    @one_of_each
    def test_is_float64_where_that_is_on(self, shape, float64):
        s = jax.eval_shape(shape.sample, jax.random.key(1))
        assert s.dtype == jax.eval_shape(shape.basis, s).dtype == "float64"
        assert shape.gram().dtype == shape.inverse_gram().dtype == "float64"

    def test_takes_numbers_of_python_and_numpy(self):
        for s in (1, 1.0, True, np.float64(1), np.int64(1), np.ones(()), jnp.ones((), int)):
            np.testing.assert_allclose(wm.Line().basis(s), [0, 1])

    @pytest.mark.parametrize("shape", [wm.Ellipse(), wm.Fourier(3), wm.BSpline(7, periodic=True)], ids=repr)
    def test_is_periodic_on_a_circle(self, shape):
        s = np.linspace(0, 1, 21)
        for turns in (-2, 1, 5):
            np.testing.assert_allclose(evaluate(shape, s + turns), evaluate(shape, s), atol=2e-5)
        seam = evaluate(shape, np.array([1 - 1e-6, 1 + 1e-6]))
        np.testing.assert_allclose(seam[0], seam[1], atol=1e-4)

    @pytest.mark.parametrize("shape", [wm.Line(), wm.TetheredRod(), wm.BSpline(5), wm.Simplex(2)], ids=repr)
    def test_allows_for_rounding_at_the_ends(self, shape):
        ends = [-1e-6, 1 + 1e-6]
        for s in ends if shape.context_shape == () else [(s, 1 - s) for s in ends]:
            assert np.isfinite(shape.basis(np.asarray(s))).all()


def exact_gram(shape: wm.AbstractManifold):
    """`E[a a^T]` in sympy's exact numbers, from formulas other than the library's."""
    sp = pytest.importorskip("sympy")
    s = sp.Symbol("s", real=True)

    def integrals(a):
        return sp.Matrix(len(a), len(a), lambda i, j: sp.integrate(sp.expand(a[i] * a[j]), (s, 0, 1)))

    match shape:
        case wm.Line() | wm.TetheredRod():
            return integrals([1 - s, s])
        case wm.Ellipse():
            return integrals([1, sp.cos(2 * sp.pi * s), sp.sin(2 * sp.pi * s)])
        case wm.Fourier():
            waves = [f(2 * sp.pi * j * s) for j in range(1, shape.order + 1) for f in (sp.cos, sp.sin)]
            return integrals([1, *waves])
        case wm.BSpline():
            on_span = integrals([_truncated_powers(sp, s, shape.degree, k) for k in range(shape.degree, -1, -1)])
            gram = sp.zeros(shape.size, shape.size)
            spans = shape.size if shape.periodic else shape.size - shape.degree
            for span, i, j in itertools.product(range(spans), *[range(shape.degree + 1)] * 2):
                gram[(span + i) % shape.size, (span + j) % shape.size] += on_span[i, j] / spans
            return gram
        case wm.Sphere():
            return _of_harmonics(sp, shape.degree)
        case wm.Simplex():  # moments of a flat Dirichlet distribution: (n - 1)! Π k_i! / (n - 1 + Σ k_i)!
            n, f = shape.vertices, sp.factorial
            return sp.Matrix(n, n, lambda i, j: f(n - 1) * f(1 + (i == j)) / f(n + 1))
        case wm.Product():
            return sp.kronecker_product(*map(exact_gram, shape.factors))


def _truncated_powers(sp, s, degree, k):
    """The `k`-th piece, from its start, of a uniform B-spline: `Σ_j (−1)^j C(p + 1, j) (x − j)^p / p!` over `j <= k`."""
    terms = [(-1) ** j * sp.binomial(degree + 1, j) * (s + k - j) ** degree for j in range(k + 1)]
    return sp.expand(sum(terms) / sp.factorial(degree))


def _of_harmonics(sp, degree):
    """The mean products of real spherical harmonics, as polynomials in x, y, z with the moments of the sphere."""
    x, y, z = sp.symbols("x y z", real=True)
    harmonics = []
    for l, m in [(k, m) for k in range(degree + 1) for m in range(-k, k + 1)]:
        around = sp.expand((x + sp.I * y) ** abs(m)).as_real_imag()[m < 0]
        weight = sp.Rational((2 - (m == 0)) * (2 * l + 1) * math.factorial(l - abs(m)), math.factorial(l + abs(m)))
        harmonics.append(sp.sqrt(weight) * around * sp.diff(sp.legendre(l, z), z, abs(m)))

    def mean(i, j):
        terms = sp.Poly(sp.expand(harmonics[i] * harmonics[j]), x, y, z).terms()
        odd = sp.factorial2  # E[x^a y^b z^c] = (a − 1)!! (b − 1)!! (c − 1)!! / (a + b + c + 1)!! for even powers
        even = [(p, c) for p, c in terms if not any(k % 2 for k in p)]
        return sp.simplify(sum(c * math.prod(odd(k - 1) for k in p) / odd(sum(p) + 1) for p, c in even))

    return sp.Matrix(len(harmonics), len(harmonics), mean)


def free_points(shape: wm.AbstractManifold) -> np.ndarray:
    """Which points a step may move: all but the first of a rod, and what a product makes of it."""
    match shape:
        case wm.TetheredRod():
            return np.array([False, True])
        case wm.Product():
            return functools.reduce(np.kron, map(free_points, shape.factors))
    return np.ones(shape.size, bool)


class TestGram:
    @every_shape
    def test_equals_quadrature(self, shape):
        assert shape.gram().dtype == "float32"
        np.testing.assert_allclose(shape.gram(), integrated_gram(shape), rtol=0, atol=1e-6)

    @every_shape
    def test_equals_quadrature_to_the_last_digits_in_float64(self, shape, float64):
        np.testing.assert_allclose(shape.gram(), integrated_gram(shape), rtol=0, atol=1e-12)

    @every_shape
    def test_is_symmetric_and_positive(self, shape, float64):
        gram = np.asarray(shape.gram())
        np.testing.assert_allclose(gram, gram.T, rtol=0, atol=1e-16)
        assert np.linalg.eigvalsh(gram)[0] > 0
        assert (gram**2 <= np.outer(np.diag(gram), np.diag(gram)) * (1 + 1e-12)).all()  # Cauchy-Schwarz

    @every_shape
    def test_times_its_inverse_is_the_identity_on_the_points_that_move(self, shape, float64):
        product = np.asarray(
            shape.inverse_gram() @ jnp.asarray(np.where(np.outer(*[shape._movable] * 2), shape.gram(), 0))
        )
        np.testing.assert_allclose(product, np.diag(shape._movable.astype(float)), atol=1e-10)

    @every_shape
    def test_has_the_inverse_that_sympy_finds(self, shape, float64):
        free = np.flatnonzero(free_points(shape)).tolist()
        gram = exact_gram(shape)
        expected, block = np.zeros((shape.size, shape.size)), np.ix_(free, free)
        expected[block] = np.array(gram.extract(free, free).inv(), float)
        np.testing.assert_allclose(shape.gram(), np.array(gram, float), rtol=0, atol=1e-12)
        np.testing.assert_allclose(shape.inverse_gram(), expected, rtol=0, atol=1e-10 * abs(expected).max())

    def test_of_the_smallest_cubic_spline_has_an_inverse_of_whole_numbers(self, float64):
        ends, inner = [8256, -2124, 2016, -7044], [-2124, 576, -564, 2016]
        np.testing.assert_allclose(wm.BSpline(4).inverse_gram(), [ends, inner, inner[::-1], ends[::-1]], rtol=1e-9)

    @one_of_each
    def test_times_its_inverse_is_the_identity_in_single_precision(self, shape):
        movable = np.ix_(shape._movable, shape._movable)
        gram, inverse = (np.asarray(g)[movable] for g in (shape.gram(), shape.inverse_gram()))
        np.testing.assert_allclose(inverse @ gram, np.eye(len(gram)), atol=1e-6 * np.linalg.cond(gram))

    @pytest.mark.parametrize(
        ("shape", "listed"),
        [
            (wm.Line(), [[4, -2], [-2, 4]]),
            (wm.Ellipse(), np.diag([1, 2, 2])),
            (wm.TetheredRod(), np.diag([0, 3])),
            (wm.Fourier(2), np.diag([1, 2, 2, 2, 2])),
            (wm.Sphere(1), np.eye(4)),
            (wm.Simplex(3), [[9, -3, -3], [-3, 9, -3], [-3, -3, 9]]),
        ],
        ids=repr,
    )
    def test_has_the_inverse_of_the_table(self, shape, listed):
        np.testing.assert_allclose(shape.inverse_gram(), listed, atol=2e-6)

    def test_of_a_cubic_spline_has_the_bands_of_its_integrals(self, float64):
        spline = wm.BSpline(12)
        middle = np.asarray(spline.gram())[3:9, 3:9] * spline.spans
        for offset, value in enumerate([151 / 315, 397 / 1680, 1 / 42, 1 / 5040]):
            np.testing.assert_allclose(np.diagonal(middle, offset), value, atol=1e-14)
        np.testing.assert_allclose(np.triu(np.asarray(spline.gram()), 4), 0)
        # ... but at the ends, where the interval cuts the outer functions off.
        np.testing.assert_allclose(spline.gram()[0, 0] * spline.spans, 1 / 252, atol=1e-14)

    @pytest.mark.parametrize("size", [4, 5, 9])
    def test_of_a_periodic_spline_is_circulant(self, size, float64):
        gram = np.asarray(wm.BSpline(size, periodic=True).gram())
        for k in range(size):
            np.testing.assert_allclose(gram[k], np.roll(gram[0], k), atol=1e-15)
        np.testing.assert_allclose(gram.sum(axis=1), 1 / size, atol=1e-15)

    def test_of_a_product_is_the_kronecker_product(self):
        factors = wm.Ellipse(), wm.BSpline(5), wm.Simplex(3)
        shape = wm.Product(*factors)
        expected = np.ones((1, 1))
        for factor in factors:
            expected = np.kron(expected, factor.gram())
        np.testing.assert_allclose(shape.gram(), expected, rtol=1e-5, atol=1e-8)
        s = jnp.asarray(samples(shape, 1)[0])
        parts = [f.basis(t) for f, t in zip(factors, (s[0], s[1], s[2:]), strict=True)]
        np.testing.assert_allclose(shape.basis(s), np.kron(np.kron(parts[0], parts[1]), parts[2]), atol=1e-6)

    def test_of_nested_products_does_not_depend_on_the_nesting(self):
        a, b, c = wm.Line(), wm.Ellipse(), wm.Sphere(1)
        flat, nested = wm.Product(a, b, c), wm.Product(a, wm.Product(b, c))
        assert flat.context_shape == nested.context_shape == (5,)
        np.testing.assert_allclose(flat.gram(), nested.gram(), atol=1e-7)
        s = samples(flat, 1)[0]
        np.testing.assert_allclose(flat.basis(s), nested.basis(s), atol=1e-6)

    def test_of_a_product_keeps_a_tether_in_place(self):
        inverse = np.asarray(wm.Product(wm.TetheredRod(), wm.Ellipse()).inverse_gram())
        assert (inverse[:3] == 0).all()
        assert (inverse[:, :3] == 0).all()
        np.testing.assert_allclose(inverse[3:, 3:], np.diag([3, 6, 6]), rtol=1e-6)

    def test_of_a_spline_of_high_degree_is_inverted_or_refused(self):
        assert np.isfinite(wm.BSpline(12, degree=7).inverse_gram()).all()
        with pytest.raises(ValueError, match=r"singular to rounding \(rank \d+ of 40\); .* lower degree"):
            wm.BSpline(40, degree=16).inverse_gram()


class TestAgreesWithOthers:
    @settings(max_examples=10, deadline=None)
    @given(st.integers(0, 5), st.integers(0, 5), st.booleans(), st.integers(0, 2**31))
    def test_splines_are_those_of_scipy(self, degree, more, periodic, seed):
        size = degree + 1 + more
        shape = wm.BSpline(size, degree=degree, periodic=periodic)
        spans = shape.spans
        knots = (np.arange(spans + 2 * degree + 1) - degree) / spans
        s = np.random.default_rng(seed).uniform(0, 1, 32)
        s[np.abs(s * spans - np.round(s * spans)) < 1e-4] = 0.5 / spans  # a step function's sides are a matter of taste
        expected = np.zeros((32, size))
        for k in range(spans + degree):
            piece = scipy.interpolate.BSpline(knots, np.eye(spans + degree)[k], degree, extrapolate=False)(s)
            expected[:, k % size] += np.nan_to_num(piece)
        np.testing.assert_allclose(evaluate(shape, s), expected, atol=2e-5)

    @pytest.mark.parametrize("degree", [1, 2, 5])
    def test_spherical_harmonics_are_those_of_scipy(self, degree, float64):
        shape = wm.Sphere(degree)
        s = np.concatenate([samples(shape, 40), [[0, 0, 1], [0, 0, -1], [1, 0, 0], [0, -1, 0]]])  # poles too
        polar, azimuth = np.arccos(np.clip(s[:, 2], -1, 1)), np.arctan2(s[:, 1], s[:, 0])
        columns = []
        for l in range(degree + 1):
            for m in range(-l, l + 1):
                y = scipy.special.sph_harm_y(l, abs(m), polar, azimuth) * (-1) ** m * math.sqrt(4 * math.pi)
                columns.append(y.real if m == 0 else math.sqrt(2) * (y.real if m > 0 else y.imag))
        np.testing.assert_allclose(evaluate(shape, s), np.stack(columns, axis=1), atol=1e-12)

    def test_the_first_harmonics_are_the_coordinates(self):
        s = samples(wm.Sphere(1), 10)
        np.testing.assert_allclose(evaluate(wm.Sphere(1), s)[:, 1:], math.sqrt(3) * s[:, [1, 2, 0]], atol=1e-6)

    def test_a_fourier_curve_of_order_one_is_an_ellipse(self):
        s = np.linspace(-1, 2, 31)
        np.testing.assert_allclose(evaluate(wm.Fourier(1), s), evaluate(wm.Ellipse(), s), atol=1e-7)
        np.testing.assert_array_equal(wm.Fourier(1).inverse_gram(), wm.Ellipse().inverse_gram())

    def test_a_simplex_of_two_vertices_is_a_line(self):
        s = np.linspace(0, 1, 11)
        np.testing.assert_allclose(
            evaluate(wm.Simplex(2), np.stack([1 - s, s], axis=1)), evaluate(wm.Line(), s), atol=1e-7
        )
        np.testing.assert_allclose(wm.Simplex(2).gram(), wm.Line().gram(), atol=1e-7)

    def test_a_spline_of_degree_one_on_two_points_is_a_line(self):
        s = np.linspace(0, 1, 11)
        np.testing.assert_allclose(evaluate(wm.BSpline(2, degree=1), s), evaluate(wm.Line(), s), atol=1e-7)
        np.testing.assert_allclose(wm.BSpline(2, degree=1).gram(), wm.Line().gram(), atol=1e-7)

    def test_a_tethered_rod_is_a_line_but_for_its_inverse(self):
        np.testing.assert_array_equal(wm.TetheredRod().gram(), wm.Line().gram())
        np.testing.assert_array_equal(wm.TetheredRod().basis(0.3), wm.Line().basis(0.3))


class TestSample:
    @one_of_each
    def test_has_the_shape_asked_for_and_lies_in_the_domain(self, shape):
        for batch in ((), (3,), (2, 3)):
            assert jax.eval_shape(lambda key, b=batch: shape.sample(key, b), jax.random.key(0)).shape == (
                *batch,
                *shape.context_shape,
            )
        shape.check(jax.jit(lambda key: shape.sample(key, (2, 3)))(jax.random.key(0)))

    @one_of_each
    def test_is_uniform_and_follows_its_key(self, shape):
        draw = jax.jit(lambda key: shape.sample(key, (20_000,)))
        contexts = draw(jax.random.key(0))
        np.testing.assert_array_equal(draw(jax.random.key(0)), contexts)
        assert (draw(jax.random.key(1)) != contexts).any()
        # The mean of outer products is the uniform Gram matrix, within five standard errors.
        a = evaluate(shape, contexts)
        outer = a[:, :, None] * a[:, None, :]
        error = np.abs(outer.mean(axis=0) - np.asarray(shape.gram()))
        assert (error <= 5 * outer.std(axis=0) / np.sqrt(len(a)) + 1e-6).all()


simple_shapes = st.one_of(
    st.sampled_from([wm.Line(), wm.TetheredRod(), wm.Ellipse()]),
    st.builds(wm.Fourier, st.integers(1, 3)),
    st.integers(0, 3).flatmap(
        lambda degree: st.builds(wm.BSpline, st.integers(degree + 1, degree + 4), st.just(degree), st.booleans())
    ),
    st.builds(wm.Sphere, st.integers(1, 2)),
    st.builds(wm.Simplex, st.integers(1, 4)),
)
shapes = simple_shapes | st.lists(simple_shapes, min_size=2, max_size=2).map(lambda factors: wm.Product(*factors))


class TestDensity:
    @settings(max_examples=10, deadline=None)
    @given(shapes, st.sampled_from([1, 2, 5, 40]), st.integers(0, 2**31))
    def test_gives_the_mean_of_outer_products(self, shape, n, seed):
        contexts = samples(shape, n, seed)
        gram = np.asarray(shape.gram(contexts))
        a = evaluate(shape, contexts)
        np.testing.assert_allclose(gram, np.mean([np.outer(row, row) for row in a], axis=0), atol=1e-5)
        np.testing.assert_allclose(gram, gram.T)
        assert np.linalg.eigvalsh(gram)[0] > -1e-5
        # The constant function has norm one under every density.
        np.testing.assert_allclose(shape._constant() @ gram @ shape._constant(), 1, atol=1e-5)
        try:
            inverse = np.asarray(shape.inverse_gram(contexts))
        except ValueError as error:
            refused = re.search(r"rank (\d+) of (\d+) under this density of (\d+) distinct contexts", str(error))
            if refused is None or not int(refused[1]) < int(refused[2]):
                raise
        else:
            block = np.ix_(shape._movable, shape._movable)
            np.testing.assert_allclose(
                inverse[block] @ gram[block], np.eye(len(gram[block])), atol=3e-6 * np.linalg.cond(gram[block])
            )
            assert not inverse[~shape._movable].any()

    @some
    def test_counts_contexts_as_often_as_they_occur_in_any_order(self, shape):
        contexts = samples(shape, 30)
        repeated = np.concatenate([contexts, contexts[:10]])
        a = evaluate(shape, contexts)
        weights = np.r_[np.full(10, 2), np.ones(20)] / 40
        np.testing.assert_allclose(shape.gram(repeated), a.T @ (weights[:, None] * a), atol=1e-5)
        np.testing.assert_allclose(shape.gram(repeated[::-1]), shape.gram(repeated), atol=1e-5)

    @some
    def test_of_many_uniform_contexts_is_nearly_uniform(self, shape):
        np.testing.assert_allclose(shape.gram(samples(shape, 20_000)), shape.gram(), atol=0.1)

    def test_of_evenly_spaced_angles_is_the_uniform_one(self):
        angles = np.arange(8) / 8
        np.testing.assert_allclose(wm.Ellipse().gram(angles), wm.Ellipse().gram(), atol=1e-6)

    def test_is_accurate_in_float64(self, float64):
        s = np.linspace(0, 1, 13) ** 2
        a = np.stack([1 - s, s])
        np.testing.assert_allclose(wm.Line().gram(s), a @ a.T / 13, atol=1e-15)

    def test_can_be_used_where_an_optimiser_is_made_inside_jit(self):
        s = np.linspace(0, 1, 5)
        np.testing.assert_allclose(jax.jit(lambda: wm.Line().inverse_gram(s))(), wm.Line().inverse_gram(s), rtol=1e-6)

    @pytest.mark.parametrize(
        ("shape", "contexts", "rank", "distinct"),
        [
            (wm.Line(), [0.5], 1, 1),
            (wm.Line(), [0.25, 0.25, 0.25], 1, 1),
            (wm.Ellipse(), [0.1, 0.6], 2, 2),
            (wm.Ellipse(), [0.0, 0.5, 0.0, 0.5], 2, 2),
            (wm.BSpline(6), np.linspace(0, 0.3, 50), 4, 50),
            (wm.Sphere(1), np.eye(3), 3, 3),
            (wm.TetheredRod(), [0.0, 0.0], 0, 1),
            (wm.Product(wm.Line(), wm.Line()), np.array([[0.0, 0], [0, 1], [1, 0]]), 3, 3),
        ],
        ids=repr,
    )
    def test_that_sees_too_few_contexts_is_refused_with_the_cure(self, shape, contexts, rank, distinct):
        movable = int(shape._movable.sum())
        message = (
            rf"has rank {rank} of {movable} under this density of {distinct} distinct contexts"
            rf".*give at least {movable} well separated contexts.*density=None"
        )
        with pytest.raises(ValueError, match=message):
            shape.inverse_gram(np.asarray(contexts))

    def test_of_one_context_suffices_for_a_rod_that_turns_about_its_tether(self):
        np.testing.assert_allclose(wm.TetheredRod().inverse_gram(np.array([0.5])), np.diag([0, 4]), rtol=1e-6)

    @pytest.mark.parametrize(
        ("shape", "density", "message"),
        [
            (wm.Line(), np.zeros(0), r"samples at least 1; got the shape \(0,\)"),
            (wm.Line(), np.array(0.5), r"of shape \(samples.*got the shape \(\)"),
            (wm.Line(), np.zeros((3, 1)), r"got the shape \(3, 1\)"),
            (wm.Sphere(1), np.zeros((3, 2)), r"trailing shape \(3,\), got an array of shape \(3, 2\)"),
            (wm.Sphere(1), np.ones(3), r"of shape \(samples, 3\).*got the shape \(3,\)"),
            (wm.Line(), np.array([0.5, 1.5]), r"a number in \[0, 1\], got 1.5 \(1 of 2 contexts\)"),
            (wm.Ellipse(), np.array([0.5, np.nan]), r"finite number.*got nan"),
        ],
        ids=repr,
    )
    def test_that_is_no_sample_of_contexts_is_refused(self, shape, density, message):
        for method in (shape.gram, shape.inverse_gram):
            with pytest.raises(ValueError, match=message):
                method(density)


class TestDescription:
    @every_shape
    def test_is_hashable_and_equal_to_its_twin(self, shape):
        twin = jax.tree.map(lambda x: x, shape)
        assert shape == twin
        assert hash(shape) == hash(twin)
        assert {shape: "found"}[twin] == "found"
        assert not jax.tree.leaves(shape)

    def test_differs_from_every_other(self):
        assert len(set(SHAPES)) == len(SHAPES)

    def test_can_be_a_static_argument_and_compiles_once(self):
        traces = []

        def first(shape, s):
            traces.append(shape)
            return shape.basis(s)[0]

        compiled = jax.jit(first, static_argnums=0)
        for _ in range(2):
            compiled(wm.BSpline(5), 0.5)
            compiled(wm.BSpline(5, periodic=True), 0.5)
        assert len(traces) == 2

    def test_names_itself(self):
        assert repr(wm.Product(wm.Ellipse(), wm.Fourier(2))) == "Product(factors=(Ellipse(), Fourier(order=2)))"


class TestRefused:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: wm.Fourier(0), r"order .*1 is an ellipse.* at least 1, got 0"),
            (lambda: wm.Fourier(-2), r"order .* at least 1, got -2"),
            (
                lambda: wm.BSpline(3),
                r"size of a spline of degree 3 \(add points or lower the degree\) must be at least 4, got 3",
            ),
            (lambda: wm.BSpline(-5), r"at least 4, got -5"),
            (lambda: wm.BSpline(2, degree=2, periodic=True), r"degree 2 .* at least 3, got 2"),
            (lambda: wm.BSpline(4, degree=-1), r"degree of a spline .* at least 0, got -1"),
            (lambda: wm.Sphere(0), r"degree of a sphere .*1 is an ellipsoid.* at least 1, got 0"),
            (lambda: wm.Simplex(0), r"vertices .*2 are a line.* at least 1, got 0"),
            (lambda: wm.Simplex(-1), r"vertices .* at least 1, got -1"),
            (lambda: wm.Product(), r"at least two manifolds, got \(\); call Product"),
            (lambda: wm.Product(wm.Line()), r"at least two manifolds, got \(Line\(\),\)"),
        ],
    )
    def test_a_size_that_makes_no_manifold(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    @pytest.mark.parametrize(
        ("shape", "s", "message"),
        [
            (
                wm.Line(),
                1.5,
                r"Line\(\) must be a number in \[0, 1\], got 1.5 .*; rescale or project the contexts first",
            ),
            (wm.Line(), -0.1, r"\[0, 1\], got -0.1"),
            (wm.Line(), np.nan, r"\[0, 1\], got nan"),
            (wm.Line(), np.inf, r"\[0, 1\], got inf"),
            (wm.TetheredRod(), 2.0, r"\[0, 1\], got 2.0"),
            (wm.BSpline(5), 1.1, r"\[0, 1\], got 1.1"),
            (wm.Ellipse(), np.inf, r"a finite number \(the period is 1\), got inf"),
            (wm.BSpline(5, periodic=True), np.nan, r"a finite number \(the period is 1\), got nan"),
            (wm.Sphere(1), np.ones(3), r"a unit vector of three numbers, got \[1.0, 1.0, 1.0\]"),
            (wm.Sphere(1), np.zeros(3), r"a unit vector"),
            (wm.Sphere(1), np.array([1, 0, np.nan]), r"a unit vector"),
            (wm.Simplex(3), np.ones(3), r"3 non-negative numbers that sum to 1, got"),
            (wm.Simplex(2), np.array([1.5, -0.5]), r"2 non-negative numbers"),
            (wm.Simplex(2), np.array([np.inf, -np.inf]), r"2 non-negative numbers"),
            (
                wm.Product(wm.Ellipse(), wm.Line()),
                np.array([3.0, 3.0]),
                r"in turn a finite .*, then a number in \[0, 1\]",
            ),
        ],
        ids=repr,
    )
    def test_a_context_outside_its_domain(self, shape, s, message):
        for refuse in (shape.basis, shape.check):
            with pytest.raises(ValueError, match=message):
                refuse(s)

    @pytest.mark.parametrize(
        ("shape", "wrong"),
        [(wm.Line(), (1,)), (wm.Ellipse(), (4,)), (wm.Sphere(1), ()), (wm.Sphere(1), (2,)), (wm.Simplex(3), (4,))]
        + [(wm.Product(wm.Line(), wm.Line()), (3,)), (wm.Product(wm.Line(), wm.Line()), (5, 2))],
        ids=repr,
    )
    def test_a_context_of_the_wrong_shape_also_under_jit(self, shape, wrong):
        message = re.escape(f"has the shape {shape.context_shape}, got {wrong}; use jax.vmap for a batch")
        for function in (shape.basis, jax.jit(shape.basis)):
            with pytest.raises(ValueError, match=message):
                function(jnp.zeros(wrong))

    def test_a_data_set_with_one_bad_context(self):
        contexts = np.linspace(0, 1, 100)
        wm.Line().check(contexts)
        contexts[7] = 3
        with pytest.raises(ValueError, match=r"got 3.0 \(1 of 100 contexts\)"):
            wm.Line().check(contexts)
        with pytest.raises(ValueError, match=r"need the trailing shape \(3,\), got an array of shape \(100,\)"):
            wm.Sphere(1).check(contexts)

    def test_nothing_of_a_data_set_without_contexts(self):
        for shape in ONE_OF_EACH:
            shape.check(np.zeros((0, *shape.context_shape)))

    def test_what_is_no_whole_number_or_no_manifold(self):
        # Here the tests' own type checks would speak first: ask the library as its users meet it.
        expected = {
            "wm.Fourier(1.5)": r"order .* must be an integer, got 1\.5 of type float; use int",
            "wm.Fourier('2')": r"must be an integer, got '2'",
            "wm.Fourier(True)": r"must be an integer, got True",
            "wm.Fourier(None)": r"must be an integer, got None",
            "wm.BSpline(4.0)": r"size of a spline of degree 3 .* must be an integer, got 4\.0",
            "wm.BSpline(5, degree=2.0)": r"degree of a spline .* must be an integer, got 2\.0",
            "wm.Sphere(math.nan)": r"must be an integer, got nan",
            "wm.Simplex(2.5)": r"must be an integer, got 2\.5",
            "wm.Product(wm.Line(), 3)": r"at least two manifolds, got \(Line\(\), 3\)",
            "wm.Product(wm.Line(), wm.Line)": r"at least two manifolds",
            "wm.Line().basis('a')": r"",
            "wm.Line().basis([0.1, 0.2])": r"shape \(\), got \(2,\)",
            "wm.Line().gram([])": r"samples at least 1; got the shape \(0,\)",
            "wm.Line().gram('uniform')": r"",
            "wm.Line().inverse_gram([0.5])": r"rank 1 of 2 .* 1 distinct",
        }
        script = (
            "import json, math, sys, wmlib as wm\n"
            "def ask(expression):\n"
            "    try: return ['nothing', str(eval(expression))]\n"
            "    except Exception as error: return [type(error).__name__, str(error)]\n"
            "print(json.dumps({e: ask(e) for e in json.loads(sys.argv[1])}))\n"
        )
        out = subprocess.run(
            [sys.executable, "-c", script, json.dumps(list(expected))], check=True, capture_output=True, text=True
        ).stdout
        for expression, (kind, message) in json.loads(out).items():
            assert (
                kind in ("ValueError", "TypeError")
                if expected[expression] == ""
                else kind in ("ValueError", "NoCountError")
            ), (
                expression,
                message,
            )
            assert re.search(expected[expression], message), (expression, message)
