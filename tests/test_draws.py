"""The draws that the tests share are those of JAX, bit for bit."""

import draws
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    dtype=st.sampled_from([None, float, jnp.float32, "float16", jnp.bfloat16, jnp.complex64]),
    x64=st.booleans(),
)
def test_normal_numbers_are_those_of_jax(seed, shape, dtype, x64):
    with jax.enable_x64(x64):
        _equal(jax.random.normal, jax.random.key(seed), shape, dtype)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    dtype=st.sampled_from([None, jnp.float32, jnp.float16]),
    low=st.floats(-2, 0, width=16),
    high=st.floats(0.5, 2, width=16),
    named=st.booleans(),
)
def test_uniform_numbers_are_those_of_jax(seed, shape, dtype, low, high, named):
    bounds = dict(minval=low, maxval=high)
    _equal(
        jax.random.uniform,
        jax.random.PRNGKey(seed),
        shape,
        dtype,
        *(() if named else bounds.values()),
        **(bounds if named else {}),
    )


def test_shapes_of_as_many_numbers_or_fewer_share_a_program():
    traced = []

    def counted(key, shape=(), dtype=None):
        traced.append(shape)
        return jax.random.normal.original(key, shape, dtype)

    draw = draws._of_any_shape(counted)
    for shape in ((3,), (5,), (7, 2), (), (2, 3, 4), (9, 9), (100,), (2**17,)):
        draw(jax.random.key(0), shape)
    assert traced == [(64,), (128,), (2**17,)]


def test_what_is_drawn_in_a_program_or_from_other_keys_is_left_to_jax():
    draw, key = jax.random.normal, jax.random.key(3)
    keys = jax.random.split(key, 4)
    mapped = jax.vmap(lambda k: draw(k, (5,)))(keys)
    np.testing.assert_array_equal(mapped, jax.vmap(lambda k: draw.original(k, (5,)))(keys))
    np.testing.assert_array_equal(jax.jit(lambda: draw(key, (5,)))(), draw.original(key, (5,)))
    assert jax.eval_shape(lambda: draw(key, (5,))).shape == (5,)
    _equal(draw, jax.random.key(3, impl="rbg"), (5,), None)
    with pytest.raises(ValueError, match="key"):
        draw(keys, (5,))


def _equal(draw, key, *arguments, **named):
    ours, theirs = draw(key, *arguments, **named), draw.original(key, *arguments, **named)
    assert (ours.dtype, ours.shape, ours.weak_type) == (theirs.dtype, theirs.shape, theirs.weak_type)
    np.testing.assert_array_equal(ours, theirs)
