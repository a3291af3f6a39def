"""Moved to `wmlib.lab.fingerprints`. This name goes with the next release."""

import sys

from .lab import fingerprints

sys.modules[__name__] = fingerprints
