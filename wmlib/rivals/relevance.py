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
    r"""What one task has beside the shared weights; made by `split`.

    `maps` has the number $m_i$ of each shared weight, or a boolean once it is rounded; `own` is the rest of the network,
    and `sharpness` $\beta$.
    """

    maps: PyTree[Array]
    own: PyTree
    sharpness: float = eqx.field(static=True)

    def relevance(self) -> PyTree[Array]:
        r"""$r_i = \sigma(\beta (m_i - \frac{1}{2}))$ of each shared weight, in [0, 1]; 0 or 1 once rounded."""
        return jax.tree.map(
            lambda m: m.astype(jnp.float32) if m.dtype == jnp.bool_ else jax.nn.sigmoid(self.sharpness * (m - 0.5)),
            self.maps,
        )


def split(
    net: PyTree, *, own: Sequence[str] = (), sharpness: Any = 100.0, key: PRNGKeyArray
) -> tuple[PyTree[Array], TaskMap]:
    r"""The weights $W$ of a network that tasks share, and the map $m$ of one task on them, not yet learned.

    Shared are the weights of every `equinox.nn.Linear` and `equinox.nn.Conv`. All else (biases, gains, the layers named in
    `own`) each task has for itself, or an earlier task would not be kept. A map begins uniform in [0, 1], so that about
    half of the weights are used. For the next task call it again with another key, and take its map alone.

    **Arguments:**

    - `net`: any Equinox module.
    - `own`: names of layers that each task has for itself, such as the output.
    - `sharpness`: $\beta$, positive: the larger, the nearer is a map to 0 and 1, and the fewer of its entries move. Public
      code of the method has 100 and the same beginning.
    - `key`: for the map.

    **Returns:** the shared weights, a tree like `net` with None for all else; and a `TaskMap` of their shapes, of float32
    at least.

    **Raises:** `ValueError` for a sharpness that is not positive and finite, a network in which nothing is shared or that
    is modulated, a name that no such layer has, or one array at two places; `TypeError` for weights of other than real
    floating-point numbers.

    **Example:**

        net = wm.models.CNN((1, 8, 8), classes=4, widths=(2,), units=6, key=key)
        shared, first = wm.rivals.relevance.split(net, own=("output",), key=key)
        ...  # training of both by the loss of apply(shared, first), plus 0.1 * penalty(first)
        first = wm.rivals.relevance.rounded(first)
        frozen = wm.rivals.relevance.freeze(first)
        second = wm.rivals.relevance.split(net, own=("output",), key=jax.random.key(1))[1]
        ...  # training of both by the loss of apply(shared, second, frozen), its updates through free

    **Reference:** Kaushik et al. (2021), Understanding Catastrophic Forgetting and Remembering in Continual Learning with
    Optimal Relevance Mapping.
    """
    sharpness = float(check_setting("sharpness", sharpness, strict=True))
    refuse_shared("the network", net)
    layers = [(_name(path), path, node) for kind in (eqx.nn.Linear, eqx.nn.Conv) for path, node in _nodes(net, kind)]
    own = (own,) if isinstance(own, str) else tuple(own)
    there = sorted({name for name, *_ in layers if name})
    if missing := [name for name in own if name not in there]:
        choice = f"choose among {', '.join(map(repr, there))}" if there else "leave own out, for none has a name"
        raise ValueError(f"no equinox.nn.Linear or equinox.nn.Conv is called {missing[0]!r}; {choice}")
    if not all(isinstance(node.weight, (jax.Array, np.ndarray)) for *_, node in layers):
        raise ValueError("the weights of a modulated network vary with the context; split the plain network net.at(s)")
    chosen = {(*path, jax.tree_util.GetAttrKey("weight")) for name, path, _ in layers if name not in own}
    if not chosen:
        raise ValueError("no equinox.nn.Linear or equinox.nn.Conv is left to share; name fewer layers in own")
    shared, rest = eqx.partition(net, jax.tree.map_with_path(lambda path, _: path in chosen, net))
    check_floating("the shared weights", shared)
    weights, structure = jax.tree.flatten(shared)
    keys = jax.random.split(key, len(weights))
    maps = [jax.random.uniform(k, x.shape, wide(x).dtype) for k, x in zip(keys, weights, strict=True)]
    return shared, TaskMap(structure.unflatten(maps), rest, sharpness)


def apply(shared: PyTree[Array], task: TaskMap, frozen: PyTree[Array] | None = None) -> PyTree:
    r"""The network of one task, of the weights $r_i W_i$; no gradient reaches the $W_i$ that are frozen.

    Once the map is rounded, a weight that it does not use is 0 whatever later tasks make of it, so that a task is kept bit
    for bit.

    **Arguments:**

    - `shared`: $W$, from `split`, trained or not.
    - `task`: the map of the task, with its $r$ and what it has for itself.
    - `frozen`: booleans like the shared weights, from `freeze`; None while there is no earlier task.

    **Returns:** a network of the structure, shapes and types of that which was split.

    **Raises:** `ValueError` for trees that differ in structure or shapes; `TypeError` for a `frozen` that is not of
    booleans.

    **Example:**

        shared, task = wm.rivals.relevance.split(eqx.nn.MLP(3, 4, 6, 1, key=key), key=key)
        logits = wm.rivals.relevance.apply(shared, task)(jnp.ones(3))

    **Reference:** as `split`.
    """
    check_structure("the map", task.maps, shared)
    if frozen is not None:
        _check_frozen(frozen, shared)
        shared = jax.tree.map(lambda w, f: jnp.where(f, jax.lax.stop_gradient(w), w), shared, frozen)

    def used(w, m, r):
        return jnp.where(m, w, jnp.zeros((), w.dtype)) if m.dtype == jnp.bool_ else w * r.astype(w.dtype)

    return eqx.combine(jax.tree.map(used, shared, task.maps, task.relevance()), task.own)


def penalty(task: TaskMap) -> Float[Array, ""]:
    r"""$\frac{1}{n} \sum_i r_i$, the mean relevance of the $n$ shared weights: what makes a map leave some free.

    **Arguments:** `task`, a map from `split`, with its $r$.

    **Returns:** a number in [0, 1], to be scaled and added to the loss of the network of `apply`. Public code of the method
    has the sum, whose scale is ours divided by $n$.

    **Raises:** `ValueError` for a map of no weight.

    **Example:**

        _, task = wm.rivals.relevance.split(eqx.nn.MLP(3, 4, 6, 1, key=key), key=key)
        loss = 0.1 * wm.rivals.relevance.penalty(task)

    **Reference:** as `split`.
    """
    leaves = jax.tree.leaves(task.relevance())
    if not sum(r.size for r in leaves):
        raise ValueError("the map is one of no weight, and its mean of nothing; make it by wm.rivals.relevance.split")
    return jnp.asarray(sum(jnp.sum(wide(r)) for r in leaves) / sum(r.size for r in leaves))


def free(updates: PyTree, frozen: PyTree[Array]) -> PyTree:
    r"""An optimiser's updates $u_i$ of the shared weights, 0 where they are frozen.

    Frozen weights have no gradient, and yet decay and the momentum of an earlier task would move them.

    **Arguments:** `updates`, $u$, a tree like the shared weights; `frozen`, booleans like it, from `freeze`.

    **Returns:** the updates, of their shapes and types.

    **Raises:** `ValueError` for trees that differ in structure or shapes; `TypeError` for a `frozen` that is not of
    booleans.

    **Example:**

        shared, task = wm.rivals.relevance.split(eqx.nn.MLP(3, 4, 6, 1, key=key), key=key)
        frozen = wm.rivals.relevance.freeze(wm.rivals.relevance.rounded(task))
        updates = jax.tree.map(lambda w: -0.01 * w, shared)
        shared = eqx.apply_updates(shared, wm.rivals.relevance.free(updates, frozen))

    **Reference:** as `split`.
    """
    _check_frozen(frozen, updates)
    return jax.tree.map(lambda u, f: jnp.where(f, jnp.zeros((), u.dtype), u), updates, frozen)


def rounded(task: TaskMap, threshold: Any = 0.5) -> TaskMap:
    r"""The map as booleans, $r_i > t$. What the task has for itself is best trained a little longer under it.

    **Arguments:** `task`, a map from `split`, trained; `threshold`, $t$ in [0, 1).

    **Returns:** a `TaskMap` that uses a weight or does not.

    **Raises:** `ValueError` for a threshold out of range, or a layer of which nothing would be left. A number
    that is not finite uses no weight.

    **Example:**

        _, task = wm.rivals.relevance.split(eqx.nn.MLP(3, 4, 6, 1, key=key), key=key)
        task = wm.rivals.relevance.rounded(task)

    **Reference:** as `split`.
    """
    threshold = check_setting("threshold", threshold, below=1)
    maps = jax.tree.map(lambda r: r > threshold, task.relevance())
    if not all(isinstance(m, Tracer) or bool(m.any()) for m in jax.tree.leaves(maps)):
        raise ValueError(
            "a layer would be left without a weight, and every output be the same; lower the penalty or threshold"
        )
    return TaskMap(maps, task.own, task.sharpness)


def freeze(task: TaskMap, frozen: PyTree[Array] | None = None) -> PyTree[Array]:
    r"""Which shared weights no later task may move, $f_i \lor m_i$: those that were frozen, and those that this task uses.

    **Arguments:** `task`, with its $m$, rounded; `frozen`, $f$, that of the earlier tasks, in whatever order they came.

    **Returns:** a tree of booleans, like the shared weights. Where nothing is left free, a warning says so: later tasks
    can then only choose among what there is.

    **Raises:** `ValueError` for a map that is not rounded, or trees that differ in structure or shapes; `TypeError` for a
    `frozen` that is not of booleans.

    **Example:**

        _, task = wm.rivals.relevance.split(eqx.nn.MLP(3, 4, 6, 1, key=key), key=key)
        frozen = wm.rivals.relevance.freeze(wm.rivals.relevance.rounded(task))

    **Reference:** as `split`.
    """
    if any(m.dtype != jnp.bool_ for m in jax.tree.leaves(task.maps)):
        raise ValueError("the map is not yet one of what is used and what is not; use freeze(rounded(task))")
    if frozen is not None:
        _check_frozen(frozen, task.maps)
    after = task.maps if frozen is None else jax.tree.map(jnp.logical_or, frozen, task.maps)
    if not any(isinstance(x, Tracer) for x in jax.tree.leaves(after)) and share(after) == 1:
        warnings.warn(
            "every shared weight is frozen, and a later task can only choose among them; raise the penalty, or widen the"
            " network",
            stacklevel=2,
        )
    return after


def share(frozen: PyTree[Array]) -> float:
    r"""$\frac{1}{n} \sum_i f_i$, the share of the $n$ shared weights that are frozen, or that a rounded map uses.

    **Arguments:** `frozen`, $f$, from `freeze`, or `task.maps` of a rounded map. Outside compiled functions.

    **Returns:** a number in [0, 1].

    **Raises:** `ValueError` for a tree that is not of booleans, or holds none.

    **Example:**

        _, task = wm.rivals.relevance.split(eqx.nn.MLP(3, 4, 6, 1, key=key), key=key)
        used = wm.rivals.relevance.share(wm.rivals.relevance.rounded(task).maps)
    """
    leaves = [np.asarray(x) for x in jax.tree.leaves(frozen)]
    if not leaves or any(x.dtype != bool for x in leaves):
        raise ValueError("share counts booleans; give what freeze returns, or rounded(task).maps")
    return sum(int(x.sum()) for x in leaves) / sum(x.size for x in leaves)


def _check_frozen(frozen, like):
    check_structure("frozen", frozen, like)
    # Numbers would be taken for true wherever they are not 0.
    if others := {str(x.dtype) for x in jax.tree.leaves(frozen) if x.dtype != jnp.bool_}:
        raise TypeError(f"frozen must hold booleans, got {', '.join(sorted(others))}; give what freeze returns")
