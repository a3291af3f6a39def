"""Gradient episodic memory: a step that does not raise the loss on the memory, to first order."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree


def gem_projection(
    gradient: PyTree[Array], recalled: PyTree[Array], margin: float = 0.0, *, sweeps: int = 1000
) -> PyTree[Array]:
    r"""The gradient nearest to a given one that no memory objects to: `min ½ |z − g|²` subject to `⟨z, g_k⟩ ≥ 0`.

    The dual has one unknown for each memory, `z = g + Σ_k v_k g_k` with `v_k ≥ 0`, and is solved by sweeps of exact
    minimisation over one `v_k` after another. As in the authors' code, `v_k ≥ margin` ("memory strength") if any memory
    objects, which pushes towards the memories more than the constraint asks, and `z = g` if none does.

    **Arguments:**

    - `gradient`: `g`, a tree.
    - `recalled`: the gradients `g_k` of the loss on each of the memories, a tree whose leaves have one more, first axis.
    - `margin`: at least 0.
    - `sweeps`: the most to take; fewer are taken once nothing moves. With one memory the first is exact.

    **Returns:** `z`, a tree like `gradient`.

    **Reference:** Lopez-Paz & Ranzato (2017), Gradient Episodic Memory for Continual Learning, Eq. 8 to 11.
    """
    g, back = ravel_pytree(gradient)
    constraints = jax.vmap(lambda tree: ravel_pytree(tree)[0])(recalled)
    gram, along = constraints @ constraints.T, constraints @ g
    curvature = jnp.where(jnp.diagonal(gram) > 0, jnp.diagonal(gram), 1)

    def coordinate(k, v):
        best = v[k] - (gram[k] @ v + along[k]) / curvature[k]
        return v.at[k].set(jnp.maximum(best, jnp.asarray(margin, v.dtype)))

    def sweep(carry):
        taken, v, _ = carry
        new = jax.lax.fori_loop(0, len(v), coordinate, v)
        return taken + 1, new, jnp.abs(new - v).max()

    def unfinished(carry):
        taken, v, moved = carry
        return (taken < sweeps) & (moved > 1e-6 * (1 + jnp.abs(v).max()))

    start = (0, jnp.full_like(along, margin), jnp.full((), jnp.inf, along.dtype))
    _, v, _ = jax.lax.while_loop(unfinished, sweep, start)
    return back(jnp.where((along < 0).any(), g + v @ constraints, g))


def agem_projection(gradient: PyTree[Array], recalled: PyTree[Array]) -> PyTree[Array]:
    """The averaged form, for one memory in closed form: `g − min(0, ⟨g, m⟩ / ⟨m, m⟩) m`.

    **Arguments:** `gradient`, `g`, and `recalled`, `m`, the gradient of the loss on a batch of all memories; two trees
    of one structure.

    **Reference:** Chaudhry et al. (2019), Efficient Lifelong Learning with A-GEM, Eq. 11.
    """
    (g, back), (m, _) = ravel_pytree(gradient), ravel_pytree(recalled)
    square = m @ m
    return back(g - jnp.minimum(0, g @ m) / jnp.where(square > 0, square, 1) * m)
