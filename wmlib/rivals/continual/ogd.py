"""Orthogonal gradient descent: steps that leave the outputs of the memory where they are, to first order."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Shaped

from ..._counts import check_count
from ..._sharding import gathered
from ...paths.checks import check_labels, check_logits, check_memories, check_setting, output_of, places, power, wide
from ...paths.metric import movable
from ...paths.precision import check_floating


def ogd_basis(
    f: Callable[..., Any],
    weights: PyTree,
    inputs: PyTree,
    labels: Shaped[Array | np.ndarray, "..."],
    *,
    batch: SupportsIndex = 50,
    rtol: float | int | np.number = 1e-5,
) -> Float[Array, "rank n"]:
    """Orthonormal rows that span the gradients of the memories' outputs, one a memory: the logit of its own label.

    They are taken once, where the earlier task ended (the authors' OGD-GTL). Directions whose singular value is below
    `rtol` of the largest are left out: there are none to first order.

    **Arguments:** `f`, called as `f(weights, x)` for one input, returns logits; `weights`, any pytree; `inputs`, a tree
    of arrays that share their first axis; `labels`, one for each; `batch`, how many are differentiated together;
    `rtol`, in [0, 1).

    **Raises:** `ValueError` for no memories, labels that are not one each or beyond the outputs, weights that hold no
    floating-point array, one twice or a layer with a state, a batch that is not positive, an `rtol` out of range, an `f` that expects a batch, or if no output depends on the weights; `TypeError` for
    complex weights, labels that are not integers, or outputs that are not logits; `FloatingPointError` for gradients that
    are not finite.

    **Reference:** Farajtabar et al. (2020), Orthogonal Gradient Descent for Continual Learning.
    """
    weights = gathered(movable(weights))
    check_memories(inputs, labels)
    batch = check_count("batch", batch)
    rtol = float(check_setting("rtol", rtol, below=1))
    inputs = gathered(jax.tree.map(jnp.asarray, inputs))
    one = eqx.filter_eval_shape(output_of, f, weights, jax.tree.map(itemgetter(0), inputs))
    check_logits(one)
    check_labels(labels, len(one))
    labels = places(labels)
    parts = [
        _gradients(f, weights, *jax.tree.map(itemgetter(slice(start, start + batch)), (inputs, labels)))
        for start in range(0, len(labels), batch)
    ]
    rows = wide(jnp.concatenate(parts))
    rows = rows / power(rows)
    if not bool(jnp.isfinite(rows).all()):
        raise FloatingPointError("the gradient of an output is not finite; look for a diverged network")
    # The rows are few and long. Their Gram matrix squares the condition number, so what it leaves is done once more.
    for _ in range(2):
        values, rotation = np.linalg.eigh(np.asarray(rows @ rows.T, np.float64))
        if not values[-1] > 0:
            raise ValueError("no output of the memories depends on the weights; look for units that are all off")
        rotation, values = rotation[:, values > rtol**2 * values[-1]], values[values > rtol**2 * values[-1]]
        rows = jnp.asarray((rotation / np.sqrt(values)).T, rows.dtype) @ rows
    return rows


@eqx.filter_jit
def _gradients(f, weights, inputs, labels):
    dynamic, static = eqx.partition(weights, eqx.is_inexact_array)
    logit = jax.grad(lambda w, x, label: f(eqx.combine(w, static), x)[label])
    return jax.vmap(lambda x, label: ravel_pytree(logit(dynamic, x, label))[0])(inputs, labels)


def ogd_projection(gradient: PyTree, basis: Shaped[Array | np.ndarray, "rank n"]) -> PyTree[Array]:
    """The part of a gradient that is orthogonal to a basis, `g − Qᵀ Q g`.

    **Arguments:** `gradient`, a tree of `n` numbers; `basis`, from `ogd_basis`.

    **Raises:** `ValueError` for a gradient of another size than the basis; `TypeError` for either of other than real
    floating-point numbers.
    """
    check_floating("the gradient", gradient)
    check_floating("the basis", basis)
    g, back = ravel_pytree(gathered(gradient))
    if basis.ndim != 2 or basis.shape[1] != g.size:
        raise ValueError(
            f"the basis is for {basis.shape[-1]} weights and the gradient has {g.size}; give ogd_basis the same weights"
        )
    long = wide(g)
    basis = basis.astype(long.dtype)
    return back((long - (basis @ long) @ basis).astype(g.dtype))
