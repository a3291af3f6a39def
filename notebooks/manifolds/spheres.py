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
# # Solids seen from all sides, on a sphere
#
# The directions from which a solid can be seen form a sphere. Is a sphere of weights the right shape for them, and what do a line
# and an ellipse cost in its place?

# %% tags=["remove-input"]
import dataclasses
from collections.abc import Callable
from functools import cache, lru_cache
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
recorded = runs.recorded_runs("topology_sphere", "cpu", results=book)


def from_all_sides(method, count):
    """Test accuracy over all directions, in points, by seed."""
    part = recorded[(recorded.method == method) & (recorded["views"] == count)]
    return 100 * part.sort_values("seed")["all"].to_numpy(float)


def lead(over, count):
    return pages.interval(
        from_all_sides("sphere 1", count) - from_all_sides(over, count), "points"
    )


numbers = {
    "40 directions seen, the sphere above no conditioning": ("none", 40),
    "40 directions seen, the sphere above a line": ("line", 40),
    "12 directions seen, the sphere above concatenation": ("concat", 12),
}
pages.findings(
    "With directions enough the sphere of four points is well above a network that is told nothing, and above wrong shapes. It is not"
    " shown to be above one that takes the direction as an input, and with few directions it is below that one.",
    {k: lead(*v) for k, v in numbers.items() if len(recorded)},
    before="{doc}`topology`.",
)

# %% tags=["remove-input"] mystnb={"figure": {"caption": "The sphere pays against no conditioning and against wrong shapes, and not against concatenation. Each bar is the 95 % t-interval of one comparison over five seeds, in units of the least difference that matters, one point; what the claim expects lies to the right of the grey band.", "name": "fig-spheres-verdicts"}, "image": {"alt": "Intervals of three claims in units of one point. First: one of four lies right of one, one left of minus one, two reach over the band. Second: three of four lie right of one. Third: one left of minus one, one right of it."}}
judged = verdicts.judge_chapter("manifolds/spheres", "cpu", results=book)
verdicts.plot_verdicts(judged)
plt.show()

# %% [markdown]
# How to read {numref}`fig-spheres-verdicts`, and what the words mean, is said once for all chapters in {doc}`/book/verdicts`.
#
# ## The question
#
# **The paper** opens with the claim that classifying solid objects from arbitrary orientations lies on the surface of a sphere,
# and supposes that a sphere of weights would serve it {cite:p}`benjamin2025walking`. It shows no such experiment. Here is a small
# one.
#
# **The task.** Four cubes joined by their faces make eight solids, two of them mirror images of each other; people know them
# from the study of mental rotation. A solid is seen from a direction $s$, a unit vector in its own frame, in parallel projection;
# near surfaces are bright. The context is $s$, the label is the solid.
#
# One difficulty is topological itself. A camera that looks from $s$ also needs an up-vector, a tangent of the sphere at $s$, and
# no continuous choice of one exists over the whole sphere: a hairy ball cannot be combed. With any rule for "up" two neighbouring
# views would somewhere be turned against each other, and the task would not live on a sphere. We give every image a random roll
# about the line of sight instead. The network is not told the roll: it is a nuisance that it has to learn to ignore, and what it
# *is* told has the topology of a sphere.
#
# **What we expected.** A sphere of degree 1 (an ellipsoid, four points) is above the rivals. Degree 2 (nine points) is better
# still with 40 directions seen, and too loose with 12. A line hears of the height $z$ alone, and an ellipse of the azimuth alone,
# which tears the sphere at its poles: both do worse than the sphere. These words are claims in
# `book/claims/manifolds/spheres.toml`. They entered the history in one commit with their first rows, and so none is a test.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The settings of the three presets, 20 lines", "code_prompt_hide": "Hide the settings"}
# The recorded runs have the data set and its pooling among their settings, as the runs
# with photographs have. No photograph is shown here, and neither plays a part.
paper: dict[str, Any] = dict(
    seeds=20, dataset="cifar10", pool=1, images=45_000, validation=5_000, test=10_000,
    epochs=50, batch=128, widths=[32, 64], units=512,
    rates=[0.007, 0.02, 0.06, 0.18], arms=99, views=[40, 12],
)  # fmt: skip
scale = wm.preset(
    quick=dict(
        seeds=1, dataset="mnist5k", pool=2, images=128, validation=64, test=64,
        epochs=1, batch=64, widths=[4], units=10, rates=[0.02], arms=1, views=[12],
    ),
    cpu=dict(
        seeds=5, dataset="cifar10", pool=2,
        images=6_000, validation=5_000, test=5_000, epochs=10,
        batch=32, widths=[16, 32], units=128,
        rates=[0.007, 0.02, 0.06, 0.18], arms=99, views=[40, 12],
    ),
    paper=paper,
)  # fmt: skip

# %% [markdown]
# ## The solids

# %%
TETRACUBES = {  # all ways to join four cubes by their faces: where they are
    "straight": [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)],
    "square": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)],
    "L": [(0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 1, 0)],
    "T": [(0, 0, 0), (1, 0, 0), (2, 0, 0), (1, 1, 0)],
    "S": [(0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 1, 0)],
    "corner": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)],
    "left screw": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 0, 1)],
    "right screw": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 1)],
}
PIXELS, GRAIN = 20, 0.1


def frames(view, roll):
    """Right, up and forward of each camera: any up-vector, turned by the roll."""
    helper = np.where(np.abs(view[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    right = np.cross(helper, view)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    up, cos, sin = np.cross(view, right), np.cos(roll)[:, None], np.sin(roll)[:, None]
    return cos * right + sin * up, cos * up - sin * right, -view


# %% [markdown]
# A ray meets a box where it is inside all three pairs of parallel faces at once. So it enters at the last of its three entries and
# leaves at the first of its three exits, if that order is possible, and a solid of four boxes needs no marching.


# %%
def render(solid, view, roll, pixels=PIXELS):
    """Parallel projections: nearness of the first surface on a ray, 0 where none is."""
    right, up, forward = (axis[:, None, None] for axis in frames(view, roll))
    v, u = np.meshgrid(
        *[(np.arange(pixels) + 0.5) / pixels * 4.4 - 2.2] * 2, indexing="ij"
    )
    start = (
        u[..., None] * right - v[..., None] * up - 4 * forward
    )  # on a plane in front of the solid
    centres = np.array(list(TETRACUBES.values()), float)
    centres -= centres.mean(axis=1, keepdims=True)
    first = np.full(start.shape[:-1], np.inf)
    slope = np.where(np.abs(forward) < 1e-9, 1e-9, forward)
    for cube in range(4):
        to = centres[solid, cube][:, None, None] - start
        enter = ((to - 0.5 * np.sign(slope)) / slope).max(axis=-1)
        leave = ((to + 0.5 * np.sign(slope)) / slope).min(axis=-1)
        first = np.where(enter < leave, np.minimum(first, enter), first)
    return np.where(np.isfinite(first), (6.5 - first) / 4, 0).astype(np.float32)


# %%
def grain(x, s, key):
    """The direction of a view has made the image already; only noise is added."""
    return x + GRAIN * jax.random.normal(key, x.shape)


# %% [markdown]
# **Check.** The slow way: walk along each ray in small steps and stop at the first point inside a cube. The two agree to a
# step, but for a ray that grazes an edge for less than one. And a mirror: the left screw, seen from a direction with its first two
# coordinates exchanged, is the right screw's picture reflected.


# %%
def marched(solid, view, roll, pixels, step=0.004):
    """One image by brute force."""
    right, up, forward = (axis[0] for axis in frames(view[None], np.array([roll])))
    cubes = np.array(list(TETRACUBES.values())[solid], float)
    place = (np.arange(pixels) + 0.5) / pixels * 4.4 - 2.2
    centres, distance = cubes - cubes.mean(axis=0), np.arange(1.5, 6.5, step)
    ray = place[None, :, None] * right - place[:, None, None] * up - 4 * forward
    at = ray[:, :, None] + distance[:, None] * forward
    inside = (np.abs(at[..., None, :] - centres).max(axis=-1) < 0.5).any(axis=-1)
    return np.where(
        inside.any(axis=-1), (6.5 - distance[inside.argmax(axis=-1)]) / 4, 0
    )


# %%
view, roll = np.array([[0.48, -0.6, 0.64]]), np.array([0.7])
for solid in (2, 5, 6):
    fast = render(np.array([solid]), view, roll, 12)[0]
    gap = np.abs(fast - marched(solid, view[0], 0.7, 12))
    beyond, median = (gap > 0.001).sum(), np.median(gap[fast > 0])
    print(f"{list(TETRACUBES)[solid]}: median {median:.5f}, beyond a step {beyond}")
    assert beyond <= 1

# %%
of_left, of_right = (
    list(TETRACUBES).index(name) for name in ("left screw", "right screw")
)
left, gaps = render(np.array([of_left]), view, np.zeros(1))[0], []
for angle in np.linspace(0, 2 * np.pi, 721):  # which it is depends on the up-vector
    mirror = view[:, [1, 0, 2]]
    image = render(np.array([of_right]), mirror, np.array([angle]))[0][:, ::-1]
    gaps.append(np.mean((left > 0) != (image > 0)))
best, median = min(gaps), np.median(gaps)
print(
    f"pixels that differ: {best:.3f} at the best roll, {median:.3f} at the median one"
)
assert best < 0.02 < median

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 14 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "The eight solids can be told apart, the two screws only by their relief. Each from three directions drawn at random, and once more with the noise of the experiment. Near surfaces are bright.", "name": "fig-spheres-solids"}, "image": {"alt": "Four rows of eight small grey pictures of solids made of four cubes, three rows clean and one row with strong pixel noise."}}
draw = np.random.default_rng(3)
facing = draw.normal(size=(24, 3))
facing /= np.linalg.norm(facing, axis=1, keepdims=True)
pictures = render(np.arange(24) % 8, facing, draw.uniform(0, 2 * np.pi, 24))
fig, axes = plt.subplots(4, 8, figsize=(7.2, 3.9))
for i, ax in enumerate(axes.flat):
    picture = pictures[i] if i < 24 else pictures[i - 8]
    if i >= 24:
        picture = picture + GRAIN * draw.normal(size=(PIXELS, PIXELS))
    ax.imshow(picture, cmap="gray", vmin=0 if i < 24 else -0.2, vmax=1.2)
    if i < 8:
        ax.set_title(list(TETRACUBES)[i], fontsize=8, loc="center")
    ax.set_axis_off()
plt.show()

# %% [markdown]
# {numref}`fig-spheres-solids` shows them. Training sees 40 directions or 12, spread evenly and turned as a whole at random for each
# seed; the test draws directions uniformly. From 12 directions the nearest seen one is 23 degrees away on average, from 40
# it is 12.


# %%
def directions(key, count):
    """Directions spread evenly (a Fibonacci lattice), turned at random as a whole."""
    i, (of_turn, of_sign) = np.arange(count) + 0.5, jax.random.split(key)
    z, angle = 1 - 2 * i / count, np.pi * (1 + 5**0.5) * i
    flat = np.sqrt(1 - z**2)
    turn, _ = np.linalg.qr(np.asarray(jax.random.normal(of_turn, (3, 3)), np.float64))
    turn = turn * np.where(np.asarray(jax.random.bernoulli(of_sign, shape=(3,))), 1, -1)
    return np.stack([flat * np.cos(angle), flat * np.sin(angle), z], axis=1) @ turn


# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the two angles, checked", "code_prompt_hide": "Hide the check"}
anywhere = np.random.default_rng(0).normal(size=(20_000, 3))
anywhere /= np.linalg.norm(anywhere, axis=1, keepdims=True)
for count, degrees in ((12, 23), (40, 12)):
    cosines = (anywhere @ directions(jax.random.key(0), count).T).max(axis=1)
    assert round(np.degrees(np.arccos(np.minimum(cosines, 1))).mean()) == degrees

# %% [markdown]
# ## Six methods
#
# Two spheres, a line and an ellipse stand beside concatenation, which takes the direction as three more inputs, and a network that
# is told nothing. They are entries of one table of shapes. Table and networks are those of {doc}`topology`, letter for letter: recorded
# runs are held to the code that made them.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The shapes of all tasks, and the networks, 96 lines", "code_prompt_hide": "Hide them"}
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
# ## Training
#
# Training too is that of {doc}`topology`. A rate means the same for shapes of two points and of nine: with the inverse metric of $n$
# points we search over $r = \eta\, n$.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The training loop and the test, 164 lines", "code_prompt_hide": "Hide them"}
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


def reach(manifold, metric):
    """E_s[aᵀ|B|a], by which B lengthens a step of M(s); n for the inverse metric."""
    values, vectors = np.linalg.eigh(inverse_metric(manifold, metric))
    return float(
        np.trace(
            vectors @ np.diag(np.abs(values)) @ vectors.T @ np.asarray(manifold.gram())
        )
    )


@cache  # one object for one setting, so that a step is compiled once
def optimiser(manifold, metric):
    """Momentum 0.9, after the metric; the learning rate comes last, in `step`."""
    momentum = optax.trace(0.9)
    if manifold is None:
        return momentum
    if metric == "gram":
        return optax.chain(wm.precondition(manifold), momentum)
    return optax.chain(mix_points(inverse_metric(manifold, metric)), momentum)


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


def by_part(where, right, parts):
    """The share of right answers in each of some parts."""
    shown = np.bincount(where, minlength=parts)
    return np.round(np.bincount(where, right, parts) / np.maximum(shown, 1), 4)


# %% [markdown]
# ## The search and the runs
#
# For each arm four values of $r$ are tried at 40 directions, with half the epochs and one seed. The judge is accuracy on new images
# *from the directions seen in training*; nobody may look at an unseen direction before the test.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "Images, one run, its search and the sweeps, 90 lines", "code_prompt_hide": "Hide them"}
@lru_cache(maxsize=8)  # all methods of one seed share them
def views(seed, count, among=None):
    """Images of random solids from random directions, or from some, randomly rolled."""
    draw = np.random.default_rng(seed)
    solid = draw.integers(0, len(TETRACUBES), count)
    if among is None:
        view = draw.normal(size=(count, 3))
    else:
        view = np.array(among)[draw.integers(0, len(among), count)]
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    roll = draw.uniform(0, 2 * np.pi, count)
    parts = zip(
        *(np.array_split(a, count // 64) for a in (solid, view, roll)), strict=True
    )
    shown = np.concatenate([render(*part) for part in parts])[:, None]
    return jnp.asarray(shown), jnp.asarray(solid), jnp.asarray(view, jnp.float32)


def sphere(config, key):
    """One run: accuracy on new images from seen directions, and from all."""
    of_directions, of_training = jax.random.split(key)
    known, held_out = (
        directions(of_directions, config["views"]),
        config["split"] == "test",
    )
    seed = int(jax.random.randint(of_directions, (), 0, 2**30))
    among, count = (
        tuple(map(tuple, known)),
        config["test" if held_out else "validation"],
    )
    x, y, s = views((0, seed), config["images"], among)
    net, losses = train(config, of_training, grain, x, y, lambda k: s)
    x, y, s = views((1 + held_out, seed), count, among)
    seen = hits(net, grain, x, y, s)
    x, y, s = views((3 + held_out,), count)
    right = hits(net, grain, x, y, s)
    apart = np.degrees(np.arccos(np.clip(np.asarray(s) @ known.T, -1, 1).max(axis=1)))
    place = np.minimum(apart // 5, 11).astype(int)
    curves = {
        "loss": losses,
        "by_class": by_part(np.asarray(y), right, len(TETRACUBES)),
    }
    curves |= {"at_distance": np.bincount(place, minlength=12)}
    curves |= {"right_at_distance": np.bincount(place, right, 12)}
    metrics = {"seen": seen.mean(), "all": right.mean(), "extent": extent(net)}
    return {
        "metrics": metrics,
        "curves": curves,
        "data": "synthetic: views of tetracubes, drawn by the seed of the run",
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


SPHERES = ["sphere 1", "sphere 2", "none", "concat", "line", "ellipse"]
sphere_arms = arms("sphere", SPHERES, views=scale.views[0])
sphere_search, sphere_setting = tuned("topology_sphere", sphere, sphere_arms, "seen")
grid = [{**sphere_setting(a), "views": v} for v in scale.views for a in sphere_arms]
sphere_rows = wm.sweep("topology_sphere", sphere, grid, scale)

# %% [markdown]
# ## Is the sphere the right shape?
#
# {numref}`fig-spheres-accuracy` compares the methods, and {numref}`tab-spheres-differences` has the paired differences.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 49 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "With 40 directions the small sphere and concatenation lead; with 12 concatenation leads alone. Test accuracy over all directions (filled) and on new images from the directions seen in training (open). Chance is 12.5 %. Means over five seeds and 95 % t-intervals.", "name": "fig-spheres-accuracy"}, "image": {"alt": "Two panels, for 40 and for 12 directions seen in training, with a row for each method and two dots with intervals in each. Over all directions the sphere of degree 1 is 10.5 points above no conditioning with 40 directions and 0.7 with 12, and 1.3 above and 8.8 below concatenation."}}
COLOURS = figures.METHOD_COLOURS | {
    "sphere 1": figures.PALETTE[2],
    "sphere 2": figures.PALETTE[7],
}
NAMES = {
    "sphere 1": "sphere, degree 1",
    "sphere 2": "sphere, degree 2",
    "line": "line (height)",
    "ellipse": "ellipse (azimuth)",
    "none": "no conditioning",
    "concat": "concatenation",
}
order = [m for m in NAMES if m in SPHERES[: scale.arms]]
order = sorted(order, key=["concat", "none"].count)


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


def row(ax, at, method, count):
    """Two dots with intervals: over all directions, and at those seen."""
    colour = COLOURS[method]
    for metric, face, up in (("all", colour, -0.12), ("seen", figures.GROUND, 0.12)):
        each = 100 * values(sphere_rows, metric, views=count, method=method)
        ax.plot(figures.t_interval(each), [at + up] * 2, color=colour, lw=1.4)
        ax.plot(each.mean(), at + up, "o", mfc=face, mec=colour, zorder=3)


size = dict(figsize=(7.4, 3.1), sharex=True, squeeze=False)
fig, axes = plt.subplots(1, len(scale.views), **size)
for ax, count in zip(axes[0], scale.views, strict=True):
    for at, method in enumerate(order):
        row(ax, at, method, count)
    ax.set_yticks(range(len(order)), [NAMES[m] for m in order])
    ax.set(ylim=(len(order) - 0.5, -0.5), xlabel="test accuracy (%)")
    ax.set_title(f"{count} directions seen")
plt.show()

# %% tags=["remove-input"]
table = [
    {
        "directions seen": count,
        "the sphere of degree 1 minus": NAMES[method],
        **{
            words: difference(
                *(
                    values(sphere_rows, metric, views=count, method=m)
                    for m in ("sphere 1", method)
                )
            )
            for metric, words in (
                ("all", "all directions"),
                ("seen", "the directions seen"),
            )
        },
    }
    for count in scale.views
    for method in order
    if method != "sphere 1" or scale.arms == 1
]
pages.table(
    pd.DataFrame(table),
    "Over all directions no method but concatenation is above the sphere of degree 1. Differences in points of test accuracy, with"
    " 95 % t-intervals over five seeds.",
    name="tab-spheres-differences",
)

# %% [markdown]
# That a sphere is the right shape is {claim}`1 mixed`. With 40 directions the sphere of degree 1 is 10.5 points above no
# conditioning [7.4, 13.6]. Against concatenation it is undecided, with +1.3 [−2.1, +4.7]. With 12 directions it is undecided
# against no conditioning, +0.7 [−3.1, +4.5], and 8.8 points below concatenation [5.3, 12.2].
#
# That the wrong shapes are below it is {claim}`2 partly` shown: the line by 9.7 points with 40 directions [6.7, 12.8], the
# ellipse, which tears the sphere at its poles, by 5.0 [2.6, 7.3] and with 12 directions by 4.8 [2.0, 7.5]. The line with 12
# directions, 3.0 below [−0.2, 6.3], is undecided.
#
# Degree 2 was to be better with 40 directions and not with 12. That is {claim}`3 mixed`: it is the lower one with both, by
# 4.6 points [1.8, 7.4] and by 7.4 [5.1, 9.6]. With nine points it may be a matter of speed, as for the products of
# {doc}`topology`. At the 40 directions seen its mean is 3.9 points lower too, but that interval includes zero [−0.7, 8.5].

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the three paragraphs above, checked", "code_prompt_hide": "Hide the check"}
if scale.name == "cpu":

    def sphere_over(method, views, metric="all"):
        """How far the sphere of degree 1 is above another method."""
        both, at = ("sphere 1", method), dict(views=views)
        each = [values(sphere_rows, metric, method=m, **at) for m in both]
        return difference(*each)

    assert sphere_over("none", 40) == "+10.5 [+7.4, +13.6]"
    assert sphere_over("concat", 40) == "+1.3 [−2.1, +4.7]"
    assert sphere_over("none", 12) == "+0.7 [−3.1, +4.5]"
    assert sphere_over("concat", 12) == "−8.8 [−12.2, −5.3]"
    assert sphere_over("line", 40) == "+9.7 [+6.7, +12.8]"
    assert sphere_over("line", 12) == "+3.0 [−0.2, +6.3]"
    assert sphere_over("ellipse", 40) == "+5.0 [+2.6, +7.3]"
    assert sphere_over("ellipse", 12) == "+4.8 [+2.0, +7.5]"
    assert sphere_over("sphere 2", 40) == "+4.6 [+1.8, +7.4]"
    assert sphere_over("sphere 2", 12) == "+7.4 [+5.1, +9.6]"
    assert sphere_over("sphere 2", 40, "seen") == "+3.9 [−0.7, +8.5]"
    assert sphere_over("concat", 12, "seen") == "+13.5 [+9.9, +17.1]"
    means = {
        (m, v): values(sphere_rows, "all", method=m, views=v).mean()
        for m in SPHERES
        for v in scale.views
    }
    others = {m for m, v in means if means[m, v] > means["sphere 1", v]}
    assert others == {"concat"}
    assert max(SPHERES, key=lambda m: means[m, 12]) == "concat"

# %% [markdown]
# ## Where it loses
#
# {numref}`fig-spheres-distance` follows the methods away from the directions seen.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 15 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "The sphere of degree 1 leads near the directions it has seen, and is shown to be below no conditioning from 30 degrees on. Test accuracy against the angle between a view and the nearest direction seen in training, with the fewest directions. Means over five seeds and 95 % t-intervals.", "name": "fig-spheres-distance"}, "image": {"alt": "Four curves of accuracy against the angular distance to the nearest of 12 seen directions. The sphere of degree 1 starts above concatenation and no conditioning, falls below concatenation on the way, and from 30 degrees on is below no conditioning, by 6.2 points at first."}}
fewest = min(scale.views)
fig, ax = plt.subplots(figsize=(6.6, 3.6))
for method in [m for m in order if m not in ("line", "ellipse")]:
    found = sphere_rows.query("views == @fewest and method == @method")
    shown = np.array([*found["at_distance"]])
    right = np.array([*found["right_at_distance"]])
    enough = (shown >= 20).all(axis=0)
    rate = 100 * right[:, enough] / shown[:, enough]
    middle = (np.arange(12) * 5 + 2.5)[enough]
    style = dict(label=NAMES[method], colour=COLOURS[method])
    figures.accuracy_curve(ax, middle, rate, **style)
ax.set(xlabel="angle to the nearest direction seen (degrees)")
ax.set(ylabel="test accuracy (%)")
ax.legend()
plt.show()

# %% [markdown]
# With 12 directions the sphere of degree 1 is 13.5 points above concatenation at those it has seen [9.9, 17.1]. It falls steeply
# with the distance. From 30 degrees on it is below a network that was told nothing, by 6.2 points between 30 and 35 [1.4, 11.0].
# Concatenation loses less on the way and leads over all directions. So the shape is right and the hold on it too loose, as with the
# pairs of {doc}`topology`.
#
# One difference is in kind. The left and the right screw are mirror images. From a picture with an unknown viewpoint and roll, the
# two can be told apart only by their relief; a network that knows the viewpoint has more to go by. {numref}`tab-spheres-screws` has
# the mean accuracy on these two solids. A network that gives all screws one name gets half of them right. With 40 directions seen
# the two spheres reach 61 and 59 %, and no other method more than 43 %.

# %% tags=["remove-input"]
screws = [list(TETRACUBES).index(name) for name in ("left screw", "right screw")]
table_of_screws = {
    f"{count} directions": {
        m: 100 * np.mean([
            np.array(row["by_class"])[screws] for row in sphere_rows.to_dict("records")
            if (row["views"], row["method"]) == (count, m)
        ]) for m in order
    } for count in scale.views
}  # fmt: skip
pages.table(
    pd.DataFrame(table_of_screws).rename(index=NAMES).rename_axis("method"),
    "With 40 directions only the spheres get more than half of the screws right. Accuracy on the two screws in per cent, over all"
    " directions, means over five seeds.",
    name="tab-spheres-screws",
    floatfmt=".0f",
)

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ this section, checked", "code_prompt_hide": "Hide the check"}
if scale.name == "cpu":
    by_distance = {}
    for method in ("sphere 1", "none"):
        found = sphere_rows.query("views == 12 and method == @method")
        found = found.sort_values("seed")
        shown = np.array([*found["at_distance"]])
        right = np.array([*found["right_at_distance"]])
        by_distance[method] = right[:, :9] / shown[:, :9]  # up to 45 degrees
    behind = (by_distance["none"] - by_distance["sphere 1"])[:, 6:]
    assert difference(behind[:, 0], 0 * behind[:, 0]) == "+6.2 [+1.4, +11.0]"
    assert all(figures.t_interval(seeds)[0] > 0 for seeds in behind.T)
    tell = table_of_screws["40 directions"]
    assert [round(tell[m]) for m in ("sphere 1", "sphere 2")] == [61, 59]
    assert round(max(v for m, v in tell.items() if "sphere" not in m)) == 43
    at_seen = {
        m: values(sphere_rows, "seen", method=m, views=12).mean()
        for m in ("sphere 1", "sphere 2", "concat", "none")
    }
    assert sorted(at_seen, key=at_seen.__getitem__)[2:] == ["sphere 2", "sphere 1"]

# %% [markdown]
# ## Verdict
#
# A right shape of few points pays when contexts are enough to hold it: with 40 directions the sphere of degree 1 is 10.5 points
# above a network that is told nothing. A wrong shape costs in three cases of four. Whether the shape is better than the bare direction
# as an input is undecided with 40 directions, and with 12 it is worse. A reading: held by few contexts a right shape fits those and
# lets go of the rest, while a network that takes the context as an input has no choice but to generalise.

# %% tags=["remove-input"]
caption = "The sphere is right for some comparisons and not for others. Differences in points of test accuracy, with 95 % t-intervals."
judged = verdicts.verdict_table(
    "manifolds/spheres", scale.name, rows={"topology_sphere": sphere_rows}
)
display(pages.table(judged, caption, name="tab-spheres-verdicts", look="verdicts"))
every = pd.concat([sphere_rows, sphere_search])
Markdown(
    f"{len(every)} runs, the search included; {sphere_rows.seed.nunique()} seeds for each point; preset `{scale.name}`:"
    f" {scale.images:,} pictures of {PIXELS} × {PIXELS} pixels, {scale.epochs} epochs, batch {scale.batch}, widths {scale.widths};"
    f" {every.seconds.sum() / 60:.0f} minutes of one core in all, on {every.device.iloc[0]}. Rows from code that has changed since:"
    f" {int(every.stale.sum())}."
)

# %% [markdown]
# ## Limits of this chapter
#
# What limits every chapter is said in {doc}`/book/verdicts`. This chapter's own limits are these.
#
# - **The roll** of the solids is a nuisance for every method. Told the roll as well, the context would be a rotation, and the
#   right shape would be that of the rotation group, which is neither a sphere nor any shape of this library.
# - **Equal epochs.** A shape of $n$ points does $n$ times the arithmetic in an epoch. Ten epochs may be too few for nine points;
#   no longer runs were made.
# - **One search**, at 40 directions, of four rates over five epochs with one seed. The same rates serve with 12.
# - **One grain** of noise, set with the batch size by a few pilots that are not recorded; the initial size of every manifold
#   (`spread` 0.5) was not searched.
# - **The metric is uniform** over the sphere also where training sees twelve directions of it.
#
# Next: four times the epochs, as for the pairs, and more seeds (raise `seeds` and rerun, no run is repeated).
#
# ## Exercises
#
# ::::{admonition} Exercise 1
# Two views of a solid from opposite directions show the same outline, reflected. Suppose that for some task opposite directions
# really are one context. Which shape is right, and which basis functions of `wm.Sphere(2)` belong to it?
# :::{dropdown} Solution
# Directions up to sign form the projective plane. A function on it is an even function on the sphere, so the harmonics of
# even degree belong to it: the constant and the five of degree 2, six points. `wm.Sphere(1)` is the wrong shape there: all
# its functions but the constant are odd.
# :::
# ::::
#
# ::::{admonition} Exercise 2
# The ellipse of this chapter is told the azimuth. Near which directions do two views that are close together get networks far
# apart, and how far at most?
# :::{dropdown} Solution
# Near the poles. Two directions at the height $z$ and opposite azimuths are an angle $2 \arccos z$ apart, which goes to zero there,
# while the ellipse answers with two networks at opposite ends of a diameter.
# :::
# ::::
#
# ## Appendix: the search, and the paper's own scale
#
# What each arm tried for its rate, and what it took ({numref}`tab-spheres-search`).


# %% tags=["remove-input"]
def searched(found, judged):
    """The search as a table: validation accuracy at each r, in points, and the best."""
    table = (
        100
        * found.pivot(index="method", columns="rate", values=judged).loc[
            found.method.unique()
        ]
    )
    best = table.columns[np.argmax(table.to_numpy(), axis=1)]
    table.columns = [f"r = {r:g}" for r in table.columns]
    return table.rename(index=NAMES).assign(chosen=[f"r = {r:g}" for r in best]), list(
        best
    )


table, best = searched(sphere_search, "seen")
display(pages.table(
    table,
    "Most arms take the third of four rates. Validation accuracy in per cent at the 40 directions seen, at each rate searched, after"
    " half the epochs, one seed, so that no difference has an interval.",
    name="tab-spheres-search", floatfmt=".1f",
))  # fmt: skip
Markdown(
    f"Choices at the lower edge of the range: {best.count(min(scale.rates))} of {len(best)}; at the upper one:"
    f" {best.count(max(scale.rates))}; the third rate: {sum(r == scale.rates[min(2, len(scale.rates) - 1)] for r in best)}."
)

# %% [markdown]
# The preset `paper` has the size of the paper's experiments and has not been run. The arithmetic of a step is traced on shapes
# alone; {numref}`tab-spheres-cost` follows from the number of points of every arm.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The count of operations, 34 lines", "code_prompt_hide": "Hide it"}
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
given = (grain, (1, PIXELS, PIXELS), (3,))
traced = {
    m: work("sphere", m, *given, **sizes) for m in ("none", "sphere 1", "sphere 2")
}
slope = (traced["sphere 2"] - traced["sphere 1"]) / 5
expected = traced["sphere 1"] - 3 * slope
assert abs(expected - traced["none"]) < 0.15 * traced["none"]

# %% tags=["remove-input"]
COUNT = {"none": 1, "concat": 1} | {
    m: shape.size for m, (shape, _) in SHAPES["sphere"].items()
}
a_step = sum(traced["none"] + (COUNT[m] - 1) * slope for m in SPHERES)
steps = paper["epochs"] * (paper["images"] // paper["batch"])
total = (
    a_step
    * steps
    * (len(paper["rates"]) / 2 + paper["seeds"] * len(paper["views"]))
    / 1e15
)
cost = [
    {
        "arms": len(SPHERES),
        "GFLOP a step, all arms": a_step / 1e9,
        "PFLOP, seeds and search": total,
    }
]
display(pages.table(
    pd.DataFrame(cost),
    f"At the paper's scale the solids would take {total / 1000:.1g} EFLOP, {total * 100 / 3600:.1f} hours on a device that sustains"
    f" 10 TFLOP/s. Nothing of it has been run. One more point costs {slope / 1e9:.2f} GFLOP a step; from the line, one point:"
    f" {expected / 1e9:.2f}, traced: {traced['none'] / 1e9:.2f}.",
    name="tab-spheres-cost", floatfmt=".1f",
))  # fmt: skip
