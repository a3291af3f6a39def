"""Functionally invariant paths: the metric of a function on weights, and ways to walk under it."""

from typing import TYPE_CHECKING

from .._lazy import on_first_use
from . import distances as distances
from . import objectives as objectives
from .directions import Direction as Direction
from .directions import ExactDirections as ExactDirections
from .directions import direction as direction
from .krylov import InvariantDimension as InvariantDimension
from .krylov import Krylov as Krylov
from .krylov import SpectralDensity as SpectralDensity
from .krylov import Spectrum as Spectrum
from .krylov import lanczos as lanczos
from .krylov import spectral_density as spectral_density
from .krylov import spectrum as spectrum
from .metric import FunctionMetric as FunctionMetric
from .sequences import Walks as Walks
from .sequences import walk_sequence as walk_sequence
from .walk import AbstractMethod as AbstractMethod
from .walk import Path as Path
from .walk import PenalisedDescent as PenalisedDescent
from .walk import Problem as Problem
from .walk import walk as walk

if TYPE_CHECKING:
    from . import geodesics as geodesics
    from .geodesics import Geodesic as Geodesic
    from .geodesics import acceleration as acceleration
    from .geodesics import geodesic as geodesic

# diffrax takes half as long to load as jax.
__getattr__, __dir__ = on_first_use(
    __name__, {"Geodesic": "geodesics", "acceleration": "geodesics", "geodesic": "geodesics", "geodesics": None}
)
