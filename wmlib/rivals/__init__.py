"""The methods that the papers compare with.

Conditioning (Benjamin et al. 2025, 3.1 and D), each around the same `CNN` and called as a modulated network is,
`net(x, s)`: `Unconditioned`, `Concat`, `Embed`, `FiLM`.

Continual learning (Raghavan et al. 2024), the mechanism alone. A penalty or loss, to be scaled and added to that of the new
task: `l2_penalty`, `ewc_penalty` (with `fisher_diagonal`), `replay_loss`, `der_loss`, `lwf_loss`. A projection of its
gradient: `gem_projection`, `agem_projection`, `ogd_projection` (with `ogd_basis`).
"""

from .concat import Concat as Concat
from .der import der_loss as der_loss
from .embed import Embed as Embed
from .ewc import ewc_penalty as ewc_penalty
from .ewc import fisher_diagonal as fisher_diagonal
from .film import FiLM as FiLM
from .gem import agem_projection as agem_projection
from .gem import gem_projection as gem_projection
from .l2 import l2_penalty as l2_penalty
from .lwf import lwf_loss as lwf_loss
from .ogd import ogd_basis as ogd_basis
from .ogd import ogd_projection as ogd_projection
from .replay import replay_loss as replay_loss
from .unconditioned import Unconditioned as Unconditioned
