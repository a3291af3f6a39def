"""Second objectives: minibatches of a task, and the distance to sparse weights."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.paths.objectives import Sparsity, Task, project, shuffled


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
        with pytest.raises(ValueError, match="between 1 and the number of examples, 4"):
            Task(operator.call, x, y, batch)
    for make in (Sparsity, lambda fraction: project(of_mlp(), fraction)):
        for fraction in (-0.1, 1.0):
            with pytest.raises(ValueError, match=r"in \[0, 1\)"):
                make(fraction)
    with pytest.raises(ValueError, match="another prunable"):
        project({"b": jnp.ones(3)}, 0.5)
    assert isinstance(wm.objectives.Task(operator.call, x, y, 4), wm.objectives.AbstractObjective)
