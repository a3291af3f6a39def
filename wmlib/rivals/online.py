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
    """What online EWC keeps of all earlier tasks: the weights `start` that ended the last, and the running `fisher`.

    It unpacks into the arguments of `ewc_penalty`, and has the size of one task's, whatever their number.
    """

    start: PyTree
    fisher: PyTree[Array]


def ewc_penalties(weights: PyTree, starts: Sequence[PyTree], fishers: Sequence[PyTree]) -> Float[Array, ""]:
    r"""`Σ_k ½ Σ_i F_ki (w_i − w_ki)²`: EWC after several tasks, one penalty for each, none weighed more than another.

    But for a constant it is one quadratic, of stiffness `F_i = Σ_k F_ki` about the mean `Σ_k F_ki w_ki / F_i`.

    **Arguments:** `weights`, any pytree; `starts`, the weights `w_k` that ended each earlier task; `fishers`, their
    `fisher_diagonal`, each on inputs of its own task.

    **Returns:** the penalty, to be scaled (the authors' λ) and added to the loss; 0 before there is an earlier task.

    **Raises:** `ValueError` for other than one Fisher diagonal for each start, and as `ewc_penalty`.

    **Example:** `loss = new_loss + 100.0 * wm.rivals.ewc_penalties(net, ends, fishers)`

    **Reference:** Kirkpatrick et al. (2017), Eq. 3 and the text below it.
    """
    if len(starts) != len(fishers):
        raise ValueError(
            f"each earlier task needs its weights and its Fisher diagonal, got {len(starts)} and {len(fishers)}; give"
            " fisher_diagonal(f, start, inputs) for each start"
        )
    terms = [ewc_penalty(weights, start, fisher) for start, fisher in zip(starts, fishers, strict=True)]
    return jnp.asarray(sum(terms, jnp.zeros(())))


def online_ewc(anchor: Anchor | None, weights: PyTree, fisher: PyTree[Array], gamma: Any = 1.0) -> Anchor:
    r"""What is kept after one more task: `w* ← w` and `F* ← γ F* + F`.

    The penalty of the next task is `ewc_penalty(w, *anchor)`, `½ Σ_i F*_i (w_i − w*_i)²`, about the last weights alone.
    The paper has another `γ` before it, which is constant and belongs to its scale λ.

    **Arguments:**

    - `anchor`: that of before; None after the first task.
    - `weights`: those that ended the task.
    - `fisher`: their `fisher_diagonal`, on inputs of this task. Where the tasks' are of different sizes, divide each by
      its mean first.
    - `gamma`: γ in [0, 1]; 1 forgets nothing, 0 all but the last task.

    **Returns:** an `Anchor`, its Fisher diagonal in float32 at least.

    **Raises:** `ValueError` for a γ out of range, or trees that differ in structure or shapes; `TypeError` for a Fisher
    diagonal of other than real floating-point numbers.

    **Example:**

        anchor = None
        for task in tasks:
            ...  # training by the task's loss, plus 100.0 * wm.rivals.ewc_penalty(net, *anchor) if there is an anchor
            anchor = wm.rivals.online_ewc(anchor, net, wm.rivals.fisher_diagonal(f, net, task.inputs), gamma=0.95)

    **Reference:** Schwarz et al. (2018), Progress & Compress, section 3.2.
    """
    gamma = check_setting("gamma", gamma)
    if not isinstance(gamma, Tracer) and gamma > 1:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}; 1 forgets nothing, and more would grow without end")
    check_floating("fisher", fisher)
    check_structure("fisher", fisher, eqx.filter(weights, eqx.is_inexact_array))
    fisher = jax.tree.map(lambda x: wide(jnp.asarray(x)), gathered(fisher))
    if anchor is not None:
        check_structure("the anchor's fisher", anchor.fisher, fisher)
        fisher = jax.tree.map(
            lambda old, new: jnp.asarray(gamma, new.dtype) * old.astype(new.dtype) + new, anchor.fisher, fisher
        )
    return Anchor(weights, fisher)
