"""A small convolutional network without a memory of past batches, for paths that keep a function."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._sizes import check_features, check_holds_squares, check_image, check_in_shape, check_sizes


class _LayerNorm(eqx.Module):
    """Mean 0 and variance 1 over all values of one image, then a gain and a shift for each channel.

    The numbers of `equinox.nn.GroupNorm` with one group.
    """

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]

    def __init__(self, channels: int):
        self.weight, self.bias = jnp.ones(channels), jnp.zeros(channels)

    def __call__(self, x: Float[Array, "channels height width"]) -> Float[Array, "channels height width"]:
        check_holds_squares(x)
        y = x - x.mean()
        y = y * jax.lax.rsqrt((y * y).mean() + 1e-5)
        return y * self.weight[:, None, None] + self.bias[:, None, None]


@final
class LayerNormCNN(eqx.Module):
    """3 × 3 convolutions of stride 2, each with layer normalisation and ReLU, then one hidden layer of ReLU units.

    Layer normalisation stands where such networks usually have batch normalisation: that keeps running statistics, by
    which the function would move while the weights stand still (see `FunctionMetric`). The strides stand in place of
    pooling, which on a CPU takes longer than the convolutions.

    **Reference:** Ba et al. (2016), Layer Normalization; mean and variance are over all channels and positions.
    """

    convolutions: tuple[eqx.nn.Conv2d, ...]
    norms: tuple[_LayerNorm, ...]
    hidden: eqx.nn.Linear
    output: eqx.nn.Linear

    def __init__(
        self,
        in_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 20,
        widths: tuple[int, ...] = (16, 32),
        units: int = 100,
        *,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_shape`: (channels, height, width) of an image.
        - `classes`, `widths`, `units`: the sizes of the output, the convolutions and the hidden layer.
        - `key`: for the initial weights, those of Equinox.

        **Raises:** `ValueError` if a size is not positive.
        """
        check_in_shape(in_shape)
        check_sizes(in_shape=in_shape, classes=classes, widths=widths, units=units)
        channels, height, width = in_shape
        keys = jax.random.split(key, len(widths) + 2)
        sizes = (channels, *widths)
        self.convolutions = tuple(
            eqx.nn.Conv2d(sizes[i], sizes[i + 1], 3, stride=2, padding=1, key=keys[i]) for i in range(len(widths))
        )
        self.norms = tuple(_LayerNorm(size) for size in widths)
        for _ in widths:
            height, width = -(-height // 2), -(-width // 2)
        self.hidden = eqx.nn.Linear(sizes[-1] * height * width, units, key=keys[-2])
        self.output = eqx.nn.Linear(units, classes, key=keys[-1])

    def __call__(self, x: Float[Array, "channels height width"]) -> Float[Array, " classes"]:
        """Logits of one image."""
        if self.convolutions:
            check_image(x, self.convolutions[0].in_channels)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = jax.nn.relu(norm(convolution(x)))
        check_features(x.size, int(self.hidden.in_features))
        return self.output(jax.nn.relu(self.hidden(x.reshape(-1))))
