"""The residual network, against an independent one in PyTorch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.models import ResNet

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


def in_torch(model: ResNet, kind: str):
    """The architecture written again and given the same weights."""
    torch = pytest.importorskip("torch")

    class LayerNormOverChannels(torch.nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    def groups_of_16(channels):
        return torch.nn.GroupNorm(max(1, channels // 16), channels)

    norm = {"layer": LayerNormOverChannels, "group": groups_of_16}[kind]

    class Block(torch.nn.Module):
        def __init__(self, inputs, channels, stride):
            super().__init__()
            conv = torch.nn.Conv2d
            self.body = torch.nn.Sequential(
                conv(inputs, channels, 3, stride, 1, bias=False),
                norm(channels),
                torch.nn.ReLU(),
                conv(channels, channels, 3, 1, 1, bias=False),
                norm(channels),
            )
            self.short = torch.nn.Sequential()
            if stride > 1 or inputs != channels:
                self.short = torch.nn.Sequential(conv(inputs, channels, 1, stride, bias=False), norm(channels))

        def forward(self, x):
            return torch.relu(self.body(x) + self.short(x))

    width, channels = model.stem.weight.shape[:2]
    layers = [torch.nn.Conv2d(channels, width, 3, padding=1, bias=False), norm(width), torch.nn.ReLU()]
    order = [model.stem, model.norm]
    for block in model.blocks:
        first, second = block.convolutions
        layers.append(Block(first.weight.shape[1], first.weight.shape[0], first.stride[0]))
        order += [first, block.norms[0], second, block.norms[1]]
        order += [block.shortcut, block.norms[2]] if block.shortcut is not None else []
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(*model.output.weight.shape[::-1])]
    theirs = torch.nn.Sequential(*layers)
    arrays = [array for layer in [*order, model.output] for array in (layer.weight, getattr(layer, "bias", None))]
    arrays = [array for array in arrays if array is not None]
    for parameter, array in zip(theirs.parameters(), arrays, strict=True):
        parameter.data = torch.tensor(np.array(array)).reshape(parameter.shape)
    return theirs


def images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"in_shape": (3, 16, 16), "width": 4, "blocks": (2, 2), "norm": "layer"},
        {"in_shape": (3, 8, 8), "width": 16, "blocks": (1, 1), "norm": "group"},
        {"in_shape": (1, 9, 7), "width": 3, "blocks": (1, 1, 1), "classes": 5},
    ],
    ids=["layer", "group", "three stages"],
)
def test_agrees_with_torch_in_outputs_and_gradients(options):
    torch = pytest.importorskip("torch")
    model = fill(lambda: ResNet(**options, key=KEY))
    theirs = in_torch(model, options.get("norm", "layer"))
    x = images(2, *options["in_shape"])

    @jax.jit
    def ours(x):
        return jax.vjp(jax.vmap(model), x)[0], jax.grad(lambda x: jnp.sum(jnp.sin(jax.vmap(model)(x))))(x)

    y, gradient = ours(x)
    given = torch.tensor(np.array(x), requires_grad=True)
    wanted = theirs(given)
    np.testing.assert_allclose(y, wanted.detach().numpy(), atol=2e-5)
    wanted.sin().sum().backward()
    np.testing.assert_allclose(gradient, given.grad.numpy(), atol=1e-4)


def test_of_the_default_sizes_has_the_weights_of_resnet_18():
    model = eqx.filter_eval_shape(lambda: ResNet(key=KEY))
    by_hand, inputs = 3 * 9 * 64 + 2 * 64 + (512 + 1) * 10, 64
    for channels in (64, 128, 256, 512):
        by_hand += 9 * channels * (inputs + 3 * channels) + 8 * channels  # four convolutions and their norms
        by_hand += inputs * channels + 2 * channels if inputs != channels else 0  # the shortcut
        inputs = channels
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == by_hand == 11_173_962


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.sampled_from(["layer", "group"]))
def test_has_one_convolution_of_stride_two_for_each_further_stage(width, stages, norm):
    model = eqx.filter_eval_shape(lambda: ResNet((2, 8, 8), 3, width, (1,) * stages, norm, key=KEY))
    assert [block.convolutions[0].stride for block in model.blocks] == [(1, 1)] + [(2, 2)] * (stages - 1)
    assert model.output.weight.shape == (3, width * 2 ** (stages - 1))
    assert eqx.filter_eval_shape(model, jnp.zeros((2, 8, 8))).shape == (3,)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_does_not_notice_the_scale_of_a_convolution(norm):
    model = fill(lambda: ResNet((1, 4, 4), width=4, blocks=(1,), norm=norm, key=KEY))
    larger = eqx.tree_at(lambda m: m.stem.weight, model, replace_fn=lambda w: 10 * w)
    x = images(1, 4, 4)
    call = eqx.filter_jit(lambda model: model(x))
    np.testing.assert_allclose(call(model), call(larger), atol=1e-3)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_can_be_modulated_as_it_is(norm):
    model = ResNet((1, 4, 4), classes=2, width=3, blocks=(1,), norm=norm, key=KEY)
    net = wm.modulate(model, wm.Ellipse(), key=KEY, spread=0.5)
    x = images(1, 4, 4)
    together, built = eqx.filter_jit(lambda net, s: (net(x, s), net.at(s)(x)))(net, jnp.asarray(0.3))
    np.testing.assert_allclose(together, built, atol=1e-5)
    assert not net.model.norm.weight.value[1:].any()  # a constant gain starts constant


def test_follows_its_key():
    def last(key):
        return ResNet((1, 2, 2), width=2, blocks=(1,), key=key).output.weight

    np.testing.assert_array_equal(last(KEY), last(KEY))
    assert (last(KEY) != last(jax.random.key(1))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, r'norm must be "layer" or "group", got \'batch\'; batch normalisation keeps a state'),
        ({"in_shape": (3, 0, 4)}, r"sizes must be positive, got in_shape=\(3, 0, 4\)"),
        ({"classes": 0}, r"sizes must be positive, .*classes=0"),
        ({"width": -8}, r"sizes must be positive, .*width=-8"),
        ({"blocks": (2, 0)}, r"sizes must be positive, .*blocks=\(2, 0\)"),
        ({"blocks": ()}, r"at least one stage"),
    ],
    ids=str,
)
def test_of_sizes_that_fit_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options, key=KEY)
