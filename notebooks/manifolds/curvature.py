# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How curved must it be?
#
# An ellipse lies in a plane and cannot bend. Here it meets closed curves that can, on rotated images; a spline is trained with the
# metrics that the paper prints for it; and two shapes are wrong on purpose.

# %% tags=["remove-input"]
import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
from IPython.display import Markdown, display

import wmlib as wm
from wmlib.lab import figures, pages, runs, verdicts

figures.use_style()
book = runs.book_results()
recorded = {
    n: runs.recorded_runs(f"topology_{n}", "cpu", results=book)
    for n in ("curves", "segment")
}


def overall(name, method, metric="gram"):
    """Test accuracy over all angles, in points, by seed."""
    rows = recorded[name]
    part = rows[(rows.method == method) & (rows.preconditioner == metric)]
    return 100 * part.sort_values("seed")["all"].to_numpy(float)


pages.findings(
    "The ellipse is enough: no closed curve with more points is above it after five epochs. The error in the published spline metric"
    " costs accuracy, and no metric at all is better than the corrected one. A closed ellipse costs on a segment.",
    {
        "spline of 12 points minus the ellipse": pages.interval(
            overall("curves", "spline 12") - overall("curves", "fourier 1"), "points"),
        "spline of 8 points, the published metric (Table 1) minus the corrected": pages.interval(
            overall("curves", "spline 8", "Table 1") - overall("curves", "spline 8"), "points"),
        "half a turn, the closed ellipse minus the arc": pages.interval(
            overall("segment", "ellipse") - overall("segment", "arc"), "points"),
    } if all(map(len, recorded.values())) else {},
    before="{doc}`topology`, {doc}`metrics`.",
)  # fmt: skip

# %% tags=["remove-input"] mystnb={"figure": {"caption": "The ellipse is enough, Eq. 39's matrix fails, and neither published nor corrected metric helps the spline. Each bar is the 95 % t-interval of one comparison over five seeds, in units of the least difference that matters, one point; what the claim expects lies to the right of the grey band. (Squares, for *the same*: between −1 and 1. *Not higher*: right of −1.)", "name": "fig-curvature-verdicts"}, "image": {"alt": "Intervals of seven claims in units of one point. First: six intervals between 0.9 and 9.9. Second: from 0.3 to 2.0. Third: around minus five. Fourth: around seventeen. Fifth: around minus three. Sixth: one right of one, one over the band. Seventh: both over the band."}}
judged = verdicts.judge_chapter("manifolds/curvature", "cpu", results=book)
verdicts.plot_verdicts(judged)
plt.show()

# %% [markdown]
# How to read {numref}`fig-curvature-verdicts`, and what the words mean, is said once for all chapters in {doc}`/book/verdicts`.
#
# ## The question
#
# **The paper** is struck by how well a rigid shape does {cite:p}`benjamin2025walking`. Its appendix offers cubic splines for shapes
# that bend, and no experiment with them. It prints three metrics for them, none of which is the Gram matrix ({doc}`metrics`). In none
# of its experiments is a shape wrong.
#
# **How curved?** Rotated images meet closed curves of growing freedom: Fourier curves of order 1 (the ellipse), 2 and 3, and closed
# splines of 4, 6, 8 and 12 points; and a line, which is not closed. Training sees twelve angles, 30 degrees apart (the first of them
# drawn for each seed), the test all of them.
#
# **Which metric?** A spline of 8 points is trained with the corrected metric, with each of two published ones, and with none.
#
# **Wrong on purpose.** A line is set on the full turn. And an ellipse is set on a segment: images turn from 0 to 180 degrees only,
# and every angle is seen. Told $s \in [0, 1]$, the ellipse takes an upright image and one on its head for the same context. Its equal
# in every other way is the *arc*: the same ellipse, told the true angle, so that the segment covers half of it. A line (two points)
# and an open spline of four points complete the list.
#
# **What we expected.**
#
# - At the angles seen, more points fit better. Between them the ellipse is held by twelve contexts for three points, the spline of
#   twelve points by one context for each. So no curve beats the ellipse over all angles.
# - The line, whose two ends are neighbours in the world and strangers in weight space, loses near its seam and not opposite to it.
# - Training with Table 1's matrix, which is positive definite, is descent under another idea of distance, and costs little at its own
#   rate. Eq. 39's has negative eigenvalues, so along some combinations of the points a step *climbs*: that fails.
# - The corrected metric helps.
# - The closed ellipse loses at the two ends of the segment, where one network has to serve both, and wins nothing anywhere.
#
# These words are claims in `book/claims/manifolds/curvature.toml`. They entered the history in one commit with their first rows, and
# so none is a test.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The settings of the three presets, 19 lines", "code_prompt_hide": "Hide the settings"}
# Averaged over 2 × 2 pixels an epoch costs a quarter: seeds are worth more than pixels.
paper: dict[str, Any] = dict(
    seeds=20, dataset="cifar10", pool=1, images=45_000, validation=5_000, test=10_000,
    epochs=50, batch=128, widths=[32, 64, 128], units=512,
    rates=[0.007, 0.02, 0.06, 0.18], arms=99,
)  # fmt: skip
scale = wm.preset(
    quick=dict(
        seeds=1, dataset="mnist5k", pool=2, images=128, validation=64, test=64,
        epochs=1, batch=64, widths=[4], units=10, rates=[0.02], arms=1,
    ),
    cpu=dict(
        seeds=5, dataset="cifar10", pool=2,
        images=10_000, validation=5_000, test=10_000, epochs=5,
        batch=32, widths=[16, 32, 64], units=128,
        rates=[0.007, 0.02, 0.06, 0.18], arms=99,
    ),
    paper=paper,
)  # fmt: skip

# %% [markdown]
# ## The shapes
#
# A curve is an entry of one table of shapes, with what it is told of the context. Table and networks are those of {doc}`topology`,
# letter for letter: recorded runs are held to the code that made them. The contexts of this chapter are a full turn and half a turn.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The contexts, the shapes of all tasks, and the networks, 106 lines", "code_prompt_hide": "Hide them"}
def turn(x, s, key):
    """One context: the angle."""
    return wm.transforms.rotate(x, s)


def half_turn(x, s, key):
    """One context, a segment: angles from 0 to 180 degrees."""
    return wm.transforms.rotate(x, s / 2)


class Told(eqx.Module):
    """A network that is told a function of the context instead of the context."""

    net: wm.Modulated
    told: Callable = eqx.field(static=True)

    def __call__(self, x, s):
        return self.net(x, self.told(s))


def first(s):
    return s[0]


def second(s):
    return s[1]


def half(s):
    return s / 2


def all_of_it(s):
    return s


def circle(s):
    """A point of the circle, from a part of a turn."""
    return jnp.stack([jnp.cos(2 * jnp.pi * s), jnp.sin(2 * jnp.pi * s)])


def circle_and_number(s):
    return jnp.append(circle(s[0]), s[1])


def two_circles(s):
    return jnp.concatenate([circle(s[0]), circle(s[1])])


def height(s):
    """Of a direction, from 0 at one pole to 1 at the other."""
    return (1 + s[2]) / 2


def azimuth(s):
    """Of a direction, as a part of a turn."""
    return jnp.arctan2(s[1], s[0]) / (2 * jnp.pi)


ring, rod = wm.Ellipse(), wm.Line()
SHAPES = {  # what each task's manifolds are, and what each is told
    "cylinder": {
        "cylinder": (wm.Product(ring, rod), all_of_it),
        "torus": (wm.Product(ring, ring), all_of_it),
        "angle alone": (ring, first), "other alone": (rod, second),
    },
    "torus": {
        "torus": (wm.Product(ring, ring), all_of_it),
        "cylinder": (wm.Product(ring, rod), all_of_it),
        "angle alone": (ring, first), "other alone": (ring, second),
    },
    "sphere": {
        "sphere 1": (wm.Sphere(1), all_of_it), "sphere 2": (wm.Sphere(2), all_of_it),
        "line": (rod, height), "ellipse": (ring, azimuth),
    },
}  # fmt: skip
SHAPES["circle"] = {"line": (rod, all_of_it)}
for order in (1, 2, 3):
    SHAPES["circle"][f"fourier {order}"] = (wm.Fourier(order), all_of_it)
for n in (4, 6, 8, 12):
    SHAPES["circle"][f"spline {n}"] = (wm.BSpline(n, periodic=True), all_of_it)
SHAPES["segment"] = {
    "line": (rod, all_of_it), "ellipse": (ring, all_of_it), "arc": (ring, half),
    "spline 4": (wm.BSpline(4), all_of_it),
}  # fmt: skip
ENCODINGS = {  # what `concat` is given of a context, and how many numbers
    "cylinder": (circle_and_number, 3), "torus": (two_circles, 4),
    "sphere": (all_of_it, 3), "circle": (circle, 2),
}  # fmt: skip


def network(task, method, key, **cnn):
    """A network called as `net(x, s)`, for each method on each task."""
    of_model, of_points = jax.random.split(key)
    if method == "none":
        return wm.rivals.Unconditioned(**cnn, key=of_model)
    if method == "concat":
        encode, inputs = ENCODINGS[task]
        return wm.rivals.Concat(encode, inputs, **cnn, key=of_model)
    shape, told = SHAPES[task][method]
    return Told(
        wm.modulate(
            wm.models.CNN(**cnn, key=of_model), shape, key=of_points, spread=0.5
        ),
        told,
    )


# %% [markdown]
# ## The metrics
#
# The matrices that the paper prints for cubic splines are for an interval; here they are wrapped around a closed curve. An indefinite
# one counts by its absolute value where a step's length is asked for. A rate means the same for every shape and metric: we search
# over $r$ and train at $\eta = r / \operatorname{tr}(BG)$, with $B$ what multiplies the gradient of the points and $G$ the Gram matrix
# ({doc}`topology`). For $B = G^{-1}$ that is $r / n$.


# %%
def inverse_metric(manifold, metric):
    """What mixes the gradients of the points: an inverse metric, or nothing."""
    n = manifold.size
    if metric == "gram":
        return np.asarray(manifold.inverse_gram(), np.float64)
    if metric == "no metric":
        return np.eye(n)
    table, equation = (
        np.array([120, 78, 24, 3]) / (60 * n),
        np.array([21, 33, 3, 1]) / 420,
    )
    rows = {"Table 1": table, "Eq. 39": equation}[metric]
    apart = np.abs(np.arange(n)[:, None] - np.arange(n))
    apart = np.minimum(apart, n - apart)  # along the closed curve
    return np.linalg.inv(np.where(apart < 4, rows[np.minimum(apart, 3)], 0))


# %%
def reach(manifold, metric):
    """E_s[aᵀ|B|a], by which B lengthens a step of M(s); n for the inverse metric."""
    values, vectors = np.linalg.eigh(inverse_metric(manifold, metric))
    return float(
        np.trace(
            vectors @ np.diag(np.abs(values)) @ vectors.T @ np.asarray(manifold.gram())
        )
    )


# %%
def mix_points(matrix):
    """Apply a matrix to the points' gradient, as `wm.precondition` does its own."""

    def leaf(node):
        if not isinstance(node, wm.BasisPoints):
            return node
        return jax.tree.map(
            lambda g: jnp.tensordot(jnp.asarray(matrix, g.dtype), g, 1), node
        )

    def update(updates, state, params=None):
        return jax.tree.map(
            leaf, updates, is_leaf=lambda x: isinstance(x, wm.BasisPoints)
        ), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


# %% [markdown]
# **Check.** Mixing by the inverse Gram matrix is what the library's `precondition` does, to the last digit that single
# precision has, on the gradient of a real network.

# %%
sizes = dict(in_shape=(1, 14, 14), widths=(4,), units=10)
made = eqx.filter_jit(lambda key: network("circle", "spline 8", key, **sizes))
small: Any = made(jax.random.key(0))
pixels, angle = jnp.ones((1, 14, 14)), jnp.float32(0.3)
output = lambda net: jnp.sum(net(pixels, angle) ** 2)  # noqa: E731
gradient = eqx.filter_jit(eqx.filter_grad(output))(small)
spline, nothing = small.net.manifold, optax.EmptyState()
ours, _ = mix_points(inverse_metric(spline, "gram")).update(gradient, nothing)
theirs, _ = wm.precondition(spline).update(gradient, nothing)
leaves = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
gap = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in leaves)
print(f"largest relative difference: {gap:.1e}")
assert gap < 1e-5

# %% [markdown]
# ## Training
#
# Training too is that of {doc}`topology`. The rate of every arm is searched alike: four values of $r$, half the epochs, one seed. The
# judge is accuracy on validation images *at the angles seen in training*.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The training loop and the test, 131 lines", "code_prompt_hide": "Hide them"}
@cache  # one object for one setting, so that a step is compiled once
def optimiser(manifold, metric):
    """Momentum 0.9, after the metric; the learning rate comes last, in `step`."""
    momentum = optax.trace(0.9)
    if manifold is None:
        return momentum
    if metric == "gram":
        return optax.chain(wm.precondition(manifold), momentum)
    return optax.chain(mix_points(inverse_metric(manifold, metric)), momentum)


def loss(net, transform, x, y, s, key):
    """Mean cross-entropy of images in their contexts."""
    x = jax.vmap(transform)(x, s, jax.random.split(key, len(x)))
    return optax.softmax_cross_entropy_with_integer_labels(
        jax.vmap(net)(x, s), y
    ).mean()


@eqx.filter_jit
def step(fixed, net, state, x, y, s, key):
    """One step; `fixed`: the optimiser, the rate, what a context does to an image."""
    optimise, rate, transform = fixed
    value, gradient = eqx.filter_value_and_grad(loss)(net, transform, x, y, s, key)
    updates, state = optimise.update(gradient, state)
    return (
        eqx.apply_updates(net, jax.tree.map(lambda u: -rate * u, updates)),
        state,
        value,
    )


@eqx.filter_jit
def correct(net, transform, x, y, s, key):
    """Which images are classified correctly."""
    x = jax.vmap(transform)(x, s, jax.random.split(key, len(x)))
    return jax.vmap(net)(x, s).argmax(axis=1) == y


def hits(net, transform, x, y, s, batch=500):
    """`correct`, in batches; noise, if any, is the same for every network."""
    parts = []
    for i in range(0, len(x), batch):
        part, key = slice(i, i + batch), jax.random.fold_in(jax.random.key(0), i)
        parts.append(
            np.asarray(correct(net, transform, x[part], y[part], s[part], key))
        )
    return np.concatenate(parts)


GREY = jnp.ones((3, 3)) / 3
TURN = jnp.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / jnp.sqrt(3.0)


def hue(image, t):
    """Turn the colours of an image by the angle 2πt about the grey axis."""
    cos, sin = jnp.cos(2 * jnp.pi * t), jnp.sin(2 * jnp.pi * t)
    turn = GREY + cos * (jnp.eye(3) - GREY) + sin * TURN
    return jnp.einsum(
        "ij,jhw->ihw", turn, jnp.broadcast_to(image, (3, *image.shape[1:]))
    )


def turn_and_hue(x, s, key):
    """Two contexts: the angle of the image, and that of its colours."""
    return hue(wm.transforms.rotate(x, s[0]), s[1])


def train(config, key, transform, x, y, draw):
    """Train one network; `draw(key)` gives an epoch's contexts. Also the losses."""
    of_net, of_order = jax.random.split(key)
    channels = 3 if transform is turn_and_hue else x.shape[1]
    shape, widths = (channels, *x.shape[2:]), tuple(config["widths"])
    sizes = dict(in_shape=shape, widths=widths, units=config["units"])
    net = network(config["task"], config["method"], of_net, **sizes)
    manifold = net.net.manifold if isinstance(net, Told) else None
    rate = config["rate"] / (
        reach(manifold, config["preconditioner"]) if manifold else 1
    )
    fixed, batch = (
        (optimiser(manifold, config["preconditioner"]), jnp.float32(rate), transform),
        config["batch"],
    )
    state, losses = fixed[0].init(eqx.filter(net, eqx.is_inexact_array)), []
    for of_epoch in jax.random.split(of_order, config["epochs"]):
        of_images, of_contexts, of_noise = jax.random.split(of_epoch, 3)
        order = jax.random.permutation(of_images, len(x))[
            : len(x) // batch * batch
        ].reshape(-1, batch)
        s, values = draw(of_contexts), []
        for rows, of_step in zip(
            order, jax.random.split(of_noise, len(order)), strict=True
        ):
            net, state, value = step(
                fixed, net, state, x[rows], y[rows], s[rows], of_step
            )
            values.append(value)
        losses.append(round(float(jnp.stack(values).mean()), 4))
    return net, losses


def extent(net):
    """RMS distance of the weights M(s) from their mean, relative to its norm."""
    if not isinstance(net, Told):
        return 0.0
    contexts = net.net.manifold.sample(jax.random.key(0), (2048,))
    a = np.asarray(jax.vmap(net.net.manifold.basis)(contexts), np.float64)
    total, middle = 0.0, 0.0
    for points in jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array)):
        flat = np.asarray(points, np.float64).reshape(a.shape[1], -1)
        total += ((a.T @ a / len(a)) * (flat @ flat.T)).sum()
        middle += ((a.mean(axis=0) @ flat) ** 2).sum()
    return float(np.sqrt(max(total - middle, 0) / middle))


splits = cache(wm.load_splits)


def photographs(config):
    """Images for training and for the test (or validation), and a fingerprint."""
    data = splits(
        *[config[k] for k in ("dataset", "images", "validation", "test")],
        pool=config["pool"],
    )
    return data.train, getattr(data, config["split"]), data.fingerprint


def by_part(where, right, parts):
    """The share of right answers in each of some parts."""
    shown = np.bincount(where, minlength=parts)
    return np.round(np.bincount(where, right, parts) / np.maximum(shown, 1), 4)


# %% [markdown]
# ## The runs
#
# On the full turn nine curves have the corrected metric, and three arms more the spline of eight points with another.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "One run of each kind, the searches and the sweeps, 94 lines", "code_prompt_hide": "Hide them"}
def curve(config, key):
    """One run: accuracy over all angles after training on some, evenly spaced."""
    (x, y), (x_test, y_test), data = photographs(config)
    of_angles, of_training = jax.random.split(key)
    apart = 360 // config["angles"]
    start, draw = (
        int(jax.random.randint(of_angles, (), 0, apart)),
        np.random.default_rng(0),
    )
    known = jnp.asarray(
        (np.arange(config["angles"]) * apart + start) / 360, jnp.float32
    )
    contexts = partial(jax.random.choice, a=known, shape=(len(x),))
    net, losses = train(config, of_training, turn, x, y, contexts)
    angle = draw.integers(0, 360, len(x_test))
    right = hits(net, turn, x_test, y_test, jnp.asarray(angle / 360, jnp.float32))
    seen = right
    if apart > 1:
        seen = hits(
            net, turn, x_test, y_test, known[draw.integers(0, len(known), len(x_test))]
        )
    curves = {"loss": losses, "sector": by_part(angle // 10, right, 36)}
    metrics = {"all": right.mean(), "seen": seen.mean(), "extent": extent(net)}
    return {"metrics": metrics, "curves": curves, "data": data}


def segment(config, key):
    """One run: accuracy over angles from 0 to 180 degrees."""
    (x, y), (x_test, y_test), data = photographs(config)
    net, losses = train(
        config, key, half_turn, x, y, lambda k: jax.random.uniform(k, (len(x),))
    )
    s = np.random.default_rng(0).uniform(size=len(x_test)).astype(np.float32)
    right = hits(net, half_turn, x_test, y_test, jnp.asarray(s))
    curves = {
        "loss": losses,
        "sector": by_part(np.minimum(s * 18, 17).astype(int), right, 18),
    }
    return {
        "metrics": {"all": right.mean(), "extent": extent(net)},
        "curves": curves,
        "data": data,
    }


SETTINGS = ("dataset", "pool", "images", "validation", "test", "epochs", "batch")
SETTINGS += ("widths", "units")
common = {k: v for k, v in scale.settings.items() if k in SETTINGS}
one_seed = dataclasses.replace(scale, seeds=1)


def tuned(name, run, arms, judged):
    """Search each arm's rate on validation images; also the setting of an arm."""
    search = [
        {**common, **arm, "split": "validation", "rate": r}
        for arm in arms
        for r in scale.rates
    ]
    search = [{**config, "epochs": max(1, config["epochs"] // 2)} for config in search]
    found = wm.sweep(f"{name}_tuning", run, search, one_seed)
    best = found.loc[
        found.groupby(["task", "method", "preconditioner"])[judged].idxmax()
    ]
    best = best.set_index(["task", "method", "preconditioner"]).rate

    def setting(arm):
        rate = float(best[arm["task"], arm["method"], arm["preconditioner"]])
        return {**common, **arm, "split": "test", "rate": rate}

    return found, setting


def arms(task, methods, preconditioner="gram", **more):
    """The arms of an experiment: the first few at the preset `quick`."""
    shared = {"task": task, "preconditioner": preconditioner, **more}
    return [{"method": m, **shared} for m in methods[: scale.arms]]


CURVES = ["fourier 1", "line", "spline 8", "none", "fourier 3", "spline 4"]
CURVES += ["spline 12", "fourier 2", "spline 6"]
METRICS = ["Table 1", "no metric", "Eq. 39"] if scale.name != "quick" else []
curve_arms = arms("circle", CURVES, angles=12)
for metric in METRICS:
    curve_arms += arms("circle", ["spline 8"], metric, angles=12)
curve_search, curve_setting = tuned("topology_curves", curve, curve_arms, "seen")
grid = [curve_setting(arm) for arm in curve_arms]
curve_rows = wm.sweep("topology_curves", curve, grid, scale)

SEGMENTS = ["ellipse", "line", "arc", "spline 4", "none"]
segment_arms = arms("segment", SEGMENTS)
found = tuned("topology_segment", segment, segment_arms, "all")
segment_search, segment_setting = found
grid = [segment_setting(arm) for arm in segment_arms]
segment_rows = wm.sweep("topology_segment", segment, grid, scale)

# %% [markdown]
# ## How curved?
#
# Accuracy has its price in arithmetic. A modulated layer multiplies the input by each of its $n$ points, so the multiplications
# and additions of a network grow as $n$; the count below is for one image, forward.
#
# **Check.** The count by hand, layer by layer, is XLA's own count of the plain network up to the operations that are not
# multiply-adds (biases, maxima, ReLU).


# %%
def multiply_adds(channels, size, widths, units, classes=10):
    """Of the CNN for one image: 3 × 3 kernels without the padding, two matrices."""
    total, shape = 0, (channels, size)
    for width in widths:
        total += shape[0] * width * (3 * shape[1] - 2) ** 2
        shape = (width, shape[1] // 2)
    return total + shape[0] * shape[1] ** 2 * units + units * classes


sizes = dict(in_shape=(3, 16, 16), widths=(16, 32, 64), units=128)
plain = wm.rivals.Unconditioned(**sizes, key=jax.random.key(0))
asked = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 16, 16), ())]
traced = jax.jit(lambda x, s: plain(x, s)).lower(*asked)
counted = (traced.cost_analysis() or {})["flops"]
by_hand = multiply_adds(3, 16, sizes["widths"], sizes["units"])
print(f"by hand {2 * by_hand:,} operations, by XLA {counted:,.0f}")
assert 0 <= counted - 2 * by_hand < 0.05 * counted


# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 41 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "The more points a closed curve has, the lower is its accuracy after five epochs, and the more it costs. Rotated images, twelve angles seen: test accuracy over all angles (filled) and at the angles seen (open, dotted) against the arithmetic of one image. Means over five seeds and 95 % t-intervals.", "name": "fig-curvature-curves"}, "image": {"alt": "Accuracy against millions of multiply-adds. Closed curves fall from 36.8 per cent for the ellipse to 27.8 for the spline of twelve points. Dotted lines for the angles seen lie within a point of the solid ones for all angles."}}
def values(rows, metric, **where):
    """A metric by seed."""
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return rows.sort_values("seed")[metric].to_numpy(float)


def difference(a, b):
    """Mean and 95 % t-interval of paired differences, in points, in words."""
    low, high = figures.t_interval(a - b)
    return f"{100 * (a - b).mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]".replace(
        "-", "−"
    )


COLOURS = figures.METHOD_COLOURS
FAMILIES = {
    "fourier": COLOURS["ellipse"],
    "spline": figures.PALETTE[2],
    "line": COLOURS["line"],
    "none": COLOURS["none"],
}
WORDS = {"none": "no conditioning", "fourier": "Fourier (the ellipse first)"}
NAMES = {"none": "no conditioning", "fourier 1": "ellipse"}
fitted = curve_rows.query("preconditioner == 'gram'")
of_circle = SHAPES["circle"]
points = {m: of_circle[m][0].size if m in of_circle else 1 for m in fitted["method"]}
fig, ax = plt.subplots(figsize=(6.6, 3.9))
for family, colour in FAMILIES.items():
    methods = [m for m in points if m.startswith(family)]
    methods = sorted(methods, key=points.__getitem__)
    for metric, style, face in (("all", "-", colour), ("seen", ":", figures.GROUND)):
        if methods:
            each = [values(fitted, metric, method=m) for m in methods]
            cost = [points[m] * by_hand / 1e6 for m in methods]
            named = WORDS.get(family, family) if metric == "all" else None
            look = dict(label=named, colour=colour, ls=style, mfc=face)
            figures.accuracy_curve(ax, cost, 100 * np.stack(each, axis=1), **look)
ax.set(xlabel="multiply-adds for one image (millions)", ylabel="test accuracy (%)")
ax.legend(ncols=2)
plt.show()

# %% tags=["remove-input"]
table = [
    {
        "method": NAMES.get(m, m),
        "points": points[m],
        "all angles": pages.percent(values(fitted, "all", method=m)),
        "angles seen": pages.percent(values(fitted, "seen", method=m)),
        "minus the ellipse, points": "–"
        if m == "fourier 1"
        else difference(
            values(fitted, "all", method=m), values(fitted, "all", method="fourier 1")
        ),
        "seconds a run": f"{np.median(values(fitted, 'seconds', method=m)):.0f}",
    }
    for m in sorted(points, key=points.__getitem__)
]
pages.table(
    pd.DataFrame(table),
    "No method is above the ellipse in the mean, and more points cost more time. Test accuracy in per cent with half of its 95 % t-interval over five seeds,"
    " the difference to the ellipse over all angles, and the median time of a run.",
    name="tab-curvature-curves",
    disable_numparse=True,
)

# %% [markdown]
# {numref}`fig-curvature-curves` falls from left to right, and {numref}`tab-curvature-curves` has the numbers: of the closed curves, the
# more points, the lower the accuracy, from 36.8 % for the ellipse to 27.8 % for the spline of twelve. So the claim that no closed curve
# with more points is above the ellipse is {claim}`1 reproduced`, for another reason than we had expected. A flexible curve that bends
# between its twelve angles would show a gap between the filled and the open dots, and there is none: all these curves are within a
# point of their accuracy at the angles seen. The larger shapes have learned less in five epochs. The ellipse is enough, as the
# paper says; here nothing shows that it would be so after a longer training.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the paragraph above, checked", "code_prompt_hide": "Hide the check"}
if scale.name == "cpu":
    closed = [f"fourier {k}" for k in (1, 2, 3)]
    closed += [f"spline {n}" for n in (4, 6, 8, 12)]
    overall = {m: 100 * values(fitted, "all", method=m).mean() for m in closed}
    at_seen = {m: 100 * values(fitted, "seen", method=m).mean() for m in closed}
    first_and_last = [overall[m] for m in ("fourier 1", "spline 12")]
    assert [round(float(v), 1) for v in first_and_last] == [36.8, 27.8]
    assert max(abs(overall[m] - at_seen[m]) for m in closed) < 1
    size = {m: SHAPES["circle"][m][0].size for m in closed}
    by_size = [
        [overall[m] for m in closed if size[m] == n] for n in (3, 4, 5, 6, 7, 8, 12)
    ]
    of_size = [np.mean(each) for each in by_size]
    assert of_size == sorted(of_size, reverse=True)
    ellipse = values(fitted, "all", method="fourier 1").mean()
    assert all(values(fitted, "all", method=m).mean() <= ellipse for m in points)

# %% [markdown]
# ## Which metric?
#
# {numref}`tab-curvature-metrics` has the spline of eight points with four metrics. `extent` is how far its networks are from their
# mean, relative to the norm of that mean.

# %% tags=["remove-input"]
eight = curve_rows.query("method == 'spline 8'")
by_metric = [
    m
    for m in ("gram", "Table 1", "no metric", "Eq. 39")
    if m in set(eight.preconditioner)
]
of_eight = {m: values(eight, "all", preconditioner=m) for m in by_metric}
table = [
    {
        "metric": {"gram": "Gram matrix (corrected)"}.get(m, m),
        "all angles": pages.percent(of_eight[m]),
        "minus the corrected, points": "–"
        if m == "gram"
        else difference(of_eight[m], of_eight["gram"]),
        "last loss": f"{np.mean([run[-1] for run in eight.query('preconditioner == @m')['loss']]):.2f}",
        "extent": f"{values(eight, 'extent', preconditioner=m).mean():.2f}",
    }
    for m in by_metric
]
pages.table(
    pd.DataFrame(table or [{"metric": "(not at this scale)"}]),
    "The best of four metrics for a spline of eight points is none. Test accuracy in per cent with half of its 95 % t-interval over"
    " five seeds, the difference to the corrected metric, the loss of the last epoch and the extent.",
    name="tab-curvature-metrics",
    disable_numparse=True,
)

# %% [markdown]
# That Eq. 39's matrix is below no metric {claim}`4 holds`, by 17.0 points [15.3, 18.6]. A matrix under which some steps climb could
# hardly do otherwise; how little is left, 17.6 %, is what was found. Table 1's matrix is positive definite, and still training is 4.9
# points worse than with the corrected metric [3.8, 6.0]. So that the error in the paper does not matter is {claim}`3 contradicted`.
# But the best of the four is no metric at all: that the corrected metric helps is {claim}`5 contradicted` too, with 3.3 points less
# [2.5, 4.1].

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the paragraph above, checked", "code_prompt_hide": "Hide the check"}
if scale.name == "cpu":
    plain = of_eight["no metric"]
    assert difference(plain, of_eight["Eq. 39"]) == "+17.0 [+15.3, +18.6]"
    assert round(100 * float(of_eight["Eq. 39"].mean()), 1) == 17.6
    assert difference(of_eight["gram"], of_eight["Table 1"]) == "+4.9 [+3.8, +6.0]"
    assert difference(plain, of_eight["gram"]) == "+3.3 [+2.5, +4.1]"
    assert max(of_eight, key=lambda m: of_eight[m].mean()) == "no metric"

# %% [markdown]
# ## One number that orders both
#
# Take a gradient that is the same in all contexts. Under a preconditioner $B$ it moves every $M(s)$ by
# $-\eta\, a(s)^{\mathsf T} B\, \mathbb{E}[a]$ times that gradient, on average $\mathbb{E}[a]^{\mathsf T} B\, \mathbb{E}[a]$; measured in
# units of the whole step,
#
# $$
# \sigma = \frac{\mathbb{E}[a]^{\mathsf T} B\; \mathbb{E}[a]}{\operatorname{tr}(B\, G)},
# \qquad \sigma = \frac1n \quad\text{for}\quad B = G^{-1} .
# $$ (eq-curvature-share)
#
# This is the share of a step that all contexts have in common. For a plain network it is 1. The inverse metric treats the common
# part and each of the $n - 1$ ways to bend alike, which is what makes it independent of coordinates; and so with many points
# little of a step goes into what all angles share. With no metric a spline's step is mostly common, since overlapping basis
# functions favour it; with Table 1's, which is too large for a shift of all points, even less is common than with the Gram matrix.


# %%
def share(manifold, metric):
    """The part of a step that all contexts have in common."""
    contexts = (jnp.arange(4096) + 0.5) / 4096
    a = np.asarray(jax.jit(jax.vmap(manifold.basis))(contexts), np.float64).mean(axis=0)
    return float(a @ inverse_metric(manifold, metric) @ a / reach(manifold, metric))


for manifold, _ in SHAPES["circle"].values():
    assert abs(share(manifold, "gram") * manifold.size - 1) < 1e-3
closed_spline, kinds = wm.BSpline(8, periodic=True), ("gram", "no metric", "Table 1")
{m: round(share(closed_spline, m), 3) for m in (*kinds, "Eq. 39")}

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 20 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "Accuracy rises with the share of a step that all contexts have in common, and levels off near one third. Rotated images, twelve angles seen: test accuracy over all angles against that share. Filled: the Gram matrix as metric; open: another matrix or none. Means over five seeds and 95 % t-intervals.", "name": "fig-curvature-share"}, "image": {"alt": "Accuracy against a share between 0.05 and 1 on a logarithmic axis, one labelled dot for each curve and metric. Accuracy rises with the share, rank correlation above 0.9 without Eq. 39, and levels off near one third."}}
pairs_run = zip(curve_rows["method"], curve_rows["preconditioner"], strict=True)
arms_run = list(dict.fromkeys(pairs_run))
fig, ax = plt.subplots(figsize=(6.6, 3.9))
for method, metric in arms_run:
    colour = next(c for name, c in FAMILIES.items() if method.startswith(name))
    each = 100 * values(curve_rows, "all", method=method, preconditioner=metric)
    x = 1.0 if method == "none" else share(of_circle[method][0], metric)
    ax.plot([x, x], figures.t_interval(each), color=colour, lw=1.4)
    face = colour if metric == "gram" else figures.GROUND
    ax.plot(x, each.mean(), "o", color=colour, mfc=face)
    label = NAMES.get(method, method) + ("" if metric == "gram" else f", {metric}")
    shift = {"fourier 2": (-48, 3), "spline 4": (-18, 12), "fourier 3": (6, 0)}.get(
        method, (5, -11)
    )
    look = dict(textcoords="offset points", fontsize=8, color=colour)
    ax.annotate(label, (x, each.mean()), shift, **look)
ax.set(xscale="log", ylabel="test accuracy (%)", xlim=(0.045, 2.2))
ax.set_xlabel("share of a step that all contexts have in common")
ax.set_xticks([0.05, 0.1, 0.2, 0.5, 1], ["0.05", "0.1", "0.2", "0.5", "1"])
plt.show()

# %% [markdown]
# {numref}`fig-curvature-share` puts all arms on that axis. Eq. 39 aside, which climbs, the order of the arms by accuracy is nearly that
# by the share of {eq}`eq-curvature-share`: the rank correlation is above 0.9. The splines of eight points differ in the metric and in
# the rate that goes with it, and in nothing else. It is an explanation after the fact, from twelve arms of one task and one length of
# training; longer training should flatten the curve, and would be the test of it.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the rank correlation, checked", "code_prompt_hide": "Hide the check"}
if scale.name == "cpu":
    arms_down = [(m, k) for m, k in arms_run if k != "Eq. 39" and m != "none"]
    shares = [share(of_circle[m][0], k) for m, k in arms_down]
    learned = [
        values(curve_rows, "all", method=m, preconditioner=k).mean()
        for m, k in arms_down
    ]
    ranks = [np.argsort(np.argsort(each)) for each in (shares, learned)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9
    assert len(arms_run) == 12

# %% [markdown]
# ## Wrong on purpose
#
# {numref}`fig-curvature-wrong` has both tasks by angle, and {numref}`tab-curvature-segment` the half turn.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 35 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "The line loses at its seam; the closed ellipse loses to the arc, and more so in the middle of the segment than at its ends. Test accuracy by angle minus that of a network without conditioning on the same images, in sectors of 20 degrees. Left: a full turn, twelve angles seen; the seam is at 0. Right: half a turn, all angles seen; the arc is the ellipse told the true angle. Means over five seeds and 95 % t-intervals.", "name": "fig-curvature-wrong"}, "image": {"alt": "Two panels of accuracy against angle. Left, over a full turn: ellipse and line, level from 50 to 310 degrees, the line low at both sides, 6.0 points in the last and first ten degrees. Right, over half a turn: line, arc, closed ellipse and open spline; the closed ellipse 2.9 points below the arc on average."}}
def sectors_of(rows, method):
    """Accuracy by seed and sector of ten degrees."""
    return np.stack(rows[rows.method == method].sort_values("seed").sector.to_list())


def by_angle(ax, rows, styles):
    """Accuracy minus that of no conditioning, in sectors of 20 degrees."""
    for method, (label, colour) in styles.items():
        if {method, "none"} <= {*rows["method"]}:
            more = 100 * (sectors_of(rows, method) - sectors_of(rows, "none"))
            more = more.reshape(len(more), -1, 2).mean(axis=2)
            places = np.arange(more.shape[1]) * 20 + 10
            look = dict(label=label, colour=colour, marker="")
            figures.accuracy_curve(ax, places, more, **look)
    ax.axhline(0, color=COLOURS["none"], lw=1)
    ax.set(xlabel="angle of the test image (degrees)")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, ncols=2, loc="lower left")


on_circle = {"fourier 1": ("ellipse", COLOURS["ellipse"])}
on_circle["line"] = ("line", COLOURS["line"])
on_segment = {
    "ellipse": ("closed ellipse", COLOURS["ellipse"]),
    "arc": ("arc", figures.PALETTE[7]),
    "line": ("line", COLOURS["line"]),
    "spline 4": ("open spline", FAMILIES["spline"]),
}
fig, axes = plt.subplots(1, 2, figsize=(7.4, 3.6), sharey=True)
by_angle(axes[0], fitted, on_circle)
by_angle(axes[1], segment_rows, on_segment)
axes[0].set(title="a full turn", xticks=range(0, 361, 90))
axes[0].set(ylabel="accuracy against no conditioning (points)")
axes[1].set(title="half a turn", xticks=range(0, 181, 45), ylim=(-14, 10))
plt.show()


# %% tags=["remove-input"]
def within(rows, method, sectors):
    """Accuracy by seed, averaged over some sectors."""
    return sectors_of(rows, method)[:, sectors].mean(axis=1)


PLACES = {
    "within 20° of the ends": [0, 1, 16, 17],
    "the middle 40°": [7, 8, 9, 10],
    "everywhere": list(range(18)),
}
table = [
    {"minus the arc": {"ellipse": "closed ellipse", "spline 4": "open spline"}.get(m, NAMES.get(m, m))} | {
        where: difference(within(segment_rows, m, part), within(segment_rows, "arc", part)) for where, part in PLACES.items()
    }
    for m in SEGMENTS if m != "arc" and scale.arms >= len(SEGMENTS)
]  # fmt: skip
pages.table(
    pd.DataFrame(table or [{"minus the arc": "(not at this scale)"}]),
    "On half a turn the arc is the best shape. Each method minus the arc, in points of test accuracy, with 95 % t-intervals over"
    " five seeds.",
    name="tab-curvature-segment",
)

# %% [markdown]
# **A line for a circle.** In the last and first ten degrees, where its seam is, the line is 6.0 points below the ellipse [1.9, 10.1];
# from 50 to 310 degrees it is level with it, −0.3 [−0.9, +0.3]. Over all angles it is 1.2 below [0.3, 2.0], and beyond the margin of one
# point that is {claim}`2 undecided`.
#
# **An ellipse for a segment.** Closed over the half turn it is 2.9 points below the arc [1.5, 4.3]: same points, same metric, same
# images, and only the labels of the contexts differ. That is the cost of a wrong shape with nothing else in the way. Against the line
# it is undecided, 1.0 below [−0.4, 2.4], so that an ellipse costs is {claim}`6 partly` shown. The arc is the best shape here, 1.9
# points above the line [0.9, 2.9] and 2.3 above no conditioning [0.5, 4.0].
#
# The cost is not where we expected it. That the closed ellipse loses at the two ends, which it takes for one, is
# {claim}`7 undecided`: 1.2 points [−3.6, 6.0] in the first ten degrees and 1.7 [−0.5, 3.9] in the last. Within 20 degrees of the
# ends it loses 2.3 points *less* than in the middle [0.2, 4.4]. Turned by 180 degrees an image asks for another network, and
# yet not for one so different that a common one could not serve. A reading is that the curvature costs: in half a turn of the
# world the closed ellipse has to turn around completely, and neighbouring angles share less of what they learn. The arc uses
# half of an ellipse and is twice as gentle.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the three paragraphs above, checked", "code_prompt_hide": "Hide the check"}
if scale.name == "cpu":
    both = ("fourier 1", "line")
    seam, rest = ([within(fitted, m, k) for m in both] for k in ([0, 35], range(5, 31)))
    assert difference(*seam) == "+6.0 [+1.9, +10.1]"
    assert difference(*rest[::-1]) == "−0.3 [−0.9, +0.3]"
    whole = [values(fitted, "all", method=m) for m in both]
    assert difference(*whole) == "+1.2 [+0.3, +2.0]"
    on_half = {m: values(segment_rows, "all", method=m) for m in SEGMENTS}
    beside = ("ellipse", "line", "none")
    above = [difference(on_half["arc"], on_half[m]) for m in beside]
    assert above == ["+2.9 [+1.5, +4.3]", "+1.9 [+0.9, +2.9]", "+2.3 [+0.5, +4.0]"]
    assert max(on_half, key=lambda m: on_half[m].mean()) == "arc"
    assert difference(on_half["line"], on_half["ellipse"]) == "+1.0 [−0.4, +2.4]"
    parts = [[0], [17], *PLACES.values()]
    two = ("arc", "ellipse")
    cost = [[within(segment_rows, m, part) for m in two] for part in parts]
    assert difference(*cost[0]) == "+1.2 [−3.6, +6.0]"
    assert difference(*cost[1]) == "+1.7 [−0.5, +3.9]"
    ends, middle = (arc - closed_one for arc, closed_one in cost[2:4])
    assert difference(middle, ends) == "+2.3 [+0.2, +4.4]"

# %% [markdown]
# ## Verdict
#
# The ellipse is enough at this length of training. The wrong shape costs where nothing else differs: the closed ellipse is below the
# arc by 2.9 points, and the line loses at its seam by 6.0. The published metric of splines costs 4.9 points, and the corrected one 3.3
# against none. With the products of {doc}`topology` and the spheres of {doc}`spheres`, topology is an inductive bias here, and by
# itself not a strong one.

# %% tags=["remove-input"]
caption = "A rigid curve is enough, and neither the published nor the corrected metric helps the spline. Differences in points of test accuracy, with 95 % t-intervals."
drawn = {"topology_curves": curve_rows, "topology_segment": segment_rows}
judged = verdicts.verdict_table("manifolds/curvature", scale.name, rows=drawn)
display(pages.table(judged, caption, name="tab-curvature-verdicts", look="verdicts"))
every = pd.concat([*drawn.values(), curve_search, segment_search])
Markdown(
    f"{len(every)} runs, the searches included; {min(rows.seed.nunique() for rows in drawn.values())} seeds for each arm; preset"
    f" `{scale.name}`: {scale.images:,} images of {scale.dataset}, averaged over {scale.pool} × {scale.pool} pixels, {scale.epochs}"
    f" epochs, batch {scale.batch}, widths {scale.widths}; {every.seconds.sum() / 60:.0f} minutes of one core in all, on"
    f" {every.device.iloc[0]}. Rows from code that has changed since: {int(every.stale.sum())}."
)

# %% [markdown]
# ## Limits of this chapter
#
# What limits every chapter is said in {doc}`/book/verdicts`. This chapter's own limits are these.
#
# - **Five epochs.** A shape of $n$ points has $n$ times the weights and does $n$ times the arithmetic in an epoch. A comparison at
#   equal epochs favours the smaller shape where data are few.
# - **Searches** are short: four rates, half the epochs, one seed. After half the epochs a search prefers quick rates.
# - **The published spline metric** is for an interval. Wrapped around a circle it is a circulant matrix, and the one thing that
#   distinguishes the interval, what happens at its ends, is left out here.
# - **One spacing of angles.** Twelve are seen on the full turn, and the metric is uniform over all of them. The initial size of every
#   manifold (`spread` 0.5) was not searched.
# - **Only one counterpart.** Of all arms the ellipse on rotated images alone has one in the paper; {doc}`rotated_longer` trains it
#   longer.
#
# Next: the curves for four times the epochs, as the pairs of {doc}`topology`; more seeds (raise `seeds` and rerun, no run is repeated).
#
# ## Exercises
#
# ::::{admonition} Exercise 1
# The rate $r / \operatorname{tr}(BG)$ makes the average step equal. Which of `wm.BSpline(4)` on a segment and `wm.Fourier(2)` on a circle
# takes steps of the same length at *every* context?
# :::{dropdown} Solution
# $a(s)^{\mathsf T} G^{-1} a(s)$ is constant for a Fourier curve: the squares of a cosine and a sine sum to one, and each pair
# contributes 2, the constant 1. The open spline of four points holds all cubic polynomials, so it can be computed in
# Legendre's: $\sum_{l=0}^{3} (2l + 1)\, P_l(2s - 1)^2$, which is 16 at both ends and 2.25 in the middle, around the average of
# 4. Symmetry decides: every context of a circle or a sphere is like every other, and the ends of a segment are not.
# :::
# ::::
#
# ::::{admonition} Exercise 2
# Why is $\sigma = 1/n$ in {eq}`eq-curvature-share` for $B = G^{-1}$, whatever the shape?
# :::{dropdown} Solution
# A constant is among the functions of every shape here: $a(s)^{\mathsf T} c = 1$ for some $c$. So
# $G c = \mathbb{E}[a\, a^{\mathsf T} c] = \mathbb{E}[a]$, hence
# $\mathbb{E}[a]^{\mathsf T} G^{-1}\, \mathbb{E}[a] = \mathbb{E}[a]^{\mathsf T} c = 1$, and $\operatorname{tr}(G^{-1} G) = n$.
# :::
# ::::
#
# ## Appendix: the searches, and the paper's own scale
#
# What each arm tried for its rate, and what it took ({numref}`tab-curvature-search`).


# %% tags=["remove-input"]
def searched(found, judged):
    """The search as a table: validation accuracy at each r, in points, and the best."""
    metric = (", " + found.preconditioner).where(found.preconditioner != "gram", "")
    of_task = found.task.map({"circle": "full turn", "segment": "half a turn"})
    table = found.assign(arm=of_task + ": " + found.method.replace(NAMES) + metric)
    table = (
        100
        * table.pivot(index="arm", columns="rate", values=judged).loc[
            table.arm.unique()
        ]
    )
    best = table.columns[np.argmax(table.to_numpy(), axis=1)]
    table.columns = [f"r = {r:g}" for r in table.columns]
    return table.assign(chosen=[f"r = {r:g}" for r in best]), list(best)


of_curves, of_segment = searched(curve_search, "seen"), searched(segment_search, "all")
best = of_curves[1] + of_segment[1]
display(pages.table(
    pd.concat([of_curves[0], of_segment[0]]),
    "Most arms take the second of four rates. Validation accuracy in per cent, at the angles seen, at each rate searched, after half"
    " the epochs, one seed, so that no difference has an interval.",
    name="tab-curvature-search", floatfmt=".1f",
))  # fmt: skip
Markdown(
    f"Choices at the lower edge of the range: {best.count(min(scale.rates))} of {len(best)}; at the upper one:"
    f" {best.count(max(scale.rates))}; the second rate: {sum(r == scale.rates[min(1, len(scale.rates) - 1)] for r in best)}."
)

# %% [markdown]
# The preset `paper` has the size of the paper's experiments and has not been run. The arithmetic of a step is traced on shapes
# alone, for networks of 1, 3 and 12 points. It grows with the number of points as a straight line, which the next cell checks, and
# {numref}`tab-curvature-cost` follows from the number of points of every arm.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The count of operations, 32 lines", "code_prompt_hide": "Hide it"}
def work(task, method, transform, shape, context, batch, **cnn):
    """Floating-point operations of one step by XLA's count; nothing is computed."""
    manifold = SHAPES[task][method][0] if method in SHAPES[task] else None
    optimise = optimiser(manifold, "gram")
    net = eqx.filter_eval_shape(
        lambda: network(task, method, jax.random.key(0), in_shape=shape, **cnn)
    )
    state = eqx.filter_eval_shape(
        lambda n: optimise.init(eqx.filter(n, eqx.is_inexact_array)), net
    )
    shapes = [((batch, *shape), jnp.float32), ((batch,), jnp.int32)]
    shapes += [((batch, *context), jnp.float32)]
    data = [jax.ShapeDtypeStruct(*spec) for spec in shapes]
    arrays, rest = eqx.partition(
        (net, state), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    )

    def one(arrays, x, y, s):
        net, state = eqx.combine(arrays, rest)
        fixed = (optimise, jnp.float32(0.01), transform)
        stepped = step(fixed, net, state, x, y, s, jax.random.key(0))
        return eqx.filter(stepped, eqx.is_array)

    return (jax.jit(one).lower(arrays, *data).cost_analysis() or {})["flops"]


sizes = dict(batch=paper["batch"], widths=tuple(paper["widths"]), units=paper["units"])
given, three = (turn, (3, 32, 32), ()), ("none", "fourier 1", "spline 12")
traced = {m: work("circle", m, *given, **sizes) for m in three}
slope = (traced["spline 12"] - traced["fourier 1"]) / 9
expected = traced["fourier 1"] - 2 * slope
assert abs(expected - traced["none"]) < 0.15 * traced["none"]

# %% tags=["remove-input"]
steps = paper["epochs"] * (paper["images"] // paper["batch"])
runs_of = len(paper["rates"]) / 2 + paper["seeds"]  # a search has half the epochs
cost = []
for task, (words, methods) in {
    "circle": ("curves and metrics", [*CURVES, *["spline 8"] * 3]),
    "segment": ("half a turn", SEGMENTS),
}.items():
    count = {"none": 1} | {m: shape.size for m, (shape, _) in SHAPES[task].items()}
    a_step = sum(traced["none"] + (count[m] - 1) * slope for m in methods)
    cost.append({
        "experiment": words, "arms": len(methods), "GFLOP a step, all arms": a_step / 1e9,
        "PFLOP, seeds and searches": a_step * steps * runs_of / 1e15,
    })  # fmt: skip
total = sum(row["PFLOP, seeds and searches"] for row in cost)
display(pages.table(
    pd.DataFrame(cost),
    f"At the paper's scale the curves would take {total / 1000:.1f} EFLOP, {total * 100 / 3600:.0f} hours on a device that sustains"
    f" 10 TFLOP/s. Nothing of it has been run. One more point costs {slope / 1e9:.2f} GFLOP a step; from the line, one point:"
    f" {expected / 1e9:.2f}, traced: {traced['none'] / 1e9:.2f}.",
    name="tab-curvature-cost", floatfmt=".1f",
))  # fmt: skip
