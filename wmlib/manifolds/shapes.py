"""Shapes of weight manifolds: basis functions of a context and their Gram matrices.

Every manifold here is linear in its basis points, `M(s, P) = sum_k a_k(s) P_k` (Benjamin et al. 2025, Eq. 12).
Its metric integrated over contexts is therefore `G ⊗ I`, with the small matrix `G = E_s[a(s) a(s)^T]`.
"""

import abc
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, SupportsIndex, final

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from .._counts import check_count

_TOLERANCE = 1e-4  # how far outside its domain rounding may carry a context


class AbstractManifold(eqx.Module):
    """A family of weights `M(s, P) = sum_k a_k(s) P_k`, one for each context `s`.

    A subclass says which contexts there are (`context_shape`, `_outside`, `sample`), what the basis functions are
    (`size`, `_basis`, `_constant`) and what their uniform Gram matrix is (`_uniform_gram`). A manifold holds no
    weights: it is a hashable description, safe to close over under `jax.jit`.
    """

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """The number `n` of basis points."""

    @property
    @abc.abstractmethod
    def context_shape(self) -> tuple[int, ...]:
        """The shape of one context: `()` for a curve, `(d,)` otherwise."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Contexts drawn uniformly, of shape `(*shape, *context_shape)`."""

    @abc.abstractmethod
    def _basis(self, s: Float[Array, "..."]) -> Float[Array, " n"]:
        """The basis functions at one context, unchecked."""

    @abc.abstractmethod
    def _uniform_gram(self) -> Float[np.ndarray, "n n"]:
        """`E[a a^T]` for contexts drawn uniformly, in float64."""

    @abc.abstractmethod
    def _constant(self) -> Float[np.ndarray, " n"]:
        """The coefficients `c` with `sum_k c_k a_k(s) = 1` for every context."""

    @abc.abstractmethod
    def _outside(self, s: Float[np.ndarray, "batch ..."]) -> tuple[Bool[np.ndarray, " batch"], str]:
        """Which contexts lie outside the domain, and the domain in words."""

    @property
    def _movable(self) -> Bool[np.ndarray, " n"]:
        """Which basis points a step may move: all, but for a tether."""
        return np.ones(self.size, bool)

    def check(self, contexts: ArrayLike) -> None:
        """Check contexts before computing with them.

        **Arguments:** `contexts`, concrete, of shape `(..., *context_shape)`.

        **Raises:** `ValueError` if the trailing shape is wrong, a value is not finite, or one lies outside the
        domain; `TypeError` for what are no real numbers. Inside a transformed function (`jit`, `vmap`) values are not known and only shapes can be checked:
        call this on the whole data set first.
        """
        _check_real(self, contexts)
        values = np.asarray(contexts, dtype=np.float64)
        d = len(self.context_shape)
        if values.shape[values.ndim - d :] != self.context_shape or values.ndim < d:
            raise ValueError(
                f"contexts of {self} need the trailing shape {self.context_shape}, got an array of shape {values.shape}"
            )
        values = values.reshape((-1, *self.context_shape))
        finite = np.isfinite(values)
        outside, domain = self._outside(np.where(finite, values, 0))
        outside = outside | ~finite.all(axis=tuple(range(1, values.ndim)))
        if outside.any():
            raise ValueError(
                f"a context of {self} must be {domain}, got {values[outside][0].tolist()}"
                f" ({outside.sum()} of {len(values)} contexts); rescale or project the contexts first"
            )

    def basis(self, s: ArrayLike) -> Float[Array, " n"]:
        """The basis functions `a(s)` (Eq. 12).

        **Arguments:** `s`, one context, of shape `context_shape`; `jax.vmap` takes many.

        **Returns:** the coefficients of the `n` basis points, in the floating dtype of `s`.

        **Raises:** `ValueError` for a wrong shape, or (outside of `jit` and `vmap`) a value outside the domain;
        `TypeError` for what are no real numbers.
        """
        s = jnp.asarray(s)
        _check_real(self, s)
        if not jnp.issubdtype(s.dtype, jnp.floating):
            s = s.astype(jnp.result_type(float))
        if s.shape != self.context_shape:
            raise ValueError(
                f"a context of {self} has the shape {self.context_shape}, got {s.shape}; use jax.vmap for a batch"
            )
        if not isinstance(s, jax.core.Tracer):
            self.check(s)
        return self._basis(s)

    def gram(self, density: ArrayLike | None = None) -> Float[Array, "n n"]:
        """The Gram matrix `G = E_s[a(s) a(s)^T]`, the integrated metric of Eq. 7 without its factor `⊗ I`.

        **Arguments:** `density`, the distribution of contexts: `None` is uniform (computed in closed form), an array
        of shape `(samples, *context_shape)` is the empirical distribution of those contexts.

        **Raises:** `ValueError` for an empty sample, or contexts of a wrong shape or outside the domain; `TypeError` for
        what are no real numbers.
        """
        return jnp.asarray(self._gram(density), dtype=jnp.result_type(float))

    def inverse_gram(self, density: ArrayLike | None = None) -> Float[Array, "n n"]:
        """The inverse of `gram(density)`: what steepest descent applies to the gradient of the points (Eq. 7, Table 1).

        Rows and columns of a point that must not move (the tether of a `TetheredRod`) are zero, and the inverse is
        taken over the other points.

        **Raises:** `ValueError` if the density leaves the Gram matrix singular: it then has fewer distinct contexts
        than are needed to see every movement of the manifold. Also for a spline of so high a degree (about 10) that
        the points at its ends hardly count.
        """
        movable = np.flatnonzero(self._movable)
        block = np.ix_(movable, movable)
        gram = self._gram(density)[block]
        # Smaller eigenvalues than this are rounding: a closed form has float64's, sampled basis functions jax's.
        dtype = np.float64 if density is None else jnp.result_type(float)
        floor = 10 * len(gram) * float(jnp.finfo(dtype).eps)
        eigenvalues = np.linalg.eigvalsh(gram)
        rank = int((eigenvalues > floor * eigenvalues[-1]).sum())
        if rank < len(gram) and density is None:
            raise ValueError(
                f"the Gram matrix of {self} is singular to rounding (rank {rank} of {len(gram)}); give a manifold of a"
                " lower degree"
            )
        if rank < len(gram):
            contexts = np.asarray(density)
            distinct = len(np.unique(contexts.reshape(len(contexts), -1), axis=0))
            raise ValueError(
                f"the Gram matrix of {self} has rank {rank} of {len(gram)} under this density of {distinct} distinct"
                " contexts, so some movements of the manifold cost nothing and no inverse exists;"
                f" give at least {len(gram)} well separated contexts, a manifold with at most {rank} points,"
                " or density=None for the uniform one"
            )
        inverse = np.zeros((self.size, self.size))
        inverse[block] = np.linalg.inv(gram)
        return jnp.asarray(inverse, dtype=jnp.result_type(float))

    def _gram(self, density: ArrayLike | None) -> Float[np.ndarray, "n n"]:
        if density is None:
            return self._uniform_gram()
        _check_real(self, density)
        contexts = np.asarray(density)
        if contexts.ndim != 1 + len(self.context_shape) or len(contexts) == 0:
            raise ValueError(
                f"a density of {self} is an array of sampled contexts of shape (samples,"
                f" {', '.join(map(str, self.context_shape))}), samples at least 1; got the shape {contexts.shape}"
            )
        self.check(contexts)
        with jax.ensure_compile_time_eval():  # known numbers, also where an optimiser is made inside jit
            basis = jax.jit(jax.vmap(self._basis))
            a = np.asarray(basis(jnp.asarray(contexts, dtype=jnp.result_type(float))), np.float64)
        return a.T @ a / len(a)


def _count(what: str) -> Any:
    """A setting of a manifold that counts something, at least 1; kept as an `int`, so that equal manifolds look alike."""
    return eqx.field(static=True, converter=functools.partial(check_count, what))


def _check_real(manifold: AbstractManifold, contexts: ArrayLike) -> None:
    dtype = contexts.dtype if isinstance(contexts, jax.Array) else np.asarray(contexts).dtype
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(
            f"contexts of {manifold} are real numbers, got the type {dtype}; give the real part, or both parts as a context"
            " of two numbers"
        )


def _segment(s: np.ndarray) -> tuple[np.ndarray, str]:
    return (s < -_TOLERANCE) | (s > 1 + _TOLERANCE), "a number in [0, 1]"


def _circle(s: np.ndarray) -> tuple[np.ndarray, str]:
    return np.zeros(len(s), bool), "a finite number (the period is 1)"


def _ones_like(s: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Ones; under a mesh of explicit axes, sharded as `s` is and mapped by `vmap` with it, since only arrays that are
    sharded alike may be stacked. Elsewhere a constant, which the compiler drops from products."""
    ones = jnp.ones_like(s)
    explicit = AxisType.Explicit in (jax.sharding.get_abstract_mesh().axis_types or ())
    return jnp.where(s == s, ones, ones) if explicit else ones


@final
class Line(AbstractManifold):
    """A straight segment, `(1 - s) P_1 + s P_2`, `s` in [0, 1] (Eq. 1). Inverse Gram: `[[4, -2], [-2, 4]]` (Eq. 10)."""

    @property
    def size(self) -> int:
        return 2

    @property
    def context_shape(self) -> tuple[int, ...]:
        return ()

    def sample(self, key, shape=()):
        return jax.random.uniform(key, shape)

    def _basis(self, s):
        return jnp.stack([1 - s, s])

    def _uniform_gram(self):
        return np.array([[1 / 3, 1 / 6], [1 / 6, 1 / 3]])

    def _constant(self):
        return np.ones(2)

    def _outside(self, s):
        return _segment(s)


@final
class TetheredRod(AbstractManifold):
    """A segment whose first end stays where it is: `(1 - s) P_1 + s P_2` with `P_1` fixed (Table 1).

    Its `gram` is that of a `Line`; its `inverse_gram` is `diag(0, 3)`, the inverse over the one point that moves.
    A transformation that follows the metric and adds to the update, such as weight decay, would still move the tether.
    """

    @property
    def size(self) -> int:
        return 2

    @property
    def context_shape(self) -> tuple[int, ...]:
        return ()

    def sample(self, key, shape=()):
        return jax.random.uniform(key, shape)

    def _basis(self, s):
        return jnp.stack([1 - s, s])

    def _uniform_gram(self):
        return np.array([[1 / 3, 1 / 6], [1 / 6, 1 / 3]])

    def _constant(self):
        return np.ones(2)

    def _outside(self, s):
        return _segment(s)

    @property
    def _movable(self):
        return np.array([False, True])


@final
class Ellipse(AbstractManifold):
    """A closed planar curve, `P_1 + cos(2πs) P_2 + sin(2πs) P_3`, of period 1 in `s` (Table 1, B.1).

    `P_1` is the centre, `P_2` and `P_3` are conjugate radii. Inverse Gram: `diag(1, 2, 2)`.
    """

    @property
    def size(self) -> int:
        return 3

    @property
    def context_shape(self) -> tuple[int, ...]:
        return ()

    def sample(self, key, shape=()):
        return jax.random.uniform(key, shape)

    def _basis(self, s):
        return jnp.stack([_ones_like(s), jnp.cos(2 * jnp.pi * s), jnp.sin(2 * jnp.pi * s)])

    def _uniform_gram(self):
        return np.diag([1, 1 / 2, 1 / 2])

    def _constant(self):
        return np.eye(3)[0]

    def _outside(self, s):
        return _circle(s)


@final
class Fourier(AbstractManifold):
    """A closed curve with harmonics, `P_1 + sum_{j=1}^{order} cos(2πjs) P_{2j} + sin(2πjs) P_{2j+1}`, of period 1.

    `Fourier(1)` is an `Ellipse`. Gram: `diag(1, 1/2, …, 1/2)`, by orthogonality of the harmonics.
    """

    order: int = _count("the order of a Fourier manifold (1 is an ellipse)")

    @property
    def size(self) -> int:
        return 2 * self.order + 1

    @property
    def context_shape(self) -> tuple[int, ...]:
        return ()

    def sample(self, key, shape=()):
        return jax.random.uniform(key, shape)

    def _basis(self, s):
        phase = 2 * jnp.pi * s * jnp.arange(1, self.order + 1).astype(s.dtype)
        harmonics = jnp.stack([jnp.cos(phase), jnp.sin(phase)], axis=1).reshape(-1)
        return jnp.concatenate([_ones_like(s)[None], harmonics])

    def _uniform_gram(self):
        return np.diag([1.0] + [0.5] * (2 * self.order))

    def _constant(self):
        return np.eye(self.size)[0]

    def _outside(self, s):
        return _circle(s)


def _spline_pieces(degree: int) -> np.ndarray:
    """Coefficients `C[j, m]` of `u^m` in the `j`-th of the `degree + 1` uniform B-splines that are alive on one span.

    The Cox–de Boor recursion on polynomials of the local coordinate `u` in [0, 1]; the spline that started earliest
    comes first.
    """
    pieces = np.ones((1, 1))
    for p in range(1, degree + 1):
        raised = np.zeros((p + 1, p + 1))
        for j in range(p + 1):
            # Spline j of degree p began p - j spans ago: its rising factor is (u + p - j) / p, its falling one the rest.
            if j > 0:
                raised[j, :-1] += pieces[j - 1] * (p - j) / p
                raised[j, 1:] += pieces[j - 1] / p
            if j < p:
                raised[j, :-1] += pieces[j] * (j + 1) / p
                raised[j, 1:] -= pieces[j] / p
        pieces = raised
    return pieces


@final
class BSpline(AbstractManifold):
    """A B-spline on uniform knots, `sum_k B_k(s) P_k`, `s` in [0, 1] (B.2), a partition of unity on all of [0, 1].

    `size` control points and `degree` give `size - degree` spans; `periodic=True` closes the curve with `size` spans
    and period 1. The Gram matrix is integrated exactly, span by span, so the splines that the ends cut off are right
    too. (The paper's Table 1, Eq. 38 and Eq. 39 give three other matrices, two of them indefinite.)

    **Reference:** de Boor, A Practical Guide to Splines (2001), chapters IX and X.
    """

    size_: int = eqx.field(static=True)
    degree: int = eqx.field(static=True)
    periodic: bool = eqx.field(static=True)

    def __init__(self, size: SupportsIndex, degree: SupportsIndex = 3, periodic: bool = False):
        """**Raises:** `ValueError` for a negative degree or fewer than `degree + 1` points."""
        self.degree = check_count("the degree of a spline (3 is the cubic spline)", degree, 0)
        self.size_ = check_count(
            f"the size of a spline of degree {self.degree} (add points or lower the degree)", size, self.degree + 1
        )
        self.periodic = bool(periodic)

    @property
    def size(self) -> int:
        return self.size_

    @property
    def spans(self) -> int:
        """The number of polynomial pieces."""
        return self.size if self.periodic else self.size - self.degree

    @property
    def context_shape(self) -> tuple[int, ...]:
        return ()

    def sample(self, key, shape=()):
        return jax.random.uniform(key, shape)

    def _basis(self, s):
        position = (s % 1 if self.periodic else s) * self.spans
        span = jnp.clip(jnp.floor(jax.lax.stop_gradient(position)), 0, self.spans - 1)
        u = position - span
        pieces = jnp.asarray(_spline_pieces(self.degree), s.dtype)
        values = pieces[:, -1]
        for m in range(self.degree - 1, -1, -1):
            values = values * u + pieces[:, m]
        points = (span.astype(int) + jnp.arange(self.degree + 1)) % self.size
        return jnp.zeros(self.size, s.dtype).at[points].add(values)

    def _uniform_gram(self):
        pieces = _spline_pieces(self.degree)
        powers = np.arange(self.degree + 1)
        span_gram = pieces @ (1 / (powers[:, None] + powers + 1)) @ pieces.T / self.spans
        gram = np.zeros((self.size, self.size))
        for span in range(self.spans):
            points = (span + powers) % self.size
            gram[np.ix_(points, points)] += span_gram
        return gram

    def _constant(self):
        return np.ones(self.size)

    def _outside(self, s):
        return _circle(s) if self.periodic else _segment(s)


@final
class Sphere(AbstractManifold):
    """A sphere, `sum_{l=0}^{degree} sum_{m=-l}^{l} Y_{lm}(s) P_{lm}`; a context is a unit vector of three numbers.

    `Y_{lm}` are the real spherical harmonics without the Condon–Shortley sign, normalised to a mean square of one
    over the sphere (so `Y_00 = 1`, `Y_1m = √3 (y, z, x)`) and ordered by `l`, then `m`. The uniform Gram matrix is
    the identity. `degree=1` is an ellipsoid in weight space.
    """

    degree: int = _count("the degree of a sphere (1 is an ellipsoid)")

    @property
    def size(self) -> int:
        return (self.degree + 1) ** 2

    @property
    def context_shape(self) -> tuple[int, ...]:
        return (3,)

    def sample(self, key, shape=()):
        direction = jax.random.normal(key, (*shape, 3))
        return direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)

    def _basis(self, s):
        x, y, z = s
        cosine, sine = [jnp.ones_like(x)], [jnp.zeros_like(x)]  # Re and Im of (x + iy)^m = sin^m(θ) e^{imφ}
        for _ in range(self.degree):
            cosine.append(x * cosine[-1] - y * sine[-1])
            sine.append(x * sine[-1] + y * cosine[-2])
        values = {}
        for m in range(self.degree + 1):
            # d^m P_l / dz^m by the three-term recursion in l: polynomials in z, so the poles are no special case.
            below, current = jnp.zeros_like(z), jnp.full_like(z, math.prod(range(1, 2 * m, 2)))
            for l in range(m, self.degree + 1):
                norm = math.sqrt((2 - (m == 0)) * (2 * l + 1) * math.factorial(l - m) / math.factorial(l + m))
                values[l, m] = norm * current * cosine[m]
                if m:
                    values[l, -m] = norm * current * sine[m]
                below, current = current, ((2 * l + 1) * z * current - (l + m) * below) / (l + 1 - m)
        values[0, 0] = _ones_like(x)
        return jnp.stack([values[l, m] for l in range(self.degree + 1) for m in range(-l, l + 1)])

    def _uniform_gram(self):
        return np.eye(self.size)

    def _constant(self):
        return np.eye(self.size)[0]

    def _outside(self, s):
        return np.abs(np.linalg.norm(s, axis=1) - 1) > _TOLERANCE, "a unit vector of three numbers"


@final
class Simplex(AbstractManifold):
    """A simplex, `sum_k s_k P_k`; a context is barycentric: `vertices` numbers, none negative, that sum to one.

    Two vertices are a line, three a triangle, one a single point. With the Dirichlet moments
    `E[s_i s_j] = (1 + δ_ij) / (n (n + 1))`.
    """

    vertices: int = _count("the number of vertices of a simplex (2 are a line)")

    @property
    def size(self) -> int:
        return self.vertices

    @property
    def context_shape(self) -> tuple[int, ...]:
        return (self.vertices,)

    def sample(self, key, shape=()):
        spacing = jax.random.exponential(key, (*shape, self.vertices))
        return spacing / spacing.sum(axis=-1, keepdims=True)

    def _basis(self, s):
        return s

    def _uniform_gram(self):
        n = self.vertices
        return (np.ones((n, n)) + np.eye(n)) / (n * (n + 1))

    def _constant(self):
        return np.ones(self.vertices)

    def _outside(self, s):
        bad = (s < -_TOLERANCE).any(axis=1) | (np.abs(s.sum(axis=1) - 1) > _TOLERANCE)
        return bad, f"{self.vertices} non-negative numbers that sum to 1"


@final
class Product(AbstractManifold):
    """The product of manifolds: a context for each factor, `M(s, t) = sum_{jk} a_j(s) b_k(t) P_{jk}`.

    `Product(Line(), Line())` is a sheet, `Product(Ellipse(), Ellipse())` a torus, `Product(Ellipse(), Line())` a
    cylinder. A context is the factors' contexts one after another; points are ordered with the last factor fastest.
    For independent contexts the Gram matrix is the Kronecker product of the factors' matrices.
    """

    factors: tuple[AbstractManifold, ...]

    def __init__(self, *factors: AbstractManifold):
        """**Raises:** `ValueError` unless there are at least two factors, all manifolds."""
        if len(factors) < 2 or not all(isinstance(f, AbstractManifold) for f in factors):
            raise ValueError(
                f"a product needs at least two manifolds, got {factors!r}; call Product(Line(), Ellipse())"
            )
        self.factors = factors

    @property
    def size(self) -> int:
        return math.prod(f.size for f in self.factors)

    @property
    def context_shape(self) -> tuple[int, ...]:
        return (sum(self._widths),)

    @property
    def _widths(self) -> list[int]:
        return [math.prod(f.context_shape) for f in self.factors]

    def _split(self, s, reshape: Callable):
        ends = itertools.accumulate(self._widths)
        return [
            reshape(s[..., end - width : end], f)
            for f, width, end in zip(self.factors, self._widths, ends, strict=True)
        ]

    def sample(self, key, shape=()):
        keys = jax.random.split(key, len(self.factors))
        parts = [f.sample(k, shape).reshape((*shape, -1)) for f, k in zip(self.factors, keys, strict=True)]
        return jnp.concatenate(parts, axis=-1)

    def _basis(self, s):
        a = jnp.ones((1,), s.dtype)
        for f, part in zip(self.factors, self._split(s, lambda p, f: p.reshape(f.context_shape)), strict=True):
            a = jnp.outer(a, f._basis(part)).reshape(-1)
        return a

    def _uniform_gram(self):
        gram = np.ones((1, 1))
        for f in self.factors:
            gram = np.kron(gram, f._uniform_gram())
        return gram

    def _constant(self):
        c = np.ones(1)
        for f in self.factors:
            c = np.kron(c, f._constant())
        return c

    def _outside(self, s):
        parts = self._split(s, lambda p, f: p.reshape((-1, *f.context_shape)))
        answers = [f._outside(part) for f, part in zip(self.factors, parts, strict=True)]
        return np.any([bad for bad, _ in answers], axis=0), "in turn " + ", then ".join(words for _, words in answers)

    @property
    def _movable(self):
        movable = np.ones(1, bool)
        for f in self.factors:
            movable = np.kron(movable, f._movable)
        return movable
