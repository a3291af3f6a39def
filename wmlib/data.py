"""Moved to `wmlib.lab.data`. This name goes with the next release."""

import sys

from .lab import data

sys.modules[__name__] = data
