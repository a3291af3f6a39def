"""The methods that the papers compare with.

Conditioning (Benjamin et al. 2025, 3.1 and D), each around the same `CNN` and called as a modulated network is,
`net(x, s)`: `Unconditioned`, `Concat`, `Embed`, `FiLM`.
"""

from .concat import Concat as Concat
from .embed import Embed as Embed
from .film import FiLM as FiLM
from .unconditioned import Unconditioned as Unconditioned
