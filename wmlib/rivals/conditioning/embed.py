"""Conditioning by a learned embedding, then concatenation."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from ...models import CNN
from ...models._sizes import check_sizes
from ._context import circle, encoded


@final
class Embed(eqx.Module):
    """A `CNN` whose hidden layer sees a linear embedding of the context, 32 wide by default (appendix D)."""

    cnn: CNN
    embedding: eqx.nn.Linear
    encode: Callable[[ArrayLike], Array] = eqx.field(static=True)

    def __init__(
        self,
        encode: Callable[[ArrayLike], Array] = circle,
        inputs: int = 2,
        width: int = 32,
        *,
        key: PRNGKeyArray,
        **cnn: Any,
    ):
        """**Arguments:** `encode`, from a context to `inputs` numbers, (cos, sin) by default; `width` of the
        embedding; those of `CNN`.

        **Raises:** `ValueError` if a size is not positive, and when called if `encode` gives another number of them.
        """
        check_sizes(inputs=inputs, width=width)
        of_cnn, of_embedding = jax.random.split(key)
        self.cnn = CNN(**cnn, extra=width, key=of_cnn)
        self.embedding = eqx.nn.Linear(inputs, width, key=of_embedding)
        self.encode = encode

    def __call__(self, x: Float[Array, "channels height width"], s: ArrayLike) -> Float[Array, " classes"]:
        """Logits of one image in one context."""
        code = encoded(self.encode, s, int(self.embedding.in_features))
        return self.cnn.classify(jnp.concatenate([self.cnn.features(x), self.embedding(code)]))
