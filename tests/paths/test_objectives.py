"""Second objectives: minibatches of a task, and the distance to sparse weights."""

import operator
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.paths.objectives import Penalised, Sparsity, Task, project, shuffled


def network(key=0):
    return eqx.nn.MLP(3, 4, 5, 2, key=jax.random.key(key))


def of_mlp(key=0):
    return eqx.filter(network(key), eqx.is_inexact_array)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_a_task_is_the_mean_cross_entropy_of_the_examples_drawn():
    torch = pytest.importorskip("torch")
    net, x = network(), jax.random.normal(jax.random.key(1), (20, 3))
    labels = jax.random.randint(jax.random.key(2), (20,), 0, 4)
    task = Task(operator.call, x, labels, batch=6)
    draw = next(task.draws(jax.random.key(3)))
    logits, chosen = (torch.tensor(np.array(a)) for a in (jax.vmap(net)(x[draw]), labels[draw]))
    expected = torch.nn.functional.cross_entropy(logits, chosen.long())
    assert float(task.value(net, draw)) == pytest.approx(float(expected), rel=1e-5)


@given(size=st.integers(1, 40), batch=st.integers(1, 12), seed=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_minibatches_hold_each_example_at_most_once_an_epoch(size, batch, seed):
    batch = min(batch, size)
    draws = shuffled(jax.random.key(seed), size, batch)
    for _ in range(2):
        epoch = np.concatenate([next(draws) for _ in range(size // batch)])
        assert len(set(epoch)) == len(epoch) == size // batch * batch
        assert set(epoch) <= set(range(size))


def test_minibatches_are_those_of_the_key_and_new_in_each_epoch():
    first, second = shuffled(jax.random.key(0), 8, 8), shuffled(jax.random.key(0), 8, 8)
    one, two = next(first), next(first)
    assert (one == next(second)).all()
    assert (one != two).any()


@given(fraction=st.floats(0, 0.999), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_the_projection_zeroes_the_smallest_of_all_layers_together(fraction, seed):
    weights = of_mlp(seed)
    sparse = project(weights, fraction)
    before = np.concatenate([np.ravel(x) for x in jax.tree.leaves(weights) if x.ndim > 1])
    after = np.concatenate([np.ravel(x) for x in jax.tree.leaves(sparse) if x.ndim > 1])
    count = int(np.floor(fraction * len(before) + 0.5))
    expected = before.copy()
    expected[np.argsort(np.abs(before), kind="stable")[:count]] = 0
    np.testing.assert_array_equal(after, expected)
    biases = [(x, y) for x, y in zip(jax.tree.leaves(weights), jax.tree.leaves(sparse), strict=True) if x.ndim == 1]
    assert all((x == y).all() for x, y in biases)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_projection_holds_for_every_type_of_number(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        weights = {"w": jnp.array([[3, -1, 0.5], [0, -4, 2]], dtype), "n": 3}
        sparse = project(weights, 0.5)
        assert sparse["w"].dtype == dtype
        assert sparse["n"] == 3
        assert sparse["w"].tolist() == [[3, 0, 0], [0, -4, 2]]


def test_weights_of_one_magnitude_are_pruned_together():
    assert project({"w": jnp.array([[1.0, -1.0, 1.0, 2.0]])}, 0.25)["w"].tolist() == [[0, 0, 0, 2]]
    assert project({"w": jnp.ones((2, 2))}, 0.0)["w"].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("squared", [True, False])
def test_the_distance_to_sparse_weights_and_its_gradient(squared):
    weights = of_mlp()
    objective = Sparsity(0.6, squared)
    away = flat(weights) - flat(project(weights, 0.6))
    value, gradient = jax.value_and_grad(objective.value)(weights)
    size = np.linalg.norm(away)
    assert float(value) == pytest.approx(size**2 / 2 if squared else size, rel=1e-5)
    np.testing.assert_allclose(flat(gradient), away if squared else away / size, rtol=1e-5, atol=1e-7)


def test_the_distance_is_zero_with_a_zero_gradient_at_sparse_weights():
    sparse = project(of_mlp(), 0.6)
    value, gradient = jax.value_and_grad(Sparsity(0.6, squared=False).value)(sparse)
    assert float(value) == 0
    assert not flat(gradient).any()


def test_what_may_be_pruned_can_be_chosen():
    weights = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([1.0, 2.0])}
    assert project(weights, 0.5, lambda x: True)["b"].tolist() == [0, 0]
    assert float(Sparsity(0.5, prunable=lambda x: True).value(weights)) == 2.5


def test_wrong_settings_are_refused():
    x, y = jnp.zeros((4, 3)), jnp.zeros(4, int)
    with pytest.raises(ValueError, match="one label"):
        Task(operator.call, x, y[:3])
    for batch in (0, 5):
        with pytest.raises(ValueError, match="between 1 and 4"):
            Task(operator.call, x, y, batch)
    for make in (Sparsity, lambda fraction: project(of_mlp(), fraction)):
        for fraction in (-0.1, 1.0):
            with pytest.raises(ValueError, match=r"in \[0, 1\)"):
                make(fraction)
    with pytest.raises(ValueError, match="another prunable"):
        project({"b": jnp.ones(3)}, 0.5)
    assert isinstance(wm.objectives.Task(operator.call, x, y, 4), wm.objectives.AbstractObjective)


_traced = jax.jit(jax.vmap(wm.objectives.cross_entropy))
_value = eqx.filter_jit(lambda task, net, draw: task.value(net, draw))


@given(
    classes=st.sampled_from([2, 6]), low=st.integers(-4, 8), dtype=st.sampled_from([np.int8, np.uint8, np.int32]),
    count=st.sampled_from([1, 5]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_label_that_is_no_class_is_never_another_class(classes, low, dtype, count):
    labels = np.arange(low, low + count)
    bad = labels.min() < 0 or labels.max() >= classes
    if labels.min() < 0 and dtype == np.uint8:
        return
    labels, net = jnp.asarray(labels, dtype), eqx.nn.Linear(3, classes, key=jax.random.key(0))
    x = jnp.ones((count, 3))
    traced = _traced(jax.vmap(net)(x), labels)
    log_probabilities = np.asarray(jax.nn.log_softmax(net(x[0])))
    expected = [-log_probabilities[y] if 0 <= y < classes else np.nan for y in np.asarray(labels)]
    np.testing.assert_allclose(traced, expected, rtol=1e-5)
    if bad:
        with pytest.raises(ValueError, match="number the classes from 0"):
            _value(Task(operator.call, x, labels, count), net, np.arange(count))
    else:
        task = Task(operator.call, x, labels, count)
        np.testing.assert_allclose(task.value(net, np.arange(count)), np.mean(expected), rtol=1e-5)


@given(size=st.integers(1, 9), batch=st.integers(-2, 12))
@settings(max_examples=40, deadline=None)
def test_minibatches_are_of_the_size_asked_for_or_refused(size, batch):
    if 1 <= batch <= size:
        drawn = wm.objectives.shuffled(jax.random.key(0), size, batch)
        assert all(len(set(next(drawn))) == batch for _ in range(3))
    else:
        with pytest.raises(ValueError, match="batch must be between 1"):
            wm.objectives.shuffled(jax.random.key(0), size, batch)


def test_objectives_travel_to_other_processes():
    task = Task(operator.call, jnp.ones((4, 3)), jnp.arange(4) % 2, 2)
    for objective in (task, Sparsity(0.5)):
        back = pickle.loads(pickle.dumps(objective))
        assert eqx.tree_equal(back, objective)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_the_distance_of_large_weights_is_finite_in_every_type(dtype):
    weights = {"w": jnp.full((50, 50), 300, dtype)}
    assert float(Sparsity(0.5, squared=False).value(weights)) == pytest.approx(300 * 50, rel=1e-2)


INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64]


# Few sizes, each of which compiles anew, about those that a type of eight bits holds.
@given(
    classes=st.sampled_from([2, 5, 127, 128, 129, 256, 257, 300]),
    dtype=st.sampled_from(INTEGERS),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_labels_of_every_integer_type_are_the_same_labels(classes, dtype, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, min(classes, np.iinfo(dtype).max + 1), 3)
    logits = jnp.asarray(rng.normal(size=(3, classes)), jnp.float32)

    def losses(labels):
        task = Task(jnp.multiply, logits, labels, 3).value(jnp.ones(()), np.arange(3))
        replay = wm.rivals.replay_loss(jnp.multiply, jnp.ones(()), logits, labels)
        alone = jnp.mean(jax.vmap(wm.objectives.cross_entropy)(logits, jnp.asarray(labels)))
        return np.stack([task, replay, alone])

    expected = -np.mean(np.asarray(jax.nn.log_softmax(logits))[np.arange(3), labels])
    np.testing.assert_allclose(losses(labels.astype(dtype)), expected, rtol=1e-5)
    np.testing.assert_array_equal(losses(labels.astype(dtype)), losses(jnp.asarray(labels, jnp.int32)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_cross_entropy_of_half_precision_is_that_of_its_logits_in_single(dtype):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), dtype)
    labels = jnp.arange(8) % 5
    narrow, wide = (jax.vmap(wm.objectives.cross_entropy)(x, labels) for x in (logits, logits.astype(jnp.float32)))
    assert narrow.dtype == jnp.float32
    np.testing.assert_array_equal(narrow, wide)


@given(size=st.integers(1, 60), batch=st.integers(1, 60), dtype=st.sampled_from(INTEGERS))
@settings(max_examples=20, deadline=None)
def test_minibatches_are_counted_by_integers_of_any_type(size, batch, dtype):
    batch = min(batch, size)
    ours, plain = (wm.objectives.shuffled(jax.random.key(0), *n) for n in ((dtype(size), dtype(batch)), (size, batch)))
    np.testing.assert_array_equal(next(ours), next(plain))


X, LABELS = jax.random.normal(jax.random.key(5), (12, 3)), jnp.arange(12) % 4


def replay(net, kept, rows):
    return wm.rivals.replay_loss(operator.call, net, kept["x"][rows], kept["y"][rows])


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 10, width=32), st.integers(1, 6), st.integers(6, 12))
def test_a_penalised_objective_is_the_sum_of_both(strength, batch, count):
    task, kept = Task(operator.call, X, LABELS, 4), {"x": X, "y": LABELS, "of no length": jnp.zeros(())}
    both = Penalised(task, replay, kept, strength, batch=batch, count=count)
    draws = both.draws(jax.random.key(1))
    for draw, rows in (next(draws) for _ in range(5)):
        assert len(draw) == 4
        assert len(rows) == batch
        assert rows.max() < count
        net = network()
        expected = task.value(net, draw) + strength * replay(net, kept, rows)
        assert float(both.value(net, (draw, rows))) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("shape", [(1,), (2,), (2, 1)])
def test_a_loss_of_one_example_is_one_number(shape):
    """A mean over examples would be one over its entries, too."""

    def loss(output, label):
        return jnp.broadcast_to(output[:1] - label.astype(output.dtype), shape[::-1] if len(shape) > 1 else shape)

    task = Task(operator.call, X, LABELS, 4, lambda o, y: jnp.sum(loss(o, y)))
    assert task.value(network(), jnp.arange(4)).shape == ()
    with pytest.raises(ValueError, match="one example and must return one number"):
        Task(operator.call, X, LABELS, 4, loss).value(network(), jnp.arange(4))


def test_a_penalty_that_looks_at_all_draws_no_rows():
    start = network(1)
    pull = Penalised(
        Task(operator.call, X, LABELS, 4), lambda net, kept, rows: wm.rivals.l2_penalty(net, kept), start, 2.0
    )
    draw, rows = next(pull.draws(jax.random.key(0)))
    assert rows is None
    assert float(pull.value(start, (draw, None))) == pytest.approx(float(pull.objective.value(start, draw)))


def test_walks_of_all_strengths_share_one_program():
    made = []

    def counted(net, kept, rows):
        made.append(rows)
        return replay(net, kept, rows)

    ends = []
    how = {"method": wm.PenalisedDescent(optax.sgd(0.1), 0.0), "steps": 3, "key": jax.random.key(0)}
    for strength in (0.0, 1.0, 5.0):
        both = Penalised(Task(operator.call, X, LABELS, 4), counted, {"x": X, "y": LABELS}, strength, batch=6)
        ends.append(flat(eqx.filter(wm.walk(operator.call, network(), both, X, **how).weights[-1], eqx.is_array)))
    assert len(made) <= 2  # a trace of its shape, and one of the step
    assert np.isfinite(ends).all()
    assert len({end.tobytes() for end in ends}) == 3


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"objective": X}, TypeError, r"wm\.objectives|AbstractObjective"),
        ({"penalty": 3.0}, TypeError, "a function of weights|Callable"),
        ({"strength": -1.0}, ValueError, "at least 0"),
        ({"strength": np.nan}, ValueError, "at least 0"),
        ({"batch": 13}, ValueError, "between 1 and"),
        ({"batch": 0}, ValueError, "between 1 and"),
        ({"kept": (X, X[:3])}, ValueError, "give count"),
        ({"kept": None}, ValueError, "give count"),
        ({"count": 13}, ValueError, "count is 13, and the longest array of what is kept has 12 rows"),
        ({"kept": {"x": X, "y": LABELS[:3]}, "count": 13}, ValueError, "longest array of what is kept has 12 rows"),
    ],
)
def test_arguments_of_a_penalised_objective_are_refused_with_the_cure(change, error, says):
    given = {"objective": Task(operator.call, X, LABELS, 4), "penalty": replay, "kept": (X, LABELS), "batch": 6}
    with pytest.raises(error, match=says):
        Penalised(**given | change)
