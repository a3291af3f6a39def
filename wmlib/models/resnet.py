"""Residual networks for small images, normalised without a memory of past batches."""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._sizes import check_holds_squares, check_image, check_in_shape, check_sizes


class _Norm(eqx.Module):
    """Mean 0 and variance 1 over channels, by position or by group, and then a gain and a shift for each channel.

    The numbers of `equinox.nn.LayerNorm(channels)` at each position, or of `equinox.nn.GroupNorm`; on the CPU written
    this way it takes a quarter of the time.
    """

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    groups: int | None = eqx.field(static=True)

    def __init__(self, norm: str, channels: int):
        self.weight, self.bias = jnp.ones(channels), jnp.zeros(channels)
        self.groups = None if norm == "layer" else math.gcd(channels, max(1, channels // 16))

    def __call__(self, x: Float[Array, "channels height width"]) -> Float[Array, "channels height width"]:
        check_holds_squares(x)
        y, over = (x, 0) if self.groups is None else (x.reshape(self.groups, -1, *x.shape[1:]), (1, 2, 3))
        y = y - y.mean(over, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(over, keepdims=True) + 1e-5)
        return y.reshape(x.shape) * self.weight[:, None, None] + self.bias[:, None, None]


class _Block(eqx.Module):
    """Two 3 × 3 convolutions and a shortcut; the shortcut is a 1 × 1 convolution where the shape changes."""

    convolutions: tuple[eqx.nn.Conv2d, ...]
    norms: tuple[_Norm, ...]
    shortcut: eqx.nn.Conv2d | None

    def __init__(self, inputs: int, channels: int, stride: int, norm: str, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        changes = stride != 1 or inputs != channels
        self.convolutions = (
            eqx.nn.Conv2d(inputs, channels, 3, stride, padding=1, use_bias=False, key=keys[0]),
            eqx.nn.Conv2d(channels, channels, 3, padding=1, use_bias=False, key=keys[1]),
        )
        self.norms = tuple(_Norm(norm, channels) for _ in range(2 + changes))
        self.shortcut = eqx.nn.Conv2d(inputs, channels, 1, stride, use_bias=False, key=keys[2]) if changes else None

    def __call__(self, x: Float[Array, "channels height width"]) -> Array:
        first, second = self.convolutions
        y = self.norms[1](second(jax.nn.relu(self.norms[0](first(x)))))
        return jax.nn.relu(y + (x if self.shortcut is None else self.norms[2](self.shortcut(x))))


@final
class ResNet(eqx.Module):
    """The residual network of He et al. for images of CIFAR's size: `relu(norm(conv(relu(norm(conv x)))) + x)`, repeated.

    A 3 × 3 stem without pooling; stages of blocks with `width`, `2 width`, `4 width`, … channels, each stage but the
    first halving the image with its first block, whose shortcut is then a 1 × 1 convolution; the mean over positions;
    a linear layer. `ResNet(key=key)` is ResNet-18, 11,173,962 weights.

    In place of batch normalisation, which keeps a state (see `modulate`), stand a gain and a shift for each channel
    after `norm="layer"`, which normalises the channels of each position by themselves, or `norm="group"`, which
    normalises groups over all positions: of `c` channels gcd(c, max(1, ⌊c/16⌋)) groups, which are of 16 where 16 divides `c`, and one
    of all where there are fewer.

    **Reference:** He et al. (2016), Deep Residual Learning for Image Recognition; Ba et al. (2016), Layer
    Normalization; Wu & He (2018), Group Normalization.
    """

    stem: eqx.nn.Conv2d
    norm: _Norm
    blocks: tuple[_Block, ...]
    output: eqx.nn.Linear

    def __init__(
        self,
        in_shape: tuple[int, int, int] = (3, 32, 32),
        classes: int = 10,
        width: int = 64,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        norm: str = "layer",
        *,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_shape`: (channels, height, width) of an image.
        - `classes`, `width`: the sizes of the output and of the first stage.
        - `blocks`: how many blocks each stage has; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) is ResNet-34.
        - `norm`: "layer" or "group", see above.
        - `key`: for the initial weights, those of Equinox.

        **Raises:** `ValueError` if a size is not positive, there is no stage, or `norm` is none of these two.
        """
        if norm not in ("layer", "group"):
            raise ValueError(f'norm must be "layer" or "group", got {norm!r}; batch normalisation keeps a state')
        check_in_shape(in_shape)
        check_sizes(in_shape=in_shape, classes=classes, width=width, blocks=blocks)
        if not blocks:
            raise ValueError("blocks must name at least one stage, such as (2, 2, 2, 2)")
        keys = jax.random.split(key, sum(blocks) + 2)
        self.stem = eqx.nn.Conv2d(in_shape[0], width, 3, padding=1, use_bias=False, key=keys[-2])
        self.norm = _Norm(norm, width)
        made, inputs = [], width
        for stage, count in enumerate(blocks):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                made.append(_Block(inputs, width * 2**stage, stride, norm, key=keys[len(made)]))
                inputs = width * 2**stage
        self.blocks = tuple(made)
        self.output = eqx.nn.Linear(inputs, classes, key=keys[-1])

    def __call__(self, x: Float[Array, "channels height width"]) -> Float[Array, " classes"]:
        """Logits of one image."""
        check_image(x, self.stem.in_channels)
        x = jax.nn.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.output(jnp.mean(x, axis=(1, 2)))
