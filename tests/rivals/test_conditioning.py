"""The paper's rivals: the same network, told its context in other ways."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmlib.models import CNN
from wmlib.rivals import Concat, Embed, FiLM, Unconditioned

KEY = jax.random.key(0)
SIZES = {"in_shape": (2, 9, 8), "classes": 4, "widths": (3, 5), "units": 6}
RIVALS = [Unconditioned, Concat, Embed, FiLM]
every_rival = pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.__name__)
CONDITIONED = pytest.mark.parametrize("rival", RIVALS[1:], ids=lambda rival: rival.__name__)
X = jnp.asarray(np.random.default_rng(1).normal(size=SIZES["in_shape"]), jnp.float32)


def fill(make):
    """A model with random numbers for all its weights, without running its initialisers."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf

    return jax.tree.map(draw, eqx.filter_eval_shape(make))


def count(make) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter_eval_shape(make)) if hasattr(leaf, "size"))


@eqx.filter_jit
def forward(net, x, s):
    return jax.vmap(net)(x, s)


def rows(net, s) -> np.ndarray:
    """The logits of one image in at most four contexts (always four, so that a network compiles once)."""
    padded = jnp.asarray(np.resize(np.asarray(s, "float32"), 4))
    return np.asarray(forward(net, jnp.stack([X] * 4), padded))[: len(s)]


def circle(s: float) -> np.ndarray:
    return np.array([np.cos(2 * np.pi * s), np.sin(2 * np.pi * s)], "float32")


def relu(x):
    return np.maximum(np.asarray(x), 0)


@every_rival
def test_is_called_as_a_modulated_network_is(rival):
    net = fill(lambda: rival(**SIZES, key=KEY))
    batch, s = jnp.stack([X, -X, 2 * X, X]), jnp.array([0.1, 0.4, 0.9, 0.1])
    y = forward(net, batch, s)
    assert y.shape == (4, 4)
    np.testing.assert_allclose(y[1], net(batch[1], s[1]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y[3], y[0], rtol=1e-5)


@every_rival
def test_sees_the_same_context_one_period_later(rival):
    net = fill(lambda: rival(**SIZES, key=KEY))
    s = np.array([0.0, 0.13, 0.5, 0.99])
    one, other = rows(net, s), rows(net, s + 1)
    np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(one).max())
    seam = rows(net, [1e-6, 1 - 1e-6])
    np.testing.assert_allclose(seam[0], seam[1], atol=1e-3 * np.abs(one).max())


@CONDITIONED
def test_tells_contexts_apart_and_learns_from_them(rival):
    net = fill(lambda: rival(**SIZES, key=KEY))
    logits = rows(net, [0.0, 0.25, 0.5, 0.75])
    assert all(np.abs(logits[i] - logits[j]).max() > 1e-2 for i in range(4) for j in range(i))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda net: jnp.sum(net(X, 0.2) ** 2)))(net)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@every_rival
def test_passes_its_sizes_to_its_network(rival):
    cnn = eqx.filter_eval_shape(lambda: rival(**SIZES, key=KEY)).cnn
    assert [c.weight.shape[0] for c in cnn.convolutions] == [3, 5]
    assert (cnn.hidden.weight.shape[0], cnn.output.weight.shape) == (6, (4, 6))
    with pytest.raises(ValueError, match=r"3 poolings need images of at least 8 × 8, got 4 × 4"):
        rival(in_shape=(3, 4, 4), key=KEY)


def test_unconditioned_is_the_plain_network():
    net = fill(lambda: Unconditioned(**SIZES, key=KEY))
    logits = rows(net, [0.0, 0.3])
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_allclose(logits[0], net.cnn(X), rtol=1e-4, atol=1e-4)


def test_concatenation_joins_cosine_and_sine_to_the_features():
    net = fill(lambda: Concat(**SIZES, key=KEY))
    inputs = np.concatenate([net.cnn.features(X), circle(0.3)])
    hidden = relu(np.asarray(net.cnn.hidden.weight) @ inputs + net.cnn.hidden.bias)
    np.testing.assert_allclose(rows(net, [0.3])[0], net.cnn.output.weight @ hidden + net.cnn.output.bias, rtol=1e-4)


def test_an_embedding_is_linear_and_32_wide_before_it_is_joined():
    net = fill(lambda: Embed(**SIZES, key=KEY))
    assert net.embedding.weight.shape == (32, 2)
    embedded = np.asarray(net.embedding.weight) @ circle(0.3) + net.embedding.bias
    inputs = np.concatenate([net.cnn.features(X), embedded])
    hidden = relu(np.asarray(net.cnn.hidden.weight) @ inputs + net.cnn.hidden.bias)
    np.testing.assert_allclose(rows(net, [0.3])[0], net.cnn.output.weight @ hidden + net.cnn.output.bias, rtol=1e-4)


class TestFiLM:
    def test_of_a_silent_generator_is_the_plain_network(self):
        net = fill(lambda: FiLM(**SIZES, key=KEY))
        zeros = jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_array(x) else x, net.generator)
        silent = eqx.tree_at(lambda net: net.generator, net, zeros)
        np.testing.assert_allclose(rows(silent, [0.1, 0.6]), np.tile(net.cnn(X), (2, 1)), rtol=1e-4, atol=1e-4)

    def test_scales_and_shifts_each_channel_before_its_rectifier(self):
        net = fill(lambda: FiLM(**SIZES, key=KEY))
        first, last = net.generator.layers
        code = np.asarray(last.weight) @ relu(np.asarray(first.weight) @ circle(0.3) + first.bias) + last.bias
        assert code.shape == (2 * (3 + 5),)
        h, start = X, 0
        for convolution in net.cnn.convolutions:
            channels = convolution.weight.shape[0]
            gain, shift = code[start : start + channels], code[8 + start : 8 + start + channels]
            h = np.asarray(convolution(jnp.asarray(h))) * (1 + gain[:, None, None]) + shift[:, None, None]
            h, start = eqx.nn.MaxPool2d(2, 2)(jnp.asarray(relu(h))), start + channels
        np.testing.assert_allclose(rows(net, [0.3])[0], net.cnn.classify(h.reshape(-1)), rtol=1e-3, atol=1e-3)

    def test_has_a_generator_as_wide_as_asked(self):
        net = eqx.filter_eval_shape(lambda: FiLM(**SIZES, width=7, key=KEY))
        assert [layer.weight.shape for layer in net.generator.layers] == [(7, 2), (16, 7)]


def test_their_extra_weights_are_few():
    plain = count(lambda: CNN(key=KEY))
    assert count(lambda: Unconditioned(key=KEY)) == plain
    assert count(lambda: Concat(key=KEY)) == plain + 2 * 512
    assert count(lambda: Embed(key=KEY)) == plain + 32 * 512 + 3 * 32
    assert count(lambda: FiLM(key=KEY)) == plain + 3 * 32 + 33 * 2 * (32 + 64 + 128)


@CONDITIONED
def test_can_be_shown_a_context_of_another_kind(rival):
    net = fill(lambda: rival(encode=lambda s: jnp.stack([s, s**2, 1 - s]), inputs=3, **SIZES, key=KEY))
    logits = rows(net, [0.0, 1.0])
    assert np.abs(logits[0] - logits[1]).max() > 1e-2
