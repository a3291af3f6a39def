"""Walks through weight space that keep a function, after Algorithms 1, 2 and 3."""

import abc
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._counts import check_count
from .checks import check_setting, check_single, number, on_shapes, shape_of, wide
from .distances import OutputDistance, squared_error
from .held import ObjectiveOnWhole, OnWhole, hold, replaced
from .metric import gathered, mean_distance, movable, norm, output_of_one, refuse_shared, remember
from .objectives import AbstractObjective, shuffled


@final
class Path(eqx.Module):
    """Where a walk went, and what it did to the function.

    At the recorded points: `steps`, how many steps had been taken; `lengths`, how far the walk had come; `drift`, the
    mean distance of the outputs on held-out inputs to those at the start; and `weights`. When those would be too many,
    `weights` has the first and the last only, and `projections` one vector for each point instead, in which the inner
    products of movements are kept but for a small random error. So it is with `observe`, whose results are `observed`.

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
    observed: tuple[Any, ...] = ()

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
        """The objective, in float32 at least; zero without one."""
        return jnp.zeros(()) if self.objective is None else wide(self.objective.value(weights, draw))

    def keep(self, weights: PyTree, index: Int[Array | np.ndarray, " batch"] | None = None) -> Float[Array, ""]:
        """The mean distance of the memory's outputs, of all or of some, to the reference."""
        memory, outputs = self.memory, self.outputs
        if index is not None:
            memory, outputs = jax.tree.map(lambda x: x[index], gathered((memory, outputs)))
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

    **Reference:** Raghavan et al. (2024). The authors' code sums the distances over a step's `m` inputs. In Algorithm 1
    λ multiplies the distances, and `penalty` is `λ m`; in Algorithm 2 it multiplies `L`, and `penalty` is `m / λ`.
    """

    optimiser: optax.GradientTransformation = eqx.field(static=True)
    penalty: float
    memory_batch: int | None = eqx.field(static=True)
    compiled: bool | None = eqx.field(static=True)

    def __init__(
        self,
        optimiser: optax.GradientTransformation,
        penalty: float | int = 1.0,
        memory_batch: SupportsIndex | None = None,
        compiled: bool | None = None,
    ):
        """**Arguments:**

        - `optimiser`: any of optax. Give the same one again, and nothing is compiled again. It travels by pickle as far
          as optax lets it: optimisers are closures, which `pickle` refuses and `cloudpickle` takes.
        - `penalty`: 0 for plain descent of the objective.
        - `memory_batch`: how many inputs of the memory a step looks at; default: all.
        - `compiled`: whether the steps between two recorded points are one compiled loop. Default: where that is faster,
          which is everywhere but for convolutions on a CPU (in loops XLA's take some seven times longer there).

        **Raises:** `ValueError` for a penalty that is negative or not finite, or a batch that is not positive;
        `TypeError` for what is not an optimiser of optax.
        """
        if not isinstance(optimiser, optax.GradientTransformation):
            raise TypeError(f"the optimiser must be one of optax, such as optax.sgd(0.1), got {optimiser!r}")
        if memory_batch is not None:
            memory_batch = check_count("memory_batch (leave it out for the whole memory)", memory_batch)
        self.optimiser = optimiser
        self.penalty = check_setting("the penalty", penalty)
        check_single("the penalty", self.penalty)
        self.memory_batch = memory_batch
        self.compiled = compiled

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
        weights, state, told = _descend(self.optimiser, problem, weights, state, draw, index, self._scale())
        return weights, (state, memory_draws), told

    def room(self, problem: Problem, weights: PyTree, state: Any, draw: Any, gap: int) -> int:
        """How many steps `steps` should take at most, if a step draws what `draw` is and `gap` lie between two recorded
        points; 1 where single steps are better."""
        if self.compiled is False or gap == 1 or not _stackable(draw):
            return 1
        index = None if self.memory_batch is None else np.zeros(self.memory_batch, np.int32)
        one = (self.optimiser, problem, weights, state[0], draw, index, self._scale())
        steady, convolves = _traits(*one)
        if not steady or (convolves and self.compiled is None and jax.default_backend() == "cpu"):
            return 1
        numbers = sum(np.size(x) for x in jax.tree.leaves((draw, index)))
        return min(1 << (gap - 1).bit_length(), 1024, max(1, 2**24 // max(1, numbers)))

    def steps(
        self, problem: Problem, weights: PyTree, state: Any, draws: Sequence[Any], room: int
    ) -> tuple[PyTree, Any, dict[str, Any]]:
        """As many steps as there are draws, at most `room`, in one compiled loop; told of each is an array. Draws of
        different shapes are taken one by one."""
        if len({tuple(np.shape(x) for x in jax.tree.leaves(draw)) for draw in draws}) > 1:
            told = []
            for draw in draws:
                weights, state, tale = self.step(problem, weights, state, draw)
                told.append(tale)
            return weights, state, {k: jnp.stack([tale[k] for tale in told]) for k in told[0]}
        state, memory_draws = state
        indices = [None if memory_draws is None else next(memory_draws) for _ in draws]
        drawn = [*zip(draws, indices, strict=True)]
        # Padded, so that any number of steps is the same program.
        drawn = jax.tree.map(lambda *x: np.stack(x), *drawn, *drawn[-1:] * (room - len(drawn)))
        count = np.asarray(len(draws), np.int32)
        weights, state, told = _descend_along(
            self.optimiser, problem, weights, state, drawn, self._scale(), count, room
        )
        return weights, (state, memory_draws), {k: x[: len(draws)] for k, x in told.items()}

    def _scale(self):
        return None if self.penalty == 0 else np.asarray(self.penalty, np.float32)


def _stackable(draw):
    """Whether draws like this one are arrays of numbers, so that those of many steps can be one array."""
    return all(isinstance(x, (np.ndarray, jax.Array)) and x.dtype.kind in "biuf" for x in jax.tree.leaves(draw))


def _descent(optimiser, problem, weights, state, draw, index, penalty):
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
    length = norm(jax.tree.map(lambda x, y: wide(x) - wide(y), moved, dynamic))
    return eqx.combine(moved, static), state, {"objective": objective, "kept": kept, "length": length}


_descend = eqx.filter_jit(_descent)


@eqx.filter_jit
def _descend_along(optimiser, problem, weights, state, drawn, penalty, count, room):
    """The first `count` of at most `room` steps. A loop of unknown length, for which XLA's program is that of a scan."""
    moving, still = eqx.partition((weights, state), eqx.is_array)

    def one(moving, i):
        draw, index = jax.tree.map(lambda x: x[i], drawn)
        weights, state = eqx.combine(moving, still)
        weights, state, tale = _descent(optimiser, problem, weights, state, draw, index, penalty)
        return eqx.filter((weights, state), eqx.is_array), tale

    def body(i, carry):
        moving, tale = one(carry[0], i)
        return moving, {k: x.at[i].set(tale[k]) for k, x in carry[1].items()}

    told = {k: jnp.zeros(room, x.dtype) for k, x in jax.eval_shape(one, moving, count)[1].items()}
    moving, told = jax.lax.fori_loop(0, count, body, (moving, told))
    return *eqx.combine(moving, still), told


@on_shapes
def _traits(*one):
    """Whether a step leaves the shapes of weights and state as they are, as a loop must; and whether it convolves."""
    jaxpr, after, _ = eqx.filter_make_jaxpr(_descent)(*one)
    before, after = (jax.tree.leaves(jax.tree.map(shape_of, x)) for x in (one[2:4], after[:2]))
    shapes = [[(x.shape, x.dtype) for x in y if isinstance(x, jax.ShapeDtypeStruct)] for y in (before, after)]
    return shapes[0] == shapes[1], "conv_general_dilated" in str(jaxpr)


def walk(
    f: Callable[..., Any],
    weights: PyTree,
    objective: AbstractObjective | None,
    memory: PyTree,
    distance: OutputDistance | Callable[..., Any] = squared_error,
    *,
    method: AbstractMethod,
    steps: SupportsIndex,
    key: PRNGKeyArray,
    held_out: PyTree | None = None,
    record: SupportsIndex | Sequence[int] | np.ndarray | None = None,
    drift_limit: float | int | np.number | None = None,
    target: float | int | np.number | Callable[[PyTree], Any] | None = None,
    reference: Callable[[PyTree], PyTree] | None = None,
    batch: SupportsIndex = 500,
    keep: SupportsIndex = 2**27,
    moving: PyTree | None = None,
    observe: Callable[[PyTree], Any] | None = None,
) -> Path:
    r"""Walk through weight space: make an objective small and keep the function on a memory of inputs.

    The outputs of the memory at the start are computed once; the drift is the mean distance to them. The steps between
    two recorded points are one compiled loop where that is faster, and else one compiled function each, in a loop in
    Python. The same arguments give the same path, bit for bit.

    **Arguments:**

    - `f`: called as `f(weights, x)` for one input; returns an array. For a network, `operator.call`.
    - `weights`: any pytree, such as an Equinox module; its floating-point arrays move.
    - `objective`: of `wmlib.objectives`: `Task` for Algorithm 1, `Sparsity` for Algorithm 2; `None` for Algorithm 3.
    - `memory`: the inputs on which the function is to be kept, a tree of arrays that share their first axis. An output
      may be large: let an input hold the places at which `f` gives it, as those of the masked words of a text.
    - `distance`: of `wmlib.distances`, or a function of an output and a reference.
    - `method`: `PenalisedDescent` or `wm.ExactDirections`.
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
    - `moving`: a tree of booleans, of the structure of the weights or of its top, False for what is to stay as it is.
      Nothing is differentiated by what stays. Default: all floating-point arrays move.
    - `observe`: a function of the weights, called at each recorded point; what it returns is kept in place of the
      weights, such as accuracies for a large network.

    **Returns:** a `Path`.

    **Raises:** `ValueError` for weights that hold no floating-point array, one at two places, or a layer with a state
    (BatchNorm), a memory or held-out inputs that are empty, numbers out of range, a reference whose outputs have another
    shape, what is to move that has another structure, or a method that cannot do this; `TypeError` for complex weights, an
    `f` that does not return one floating-point array, or what is no objective, method or function; `FloatingPointError`
    when a step is not finite.

    **Example:**

        task = wm.objectives.Task(operator.call, new_images, new_labels)
        method = wm.PenalisedDescent(optax.sgd(1e-3, momentum=0.9))
        path = wm.walk(operator.call, net, task, old_images[:50], method=method, steps=600, key=key)
        path.outcome, path.length, path.drift[-1]

    **Reference:** Raghavan et al. (2024), Algorithms 1, 2 and 3.
    """
    if not isinstance(method, AbstractMethod):
        raise TypeError(
            f"method must be one of walk, such as wm.PenalisedDescent(optax.sgd(0.1)) or wm.ExactDirections(1.0, 0.01), got"
            f" {method!r}"
        )
    if not (objective is None or isinstance(objective, AbstractObjective)):
        raise TypeError(f"objective must be one of wm.objectives, such as a Task, or None, got {objective!r}")
    if not (observe is None or callable(observe)):
        raise TypeError(f"observe must be a function of the weights, got {observe!r}; leave it out to keep the weights")
    start = weights
    if moving is not None:
        refuse_shared("the weights", weights)  # before what is held becomes another array
        weights, f = hold(weights, moving), OnWhole(f)
        objective = None if objective is None else ObjectiveOnWhole(objective)
        reference = None if reference is None else OnWhole(reference)
    weights = movable(weights)
    steps = check_count("steps", steps)
    batch = check_count("batch (500 is the default)", batch)
    keep = check_count("keep (leave it out for 2²⁷ numbers)", keep, 0)
    if drift_limit is not None and not number("drift_limit (leave it out for no limit)", drift_limit) > 0:
        raise ValueError(f"drift_limit must be positive, got {drift_limit}; leave it out for no limit")
    if not (target is None or callable(target)):
        target = float(number("the target", target))
        if math.isnan(target):
            raise ValueError("the target is not a number, and would never be reached; leave it out for none")
        if objective is None:
            raise ValueError("a target that is a number is one of the objective, and there is none; give a function")
    at = set(range(0, steps, max(1, steps // 20)) if record is None else _recorded(record, steps))
    memory, outputs = remember(f, weights, memory, batch, "the memory")
    if reference is not None:
        shape = output_of_one(lambda w, x: f(reference(w), x), weights, memory).shape
        if shape != outputs.shape[1:]:
            raise ValueError(
                f"the outputs of the reference have the shape {shape} and those of the weights {outputs.shape[1:]}; let"
                " reference return weights of the same network"
            )
    beside = (memory, outputs) if held_out is None else remember(f, weights, held_out, batch, "held_out")
    if not isinstance(distance, OutputDistance):
        distance = OutputDistance(distance)
    limit = math.inf if drift_limit is None else float(number("drift_limit", drift_limit))
    problem = Problem(f, distance, reference, objective, memory, outputs, limit, batch)
    key_draws, key_method = jax.random.split(key)
    draws = None if objective is None else objective.draws(key_draws)
    state = method.start(problem, weights, key_method)

    points, told = _Points(start, observe, (len(at) + 1) * _size(weights) <= keep), []
    outcome, cure = "step limit", "increase steps, or the size of a step"
    marks, room, untold = sorted({*at, steps}), None, 0
    for taken, until in itertools.pairwise([*marks, steps + 1]):
        draw = None if draws is None else next(draws)
        lengths = _lengths(told[untold:])
        if not np.isfinite(lengths).all():
            raise FloatingPointError(
                f"step {points.steps[-1] + int(np.argmin(np.isfinite(lengths))) + 1} is not finite; look for a"
                " gradient that is not, and lower the learning rate"
            )
        points.add(weights, taken, lengths.sum(), mean_distance(f, distance, weights, *beside, batch))
        untold = len(told)
        if _arrived(target, problem, weights, draw, start):
            outcome, cure = "arrived", ""
            break
        if limit < math.inf and mean_distance(f, distance, weights, memory, outputs, batch) > limit:
            outcome, cure = "drift limit", "increase the penalty or drift_limit, or take smaller steps"
            break
        if taken == steps:
            break
        if room is None:
            gap = max(y - x for x, y in itertools.pairwise(marks))
            room = method.room(problem, weights, state, draw, gap) if isinstance(method, PenalisedDescent) else 1
        ahead = itertools.chain([draw], itertools.repeat(None) if draws is None else draws)
        while taken < until:
            if isinstance(method, PenalisedDescent) and room > 1:
                few = [*itertools.islice(ahead, min(room, until - taken))]
                weights, state, tale = method.steps(problem, weights, state, few, room)
                taken += len(few)
            else:
                weights, state, tale = method.step(problem, weights, state, next(ahead))
                if "stopped" in tale:
                    break
                taken += 1
            told.append(tale)
        if taken < until:
            outcome, cure = "drift limit", tale["stopped"]
            if points.steps[-1] != taken:
                drift = mean_distance(f, distance, weights, *beside, batch)
                points.add(weights, taken, _lengths(told[untold:]).sum(), drift)
            break
    told = jax.device_get(told)
    traces = {k: np.concatenate([np.empty(0), *(np.ravel(t[k]) for t in told)]) for k in ("objective", "kept")}
    if objective is None:
        traces["objective"] = np.full(len(traces["kept"]), np.nan)
    return points.path(traces, outcome, cure)


def _lengths(told):
    """The length of each step."""
    return np.concatenate([np.empty(0), *(np.ravel(t["length"]) for t in jax.device_get(told))])


class _Points:
    """The recorded points of a walk, while it goes on."""

    def __init__(self, start, observe, fit):
        self.start, self.observe, self.fit = start, observe, fit and observe is None
        self.weights, self.observed, self.sketches, self.steps, self.lengths, self.drift = [], [], [], [], [], []

    def add(self, weights, taken, further, drift):
        if not self.fit:
            self.sketches.append(np.asarray(_sketch(weights)))
            self.weights = self.weights[:1]
        weights = replaced(weights, self.start)
        if self.observe is not None:
            self.observed.append(self.observe(weights))
        self.weights.append(weights)
        self.steps.append(taken)
        self.lengths.append(further)
        self.drift.append(drift)

    def path(self, traces, outcome, cure):
        steps, lengths, drift = np.array(self.steps), np.cumsum(self.lengths), np.array(self.drift)
        sketches = None if self.fit else np.stack(self.sketches)
        points = tuple(self.weights), sketches, steps, lengths, drift
        return Path(*points, **traces, outcome=outcome, cure=cure, observed=tuple(self.observed))


def _recorded(record, steps):
    """The steps at which to record."""
    try:
        chosen = [*record]
    except TypeError:
        return range(0, steps, check_count("record", record))
    return [0, *(check_count("a recorded step", step, 0, steps) for step in chosen)]


@eqx.filter_jit
def _improvement(problem, weights, draw):
    return problem.improve(weights, draw)


def _arrived(target, problem, weights, draw, start):
    if target is None:
        return False
    there = target(replaced(weights, start)) if callable(target) else _improvement(problem, weights, draw) <= target
    return bool(there)


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
