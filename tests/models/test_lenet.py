"""LeNet-300-100, against an independent one in PyTorch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.models import LeNet300

KEY = jax.random.key(0)


def in_torch(model: LeNet300):
    """The architecture written again and given the same weights."""
    torch = pytest.importorskip("torch")
    parts = [torch.nn.Flatten()]
    for layer in model.layers:
        theirs = torch.nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
        theirs.weight.data = torch.tensor(np.array(layer.weight))
        theirs.bias.data = torch.tensor(np.array(layer.bias))
        parts += [theirs, torch.nn.ReLU()]
    return torch.nn.Sequential(*parts[:-1])


def images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    units=st.lists(st.integers(1, 12), max_size=3).map(tuple),
    classes=st.integers(2, 7),
)
def test_the_outputs_are_those_of_the_same_network_in_torch(shape, units, classes):
    torch = pytest.importorskip("torch")
    model, x = LeNet300(shape, classes, units, key=KEY), images(4, *shape)
    with torch.no_grad():
        theirs = in_torch(model)(torch.tensor(np.array(x))).numpy()
    np.testing.assert_allclose(jax.vmap(model)(x), theirs, rtol=1e-5, atol=1e-5)


def test_the_gradients_are_those_of_torch():
    torch = pytest.importorskip("torch")
    model, x, labels = LeNet300((1, 6, 6), 4, (8, 5), key=KEY), images(7, 1, 6, 6), np.arange(7) % 4

    def loss(net):
        return -jax.nn.log_softmax(jax.vmap(net)(x))[jnp.arange(7), labels].mean()

    ours, theirs = eqx.filter_grad(loss)(model), in_torch(model)
    torch.nn.functional.cross_entropy(theirs(torch.tensor(np.array(x))), torch.tensor(labels)).backward()
    flat = [p.grad for p in theirs.parameters() if p.grad is not None]
    assert len(flat) == 6
    for a, b in zip(jax.tree.leaves(ours), flat, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-6)


def test_the_default_is_lenet_300_100():
    model = eqx.filter_eval_shape(LeNet300, key=KEY)
    sizes = [x.size for x in jax.tree.leaves(model) if isinstance(x, jax.ShapeDtypeStruct)]
    assert sum(sizes) == 266_610
    assert wm.models.LeNet300 is LeNet300


@pytest.mark.parametrize("wrong", [{"in_shape": (0, 28, 28)}, {"classes": 0}, {"units": (300, 0)}])
def test_sizes_must_be_positive(wrong):
    with pytest.raises(ValueError, match="sizes must be positive"):
        LeNet300(**wrong, key=KEY)
