"""Conditioning by concatenation."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from ...models import CNN
from ...models._sizes import check_sizes
from ._context import circle, encoded


@final
class Concat(eqx.Module):
    """A `CNN` whose hidden layer sees the context beside the flattened features (appendix D)."""

    cnn: CNN
    encode: Callable[[ArrayLike], Array] = eqx.field(static=True)

    def __init__(
        self, encode: Callable[[ArrayLike], Array] = circle, inputs: int = 2, *, key: PRNGKeyArray, **cnn: Any
    ):
        """**Arguments:** `encode`, from a context to `inputs` numbers, (cos, sin) by default; those of `CNN`.

        **Raises:** `ValueError` if a size is not positive, and when called if `encode` gives another number of them.
        """
        check_sizes(inputs=inputs)
        self.cnn = CNN(**cnn, extra=inputs, key=key)
        self.encode = encode

    def __call__(self, x: Float[Array, "channels height width"], s: ArrayLike) -> Float[Array, " classes"]:
        """Logits of one image in one context."""
        features = self.cnn.features(x)
        code = encoded(self.encode, s, int(self.cnn.hidden.in_features) - features.size)
        return self.cnn.classify(jnp.concatenate([features, code]))
