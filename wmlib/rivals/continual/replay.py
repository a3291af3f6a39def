"""Experience replay: the loss on remembered examples of the earlier task, beside that of the new one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped


def replay_loss(
    f: Callable[..., Any],
    weights: PyTree,
    inputs: PyTree[Shaped[Array, "memories ..."]],
    labels: Int[Array, " memories"],
) -> Float[Array, ""]:
    """The mean cross-entropy of remembered inputs and their labels.

    **Arguments:** `f`, called as `f(weights, x)` for one input, returns logits; `weights`, any pytree; `inputs`, a tree of
    arrays that share their first axis; `labels`, one for each.

    **Reference:** Chaudhry et al. (2019), On Tiny Episodic Memories in Continual Learning.
    """
    logits = jax.vmap(f, (None, 0))(weights, inputs)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))
