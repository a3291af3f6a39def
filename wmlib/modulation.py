"""Moved to `wmlib.manifolds.modulation`. This name goes with the next release."""

import sys

from .manifolds import modulation

sys.modules[__name__] = modulation
