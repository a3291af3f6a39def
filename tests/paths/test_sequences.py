"""Walks over a sequence of tasks: against the same written out, and through kills."""

import operator
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.paths import sequences

KEY = jax.random.key(3)
SGD = optax.sgd(0.03, momentum=0.9)
NET = eqx.nn.MLP(3, 6, 5, 1, activation=jnp.tanh, key=jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (3, 12, 3))
LABELS = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 12)) + 2 * np.arange(3)[:, None])
TASKS = tuple(wm.objectives.Task(operator.call, x, y, 4) for x, y in zip(X, LABELS, strict=True))
MEMORIES = tuple(x[:6] for x in X)


def walked(tasks: Any = TASKS, memories: Any = MEMORIES, penalty=1.0, batch: int | None = 4, steps=5, **how: Any):
    method = wm.PenalisedDescent(SGD, penalty, batch)
    return wm.walk_sequence(operator.call, NET, tasks, memories, method=method, steps=steps, key=KEY, **how)


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def near(a, b, gap=1e-6):
    for x, y in zip(
        jax.tree.leaves(eqx.filter(a, eqx.is_array)), jax.tree.leaves(eqx.filter(b, eqx.is_array)), strict=True
    ):
        np.testing.assert_allclose(x, y, atol=gap)


def by_hand(penalty, steps, renew, distance):
    """The same with all memories in every step, from the formula and optax alone."""
    ends, kept = [NET], []
    for place, task in enumerate(TASKS):
        dynamic, static = eqx.partition(ends[-1], eqx.is_array)
        start = ends[-1]
        if renew:
            kept = [jax.vmap(start)(m) for m in MEMORIES[:place]]
        state, key = SGD.init(dynamic), jax.random.split(jax.random.fold_in(KEY, place))[0]
        if place:
            key = jax.random.split(key)[0]
        draws = task.draws(key)
        for _ in range(steps):
            rows = next(draws)

            def loss(dynamic, place=place, task=task, rows=rows, kept=tuple(kept), static=static):
                net = eqx.combine(dynamic, static)
                value = task.value(net, rows)
                if place:
                    moved = [jax.vmap(distance)(jax.vmap(net)(m), y) for m, y in zip(MEMORIES, kept, strict=False)]
                    value = value + penalty * jnp.mean(jnp.concatenate(moved))
                return value

            updates, state = SGD.update(jax.grad(loss)(dynamic), state)
            dynamic = optax.apply_updates(dynamic, updates)
        ends.append(eqx.combine(dynamic, static))
        if not renew:
            kept.append(jax.vmap(ends[-1])(MEMORIES[place]))
    return ends[1:]


@pytest.mark.parametrize("renew", [False, pytest.param(True, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    "distance", [wm.distances.kl, pytest.param(wm.distances.squared_error, marks=pytest.mark.thorough)]
)
def test_the_ends_are_those_of_the_formula(renew, distance):
    found = walked(penalty=0.7, batch=None, distance=distance, renew=renew).weights
    wanted = by_hand(0.7, 5, renew, distance)
    assert len(found) == 3
    for ours, theirs in zip(found, wanted, strict=True):
        near(ours, theirs, 2e-6)
    other = by_hand(0.7, 5, not renew, distance)
    leaves = [jax.tree.leaves(eqx.filter(w[2], eqx.is_array)) for w in (other, found)]
    gaps = [float(abs(x - y).max()) for x, y in zip(*leaves, strict=True)]
    assert max(gaps) > 1e-5


def test_without_a_penalty_they_are_walks_one_after_another():
    net = NET
    for place, end in enumerate(walked(penalty=0.0).weights):
        how: Any = dict(method=wm.PenalisedDescent(SGD, 0.0), steps=5, record=[5], key=jax.random.fold_in(KEY, place))
        net = wm.walk(operator.call, net, TASKS[place], MEMORIES[place], **how).weights[-1]
        equal(end, net)


def test_later_tasks_change_nothing_before_them():
    three = walked().weights
    two = walked(TASKS[:2], MEMORIES[:2]).weights
    equal(three[0], two[0])
    near(three[1], two[1])


@settings(max_examples=8, deadline=None)
@given(killed=st.integers(0, 2), steps=st.sampled_from([3, 5]), damage=st.booleans())
def test_a_killed_sequence_goes_on_with_the_same_numbers(killed, steps, damage, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    whole = walked(steps=steps)
    seen = []

    def dies(place):
        def make(ends):
            seen.append(place)
            assert len(ends) == place
            if place == killed and seen.count(place) == 1:
                raise KeyboardInterrupt
            return TASKS[place]

        return make

    tasks = tuple(dies(place) for place in range(3))
    with pytest.raises(KeyboardInterrupt):
        walked(tasks, steps=steps, folder=folder)
    files = sorted(folder.glob("*.npz"))
    assert len(files) == killed
    if damage and files:
        raw = bytearray(files[-1].read_bytes())
        raw[len(raw) // 2] ^= 1
        files[-1].write_bytes(bytes(raw))
        with pytest.warns(UserWarning, match="damaged"):
            again = walked(tasks, steps=steps, folder=folder)
    else:
        again = walked(tasks, steps=steps, folder=folder)
    equal(again.weights, whole.weights)
    assert seen.count(0) == (2 if killed == 0 or (damage and killed == 1) else 1)
    before = len(seen)
    equal(walked(tasks, steps=steps, folder=folder).weights, whole.weights)
    assert len(seen) == before


@pytest.mark.thorough
def test_a_folder_tells_sequences_apart(tmp_path):
    walked(folder=tmp_path)
    others = [dict(steps=6), dict(penalty=2.0), dict(batch=3), dict(renew=True), dict(distance=wm.distances.kl)]
    others += [dict(tasks=[wm.objectives.Task(operator.call, t.inputs, t.labels, 3) for t in TASKS])]
    others += [dict(tasks=TASKS[::-1]), dict(memories=MEMORIES[::-1])]
    for other in others:
        equal(walked(**other, folder=tmp_path).weights, walked(**other).weights)
    assert len([*tmp_path.glob("task-0-*")]) == 9


@pytest.mark.thorough
def test_a_folder_sees_what_closures_hide(tmp_path):
    """The rate of an optimiser, its schedule, and what `f` does."""
    schedules = [optax.linear_schedule(0.03, end, 5) for end in (0.01, 0.02)]
    optimisers = [SGD, optax.sgd(0.02, momentum=0.9), optax.sgd(0.03, momentum=0.8), *map(optax.sgd, schedules)]

    def ends(optimiser, factor, **folder):
        f = lambda net, x: factor * net(x)  # noqa: E731
        tasks = [wm.objectives.Task(f, task.inputs, task.labels, 4) for task in TASKS[:2]]
        method = wm.PenalisedDescent(optimiser, 1.0, 4)
        return wm.walk_sequence(f, NET, tasks, MEMORIES[:2], method=method, steps=3, key=KEY, **folder).weights

    different = [(optimiser, 1.0) for optimiser in optimisers] + [(SGD, 0.5)]
    for place, settled in enumerate(different):
        found = ends(*settled, folder=tmp_path)
        assert len([*tmp_path.iterdir()]) == 2 * (place + 1)
        equal(found, ends(*settled, folder=tmp_path))
        equal(found, ends(*settled))
    assert len([*tmp_path.iterdir()]) == 2 * len(different)


RELU = """
import operator, sys
import equinox as eqx, jax, jax.numpy as jnp, optax
import wmlib as wm

x = jax.random.normal(jax.random.key(0), (6, 3))
net = eqx.nn.MLP(3, 2, 4, 1, activation=jax.nn.relu, key=jax.random.key(1))
task = wm.objectives.Task(operator.call, x, jnp.arange(6) % 2, 3)
method = wm.PenalisedDescent(optax.sgd(optax.cosine_decay_schedule(0.1, 9), momentum=0.9), 1.0)
how = dict(method=method, steps=2, key=jax.random.key(2), folder=sys.argv[1])
wm.walk_sequence(operator.call, net, [task, task], [x, x], **how)
"""


@pytest.mark.thorough
def test_another_process_finds_the_same_files(tmp_path):
    """A kill ends the process: nothing in a name may hang on where Python put something."""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", RELU, str(tmp_path)], check=True)
    assert len([*tmp_path.iterdir()]) == 2


def test_weights_of_half_precision_are_kept_bit_for_bit(tmp_path):
    net = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, NET)
    sequences._write(tmp_path / "a.npz", net)
    equal(sequences._read(tmp_path / "a.npz", net), net)
    with pytest.warns(UserWarning, match="damaged"):
        assert sequences._read(tmp_path / "a.npz", NET) is None


def test_it_is_told_what_each_end_says_and_what_moves():
    last = eqx.tree_at(lambda net: net.layers[-1].weight, jax.tree.map(lambda _: False, NET), True)
    found = walked(observe=lambda net: float(net.layers[-1].weight[0, 0]), moving=last)
    equal(found.weights[-1].layers[0], NET.layers[0])
    assert found.observed == tuple(float(net.layers[-1].weight[0, 0]) for net in found.weights)
    assert len(set(found.observed)) == 3


def test_the_memory_keeps_what_earlier_tasks_had_learned():
    tasks = [wm.objectives.Task(operator.call, x, y, 12) for x, y in zip(X, LABELS, strict=True)]

    def loss(net):
        return float(tasks[0].value(net, np.arange(12)))

    free, kept = (walked(tasks, penalty=p, batch=None, steps=60, observe=loss).observed for p in (0.0, 3.0))
    assert kept[0] == free[0]
    assert kept[1] < 0.5 * free[1]
    assert kept[2] < 0.5 * free[2]


class Counted(wm.objectives.AbstractObjective):
    task: wm.objectives.Task

    def draws(self, key):
        return self.task.draws(key)

    def value(self, weights, draw):
        TRACED.append(1)
        return self.task.value(weights, draw)


TRACED: list[int] = []


def test_a_step_is_compiled_once_for_all_tasks_after_the_first():
    def count(times):
        TRACED.clear()
        walked([Counted(task) for task in TASKS[:1]] * times, MEMORIES[:1] * times, batch=3)
        return len(TRACED)

    few, many = count(2), count(6)
    assert 0 < many <= few


def test_another_method_is_given_all_earlier_memories_and_one_made_for_a_task_its_turn():
    seen = []

    class Looks(wm.paths.AbstractMethod):
        optimiser: Any = eqx.field(static=True)

        def start(self, problem, weights, key):
            seen.append(np.asarray(problem.memory))
            return wm.PenalisedDescent(self.optimiser, 0.0).start(problem, weights, key)

        def step(self, problem, weights, state, draw):
            return wm.PenalisedDescent(self.optimiser, 0.0).step(problem, weights, state, draw)

    plain = wm.walk_sequence(operator.call, NET, TASKS, MEMORIES, method=Looks(SGD), steps=2, key=KEY).weights
    for place, memory in enumerate(seen):
        np.testing.assert_array_equal(memory, np.concatenate(MEMORIES[: max(1, place)]))

    def made(ends):
        return wm.PenalisedDescent(SGD, 1.0, 4) if len(ends) < 2 else Looks(SGD)

    mixed = wm.walk_sequence(operator.call, NET, TASKS, MEMORIES, method=made, steps=2, key=KEY).weights
    equal(mixed[0], plain[0])
    equal(mixed[1], walked(steps=2).weights[1])
    assert abs(mixed[2].layers[0].weight - walked(steps=2).weights[2].layers[0].weight).max() > 0
