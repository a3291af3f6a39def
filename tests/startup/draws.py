"""Random numbers of many shapes from few programs.

Each new shape of a draw is a program of its own, and compiling those was a fifth of what compiling took in all tests but the chapters. With
JAX's default generator a number hangs on the key and on its own place in the flat array alone, so that a draw of the next
power of two holds that of any smaller shape, bit for bit (`tests/test_draws.py`).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

MOST = 2**16  # numbers; a larger array is drawn as it is, and not up to twice as large


def install():
    """Let `jax.random.normal` and `uniform`, outside compiled code, draw a power of two of numbers and keep the first."""
    for name in ("normal", "uniform"):
        if not hasattr(draw := getattr(jax.random, name), "original"):
            setattr(jax.random, name, _of_any_shape(draw))


def _of_any_shape(original):
    program = jax.jit(original, static_argnames=("shape", "dtype"))

    @functools.wraps(original)
    def draw(key, shape=(), dtype=None, *bounds, **rest):
        if not _is_plain(key, shape, *bounds, *rest.values()):
            return original(key, shape, dtype, *bounds, **rest)
        some = 2 ** max(6, (size := math.prod(shape)).bit_length())
        drawn = program(key, (some,), dtype, *bounds, **rest)
        if isinstance(drawn, jax.core.Tracer):  # a part of a larger program
            return original(key, shape, dtype, *bounds, **rest)
        return jnp.asarray(np.asarray(drawn)[:size].reshape(shape))

    draw.original = original
    return draw


def _is_plain(key, shape, *rest) -> bool:
    """One key of the default generator on one device, a shape of integers, bounds that are numbers."""
    return (
        isinstance(key, jax.Array)
        and not isinstance(key, jax.core.Tracer)
        and not key.committed
        and jax.random.key_impl(key) == "threefry2x32"
        and jax.config.jax_threefry_partitionable
        and jax.sharding.get_abstract_mesh().empty
        and isinstance(shape, tuple)
        and all(type(n) is int for n in shape)
        and 0 < math.prod(shape) <= MOST
        and all(isinstance(bound, int | float | np.number) for bound in rest)
    )
