"""Low-rank adaptation: a network that is fine-tuned by a product of two thin matrices beside each chosen layer."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, SupportsIndex, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._counts import check_count
from ..paths.checks import check_setting, wide
from ..paths.precision import check_floating


@final
class AdaptedLinear(eqx.Module):
    """A linear layer and its adapter, `y = W x + b + (α/r) B A d(x)`; made by `adapt`.

    It is called as the layer was. `d` is dropout of the adapter's input alone: the identity where `dropout` is 0 or
    `inference` is true, which `equinox.nn.inference_mode` sets for the whole network.
    """

    linear: eqx.nn.Linear
    a: Float[Array, "*stack rank in_features"]
    b: Float[Array, "*stack out_features rank"]
    scale: float = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    inference: bool

    def __call__(self, x: Float[Array | np.ndarray, "..."], *, key: PRNGKeyArray | None = None) -> Float[Array, "..."]:
        """**Arguments:** `x`, of shape `(in_features,)`, or `()` where that is "scalar"; `key`, for the dropout.

        **Raises:** `ValueError` where there is dropout and no key.
        """
        x = jnp.asarray(x)
        y = self.linear(x, key=key)
        if self.dropout and not self.inference:
            if key is None:
                raise self._without_key()
            kept = jax.random.bernoulli(key, 1 - self.dropout, jnp.shape(x))
            x = jnp.where(kept, x / (1 - self.dropout), jnp.zeros_like(x))
        # The factors may be wider than the layer: see `adapt`.
        low = self.a @ jnp.reshape(x, self.a.shape[-1:]).astype(self.a.dtype)
        return y + jnp.reshape(self.scale * (self.b @ low), y.shape).astype(y.dtype)

    def _without_key(self) -> ValueError:
        return ValueError(
            f"an adapted layer has dropout={self.dropout:g} and was called without a key: to train, give the network a"
            " key, which it must hand to its linear layers as layer(x, key=key); to evaluate, use"
            " equinox.nn.inference_mode(adapted); for a network that hands on no keys, adapt with dropout=0.0"
        )

    def _merged(self) -> Array:
        product = jnp.matmul(self.b, self.a, precision=jax.lax.Precision.HIGHEST)
        weight = jnp.asarray(self.linear.weight)
        return (wide(weight).astype(product.dtype) + self.scale * product).astype(weight.dtype)

    @property
    def weight(self) -> Array:
        """`W + (α/r) B A`, for a network that looks past the call of its layer.

        **Raises:** `ValueError` where there is dropout, as a call without a key.
        """
        if self.dropout and not self.inference:
            raise self._without_key()
        return self._merged()

    @property
    def bias(self) -> Array | None:
        """That of the layer."""
        return self.linear.bias

    @property
    def in_features(self) -> int | str:
        """That of the layer."""
        return self.linear.in_features

    @property
    def out_features(self) -> int | str:
        """That of the layer."""
        return self.linear.out_features

    @property
    def use_bias(self) -> bool:
        """That of the layer."""
        return self.linear.use_bias


def adapt(
    net: PyTree,
    rank: SupportsIndex,
    *,
    alpha: Any,
    where: str | Sequence[str] = ("query", "value"),
    dropout: Any = 0.0,
    key: PRNGKeyArray,
) -> PyTree:
    r"""Give each chosen linear layer two factors beside its weights, `W ← W + (α/r) B A`.

    `A`, of shape `(r, in)`, starts uniform in `±1/√in` (He's initialisation of leaky units, of slope √5, as the
    reference implementation has it) and `B`, of shape `(out, r)`, starts at zero, so that the network is what it was
    until it is trained. They are of float32 at least: in half precision, small steps would be rounded away.

    Train `trainable(adapted)` and leave the rest; `merge(adapted)` is then a network that costs what it did.

    **Arguments:**

    - `net`: any Equinox module.
    - `rank`: `r`, from 1 to the lesser side of each chosen layer.
    - `alpha`: `α`, positive. The factors' product counts `α/r`, so that a learning rate serves several ranks.
    - `where`: names. Every `equinox.nn.Linear` that is an attribute of such a name is chosen (or an entry of a
      dictionary, or stands in a list that is). A stack of layers, made by `equinox.filter_vmap`, gets a stack of
      factors.
    - `dropout`: the share of the adapter's inputs that is dropped in training, in [0, 1). It needs a key at each call
      of a layer, `layer(x, key=key)`, from the network that is given one. A layer that is called without one raises,
      unless `equinox.nn.inference_mode(adapted)` has ended the dropout: it is never left out unseen.
    - `key`: for `A`.

    **Returns:** the network with an `AdaptedLinear` in each chosen place. A file that Equinox writes of it holds `A` and `B`
    and not `α/r`: read it into a network that was adapted with the same rank and `alpha`.

    **Raises:** `ValueError` for a rank, `alpha` or dropout out of range, a name that no linear layer has, a network
    that is adapted already or modulated, and an array that has two places; `TypeError` for weights of other than real
    floating-point numbers, or a rank that is no integer.

    **Example:**

        adapted = wm.rivals.lora.adapt(net, 8, alpha=16, key=key)
        factors, rest = eqx.partition(adapted, wm.rivals.lora.trainable(adapted))
        ...  # training of eqx.combine(factors, rest) by the factors alone
        net = wm.rivals.lora.merge(eqx.combine(factors, rest))

    **Reference:** Hu et al. (2022), LoRA: Low-Rank Adaptation of Large Language Models, Eq. 3 and section 4.1.
    """
    rank = check_count("rank", rank)
    alpha = float(check_setting("alpha", alpha, strict=True))
    dropout = float(check_setting("dropout", dropout, below=1))
    names = _names("where", where, 'such as ("query", "value")')
    if _adapted_layers(net):
        raise ValueError("the network is adapted already; merge it first, by wm.rivals.lora.merge")
    layers = [(_name(path), path, node) for path, node in _nodes(net, eqx.nn.Linear)]
    if missing := [name for name in names if name not in {own for own, *_ in layers}]:
        there = sorted({own for own, *_ in layers if own})
        raise ValueError(
            f"no linear layer is called {missing[0]!r}; "
            + (
                f"choose among {', '.join(map(repr, there))}"
                if there
                else "the network has no equinox.nn.Linear with a name"
            )
        )
    chosen = [(path, node) for name, path, node in layers if name in names]
    places = Counter(id(x) for x in jax.tree.leaves(net) if eqx.is_inexact_array(x))
    for path, node in chosen:
        place = jax.tree_util.keystr(path)
        if not isinstance(node.weight, (jax.Array, np.ndarray)):
            raise ValueError(
                f"the weights of {place} are no plain array, but {type(node.weight).__name__}; adapt a network before"
                " it is modulated, or the plain network net.at(s)"
            )
        check_floating(f"the weights of {place}", node.weight)
        if rank > min(node.weight.shape[-2:]):
            raise ValueError(
                f"rank must be at most the lesser side of each layer, and {place} has {node.weight.shape[-2]} ×"
                f" {node.weight.shape[-1]} weights, got {rank}; train a layer in full instead, or leave it out of where"
            )
        if places[id(node.weight)] > 1:
            raise ValueError(
                f"the weights of {place} have two places in the network: each would get factors of its own; tie them"
                " with equinox.nn.Shared, or give one place a copy (jnp.copy)"
            )
    keys = dict(zip([path for path, _ in chosen], jax.random.split(key, len(chosen)), strict=True))

    def replace(path, node):
        if path not in keys:
            return node
        *stack, outputs, inputs = node.weight.shape
        dtype = wide(jnp.zeros((), node.weight.dtype)).dtype
        bound = 1 / math.sqrt(inputs)
        a = jax.random.uniform(keys[path], (*stack, rank, inputs), dtype, -bound, bound)
        return AdaptedLinear(node, a, jnp.zeros((*stack, outputs, rank), dtype), alpha / rank, dropout, False)

    return jax.tree.map_with_path(replace, net, is_leaf=lambda node: isinstance(node, eqx.nn.Linear))


def trainable(adapted: PyTree, full: str | Sequence[str] = ("classifier",)) -> PyTree[bool]:
    """Which leaves of an adapted network are trained, for `equinox.partition`: the factors, and the new head in full.

    **Arguments:** `adapted`, from `adapt`; `full`, the names of the parts that are trained in full, `()` for none.

    **Returns:** a tree of booleans of the structure of `adapted`.

    **Raises:** `ValueError` for a network that is not adapted, a name that no part with floating-point arrays has, and
    an array of such a part that has two places.

    **Example:** `moving, fixed = eqx.partition(adapted, wm.rivals.lora.trainable(adapted))`
    """
    names = _names("full", full, '"classifier", or () for the factors alone', least=0)
    if not _adapted_layers(adapted):
        raise ValueError("the network has no adapted layer; make some by wm.rivals.lora.adapt")
    factors = {(*path, jax.tree_util.GetAttrKey(f)) for path, _ in _nodes(adapted, AdaptedLinear) for f in ("a", "b")}
    places = Counter(id(x) for x in jax.tree.leaves(adapted) if eqx.is_inexact_array(x))
    found = set()

    def moves(path, leaf):
        if not eqx.is_inexact_array(leaf):
            return False
        # The arrays of an adapted network may themselves be trees (of basis points): a factor is all below its path.
        if any(path[:n] in factors for n in range(1, len(path) + 1)):
            return True
        within = [name for name in names if name in map(_key_name, path)]
        if within and places[id(leaf)] > 1:
            raise ValueError(
                f"an array of {within[0]!r} has two places in the network, of which one would be left behind; tie them"
                " with equinox.nn.Shared, or give one place a copy (jnp.copy)"
            )
        found.update(within)
        return bool(within)

    tree = jax.tree.map_with_path(moves, adapted)
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"no part of the network with floating-point arrays is called {missing[0]!r}; name what is to be trained in"
            ' full, such as full=("output",), or give full=() for the factors alone'
        )
    return tree


def merge(adapted: PyTree) -> PyTree:
    """The plain network of an adapted one: each adapted layer is one layer again, of the weights `W + (α/r) B A`.

    **Arguments:** `adapted`, from `adapt`, trained or not.

    **Returns:** a network with the structure, shapes and types of that which was adapted.

    **Raises:** `ValueError` for a network that is not adapted, or one that is modulated.
    """
    layers = _adapted_layers(adapted)
    if not layers:
        raise ValueError("the network has no adapted layer, so that there is nothing to merge; use it as it is")
    if not all(isinstance(x, (jax.Array, np.ndarray)) for layer in layers for x in (layer.a, layer.b)):
        raise ValueError("a modulated network cannot be merged, its factors vary with the context; merge net.at(s)")

    def plain(node):
        if not isinstance(node, AdaptedLinear):
            return node
        return eqx.tree_at(lambda linear: linear.weight, node.linear, node._merged())

    return jax.tree.map(plain, adapted, is_leaf=lambda node: isinstance(node, AdaptedLinear))


def _names(name: str, given: Any, cure: str, least: int = 1) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else None
    if names is None or len(names) < least or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{name} must hold names of attributes, got {given!r}; give {cure}")
    return names


def _nodes(net: PyTree, kind: type) -> list[tuple[tuple, Any]]:
    leaves = jax.tree.leaves_with_path(net, is_leaf=lambda node: isinstance(node, kind))
    return [(path, node) for path, node in leaves if isinstance(node, kind)]


def _adapted_layers(net: PyTree) -> list[AdaptedLinear]:
    return [node for _, node in _nodes(net, AdaptedLinear)]


def _key_name(key: Any) -> str | None:
    """The name that one step of a path has, if it is one of an attribute or of an entry of a dictionary."""
    name = getattr(key, "name", getattr(key, "key", None))
    return name if isinstance(name, str) else None


def _name(path: tuple) -> str | None:
    """The last name on a path: a place in a list has that of the list."""
    return next((name for key in reversed(path) if (name := _key_name(key)) is not None), None)
