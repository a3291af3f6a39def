"""Moved to `wmlib.lab.verdicts`. This name goes with the next release."""

import sys

from .lab import verdicts

sys.modules[__name__] = verdicts
