"""Weight manifolds: their shapes, networks that lie on them, and how to descend on them."""

from .descent import MetricSolution as MetricSolution
from .descent import precondition as precondition
from .descent import solve_metric as solve_metric
from .inference import InferredContext as InferredContext
from .inference import infer_context as infer_context
from .modulation import BasisPoints as BasisPoints
from .modulation import ManifoldArray as ManifoldArray
from .modulation import Modulated as Modulated
from .modulation import modulate as modulate
from .shapes import AbstractManifold as AbstractManifold
from .shapes import BSpline as BSpline
from .shapes import Ellipse as Ellipse
from .shapes import Fourier as Fourier
from .shapes import Line as Line
from .shapes import Product as Product
from .shapes import Simplex as Simplex
from .shapes import Sphere as Sphere
from .shapes import TetheredRod as TetheredRod
