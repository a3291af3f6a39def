"""Moved to `wmlib.paths.directions`. This name goes with the next release."""

import sys

from .paths import directions

sys.modules[__name__] = directions
