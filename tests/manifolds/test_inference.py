"""Inferring a context: the surest candidate is the minimum over all mixtures, and wrong arguments say so."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm

KEY = jax.random.key(0)
GRID = jnp.arange(8) / 8
X = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), jnp.float32)
LINE = wm.modulate(eqx.nn.Linear(5, 3, key=KEY), wm.Line(), key=KEY)
NET = wm.modulate(eqx.nn.Linear(5, 3, key=KEY), wm.Ellipse(), key=KEY, spread=2.0)


def _entropy(p):
    return -(p * np.log(p)).sum(axis=-1)


def _circle(x, s):
    """A classifier that is surest where the context agrees with the angle of its input, a point of the plane."""
    return jnp.stack([4 * (x[0] * jnp.cos(2 * jnp.pi * s) + x[1] * jnp.sin(2 * jnp.pi * s)), jnp.zeros(())])


def test_entropies_are_those_of_a_loop_that_builds_no_weights():
    stats = wm.infer_context(NET, X, GRID).stats
    for i, x in enumerate(X):
        for j, s in enumerate(GRID):
            p = np.asarray(jax.nn.softmax(NET(x, s)), np.float64)
            np.testing.assert_allclose(stats["probabilities"][i, j], p, rtol=1e-5)
            np.testing.assert_allclose(stats["entropy"][i, j], _entropy(p), rtol=1e-4)


def test_each_input_gets_the_context_of_least_entropy():
    found = wm.infer_context(NET, X, GRID)
    np.testing.assert_array_equal(found.stats["index"], found.stats["entropy"].argmin(axis=1))
    np.testing.assert_array_equal(found.value, GRID[found.stats["index"]])
    np.testing.assert_allclose(found.stats["weights"].sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found.stats["weights"].argmax(axis=1), found.stats["index"])


def test_inputs_that_share_a_context_add_their_entropies():
    found, apart = wm.infer_context(NET, X, GRID, shared=True), wm.infer_context(NET, X, GRID)
    total = apart.stats["entropy"].sum(axis=0)
    assert found.value.shape == found.stats["index"].shape == ()
    assert found.stats["index"] == total.argmin()
    np.testing.assert_allclose(found.stats["weights"], jax.nn.softmax(-total), rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), candidates=st.sampled_from([2, 5]), shared=st.booleans())
def test_no_mixture_of_candidates_is_surer_than_the_best_of_them(seed, candidates, shared):
    draw = np.random.default_rng(seed)
    table = jnp.asarray(draw.normal(scale=2.0, size=(candidates, 3 if shared else 1, 4)), jnp.float32)
    found = wm.infer_context(_look_up, jnp.arange(table.shape[1]), table, shared=shared)
    p = np.asarray(found.stats["probabilities"], np.float64)
    least = float(found.stats["entropy"].sum(axis=0).min() if shared else found.stats["entropy"].min())
    weights = draw.dirichlet(np.full(candidates, 0.3), size=200)  # over candidates; many near the corners
    assert (_entropy(np.einsum("kj,ijc->kic", weights, p)).sum(axis=1) >= least - 1e-5).all()
    descent = scipy.optimize.minimize(
        lambda z: _entropy(np.einsum("j,ijc->ic", np.exp(z) / np.exp(z).sum(), p)).sum(), draw.normal(size=candidates)
    )
    assert descent.fun >= least - 1e-5


def _look_up(i, table):
    return table[i]


@settings(deadline=None, max_examples=25)
@given(angle=st.floats(0, 1, width=32))
def test_the_context_is_found_where_the_classifier_is_surest(angle):
    points = jnp.array([[np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)]], jnp.float32)
    found = wm.infer_context(_circle, points, jnp.arange(36) / 36)
    off = (float(found.value[0]) - angle + 0.25) % 0.5 - 0.25  # two classes: as sure on the far side
    assert abs(off) <= 0.5 / 36 + 1e-3


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_batches_change_nothing(batch):
    whole, parts = wm.infer_context(NET, X, GRID), wm.infer_context(NET, X, GRID, batch=batch)
    np.testing.assert_allclose(whole.stats["entropy"], parts.stats["entropy"], rtol=1e-5)
    np.testing.assert_array_equal(whole.value, parts.value)


def test_contexts_may_have_several_numbers():
    cylinder = wm.Product(wm.Ellipse(), wm.Line())
    net = wm.modulate(eqx.nn.Linear(5, 3, key=KEY), cylinder, key=KEY)
    grid = jnp.stack(jnp.meshgrid(GRID, jnp.linspace(0, 1, 3)), axis=-1).reshape(-1, 2)
    assert wm.infer_context(net, X, grid).value.shape == (7, 2)
    assert wm.infer_context(net, X, grid, shared=True).value.shape == (2,)


def test_rivals_are_asked_one_candidate_at_a_time():
    images = jnp.asarray(np.random.default_rng(1).normal(size=(3, 1, 8, 8)), jnp.float32)
    net = wm.rivals.Concat(in_shape=(1, 8, 8), widths=(2,), units=4, key=KEY)
    stats = wm.infer_context(net, images, GRID[:2]).stats
    np.testing.assert_allclose(
        stats["probabilities"][:, 1], jax.nn.softmax(jax.vmap(net, (0, None))(images, GRID[1])), rtol=1e-4
    )


def test_impossible_certainty_has_no_entropy():
    stats = wm.infer_context(lambda x, s: x * s, jnp.array([[1e4, 0.0]]), jnp.ones(1)).stats
    assert stats["entropy"].item() == 0


@pytest.mark.parametrize(
    ("net", "inputs", "contexts", "options", "says"),
    [
        (NET, X[:0], GRID, {}, "no input"),
        (NET, X, GRID[:0], {}, "no candidate"),
        (NET, X, GRID, {"batch": 0}, "at least 1"),
        (LINE, X, GRID * 2, {}, "must be"),
        (NET, X, GRID.at[2].set(jnp.nan), {}, "must be"),
        (NET, X, jnp.zeros((4, 2)), {}, "has the shape"),
        (NET, X.at[3, 0].set(jnp.nan), GRID, {}, "not finite"),
        (lambda x, s: x[0] * s, X, GRID, {}, "one vector"),
        (lambda x, s: jnp.outer(x, x) * s, X, GRID, {}, "one vector"),
    ],
    ids=["inputs", "candidates", "batch", "domain", "NaN context", "shape", "NaN input", "scalar", "matrix"],
)
def test_wrong_arguments_are_refused(net, inputs, contexts, options, says):
    with pytest.raises(ValueError, match=says):
        wm.infer_context(net, inputs, contexts, **options)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["float16", "bfloat16"]), shared=st.booleans())
def test_logits_of_half_precision_are_judged_in_single(seed, dtype, shared):
    base = np.random.default_rng(seed).normal(size=(40, 10))
    table = jnp.asarray(np.stack([base * (1 + 0.005 * j) for j in range(4)]), dtype)
    half, full = (
        wm.infer_context(_look_up, jnp.arange(40), t, shared=shared) for t in (table, table.astype("float32"))
    )
    assert half.stats["entropy"].dtype == half.stats["probabilities"].dtype == jnp.float32
    np.testing.assert_array_equal(half.stats["index"], full.stats["index"])
    np.testing.assert_array_equal(half.stats["entropy"], full.stats["entropy"])


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "complex64"])
def test_logits_that_are_no_floating_point_numbers_are_refused(dtype):
    with pytest.raises(TypeError, match="must return floating-point logits"):
        wm.infer_context(lambda x, s: (x * s).astype(dtype), X, GRID[:2])


@pytest.mark.parametrize("kind", [int, np.int8, np.uint64, jnp.array])
def test_a_batch_is_any_integer(kind):
    assert wm.infer_context(NET, X, GRID[:2], batch=kind(3)).value.shape == (7,)
