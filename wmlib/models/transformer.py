"""One encoder of attention blocks: BERT, ViT and DeiT are settings of it."""

import functools
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Integer, PRNGKeyArray

from .._counts import check_count
from ..paths.precision import wide
from ._sizes import check_image, check_in_shape, check_sizes

HEADS = {"text": ("classification", "words", "mean"), "image": ("classification", "distillation", "mean")}


def _gelu(x: Array) -> Array:
    """`x Φ(x)`, exactly; by `erf`, which takes XLA on the CPU less time than the `erfc` of `jax.nn.gelu`."""
    return x * 0.5 * (1.0 + jax.lax.erf(x * np.sqrt(0.5).item()))


def _dropout(x: Array, rate: float, key: PRNGKeyArray | None) -> Array:
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def _split(key: PRNGKeyArray | None, number: int) -> Any:
    return [None] * number if key is None else jax.random.split(key, number)


def _each(layer: Callable[..., Array], states: Array, key: PRNGKeyArray | None = None) -> Array:
    """A layer at each position: one product of matrices. A layer with dropout of its own has a key for each position."""
    if key is None:
        return jax.vmap(layer)(states)
    return jax.vmap(lambda x, k: layer(x, key=k))(states, jax.random.split(key, len(states)))


def _linear(inputs: int, outputs: int, key: PRNGKeyArray, bias: bool = True) -> eqx.nn.Linear:
    """With weights of standard deviation 0.02 and biases of zero."""
    layer = eqx.nn.Linear(inputs, outputs, bias, key=key)
    layer = eqx.tree_at(lambda m: m.weight, layer, 0.02 * jax.random.normal(key, (outputs, inputs)))
    return eqx.tree_at(lambda m: m.bias, layer, jnp.zeros(outputs)) if bias else layer


class LayerNorm(eqx.Module):
    """Mean 0 and variance 1 over the last axis, computed in float32 at least; then a gain and a shift."""

    weight: Float[Array, " width"]
    bias: Float[Array, " width"]
    epsilon: float = eqx.field(static=True)

    def __init__(self, width: int, epsilon: float):
        self.weight, self.bias, self.epsilon = jnp.ones(width), jnp.zeros(width), epsilon

    def __call__(self, x: Float[Array, "*positions width"]) -> Float[Array, "*positions width"]:
        y = wide(x)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.weight.astype(y.dtype) + self.bias.astype(y.dtype)).astype(x.dtype)


class Attention(eqx.Module):
    """`softmax(Q Kᵀ / √d) V` in several heads of `d` units, over the unmasked positions."""

    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    output: eqx.nn.Linear
    heads: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, width: int, heads: int, dropout: float, query_bias: bool, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.query, self.key, self.value = (_linear(width, width, k, query_bias) for k in keys[:3])
        self.output = _linear(width, width, keys[3])
        self.heads, self.dropout = heads, dropout

    def __call__(
        self, states: Float[Array, "T width"], mask: Bool[Array, " T"] | None, key: PRNGKeyArray | None
    ) -> Float[Array, "T width"]:
        keys = _split(key, 5)
        layers = (self.query, self.key, self.value)
        q, k, v = (
            _each(layer, states, one).reshape(len(states), self.heads, -1)
            for layer, one in zip(layers, keys[:3], strict=True)
        )
        seen = None if mask is None else mask[None, None, :]
        if key is None or self.dropout == 0:
            # In float32 at least: XLA on the CPU does not compile the products that jax asks for in float16.
            mixed = jax.nn.dot_product_attention(wide(q), wide(k), wide(v), mask=seen).astype(states.dtype)
        else:  # the public function drops no attention
            scores = wide(jnp.einsum("tnh,snh->nts", q, k)) * q.shape[-1] ** -0.5
            if seen is not None:
                scores = jnp.where(seen, scores, -0.7 * float(jnp.finfo(jnp.float32).max))
            shares = _dropout(jax.nn.softmax(scores).astype(v.dtype), self.dropout, keys[3])
            mixed = jnp.einsum("nts,snh->tnh", shares, v)
        return _each(self.output, mixed.reshape(states.shape), keys[4])


class FeedForward(eqx.Module):
    """`W₂ gelu(W₁ x + b₁) + b₂` at each position."""

    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width: int, units: int, *, key: PRNGKeyArray):
        first, second = jax.random.split(key)
        self.up, self.down = _linear(width, units, first), _linear(units, width, second)

    def __call__(self, states: Float[Array, "T width"], key: PRNGKeyArray | None) -> Float[Array, "T width"]:
        first, second = _split(key, 2)
        return _each(self.down, _gelu(_each(self.up, states, first)), second)


class Block(eqx.Module):
    """Attention and a feed-forward layer, each added to its input, with the norm before it or after the sum."""

    attention: Attention
    attention_norm: LayerNorm
    feed_forward: FeedForward
    feed_forward_norm: LayerNorm
    norm: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __call__(
        self, states: Float[Array, "T width"], mask: Bool[Array, " T"] | None, key: PRNGKeyArray | None
    ) -> Float[Array, "T width"]:
        keys = _split(key, 4)
        attend = functools.partial(self.attention, mask=mask, key=keys[0])
        parts = (
            (attend, self.attention_norm, keys[1]),
            (functools.partial(self.feed_forward, key=keys[2]), self.feed_forward_norm, keys[3]),
        )
        for act, norm, one in parts:
            if self.norm == "pre":
                states = states + _dropout(act(norm(states)), self.dropout, one)
            else:
                states = norm(states + _dropout(act(states), self.dropout, one))
        return states


class TextEmbedding(eqx.Module):
    """Words, positions and the types of a pair's two halves, added and normalised."""

    words: eqx.nn.Embedding
    positions: Float[Array, "positions width"]
    types: eqx.nn.Embedding
    norm: LayerNorm
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        vocabulary: int,
        positions: int,
        types: int,
        width: int,
        epsilon: float,
        dropout: float,
        *,
        key: PRNGKeyArray,
    ):
        keys = jax.random.split(key, 3)
        tables = [
            0.02 * jax.random.normal(k, (n, width)) for k, n in zip(keys, (vocabulary, positions, types), strict=True)
        ]
        self.words, self.positions, self.types = (
            eqx.nn.Embedding(weight=tables[0]),
            tables[1],
            eqx.nn.Embedding(weight=tables[2]),
        )
        self.norm, self.dropout = LayerNorm(width, epsilon), dropout

    def __call__(
        self, tokens: Integer[Array, " T"], types: Integer[Array, " T"] | None, key: PRNGKeyArray | None
    ) -> Array:
        which = self.types.weight[0] if types is None else jax.vmap(self.types)(types)
        states = jax.vmap(self.words)(tokens) + which + self.positions[: len(tokens)]
        return _dropout(self.norm(states), self.dropout, key)


class ImageEmbedding(eqx.Module):
    """Patches by one convolution, or by several with GELU between them; the special tokens stand before them."""

    stem: tuple[eqx.nn.Conv2d, ...]
    positions: Float[Array, "positions width"]
    class_token: Float[Array, " width"] | None
    distillation_token: Float[Array, " width"] | None
    in_shape: tuple[int, int, int] = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        patch: tuple[int, int],
        stem: str,
        special: tuple[str, ...],
        width: int,
        dropout: float,
        *,
        key: PRNGKeyArray,
    ):
        keys = jax.random.split(key, 2)
        if stem == "patches":
            self.stem = (eqx.nn.Conv2d(in_shape[0], width, patch, patch, key=keys[0]),)
            count = (in_shape[1] // patch[0]) * (in_shape[2] // patch[1])
        else:
            layers = patch[0].bit_length() - 1
            sizes = (in_shape[0], *(width >> (layers - 1 - i) for i in range(layers)))
            pairs = zip(sizes[:-1], sizes[1:], jax.random.split(keys[0], layers), strict=True)
            self.stem = tuple(eqx.nn.Conv2d(a, b, 3, 2, padding=1, key=k) for a, b, k in pairs)
            count = -(-in_shape[1] // patch[0]) * -(-in_shape[2] // patch[1])
        tables = 0.02 * jax.random.normal(keys[1], (count + 2 * len(special), width))
        self.positions = tables[: count + len(special)]
        self.class_token = tables[-1] if "class" in special else None
        self.distillation_token = tables[-2] if "distillation" in special else None
        self.in_shape, self.dropout = in_shape, dropout

    def __call__(self, image: Float[Array, "channels height width"], key: PRNGKeyArray | None) -> Array:
        x = image.astype(self.positions.dtype)
        for layer, convolution in enumerate(self.stem):
            x = convolution(_gelu(x) if layer else x)
        special = [t[None] for t in (self.class_token, self.distillation_token) if t is not None]
        states = jnp.concatenate([*special, x.reshape(len(x), -1).T])
        return _dropout(states + self.positions, self.dropout, key)


class ClassificationHead(eqx.Module):
    """A linear layer on the first token; before it, for texts, the pooler: `tanh(W h + b)`."""

    pooler: eqx.nn.Linear | None
    classifier: eqx.nn.Linear
    dropout: float = eqx.field(static=True)

    def __call__(self, states: Float[Array, "T width"], mask: Array | None, key: PRNGKeyArray | None) -> Array:
        h = states[0] if self.pooler is None else jnp.tanh(self.pooler(states[0]))
        return self.classifier(_dropout(h, self.dropout, key))


class MeanHead(eqx.Module):
    """A linear layer on the mean of the unmasked tokens; of none, the mean is zero."""

    classifier: eqx.nn.Linear
    dropout: float = eqx.field(static=True)

    def __call__(
        self, states: Float[Array, "T width"], mask: Bool[Array, " T"] | None, key: PRNGKeyArray | None
    ) -> Array:
        full = wide(states)
        seen = jnp.ones(len(states), full.dtype) if mask is None else mask.astype(full.dtype)
        mean = (seen @ full / jnp.maximum(seen.sum(), 1)).astype(states.dtype)
        return self.classifier(_dropout(mean, self.dropout, key))


class DistillationHead(eqx.Module):
    """A linear layer on the class token and one on the distillation token; their mean."""

    classifier: eqx.nn.Linear
    distillation_classifier: eqx.nn.Linear

    def both(self, states: Float[Array, "T width"]) -> tuple[Array, Array]:
        return self.classifier(states[0]), self.distillation_classifier(states[1])

    def __call__(self, states: Float[Array, "T width"], mask: Array | None, key: PRNGKeyArray | None) -> Array:
        first, second = self.both(states)
        return (first + second) / 2


class WordsHead(eqx.Module):
    """`norm(gelu(W h + b)) Eᵀ + c`, where `E` is the table of the words, or the decoder's own."""

    transform: eqx.nn.Linear
    norm: LayerNorm
    decoder: eqx.nn.Linear | None
    bias: Float[Array, " vocabulary"]

    def words(self, states: Float[Array, "m width"], table: Any) -> Float[Array, "m vocabulary"]:
        h = self.norm(_gelu(_each(self.transform, states)))
        return (_each(self.decoder, h) if self.decoder is not None else h @ table.T) + self.bias


def make_head(
    head: str,
    width: int,
    classes: int,
    vocabulary: int | None,
    tied: bool,
    epsilon: float,
    dropout: float,
    key: PRNGKeyArray,
) -> Any:
    """A new head; the transform of a masked-word head starts as the identity."""
    first, second = jax.random.split(key)
    if head == "words":
        assert vocabulary is not None
        transform = eqx.tree_at(lambda m: m.weight, _linear(width, width, first), jnp.eye(width))
        decoder = None if tied else _linear(width, vocabulary, second, bias=False)
        return WordsHead(transform, LayerNorm(width, epsilon), decoder, jnp.zeros(vocabulary))
    classifier = _linear(width, classes, first)
    if head == "mean":
        return MeanHead(classifier, dropout)
    if head == "distillation":
        return DistillationHead(classifier, _linear(width, classes, second))
    return ClassificationHead(_linear(width, width, second) if vocabulary is not None else None, classifier, dropout)


def _checked(name: str, values: ArrayLike, size: int, cure: str) -> Integer[Array, " T"]:
    """Indices of type int32, all of them inside a table of `size` rows.

    **Raises:** `ValueError`, where the values are known; else an error when the program runs (a look-up clamps).
    """
    limit = min(size - 1, int(jnp.iinfo(values.dtype).max))  # pyright: ignore
    message = f"{name} must lie between 0 and {size - 1}; {cure}"
    if not isinstance(values, Tracer):
        known = np.asarray(values)
        if known.size and not (known.min() >= 0 and known.max() <= limit):
            raise ValueError(f"{message}; got {known.min()} to {known.max()}")
        return jnp.asarray(known.astype(np.int32))
    outside = jnp.any((values < 0) | (values > limit))
    return eqx.error_if(values.astype(jnp.int32), outside, message)


def _is_integer(x: Any, boolean: bool = False) -> bool:
    return jnp.issubdtype(x.dtype, jnp.integer) or (boolean and x.dtype == jnp.bool_)


@final
class Transformer(eqx.Module):
    r"""An encoder of attention blocks with a head: `H₀ = embed(x)`, `H_l = block_l(H_{l-1})`, logits `head(H_L)`.

    A block of a text (BERT) is `A = norm(H + attention(H))`, `H' = norm(A + W₂ gelu(W₁ A))`; of an image (ViT, DeiT) it
    is `A = H + attention(norm(H))`, `H' = A + W₂ gelu(W₁ norm(A))`, with one more norm after the last. The layers have
    the names `query`, `key`, `value`, `output` (of `net.blocks[l].attention`) and `up`, `down` (of `.feed_forward`).

    **Reference:** Vaswani et al. (2017), Attention Is All You Need; Devlin et al. (2019), BERT; Dosovitskiy et al.
    (2021), An Image Is Worth 16×16 Words; Touvron et al. (2021), Training data-efficient image transformers;
    Xiao et al. (2021), Early Convolutions Help Transformers See Better.

    **Example:**

        net = wm.models.Transformer(vocabulary=1000, width=64, depth=2, heads=4, units=256, classes=5, key=key)
        logits = jax.vmap(net)(tokens, mask)  # tokens, mask: (batch, T)
        vit = wm.models.Transformer(in_shape=(3, 32, 32), patch=4, stem="convolutions", head="mean",
                                    width=128, depth=5, heads=4, units=256, classes=10, key=key)
    """

    embedding: TextEmbedding | ImageEmbedding
    blocks: tuple[Block, ...]
    norm: LayerNorm | None
    head: Any

    def __init__(
        self,
        *,
        vocabulary: int | None = None,
        in_shape: tuple[int, int, int] | None = None,
        head: str = "classification",
        classes: int = 2,
        width: int = 384,
        depth: int = 6,
        heads: int = 12,
        units: int = 1536,
        positions: int = 512,
        types: int = 2,
        tied: bool = True,
        patch: int | tuple[int, int] = 16,
        stem: str = "patches",
        special: tuple[str, ...] | None = None,
        norm: str | None = None,
        query_bias: bool = True,
        epsilon: float | int = 1e-12,
        dropout: float | int = 0.1,
        attention_dropout: float | int | None = None,
        head_dropout: float | int | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `vocabulary`: for texts, the number of words; or
        - `in_shape`: for images, (channels, height, width).
        - `head`: "classification" (on the first token; for texts through a pooler), "mean" (on the mean of the unmasked
          tokens), "words" (masked words, for texts) or "distillation" (DeiT's two).
        - `classes`: the number of classes.
        - `width`, `depth`, `heads`, `units`: of the states, how many blocks, how many heads share the width, and the
          hidden units of a feed-forward layer.
        - `positions`, `types`: for texts, the greatest length and the number of token types.
        - `tied`: whether a masked-word head reads the table of the words, or a matrix of its own.
        - `patch`, `stem`: for images, the size of a patch, and "patches" (one projection) or "convolutions": 3 × 3, of
          stride 2, as many as halve the image down to one token a patch.
        - `special`: tokens before the patches, ("class",), ("class", "distillation") or (); as the head needs them.
        - `norm`: "post" (default for texts) or "pre" (for images).
        - `query_bias`: whether queries, keys and values have biases.
        - `epsilon`: ε of the layer norms.
        - `dropout`, `attention_dropout`, `head_dropout`: rates, of the states, of the attention and before the
          classifier; by default as the first, but none before the classifier of images.
        - `key`: for the initial weights: of standard deviation 0.02 (a stem's are those of Equinox).

        **Raises:** `ValueError` for sizes that are not positive or do not fit, and for settings that do not exist.
        """
        if (vocabulary is None) == (in_shape is None):
            raise ValueError("give either vocabulary, for texts, or in_shape, for images")
        kind = "text" if in_shape is None else "image"
        if head not in HEADS[kind]:
            raise ValueError(f"head must be one of {', '.join(HEADS[kind])} for a network of {kind}s, got {head!r}")
        norm = {"text": "post", "image": "pre"}[kind] if norm is None else norm
        if norm not in ("pre", "post"):
            raise ValueError(f'norm must be "pre" or "post", got {norm!r}')
        check_sizes(classes=classes, width=width, depth=depth, heads=heads, units=units)
        if width % heads:
            raise ValueError(f"the width must be a multiple of the heads, got width={width} and heads={heads}")
        if head_dropout is None and kind == "image":
            head_dropout = 0.0
        rates = [float(dropout if rate is None else rate) for rate in (dropout, attention_dropout, head_dropout)]
        if not all(0 <= rate < 1 for rate in rates):
            raise ValueError(f"rates of dropout must be at least 0 and less than 1, got {rates}; 0 drops nothing")
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}; BERT's and ViT's is 1e-12")
        epsilon, dropout = float(epsilon), rates[0]
        keys = jax.random.split(key, 2 + depth)
        if in_shape is None:
            check_sizes(vocabulary=vocabulary, positions=positions, types=types)
            assert vocabulary is not None
            self.embedding = TextEmbedding(vocabulary, positions, types, width, epsilon, dropout, key=keys[0])
        else:
            needed = {"mean": (), "distillation": ("class", "distillation")}.get(head, ("class",))
            tokens = needed if special is None else special
            patch = _check_image_settings(in_shape, patch, stem, tokens, needed, width)
            self.embedding = ImageEmbedding(in_shape, patch, stem, tokens, width, dropout, key=keys[0])
        blocks = []
        for one in keys[2:]:
            first, second = jax.random.split(one)
            attention = Attention(width, heads, rates[1], query_bias, key=first)
            norms = LayerNorm(width, epsilon), LayerNorm(width, epsilon)
            blocks.append(Block(attention, norms[0], FeedForward(width, units, key=second), norms[1], norm, dropout))
        self.blocks = tuple(blocks)
        self.norm = LayerNorm(width, epsilon) if norm == "pre" else None
        self.head = make_head(head, width, classes, vocabulary, tied, epsilon, rates[2], keys[1])

    def hidden(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        types: ArrayLike | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "T width"]:
        """The last states `H_L` of the encoder, one for each token; arguments as for a call."""
        return self._encode(x, mask, types, key)[0]

    def words(self, states: Float[Array, "m width"]) -> Float[Array, "m vocabulary"]:
        """The masked-word head at the states of the positions that are asked.

        **Raises:** `ValueError` if the network has none.

        **Example:**

            logits = net.words(net.hidden(tokens, mask)[positions])
        """
        if not isinstance(self.head, WordsHead) or not isinstance(self.embedding, TextEmbedding):
            raise ValueError('the network has no masked-word head; load or make it with head="words"')
        return self.head.words(states, self.embedding.words.weight)

    def heads(self, image: ArrayLike) -> tuple[Float[Array, " classes"], Float[Array, " classes"]]:
        """The logits of DeiT's class token and of its distillation token; a call returns their mean.

        **Raises:** `ValueError` if the network has not both heads.
        """
        if not isinstance(self.head, DistillationHead):
            raise ValueError('the network has no distillation head; load or make it with head="distillation"')
        return self.head.both(self.hidden(image))

    def __call__(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        types: ArrayLike | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*T classes"]:
        """Logits of one text or one image; `jax.vmap` takes a batch.

        **Arguments:**

        - `x`: the tokens of a text, integers of shape `(T,)`, or an image of shape `(channels, height, width)`.
        - `mask`: 1 or true for the tokens that count, 0 or false for padding, `(T,)`; None if all count. Pad on the right: a
          position is a place in the row, and the classification head reads the first token, also where it is padding.
        - `types`: which half of a pair a token belongs to, `(T,)`; None if there is one text.
        - `key`: for dropout; without a key nothing is dropped.

        **Returns:** `(classes,)`; `(T, vocabulary)` of a masked-word head.

        **Raises:** `ValueError` for arguments of other shapes or types, and for tokens, positions or types outside
        their tables; under `jax.jit`, where they are not known, the program that runs raises an error.
        """
        first, second = _split(key, 2)
        states, seen = self._encode(x, mask, types, first)
        return self.words(states) if isinstance(self.head, WordsHead) else self.head(states, seen, second)

    def _encode(self, x: Any, mask: Any, types: Any, key: PRNGKeyArray | None) -> tuple[Array, Array | None]:
        keys = _split(key, len(self.blocks) + 1)
        if isinstance(self.embedding, ImageEmbedding):
            if mask is not None or types is not None:
                raise ValueError("a network of images takes neither mask nor types; give net(image)")
            x = jnp.asarray(x)
            check_image(x, self.embedding.in_shape[0])
            if x.shape != self.embedding.in_shape or not jnp.issubdtype(x.dtype, jnp.floating):
                wanted = self.embedding.in_shape
                raise ValueError(
                    f"an image must be floating-point of shape {wanted}, got {x.dtype} of {x.shape}; resize it"
                )
            seen, states = None, self.embedding(x, keys[-1])
        else:
            tokens, seen, types = self._check_text(x, mask, types)
            states = self.embedding(tokens, types, keys[-1])
        for block, one in zip(self.blocks, keys[:-1], strict=True):
            states = block(states, seen, one)
        return states if self.norm is None else self.norm(states), seen

    def _check_text(self, tokens: Any, mask: Any, types: Any) -> tuple[Array, Array | None, Array | None]:
        assert isinstance(self.embedding, TextEmbedding)
        tokens, mask, types = (x if x is None or hasattr(x, "dtype") else np.asarray(x) for x in (tokens, mask, types))
        if tokens.ndim != 1 or not len(tokens) or not _is_integer(tokens):
            raise ValueError(
                f"tokens must be the integers of one text, of shape (T,), got {tokens.dtype} of {tokens.shape}; use"
                " jax.vmap for a batch"
            )
        for name, array in (("mask", mask), ("types", types)):
            if array is not None and (array.shape != tokens.shape or not _is_integer(array, name == "mask")):
                kind = "0 and 1, or booleans," if name == "mask" else "integers"
                raise ValueError(
                    f"{name} must be {kind} of the tokens' shape {tokens.shape}, got {array.dtype} of {array.shape}"
                )
        vocabulary, (positions, _) = self.embedding.words.weight.shape[0], self.embedding.positions.shape
        if len(tokens) > positions:
            raise ValueError(f"the network has {positions} positions and the text {len(tokens)} tokens; cut the text")
        tokens = _checked("tokens", tokens, vocabulary, "use the tokenizer of the checkpoint")
        if mask is not None:
            mask = (
                jnp.asarray(mask)
                if mask.dtype == jnp.bool_
                else _checked("mask", mask, 2, "1 counts, 0 is padding") == 1
            )
        if types is not None:
            count = self.embedding.types.weight.shape[0]
            types = _checked("types", types, count, "0 and 1 are a pair's halves, of the network's token types")
        return tokens, mask, types


def _check_image_settings(
    in_shape: Any, patch: Any, stem: str, special: Any, needed: tuple[str, ...], width: int
) -> tuple[int, int]:
    """The sides of a patch; `ValueError` unless the settings fit one another."""
    check_in_shape(in_shape)
    patch = (patch, patch) if not isinstance(patch, (tuple, list)) else tuple(patch)
    check_sizes(in_shape=in_shape, patch=patch)
    if len(patch) != 2 or patch[0] > in_shape[1] or patch[1] > in_shape[2]:
        raise ValueError(f"a patch of {patch} does not fit into images of {in_shape}; give a smaller one")
    if stem not in ("patches", "convolutions"):
        raise ValueError(f'stem must be "patches" or "convolutions", got {stem!r}')
    if stem == "convolutions":
        side = patch[0]
        if patch[1] != side or side < 2 or side & (side - 1):
            raise ValueError(f"a stem of convolutions halves the image: patch must be a power of 2, got {patch}")
        check_count("width, which halves with each convolution of the stem but the last,", width, side // 2)
    if special not in ((), ("class",), ("class", "distillation")):
        raise ValueError(f'special must be (), ("class",) or ("class", "distillation"), got {special}')
    if len(special) < len(needed):
        raise ValueError(f'the head reads the tokens {needed}, and special is {special}; head="mean" needs none')
    return patch
