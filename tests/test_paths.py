"""Paths: directions, walks and geodesics."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wmlib as wm


@pytest.fixture(autouse=True)
def _promotion(standard_promotion):
    """Walks run optax's own optimisers."""


def network(key=0, outputs=4):
    return eqx.nn.MLP(3, outputs, 6, 1, activation=jnp.tanh, key=jax.random.key(key))


def inputs(count=12, key=1):
    return jax.random.normal(jax.random.key(key), (count, 3))


def flat(tree):
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return np.concatenate([np.ravel(np.asarray(x, float)) for x in leaves])


def a_task(batch=10):
    return wm.objectives.Task(operator.call, inputs(40, 5), jax.random.randint(jax.random.key(6), (40,), 0, 4), batch)


def walk(objective="a task", method=None, steps=8, key=7, weights=None, **rest):
    objective = a_task() if objective == "a task" else objective
    method = wm.PenalisedDescent(optax.sgd(0.1)) if method is None else method
    rest = {"memory": inputs(), "distance": wm.distances.kl, "record": 2} | rest
    weights = network() if weights is None else weights
    return wm.walk(operator.call, weights, objective, method=method, steps=steps, key=jax.random.key(key), **rest)


def test_a_walk_is_the_descent_of_the_penalised_loss():
    net, x, task, penalty = network(), inputs(), a_task(), 3.0
    path = walk(task, wm.PenalisedDescent(optax.sgd(0.1, momentum=0.9), penalty))
    start, draws = jax.vmap(net)(x), task.draws(jax.random.split(jax.random.key(7))[0])
    dynamic, static = eqx.partition(net, eqx.is_inexact_array)
    optimiser = optax.sgd(0.1, momentum=0.9)
    state, length = optimiser.init(dynamic), 0.0
    for _ in range(8):
        draw = next(draws)

        def loss(w, draw=draw):
            w = eqx.combine(w, static)
            away = jax.nn.log_softmax(start) - jax.nn.log_softmax(jax.vmap(w)(x))
            return task.value(w, draw) + penalty * jnp.mean(jnp.sum(jax.nn.softmax(start) * away, axis=1))

        updates, state = optimiser.update(jax.grad(loss)(dynamic), state)
        moved = optax.apply_updates(dynamic, updates)
        length += np.linalg.norm(flat(moved) - flat(dynamic))
        dynamic = moved
    np.testing.assert_allclose(flat(path.weights[-1]), flat(dynamic), rtol=1e-4, atol=1e-6)
    assert path.length == pytest.approx(length, rel=1e-4)


def test_a_walk_is_reproducible_bit_for_bit():
    one, two, other = walk(), walk(), walk(key=8)
    assert flat(one.weights[-1]).tobytes() == flat(two.weights[-1]).tobytes()
    assert one.drift.tobytes() == two.drift.tobytes()
    assert one.objective.tobytes() == two.objective.tobytes()
    assert flat(one.weights[-1]).tobytes() != flat(other.weights[-1]).tobytes()


def test_a_path_tells_its_points_and_its_steps():
    held_out = inputs(9, 11)
    path = walk(held_out=held_out, record=3)
    assert path.steps.tolist() == [0, 3, 6, 8]
    assert len(path.weights) == len(path.drift) == len(path.lengths) == 4
    assert len(path.objective) == len(path.kept) == 8
    start, end = (jax.vmap(path.weights[i])(held_out) for i in (0, -1))
    away = float(jnp.mean(jax.vmap(wm.distances.kl)(end, start)))
    assert path.drift[0] == 0
    assert path.drift[-1] == pytest.approx(away, rel=1e-4)
    assert path.kept[0] == pytest.approx(0, abs=1e-6)
    assert (path.outcome, path.cure != "") == ("step limit", True)
    np.testing.assert_allclose(path.movements()[-1], flat(path.weights[-1]) - flat(path.weights[0]), atol=1e-6)
    assert walk(record=[1, 5]).steps.tolist() == [0, 1, 5, 8]


def test_the_length_is_that_of_all_steps_whatever_is_recorded():
    every, few = walk(record=1), walk(record=8)
    chords = np.linalg.norm(np.diff([flat(w) for w in every.weights], axis=0), axis=1)
    assert every.length == pytest.approx(few.length, rel=1e-5) == pytest.approx(chords.sum(), rel=1e-4)


def test_a_penalty_keeps_the_function_and_none_lets_it_go():
    free = walk(method=wm.PenalisedDescent(optax.sgd(0.1), 0.0), steps=40)
    kept = walk(method=wm.PenalisedDescent(optax.sgd(0.1), 30.0), steps=40)
    assert kept.drift[-1] < free.drift[-1] / 5
    assert free.objective[-4:].mean() < free.objective[0]
    assert np.isnan(free.kept).all()


def test_a_part_of_the_memory_can_be_drawn_at_each_step():
    path = walk(method=wm.PenalisedDescent(optax.sgd(0.1), 3.0, memory_batch=5))
    assert flat(path.weights[-1]).tobytes() != flat(walk().weights[-1]).tobytes()
    with pytest.raises(ValueError, match="the memory has 12 inputs"):
        walk(method=wm.PenalisedDescent(optax.sgd(0.1), memory_batch=13))


def test_the_reference_may_follow_the_weights():
    def pruned(weights):
        moving, rest = eqx.partition(weights, eqx.is_inexact_array)
        return eqx.combine(jax.lax.stop_gradient(wm.objectives.project(moving, 0.5)), rest)

    objective = wm.objectives.Sparsity(0.5)
    assert walk(objective, reference=pruned, steps=1).kept[0] > 0  # at once: the pruned network is another function
    assert walk(objective, steps=1).kept[0] == pytest.approx(0, abs=1e-6)


def test_a_walk_that_reaches_its_target_has_arrived():
    path = walk(wm.objectives.Sparsity(0.5), target=0.05, steps=200, record=1)
    assert path.outcome == "arrived"
    assert path.cure == ""
    assert path.objective[-1] > 0.05
    assert float(wm.objectives.Sparsity(0.5).value(path.weights[-1])) <= 0.05
    assert walk(target=lambda w: True).steps.tolist() == [0]


def test_a_walk_that_drifts_too_far_stops_and_says_so():
    path = walk(method=wm.PenalisedDescent(optax.sgd(0.5), 0.0), drift_limit=0.01, steps=50, record=1)
    assert path.outcome == "drift limit"
    assert "penalty" in path.cure
    assert path.drift[-1] > 0.01 >= path.drift[-2]


def test_too_many_weights_are_projected():
    whole, projected = walk(keep=10**6), walk(keep=100)
    assert whole.projections is None
    assert projected.projections.shape == (len(whole.steps), 4096)
    assert len(projected.weights) == 2
    np.testing.assert_array_equal(flat(projected.weights[-1]), flat(whole.weights[-1]))
    exact, sketched = (m @ m.T for m in (whole.movements(), projected.movements()))
    np.testing.assert_allclose(sketched, exact, atol=0.05 * exact.max())


def test_weights_of_any_structure_walk():
    weights = {"scale": jnp.ones(3), "count": 2}
    path = wm.walk(
        lambda w, x: w["scale"] * x,
        weights,
        wm.objectives.Task(lambda w, x: w["scale"] * x, inputs(4), inputs(4, 2), 4, lambda y, t: jnp.sum((y - t) ** 2)),
        inputs(),
        method=wm.PenalisedDescent(optax.adam(0.01)),
        steps=3,
        key=jax.random.key(0),
    )
    assert path.weights[-1]["count"] == 2
    assert path.steps.tolist() == [0, 1, 2, 3]


def test_descending_the_drift_alone_is_refused():
    with pytest.raises(ValueError, match=r"never moves.*ExactDirections"):
        walk(None)


def test_a_step_that_is_not_finite_is_told():
    with pytest.raises(FloatingPointError, match=r"step \d is not finite.*lower the learning rate"):
        walk(method=wm.PenalisedDescent(optax.sgd(1e30)), steps=6)


def test_wrong_arguments_are_refused_before_anything_is_computed():
    for wrong in ({"steps": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            walk(**wrong)
    with pytest.raises(ValueError, match="drift_limit must be positive"):
        walk(drift_limit=0.0)
    with pytest.raises(ValueError, match="give a function"):
        walk(None, target=0.1)
    with pytest.raises(ValueError, match="the memory must be arrays"):
        walk(memory=jnp.zeros((0, 3)))
    with pytest.raises(ValueError, match="held_out must be arrays"):
        walk(held_out=jnp.zeros((0, 3)))
    with pytest.raises(ValueError, match="finite numbers at the start"):
        walk(memory=inputs() * jnp.nan)
    with pytest.raises(ValueError, match="lie between 0 and 8"):
        walk(record=[9])
    with pytest.raises(ValueError, match="record must be at least 1"):
        walk(record=0)
    with pytest.raises(ValueError, match="nothing to move"):
        wm.walk(
            lambda w, x: x,
            {"n": 1},
            None,
            inputs(),
            method=wm.PenalisedDescent(optax.sgd(1.0)),
            steps=1,
            key=jax.random.key(0),
        )
    with pytest.raises(ValueError, match="LayerNorm"):
        walk(weights=eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")[0])
    for wrong, match in (
        (dict(penalty=-1.0), "penalty"),
        (dict(penalty=np.inf), "penalty"),
        (dict(memory_batch=0), "memory_batch"),
    ):
        with pytest.raises(ValueError, match=match):
            wm.PenalisedDescent(optax.sgd(0.1), **wrong)
