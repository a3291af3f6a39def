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
# # An ellipse without a context, from four sizes
#
# An ellipse of networks that is trained with a random context for every image converges, says *Walking the Weight Manifold*
# {cite:p}`benjamin2025walking`, to the accuracy of a single network. In {doc}`optimisers` it was 3.5 to 6.1 points behind. There it started large, and
# stopped early. Here it starts at four sizes, and trains twice as long.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The imports of this chapter, 16 lines", "code_prompt_hide": "Hide the imports"}
import dataclasses
from functools import cache, partial
from itertools import combinations

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
from IPython.display import Markdown, display

import wmlib as wm
from wmlib.lab import figures, pages, verdicts

figures.use_style()

# %% [markdown]
# ## The question
#
# Images stay as they are, and the context $s$ of each is drawn at random, so that the loss is $\mathbb{E}_s[\ell(M(s))]$ with
# $M(s) = C + \cos(2\pi s)\, A + \sin(2\pi s)\, B$. A single network, $A = B = 0$, is among what the ellipse may choose.
# {doc}`optimisers` derives that short radii shrink along directions in which the loss is curved upwards. Long ones are no small perturbation, and
# there an ellipse that started with radii of half the weights' standard deviation kept them. So its size at the start may decide what it becomes.
#
# ## The plan
#
# {numref}`tab-unconditioned-plan` was committed, with the claims, before the first run.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The settings of the three presets, 30 lines", "code_prompt_hide": "Hide the settings"}
thin = dict(
    dataset="cifar10", pool=2, images=10_000, validation=5_000, test=10_000,
    epochs=30, batch=64, model="cnn", widths=[16, 32, 64], units=128,
)  # fmt: skip
full = thin | dict(
    pool=1, images=45_000, epochs=100, batch=128, widths=[32, 64, 128], units=512
)
residual = {k: v for k, v in thin.items() if k not in ("widths", "units")} | dict(
    epochs=20, model="resnet", width=8, blocks=[2, 2, 2, 2]
)
full_residual = residual | dict(pool=1, images=45_000, epochs=50, batch=128, width=64)
tiny = dict(
    dataset="mnist5k", pool=2, images=128, validation=64, test=64,
    epochs=1, batch=64, model="cnn", widths=[4], units=8,
)  # fmt: skip
tiny_residual = {k: v for k, v in tiny.items() if k not in ("widths", "units")} | dict(
    model="resnet", width=2, blocks=[1]
)
RATES = {
    "SGD": [0.0025, 0.005, 0.01, 0.02, 0.04],
    "Adam": [0.00025, 0.0005, 0.001, 0.002, 0.004],
    "AdamW": [0.00025, 0.0005, 0.001, 0.002, 0.004],
}
RESIDUAL_RATES = {"SGD": [0.00075, 0.0015, 0.003, 0.006, 0.012]}
SPREADS, FEW = [0.0, 0.05, 0.15, 0.5], [0.15, 0.5]
scale = wm.preset(
    quick=dict(seeds=1, cnn=tiny, resnet=tiny_residual, most=1, quick=True),
    cpu=dict(seeds=5, cnn=thin, resnet=residual, most=3, quick=False),
    paper=dict(seeds=20, cnn=full, resnet=full_residual, most=3, quick=False),
)

# %% [markdown]
# ```{table} What was planned. Five networks are trained as one program: five rates of a search, or five seeds.
# :name: tab-unconditioned-plan
#
# | part | arms | programs | networks in each | epochs × steps |
# |---|---|---|---|---|
# | ellipse: SGD with the metric and without, Adam, AdamW; four sizes; search | 16 | 1 to 3 | 5 rates | 30 × 156 |
# | point: SGD, Adam, AdamW; search | 3 | 4 to 12 | 5 rates | 30 × 156 |
# | ellipse, the experiment | 16 | 1 | 5 seeds, SGD 10 | 30 × 156 |
# | point, the experiment (SGD: three networks each) | 3 | 1 (3) | 5 seeds, SGD 10 | 30 × 156 |
# | ResNet-18, SGD: ellipse of two sizes; search | 2 | 1 to 3 | 5 rates | 20 × 156 |
# | ResNet-18, SGD: point; search | 1 | 2 to 6 | 5 rates | 20 × 156 |
# | ResNet-18, the experiment | 3 | 1 | 5 seeds | 20 × 156 |
# ```
#
# On one thread of a processor a step of five networks takes 0.04 s for the point, 0.07 s for the ellipse; of residual networks 0.25 s and 0.34 s. An ellipse of one of four sizes is
# chosen by its validation images, so a point network has four times as many rates to be chosen from. Ten seeds with SGD, since in the earlier runs its paired
# differences varied by 1.5 points from seed to seed, and five would not tell a point.
#
# Adam and AdamW come after the metric and do not see it, as {doc}`optimisers` proves. AdamW decays by 0.1, the better of two values there.
#
# ## Many networks as one program
#
# As in {doc}`topology_pairs`, convolutions are written as products of matrices, with weights that each image builds from the points of the
# ellipse where it uses them at eight positions or more. So five networks stack into one program.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "Both networks as products of matrices, 106 lines", "code_prompt_hide": "Hide them"}
def combined(h, a, weight, bias=None):
    """Σ a_k (P_k h + b_k): h (batch, …, in), a (batch, n), weight (n, in, out)."""
    n, inputs, out = weight.shape
    flat = h.reshape(len(h), -1, inputs)
    if n == 1:
        found = a[..., None] * (flat @ weight[0])
    elif flat.shape[1] < 8:  # at few positions: the products, and then their sum
        each = flat @ weight.transpose(1, 0, 2).reshape(inputs, -1)
        each = each.reshape(*flat.shape[:2], n, out)
        found = (a[:, None, :, None] * each).sum(axis=2)
    else:  # at many: the weights of each image, once
        found = flat @ jnp.tensordot(a, weight, 1)
    if bias is not None:
        found = found + (a @ bias)[:, None]
    return found.reshape(*h.shape[:-1], out)


def patches(h, stride=1):
    """The 3 × 3 neighbours of every pixel: (batch, H, W, C) -> (batch, H, W, 9 C)."""
    _, rows, columns, _ = h.shape
    h = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
    at = [(i, j) for i in range(3) for j in range(3)]
    parts = [h[:, i : i + rows : stride, j : j + columns : stride] for i, j in at]
    return jnp.concatenate(parts, axis=-1)


def halved(h):
    """The largest of every 2 × 2 pixels; an odd last row or column is dropped."""
    batch, rows, columns, channels = h.shape
    h = h[:, : rows // 2 * 2, : columns // 2 * 2]
    h = h.reshape(batch, rows // 2, 2, columns // 2, 2, channels)
    left = jnp.maximum(h[:, :, 0, :, 0], h[:, :, 0, :, 1])
    return jnp.maximum(left, jnp.maximum(h[:, :, 1, :, 0], h[:, :, 1, :, 1]))


def normed(h, a, gain, shift):
    """Layer normalisation over the channels of each position."""
    h = h - h.mean(axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt((h * h).mean(axis=-1, keepdims=True) + 1e-5)
    return h * (a @ gain)[:, None, None] + (a @ shift)[:, None, None]


def cnn(points, x, a):
    """Logits of a batch by the CNN of appendix D: x (batch, C, H, W), a (batch, n)."""
    h = x.transpose(0, 2, 3, 1)
    for weight, bias in points["convolutions"]:
        h = jax.nn.relu(halved(combined(patches(h), a, weight, bias)))
    h = h.transpose(0, 3, 1, 2).reshape(len(h), -1)
    h = jax.nn.relu(combined(h, a, *points["hidden"]))
    return combined(h, a, *points["output"])


def resnet(points, x, a):
    """Logits of a batch by the residual network."""
    h = combined(patches(x.transpose(0, 2, 3, 1)), a, points["stem"])
    h = jax.nn.relu(normed(h, a, *points["norm"]))
    for block in points["blocks"]:
        (first, second), norms = block["convolutions"], block["norms"]
        stride = 1 if block["shortcut"] is None else 2
        y = normed(combined(patches(h, stride), a, first), a, *norms[0])
        y = normed(combined(patches(jax.nn.relu(y)), a, second), a, *norms[1])
        if block["shortcut"] is not None:
            h = combined(h[:, ::2, ::2], a, block["shortcut"])
            h = normed(h, a, *norms[2])
        h = jax.nn.relu(y + h)
    return combined(h.mean(axis=(1, 2)), a, *points["output"])


def weight_of(layer, n):
    """The weights of a layer, or their points, as matrices (n, in, out)."""
    weight = getattr(layer.weight, "value", layer.weight)
    weight = weight.reshape(n, *weight.shape[-4 if weight.ndim > 3 else -2 :])
    weight = weight.transpose((0, 3, 4, 2, 1) if weight.ndim == 5 else (0, 2, 1))
    return weight.reshape(n, -1, weight.shape[-1])


def pair_of(layer, n):
    """Weights as matrices, or gains; with the biases, or shifts, (n, out)."""
    bias = getattr(layer.bias, "value", layer.bias).reshape(n, -1)
    gain = getattr(layer.weight, "value", layer.weight)
    if gain.size == bias.size:
        return gain.reshape(n, -1), bias
    return weight_of(layer, n), bias


def points_of(net):
    """A network of the library, laid out for `cnn` or for `resnet`."""
    n = net.manifold.size if isinstance(net, wm.Modulated) else 1
    model = net.model if isinstance(net, wm.Modulated) else net
    output = {"output": pair_of(model.output, n)}
    if isinstance(model, wm.models.CNN):
        convolutions = [pair_of(layer, n) for layer in model.convolutions]
        return output | {
            "convolutions": convolutions,
            "hidden": pair_of(model.hidden, n),
        }
    blocks = [
        {
            "convolutions": [weight_of(layer, n) for layer in block.convolutions],
            "norms": [pair_of(norm, n) for norm in block.norms],
            "shortcut": block.shortcut and weight_of(block.shortcut, n),
        }
        for block in model.blocks
    ]
    start = {"stem": weight_of(model.stem, n), "norm": pair_of(model.norm, n)}
    return output | start | {"blocks": blocks}


# %%
def library_network(family, model, spread, key, in_shape, **sizes):
    """A network of the library, or an ellipse of them about it."""
    of_model, of_points = jax.random.split(key)
    if model == "cnn":
        made = wm.models.CNN(in_shape, **sizes, key=of_model)
    else:
        made = wm.models.ResNet(in_shape, **sizes, norm="layer", key=of_model)
    if family == "point":
        return made
    return wm.modulate(made, wm.Ellipse(), key=of_points, spread=spread)


def basis(family, s):
    """What combines the points, (batch, n)."""
    ellipse = jax.vmap(wm.Ellipse().basis)
    return ellipse(s) if family == "ellipse" else jnp.ones((len(s), 1))


# %% [markdown]
# **Check.** The logits are those of the library's networks, at random contexts.


# %%
@partial(jax.jit, static_argnums=(0, 1))
def apart(family, model):
    """The largest difference of the logits of both."""
    deep = dict(width=4, blocks=(1, 1, 1))  # down to 2 × 2 positions
    sizes = deep if model == "resnet" else dict(widths=(4,), units=8)
    key, s = jax.random.key(0), jnp.linspace(0, 1, 6)
    net = library_network(family, model, 0.5, key, (1, 8, 8), **sizes)
    x = jax.random.normal(key, (6, 1, 8, 8))
    theirs = jax.vmap(net)(x, s) if family == "ellipse" else jax.vmap(net)(x)
    ours = {"cnn": cnn, "resnet": resnet}[model](points_of(net), x, basis(family, s))
    return jnp.abs(ours - theirs).max()


# %%
kinds = [("ellipse", "cnn"), ("ellipse", "resnet"), ("point", "cnn")]
with jax.default_matmul_precision("highest"):  # else some processors round to TF32
    gaps = {kind: float(apart(*kind)) for kind in kinds}
print("; ".join(f"{' '.join(kind)} {gap:.0e}" for kind, gap in gaps.items()))
assert max(gaps.values()) < 1e-3

# %% [markdown]
# ## Training
#
# The gradient of the points is multiplied by $\mathrm{diag}(1, 2, 2)$, or not, and goes to SGD with momentum 0.9 or to Adam. Rate, decay and that matrix are
# arguments, so that a program serves all arms of a family and a rule.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The training of several networks at once, and what is measured, 197 lines", "code_prompt_hide": "Hide them"}
CONTEXTS, SIZES = 24, (1, 2, 4, 8, 24)
splits = cache(wm.load_splits)


def loss(apply, points, x, y, a):
    """Mean cross-entropy, each image at its own point of the manifold."""
    found = apply(points, x, a)
    return optax.softmax_cross_entropy_with_integer_labels(found, y).mean()


def grams(points):
    """All inner products of the points, over all weights of a network."""
    flat = [p.reshape(len(p), -1) for p in jax.tree.leaves(points)]
    return sum(jnp.matmul(p, p.T, precision="highest") for p in flat)


def train(
    points, key, rate, decay, matrix, parts, *, apply, family, rule, epochs, batch
):
    """Train one network; also its loss, validation accuracy and extent by epoch."""
    (x, y), (x_val, y_val) = parts
    steps = len(x) // batch

    def one_step(carry, given):
        (points, state), (rows, s) = carry, given
        value, gradient = jax.value_and_grad(partial(loss, apply))(
            points, x[rows], y[rows], basis(family, s)
        )
        steepest = jax.tree.map(lambda g: jnp.tensordot(matrix, g, 1), gradient)
        updates, state = rule.update(steepest, state)
        points = jax.tree.map(lambda p, u: p - rate * (u + decay * p), points, updates)
        return (points, state), value

    def one_epoch(carry, key):
        of_order, of_contexts, of_validation = jax.random.split(key, 3)
        order = jax.random.permutation(of_order, len(x))[: steps * batch]
        order = order.reshape(steps, batch)
        s = jax.random.uniform(of_contexts, order.shape)
        carry, values = jax.lax.scan(one_step, carry, (order, s))
        a = basis(family, jax.random.uniform(of_validation, y_val.shape))
        right = apply(carry[0], x_val, a).argmax(axis=1) == y_val
        return carry, (values.mean(), right.mean(), grams(carry[0]))

    keys, start = jax.random.split(key, epochs), (points, rule.init(points))
    (trained, _), (losses, history, extents) = jax.lax.scan(one_epoch, start, keys)
    extents = jnp.concatenate([grams(points)[None], extents])
    return trained, (losses, history, extents)


@cache
def programs(family, model, rule, epochs, batch, **sizes):
    """The start, the training and the outputs of several networks, each compiled."""
    apply = {"cnn": cnn, "resnet": resnet}[model]
    rules = {"SGD": optax.trace(0.9), "Adam": optax.scale_by_adam()}

    def start(key, spread):
        made = points_of(library_network(family, model, 1.0, key, **sizes))
        return jax.tree.map(lambda p: p.at[1:].multiply(spread), made)

    def outputs(points, x, a):
        return jax.nn.log_softmax(apply(points, x, a))

    both = partial(
        train, apply=apply, family=family, rule=rules[rule], epochs=epochs, batch=batch
    )
    return (
        jax.jit(jax.vmap(start, in_axes=(0, None))),
        jax.jit(jax.vmap(both, in_axes=(0, 0, 0, None, None, None))),
        jax.jit(jax.vmap(outputs, in_axes=(0, None, None))),
    )


def half_axes(gram):
    """The norm of the centre, and the two half-axes of an ellipse, from its Gram matrix."""
    if len(gram) == 1:
        return np.sqrt(gram[0]).round(4)
    (a, b), (_, c) = gram[1:, 1:]
    middle, half = (a + c) / 2, np.hypot((a - c) / 2, b)
    return np.sqrt([gram[0, 0], middle + half, max(middle - half, 0)]).round(4)


def trained(config, keys, rates, draw):
    """Networks of some keys and rates: their outputs, their courses, and the images."""
    names = ("dataset", "images", "validation", "test")
    parts = splits(*[config[k] for k in names], pool=config["pool"])
    x_val, y_val = parts.validation
    sizes = {k: v for k, v in config.items() if k in ("units", "width")}
    lists = {k: tuple(v) for k, v in config.items() if k in ("widths", "blocks")}
    rule = "SGD" if config["optimiser"] == "SGD" else "Adam"
    start, both, outputs = programs(
        config["family"], config["model"], rule, config["epochs"], config["batch"],
        in_shape=parts.train[0].shape[1:], **sizes, **lists,
    )  # fmt: skip
    n = wm.Ellipse().size if config["family"] == "ellipse" else 1
    matrix = wm.Ellipse().inverse_gram() if config["metric"] else jnp.eye(n)
    decay = 0.1 if config["optimiser"] == "AdamW" else 0.0
    # Other draws than those of the earlier runs, which the claims are written after.
    each = [jax.random.split(jax.random.fold_in(key, draw)) for key in keys]
    of_net, of_training = (jnp.stack([two[i] for two in each]) for i in (0, 1))
    points, course = both(
        start(of_net, config["spread"] or 0.0), of_training, jnp.asarray(rates),
        decay, matrix, (parts.train, (x_val[:1000], y_val[:1000])),
    )  # fmt: skip
    losses, history, extents = map(np.asarray, course)
    curves = [
        {"loss": o.round(4), "history": h.round(4), "extent": [*map(half_axes, e)]}
        for o, h, e in zip(losses, history, extents, strict=True)
    ]
    return partial(log_probabilities, outputs, points), curves, parts


def log_probabilities(outputs, points, x, a, batch=500):
    """The logarithm of the softmax outputs, (networks, images, classes)."""
    at = [slice(i, i + batch) for i in range(0, len(x), batch)]
    found = [np.asarray(outputs(points, x[i], a[i])) for i in at]
    return np.concatenate(found, axis=1)


def score(log_p, y, bins=15):
    """Accuracy, negative log-likelihood and calibration error in equal bins."""
    right, confidence = log_p.argmax(axis=1) == y, np.exp(log_p.max(axis=1))
    which = np.minimum((np.nan_to_num(confidence) * bins).astype(int), bins - 1)
    gap = np.bincount(which, right, bins) - np.bincount(which, confidence, bins)
    nll = -log_p[np.arange(len(y)), y].mean()
    return np.array([right.mean(), nll, np.abs(gap).sum() / len(y)])


def averaged(log_ps, y):
    """The scores of the mean of some softmax outputs."""
    return score(np.log(np.exp(np.stack(log_ps)).mean(axis=0)), y)


def search(config, keys):
    """Validation accuracy at random contexts, at each of some rates."""
    rates = np.array(config["rates"], np.float32)
    test, curves, parts = trained(config, jnp.repeat(keys, len(rates)), rates, 31)
    x, y = parts.validation
    s = jax.random.uniform(jax.random.key(1), y.shape)
    log_ps = test(x, basis(config["family"], s))
    found = (log_ps.argmax(axis=2) == np.asarray(y)).mean(axis=1)
    kept = {"validation": found, "loss": [c["loss"][-1] for c in curves]}
    return [
        {"metrics": {"best": found.max()}, "curves": kept, "data": parts.fingerprint}
    ]


def of_ellipse(at_random, centre, around, y):
    """What is measured of one ellipse: at random points, its centre, around, averaged."""
    metrics = dict(zip(("accuracy", "nll", "ece"), score(at_random, y), strict=True))
    metrics["centre_accuracy"] = score(centre, y)[0]
    curves = {"context": [score(p, y)[0].round(4) for p in around], "ensemble": []}
    for n in SIZES:  # every way to place n equally spaced points on the 24
        groups = [around[i :: CONTEXTS // n] for i in range(CONTEXTS // n)]
        mean = np.mean([averaged(group, y) for group in groups], axis=0)
        curves["ensemble"].append([n, *mean.round(4)])
    classes = np.stack([p.argmax(axis=1) for p in around])
    opposite = np.roll(classes, CONTEXTS // 2, axis=0)
    metrics["disagreement"] = (classes != opposite).mean()
    return metrics, curves


def of_points(log_ps, y):
    """What is measured of one point network, and of several as an ensemble."""
    metrics = dict(zip(("accuracy", "nll", "ece"), score(log_ps[0], y), strict=True))
    curves = {"ensemble": []}
    for n in range(1, len(log_ps) + 1):
        scores = [averaged(group, y) for group in combinations(log_ps, n)]
        curves["ensemble"].append([n, *np.mean(scores, axis=0).round(4)])
    return metrics, curves


def experiment(config, keys):
    """Ellipses, or one or more point networks, on the test images."""
    rates, found = np.full(len(keys), config["rate"], np.float32), []
    for i in range(config["networks"]):
        others = jnp.stack([jax.random.fold_in(key, i) if i else key for key in keys])
        found.append(trained(config, others, rates, 30))
    test, curves, parts = found[0]
    (x, y), y_test = parts.test, np.asarray(parts.test[1])
    if config["family"] == "point":
        a = jnp.ones((len(x), 1))
        log_ps = np.stack([each(x, a) for each, _, _ in found])
        measured = [of_points(list(log_ps[:, i]), y_test) for i in range(len(keys))]
    else:
        s = jnp.repeat(jnp.arange(CONTEXTS)[:, None] / CONTEXTS, len(x), 1)
        around = np.stack([test(x, basis("ellipse", at)) for at in s])
        random = jax.random.uniform(jax.random.key(1), y.shape)
        at_random = test(x, basis("ellipse", random))
        centre = test(x, jnp.tile(jnp.array([1.0, 0.0, 0.0]), (len(x), 1)))
        measured = [
            of_ellipse(at_random[i], centre[i], list(around[:, i]), y_test)
            for i in range(len(keys))
        ]
    return [
        {"metrics": m, "curves": c | more, "data": parts.fingerprint}
        for (m, more), c in zip(measured, curves, strict=True)
    ]


# %% [markdown]
# ## The search
#
# Every ellipse has five rates, one seed with draws of its own, all epochs, judged by validation images at random contexts; a point network has as many rates as all ellipses
# that it meets. While the best of any arm is at an end of those tried, all arms with its optimiser get as many more, at most twice: beyond that end, or between
# their best and the two rates beside it.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The sweeps, 125 lines", "code_prompt_hide": "Hide them"}
def at_an_end(found):
    """Whether the best rate is the lowest or the highest of those tried."""
    return max(found, key=lambda rate: found[rate]) in (min(found), max(found))


def further(found, sizes):
    """More rates, five for each size: beyond the end that is best, else about it."""
    tried = sorted(found)
    at = tried.index(max(tried, key=lambda rate: found[rate]))
    best = tried[at]
    if at_an_end(found):
        steps = np.arange(1, 5 * sizes + 1) / (2 * sizes)
        more = best * 2.0 ** (steps if at else -steps)
    else:  # three in five of them towards the better neighbour
        low, high = tried[at - 1], tried[at + 1]
        few, many = (np.arange(1, k * sizes + 1) / (k * sizes + 1) for k in (2, 3))
        below, above = (few, many) if found[high] > found[low] else (many, few)
        more = [*low * (best / low) ** below, *best * (high / best) ** above]
    return dealt(more, sizes)


def dealt(rates, sizes):
    """Rates in as many lists as there are sizes, each over the whole range."""
    rates = sorted(float(f"{rate:.6g}") for rate in rates)
    return [rates[i::sizes] for i in range(sizes)]


def between(rates, sizes):
    """The first rates: those, and for each size but one another beside each of them."""
    return dealt([r * 2.0 ** (k / sizes) for r in rates for k in range(sizes)], sizes)


def arms_of(optimisers, spreads):
    """The arms: for SGD, the ellipse with its metric and without."""
    arms = []
    for name in optimisers:
        point = dict(family="point", optimiser=name, metric=False, spread=None)
        metrics = (True, False) if name == "SGD" else (True,)
        ellipses = [
            dict(family="ellipse", optimiser=name, metric=metric, spread=spread)
            for metric in metrics
            for spread in spreads
        ]
        arms += [*ellipses, point]
    return arms


def is_arm(frame, arm):
    """Which rows of a frame are of an arm; the size of a point network is NaN there."""
    same = [frame[k].isna() if v is None else frame[k] == v for k, v in arm.items()]
    return np.logical_and.reduce(same)


def searched(name, common, arms, first):
    """All rounds of a search; for each arm the rates tried with their accuracies."""
    spreads = {arm["spread"] for arm in arms if arm["spread"] is not None}
    sizes = [1 if arm["family"] == "ellipse" else len(spreads) for arm in arms]
    rounds = [
        between(first[arm["optimiser"]], k) for arm, k in zip(arms, sizes, strict=True)
    ]
    gone = dict.fromkeys((arm["optimiser"] for arm in arms), 1)
    while True:
        grid = [
            {**common, **arm, "rates": rates}
            for arm, each in zip(arms, rounds, strict=True)
            for rates in each
        ]
        found = wm.sweep(
            name, search, grid, dataclasses.replace(scale, seeds=1), together=True
        )
        tried = []
        for arm in arms:
            part = found[is_arm(found, arm)]
            pairs = zip(part.rates, part.validation, strict=True)
            tried.append({r: v for p in pairs for r, v in zip(*p, strict=True)})
        ends = [arm for arm, each in zip(arms, tried, strict=True) if at_an_end(each)]
        going = {
            arm["optimiser"] for arm in ends if gone[arm["optimiser"]] < scale.most
        }
        if not going:
            return tried, ends
        for i, arm in enumerate(arms):
            if arm["optimiser"] in going:
                rounds[i] += further(tried[i], sizes[i])
        gone |= {o: gone[o] + 1 for o in going}


def run(name, common, arms, tried):
    """The experiment at each arm's best rate; `chosen` is the best size on validation."""
    best, grid = {}, []
    for arm, each in zip(arms, tried, strict=True):  # the first of equals
        alike, score = {**arm, "spread": None}, max(each.values())
        if (key := tuple(alike.values())) not in best or score > best[key][0]:
            best[key] = score, arm
    for arm, each in zip(arms, tried, strict=True):
        key = tuple({**arm, "spread": None}.values())
        three = arm["family"] == "point" and common["model"] == "cnn"
        grid.append({
            **common, **arm, "rate": max(each, key=lambda rate: each[rate]),
            "chosen": best[key][1] == arm,
            "networks": 3 if three and arm["optimiser"] == "SGD" else 1,
        })  # fmt: skip
    found = []
    for seeds, some in ((1, ("Adam", "AdamW")), (2, ("SGD",))):
        of = [row for row in grid if row["optimiser"] in some]
        seeds = scale.seeds * (seeds if common["model"] == "cnn" else 1)
        more = dataclasses.replace(scale, seeds=1 if scale.quick else seeds)
        found += [wm.sweep(name, experiment, of, more, together=True)] if of else []
    return pd.concat(found, ignore_index=True)


arms, few = arms_of(RATES, SPREADS), arms_of(RESIDUAL_RATES, FEW)
few = [arm for arm in few if arm["metric"] or arm["family"] == "point"]
if scale.quick:  # compiling takes longer than training
    arms = [arm for arm in arms if arm["optimiser"] == "SGD" and arm["spread"] != 0.05]
    arms, few = [arm for arm in arms if arm["spread"] != 0.15], []
first = {o: rates[2:3] if scale.quick else rates for o, rates in RATES.items()}
tried, ends = searched("optimisers_longer_rates", scale.cnn, arms, first)
rows = run("optimisers_longer", scale.cnn, arms, tried)
deep_tried, deep_ends, deep = [], [], rows[:0]
if few:
    deep_tried, deep_ends = searched(
        "optimisers_deeper_rates", scale.resnet, few, RESIDUAL_RATES
    )
    deep = run("optimisers_deeper", scale.resnet, few, deep_tried)

# %% tags=["remove-input"]
Markdown(
    f"{len(rows) + len(deep)} runs, {scale.seeds} seeds for each arm, {rows.seed.nunique()} with SGD, and {sum(map(len, tried + deep_tried))} of the search, at"
    f" preset `{scale.name}`: {scale.cnn['images']:,} images of {scale.cnn['dataset']}, averaged over {scale.cnn['pool']} ×"
    f" {scale.cnn['pool']} pixels, {scale.cnn['epochs']} epochs, for the residual network {scale.resnet['epochs']}, batch"
    f" {scale.cnn['batch']}, on {rows.device.iloc[0]}. Arms whose best rate is at an end of those tried:"
    f" {len(ends + deep_ends)}. Rows from code that has changed since: {int(rows.stale.sum())}."
)

# %% [markdown]
# ## The size at the start
#
# {numref}`fig-unconditioned-spread` has the accuracy of a random point of the ellipse, and of its centre, against its size at the start.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 49 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "Test accuracy of a random point of the ellipse (filled), of its centre (open) and of the mean of eight of its points (diamonds) against the distance of its networks from their centre at the start, in standard deviations of the weights; grey, the point network. Means over seeds and 95 % t-intervals.", "name": "fig-unconditioned-spread"}, "image": {"alt": "A panel for each of SGD, Adam and AdamW: accuracies of the ellipse at its random points, at its centre and averaged, at four sizes at the start, with a grey band for the point network."}}
OPTIMISERS = list(dict.fromkeys(arm["optimiser"] for arm in arms))
BLUE, BRICK, GREY = (
    figures.METHOD_COLOURS[m] for m in ("ellipse", "ellipse, no metric", "none")
)


def values(frame, column, **arm):
    """A metric or a curve of one arm, a row a seed."""
    part = frame[is_arm(frame, arm)].sort_values("seed")
    return np.array(part[column].to_list(), float)


def interval_of(each):
    """The mean in per cent and the ends of its interval."""
    low, high = figures.t_interval(each) if len(each) > 1 else (each[0], each[0])
    return 100 * each.mean(), 100 * np.array([low, high])


def accuracies(frame, arm):
    """Of an ellipse: at a random point, at the centre, and the mean of eight points."""
    eight = values(frame, "ensemble", **arm)[:, 3, 1]
    names = {"accuracy": "o", "centre_accuracy": "wo"}
    return [(values(frame, k, **arm), mark) for k, mark in names.items()] + [
        (eight, "D")
    ]


fig, axes = plt.subplots(
    1, len(OPTIMISERS), figsize=(8.4, 3.4), sharey=True, squeeze=False
)
for ax, name in zip(axes[0], OPTIMISERS, strict=True):
    of_point = values(rows, "accuracy", family="point", optimiser=name)
    mean, (low, high) = interval_of(of_point)
    ax.axhspan(low, high, color=GREY, alpha=0.2, lw=0)
    ax.axhline(mean, color=GREY)
    ellipses = [a for a in arms if a["optimiser"] == name and a["family"] == "ellipse"]
    sizes = sorted({arm["spread"] for arm in ellipses})
    for arm in ellipses:
        colour, shift = (BLUE, -0.08) if arm["metric"] else (BRICK, 0.08)
        for k, (each, mark) in enumerate(accuracies(rows, arm)):
            at, (mean, ends_of) = sizes.index(arm["spread"]), interval_of(each)
            at = at + shift + 0.04 * (k - 1)
            ax.plot([at, at], ends_of, color=colour, lw=1.2)
            face = "none" if mark == "wo" else colour
            ax.plot(at, mean, mark[-1], mfc=face, mec=colour, ms=4.5)
    ax.set_xticks(range(len(sizes)), [f"{size:g}" for size in sizes])
    ax.set(title=name, xlabel="size at the start")
axes[0, 0].set_ylabel("test accuracy (%)")
plt.show()

# %% [markdown]
# With SGD, blue is the ellipse with its metric and vermilion the one without. {numref}`fig-unconditioned-extent` asks what has become of the ellipse, and
# {numref}`fig-unconditioned-history` whether training has ended.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 25 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "The shorter half-axis of the ellipse relative to the norm of its centre, by epoch (left), and the share of test images that opposite points of it classify differently, against its size at the start (right). SGD with the metric solid, Adam dashed. Means over seeds.", "name": "fig-unconditioned-extent"}, "image": {"alt": "Left, curves of the relative half-axis over the epochs for each size at the start; right, the disagreement of opposite points against that size, for SGD and Adam."}}
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
shades = ["#0B2A4A", "#1D4F7C", BLUE, "#2B83BA"]
for name, style in {"SGD": "-", "Adam": "--"}.items():
    ellipses = [
        arm
        for arm in arms
        if arm["optimiser"] == name and arm["family"] == "ellipse" and arm["metric"]
    ]
    differ = []
    for arm, shade in zip(ellipses, shades, strict=False):
        course = values(rows, "extent", **arm)
        ratio = (course[:, :, 2] / course[:, :, 0]).mean(axis=0)
        label = f"{name}, {arm['spread']:g}"
        left.plot(np.arange(len(ratio)), ratio, style, color=shade, label=label)
        differ.append(100 * values(rows, "disagreement", **arm).mean())
    at = range(len(differ))
    right.plot(at, differ, "o" + style, color=BLUE, label=name)
    right.set_xticks(at, [f"{arm['spread']:g}" for arm in ellipses])
left.set(xlabel="epoch", ylabel="half-axis / norm of the centre")
right.set(
    xlabel="size at the start", ylabel="opposite points differ (%)", ylim=(0, None)
)
left.legend(fontsize=7.5)
right.legend(fontsize=9)
plt.show()

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 20 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "Accuracy on 1,000 validation images after each epoch, the ellipse at a random point for every image: the ellipse of the size that validation chose (blue, with the metric), the one that starts largest (violet) and the point network (grey). Means over seeds.", "name": "fig-unconditioned-history"}, "image": {"alt": "A panel for each optimiser with rising curves of validation accuracy over thirty epochs for two ellipses and the point network."}}
fig, axes = plt.subplots(
    1, len(OPTIMISERS), figsize=(8.4, 3), sharey=True, squeeze=False
)
for ax, name in zip(axes[0], OPTIMISERS, strict=True):
    of_ellipse_arm = dict(family="ellipse", optimiser=name, metric=True)
    shown = {
        "ellipse, chosen": (BLUE, of_ellipse_arm | {"chosen": True}),
        "ellipse, 0.5": (
            figures.METHOD_COLOURS["line"],
            of_ellipse_arm | {"spread": 0.5},
        ),
        "point": (GREY, dict(family="point", optimiser=name)),
    }
    for label, (colour, arm) in shown.items():
        course = 100 * values(rows, "history", **arm).mean(axis=0)
        ax.plot(np.arange(1, len(course) + 1), course, color=colour, label=label)
    ax.set(title=name, xlabel="epoch")
axes[0, 0].set_ylabel("validation accuracy (%)")
axes[0, 0].legend(fontsize=9)
plt.show()

# %% [markdown]
# {numref}`tab-unconditioned-arms` has the numbers of all arms, those of the residual network among them.


# %% tags=["remove-input"]
def in_words(frame, arm):
    """One arm as a row of the table."""
    accuracy = values(frame, "accuracy", **arm)
    found = {
        "network": {"cnn": "CNN", "resnet": "ResNet-18"}[frame.model.iloc[0]],
        "family": arm["family"],
        "optimiser": arm["optimiser"]
        + ("" if arm["metric"] or arm["family"] == "point" else ", no metric"),
        "size": "" if arm["spread"] is None else f"{arm['spread']:g}",
        "accuracy": pages.percent(accuracy),
        "minus point": "",
        "centre": "",
        "eight points": "",
    }
    if arm["family"] == "ellipse":
        point = dict(family="point", optimiser=arm["optimiser"])
        gaps = 100 * (accuracy - values(frame, "accuracy", **point))
        found["minus point"] = (
            pages.interval(gaps, count=False) if len(gaps) > 1 else "–"
        )
        found["centre"] = pages.percent(values(frame, "centre_accuracy", **arm))
        found["eight points"] = pages.percent(values(frame, "ensemble", **arm)[:, 3, 1])
    return found


listed = [in_words(rows, arm) for arm in arms] + [in_words(deep, arm) for arm in few]
pages.table(
    pd.DataFrame(listed),
    "Test accuracy in per cent: at a random point of the ellipse, less that of the point network with the same optimiser in points, at the"
    " centre, and of the mean of eight points; means with 95 % t-intervals.",
    name="tab-unconditioned-arms",
    disable_numparse=True,
)

# %% [markdown]
# ## Verdict
#
# The claims and their margins were written before these rows. Which size is the chosen one is decided by validation images.

# %% tags=["remove-input"]
frames = {"optimisers_longer": rows} | ({"optimisers_deeper": deep} if few else {})
judged = verdicts.verdict_table("manifolds/optimisers_longer", scale.name, rows=frames)
caption = (
    "The claims of this chapter, judged by the rule of the book. Differences in points."
)
display(
    pages.table(judged, caption, name="tab-unconditioned-verdicts", look="verdicts")
)

# %% [markdown]
# ## Appendix: the search

# %% tags=["remove-input"]
table = pd.DataFrame([
    {
        "network": model,
        "family": arm["family"],
        "optimiser": arm["optimiser"] + ("" if arm["metric"] or arm["family"] == "point" else ", no metric"),
        "size": "" if arm["spread"] is None else f"{arm['spread']:g}",
        "tried": len(each),
        "from": f"{min(each):.3g}",
        "to": f"{max(each):.3g}",
        "best": f"{max(each, key=lambda rate: each[rate]):.3g}",
        "validation": f"{100 * max(each.values()):.1f}",
        "at an end": "yes" if at_an_end(each) else "no",
    }
    for model, of_model, each_tried in (("CNN", arms, tried), ("ResNet-18", few, deep_tried))
    for arm, each in zip(of_model, each_tried, strict=True)
])  # fmt: skip
pages.table(
    table,
    "The search of each arm: rates tried, the best, and its accuracy on validation images in per cent, one seed.",
    name="tab-unconditioned-search",
    disable_numparse=True,
)
