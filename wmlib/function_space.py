"""Moved to `wmlib.paths.metric`. This name goes with the next release."""

import sys

from .paths import metric

sys.modules[__name__] = metric
