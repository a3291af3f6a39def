"""The methods that the papers compare with.

Conditioning (Benjamin et al. 2025, 3.1 and D), each around the same `CNN` and called as a modulated network is,
`net(x, s)`: `Unconditioned`, `Concat`, `Embed`, `FiLM`.

Continual learning (Raghavan et al. 2024), the mechanism alone. A penalty or loss, to be scaled and added to that of the new
task: `l2_penalty`, `ewc_penalty` (with `fisher_diagonal`), `replay_loss`, `der_loss`, `lwf_loss`. A projection of its
gradient: `gem_projection`, `agem_projection`, `ogd_projection` (with `ogd_basis`).

Over many tasks: `ewc_penalties`, one for each, or `online_ewc`, one that runs along. Outputs of one task among those of all:
`class_masks`, `told`, `told_cross_entropy`. Maps of the weights that each task uses: `relevance` (`relevance.split`, `apply`,
`penalty`, `free`, `rounded`, `freeze`, `share`). Replay of images that are not stored: `generative` (`generative.VAE`, `elbo`,
`sample`, `replayed`).

Fine-tuning by few weights: `lora`, low-rank adaptation (`lora.adapt`, `lora.trainable`, `lora.merge`).
"""

from . import generative as generative
from . import lora as lora
from . import relevance as relevance
from .conditioning.concat import Concat as Concat
from .conditioning.embed import Embed as Embed
from .conditioning.film import FiLM as FiLM
from .conditioning.unconditioned import Unconditioned as Unconditioned
from .continual.der import der_loss as der_loss
from .continual.ewc import ewc_penalty as ewc_penalty
from .continual.ewc import fisher_diagonal as fisher_diagonal
from .continual.gem import agem_projection as agem_projection
from .continual.gem import gem_projection as gem_projection
from .continual.l2 import l2_penalty as l2_penalty
from .continual.lwf import lwf_loss as lwf_loss
from .continual.ogd import ogd_basis as ogd_basis
from .continual.ogd import ogd_projection as ogd_projection
from .continual.replay import replay_loss as replay_loss
from .heads import class_masks as class_masks
from .heads import told as told
from .heads import told_cross_entropy as told_cross_entropy
from .online import Anchor as Anchor
from .online import ewc_penalties as ewc_penalties
from .online import online_ewc as online_ewc
