"""LeNet-300-100, the fully connected network on which the pruning of weights is tried first."""

import math
from typing import final

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ._sizes import check_features, check_in_shape, check_sizes


@final
class LeNet300(eqx.Module):
    """Two hidden layers of ReLU units on the flattened image: `W₃ relu(W₂ relu(W₁ x + b₁) + b₂) + b₃`.

    `LeNet300(key=key)` is LeNet-300-100 on 28 × 28 images: 266,610 weights, of which 266,200 in the three matrices.

    **Reference:** LeCun et al. (1998), Gradient-based learning applied to document recognition, section III.C.
    """

    layers: tuple[eqx.nn.Linear, ...]

    def __init__(
        self,
        in_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        units: tuple[int, ...] = (300, 100),
        *,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_shape`: (channels, height, width) of an image.
        - `classes`, `units`: the sizes of the output and of the hidden layers.
        - `key`: for the initial weights, those of Equinox.

        **Raises:** `ValueError` if a size is not positive.
        """
        check_in_shape(in_shape)
        check_sizes(in_shape=in_shape, classes=classes, units=units)
        sizes = (math.prod(in_shape), *units, classes)
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = tuple(eqx.nn.Linear(a, b, key=k) for a, b, k in zip(sizes[:-1], sizes[1:], keys, strict=True))

    def __call__(self, x: Float[Array, "channels height width"]) -> Float[Array, " classes"]:
        """Logits of one image."""
        check_features(x.size, int(self.layers[0].in_features))
        h = x.reshape(-1)
        for layer in self.layers[:-1]:
            h = jax.nn.relu(layer(h))
        return self.layers[-1](h)
