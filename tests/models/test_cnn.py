"""The paper's convolutional network, against an independent one in PyTorch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmlib.models import CNN, cnn

KEY = jax.random.key(0)


def fill(make):
    """A model with random numbers for all its weights, without running its initialisers."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        fan_in = int(np.prod(leaf.shape[1:])) or 1
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), jnp.float32)

    return jax.tree.map(draw, eqx.filter_eval_shape(make))


def in_torch(model: CNN):
    """The architecture of the paper's appendix D, written again and given the same weights."""
    torch = pytest.importorskip("torch")
    layers, pairs = [], []
    for convolution in model.convolutions:
        channels_out, channels_in = convolution.weight.shape[:2]
        layers += [torch.nn.Conv2d(channels_in, channels_out, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        pairs.append((layers[-3], convolution))
    layers.append(torch.nn.Flatten())
    for linear in (model.hidden, model.output):
        layers += [torch.nn.Linear(linear.weight.shape[1], linear.weight.shape[0]), torch.nn.ReLU()]
        pairs.append((layers[-2], linear))
    for theirs, ours in pairs:
        theirs.weight.data = torch.tensor(np.array(ours.weight))
        theirs.bias.data = torch.tensor(np.array(ours.bias).reshape(-1))
    return torch.nn.Sequential(*layers[:-1])


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype("float32")


class TestCNN:
    @pytest.mark.parametrize(
        "options",
        [
            {"in_shape": (3, 32, 32), "widths": (8, 16, 32), "units": 64},
            {"in_shape": (1, 28, 28), "widths": (4, 6), "units": 10, "classes": 7},
            {"in_shape": (2, 17, 13), "widths": (4, 5, 6), "units": 9},  # odd: a last row and column are dropped
            {"in_shape": (2, 5, 4), "widths": (), "units": 9, "classes": 1},
        ],
        ids=str,
    )
    def test_agrees_with_torch_in_outputs_and_gradients(self, options):
        model = fill(lambda: CNN(**options, key=KEY))
        torch = pytest.importorskip("torch")
        theirs = in_torch(model)
        x = images(3, *options["in_shape"])

        @jax.jit
        def ours(model, x):
            def loss(model):
                y = jax.vmap(model)(x)
                return jnp.sum(jnp.sin(y)), y

            (_, y), gradient = jax.value_and_grad(loss, has_aux=True)(model)
            return y, gradient

        y, gradient = ours(model, x)
        wanted = theirs(torch.tensor(x))
        np.testing.assert_allclose(y, wanted.detach().numpy(), atol=1e-5)
        wanted.sin().sum().backward()
        parameters = list(theirs.parameters())
        for got, parameter in zip(jax.tree.leaves(gradient), parameters, strict=True):
            wanted = parameter.grad.numpy().reshape(got.shape)
            np.testing.assert_allclose(got, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))

    def test_of_the_paper_has_its_number_of_weights(self):
        model = eqx.filter_eval_shape(lambda: CNN(key=KEY))
        by_hand = (3 * 9 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 9 + 1) * 128 + (128 * 4 * 4 + 1) * 512 + (512 + 1) * 10
        assert sum(leaf.size for leaf in jax.tree.leaves(model)) == by_hand == 1_147_466

    def test_has_room_for_extra_inputs_of_the_hidden_layer(self):
        model = fill(lambda: CNN((1, 8, 8), widths=(2, 3), units=5, extra=4, key=KEY))
        assert model.hidden.weight.shape == (5, 3 * 2 * 2 + 4)
        features = model.features(jnp.asarray(images(1, 8, 8)))
        assert features.shape == (12,)
        assert model.classify(jnp.concatenate([features, jnp.zeros(4)])).shape == (10,)

    def test_lets_each_layer_be_adapted_before_its_rectifier(self):
        model = fill(lambda: CNN((1, 8, 8), widths=(2, 3), units=5, key=KEY))
        seen = []
        silent = model.features(
            jnp.asarray(images(1, 8, 8)), lambda layer, h: (seen.append((layer, h.shape)), -jnp.abs(h))[1]
        )
        assert seen == [(0, (2, 8, 8)), (1, (3, 4, 4))]
        assert not silent.any()

    def test_follows_its_key(self):
        def first(key):
            return CNN((1, 4, 4), widths=(2,), units=3, key=key).hidden.weight

        np.testing.assert_array_equal(first(KEY), first(KEY))
        assert (first(KEY) != first(jax.random.key(1))).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"in_shape": (3, 4, 32)}, r"3 poolings need images of at least 8 × 8, got 4 × 32; give fewer widths"),
            ({"in_shape": (3, 32, 0)}, r"at least 8 × 8, got 32 × 0"),
            ({"in_shape": (0, 32, 32)}, r"sizes must be positive, got in_shape=\(0, 32, 32\)"),
            ({"classes": 0}, r"sizes must be positive, .*classes=0"),
            ({"widths": (8, -1)}, r"sizes must be positive, .*widths=\(8, -1\)"),
            ({"units": -5}, r"sizes must be positive, .*units=-5"),
            ({"extra": -1}, "extra must be at least 0"),
        ],
        ids=str,
    )
    def test_of_sizes_that_fit_nothing_is_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            CNN(**options, key=KEY)


class TestPooling:
    @settings(max_examples=5, deadline=None)
    @given(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9))
    def test_is_that_of_equinox_at_odd_sizes_too(self, channels, height, width):
        x = images(channels, height, width)
        got, wanted = cnn._halve(jnp.asarray(x)), eqx.nn.MaxPool2d(2, 2)(jnp.asarray(x))
        np.testing.assert_array_equal(got, wanted)

    def test_has_the_gradient_of_equinox(self):
        x = jnp.asarray(images(2, 7, 6))
        got, wanted = (jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x) for f in (cnn._halve, eqx.nn.MaxPool2d(2, 2)))
        np.testing.assert_allclose(got, wanted, atol=1e-6)
