"""Elastic weight consolidation: an anchor that is stiff where the earlier task's outputs depend on a weight."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped


def fisher_diagonal(
    f: Callable[..., Any], weights: PyTree, inputs: PyTree[Shaped[Array, "inputs ..."]], *, batch: int = 10
) -> PyTree[Array]:
    r"""The diagonal of the Fisher matrix of a classifier, `F_i = (1/N) Σ_x Σ_c p_c(x) (∂ ln p_c(x) / ∂w_i)²`.

    The classes are summed over, not drawn, and no labels are needed. It is the diagonal of the `FunctionMetric` of
    `distances.kl` on the same inputs. The price is one backward pass for each input and class.

    **Arguments:**

    - `f`: called as `f(weights, x)` for one input; returns logits. For a network, `operator.call`.
    - `weights`: any pytree.
    - `inputs`: a tree of arrays that share their first axis, of length `N`.
    - `batch`: how many inputs are differentiated together; each needs as much memory as one set of weights a class.

    **Returns:** a tree like the weights' floating-point arrays.

    **Raises:** `ValueError` for no inputs.

    **Reference:** Kirkpatrick et al. (2017), Overcoming catastrophic forgetting in neural networks.
    """
    count = len(jax.tree.leaves(inputs)[0])
    if count < 1:
        raise ValueError("the Fisher matrix needs at least one input of the earlier task")
    total = None
    for start in range(0, count, batch):
        part = _squares(f, weights, jax.tree.map(itemgetter(slice(start, start + batch)), inputs))
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return jax.tree.map(lambda x: x / count, total)


@eqx.filter_jit
def _squares(f, weights, inputs):
    dynamic, static = eqx.partition(weights, eqx.is_inexact_array)

    def of_one(x):
        logp, pull = jax.vjp(lambda w: jax.nn.log_softmax(f(eqx.combine(w, static), x)), dynamic)
        (rows,) = jax.vmap(pull)(jnp.eye(len(logp), dtype=logp.dtype))
        return jax.tree.map(lambda row: jnp.tensordot(jnp.exp(logp), row**2, 1), rows)

    return jax.tree.map(lambda x: x.sum(axis=0), jax.vmap(of_one)(inputs))


def ewc_penalty(weights: PyTree, start: PyTree, fisher: PyTree[Array]) -> Float[Array, ""]:
    """`½ Σ_i F_i (w_i − w₀_i)²`, to be scaled (the authors' λ) and added to the loss.

    To second order it is the mean Kullback–Leibler divergence of the outputs, if the Fisher matrix were diagonal.

    **Arguments:** `weights` and `start`, two trees of one structure; `fisher`, from `fisher_diagonal`.

    **Reference:** Kirkpatrick et al. (2017), Eq. 3.
    """
    moved = jax.tree.map(jnp.subtract, *(eqx.filter(w, eqx.is_inexact_array) for w in (weights, start)))
    terms = jax.tree.map(lambda d, stiffness: jnp.vdot(stiffness * d, d), moved, fisher)
    return jnp.asarray(sum(jax.tree.leaves(terms)) / 2)
