"""Paths: directions, walks and geodesics."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import wmlib as wm


@pytest.fixture(autouse=True, scope="module")
def _promotion():
    """Walks run optax's own optimisers, which mix types that strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


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
    f = rest.pop("f", operator.call)
    return wm.walk(f, weights, objective, method=method, steps=steps, key=jax.random.key(key), **rest)


def test_a_walk_is_the_descent_of_the_penalised_loss():
    net, x, task, penalty = network(), inputs(), a_task(), 3.0
    path = walk(task, wm.PenalisedDescent(optax.sgd(0.1, momentum=0.9), penalty))
    start, draws = jax.vmap(net)(x), task.draws(jax.random.split(jax.random.key(7))[0])
    dynamic, static = eqx.partition(net, eqx.is_inexact_array)
    optimiser = optax.sgd(0.1, momentum=0.9)
    state, length = optimiser.init(dynamic), 0.0

    @jax.jit
    @jax.grad
    def slope(w, draw):
        w = eqx.combine(w, static)
        away = jax.nn.log_softmax(start) - jax.nn.log_softmax(jax.vmap(w)(x))
        return task.value(w, draw) + penalty * jnp.mean(jnp.sum(jax.nn.softmax(start) * away, axis=1))

    for _ in range(8):
        updates, state = optimiser.update(slope(dynamic, next(draws)), state)
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


@pytest.mark.parametrize("method", [wm.PenalisedDescent(optax.adam(0.01), 2.0), wm.ExactDirections(1.0, 0.01, 10)])
def test_what_is_held_stays_and_the_rest_walks_as_if_it_were_all(method):
    net = network()
    moving = eqx.tree_at(lambda w: w.layers[-1], jax.tree.map(lambda _: False, net), True)  # a whole layer by one word
    path = walk(method=method, weights=net, moving=moving, record=[4], steps=8)
    assert path.weights[-1].layers[0].weight is net.layers[0].weight
    assert not np.array_equal(path.weights[-1].layers[-1].weight, net.layers[-1].weight)

    def head(layer, x):
        return layer(jnp.tanh(net.layers[0](x)))

    task = a_task()
    task = wm.objectives.Task(head, task.inputs, task.labels, task.batch)
    alone = walk(task, method, 8, weights=net.layers[-1], f=head, record=[4])
    np.testing.assert_allclose(flat(path.weights[-1].layers[-1]), flat(alone.weights[-1]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(path.lengths, alone.lengths, rtol=1e-4)
    np.testing.assert_allclose(path.drift, alone.drift, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, *(pytest.param(t, marks=pytest.mark.thorough) for t in (np.float16, np.float32))]
)
def test_held_arrays_of_any_type_are_there_bit_for_bit(dtype):
    weights = {"a": jnp.asarray([0.1, -0.0, jnp.inf, jnp.nan], dtype), "b": jnp.ones(3), "n": 2}
    seen = []

    def f(w, x):
        seen.append(w["a"].dtype)
        return w["b"] * x + jnp.where(jnp.isnan(w["a"][3]), 0, w["a"][3]).astype(float) + w["a"][0].astype(float)

    task = wm.objectives.Task(f, inputs(4), inputs(4, 2), 4, lambda y, t: jnp.sum((y - t) ** 2))
    moving = {"a": False, "b": True, "n": False}
    path = walk(
        task, weights=weights, f=f, moving=moving, observe=lambda w: w["a"], distance=wm.distances.squared_error
    )
    assert set(seen) == {jnp.dtype(dtype)}
    assert all(a is weights["a"] for a in path.observed)
    assert path.weights[-1]["n"] == 2


def test_a_walk_that_moves_everything_is_the_walk():
    net = network()
    a, b = walk(), walk(moving=jax.tree.map(lambda _: True, net))
    np.testing.assert_array_equal(flat(a.weights[-1]), flat(b.weights[-1]))


def test_reference_target_and_sparsity_see_the_held_weights():
    net = network()
    moving = jax.tree.map(lambda _: True, net)
    moving = eqx.tree_at(lambda w: w.layers[0].bias, moving, False)
    whole = []

    def reference(w):
        whole.append(w.layers[0].bias.dtype)
        return wm.objectives.project(w, 0.5)

    sparsity = wm.objectives.Sparsity(0.5)
    path = walk(
        sparsity,
        weights=net,
        moving=moving,
        reference=reference,
        target=lambda w: w.layers[0].bias is not net.layers[0].bias,
    )
    assert path.outcome == "step limit"  # the target saw the very array
    assert set(whole) == {jnp.dtype("float32")}
    assert path.objective[-1] < path.objective[0]


def test_what_is_observed_is_kept_in_place_of_the_weights():
    plain = walk()
    path = walk(observe=lambda w: float(w.layers[0].weight.sum()))
    assert path.observed == tuple(float(w.layers[0].weight.sum()) for w in plain.weights)
    assert len(path.weights) == 2
    np.testing.assert_array_equal(flat(path.weights[-1]), flat(plain.weights[-1]))
    assert path.projections.shape == (len(path.steps), 4096)
    assert plain.observed == ()
    away = walk(method=wm.PenalisedDescent(optax.sgd(0.5), 0.0), drift_limit=0.01, steps=50, observe=lambda w: 1)
    assert len(away.observed) == len(away.steps)


def test_a_memory_may_say_at_which_places_its_outputs_are_taken():
    """Only the outputs that are asked for are kept, and the walk is that of all outputs with the others left out."""
    net, x = network(outputs=10), inputs()
    places = np.asarray(jax.random.randint(jax.random.key(3), (len(x), 2), 0, 5))

    def f(w, one):
        return w(one["x"]).reshape(5, 2)[one["places"]]

    path = walk(None, wm.ExactDirections(1.0, 0.01, 10), 3, weights=net, f=f, memory={"x": x, "places": places})
    y, y0 = (jax.vmap(lambda x, w=w: w(x).reshape(5, 2))(x) for w in (path.weights[-1], net))
    taken = np.stack([np.asarray(wm.distances.kl(y[i][places[i]], y0[i][places[i]])) for i in range(len(x))])
    assert path.drift[-1] == pytest.approx(taken.mean(), rel=0.02)  # two sums that nearly cancel


@pytest.mark.parametrize(
    ("wrong", "error", "named"),
    [
        ({"moving": [True, False]}, ValueError, "structure of the weights"),
        ({"moving": eqx.is_array}, ValueError, "tree of booleans"),
        ({"moving": 1}, ValueError, "tree of booleans"),
        ({"moving": False}, ValueError, "nothing to move"),
        ({"observe": 3}, TypeError, "observe"),
    ],
)
def test_what_is_not_to_move_is_said_by_booleans(wrong, error, named):
    with pytest.raises(error, match=named):
        walk(**wrong)


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
    with pytest.raises(ValueError, match="between 0 and 8"):
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


class Shapeless(wm.objectives.AbstractObjective):
    """Draws of another shape at each third step."""

    task: wm.objectives.Task

    def draws(self, key):
        for i, draw in enumerate(self.task.draws(key)):
            yield draw[: 5 if i % 3 else 10]

    def value(self, weights, draw):
        return self.task.value(weights, draw)


LOOPS = [
    (a_task(), optax.adam(0.01), 5, 3),
    (wm.objectives.Sparsity(0.5, squared=False), optax.sgd(0.1, momentum=0.9), None, [7]),
    (Shapeless(a_task()), optax.sgd(0.1), 5, 5),
]


@pytest.mark.parametrize(
    ("objective", "optimiser", "memory_batch", "record"), LOOPS, ids=["task", "sparsity", "shapes"]
)
def test_one_compiled_loop_takes_the_steps_that_are_taken_one_by_one(objective, optimiser, memory_batch, record):
    one, two = (
        walk(objective, wm.PenalisedDescent(optimiser, 3.0, memory_batch, compiled), steps=11, record=record)
        for compiled in (True, False)
    )
    for name in ("steps", "lengths", "drift", "objective", "kept"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes(), name
    assert [flat(w).tobytes() for w in one.weights] == [flat(w).tobytes() for w in two.weights]


def test_a_step_that_convolves_on_a_cpu_is_not_put_into_a_loop():
    method = wm.PenalisedDescent(optax.sgd(0.1))
    images = jax.random.normal(jax.random.key(0), (6, 1, 8, 8))
    rooms = []
    for net, x in (
        (wm.models.LayerNormCNN((1, 8, 8), 4, (2,), 4, key=jax.random.key(1)), images),
        (wm.models.LeNet300((1, 8, 8), 4, (4,), key=jax.random.key(1)), images),
    ):
        task = wm.objectives.Task(operator.call, x, jnp.arange(6) % 4, 3)
        outputs = jax.vmap(net)(x)
        problem = wm.paths.Problem(operator.call, wm.distances.kl, None, task, x, outputs, np.inf, 500)
        state = method.start(problem, net, jax.random.key(2))
        rooms.append(method.room(problem, net, state, np.arange(3), 100))
    assert rooms == [1 if jax.default_backend() == "cpu" else 128, 128]


def test_one_array_at_two_places_is_refused():
    shared = jnp.ones(3)
    with pytest.raises(ValueError, match=r"eqx\.nn\.Shared"):
        walk(f=lambda w, x: w["a"] * x + w["b"] * x**2, weights={"a": shared, "b": shared})


def test_layers_tied_by_shared_stay_tied():
    layer = eqx.nn.Linear(3, 3, key=jax.random.key(0))
    tied = eqx.nn.Shared(
        (layer, eqx.nn.Linear(3, 3, key=jax.random.key(1))), lambda x: x[1].weight, lambda x: x[0].weight
    )

    def f(w, x):
        one, two = w()
        return two(jnp.tanh(one(x)))

    task = wm.objectives.Task(f, inputs(9, 5), jnp.arange(9) % 3, 9)
    end = walk(task, weights=tied, f=f).weights[-1]()
    assert jnp.array_equal(end[0].weight, end[1].weight)
    assert not jnp.array_equal(end[0].weight, layer.weight)


@pytest.mark.parametrize("dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.thorough)])
def test_weights_of_half_precision_walk_and_the_length_is_finite(dtype):
    weights = {"w": jnp.full((40, 40), 300, dtype)}
    path = walk(
        wm.objectives.Sparsity(0.5, squared=False), weights=weights, f=lambda w, x: w["w"][0, :3] * 1e-3, steps=3
    )
    assert np.isfinite(path.objective).all()
    assert path.objective[0] == pytest.approx(300 * 40, rel=1e-2)


@pytest.mark.parametrize("dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("penalty", [1e9, *(pytest.param(p, marks=pytest.mark.thorough) for p in (1.0, 1e5))])
def test_a_penalty_that_half_precision_does_not_hold_is_kept(dtype, penalty):
    net = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, network())
    x = inputs().astype(dtype)
    task = wm.objectives.Task(operator.call, x, jnp.arange(12) % 4, 4)
    slow = optax.sgd(1e-3 / penalty)
    for method in (wm.PenalisedDescent(slow, penalty), wm.ExactDirections(penalty, 1e-4, dimension=4)):
        path = walk(task, method, steps=3, weights=net, memory=x)
        assert np.isfinite(path.kept).all()
        assert np.isfinite(path.objective).all()
        assert np.isfinite(path.lengths).all()


@pytest.mark.parametrize("method", [wm.PenalisedDescent(optax.sgd(0.1)), wm.ExactDirections(1.0, 0.01, dimension=4)])
def test_weights_and_inputs_of_numpy_walk_as_those_of_jax(method):
    net = jax.tree.map(lambda x: np.asarray(x) if eqx.is_array(x) else x, network())
    ours = walk(method=method, steps=3, weights=net, memory=np.asarray(inputs(), float))
    theirs = walk(method=method, steps=3)
    np.testing.assert_array_equal(ours.lengths, theirs.lengths)
    np.testing.assert_array_equal(ours.drift, theirs.drift)


@pytest.mark.parametrize(
    "integer", [np.int8, *(pytest.param(t, marks=pytest.mark.thorough) for t in (np.uint16, np.int64))]
)
def test_counts_of_any_integer_type_are_counts(integer):
    settings = dict(steps=4, record=2, batch=5, keep=9)
    method = lambda of: wm.PenalisedDescent(optax.sgd(0.1), memory_batch=of(3))  # noqa: E731
    ours = walk(method=method(integer), **{k: integer(v) for k, v in settings.items()})
    theirs = walk(method=method(int), **settings)
    np.testing.assert_array_equal(ours.lengths, theirs.lengths)
    np.testing.assert_array_equal(walk(steps=4, record=np.array([1, 3], integer)).steps, [0, 1, 3, 4])


@settings(max_examples=8, deadline=None)
@given(outputs=st.integers(1, 5), name=st.sampled_from(["squared_error", "kl", "hellinger", "bhattacharyya"]))
def test_a_reference_of_other_outputs_is_refused(outputs, name):
    other, method = network(3, outputs), wm.ExactDirections(1.0, 0.01, dimension=3)
    ask = lambda: walk(None, method, 1, distance=getattr(wm.distances, name), reference=lambda w: other)  # noqa: E731
    if outputs == 4:
        assert ask().outcome == "step limit"
    else:
        with pytest.raises(ValueError, match="weights of the same network"):
            ask()


def test_complex_weights_are_refused_with_the_cure():
    with pytest.raises(TypeError, match="two real arrays"):
        walk(f=lambda w, x: jnp.abs(w["w"]) * x, weights={"w": jnp.ones(3, jnp.complex64)})


def dense(matrix):
    """A metric that is a given matrix; as an array, so that one program does for all of a size."""
    return lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)


def trust_region(matrix, gradient, beta, epsilon):
    """Eq. 4 by a dense eigendecomposition and bisection; in the hard case, one of its solutions."""
    values, vectors = np.linalg.eigh(matrix)
    b = vectors.T @ (beta / 2 * gradient)

    def y(mu):
        return -b / (values + mu)

    low, high = -values[0] + 1e-13, -values[0] + np.linalg.norm(b) / np.sqrt(epsilon) + 1e-12
    if np.linalg.norm(y(low)) < np.sqrt(epsilon):  # hard
        solution = np.where(values - values[0] < 1e-9, 0, y(low))
        solution[0] = np.sqrt(epsilon - solution @ solution)
        return vectors @ solution, low
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(y(middle)) > np.sqrt(epsilon) else (low, middle)
    return vectors @ y(low), low


def cost(matrix, gradient, beta, v):
    return v @ matrix @ v + beta * v @ gradient


@given(
    n=st.sampled_from([1, 2, 5, 12]), rank=st.integers(1, 12), log_beta=st.floats(-3, 3), log_epsilon=st.floats(-3, 2),
    seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_a_direction_is_the_dense_trust_region_solution(n, rank, log_beta, log_epsilon, seed):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(min(rank, n), n))
        matrix, gradient = root.T @ root, rng.normal(size=n)
        beta, epsilon = 10**log_beta, 10**log_epsilon
        found = wm.direction(dense(jnp.array(matrix)), jnp.array(gradient), beta, epsilon)
        expected, mu = trust_region(matrix, gradient, beta, epsilon)
        assert found.stats["converged"] or mu < 0
        np.testing.assert_allclose(found.value, expected, atol=1e-4 * np.sqrt(epsilon))
        assert found.stats["multiplier"] == pytest.approx(mu, abs=1e-6 * (1 + abs(mu)))


@given(n=st.sampled_from([3, 6, 12]), rank=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_direction_is_as_good_as_the_dense_one_in_the_hard_case(n, rank, seed):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(min(rank, n - 1), n))
        matrix = root.T @ root
        gradient = matrix @ rng.normal(size=n)  # nothing of it in the null space
        beta, epsilon = 1.0, 2.0 * np.linalg.norm(np.linalg.pinv(matrix) @ gradient / 2) ** 2
        found = wm.direction(dense(jnp.array(matrix)), jnp.array(gradient), beta, epsilon, key=jax.random.key(seed))
        v, (expected, _) = np.asarray(found.value), trust_region(matrix, gradient, beta, epsilon)
        assert found.stats["converged"]
        assert v @ v == pytest.approx(epsilon, rel=1e-8)
        assert cost(matrix, gradient, beta, v) == pytest.approx(cost(matrix, gradient, beta, expected), rel=1e-6)
        assert found.stats["multiplier"] == pytest.approx(0, abs=1e-6 * np.linalg.norm(matrix))


def test_what_fills_up_the_hard_case_is_drawn():
    with jax.enable_x64(True):
        matrix, gradient = jnp.diag(jnp.array([2.0, 1.0, 0.0, 0.0, 0.0])), jnp.array([1.0, 1.0, 0.0, 0.0, 0.0])
        one, two = (wm.direction(dense(matrix), gradient, epsilon=4.0, key=jax.random.key(i)) for i in range(2))
        for found in (one, two):
            np.testing.assert_allclose(found.value[:2], [-0.25, -0.5], atol=1e-8)
            assert found.stats["products"] > found.stats["dimension"]
        assert np.abs(one.value - two.value).max() > 0.1


def test_one_basis_serves_every_beta_and_epsilon():
    net = network(outputs=2)
    metric = wm.FunctionMetric(operator.call, net, inputs(), wm.distances.kl)
    gradient = jax.grad(lambda w: jnp.sum(jax.vmap(eqx.combine(w, net))(inputs(5, 3)) ** 2))(
        eqx.filter(net, eqx.is_inexact_array)
    )
    betas, epsilons = np.array([[0.01], [1.0], [100.0]]), np.array([0.01, 1.0])
    found = wm.direction(metric, gradient, betas, epsilons)
    matrix, slope = np.asarray(metric.as_matrix(), float), flat(gradient)
    assert found.stats["products"] == found.stats["dimension"] <= 40
    for i, j in np.ndindex(3, 2):
        one = flat(jax.tree.map(lambda x, i=i, j=j: x[i, j], found.value))
        expected, mu = trust_region(matrix, slope, betas[i, 0], epsilons[j])
        np.testing.assert_allclose(one, expected, atol=1e-4 * np.sqrt(epsilons[j]))
        told = {k: found.stats[k][i, j] for k in ("multiplier", "moved", "gained", "residual", "converged")}
        assert told["multiplier"] == pytest.approx(mu, rel=1e-3, abs=1e-6)
        assert told["moved"] == pytest.approx(one @ matrix @ one / 2, rel=1e-3, abs=1e-6)
        assert told["gained"] == pytest.approx(one @ slope, rel=1e-3)
        left = matrix @ one + told["multiplier"] * one + betas[i, 0] / 2 * slope
        assert np.linalg.norm(left) / np.linalg.norm(betas[i, 0] / 2 * slope) < 1e-3 + 2 * told["residual"]


def test_a_basis_that_is_too_small_says_so():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(20, 30)).astype(np.float32)
    found = wm.direction(
        dense(jnp.array(root.T @ root)), jnp.array(rng.normal(size=30), jnp.float32), 1.0, 1.0, dimension=4
    )
    assert found.stats["dimension"] == 4
    assert not found.stats["converged"]


def test_without_a_gradient_the_direction_is_flat_and_drawn_evenly():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        root = rng.normal(size=(4, 7))
        matrix = root.T @ root
        null = np.linalg.svd(root)[2][4:]
        drawn = []
        for i in range(60):
            found = wm.direction(dense(jnp.array(matrix)), epsilon=0.25, key=jax.random.key(i))
            v = np.asarray(found.value)
            assert v @ v == pytest.approx(0.25)
            assert abs(v @ matrix @ v) < 1e-12
            drawn.append(null @ v / 0.5)
        assert abs(found.stats["multiplier"]) < 1e-10
        assert found.stats["converged"]
        # Even on the sphere of three dimensions: mean 0 and second moments 1/3, within a few standard errors.
        np.testing.assert_allclose(np.mean(drawn, axis=0), 0, atol=0.3)
        np.testing.assert_allclose(np.cov(np.transpose(drawn), ddof=0), np.eye(3) / 3, atol=0.2)


def test_directions_refuse_wrong_arguments():
    metric = dense(jnp.eye(3))
    with pytest.raises(ValueError, match="give a key"):
        wm.direction(metric)
    for name in ("beta", "epsilon"):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            wm.direction(metric, jnp.ones(3), **{name: [1.0, 0.0]})
    with pytest.raises(ValueError, match="norm 0"):
        wm.direction(metric, jnp.zeros(3))
    with pytest.raises(ValueError, match="norm nan"):
        wm.direction(metric, jnp.full(3, jnp.nan))
    with pytest.raises(ValueError, match="structure"):
        wm.direction(metric, jnp.ones(4))


def test_exact_directions_learn_a_task_within_the_drift_allowed():
    method = wm.ExactDirections(beta=10.0, epsilon=0.01)
    path = walk(method=method, steps=25, drift_limit=0.02, memory=inputs(4))
    free = walk(method=wm.PenalisedDescent(optax.sgd(0.1), 0.0), steps=25, memory=inputs(4))
    assert path.drift.max() <= 0.02 * (1 + 1e-5) < free.drift[-1]
    assert path.objective[-5:].mean() < path.objective[0]
    assert path.length <= 25 * 0.1 * (1 + 1e-6)


def test_exact_directions_are_reproducible_and_those_of_direction():
    method = wm.ExactDirections(beta=1.0, epsilon=0.01, anchored=False)
    one, two = (walk(method=method, steps=3, record=1) for _ in range(2))
    assert flat(one.weights[-1]).tobytes() == flat(two.weights[-1]).tobytes()
    net, task = network(), a_task()
    draw = next(task.draws(jax.random.split(jax.random.key(7))[0]))
    gradient = jax.grad(lambda w: task.value(eqx.combine(w, net), draw))(eqx.filter(net, eqx.is_inexact_array))
    metric = wm.FunctionMetric(operator.call, net, inputs(), wm.distances.kl)
    first = wm.direction(metric, gradient, 1.0, 0.01, dimension=20).value
    np.testing.assert_allclose(flat(one.weights[1]) - flat(one.weights[0]), flat(first), atol=1e-5)


def test_an_anchored_walk_takes_back_what_it_let_go():
    loose, anchored = (
        walk(method=wm.ExactDirections(beta=0.3, epsilon=0.03, anchored=a), steps=30, memory=inputs(4))
        for a in (False, True)
    )
    assert anchored.drift[-1] < loose.drift[-1] / 2


def test_a_walk_without_an_objective_goes_straight_on_along_flat_directions():
    path = walk(None, wm.ExactDirections(beta=1e-3, epsilon=0.01), memory=inputs(3), steps=20, record=1)
    moves = np.diff([flat(w) for w in path.weights], axis=0)
    np.testing.assert_allclose(np.linalg.norm(moves, axis=1), 0.1, rtol=1e-3)
    assert np.linalg.norm(moves.sum(axis=0)) > 0.5 * path.length  # not a random walk
    assert np.isnan(path.objective).all()
    plain = network()
    away = jax.random.normal(jax.random.key(0), (len(moves[0]),))
    leaves, structure = jax.tree.flatten(eqx.filter(plain, eqx.is_inexact_array))
    parts = jnp.split(away / jnp.linalg.norm(away) * path.length, np.cumsum([x.size for x in leaves])[:-1])
    random = structure.unflatten([x + p.reshape(x.shape) for x, p in zip(leaves, parts, strict=True)])
    far = jax.vmap(wm.distances.kl)(jax.vmap(eqx.combine(random, plain))(inputs(3)), jax.vmap(plain)(inputs(3)))
    assert path.drift[-1] < float(far.mean()) / 10


def test_steps_that_drift_too_far_are_cut_short_or_stop_the_walk():
    method = wm.ExactDirections(beta=1e4, epsilon=1.0, tolerance=1e-3)
    path = walk(method=method, steps=6, record=1)
    assert np.diff(path.drift).max() <= 1e-3 * (1 + 1e-4)
    assert path.length < 6
    stuck = walk(method=wm.ExactDirections(beta=1e4, epsilon=1e6), drift_limit=1e-9, record=2)
    assert (stuck.outcome, len(stuck.steps)) == ("drift limit", 1)
    assert "drift_limit" in stuck.cure


def test_the_length_of_a_step_may_follow_a_schedule_and_gradients_be_averaged():
    method = wm.ExactDirections(1.0, lambda step: 0.01 / (1 + step) ** 2, momentum=0.9)
    path = walk(method=method, steps=3, record=1)
    np.testing.assert_allclose(np.diff(path.lengths), 0.1 / np.arange(1, 4), rtol=1e-3)


def test_exact_directions_refuse_wrong_settings():
    for name in ("beta", "epsilon", "tolerance", "dimension"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            wm.ExactDirections(**({"beta": 1.0, "epsilon": 1.0} | {name: 0}))
    with pytest.raises(ValueError, match="momentum"):
        wm.ExactDirections(1.0, 1.0, momentum=1.0)


def small(dtype=jnp.float64):
    """A network of 26 weights, and 40 inputs on which its metric has full rank."""
    of_net, of_inputs, _ = jax.random.split(jax.random.key(0), 3)
    net = eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, dtype=dtype, key=of_net)
    return net, jax.random.normal(of_inputs, (40, 3), dtype)


def direction_of(net):
    """A unit movement of it, from which no geodesic ends soon."""
    w, unravel = ravel_pytree(eqx.filter(net, eqx.is_inexact_array))
    v = jax.random.normal(jax.random.split(jax.random.key(0), 3)[2], w.shape, w.dtype)
    return unravel(v / jnp.linalg.norm(v))


@pytest.mark.parametrize(
    "distance", [wm.distances.kl, pytest.param(wm.distances.squared_error, marks=pytest.mark.thorough)]
)
def test_the_acceleration_is_that_of_the_christoffel_symbols(distance):
    with jax.enable_x64(True):
        net, x = small()
        moving, fixed = eqx.partition(net, eqx.is_inexact_array)
        w, unravel = ravel_pytree(moving)
        v = direction_of(net)
        flat_v = np.asarray(ravel_pytree(v)[0])

        def outputs(w):
            y = jax.vmap(eqx.combine(unravel(w), fixed))(x)
            return (jax.vmap(distance.embedding)(y) / jnp.sqrt(len(x))).ravel()

        def metric(w):
            jacobian = jax.jacfwd(outputs)(w)
            return jacobian.T @ jacobian

        g, dg = (
            np.asarray(a) for a in jax.jit(lambda w: (metric(w), jax.jacfwd(metric)(w)))(w)
        )  # dg[r, i, j] = ∂g_ri / ∂w_j
        lowered = (dg + dg.transpose(0, 2, 1) - dg.transpose(2, 0, 1)) / 2
        expected = -np.linalg.pinv(g, rcond=1e-12) @ (lowered @ flat_v @ flat_v)
        found = wm.acceleration(operator.call, net, v, x, distance, rtol=1e-13)
        np.testing.assert_allclose(ravel_pytree(found)[0], expected, atol=1e-8 * np.abs(expected).max())


def test_a_geodesic_keeps_its_speed_and_solves_its_equation():
    with jax.enable_x64(True):
        net, x = small()
        v = direction_of(net)
        path = wm.geodesic(operator.call, net, v, x, time=0.5, points=5, rtol=1e-6, atol=1e-8, solve_rtol=1e-10)
        assert path.stats["outcome"] == "arrived"
        np.testing.assert_allclose(path.stats["speed"], path.stats["speed"][0], rtol=1e-4)
        assert path.stats["residual"].max() < 1e-6
        np.testing.assert_allclose(path.times, np.linspace(0, 0.5, 5))
        assert 0.4 < path.length < 1
        # Backwards from the end it returns to the start.
        back = jax.tree.map(jnp.negative, path.velocities[-1])
        home = wm.geodesic(
            operator.call, path.weights[-1], back, x, time=0.5, points=2, rtol=1e-6, atol=1e-8, solve_rtol=1e-10
        )
        np.testing.assert_allclose(flat(home.weights[-1]), flat(net), atol=1e-4)


def test_a_geodesic_along_a_flat_direction_keeps_the_function():
    with jax.enable_x64(True):
        net, x = small()
        few = x[:4]
        metric = wm.FunctionMetric(operator.call, net, few)
        v = wm.direction(metric, key=jax.random.key(0)).value
        path = wm.geodesic(operator.call, net, v, few, rtol=1e-5, atol=1e-7, solve_rtol=1e-9, points=2, held_out=few)
        line = eqx.apply_updates(net, v)
        straight = jax.vmap(wm.distances.squared_error)(jax.vmap(line)(few), jax.vmap(net)(few)).mean()
        assert path.drift[0] == 0
        assert path.drift[-1] < 1e-8 < 1e-3 * float(straight)


def test_where_the_function_is_straight_so_is_the_geodesic():
    weights = {"w": jnp.ones(3)}
    path = wm.geodesic(lambda w, x: w["w"] * x, weights, {"w": jnp.array([0.0, 1.0, 2.0])}, jnp.ones((2, 3)), points=3)
    np.testing.assert_allclose(path.weights[-1]["w"], [1, 2, 3], rtol=1e-5)
    assert not path.stats["residual"].any()


def test_a_geodesic_that_needs_too_many_steps_says_so():
    net, x = small(jnp.float32)
    path = wm.geodesic(operator.call, net, direction_of(net), x, max_steps=1, time=9.0, points=3)
    assert "increase max_steps" in path.stats["outcome"]
    assert len(path.weights) == len(path.times) == len(path.drift) < 3


def test_geodesics_refuse_wrong_arguments():
    net, x = small(jnp.float32)
    v = direction_of(net)
    with pytest.raises(ValueError, match="with an embedding"):
        wm.geodesic(operator.call, net, v, x, wm.distances.OutputDistance(lambda y, y0: jnp.sum((y - y0) ** 2)))
    with pytest.raises(ValueError, match="velocity must have the structure"):
        wm.acceleration(operator.call, net, jnp.ones(3), x)
    for name, wrong in (("time", 0.0), ("points", 1), ("points", [0.0, 0.7, 0.5, 1.0]), ("max_steps", 0)):
        with pytest.raises(ValueError, match=f"{name} (must be|at least)"):
            wm.geodesic(operator.call, net, v, x, **{name: wrong})


def test_the_digest_of_the_code_does_not_depend_on_what_was_run():
    """What a function remembers from one call to the next is no part of its code."""
    from wmlib.lab.fingerprints import fingerprint

    def run(config, key):
        net, x = eqx.nn.Linear(3, 2, key=key), jnp.ones((4, 3))
        wm.rivals.fisher_diagonal(operator.call, net, x)
        task = wm.objectives.Task(operator.call, x, jnp.array([0, 1, 0, 1]), batch=2)
        method = wm.PenalisedDescent(optax.sgd(0.1))
        return wm.walk(operator.call, net, task, x, method=method, steps=config["steps"], record=3, key=key)

    before = fingerprint(run)
    run({"steps": 6}, jax.random.key(0))
    assert fingerprint(run) == before
