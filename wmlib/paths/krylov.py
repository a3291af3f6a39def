"""Krylov bases of a metric, and what they tell of its spectrum."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, SupportsIndex, final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpy.typing import ArrayLike

from .._counts import NoCountError, check_count
from .._sharding import divided, gathered
from .metric import FunctionMetric, check_positive, check_structure, output_of_one, refuse_complex


@final
class Krylov(eqx.Module):
    r"""An orthonormal basis `Q` of `span(s, g s, g² s, …)` in which a metric is tridiagonal: `g Qᵀ ≈ Qᵀ T`.

    The rows of `basis`, of shape `(dimension, n)`, are movements of the weights in the order of `ravel_pytree`, in float32
    at least; the first is the start, normalised, and `size` is its norm. They are held in `blocks` of a few rows, of which
    the last may hold rows that are not used. `T` has `diagonal` and `off_diagonal`, of `dimension` and `dimension - 1`
    numbers. `residual` is the norm of what the next product has outside the basis: zero if the basis holds all that the
    metric makes of the start.
    """

    blocks: tuple[Float[Array, "_ n"], ...]
    diagonal: Float[np.ndarray, " dimension"]
    off_diagonal: Float[np.ndarray, " dimension-1"]
    residual: float
    size: float
    structure: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)

    @property
    def basis(self) -> Float[Array, "dimension n"]:
        """The vectors as rows of one array, which is made anew, beside the blocks."""
        return jnp.concatenate(self.blocks)[: self.dimension]

    @property
    def dimension(self) -> int:
        """How many products with the metric it took."""
        return len(self.diagonal)

    def eigh(self) -> tuple[Float[np.ndarray, " dimension"], Float[np.ndarray, "dimension dimension"]]:
        """The eigenvalues of `T`, ascending, and its eigenvectors as columns, in float64."""
        return _eigh(self.diagonal, self.off_diagonal)

    def projected(self) -> Float[np.ndarray, "dimension dimension"]:
        """`T`."""
        return _tridiagonal(self.diagonal, self.off_diagonal)

    def combine(self, coefficients: ArrayLike) -> PyTree[Array]:
        """The movement `Σ_k c_k q_k`, as a tree like the weights.

        **Raises:** `ValueError` unless there is one real coefficient for each vector.
        """
        if np.shape(coefficients) != (self.dimension,) or np.iscomplexobj(coefficients):
            raise ValueError(
                f"give {self.dimension} real coefficients, one a vector, got the shape {np.shape(coefficients)}"
            )
        return unravel(combination(self.blocks, np.asarray(coefficients, float)), self.structure)


def lanczos(metric: lx.AbstractLinearOperator, start: PyTree[Array], dimension: SupportsIndex) -> Krylov:
    r"""The Krylov basis of a metric from a start, by Lanczos' recursion with full reorthogonalisation.

    One product with the metric for each vector of the basis, in a loop in Python around compiled steps. The basis grows in
    blocks of 8 rows, so that a step touches no more than the rows there are, twice as a rule, and needs a few vectors
    beside them. It stops early when the basis holds all that the metric makes of the start, to rounding.

    The basis is in float32 where the weights are of half precision, and so are all sums and what is judged by them; each
    product is rounded to the weights' own precision.

    **Arguments:**

    - `metric`: a `FunctionMetric`, or another symmetric operator of `lineax`.
    - `start`: a movement of the weights, of the structure that the metric acts on.
    - `dimension`: the most vectors to find, cut to the number of weights.

    **Returns:** a `Krylov`.

    **Raises:** `ValueError` if the start does not fit, is zero or is not finite, the dimension is not positive, or a
    product with the metric is not finite; `TypeError` for complex weights.

    **Example:**

        basis = lanczos(metric, gradient, 40)
        values, vectors = basis.eigh()

    **Reference:** Golub & Van Loan (2013), Matrix Computations, section 10.1.
    """
    return lanczos_and_rest(metric, start, dimension)[0]


def lanczos_and_rest(
    metric: lx.AbstractLinearOperator, start: PyTree[Array], dimension: SupportsIndex
) -> tuple[Krylov, Float[Array, " n"]]:
    """As `lanczos`, and what the product with the last vector has outside the basis, of the norm `residual`."""
    structure = _structure(metric)
    dimension = check_count("dimension (40 is usual)", dimension)
    check_structure("the start", start, structure)
    refuse_complex("the start", start)
    flat = ravel(start, _precision(structure))
    # Divided by the largest first: squares of small numbers vanish, and those of large ones overflow.
    peak = float(jnp.abs(flat).max())
    check_peak(peak)
    flat = flat / peak
    size = float(jnp.linalg.norm(flat))
    diagonal, off_diagonal, residual, basis, rest = _recursion(metric, flat / size, dimension)
    return Krylov(tuple(basis.blocks), diagonal, off_diagonal, residual, peak * size, structure), rest


@final
class Spectrum(eqx.Module):
    """Leading eigenpairs of a metric.

    `value` holds the eigenvalues, largest first, and `vectors` the orthonormal eigenvectors as rows, in the order of
    `ravel_pytree`, in float32 at least; `vector(i)` is one as a tree. `stats` holds `residuals`, the norms `|g v - λ v|`
    by Lanczos' own account; `rounding`, what rounding the products may add to them; `products`, how many the search took;
    and `outcome`: "converged", or "step limit" or "precision limit" with what to do.
    """

    value: Float[np.ndarray, " k"]
    vectors: Float[Array, "k n"]
    stats: dict[str, Any]
    structure: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)

    def vector(self, index: SupportsIndex) -> PyTree[Array]:
        """An eigenvector as a movement of the weights.

        **Raises:** `IndexError` unless the index is between 0 and `k - 1`; `TypeError` if it is no integer.
        """
        try:
            index = check_count("the index of an eigenvector", index, 0, len(self.vectors) - 1)
        except NoCountError:
            raise
        except ValueError as error:
            raise IndexError(f"{error}; a larger k finds more of them") from None
        return unravel(self.vectors[index], self.structure)


def spectrum(
    metric: lx.AbstractLinearOperator,
    k: SupportsIndex,
    *,
    key: PRNGKeyArray,
    dimension: SupportsIndex | None = None,
    rtol: float | int = 1e-4,
) -> Spectrum:
    r"""The `k` largest eigenvalues of a metric and their eigenvectors, by Lanczos' method from a random start.

    A basis grows by one product at a time until the residual of each of the `k` pairs is at most `rtol` times the
    largest eigenvalue, rounding included: an `rtol` that the products cannot resolve, as 1e-4 in half precision, is never
    reached. An eigenvalue is then off by no more than its residual, and much less where it stands alone.

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

    **Raises:** `ValueError` if `k` is not between 1 and the number of weights, `dimension` is less than `k`, `rtol` is not
    positive, the metric is zero, or a product with it is not finite; `TypeError` for complex weights.

    **Example:**

        found = wm.spectrum(metric, 20, key=key)
        found.value, found.stats["residuals"]
    """
    structure, n = _structure(metric), metric.in_size()
    k = check_count("k, which counts weights at most,", k, 1, n)
    check_positive("rtol", rtol, "1e-4 is usual")
    if dimension is None:
        dimension = max(4 * k, k + 40)
    dimension = check_count(f"dimension (leave it out) of {k} eigenpairs", dimension, k)

    def ritz(projected, beta, loose=()):
        """The leading pairs within the basis, and their residuals: what some rows' products have outside it."""
        values, vectors = np.linalg.eigh(projected)
        values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
        errors = beta * np.abs(vectors[-1])
        if loose:
            outside = jnp.stack([vector for _, vector in loose])
            part = vectors[[row for row, _ in loose]]
            squares = np.einsum("ik,ij,jk->k", part, np.asarray(outside @ outside.T, np.float64), part)
            errors = errors + np.sqrt(np.maximum(squares, 0))
        return values, vectors, errors

    resolved = rounding(structure)

    def small(errors, values):
        return bool((errors + resolved * values[0] <= rtol * values[0]).all())

    def done(diagonal, off_diagonal, beta):
        if len(diagonal) < k or (len(diagonal) % 4 and beta):
            return False
        values, _, errors = ritz(_tridiagonal(diagonal, off_diagonal), beta)
        return small(errors, values)

    first, *others = jax.random.split(key, 1 + k)
    diagonal, off_diagonal, beta, basis, rest = _recursion(metric, _probe(first, structure), dimension, done, others)
    if not diagonal.any() and not off_diagonal.any():
        raise ValueError(_ZERO)
    projected, loose = _tridiagonal(diagonal, off_diagonal), []
    values, rotation, errors = ritz(projected, beta)
    before, settled = np.full(k, -1.0), len(projected) == n
    # One start sees one vector of an eigenspace. Others look for what it missed, until one changes nothing.
    while not settled and (size := len(projected)) < basis.dimension:
        start, count = None, 4
        if small(errors, values) or not beta:
            before, count = values, max(4, k // 2)
            start = _probe(jax.random.fold_in(key, size), structure)
            loose = [*loose, (size - 1, rest)] if beta else loose
        projected, beta, rest = _widen(metric, basis, projected, start, count)
        loose = [(row, basis.reject(vector, size)) for row, vector in loose]
        values, rotation, errors = ritz(projected, beta, loose)
        settled = small(np.maximum(errors, np.abs(values - before)), values) or len(projected) == n
    vectors = combination(tuple(basis.blocks), rotation.T)
    outcome = "converged" if settled else "step limit: increase dimension, or rtol"
    if resolved >= rtol:
        outcome = (
            f"precision limit: the products are rounded; raise rtol above {resolved:.0e}, or convert the weights and the"
            " inputs to a wider type"
        )
    stats = {"residuals": errors, "rounding": resolved * values[0], "products": len(projected), "outcome": outcome}
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

        **Raises:** `ValueError` for points or a width that are not positive and finite.
        """
        if not 0 < width < math.inf:
            raise ValueError(f"width must be positive and finite, in decades, got {width}; 0.2 is usual")
        if np.ndim(points) > 1 or np.iscomplexobj(points):
            raise ValueError(f"points must be one axis of real numbers, got the shape {np.shape(points)}; use np.ravel")
        if not ((at := np.asarray(points, float)) > 0).all() or not np.isfinite(at).all():
            raise ValueError(
                "points are eigenvalues on a logarithmic scale and must be positive and finite; leave others out"
            )
        at, positive = np.log10(at), self.nodes > 0
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
    metric: lx.AbstractLinearOperator, *, key: PRNGKeyArray, probes: SupportsIndex = 8, dimension: SupportsIndex = 60
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
    that is not finite; `TypeError` for complex weights.

    **Example:**

        density = wm.spectral_density(metric, key=key)
        flat = density.invariant_dimension(1e-3)
        flat.value, flat.stats["standard_error"]

    **Reference:** Ubaru, Chen & Saad (2017), Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature.
    """
    dimension = check_count("dimension (60 is usual)", dimension)
    probes = check_count("probes (8 is usual)", probes)
    structure, n = _structure(metric), metric.in_size()
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
        bound = min(n, metric.size * output_of_one(metric.f, metric.weights, metric.inputs).size)
    return SpectralDensity(nodes, weights, n, bound, {"products": products})


_ZERO = (
    "the metric is zero: no movement of the weights moves an output, to first order; look for outputs that do not depend"
    " on the weights, or for units that are all off"
)


NOT_FINITE = (
    "look for outputs that are not, or that overflow in their derivative (a square root or a logarithm at zero)"
)
"""What to do where a product is not finite."""


def check_peak(peak: float) -> None:
    """Raise `ValueError` unless the largest number of a start is positive and finite."""
    if not 0 < peak < math.inf:
        raise ValueError(f"the start has the norm {peak}; give a finite movement that is not zero")


def _structure(metric):
    """What the metric acts on, if that is real."""
    structure = metric.in_structure()
    refuse_complex("the weights", structure)
    return structure


def rounding(structure: PyTree[jax.ShapeDtypeStruct]) -> float:
    """What rounding the product with a unit vector may add to it, in units of the largest eigenvalue."""
    return 2 * max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(structure))


def _precision(structure):
    """The widest type of the weights, and float32 at least: what is in half precision is summed and judged in that."""
    wide = any(x.dtype == jnp.float64 for x in jax.tree.leaves(structure))
    return np.dtype(np.float64 if wide else np.float32)


@partial(jax.jit, static_argnums=1)
def ravel(tree: PyTree[Array], dtype: np.dtype) -> Array:
    """As `ravel_pytree`, in one type."""
    # A copy, since what comes of it is overwritten: of one flat array it would be that array itself.
    return jnp.concatenate([x.reshape(-1).astype(dtype) for x in jax.tree.leaves(gathered(tree))]).copy()


@eqx.filter_jit
def unravel(flat: Array, structure: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    """The inverse of `ravel_pytree`, for trees of one structure."""
    leaves, treedef = jax.tree.flatten(structure)
    parts = jnp.split(flat, np.cumsum([x.size for x in leaves])[:-1])
    shaped = [p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, leaves, strict=True)]
    return treedef.unflatten([divided(p, x.sharding) for p, x in zip(shaped, leaves, strict=True)])


def _probe(key: PRNGKeyArray, structure: PyTree[jax.ShapeDtypeStruct]) -> Array:
    """A unit vector without a preferred direction, flat."""
    v = jax.random.normal(key, (sum(x.size for x in jax.tree.leaves(structure)),), _precision(structure))
    return v / jnp.linalg.norm(v)


_ROWS = 8
"""Of a block: enough to read memory at full speed, and few enough that zeros at the end cost little."""


class _Basis:
    """Orthonormal rows that grow, in blocks that are allocated when they are needed."""

    def __init__(self, dimension: int):
        self.blocks, self.count, self.dimension = [], 0, dimension
        self.last = jnp.zeros(())

    def append(self, vector: Array, size: float) -> Array:
        """A vector of a given norm, normalised; and returned so."""
        place = self.count % _ROWS
        if place:
            self.blocks[-1], vector = _put(self.blocks[-1], vector, size, place)
        else:
            block, vector = _begin(vector, size, min(_ROWS, self.dimension - self.count))
            self.blocks.append(block)
        self.count += 1
        self.last = vector
        return vector

    def cut(self, count: int) -> None:
        """Give up the last row, if there is one beyond `count`."""
        if self.count > count and count % _ROWS:
            self.blocks[-1], _ = _put(self.blocks[-1], jnp.zeros_like(self.last), 1.0, count % _ROWS)
        elif self.count > count:
            self.blocks.pop()
        self.count = count

    def reject(self, vector: Array, first: int = 0) -> Array:
        """What the rows do not span of a vector that those before `first` are orthogonal to, in one pass."""
        return _sweep(self.blocks[first // _ROWS :], vector)[0]

    def orthogonalise(self, vector: Array, before: Array | float) -> tuple[Array, np.ndarray, float]:
        """As `orthogonalise`, with the products of the rows that are in use."""
        vector, along, left = orthogonalise(self.blocks, vector, before)
        return vector, along[: self.count], left


def _sweep(blocks, vector):
    products, left = [], jnp.zeros((), vector.dtype)
    for block in blocks:
        vector, along, left = _reject(block, vector)
        products.append(along)
    return vector, products, left


def orthogonalise(
    blocks: Sequence[Array], vector: Array, before: Array | float
) -> tuple[Array, Float[np.ndarray, " rows"], float]:
    """What the rows of some blocks do not span of a vector of the norm `before`, its products with the rows, and the norm
    of what is left.

    A second pass is made only where the first took much of the vector away, and leading digits with it: twice is enough
    (Kahan and Parlett).
    """
    total = np.zeros(sum(len(block) for block in blocks))
    for _ in range(2):
        vector, products, left = _sweep(blocks, vector)
        total += np.concatenate(jax.device_get(products)).astype(np.float64)
        before, kept = float(left), float(left) > 0.7 * float(before)
        if kept:
            break
    return vector, total, float(before)


@partial(jax.jit, static_argnums=2)
def _begin(vector, size, rows):
    """A block of one row, and room for the others; compiled, so that it is made where it lies."""
    vector = vector / jnp.asarray(size, vector.dtype)
    return jnp.zeros((rows, len(vector)), vector.dtype).at[0].set(vector), vector


@partial(jax.jit, donate_argnums=0)
def _put(block, vector, size, place):
    vector = vector / jnp.asarray(size, vector.dtype)
    return block.at[place].set(vector), vector


# Vectors are overwritten too: of a million numbers each, it takes longer to find memory for one than to compute it.
@partial(jax.jit, donate_argnums=1)
def _reject(block, vector):
    along = block @ vector
    # Row by row, which is one pass over them: as a product it would be another.
    for i in range(len(block)):
        vector = vector - along[i] * block[i]
    return vector, along, jnp.linalg.norm(vector)


@partial(jax.jit, donate_argnums=0)
def _recur(product, present, past, beta):
    """What the three-term recurrence leaves of a product, with the new entry of `T` and the norm."""
    alpha = present @ product
    rest = product - alpha * present - jnp.asarray(beta, product.dtype) * past
    return rest, alpha, jnp.linalg.norm(rest)


@partial(jax.jit, donate_argnums=0)
def _add(total, block, coefficients):
    return total + coefficients @ block


def combination(blocks, coefficients):
    """`Σ_k c_k q_k` for coefficients of shape `(dimension,)` or, of several combinations, `(k, dimension)`."""
    rows = sum(len(block) for block in blocks)
    shape = (*coefficients.shape[:-1], blocks[0].shape[1])
    padded = np.zeros((*coefficients.shape[:-1], rows), blocks[0].dtype)
    padded[..., : coefficients.shape[-1]] = coefficients
    total, start = jnp.zeros(shape, blocks[0].dtype), 0
    for block in blocks:
        total, start = _add(total, block, padded[..., start : start + len(block)]), start + len(block)
    return total


def _widen(metric, basis, projected, vector, count):
    """The metric projected on the basis after `count` products more, from a vector made orthogonal to it.

    The others are the norm of what the last product has outside the basis, and that. Without a vector it goes on from
    where it was.
    """
    size, structure, beta, rest = len(projected), metric.in_structure(), 0.0, vector
    precision = _precision(structure)
    if vector is None:
        present = basis.last
    else:
        basis.cut(size)
        present = basis.append(*basis.orthogonalise(vector, 1.0)[::2])
    for k in range(size, min(size + count, basis.dimension)):
        product = ravel(metric.mv(unravel(present, structure)), precision)
        rest, column, beta = basis.orthogonalise(product, jnp.linalg.norm(product))
        projected = np.block([[projected, column[:-1, None]], [column]])
        if not math.isfinite(beta):
            raise ValueError(f"product {k + 1} with the metric is not finite; look for outputs that overflow")
        if beta <= 20 * float(jnp.finfo(precision).eps) * np.abs(projected).max():
            return projected, 0.0, rest
        if k + 1 < basis.dimension:
            present = basis.append(rest, beta)
    return projected, beta, rest


def _recursion(metric, start, dimension, done=None, keys=()):
    """`(diagonal, off_diagonal, residual, basis, rest)` of Lanczos' recursion from a unit vector.

    It stops at the dimension, where `done(diagonal, off_diagonal, residual)` says so, or where the basis is exhausted;
    with `keys`, it goes on from there with a random vector as long as there are keys. The basis may hold one row beyond
    the diagonal's length, the next. `rest` is what the last product has outside the basis.
    """
    structure, keys = metric.in_structure(), list(keys)
    basis = _Basis(min(dimension, len(start)))
    present, past, beta = basis.append(start, 1.0), start, 0.0
    diagonal, off_diagonal, least = [], [], 20 * float(jnp.finfo(start.dtype).eps)
    for k in range(basis.dimension):
        product = ravel(metric.mv(unravel(present, structure)), start.dtype)
        rest, alpha, before = _recur(product, present, past, beta)
        rest, along, beta = basis.orthogonalise(rest, before)
        diagonal.append(float(alpha) + along[k])
        if not math.isfinite(diagonal[-1] + beta):
            raise ValueError(f"product {k + 1} with the metric is not finite; {NOT_FINITE}")
        if beta <= least * max(map(abs, diagonal + off_diagonal)):
            beta = 0.0
        past = present
        if beta and k + 1 < basis.dimension:
            present = basis.append(rest, beta)
        if k + 1 == basis.dimension or (done is not None and done(np.array(diagonal), np.array(off_diagonal), beta)):
            break
        if not beta:
            if not keys:
                break
            vector, _, size = basis.orthogonalise(_probe(keys.pop(), structure), 1.0)
            present = basis.append(vector, size)
        off_diagonal.append(beta)
    return np.array(diagonal), np.array(off_diagonal), beta, basis, rest


def _tridiagonal(diagonal, off_diagonal):
    return np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)


def _eigh(diagonal, off_diagonal):
    """Eigenvalues, ascending, and eigenvectors of a tridiagonal matrix."""
    return np.linalg.eigh(_tridiagonal(diagonal, off_diagonal))
