"""What an experiment needs and no importer does: data, presets, recorded runs, figures, verdicts.

Its modules are loaded on first use. `data`, `figures`, `runs` and `verdicts` need the extra: `pip install "wmlib[lab]"`.
"""

from typing import TYPE_CHECKING

from .._lazy import on_first_use

if TYPE_CHECKING:
    from . import data as data
    from . import figures as figures
    from . import fingerprints as fingerprints
    from . import presets as presets
    from . import runs as runs
    from . import transforms as transforms
    from . import verdicts as verdicts

__getattr__, __dir__ = on_first_use(
    __name__, dict.fromkeys(("data", "figures", "fingerprints", "presets", "runs", "transforms", "verdicts"))
)
