"""Dark experience replay: remembered inputs keep the outputs that the earlier network gave them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PyTree, Shaped

from ...paths.checks import check_memories, check_setting, logits_of, wide
from .replay import replay_loss


def der_loss(
    f: Callable[..., Any],
    weights: PyTree,
    inputs: PyTree[Shaped[Array, "memories ..."]],
    outputs: Float[Array, "memories classes"],
    labels: Integer[Array, " memories"] | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Float[Array, ""]:
    """`α · mean |f(w, x) − z|²` over remembered inputs and the logits `z` stored with them; with labels, DER++, which adds
    `β` times the loss of `replay_loss`.

    The authors' code takes the mean over the outputs too: their α is ours times the number of classes. Stored outputs of
    the network that ended the earlier task make of it Algorithm 1 of Raghavan et al. (2024) with the squared distance.

    **Arguments:** `f`, called as `f(weights, x)` for one input, returns logits; `weights`, any pytree; `inputs`, a tree of
    arrays that share their first axis; `outputs`, and for DER++ `labels`, one for each; `alpha` and `beta` at least 0.

    **Raises:** `ValueError` for outputs of another shape than those of `f`, for `alpha` or `beta` out of range, and as
    `replay_loss`.

    **Reference:** Buzzega et al. (2020), Dark Experience for General Continual Learning, Eq. 5 and 6.
    """
    check_setting("alpha", alpha)
    check_setting("beta", beta)
    check_memories(inputs, outputs)
    logits = logits_of(f, weights, inputs)
    if jnp.shape(outputs) != logits.shape:
        raise ValueError(
            f"outputs must be the logits stored for each input, of shape {logits.shape}, got {jnp.shape(outputs)}; use"
            " jax.vmap(f, (None, 0))(weights, inputs) of the earlier network"
        )
    moved = wide(logits - outputs)
    loss = alpha * jnp.mean(jnp.sum(moved**2, axis=1))
    return loss if labels is None else loss + beta * replay_loss(f, weights, inputs, labels)
