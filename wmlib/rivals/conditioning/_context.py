"""How a context is shown to a network that takes it as an input."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


def circle(s: ArrayLike) -> Float[Array, "2"]:
    """A context on a circle of period 1 as `(cos 2πs, sin 2πs)`, so that its seam is not seen."""
    s = jnp.asarray(s)
    return jnp.stack([jnp.cos(2 * jnp.pi * s), jnp.sin(2 * jnp.pi * s)])


def encoded(encode: Callable[[ArrayLike], Array], s: ArrayLike, count: int) -> Array:
    """The numbers that a context is shown as. **Raises:** `ValueError` unless there are so many."""
    code = encode(s)
    if jnp.shape(code) != (count,):
        raise ValueError(
            f"encode must turn a context into a vector of {count} numbers, got shape {jnp.shape(code)} from a context of"
            f" shape {jnp.shape(s)}; give inputs the length of what it returns, and use jax.vmap for a batch"
        )
    return code
