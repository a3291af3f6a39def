"""Staying near the weights of the earlier task."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def l2_penalty(weights: PyTree, start: PyTree) -> Float[Array, ""]:
    """`½ |w − w₀|²`: the function-blind anchor, under which every direction in weight space counts alike.

    **Arguments:** `weights` and `start`, the weights that the earlier task ended with; two trees of one structure.

    **Returns:** the penalty, to be scaled and added to the loss.
    """
    moved = jax.tree.map(jnp.subtract, *(eqx.filter(w, eqx.is_inexact_array) for w in (weights, start)))
    return jnp.asarray(sum(jnp.vdot(d, d) for d in jax.tree.leaves(moved)) / 2)
