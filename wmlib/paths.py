"""Paths through weight space that keep a function: directions, walks after Algorithms 1, 2 and 3, geodesics."""

import abc
import math
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import scipy.optimize
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .distances import OutputDistance, squared_error
from .function_space import FunctionMetric, refuse_state
from .krylov import lanczos
from .objectives import AbstractObjective, shuffled


@final
class Path(eqx.Module):
    """Where a walk went, and what it did to the function.

    At the recorded points: `steps`, how many steps had been taken; `lengths`, how far the walk had come; `drift`, the
    mean distance of the outputs on held-out inputs to those at the start; and `weights`. When those would be too many,
    `weights` has the first and the last only, and `projections` one vector for each point instead, in which the inner
    products of movements are kept but for a small random error.

    For each step, as it saw them before it moved: `objective` (NaN without one) and `kept`, the mean distance of the
    memory's outputs to the reference (NaN where the method does not look at it).

    `outcome` is "arrived" (the target was reached), "step limit" or "drift limit"; `cure` says what to do about it.
    """

    weights: tuple[PyTree, ...]
    projections: Float[np.ndarray, "points sketch"] | None
    steps: Int[np.ndarray, " points"]
    lengths: Float[np.ndarray, " points"]
    drift: Float[np.ndarray, " points"]
    objective: Float[np.ndarray, " taken"]
    kept: Float[np.ndarray, " taken"]
    outcome: str
    cure: str

    @property
    def length(self) -> float:
        """The Euclidean length of the walk, `Σ_i |w_i − w_{i−1}|` over all of its steps (the paper's *FIP length*)."""
        return float(self.lengths[-1])

    def movements(self) -> Float[np.ndarray, "points coordinates"]:
        """The movement from the start at each recorded point, flat; or its projection where the weights are not kept."""
        points = self.projections
        if points is None:
            points = np.stack([_flatten(w) for w in self.weights])
        return points - points[0]


@final
class Problem(eqx.Module):
    """What a method of `walk` may ask about: the function to keep, on which inputs, and what is to improve."""

    f: Callable[..., Any] = eqx.field(static=True)
    distance: OutputDistance
    reference: Callable[..., Any] | None = eqx.field(static=True)
    objective: AbstractObjective | None
    memory: PyTree[Array]
    outputs: Array
    drift_limit: float = eqx.field(static=True)
    batch: int = eqx.field(static=True)

    @property
    def size(self) -> int:
        """How many inputs the memory has."""
        return len(self.outputs)

    def improve(self, weights: PyTree, draw: Any) -> Float[Array, ""]:
        """The objective; zero without one."""
        return jnp.zeros(()) if self.objective is None else self.objective.value(weights, draw)

    def keep(self, weights: PyTree, index: Int[Array | np.ndarray, " batch"] | None = None) -> Float[Array, ""]:
        """The mean distance of the memory's outputs, of all or of some, to the reference."""
        memory, outputs = self.memory, self.outputs
        if index is not None:
            memory, outputs = jax.tree.map(lambda x: x[index], (memory, outputs))
        if self.reference is not None:
            anchor = self.reference(weights)
            outputs = jax.vmap(lambda x: self.f(anchor, x))(memory)
        return jnp.mean(jax.vmap(lambda x, y0: self.distance(self.f(weights, x), y0))(memory, outputs))


class AbstractMethod(eqx.Module):
    """How `walk` takes its steps."""

    @abc.abstractmethod
    def start(self, problem: Problem, weights: PyTree, key: PRNGKeyArray) -> Any:
        """Check the settings against the problem, and return the method's state."""

    @abc.abstractmethod
    def step(self, problem: Problem, weights: PyTree, state: Any, draw: Any) -> tuple[PyTree, Any, dict[str, Any]]:
        """One step: the new weights and state, and `objective` and `kept` before the step, its `length`, and, if it
        could not be taken within the drift allowed, `stopped`, with the cure."""


@final
class PenalisedDescent(AbstractMethod):
    """Descent of `L(w) + penalty · (mean distance of the memory's outputs to the reference)`, the authors' method.

    **Reference:** Raghavan et al. (2024), Algorithms 1 and 2; there and in the authors' code the distances are summed
    over the memory, so that their λ is `penalty` divided by the number of inputs summed.
    """

    optimiser: optax.GradientTransformation = eqx.field(static=True)
    penalty: float
    memory_batch: int | None = eqx.field(static=True)

    def __init__(
        self, optimiser: optax.GradientTransformation, penalty: float | int = 1.0, memory_batch: int | None = None
    ):
        """**Arguments:**

        - `optimiser`: any of optax. Give the same one again, and nothing is compiled again.
        - `penalty`: 0 for plain descent of the objective.
        - `memory_batch`: how many inputs of the memory a step looks at; default: all.

        **Raises:** `ValueError` for a penalty that is negative or not finite, or a batch that is not positive.
        """
        if not 0 <= penalty < math.inf:
            raise ValueError(f"the penalty must be at least 0 and finite, got {penalty}")
        if memory_batch is not None and memory_batch < 1:
            raise ValueError(f"memory_batch must be at least 1, got {memory_batch}; leave it out for the whole memory")
        self.optimiser = optimiser
        self.penalty = penalty
        self.memory_batch = memory_batch

    def start(self, problem: Problem, weights: PyTree, key: PRNGKeyArray) -> Any:
        """The optimiser's state, and which inputs of the memory each step looks at."""
        if self.memory_batch is not None and self.memory_batch > problem.size:
            raise ValueError(
                f"memory_batch is {self.memory_batch} and the memory has {problem.size} inputs; leave it out"
            )
        if problem.objective is None and problem.reference is None:
            raise ValueError(
                "descending the drift alone never moves: at the start it is zero, its minimum; give an objective, or walk"
                " by wm.ExactDirections, which draws a direction"
            )
        state = self.optimiser.init(eqx.filter(weights, eqx.is_inexact_array))
        return state, None if self.memory_batch is None else shuffled(key, problem.size, self.memory_batch)

    def step(self, problem: Problem, weights: PyTree, state: Any, draw: Any) -> tuple[PyTree, Any, dict[str, Any]]:
        """One step of the optimiser."""
        state, memory_draws = state
        index = None if memory_draws is None else next(memory_draws)
        penalty = None if self.penalty == 0 else np.asarray(self.penalty, np.float32)
        weights, state, told = _descend(self.optimiser, problem, weights, state, draw, index, penalty)
        return weights, (state, memory_draws), told


@eqx.filter_jit
def _descend(optimiser, problem, weights, state, draw, index, penalty):
    dynamic, static = eqx.partition(weights, eqx.is_inexact_array)

    def loss(dynamic):
        w = eqx.combine(dynamic, static)
        objective = problem.improve(w, draw)
        if penalty is None:
            return objective, (objective, jnp.asarray(jnp.nan))
        kept = problem.keep(w, index)
        return objective + penalty.astype(kept.dtype) * kept, (objective, kept)

    (_, (objective, kept)), gradient = jax.value_and_grad(loss, has_aux=True)(dynamic)
    updates, state = optimiser.update(gradient, state, dynamic)
    moved = jax.tree.map(lambda x, u: x + u.astype(x.dtype), dynamic, updates)
    length = _norm(jax.tree.map(jnp.subtract, moved, dynamic))
    return eqx.combine(moved, static), state, {"objective": objective, "kept": kept, "length": length}


@final
class Direction(eqx.Module):
    """The movement of `direction` (`value`) and how it was found (`stats`).

    `stats` holds, one for each pair of β and ε (a number if both were numbers): `multiplier`, μ; `residual`, the norm
    `|(g + μI) v + (β/2)∇L|` by Lanczos' own account, in units of `|(β/2)∇L|` (without a gradient `|g v + μ v| / |v|`, in
    units of the largest Ritz value); `moved`, `½⟨v, g v⟩`, the mean distance that the outputs move, to second order;
    `gained`, `⟨v, ∇L⟩`, the change of the objective, to first order (0 without a gradient); `converged`, whether the
    residual is at most `rtol` and μ is that of a minimum as far as the basis knows. And `dimension`, of the Krylov basis,
    which is how many products with the metric it took; `products`, how many were taken in all.
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
    dimension: int = 40,
    rtol: float = 1e-3,
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
    - `rtol`: the relative residual at which the basis counts as holding all that it needs.

    **Returns:** a `Direction`; if `beta` or `epsilon` is an array, its leaves begin with their common axes.

    **Raises:** `ValueError` without a gradient and without a key; for a gradient that does not fit the metric, is zero or
    is not finite, a `beta` or `epsilon` that is not positive, a `dimension` that is not, and for a metric whose products
    are not finite.

    **Example:**

        found = wm.direction(metric, gradient, beta=[0.1, 1.0, 10.0], epsilon=0.01)
        found.stats["moved"], found.stats["gained"]

    **Reference:** Raghavan et al. (2024), Eq. 3 and 4; Gould, Lucidi, Roma & Toint (1999), Solving the Trust-Region
    Subproblem using the Lanczos Method.
    """
    beta, epsilon = np.broadcast_arrays(np.asarray(beta, float), np.asarray(epsilon, float))
    for name, array in (("beta", beta), ("epsilon", epsilon)):
        if not (np.isfinite(array) & (array > 0)).all():
            raise ValueError(f"{name} must be positive and finite, got {array}")
    if gradient is None:
        if key is None:
            raise ValueError("without a gradient the direction is drawn; give a key")
        return _flattest(metric, epsilon, key, dimension, rtol)
    krylov = lanczos(metric, gradient, dimension)
    values, vectors = krylov.eigh()
    slopes = krylov.size * vectors[0]
    exhausted = krylov.residual <= 0

    def solve(values, vectors, slopes, beta, epsilon):
        y, shift = _on_sphere(values, beta / 2 * slopes, epsilon)
        last = (vectors @ y)[krylov.dimension - 1]
        told = {
            "multiplier": shift,
            "residual": krylov.residual * abs(last) / (beta / 2 * krylov.size),
            "moved": float(values @ y**2) / 2,
            "gained": float(slopes @ y),
        }
        return vectors @ y, told

    pairs = list(zip(beta.ravel(), epsilon.ravel(), strict=True))
    solved = [solve(values, vectors, slopes, *pair) for pair in pairs]
    hard = [told["multiplier"] < 0 and (exhausted or told["residual"] <= rtol) for _, told in solved]
    whole, products = krylov, krylov.dimension
    if any(hard) and krylov.dimension < krylov.basis.shape[1]:
        flat = lanczos(metric, _random(metric, jax.random.key(0) if key is None else key), dimension)
        products += flat.dimension + 1
        lowest = jnp.asarray(flat.eigh()[1][:, 0], flat.basis.dtype) @ flat.basis
        whole, projected = _with_one_more(metric, krylov, lowest)
        values, vectors = np.linalg.eigh(projected)
        slopes = krylov.size * vectors[0]
        for i, (pair, is_hard) in enumerate(zip(pairs, hard, strict=True)):
            if is_hard:
                solved[i] = solve(values, vectors, slopes, *pair)
            else:
                solved[i] = (np.append(solved[i][0], 0.0), solved[i][1])
    for told, is_hard in zip((told for _, told in solved), hard, strict=True):
        told["converged"] = bool((exhausted or told["residual"] <= rtol) and (is_hard or told["multiplier"] >= 0))
    stats = {k: np.array([told[k] for _, told in solved]).reshape(beta.shape)[()] for k in solved[0][1]}
    stats |= {"dimension": krylov.dimension, "products": products}
    return Direction(_movements(whole, [c for c, _ in solved], beta.shape), stats)


def _on_sphere(values, slopes, epsilon):
    """The minimiser of `Σ θ_i y_i² + 2 Σ b_i y_i` with `|y|² = ε` and its multiplier, for ascending `θ`."""
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
    krylov = lanczos(metric, _random(metric, key), dimension)
    values, vectors = krylov.eigh()
    size, flat = np.sqrt(epsilon), vectors[:, 0]
    residual = float(krylov.residual * abs(flat[-1]) / max(values[-1], np.finfo(float).tiny))
    stats = {
        "multiplier": np.full(epsilon.shape, -values[0])[()],
        "residual": np.full(epsilon.shape, residual)[()],
        "moved": values[0] * epsilon / 2,
        "gained": np.zeros(epsilon.shape)[()],
        "converged": np.full(epsilon.shape, residual <= rtol)[()],
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


def _with_basis(krylov, basis):
    return eqx.tree_at(lambda k: k.basis, krylov, basis)


def _with_one_more(metric, krylov, vector):
    """A basis with one more vector, and the metric within it."""
    for _ in range(2):
        vector = vector - (krylov.basis @ vector) @ krylov.basis
    vector = vector / jnp.linalg.norm(vector)
    product = ravel_pytree(metric.mv(_with_basis(krylov, vector[None]).combine(np.ones(1))))[0]
    along = np.asarray(krylov.basis @ product, float)
    inside = np.diag(krylov.diagonal) + np.diag(krylov.off_diagonal, 1) + np.diag(krylov.off_diagonal, -1)
    projected = np.block([[inside, along[:, None]], [along[None], np.array([[float(vector @ product)]])]])
    return _with_basis(krylov, jnp.concatenate([krylov.basis, vector[None]])), projected


def _movements(krylov, coefficients, shape):
    """The combinations of a basis as trees, whose leaves begin with `shape`."""
    rows = [krylov.combine(c) for c in coefficients]
    if shape == ():
        return rows[0]
    return jax.tree.map(lambda *x: jnp.stack(x).reshape(*shape, *x[0].shape), *rows)


@final
class ExactDirections(AbstractMethod):
    r"""Steps along the exact minimisers of Eq. 4, cut short where the function would drift too far.

    With `anchored`, the gradient in Eq. 4 is `∇L + (2/β) ∇d`, where `d` is the mean distance of the memory's outputs to
    the reference: `⟨v, g v⟩ + 2⟨v, ∇d⟩` is twice the change of `d` to second order (Gauss and Newton), so that a step also
    takes back what earlier ones let go. Without it, a step only keeps what is there, as the paper has it.

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
        dimension: int = 20,
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
        sizes = {"beta": beta, "tolerance": tolerance} | ({} if callable(epsilon) else {"epsilon": epsilon})
        for name, size in sizes.items():
            if not size > 0 or (name != "tolerance" and size == math.inf):
                raise ValueError(f"{name} must be positive, got {size}")
        if dimension < 1:
            raise ValueError(f"dimension must be at least 1, got {dimension}; 20 is usual")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.beta = beta
        self.epsilon = epsilon
        self.dimension = dimension
        self.tolerance = tolerance
        self.momentum = momentum
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
        total = None if gradient is None else jax.tree.map(lambda x: self.beta * x, gradient)
        if total is not None and pull is not None:
            total = jax.tree.map(lambda x, y: x + 2 * y, total, pull)
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
    parts = [_pull_on(problem, weights, index) for index in _batches(np.arange(problem.size), problem.batch)]
    value, gradient = jax.tree.map(lambda *x: sum(x) / problem.size, *parts)
    return float(value), gradient


@eqx.filter_jit
def _keep(problem, weights, index):
    return len(index) * problem.keep(weights, index)


def _kept(problem, weights):
    """The mean distance of the memory's outputs to the reference."""
    indices = _batches(np.arange(problem.size), problem.batch)
    return sum(float(_keep(problem, weights, index)) for index in indices) / problem.size


@eqx.filter_jit
def _moved(weights, movement, share):
    dynamic, static = eqx.partition(weights, eqx.is_inexact_array)
    moved = jax.tree.map(lambda x, v: x + share.astype(x.dtype) * v, dynamic, movement)
    return eqx.combine(moved, static)


def walk(
    f: Callable[..., Any],
    weights: PyTree,
    objective: AbstractObjective | None,
    memory: PyTree,
    distance: OutputDistance | Callable[..., Any] = squared_error,
    *,
    method: AbstractMethod,
    steps: int,
    key: PRNGKeyArray,
    held_out: PyTree | None = None,
    record: int | Sequence[int] | None = None,
    drift_limit: float | int | None = None,
    target: float | int | Callable[[PyTree], Any] | None = None,
    reference: Callable[[PyTree], PyTree] | None = None,
    batch: int = 500,
    keep: int = 2**27,
) -> Path:
    r"""Walk through weight space: make an objective small and keep the function on a memory of inputs.

    The outputs of the memory at the start are computed once; the drift is the mean distance to them. Each step is one
    compiled function in a loop in Python. The same arguments give the same path, bit for bit.

    **Arguments:**

    - `f`: called as `f(weights, x)` for one input; returns an array. For a network, `operator.call`.
    - `weights`: any pytree, such as an Equinox module; its floating-point arrays move.
    - `objective`: of `wmlib.objectives`: `Task` for Algorithm 1, `Sparsity` for Algorithm 2; `None` for Algorithm 3.
    - `memory`: the inputs on which the function is to be kept, a tree of arrays that share their first axis.
    - `distance`: of `wmlib.distances`, or a function of an output and a reference.
    - `method`: `PenalisedDescent` or `ExactDirections`.
    - `steps`: the most steps to take.
    - `key`: for the minibatches and for directions that are drawn.
    - `held_out`: other inputs, to measure the drift on; default: the memory.
    - `record`: how many steps lie between recorded points, or a list of steps; the start and the end are always
      recorded. Default: a twentieth of the steps.
    - `drift_limit`: the mean distance on the memory at which to stop. Exact directions stay within it; descent is looked
      at, at the recorded points, and stops after the first beyond.
    - `target`: where to stop: the value of the objective, as the step after a recorded point would see it, or a function of
      the weights that says so at a recorded point.
    - `reference`: a function of the present weights to those whose outputs are to be kept, in place of the outputs at the
      start (Algorithm 2 as printed keeps those of the pruned network). It is differentiated; stop the gradient there if it
      should not be.
    - `batch`: how many inputs are looked at together when outputs and drift are measured.
    - `keep`: the most numbers to keep in recorded weights; beyond, they are projected.

    **Returns:** a `Path`.

    **Raises:** `ValueError` for weights that hold no floating-point array or a layer with a state (BatchNorm), a memory or
    held-out inputs that are empty, numbers out of range, or a method that cannot do this; `FloatingPointError` when a step
    is not finite.

    **Example:**

        task = wm.objectives.Task(operator.call, new_images, new_labels)
        method = wm.PenalisedDescent(optax.sgd(1e-3, momentum=0.9))
        path = wm.walk(operator.call, net, task, old_images[:50], method=method, steps=600, key=key)
        path.outcome, path.length, path.drift[-1]

    **Reference:** Raghavan et al. (2024), Algorithms 1, 2 and 3.
    """
    refuse_state(weights)
    if not jax.tree.leaves(eqx.filter(weights, eqx.is_inexact_array)):
        raise ValueError("the weights hold no floating-point array, so there is nothing to move")
    if steps < 1 or batch < 1:
        raise ValueError(f"steps and batch must be at least 1, got {steps} and {batch}")
    if drift_limit is not None and not drift_limit > 0:
        raise ValueError(f"drift_limit must be positive, got {drift_limit}; leave it out for no limit")
    if isinstance(target, (int, float)) and objective is None:
        raise ValueError("a target that is a number is one of the objective, and there is none; give a function")
    at = set(range(0, steps, max(1, steps // 20)) if record is None else _recorded(record, steps))
    weights = jax.tree.map(lambda x: jnp.asarray(x) if eqx.is_inexact_array(x) else x, weights)
    memory, outputs = _remember(f, weights, memory, batch, "the memory")
    beside = (memory, outputs) if held_out is None else _remember(f, weights, held_out, batch, "held_out")
    if not isinstance(distance, OutputDistance):
        distance = OutputDistance(distance)
    limit = math.inf if drift_limit is None else float(drift_limit)
    problem = Problem(f, distance, reference, objective, memory, outputs, limit, batch)
    key_draws, key_method = jax.random.split(key)
    draws = None if objective is None else objective.draws(key_draws)
    state = method.start(problem, weights, key_method)

    points, told = _Points((len(at) + 1) * _size(weights) <= keep), []
    outcome, cure = "step limit", "increase steps, or the size of a step"
    for taken in range(steps + 1):
        draw = None if draws is None else next(draws)
        if taken in at or taken == steps:
            away = told[points.steps[-1] :] if points.steps else []
            lengths = np.asarray(jax.device_get([t["length"] for t in away]), float)
            if not np.isfinite(lengths).all():
                raise FloatingPointError(
                    f"step {points.steps[-1] + int(np.argmin(np.isfinite(lengths))) + 1} is not finite; look for a"
                    " gradient that is not, and lower the learning rate"
                )
            points.add(weights, taken, lengths.sum(), _drift(f, distance, weights, *beside, batch))
            if _arrived(target, problem, weights, draw):
                outcome, cure = "arrived", ""
                break
            if limit < math.inf and _drift(f, distance, weights, memory, outputs, batch) > limit:
                outcome, cure = "drift limit", "increase the penalty or drift_limit, or take smaller steps"
                break
        if taken == steps:
            break
        weights, state, tale = method.step(problem, weights, state, draw)
        if "stopped" in tale:
            outcome, cure = "drift limit", tale["stopped"]
            if points.steps[-1] != taken:
                lengths = jax.device_get([t["length"] for t in told[points.steps[-1] :]])
                points.add(weights, taken, float(np.sum(lengths)), _drift(f, distance, weights, *beside, batch))
            break
        told.append(tale)
    told = jax.device_get(told)
    traces = {k: np.array([t[k] for t in told], float) for k in ("objective", "kept")}
    if objective is None:
        traces["objective"] = np.full(len(told), np.nan)
    return points.path(traces, outcome, cure)


class _Points:
    """The recorded points of a walk, while it goes on."""

    def __init__(self, whole):
        self.whole, self.weights, self.sketches, self.steps, self.lengths, self.drift = whole, [], [], [], [], []

    def add(self, weights, taken, further, drift):
        if not self.whole:
            self.sketches.append(np.asarray(_sketch(weights)))
            self.weights = self.weights[:1]
        self.weights.append(weights)
        self.steps.append(taken)
        self.lengths.append(further)
        self.drift.append(drift)

    def path(self, traces, outcome, cure):
        steps, lengths, drift = np.array(self.steps), np.cumsum(self.lengths), np.array(self.drift)
        sketches = None if self.whole else np.stack(self.sketches)
        return Path(tuple(self.weights), sketches, steps, lengths, drift, **traces, outcome=outcome, cure=cure)


def _recorded(record, steps):
    """The steps at which to record."""
    if isinstance(record, int):
        if record < 1:
            raise ValueError(f"record must be at least 1, got {record}")
        return range(0, steps, record)
    if not all(0 <= step <= steps for step in record):
        raise ValueError(f"the recorded steps must lie between 0 and {steps}, got {list(record)}")
    return [0, *record]


def _remember(f, weights, inputs, batch, name):
    """Inputs and the outputs that the weights give them."""
    inputs = jax.tree.map(jnp.asarray, inputs)
    lengths = {x.shape[:1] for x in jax.tree.leaves(inputs)}
    if len(lengths) != 1 or lengths in ({()}, {(0,)}):
        raise ValueError(f"{name} must be arrays with one first axis of at least one input, got lengths {lengths}")
    parts = [_evaluate(f, weights, part) for part in _batches(inputs, batch)]
    if not all(isinstance(y, Array) and bool(jnp.isfinite(y).all()) for y in parts):
        raise ValueError(f"f(weights, x) must return one array, of finite numbers at the start; it does not on {name}")
    return inputs, jnp.concatenate(parts)


def _batches(tree, batch) -> Iterator[Any]:
    for start in range(0, len(jax.tree.leaves(tree)[0]), batch):
        yield jax.tree.map(itemgetter(slice(start, start + batch)), tree)


@eqx.filter_jit
def _evaluate(f, weights, inputs):
    return jax.vmap(lambda x: f(weights, x))(inputs)


@eqx.filter_jit
def _far(f, distance, weights, inputs, outputs):
    """The sum of the distances on one batch."""
    return jnp.sum(jax.vmap(lambda x, y0: distance(f(weights, x), y0))(inputs, outputs))


def _drift(f, distance, weights, inputs, outputs, batch):
    """The mean distance of the outputs to those given."""
    parts = [_far(f, distance, weights, x, y0) for x, y0 in _batches((inputs, outputs), batch)]
    return float(sum(map(float, parts)) / len(outputs))


@eqx.filter_jit
def _improvement(problem, weights, draw):
    return problem.improve(weights, draw)


def _arrived(target, problem, weights, draw):
    if target is None:
        return False
    return bool(target(weights) if callable(target) else _improvement(problem, weights, draw) <= target)


def _norm(tree):
    return jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree)))


def _size(weights):
    return sum(x.size for x in jax.tree.leaves(eqx.filter(weights, eqx.is_inexact_array)))


def _flatten(weights):
    leaves = jax.tree.leaves(eqx.filter(weights, eqx.is_inexact_array))
    return np.concatenate([np.asarray(x, float).reshape(-1) for x in leaves])


@eqx.filter_jit
def _sketch(weights):
    """A projection on 4,096 numbers, the same for all weights of one structure: each weight is added to a number drawn
    for it, with a sign drawn for it (a count sketch)."""
    total = jnp.zeros(4096)
    for i, leaf in enumerate(jax.tree.leaves(eqx.filter(weights, eqx.is_inexact_array))):
        place, sign = jax.random.split(jax.random.fold_in(jax.random.key(0), i))
        places = jax.random.randint(place, (leaf.size,), 0, len(total))
        signed = leaf.reshape(-1).astype(total.dtype) * jax.random.rademacher(sign, (leaf.size,), total.dtype)
        total = total.at[places].add(signed)
    return total


@final
class Geodesic(eqx.Module):
    """A geodesic, at evenly spaced times.

    `weights` and `velocities`, one for each of the `times`; `lengths`, the Euclidean length so far; `drift`, the mean
    distance of the outputs on held-out inputs to those at the start. `stats` holds `speed`, `⟨v, g v⟩`, which a geodesic
    keeps; `residual`, how far the acceleration is from a least-squares solution, `|Jᵀ(Ja + f″(v,v))| / |Jᵀf″(v,v)|`; `steps`
    of the integrator; and `outcome`, "arrived" or "step limit" with what to do.
    """

    weights: tuple[PyTree, ...]
    velocities: tuple[PyTree, ...]
    times: Float[np.ndarray, " points"]
    lengths: Float[np.ndarray, " points"]
    drift: Float[np.ndarray, " points"]
    stats: dict[str, Any]

    @property
    def length(self) -> float:
        """The Euclidean length, `∫ |v| dt`."""
        return float(self.lengths[-1])


def acceleration(
    f: Callable[..., Any],
    weights: PyTree,
    velocity: PyTree[Array],
    inputs: PyTree,
    distance: OutputDistance = squared_error,
    *,
    rtol: float = 1e-5,
    max_steps: int | None = None,
) -> PyTree[Array]:
    r"""The acceleration `a = −Γ(v, v) = −J⁺ f″(v, v)` of a geodesic (Eq. 5), without Christoffel symbols.

    For a metric `JᵀJ` the symbols, contracted with the velocity, are `Γ(v, v) = (JᵀJ)⁺ Jᵀ f″(v, v)`: the second derivative
    of the outputs along `v`, which is a jvp of a jvp, and a least-squares solve by products with `J` and `Jᵀ`. Where the
    metric has no inverse, the solution of least norm is taken.

    **Arguments:** those of `geodesic`; `rtol` and `max_steps`, of `lineax.LSMR`.

    **Returns:** a movement of the weights.

    **Raises:** `ValueError` for a velocity that does not fit the weights, or a distance without an embedding.

    **Reference:** Raghavan et al. (2024), Eq. 5; Fong & Saunders (2011), LSMR.
    """
    outputs, dynamic = _embedded(f, distance, weights, jax.tree.map(jnp.asarray, inputs))
    _check_velocity(dynamic, velocity)
    return _acceleration(outputs, dynamic, velocity, rtol, max_steps)


def _embedded(f, distance, weights, inputs):
    """The outputs whose Euclidean metric is that of the distance, as a function of the movable weights, and those."""
    if distance.embedding is None:
        raise ValueError(
            "a geodesic needs outputs whose lengths are the distance; give a distance with an embedding, as those of"
            " wmlib.distances"
        )
    dynamic, static = eqx.partition(weights, eqx.is_inexact_array)
    size = len(jax.tree.leaves(inputs)[0])

    def outputs(w):
        whole = eqx.combine(w, static)
        y = jax.vmap(lambda x: distance.embedding(f(whole, x)))(inputs)
        return y * jnp.asarray(size**-0.5, y.dtype)

    return outputs, dynamic


def _check_velocity(dynamic, velocity):
    shapes = [(jax.tree.structure(t), [jnp.shape(x) for x in jax.tree.leaves(t)]) for t in (dynamic, velocity)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "the velocity must have the structure and shapes of the floating-point arrays of the weights,"
            f" eqx.filter(weights, eqx.is_inexact_array); got {shapes[1]}"
        )


def _bend(outputs, w, v):
    """`f″(v, v)`."""
    return jax.jvp(lambda u: jax.jvp(outputs, (u,), (v,))[1], (w,), (v,))[1]


def _acceleration(outputs, w, v, rtol, max_steps):
    bend = _bend(outputs, w, v)
    _, push = jax.linearize(outputs, w)
    operator = lx.FunctionLinearOperator(push, jax.eval_shape(lambda: w))
    # Where a geodesic is straight there is nothing to solve for, and LSMR would divide by zero.
    size = _norm(bend)
    straight = size <= jnp.finfo(size.dtype).tiny
    bend = jnp.where(straight, 1, -bend)
    found = lx.linear_solve(operator, bend, lx.LSMR(rtol=rtol, atol=0, max_steps=max_steps), throw=False).value
    return jax.tree.map(lambda x: jnp.where(straight, 0, x), found)


@eqx.filter_jit
def _integrate(f, distance, weights, velocity, inputs, times, tolerances, max_steps, solve_steps):
    outputs, dynamic = _embedded(f, distance, weights, inputs)
    rtol, atol, solve_rtol = tolerances

    def field(t, y, _):
        w, v, _ = y
        return v, _acceleration(outputs, w, v, solve_rtol, solve_steps), _norm(v)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        times[0],
        times[-1],
        None,
        (dynamic, velocity, jnp.zeros((), times.dtype)),
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        throw=False,
    )
    found: Any = solution.ys
    return found, solution.stats["num_steps"]


@eqx.filter_jit
def _told(f, distance, weights, velocity, inputs, rtol, max_steps):
    """The speed at a point, and the residual of the acceleration there."""
    outputs, w = _embedded(f, distance, weights, inputs)
    _, push = jax.linearize(outputs, w)
    pull = jax.linear_transpose(push, w)
    moved, bend = push(velocity), _bend(outputs, w, velocity)
    left = push(_acceleration(outputs, w, velocity, rtol, max_steps)) + bend
    return jnp.vdot(moved, moved), _norm(pull(left)), _norm(pull(bend))


def geodesic(
    f: Callable[..., Any],
    weights: PyTree,
    velocity: PyTree[Array],
    inputs: PyTree,
    distance: OutputDistance = squared_error,
    *,
    time: float | int = 1.0,
    points: int | Sequence[float] | np.ndarray = 11,
    held_out: PyTree | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-6,
    solve_rtol: float = 1e-5,
    max_steps: int = 4096,
    solve_steps: int | None = None,
    batch: int = 500,
) -> Geodesic:
    r"""The geodesic of the metric that a network's outputs put on its weights, `ẅ + Γ(ẇ, ẇ) = 0` (Eq. 5).

    Its acceleration is that of `acceleration`, at a cost linear in the number of weights; the equation is integrated by
    diffrax (Tsit5, adaptive steps). A geodesic keeps its speed `⟨v, g v⟩`: one that sets out along a flat direction keeps
    the outputs, wherever `J` has a right inverse.

    **Arguments:**

    - `f`, `weights`, `inputs`: as of `FunctionMetric`.
    - `velocity`: the first velocity, a movement of the weights.
    - `distance`: one of `wmlib.distances`, or another with an embedding, whose metric it is.
    - `time`: how long to go on.
    - `points`: at how many times to record, the start and the end among them; or those times, as ascending shares of
      `time` from 0 to 1.
    - `held_out`: other inputs, to measure the drift on; default: `inputs`.
    - `rtol`, `atol`, `max_steps`: of the integrator.
    - `solve_rtol`, `solve_steps`: of the least-squares solves.
    - `batch`: how many inputs are looked at together when the drift is measured; the integrator looks at all.

    **Returns:** a `Geodesic`.

    **Raises:** `ValueError` for a velocity that does not fit the weights, a distance without an embedding, a layer with a
    state, inputs that are empty, or numbers out of range.

    **Example:**

        flat = wm.direction(metric, key=key).value
        path = wm.geodesic(operator.call, net, flat, images, time=5.0)
        path.drift, path.stats["speed"]

    **Reference:** Raghavan et al. (2024), Eq. 5; Kidger (2021), On Neural Differential Equations (diffrax).
    """
    refuse_state(weights)
    shares = np.linspace(0, 1, points) if isinstance(points, int) else np.asarray(points, float)
    if not 0 < time < math.inf or max_steps < 1:
        raise ValueError(f"time must be positive and finite, and max_steps at least 1, got {time} and {max_steps}")
    if len(shares) < 2 or shares[0] != 0 or shares[-1] != 1 or not (np.diff(shares) > 0).all():
        raise ValueError(f"points must be at least 2, or shares of the time that rise from 0 to 1, got {points}")
    inputs, outputs = _remember(f, weights, inputs, batch, "inputs")
    beside = (inputs, outputs) if held_out is None else _remember(f, weights, held_out, batch, "held_out")
    _, dynamic = _embedded(f, distance, weights, inputs)
    _check_velocity(dynamic, velocity)
    times = jnp.asarray(time * shares, jnp.result_type(*jax.tree.leaves(dynamic)))
    tolerances = (rtol, atol, solve_rtol)
    (ws, vs, lengths), steps = _integrate(
        f, distance, weights, velocity, inputs, times, tolerances, max_steps, solve_steps
    )
    lengths = np.asarray(lengths, float)
    reached = int(np.isfinite(lengths).sum())
    rest = eqx.filter(weights, eqx.is_inexact_array, inverse=True)
    at = [jax.tree.map(itemgetter(i), (ws, vs)) for i in range(reached)]
    nets, velocities = tuple(eqx.combine(w, rest) for w, _ in at), tuple(v for _, v in at)
    told = [_told(f, distance, w, v, inputs, solve_rtol, solve_steps) for w, v in zip(nets, velocities, strict=True)]
    speed, left, bent = np.array(jax.device_get(told), float).reshape(-1, 3).T
    stats = {
        "speed": speed,
        "residual": left / np.where(bent > 0, bent, 1),
        "steps": int(steps),
        "outcome": "arrived"
        if reached == len(shares)
        else "step limit: increase max_steps, rtol or atol, or lower time",
    }
    drift = np.array([_drift(f, distance, w, *beside, batch) for w in nets])
    return Geodesic(nets, velocities, np.asarray(times, float)[:reached], lengths[:reached], drift, stats)
