"""Moved to `wmlib.paths.geodesics`. This name goes with the next release."""

import sys

from .paths import geodesics

sys.modules[__name__] = geodesics
