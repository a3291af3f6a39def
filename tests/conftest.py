"""Tests run under shape checking, strict promotion and without a network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
from jaxtyping import install_import_hook

# Every annotation of the library is checked at run time, shapes included. Before anything imports it.
install_import_hook("wmlib", "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
