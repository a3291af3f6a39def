"""Weights that are a function of context, in any Equinox module, without building them for each example."""

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import quax
from jax import lax
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from .shapes import AbstractManifold


class BasisPoints(eqx.Module):
    """The `n` basis points of one array of weights: `value` has the shape `(n, *shape)`.

    The wrapper marks which leaves of a network `precondition` treats; its value is an ordinary trainable array.
    """

    value: Float[Array, "n ..."]


def _is_points(node: Any) -> bool:
    return isinstance(node, BasisPoints)


class ManifoldArray(quax.ArrayValue):
    """The array `W(s) = sum_k a_k(s) W_k` of one context, never built where a rule below exists.

    `points` has the shape `(n, *shape)` and `coefficients`, `a(s)`, the shape `(n,)`; the array itself has `shape`.
    Operations that are linear in the weights act on the points first and combine afterwards (Eq. 13); any other
    operation builds `W(s)`.
    """

    points: Array
    coefficients: Array

    def aval(self) -> jax.core.ShapedArray:
        return jax.core.ShapedArray(self.points.shape[1:], self.points.dtype)

    def materialise(self) -> Array:
        return jnp.tensordot(self.coefficients, self.points, 1)


def _combine(outputs: Array, coefficients: Array, axis: int = 0) -> Array:
    return jnp.tensordot(outputs, coefficients.astype(outputs.dtype), ((axis,), (0,)))


def _dot(weight: ManifoldArray, x: Array, weight_first: bool, dimension_numbers, **options) -> Array:
    """`Σ_k a_k (W_k · x)`: combine on whichever side of the product is smaller."""
    (contract_l, contract_r), (batch_l, batch_r) = dimension_numbers
    contract_w, contract_x = (contract_l, contract_r) if weight_first else (contract_r, contract_l)
    batch_w, batch_x = (batch_l, batch_r) if weight_first else (batch_r, batch_l)
    shape = weight.aval().shape
    inputs = np.prod([shape[i] for i in contract_w])
    outputs = np.prod([shape[i] for i in range(len(shape)) if i not in (*contract_w, *batch_w)])
    w = weight.points
    contract_w, batch_w = tuple(i + 1 for i in contract_w), tuple(i + 1 for i in batch_w)
    if inputs < outputs:  # [W_1 … W_n] [a_1 x; …; a_n x]: the points join the contraction
        x = jnp.stack([a * x for a in weight.coefficients.astype(x.dtype)])
        contract_w, contract_x = (0, *contract_w), (0, *(i + 1 for i in contract_x))
        batch_x = tuple(i + 1 for i in batch_x)
    pair = (w, x) if weight_first else (x, w)
    contract = (contract_w, contract_x) if weight_first else (contract_x, contract_w)
    batch = (batch_w, batch_x) if weight_first else (batch_x, batch_w)
    y = lax.dot_general(*pair, dimension_numbers=(contract, batch), **options)
    if inputs < outputs:
        return y
    axis = len(batch_w) if weight_first else x.ndim - len(contract_x)  # where the free axis of the points went
    return _combine(y, weight.coefficients, axis)


@quax.register(lax.dot_general_p)
def _(w: ManifoldArray, x: Array, *, dimension_numbers, out_sharding=None, **options):
    return _dot(w, x, True, dimension_numbers, **options)


@quax.register(lax.dot_general_p)
def _(x: Array, w: ManifoldArray, *, dimension_numbers, out_sharding=None, **options):
    return _dot(w, x, False, dimension_numbers, **options)


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

    filters, channels = (w.aval().shape[axis] for axis in dimension_numbers.rhs_spec[:2])
    if feature_group_count * batch_group_count != 1 or filters < channels:
        # jax batches the kernels along their output channels: one convolution for all points, combined after it.
        return _combine(jax.vmap(convolve, in_axes=(None, 0))(x, w.points), w.coefficients)
    # The points join the input channels, and the convolution itself does the sum: no intermediate but n scaled inputs.
    # Scaled one by one: the gradient of a broadcast product would be a reduction, which takes as long as a convolution.
    scaled = [a * x for a in w.coefficients.astype(x.dtype)]
    return convolve(
        jnp.concatenate(scaled, dimension_numbers.lhs_spec[1]),
        jnp.concatenate(list(w.points), dimension_numbers.rhs_spec[1]),
    )


def _pointwise(primitive):
    """Register an operation on one array that is linear in it and moves its entries: the result stays a manifold."""

    @quax.register(primitive)
    def _(w: ManifoldArray, *rest: ArrayLike, **params):
        return ManifoldArray(jax.vmap(lambda point: primitive.bind(point, *rest, **params))(w.points), w.coefficients)


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
    if not jnp.issubdtype(new_dtype, jnp.inexact):  # rounding to whole numbers is not linear
        return lax.convert_element_type_p.bind(w.materialise(), new_dtype=new_dtype, **params)
    points = lax.convert_element_type_p.bind(w.points, new_dtype=new_dtype, **params)
    return ManifoldArray(points, w.coefficients.astype(new_dtype))


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
        return ManifoldArray(jnp.moveaxis(w.points, 1, 0), jnp.broadcast_to(w.coefficients, (length, len(w.points))))

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


class Modulated(eqx.Module):
    """A network whose weights are a function of context; made by `modulate`."""

    model: PyTree
    manifold: AbstractManifold

    def _with(self, s: ArrayLike, build: Callable[[Array, Array], Any]) -> PyTree:
        coefficients = self.manifold.basis(s)

        def leaf(node):
            return build(node.value, coefficients.astype(node.value.dtype)) if _is_points(node) else node

        return jax.tree.map(leaf, self.model, is_leaf=_is_points)

    def __call__(self, *inputs_and_context: Any, **options: Any) -> Any:
        """`net(x, s)`: the output for one example in one context, without building `M(s)` (Eq. 13).

        **Arguments:** the arguments of the model and then the context `s`; keywords go to the model. `jax.vmap(net)`
        takes a batch of examples with a context each.

        **Raises:** `ValueError` for a context of a wrong shape or (where its value is known) outside its domain.
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
            return _built(quax.quaxify(_call)(self._with(s, ManifoldArray), *inputs, **options))
        except NotImplementedError:  # what quax cannot look into (a `jax.custom_vjp`) is given plain weights
            return self.at(s)(*inputs, **options)

    def at(self, s: ArrayLike) -> PyTree:
        """The plain Equinox module with the weights `M(s)`."""
        return self._with(s, lambda points, a: jnp.tensordot(a, points, 1))

    def squared_norm(self, s: ArrayLike) -> Float[Array, ""]:
        """`‖M(s)‖² = a(s)^T ⟨P, P⟩ a(s)` over the modulated weights, without building `M(s)` (Eq. 14).

        Under `jax.vmap` over contexts the `n × n` inner products of the points are computed once.
        """
        a = self.manifold.basis(s)
        flat = [
            p.value.reshape(len(p.value), -1) for p in jax.tree.leaves(self.model, is_leaf=_is_points) if _is_points(p)
        ]
        inner = sum((p @ p.T).astype(a.dtype) for p in flat)
        return a @ inner @ a


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

    **Returns:** a `Modulated` network: `net(x, s)`, `net.at(s)`, `net.squared_norm(s)`, `net.manifold`, `net.model`.

    **Raises:** `TypeError` for a manifold that is none; `ValueError` for a negative spread, for layers that keep
    state (batch normalisation), for a model that is modulated already, and if nothing is left to modulate.

    **Example:**

        net = wm.modulate(eqx.nn.Linear(2, 3, key=key), wm.Ellipse(), key=key)
        y = jax.vmap(net)(x, s)  # x: (batch, 2), s: (batch,)
    """
    if not isinstance(manifold, AbstractManifold):
        raise TypeError(f"the second argument is a manifold such as wm.Ellipse(), got {manifold!r}")
    if isinstance(spread, bool) or not (isinstance(spread, Real) and 0 <= spread < np.inf):
        raise ValueError(f"spread must be a finite number of at least 0, got {spread!r}; 0.5 is the default")
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
    keys = jax.random.split(key, len(leaves))
    points = [BasisPoints(_draw(leaf, manifold, float(spread), k)) for leaf, k in zip(leaves, keys, strict=True)]
    return Modulated(eqx.combine(structure.unflatten(points), model, is_leaf=_is_points), manifold)


def _draw(weight: Array, manifold: AbstractManifold, spread: float, key: PRNGKeyArray) -> Array:
    gram, c, n = manifold._uniform_gram(), manifold._constant(), manifold.size
    centre = jnp.tensordot(jnp.asarray(c, weight.dtype), weight[None], 0).reshape(n, *weight.shape)
    if n == 1 or spread == 0:
        return centre
    values, vectors = np.linalg.eigh(gram)
    whiten = vectors @ np.diag(values**-0.5) @ vectors.T  # E_s|Σ a_k D_k|² = n per weight
    centred = (np.eye(n) - np.outer(c, c @ gram)) @ whiten / np.sqrt(n - 1)  # less its mean over s: n - 1
    noise = jax.random.normal(key, (n, *weight.shape), weight.dtype)
    deviation = jnp.tensordot(jnp.asarray(centred, weight.dtype), noise, 1)
    return centre + spread * weight.std() * deviation
