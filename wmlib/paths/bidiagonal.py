"""Krylov bases of a metric that are kept orthogonal among the outputs, which are few."""

import math
from functools import cache, partial
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree
from numpy.typing import ArrayLike

from .._sharding import gathered
from .krylov import NOT_FINITE, check_peak, ravel
from .metric import FunctionMetric, check_structure, refuse_complex


@final
class Bidiagonal(eqx.Module):
    r"""A basis `V` of `span(s, g s, g² s, …)` for a metric `g = AᵀA`, by Golub and Kahan's recursion.

    `A = Dφ J / √N` takes a movement of the weights to the outputs of all inputs, embedded by the output distance. With
    `v₁ = s / |s|` and `β₀ = 0`, `α_k u_k = A v_k − β_{k−1} u_{k−1}` and `β_k v_{k+1} = Aᵀ u_k − α_k v_k`, so that `A V = U B`
    and `g V = V BᵀB + α_d β_d v_{d+1} e_dᵀ` with an upper bidiagonal `B`: `BᵀB` is Lanczos' `T`. What rounding takes from the
    orthogonality of the `u` is given back at each step, against vectors of a few hundred numbers. The `v` then stay
    orthogonal by themselves, up to what grows as `ν_{k+1} = (α_k ν_k + η |A|) / β_k` with the precision `η` (Simon and Zha);
    where that bound is more than `256 η`, one vector is made orthogonal to all before it, and no other need be, since no
    `v` but the last enters the recursion.

    `rows` are the vectors `v`, as lists of arrays like those of the weights, each `lengths` too long; the one beyond the
    `dimension`, which is `Aᵀ u_d − α_d v_d`, is the last. `alpha` and `beta` have `dimension` numbers. `residual` is
    `α_d β_d`, the norm of what the next product has outside the basis, or zero if that is rounding. `size` is the norm of
    the start.

    **Reference:** Golub & Kahan (1965), Calculating the Singular Values and Pseudo-Inverse of a Matrix; Simon & Zha (2000),
    Low-Rank Matrix Approximation using the Lanczos Bidiagonalization Process.
    """

    rows: list[list[Array]]
    lengths: Float[np.ndarray, " dimension"]
    alpha: Float[np.ndarray, " dimension"]
    beta: Float[np.ndarray, " dimension"]
    residual: float
    size: float
    structure: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)

    @property
    def dimension(self) -> int:
        """How many products with the metric it took."""
        return len(self.alpha)

    @property
    def blocks(self) -> tuple[Float[Array, "1 n"], ...]:
        """The vectors as rows, each in a block of its own, which are made anew."""
        rows = zip(self.rows[:-1], self.lengths, strict=True)
        return tuple((x := ravel(row, self._dtype))[None] / jnp.asarray(length, x.dtype) for row, length in rows)

    @property
    def rest(self) -> Float[Array, " n"]:
        """What the product with the last vector has outside the basis."""
        return ravel(self.rows[-1], self._dtype) * jnp.asarray(self.alpha[-1], self._dtype)

    @property
    def _dtype(self):
        return np.dtype(jax.tree.leaves(self.structure)[0].dtype)

    def projected(self) -> Float[np.ndarray, "dimension dimension"]:
        """`T = BᵀB`."""
        b = np.diag(self.alpha) + np.diag(self.beta[:-1], 1)
        return b.T @ b

    def eigh(self) -> tuple[Float[np.ndarray, " dimension"], Float[np.ndarray, "dimension dimension"]]:
        """The eigenvalues of `T`, ascending, and its eigenvectors as columns, in float64."""
        return np.linalg.eigh(self.projected())

    def combine(self, coefficients: ArrayLike) -> PyTree[Array]:
        """The movement `Σ_k c_k v_k`, as a tree like the weights."""
        found = _combine(self.rows[:-1], np.asarray(np.asarray(coefficients) / self.lengths, self._dtype))
        return jax.tree.structure(self.structure).unflatten(found)


def among_outputs(metric: lx.AbstractLinearOperator) -> bool:
    """Whether `bidiagonalise` can take a metric: its linearisation is kept, of one batch; its distance has an embedding; the
    embedded outputs are no more numbers than the weights; and those are of one type, of 32 bits at least, and whole on
    each device."""
    if not isinstance(metric, FunctionMetric) or metric.distance.embedding is None or len(metric.kept or ()) != 1:
        return False
    weights = eqx.filter(metric.weights, eqx.is_inexact_array)
    held, types = jax.tree.leaves((metric.kept, weights)), {x.dtype for x in jax.tree.leaves(weights)}
    y = (metric.kept or ((),))[0][0]
    return (
        types in ({jnp.dtype(jnp.float32)}, {jnp.dtype(jnp.float64)})
        and all(x is z for x, z in zip(held, jax.tree.leaves(gathered(held)), strict=True))
        and len(y) * _width(metric.distance.embedding, y.shape[1:], y.dtype)
        <= sum(x.size for x in jax.tree.leaves(weights))
    )


@cache
def _width(embedding, shape, dtype):
    """How many numbers an output is embedded as."""
    return jax.eval_shape(embedding, jax.ShapeDtypeStruct(shape, dtype)).size


def bidiagonalise(metric: FunctionMetric, start: PyTree[Array], dimension: int) -> Bidiagonal:
    """The basis of a metric that `among_outputs` takes, from a start: `dimension` products, less where they end.

    **Raises:** `ValueError` if the start does not fit, is zero or is not finite, or a product with the metric is not finite.
    """
    structure, root = metric.in_structure(), math.sqrt(metric.size)
    check_structure("the start", start, structure)
    refuse_complex("the start", start)
    shapes, treedef = jax.tree.flatten(structure)
    kept, of, dtype = (metric.kept or (None,))[0], (metric.distance.embedding, treedef), shapes[0].dtype
    v, peak, square = _begin(jax.tree.leaves(start), dtype)
    check_peak(float(peak))
    length, eps, most = math.sqrt(float(square)), float(jnp.finfo(dtype).eps), min(dimension, metric.in_size())
    rows, lengths, alpha, beta, left, grown = [v], [length], [], [], None, 0.0
    for k in range(most):
        moved = np.asarray(_push(of, kept, v), np.float64) / (length * root)
        u = moved.ravel()
        left = np.zeros((most, u.size)) if left is None else left
        for _ in range(2):
            u = u - (left[:k] @ u) @ left[:k]
        alpha.append(_finite(np.linalg.norm(u), k))
        u = left[k] = u / (alpha[-1] or 1.0)
        v, square = _pull(of, kept, u.reshape(moved.shape) / root, v, np.asarray(alpha[-1] / length))
        length = math.sqrt(_finite(square, k))
        if alpha[-1] * length <= 20 * eps * max(a**2 + b**2 for a, b in zip(alpha, [0.0, *beta], strict=True)):
            beta.append(0.0)
            break
        grown = (alpha[-1] * grown + eps * max(map(math.hypot, alpha, [*beta, length]))) / length
        if grown > 256 * eps and k + 1 < most:
            for row, long in zip(rows, lengths, strict=True):
                v, square = _without(v, row, np.asarray(long**2))
            length, grown = math.sqrt(float(square)), eps
        beta.append(length)
        rows.append(v)
        lengths.append(length)
    rows, lengths = [*rows[: len(alpha)], v], np.array(lengths[: len(alpha)])
    residual, size = alpha[-1] * beta[-1], float(peak) * float(lengths[0])
    return Bidiagonal(rows, lengths, np.array(alpha), np.array(beta), residual, size, structure)


def _finite(found, k):
    if not math.isfinite(found := float(found)):
        raise ValueError(f"product {k + 1} with the metric is not finite; {NOT_FINITE}")
    return found


@partial(jax.jit, static_argnums=1)
def _begin(start, dtype):
    """A start divided by its largest number, that, and the square of the norm of what comes: squares of small numbers
    vanish, and those of large ones overflow."""
    peak = jnp.max(jnp.stack([jnp.abs(x).max() for x in start]))
    v = [(x / peak).astype(dtype) for x in start]
    return v, peak, _inner(v, v)


def _inner(v, w):
    return sum(jnp.vdot(x, y) for x, y in zip(v, w, strict=True))


def _embed(of, kept, v):
    """`Dφ J v` for all inputs of a linearisation that is kept; `of` is the embedding, and how the arrays are a tree."""
    (embedding, treedef), (y, push) = of, kept
    # Lists, since a module is taken apart in Python at each call.
    return jax.vmap(lambda at, along: jax.jvp(embedding, (at,), (along,))[1])(y, push(treedef.unflatten(v)))


_push = jax.jit(_embed, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _pull(of, kept, u, v, alpha):
    """`(Dφ J)ᵀ u − α v`, and the square of its norm."""
    push = partial(_embed, of, kept)
    pulled = jax.linear_transpose(push, v)(u.astype(jax.eval_shape(push, v).dtype))[0]
    new = [x - alpha.astype(x.dtype) * y for x, y in zip(pulled, v, strict=True)]
    return new, _inner(new, new)


@partial(jax.jit, donate_argnums=0)
def _without(v, row, square):
    """What one vector does not span of another, and the square of its norm."""
    along = _inner(row, v) / square.astype(v[0].dtype)
    new = [x - along * y for x, y in zip(v, row, strict=True)]
    return new, _inner(new, new)


@jax.jit
def _combine(rows, coefficients):
    return [sum(c * y for c, y in zip(coefficients, x, strict=True)) for x in zip(*rows, strict=True)]
