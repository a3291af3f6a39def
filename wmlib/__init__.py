"""Weight space: manifolds of networks, and paths that keep a network's function."""

from typing import TYPE_CHECKING

from . import manifolds as manifolds
from . import models as models
from . import rivals as rivals
from ._lazy import on_first_use as _on_first_use
from .manifolds import AbstractManifold as AbstractManifold
from .manifolds import BasisPoints as BasisPoints
from .manifolds import BSpline as BSpline
from .manifolds import Ellipse as Ellipse
from .manifolds import Fourier as Fourier
from .manifolds import InferredContext as InferredContext
from .manifolds import Line as Line
from .manifolds import ManifoldArray as ManifoldArray
from .manifolds import MetricSolution as MetricSolution
from .manifolds import Modulated as Modulated
from .manifolds import Product as Product
from .manifolds import Simplex as Simplex
from .manifolds import Sphere as Sphere
from .manifolds import TetheredRod as TetheredRod
from .manifolds import infer_context as infer_context
from .manifolds import modulate as modulate
from .manifolds import precondition as precondition
from .manifolds import solve_metric as solve_metric
from .paths import Direction as Direction
from .paths import ExactDirections as ExactDirections
from .paths import FunctionMetric as FunctionMetric
from .paths import InvariantDimension as InvariantDimension
from .paths import Krylov as Krylov
from .paths import Path as Path
from .paths import PenalisedDescent as PenalisedDescent
from .paths import SpectralDensity as SpectralDensity
from .paths import Spectrum as Spectrum
from .paths import direction as direction
from .paths import distances as distances
from .paths import lanczos as lanczos
from .paths import objectives as objectives
from .paths import spectral_density as spectral_density
from .paths import spectrum as spectrum
from .paths import walk as walk
from .paths import walk_sequence as walk_sequence

if TYPE_CHECKING:
    from . import lab as lab
    from .lab import transforms as transforms
    from .lab.data import Dataset as Dataset
    from .lab.data import Splits as Splits
    from .lab.data import load_dataset as load_dataset
    from .lab.data import load_splits as load_splits
    from .lab.presets import Preset as Preset
    from .lab.presets import preset as preset
    from .lab.runs import sweep as sweep
    from .lab.texts import Texts as Texts
    from .lab.texts import Words as Words
    from .lab.texts import load_texts as load_texts
    from .lab.texts import load_words as load_words
    from .paths import Geodesic as Geodesic
    from .paths import acceleration as acceleration
    from .paths import geodesic as geodesic

# Loaded on first use: an import of wmlib takes little longer than one of jax and equinox.
__getattr__, __dir__ = _on_first_use(
    __name__,
    {
        "lab": None,
        "transforms": "lab",
        "Dataset": "lab.data",
        "Splits": "lab.data",
        "load_dataset": "lab.data",
        "load_splits": "lab.data",
        "Preset": "lab.presets",
        "preset": "lab.presets",
        "sweep": "lab.runs",
        "Texts": "lab.texts",
        "Words": "lab.texts",
        "load_texts": "lab.texts",
        "load_words": "lab.texts",
        "Geodesic": "paths",
        "acceleration": "paths",
        "geodesic": "paths",
        # The modules of the last release, under their old names.
        **dict.fromkeys(("data", "descent", "directions", "figures", "fingerprints", "function_space", "geodesics")),
        **dict.fromkeys(("inference", "krylov", "modulation", "presets", "runs", "verdicts")),
    },
)
