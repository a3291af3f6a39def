"""What a path may improve while it keeps a function: another task, sparsity."""

import abc
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, SupportsIndex, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree, Shaped

from .._counts import check_count
from .checks import check_labels, check_logits, check_setting, check_single, output_of, places, refuse_shared, wide
from .metric import gathered
from .precision import refuse_complex


class AbstractObjective(eqx.Module):
    """A second objective `L(w)`, to be made small along a path."""

    @abc.abstractmethod
    def draws(self, key: PRNGKeyArray) -> Iterator[Any]:
        """What each step looks at, without end: for data, the indices of a minibatch."""

    @abc.abstractmethod
    def value(self, weights: PyTree, draw: Any) -> Float[Array, ""]:
        """`L(w)` as one step sees it; differentiable in the weights."""


def cross_entropy(output: Shaped[ArrayLike, "..."], label: Shaped[ArrayLike, "..."]) -> Float[Array, ""]:
    """`−ln p(label)` of one example, from logits of shape `(classes,)` and an integer of any type, in float32 at least.

    A label that is none of theirs is refused; inside a compiled function, where it is not known, the loss is NaN.

    **Raises:** `ValueError` for labels out of range or more than one; `TypeError` for labels that are not integers, or
    outputs that are not logits.
    """
    logits = wide(gathered(jnp.asarray(output)))
    check_logits(logits)
    check_labels(label, len(logits), axes=0)
    place = places(label)
    inside = (place >= 0) & (place < len(logits))
    return jnp.where(inside, -jax.nn.log_softmax(logits)[place], jnp.nan)


def shuffled(key: PRNGKeyArray, size: SupportsIndex, batch: SupportsIndex) -> Iterator[Int[np.ndarray, " batch"]]:
    """Indices of minibatches, epoch by epoch in a new order, without end; what an epoch has left over is dropped.

    **Raises:** `ValueError` for a batch that is not between 1 and `size`, or numbers that are not integers.
    """
    size = check_count("size, the number of examples,", size)
    return _shuffled(key, size, check_count("batch", batch, 1, size))


def _shuffled(key, size, batch):
    epoch = 0
    while True:
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), size))
        for start in range(0, size - batch + 1, batch):
            yield order[start : start + batch]
        epoch += 1


@final
class Task(AbstractObjective):
    """The mean loss on the examples of a task, in shuffled minibatches.

    **Example:**

        objective = wm.objectives.Task(operator.call, images, labels)

    **Reference:** Raghavan et al. (2024), Algorithm 1.
    """

    f: Callable[..., Array] = eqx.field(static=True)
    inputs: PyTree[Array]
    labels: Shaped[Array, "examples ..."]
    batch: int = eqx.field(static=True)
    loss: Callable[..., Array] = eqx.field(static=True)
    span: tuple[int, int] | None = eqx.field(static=True)

    def __init__(
        self,
        f: Callable[..., Any],
        inputs: PyTree,
        labels: Any,
        batch: SupportsIndex = 100,
        loss: Callable[..., Any] = cross_entropy,
    ):
        """**Arguments:**

        - `f`: called as `f(weights, x)` for one input.
        - `inputs`: a tree of arrays that share their first axis.
        - `labels`: what `loss` compares an output with, one for each input.
        - `batch`: how many examples a step looks at.
        - `loss`: `loss(output, label)` of one example; default: the cross entropy of logits and an integer label.

        **Raises:** `ValueError` for inputs and labels of different lengths, or a batch that is no integer between 1 and that;
        with the cross entropy, for labels that are not one each, integer and from 0, and from `value` for labels beyond
        the outputs of `f`.
        """
        inputs, labels = gathered(jax.tree.map(jnp.asarray, (inputs, labels)))
        lengths = {x.shape[:1] for x in jax.tree.leaves((inputs, labels))}
        if len(lengths) != 1 or lengths == {()}:
            raise ValueError(f"each input needs one label; the lengths are {sorted(lengths)}")
        batch = check_count("batch", batch, 1, len(labels))
        if loss is cross_entropy:
            check_labels(labels)
        # The labels' range is known here, the number of outputs first when the loss is traced.
        known = loss is cross_entropy and not isinstance(labels, Tracer)
        self.f = f
        self.inputs = inputs
        self.labels = labels
        self.batch = batch
        self.loss = loss
        self.span = (int(np.asarray(labels).min()), int(np.asarray(labels).max())) if known else None

    def draws(self, key: PRNGKeyArray) -> Iterator[Int[np.ndarray, " batch"]]:
        """Indices of minibatches, epoch by epoch in a new order."""
        return shuffled(key, len(self.labels), self.batch)

    def value(self, weights: PyTree, draw: Int[Array | np.ndarray, " batch"]) -> Float[Array, ""]:
        """The mean loss on a minibatch."""
        inputs, labels = jax.tree.map(lambda x: x[draw], (self.inputs, self.labels))

        def one(x, y):
            output = output_of(self.f, weights, x)
            if self.span is not None:
                check_logits(output)
                check_labels(np.array(self.span), len(output))
            _check_loss(self.loss, output, y)
            return self.loss(output, y)

        return jnp.mean(wide(jax.vmap(one)(inputs, labels)))


def _check_loss(loss, output, label):
    """Raise `ValueError` unless a loss of one example is one number: a mean would be taken over its entries, too."""
    found = None if loss is cross_entropy else jax.eval_shape(loss, output, label)
    if found is not None and getattr(found, "shape", None) != ():
        raise ValueError(
            "loss is called with the output and the label of one example and must return one number, got"
            f" {eqx.tree_pformat(found)}; sum over what it returns, or give labels of the shape of the outputs"
        )


@final
class Penalised(AbstractObjective):
    """`L(w) + λ P(w)`: an objective and a penalty beside it, such as those of `wm.rivals`.

    **Example:** replay of 16 of the remembered examples at each step,

        replay = lambda net, kept, rows: wm.rivals.replay_loss(operator.call, net, kept[0][rows], kept[1][rows])
        objective = wm.objectives.Penalised(task, replay, (images, labels), strength=1.0, batch=16)
    """

    objective: AbstractObjective
    penalty: Callable[..., Any] = eqx.field(static=True)
    kept: PyTree
    strength: Array
    count: np.ndarray | None
    batch: int | None = eqx.field(static=True)

    def __init__(
        self,
        objective: AbstractObjective,
        penalty: Callable[..., Any],
        kept: PyTree = None,
        strength: float | int | np.floating = 1.0,
        *,
        batch: SupportsIndex | None = None,
        count: SupportsIndex | None = None,
    ):
        """**Arguments:**

        - `objective`: `L`.
        - `penalty`: called as `penalty(weights, kept, rows)`; returns a number. `rows` are the indices that a step draws.
        - `kept`: what the penalty looks at, any pytree; a step is compiled once for all of one structure and shapes.
        - `strength`: λ, of at least 0.
        - `batch`: how many rows a step draws; None for a penalty that looks at all, whose `rows` are None.
        - `count`: of how many rows they are drawn, from the first; default: the length of the arrays of `kept`.

        **Raises:** `TypeError` for what is no objective or cannot be called; `ValueError` for a strength that is negative or
        not finite, a batch that is not between 1 and the count, a `kept` whose length is not known, or a count beyond its longest array.
        """
        if not isinstance(objective, AbstractObjective):
            raise TypeError(f"objective must be one of wm.objectives, got {objective!r}")
        if not callable(penalty):
            raise TypeError(f"penalty must be a function of weights, what is kept, and rows, got {penalty!r}")
        if batch is not None and count is None:
            lengths = {len(x) for x in jax.tree.leaves(kept) if eqx.is_array_like(x) and jnp.ndim(x)}
            if len(lengths) != 1:
                raise ValueError(
                    f"give count, of how many rows a batch is drawn: what is kept has arrays of the lengths {sorted(lengths)}"
                )
            (count,) = lengths
        if batch is not None:
            count = check_count("count", count)
            batch = check_count("batch", batch, 1, count)
            _check_rows(count, kept)
        check_single("strength", check_setting("strength", strength))
        self.objective, self.penalty, self.kept = objective, penalty, kept
        self.strength = jnp.asarray(check_setting("strength", strength), jnp.float32)
        self.count = None if batch is None else np.asarray(count)
        self.batch = batch

    def draws(self, key: PRNGKeyArray) -> Iterator[Any]:
        """What the objective draws, and rows of what is kept."""
        of_objective, of_rows = jax.random.split(key)
        rows = itertools.repeat(None)
        if self.count is not None and self.batch is not None:
            rows = shuffled(of_rows, int(self.count), self.batch)
        return zip(self.objective.draws(of_objective), rows, strict=False)

    def value(self, weights: PyTree, draw: Any) -> Float[Array, ""]:
        """The sum, in float32 at least."""
        draw, rows = draw
        return wide(self.objective.value(weights, draw)) + self.strength * wide(self.penalty(weights, self.kept, rows))


def _check_rows(count, kept):
    """Raise `ValueError` if rows are drawn of which no array has any: an index beyond an array finds its last row."""
    longest = max((len(x) for x in jax.tree.leaves(kept) if eqx.is_array_like(x) and jnp.ndim(x)), default=count)
    if count > longest:
        raise ValueError(f"count is {count}, and the longest array of what is kept has {longest} rows; lower it")


def matrices(leaf: Array) -> bool:
    """Whether an array has two axes or more: matrices and kernels, not biases and gains."""
    return leaf.ndim > 1


def project(weights: PyTree, fraction: float | int, prunable: Callable[[Array], bool] = matrices) -> PyTree:
    """Set the smallest weights to zero: a fraction of all that may be pruned, by magnitude, over all layers together.

    Equal magnitudes go together, so that more may go than the fraction if many are equal. As a function of the weights
    it is a mask, constant almost everywhere, times the weights, and is differentiated so.

    **Arguments:**

    - `weights`: any pytree.
    - `fraction`: of the weights that may be pruned, in [0, 1).
    - `prunable`: which floating-point arrays may be pruned; default: those of two axes or more.

    **Returns:** weights of the same structure.

    **Raises:** `ValueError` for a fraction out of range, if nothing may be pruned, or if one array stands at two places;
    `TypeError` for complex weights.
    """
    fraction = float(check_setting("the fraction of weights set to zero", fraction, below=1))
    refuse_complex("the weights", weights)
    refuse_shared("the weights", weights)

    def chosen(leaf):
        return eqx.is_inexact_array(leaf) and prunable(leaf)

    leaves = [x for x in jax.tree.leaves(weights) if chosen(x)]
    if not leaves:
        raise ValueError("no array of the weights may be pruned; give another prunable")
    count = math.floor(fraction * sum(x.size for x in leaves) + 0.5)
    if count == 0:
        return weights
    width, integer = (64, jnp.int64) if any(x.dtype == jnp.float64 for x in leaves) else (32, jnp.int32)
    sizes = [_order(x, integer) for x in leaves]

    # Magnitudes are ordered like their bits, so the threshold is found bit by bit: far cheaper than sorting them.
    def narrow(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        enough = sum(jnp.sum(x <= middle, dtype=integer) for x in sizes) >= count
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    start = (jnp.zeros((), integer), jnp.array(jnp.iinfo(integer).max, integer))
    threshold = jax.lax.fori_loop(0, width, narrow, start)[0]

    def prune(leaf):
        return jnp.where(_order(leaf, integer) <= threshold, jnp.zeros((), leaf.dtype), leaf) if chosen(leaf) else leaf

    return jax.tree.map(prune, weights)


def _order(x, integer):
    """Non-negative integers in the order of the magnitudes."""
    wide = jnp.abs(jax.lax.stop_gradient(x)).astype(jnp.float64 if integer == jnp.int64 else jnp.float32)
    return jax.lax.bitcast_convert_type(wide, integer)


@final
class Sparsity(AbstractObjective):
    """The distance of the weights to their own sparse version, `½ |w − project(w)|²` or `|w − project(w)|`.

    **Reference:** Raghavan et al. (2024), Algorithm 2, with the norm.
    """

    fraction: float = eqx.field(static=True)
    squared: bool = eqx.field(static=True)
    prunable: Callable[[Array], bool] = eqx.field(static=True)

    def __init__(self, fraction: float | int, squared: bool = True, prunable: Callable[[Array], bool] = matrices):
        """**Arguments:** `fraction` and `prunable`, of `project`; `squared`, whether the distance is squared and halved.

        **Raises:** `ValueError` for a fraction out of [0, 1).
        """
        self.fraction = float(check_setting("the fraction of weights set to zero", fraction, below=1))
        self.squared = squared
        self.prunable = prunable

    def draws(self, key: PRNGKeyArray) -> Iterator[None]:
        """Nothing is drawn."""
        while True:
            yield None

    def value(self, weights: PyTree, draw: None = None) -> Float[Array, ""]:
        """The distance, whose gradient leaves the mask alone."""
        weights = eqx.filter(weights, eqx.is_inexact_array)
        sparse = project(weights, self.fraction, self.prunable)
        pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(sparse), strict=True)
        square = sum(jnp.sum((wide(x) - wide(y)) ** 2) for x, y in pairs)
        if self.squared:
            return jnp.asarray(square / 2)
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
