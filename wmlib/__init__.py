"""Weight space: manifolds of networks, and paths that keep a network's function."""

from . import models as models
from . import rivals as rivals
from . import transforms as transforms
from .data import Dataset as Dataset
from .data import Splits as Splits
from .data import load_dataset as load_dataset
from .data import load_splits as load_splits
from .descent import MetricSolution as MetricSolution
from .descent import precondition as precondition
from .descent import solve_metric as solve_metric
from .manifolds import AbstractManifold as AbstractManifold
from .manifolds import BSpline as BSpline
from .manifolds import Ellipse as Ellipse
from .manifolds import Fourier as Fourier
from .manifolds import Line as Line
from .manifolds import Product as Product
from .manifolds import Simplex as Simplex
from .manifolds import Sphere as Sphere
from .manifolds import TetheredRod as TetheredRod
from .modulation import BasisPoints as BasisPoints
from .modulation import ManifoldArray as ManifoldArray
from .modulation import Modulated as Modulated
from .modulation import modulate as modulate
from .presets import Preset as Preset
from .presets import preset as preset
from .runs import sweep as sweep
