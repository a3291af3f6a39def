"""Moved to `wmlib.paths.krylov`. This name goes with the next release."""

import sys

from .paths import krylov

sys.modules[__name__] = krylov
