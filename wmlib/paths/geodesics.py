"""Geodesics of the metric that a network's outputs put on its weights."""

import dataclasses
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, SupportsIndex, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from .._counts import check_count
from .distances import OutputDistance, squared_error
from .metric import (
    check_inputs,
    check_positive,
    gathered,
    like,
    mean_distance,
    movable,
    norm,
    output_of_one,
    remember,
)


@final
class Geodesic(eqx.Module):
    """A geodesic, at evenly spaced times.

    `weights` and `velocities`, one for each of the `times`; `lengths`, the Euclidean length so far; `drift`, the mean
    distance of the outputs on held-out inputs to those at the start. `stats` holds `speed`, `⟨v, g v⟩`, which a geodesic
    keeps; `residual`, how far the acceleration is from a least-squares solution, `|Jᵀ(Ja + f″(v,v))| / |Jᵀf″(v,v)|`; `steps`
    of the integrator; and `outcome`, "arrived", or "step limit" or "kinks" with what to do.

    A function with kinks (ReLU, max-pooling) has no second derivative there, and crossing one bends the path of the outputs
    as no derivative tells. So the outputs are integrated beside the weights by `ÿ = Ja + f″(v, v)`, and compared:
    `unexplained` is the mean distance between the two at each time, the drift that the kinks cause, and `kinked` counts the
    inputs whose outputs part by more than the integrator's tolerance.
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
    velocity: PyTree,
    inputs: PyTree,
    distance: OutputDistance | Callable[..., Any] = squared_error,
    *,
    rtol: float | int = 1e-5,
    max_steps: SupportsIndex | None = None,
) -> PyTree[Array]:
    r"""The acceleration `a = −Γ(v, v) = −J⁺ f″(v, v)` of a geodesic (Eq. 5), without Christoffel symbols.

    For a metric `JᵀJ` the symbols, contracted with the velocity, are `Γ(v, v) = (JᵀJ)⁺ Jᵀ f″(v, v)`: the second derivative
    of the outputs along `v`, which is a jvp of a jvp, and a least-squares solve by products with `J` and `Jᵀ`. Where the
    metric has no inverse, the solution of least norm is taken.

    **Arguments:** those of `geodesic`; `rtol` and `max_steps`, of `lineax.LSMR`.

    **Returns:** a movement of the weights.

    **Raises:** as `geodesic`.

    **Reference:** Raghavan et al. (2024), Eq. 5; Fong & Saunders (2011), LSMR.
    """
    check_positive("rtol", rtol, "1e-5 is the default")
    max_steps = None if max_steps is None else check_count("max_steps", max_steps)
    inputs = gathered(jax.tree.map(jnp.asarray, inputs))
    check_inputs("inputs", inputs)
    weights, velocity, distance = _checked(f, weights, velocity, inputs, distance)
    outputs, dynamic = _embedded(f, distance, weights, inputs)
    return _acceleration(outputs, dynamic, velocity, rtol, max_steps)[0]


def _checked(f, weights, velocity, inputs, distance):
    """The weights, the velocity in their types, and the distance.

    Raises for weights, a velocity, a function or a distance of which there is no geodesic.
    """
    weights = movable(weights)
    dynamic = eqx.filter(weights, eqx.is_inexact_array)
    velocity = like(dynamic, "the velocity", velocity)
    if not isinstance(distance, OutputDistance) or distance.embedding is None:
        raise ValueError(
            "a geodesic needs outputs whose lengths are the distance; give a distance with an embedding, as those of"
            " wmlib.distances"
        )
    _refuse_half(dynamic)
    _refuse_half(output_of_one(f, weights, inputs))
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(velocity) if not isinstance(x, Tracer)):
        raise ValueError("the velocity is not finite; look for a gradient that is not")
    return weights, velocity, distance


def _refuse_half(tree):
    half = {str(x.dtype) for x in jax.tree.leaves(tree) if jnp.finfo(x.dtype).bits < 32}
    if half:
        raise TypeError(
            f"a second derivative in {', '.join(sorted(half))} is rounding; convert the weights, the velocity and the"
            " inputs to float32"
        )


def _embedded(f, distance, weights, inputs):
    """The outputs whose Euclidean metric is that of the distance, as a function of the movable weights, and those.

    They are in the widest type of the weights, whatever that of the inputs.
    """
    dynamic, static = eqx.partition(weights, eqx.is_inexact_array)
    dtype = _widest(dynamic)
    size = len(jax.tree.leaves(inputs)[0])

    def outputs(w):
        whole = eqx.combine(w, static)
        y = jax.vmap(lambda x: distance.embedding(f(whole, x)))(inputs).astype(dtype)
        return y * jnp.asarray(size**-0.5, dtype)

    return outputs, dynamic


def _widest(tree):
    return jnp.float64 if any(x.dtype == jnp.float64 for x in jax.tree.leaves(tree)) else jnp.float32


def _bend(outputs, w, v):
    """`f″(v, v)`."""
    return jax.jvp(lambda u: jax.jvp(outputs, (u,), (v,))[1], (w,), (v,))[1]


def _acceleration(outputs, w, v, rtol, max_steps):
    """The acceleration, and the second derivative of the outputs in time that is left, `Ja + f″(v, v)`."""
    bend = _bend(outputs, w, v)
    _, push = jax.linearize(outputs, w)
    # LSMR makes numbers of the default type, and would mix them with those of narrower weights.
    default = jnp.zeros(()).dtype

    def widened(u):
        return push(_like(w, u)).astype(default)

    structure = jax.eval_shape(lambda: jax.tree.map(lambda x: x.astype(default), w))
    operator = lx.FunctionLinearOperator(widened, structure)
    # Where a geodesic is straight there is nothing to solve for, and LSMR would divide by zero.
    size = norm(bend)
    straight = size <= jnp.finfo(size.dtype).tiny
    target = jnp.where(straight, 1, -bend).astype(default)
    found = lx.linear_solve(operator, target, lx.LSMR(rtol=rtol, atol=0, max_steps=max_steps), throw=False).value
    found = _like(w, jax.tree.map(lambda x: jnp.where(straight, 0, x), found))
    return found, push(found) + bend


def _like(tree, values):
    """The values in the types of a tree."""
    return jax.tree.map(lambda x, y: y.astype(x.dtype), tree, values)


@eqx.filter_jit
def _integrate(f, distance, weights, velocity, inputs, times, tolerances, max_steps, solve_steps):
    outputs, dynamic = _embedded(f, distance, weights, inputs)
    rtol, atol, solve_rtol = tolerances

    def field(t, y, _):
        w, v, _, _, rate = y
        a, bend = _acceleration(outputs, w, v, solve_rtol, solve_steps)
        return v, a, norm(v).astype(times.dtype), rate, bend

    # What the equation says of the outputs is integrated beside it, by the steps that the weights need.
    plain = diffrax.PIDController(rtol=rtol, atol=atol)
    controller = dataclasses.replace(plain, norm=lambda y: plain.norm(y[:3]))
    at_start, rate = jax.jvp(outputs, (dynamic,), (velocity,))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        times[0],
        times[-1],
        None,
        (dynamic, velocity, jnp.zeros((), times.dtype), at_start, rate),
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=controller,
        max_steps=max_steps,
        throw=False,
    )
    found: Any = solution.ys
    return found, solution.stats["num_steps"]


@eqx.filter_jit
def _told(f, distance, weights, velocity, expected, inputs, rtol, max_steps):
    """The speed at a point, the norms of the acceleration's residual, half the square of how far the outputs are from what is
    expected, how far all weights together move them to first order, their size, and that square for each input."""
    outputs, w = _embedded(f, distance, weights, inputs)
    found, push = jax.linearize(outputs, w)
    pull = jax.linear_transpose(push, w)
    moved, bend = push(velocity), _bend(outputs, w, velocity)
    _, left = _acceleration(outputs, w, velocity, rtol, max_steps)
    off = ((found - expected) ** 2).reshape(len(found), -1).sum(axis=1)
    told = jnp.vdot(moved, moved), norm(pull(left)), norm(pull(bend)), jnp.sum(off) / 2, norm(push(w)), norm(found)
    return told, off * len(found)


def _shares(points):
    """The times at which to record, as shares of the whole."""
    try:
        given = np.asarray(points)
    except ValueError:  # a list of unequal lists
        given = np.empty((1, 1))
    if given.ndim == 0:
        return np.linspace(0, 1, check_count("points", points, 2))
    rises = given.dtype.kind in "iuf" and given.ndim == 1 and len(given) > 1 and (np.diff(given) > 0).all()
    if not (rises and given[0] == 0 and given[-1] == 1):
        raise ValueError(f"points must be at least 2, or shares of the time that rise from 0 to 1, got {points}")
    return given.astype(float)


def geodesic(
    f: Callable[..., Any],
    weights: PyTree,
    velocity: PyTree,
    inputs: PyTree,
    distance: OutputDistance | Callable[..., Any] = squared_error,
    *,
    time: float | int = 1.0,
    points: SupportsIndex | Sequence[float] | np.ndarray = 11,
    held_out: PyTree | None = None,
    rtol: float | int = 1e-4,
    atol: float | int = 1e-6,
    solve_rtol: float | int = 1e-5,
    max_steps: SupportsIndex = 4096,
    solve_steps: SupportsIndex | None = None,
    batch: SupportsIndex = 500,
) -> Geodesic:
    r"""The geodesic of the metric that a network's outputs put on its weights, `ẅ + Γ(ẇ, ẇ) = 0` (Eq. 5).

    Its acceleration is that of `acceleration`, at a cost linear in the number of weights; the equation is integrated by
    diffrax (Tsit5, adaptive steps). A geodesic keeps its speed `⟨v, g v⟩`: one that sets out along a flat direction keeps
    the outputs, wherever `J` has a right inverse. The function must be twice differentiable; where a path crosses kinks its
    outcome says so.

    **Arguments:**

    - `f`, `weights`, `inputs`: as of `FunctionMetric`.
    - `velocity`: the first velocity, a movement of the weights, cast to their types. The outputs are cast so too.
    - `distance`: one of `wmlib.distances`, or another with an embedding, whose metric it is.
    - `time`: how long to go on.
    - `points`: at how many times to record, the start and the end among them; or those times, as ascending shares of
      `time` from 0 to 1.
    - `held_out`: other inputs, to measure the drift on; default: `inputs`.
    - `rtol`, `atol`, `max_steps`: of the integrator.
    - `solve_rtol`, `solve_steps`: of the least-squares solves.
    - `batch`: how many inputs are looked at together when the drift is measured; the integrator looks at all.

    **Returns:** a `Geodesic`.

    **Raises:** `ValueError` for a velocity that does not fit the weights or is not finite, a distance without an embedding, a
    layer with a state, one array at two places, inputs that are empty, an `f` that fails on one of them, or numbers out of
    range; `TypeError` for weights that are complex or of half precision, a velocity that is not of floating-point numbers, or
    an `f` that does not return one floating-point array.

    **Example:**

        flat = wm.direction(metric, key=key).value
        path = wm.geodesic(operator.call, net, flat, images, time=5.0)
        path.drift, path.stats["speed"]

    **Reference:** Raghavan et al. (2024), Eq. 5; Kidger (2021), On Neural Differential Equations (diffrax).
    """
    shares = _shares(points)
    check_positive("time", time, "1.0 is the default")
    for name, tolerance in (("rtol", rtol), ("atol", atol), ("solve_rtol", solve_rtol)):
        check_positive(name, tolerance, "leave it out for the default")
    max_steps = check_count("max_steps", max_steps)
    solve_steps = None if solve_steps is None else check_count("solve_steps", solve_steps)
    batch = check_count("batch (500 is the default)", batch)
    inputs = jax.tree.map(jnp.asarray, inputs)
    check_inputs("inputs", inputs)
    weights, velocity, distance = _checked(f, weights, velocity, inputs, distance)
    inputs, outputs = remember(f, weights, inputs, batch, "inputs")
    beside = (inputs, outputs) if held_out is None else remember(f, weights, held_out, batch, "held_out")
    inputs = gathered(inputs)
    dynamic = eqx.filter(weights, eqx.is_inexact_array)
    times = jnp.asarray(time * shares, _widest(dynamic))
    tolerances = (rtol, atol, solve_rtol)
    (ws, vs, lengths, expected, _), steps = _integrate(
        f, distance, weights, velocity, inputs, times, tolerances, max_steps, solve_steps
    )
    lengths = np.asarray(lengths, float)
    reached = int(np.isfinite(lengths).sum())
    rest = eqx.filter(weights, eqx.is_inexact_array, inverse=True)
    at = [jax.tree.map(itemgetter(i), (ws, vs)) for i in range(reached)]
    nets, velocities = tuple(eqx.combine(w, rest) for w, _ in at), tuple(v for _, v in at)
    told = [
        _told(f, distance, w, v, y, inputs, solve_rtol, solve_steps)
        for w, v, y in zip(nets, velocities, expected, strict=False)
    ]
    told, off = zip(*jax.device_get(told), strict=True) if told else ((), ())
    speed, left, bent, unexplained, lever, size = np.array(told, float).reshape(-1, 6).T
    # What the integrator's own error may come to: a smooth network stays below a tenth of it. An error of the weights acts
    # by the derivative; the size of the outputs, to which anything may be added, counts by its rounding alone.
    scale = np.maximum.accumulate(lever) + np.sqrt(np.maximum(speed[:1], 0)) * float(times[-1])
    allowed = 10 * (atol + rtol * scale + 10 * float(jnp.finfo(times.dtype).eps) * (scale + size[:1]))
    kinked = (np.sqrt(np.asarray(off, float).reshape(reached, len(outputs))) > allowed[:, None]).sum(axis=1)
    outcome = "arrived"
    if reached < len(shares):
        outcome = "step limit: increase max_steps, rtol or atol, or lower time"
    elif kinked.any():
        outcome = (
            f"kinks: the outputs of {kinked.max()} of {len(off[0])} inputs moved as their derivatives do not tell, by a mean"  # pyright: ignore[reportGeneralTypeIssues]
            f" distance of {unexplained.max():.1e}; take a smooth activation in place of ReLU or max-pooling (tanh, GELU,"
            " mean-pooling), or lower time; if the network is smooth, lower rtol and atol"
        )
    stats = {
        "speed": speed,
        "residual": left / np.where(bent > 0, bent, 1),
        "unexplained": unexplained,
        "kinked": kinked,
        "steps": int(steps),
        "outcome": outcome,
    }
    drift = np.array([mean_distance(f, distance, w, *beside, batch) for w in nets])
    return Geodesic(nets, velocities, np.asarray(times, float)[:reached], lengths[:reached], drift, stats)
