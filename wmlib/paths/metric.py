"""The metric that a network's outputs put on its weights."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from typing import Any, SupportsIndex, final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from .._calls import on_one_input
from .._counts import check_count
from .._sharding import divided
from .._sharding import gathered as gathered
from .distances import OutputDistance, squared_error
from .precision import check_floating
from .precision import refuse_complex as refuse_complex
from .precision import wide as wide


@final
class FunctionMetric(lx.AbstractLinearOperator):
    r"""The metric `g = (1/N) Σ_i J_iᵀ H_i J_i` on weights, as a `lineax` operator that is never a matrix.

    `J_i = ∂f(w, x_i)/∂w` and `H_i` is the Hessian at zero of the output distance. For a small movement δ of the weights,
    `½ ⟨δ, g δ⟩` is the mean distance that the outputs move. It acts on the floating-point arrays of the weights: trees
    like `eqx.filter(weights, eqx.is_inexact_array)`.

    A product linearises `f` on one batch of inputs after another, so that memory does not grow with their number. With
    `keep` the linearisations are made once, when the metric is, and a product takes about half the time; what a gradient
    stores on its way forward, the intermediate values of all inputs, then stays in memory as long as the metric. It is
    meant to be called from Python: inside a compiled loop, XLA's convolutions on a CPU are several times slower.

    Products are computed in the precision of the weights; those of half precision are added up in float32.

    **Reference:** Raghavan et al. (2024), Eq. 2, where `H` is the identity.

    **Example:**

        metric = wm.FunctionMetric(operator.call, net, images, wm.distances.kl)
        moved = metric.mv(direction)
    """

    f: Callable[..., Array] = eqx.field(static=True)
    weights: PyTree
    inputs: PyTree[Array]
    distance: OutputDistance
    batch: int = eqx.field(static=True)
    kept: tuple[Any, ...] | None

    def __init__(
        self,
        f: Callable[..., Any],
        weights: PyTree,
        inputs: PyTree,
        distance: OutputDistance | Callable[..., Array] = squared_error,
        *,
        batch: SupportsIndex = 500,
        keep: bool = False,
    ):
        """**Arguments:**

        - `f`: called as `f(weights, x)` for one input; returns an array. For a network, `operator.call`.
        - `weights`: any pytree, such as an Equinox module; what is not a floating-point array is held fixed.
        - `inputs`: a tree of arrays that share their first axis, of length `N`.
        - `distance`: of `wmlib.distances`, or a function of an output and a reference.
        - `batch`: how many inputs are linearised together.
        - `keep`: whether the linearisations are kept from one product to the next.

        **Raises:** `ValueError` for weights without a floating-point array, with one that is not finite or stands at two
        places, or with layers that keep a state (BatchNorm); for no inputs, a batch that is not positive, or an `f` that
        fails on one input; `TypeError` for complex weights, or if `f` does not return one real floating-point array.
        """
        batch = check_count("batch (500 is the default)", batch)
        weights = movable(weights)
        inputs = jax.tree.map(jnp.asarray, inputs)
        if not isinstance(distance, OutputDistance):
            distance = OutputDistance(distance)
        dynamic = jax.tree.leaves(eqx.filter(weights, eqx.is_inexact_array))
        if not all(isinstance(x, Tracer) or bool(jnp.isfinite(x).all()) for x in dynamic):
            raise ValueError("some weights are not finite; look for a diverged network")
        check_inputs("inputs", inputs)
        output_of_one(f, weights, inputs)
        self.f = f
        self.weights = weights
        self.inputs = inputs
        self.distance = distance
        self.batch = batch
        self.kept = tuple(_keep(f, weights, part) for part in batches(inputs, batch)) if keep else None

    def __reduce__(self):
        # Compiled linearisations do not travel to another process; there they are made again.
        rebuild = partial(FunctionMetric, batch=self.batch, keep=self.kept is not None)
        return rebuild, (self.f, self.weights, self.inputs, self.distance)

    @property
    def size(self) -> int:
        """`N`, the number of inputs."""
        return len(jax.tree.leaves(self.inputs)[0])

    def mv(self, vector: PyTree) -> PyTree[Array]:
        """The product `g vector`, in one forward, one tangent and one backward pass over the inputs; without the forward
        pass where it is kept. A vector of another type of real numbers is cast to that of the weights, as the product is.

        **Raises:** `ValueError` for a vector of another structure or other shapes; `TypeError` for one that is not of
        floating-point numbers.
        """
        vector = like(eqx.filter(self.weights, eqx.is_inexact_array), "the vector", vector)
        if self.kept is not None and len(self.kept) == 1:
            return _product_kept(self.distance, self.kept[0], vector, self.size)
        if self.kept is not None:
            products = (_product_kept(self.distance, kept, vector, 1) for kept in self.kept)
        else:
            parts = batches(self.inputs, self.batch)
            products = (_product(self.f, self.distance, self.weights, part, vector) for part in parts)
        total = jax.tree.map(wide, next(products))
        for product in products:
            total = jax.tree.map(lambda x, y: x + wide(y), total, product)
        return jax.tree.map(lambda x, v: (x / self.size).astype(v.dtype), total, vector)

    def linearised(self) -> "FunctionMetric":
        """The metric with its linearisation kept, if that is of one batch: one product has all of it in memory anyway."""
        if self.kept is not None or self.size > self.batch:
            return self
        kept = (_keep(self.f, self.weights, self.inputs),)
        return eqx.tree_at(lambda metric: metric.kept, self, kept, is_leaf=lambda x: x is None)

    def as_matrix(self) -> Float[Array, "n n"]:
        """The dense `n × n` matrix, by `n` products; for small networks only."""
        return lx.materialise(self).as_matrix()

    def transpose(self) -> "FunctionMetric":
        """Itself: a metric is symmetric."""
        return self

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The shapes of a movement of the weights."""
        return eqx.filter_eval_shape(lambda: eqx.filter(self.weights, eqx.is_inexact_array))

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The same as `in_structure`."""
        return self.in_structure()


def refuse_state(weights: PyTree) -> None:
    """Raise `ValueError` if a layer keeps a state, by which the function would move while the weights stand still."""

    def stateful(node):
        layer = isinstance(node, eqx.nn.StatefulLayer) and not isinstance(node, eqx.nn.Sequential)
        return isinstance(node, eqx.nn.StateIndex) or (layer and node.is_stateful())

    for node in jax.tree.leaves(weights, is_leaf=stateful):
        if stateful(node):
            raise ValueError(
                f"{type(node).__name__} keeps a state beside its weights (BatchNorm's running statistics), so that the"
                " function moves without them; use LayerNorm or GroupNorm, or freeze the statistics into the weights"
            )


def refuse_shared(name: str, weights: PyTree) -> None:
    """Raise `ValueError` if one floating-point array stands at two places, for each place would go its own way."""
    seen = set()
    for path, leaf in jax.tree.leaves_with_path(eqx.filter(weights, eqx.is_inexact_array)):
        if isinstance(leaf, Tracer):
            continue
        if id(leaf) in seen:
            raise ValueError(
                f"{name} hold one array twice, the second time at {jax.tree_util.keystr(path)}: the two would be taken for"
                " independent; tie them with eqx.nn.Shared, or give each place an array of its own"
            )
        seen.add(id(leaf))


def movable(weights: PyTree) -> PyTree:
    """Weights whose floating-point arrays are JAX's.

    **Raises:** `ValueError` if there is none, one stands at two places, or a layer keeps a state; `TypeError` for complex
    ones.
    """
    refuse_state(weights)
    refuse_complex("the weights", weights)
    refuse_shared("the weights", weights)
    if not jax.tree.leaves(eqx.filter(weights, eqx.is_inexact_array)):
        raise ValueError("the weights hold no floating-point array, so there is nothing to move")
    return jax.tree.map(lambda x: jnp.asarray(x) if eqx.is_inexact_array(x) else x, weights)


def like(structure: PyTree, name: str, tree: PyTree) -> PyTree[Array]:
    """A movement of the weights in the types of another.

    **Raises:** `ValueError` if they differ in structure or shapes; `TypeError` unless it is of floating-point numbers.
    """
    (ours, one), (theirs, other) = jax.tree.flatten(structure), jax.tree.flatten(tree)
    pairs = zip(ours, theirs, strict=False)
    if one == other and all(isinstance(y, Array) and (x.shape, x.dtype) == (y.shape, y.dtype) for x, y in pairs):
        return tree
    check_structure(name, tree, structure)
    check_floating(name, tree)
    return jax.tree.map(lambda x, y: jnp.asarray(y, x.dtype), structure, tree)


def check_positive(name: str, value: Any, cure: str) -> None:
    """Raise `ValueError` unless a value is a positive and finite number."""
    real = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)
    if not real or not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}; {cure}")


def check_inputs(name: str, inputs: PyTree) -> None:
    """Raise `ValueError` unless all arrays share a first axis that is not empty."""
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(inputs)}
    if len(lengths) != 1 or lengths in ({()}, {(0,)}):
        raise ValueError(f"{name} must be arrays with one first axis of at least one input, got lengths {lengths}")


def output_of_one(f: Callable[..., Any], weights: PyTree, inputs: PyTree) -> Any:
    """The shape and type of `f(weights, x)` for one of the inputs, without computing it.

    **Raises:** `ValueError` if `f` fails on it, from the error that it raised; `TypeError` unless it returns one array of
    real floating-point numbers.
    """
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
    output = on_one_input(partial(eqx.filter_eval_shape, f), weights, one)
    if not (isinstance(output, jax.ShapeDtypeStruct) and jnp.issubdtype(output.dtype, jnp.floating)):
        raise TypeError(
            "f(weights, x) must return one floating-point array, of real numbers, for its derivative is taken; got"
            f" {eqx.tree_pformat(output)}"
        )
    return output


def check_structure(name: str, tree: PyTree, structure: PyTree) -> None:
    """Raise `ValueError` unless a tree has the structure and the shapes of a movement of the weights."""
    shapes = [(jax.tree.structure(t), [jnp.shape(x) for x in jax.tree.leaves(t)]) for t in (structure, tree)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{name} must have the structure and shapes of the floating-point arrays of the weights,"
            f" eqx.filter(weights, eqx.is_inexact_array); got {shapes[1]}"
        )


def batches(tree: PyTree, batch: int) -> Iterator[Any]:
    """The arrays in parts of at most `batch` along their first axis."""
    size = len(jax.tree.leaves(tree)[0])
    if size <= batch:
        yield tree
        return
    tree = gathered(tree)
    for start in range(0, size, batch):
        yield jax.tree.map(itemgetter(slice(start, start + batch)), tree)


def norm(tree: PyTree[Array]) -> Float[Array, ""]:
    """The Euclidean norm of all numbers of a tree."""
    return jnp.sqrt(sum(jnp.vdot(x, x) for x in map(wide, jax.tree.leaves(gathered(tree)))))


def remember(f: Callable[..., Any], weights: PyTree, inputs: PyTree, batch: int, name: str) -> tuple[PyTree, Array]:
    """Inputs as JAX arrays, and the outputs that the weights give them.

    **Raises:** `ValueError`, with the `name` of the inputs, if they are empty or an output is not finite; `TypeError` unless
    it is one floating-point array.
    """
    inputs = jax.tree.map(jnp.asarray, inputs)
    check_inputs(name, inputs)
    output_of_one(f, weights, inputs)
    parts = [_evaluate(f, weights, part) for part in batches(inputs, batch)]
    if not all(bool(jnp.isfinite(y).all()) for y in parts):
        raise ValueError(
            f"f(weights, x) must return finite numbers at the start; it does not on {name}: look for a diverged network, or"
            " for NaN in the inputs"
        )
    return inputs if len(parts) == 1 else gathered(inputs), jnp.concatenate(parts)


@eqx.filter_jit
def _evaluate(f, weights, inputs):
    return jax.vmap(lambda x: f(weights, x))(inputs)


def mean_distance(
    f: Callable[..., Any], distance: OutputDistance, weights: PyTree, inputs: PyTree, outputs: Array, batch: int
) -> float:
    """The mean distance of the outputs of the inputs to those given: the drift of the function."""
    parts = [_far(f, distance, weights, x, y0) for x, y0 in batches((inputs, outputs), batch)]
    return float(sum(map(float, parts)) / len(outputs))


@eqx.filter_jit
def _far(f, distance, weights, inputs, outputs):
    """The sum of the distances on one batch, in float32 at least."""
    return jnp.sum(jax.vmap(lambda x, y0: distance(f(weights, x), y0))(inputs, outputs))


def _outputs(f, weights, inputs):
    """The outputs of all inputs as a function of the movable weights, and those."""
    dynamic, static = eqx.partition(weights, eqx.is_inexact_array)

    def outputs(w):
        whole = eqx.combine(w, static)
        return jax.vmap(lambda x: f(whole, x))(inputs)

    return outputs, dynamic


def _hessians(distance, y, moved):
    """`H_i` times the movement of each output, divided among devices as the outputs are, as their cotangents must be."""
    return divided(jax.vmap(distance.hessian)(y, moved), jax.typeof(y).sharding)


def _push_and_pull(f, distance, weights, inputs):
    outputs, dynamic = _outputs(f, weights, inputs)
    y, push = jax.linearize(outputs, dynamic)

    def product(vector):
        # The barrier keeps XLA from mixing the two passes: it would hold intermediate values of both at once.
        moved, then = jax.lax.optimization_barrier((_hessians(distance, y, push(vector)), push))
        return jax.linear_transpose(then, dynamic)(moved)[0]

    return product


@eqx.filter_jit
def _keep(f, weights, inputs):
    """The outputs of one batch, and their linearisation with what it needs of them, as a pytree."""
    outputs, dynamic = _outputs(f, weights, inputs)
    return jax.linearize(outputs, dynamic)


@eqx.filter_jit
def _product_kept(distance, kept, vector, size):
    """As `_product`, divided by `size`."""
    y, push = kept
    # Divided while it is a few outputs: the weights are another pass over memory.
    return jax.linear_transpose(push, vector)(_hessians(distance, y, push(vector)) / size)[0]


@eqx.filter_jit
def _product(f, distance, weights, inputs, vector):
    """`Σ_i J_iᵀ H_i J_i vector` over one batch."""
    return _push_and_pull(f, distance, weights, inputs)(vector)


def _as_function(metric: FunctionMetric, mv: Callable) -> lx.FunctionLinearOperator:
    return lx.FunctionLinearOperator(mv, metric.in_structure(), lx.positive_semidefinite_tag)


@lx.linearise.register(FunctionMetric)
def _(metric):
    product = _push_and_pull(metric.f, metric.distance, metric.weights, metric.inputs)
    return _as_function(metric, lambda v: jax.tree.map(lambda x: x / metric.size, product(v)))


@lx.materialise.register(FunctionMetric)
def _(metric):
    return lx.materialise(_as_function(metric, metric.mv))


@lx.conj.register(FunctionMetric)
def _(metric):
    return metric


@lx.diagonal.register(FunctionMetric)
def _(metric):
    return jnp.diagonal(metric.as_matrix())


@lx.tridiagonal.register(FunctionMetric)
def _(metric):
    matrix = metric.as_matrix()
    return jnp.diagonal(matrix), jnp.diagonal(matrix, -1), jnp.diagonal(matrix, 1)


for _holds in (lx.is_symmetric, lx.is_positive_semidefinite):
    _holds.register(FunctionMetric)(lambda metric: True)
for _unknown in (
    lx.is_diagonal, lx.is_tridiagonal, lx.has_unit_diagonal, lx.is_lower_triangular, lx.is_upper_triangular,
    lx.is_negative_semidefinite,
):  # fmt: skip
    _unknown.register(FunctionMetric)(lambda metric: False)
