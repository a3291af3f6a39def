"""Gradient episodic memory: a step that does not raise the loss on the memory, to first order."""

from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..._counts import check_count
from ..._sharding import gathered
from ...paths.checks import check_setting, power, wide
from ...paths.precision import check_floating


def gem_projection(
    gradient: PyTree, recalled: PyTree, margin: Any = 0.0, *, sweeps: SupportsIndex = 1000
) -> PyTree[Array]:
    r"""The gradient nearest to a given one that no memory objects to: `min ½ |z − g|²` subject to `⟨z, g_k⟩ ≥ 0`.

    The dual has one unknown for each memory, `z = g + Σ_k v_k g_k` with `v_k ≥ 0`, and is solved by sweeps of exact
    minimisation over one `v_k` after another. As in the authors' code, `v_k ≥ margin` ("memory strength") if any memory
    objects, which pushes towards the memories more than the constraint asks, and `z = g` if none does.

    **Arguments:**

    - `gradient`: `g`, a tree.
    - `recalled`: the gradients `g_k` of the loss on each of the memories, a tree whose leaves have one more, first axis.
    - `margin`: at least 0.
    - `sweeps`: the most to take, at least 1; fewer are taken once nothing moves. With one memory the first is exact. Where
      memories oppose each other almost exactly (cosines below −0.99), the sweeps may end, or be taken for ended, while
      `⟨z, g_k⟩` is still −10⁻² of the product of the lengths of `z` and `g_k`.

    **Returns:** `z`, a tree like `gradient`. Without a margin it scales with `g`, and is the same whatever the sizes of
    the `g_k`.

    **Raises:** `ValueError` for a margin that is negative or not finite, sweeps that are no positive integer, no memory, or
    recalled gradients of another structure or other shapes than the gradient's; `TypeError` for gradients of other than real
    floating-point numbers.

    **Reference:** Lopez-Paz & Ranzato (2017), Gradient Episodic Memory for Continual Learning, Eq. 8 to 11.
    """
    margin = check_setting("margin", margin)
    sweeps = check_count("sweeps (1000 is the default)", sweeps)
    count = next((len(x) for x in jax.tree.leaves(recalled) if jnp.ndim(x)), 0)
    if count < 1:
        raise ValueError("recalled needs a first axis of at least one memory; use x[None] for a single gradient")
    _check_alike(gradient, recalled, (count,))
    gradient, recalled = gathered((gradient, recalled))
    g, back = ravel_pytree(gradient)
    dtype, g = g.dtype, wide(g)
    constraints = wide(jax.vmap(lambda tree: ravel_pytree(tree)[0])(recalled)).astype(g.dtype)
    # In units of their own, or the squares of small gradients vanish, and a tolerance means nothing.
    size, sizes = power(g), power(constraints, 1)
    g, constraints = g / size, constraints / sizes[:, None]
    least = jnp.asarray(margin, g.dtype) * sizes / size
    gram, along = constraints @ constraints.T, constraints @ g
    curvature = jnp.where(jnp.diagonal(gram) > 0, jnp.diagonal(gram), 1)

    def coordinate(k, v):
        best = v[k] - (gram[k] @ v + along[k]) / curvature[k]
        return v.at[k].set(jnp.maximum(best, least[k]))

    def sweep(carry):
        taken, v, _ = carry
        new = jax.lax.fori_loop(0, len(v), coordinate, v)
        return taken + 1, new, jnp.abs(new - v).max()

    def unfinished(carry):
        taken, v, moved = carry
        return (taken < sweeps) & (moved > 1e-6 * jnp.abs(v).max())

    start = (0, least, jnp.full((), jnp.inf, along.dtype))
    _, v, _ = jax.lax.while_loop(unfinished, sweep, start)
    objects = ~(along >= 0).all()  # and so, where a memory's gradient is not a number, is what is returned
    return back((jnp.where(objects, g + v @ constraints, g) * size).astype(dtype))


def agem_projection(gradient: PyTree, recalled: PyTree) -> PyTree[Array]:
    """The averaged form, for one memory in closed form: `g − min(0, ⟨g, m⟩ / ⟨m, m⟩) m`.

    **Arguments:** `gradient`, `g`, and `recalled`, `m`, the gradient of the loss on a batch of all memories; two trees
    of one structure.

    **Raises:** `ValueError` for two trees that differ in structure or shapes; `TypeError` for gradients of other than real
    floating-point numbers.

    **Reference:** Chaudhry et al. (2019), Efficient Lifelong Learning with A-GEM, Eq. 11.
    """
    _check_alike(gradient, recalled)
    gradient, recalled = gathered((gradient, recalled))
    (g, back), (m, _) = ravel_pytree(gradient), ravel_pytree(recalled)
    dtype, g = g.dtype, wide(g)
    m = wide(m).astype(g.dtype)
    size, m = power(g), m / power(m)
    g, square = g / size, m @ m
    return back(((g - jnp.minimum(0, g @ m) / jnp.where(square > 0, square, 1) * m) * size).astype(dtype))


def _check_alike(gradient, recalled, axes=()):
    check_floating("the gradients", (gradient, recalled))
    shapes = [[jnp.shape(x) for x in jax.tree.leaves(tree)] for tree in (gradient, recalled)]
    same = jax.tree.structure(gradient) == jax.tree.structure(recalled)
    if not same or [(*axes, *shape) for shape in shapes[0]] != shapes[1]:
        more = ", with one more, first axis for the memories" if axes else ""
        raise ValueError(
            f"recalled must have the structure and shapes of the gradient{more}: gradients of the same weights; got"
            f" {shapes[1]} beside {shapes[0]}"
        )
