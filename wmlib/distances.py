"""Moved to `wmlib.paths.distances`. This name goes with the next release."""

import sys

from .paths import distances

sys.modules[__name__] = distances
