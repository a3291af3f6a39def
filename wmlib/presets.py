"""Moved to `wmlib.lab.presets`. This name goes with the next release."""

import sys

from .lab import presets

sys.modules[__name__] = presets
