"""Whole numbers that count: integers of every kind, and of nothing else."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wmlib as wm
from wmlib._counts import check_count

KINDS = [int, np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64, np.array, jnp.array]


@given(st.sampled_from(KINDS), st.integers(0, 100), st.integers(0, 100), st.none() | st.integers(0, 100))
def test_an_integer_of_any_kind_counts_between_the_bounds(kind, number, least, most):
    if number >= least and (most is None or number <= most):
        count = check_count("it", kind(number), least, most)
        assert type(count) is int
        assert count == number
    else:
        with pytest.raises(ValueError, match=rf"it must be .*{least}.*got {number}"):
            check_count("it", kind(number), least, most)


@pytest.mark.parametrize(
    "number", [2.0, np.float32(2), np.float16(2), jnp.float32(2), True, np.True_, "2", None, 2 + 0j]
)
@pytest.mark.parametrize("error", [TypeError, ValueError])
def test_what_is_no_integer_counts_nothing(number, error):
    with pytest.raises(error, match=r"it must be an integer, got .*; use int\(\.\.\.\)"):
        check_count("it", number)


@pytest.mark.parametrize("kind", KINDS)
def test_manifolds_of_one_size_are_one_whatever_counted_them(kind):
    pairs = [
        (wm.Fourier(kind(2)), wm.Fourier(2)),
        (wm.Sphere(kind(2)), wm.Sphere(2)),
        (wm.Simplex(kind(3)), wm.Simplex(3)),
        (wm.BSpline(kind(5), kind(2)), wm.BSpline(5, 2)),
    ]
    for made, plain in pairs:
        assert (made, hash(made), repr(made)) == (plain, hash(plain), repr(plain))
