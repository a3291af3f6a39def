"""How a context is shown to a network that takes it as an input."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


def circle(s: ArrayLike) -> Float[Array, "2"]:
    """A context on a circle of period 1 as `(cos 2πs, sin 2πs)`, so that its seam is not seen."""
    s = jnp.asarray(s)
    return jnp.stack([jnp.cos(2 * jnp.pi * s), jnp.sin(2 * jnp.pi * s)])
