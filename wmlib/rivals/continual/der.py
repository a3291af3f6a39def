"""Dark experience replay: remembered inputs keep the outputs that the earlier network gave them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from ..._sharding import gathered
from ...paths.checks import check_labels, check_memories, check_setting, logits_of, wide
from ...paths.precision import check_floating
from .replay import replay_loss


def der_loss(
    f: Callable[..., Any],
    weights: PyTree,
    inputs: PyTree,
    outputs: Shaped[Array | np.ndarray, "..."],
    labels: Shaped[Array | np.ndarray, "..."] | None = None,
    alpha: Any = 1.0,
    beta: Any = 1.0,
) -> Float[Array, ""]:
    """`α · mean |f(w, x) − z|²` over remembered inputs and the logits `z` stored with them; with labels, DER++, which adds
    `β` times the loss of `replay_loss`. In float32 at least.

    The authors' code takes the mean over the outputs too: their α is ours times the number of classes. Stored outputs of
    the network that ended the earlier task make of it Algorithm 1 of Raghavan et al. (2024) with the squared distance.

    **Arguments:** `f`, called as `f(weights, x)` for one input, returns logits; `weights`, any pytree; `inputs`, a tree of
    arrays that share their first axis; `outputs`, of shape `(memories, classes)`, and for DER++ `labels`, of shape
    `(memories,)`; `alpha` and `beta`, numbers of at least 0.

    **Raises:** `ValueError` for outputs of another shape than those of `f`, for `alpha` or `beta` out of range, and as
    `replay_loss`; `TypeError` for stored outputs that are not of floating-point numbers.

    **Reference:** Buzzega et al. (2020), Dark Experience for General Continual Learning, Eq. 5 and 6.
    """
    alpha, beta = check_setting("alpha", alpha), check_setting("beta", beta)
    check_floating("the stored outputs", outputs)
    check_memories(inputs, outputs)
    if labels is not None:
        check_labels(labels)
    logits = logits_of(f, weights, inputs)
    if jnp.shape(outputs) != logits.shape:
        raise ValueError(
            f"outputs must be the logits stored for each input, of shape {logits.shape}, got {jnp.shape(outputs)}; use"
            " jax.vmap(f, (None, 0))(weights, inputs) of the earlier network"
        )
    moved = logits - wide(gathered(jnp.asarray(outputs)))
    loss = alpha * jnp.mean(jnp.sum(moved**2, axis=1))
    return loss if labels is None else loss + beta * replay_loss(f, weights, inputs, labels)
