"""What the networks ask of their sizes and of their images."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .._counts import NoCountError, check_count


def check_in_shape(in_shape: Any) -> None:
    """Raise `ValueError` unless it is that of an image."""
    if not isinstance(in_shape, Sequence) or len(in_shape) != 3:
        raise ValueError(f"in_shape must be (channels, height, width), such as (1, 28, 28), got {in_shape}")


def check_sizes(**sizes: Any) -> None:
    """Raise `ValueError` unless all are integers of at least 1, or sequences of such."""
    for name, size in sizes.items():
        for one in size if isinstance(size, Sequence) else [size]:
            try:
                check_count(f"each size in {name}", one)
            except NoCountError:
                raise
            except ValueError:
                given = ", ".join(f"{name}={size}" for name, size in sizes.items())
                raise ValueError(f"sizes must be positive, got {given}") from None


def check_image(x: Array, channels: int) -> None:
    """Raise `ValueError` unless it is one image of so many channels."""
    if x.ndim != 3 or x.shape[0] != channels:
        raise ValueError(
            f"the network takes one image of shape ({channels}, height, width), got {x.shape}; use jax.vmap for a batch,"
            " x[None] for an image without channels"
        )


def check_holds_squares(x: Array) -> None:
    """Raise `TypeError` for float16, which holds no number beyond 65504: a norm of larger squares would be nothing."""
    if x.dtype == jnp.float16:
        raise TypeError(
            "this norm takes squares, and float16 holds none of a number beyond 255; give the network weights and images"
            " of bfloat16, or of float32"
        )


def check_features(found: int, expected: int) -> None:
    """Raise `ValueError` if an image has left another number of features than the network was made for."""
    if found != expected:
        raise ValueError(
            f"the image has {found} features before the first linear layer, which takes {expected}; give the network's"
            " in_shape the size of the images"
        )
