"""Elastic weight consolidation over many tasks: a penalty for each, or one that runs along."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from ..paths.checks import check_setting, wide
from ..paths.metric import check_structure, gathered
from ..paths.precision import check_floating
from .continual.ewc import ewc_penalty


class Anchor(NamedTuple):
    r"""What online EWC keeps of all earlier tasks: the weights $w^*$ that ended the last, and the running $F^*$.

    It unpacks into the arguments of `ewc_penalty`, and has the size of one task's, whatever their number. `online_ewc`
    makes it.

    **Arguments:** `start`, $w^*$, any pytree; `fisher`, $F^*$, a tree like its floating-point arrays.
    """

    start: PyTree
    fisher: PyTree[Array]


def ewc_penalties(weights: PyTree, starts: Sequence[PyTree], fishers: Sequence[PyTree]) -> Float[Array, ""]:
    r"""$\sum_k \frac{1}{2} \sum_i F_{ki} (w_i - w_{ki})^2$: EWC after several tasks, a penalty for each.

    But for a constant it is one quadratic, of stiffness $F_i = \sum_k F_{ki}$ about the mean $\sum_k F_{ki} w_{ki} / F_i$:
    no task counts more than another, and their order says nothing.

    **Arguments:**

    - `weights`: $w$, any pytree.
    - `starts`: the weights $w_k$ that ended each earlier task, trees like the weights.
    - `fishers`: their `fisher_diagonal` $F_k$, each on inputs of its own task, in nats by the square of a weight.

    **Returns:** the penalty in nats, to be scaled (the authors' $\lambda$) and added to the loss; 0 before there is an
    earlier task. In float32 at least.

    **Raises:** `ValueError` for other than one Fisher diagonal for each start, and as `ewc_penalty`.

    **Example:**

        net, x = eqx.nn.Linear(3, 4, key=key), jnp.ones((5, 3))
        ends, fishers = [net], [wm.rivals.fisher_diagonal(operator.call, net, x)]
        penalty = 100.0 * wm.rivals.ewc_penalties(net, ends, fishers)

    **Reference:** Kirkpatrick et al. (2017), Eq. 3 and the text below it.
    """
    if len(starts) != len(fishers):
        raise ValueError(
            f"each earlier task needs its weights and its Fisher diagonal, got {len(starts)} and {len(fishers)}; give"
            " fisher_diagonal(f, start, inputs) for each start"
        )
    return jnp.asarray(sum((ewc_penalty(weights, *kept) for kept in zip(starts, fishers, strict=True)), 0.0))


def online_ewc(anchor: Anchor | None, weights: PyTree, fisher: PyTree[Array], gamma: Any = 1.0) -> Anchor:
    r"""What is kept after one more task: $w^* \leftarrow w$ and $F^* \leftarrow \gamma F^* + F$.

    The penalty of the next task is `ewc_penalty(w, *anchor)`, $\frac{1}{2} \sum_i F^*_i (w_i - w^*_i)^2$, about the last
    weights alone, so that unlike that of `ewc_penalties` it depends on the order of the tasks. The paper has another
    $\gamma$ before it, which is constant and belongs to its scale $\lambda$.

    **Arguments:**

    - `anchor`: that of before, $w^*$ and $F^*$; None after the first task.
    - `weights`: $w$, those that ended the task, any pytree.
    - `fisher`: $F$, their `fisher_diagonal` on inputs of this task. Where the tasks' are of different sizes, divide each
      by its mean first.
    - `gamma`: $\gamma$ in [0, 1]; 1 forgets nothing, 0 all but the last task.

    **Returns:** an `Anchor`, its Fisher diagonal in float32 at least.

    **Raises:** `ValueError` for a $\gamma$ out of range, or trees that differ in structure or shapes; `TypeError` for a
    Fisher diagonal of other than real floating-point numbers.

    **Example:**

        net, anchor = eqx.nn.Linear(3, 4, key=key), None
        for inputs in (jnp.ones((5, 3)), jnp.zeros((5, 3))):  # each task
            penalty = 0.0 if anchor is None else 100.0 * wm.rivals.ewc_penalty(net, *anchor)
            ...  # training by the loss of the task and this penalty
            fisher = wm.rivals.fisher_diagonal(operator.call, net, inputs)
            anchor = wm.rivals.online_ewc(anchor, net, fisher, gamma=0.95)

    **Reference:** Schwarz et al. (2018), Progress & Compress: A scalable framework for continual learning, where it is
    called online EWC.
    """
    gamma = check_setting("gamma", gamma)
    if not isinstance(gamma, Tracer) and gamma > 1:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}; 1 forgets nothing, and more would grow without end")
    check_floating("fisher", fisher)
    check_structure("fisher", fisher, eqx.filter(weights, eqx.is_inexact_array))
    fisher = jax.tree.map(lambda x: wide(jnp.asarray(x)), gathered(fisher))
    if anchor is None:
        return Anchor(weights, fisher)
    check_floating("the anchor's fisher", anchor.fisher)
    check_structure("the anchor's fisher", anchor.fisher, fisher)
    sums = jax.tree.map(
        lambda old, new: jnp.asarray(gamma, new.dtype) * old.astype(new.dtype) + new, gathered(anchor.fisher), fisher
    )
    return Anchor(weights, sums)
