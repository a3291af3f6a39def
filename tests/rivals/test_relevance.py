"""Relevance mapping networks: the formula, and what a later task can and cannot reach."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib import rivals
from wmlib.models import CNN
from wmlib.rivals import relevance

KEY = jax.random.key(0)
NET = CNN((1, 4, 4), 3, (2,), 5, key=KEY)
X, LABELS = jax.random.normal(KEY, (6, 1, 4, 4)), jnp.arange(6) % 3
TOLERANCE = {jnp.float16: 2e-3, jnp.bfloat16: 2e-2, jnp.float32: 1e-5}


class Layers(eqx.Module):
    """A convolution and a linear layer of some shapes, and what no task shares."""

    convolution: eqx.nn.Conv
    output: eqx.nn.Linear
    gain: jax.Array
    name: str = eqx.field(static=True)


# Axes of the convolution, its channels and kernel; inputs and outputs of the linear layer, whether it has a bias; type, seed.
SIZE = st.integers(1, 4)
NETWORKS = st.tuples(
    st.integers(1, 2), SIZE, SIZE, st.integers(1, 3), SIZE, SIZE, st.booleans(), st.sampled_from(list(TOLERANCE)), st.integers(0, 99)
)  # fmt: skip


def network(sizes):
    """A network of the sizes drawn, its type and seed."""
    axes, channels, filters, kernel, inputs, outputs, bias, dtype, seed = sizes
    keys = jax.random.split(jax.random.key(seed))
    convolution = eqx.nn.Conv(axes, channels, filters, kernel, key=keys[0])
    net = Layers(convolution, eqx.nn.Linear(inputs, outputs, bias, key=keys[1]), jnp.ones(2), "a name")
    return jax.tree.map(lambda x: x.astype(dtype), net), dtype, seed


def some(tree, seed, chance=0.5):
    """Booleans at random, of the shapes of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape) < chance), tree)


def rounded(task, seed):
    """As `relevance.rounded`, whose maps may not be empty: any booleans."""
    return eqx.tree_at(lambda t: t.maps, task, some(task.maps, seed))


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


class TestFormula:
    @settings(max_examples=6, deadline=None)
    @given(sizes=NETWORKS, sharpness=st.floats(0.5, 200))
    def test_a_network_is_of_the_weights_times_their_relevance(self, sizes, sharpness):
        net, dtype, seed = network(sizes)
        shared, task = relevance.split(net, sharpness=sharpness, key=jax.random.key(seed))
        made = relevance.apply(shared, task)
        assert jax.tree.structure(made) == jax.tree.structure(net)
        assert made.gain is net.gain
        assert made.convolution.bias is net.convolution.bias
        whole, count = 0.0, 0
        for layer in ("convolution", "output"):
            w, m = (np.asarray(getattr(t, layer).weight, np.float64) for t in (net, task.maps))
            assert ((m >= 0) & (m < 1)).all()
            r = 1 / (1 + np.exp(-sharpness * (m - 0.5)))
            got = getattr(made, layer).weight
            assert (got.dtype, got.shape) == (jnp.dtype(dtype), w.shape)
            np.testing.assert_allclose(np.asarray(got, np.float64), w * r, rtol=TOLERANCE[dtype] * (1 + sharpness / 10), atol=1e-6)  # fmt: skip
            whole, count = whole + r.sum(), count + r.size
        np.testing.assert_allclose(relevance.penalty(task), whole / count, rtol=1e-4)
        assert all(m.dtype == jnp.float32 for m in jax.tree.leaves(task.maps))

    @pytest.mark.parametrize("sharpness", [1.0, 7.0])
    def test_gradients_are_those_of_torch(self, sharpness):
        torch = pytest.importorskip("torch")
        layer = {"output": eqx.nn.Linear(3, 4, key=KEY)}
        shared, task = relevance.split(layer, sharpness=sharpness, key=KEY)
        x, y = np.linspace(-1, 1, 3, dtype=np.float32), 2

        def loss(shared, maps):
            net = relevance.apply(shared, eqx.tree_at(lambda t: t.maps, task, maps))
            own = eqx.tree_at(lambda t: t.maps, task, maps)
            return wm.objectives.cross_entropy(net["output"](x), np.asarray(y)) + 0.3 * relevance.penalty(own)

        value, slopes = jax.value_and_grad(loss, (0, 1))(shared, task.maps)
        w, m = (torch.tensor(np.asarray(t["output"].weight), requires_grad=True) for t in (shared, task.maps))
        r = torch.sigmoid(sharpness * (m - 0.5))
        logits = torch.nn.functional.linear(torch.tensor(x), r * w, torch.tensor(np.asarray(layer["output"].bias)))
        theirs = torch.nn.functional.cross_entropy(logits, torch.tensor(y)) + 0.3 * r.mean()
        theirs.backward()
        np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
        for ours, their in zip(slopes, (w, m), strict=True):
            np.testing.assert_allclose(ours["output"].weight, their.grad.numpy(), rtol=1e-4, atol=1e-6)

    @pytest.mark.filterwarnings("ignore:every shared weight is frozen")
    @settings(max_examples=6, deadline=None)
    @given(sizes=NETWORKS, threshold=st.floats(0, 0.9), own=st.booleans())
    def test_masks_are_those_of_a_loop(self, sizes, threshold, own):
        net, _, seed = network(sizes)
        shared, task = relevance.split(net, own=("output",) if own else (), sharpness=3.0, key=jax.random.key(seed))
        assert (shared.output.weight is None) == own
        assert (task.own.output.weight is net.output.weight) == own
        for r in jax.tree.leaves(task.relevance()):
            if not (np.asarray(r) > threshold).any():
                with pytest.raises(ValueError, match="lower the penalty or threshold"):
                    relevance.rounded(task, threshold)
                return
        first, second = relevance.rounded(task, threshold), rounded(task, seed)
        frozen = relevance.freeze(first)
        both = relevance.freeze(second, frozen)
        updates = jax.tree.map(jnp.ones_like, shared)
        still, held, total = relevance.free(updates, both), 0, 0
        for r, f, s, b, u in zip(*map(leaves, (task.relevance(), frozen, second.maps, both, still)), strict=True):
            for at in np.ndindex(r.shape):
                assert f[at] == (r[at] > threshold)
                assert b[at] == (f[at] or s[at])
                assert u[at] == (0 if b[at] else 1)
                held, total = held + b[at], total + 1
        assert relevance.share(both) == held / total
        # In whatever order the tasks came; and what is rounded stays so.
        for one, other in zip(leaves(both), leaves(relevance.freeze(first, relevance.freeze(second))), strict=True):
            np.testing.assert_array_equal(one, other)
        for one, other in zip(leaves(first.maps), leaves(relevance.rounded(first).maps), strict=True):
            np.testing.assert_array_equal(one, other)


def trained(shared, task, frozen, labels, optimiser, steps=4):
    moving, still = eqx.partition((shared, task), eqx.is_inexact_array)
    state = optimiser.init(moving)

    @eqx.filter_jit
    def step(moving, state):
        def loss(moving):
            shared, task = eqx.combine(moving, still)
            return rivals.replay_loss(
                operator.call, relevance.apply(shared, task, frozen), X, labels
            ) + 0.1 * relevance.penalty(task)

        (updates, rest), state = optimiser.update(jax.grad(loss)(moving), state, moving)
        if frozen is not None:
            updates = relevance.free(updates, frozen)
        return eqx.apply_updates(moving, (updates, rest)), state

    for _ in range(steps):
        moving, state = step(moving, state)
    return eqx.combine(moving, still)


class TestLaterTasks:
    @pytest.mark.usefixtures("standard_promotion")
    def test_an_earlier_task_is_kept_bit_for_bit(self):
        optimiser = optax.adamw(0.05, weight_decay=0.1)
        shared, first = relevance.split(NET, own=("output",), sharpness=4.0, key=KEY)
        shared, first = trained(shared, first, None, LABELS, optimiser)
        first = relevance.rounded(first)
        frozen = relevance.freeze(first)
        assert 0 < relevance.share(frozen) < 1
        before = jax.vmap(relevance.apply(shared, first))(X)
        _, second = relevance.split(NET, own=("output",), sharpness=4.0, key=jax.random.key(1))
        after, second = trained(shared, second, frozen, LABELS[::-1], optimiser)
        np.testing.assert_array_equal(jax.vmap(relevance.apply(after, first))(X), before)
        for old, new, held in zip(*map(leaves, (shared, after, frozen)), strict=True):
            np.testing.assert_array_equal((old != new)[held], False)
            assert (old != new)[~held].any()
        both = relevance.freeze(relevance.rounded(second), frozen)
        assert relevance.share(both) > relevance.share(frozen)

    @settings(max_examples=6, deadline=None)
    @given(sizes=NETWORKS, anything=st.sampled_from([0.0, 1e3, np.inf, np.nan]))
    def test_an_earlier_task_does_not_see_what_is_free(self, sizes, anything):
        net, _, seed = network(sizes)
        shared, task = relevance.split(net, key=KEY)
        task = rounded(task, seed)
        moved = jax.tree.map(lambda w, m: jnp.where(m, w, jnp.asarray(anything, w.dtype)), shared, task.maps)
        for one, other in zip(*(leaves(relevance.apply(w, task)) for w in (shared, moved)), strict=True):
            np.testing.assert_array_equal(one, other, strict=True)

    @settings(max_examples=6, deadline=None)
    @given(sizes=NETWORKS)
    def test_gradients_reach_only_what_is_free(self, sizes):
        net, _, seed = network(sizes)
        shared, task = relevance.split(net, sharpness=4.0, key=KEY)
        frozen = some(shared, seed)

        def total(shared):
            return sum(jnp.sum(w.astype(jnp.float32)) for w in jax.tree.leaves(relevance.apply(shared, task, frozen)))

        for g, f in zip(*map(leaves, (jax.grad(total)(shared), frozen)), strict=True):
            assert not g[f].any()
            assert g[~f].all()

    def test_a_full_network_is_told(self):
        _, task = relevance.split(NET, key=KEY)
        full = eqx.tree_at(lambda t: t.maps, task, jax.tree.map(lambda m: jnp.ones(m.shape, bool), task.maps))
        with pytest.warns(UserWarning, match="widen the network"):
            frozen = relevance.freeze(full)
        assert relevance.share(frozen) == 1
        assert relevance.penalty(full) == 1
