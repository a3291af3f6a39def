"""A network of one head and many tasks, told the task: its outputs restricted to the classes of one."""

from collections.abc import Iterable, Sequence
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
    r"""Which outputs are those of each task: $M_{kc}$ is true where class $c$ is one of task $k$.

    Tasks may have different numbers of classes, in any order and with gaps, and may share some. All rows have one
    length, so that one compiled program serves all tasks.

    **Arguments:**

    - `tasks`: the classes $c$ of each task, at least two; their order says nothing.
    - `classes`: how many outputs the network has, at least 2; each $c$ lies from 0 to `classes − 1`.

    **Returns:** the booleans $M$, of shape `(tasks, classes)`.

    **Raises:** `ValueError` for no tasks, a task of less than two classes or with one twice, or a class out of range;
    `TypeError` for what is no integer, or a task that is no sequence.

    **Example:**

        masks = wm.rivals.class_masks([(0, 7), (3, 1, 4)], 10)

    **Reference:** van de Ven & Tolias (2019), Three Scenarios for Continual Learning, where it is task-incremental learning.
    """
    classes = check_count("classes, the number of outputs,", classes, 2)
    if len(tasks) == 0:
        raise ValueError("there is no task; give the classes of at least one, such as [(0, 1), (2, 3)]")
    masks = np.zeros((len(tasks), classes), bool)
    for place, task in enumerate(tasks):
        if not isinstance(task, Iterable):
            raise TypeError(
                f"tasks[{place}] must hold the classes of a task, got {task!r}; give [(0, 1), (2, 3)] for two"
            )
        rows = [check_count(f"a class of tasks[{place}]", c, 0, classes - 1) for c in task]
        if len(rows) < 2 or len(set(rows)) < len(rows):
            raise ValueError(
                f"tasks[{place}] must have at least two classes, each once, got {rows}; the softmax of one is 1 whatever"
                " it is"
            )
        masks[place, rows] = True
    return masks


def told(
    logits: Float[Array | np.ndarray, "*batch classes"], mask: Bool[Array | np.ndarray, "#*batch classes"]
) -> Float[Array, "*batch classes"]:
    r"""The logits of a network that is told the task: $z_c$ where the task has class $c$, else half the least number.

    With them the softmax is $e^{z_c} / \sum_{j} M_{kj} e^{z_j}$ in the task $k$ and 0 outside, and no gradient reaches what
    is masked. As the numbers are finite and always the same, distances of two outputs do not see them either, so that
    every loss, distance and rival can be given an `f` that is told. The prediction is `told(logits, mask).argmax(-1)`; of
    equal logits, the first.

    **Arguments:**

    - `logits`: $z$, of shape `(..., classes)`, of one input or several.
    - `mask`: a row of `class_masks` for all, of shape `(classes,)`, or one for each.

    **Returns:** an array of the shape and type of the logits.

    **Raises:** `TypeError` for logits that are not of floating-point numbers, or a mask that is not of booleans;
    `ValueError` for a mask that is neither one for all nor one for each, or of less than two classes.

    **Example:**

        masks = jnp.asarray(wm.rivals.class_masks([(0, 7), (3, 1, 4)], 10))

        def f(net, x):  # an input says its task
            return wm.rivals.told(net(x["image"].reshape(-1)), masks[x["task"]])

        net, inputs = eqx.nn.Linear(64, 10, key=key), {"image": jnp.ones((5, 8, 8)), "task": jnp.array([0, 1, 1, 0, 0])}
        loss = wm.rivals.replay_loss(f, net, inputs, jnp.array([7, 3, 4, 0, 0]))

    **Reference:** as `class_masks`.
    """
    _check(logits, mask)
    logits = jnp.asarray(logits)
    return jnp.where(jnp.asarray(mask), logits, jnp.asarray(jnp.finfo(logits.dtype).min / 2, logits.dtype))


def told_cross_entropy(
    logits: Float[Array | np.ndarray, " classes"],
    label: Shaped[Array | np.ndarray, ""],
    mask: Bool[Array | np.ndarray, " classes"],
) -> Float[Array, ""]:
    r"""$-\ln p(y | k) = \ln \sum_c M_{kc} e^{z_c} - z_y$ of one example of task $k$, in nats and in float32 at least.

    Classes keep their numbers among all outputs: no task counts its own. A label that is none of the task's is refused;
    inside a compiled function, where it is not known, the loss is NaN.

    **Arguments:**

    - `logits`: $z$ of one input, of shape `(classes,)`.
    - `label`: $y$, an integer of any type, of shape `()`.
    - `mask`: $M_k$, a row of `class_masks`.

    **Returns:** the loss, of shape `()`.

    **Raises:** as `told`; `ValueError` for a label that is none of the task's, `TypeError` for one that is no integer.

    **Example:**

        mask = wm.rivals.class_masks([(0, 7), (3, 1, 4)], 10)[0]
        net, images, labels = eqx.nn.Linear(64, 10, key=key), jnp.ones((5, 64)), jnp.array([7, 0, 7, 0, 0])
        loss = lambda z, y: wm.rivals.told_cross_entropy(z, y, mask)
        task = wm.objectives.Task(operator.call, images, labels, 5, loss)

    **Reference:** as `class_masks`.
    """
    _check(logits, mask)
    check_labels(label, len(logits), axes=0)
    known = not isinstance(label, Tracer) and not isinstance(mask, Tracer)
    if known and not bool(np.asarray(mask)[int(label)]):
        raise ValueError(
            f"the label {int(label)} is none of the task's classes, {np.flatnonzero(mask).tolist()}; give the mask of its"
            " task, and labels numbered among all outputs"
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
    (*batch, classes), (*rows, length) = (jnp.shape(x) or (0,) for x in (logits, mask))
    # A mask of more axes would broadcast too, to outputs of more inputs than there are.
    one_each = len(rows) <= len(batch) and all(m in (1, n) for m, n in zip(rows[::-1], batch[::-1], strict=False))
    if not classes == length > 0 or not one_each:
        raise ValueError(
            f"mask must say of each class whether it is the task's, for all inputs or for each, got shape"
            f" {jnp.shape(mask)} for logits of shape {jnp.shape(logits)}; take rows of wm.rivals.class_masks(tasks, classes)"
        )
    if not isinstance(mask, Tracer) and np.asarray(mask).sum(-1).min(initial=2) < 2:
        raise ValueError(
            "a task must have at least two classes, for the softmax of one is 1 whatever it is; widen the mask"
        )
