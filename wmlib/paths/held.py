"""Arrays of the weights that a walk holds still."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .objectives import AbstractObjective


@final
class Held(eqx.Module):
    """An array by its bits, as whole numbers: nothing differentiates them, moves them, or counts them as weights."""

    bits: Array
    dtype: str = eqx.field(static=True)

    def __init__(self, array: Any):
        """**Arguments:** an array of real floating-point numbers."""
        array = jnp.asarray(array)
        self.dtype = array.dtype.name
        self.bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")

    def array(self) -> Array:
        """The array, bit for bit."""
        return jax.lax.bitcast_convert_type(self.bits, jnp.dtype(self.dtype))


def _is_held(x: Any) -> bool:
    return isinstance(x, Held)


def hold(weights: PyTree, moving: PyTree) -> PyTree:
    """The weights, their floating-point arrays held but for those that move.

    **Raises:** `ValueError` unless `moving` is a tree of booleans, of the structure of the weights or of its top.
    """
    if not all(isinstance(x, (bool, np.bool_)) for x in jax.tree.leaves(moving)):
        raise ValueError("moving must be a tree of booleans, True for what moves; for layers by name use eqx.tree_at")
    try:
        move, rest = eqx.partition(weights, jax.tree.map(bool, moving))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"moving must have the structure of the weights, or of the top of their tree: {error}; begin with"
            " jax.tree.map(lambda _: False, weights)"
        ) from error
    real = lambda x: eqx.is_inexact_array(x) and not jnp.iscomplexobj(x)  # noqa: E731
    return eqx.combine(move, jax.tree.map(lambda x: Held(x) if real(x) else x, rest))


def whole(weights: PyTree) -> PyTree:
    """The weights with all their arrays, as a function of them is called."""
    return jax.tree.map(lambda x: x.array() if _is_held(x) else x, weights, is_leaf=_is_held)


def replaced(weights: PyTree, start: PyTree) -> PyTree:
    """The weights with the very arrays that were held, so that no point of a path has copies of them."""
    return jax.tree.map(lambda x, y: y if _is_held(x) else x, weights, start, is_leaf=_is_held)


@dataclasses.dataclass(frozen=True)
class OnWhole:
    """A function of weights, of those of which some arrays are held."""

    function: Callable[..., Any]

    def __call__(self, weights: PyTree, *args: Any) -> Any:
        """What the function makes of all of them."""
        return self.function(whole(weights), *args)


@final
class ObjectiveOnWhole(AbstractObjective):
    """An objective, of weights of which some arrays are held."""

    objective: AbstractObjective

    def draws(self, key: PRNGKeyArray) -> Iterator[Any]:
        """Those of the objective."""
        return self.objective.draws(key)

    def value(self, weights: PyTree, draw: Any) -> Float[Array, ""]:
        """That of the objective."""
        return self.objective.value(whole(weights), draw)
