"""Weights that are a function of context: the rule against weights built for each example."""

import dataclasses
import functools
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import ClosedJaxpr, Jaxpr

import wmlib as wm

KEY = jax.random.key(0)
SHAPES = [
    wm.Line(),
    wm.TetheredRod(),
    wm.Ellipse(),
    wm.Fourier(2),
    wm.BSpline(6),
    wm.BSpline(5, periodic=True),
    wm.Sphere(2),
    wm.Simplex(3),
    wm.Simplex(1),
    wm.Product(wm.Ellipse(), wm.Line()),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=repr)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def is_points(node: Any) -> bool:
    return isinstance(node, wm.BasisPoints)


def naive(net: wm.Modulated, s) -> Any:
    """The network at `s`, its weights summed point by point."""
    a = net.manifold.basis(s)

    def build(node):
        return sum(a[k].astype(node.value.dtype) * node.value[k] for k in range(len(a))) if is_points(node) else node

    return jax.tree.map(build, net.model, is_leaf=is_points)


def contexts(shape: wm.AbstractManifold, n: int) -> jax.Array:
    rng = np.random.default_rng(n)
    match shape:
        case wm.Sphere():
            s = rng.normal(size=(n, 3))
            s /= np.linalg.norm(s, axis=1, keepdims=True)
        case wm.Simplex():
            s = rng.dirichlet(np.ones(shape.vertices), n)
        case wm.Product():
            s = np.concatenate([contexts(f, n).reshape(n, -1) for f in shape.factors], axis=1)
        case _:
            s = rng.uniform(size=n)
    return jnp.asarray(s, jnp.result_type(float))


def normal(*shape: int, seed: int = 1, dtype: Any = float) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.result_type(float)).astype(dtype)


def fill(make: Callable[[], Any], dtype: Any = None) -> Any:
    """A model with random numbers for all its weights (biases and gains too), without running its initialisers."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return jnp.asarray(rng.normal(size=leaf.shape) * 0.5, jnp.result_type(float)).astype(dtype or leaf.dtype)

    return jax.tree.map(draw, eqx.filter_eval_shape(make))


def modulate(model: Any, shape: wm.AbstractManifold, **options: Any) -> wm.Modulated:
    """As `wm.modulate`, with points that differ, drawn by numpy (nothing to compile)."""
    rng = np.random.default_rng(1)

    def draw(node, leaf):
        if not is_points(node):
            return leaf
        noise = jnp.asarray(rng.normal(size=node.value.shape), jnp.result_type(float))
        return wm.BasisPoints(noise.astype(node.value.dtype))

    net = eqx.filter_eval_shape(lambda: wm.modulate(model, shape, key=KEY, **options))
    return wm.Modulated(jax.tree.map(draw, net.model, model, is_leaf=is_points), shape)


def assert_close(got, wanted, tolerance: float):
    """Trees of arrays agree to a tolerance relative to the largest entry of each array, or 1."""
    got, wanted = jax.tree.leaves(got), jax.tree.leaves(wanted)
    assert len(got) == len(wanted) > 0
    for x, y in zip(got, wanted, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        x, y = np.asarray(x.astype(jnp.result_type(float))), np.asarray(y.astype(jnp.result_type(float)))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, np.abs(y).max(initial=0)))


def assert_equals_naive(net: wm.Modulated, x: Any, s: jax.Array, tolerance: float = 1e-5, gradients: bool = True):
    """A batch through the rule, and through weights built for each example: outputs and all gradients."""
    floating, rest = eqx.partition(x, eqx.is_inexact_array)
    points, other = eqx.partition(net, eqx.is_inexact_array)

    def outputs(forward, points, floating, s):
        net, x = eqx.combine(points, other), eqx.combine(floating, rest)
        return jax.vmap(lambda x, s: forward(net, *x, s))(x, s)

    def both(points, floating, s):
        results = []
        for forward in (lambda net, *xs: net(*xs), lambda net, *xs: naive(net, xs[-1])(*xs[:-1])):

            def loss(*arguments, forward=forward):
                y = outputs(forward, *arguments)
                return sum(jnp.sum(jnp.sin(leaf.astype(s.dtype))) for leaf in jax.tree.leaves(y)), y

            if gradients:
                results.append(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(points, floating, s))
            else:
                results.append(outputs(forward, points, floating, s))
        return results

    got, wanted = jax.jit(both)(points, floating, s)
    assert_close(got, wanted, tolerance)


class Function(eqx.Module):
    """A function of one array of weights and one input."""

    weight: jax.Array
    function: Callable = eqx.field(static=True)

    def __call__(self, *x):
        return self.function(self.weight, *x)


class Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell | eqx.nn.LSTMCell

    def __call__(self, xs):
        zeros = jnp.zeros(self.cell.hidden_size, xs.dtype)
        start = zeros if isinstance(self.cell, eqx.nn.GRUCell) else (zeros, zeros)
        return jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, xs)[0]


class Dropped(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __call__(self, x, *, key):
        return self.dropout(self.linear(x), key=key)


class Attention(eqx.Module):
    attention: eqx.nn.MultiheadAttention

    def __call__(self, x):
        return self.attention(x, x, x)


class Transformer(eqx.Module):
    embedding: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP

    def __init__(self, *, key):
        keys = jax.random.split(key, 3)
        self.embedding = eqx.nn.Embedding(11, 8, key=keys[0])
        self.norm = eqx.nn.LayerNorm(8)
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[1])
        self.mlp = eqx.nn.MLP(8, 5, 12, 1, key=keys[2])

    def __call__(self, tokens):
        h = jax.vmap(self.embedding)(tokens)
        h = h + self.attention(h, h, h)
        return jax.vmap(self.mlp)(jax.vmap(self.norm)(h))


@dataclasses.dataclass
class Case:
    make: Callable[[], Any]
    inputs: tuple


def conv(n: int, c_in: int, c_out: int, kernel, **options) -> Callable:
    return lambda: eqx.nn.Conv(n, c_in, c_out, kernel, key=KEY, **options)


def transposed(n: int, c_in: int, c_out: int, kernel, **options) -> Callable:
    return lambda: eqx.nn.ConvTranspose(n, c_in, c_out, kernel, key=KEY, **options)


B = 3
LAYERS = {
    "linear, wide": Case(lambda: eqx.nn.Linear(4, 9, key=KEY), (normal(B, 4),)),
    "linear, narrow": Case(lambda: eqx.nn.Linear(9, 4, key=KEY), (normal(B, 9),)),
    "linear, scalars": Case(lambda: eqx.nn.Linear("scalar", "scalar", key=KEY), (normal(B),)),
    "linear, no bias": Case(lambda: eqx.nn.Linear(5, 5, use_bias=False, key=KEY), (normal(B, 5),)),
    "mlp": Case(lambda: eqx.nn.MLP(4, 3, 8, 2, key=KEY), (normal(B, 4),)),
    "mlp, other activations": Case(
        lambda: eqx.nn.MLP(4, 3, 8, 1, jax.nn.gelu, final_activation=jax.nn.softplus, key=KEY), (normal(B, 4),)
    ),
    "conv1d": Case(conv(1, 3, 5, 3), (normal(B, 3, 10),)),
    "conv1d, stride, dilation": Case(conv(1, 5, 2, 3, stride=2, dilation=2), (normal(B, 5, 12),)),
    "conv1d, one-sided padding": Case(conv(1, 3, 5, 4, padding=((3, 0),)), (normal(B, 3, 10),)),
    "conv2d, more filters": Case(conv(2, 3, 6, 3, padding=1), (normal(B, 3, 6, 5),)),
    "conv2d, fewer filters": Case(conv(2, 6, 3, 3, padding="SAME"), (normal(B, 6, 6, 5),)),
    "conv2d, uneven": Case(conv(2, 2, 3, (2, 3), stride=(1, 2), dilation=(2, 1)), (normal(B, 2, 6, 7),)),
    "conv2d, groups": Case(conv(2, 4, 6, 3, groups=2, use_bias=False), (normal(B, 4, 6, 5),)),
    "conv2d, depthwise": Case(conv(2, 3, 3, 3, groups=3, stride=2), (normal(B, 3, 6, 5),)),
    "conv2d, pointwise": Case(conv(2, 3, 4, 1), (normal(B, 3, 4, 4),)),
    "conv2d, large kernel": Case(conv(2, 2, 3, 7, padding=3), (normal(B, 2, 8, 8),)),
    "conv2d, reflect": Case(conv(2, 2, 3, 3, padding=1, padding_mode="REFLECT"), (normal(B, 2, 5, 5),)),
    "conv2d, replicate": Case(conv(2, 2, 3, 3, padding=1, padding_mode="REPLICATE"), (normal(B, 2, 5, 5),)),
    "conv2d, circular": Case(conv(2, 2, 3, 3, padding=1, padding_mode="CIRCULAR"), (normal(B, 2, 5, 5),)),
    "conv3d": Case(conv(3, 2, 3, 2, stride=(1, 2, 1)), (normal(B, 2, 4, 5, 4),)),
    "transposed conv1d": Case(transposed(1, 3, 2, 3, stride=2, output_padding=1), (normal(B, 3, 5),)),
    "transposed conv2d": Case(transposed(2, 2, 4, 3, stride=2, padding=1, dilation=2), (normal(B, 2, 4, 5),)),
    "transposed conv2d, groups": Case(transposed(2, 4, 2, 3, groups=2, padding="SAME"), (normal(B, 4, 4, 5),)),
    "embedding": Case(lambda: eqx.nn.Embedding(7, 4, key=KEY), (jnp.array([2, 0, 6]),)),
    "layer norm": Case(lambda: eqx.nn.LayerNorm((3, 4)), (normal(B, 3, 4),)),
    "rms norm": Case(lambda: eqx.nn.RMSNorm(5), (normal(B, 5),)),
    "group norm": Case(lambda: eqx.nn.GroupNorm(2, 4), (normal(B, 4, 3, 3),)),
    "weight norm": Case(lambda: eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=KEY)), (normal(B, 4),)),
    "prelu": Case(lambda: eqx.nn.PReLU(0.3), (normal(B, 4),)),
    "attention": Case(
        lambda: eqx.nn.MultiheadAttention(
            2, 6, 5, 4, output_size=3, use_query_bias=True, use_output_bias=True, key=KEY
        ),
        (normal(B, 2, 6), normal(B, 3, 5), normal(B, 3, 4)),
    ),
    "gru under scan": Case(lambda: Recurrent(eqx.nn.GRUCell(3, 4, key=KEY)), (normal(B, 5, 3),)),
    "lstm under scan": Case(lambda: Recurrent(eqx.nn.LSTMCell(3, 4, key=KEY)), (normal(B, 5, 3),)),
    "sequential": Case(
        lambda: eqx.nn.Sequential(
            [
                eqx.nn.Linear(4, 6, key=KEY),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.LayerNorm(6),
                eqx.nn.Linear(6, 2, key=KEY),
            ]
        ),
        (normal(B, 4),),
    ),
    "transformer": Case(lambda: Transformer(key=KEY), (jnp.array([[1, 4, 2], [0, 3, 3], [10, 9, 1]]),)),
}


GRADIENTS_TOO = (
    "linear, wide",
    "linear, narrow",
    "conv2d, more filters",
    "conv2d, fewer filters",
    "conv2d, groups",
    "transposed conv2d",
    "embedding",
    "attention",
    "gru under scan",
    "sequential",
)


# Settings of layers that are tried in others too.
VARIANTS = (
    "linear, narrow",
    "linear, no bias",
    "mlp, other activations",
    "conv1d, one-sided padding",
    "conv2d, fewer filters",
    "conv2d, uneven",
    "conv2d, pointwise",
    "conv2d, large kernel",
    "conv2d, replicate",
    "conv2d, circular",
    "transposed conv1d",
    "lstm under scan",
)


def _layers(names):
    return [pytest.param(name, marks=[pytest.mark.thorough] * (name in VARIANTS)) for name in names]


class TestSameAsWeightsBuiltForEachExample:
    @pytest.mark.parametrize("layer", _layers(layer for layer in LAYERS if layer not in GRADIENTS_TOO))
    def test_in_outputs_through(self, layer):
        net = modulate(fill(LAYERS[layer].make), wm.Ellipse())
        assert_equals_naive(net, LAYERS[layer].inputs, contexts(net.manifold, B), gradients=False)

    @pytest.mark.parametrize("layer", _layers(GRADIENTS_TOO))
    def test_in_outputs_and_gradients_through(self, layer):
        net = modulate(fill(LAYERS[layer].make), wm.Ellipse())
        assert_equals_naive(net, LAYERS[layer].inputs, contexts(net.manifold, B))

    @every_shape
    def test_on(self, shape):
        net = modulate(fill(lambda: eqx.nn.Linear(4, 2, key=KEY)), shape)
        assert_equals_naive(net, (normal(B, 4),), contexts(shape, B), gradients=shape in (wm.Sphere(2), wm.BSpline(6)))

    @pytest.mark.parametrize("layer", ["conv2d, more filters", "conv2d, fewer filters", "transformer"])
    def test_to_the_last_digits_in_float64_through(self, layer, float64):
        inputs = tuple(x.astype("float64") if eqx.is_inexact_array(x) else x for x in LAYERS[layer].inputs)
        net = modulate(fill(LAYERS[layer].make, "float64"), wm.Line())
        assert_equals_naive(net, inputs, contexts(net.manifold, B), tolerance=1e-12, gradients=False)

    @pytest.mark.parametrize(
        ("layer", "dtype"),
        [
            ("linear, wide", "bfloat16"),
            ("linear, narrow", "float16"),
            ("conv2d, more filters", "bfloat16"),
            ("conv2d, fewer filters", "bfloat16"),
            ("embedding", "bfloat16"),
            ("layer norm", "bfloat16"),
        ],
    )
    def test_in_half_precision_through(self, layer, dtype):
        inputs = tuple(x.astype(dtype) if eqx.is_inexact_array(x) else x for x in LAYERS[layer].inputs)
        net = modulate(fill(LAYERS[layer].make, dtype), wm.Line())
        tolerance = 20 * float(jnp.finfo(dtype).eps)
        assert_equals_naive(net, inputs, contexts(net.manifold, B), tolerance, gradients=False)

    def test_under_dropout_with_the_same_key(self):
        net = modulate(fill(lambda: Dropped(eqx.nn.Linear(4, 40, key=KEY), eqx.nn.Dropout(0.5))), wm.Ellipse())
        x, s, keys = normal(B, 4), contexts(net.manifold, B), jax.random.split(KEY, B)
        got = jax.jit(jax.vmap(lambda x, s, key: net(x, s, key=key)))(x, s, keys)
        wanted = jax.jit(jax.vmap(lambda x, s, key: net.at(s)(x, key=key)))(x, s, keys)
        assert (got == 0).any(axis=1).all()
        assert_close(got, wanted, 1e-5)

    @settings(max_examples=5, deadline=None)
    @given(
        st.integers(1, 6),
        st.integers(1, 6),
        st.integers(1, 3),
        st.integers(1, 2),
        st.integers(1, 2),
        st.integers(0, 2),
        st.sampled_from(SHAPES),
    )
    def test_for_any_sizes_of_a_convolution(self, c_in, c_out, kernel, stride, dilation, padding, shape):
        net = modulate(fill(lambda: eqx.nn.Conv1d(c_in, c_out, kernel, stride, padding, dilation, key=KEY)), shape)
        assert_equals_naive(net, (normal(B, c_in, 7),), contexts(shape, B), gradients=False)

    @settings(max_examples=5, deadline=None)
    @given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.data())
    def test_for_any_contraction(self, sizes, data):
        letters = "abcd"[: len(sizes)]
        of_weight, of_x = (data.draw(st.permutations(letters)) for _ in range(2))
        of_weight = of_weight[: data.draw(st.integers(1, len(sizes)))]
        of_x = of_x[: data.draw(st.integers(1, len(sizes)))]
        kept = [i for i in dict.fromkeys([*of_weight, *of_x]) if data.draw(st.booleans())]
        equation = f"{''.join(of_weight)},{''.join(of_x)}->{''.join(kept)}"
        size = dict(zip(letters, sizes, strict=True))
        weight, x = normal(*(size[i] for i in of_weight)), normal(B, *(size[i] for i in of_x))

        def function(w, x):
            return jnp.einsum(equation, w, x), jnp.einsum(_swapped(equation), x, w)

        net = modulate(Function(weight, function), wm.Ellipse())
        assert_equals_naive(net, (x,), contexts(net.manifold, B), gradients=False)

    OPERATIONS: ClassVar[dict[str, tuple[Callable, tuple[int, ...]]]] = {
        "rectified": (lambda w, x: jax.nn.relu(w) @ x, (3, 4)),
        "made positive": (lambda w, x: jax.nn.softplus(w) @ x, (3, 4)),
        "normalised": (lambda w, x: (w / jnp.linalg.norm(w)) @ x, (3, 4)),
        "softmaxed": (lambda w, x: jax.nn.softmax(w, axis=-1) @ x, (3, 4)),
        "masked": (lambda w, x: jnp.where(w > 0, w, 0) @ x, (3, 4)),
        "rounded": (lambda w, x: (10 * w).astype(int).astype(float) @ x, (3, 4)),
        "cast": (lambda w, x: (w.astype("bfloat16") @ x.astype("bfloat16")).astype("float32"), (3, 4)),
        "transposed": (lambda w, x: -w.T @ x[:3], (3, 4)),
        "sliced": (lambda w, x: w[1:, ::2] @ x[:2] + w[1, 2], (3, 4)),
        "indexed by data": (lambda w, x: w[jnp.argmax(x)] @ x, (5, 3, 4)),
        "reversed, padded, joined": (lambda w, x: jnp.concatenate([w[::-1], jnp.pad(w, ((1, 0), (0, 0)))]) @ x, (3, 4)),
        "multiplied with themselves": (lambda w, x: w @ w.T @ x[:3], (3, 4)),
        "convolved with data as kernel": (lambda w, x: jax.lax.conv(w, x[None, None], (1,), "SAME"), (2, 1, 6)),
        "convolved with themselves": (lambda w, x: jax.lax.conv(w, w, (1,), "SAME") * x[0], (2, 2, 3)),
        "scanned over": (lambda w, x: jax.lax.scan(lambda h, w: (jnp.tanh(w @ h), h), x, w), (5, 4, 4)),
        "scanned over, as many as points": (
            lambda w, x: jax.lax.scan(lambda h, w: (jnp.tanh(w @ h), w), x, w),
            (3, 4, 4),
        ),
        "the start of a scan": (
            lambda w, x: jax.lax.scan(lambda h, _: (jnp.tanh(h * x), h), w, None, length=3, reverse=True),
            (4,),
        ),
        "read in a loop": (lambda w, x: jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(w @ h), x), (4, 4)),
        "chosen by a condition": (lambda w, x: jax.lax.cond(x[0] > 0, lambda: w, lambda: jnp.ones_like(w)) @ x, (3, 4)),
        "used in a condition": (lambda w, x: jax.lax.cond(x[0] > 0, lambda: w @ x, lambda: -(w @ x)), (3, 4)),
        "checkpointed": (lambda w, x: jax.checkpoint(lambda w, x: jnp.tanh(w @ x))(w, x), (3, 4)),
        "compiled inside": (lambda w, x: jax.jit(lambda w, x: jax.nn.relu(w) @ jnp.tanh(w.T @ x))(w, x), (4, 4)),
        "mapped over": (lambda w, x: jax.vmap(lambda w: w @ x, in_axes=1)(w), (3, 5, 4)),
        "differentiated inside": (lambda w, x: jax.jacfwd(lambda x: jnp.tanh(w @ x))(x), (3, 4)),
        "returned": (lambda w, x: (w, w.T, x), (3, 4)),
        "never used": (lambda w, x: x, (3, 4)),
        "under a derivative of its own": (lambda w, x: _squared(w @ x) + _squared(w) @ x, (3, 4)),
    }

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_for_weights_that_are(self, operation):
        function, shape = self.OPERATIONS[operation]
        net = modulate(Function(normal(*shape, seed=5), function), wm.Ellipse())
        gradients = operation in (
            "rectified",
            "made positive",
            "rounded",
            "transposed",
            "scanned over, as many as points",
            "the start of a scan",
            "chosen by a condition",
            "compiled inside",
            "returned",
            "never used",
            "under a derivative of its own",
        )
        tolerance = 0.05 if operation == "cast" else 1e-5
        assert_equals_naive(net, (normal(B, 4),), contexts(net.manifold, B), tolerance, gradients)

    def test_in_a_loop_that_starts_at_a_weight(self):
        def function(w, x):
            return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] * x)), (0, w))[1]

        net = modulate(Function(normal(4), function), wm.Ellipse())
        assert_equals_naive(net, (normal(B, 4),), contexts(net.manifold, B), gradients=False)

    def test_in_the_type_that_a_convolution_asks_for(self):
        def function(w, x):
            return jax.lax.conv_general_dilated(x[None], w, (1,), "SAME", preferred_element_type=jnp.float32)

        net = modulate(Function(normal(3, 2, 3, dtype="bfloat16"), function), wm.Ellipse())
        x = normal(B, 2, 7, dtype="bfloat16")
        assert_equals_naive(net, (x,), contexts(net.manifold, B), 0.05, gradients=False)


def _swapped(equation: str) -> str:
    inputs, output = equation.split("->")
    return ",".join(inputs.split(",")[::-1]) + "->" + output


@jax.custom_vjp
def _squared(x):
    return x**2


_squared.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))


def _arrays(jaxpr: Jaxpr) -> Iterator[Any]:
    """The avals of all intermediate arrays, those of inner functions too."""
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars)
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, (Jaxpr, ClosedJaxpr))
        ):
            if isinstance(value, ClosedJaxpr):
                yield from _arrays(value.jaxpr)
            elif isinstance(value, Jaxpr):
                yield from _arrays(value)


def largest(function: Callable, *arguments: Any) -> int:
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return max(int(np.prod(aval.shape)) for aval in _arrays(jaxpr) if hasattr(aval, "shape"))


class TestNeverBuildsTheWeightsOfOneExample:
    N = 40
    CASES: ClassVar[dict[str, tuple[Callable, tuple]]] = {
        "linear, wide": (lambda: eqx.nn.Linear(8, 32, key=KEY), (normal(N, 8),)),
        "linear, narrow": (lambda: eqx.nn.Linear(32, 8, key=KEY), (normal(N, 32),)),
        "conv2d, more filters": (conv(2, 8, 16, 3), (normal(N, 8, 5, 5),)),
        "conv2d, fewer filters": (conv(2, 16, 8, 3), (normal(N, 16, 5, 5),)),
        "conv2d, groups": (conv(2, 8, 16, 5, groups=2), (normal(N, 8, 5, 5),)),
        "transposed conv2d": (transposed(2, 8, 16, 3), (normal(N, 8, 3, 3),)),
        "embedding": (lambda: eqx.nn.Embedding(50, 8, key=KEY), (jnp.arange(N),)),
        "attention": (lambda: Attention(eqx.nn.MultiheadAttention(2, 16, key=KEY)), (normal(N, 2, 16),)),
        "gru under scan": (lambda: Recurrent(eqx.nn.GRUCell(16, 16, key=KEY)), (normal(N, 2, 16),)),
        "scan over layers": (
            lambda: Function(normal(2, 16, 16), lambda w, x: jax.lax.scan(lambda h, w: (w @ h, None), x, w)[0]),
            (normal(N, 16),),
        ),
    }

    @pytest.mark.parametrize("layer", CASES)
    def test_in_outputs_or_gradients_of(self, layer):
        make, inputs = self.CASES[layer]
        net = modulate(fill(make), wm.Ellipse())
        points, rest = eqx.partition(net, eqx.is_inexact_array)
        s = contexts(net.manifold, self.N)
        rows = {"embedding": 50, "scan over layers": 2}.get(layer, 1)
        weight = max(p.value[0].size for p in jax.tree.leaves(net.model, is_leaf=is_points) if is_points(p)) // rows

        def loss(forward, points):
            return jnp.sum(jax.vmap(lambda *xs: forward(eqx.combine(points, rest), *xs))(*inputs, s) ** 2)

        def rule(points):
            return loss(lambda net, *xs: net(*xs), points)

        def built(points):
            return loss(lambda net, *xs: net.at(xs[-1])(*xs[:-1]), points)

        limit = self.N * weight * rows
        assert largest(built, points) >= limit
        # An embedding's output is one row for each example; only the table must not be built.
        limit = limit / 10 if layer == "embedding" else self.N * weight
        assert largest(jax.value_and_grad(rule), points) < limit

    @pytest.mark.parametrize("layer", ["linear, wide", "conv2d, more filters"])
    def test_and_sums_nothing_over_the_points_on_the_way_back(self, layer):
        # The gradient of a broadcast product is a reduction, which took as long as a convolution.
        make, (x,) = self.CASES[layer]
        net = modulate(fill(make), wm.Ellipse())
        s = contexts(net.manifold, self.N)

        def forward(x):
            return jax.vmap(net)(x, s)

        cotangent = jnp.ones_like(forward(x))
        program = jax.make_jaxpr(lambda x: jax.vjp(forward, x)[1](cotangent))(x)
        sums = [e for e in program.jaxpr.eqns if e.primitive.name == "reduce_sum"]
        assert all(e.invars[0].aval.size == e.outvars[0].aval.size for e in sums)  # axes of size one may go

    def test_in_the_norm_of_many_contexts(self):
        net = modulate(fill(lambda: eqx.nn.Linear(30, 30, key=KEY)), wm.Ellipse())
        s = contexts(net.manifold, self.N)
        assert largest(lambda s: jax.vmap(net.squared_norm)(s), s) <= max(3 * 30 * 30, self.N * 9)


DRAWN = [wm.Line(), wm.Ellipse(), wm.BSpline(6), wm.Sphere(2), wm.Simplex(3), wm.Product(wm.Ellipse(), wm.Line())]


@functools.cache
def drawn(shape: wm.AbstractManifold, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An array of weights, its points, and the coefficients of the constant function, `sum_k c_k a_k(s) = 1`."""
    linear = fill(lambda: eqx.nn.Linear(100, 200, key=KEY))
    points = jax.jit(lambda key: wm.modulate(linear, shape, key=key, spread=spread).model.weight.value)(KEY)
    a = np.asarray(jax.jit(jax.vmap(shape.basis))(contexts(shape, 500)))
    constant = np.linalg.lstsq(a, np.ones(len(a)), rcond=None)[0]
    return np.asarray(linear.weight), np.asarray(points), constant


class TestPoints:
    @pytest.mark.parametrize("shape", DRAWN, ids=repr)
    def test_average_to_the_model_over_uniform_contexts(self, shape):
        weight, points, constant = drawn(shape)
        mean = np.tensordot(np.asarray(shape.gram()) @ constant, points, 1)  # E[a] = E[a (a · c)] = G c
        np.testing.assert_allclose(mean, weight, atol=1e-5)

    @pytest.mark.parametrize(("shape", "spread"), [*((s, 0.5) for s in DRAWN), (wm.Line(), 3)])
    def test_lie_at_the_root_mean_square_distance_of_the_spread(self, shape, spread):
        # E_s|M(s) - W|^2 by the metric: the deviations of the points are the points of the deviation.
        weight, points, constant = drawn(shape, spread)
        deviation = (points - np.multiply.outer(constant, weight)).reshape(shape.size, -1)
        distance = np.sqrt(np.trace(np.asarray(shape.gram()) @ deviation @ deviation.T) / weight.size)
        expected = spread * weight.std() if shape.size > 1 else 0
        assert distance == pytest.approx(expected, rel=0.03, abs=1e-4)  # from 20,000 draws

    def test_lie_at_that_distance_for_contexts_that_were_drawn(self):
        shape = wm.BSpline(6)
        weight, points, _ = drawn(shape)
        a = np.asarray(jax.jit(jax.vmap(shape.basis))(contexts(shape, 500)))
        distance = np.sqrt(np.mean((np.tensordot(a, points, 1) - weight) ** 2))
        assert distance == pytest.approx(0.5 * weight.std(), rel=0.1)

    @every_shape
    def test_of_no_spread_make_one_function_whatever_the_context(self, shape):
        model = fill(lambda: eqx.nn.Linear(4, 3, key=KEY))
        make = functools.partial(wm.modulate, model, shape, key=KEY, spread=0)
        y = jax.jit(lambda x, s: jax.vmap(make(), in_axes=(None, 0))(x, s))(normal(4), contexts(shape, 9))
        np.testing.assert_allclose(y, np.tile(model(normal(4)), (9, 1)), atol=1e-5)

    def test_of_a_constant_array_start_constant(self):
        net = wm.modulate(eqx.nn.LayerNorm(5), wm.Fourier(2), key=KEY)
        np.testing.assert_array_equal(net.at(0.3).weight, np.ones(5))
        np.testing.assert_array_equal(net.at(0.3).bias, np.zeros(5))

    def test_follow_the_key(self):
        model = fill(lambda: eqx.nn.Linear(3, 3, key=KEY))
        draw = jax.jit(lambda key: wm.modulate(model, wm.Line(), key=key).model.weight.value)
        first, other = draw(KEY), draw(jax.random.key(1))
        np.testing.assert_array_equal(first, draw(KEY))
        assert (first != other).all()
        assert not np.allclose(first[0], first[1])

    def test_are_the_only_trainable_leaves_and_an_optimiser_moves_them(self, standard_promotion):
        net = modulate(fill(lambda: eqx.nn.MLP(3, 2, 4, 1, jnp.tanh, key=KEY)), wm.Ellipse())
        params, static = eqx.partition(net, eqx.is_inexact_array)
        assert [p.shape for p in jax.tree.leaves(params)] == [(3, 4, 3), (3, 4), (3, 2, 4), (3, 2)]
        assert all(is_points(p) for p in jax.tree.leaves(params, is_leaf=is_points))
        optimiser = optax.adam(1e-2)

        @jax.jit
        def step(params, state):
            def loss(params):
                net = eqx.combine(params, static)
                return jnp.sum(jax.vmap(net)(normal(5, 3), contexts(net.manifold, 5)) ** 2)

            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimiser.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        state, losses = optimiser.init(params), []
        for _ in range(20):
            moved, state, value = step(params if not losses else moved, state)
            losses.append(float(value))
        assert losses[-1] < 0.8 * losses[0]
        for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True):
            assert (before != after).all()

    def test_survive_being_written_and_read(self, tmp_path):
        net = modulate(fill(lambda: eqx.nn.MLP(3, 2, 4, 1, key=KEY)), wm.Ellipse())
        other = wm.modulate(fill(lambda: eqx.nn.MLP(3, 2, 4, 1, key=KEY)), wm.Ellipse(), key=KEY, spread=0)
        eqx.tree_serialise_leaves(tmp_path / "net.eqx", net)
        read = eqx.tree_deserialise_leaves(tmp_path / "net.eqx", other)
        assert eqx.tree_equal(read, net)
        assert not eqx.tree_equal(other, net)

    def test_can_be_drawn_inside_jit_for_many_keys_at_once(self):
        model = fill(lambda: eqx.nn.Linear(3, 2, key=KEY))
        x, keys = normal(3), jax.random.split(KEY, 4)

        def outputs(key):
            return wm.modulate(model, wm.Ellipse(), key=key)(x, 0.3)

        together, one = jax.jit(lambda keys: (jax.vmap(outputs)(keys), outputs(keys[2])))(keys)
        assert together.shape == (4, 2)
        assert_close(together[2], one, 1e-5)


class TestNet:
    @pytest.fixture
    def net(self):
        return modulate(fill(lambda: eqx.nn.MLP(4, 3, 8, 1, key=KEY)), wm.Ellipse())

    def test_knows_its_manifold_and_its_model(self, net):
        assert net.manifold == wm.Ellipse()
        assert isinstance(net.model, eqx.nn.MLP)

    def test_at_a_context_is_the_plain_module_with_those_weights(self, net):
        at = net.at(0.3)
        assert type(at) is eqx.nn.MLP
        assert jax.tree.structure(at) == jax.tree.structure(eqx.nn.MLP(4, 3, 8, 1, key=KEY))
        assert_close(eqx.filter(at, eqx.is_array), eqx.filter(naive(net, 0.3), eqx.is_array), 1e-6)

    def test_agrees_with_itself_under_every_transformation(self, net):
        x, s = normal(5, 4), contexts(net.manifold, 5)
        batched = jax.jit(jax.vmap(net))(x, s)
        assert_close(batched[1], net(x[1], s[1]), 1e-5)
        assert_close(eqx.filter_jit(lambda x, s: eqx.filter_vmap(net)(x, s))(x, s), batched, 1e-5)
        assert_close(jax.lax.scan(lambda c, xs: (c, net(*xs)), None, (x, s))[1], batched, 1e-5)
        assert_close(jax.jit(jax.vmap(net, in_axes=(None, 0)))(x[0], s)[0], batched[0], 1e-5)
        assert_close(jax.jit(jax.vmap(jax.checkpoint(lambda x, s: net(x, s))))(x, s), batched, 1e-5)
        assert eqx.filter_eval_shape(net, x[0], s[0]).shape == (3,)

    def test_has_forward_derivatives_and_hessians(self, net):
        def of_context(forward):
            return lambda s: jnp.sum(forward(s) ** 2)

        rule, built = of_context(lambda s: net(normal(4), s)), of_context(lambda s: naive(net, s)(normal(4)))
        for derivative in (jax.jacfwd, jax.hessian):
            got, wanted = jax.jit(lambda s, d=derivative: (d(rule)(s), d(built)(s)))(0.3)
            np.testing.assert_allclose(got, wanted, rtol=1e-3)

    def test_compiles_once_for_new_weights_and_contexts(self, net):
        traces = []

        @eqx.filter_jit
        def forward(net, x, s):
            traces.append(s)
            return net(x, s)

        doubled = jax.tree.map(lambda x: 2 * x if eqx.is_inexact_array(x) else x, net)
        for one in (net, doubled):
            for s in (0.1, 0.7):
                forward(one, normal(4), jnp.asarray(s))
        assert len(traces) == 1

    def test_passes_several_inputs_and_keywords_and_any_output(self):
        class Model(eqx.Module):
            linear: eqx.nn.Linear

            def __call__(self, x, y, *, sign=1.0):
                return {"sum": self.linear(x + y) * sign, "inputs": (x, y), "name": "model"}

        net = modulate(fill(lambda: Model(eqx.nn.Linear(3, 2, key=KEY))), wm.Line())
        x, y = normal(3), normal(3, seed=2)
        got, wanted = net(x, y, 0.2, sign=-1.0), net.at(0.2)(x, y, sign=-1.0)
        assert_close(got["sum"], wanted["sum"], 1e-5)
        assert (got["name"], jax.tree.structure(got)) == ("model", jax.tree.structure(wanted))

    @pytest.mark.parametrize(
        "shape", [wm.Line(), wm.BSpline(6), wm.Sphere(2), wm.Product(wm.Ellipse(), wm.Line())], ids=repr
    )
    def test_squared_norm_is_that_of_the_weights_at_a_context(self, shape):
        net = modulate(fill(lambda: eqx.nn.MLP(4, 3, 8, 1, key=KEY)), shape)

        def by_hand(s):
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(eqx.filter(naive(net, s), eqx.is_inexact_array)))

        s = contexts(shape, 4)
        got, wanted = jax.jit(lambda s: (jax.vmap(net.squared_norm)(s), jax.vmap(by_hand)(s)))(s)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)

    def test_squared_norm_has_the_gradient_of_weight_decay(self, net):
        params, static = eqx.partition(net, eqx.is_inexact_array)

        def by_hand(params):
            weights = eqx.filter(naive(eqx.combine(params, static), 0.3), eqx.is_inexact_array)
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(weights))

        def by_rule(params):
            return eqx.combine(params, static).squared_norm(0.3)

        got, wanted = jax.jit(lambda params: (jax.grad(by_rule)(params), jax.grad(by_hand)(params)))(params)
        assert_close(got, wanted, 1e-5)

    @pytest.mark.parametrize(
        ("s", "message"),
        [
            (jnp.zeros(2), r"a context of Ellipse\(\) has the shape \(\), got \(2,\); use jax.vmap for a batch"),
            (jnp.nan, r"a finite number \(the period is 1\), got nan"),
        ],
    )
    def test_refuses_a_context_that_is_none(self, net, s, message):
        for method in (lambda s: net(normal(4), s), net.at, net.squared_norm):
            with pytest.raises(ValueError, match=message):
                method(s)

    def test_refuses_a_batch_without_vmap_also_under_jit(self, net):
        with pytest.raises(ValueError, match=r"got \(5,\); use jax.vmap"):
            eqx.filter_jit(net)(normal(5, 4), contexts(net.manifold, 5))

    def test_passes_on_the_errors_of_its_model(self):
        def function(w, x):
            raise NotImplementedError("not written yet")

        with pytest.raises(NotImplementedError, match="not written yet"):
            wm.modulate(Function(normal(2), function), wm.Line(), key=KEY)(normal(2), 0.5)


class TestFrozenPart:
    MODEL = fill(lambda: eqx.nn.MLP(3, 2, 4, 2, key=KEY))

    def spec(self, where: Callable) -> Any:
        nothing = jax.tree.map(lambda _: False, self.MODEL)
        return eqx.tree_at(where, nothing, replace_fn=lambda node: jax.tree.map(lambda _: True, node))

    @pytest.mark.parametrize("by", ["where", "a tree of booleans", "a prefix of booleans", "both"])
    def test_stays_plain_and_bitwise_the_same(self, by):
        def first(model):
            return model.layers[0]

        options = {
            "where": {"where": first},
            "a tree of booleans": {"filter_spec": self.spec(first)},
            "a prefix of booleans": {"filter_spec": eqx.tree_at(first, self.spec(lambda m: m.layers[1]), True)},
            "both": {"where": lambda m: (m.layers[0], m.layers[2]), "filter_spec": self.spec(first)},
        }[by]
        net = wm.modulate(self.MODEL, wm.Line(), key=KEY, **options)
        assert is_points(net.model.layers[0].weight)
        assert is_points(net.model.layers[0].bias)
        last = net.model.layers[2]
        assert last.weight is self.MODEL.layers[2].weight
        assert last.bias is self.MODEL.layers[2].bias
        assert is_points(net.model.layers[1].weight) == (by == "a prefix of booleans")
        at = net.at(0.7)
        np.testing.assert_array_equal(at.layers[2].weight, self.MODEL.layers[2].weight)
        assert (at.layers[0].weight != self.MODEL.layers[0].weight).any()
        if by == "where":
            assert_equals_naive(net, (normal(B, 3),), contexts(net.manifold, B))

    def test_may_be_all_but_one_array(self):
        net = wm.modulate(self.MODEL, wm.Line(), key=KEY, where=lambda m: m.layers[1].bias)
        assert [
            is_points(x) for x in jax.tree.leaves(net.model, is_leaf=is_points) if eqx.is_array(x) or is_points(x)
        ] == [
            False,
            False,
            False,
            True,
            False,
            False,
        ]
        np.testing.assert_allclose(net.squared_norm(0.2), jnp.sum(net.at(0.2).layers[1].bias ** 2), rtol=1e-5)

    def test_may_be_chosen_by_a_function_of_the_leaf(self):
        net = wm.modulate(self.MODEL, wm.Line(), key=KEY, filter_spec=lambda x: eqx.is_array(x) and x.ndim == 2)
        assert all(is_points(layer.weight) and not is_points(layer.bias) for layer in net.model.layers)

    def test_includes_whole_numbers_and_settings(self):
        class Model(eqx.Module):
            weight: jax.Array
            counts: jax.Array
            rate: float

            def __call__(self, x):
                return self.weight @ x * self.counts[0] * self.rate

        net = wm.modulate(Model(normal(2, 3), jnp.array([3, 1]), 0.5), wm.Line(), key=KEY, filter_spec=lambda _: True)
        assert is_points(net.model.weight)
        assert net.model.counts.dtype == "int32"
        assert net.model.rate == 0.5

    def test_keeps_the_points_of_the_rest(self):
        everything = wm.modulate(eqx.nn.Linear(3, 2, key=KEY), wm.Line(), key=KEY)
        same = wm.modulate(eqx.nn.Linear(3, 2, key=KEY), wm.Line(), key=KEY, where=lambda m: m, filter_spec=True)
        assert eqx.tree_equal(everything, same)


class Hidden(eqx.Module):
    inner: Any


class TestRefused:
    @pytest.mark.parametrize("wrap", [lambda x: x, Hidden, lambda x: eqx.nn.Sequential([Hidden(x), eqx.nn.Identity()])])
    def test_layers_with_a_state_with_the_reason(self, wrap):
        for layer in (
            eqx.nn.BatchNorm(3, axis_name="batch", mode="ema"),
            eqx.nn.SpectralNorm(eqx.nn.Linear(2, 2, key=KEY), "weight", key=KEY),
        ):
            message = (
                rf"{type(layer).__name__} keeps state: .* without a change of its weights .*use LayerNorm or GroupNorm"
            )
            with pytest.raises(ValueError, match=message):
                wm.modulate(wrap(layer), wm.Line(), key=KEY)

    def test_a_state_of_ones_own(self):
        with pytest.raises(ValueError, match=r"keeps state"):
            wm.modulate(Hidden((eqx.nn.StateIndex(jnp.zeros(2)), normal(2))), wm.Line(), key=KEY)

    @pytest.mark.parametrize("wrap", [lambda x: x, Hidden, lambda x: eqx.nn.Sequential([x])])
    def test_a_model_that_is_modulated_already(self, wrap):
        net = wm.modulate(eqx.nn.Linear(2, 2, key=KEY), wm.Line(), key=KEY)
        for model in (net, net.model):
            with pytest.raises(ValueError, match=r"modulated already; to vary two contexts use one wm.Product"):
                wm.modulate(wrap(model), wm.Ellipse(), key=KEY)

    @pytest.mark.parametrize("spread", [-0.1, -1, float("nan"), float("inf"), True])
    def test_a_spread_that_is_no_distance(self, spread):
        with pytest.raises(ValueError, match=rf"finite number of at least 0, got {spread!r}; 0.5 is the default"):
            wm.modulate(eqx.nn.Linear(2, 2, key=KEY), wm.Line(), key=KEY, spread=spread)

    @pytest.mark.parametrize(
        ("model", "options"),
        [
            (eqx.nn.Identity(), {}),
            (Hidden(jnp.arange(3)), {}),
            (eqx.nn.Linear(2, 2, key=KEY), {"filter_spec": lambda _: False}),
        ],
    )
    def test_a_selection_without_weights(self, model, options):
        with pytest.raises(ValueError, match=r"nothing is left to modulate: .* select a layer with weights"):
            wm.modulate(model, wm.Line(), key=KEY, **options)

    def test_a_selection_that_is_no_part_of_the_tree(self):
        with pytest.raises(ValueError, match="`where` must select a part of the model that holds arrays"):
            wm.modulate(eqx.nn.Linear(2, 2, key=KEY), wm.Line(), key=KEY, where=lambda m: m.in_features)

    def test_what_is_no_manifold_or_number(self):
        # As users meet it, without the tests' own type checks.
        expected = {
            "wm.modulate(model, 3, key=key)": r"TypeError.* a manifold such as wm.Ellipse\(\), got 3",
            "wm.modulate(model, wm.Ellipse, key=key)": r"TypeError.* a manifold such as wm.Ellipse\(\), got <class",
            "wm.modulate(wm.Ellipse(), model, key=key)": r"TypeError.* a manifold such as",
            "wm.modulate(model, wm.Ellipse(), key=key, spread='1')": r"ValueError.* at least 0, got '1'",
            "wm.modulate(model, wm.Ellipse(), key=key, spread=None)": r"ValueError.* at least 0, got None",
            "wm.precondition(3)": r"TypeError.* a manifold such as wm.Ellipse\(\), got 3",
            "wm.precondition(wm.Line)": r"TypeError.* a manifold such as",
        }
        script = (
            "import json, sys, equinox as eqx, jax, wmlib as wm\n"
            "key = jax.random.key(0)\n"
            "model = eqx.nn.Linear(2, 2, key=key)\n"
            "def ask(expression):\n"
            "    try: return f'nothing: {eval(expression)}'\n"
            "    except Exception as error: return f'{type(error).__name__}: {error}'\n"
            "print(json.dumps({e: ask(e) for e in json.loads(sys.argv[1])}))\n"
        )
        out = subprocess.run(
            [sys.executable, "-c", script, json.dumps(list(expected))], check=True, capture_output=True, text=True
        ).stdout
        for expression, answer in json.loads(out).items():
            assert re.search(expected[expression], answer, re.DOTALL), (expression, answer)


class TestManifoldArray:
    ARRAY = wm.ManifoldArray(normal(3, 4, 5), jnp.array([1.0, 0.5, -2.0]))

    def test_looks_like_the_array_of_one_context(self):
        assert (self.ARRAY.shape, self.ARRAY.dtype, self.ARRAY.ndim) == ((4, 5), "float32", 2)
        np.testing.assert_allclose(
            self.ARRAY.materialise(), np.tensordot([1, 0.5, -2], np.asarray(self.ARRAY.points), 1), atol=1e-6
        )

    def test_is_a_tree_of_its_points_and_coefficients(self):
        leaves = jax.tree.leaves(self.ARRAY)
        for got, wanted in itertools.zip_longest(leaves, [self.ARRAY.points, self.ARRAY.coefficients]):
            np.testing.assert_array_equal(got, wanted)
