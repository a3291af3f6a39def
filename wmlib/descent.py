"""Moved to `wmlib.manifolds.descent`. This name goes with the next release."""

import sys

from .manifolds import descent

sys.modules[__name__] = descent
