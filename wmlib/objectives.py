"""Moved to `wmlib.paths.objectives`. This name goes with the next release."""

import sys

from .paths import objectives

sys.modules[__name__] = objectives
