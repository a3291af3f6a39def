"""EWC over several tasks and its running form; outputs of one task among those of all."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib import rivals
from wmlib.models import CNN
from wmlib.rivals import generative, relevance

KEY = jax.random.key(0)


def trees(seed, count):
    rng = np.random.default_rng(seed)
    return [{"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "n": 2, "b": jnp.asarray(rng.normal(size=3), jnp.float32)} for _ in range(count)]  # fmt: skip


def squares(tree):
    return jax.tree.map(lambda x: x**2, eqx.filter(tree, eqx.is_inexact_array))


class TestEWC:
    @settings(max_examples=10, deadline=None)
    @given(tasks=st.integers(1, 4), seed=st.integers(0, 99))
    def test_the_sum_is_one_quadratic(self, tasks, seed):
        weights, *starts = trees(seed, tasks + 1)
        fishers = [squares(t) for t in trees(seed + 100, tasks)]
        exact = 0.0
        for name in ("w", "b"):
            f = np.stack([np.asarray(x[name], float) for x in fishers])
            at = np.stack([np.asarray(x[name], float) for x in starts])
            stiff = f.sum(0)
            mean = (f * at).sum(0) / stiff
            rest = (f * at**2).sum(0) - stiff * mean**2
            exact += (stiff * (np.asarray(weights[name], float) - mean) ** 2 + rest).sum() / 2
        np.testing.assert_allclose(rivals.ewc_penalties(weights, starts, fishers), exact, rtol=1e-4)
        order = np.random.default_rng(seed).permutation(tasks)
        moved = rivals.ewc_penalties(weights, [starts[i] for i in order], [fishers[i] for i in order])
        np.testing.assert_allclose(moved, exact, rtol=1e-4)

    def test_nothing_is_kept_before_a_task(self):
        assert rivals.ewc_penalties(trees(0, 1)[0], [], []) == 0

    @settings(max_examples=10, deadline=None)
    @given(gamma=st.sampled_from([0.0, 0.25, 0.95, 1]), seed=st.integers(0, 99))
    def test_the_running_fisher_is_a_geometric_sum_about_the_last_weights(self, gamma, seed):
        weights, *ends = trees(seed, 4)
        fishers, anchor = [squares(t) for t in trees(seed + 100, 3)], None
        for end, fisher in zip(ends, fishers, strict=True):
            anchor = rivals.online_ewc(anchor, end, fisher, gamma)
        for name in ("w", "b"):
            whole = sum(float(gamma) ** (2 - k) * np.asarray(fishers[k][name], float) for k in range(3))
            np.testing.assert_allclose(anchor.fisher[name], whole, rtol=1e-5)
        assert anchor.start is ends[-1]
        at_last = rivals.ewc_penalties(weights, [ends[-1]] * 3, [jax.tree.map(lambda x, k=k: jnp.float32(gamma) ** (2 - k) * x, fishers[k]) for k in range(3)])  # fmt: skip
        np.testing.assert_allclose(rivals.ewc_penalty(weights, *anchor), at_last, rtol=1e-4)

    def test_half_precision_runs_in_single(self):
        ones = {"w": jnp.full(3, 2.0**-11, jnp.float16)}
        anchor = rivals.online_ewc(rivals.Anchor(ones, {"w": jnp.ones(3, jnp.float16)}), ones, ones)
        assert anchor.fisher["w"].dtype == jnp.float32
        np.testing.assert_array_equal(anchor.fisher["w"], 1 + 2.0**-11)


@st.composite
def problems(draw):
    """Tasks of several sizes among some outputs, a permutation of the classes, one of the tasks."""
    classes = draw(st.integers(3, 7))
    numbers = st.permutations(range(classes)).flatmap(lambda p: st.integers(2, classes).map(lambda n: tuple(p[:n])))
    tasks = draw(st.lists(numbers, min_size=1, max_size=4))
    return classes, tasks, draw(st.permutations(range(classes))), draw(st.permutations(range(len(tasks))))


class TestTold:
    @settings(max_examples=12, deadline=None)
    @given(
        problem=problems(), batch=st.lists(st.integers(1, 3), max_size=2),
        dtype=st.sampled_from([jnp.float16, jnp.bfloat16, jnp.float32]), seed=st.integers(0, 99),
    )  # fmt: skip
    def test_masks_and_outputs_are_those_of_a_loop(self, problem, batch, dtype, seed):
        classes, tasks, *_ = problem
        masks, rng = rivals.class_masks(tasks, classes), np.random.default_rng(seed)
        assert masks.dtype == bool
        for row, task in zip(masks, tasks, strict=True):
            assert row.tolist() == [c in task for c in range(classes)]
        logits, at = jnp.asarray(rng.normal(size=(*batch, classes)), dtype), rng.integers(len(tasks), size=batch)
        for mask in (masks[0], masks[at]):  # one for all, and one for each
            outputs = rivals.told(logits, mask)
            assert (outputs.shape, outputs.dtype) == (logits.shape, logits.dtype)
            for place in np.ndindex(logits.shape):
                inside = np.broadcast_to(mask, logits.shape)[place]
                assert outputs[place] == (logits[place] if inside else jnp.finfo(dtype).min / 2)

    @settings(max_examples=12, deadline=None)
    @given(problem=problems(), seed=st.integers(0, 99))
    def test_no_number_of_a_class_or_a_task_matters(self, problem, seed):
        classes, tasks, renamed, order = problem
        rng = np.random.default_rng(seed)
        head, x = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((classes, 4), 4))
        new = np.asarray(renamed)  # class c is called new[c]; its row of the head goes with it
        other = jnp.zeros_like(head).at[new].set(head)
        masks = rivals.class_masks(tasks, classes)
        others = rivals.class_masks([[int(new[c]) for c in reversed(tasks[k])] for k in order], classes)

        def loss(head, label, mask):
            return rivals.told_cross_entropy(head @ x, np.asarray(label), mask)

        for place, task in enumerate(tasks):
            mask, same = masks[place], others[list(order).index(place)]
            np.testing.assert_array_equal(same[new], mask)
            for label in task[:2]:
                value, slope = jax.value_and_grad(loss)(head, label, mask)
                again, turned = jax.value_and_grad(loss)(other, int(new[label]), same)
                np.testing.assert_allclose(again, value, rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(turned[new], slope, rtol=1e-4, atol=1e-6)
                assert not np.asarray(slope)[~mask].any()
                # By the outputs of the task alone.
                alone = wm.objectives.cross_entropy((head @ x)[np.sort(task)], np.searchsorted(np.sort(task), label))
                np.testing.assert_allclose(value, alone, rtol=1e-5, atol=1e-6)
            best, there = (int(rivals.told(h @ x, m).argmax()) for h, m in ((head, mask), (other, same)))
            assert best in task
            assert there == new[best]

    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
    def test_every_loss_takes_a_network_that_is_told(self, dtype):
        net = eqx.nn.Linear(3, 5, key=KEY)
        net = jax.tree.map(lambda x: x.astype(dtype), net)
        x = {"x": jax.random.normal(KEY, (4, 3), dtype), "task": jnp.array([0, 1, 1, 0])}
        masks, labels = rivals.class_masks([(4, 0), (1, 3, 2)], 5), jnp.array([0, 2, 1, 4])
        f = lambda w, x: rivals.told(w(x["x"]), jnp.asarray(masks)[x["task"]])  # noqa: E731
        outputs = jax.vmap(lambda x: f(net, x))(x)
        assert outputs.dtype == dtype
        losses = [
            lambda w: rivals.replay_loss(f, w, x, labels), lambda w: rivals.der_loss(f, w, x, outputs, labels),
            lambda w: jnp.mean(jax.vmap(lambda x, y: wm.distances.kl(f(w, x), y))(x, outputs)),
            lambda w: jnp.mean(jax.vmap(lambda x, y: wm.distances.bhattacharyya(f(w, x), y))(x, outputs)),
        ]  # fmt: skip
        for loss in losses:
            value, gradient = eqx.filter_value_and_grad(loss)(net)
            assert all(bool(jnp.isfinite(y).all()) for y in jax.tree.leaves((value, gradient)))
        fisher = rivals.fisher_diagonal(f, net, x)
        assert all(bool(jnp.isfinite(y).all()) for y in jax.tree.leaves(fisher))

    def test_a_label_of_another_task_is_not_a_number_under_jit(self):
        mask = rivals.class_masks([(0, 2)], 4)[0]
        loss = jax.jit(lambda y: rivals.told_cross_entropy(jnp.arange(4.0), y, mask))
        assert [bool(jnp.isnan(loss(jnp.int32(y)))) for y in range(-1, 5)] == [True, False, True, False, True, True]


TASKS = ((0, 3), (4, 1, 2))
IMAGES, VAE = jax.random.normal(KEY, (2, 6, 1, 4, 4)), generative.VAE((1, 4, 4), 2, (2,), key=KEY)
NET = CNN((1, 4, 4), 5, (2,), 4, key=KEY)


@eqx.filter_jit
def step(moving, still, images, labels, mask, kept):
    """The loss of a network, or of shared weights and a map, with all that is kept of earlier tasks; one step down it."""

    def mean(net, images, labels, mask):
        return jnp.mean(jax.vmap(lambda x, y: rivals.told_cross_entropy(net(x), y, mask))(images, labels))

    def loss(moving):
        net, task = eqx.combine(moving, still), None
        if "frozen" in kept:
            shared, task = net
            net = relevance.apply(shared, task, kept["frozen"])
        whole = mean(net, images, labels, mask) + rivals.ewc_penalties(net, kept["starts"], kept["fishers"])
        whole += rivals.ewc_penalty(net, *kept["anchor"]) if kept["anchor"] else 0.0
        whole += sum(mean(net, *old) for old in kept["replayed"])
        return whole + (relevance.penalty(task) if task else 0.0)

    value, slope = jax.value_and_grad(loss)(moving)
    down = jax.tree.map(lambda g: -0.3 * g, slope)
    if kept.get("frozen") is not None:
        down = (relevance.free(down[0], kept["frozen"]), down[1])
    return eqx.apply_updates(moving, down), value


def sequence(method, new, declared):
    """The losses on the way and the answers at the end, for classes `c` called `new[c]` and tasks declared in some order."""
    head = jax.tree.map(lambda x: jnp.zeros_like(x).at[new].set(x), NET.output)
    net = eqx.tree_at(lambda n: n.output, NET, head)
    rows = rivals.class_masks([[int(new[c]) for c in TASKS[k]] for k in declared], 5)
    masks = [jnp.asarray(rows[declared.index(k)]) for k in range(len(TASKS))]
    told = lambda mask: lambda w, x: rivals.told(w(x), mask)  # noqa: E731
    kept = dict(starts=[], fishers=[], anchor=None, replayed=[]) | ({"frozen": None} if method == "relevance" else {})
    losses, maps = [], []
    for k, task in enumerate(TASKS):
        labels, weights = jnp.asarray(new)[jnp.asarray(task)[jnp.arange(6) % len(task)]], net
        if method == "relevance":
            shared, own = relevance.split(net, own=("output",), sharpness=4.0, key=jax.random.key(k))
            weights = (maps[-1][0] if maps else shared, own)
        moving, still = eqx.partition(weights, eqx.is_inexact_array)
        for _ in range(3):
            moving, value = step(moving, still, IMAGES[k], labels, masks[k], kept)
            losses.append(float(value))
        weights = eqx.combine(moving, still)
        if method == "relevance":
            maps.append((weights[0], relevance.rounded(weights[1])))
            kept["frozen"] = relevance.freeze(maps[-1][1], kept["frozen"])
            continue
        net = weights
        fisher = rivals.fisher_diagonal(told(masks[k]), net, IMAGES[k])
        if method == "ewc":
            kept["starts"], kept["fishers"] = [*kept["starts"], net], [*kept["fishers"], fisher]
        elif method == "online":
            kept["anchor"] = rivals.online_ewc(kept["anchor"], net, fisher, 0.5)
        else:
            drawn = generative.replayed(VAE, told(masks[k]), net, 4, soft=False, key=KEY)
            kept["replayed"] = [*kept["replayed"], (*drawn, masks[k])]
    nets = [relevance.apply(maps[-1][0], own) for _, own in maps] or [net, net]
    answers = [
        jax.vmap(lambda x, n=n, m=m: told(m)(n, x).argmax())(x) for n, m, x in zip(nets, masks, IMAGES, strict=True)
    ]
    return losses, np.concatenate(answers)


@pytest.mark.parametrize("method", ["ewc", "online", "generative", "relevance"])
def test_losses_and_answers_of_a_sequence_do_not_hang_on_how_it_is_declared(method):
    losses, answers = sequence(method, np.arange(5), [0, 1])
    assert len({*answers.tolist()}) > 1
    new = np.array([3, 0, 4, 2, 1])
    again, others = sequence(method, new, [1, 0])
    np.testing.assert_allclose(again, losses, rtol=1e-4)
    np.testing.assert_array_equal(others, new[answers])
