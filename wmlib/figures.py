"""Moved to `wmlib.lab.figures`. This name goes with the next release."""

import sys

from .lab import figures

sys.modules[__name__] = figures
