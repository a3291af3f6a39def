"""Staying near the weights of the earlier task."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...paths.checks import movement


def l2_penalty(weights: PyTree, start: PyTree) -> Float[Array, ""]:
    """`½ |w − w₀|²`: the function-blind anchor, under which every direction in weight space counts alike.

    **Arguments:** `weights` and `start`, the weights that the earlier task ended with; two trees of one structure.

    **Returns:** the penalty, to be scaled and added to the loss.

    **Raises:** `ValueError` for two trees that differ in structure or shapes, or hold one array twice; `TypeError` for
    complex weights.
    """
    moved = jax.tree.leaves(movement(weights, start))
    return jnp.asarray(sum(jnp.vdot(d, d) for d in moved) / 2)
