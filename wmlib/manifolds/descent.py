"""Steepest descent of a manifold: the inverse metric as an optax transformation, and a matrix-free solve."""

import functools
import math
from collections.abc import Callable
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, PyTree

from .._counts import check_count
from .._sharding import gathered
from .modulation import BasisPoints, Modulated, _wide
from .shapes import AbstractManifold


def precondition(manifold: AbstractManifold, density: ArrayLike | None = None) -> optax.GradientTransformation:
    """Apply the inverse metric to the gradient of the basis points: `g_k ← Σ_l (G⁻¹)_kl g_l` (Theorem 1, Eq. 7).

    With the learning rate in place of `1/2λ`, `optax.chain(precondition(manifold), optax.sgd(rate))` is steepest
    descent of the loss functional under a limit on the volumetric movement `∫ |M(s, P + ΔP) − M(s, P)|² ds`. Leaves
    that are not `BasisPoints` pass through. A network (`Modulated`) knows its manifold and the axes of its points, so
    that leading axes of an ensemble (`equinox.filter_vmap`) are passed over; of `BasisPoints` outside a network, the first
    axis is that of the points. The axes of an ensemble must be leading, which nothing tells here where there are as many
    networks as points: under other `out_axes`, map `update` over them by `equinox.filter_vmap`.

    **Arguments:** `manifold`, that of the network; `density`, the contexts to integrate over (see
    `AbstractManifold.gram`): `None` is uniform.

    **Returns:** a stateless `optax.GradientTransformation`.

    **Raises:** `TypeError` for a manifold that is none; `ValueError` when it is made, if the density leaves the Gram
    matrix singular, and when it is used, if the updates hold no basis points, a number of them that is not `n`, a network
    that lies on another manifold.
    """
    if not isinstance(manifold, AbstractManifold):
        raise TypeError(f"the first argument is a manifold such as wm.Ellipse(), got {manifold!r}")
    inverse = manifold.inverse_gram(density)

    def apply(node: BasisPoints, rank: int | None) -> BasisPoints:
        value = node.value
        if not jax.tree.leaves(value):  # None, or masked by optax
            return node
        over = 0 if rank is None else value.ndim - rank  # leading axes of an ensemble
        if over < 0 or value.ndim <= over or value.shape[over] != manifold.size:
            raise ValueError(
                f"{manifold} has {manifold.size} basis points and the network has {value.shape[max(over, 0)]}; make the"
                " optimiser with the network's own manifold, wm.precondition(net.manifold), and an ensemble with its axes first"
            )
        wide = _wide(value.dtype)
        product = functools.partial(jnp.tensordot, inverse.astype(wide), axes=1)
        for _ in range(over):
            product = jax.vmap(product)
        return BasisPoints(product(value.astype(wide)).astype(value.dtype))

    def leaf(node: Any) -> Any:
        if isinstance(node, BasisPoints):
            return apply(node, None)
        if not isinstance(node, Modulated):
            return node
        if node.manifold != manifold:
            raise ValueError(
                f"the optimiser is for {manifold} and the network lies on {node.manifold}; make the optimiser with the"
                " network's own manifold, wm.precondition(net.manifold)"
            )
        ranks = dict(node.ranks)

        def inner(path, part):
            return apply(part, ranks.get(jax.tree_util.keystr(path))) if isinstance(part, BasisPoints) else part

        model = jax.tree_util.tree_map_with_path(inner, node.model, is_leaf=lambda x: isinstance(x, BasisPoints))
        return eqx.tree_at(lambda net: net.model, node, model, is_leaf=lambda x: x is None)

    def transform(tree: PyTree) -> PyTree:
        leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, BasisPoints))
        if not any(isinstance(x, BasisPoints) for x in leaves):
            raise ValueError(
                "there are no basis points to precondition here; give the gradient of a network that wm.modulate made"
            )
        return jax.tree.map(leaf, tree, is_leaf=lambda x: isinstance(x, (BasisPoints, Modulated)))

    def init(params: PyTree) -> optax.EmptyState:
        eqx.filter_eval_shape(transform, params)  # its checks, and nothing computed
        return optax.EmptyState()

    def update(updates: PyTree, state: optax.OptState, params: PyTree | None = None):
        return transform(updates), state

    return optax.GradientTransformation(init, update)


class MetricSolution(eqx.Module):
    """The update of `solve_metric` (`value`) and how it was found (`stats`: iterations, relative residual)."""

    value: PyTree[Array]
    stats: dict[str, Array]


def solve_metric(
    manifold: Callable[[Array, PyTree[Array]], PyTree[Array]],
    points: PyTree[Array],
    gradient: PyTree[Array],
    contexts: Array,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    max_steps: SupportsIndex | None = None,
    damping: float = 0.0,
) -> MetricSolution:
    r"""Solve `(E_s[J^T J] + damping · I) ΔP = g` for a curved manifold, without a matrix (Eq. 7).

    `J = ∂M(s, P)/∂P` at each of the sampled contexts; the conjugate gradient method needs only products with `J` and
    `J^T`, so the memory is that of a few copies of the points and of the weights at each context.

    **Arguments:**

    - `manifold`: any differentiable `M(s, P)`, from one context and the points to weights.
    - `points`: `P`, a tree of arrays; those of half precision are solved for in float32.
    - `gradient`: `g`, of the same structure.
    - `contexts`: a sample of `s`, to average over, of shape `(samples, ...)`.
    - `rtol`, `atol`, `max_steps`: of `lineax.CG`.
    - `damping`: added to the metric; needed if some movements of the points do not move the manifold.

    **Returns:** a `MetricSolution`; descend with `-rate * value`.

    **Raises:** `ValueError` if `gradient` and `points` differ in structure or shape or are not finite, for no points or
    contexts, and for a tolerance or damping that is not finite or negative; `TypeError` for points that are complex or no
    floating-point numbers; a runtime error that names its cure if the iteration stops short of the tolerance.
    """
    shapes = [(jax.tree.structure(t), [jnp.shape(x) for x in jax.tree.leaves(t)]) for t in (points, gradient)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the gradient must have the structure and shapes of the points, got {shapes[1]}, {shapes[0]}")
    if jnp.ndim(contexts) == 0 or len(contexts) == 0:
        raise ValueError("contexts must hold at least one context along its first axis; draw some with .sample")
    for name, number, usual in (("rtol", rtol, "1e-5"), ("atol", atol, "1e-8"), ("damping", damping, "0")):
        if not isinstance(number, Tracer) and not 0 <= float(number) < math.inf:
            raise ValueError(f"{name} must be at least 0, got {number!r}; give a finite number, {usual} is the default")
    if max_steps is not None:
        max_steps = check_count("max_steps (None leaves it to lineax)", max_steps)
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves((points, gradient, contexts))):
        raise TypeError("complex points have no metric here; hold real and imaginary parts in an array each")
    if not shapes[0][1]:
        raise ValueError("there are no points to solve for; give the points of the manifold as arrays")
    if not all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in jax.tree.leaves(points)):
        raise TypeError("the points must be floating-point numbers, as the solution is; convert them by .astype(float)")
    for name, tree in (("points", points), ("gradient", gradient), ("contexts", contexts)):
        known = [np.asarray(x) for x in jax.tree.leaves(tree) if not isinstance(x, Tracer)]
        if not all(np.isfinite(x).all() for x in known):
            raise ValueError(f"the {name} must be finite; look for a loss that diverged, or for NaN in the inputs")
    dtypes = jax.tree.map(jnp.result_type, points)
    points, gradient = (
        gathered(jax.tree.map(lambda x: jnp.asarray(x, _wide(jnp.result_type(x))), t)) for t in (points, gradient)
    )

    def sweep(p):
        return jax.vmap(manifold, in_axes=(0, None))(contexts, p)

    _, push = jax.linearize(sweep, points)
    pull = jax.linear_transpose(push, points)

    def product(v):
        (metric_v,) = pull(push(v))
        return jax.tree.map(lambda m, x: m / len(contexts) + damping * x, metric_v, v)

    structure = jax.eval_shape(lambda: points)
    operator = lx.FunctionLinearOperator(product, structure, lx.positive_semidefinite_tag)
    solution = lx.linear_solve(operator, gradient, lx.CG(rtol=rtol, atol=atol, max_steps=max_steps), throw=False)
    residual = jax.tree.map(lambda a, b: a - b, product(solution.value), gradient)
    size = _norm(gradient)
    relative = _norm(residual) / jnp.where(size == 0, 1, size)
    value = eqx.error_if(
        solution.value,
        (solution.result != lx.RESULTS.successful) | ~jnp.isfinite(relative),
        "the conjugate gradient method did not reach its tolerance: if some movements of the points do not move the"
        " manifold, give damping > 0; otherwise increase max_steps or rtol, or look for numbers that are not finite",
    )
    value = jax.tree.map(lambda x, dtype: x.astype(dtype), value, dtypes)
    return MetricSolution(value, {"steps": solution.stats["num_steps"], "relative_residual": relative})


def _norm(tree: PyTree[Array]) -> Array:
    leaves = [x.astype(_wide(x.dtype)) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(jnp.vdot(x, x) for x in leaves))
