"""Learning without forgetting: the new task's inputs keep the old classes' outputs; nothing old is remembered."""

from collections.abc import Callable
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..._counts import check_count
from ...paths.checks import check_memories, check_setting, logits_of


def lwf_loss(
    f: Callable[..., Any],
    weights: PyTree,
    start: PyTree,
    inputs: PyTree,
    old: SupportsIndex,
    temperature: Any = 2.0,
) -> Float[Array, ""]:
    """`T² · mean KL(q ‖ p)` of the softmax of the first `old` logits divided by `T`: `q` of the earlier network, `p` of this
    one, on a batch of the *new* task.

    It is computed in float32 at least. The factor `T²` keeps the gradient of one size as `T` grows; the authors' cross-entropy differs by a constant.

    **Arguments:** `f`, called as `f(weights, x)` for one input, returns logits; `weights` and `start`, the weights that the
    earlier task ended with; `inputs`, a tree of arrays that share their first axis; `old`, how many classes the earlier
    task has, at least 2; `temperature`, `T`, positive, the authors' is 2. With outputs that `told` masks, `T` of at least ½: below, the
    least number that it puts there, divided by `T`, is none, and the loss is not a number.

    **Raises:** `ValueError` if there are not so many logits, `old` is no integer, for a temperature that is not positive and finite, for no
    inputs, or an `f` that expects a batch.

    **Reference:** Li & Hoiem (2016), Learning without Forgetting, Eq. 2 and 3.
    """
    temperature = check_setting("temperature", temperature, strict=True)
    old = check_count("old, which counts the classes of the earlier task,", old)
    check_memories(inputs)
    logits = [logits_of(f, w, inputs) for w in (start, weights)]
    if not 2 <= old <= min(y.shape[1] for y in logits):
        raise ValueError(
            f"old must be between 2 and the number of outputs, {min(y.shape[1] for y in logits)}, got {old}; it counts the"
            " classes of the earlier task, which come first"
        )
    logq, logp = (jax.nn.log_softmax(y[:, :old] / temperature) for y in logits)
    return temperature**2 * jnp.mean(jnp.sum(jnp.exp(logq) * (logq - logp), axis=1))
