"""Geodesics of the metric that a network's outputs put on its weights."""

import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from .distances import OutputDistance, squared_error
from .metric import check_structure, mean_distance, norm, refuse_state, remember


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
    check_structure("the velocity", velocity, dynamic)
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


def _bend(outputs, w, v):
    """`f″(v, v)`."""
    return jax.jvp(lambda u: jax.jvp(outputs, (u,), (v,))[1], (w,), (v,))[1]


def _acceleration(outputs, w, v, rtol, max_steps):
    bend = _bend(outputs, w, v)
    _, push = jax.linearize(outputs, w)
    operator = lx.FunctionLinearOperator(push, jax.eval_shape(lambda: w))
    # Where a geodesic is straight there is nothing to solve for, and LSMR would divide by zero.
    size = norm(bend)
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
        return v, _acceleration(outputs, w, v, solve_rtol, solve_steps), norm(v)

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
    return jnp.vdot(moved, moved), norm(pull(left)), norm(pull(bend))


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
    inputs, outputs = remember(f, weights, inputs, batch, "inputs")
    beside = (inputs, outputs) if held_out is None else remember(f, weights, held_out, batch, "held_out")
    _, dynamic = _embedded(f, distance, weights, inputs)
    check_structure("the velocity", velocity, dynamic)
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
    drift = np.array([mean_distance(f, distance, w, *beside, batch) for w in nets])
    return Geodesic(nets, velocities, np.asarray(times, float)[:reached], lengths[:reached], drift, stats)
