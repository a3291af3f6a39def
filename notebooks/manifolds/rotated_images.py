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
# # Rotated images
#
# The first experiment of *Walking the Weight Manifold* asks whether a network whose weights follow an ellipse can
# classify images at angles that it has never seen. This chapter repeats it at a scale that two processor cores can do,
# with a rival in every form that the paper names, each tuned alike, and with the ablation that the paper leaves out: the
# same ellipse without its metric. It ends with a verdict on each claim, computed from the recorded runs.
#
# **The paper.** Images of CIFAR-10 are turned by an angle $2\pi s$, and $s$ is the context. Training sees only a fraction
# of the angles; the test draws from all. The reported finding (its Fig. 2b) has two parts: the ellipse is above the
# rivals, and it keeps its accuracy as the angles get sparser while the rivals lose theirs {cite:p}`benjamin2025walking`.
# The network is the CNN of its appendix D; its figure averages 20 seeds and gives no table of numbers.

# %%
import dataclasses
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
import scipy.ndimage
from IPython.display import Markdown, display
from jax.scipy.ndimage import map_coordinates

import wmlib as wm
from wmlib.lab import figures, verdicts

figures.use_style()

# %% [markdown]
# ## The scale
#
# Three presets share all the code below. What this page shows was recorded at `cpu`; `quick` is what the tests run, and
# `paper` is the paper's own scale, which has been traced (at the end of this page) and not run. Every setting enters the
# record of every run, so no number on this page has settings that cannot be looked up in
# `book/results/rotated_images.jsonl`.

# %%
paper = dict(
    seeds=20, together=True, dataset="cifar10", images=45_000, validation=5_000, test=10_000,
    epochs=50, batch=128, widths=[32, 64, 128], units=512, fractions=[1.0, 0.3, 0.1, 0.03, 0.01],
    rates=[0.003, 0.01, 0.03, 0.1], starts=[(0.003, 1.0), (0.01, 1.0), (0.03, 1.0), (0.01, 0.5)],
)  # fmt: skip
scale = wm.preset(
    quick=dict(
        seeds=1, together=False, dataset="mnist5k", images=256, validation=128, test=128,
        epochs=1, batch=64, widths=[4], units=16, fractions=[1.0, 0.01],
        rates=[0.03], starts=[(0.03, 1.0)],
    ),
    cpu=dict(
        seeds=5, together=False, dataset="cifar10", images=10_000, validation=5_000, test=10_000,
        epochs=10, batch=64, widths=[16, 32, 64], units=128, fractions=[1.0, 0.3, 0.1, 0.03, 0.01],
        rates=[0.003, 0.01, 0.03, 0.1], starts=[(0.003, 1.0), (0.01, 1.0), (0.03, 1.0), (0.01, 0.5)],
    ),
    paper=paper,
)  # fmt: skip

# %% [markdown]
# ## The task
#
# A context $s \in [0, 1)$ turns an image by $2\pi s$ about its centre. Pixels are interpolated bilinearly, and what lies
# outside the inscribed disc is set to zero, so that the corners do not betray the angle. (Images are standardised first:
# zero is the mean of the training images.)


# %%
def rotate(image, s):
    """Turn an image by the angle 2πs about its centre: bilinear, and zero outside the inscribed disc."""
    size = image.shape[-1]
    y, x = jnp.meshgrid(*[jnp.arange(size) - (size - 1) / 2] * 2, indexing="ij")
    cos, sin = jnp.cos(2 * jnp.pi * s), jnp.sin(2 * jnp.pi * s)
    source = jnp.stack([cos * y + sin * x, -sin * y + cos * x]) + (size - 1) / 2
    turned = jax.vmap(lambda channel: map_coordinates(channel, list(source), order=1))(image)
    return jnp.where(x**2 + y**2 <= (size / 2) ** 2, turned, 0)


# %% [markdown]
# **Check.** A quarter turn needs no interpolation and has to be `numpy.rot90` inside the disc; any other angle is compared
# with the affine transform of `scipy`, which shares no code with ours.

# %%
digits = wm.load_dataset("mnist5k", "test", 8).inputs
quarter, rot90 = jax.vmap(rotate, (0, None))(digits, 0.25), np.rot90(digits, axes=(2, 3))
inside = np.asarray(rotate(jnp.ones((1, 28, 28)), 0.0))[0] > 0.5
print(f"quarter turn: {np.abs(np.asarray(quarter) - rot90)[..., inside].max():.1e}")
assert np.abs(np.asarray(quarter) - rot90)[..., inside].max() < 1e-4
for s in (0.1, 0.37, 0.9):
    c, d, middle = np.cos(2 * np.pi * s), np.sin(2 * np.pi * s), np.full(2, 13.5)
    turn = np.array([[c, d], [-d, c]])
    other = scipy.ndimage.affine_transform(digits[0, 0], turn, middle - turn @ middle, order=1)
    error = np.abs(np.asarray(rotate(digits[0], s))[0] - other)[inside].max()
    print(f"s = {s}: {error:.1e}")
    assert error < 1e-4

# %% mystnb={"figure": {"caption": "One handwritten digit in eight contexts s; the angle is 2πs. (A digit, since it comes with the installed packages; the experiment turns photographs.)", "name": "fig-rotated-task"}, "image": {"alt": "A row of eight pictures of the same handwritten digit, each turned by a further eighth of a full turn, inside a black disc."}}
fig, axes = plt.subplots(1, 8, figsize=(7.2, 1.25))
for i, ax in enumerate(axes):
    ax.imshow(rotate(digits[2], i / 8)[0], cmap="gray")
    ax.set_title(f"s = {i}/8", fontsize=9, loc="center")
    ax.set_axis_off()
plt.show()

# %% [markdown]
# {numref}`fig-rotated-task` shows the contexts. Training sees a random part of a grid of 360 angles. The parts are nested:
# with one seed, the angles of a sparser training set are among those of every denser one, and all methods get the same.


# %%
ANGLES = 360


def seen_angles(key, fraction):
    """The contexts of a training set: a random part of a grid of 360 angles, nested for one key."""
    count = max(1, round(fraction * ANGLES))
    return jax.random.permutation(key, ANGLES) < count


for fraction in (1.0, 0.3, 0.1, 0.03, 0.01):
    denser = seen_angles(jax.random.key(0), fraction)
    sparser = seen_angles(jax.random.key(0), fraction / 3)
    assert (sparser <= denser).all()  # nested
    print(f"fraction {fraction}: {int(denser.sum())} of {ANGLES} angles")

# %% [markdown]
# ## The methods
#
# The ellipse modulates *every* weight of the CNN. The rivals are the same CNN with the context as an input: appended to the
# flattened features (`concat`), embedded linearly in 32 numbers and appended (`embed`), or turned into a gain and a shift
# for every channel (`film`, {cite:t}`perez2018film`). They are given $(\cos 2\pi s, \sin 2\pi s)$, so that no rival has to
# learn that the circle closes. `none` never hears of the context.


# %%
def network(method, key, spread, **cnn):
    """A network called as `net(x, s)`, for each method of the comparison; `spread` is the ellipse's size at the start."""
    of_model, of_points = jax.random.split(key)
    if method.startswith("ellipse"):
        return wm.modulate(wm.models.CNN(**cnn, key=of_model), wm.Ellipse(), key=of_points, spread=spread)
    rivals = {
        "none": wm.rivals.Unconditioned,
        "concat": wm.rivals.Concat,
        "embed": wm.rivals.Embed,
        "film": wm.rivals.FiLM,
    }
    return rivals[method](**cnn, key=of_model)


# %% [markdown]
# All are trained by stochastic gradient descent with momentum 0.9. The ellipse's gradient first passes through the inverse
# metric, $\mathrm{diag}(1, 2, 2)$ on centre and radii; the ablation skips that one line and is otherwise identical.


# %%
@cache  # one object for one configuration, so that a training step is compiled once
def optimiser(method, rate):
    """SGD with momentum, after the inverse metric where the method has one."""
    sgd = optax.sgd(rate, momentum=0.9)
    return optax.chain(wm.precondition(wm.Ellipse()), sgd) if method == "ellipse" else sgd


def loss(net, x, y, s):
    """Mean cross-entropy of rotated images."""
    logits = jax.vmap(net)(jax.vmap(rotate)(x, s), s)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@eqx.filter_jit(donate="all-except-first")
def step(optimise, net, state, x, y, s):
    """One step of training; the optimiser holds no arrays that change."""
    value, gradient = eqx.filter_value_and_grad(loss)(net, x, y, s)
    updates, state = optimise.update(gradient, state)
    return eqx.apply_updates(net, updates), state, value


@eqx.filter_jit
def correct(net, x, y, s):
    """Which images are classified correctly."""
    return jax.vmap(net)(jax.vmap(rotate)(x, s), s).argmax(axis=1) == y


# %% [markdown]
# **Check.** One preconditioned step of plain SGD, taken by the library, is the step taken by hand: the gradient of the
# centre as it is, those of the two radii doubled.

# %%
small = network("ellipse", jax.random.key(0), 0.5, in_shape=(1, 28, 28), widths=(4,), units=16)
gradient = eqx.filter_jit(eqx.filter_grad(loss))(small, digits, jnp.arange(8), jnp.arange(8) / 8)
metric = wm.precondition(small.manifold)
updates, _ = metric.update(gradient, metric.init(gradient))
ours, plain = updates.model.output.weight.value, gradient.model.output.weight.value
by_hand = plain * jnp.array([1.0, 2.0, 2.0])[:, None, None]
print(f"largest difference: {jnp.abs(ours - by_hand).max():.1e}")
assert jnp.abs(ours - by_hand).max() < 1e-6

# %% [markdown]
# ## Training and testing
#
# Images for validation are the last rows of the training split that is used; the test split is touched once, at the end.


# %%
@cache
def images(dataset, train, validation, test):
    """Training, validation and test images with labels, and the fingerprint of the whole.

    Every channel has mean 0 and variance 1 over the training images.
    """
    both, held_out = wm.load_dataset(dataset, "train", train + validation), wm.load_dataset(dataset, "test", test)
    axes = (0, 2, 3)
    mean, deviation = (f(both.inputs[:train], axes, keepdims=True) for f in (np.mean, np.std))
    x, x_test = (jnp.asarray((d.inputs - mean) / deviation) for d in (both, held_out))
    y, y_test = (jnp.asarray(d.labels) for d in (both, held_out))
    parts = {"train": (x[:train], y[:train]), "validation": (x[train:], y[train:]), "test": (x_test, y_test)}
    return parts, f"{both.fingerprint} {held_out.fingerprint}"


def hits(net, x, y, s, batch=500):
    """`correct`, in batches."""
    return np.concatenate(
        [
            np.asarray(correct(net, x[i : i + batch], y[i : i + batch], s[i : i + batch]))
            for i in range(0, len(x), batch)
        ]
    )


# %% [markdown]
# An epoch shows each image once, turned by an angle drawn anew from the seen ones. The key of a run fixes the initial
# weights, the seen angles and the order of everything, and the same seed means the same angles for every method.


# %%
def epoch(key, optimise, net, state, x, y, seen, batch):
    """One pass over the images in random order, each turned by a random one of the seen angles."""
    of_order, of_contexts = jax.random.split(key)
    order = jax.random.permutation(of_order, len(x))[: len(x) // batch * batch].reshape(-1, batch)
    contexts = jax.random.choice(of_contexts, seen, order.shape)
    values = []
    for rows, s in zip(order, contexts, strict=True):
        net, state, value = step(optimise, net, state, x[rows], y[rows], s)
        values.append(value)
    return net, state, float(jnp.stack(values).mean())


# %% tags=["hide-input"]
def train(config, key, x, y):
    """Train one network; returns it, the mean loss of each epoch and the first layer's points after each."""
    of_net, of_angles, of_order = jax.random.split(key, 3)
    sizes = dict(in_shape=x.shape[1:], widths=tuple(config["widths"]), units=config["units"])
    net = network(config["method"], of_net, config["spread"], **sizes)
    optimise = optimiser(config["method"], config["rate"])
    state = optimise.init(eqx.filter(net, eqx.is_inexact_array))
    seen = jnp.flatnonzero(seen_angles(of_angles, config["fraction"])) / ANGLES
    losses, snapshots = [], [first_layer(net)]
    for of_epoch in jax.random.split(of_order, config["epochs"]):
        net, state, value = epoch(of_epoch, optimise, net, state, x, y, seen, config["batch"])
        losses.append(value)
        snapshots.append(first_layer(net))
    return net, losses, snapshots


def first_layer(net):
    """The basis points of the first convolution, flattened; nothing for a network without them."""
    if not isinstance(net, wm.Modulated):
        return None
    return np.asarray(net.model.convolutions[0].weight.value).reshape(net.manifold.size, -1)


# %% [markdown]
# The test counts every angle alike. The whole test split is shown once at random *seen* angles and once at random *unseen*
# ones; accuracy over all angles is the mean of the two, weighted by how many angles each stands for.


# %%
def accuracies(net, x, y, seen):
    """Accuracy over seen and unseen angles apart and over all alike, and in sectors of ten degrees."""
    draw, metrics, sectors = np.random.default_rng(0), {"all": 0.0}, np.zeros(36)
    for name, among in {"seen": seen, "unseen": ~seen}.items():
        if among.any():
            angle = draw.choice(ANGLES, len(x), p=among / among.sum())
            right = hits(net, x, y, jnp.asarray(angle / ANGLES, jnp.float32))
            metrics[name] = right.mean()
            metrics["all"] += among.mean() * metrics[name]
            images_in_sector = np.bincount(angle // 10, minlength=36)
            rate = np.bincount(angle // 10, right, 36) / np.maximum(images_in_sector, 1)
            sectors += among.reshape(36, 10).mean(axis=1) * rate
    return metrics, sectors


# %% tags=["hide-input"]
def principal_plane(snapshots):
    """Basis points at each epoch in the plane of most variance of all the ellipses, and its share of the variance."""
    a = np.asarray(jax.vmap(wm.Ellipse().basis)(jnp.arange(64) / 64))
    ellipses = np.concatenate([a @ points for points in snapshots])
    mean = ellipses.mean(axis=0)
    _, singular, axes = np.linalg.svd(ellipses - mean, full_matrices=False)
    shift = np.outer([1, 0, 0], mean)  # only the centre is a position; the radii are differences
    return [(points - shift) @ axes[:2].T for points in snapshots], (singular[:2] ** 2).sum() / (singular**2).sum()


# %% tags=["hide-input"]
def evaluate(config, key):
    """One run of the experiment: test accuracy over all, seen and unseen angles."""
    parts, data = images(config["dataset"], config["images"], config["validation"], config["test"])
    net, losses, snapshots = train(config, key, *parts["train"])
    seen = np.asarray(seen_angles(jax.random.split(key, 3)[1], config["fraction"]))
    metrics, sectors = accuracies(net, *parts["test"], seen)
    curves = {"loss": losses, "sector": sectors}
    if isinstance(net, wm.Modulated):
        curves["plane"], metrics["plane_variance"] = principal_plane(snapshots)
    return {"metrics": metrics, "curves": curves, "data": data}


# %% [markdown]
# The paper trains its 20 seeds at once, as one program over 20 networks that see the same images at the same angles in the
# same order. The `paper` preset does the same: a step of many networks is one `vmap` of the step above.


# %%
@eqx.filter_jit(donate="all-except-first")
def step_of_many(optimise, nets, states, x, y, s):
    """One step of several networks, stacked along a first axis, on the same batch."""
    stacked = eqx.if_array(0)
    return eqx.filter_vmap(step, in_axes=(None, stacked, stacked, None, None, None))(optimise, nets, states, x, y, s)


@eqx.filter_jit
def many(method, optimise, keys, spread, **cnn):
    """A network for each key with the state of its optimiser, stacked."""
    nets = eqx.filter_vmap(lambda key: network(method, key, spread, **cnn))(keys)
    return nets, eqx.filter_vmap(lambda net: optimise.init(eqx.filter(net, eqx.is_inexact_array)))(nets)


def each(nets, function):
    """A function of every one of some stacked networks."""
    count = len(jax.tree.leaves(eqx.filter(nets, eqx.is_array))[0])
    return [function(jax.tree.map(lambda x, i=i: x[i] if eqx.is_array(x) else x, nets)) for i in range(count)]


# %% tags=["hide-input"]
def train_together(config, keys, seen, key, x, y):
    """Train a network for each key; returns them, and for each epoch the loss and the first layer's points of each."""
    sizes = dict(in_shape=x.shape[1:], widths=tuple(config["widths"]), units=config["units"])
    optimise, batch = optimiser(config["method"], config["rate"]), config["batch"]
    nets, states = many(config["method"], optimise, keys, config["spread"], **sizes)
    angles, losses, snapshots = jnp.flatnonzero(seen) / ANGLES, [], [each(nets, first_layer)]
    for of_epoch in jax.random.split(key, config["epochs"]):
        of_images, of_contexts = jax.random.split(of_epoch)
        order = jax.random.permutation(of_images, len(x))[: len(x) // batch * batch].reshape(-1, batch)
        values = []
        for rows, s in zip(order, jax.random.choice(of_contexts, angles, order.shape), strict=True):
            nets, states, value = step_of_many(optimise, nets, states, x[rows], y[rows], s)
            values.append(value)
        losses.append(jnp.stack(values).mean(axis=0))
        snapshots.append(each(nets, first_layer))
    return nets, jnp.stack(losses, axis=1), list(zip(*snapshots, strict=True))


# %% tags=["hide-input"]
def evaluate_together(config, keys):
    """`evaluate` for all seeds as one program; the key of the data is one, those of the networks are their own."""
    parts, data = images(config["dataset"], config["images"], config["validation"], config["test"])
    of_angles, of_order = jax.random.split(jax.random.key(0))
    seen = np.asarray(seen_angles(of_angles, config["fraction"]))
    nets, losses, snapshots = train_together(config, keys, seen, of_order, *parts["train"])
    results = []
    for i, (metrics, sectors) in enumerate(each(nets, lambda net: accuracies(net, *parts["test"], seen))):
        curves = {"loss": losses[i], "sector": sectors}
        if isinstance(nets, wm.Modulated):
            curves["plane"], metrics["plane_variance"] = principal_plane(snapshots[i])
        results.append({"metrics": metrics, "curves": curves, "data": data})
    return results


# %% [markdown]
# **Check.** Two networks trained at once lose what each loses alone.

# %%
tiny = dict(dataset="mnist5k", images=128, validation=16, test=128, epochs=2, batch=64, widths=[4], units=16)
tiny |= dict(method="ellipse", rate=0.03, spread=0.5, fraction=0.1)
pair = jax.random.split(jax.random.key(1))
both = evaluate_together(tiny, pair)
alone = [evaluate_together(tiny, pair[i : i + 1])[0] for i in range(2)]
gap = max(float(jnp.abs(a["curves"]["loss"] - b["curves"]["loss"]).max()) for a, b in zip(both, alone, strict=True))
print(f"largest difference of the loss: {gap:.1e}")
assert gap < 1e-5

# %% [markdown]
# ## Tuning
#
# Each method gets a search of the same size, at fraction 1, one seed, judged by the validation images over all angles: four
# learning rates for a rival; for an ellipse three rates and, at one of them, a second size at the start, `spread`: the
# distance of its networks from their centre, in standard deviations of the weights. The best setting then serves all
# fractions, as in the paper, where one rate serves the figure.


# %%
def tune(config, key):
    """One run of the search for a learning rate: accuracy on the validation images over all angles."""
    parts, data = images(config["dataset"], config["images"], config["validation"], config["test"])
    net, losses, _ = train(config, key, *parts["train"])
    x, y = parts["validation"]
    s = jax.random.randint(jax.random.fold_in(key, 1), (len(x),), 0, ANGLES) / ANGLES
    return {"metrics": {"validation": hits(net, x, y, s).mean()}, "curves": {"loss": losses}, "data": data}


# %%
METHODS = ["ellipse", "ellipse, no metric", "none", "concat", "embed", "film"]
if scale.name == "quick":  # compiling takes longer than training
    METHODS = METHODS[:4]
common = {k: v for k, v in scale.settings.items() if k not in ("fractions", "rates", "starts", "together")}


def candidates(method):
    """The settings searched for a method: as many for each."""
    if method.startswith("ellipse"):
        return [{"rate": rate, "spread": spread} for rate, spread in scale.starts]
    return [{"rate": rate, "spread": None} for rate in scale.rates]


assert len({len(candidates(m)) for m in METHODS}) == 1  # one budget for all
search = wm.sweep(
    "rotated_images_tuning",
    tune,
    [{**common, "method": m, "fraction": 1.0, **c} for m in METHODS for c in candidates(m)],
    dataclasses.replace(scale, seeds=1),
)


# %%
def setting(row):
    """A searched setting in words."""
    return f"{row.rate:g}" + ("" if pd.isna(row.spread) else f", spread {row.spread:g}")


search["setting"] = [setting(row) for row in search.itertuples()]
best = search.loc[search.groupby("method")["validation"].idxmax()].set_index("method")
chosen = {m: next(c for c in candidates(m) if setting(pd.Series(c)) == best.setting[m]) for m in METHODS}
for part in (METHODS[:2], METHODS[2:]):
    table = search[search.method.isin(part)].pivot(index="method", columns="setting", values="validation")
    order = search.setting[search.method == part[0]]
    display(Markdown(table.loc[part, order].assign(chosen=best.setting).to_markdown(floatfmt=".3f")))

# %% [markdown]
# ## The figure
#
# Now the experiment itself. The next cell reads the recorded runs, and would compute those that are missing.

# %%
rows = wm.sweep(
    "rotated_images",
    evaluate_together if scale.together else evaluate,
    [{**common, "method": m, "fraction": f, **chosen[m]} for f in scale.fractions for m in METHODS],
    scale,
    together=scale.together,
)
Markdown(
    f"{len(rows)} runs, {scale.seeds} seeds for each point, preset `{scale.name}`: {common['images']:,} images of "
    f"{common['dataset']}, {common['epochs']} epochs, batch {common['batch']}, widths {common['widths']} and "
    f"{common['units']} units, on {rows.device.iloc[0]}; {rows.seconds.sum() / 3600:.1f} hours of one core in all. "
    f"Rows from code that has changed since: {int(rows.stale.sum())}."
)


# %%
def grid(metric, method):
    """A metric as an array (seeds, fractions)."""
    part = rows[rows.method == method].pivot(index="seed", columns="fraction", values=metric)
    return part[sorted(scale.fractions)].to_numpy(float)


NAMES = {"film": "FiLM", "none": "no conditioning", "concat": "concatenation", "embed": "embedding"}
fractions = sorted(scale.fractions)


def panel(ax, metric, methods, shown):
    """Accuracy against the fraction of angles seen."""
    for method in methods:
        values = grid(metric, method)[:, : len(shown)]
        figures.accuracy_curve(ax, shown, values, method=method, label=NAMES.get(method, method))
    ax.set(xscale="log", xlabel="fraction of angles seen in training", xticks=shown)
    ax.set_xticklabels([f"{f:g}" for f in shown])
    ax.minorticks_off()


# %% mystnb={"figure": {"caption": "The paper's Fig. 2b at our scale: test accuracy over all angles against the fraction of angles seen in training. Means over seeds, bands are 95 % t-intervals over seeds.", "name": "fig-rotated-sparsity"}, "image": {"alt": "Six curves of test accuracy over all angles against the fraction of angles seen, from one in a hundred to all, one for each method, with bands."}}
fig, ax = plt.subplots(figsize=(6.6, 4.2))
panel(ax, "all", METHODS, fractions)
ax.set_ylabel("test accuracy, all angles")
ax.legend(ncols=2)
plt.show()

# %% mystnb={"figure": {"caption": "The same runs, seen and unseen angles apart. At fraction 1 no angle is unseen. Means over seeds and 95 % t-intervals.", "name": "fig-rotated-unseen"}, "image": {"alt": "Two panels with the same six curves: accuracy at seen angles on the left and at unseen angles on the right, against the fraction of angles seen."}}
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.6), sharey=True)
panel(axes[0], "seen", METHODS, fractions)
panel(axes[1], "unseen", METHODS, [f for f in fractions if f < 1])
axes[0].set(title="seen angles", ylabel="test accuracy")
axes[1].set_title("unseen angles")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# {numref}`fig-rotated-sparsity` is the comparison of the paper, and {numref}`fig-rotated-unseen` takes it apart: a method
# that learns one rule for all angles has two equal panels, one that learns the seen angles alone falls on the right.
# {numref}`fig-rotated-angle` shows where on the circle the accuracy is lost when only a few angles were seen.

# %% mystnb={"figure": {"caption": "Test accuracy by angle, in sectors of ten degrees, when the fewest angles were seen. Means over seeds (each with other seen angles) and 95 % t-intervals.", "name": "fig-rotated-angle"}, "image": {"alt": "Accuracy against the angle of the image in degrees, for the ellipse and for the network without conditioning, trained on the fewest angles."}}
fig, ax = plt.subplots(figsize=(6.6, 3.4))
for method in ("ellipse", "none"):
    part = rows[(rows.method == method) & (rows.fraction == fractions[0])]
    sectors = np.stack(part.sector)
    figures.accuracy_curve(
        ax, np.arange(36) * 10 + 5, sectors, method=method, label=NAMES.get(method, method), marker=""
    )
ax.set(xlabel="angle of the test image (degrees)", ylabel="test accuracy", xticks=range(0, 361, 60))
ax.legend()
plt.show()

# %% [markdown]
# ## The ellipse as it learns
#
# The paper's Fig. 1c projects an ellipse of first-layer weights on principal components while it is trained. Ours is
# {numref}`fig-rotated-ellipse`: the first convolution of one run at fraction 1, seed 0, after each epoch. The plane is that
# of most variance of all the ellipses together; the share of the variance that lies in it stands below the figure.

# %% mystnb={"figure": {"caption": "The ellipse of first-layer weights after each epoch (grey to dark), in the plane of most variance over all epochs. The coloured points are contexts on the last ellipse; the cross is its centre.", "name": "fig-rotated-ellipse"}, "image": {"alt": "Nested ellipses in a plane of weight space, one for each epoch, the last with points coloured by the angle of the image."}}
run = rows[(rows.method == "ellipse") & (rows.fraction == 1.0) & (rows.seed == 0)].iloc[0]
turn = np.linspace(0, 1, 181)
basis = np.stack([np.ones_like(turn), np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)], axis=1)
fig, ax = plt.subplots(figsize=(6.0, 4.4))
curves = [basis @ np.array(points) for points in run.plane]
for i, curve in enumerate(curves):
    ax.plot(*curve.T, color=plt.get_cmap("Greys")(0.25 + 0.65 * i / max(1, len(curves) - 1)), lw=1.4)
contexts = ax.scatter(*curves[-1][:-1:10].T, c=turn[:-1:10] * 360, cmap="twilight", zorder=3, edgecolor="k", lw=0.4)
ax.plot(*np.array(run.plane)[-1, 0], "k+", ms=9)
fig.colorbar(contexts, label="angle of the image (degrees)", ticks=range(0, 361, 90))
ax.set(xlabel="first principal direction", ylabel="second principal direction", aspect="equal")
plt.show()


# %%
def radii(points):
    """Half-axes of the ellipse with these points: singular values of its two radii."""
    return np.linalg.svd(np.array(points)[1:], compute_uv=False)


first, last = radii(run.plane[0]), radii(run.plane[-1])
Markdown(
    f"The plane holds {100 * run.plane_variance:.0f} % of the variance. In it, the half-axes go from "
    f"{first[0]:.2f} and {first[1]:.2f} at the start to {last[0]:.2f} and {last[1]:.2f} after {common['epochs']} epochs."
)

# %% [markdown]
# ## Verdict
#
# The claims stand in `book/claims/manifolds/rotated_images.toml`, each with the comparisons that would show it, and
# `wmlib.lab.verdicts` judges them by a rule that knows nothing of this chapter. Differences are paired: the same seed means the
# same angles and, as far as the methods share them, the same random choices. A comparison counts if the 95 % interval of
# its mean difference lies wholly above zero, or below it, as the claim says; that the ellipse *keeps* its accuracy is
# already granted if the interval does not lie wholly below. The first claim alone is twenty comparisons.


# %%
claims = verdicts.read_claims("manifolds/rotated_images")
above, keeps, lose, helps = [verdicts.judge(claim, rows) for claim in claims]
against = pd.DataFrame(
    {
        "ellipse against": NAMES[c.b["method"]],
        "fraction": c.a["fraction"],
        "points": c.interval,
        "ellipse is": c.says,
    }
    for c in above.comparisons
)
display(Markdown(against.to_markdown(index=False)))


# %%
def difference(values):
    """Mean and 95 % t-interval of paired differences, in percentage points."""
    low, high = figures.t_interval(values)
    return f"{100 * values.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "−")


drop = pd.DataFrame([
    {"method": NAMES.get(m, m), "all angles": f"{100 * most:.1f}", "fewest angles": f"{100 * fewest:.1f}",
     "change": difference(grid("all", m)[:, 0] - grid("all", m)[:, -1])}
    for m in METHODS for fewest, *_, most in [grid("all", m).mean(axis=0)]
])  # fmt: skip
display(Markdown(drop.to_markdown(index=False)))
ablation = [f"{c.a['fraction']:g}: {c.interval}" for c in helps.comparisons]
Markdown(f"With the metric minus without, in points of accuracy, by fraction seen: {'; '.join(ablation)}.")

# %% [markdown]
# A claim is *reproduced* if all its comparisons show it, *partly* if some do, *not reproduced* if none does; one that the
# paper does not make *holds* or *does not hold*. With fewer than three seeds nothing is decided. {doc}`/book/verdicts` has
# the claims of all chapters, and what the rule can and cannot say.

# %%
judged = verdicts.verdict_table("manifolds/rotated_images", scale.name, rows={"rotated_images": rows})
display(Markdown(judged.to_markdown(index=False)))

# %% [markdown]
# Three things stand out, and the next cell holds them to the rows. With 3 % of the angles or more the ellipse leads every
# rival, and it is not the metric that makes it lead: the arm without it is a little better at every fraction. Down to a tenth
# of the angles nobody loses much, the rivals as little as the ellipse. And with the fewest angles everyone loses, the ellipse
# most: at the seen angles it is then the best of all, at the unseen ones the worst ({numref}`fig-rotated-unseen`). One
# reading: three basis points are held too loosely by four contexts. The ellipse passes through good networks at those four,
# and nothing asks for good ones in between, while a rival's one set of weights has to serve all of them.


# %%
def mean(metric, method):
    """Mean over seeds, from the fewest angles to all."""
    return grid(metric, method).mean(axis=0)


if scale.name == "cpu":
    rivals = ["none", "concat", "embed", "film"]
    tenth = [i for i, f in enumerate(fractions) if f >= 0.1]
    assert all((mean("all", "ellipse") > mean("all", rival))[1:].all() for rival in rivals)
    for rival in rivals:
        assert np.ptp(mean("all", rival)[tenth]) < 0.02
        assert mean("seen", "ellipse")[0] > mean("seen", rival)[0]
        assert mean("unseen", "ellipse")[0] < mean("unseen", rival)[0]
    assert (mean("all", "ellipse, no metric") > mean("all", "ellipse")).all()
    assert np.ptp(mean("all", "ellipse")[tenth]) < 0.02

# %% [markdown]
# ## The paper's own scale, traced
#
# The `paper` preset, all seeds at once, needs a GPU and has not been run. It has been traced. Tracing needs shapes alone, so
# the full size fits here: the arithmetic of one step by XLA's count, and the number of steps.


# %%
def work(method, count, batch, **cnn):
    """Floating-point operations of one step, and bytes of weights, gradients and momentum; nothing is computed."""
    optimise = optimiser(method, 0.01)
    keys = jax.random.split(jax.random.key(0), count)
    nets, states = eqx.filter_eval_shape(lambda: many(method, optimise, keys, 1.0, **cnn))
    shapes = [
        jax.ShapeDtypeStruct((batch, *cnn["in_shape"]), float),
        *[jax.ShapeDtypeStruct((batch,), t) for t in (int, float)],
    ]
    arrays, rest = eqx.partition((nets, states), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def one(arrays, *batch):
        return eqx.filter(step_of_many(optimise, *eqx.combine(arrays, rest), *batch), eqx.is_array)

    flops = jax.jit(one).lower(arrays, *shapes).cost_analysis()["flops"]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))
    return flops, 1.5 * size  # the arrays are weights and momentum; gradients are half as large again


# %%
sizes = dict(in_shape=(3, 32, 32), widths=tuple(paper["widths"]), units=paper["units"])
cost = {method: work(method, paper["seeds"], paper["batch"], **sizes) for method in METHODS}
cost = pd.DataFrame(cost, index=["flops", "bytes"]).T
steps = paper["epochs"] * (paper["images"] // paper["batch"])
table = pd.DataFrame({
    "GFLOP a step, 20 networks": cost.flops / 1e9,
    "PFLOP a figure's point": cost.flops * steps / 1e15,
    "GB of weights, momentum, gradients": cost.bytes / 1e9,
})  # fmt: skip
display(Markdown(table.to_markdown(floatfmt=".2f")))
whole = len(paper["fractions"]) + len(paper["rates"]) / paper["seeds"]  # the tuning trains one network, not all
total = steps * whole * cost.flops.sum()
Markdown(
    f"In all {total / 1e18:.2f} EFLOP for training, the tuning included: "
    f"{total / 1e13 / 3600:.0f} hours on a device that sustains 10 TFLOP/s on this program. Nothing of it has been run."
)

# %% [markdown]
# ## What differs from the paper, and limits
#
# - **Scale.** The training set, the network and the number of epochs are smaller than the paper's, so every method stays
#   below the accuracy that it could reach. An ellipse has three times the weights of a rival and, at equal epochs, more
#   arithmetic; a comparison after few epochs is a comparison of how fast methods learn as much as of where they end.
# - **Seeds.** The paper averages 20. The number here is stated above, and more can be added without repeating any run:
#   raise `seeds` and rerun.
# - **Tuning.** Four settings for each method, at fraction 1, with one seed. For an ellipse one of the four is spent on its
#   size at the start, about which the paper is silent: the smaller of the two tried was the better one, so the best may be
#   smaller still. The two arms of the ablation are tuned apart, each with the same four.
#   Which settings to search, the number of epochs and the standardised images were fixed after a few probes of the ellipse
#   (eight) and of `none` (two) on validation images, another seed, that are not recorded; the other rivals had no probes.
#   The metric doubles the steps of the radii, so at one rate the two arms do not move alike: that is why each has its own.
# - **The rotation** is interpolated, so the sharpness of an image varies a little with the angle. All methods see that.
#
# Next: the paper's own scale (`WMLIB_PRESET=paper`, a GPU), longer training, and a finer search over the ellipse's size.
#
# ## Exercises
#
# ::::{admonition} Exercise 1
# With four seen angles the Gram matrix under the training contexts is far from $\mathrm{diag}(1, 1/2, 1/2)$. Train the
# ellipse with `wm.precondition(manifold, density=...)`, the density being the seen angles, and compare.
# :::{dropdown} Solution
# In `optimiser`, pass the seen contexts on. At least three distinct angles are needed, or the library refuses: the
# ellipse could then move without any training example noticing. What to expect is open; {doc}`metrics` shows how far the
# two metrics are apart.
# :::
# ::::
#
# ::::{admonition} Exercise 2
# Add a method: the ellipse for the first convolution alone, everything else plain.
# :::{dropdown} Solution
# `wm.modulate(cnn, wm.Ellipse(), key=key, where=lambda m: m.convolutions[0])`. The rest of the chapter works unchanged.
# :::
# ::::
