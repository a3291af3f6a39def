"""The convolutional network of *Walking the Weight Manifold* (appendix D)."""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._counts import check_count
from ._sizes import check_features, check_image, check_in_shape, check_sizes


def _halve(x: Float[Array, "channels height width"]) -> Float[Array, "channels half_height half_width"]:
    """Max-pooling over 2 × 2 windows, stride 2 (an odd last row or column is dropped).

    The same numbers as `equinox.nn.MaxPool2d(2, 2)`; as pairwise maxima its gradient needs a third of the memory.
    """
    c, h, w = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(c, h // 2, 2, w // 2, 2)
    return jnp.maximum(jnp.maximum(x[:, :, 0, :, 0], x[:, :, 0, :, 1]), jnp.maximum(x[:, :, 1, :, 0], x[:, :, 1, :, 1]))


@final
class CNN(eqx.Module):
    """Three 3 × 3 convolutions, each with ReLU and 2 × 2 max-pooling, then one hidden layer of ReLU units.

    `CNN(key=key)` is the paper's: (32, 64, 128) filters and 512 units on 3 × 32 × 32 images, 1,147,466 weights.

    **Reference:** Benjamin et al. (2025), appendix D.
    """

    convolutions: tuple[eqx.nn.Conv2d, ...]
    hidden: eqx.nn.Linear
    output: eqx.nn.Linear

    def __init__(
        self,
        in_shape: tuple[int, int, int] = (3, 32, 32),
        classes: int = 10,
        widths: tuple[int, ...] = (32, 64, 128),
        units: int = 512,
        extra: int = 0,
        *,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_shape`: (channels, height, width) of an image.
        - `classes`, `widths`, `units`: the sizes of the output, the convolutions and the hidden layer.
        - `extra`: further inputs of the hidden layer, beside the flattened features (for conditioning).
        - `key`: for the initial weights, those of Equinox.

        **Raises:** `ValueError` if a size is not positive or the image is too small for its poolings.
        """
        check_in_shape(in_shape)
        channels, height, width = in_shape
        shrink = 2 ** len(widths)
        if min(height, width) < shrink:
            raise ValueError(
                f"{len(widths)} poolings need images of at least {shrink} × {shrink}, got {height} × {width};"
                " give fewer widths"
            )
        check_sizes(in_shape=in_shape, classes=classes, widths=widths, units=units)
        check_count("extra", extra, 0)
        keys = jax.random.split(key, len(widths) + 2)
        sizes = (channels, *widths)
        self.convolutions = tuple(
            eqx.nn.Conv2d(sizes[i], sizes[i + 1], 3, padding=1, key=keys[i]) for i in range(len(widths))
        )
        flat = sizes[-1] * (height // shrink) * (width // shrink)
        self.hidden = eqx.nn.Linear(flat + extra, units, key=keys[-2])
        self.output = eqx.nn.Linear(units, classes, key=keys[-1])

    def features(
        self, x: Float[Array, "channels height width"], adapt: Callable[[int, Array], Array] = lambda layer, h: h
    ) -> Float[Array, " features"]:
        """The flattened output of the convolutions; `adapt(layer, h)` may change `h` before each ReLU."""
        if self.convolutions:
            check_image(x, self.convolutions[0].in_channels)
        for layer, convolution in enumerate(self.convolutions):
            x = jax.nn.relu(_halve(adapt(layer, convolution(x))))  # maxima and ReLU commute; this order is cheaper
        return x.reshape(-1)

    def classify(self, features: Float[Array, " features"]) -> Float[Array, " classes"]:
        """Logits from features (and the extra inputs, if any)."""
        check_features(features.size, int(self.hidden.in_features))
        return self.output(jax.nn.relu(self.hidden(features)))

    def __call__(self, x: Float[Array, "channels height width"]) -> Float[Array, " classes"]:
        """Logits of one image."""
        return self.classify(self.features(x))
