"""A network of one head and many tasks, told the task: its outputs restricted to the classes of one."""

from collections.abc import Sequence
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Shaped

from .._counts import check_count
from ..paths.checks import check_labels, places, wide
from ..paths.precision import check_floating


def class_masks(tasks: Sequence[Sequence[SupportsIndex]], classes: SupportsIndex) -> Bool[np.ndarray, "tasks classes"]:
    """Which outputs are those of each task, one row of booleans a task.

    Tasks may have different numbers of classes, in any order and with gaps, and may share some. All rows have one
    length, so that one compiled program serves all tasks.

    **Arguments:** `tasks`, the classes of each; `classes`, how many outputs the network has.

    **Raises:** `ValueError` for no tasks, a task of less than two classes or with one twice, or a class that is not from 0
    to `classes − 1`; `TypeError` for what is no integer.

    **Example:** `masks = wm.rivals.class_masks([(0, 7), (3, 1, 4)], 10)`
    """
    classes = check_count("classes, the number of outputs,", classes, 2)
    if not tasks:
        raise ValueError("there is no task; give the classes of at least one, such as [(0, 1), (2, 3)]")
    masks = np.zeros((len(tasks), classes), bool)
    for place, task in enumerate(tasks):
        rows = [check_count(f"a class of tasks[{place}]", c, 0, classes - 1) for c in task]
        if len(rows) < 2 or len(set(rows)) < len(rows):
            raise ValueError(
                f"tasks[{place}] must have at least two classes, each once, got {rows}; the softmax of one is 1 whatever it is"
            )
        masks[place, rows] = True
    return masks


def told(
    logits: Float[Array | np.ndarray, "*batch classes"], mask: Bool[Array | np.ndarray, "#*batch classes"]
) -> Float[Array, "*batch classes"]:
    r"""The logits `z_c` of a network that is told the task: of classes that are not the task's, half the least number
    that there is.

    Their softmax is 0 and that of the others is what it is among the task's outputs alone; no gradient reaches what is
    masked. As the numbers are finite and always the same, distances of two outputs do not see them either, so that every
    loss, distance and rival can be given `f` with a task told. The prediction is `told(logits, mask).argmax(-1)`; of
    equal logits, the first.

    **Arguments:** `logits`, of one input or several; `mask`, a row of `class_masks` for all, or one for each.

    **Returns:** an array like `logits`.

    **Raises:** `TypeError` for logits that are not of floating-point numbers, or a mask that is not of booleans;
    `ValueError` for a mask of another length, or of less than two classes.

    **Example:**

        def f(net, x):  # inputs say their task: {"image": images, "task": numbers}
            return wm.rivals.told(net(x["image"]), masks[x["task"]])
    """
    _check(logits, mask)
    logits = jnp.asarray(logits)
    return jnp.where(jnp.asarray(mask), logits, jnp.asarray(jnp.finfo(logits.dtype).min / 2, logits.dtype))


def told_cross_entropy(
    logits: Float[Array | np.ndarray, " classes"],
    label: Shaped[Array | np.ndarray, ""],
    mask: Bool[Array | np.ndarray, " classes"],
) -> Float[Array, ""]:
    r"""`−ln p(y | task) = ln Σ_{c in task} exp z_c − z_y` of one example, in float32 at least.

    Classes keep their numbers among all outputs: no task counts its own. A label that is none of the task's is refused;
    inside a compiled function, where it is not known, the loss is NaN.

    **Arguments:** `logits` of one input; `label`, an integer of any type; `mask`, a row of `class_masks`.

    **Raises:** as `told`; `ValueError` for a label that is none of the task's, `TypeError` for one that is no integer.

    **Example:** `wm.objectives.Task(operator.call, images, labels, loss=lambda z, y: told_cross_entropy(z, y, masks[0]))`
    """
    _check(logits, mask)
    check_labels(label, len(logits), axes=0)
    known = not isinstance(label, Tracer) and not isinstance(mask, Tracer)
    if known and not bool(np.asarray(mask)[int(label)]):
        raise ValueError(
            f"the label {int(label)} is none of the task's classes, {np.flatnonzero(mask).tolist()}; give the mask of its task, and"
            " labels numbered among all outputs"
        )
    mask, place = jnp.asarray(mask), places(label)
    inside = (place >= 0) & (place < len(logits)) & mask[place]
    return jnp.where(inside, -jax.nn.log_softmax(wide(told(logits, mask)))[place], jnp.nan)


def _check(logits, mask):
    check_floating("the logits", logits)
    if not jnp.issubdtype(jnp.result_type(mask), jnp.bool_):
        raise TypeError(
            f"mask must hold booleans, one for each class, got {jnp.result_type(mask)}; make it by wm.rivals.class_masks"
        )
    if jnp.ndim(logits) < 1 or jnp.ndim(mask) < 1 or jnp.shape(logits)[-1] != jnp.shape(mask)[-1]:
        raise ValueError(
            f"mask must say of each class whether it is the task's, got shape {jnp.shape(mask)} for logits of shape"
            f" {jnp.shape(logits)}; make it by wm.rivals.class_masks(tasks, {jnp.shape(logits)[-1:] or 'classes'})"
        )
    if not isinstance(mask, Tracer) and np.asarray(mask).sum(-1).min(initial=2) < 2:
        raise ValueError(
            "a task must have at least two classes, for the softmax of one is 1 whatever it is; widen the mask"
        )
