"""Moved to `wmlib.lab.transforms`. This name goes with the next release."""

import sys

from .lab import transforms

sys.modules[__name__] = transforms
