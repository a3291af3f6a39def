"""Weights that are a function of context, in any Equinox module, without building them for each example."""

import dataclasses
import functools
import importlib
import inspect
import math
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from numbers import Real
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import quax
from jax import lax
from jax.extend.core import jaxpr_as_fun
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from .._counts import check_count
from .._sharding import gathered
from .shapes import AbstractManifold


class BasisPoints(eqx.Module):
    """The `n` basis points of one array of weights: `value` has the shape `(n, *shape)`.

    The wrapper marks which leaves of a network `precondition` treats; its value is an ordinary trainable array.
    """

    value: Float[Array, "n ..."]


def _is_points(node: Any) -> bool:
    return isinstance(node, BasisPoints)


# At fewer positions than this, the weights of an example are read more often than they are used.
_POSITIONS = 4
_MEMORY = 2**22  # bytes


class ManifoldArray(quax.ArrayValue):
    """The array `W(s) = sum_k a_k(s) W_k` of one context, built only where a rule below says so, or where there is none.

    `points` has the shape `(n, *shape)` and `coefficients`, `a(s)`, the shape `(n,)`; the array itself has `shape`.
    Operations that are linear in the weights act on the points first and combine afterwards (Eq. 13); any other
    operation builds `W(s)`. So do products at several positions, within `memory` (see `modulate`).
    """

    points: Array
    coefficients: Array
    memory: int | None = eqx.field(static=True, default=None)

    def aval(self) -> jax.core.ShapedArray:
        whole = jax.typeof(self.points)
        sharding = whole.sharding.update(spec=PartitionSpec(*whole.sharding.spec[1:]))
        return jax.core.ShapedArray(whole.shape[1:], whole.dtype, sharding=sharding)

    def materialise(self) -> Array:
        return _sum(self.coefficients, self.points)


def _promoted(*dtypes: DTypeLike) -> np.dtype:
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def _wide(*dtypes: DTypeLike) -> np.dtype:
    """The type in which to add up: that which holds all of these, and at least float32."""
    return _promoted(jnp.float32, *dtypes)


def _sum(coefficients: Array, points: Array) -> Array:
    """`Σ_k a_k W_k`, in the type of the points."""
    wide = _wide(points.dtype)
    return jnp.tensordot(coefficients.astype(wide), points.astype(wide), 1).astype(points.dtype)


def _combine(outputs: Array, coefficients: Array, axis: int = 0) -> Array:
    wide = _wide(outputs.dtype, coefficients.dtype)
    return jnp.tensordot(outputs.astype(wide), coefficients.astype(wide), ((axis,), (0,))).astype(outputs.dtype)


def _scaled(x: Array, weight: ManifoldArray) -> list[Array]:
    """`a_1 x, …, a_n x`, in the type that their products with the weights have.

    One by one: the gradient of a broadcast product would be a reduction, which takes as long as a convolution.
    """
    dtype = _promoted(x.dtype, weight.points.dtype)
    wide = _wide(dtype)
    return [(a * x.astype(wide)).astype(dtype) for a in weight.coefficients.astype(wide)]


def _cheaper_built(weight: ManifoldArray, positions: int, patches: int | None = None) -> bool:
    """Whether to build `W(s)` for the example and use it, `n|W| + |W|T`, or to combine `n` uses, `n|W|T`.

    `T` is the number of positions at which the example uses the array, and `patches` the entries that a convolution
    lays out beside its kernel.
    """
    n, entries = len(weight.points), weight.aval().size
    if patches is not None and weight.memory is None:
        return False
    size = (entries + (patches or 0)) * weight.points.dtype.itemsize
    fits = size <= (_MEMORY if weight.memory is None else weight.memory)
    return fits and positions >= _POSITIONS and n + positions < n * positions


def _dot(weight: ManifoldArray, x: Array, weight_first: bool, dimension_numbers, out_sharding=None, **options) -> Array:
    """`Σ_k a_k (W_k · x)`: combine on whichever side of the product is smaller."""
    (contract_l, contract_r), (batch_l, batch_r) = dimension_numbers
    contract_w, contract_x = (contract_l, contract_r) if weight_first else (contract_r, contract_l)
    batch_w, batch_x = (batch_l, batch_r) if weight_first else (batch_r, batch_l)
    dtype = options.get("preferred_element_type") or _promoted(weight.points.dtype, x.dtype)
    positions = math.prod(x.shape[i] for i in range(x.ndim) if i not in (*contract_x, *batch_x))
    if not jnp.issubdtype(dtype, jnp.inexact) or _cheaper_built(weight, positions):
        pair = (weight.materialise(), x) if weight_first else (x, weight.materialise())
        return lax.dot_general(*pair, dimension_numbers=dimension_numbers, out_sharding=out_sharding, **options)
    shape = weight.aval().shape
    inputs = np.prod([shape[i] for i in contract_w])
    outputs = np.prod([shape[i] for i in range(len(shape)) if i not in (*contract_w, *batch_w)])
    w = weight.points
    contract_w, batch_w = tuple(i + 1 for i in contract_w), tuple(i + 1 for i in batch_w)
    if inputs < outputs:  # [W_1 … W_n] [a_1 x; …; a_n x]: the points join the contraction
        x = jnp.stack(_scaled(x, weight))
        contract_w, contract_x = (0, *contract_w), (0, *(i + 1 for i in contract_x))
        batch_x = tuple(i + 1 for i in batch_x)
    pair = (w, x) if weight_first else (x, w)
    contract = (contract_w, contract_x) if weight_first else (contract_x, contract_w)
    batch = (batch_w, batch_x) if weight_first else (batch_x, batch_w)
    axis = len(batch_w) if weight_first else x.ndim - len(contract_x)  # where the free axis of the points goes
    if out_sharding is not None and not inputs < outputs:
        spec = (*out_sharding.spec, *[None] * (axis - len(out_sharding.spec)))
        out_sharding = out_sharding.update(spec=PartitionSpec(*spec[:axis], None, *spec[axis:]))
    y = lax.dot_general(*pair, dimension_numbers=(contract, batch), out_sharding=out_sharding, **options)
    if not inputs < outputs:
        y = _combine(y, weight.coefficients, axis)
    return y.astype(dtype)


@quax.register(lax.dot_general_p)
def _(w: ManifoldArray, x: Array, **params):
    return _dot(w, x, True, **params)


@quax.register(lax.dot_general_p)
def _(x: Array, w: ManifoldArray, **params):
    return _dot(w, x, False, **params)


@quax.register(lax.conv_general_dilated_p)
def _(x: Array, w: ManifoldArray, *, dimension_numbers, feature_group_count, batch_group_count, **options):
    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
            **options,
        )

    if x.dtype != w.points.dtype:  # what a convolution makes of this, an error perhaps, is its own business
        return convolve(x, w.materialise())
    kernel = w.aval()
    filters, channels, *window = (kernel.shape[axis] for axis in dimension_numbers.rhs_spec)
    grouped = feature_group_count * batch_group_count != 1
    output = jax.eval_shape(convolve, x, jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=kernel.sharding))
    positions = output.size // filters
    if not grouped and _cheaper_built(w, positions, positions * channels * window[-1]):
        return _convolve_patches(x, w.materialise(), dimension_numbers, output, **options)
    if grouped:
        return _combine(jnp.stack([convolve(x, point) for point in w.points]), w.coefficients)
    if filters < channels:
        # jax batches the kernels along their output channels: one convolution for all points, combined after it.
        return _combine(jax.vmap(convolve, in_axes=(None, 0))(x, w.points), w.coefficients)
    # The points join the input channels, and the convolution itself does the sum: no intermediate but n scaled inputs.
    return convolve(
        jnp.concatenate(_scaled(x, w), dimension_numbers.lhs_spec[1]),
        jnp.concatenate(list(w.points), dimension_numbers.rhs_spec[1]),
    )


def _convolve_patches(
    x, kernel, dimension_numbers, output, *, window_strides, padding, lhs_dilation, rhs_dilation, precision, **options
) -> Array:
    """A convolution as a sum of products, which batches over kernels where a convolution would not.

    The input, shifted along the last axis of the window, is laid out side by side; each place along the other axes is a
    slice of that and one product.
    """
    x, kernel = x.transpose(dimension_numbers.lhs_spec), kernel.transpose(dimension_numbers.rhs_spec)
    space = [output.shape[axis] for axis in dimension_numbers.out_spec[2:]]
    edges = [(low, high, dilation - 1) for (low, high), dilation in zip(padding, lhs_dilation, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *edges])

    def shifted(x, axis, i):
        first, step = i * rhs_dilation[axis], window_strides[axis]
        return lax.slice_in_dim(x, first, first + (space[axis] - 1) * step + 1, step, axis + 2)

    *others, across = kernel.shape[2:]
    x = jnp.concatenate([shifted(x, len(others), i) for i in range(across)], 1)
    kernel = jnp.moveaxis(kernel, -1, 1).reshape(len(kernel), -1, *others)
    total = None
    for place in np.ndindex(*others):
        rows = x
        for axis, i in enumerate(place):
            rows = shifted(rows, axis, i)
        rows = jnp.swapaxes(rows, 0, 1).reshape(kernel.shape[1], -1)
        numbers = (((1,), (0,)), ((), ()))
        y = lax.dot_general(kernel[(..., *place)], rows, numbers, precision, options["preferred_element_type"])
        total = y if total is None else total + y
    y = jnp.swapaxes(total.reshape(len(kernel), len(x), *space), 0, 1)  # pyright: ignore[reportOptionalMemberAccess]
    return y.transpose(np.argsort(dimension_numbers.out_spec))


def _pointwise(primitive):
    """Register an operation on one array that is linear in it and moves its entries: the result stays a manifold."""

    @quax.register(primitive)
    def _(w: ManifoldArray, *rest: ArrayLike, **params):
        def act(array):
            return primitive.bind(array, *rest, **params)

        if not _fills_linearly(params):
            return act(w.materialise())
        return dataclasses.replace(w, points=jax.vmap(act)(w.points))


def _fills_linearly(params: dict[str, Any]) -> bool:
    """A `gather` puts its `fill_value` where an index is outside: only 0 and NaN are their own combinations."""
    value = params.get("fill_value")
    return value is None or value == 0 or bool(np.isnan(value))


for _primitive in (
    lax.broadcast_in_dim_p,
    lax.dynamic_slice_p,
    lax.gather_p,
    lax.neg_p,
    lax.reshape_p,
    lax.slice_p,
    lax.squeeze_p,
    lax.transpose_p,
):
    _pointwise(_primitive)


@quax.register(lax.convert_element_type_p)
def _(w: ManifoldArray, *, new_dtype, **params):
    def convert(array):
        return lax.convert_element_type_p.bind(array, new_dtype=new_dtype, **params)

    # Rounding is linear but for its error: not so to whole numbers, or where points overflow that W(s) lies between.
    new = jnp.finfo(new_dtype) if jnp.issubdtype(new_dtype, jnp.floating) else None
    if new is None or new.bits < 16 or new.maxexp < jnp.finfo(w.dtype).maxexp:
        return convert(w.materialise())
    return dataclasses.replace(w, points=jax.vmap(convert)(w.points))


def _built(tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x: x.materialise() if isinstance(x, ManifoldArray) else x,
        tree,
        is_leaf=lambda x: isinstance(x, ManifoldArray),
    )


def _shape(x: ManifoldArray | ArrayLike) -> jax.core.ShapedArray:
    return x.aval() if isinstance(x, ManifoldArray) else jax.typeof(x)


@quax.register(lax.scan_p)
def _(*arrays: ManifoldArray | ArrayLike, jaxpr, length, reverse, unroll, **params):
    # Which arrays are carried and which are rows: each version of jax says it in parameters of its own, and all say it
    # in shapes. A row has one axis less inside the loop than outside, and so has an output that is not carried on.
    params |= dict(jaxpr=jaxpr, length=length, reverse=reverse, unroll=unroll)
    results = jax.eval_shape(functools.partial(lax.scan_p.bind, **params), *map(_shape, arrays))
    num_rows = sum(_shape(x).ndim > inner.ndim for x, inner in zip(arrays, jaxpr.in_avals, strict=True))
    num_carry = sum(x.ndim == inner.ndim for x, inner in zip(results, jaxpr.out_avals, strict=True))
    num_consts = len(arrays) - num_rows - num_carry
    inputs, carry, rows = arrays[:num_consts], arrays[num_consts:][:num_carry], arrays[num_consts + num_carry :]

    def row_first(w):  # a scan over an array of weights: the same coefficients for every row
        if not isinstance(w, ManifoldArray):
            return w
        coefficients = jnp.broadcast_to(w.coefficients, (length, len(w.points)))
        return dataclasses.replace(w, points=jnp.moveaxis(w.points, 1, 0), coefficients=coefficients)

    def step(carry, row):
        outputs = _built(quax.quaxify(jaxpr_as_fun(jaxpr))(*inputs, *carry, *row))
        return outputs[:num_carry], outputs[num_carry:]

    # A carry that starts as weights (a learned first state) does not stay a combination of points: it is built.
    rows = [row_first(w) for w in rows]
    last, stacked = lax.scan(step, _built(list(carry)), rows, length=length, reverse=reverse, unroll=unroll)
    return [*last, *stacked]


@quax.register(lax.while_p)
def _(*arrays: ManifoldArray | ArrayLike, cond_nconsts, cond_jaxpr, body_nconsts, body_jaxpr):
    of_cond, of_body = arrays[:cond_nconsts], arrays[cond_nconsts:][:body_nconsts]

    def go_on(carry):
        return _built(quax.quaxify(jaxpr_as_fun(cond_jaxpr))(*of_cond, *carry))[0]

    def step(carry):
        return _built(quax.quaxify(jaxpr_as_fun(body_jaxpr))(*of_body, *carry))

    return lax.while_loop(go_on, step, _built(list(arrays[cond_nconsts + body_nconsts :])))


@quax.register(lax.cond_p)
def _(index: ArrayLike, *arrays: ManifoldArray | ArrayLike, branches, **_):
    def branch(jaxpr):
        return lambda arrays: _built(quax.quaxify(jaxpr_as_fun(jaxpr))(*arrays))

    return lax.switch(index, [branch(jaxpr) for jaxpr in branches], arrays)


def _build_first(process: Callable) -> Callable:
    """Build `W(s)` before a function with a derivative of its own (`relu` of a weight, say) is called on it.

    quax hands such a function the parts of an array, and takes the tangents of the parts for the parts of the tangent.
    `W(s)` is a product of its parts, and that has another tangent.
    """

    def built(trace, tracer):
        weights = isinstance(trace.to_value(tracer), ManifoldArray)
        return trace.process_primitive(lax.copy_p, (tracer,), {}) if weights else tracer

    @functools.wraps(process)
    def wrapped(trace, *functions_and_tracers, **options):
        *functions, tracers = functions_and_tracers
        return process(trace, *functions, [built(trace, t) for t in tracers], **options)

    return wrapped


# quax has no public way to say so: its private trace is told. This is what is counted on, each method by its parameters.
_TRACE = {
    "to_value": ("self", "val"),
    "process_primitive": ("self", "primitive", "tracers", "params"),
    "process_custom_jvp_call": ("self", "primitive", "fun", "jvp", "tracers"),
    "process_custom_vjp_call": ("self", "primitive", "fun", "fwd", "bwd", "tracers"),
}


def _tell(module: str = "quax._trace", name: str = "_QuaxTrace") -> bool:
    """Whether quax's trace is the one that is known, and now builds first; otherwise nothing is changed."""
    try:
        trace = getattr(importlib.import_module(module), name)
        # Without a rule of its own for a `jax.custom_vjp`, quax raises NotImplementedError: see `Modulated.__call__`.
        methods = {m: getattr(trace, m) for m in _TRACE if m != "process_custom_vjp_call" or m in vars(trace)}
    except (ImportError, AttributeError):
        return False
    if any(tuple(inspect.signature(f).parameters)[: len(_TRACE[m])] != _TRACE[m] for m, f in methods.items()):
        return False
    for method in ("process_custom_jvp_call", "process_custom_vjp_call"):
        if method in methods:
            setattr(trace, method, _build_first(methods[method]))
    return True


_QUAX_IS_KNOWN = _tell()


@functools.cache
def _stamp(manifold: AbstractManifold) -> float:
    """A number that a file of a network keeps of its manifold, and that no file of another manifold is read into.

    Equinox writes the leaves of a tree, and a manifold has none: files of manifolds of one size look alike. It reads a
    number back by a call of its type, and so this type takes no other number. An array would be in the way of optimisers,
    and an integer in that of `jax.grad`; of 24 bits, it is the same number in float32.
    """
    digest = float(zlib.crc32(repr(manifold).encode()) >> 8)

    def read(cls, value):
        if value != digest:
            raise ValueError(
                f"the file does not hold a network on {manifold}, or one whose stamp an optimiser has moved; modulate the"
                " model with the manifold that the file was written with, and read it into that"
            )
        return float.__new__(cls, digest)

    return type("Stamp", (float,), {"__new__": read, "__reduce__": lambda self: (_stamp, (manifold,))})(digest)


def _points_by_path(tree: PyTree) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_points)
    return [(jax.tree_util.keystr(path), node) for path, node in leaves if _is_points(node)]


class Modulated(eqx.Module):
    """A network whose weights are a function of context; made by `modulate`.

    A file of the network (`equinox.tree_serialise_leaves`) is read into no network on another manifold, by its `stamp`. So
    write the whole network: a file of `model`, or of `equinox.filter(net, equinox.is_array)`, does not say what manifold its
    points are of. Train `equinox.filter(net, equinox.is_inexact_array)`, or an optimiser with weight decay moves the stamp
    of a network that it is given whole. The manifold of a network is not to be exchanged.
    """

    model: PyTree
    manifold: AbstractManifold
    memory: int | None = eqx.field(static=True)
    ranks: tuple[tuple[str, int], ...] = eqx.field(static=True)  # of the points: more axes are those of an ensemble
    stamp: float

    def __init__(self, model: PyTree, manifold: AbstractManifold, memory: int | None = None):
        self.model, self.manifold, self.memory, self.stamp = model, manifold, memory, _stamp(manifold)
        self.ranks = tuple((path, jnp.ndim(node.value)) for path, node in _points_by_path(model))

    def _with(self, s: ArrayLike, build: Callable[[Array, Array], Any]) -> PyTree:
        _check_one(self)
        coefficients = self.manifold.basis(s)

        def leaf(node):
            return build(node.value, coefficients.astype(_wide(node.value.dtype))) if _is_points(node) else node

        return jax.tree.map(leaf, self.model, is_leaf=_is_points)

    def __call__(self, *inputs_and_context: Any, **options: Any) -> Any:
        """`net(x, s)`: the output for one example in one context, without building `M(s)` (Eq. 13).

        **Arguments:** the arguments of the model and then the context `s`; keywords go to the model. `jax.vmap(net)`
        takes a batch of examples with a context each.

        **Raises:** `ValueError` for a context of a wrong shape or (where its value is known) outside its domain, and for
        an ensemble, which `equinox.filter_vmap` calls network by network; `TypeError` for a context of complex numbers.
        """
        *inputs, s = inputs_and_context
        if not _QUAX_IS_KNOWN:
            warnings.warn(
                "this version of quax is not known to wmlib: M(s) is built for every example, which is right and slow;"
                ' until wmlib has followed: pip install "quax<=0.4.6"',
                stacklevel=2,
            )
            return self.at(s)(*inputs, **options)
        try:
            build = functools.partial(ManifoldArray, memory=self.memory)
            return _built(quax.quaxify(_call)(self._with(s, build), *inputs, **options))
        except NotImplementedError:  # what quax cannot look into (a `jax.custom_vjp`) is given plain weights
            return self.at(s)(*inputs, **options)

    def at(self, s: ArrayLike) -> PyTree:
        """The plain Equinox module with the weights `M(s)`."""
        return self._with(s, lambda points, a: _sum(a, points))

    def squared_norm(self, s: ArrayLike) -> Float[Array, ""]:
        """`‖M(s)‖² = a(s)^T ⟨P, P⟩ a(s)` over the modulated weights, without building `M(s)` (Eq. 14).

        Under `jax.vmap` over contexts the `n × n` inner products of the points are computed once.
        """
        _check_one(self)
        a = self.manifold.basis(s)
        points = gathered([node.value for _, node in _points_by_path(self.model)])
        flat = [p.reshape(len(p), -1) for p in points]
        wide = _wide(a.dtype, *(p.dtype for p in flat))
        flat, a = [p.astype(_wide(p.dtype)) for p in flat], a.astype(wide)
        inner = sum((p @ p.T).astype(wide) for p in flat)
        return a @ inner @ a


def _check_one(net: Modulated) -> None:
    """Raise `ValueError` for an ensemble, and for points that were drawn on another manifold."""
    if isinstance(net.stamp, float) and net.stamp != _stamp(net.manifold):
        raise ValueError(
            f"the network was not made on {net.manifold}, its manifold has been exchanged; modulate the model on that one"
        )
    ranks = dict(net.ranks)
    for path, node in _points_by_path(net.model):
        rank = jnp.ndim(node.value)
        if rank != ranks.get(path, rank):
            raise ValueError(
                f"the points{path} have {rank} axes and those of one network {ranks[path]}; call an ensemble network by"
                " network, eqx.filter_vmap(lambda net, x: net(x, s), in_axes=(eqx.if_array(0), None))(nets, x)"
            )


def _is_refused(node: Any) -> bool:
    # A Sequential is looked into: it is stateful only for what it holds.
    stateful = isinstance(node, eqx.nn.StatefulLayer) and not isinstance(node, eqx.nn.Sequential)
    return isinstance(node, (Modulated, BasisPoints, eqx.nn.StateIndex)) or (stateful and node.is_stateful())


def _call(model, *inputs, **options):
    return model(*inputs, **options)


def modulate(
    model: PyTree,
    manifold: AbstractManifold,
    *,
    key: PRNGKeyArray,
    spread: float | int = 0.5,
    where: Callable[[PyTree], Any] | None = None,
    filter_spec: Callable[[Any], bool] | PyTree = eqx.is_inexact_array,
    memory: SupportsIndex | None = None,
) -> Modulated:
    r"""Replace the weights of a model by a manifold of weights, `M(s) = sum_k a_k(s) P_k` (Eq. 12).

    The points are drawn around the model: `P_k = c_k W + spread · σ · D_k`. Here `W` is an array of the model, `σ` the
    standard deviation of its entries, `c` the coefficients of the constant function (`sum_k c_k a_k = 1`), and `D` is
    Gaussian with mean zero and mean square one over the manifold. So the average of `M(s)` over uniform contexts is
    the model itself, and `spread` is the root-mean-square distance from it, in units of `σ`, whatever basis describes
    the manifold. Identical points (`spread=0`) make a manifold of length zero. Constant arrays (zero biases, unit
    gains) start constant.

    **Arguments:**

    - `model`: any Equinox module; its layers are not changed.
    - `manifold`: the shape, with `n` points.
    - `key`: for the random directions of the points.
    - `spread`: see above, at least 0.
    - `where`: selects the part to modulate, as in `equinox.tree_at`; the rest stays plain. Default: all.
    - `filter_spec`: which leaves of that part are weights, as in `equinox.partition`.
    - `memory`: how many bytes an array that is built for one example may take. An array of `|W|` entries that an example
      uses at `T` positions costs `n|W|T` products if their outputs are combined, and `n|W| + |W|T` if `M(s)` is built:
      so it is built for a sequence (at least 4 positions) if it fits, 4 MiB by default. A convolution that is built lays
      out its patches too, which count: it is combined, unless a number given here has room for them. 0 builds nothing.

    **Returns:** a `Modulated` network: `net(x, s)`, `net.at(s)`, `net.squared_norm(s)`, `net.manifold`, `net.model`.

    **Raises:** `TypeError` for a manifold or key that is none, and for complex weights; `ValueError` for a negative
    spread or memory, for weights that are not finite (a mask of −inf) or whose points overflow, for layers that keep state (batch normalisation), for a model that is modulated already, for an
    array that has two places in the model, and if nothing is left to modulate.

    **Example:**

        net = wm.modulate(eqx.nn.Linear(2, 3, key=key), wm.Ellipse(), key=key)
        y = jax.vmap(net)(x, s)  # x: (batch, 2), s: (batch,)
    """
    if not isinstance(manifold, AbstractManifold):
        raise TypeError(f"the second argument is a manifold such as wm.Ellipse(), got {manifold!r}")
    if isinstance(spread, bool) or not (isinstance(spread, Real) and 0 <= spread < np.inf):
        raise ValueError(f"spread must be a finite number of at least 0, got {spread!r}; 0.5 is the default")
    if memory is not None:
        memory = check_count("memory, a number of bytes or None for the default,", memory, 0)
    _check_key(key)
    for node in jax.tree.leaves(model, is_leaf=_is_refused):
        if isinstance(node, (Modulated, BasisPoints)):
            raise ValueError("the model is modulated already; to vary two contexts use one wm.Product of manifolds")
        if _is_refused(node):
            raise ValueError(
                f"{type(node).__name__} keeps state: it changes the network's function without a change of its weights"
                " (running statistics belong to no point of the manifold); use LayerNorm or GroupNorm"
            )

    weights = eqx.filter(eqx.filter(model, filter_spec), eqx.is_inexact_array)
    if where is not None:
        nothing = jax.tree.map(lambda _: False, model)
        try:
            chosen = eqx.tree_at(where, nothing, replace_fn=lambda node: jax.tree.map(lambda _: True, node))
        except TypeError as error:
            raise ValueError("`where` must select a part of the model that holds arrays, such as a layer") from error
        weights = eqx.filter(weights, chosen)
    leaves, structure = jax.tree.flatten(weights)
    if not leaves:
        raise ValueError(
            "nothing is left to modulate: the part that `where` and `filter_spec` select holds no floating-point"
            " array; select a layer with weights"
        )
    if any(jnp.iscomplexobj(leaf) for leaf in leaves):
        raise TypeError(
            "complex weights cannot be modulated; hold the real and the imaginary part in an array each, or leave them"
            " plain by `where` or `filter_spec`"
        )
    places = Counter(id(leaf) for leaf in jax.tree.leaves(model) if eqx.is_array(leaf))
    if any(places[id(leaf)] > 1 for leaf in leaves):
        raise ValueError(
            "one array has two places in the model, such as a layer that is used twice: each place would get points of"
            " its own. Tie them with equinox.nn.Shared, or give one place a copy (jnp.copy) if they may part"
        )
    _check_finite(
        weights, "are not finite; leave such an array, a mask for instance, plain by `where` or `filter_spec`"
    )
    keys = jax.random.split(key, len(leaves))
    points = [BasisPoints(_draw(leaf, manifold, float(spread), k)) for leaf, k in zip(leaves, keys, strict=True)]
    modulated = structure.unflatten(points)
    _check_finite(modulated, "are too large for points around them; rescale them, give less spread or a wider type")
    return Modulated(eqx.combine(modulated, model, is_leaf=_is_points), manifold, memory)


def _check_finite(weights: PyTree, otherwise: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        if not isinstance(leaf, jax.core.Tracer):
            with jax.ensure_compile_time_eval():
                finite = bool(jnp.isfinite(leaf).all())
            if not finite:
                raise ValueError(f"the weights{jax.tree_util.keystr(path)} {otherwise}")


def _check_key(key: Any) -> None:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = isinstance(key, (jax.Array, np.ndarray)) and key.dtype == jnp.uint32
    if not (typed or raw) or key.ndim != (0 if typed else 1):
        raise TypeError(f"key must be one random key, such as jax.random.key(0), got {key!r}")


def _draw(weight: Array, manifold: AbstractManifold, spread: float, key: PRNGKeyArray) -> Array:
    gram, c, n = manifold._uniform_gram(), manifold._constant(), manifold.size
    dtype, weight = weight.dtype, weight.astype(_wide(weight.dtype))
    centre = jnp.tensordot(jnp.asarray(c, weight.dtype), weight[None], 0).reshape(n, *weight.shape)
    if n == 1 or spread == 0:
        return centre.astype(dtype)
    values, vectors = np.linalg.eigh(gram)
    whiten = vectors @ np.diag(values**-0.5) @ vectors.T  # E_s|Σ a_k D_k|² = n per weight
    centred = (np.eye(n) - np.outer(c, c @ gram)) @ whiten / np.sqrt(n - 1)  # less its mean over s: n - 1
    noise = jax.random.normal(key, (n, *weight.shape), weight.dtype)
    deviation = jnp.tensordot(jnp.asarray(centred, weight.dtype), noise, 1)
    return (centre + spread * weight.std() * deviation).astype(dtype)
