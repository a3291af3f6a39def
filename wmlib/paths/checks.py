"""What is refused before anything is computed, each with the cure: labels, shapes, networks of two names for one array."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from .._calls import on_one_input
from .metric import check_structure, gathered
from .metric import refuse_shared as refuse_shared
from .precision import refuse_complex
from .precision import wide as wide


def check_labels(labels: Any, classes: int | None = None, axes: int = 1) -> None:
    """Raise unless labels are integers from 0, of so many axes, and below the number of classes where that is known.

    Inside a compiled function their values are not known, and only their type and shape are looked at.
    """
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise TypeError(
            f"labels must be integers, the places of the classes, got {jnp.result_type(labels)}; use"
            " labels.astype(int), or labels.argmax(axis=1) of one-hot rows"
        )
    if jnp.ndim(labels) != axes:
        raise ValueError(
            f"{'there must be one label for each input' if axes else 'a label is one integer'}, got labels of shape"
            f" {jnp.shape(labels)}; use labels.reshape(-1), labels.argmax(axis=1) of one-hot rows, or jax.vmap for a batch"
        )
    if classes is not None and classes < 2:
        raise ValueError(f"f returns {classes} logit, whose softmax is 1 whatever it is; give it one output a class")
    if isinstance(labels, Tracer) or np.size(labels) == 0:
        return
    known = np.asarray(labels)  # not by jnp, under whose transformations even what is known would be traced
    least, most = int(known.min()), int(known.max())
    if least < 0 or (classes is not None and most >= classes):
        bound = "0" if classes is None else f"0 and {classes - 1}, for f has {classes} outputs"
        raise ValueError(
            f"labels must lie {'from' if classes is None else 'between'} {bound}, got {least} to {most}; number the"
            " classes from 0, or give f an output for each"
        )


def places(labels: Any) -> Array:
    """Labels as integers in which neither a number of classes nor −1 wraps: of 32 bits at least."""
    labels = gathered(jnp.asarray(labels))
    return labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels


def output_of(f: Callable[..., Any], weights: PyTree, x: PyTree) -> Any:
    """`f(weights, x)` of one input, with the cure in the error if `f` cannot take one."""
    return on_one_input(f, weights, x)


def check_logits(output: Any) -> None:
    """Raise `TypeError` unless an output is one vector of floating-point numbers."""
    one = isinstance(output, (Array, jax.ShapeDtypeStruct))
    if not (one and output.ndim == 1 and jnp.issubdtype(output.dtype, jnp.floating)):
        raise TypeError(
            "f is called with one input and must return its logits, one vector of floating-point numbers; got"
            f" {eqx.tree_pformat(output, short_arrays=True)}"
        )


def logits_of(f: Callable[..., Any], weights: PyTree, inputs: PyTree) -> Array:
    """The logits of every input, `f(weights, x)` of one after another, in float32 at least."""

    def one(x):
        output = output_of(f, weights, x)
        check_logits(output)
        return output

    return wide(gathered(jax.vmap(one)(jax.tree.map(jnp.asarray, inputs))))


def check_finite(name: str, tree: Any) -> None:
    """Raise `ValueError` for floating-point numbers that are not finite; traced ones are let pass."""
    arrays = [x for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    if not any(isinstance(x, Tracer) for x in arrays) and not all(bool(jnp.isfinite(x).all()) for x in arrays):
        raise ValueError(f"{name} holds numbers that are not finite; look where training diverged, and lower its rate")


def check_memories(inputs: PyTree, beside: Any = None) -> None:
    """Raise `ValueError` unless all arrays share a first axis, that is not empty."""
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves((inputs, beside))}
    if len(lengths) != 1 or lengths in ({()}, {(0,)}):
        raise ValueError(
            "at least one input is needed, and one label or output for each, as arrays that share their first axis; got"
            f" lengths {sorted(lengths)}"
        )


def number(name: str, given: Any) -> Any:
    """One real number, without the axes of an array that holds one alone.

    **Raises:** `ValueError` for what is none, or more than one.
    """
    try:
        array = given if isinstance(given, Array) else np.asarray(given)
        real = jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
    except ValueError:  # a list of unequal lists
        real = False
    if not real or array.size != 1:
        raise ValueError(f"{name} must be one real number, got {given!r}; give one, and call again for others")
    return array.reshape(()) if array.ndim else given


def check_setting(
    name: str, given: Any, least: float | int = 0.0, strict: bool = False, below: float | int = np.inf
) -> Any:
    """One real number that is finite, at least the least (or above it), and below a bound; a traced one is let pass.

    **Raises:** `ValueError` for another.
    """
    given = number(name, given)
    if isinstance(given, Tracer):
        return given
    if not (least < given < below or (given == least and not strict)):
        among = f"finite and {'above' if strict else 'at least'} {least:g}"
        if below < np.inf:
            among = f"in {'(' if strict else '['}{least:g}, {below:g})"
        raise ValueError(f"{name} must be {among}, got {given}")
    return given


def check_single(name: str, given: Any) -> None:
    """Raise `ValueError` for a number that float32 rounds to zero or to infinity; a traced one is let pass."""
    if isinstance(given, Tracer):
        return
    with np.errstate(all="ignore"):
        single = float(np.float32(given))
    if not math.isfinite(single) or (single == 0 and given != 0):
        raise ValueError(f"{name} is counted in float32, where {given} is {single:g}; scale the objective instead")


def movement(weights: PyTree, start: PyTree) -> PyTree:
    """The floating-point arrays of the weights less those of another tree, in float32 at least.

    **Raises:** `ValueError` if they differ in structure or shapes, or one array stands at two places; `TypeError` for
    complex weights.
    """
    here, there = (eqx.filter(w, eqx.is_inexact_array) for w in (weights, start))
    refuse_complex("the weights", (here, there))
    refuse_shared("the weights", here)
    check_structure("start", there, here)
    return jax.tree.map(lambda x, y: wide(x) - wide(y), *gathered((here, there)))


def on_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, asked once for arguments of the same shapes: for what depends on no value of an array."""
    memory = SimpleNamespace(known={})  # not a bare dictionary, which the digest of the code would take for a constant

    def asked(*args):
        leaves, structure = jax.tree.flatten(jax.tree.map(shape_of, args))
        key = structure, tuple(leaves)
        if key not in memory.known:
            if len(memory.known) >= 64:
                memory.known.clear()
            memory.known[key] = function(*args)
        return memory.known[key]

    return asked


def shape_of(leaf: Any) -> Any:
    """The shape and type of an array; anything else as it is."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, (Array, np.ndarray)) else leaf


def power(x: Array, axis: int | None = None) -> Array:
    """A power of two near the largest magnitude (1 for zeros): to divide by it rounds nothing."""
    largest = jnp.max(jnp.abs(x), axis, initial=0)
    return jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1])
