"""Paths over a sequence of tasks: each walk begins where the last one ended, and keeps what all of them had learned."""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as File
from typing import Any, SupportsIndex, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._counts import check_count
from ._same import digest, program
from .distances import OutputDistance, squared_error
from .metric import check_inputs, movable, remember
from .objectives import AbstractObjective, shuffled
from .precision import wide
from .walk import AbstractMethod, PenalisedDescent, walk

Ends = tuple[PyTree, ...]
"""The weights that ended the earlier tasks."""


@final
class Beside(AbstractObjective):
    """`L(w) + (penalty/b) Σ_{i∈B} d(f(w, x_i), y_i)`: an objective, and outputs `y_i` that were stored beside it.

    `B`, of `b` inputs, is drawn anew at each step from the first `count` of the inputs `x_i`. Where `walk` keeps the
    outputs that the network has at its start, this keeps those that it had at any time.
    """

    objective: AbstractObjective
    f: Callable[..., Any] = eqx.field(static=True)
    inputs: PyTree[Array]
    outputs: Array
    count: np.ndarray
    distance: OutputDistance
    penalty: np.ndarray
    batch: int = eqx.field(static=True)

    def draws(self, key: PRNGKeyArray) -> Iterator[Any]:
        """What the objective draws, and which inputs are remembered."""
        of_objective, of_memory = jax.random.split(key)
        return zip(self.objective.draws(of_objective), shuffled(of_memory, int(self.count), self.batch), strict=False)

    def value(self, weights: PyTree, draw: Any) -> Float[Array, ""]:
        """The objective and the penalty, for one draw of both."""
        draw, rows = draw
        inputs, outputs = jax.tree.map(lambda x: x[rows], (self.inputs, self.outputs))
        kept = jnp.mean(jax.vmap(lambda x, y: self.distance(self.f(weights, x), y))(inputs, outputs))
        return wide(self.objective.value(weights, draw)) + self.penalty.astype(kept.dtype) * kept


@final
class Walks(eqx.Module):
    """What a sequence of walks led to: after each task, the `weights`, and what `observe` said of them, `observed`."""

    weights: tuple[PyTree, ...]
    observed: tuple[Any, ...]


def walk_sequence(
    f: Callable[..., Any],
    weights: PyTree,
    tasks: Sequence[AbstractObjective | Callable[[Ends], AbstractObjective]],
    memories: Sequence[PyTree],
    distance: OutputDistance | Callable[..., Any] = squared_error,
    *,
    method: AbstractMethod | Callable[[Ends], AbstractMethod],
    steps: SupportsIndex | Sequence[SupportsIndex],
    key: PRNGKeyArray,
    renew: bool = False,
    moving: PyTree | None = None,
    observe: Callable[[PyTree], Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Walks:
    """Learn tasks one after another, and keep on the memories of all earlier ones what the network said of them.

    Task `k` is learned by descent of `L_k(w) + (λ/b) Σ_{i∈B} d(f(w, x_i), f(w_j, x_i))`, where `B` are `b` inputs drawn
    from the memories of the tasks before, and `w_j` the weights that ended that task `j` which `x_i` is from. The printed
    algorithm compares other inputs on either side; this is what its text means.

    **Arguments:**

    - `f`, `weights`, `distance`, `moving`: as for `walk`.
    - `tasks`: an objective each; or a function of the weights that ended the earlier tasks, a tuple, to one, for an
      objective that needs them, such as an anchor.
    - `memories`: the inputs of each task that are to be remembered, trees of arrays of one structure, one for each task.
    - `method`: `PenalisedDescent`, whose penalty is λ and whose `memory_batch` is `b` (default: all that is remembered);
      the first task is learned by plain descent. Another method of `walk` is given the memories of all earlier tasks (the
      first task: its own). Or a function of the weights that ended the earlier tasks to a method.
    - `steps`: for each task; one number for all.
    - `key`: for the draws. A task's depend on its place in the sequence and on nothing that came before.
    - `renew`: keep the outputs of the network that ended the *last* task, for all memories, in place of `f(w_j, x_i)`;
      with `PenalisedDescent`. Other methods keep those of the last task as they are.
    - `observe`: a function of the weights, called after each task, such as the accuracies on all tasks.
    - `folder`: where the weights that end each task are kept. Called again with the same arguments, after a kill or with
      tasks added, the sequence goes on from there, with the same result. Start, tasks, memories, settings, key, and the
      programs of `f` and of a method's optimiser are told apart, and functions by their code and by the variables around
      them that they use, down to those of installed packages, whose code does not count. What cannot be seen is what changes
      where none of these names it, such as a file that a function reads, and what lists, mappings and objects hold that a
      function which makes tasks or methods uses: let the folder's name say that (`wmlib.lab.cache.place`).

    **Returns:** `Walks`.

    **Raises:** `ValueError` for no tasks, other than one memory for each, memories that are empty or not alike, or a
    `memory_batch` beyond what is remembered; `TypeError` for what is no method or objective; and as `walk`.

    **Example:**

        method = wm.PenalisedDescent(optax.sgd(0.01, momentum=0.9), penalty=1.0, memory_batch=16)
        walks = wm.walk_sequence(operator.call, net, tasks, memories, method=method, steps=500, key=key, folder="run-0")

    **Reference:** Raghavan et al. (2024), Algorithm 1, its outer loop.
    """
    tasks, memories, many = _checked(tasks, memories, method, steps)
    if not isinstance(distance, OutputDistance):
        distance = OutputDistance(distance)
    weights = movable(weights)
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), *memories)

    ends, observed, said = [], [], []
    optimiser = getattr(method, "optimiser", None)
    programs = [_program(f, weights, jax.tree.map(lambda x: x[0], memories[0])), _updates(optimiser, weights)]
    digest = _digest(b"", weights, key, method, renew, distance, moving, programs)
    for place, (task, memory) in enumerate(zip(tasks, memories, strict=True)):
        begun = ends[-1] if ends else weights
        digest = _digest(digest, task, memory, many[place])
        file = None if folder is None else File(folder) / f"task-{place}-{digest.hex()[:16]}.npz"
        if file is None or (end := _read(file, begun)) is None:
            objective, way = _made(task, method, tuple(ends), place)
            passed = sum(map(_length, memories[:place]))
            if renew and not isinstance(way, PenalisedDescent):
                raise ValueError(
                    f"renew is for PenalisedDescent; {type(way).__name__} always keeps the outputs of the network that ended the"
                    " last task: leave renew out"
                )
            seen = jax.tree.map(lambda x, n=passed: x[:n], whole) if place else memory
            if isinstance(way, PenalisedDescent):
                _check_batch(way, seen)
                if place and way.penalty:
                    if renew:
                        said = [remember(f, begun, earlier, 500, "memories")[1] for earlier in memories[:place]]
                    objective = _beside(objective, f, whole, jnp.concatenate(said), distance, way)
                seen = jax.tree.map(lambda x: x[:1], memory)
                way = PenalisedDescent(way.optimiser, 0.0, compiled=way.compiled)
            end = walk(
                f,
                begun,
                objective,
                seen,
                distance,
                method=way,
                steps=many[place],
                key=jax.random.fold_in(key, place),
                record=[many[place]],
                moving=moving,
            ).weights[-1]
            if file is not None:
                _write(file, end)
        if not renew and place < len(tasks) - 1:
            said.append(remember(f, end, memory, 500, f"memories[{place}]")[1])
        ends.append(end)
        observed.append(None if observe is None else observe(end))
    return Walks(tuple(ends), tuple(observed))


def _checked(tasks, memories, method, steps):
    """Tasks, memories as arrays, and how many steps each task has."""
    if not (isinstance(method, AbstractMethod) or callable(method)):
        raise TypeError(
            f"method must be one of walk, such as wm.PenalisedDescent(optax.sgd(0.1)), or a function of the earlier weights"
            f" to one, got {method!r}"
        )
    _check_kind(method)
    tasks, memories = tuple(tasks), tuple(memories)
    for place, task in enumerate(tasks):
        if not (isinstance(task, AbstractObjective) or callable(task)):
            raise TypeError(
                f"tasks[{place}] must be one of wm.objectives, or a function of the earlier weights, got {task!r}"
            )
    if not tasks:
        raise ValueError("there are no tasks; give at least one")
    if len(memories) != len(tasks):
        raise ValueError(f"{len(tasks)} tasks need as many memories, got {len(memories)}")
    many = list(steps) if isinstance(steps, Sequence) else [steps] * len(tasks)
    if len(many) != len(tasks):
        raise ValueError(f"steps must be one number, or one for each of the {len(tasks)} tasks, got {len(many)}")
    many = [check_count("steps", n) for n in many]
    memories = tuple(jax.tree.map(jnp.asarray, memory) for memory in memories)
    for place, memory in enumerate(memories):
        check_inputs(f"memories[{place}]", memory)
        if jax.tree.map(_kind, memory) != jax.tree.map(_kind, memories[0]):
            raise ValueError(f"memories[{place}] has another structure, shape or type of inputs than memories[0]")
    _check_batch(method, memories[0])
    return tasks, memories, many


def _made(task, method, ends, place):
    """The objective and the method of a task."""
    objective = task if isinstance(task, AbstractObjective) else task(ends)
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"tasks[{place}] made {objective!r}, which is none of wm.objectives")
    way = method if isinstance(method, AbstractMethod) else method(ends)
    if not isinstance(way, AbstractMethod):
        raise TypeError(f"the function method made {way!r} for task {place}, which is no method of walk")
    _check_kind(way)
    return objective, way


def _check_kind(method):
    if isinstance(method, PenalisedDescent) and type(method) is not PenalisedDescent:
        raise TypeError(
            f"a sequence makes PenalisedDescent anew for each task, and what {type(method).__name__} adds to it would be lost:"
            " give wm.PenalisedDescent itself, with what is added in its optimiser"
        )


def _check_batch(method, memory):
    batch = method.memory_batch if isinstance(method, PenalisedDescent) else None
    if batch is not None and batch > _length(memory):
        raise ValueError(f"memory_batch is {batch} and the first memory has {_length(memory)} inputs; lower it")


def _beside(objective, f, inputs, outputs, distance, method):
    """A task beside what is remembered: as many of the inputs as there are outputs."""
    count, batch = len(outputs), method.memory_batch or len(outputs)
    # As long for every task, so that a step is compiled once.
    outputs = jnp.zeros((_length(inputs), *outputs.shape[1:]), outputs.dtype).at[:count].set(outputs)
    penalty = np.asarray(method.penalty, np.float32)
    return Beside(objective, f, inputs, outputs, np.asarray(count), distance, penalty, batch)


def _length(tree):
    return len(jax.tree.leaves(tree)[0])


def _kind(x):
    return x.shape[1:], x.dtype.name


def _digest(before: bytes, *parts: Any) -> bytes:
    return digest(before, *parts)


def _program(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function computes, with its constants; and itself, for what one input does not show."""
    return program(function, *arguments), function


def _updates(optimiser: Any, weights: PyTree) -> Any:
    """The program of an optimiser, and the state that it begins with."""
    if not isinstance(optimiser, optax.GradientTransformation):
        return None
    dynamic = eqx.filter(weights, eqx.is_inexact_array)
    state = optimiser.init(dynamic)
    return program(lambda state, w: optimiser.update(w, state, w), state, dynamic), jax.tree.leaves(state)


def _write(path: File, weights: PyTree) -> None:
    """Arrays behind their digest, whole or not at all."""
    held = io.BytesIO()
    # By their bits: NumPy has no bfloat16.
    arrays = [np.asarray(_numbers(x)) for x in jax.tree.leaves(eqx.filter(weights, eqx.is_array))]
    np.savez(held, *[np.frombuffer(x.tobytes(), np.uint8) for x in arrays])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    with partial.open("wb") as file:
        file.write(hashlib.sha256(held.getbuffer()).digest())
        file.write(held.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _is_key(x):
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _numbers(x):
    """An array, of a key the numbers that it holds."""
    return jax.random.key_data(x) if _is_key(x) else x


def _read(path: File, like: PyTree) -> PyTree | None:
    """What `_write` wrote, or None: not there, or damaged, which a warning says."""
    if not path.exists():
        return None
    raw = path.read_bytes()
    arrays, rest = eqx.partition(like, eqx.is_array)
    held, structure = jax.tree.flatten(arrays)
    shapes = [*map(_numbers, held)]
    if hashlib.sha256(raw[32:]).digest() == raw[:32]:
        with np.load(io.BytesIO(raw[32:]), allow_pickle=False) as kept:
            bits = [kept[name].tobytes() for name in kept.files]
        if [len(x) for x in bits] == [x.size * x.dtype.itemsize for x in shapes]:
            values = [
                jnp.asarray(np.frombuffer(b, x.dtype).reshape(x.shape)) for b, x in zip(bits, shapes, strict=True)
            ]
            values = [
                jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if _is_key(old) else new
                for new, old in zip(values, held, strict=True)
            ]
            return eqx.combine(jax.tree.unflatten(structure, values), rest)
    warnings.warn(f"{path} is damaged; the task that it was the end of is walked again", stacklevel=3)
    return None
