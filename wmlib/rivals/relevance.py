"""Relevance mapping networks: one set of weights, and for each task a map of those that it uses."""

import warnings
from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..paths.checks import check_setting, wide
from ..paths.metric import check_structure, refuse_shared
from ..paths.precision import check_floating
from .lora import _name, _nodes


@final
class TaskMap(eqx.Module):
    """What one task has beside the shared weights: `maps`, the numbers `m` of each shared weight, or booleans once they are
    rounded; and `own`, the rest of the network."""

    maps: PyTree[Array]
    own: PyTree
    sharpness: float = eqx.field(static=True)

    def relevance(self) -> PyTree[Array]:
        """`r = σ(β (m − ½))` of each shared weight, in [0, 1]; 0 or 1 once rounded."""
        return jax.tree.map(
            lambda m: m.astype(jnp.float32) if m.dtype == jnp.bool_ else jax.nn.sigmoid(self.sharpness * (m - 0.5)),
            self.maps,
        )


def split(
    net: PyTree, *, own: Sequence[str] = (), sharpness: Any = 100.0, key: PRNGKeyArray
) -> tuple[PyTree[Array], TaskMap]:
    r"""The weights of a network that tasks share, and the map of one task on them, not yet learned.

    Shared are the weights of every `equinox.nn.Linear` and `equinox.nn.Conv`; all else (biases, gains, the layers named in
    `own`) each task has for itself, or an earlier task would not be kept. The paper leaves open what a map begins as: here
    `m` is uniform in [0, 1], so that about half of the weights are used. For the next task call it again with another key,
    and take its map alone.

    **Arguments:** `net`, any Equinox module; `own`, names of layers that each task has for itself, such as the output;
    `sharpness`, β, positive: the larger, the nearer is a map to 0 and 1 and the fewer of its entries move; `key`.

    **Returns:** the shared weights, and a `TaskMap`.

    **Raises:** `ValueError` for a sharpness that is not positive, a network in which nothing is shared, a name that no
    such layer has, or one array at two places; `TypeError` for weights of other than real floating-point numbers.

    **Example:**

        shared, first = wm.rivals.relevance.split(net, own=("output",), key=key)
        ...  # training of both by the loss of apply(shared, first), plus 0.1 * penalty(first)
        first = wm.rivals.relevance.rounded(first)
        frozen = wm.rivals.relevance.freeze(first)

    **Reference:** Kaushik et al. (2021), Understanding Catastrophic Forgetting and Remembering in Continual Learning with
    Optimal Relevance Mapping.
    """
    sharpness = float(check_setting("sharpness", sharpness, strict=True))
    refuse_shared("the network", net)
    layers = [(_name(path), path) for kind in (eqx.nn.Linear, eqx.nn.Conv) for path, _ in _nodes(net, kind)]
    own = (own,) if isinstance(own, str) else tuple(own)
    there = sorted({name for name, _ in layers if name})
    if missing := [name for name in own if name not in there]:
        raise ValueError(f"no layer is called {missing[0]!r}; choose among {', '.join(map(repr, there))}")
    chosen = {(*path, jax.tree_util.GetAttrKey("weight")) for name, path in layers if name not in own}
    if not chosen:
        raise ValueError("no equinox.nn.Linear or equinox.nn.Conv is left to share; name fewer layers in own")
    shared, rest = eqx.partition(net, jax.tree.map_with_path(lambda path, _: path in chosen, net))
    check_floating("the shared weights", shared)
    weights, structure = jax.tree.flatten(shared)
    keys = jax.random.split(key, len(weights))
    maps = [jax.random.uniform(k, x.shape, wide(x).dtype) for k, x in zip(keys, weights, strict=True)]
    return shared, TaskMap(structure.unflatten(maps), rest, sharpness)


def apply(shared: PyTree[Array], task: TaskMap, frozen: PyTree[Array] | None = None) -> PyTree:
    """The network of one task, of the weights `r ⊙ W`; no gradient reaches those that are frozen.

    Once the map is rounded, what it does not use is 0 whatever it holds, so that a task is kept bit for bit.

    **Arguments:** `shared` and `task`, from `split`; `frozen`, from `freeze`.

    **Raises:** `ValueError` for trees that differ in structure or shapes.
    """
    check_structure("the map", task.maps, shared)
    if frozen is not None:
        check_structure("frozen", frozen, shared)
        shared = jax.tree.map(lambda w, f: jnp.where(f, jax.lax.stop_gradient(w), w), shared, frozen)

    def used(w, m, r):
        return jnp.where(m, w, jnp.zeros((), w.dtype)) if m.dtype == jnp.bool_ else w * r.astype(w.dtype)

    return eqx.combine(jax.tree.map(used, shared, task.maps, task.relevance()), task.own)


def penalty(task: TaskMap) -> Float[Array, ""]:
    """The mean relevance of all shared weights, `(1/n) Σ_i r_i`, to be scaled and added to the loss of `apply`'s network.

    The authors' is the sum; their scale is ours divided by `n`.
    """
    leaves = jax.tree.leaves(task.relevance())
    return jnp.asarray(sum(jnp.sum(wide(r)) for r in leaves) / sum(r.size for r in leaves))


def free(updates: PyTree, frozen: PyTree[Array]) -> PyTree:
    """An optimiser's updates of the shared weights, 0 where they are frozen: for decay and momentum move them without a gradient.

    **Arguments:** `updates`, a tree like the shared weights; `frozen`, from `freeze`.

    **Raises:** `ValueError` for trees that differ in structure or shapes.
    """
    check_structure("frozen", frozen, updates)
    return jax.tree.map(lambda u, f: jnp.where(f, jnp.zeros((), u.dtype), u), updates, frozen)


def rounded(task: TaskMap, threshold: Any = 0.5) -> TaskMap:
    """The map as booleans, `r > threshold`: its last training is best that of what is free, under the rounded map.

    **Raises:** `ValueError` for a threshold that is not in [0, 1), or a layer of which nothing would be left.
    """
    threshold = check_setting("threshold", threshold, below=1)
    maps = jax.tree.map(lambda r: r > threshold, task.relevance())
    if not all(isinstance(m, Tracer) or bool(m.any()) for m in jax.tree.leaves(maps)):
        raise ValueError(
            "a layer would be left without a weight, and every output be the same; lower the penalty or threshold"
        )
    return TaskMap(maps, task.own, task.sharpness)


def freeze(task: TaskMap, frozen: PyTree[Array] | None = None) -> PyTree[Array]:
    """Which shared weights no later task may move: those that were frozen, and those that this task uses.

    **Arguments:** `task`, rounded; `frozen`, that of the earlier tasks.

    **Returns:** a tree of booleans, like the shared weights. Where nothing is left free, a warning says so: later tasks
    can then only choose among what there is.

    **Raises:** `ValueError` for a map that is not rounded, or trees that differ in structure or shapes.
    """
    if any(m.dtype != jnp.bool_ for m in jax.tree.leaves(task.maps)):
        raise ValueError("the map is not yet one of what is used and what is not; use freeze(rounded(task))")
    if frozen is not None:
        check_structure("frozen", frozen, task.maps)
    after = task.maps if frozen is None else jax.tree.map(jnp.logical_or, frozen, task.maps)
    if not any(isinstance(x, Tracer) for x in jax.tree.leaves(after)) and share(after) == 1:
        warnings.warn(
            "every shared weight is frozen, and a later task can only choose among them; raise the penalty, or widen the network",
            stacklevel=2,
        )
    return after


def share(frozen: PyTree[Array]) -> float:
    """The share of the shared weights that are frozen, or that a rounded map uses (`share(task.maps)`), in [0, 1]."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(frozen)]
    if not leaves or any(x.dtype != bool for x in leaves):
        raise ValueError("share counts booleans; give what freeze returns, or rounded(task).maps")
    return sum(int(x.sum()) for x in leaves) / sum(x.size for x in leaves)
