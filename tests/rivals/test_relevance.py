"""Relevance mapping networks: what a later task can and cannot reach."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wmlib import rivals
from wmlib.models import CNN
from wmlib.rivals import relevance

KEY = jax.random.key(0)
NET = CNN((1, 4, 4), 3, (2,), 5, key=KEY)
X, LABELS = jax.random.normal(KEY, (6, 1, 4, 4)), jnp.arange(6) % 3


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


@pytest.mark.usefixtures("standard_promotion")
def test_an_earlier_task_is_kept_bit_for_bit():
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
    for old, new, held in zip(*map(jax.tree.leaves, (shared, after, frozen)), strict=True):
        np.testing.assert_array_equal(np.asarray(old != new)[np.asarray(held)], False)
        assert np.asarray(old != new)[~np.asarray(held)].any()
    both = relevance.freeze(relevance.rounded(second), frozen)
    assert relevance.share(both) > relevance.share(frozen)


def test_gradients_reach_only_what_is_free():
    shared, task = relevance.split(NET, sharpness=4.0, key=KEY)
    frozen = relevance.freeze(relevance.rounded(task))
    loss = lambda shared: rivals.replay_loss(operator.call, relevance.apply(shared, task, frozen), X, LABELS)  # noqa: E731
    gradient = jax.grad(loss)(shared)
    for g, f in zip(jax.tree.leaves(gradient), jax.tree.leaves(frozen), strict=True):
        assert not np.asarray(g)[np.asarray(f)].any()
        assert np.asarray(g)[~np.asarray(f)].any()


def test_a_full_network_is_told():
    _, task = relevance.split(NET, key=KEY)
    full = eqx.tree_at(lambda t: t.maps, task, jax.tree.map(lambda m: jnp.ones(m.shape, bool), task.maps))
    with pytest.warns(UserWarning, match="widen the network"):
        frozen = relevance.freeze(full)
    assert relevance.share(frozen) == 1
    assert relevance.penalty(full) == 1
