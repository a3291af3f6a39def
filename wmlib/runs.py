"""Moved to `wmlib.lab.runs`. This name goes with the next release."""

import sys

from .lab import runs

sys.modules[__name__] = runs
