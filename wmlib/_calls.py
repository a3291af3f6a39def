"""A function of one input, and what is said where it cannot take one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def on_one_input(function: Callable[..., Any], *arguments: Any, name: str = "f", given: str = "weights, x") -> Any:
    """What a function, of a `name`, returns for the arguments, of which `x` is one input.

    **Raises:** `ValueError`, from the error of the function, if it cannot take one; what the machine lacks goes through.
    """
    try:
        return function(*arguments)
    except (jax.errors.JaxRuntimeError, MemoryError, FloatingPointError):
        raise
    except Exception as error:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(arguments[given.split(", ").index("x")])]
        raise ValueError(
            f"{name} is called with one input, {name}({given}) with arrays of shapes {shapes} in x, and not with a batch; it"
            f" fails: {error}. If it expects a batch, give lambda {given}: {name}({given.replace('x', 'x[None]')})[0]"
        ) from error
