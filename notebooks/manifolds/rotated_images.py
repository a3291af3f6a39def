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

# %%
import dataclasses
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.ndimage import map_coordinates

import wmlib as wm

# %%
scale = wm.preset(
    quick=dict(
        seeds=1, dataset="mnist5k", images=256, validation=128, test=128,
        epochs=1, batch=64, widths=[4, 4, 4], units=16, fractions=[1.0, 0.01], rates=[0.01, 0.03],
    ),
    cpu=dict(
        seeds=5, dataset="cifar10", images=10_000, validation=5_000, test=10_000,
        epochs=6, batch=64, widths=[8, 16, 32], units=64,
        fractions=[1.0, 0.3, 0.1, 0.03, 0.01], rates=[0.003, 0.01, 0.03, 0.1],
    ),
    paper=dict(
        seeds=20, dataset="cifar10", images=45_000, validation=5_000, test=10_000,
        epochs=50, batch=128, widths=[32, 64, 128], units=512,
        fractions=[1.0, 0.3, 0.1, 0.03, 0.01], rates=[0.003, 0.01, 0.03, 0.1],
    ),
)  # fmt: skip


# %%
def rotate(image, s):
    """Turn an image by the angle 2πs about its centre: bilinear, and zero outside the inscribed disc."""
    size = image.shape[-1]
    y, x = jnp.meshgrid(*[jnp.arange(size) - (size - 1) / 2] * 2, indexing="ij")
    cos, sin = jnp.cos(2 * jnp.pi * s), jnp.sin(2 * jnp.pi * s)
    source = jnp.stack([cos * y + sin * x, -sin * y + cos * x]) + (size - 1) / 2
    turned = jax.vmap(lambda channel: map_coordinates(channel, list(source), order=1))(image)
    return jnp.where(x**2 + y**2 <= (size / 2) ** 2, turned, 0)


ANGLES = 360


def seen_angles(key, fraction):
    """The contexts of a training set: a random part of a grid of 360 angles, nested for one key."""
    count = max(1, round(fraction * ANGLES))
    return jax.random.permutation(key, ANGLES) < count


# %%
def network(method, key, **cnn):
    """A network called as `net(x, s)`, for each method of the comparison."""
    of_model, of_points = jax.random.split(key)
    if method.startswith("ellipse"):
        return wm.modulate(wm.models.CNN(**cnn, key=of_model), wm.Ellipse(), key=of_points)
    rivals = {
        "none": wm.rivals.Unconditioned,
        "concat": wm.rivals.Concat,
        "embed": wm.rivals.Embed,
        "film": wm.rivals.FiLM,
    }
    return rivals[method](**cnn, key=of_model)


@cache  # one object for one configuration, so that a training step is compiled once
def optimiser(method, rate):
    """SGD with momentum, after the inverse metric where the method has one."""
    sgd = optax.sgd(rate, momentum=0.9)
    return optax.chain(wm.precondition(wm.Ellipse()), sgd) if method == "ellipse" else sgd


# %%
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


# %%
@cache
def images(dataset, train, validation, test):
    """Training, validation and test images with labels, and the fingerprint of the whole."""
    both, held_out = wm.load_dataset(dataset, "train", train + validation), wm.load_dataset(dataset, "test", test)
    x, y = jnp.asarray(both.inputs), jnp.asarray(both.labels)
    parts = {
        "train": (x[:train], y[:train]),
        "validation": (x[train:], y[train:]),
        "test": (jnp.asarray(held_out.inputs), jnp.asarray(held_out.labels)),
    }
    return parts, f"{both.fingerprint} {held_out.fingerprint}"


def hits(net, x, y, s, batch=500):
    """`correct`, in batches."""
    return np.concatenate(
        [
            np.asarray(correct(net, x[i : i + batch], y[i : i + batch], s[i : i + batch]))
            for i in range(0, len(x), batch)
        ]
    )


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


# %%
def train(config, key, x, y):
    """Train one network; returns it, the mean loss of each epoch and the first layer's points after each."""
    of_net, of_angles, of_order = jax.random.split(key, 3)
    sizes = dict(in_shape=x.shape[1:], widths=tuple(config["widths"]), units=config["units"])
    net = network(config["method"], of_net, **sizes)
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


# %%
def tune(config, key):
    """One run of the search for a learning rate: accuracy on the validation images over all angles."""
    parts, data = images(config["dataset"], config["images"], config["validation"], config["test"])
    net, losses, _ = train(config, key, *parts["train"])
    x, y = parts["validation"]
    s = jax.random.randint(jax.random.fold_in(key, 1), (len(x),), 0, ANGLES) / ANGLES
    return {"metrics": {"validation": hits(net, x, y, s).mean()}, "curves": {"loss": losses}, "data": data}


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


# %%
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


# %%
def principal_plane(snapshots):
    """Basis points at each epoch in the plane of most variance of all the ellipses, and its share of the variance."""
    a = np.asarray(jax.vmap(wm.Ellipse().basis)(jnp.arange(64) / 64))
    ellipses = np.concatenate([a @ points for points in snapshots])
    mean = ellipses.mean(axis=0)
    _, singular, axes = np.linalg.svd(ellipses - mean, full_matrices=False)
    shift = np.outer([1, 0, 0], mean)  # only the centre is a position; the radii are differences
    return [(points - shift) @ axes[:2].T for points in snapshots], (singular[:2] ** 2).sum() / (singular**2).sum()


# %%
METHODS = ["ellipse", "ellipse, no metric", "none", "concat", "embed", "film"]
common = {k: v for k, v in scale.settings.items() if k not in ("fractions", "rates")}
search = wm.sweep(
    "rotated_images_tuning",
    tune,
    [{**common, "method": m, "fraction": 1.0, "rate": r} for r in scale.rates for m in METHODS],
    dataclasses.replace(scale, seeds=1),
)
best = search.loc[search.groupby("method")["validation"].idxmax()].set_index("method")["rate"]

# %%
rows = wm.sweep(
    "rotated_images",
    evaluate,
    [{**common, "method": m, "fraction": f, "rate": float(best[m])} for f in scale.fractions for m in METHODS],
    scale,
)
