"""The one style of the book's figures, and the plots that more than one chapter draws."""

from . import _extra as _extra  # isort: split

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib import rcsetup
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from numpy.typing import ArrayLike
from scipy import stats

from ..manifolds.shapes import AbstractManifold

# Nine colours, each at least 3:1 against the ground (WCAG 2.2, 1.4.11), and any two apart by 14 of CIELAB's units at
# least, as the commonest kinds of colour blindness see them (Machado, Oliveira & Fernandes 2009).
_BLUE, _AMBER, _GREEN, _BRICK, _PINK = "#0072B2", "#B1842D", "#249B60", "#BB4D36", "#A5188A"
_SKY, _GREY, _BROWN, _VIOLET, _INK = "#0F7FFB", "#6E6E6E", "#573513", "#5624EB", "#2B2B2B"
_PLUM, _TEAL = "#6208AC", "#289FA7"
PALETTE: tuple[str, ...] = (_BLUE, _AMBER, _GREEN, _BRICK, _PINK, _SKY, _GREY, _BROWN, _VIOLET)

# One colour for one method through the whole book. A manifold without its metric is brick, whichever manifold it is.
METHOD_COLOURS: Mapping[str, str] = {
    "ellipse": _BLUE,
    "ellipse, no metric": _BRICK,
    "none": _GREY,
    "concat": _AMBER,
    "embed": _GREEN,
    "film": _PINK,
    "line": _VIOLET,
    "line, no metric": _BRICK,
}

# The same for the paths of Part II. Plain descent of the new task is fine-tuning.
PATH_COLOURS: Mapping[str, str] = {
    "fine-tuning": _BROWN,
    "joint": _INK,
    "replay": _AMBER,
    "L2": _PINK,
    "FIP": _BLUE,
    "FIP, squared": _SKY,
    "LoRA": _GREEN,
    "LoRA, longer": _TEAL,
    "LoRA with memory": _PLUM,
    "FIP, exact": _BRICK,
    "FIP, exact, not anchored": _VIOLET,
}

# The verdicts. Their words stand beside them everywhere, so that nothing hangs on the colour alone.
VERDICT_COLOURS: Mapping[str, str] = {
    "reproduced": _BLUE,
    "holds": _BLUE,
    "partly": _SKY,
    "mixed": _AMBER,
    "undecided": _GREY,
    "contradicted": _BRICK,
    "not tested": "#8A8A8A",
}

GROUND = "#FBFAF7"
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _INK,
    "axes.facecolor": GROUND,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.labelsize": 11,
    "axes.prop_cycle": rcsetup.cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.facecolor": GROUND,
    "figure.figsize": (6.6, 3.8),
    "font.size": 10.5,
    "grid.alpha": 0.6,
    "grid.color": "#DDDAD2",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "savefig.facecolor": GROUND,
    "svg.fonttype": "path",
    "svg.hashsalt": "wmlib",
    "text.color": _INK,
    "xtick.color": _INK,
    "xtick.labelsize": 10,
    "ytick.color": _INK,
    "ytick.labelsize": 10,
}


def use_style() -> None:
    """Set the style of every figure drawn after this call; in a notebook, also draw them as SVG.

    The ground is opaque and light, so that a figure reads in a dark theme too. Text is drawn as paths and the SVG's
    internal names are fixed: the same data give the same file on every machine.
    """
    mpl.rcdefaults()
    mpl.rcParams.update(_STYLE)
    try:
        from IPython.core.getipython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # IPython comes with the book, not with the library
        return
    if get_ipython() is not None:
        # No date in the file, or two builds of the same page would differ.
        set_matplotlib_formats("svg", metadata={"Date": None}, facecolor=GROUND, bbox_inches=None)


def _runs(values: ArrayLike, confidence: float) -> Float[np.ndarray, "runs ..."]:
    """The results of an interval's runs; a `ValueError` if there are none, or they or the confidence are out of range."""
    runs = np.asarray(values, dtype=np.float64)
    if runs.ndim == 0 or len(runs) == 0:
        raise ValueError(f"an interval needs values of shape (runs, ...) with at least one run, got {runs.shape}")
    if not np.isfinite(runs).all():
        raise ValueError(
            f"{(~np.isfinite(runs)).sum()} of {runs.size} values are not finite; leave out the runs that diverged"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 is usual")
    return runs


def t_interval(
    values: ArrayLike, *, confidence: float = 0.95
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    r"""Student's interval of a mean over runs (Student 1908).

    With the mean $\bar x$ and the standard deviation $s$ of $n$ runs, $\bar x \pm t\, s / \sqrt n$, where $t$ is the
    quantile $(1 + c)/2$ of Student's distribution with $n - 1$ degrees of freedom, and $c$ the confidence. It covers the
    mean of normal results exactly as often as it says, for three runs as for twenty.

    **Arguments:** `values`, the results of the runs, of shape `(runs, ...)`; each entry of the trailing shape gets an
    interval of its own. `confidence` $c$, in (0, 1).

    **Returns:** `(low, high)`, each of the trailing shape. One run has no interval: both are NaN, which matplotlib leaves
    out.

    **Raises:** `ValueError` if there are no runs, a value is not finite, or `confidence` is out of range.

    ```python
    low, high = t_interval([0.41, 0.43, 0.42])
    ```
    """
    runs = _runs(values, confidence)
    n, mean = len(runs), runs.mean(axis=0)
    if n == 1:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * runs.std(axis=0, ddof=1) / np.sqrt(n)
    return np.asarray(mean - half), np.asarray(mean + half)


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """The percentile bootstrap interval of a mean over runs (Efron & Tibshirani 1994, chapter 13).

    The book uses `t_interval`: for five normal runs this one covers the mean 85 times in a hundred instead of 95.

    The runs are drawn again with replacement, `resamples` times; the interval holds the central part `confidence` of
    the means.

    **Arguments:** `values`, the results of the runs, of shape `(runs, ...)`; each entry of the trailing shape gets an
    interval of its own, from the same resamples. `confidence`, in (0, 1). `seed` fixes the resamples.

    **Returns:** `(low, high)`, each of the trailing shape. One run gives an interval of width zero.

    **Raises:** `ValueError` if there are no runs, a value is not finite, or `confidence` or `resamples` is out of range.

    ```python
    low, high = bootstrap_interval([0.41, 0.43, 0.42])
    ```
    """
    runs = _runs(values, confidence)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}; 10,000 is usual")
    # How often each run is drawn is all that a mean needs: no array of resampled values.
    counts = np.random.default_rng(seed).multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=resamples)
    means = np.tensordot(counts / len(runs), runs, 1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return np.asarray(low), np.asarray(high)


def accuracy_curve(
    ax: Axes,
    x: ArrayLike,
    values: ArrayLike,
    *,
    method: str | None = None,
    label: str | None = None,
    colour: str | None = None,
    confidence: float = 0.95,
    **line: Any,
) -> None:
    """Draw the mean over runs as a line with points, and its `t_interval` as a band.

    **Arguments:** `x`, the positions, of shape `(points,)`. `values`, the results, of shape `(runs, points)`.
    `method`, a key of `METHOD_COLOURS`, chooses the colour and, unless `label` is given, names the curve. `colour`
    overrides it. `line` goes to `Axes.plot`.

    **Raises:** `ValueError` if the shapes do not fit, or `method` has no colour and none is given.
    """
    x, values = np.asarray(x), np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or x.shape != values.shape[1:]:
        raise ValueError(
            f"values must have the shape (runs, points) and x the shape (points,), got {values.shape} and {x.shape}"
        )
    if colour is None and method is not None:
        if method not in METHOD_COLOURS:
            raise ValueError(f"method {method!r} has no colour; it has to be one of {', '.join(METHOD_COLOURS)}")
        colour = METHOD_COLOURS[method]
    low, high = t_interval(values, confidence=confidence)
    options = {"marker": "o", "color": colour, "label": label if label is not None else method} | line
    (drawn,) = ax.plot(x, values.mean(axis=0), **options)
    ax.fill_between(x, low, high, color=drawn.get_color(), alpha=0.18, linewidth=0)


def principal_plane(
    points: ArrayLike,
) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, "2 dim"], float]:
    """The plane that holds most of a set of points, to look at weights in (Fig. 1c).

    **Arguments:** `points`, of shape `(points, dim)`, at least two points and two dimensions.

    **Returns:** `(centre, axes, share)`: the mean; two orthonormal directions, the first along the largest variance
    and each with its largest entry positive; and the share of the variance inside the plane, 1 for points of one
    ellipse. Coordinates in the plane are `(points - centre) @ axes.T`.

    **Raises:** `ValueError` for another shape.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or min(points.shape) < 2:
        raise ValueError(f"points must have the shape (points, dim), both at least 2, got {points.shape}")
    centre = points.mean(axis=0)
    _, scales, axes = np.linalg.svd(points - centre, full_matrices=False)
    axes = axes[:2]
    # A singular vector has no sign of its own: choose one, or the figure flips from machine to machine.
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(np.take_along_axis(axes, largest[:, None], axis=1))
    variance = scales**2
    share = float(variance[:2].sum() / variance.sum()) if variance.sum() > 0 else 1.0
    return centre, axes, share


def paths_in_plane(ax: Axes, paths: Mapping[str, ArrayLike], colours: Mapping[str, str] | None = None) -> float:
    """Draw walks from one start in the plane that holds most of all their points, the start as a star (Fig. 2d).

    **Arguments:** `paths`, by name, each of shape `(points, dim)`: the movements from the start, as `Path.movements()`
    gives them. Those of two dimensions are drawn as they are. `colours`, by the same names; default: the style's.

    **Returns:** the share of the variance inside the plane.

    **Raises:** `ValueError` for paths of another or of different dimensions.

    **Example:**

        figures.paths_in_plane(ax, {"FIP": path.movements(), "fine-tuning": other.movements()})
    """
    lines = {name: np.asarray(points, dtype=np.float64) for name, points in paths.items()}
    shapes = {name: line.shape for name, line in lines.items()}
    if len({shape[1:] for shape in shapes.values()}) != 1:
        raise ValueError(f"all paths must have the same number of coordinates, got the shapes {shapes}")
    centre, axes, share = principal_plane(np.concatenate([*lines.values()]))
    for name, line in lines.items():
        if line.shape[1] > 2:
            line = (line - centre) @ axes.T
        ax.plot(*line.T, "o-", ms=3.5, color=None if colours is None else colours[name], label=name)
        ax.plot(*line[0], "*", ms=11, color=_INK, zorder=4)
    ax.set(xlabel="first principal direction", ylabel="second principal direction", aspect="equal")
    return share


def manifold_in_plane(
    ax: Axes,
    manifold: AbstractManifold,
    history: ArrayLike,
    *,
    dots: int = 18,
    scale: float | int = 1.0,
    samples: int = 181,
    cmap: str = "twilight",
) -> PathCollection:
    """Draw a curve of weights as it learns, grey to dark, with points coloured by context on the last one (Fig. 1c).

    **Arguments:** `manifold`, with one number as its context. `history`, of shape `(times, n, 2)`: the coordinates of
    its `n` points in a plane at each time; coordinates of points transform as the points do, so those of a centre are
    a position and those of radii are differences. `dots`, how many contexts are marked, and `scale`, by what they are
    multiplied for the colours (360: degrees). `samples`, the vertices of each curve.

    **Returns:** the dots, for a `colorbar`.

    **Raises:** `ValueError` for a manifold of more than one context, or a history of another shape.
    """
    history = np.asarray(history, dtype=np.float64)
    if manifold.context_shape != ():
        raise ValueError(f"only a curve can be drawn, with one number as its context; {manifold} has another")
    if history.ndim != 3 or history.shape[1:] != (manifold.size, 2) or not len(history):
        raise ValueError(f"history must have the shape (times, {manifold.size}, 2), got {history.shape}")
    basis = jax.vmap(manifold.basis)
    along = np.asarray(basis(jnp.linspace(0.0, 1.0, samples)), np.float64)
    for time, points in enumerate(history):
        shade = plt.get_cmap("Greys")(0.25 + 0.65 * (time + 1) / len(history))
        ax.plot(*(along @ points).T, color=shade, lw=1.4)
    s = jnp.arange(dots) / dots
    marked = np.asarray(basis(s), np.float64) @ history[-1]
    ax.set_aspect("equal")
    return ax.scatter(*marked.T, c=np.asarray(s) * scale, cmap=cmap, zorder=3, edgecolor=_INK, lw=0.4)
