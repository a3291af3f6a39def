"""Krylov bases of a metric, and what they tell of its spectrum."""

import math
from functools import partial
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpy.typing import ArrayLike

from .metric import FunctionMetric, check_structure


@final
class Krylov(eqx.Module):
    r"""An orthonormal basis `Q` of `span(s, g s, g² s, …)` in which a metric is tridiagonal: `g Qᵀ ≈ Qᵀ T`.

    The rows of `basis`, of shape `(dimension, n)`, are movements of the weights in the order of `ravel_pytree`; the first
    is the start, normalised, and `size` is its norm. `T` has `diagonal` and `off_diagonal`, of `dimension` and
    `dimension - 1` numbers. `residual` is the norm of what the next product has outside the basis: zero if the basis
    holds all that the metric makes of the start.
    """

    basis: Float[Array, "dimension n"]
    diagonal: Float[np.ndarray, " dimension"]
    off_diagonal: Float[np.ndarray, " dimension-1"]
    residual: float
    size: float
    structure: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)

    @property
    def dimension(self) -> int:
        """How many products with the metric it took."""
        return len(self.diagonal)

    def eigh(self) -> tuple[Float[np.ndarray, " dimension"], Float[np.ndarray, "dimension dimension"]]:
        """The eigenvalues of `T`, ascending, and its eigenvectors as columns, in float64."""
        return _eigh(self.diagonal, self.off_diagonal)

    def combine(self, coefficients: ArrayLike) -> PyTree[Array]:
        """The movement `Σ_k c_k q_k`, as a tree like the weights."""
        return _unravel(jnp.asarray(coefficients, self.basis.dtype) @ self.basis, self.structure)


def lanczos(metric: lx.AbstractLinearOperator, start: PyTree[Array], dimension: int) -> Krylov:
    r"""The Krylov basis of a metric from a start, by Lanczos' recursion with full reorthogonalisation.

    One product with the metric for each vector of the basis, in a loop in Python around compiled steps; each step
    overwrites the basis where it lies, so that no array is larger than the basis and a step needs a few vectors beside
    it. It stops early when the basis holds all that the metric makes of the start, to rounding.

    **Arguments:**

    - `metric`: a `FunctionMetric`, or another symmetric operator of `lineax`.
    - `start`: a movement of the weights, of the structure that the metric acts on.
    - `dimension`: the most vectors to find, cut to the number of weights.

    **Returns:** a `Krylov`.

    **Raises:** `ValueError` if the start does not fit, is zero or is not finite, the dimension is not positive, or a
    product with the metric is not finite.

    **Example:**

        basis = lanczos(metric, gradient, 40)
        values, vectors = basis.eigh()

    **Reference:** Golub & Van Loan (2013), Matrix Computations, section 10.1.
    """
    structure = metric.in_structure()
    check_structure("the start", start, structure)
    flat = ravel_pytree(start)[0]
    size = float(jnp.linalg.norm(flat))
    if not 0 < size < math.inf:
        raise ValueError(f"the start has the norm {size}; give a finite movement that is not zero")
    diagonal, off_diagonal, residual, basis = _recursion(metric, flat / size, dimension)
    if len(diagonal) < len(basis):
        basis = basis[: len(diagonal)]
    return Krylov(basis, diagonal, off_diagonal, residual, size, structure)


@final
class Spectrum(eqx.Module):
    """Leading eigenpairs of a metric.

    `value` holds the eigenvalues, largest first, and `vectors` the orthonormal eigenvectors as rows, in the order of
    `ravel_pytree`; `vector(i)` is one as a tree. `stats` holds `residuals`, the norms `|g v - λ v|` by Lanczos' own
    account (exact up to rounding); `products`, how many the search took; and `outcome`: "converged", or "step limit"
    with what to do.
    """

    value: Float[np.ndarray, " k"]
    vectors: Float[Array, "k n"]
    stats: dict[str, Any]
    structure: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)

    def vector(self, index: int) -> PyTree[Array]:
        """An eigenvector as a movement of the weights."""
        return _unravel(self.vectors[index], self.structure)


def spectrum(
    metric: lx.AbstractLinearOperator,
    k: int,
    *,
    key: PRNGKeyArray,
    dimension: int | None = None,
    rtol: float | int = 1e-4,
) -> Spectrum:
    r"""The `k` largest eigenvalues of a metric and their eigenvectors, by Lanczos' method from a random start.

    A basis grows by one product at a time until the residual of each of the `k` pairs is at most `rtol` times the
    largest eigenvalue. An eigenvalue is then off by no more than its residual, and much less where it stands alone.

    One start finds one eigenvector for each eigenvalue, also where an eigenvalue occurs several times, as it does where
    outputs share a layer. So random vectors outside the basis widen it, each with `k / 2` products, until one changes none
    of the `k` eigenvalues. That is strong evidence that none was missed, and no proof.

    **Arguments:**

    - `metric`: a `FunctionMetric`, or another positive semi-definite operator of `lineax`.
    - `k`: how many pairs.
    - `key`: for the start.
    - `dimension`: the most products, and vectors alive; default `4 k`, but at least `k + 40`.
    - `rtol`: see above.

    **Returns:** a `Spectrum`.

    **Raises:** `ValueError` if `k` is not between 1 and the number of weights, `dimension` is less than `k`, the metric
    is zero, or a product with it is not finite.

    **Example:**

        found = wm.spectrum(metric, 20, key=key)
        found.value, found.stats["residuals"]
    """
    structure = metric.in_structure()
    n = metric.in_size()
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the number of weights, {n}, got {k}")
    if dimension is None:
        dimension = max(4 * k, k + 40)
    if dimension < k:
        raise ValueError(f"{k} eigenpairs need a dimension of at least {k}, got {dimension}; leave it out")

    def ritz(projected, beta, loose=()):
        """The leading pairs within the basis, and their residuals: what some rows' products have outside it."""
        values, vectors = np.linalg.eigh(projected)
        values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
        errors = beta * np.abs(vectors[-1])
        if loose:
            outside = jnp.stack([_outside(basis, vector, len(projected)) for _, vector in loose])
            part = vectors[[row for row, _ in loose]]
            squares = np.einsum("ik,ij,jk->k", part, np.asarray(outside @ outside.T, np.float64), part)
            errors = errors + np.sqrt(np.maximum(squares, 0))
        return values, vectors, errors

    def done(diagonal, off_diagonal, beta):
        if len(diagonal) < k or (len(diagonal) % 4 and beta):
            return False
        values, _, errors = ritz(_tridiagonal(diagonal, off_diagonal), beta)
        return bool((errors <= rtol * values[0]).all())

    first, *others = jax.random.split(key, 1 + k)
    diagonal, off_diagonal, beta, basis = _recursion(metric, _probe(first, structure), dimension, done, others)
    if not diagonal.any() and not off_diagonal.any():
        raise ValueError(_ZERO)
    projected, loose = _tridiagonal(diagonal, off_diagonal), []
    values, rotation, errors = ritz(projected, beta)
    before, settled = np.full(k, -1.0), len(projected) == n
    # One start sees one vector of an eigenspace. Others look for what it missed, until one changes nothing.
    while not settled and (size := len(projected)) < len(basis):
        start, count = None, 4
        if (errors <= rtol * values[0]).all() or not beta:
            before, count = values, max(4, k // 2)
            start = _probe(jax.random.fold_in(key, size), structure)
            loose = [*loose, (size - 1, beta * basis[size])] if beta else loose
        basis, projected, beta = _widen(metric, basis, projected, start, count)
        values, rotation, errors = ritz(projected, beta, loose)
        settled = bool((np.maximum(errors, np.abs(values - before)) <= rtol * values[0]).all()) or len(projected) == n
    vectors = jnp.asarray(np.pad(rotation.T, ((0, 0), (0, len(basis) - len(rotation)))), basis.dtype) @ basis
    outcome = "converged" if settled else "step limit: increase dimension, or rtol"
    stats = {"residuals": errors, "products": len(projected), "outcome": outcome}
    return Spectrum(values, vectors, stats, structure)


@final
class SpectralDensity(eqx.Module):
    r"""The density of a metric's eigenvalues, as nodes and weights for each random probe.

    For any function, `Σ_k weights[p, k] φ(nodes[p, k])` estimates the mean of `φ` over all `n` eigenvalues. Both have the
    shape `(probes, dimension)`; a probe that needed fewer nodes is filled with zero weights. `bound` is the rank that the
    metric cannot exceed. `stats` holds `products`, how many it took.
    """

    nodes: Float[np.ndarray, "probes dimension"]
    weights: Float[np.ndarray, "probes dimension"]
    size: int
    bound: int
    stats: dict[str, Any]

    def smoothed(self, points: ArrayLike, width: float | int = 0.2) -> Float[np.ndarray, "probes points"]:
        """The density of `log₁₀ λ` at `points` (eigenvalues, positive), smoothed by a Gaussian; its integral is the share
        of eigenvalues that are positive.

        **Arguments:** `width`, the standard deviation of the Gaussian in decades.
        """
        if not width > 0:
            raise ValueError(f"width must be positive, in decades, got {width}; 0.2 is usual")
        at, positive = np.log10(np.asarray(points, float)), self.nodes > 0
        nodes = np.log10(np.where(positive, self.nodes, 1.0))
        kernel = np.exp(-(((at - nodes[..., None]) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
        return np.einsum("pk,pkx->px", np.where(positive, self.weights, 0.0), kernel)

    def invariant_dimension(self, threshold: float | int) -> "InvariantDimension":
        """How many of the eigenvalues lie below a threshold.

        **Raises:** `ValueError` if the threshold is not positive: the number that are exactly zero cannot be told from
        those that are small; the metric's rank is at most `bound`.
        """
        if not threshold > 0:
            raise ValueError(f"the threshold must be positive, got {threshold}; the rank is at most {self.bound}")
        # What is above is counted, being the smaller part by far: it differs less from probe to probe.
        above = self.size * np.where(self.nodes >= threshold, self.weights, 0.0).sum(axis=1)
        error = float(above.std(ddof=1) / math.sqrt(len(above))) if len(above) > 1 else math.nan
        value = float(np.clip(self.size - above.mean(), self.size - self.bound, self.size))
        return InvariantDimension(value, {"standard_error": error, "probes": self.size - above})


@final
class InvariantDimension(eqx.Module):
    """The dimension of the functionally invariant subspace (`value`), and in `stats` its `standard_error` over the
    probes and what each of the `probes` says."""

    value: float
    stats: dict[str, Any]


def spectral_density(
    metric: lx.AbstractLinearOperator, *, key: PRNGKeyArray, probes: int = 8, dimension: int = 60
) -> SpectralDensity:
    r"""The density of all eigenvalues of a metric, by stochastic Lanczos quadrature.

    A random unit vector `v` sees an eigenvalue `λ_i` with the weight `⟨v, u_i⟩²`, which is `1/n` in the mean. The Krylov
    basis of `v` turns that measure into a Gauss quadrature of `dimension` nodes, exact for polynomials of degree
    `2 dimension - 1`. The spread over the probes does not know of the error of the quadrature, which is largest where
    eigenvalues lie dense.

    **Arguments:**

    - `metric`: a `FunctionMetric`, or another positive semi-definite operator of `lineax`.
    - `key`: for the probes.
    - `probes`: how many random starts.
    - `dimension`: products for each, cut to the number of weights.

    **Returns:** a `SpectralDensity`.

    **Raises:** `ValueError` for no probes, a dimension that is not positive, a metric that is zero, or a product with it
    that is not finite.

    **Example:**

        density = wm.spectral_density(metric, key=key)
        flat = density.invariant_dimension(1e-3)
        flat.value, flat.stats["standard_error"]

    **Reference:** Ubaru, Chen & Saad (2017), Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature.
    """
    if dimension < 1:
        raise ValueError(f"the dimension must be at least 1, got {dimension}; 60 is usual")
    if probes < 1:
        raise ValueError(f"there must be at least one probe, got {probes}; 8 is usual")
    structure, n = metric.in_structure(), metric.in_size()
    nodes, weights = np.zeros((2, probes, min(dimension, n)))
    products = 0
    for i, of_probe in enumerate(jax.random.split(key, probes)):
        diagonal, off_diagonal, *_ = _recursion(metric, _probe(of_probe, structure), dimension)
        if not diagonal.any() and not off_diagonal.any():
            raise ValueError(_ZERO)
        values, vectors = _eigh(diagonal, off_diagonal)
        nodes[i, : len(values)], weights[i, : len(values)] = values, vectors[0] ** 2
        products += len(values)
    bound = n
    if isinstance(metric, FunctionMetric):
        output = eqx.filter_eval_shape(metric.f, metric.weights, jax.tree.map(lambda x: x[0], metric.inputs))
        bound = min(n, metric.size * output.size)
    return SpectralDensity(nodes, weights, n, bound, {"products": products})


_ZERO = (
    "the metric is zero: no movement of the weights moves an output, to first order; look for outputs that do not depend"
    " on the weights, or for units that are all off"
)


def _probe(key: PRNGKeyArray, structure: PyTree[jax.ShapeDtypeStruct]) -> Array:
    """A unit vector without a preferred direction, flat."""
    leaves = jax.tree.leaves(structure)
    v = jax.random.normal(key, (sum(x.size for x in leaves),), jnp.result_type(*leaves))
    return v / jnp.linalg.norm(v)


@eqx.filter_jit
def _unravel(flat: Array, structure: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    """The inverse of `ravel_pytree`, for trees of one structure."""
    leaves, treedef = jax.tree.flatten(structure)
    parts = jnp.split(flat, np.cumsum([x.size for x in leaves])[:-1])
    return treedef.unflatten([p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, leaves, strict=True)])


@partial(jax.jit, static_argnums=1)
def _begin(start, dimension):
    """A basis of one row, and room for the others; compiled, so that it is made where it lies."""
    return jnp.zeros((dimension, len(start)), start.dtype).at[0].set(start)


@partial(jax.jit, donate_argnums=0)
def _extend(basis, product, k):
    """Row `k + 1` of the basis from the product with row `k`, with the new entries of `T`."""
    w = ravel_pytree(product)[0].astype(basis.dtype)
    # Twice is enough (Kahan and Parlett): after the first pass, rounding leaves parts along the basis; after the second, none.
    c = basis @ w
    w = w - c @ basis
    d = basis @ w
    w = w - d @ basis
    beta = jnp.linalg.norm(w)
    basis = basis.at[k + 1].set(w / jnp.where(beta > 0, beta, 1), mode="drop")
    return basis, c[k] + d[k], beta


@partial(jax.jit, donate_argnums=0)
def _restart(basis, vector, k):
    """Row `k + 1` of the basis from a vector of its own."""
    basis = basis.at[k + 1].set(0)
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return basis.at[k + 1].set(vector / jnp.linalg.norm(vector))


@partial(jax.jit, donate_argnums=0)
def _augment(basis, product, k):
    """As `_extend`, with the inner products of the product with every row."""
    column = basis @ ravel_pytree(product)[0].astype(basis.dtype)
    basis, alpha, beta = _extend(basis, product, k)
    return basis, column.at[k].set(alpha), beta


@jax.jit
def _outside(basis, vector, size):
    """The part of a vector that the first rows of the basis do not span."""
    return vector - jnp.where(jnp.arange(len(basis)) < size, basis @ vector, 0) @ basis


def _widen(metric, basis, projected, vector, count):
    """The basis and the metric projected on it after `count` products more, from a vector made orthogonal to it.

    The last of the three is the norm of what the last product has outside the basis. Without a vector it goes on from there.
    """
    size, structure, beta = len(projected), metric.in_structure(), 0.0
    if vector is not None:
        basis = _restart(basis, vector.astype(basis.dtype), size - 1)
    for k in range(size, min(size + count, len(basis))):
        basis, column, beta = _augment(basis, metric.mv(_unravel(basis[k], structure)), k)
        column, beta = np.asarray(column, np.float64)[: k + 1], float(beta)
        projected = np.block([[projected, column[:-1, None]], [column]])
        if not math.isfinite(beta):
            raise ValueError(f"product {k + 1} with the metric is not finite; look for outputs that overflow")
        if beta <= 20 * float(jnp.finfo(basis.dtype).eps) * np.abs(projected).max():
            return basis, projected, 0.0
    return basis, projected, beta


def _recursion(metric, start, dimension, done=None, keys=()):
    """`(diagonal, off_diagonal, residual, basis)` of Lanczos' recursion.

    It stops at the dimension, where `done(diagonal, off_diagonal, residual)` says so, or where the basis is exhausted;
    with `keys`, it goes on from there with a random vector as long as there are keys. The rows of the basis beyond the
    diagonal's length are not used.
    """
    if dimension < 1:
        raise ValueError(f"the dimension must be at least 1, got {dimension}")
    structure, keys = metric.in_structure(), list(keys)
    dimension = min(dimension, len(start))
    basis = _begin(start, dimension)
    diagonal, off_diagonal, rounding = [], [], 20 * float(jnp.finfo(start.dtype).eps)
    for k in range(dimension):
        product = metric.mv(_unravel(basis[k], structure))
        basis, alpha, beta = _extend(basis, product, k)
        diagonal.append(float(alpha))
        beta = float(beta)
        if not math.isfinite(diagonal[-1] + beta):
            raise ValueError(
                f"product {k + 1} with the metric is not finite; look for outputs that are not, or that overflow in their"
                " derivative (a square root or a logarithm at zero)"
            )
        if beta <= rounding * max(map(abs, diagonal + off_diagonal)):
            beta = 0.0
        if k + 1 == dimension or (done is not None and done(np.array(diagonal), np.array(off_diagonal), beta)):
            break
        if not beta:
            if not keys:
                break
            basis = _restart(basis, _probe(keys.pop(), structure).astype(basis.dtype), k)
        off_diagonal.append(beta)
    return np.array(diagonal), np.array(off_diagonal), beta, basis


def _tridiagonal(diagonal, off_diagonal):
    return np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)


def _eigh(diagonal, off_diagonal):
    """Eigenvalues, ascending, and eigenvectors of a tridiagonal matrix."""
    return np.linalg.eigh(np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1))
