"""Output distances and their Hessians at zero."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.paths.distances import bhattacharyya, hellinger, kl, squared_error

NAMES = ["squared_error", "kl", "hellinger", "bhattacharyya"]
every_distance = pytest.mark.parametrize("name", NAMES)
logits = st.lists(st.floats(-6, 6, width=32), min_size=4, max_size=4)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def array(values) -> jax.Array:
    return jnp.asarray(np.asarray(values, np.float64))


def distance(name: str) -> wm.distances.OutputDistance:
    return getattr(wm.distances, name)


def by_hand(name: str, y, y0) -> float:
    """The distance in numpy and scipy."""
    p, q = (scipy.special.softmax(np.asarray(v, np.float64), axis=-1) for v in (y, y0))
    overlap = np.sqrt(p * q).sum(-1)
    return float({
        "squared_error": ((np.asarray(y) - np.asarray(y0)) ** 2).sum() / 2,
        "kl": scipy.special.rel_entr(q, p).sum(),
        "hellinger": (1 - overlap).sum(),
        "bhattacharyya": -np.log(overlap).sum(),
    }[name])  # fmt: skip


def dense(name: str, y0) -> np.ndarray:
    """The Hessian at zero in closed form, of one vector of logits."""
    p = scipy.special.softmax(np.asarray(y0, np.float64))
    fisher = np.diag(p) - np.outer(p, p)
    return {"squared_error": np.eye(len(p)), "kl": fisher, "hellinger": fisher / 4, "bhattacharyya": fisher / 4}[name]


value_and_slope = jax.jit(lambda d, y, y0: jax.value_and_grad(d)(y, y0), static_argnums=0)
in_closed_form = jax.jit(lambda d, y0: jax.vmap(lambda v: d.hessian(y0, v))(jnp.eye(4)), static_argnums=0)
by_differentiation = jax.jit(lambda d, y0: jax.hessian(lambda y: d(y, y0))(y0), static_argnums=0)


@every_distance
@settings(deadline=None, max_examples=20)
@given(y=logits, y0=logits)
def test_equals_its_formula_and_is_never_negative(name, y, y0):
    value = float(value_and_slope(distance(name), array(y), array(y0))[0])
    assert value >= -1e-12
    np.testing.assert_allclose(value, by_hand(name, y, y0), rtol=1e-9, atol=1e-12)


@every_distance
@settings(deadline=None, max_examples=10)
@given(y=logits)
def test_is_zero_and_level_where_the_outputs_agree(name, y):
    value, slope = value_and_slope(distance(name), array(y), array(y))
    np.testing.assert_allclose(value, 0, atol=1e-14)
    np.testing.assert_allclose(slope, 0, atol=1e-12)


@every_distance
@settings(deadline=None, max_examples=10)
@given(y0=logits)
def test_its_hessian_is_the_closed_form_and_that_of_differentiation(name, y0):
    d, y0 = distance(name), array(y0)
    products = in_closed_form(d, y0)
    np.testing.assert_allclose(products, dense(name, y0), atol=1e-12)
    np.testing.assert_allclose(products, by_differentiation(d, y0), atol=1e-10)


@every_distance
def test_a_small_movement_costs_half_its_quadratic_form(name):
    y0, v = array([0.3, -1.2, 2.0, 0.1]), array([1.0, 0.5, -0.7, 0.2])
    for t in (1e-2, 1e-3):
        exact, quadratic = distance(name)(y0 + t * v, y0), t**2 * v @ dense(name, y0) @ v / 2
        np.testing.assert_allclose(exact, quadratic, rtol=3 * t)


def test_outputs_of_several_tokens_add_up():
    y, y0 = (array(np.random.default_rng(i).normal(size=(3, 4))) for i in (0, 1))
    for name in NAMES:
        d = distance(name)
        np.testing.assert_allclose(d(y, y0), sum(d(a, b) for a, b in zip(y, y0, strict=True)))
        rows = jnp.stack([d.hessian(b, a) for a, b in zip(y, y0, strict=True)])
        np.testing.assert_allclose(d.hessian(y0, y), rows)


def test_softmax_distances_do_not_see_a_constant_added_to_the_logits():
    y, y0 = array([0.3, -1.2, 2.0, 0.1]), array([0.0, 1.0, 0.5, 0.1])
    for d in (kl, hellinger, bhattacharyya):
        np.testing.assert_allclose(d(y + 7, y0 - 3), d(y, y0))
        np.testing.assert_allclose(d.hessian(y0, jnp.ones(4)), 0, atol=1e-15)


def test_sure_outputs_stay_finite():
    sure, other = array([500.0, 0.0, 0.0]), array([0.0, 500.0, 0.0])
    for d in (kl, hellinger, bhattacharyya):
        value, slope = value_and_slope(d, sure, other)
        assert np.isfinite(value)
        assert np.isfinite(slope).all()
        assert np.isfinite(d.hessian(sure, other)).all()
    np.testing.assert_allclose(hellinger(sure, other), 1)


def test_a_function_alone_makes_a_distance():
    scales = array([1.0, 2.0, 3.0])
    d = wm.distances.OutputDistance(lambda y, y0: jnp.sum(scales * (y - y0) ** 2) / 2)
    np.testing.assert_allclose(d.hessian(jnp.zeros(3), jnp.ones(3)), scales)
    np.testing.assert_allclose(d(jnp.ones(3), jnp.zeros(3)), 3)


def test_what_cannot_be_called_is_no_distance():
    with pytest.raises(TypeError):
        wm.distances.OutputDistance(3)
    with pytest.raises(TypeError):
        wm.distances.OutputDistance(lambda y, y0: jnp.sum(y - y0), embedding="softmax")


def test_squared_error_is_half_the_square():
    assert float(squared_error(jnp.array([3.0, 4.0]), jnp.zeros(2))) == 12.5


def _value(d, y, y0):
    return np.asarray(jax.jit(jax.value_and_grad(d))(y, y0)[0])


@every_distance
def test_a_distance_travels_and_is_the_same_there(name):
    d = distance(name)
    there = pickle.loads(pickle.dumps(d))
    assert there == d  # so that nothing is compiled again
    with jax.enable_x64(False):
        y, y0 = (jax.random.normal(jax.random.key(i), (5,), jnp.float32) for i in (0, 1))
        np.testing.assert_array_equal(_value(there, y, y0), _value(d, y, y0))


def test_a_distance_travels_to_a_spawned_process():
    y, y0 = np.arange(3.0, dtype=np.float32), np.ones(3, np.float32)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for name in NAMES:
            found = pool.submit(distance(name), y, y0).result()
            np.testing.assert_allclose(found, by_hand(name, y, y0), rtol=1e-4)


shapes = st.sampled_from([(1,), (3,), (1, 3), (3, 1), (2, 3), (3, 2, 1)])  # few: each compiles anew


@every_distance
@settings(deadline=None, max_examples=25)
@given(one=shapes, other=shapes)
def test_outputs_of_two_shapes_are_refused(name, one, other):
    y, y0 = np.ones(one), np.zeros(other)
    if one == other:
        assert distance(name)(y, y0).shape == ()
    else:
        for ask in (distance(name), distance(name).hessian):
            with pytest.raises(ValueError, match=r"reshape one of them.*jax\.vmap for a batch"):
                ask(y, y0)


WHOLE = [jnp.int8, jnp.uint8, jnp.int32, jnp.bool_]
TYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64, *WHOLE]


@every_distance
@pytest.mark.parametrize("dtype", TYPES)
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 99))
def test_outputs_of_every_type_are_those_numbers(name, dtype, seed):
    rng = np.random.default_rng(seed)
    y, y0 = (
        jnp.asarray(np.round(rng.uniform(0, 100, 4)) if dtype in WHOLE else rng.normal(size=4) * 100, dtype)
        for _ in "ab"
    )
    for one, two in ((y, y0), (np.asarray(y), np.asarray(y0))):
        found = distance(name)(one, two)
        assert found.dtype in (jnp.float32, jnp.float64)
        np.testing.assert_allclose(found, distance(name)(y.astype(float), y0.astype(float)), rtol=2e-4, atol=1e-6)
    product = distance(name).hessian(y0, y)
    assert product.dtype == (jnp.float64 if dtype in WHOLE else dtype)
    precise = distance(name).hessian(y0.astype(float), y.astype(float))
    rtol = 1e-2 if product.dtype.itemsize < 4 else 1e-3
    np.testing.assert_allclose(
        product.astype(float), precise, rtol=rtol, atol=rtol * float(1e-3 + jnp.abs(precise).max())
    )


@every_distance
def test_complex_outputs_are_refused(name):
    y = jnp.ones(3, jnp.complex64)
    for ask in (distance(name), distance(name).hessian):
        with pytest.raises(TypeError, match="two real arrays"):
            ask(y, y.real)


def test_a_function_that_returns_no_number_is_refused():
    several = wm.distances.OutputDistance(lambda y, y0: (y - y0) ** 2)
    for ask in (several, several.hessian):
        with pytest.raises(ValueError, match="sum over the axes"):
            ask(jnp.ones(3), jnp.ones(3))
