"""The exact directions that keep a function: the minimisers of Eq. 4, and steps along them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._counts import check_count
from .bidiagonal import Bidiagonal, among_outputs, bidiagonalise
from .checks import check_setting, wide
from .krylov import Krylov, combination, lanczos_and_rest, orthogonalise, ravel, rounding, unravel
from .metric import FunctionMetric, batches, check_positive, norm
from .walk import AbstractMethod, Problem


@final
class Direction(eqx.Module):
    """The movement of `direction` (`value`) and how it was found (`stats`).

    `stats` holds, one for each pair of β and ε (a number if both were numbers): `multiplier`, μ; `residual` and `rounding`;
    `moved`, `½⟨v, g v⟩`, the mean distance that the outputs move, to second order; `gained`, `⟨v, ∇L⟩`, the change of the
    objective, to first order (0 without a gradient); `converged`, whether the residual is at most `rtol`, rounding
    included, and μ is that of a minimum as far as the basis knows. And `dimension`, of the Krylov basis, which is how many products with the metric it took;
    `products`, how many were taken in all.

    With a gradient the residual is `|(g + μI) v + (β/2)∇L| / |(β/2)∇L|`. Without one it is `|g v + μ v| / |v|` in units of
    `−μ`, the smallest Ritz value: an eigenvalue then lies within that part of it. Where that is zero to rounding, the unit
    is what rounding hides: 20 times the precision of the weights, of the largest Ritz value, counts as `rtol`. Either
    residual is by Lanczos' own account, with nothing left out; `rounding` is what rounding the products may add to it, in
    the same units, and `converged` judges their sum.
    """

    value: PyTree[Array]
    stats: dict[str, Any]


def direction(
    metric: lx.AbstractLinearOperator,
    gradient: PyTree[Array] | None = None,
    beta: float | int | Sequence[float] | np.ndarray = 1.0,
    epsilon: float | int | Sequence[float] | np.ndarray = 1.0,
    *,
    key: PRNGKeyArray | None = None,
    dimension: SupportsIndex = 40,
    rtol: float | int = 1e-3,
) -> Direction:
    r"""The movement that keeps the function and improves an objective: the minimiser of
    `⟨v, g v⟩ + β ⟨v, ∇L⟩` subject to `⟨v, v⟩ = ε` (Eq. 4).

    That is a trust-region problem: `(g + μI) v = −(β/2) ∇L`, with the μ that gives `v` its length and leaves `g + μI`
    positive semi-definite. One Krylov basis of the metric, started at the gradient, serves all β and ε: within it the
    metric is a small tridiagonal matrix. If the basis holds all that the metric makes of the gradient and `v` would still
    be too short (the *hard case*: the gradient has no part in the flattest directions), what is missing of its length is
    filled up with a flat direction.

    Without a gradient (Eq. 3) it is a flat direction alone: the smallest Ritz vector of the Krylov basis of a random
    vector `r`. Every vector of that basis is `p(g) r` with a polynomial `p`, so that its part in the null space of `g` is a
    multiple of the part of `r`, whose direction is drawn evenly; and of all those polynomials, the Ritz vector has the one
    that makes the rest count least.

    **Arguments:**

    - `metric`: a `FunctionMetric`, or another positive semi-definite operator of `lineax`.
    - `gradient`: `∇L`, of the structure that the metric acts on.
    - `beta`, `epsilon`: numbers, or arrays that broadcast; `epsilon` is the *square* of the length.
    - `key`: for the direction without a gradient, and for the hard case (without one, `jax.random.key(0)`).
    - `dimension`: of the Krylov basis, at most.
    - `rtol`: the residual at which a direction counts as converged. In half precision the products' own rounding is more
      than the default, so that none does.

    **Returns:** a `Direction`; if `beta` or `epsilon` is an array, its leaves begin with their common axes.

    **Raises:** `ValueError` without a gradient and without a key; for a gradient that does not fit the metric, is zero or
    is not finite, a `beta`, `epsilon`, `rtol` or `dimension` that is not positive, and for a metric whose products are not
    finite; `TypeError` for complex weights.

    **Example:**

        found = wm.direction(metric, gradient, beta=[0.1, 1.0, 10.0], epsilon=0.01)
        found.stats["moved"], found.stats["gained"]

    **Reference:** Raghavan et al. (2024), Eq. 3 and 4; Gould, Lucidi, Roma & Toint (1999), Solving the Trust-Region
    Subproblem using the Lanczos Method.
    """
    beta, epsilon = _positive("beta", beta), _positive("epsilon", epsilon)
    try:
        beta, epsilon = np.broadcast_arrays(beta, epsilon)
    except ValueError:
        raise ValueError(
            f"beta and epsilon are taken in pairs, and their shapes are {beta.shape} and {epsilon.shape}; for each of the one"
            " with each of the other give beta[:, None] and epsilon"
        ) from None
    dimension = check_count("dimension", dimension)
    check_positive("rtol", rtol, "1e-3 is usual")
    if isinstance(metric, FunctionMetric) and dimension >= _PRODUCTS:
        metric = metric.linearised()
    if gradient is None:
        if key is None:
            raise ValueError("without a gradient the direction is drawn; give a key")
        return _flattest(metric, epsilon, key, dimension, rtol)
    krylov, rest = _basis(metric, gradient, dimension)
    noise = rounding(krylov.structure) * float(krylov.eigh()[0][-1])

    def solve(space, beta, epsilon):
        y, shift = _on_sphere(space.values, beta / 2 * space.slopes, epsilon)
        coefficients, pull = space.vectors @ y, beta / 2 * krylov.size
        told = {
            "multiplier": shift,
            "residual": space.outside(coefficients) / pull,
            "rounding": noise * math.sqrt(epsilon) / pull,
            "moved": float(space.values @ y**2) / 2,
            "gained": float(space.slopes @ y),
        }
        return coefficients, told

    space = _Space(krylov, krylov.projected(), np.array([[krylov.residual**2]]), [krylov.dimension - 1])
    pairs = list(zip(beta.ravel(), epsilon.ravel(), strict=True))
    solved = [solve(space, *pair) for pair in pairs]
    hard = [told["multiplier"] < 0 and told["residual"] <= rtol for _, told in solved]
    products, extra = krylov.dimension, None
    if any(hard) and krylov.dimension < metric.in_size():
        flat, _ = _basis(metric, _random(metric, jax.random.key(0) if key is None else key), dimension)
        products += flat.dimension + 1
        wider, extra = _with_one_more(metric, krylov, rest(), flat.combine(flat.eigh()[1][:, 0]))
        for i, (pair, is_hard) in enumerate(zip(pairs, hard, strict=True)):
            if is_hard:
                solved[i] = solve(wider, *pair)
    for (_, told), is_hard in zip(solved, hard, strict=True):
        told["converged"] = told["residual"] + told["rounding"] <= rtol and (is_hard or told["multiplier"] >= 0)
    stats = {k: np.array([told[k] for _, told in solved]).reshape(beta.shape)[()] for k in solved[0][1]}
    stats |= {"dimension": krylov.dimension, "products": products}
    return Direction(_movements(krylov, [c for c, _ in solved], beta.shape, extra), stats)


def _positive(name, given):
    """Positive and finite numbers as an array of float64."""
    try:
        array = np.asarray(given)
    except ValueError:  # a list of unequal lists
        array = np.empty(0)
    if array.dtype.kind not in "iuf" or not array.size or not ((array > 0) & (array < np.inf)).all():
        raise ValueError(f"{name} must be positive and finite numbers, got {given!r}; 1.0 is the default")
    return array.astype(float)


_PRODUCTS = 10
"""From so many on, a linearisation that is kept has paid for its making, and for a second program to compile."""


def _basis(metric, start, dimension) -> tuple[Krylov | Bidiagonal, Callable[[], Array]]:
    """A Krylov basis, and what gives the part of its last product that is outside it."""
    if among_outputs(metric):
        found = bidiagonalise(metric, start, dimension)
        return found, lambda: found.rest
    found, rest = lanczos_and_rest(metric, start, dimension)
    return found, lambda: rest


class _Space:
    """A basis, known by the metric within it, its eigenvectors, and the parts of products that it does not hold: those of
    the `rows`, by their inner products."""

    def __init__(self, krylov: Krylov | Bidiagonal, projected: np.ndarray, parts: np.ndarray, rows: list[int]):
        self.values, self.vectors = np.linalg.eigh(projected)
        self.slopes = krylov.size * self.vectors[0]
        self.parts, self.rows = parts, rows

    def outside(self, coefficients: np.ndarray) -> float:
        """The norm of what the product with a combination of the basis has outside it."""
        c = coefficients[self.rows]
        return math.sqrt(max(0.0, float(c @ self.parts @ c)))


def _on_sphere(values, slopes, epsilon):
    """The minimiser of `Σ θ_i y_i² + 2 Σ b_i y_i` with `|y|² = ε` and its multiplier, for ascending `θ`."""
    import scipy.optimize  # takes half as long to load as jax

    length, size = math.sqrt(epsilon), float(np.linalg.norm(slopes))
    # The hard case: a slope of zero along the lowest value leaves the sign of that part open; rounding chooses it.
    slopes = np.where(np.abs(slopes) > 1e-14 * size, slopes, 1e-14 * size)
    gaps = values - values[0]
    low, high = (math.log(x / length) for x in (0.99 * abs(slopes[0]), 1.01 * float(np.linalg.norm(slopes))))

    def excess(log_shift):
        return 1 / np.linalg.norm(slopes / (gaps + math.exp(log_shift))) - 1 / length

    found = scipy.optimize.root_scalar(excess, bracket=(low, high), xtol=1e-14, rtol=1e-14)
    shift = math.exp(found.root)
    y = -slopes / (gaps + shift)
    return y * (length / np.linalg.norm(y)), shift - float(values[0])


def _flattest(metric, epsilon, key, dimension, rtol):
    krylov, _ = _basis(metric, _random(metric, key), dimension)
    values, vectors = krylov.eigh()
    size, flat, largest = np.sqrt(epsilon), vectors[:, 0], max(float(values[-1]), np.finfo(float).tiny)
    noise = rounding(krylov.structure)
    # The smallest value may be zero, and nothing is small beside that; but nothing below rounding can be told from it.
    unit = max(float(values[0]), min(10 * noise / rtol, 1.0) * largest)
    residual = float(krylov.residual * abs(flat[-1])) / unit
    stats = {
        "multiplier": np.full(epsilon.shape, -values[0])[()],
        "residual": np.full(epsilon.shape, residual)[()],
        "rounding": np.full(epsilon.shape, noise * largest / unit)[()],
        "moved": values[0] * epsilon / 2,
        "gained": np.zeros(epsilon.shape)[()],
        "converged": np.full(epsilon.shape, residual + noise * largest / unit <= rtol)[()],
        "dimension": krylov.dimension,
        "products": krylov.dimension,
    }
    coefficients = [s * flat for s in size.ravel()]
    return Direction(_movements(krylov, coefficients, epsilon.shape), stats)


def _random(metric, key):
    """A movement without a preferred direction."""
    leaves, treedef = jax.tree.flatten(metric.in_structure())
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


def _with_one_more(metric, krylov, rest, movement):
    """The space with one more vector, and that. `rest` is what the last product has outside the basis."""
    vector, _, size = orthogonalise(krylov.blocks, ravel(movement, rest.dtype), 1.0)
    vector = vector / jnp.asarray(size, vector.dtype)
    product = ravel(metric.mv(unravel(vector, krylov.structure)), rest.dtype)
    outside, along, _ = orthogonalise(krylov.blocks, product, jnp.linalg.norm(product))
    along = along[: krylov.dimension]
    itself = float(vector @ outside)
    projected = np.block([[krylov.projected(), along[:, None]], [along[None], np.array([[itself]])]])
    if not krylov.residual:  # what is left is rounding
        rest = jnp.zeros_like(rest)
    # What the last row's product has outside both, and what the new one's has.
    parts = jnp.stack([rest - (rest @ vector) * vector, outside - itself * vector])
    gram = np.asarray(parts @ parts.T, float)
    return _Space(krylov, projected, gram, [krylov.dimension - 1, krylov.dimension]), vector


def _movements(krylov, coefficients, shape, extra: Any = None):
    """The combinations of a basis, and of one vector more where they have a coefficient for it, as trees whose leaves begin
    with `shape`."""
    rows = []
    for c in coefficients:
        if len(c) == krylov.dimension:
            rows.append(krylov.combine(c))
        else:
            flat = combination(krylov.blocks, c[:-1])
            rows.append(unravel(flat + jnp.asarray(c[-1], flat.dtype) * extra, krylov.structure))
    if shape == ():
        return rows[0]
    return jax.tree.map(lambda *x: jnp.stack(x).reshape(*shape, *x[0].shape), *rows)


@final
class ExactDirections(AbstractMethod):
    r"""Steps along the exact minimisers of Eq. 4, cut short where the function would drift too far.

    With `anchored`, the gradient in Eq. 4 is `∇L + (2/β) ∇d`, where `d` is the mean distance of the memory's outputs to
    the reference: `⟨v, g v⟩ + 2⟨v, ∇d⟩` is twice the change of `d` to second order (Gauss and Newton), so that a step also
    takes back what earlier ones let go. Without it, a step only keeps what is there, as the paper has it.

    Where the gradient is zero, Eq. 4 is Eq. 3, and the direction is drawn from the flat ones.

    Without an objective the first direction is drawn from the flat ones, and each further one minimises Eq. 4 with minus
    the last direction as the gradient: straight on, as far as the function allows.

    **Reference:** Raghavan et al. (2024), Eq. 3 and 4.
    """

    beta: float
    epsilon: float | Callable[[int], Any] = eqx.field(static=True)
    dimension: int = eqx.field(static=True)
    tolerance: float
    momentum: float
    anchored: bool = eqx.field(static=True)

    def __init__(
        self,
        beta: float | int,
        epsilon: float | int | Callable[[int], Any],
        dimension: SupportsIndex = 20,
        tolerance: float | int = math.inf,
        momentum: float | int = 0.0,
        anchored: bool = True,
    ):
        """**Arguments:**

        - `beta`: how much the objective counts beside the function.
        - `epsilon`: the square of the length of a step; a number, or a function of the number of the step (as optax's
          schedules).
        - `dimension`: of the Krylov basis of each step; so many products with the metric.
        - `tolerance`: how much the mean distance on the memory may grow in one step. A step that would leave it, or the
          `drift_limit` of the walk, is halved until it does not; the next one begins at twice the length that was left.
        - `momentum`: the weight of the past in a running mean of the objective's gradients; 0 for none.
        - `anchored`: see above.

        **Raises:** `ValueError` for numbers out of range.
        """
        check_positive("beta", beta, "1.0 is usual")
        if not callable(epsilon):
            check_positive("epsilon", epsilon, "0.01 is usual, the square of a length of 0.1")
        if tolerance != math.inf:
            check_positive("tolerance", tolerance, "leave it out for no limit")
        self.beta = beta
        self.epsilon = epsilon
        self.dimension = check_count("dimension", dimension)
        self.tolerance = tolerance
        self.momentum = check_setting("momentum (0 is for none, 0.9 is usual)", momentum, below=1)
        self.anchored = anchored

    def start(self, problem: Problem, weights: PyTree, key: PRNGKeyArray) -> Any:
        """The key, the number of the step, the running mean of the gradients (or the last direction), and the share of
        its length that a step begins with."""
        return key, 0, None, 1.0

    def step(self, problem: Problem, weights: PyTree, state: Any, draw: Any) -> tuple[PyTree, Any, dict[str, Any]]:
        """One direction, and as much of it as the drift allows."""
        key, taken, past, share = state
        key, key_direction = jax.random.split(key)
        objective, gradient = (math.nan, past) if problem.objective is None else _slope(problem, weights, draw)
        if problem.objective is not None and past is not None and self.momentum:
            m = self.momentum
            gradient = jax.tree.map(lambda x, y: m * x + (1 - m) * y, past, gradient)
        kept, pull = _pull(problem, weights) if self.anchored else (_kept(problem, weights), None)
        total = None if gradient is None else jax.tree.map(lambda x: self.beta * wide(x), gradient)
        if total is not None and pull is not None:
            total = jax.tree.map(lambda x, y: x + 2 * y, total, pull)
        if total is not None and not math.isfinite(size := float(norm(total))):
            raise FloatingPointError(
                f"the gradient of step {taken + 1} has the norm {size}; look for an objective that is not finite, or whose"
                " derivative is not (a square root or a logarithm at zero), or take smaller steps"
            )
        if total is not None and size == 0:
            total = None
        metric = FunctionMetric(problem.f, weights, problem.memory, problem.distance, batch=problem.batch)
        epsilon = float(self.epsilon(taken)) if callable(self.epsilon) else self.epsilon
        v = direction(metric, total, 1.0, epsilon, key=key_direction, dimension=self.dimension).value
        allowed = max(kept, min(kept + self.tolerance, problem.drift_limit))
        for _ in range(12):
            moved = _moved(weights, v, np.asarray(share))
            if allowed == math.inf or _kept(problem, moved) <= allowed:
                break
            share /= 2
        else:
            cure = "no step in this direction stays within the drift allowed: raise drift_limit, tolerance or dimension, or lower beta"
            return weights, state, {"stopped": cure}
        length = share * math.sqrt(epsilon)
        past = jax.tree.map(lambda x: -x / math.sqrt(epsilon), v) if problem.objective is None else gradient
        return (
            moved,
            (key, taken + 1, past, min(1.0, 2 * share)),
            {"objective": objective, "kept": kept, "length": length},
        )


@eqx.filter_jit
def _slope(problem, weights, draw):
    dynamic, static = eqx.partition(weights, eqx.is_inexact_array)
    return jax.value_and_grad(lambda w: problem.improve(eqx.combine(w, static), draw))(dynamic)


@eqx.filter_jit
def _pull_on(problem, weights, index):
    dynamic, static = eqx.partition(weights, eqx.is_inexact_array)
    return jax.value_and_grad(lambda w: len(index) * problem.keep(eqx.combine(w, static), index))(dynamic)


def _pull(problem, weights):
    """The mean distance of the memory's outputs to the reference, and its gradient."""
    parts = [_pull_on(problem, weights, index) for index in batches(np.arange(problem.size), problem.batch)]
    value, gradient = jax.tree.map(lambda *x: sum(map(wide, x)) / problem.size, *parts)
    return float(value), gradient


@eqx.filter_jit
def _keep(problem, weights, index):
    return len(index) * problem.keep(weights, index)


def _kept(problem, weights):
    """The mean distance of the memory's outputs to the reference."""
    indices = batches(np.arange(problem.size), problem.batch)
    return sum(float(_keep(problem, weights, index)) for index in indices) / problem.size


@eqx.filter_jit
def _moved(weights, movement, share):
    dynamic, static = eqx.partition(weights, eqx.is_inexact_array)
    moved = jax.tree.map(lambda x, v: x + share.astype(x.dtype) * v, dynamic, movement)
    return eqx.combine(moved, static)
