"""Feature-wise linear modulation."""

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
class FiLM(eqx.Module):
    """A `CNN` whose channels are scaled and shifted by functions of the context: `h_c ← (1 + γ_c(s)) h_c + β_c(s)`.

    `γ` and `β` come from a network with one hidden layer; they act on each convolution's output, before its ReLU.

    **Reference:** Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer (2018).
    """

    cnn: CNN
    generator: eqx.nn.MLP
    encode: Callable[[ArrayLike], Array] = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)

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
        generator's hidden layer; those of `CNN`.

        **Raises:** `ValueError` if a size is not positive, and when called if `encode` gives another number of them.
        """
        check_sizes(inputs=inputs, width=width)
        of_cnn, of_generator = jax.random.split(key)
        self.cnn = CNN(**cnn, key=of_cnn)
        self.widths = tuple(convolution.out_channels for convolution in self.cnn.convolutions)
        self.generator = eqx.nn.MLP(inputs, 2 * sum(self.widths), width, 1, key=of_generator)
        self.encode = encode

    def __call__(self, x: Float[Array, "channels height width"], s: ArrayLike) -> Float[Array, " classes"]:
        """Logits of one image in one context."""
        gain, shift = jnp.split(self.generator(encoded(self.encode, s, int(self.generator.in_size))), 2)
        ends = [sum(self.widths[: i + 1]) for i in range(len(self.widths))]

        def adapt(layer: int, h: Array) -> Array:
            own = slice(ends[layer] - self.widths[layer], ends[layer])
            return (1 + gain[own, None, None]) * h + shift[own, None, None]

        return self.cnn.classify(self.cnn.features(x, adapt))
