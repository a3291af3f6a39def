"""What a context does to an image: the transformations that more than one experiment uses."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, ArrayLike, Float


def rotate(image: Float[Array, "channels height width"], s: ArrayLike) -> Float[Array, "channels height width"]:
    """Turn an image by the angle `2πs` about its centre: bilinear, and zero outside the inscribed disc.

    A quarter turn, `s = 0.25`, is `numpy.rot90`. What lies outside the disc is set to zero so that the corners do not
    betray the angle.

    **Arguments:** a square image of shape `(channels, size, size)`; `s`, the context, as a part of a full turn.

    **Raises:** `ValueError` for an image that is not square.
    """
    if image.ndim != 3 or image.shape[1] != image.shape[2]:
        raise ValueError(f"a square image of shape (channels, size, size) is needed, got {image.shape}")
    size = image.shape[-1]
    y, x = jnp.meshgrid(*[jnp.arange(size, dtype=float) - (size - 1) / 2] * 2, indexing="ij")
    cos, sin = jnp.cos(2 * jnp.pi * s), jnp.sin(2 * jnp.pi * s)
    source = jnp.stack([cos * y + sin * x, -sin * y + cos * x]) + (size - 1) / 2
    turned = jax.vmap(lambda channel: map_coordinates(channel, list(source), order=1))(image)
    return jnp.where(x**2 + y**2 <= (size / 2) ** 2, turned, 0.0)


def mix_noise(image: Float[Array, "*shape"], noise: Float[Array, "*shape"], s: ArrayLike) -> Float[Array, "*shape"]:
    """`(1 − s) x + s η`: an image at the noise level `s`, from the image alone (0) to noise alone (1).

    **Arguments:** the image `x`; `η`, standard Gaussian noise of its shape; `s`, the context, in [0, 1].

    **Reference:** Benjamin et al. (2025), 3.2.
    """
    return (1 - jnp.asarray(s)) * image + jnp.asarray(s) * noise
