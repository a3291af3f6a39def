"""Experience replay: the loss on remembered examples of the earlier task, beside that of the new one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from ...paths.checks import check_labels, check_memories, logits_of, places


def replay_loss(
    f: Callable[..., Any],
    weights: PyTree,
    inputs: PyTree,
    labels: Shaped[Array | np.ndarray, "..."],
) -> Float[Array, ""]:
    """The mean cross-entropy of remembered inputs and their labels, in float32 at least.

    **Arguments:** `f`, called as `f(weights, x)` for one input, returns logits; `weights`, any pytree; `inputs`, a tree of
    arrays that share their first axis; `labels`, integers of any type, of shape `(memories,)`.

    **Raises:** `ValueError` for no memories, for labels that are not one each or beyond the outputs (inside a compiled
    function, where they are not known, the loss is NaN), or an `f` that expects a batch; `TypeError` for labels that are
    not integers or outputs that are not logits.

    **Reference:** Chaudhry et al. (2019), On Tiny Episodic Memories in Continual Learning.
    """
    check_memories(inputs, labels)
    logits = logits_of(f, weights, inputs)
    check_labels(labels, logits.shape[1])
    labels = places(labels)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -jnp.mean(jnp.where(labels[:, None] >= 0, picked, jnp.nan))
