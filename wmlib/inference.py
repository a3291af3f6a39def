"""Moved to `wmlib.manifolds.inference`. This name goes with the next release."""

import sys

from .manifolds import inference

sys.modules[__name__] = inference
