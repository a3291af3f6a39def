"""What an experiment needs and no importer does: data, presets, recorded runs, figures, verdicts.

Its modules are loaded on first use. All but `presets`, `fingerprints` and `transforms` need the extra: `pip install "wmlib[lab]"`.
"""

from typing import TYPE_CHECKING

from .._lazy import on_first_use

if TYPE_CHECKING:
    from . import cache as cache
    from . import data as data
    from . import engines as engines
    from . import figures as figures
    from . import fingerprints as fingerprints
    from . import pages as pages
    from . import presets as presets
    from . import records as records
    from . import runs as runs
    from . import texts as texts
    from . import transforms as transforms
    from . import verdicts as verdicts
    from . import verify as verify

__getattr__, __dir__ = on_first_use(
    __name__,
    dict.fromkeys(
        (
            "cache",
            "data",
            "engines",
            "figures",
            "fingerprints",
            "pages",
            "presets",
            "records",
            "runs",
            "texts",
            "transforms",
            "verdicts",
            "verify",
        )
    ),
)
