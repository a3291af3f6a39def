"""No conditioning: one point in weight space for every context."""

from typing import Any, final

import equinox as eqx
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from ...models import CNN


@final
class Unconditioned(eqx.Module):
    """A `CNN` that is given the context and ignores it."""

    cnn: CNN

    def __init__(self, *, key: PRNGKeyArray, **cnn: Any):
        """**Arguments:** those of `wmlib.models.CNN`."""
        self.cnn = CNN(**cnn, key=key)

    def __call__(self, x: Float[Array, "channels height width"], s: ArrayLike) -> Float[Array, " classes"]:
        """Logits of one image, whatever its context."""
        return self.cnn(x)
