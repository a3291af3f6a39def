"""Elastic weight consolidation: an anchor that is stiff where the earlier task's outputs depend on a weight."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array, Float, PyTree

from ..._counts import check_count
from ...paths.checks import check_logits, check_memories, movement, on_shapes, output_of, wide
from ...paths.metric import batches, check_structure, gathered, movable
from ...paths.precision import refuse_complex


def fisher_diagonal(
    f: Callable[..., Any], weights: PyTree, inputs: PyTree, *, batch: SupportsIndex | None = None
) -> PyTree[Array]:
    r"""The diagonal of the Fisher matrix of a classifier, `F_i = (1/N) Σ_x Σ_c p_c(x) (∂ ln p_c(x) / ∂w_i)²`.

    The classes are summed over, not drawn, and no labels are needed. It is the diagonal of the `FunctionMetric` of
    `distances.kl` on the same inputs. The price is one backward pass for each input and class.

    A matrix `W` that `f` uses for one product with one vector, `y = W x`, has `∂ ln p_c / ∂W_ij = δ_i x_j` with
    `δ = ∂ ln p_c / ∂y`, so that its squares are sums of products of squares, `Σ_x (Σ_c p_c δ_i²) x_j²`: one product of
    two matrices for all inputs. Which matrices are used so is read off the program of `f`. The derivatives by everything
    else (convolutions, layers used at several positions, gains) are squared one input and one class at a time.

    **Arguments:**

    - `f`: called as `f(weights, x)` for one input; returns logits. For a network, `operator.call`.
    - `weights`: any pytree.
    - `inputs`: a tree of arrays that share their first axis, of length `N`.
    - `batch`: how many inputs are differentiated together; each needs as much memory as one set of the weights that do
      not factor a class. Default: as many as fit into 2²³ numbers.

    **Returns:** a tree like the weights' floating-point arrays, in float32 at least.

    **Raises:** `ValueError` for no inputs, a batch that is not positive, weights that hold no floating-point array,
    one twice or a layer with a state, an `f` that expects a batch, or a single logit; `TypeError` for complex weights or outputs that are not logits.

    **Reference:** Kirkpatrick et al. (2017), Overcoming catastrophic forgetting in neural networks; Botev et al. (2017),
    Practical Gauss-Newton Optimisation for Deep Learning, for the factors.
    """
    weights = gathered(movable(weights))
    check_memories(inputs)
    batch = None if batch is None else check_count("batch (leave it out for as many as fit into memory)", batch)
    inputs = gathered(jax.tree.map(jnp.asarray, inputs))
    count = len(jax.tree.leaves(inputs)[0])
    if batch is None:
        batch = max(1, 2**23 // _numbers(f, weights, inputs))
    total = None
    for part in batches(inputs, batch):
        squares = _squares(f, weights, part)
        total = squares if total is None else jax.tree.map(jnp.add, total, squares)
    return jax.tree.map(lambda x: x / count, total)


def _program(f, weights, inputs):
    """`ln p` of one input as a program of the weights' floating-point arrays and the input; and those of its equations that
    are the only use of a matrix, a product with one vector, with the number of the matrix and its axis that is summed."""
    dynamic, static = eqx.partition(weights, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(dynamic)

    def log_probabilities(leaves, x):
        logits = output_of(f, eqx.combine(structure.unflatten(leaves), static), x)
        check_logits(logits)
        if len(logits) < 2:
            raise ValueError("f returns one logit, whose softmax is 1 whatever it is; give it one output a class")
        return jax.nn.log_softmax(wide(logits))

    closed = jax.make_jaxpr(log_probabilities)(leaves, jax.tree.map(lambda x: x[0], inputs))
    equations, own = closed.jaxpr.eqns, closed.jaxpr.invars[: len(leaves)]
    uses = Counter(_variables([v for e in equations for v in e.invars] + closed.jaxpr.outvars))
    once = {v: i for i, v in enumerate(own) if uses[v] == 1}
    factors = {at: _factor(e, once) for at, e in enumerate(equations) if uses[e.outvars[0]]}
    return closed, {at: factor for at, factor in factors.items() if factor is not None}


def _factor(equation, among):
    """The matrix of a product `W x` or `x W` and its axis that is summed over, if it is among those given."""
    if equation.primitive is not jax.lax.dot_general_p or sorted(v.aval.ndim for v in equation.invars) != [1, 2]:
        return None
    (contracted, _) = equation.params["dimension_numbers"]
    place = [v.aval.ndim for v in equation.invars].index(2)
    matrix = equation.invars[place]
    if isinstance(matrix, Literal) or matrix not in among:
        return None
    return among[matrix], contracted[place][0]


@on_shapes
def _numbers(f, weights, inputs):
    """How many numbers one input takes: for each class, the derivatives that are not factored and what is between."""
    closed, factors = _program(f, weights, inputs)
    leaves = jax.tree.leaves(eqx.filter(weights, eqx.is_inexact_array))
    factored = {i for i, _ in factors.values()}
    between = sum(math.prod(v.aval.shape) for e in closed.jaxpr.eqns for v in e.outvars)
    rest = sum(x.size for i, x in enumerate(leaves) if i not in factored)
    return closed.out_avals[0].size * (rest + between)


@eqx.filter_jit
def _squares(f, weights, inputs):
    """`Σ_x Σ_c p_c (∂ ln p_c / ∂w)²` over one batch."""
    leaves, structure = jax.tree.flatten(eqx.filter(weights, eqx.is_inexact_array))
    closed, factors = _program(f, weights, inputs)
    factored = {i for i, _ in factors.values()}
    rest = {i: x for i, x in enumerate(leaves) if i not in factored}
    results = {at: closed.jaxpr.eqns[at].outvars[0].aval for at in factors}
    still = {at: jnp.zeros(y.shape, y.dtype) for at, y in results.items()}

    def of_one(x):
        def run(rest, shifts):
            return _evaluate(closed, [rest.get(i, leaf) for i, leaf in enumerate(leaves)], x, shifts)

        logp, pull, vectors = jax.vjp(run, rest, still, has_aux=True)
        rows = jax.vmap(pull)(jnp.eye(len(logp), dtype=logp.dtype))
        squares = jax.tree.map(
            lambda row: jnp.tensordot(jnp.exp(logp).astype(wide(row).dtype), wide(row) ** 2, 1), rows
        )
        return *squares, jax.tree.map(lambda x: wide(x) ** 2, vectors)

    squares, outwards, inwards = jax.vmap(of_one)(inputs)
    squares = {i: x.sum(axis=0) for i, x in squares.items()}
    for at, (i, summed) in factors.items():
        pair = (inwards[at], outwards[at]) if summed == 0 else (outwards[at], inwards[at])
        squares[i] = jnp.einsum("xi,xj->ij", *pair)
    return structure.unflatten([squares[i] for i in range(len(leaves))])


def _evaluate(closed, leaves, x, shifts):
    """What a program returns, with a shift added to some of its products; and the vectors that are multiplied there."""
    jaxpr, vectors, start = closed.jaxpr, {}, 0
    known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    known |= zip(jaxpr.invars, [*leaves, *jax.tree.leaves(x)], strict=True)
    read = set(_variables([v for e in jaxpr.eqns for v in e.invars] + jaxpr.outvars))
    for at in [*sorted(shifts), len(jaxpr.eqns) - 1]:
        equations = jaxpr.eqns[start : at + 1]
        made = [v for e in equations for v in e.outvars if v in read]
        given = [v for v in dict.fromkeys(_variables(v for e in equations for v in e.invars)) if v in known]
        part = jaxpr.replace(constvars=[], invars=given, outvars=made, eqns=equations)
        known |= zip(made, jaxpr_as_fun(ClosedJaxpr(part, []))(*[known[v] for v in given]), strict=True)
        if at in shifts:
            known[made[-1]] += shifts[at]
            (vectors[at],) = (known[v] for v in _variables(equations[-1].invars) if v.aval.ndim == 1)
        start = at + 1
    return known[jaxpr.outvars[0]], vectors


def _variables(among):
    return [v for v in among if not isinstance(v, Literal)]


def ewc_penalty(weights: PyTree, start: PyTree, fisher: PyTree[Array]) -> Float[Array, ""]:
    """`½ Σ_i F_i (w_i − w₀_i)²`, to be scaled (the authors' λ) and added to the loss.

    To second order it is the mean Kullback–Leibler divergence of the outputs, if the Fisher matrix were diagonal.

    **Arguments:** `weights` and `start`, two trees of one structure; `fisher`, from `fisher_diagonal`.

    **Raises:** `ValueError` for trees that differ in structure or shapes, or hold one array twice; `TypeError` for complex
    ones.

    **Reference:** Kirkpatrick et al. (2017), Eq. 3.
    """
    moved = movement(weights, start)
    refuse_complex("fisher", fisher)
    fisher = gathered(fisher)
    check_structure("fisher", fisher, moved)
    terms = jax.tree.map(lambda d, stiffness: jnp.vdot(stiffness.astype(d.dtype) * d, d), moved, fisher)
    return jnp.asarray(sum(jax.tree.leaves(terms)) / 2)
