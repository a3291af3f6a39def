"""Orthogonal gradient descent: steps that leave the outputs of the memory where they are, to first order."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree, Shaped


def ogd_basis(
    f: Callable[..., Any],
    weights: PyTree,
    inputs: PyTree[Shaped[Array, "memories ..."]],
    labels: Int[Array, " memories"],
    *,
    batch: int = 50,
    rtol: float = 1e-5,
) -> Float[Array, "rank n"]:
    """Orthonormal rows that span the gradients of the memories' outputs, one a memory: the logit of its own label.

    They are taken once, where the earlier task ended (the authors' OGD-GTL). Directions whose singular value is below
    `rtol` of the largest are left out: there are none to first order.

    **Arguments:** `f`, called as `f(weights, x)` for one input, returns logits; `weights`, any pytree; `inputs`, a tree
    of arrays that share their first axis; `labels`, one for each; `batch`, how many are differentiated together.

    **Raises:** `ValueError` for no memories, or if no output depends on the weights.

    **Reference:** Farajtabar et al. (2020), Orthogonal Gradient Descent for Continual Learning.
    """
    if len(labels) < 1:
        raise ValueError("a basis needs at least one input of the earlier task")
    parts = [
        _gradients(f, weights, *jax.tree.map(itemgetter(slice(start, start + batch)), (inputs, labels)))
        for start in range(0, len(labels), batch)
    ]
    rows = jnp.concatenate(parts)
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


def ogd_projection(gradient: PyTree[Array], basis: Float[Array, "rank n"]) -> PyTree[Array]:
    """The part of a gradient that is orthogonal to a basis, `g − Qᵀ Q g`.

    **Arguments:** `gradient`, a tree of `n` numbers; `basis`, from `ogd_basis`.
    """
    g, back = ravel_pytree(gradient)
    return back(g - (basis @ g) @ basis)
