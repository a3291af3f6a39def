"""Which numbers are taken, and in what precision they are added up."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def refuse_complex(name: str, tree: PyTree) -> None:
    """Raise `TypeError` if an array, or the description of one, holds complex numbers.

    Neither a gradient nor a product with `JᵀHJ` conjugates here, so that a descent would climb along imaginary parts.
    """
    held = {str(x.dtype) for x in jax.tree.leaves(tree) if hasattr(x, "dtype") and jnp.iscomplexobj(x)}
    if held:
        raise TypeError(
            f"{name} must hold real numbers, got {', '.join(sorted(held))}; keep the real and the imaginary parts as two"
            " real arrays, and join them inside f by jax.lax.complex"
        )


def wide(x):
    """The array, in float32 where its own precision is less: a float16 square overflows at 256."""
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32 else x


def check_floating(name: str, tree: PyTree) -> None:
    """Raise `TypeError` unless a tree holds real floating-point numbers alone: whole numbers would cut off what is made."""
    refuse_complex(name, tree)
    others = {
        str(jnp.result_type(x)) for x in jax.tree.leaves(tree) if not jnp.issubdtype(jnp.result_type(x), jnp.floating)
    }
    if others:
        raise TypeError(
            f"{name} must hold floating-point numbers, got {', '.join(sorted(others))}; convert them by x.astype(float)"
        )
