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
# # Learning a second task, every method searched further
#
# In {doc}`continual` a network that knows digits (MNIST) learns clothes (Fashion-MNIST). Some rivals of *functionally invariant paths* (FIP)
# {cite:p}`raghavan2024fip` may have lost there for want of a setting. Here every method is searched for five rounds, and every network asked
# twice: among all outputs, and told the task.

# %% tags=["remove-input"]
import matplotlib.pyplot as plt

from wmlib.lab import figures, pages, verdicts
from wmlib.lab.runs import book_results, recorded_runs

recorded = recorded_runs("continual_fair", "cpu", results=book_results())
ends_of = {
    what: 100 * recorded.pivot(index="seed", columns="method", values=what)
    for what in ("mean", "told_mean")
}


def difference(what, a, b):
    return pages.interval(ends_of[what][a] - ends_of[what][b], "points")


pages.findings(
    "None of the six older methods is a point above FIP, and EWC is within a point. DER++ is level with FIP "
    "by the squared distance. Told the task, EWC is the better. With the authors' network too FIP keeps digits that fine-tuning forgets.",
    {
        "FIP beyond EWC, both tasks": difference("mean", "FIP, Bhattacharyya", "EWC"),
        "squared distance beyond DER++": difference("mean", "FIP, squared", "DER++"),
        "EWC beyond FIP, told the task": difference(
            "told_mean", "EWC", "FIP, Bhattacharyya"
        ),
    },
    before="{doc}`continual`.",
)

# %% tags=["remove-input"] mystnb={"figure": {"caption": "FIP meets the six older methods also when each is searched further; over EWC it leads by less than a point. Each bar is the 95 % interval of one comparison, in units of the least difference that matters; what the claim expects lies to the right. Right of 1 a claim of *higher* or *lower* is shown, right of −1 one of *not lower* or *not higher*, between the two one of *the same* (squares).", "name": "fig-fair-verdicts"}, "image": {"alt": "Eighteen claims with the intervals of their comparisons. Claims 3, 4, 6, 7, 11, 14, 15 and 17 are shown, in 3, 24, 1, 1, 1, 4, 1 and 1 comparisons; 1 and 13 are shown in one of two; 2 and 18 are contradicted, each by one comparison; 5, 8, 9, 10, 12 and 16 are undecided."}}
figures.use_style()
judged = verdicts.judge_chapter("paths/continual_fair", "cpu", results=book_results())
verdicts.plot_verdicts(judged)
plt.show()

# %% [markdown]
# ## The idea
#
# Two things can make a method look worse than it is.
#
# - **A setting that was not tried.** In {doc}`continual` A-GEM saw ten of fifty memories in a step. The strength of EWC went in steps of three. The best
#   margin of GEM and the best exact directions lay at an end of their grids. DER++ had one strength for its two terms.
# - **The question that is asked.** All twenty outputs compete. A network that gives all its answers among the ten new outputs has perhaps forgotten
#   nothing but which ten to use.
#
# So here a search goes on, for five rounds at most, while a best setting lies at an end of what was tried. Every rival with a memory has all fifty images
# of it in every step. And each network is asked a second time, among the ten outputs of the right task: *told the task*.
#
# {numref}`tab-fair-methods` has the methods, one mechanism each. They, FIP's distances (the squared one is of the logits, the others of probabilities) and the exact directions with
# their strength β are those of {doc}`continual`.
#
# ```{table} Sixteen methods. Fine-tuning and joint training are no rivals: they are the floor and the ceiling. All but the exact directions have a rate beside what is named.
# :name: tab-fair-methods
#
# | method | keeps of the digits | is searched |
# | --- | --- | --- |
# | fine-tuning | nothing | |
# | joint training | all images and labels | strength of the loss on fifty of them |
# | FIP: squared, KL, Hellinger, Bhattacharyya | 50 images, their old outputs | strength of that distance |
# | FIP, exact: squared, KL | 50 images, their old outputs | β, length of a step |
# | replay {cite:p}`chaudhry2019tiny` | 50 images, their labels | strength |
# | dark experience replay (DER++) {cite:p}`buzzega2020der` | 50 images, old outputs, labels | strengths of both |
# | learning without forgetting (LwF) {cite:p}`li2016lwf` | the old network, on new images | strength |
# | elastic weight consolidation (EWC) {cite:p}`kirkpatrick2017ewc` | the diagonal of the metric on 50 images | strength |
# | anchor to the start (L2) | the old weights | strength |
# | gradient episodic memory (GEM) {cite:p}`lopezpaz2017gem` | 50 images, their labels | margin |
# | averaged GEM (A-GEM) {cite:p}`chaudhry2019agem` | 50 images, their labels | |
# | orthogonal gradient descent (OGD) {cite:p}`farajtabar2020ogd` | of 50 images, the gradient of the true logit | |
# ```

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The imports of this chapter, 17 lines", "code_prompt_hide": "Hide the imports"}
import copy
import dataclasses
import functools
import itertools
import operator
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax.flatten_util import ravel_pytree

import wmlib as wm
from wmlib.paths.objectives import cross_entropy

# %% [markdown]
# All results of this page were recorded at the preset `cpu`; the plan of the runs is in the [appendix](#appendix-the-plan).

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The settings of the three presets, 14 lines", "code_prompt_hide": "Hide the settings"}
cpu = dict(
    seeds=5, first="mnist", second="fashion_mnist", images=55_000, validation=5_000,
    test=10_000, batch=100, steps=550, base_rate=0.03, base_epochs=2, widths=[16, 32],
    units=100, memories=50, round=5, most=5, exact=[150, 400],
    authors=dict(images=60_000, test=10_000, small=15_000, epochs=3, memories=50),
)  # fmt: skip
quick = dict(
    seeds=2, first="mnist5k", second="mnist5k", images=200, validation=50, test=100,
    batch=20, steps=4, base_rate=0.03, base_epochs=1, widths=[4], units=8, memories=5,
    round=1, most=1, exact=[1, 20],
    authors=dict(images=200, test=50, small=2, epochs=1, memories=5),
)  # fmt: skip
scale = wm.preset(quick=quick, cpu=cpu, paper=cpu | dict(seeds=20))
OLD = 10  # classes of the first task; the second has the outputs 10 to 19

# %% [markdown]
# ## Many networks as one program
#
# A network is one vector of weights here. Its convolutions are written as products of matrices, since a program for many networks at once then is
# made of larger products.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The network as a function of one vector, 40 lines", "code_prompt_hide": "Hide it"}
def fresh(key):
    """The first weights, as one vector."""
    sizes = dict(widths=tuple(scale.widths), units=scale.units)
    return ravel_pytree(
        eqx.filter(wm.models.LayerNormCNN(**sizes, key=key), eqx.is_array)
    )[0]


_sizes = dict(widths=tuple(scale.widths), units=scale.units)
_weights, _rest = eqx.partition(
    wm.models.LayerNormCNN(**_sizes, key=jax.random.key(0)), eqx.is_array
)
_, _unravel = ravel_pytree(_weights)


def as_network(w):
    """The network with these weights."""
    return eqx.combine(_unravel(w), _rest)


def convolved(layer, x):
    """A 3 × 3 convolution of stride 2 on a batch: nine shifted images, one product."""
    h, w = ((size + 1) // 2 for size in x.shape[2:])
    x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifts = itertools.product(range(3), range(3))
    x = jnp.stack([x[:, :, i::2, j::2][:, :, :h, :w] for i, j in shifts], axis=2)
    x = x.reshape(len(x), -1, h, w)
    return (
        jnp.einsum("of,nfhw->nohw", layer.weight.reshape(-1, x.shape[1]), x)
        + layer.bias
    )


def says(w, x):
    """Logits of a batch of images."""
    net = as_network(w)
    for convolution, norm in zip(net.convolutions, net.norms, strict=True):
        x = jax.nn.relu(jax.vmap(norm)(convolved(convolution, x)))
    x = x.reshape(len(x), -1) @ net.hidden.weight.T + net.hidden.bias
    return jax.nn.relu(x) @ net.output.weight.T + net.output.bias


# %% [markdown]
# **Check.** It says what the library's network says.

# %%
probe, x = (
    fresh(jax.random.key(1)),
    jax.random.normal(jax.random.key(2), (3, 1, 28, 28)),
)
gap = jnp.abs(says(probe, x) - jax.vmap(as_network(probe))(x)).max()
print(f"largest difference: {gap:.0e}")
assert gap < 1e-4

# %% [markdown]
# ## The methods
#
# Each step descends the loss on a hundred new images and, beside it, what keeps the old task; or it changes the gradient. All
# start from the same network of a seed and, but for the exact directions, take the same minibatches. What remembers images has the same fifty, *all* of them in
# every step; joint training draws fifty old images anew.

# %%
DISTANCES = {
    "FIP, squared": wm.distances.squared_error,
    "FIP, KL": wm.distances.kl,
    "FIP, Hellinger": wm.distances.hellinger,
    "FIP, Bhattacharyya": wm.distances.bhattacharyya,
}
RULES = ["GEM", "A-GEM", "OGD"]


# %%
def beside(method, w, start, kept, ratio, x, new, recalled):
    """What a method adds to the loss of the new task, before its strength."""
    images, labels, told = recalled
    if method == "EWC":
        return (kept * (w - start) ** 2).sum() / 2
    if method == "L2":
        return ((w - start) ** 2).sum() / 2
    if method == "LwF":  # the old ten outputs on the new images, at temperature 2
        before, after = (a[:, :OLD] / 2 for a in (says(start, x), new))
        return 4 * jax.vmap(wm.distances.kl)(after, before).mean()
    said = says(w, images)
    if method in DISTANCES:
        return jax.vmap(DISTANCES[method])(said, told).mean()
    labelled = jax.vmap(cross_entropy)(said, labels).mean()
    if method == "DER++":
        return ((said - told) ** 2).sum(axis=1).mean() + ratio * labelled
    return labelled  # replay, joint


# %%
def changed(method, gradient, recalled, kept, margin):
    """The gradient that GEM, A-GEM or OGD makes of one."""
    if method == "GEM":
        return wm.rivals.gem_projection(gradient, recalled[None], margin)
    if method == "A-GEM":
        return wm.rivals.agem_projection(gradient, recalled)
    return gradient - kept.T @ (kept @ gradient)


# %% tags=["hide-input"] mystnb={"code_prompt_show": "Learning by many networks at once, 37 lines", "code_prompt_hide": "Hide it"}
@functools.partial(jax.jit, static_argnums=0)
def learn(method, starts, kept, settings, seeds, rows, recalled, new, old, told):
    """Many networks learn a task by a method: SGD with momentum 0.9.

    `starts`, `kept`, `told` (outputs on the old images), `rows` (of minibatches) and
    `recalled` (rows of memories, by step) are by seed; a network has its seed and
    setting.
    """

    def one(setting, seed):
        (rate, strength, ratio), start, mine = setting, starts[seed], kept[seed]

        def step(state, now):
            (w, momentum), (i, k) = state, now
            memory = old[0][k], old[1][k], told[seed, k]

            def loss(w):
                said = says(w, new[0][i])
                value = jax.vmap(cross_entropy)(said, new[1][i]).mean()
                if method in RULES or method == "fine-tuning":
                    return value
                given = (ratio, new[0][i], said, memory)
                return value + strength * beside(method, w, start, mine, *given)

            def memories(w):
                return jax.vmap(cross_entropy)(says(w, memory[0]), memory[1]).mean()

            g = jax.grad(loss)(w)
            if method in RULES:
                g = changed(method, g, jax.grad(memories)(w), mine, strength)
            momentum = 0.9 * momentum + g
            return (w - rate * momentum, momentum), None

        begin = (start, jnp.zeros_like(start))
        return jax.lax.scan(step, begin, (rows[seed], recalled[seed]))[0][0]

    return jax.vmap(one)(settings, seeds)


# %% tags=["hide-input"] mystnb={"code_prompt_show": "Data, base networks and memories, 86 lines", "code_prompt_hide": "Hide them"}
NAMES = ("first", "second", "images", "validation", "test")
TRAINING = (
    "base_rate",
    "base_epochs",
    "batch",
    "steps",
    "memories",
    "bases",
    "together",
)


@functools.cache
def data(first, second, *sizes):
    """The two tasks, the second with the labels 10 to 19."""
    tasks = [wm.load_splits(name, *sizes) for name in (first, second)]
    parts = [t[:3] for t in tasks]
    parts[1] = [(x, y + OLD) for x, y in parts[1]]
    return *parts, " ".join(t.fingerprint for t in tasks)


def tasks_of(config):
    """The two tasks of a configuration."""
    return data(*[config[k] for k in NAMES])


@jax.jit
def logits(w, x):
    """Logits of many images, some at a time."""
    some = max(k for k in range(1, 1001) if len(x) % k == 0)
    parts = x.reshape(-1, some, *x.shape[1:])
    return jax.lax.map(lambda part: says(w, part), parts).reshape(len(x), -1)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def minibatches(key, count, steps, batch):
    """Rows of minibatches, anew each epoch."""
    epochs = -(-steps * batch // (count // batch * batch))
    keys = jax.random.split(key, epochs)
    mixed = [jax.random.permutation(k, count)[: count // batch * batch] for k in keys]
    return jnp.concatenate(mixed)[: steps * batch].reshape(steps, batch)


@functools.cache
def prepared(names, training):
    """By seed: the networks that learned the first task, their outputs on its images,
    the rows of what is to come, and of the memories."""
    (old, *_), (new, *_), _ = data(*names)
    given = dict(zip(TRAINING, training, strict=True))
    steps, batch, epochs = given["steps"], given["batch"], given["base_epochs"]
    count, many = given["bases"], given["together"]
    keys = [jax.random.split(jax.random.key(seed)) for seed in range(count)]
    nets = jnp.stack([fresh(k[0]) for k in keys])
    rows = jnp.stack(
        [minibatches(k[1], len(old[1]), epochs * steps, batch) for k in keys]
    )
    none = jnp.zeros((count, steps, 1), jnp.int32)
    seeds = np.arange(many) % count  # as many as the other programs train
    settings = jnp.tile(jnp.float32([given["base_rate"], 0, 0]), (many, 1))
    for e in range(epochs):
        part = rows[:, e * steps : (e + 1) * steps]
        empty = (jnp.zeros((count, 1)), settings, seeds, part, none, old, old)
        said = jnp.zeros((count, len(old[1]), 2 * OLD))
        nets = learn("fine-tuning", nets, *empty, said)[:count]
    told = jnp.stack([logits(w, old[0]) for w in nets])
    keys = [jax.random.split(jax.random.key(1000 + seed)) for seed in range(count)]
    memories = [jax.random.permutation(k[0], len(old[1])) for k in keys]
    memories = jnp.stack([m[: given["memories"]] for m in memories])
    rows = jnp.stack([minibatches(k[1], len(new[1]), steps, batch) for k in keys])
    return nets, told, rows, memories


def kept_of(method, nets, old, memories):
    """What EWC and OGD keep of the first task, by seed."""
    found = []
    for w, k in zip(nets, memories, strict=True):
        net, x, y = as_network(w), old[0][k], old[1][k]
        if method == "EWC":
            fisher = wm.rivals.fisher_diagonal(operator.call, net, x)
            found.append(ravel_pytree(fisher)[0])
        elif method == "OGD":
            basis = wm.rivals.ogd_basis(operator.call, net, x, y)
            found.append(jnp.pad(basis, ((0, len(k) - len(basis)), (0, 0))))
        else:
            found.append(jnp.zeros(1))
    return jnp.stack(found)


# %% tags=["hide-input"] mystnb={"code_prompt_show": "What is measured, and the runs, 81 lines", "code_prompt_hide": "Hide them"}
@jax.jit
def right(w, x, y):
    """Of one network: whether each image is right among all outputs, and among the ten
    of its task."""
    said = logits(w, x)
    own = jnp.arange(2 * OLD)[None] // OLD == y[:, None] // OLD
    found = [said.argmax(axis=1), jnp.where(own, said, -jnp.inf).argmax(axis=1)]
    return jnp.stack([(f == y).mean() for f in found]) * jnp.isfinite(w).all()


def score(w, first, second):
    """Accuracy on both tasks, among all outputs and told the task; 0 if it diverged."""
    (a, told_a), (b, told_b) = (map(float, right(w, *part)) for part in (first, second))
    return {
        "on_first": a, "on_second": b, "mean": (a + b) / 2, "told_first": told_a,
        "told_second": told_b, "told_mean": (told_a + told_b) / 2,
    }  # fmt: skip


def ready(config):
    """What all methods share."""
    names = tuple(config[k] for k in NAMES)
    return prepared(names, tuple(config[k] for k in TRAINING))


@functools.cache
def kept_for(method, names, training):
    """What a method keeps, once a process."""
    nets, _, _, memories = prepared(names, training)
    return kept_of(method, nets, data(*names)[0][0], memories)


def seed_of(key):
    """The number of a seed."""
    return int(jax.random.key_data(key)[-1])


def trained(config, models):
    """Networks that learned both tasks, one for each model: a seed and a setting."""
    (old, *_), (new, *_), _ = tasks_of(config)
    nets, told, rows, memories = ready(config)
    method, steps = config["method"], config["steps"]
    names = tuple(config[k] for k in NAMES)
    kept = kept_for(method, names, tuple(config[k] for k in TRAINING))
    recalled = jnp.repeat(memories[:, None], steps, axis=1)
    if method == "joint":  # as many, but of all images
        keys = jnp.stack([jax.random.key(2000 + seed) for seed in range(len(nets))])
        draw = functools.partial(jax.random.randint, shape=recalled.shape[1:], minval=0)
        recalled = jax.vmap(lambda key: draw(key, maxval=len(old[1])))(keys)
    full = [models[i % len(models)] for i in range(config["together"])]
    seeds = np.array([seed for seed, _ in full])
    settings = jnp.float32([setting for _, setting in full])
    found = learn(method, nets, kept, settings, seeds, rows, recalled, new, old, told)
    return found[: len(models)], nets[seeds[: len(models)]]


def tune(config, keys):
    """Some settings of a method, on the validation images of both tasks."""
    first, second, fingerprint = tasks_of(config)
    seeds = [seed_of(key) for key in keys]
    models = [(seed, s) for seed in seeds for s in config["settings"]]
    found, _ = trained(config, models)
    means = np.array([score(w, first[1], second[1])["mean"] for w in found])
    return [
        {"metrics": {"best": part.max()}, "data": fingerprint,
         "curves": {"validation": part.tolist()}}
        for part in means.reshape(len(seeds), -1)
    ]  # fmt: skip


def evaluate(config, keys):
    """A method at its best setting, on the test images of both tasks."""
    first, second, fingerprint = tasks_of(config)
    models = [(seed_of(key), config["setting"]) for key in keys]
    results = []
    for w, start in zip(*trained(config, models), strict=True):
        metrics = score(w, first[2], second[2])
        metrics |= {"base": float(right(start, *first[2])[0])}
        metrics |= {"displacement": float(jnp.linalg.norm(w - start))}
        results.append({"metrics": metrics, "data": fingerprint})
    return results


# %% [markdown]
# **Check.** Three steps of FIP are those of `wm.walk`.

# %%
digits = wm.load_splits("mnist5k", 40, 2, 2)
(x, y), rate = digits.train, 0.05
told = jax.vmap(as_network(probe))(x)
rows, recalled = (jnp.tile(jnp.arange(n), (1, 3, 1)) for n in (40, 5))
given = (jnp.zeros((1, 1)), jnp.float32([[rate, 2.0, 0.0]]), np.array([0]), rows)
given += (recalled, (x, y + OLD), (x, y), told[None])
(ours,) = learn("FIP, squared", probe[None], *given)
path = wm.walk(
    operator.call, as_network(probe), wm.objectives.Task(operator.call, x, y + OLD, 40),
    x[:5], wm.distances.squared_error, steps=3, record=3, key=jax.random.key(0),
    method=wm.PenalisedDescent(optax.sgd(rate, momentum=0.9), 2.0),
)  # fmt: skip
theirs = ravel_pytree(eqx.filter(path.weights[-1], eqx.is_array))[0]
gap, far = (float(jnp.linalg.norm(ours - w)) for w in (theirs, probe))
print(f"they end {gap:.0e} apart, {far:.0e} from the start")
assert gap < 1e-3 * far

# %% [markdown]
# ## A search in rounds
#
# A setting is a place on a lattice: the rate $10^{i/4}$, the strength $1.5^j$ and, for DER++, the ratio $2.25^k$ of its two terms. Each method begins
# about the setting that {doc}`continual` had chosen for it, with ten places; exact directions by the squared distance, which were not run there, about
# β = 18. Rounds of five more follow, for all alike: one, two and four places
# beyond an end, the neighbours on each axis, then others about the best. They go on while the best of any method lies at an end of what was
# tried on an axis through it, at most five rounds: four were planned, and the fifth was added, for all alike, when after four the best of
# FIP by the authors' distance still had nothing tried beyond it.
#
# That one lies inside since, and near the end of what is stable: at its rate, at strengths of 195 and 357 on either side, one of two seeds collapses. The
# fifth round itself found three bests, better than before by 0.2 points or less. So by this rule three of sixteen methods still have an end. Two of them have
# places tried on both sides, one step off the axis. FIP by the squared distance has nothing tried below its best strength, 0.026; at its rate strengths up
# to five times as high are within 0.2 points of it ({numref}`tab-fair-search`).
#
# The judge is the mean accuracy on validation images of both tasks, among all outputs, over two seeds.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The places that are tried, 67 lines", "code_prompt_hide": "Hide them"}
MIDDLE = {  # where the search begins
    "fine-tuning": (-13,), "A-GEM": (-11,), "OGD": (-12,), "joint": (-6, -3),
    "FIP, squared": (-8, -6), "FIP, KL": (-10, 11), "FIP, Hellinger": (-10, 11),
    "FIP, Bhattacharyya": (-10, 11), "replay": (-10, 6), "DER++": (-8, -6, 2),
    "LwF": (-12, 0), "EWC": (-10, 18), "L2": (-8, -6), "GEM": (-10, 0),
    "exact, KL": (-7, -11), "exact, squared": (5, -11),
}  # fmt: skip
EXACT = {"exact, KL": wm.distances.kl, "exact, squared": wm.distances.squared_error}
METHODS = [m for m in MIDDLE if m not in EXACT]
if scale.name == "quick":  # compiling takes longer than learning
    METHODS = ["fine-tuning", "FIP, Bhattacharyya"]
    EXACT = {"exact, squared": EXACT["exact, squared"]}


def setting(place):
    """Rate, strength and ratio of a place."""
    rate, j, k = (*place, 0, 0)[:3]
    strength = float(f"{1.5**j:.6g}") if len(place) > 1 else 0.0
    return [round(10 ** (rate / 4), 8), strength, round(2.25**k, 6)]


def first_places(middle):
    """Ten places to begin with."""
    if len(middle) == 1:
        return [(middle[0] + float(d),) for d in range(-4, 6)]
    if len(middle) == 2:
        moves = [(d, 2.0 * e) for d in (-1, 0, 1) for e in (-1, 0, 1)]
        moves.append((0, 1.0))
    else:
        axes = [(1, 0, 0), (0, 2, 0), (0, 0, 2)]
        moves = [(0, 0, 0), *axes, *[tuple(-a for a in axis) for axis in axes]]
        moves += [(1, 2, 0), (-1, -2, 0), (0, 2, -2)]
    return [moved(middle, move) for move in moves]


def moved(place, move):
    """A place and a move from it."""
    return tuple(float(a + b) for a, b in zip(place, move, strict=True))


def ends(best, tried):
    """The directions, on each axis through the best place, in which none was tried."""
    found = []
    for axis in range(len(best)):
        on = [
            p[axis]
            for p in tried
            if p[:axis] + p[axis + 1 :] == best[:axis] + best[axis + 1 :]
        ]
        unit = tuple(float(a == axis) for a in range(len(best)))
        found += [unit] if best[axis] == max(on) else []
        found += [tuple(-u for u in unit)] if best[axis] == min(on) else []
    return found


def further(best, tried, count):
    """The next places: one, two and four beyond an end, then others about the best."""
    fine = np.arange(-16, 17) / 8 if len(best) == 1 else [1, -1, 0.5, -0.5, 0]
    about = sorted(
        itertools.product(map(float, fine), repeat=len(best)),
        key=lambda d: (sorted(map(abs, d)) != [0] * (len(d) - 1) + [1],
                       sum(a not in (0, 1, -1) for a in d),
                       sum(abs(abs(a) - 0.5) for a in d), sum(a != 0 for a in d), d),
    )  # fmt: skip
    beyond = [tuple(k * a for a in end) for k in (1, 2, 4) for end in ends(best, tried)]
    near = dict.fromkeys(moved(best, move) for move in (*beyond, *about))
    return [place for place in near if place not in tried][:count]


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The search, 73 lines", "code_prompt_hide": "Hide the search"}
keys = (*NAMES, *TRAINING)
common = scale.settings | {"bases": scale.seeds, "together": 2 * scale.round}
common |= {"together": max(common["together"], scale.seeds)}
common = {k: common[k] for k in keys}
two_seeds = dataclasses.replace(scale, seeds=min(scale.seeds, 2))
scores: dict = {m: {} for m in (*METHODS, *EXACT)}


def turned(grid):
    """The same runs; each process begins elsewhere, and so compiles few programs."""
    at = os.getpid() % len(grid)
    return grid[at:] + grid[:at]


def search_round(places):
    """A round of the search of the methods that learn many networks at once."""
    grid = [
        {**common, "method": m, "settings": [setting(p) for p in some]}
        for m, some in places.items()
    ]
    found = wm.sweep(
        "continual_fair_tuning", tune, turned(grid), two_seeds, together=True
    )
    for method, part in found.groupby("method"):
        means = np.mean(part.validation.tolist(), axis=0)
        scores[method] |= dict(zip(places[method], map(float, means), strict=True))


def exact_round(places):
    """A round of the search of exact directions, one network a run."""
    grid = [
        {**common, "exact": scale.exact, "method": m, "setting": setting(p)}
        for m, some in places.items()
        for p in some
    ]
    found = wm.sweep("continual_fair_exact_tuning", tune_exact, turned(grid), two_seeds)
    means = found.groupby(["method", found.setting.map(str)])["mean"].mean()
    for m, some in places.items():
        scores[m] |= {p: float(means[m, str(setting(p))]) for p in some}


def unbounded(best, tried):
    """Whether on a side of the best nothing was tried, within a step off its axis."""
    off = {p: [abs(a - b) > 1 for a, b in zip(p, best, strict=True)] for p in tried}
    for axis in range(len(best)):
        near = [p for p in tried if not any(off[p][:axis] + off[p][axis + 1 :])]
        if not {-1.0, 1.0} <= {np.sign(p[axis] - best[axis]) for p in near}:
            return True
    return False


def best_place(method):
    """The best place of a method, and all that were tried."""
    tried = scores[method]
    return max(tried, key=tried.get), tried


def search(methods, one_round, least=1, most=scale.most):
    """Ten places for each method, then rounds while the best of any is at an end."""
    begun = range(0, 10, scale.round) if scale.name != "quick" else [4]
    for i in begun:
        one_round({m: first_places(MIDDLE[m])[i : i + scale.round] for m in methods})
    n = 0
    for n in range(1, most + 1):
        one_round({m: further(*best_place(m), scale.round) for m in methods})
        if n >= least and not any(ends(*best_place(m)) for m in methods):
            break
    return n


rounds = search(METHODS, search_round)
grid = [{**common, "method": m, "setting": setting(best_place(m)[0])} for m in METHODS]
rows = wm.sweep("continual_fair", evaluate, turned(grid), scale, together=True)

# %% [markdown]
# ## Exact directions
#
# Steps along the minimiser of Eq. 4 ({doc}`directions`) are taken one network at a time, with the metric of the KL distance and with that of the squared
# one: 150 steps of 400 images. Their lattice has β in place of the rate and the square of a step's length in place of the strength.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "Exact directions, 56 lines", "code_prompt_hide": "Hide them"}
def decaying(epsilon, steps):
    """The square of a step's length, falling to nothing as a cosine."""
    return lambda taken: epsilon * np.cos(np.pi / 2 * taken / steps) ** 2 + 1e-12


def walked(config, seed):
    """A network that learned the second task along exact directions, and its start."""
    _, (new, *_), _ = tasks_of(config)
    nets, _, _, memories = ready(config)
    (steps, batch), (beta, epsilon, _) = config["exact"], config["setting"]
    how = wm.ExactDirections(beta, decaying(epsilon, steps), momentum=0.9)
    memory = tasks_of(config)[0][0][0][memories[seed]]
    task, key = (
        wm.objectives.Task(operator.call, *new, batch),
        jax.random.key(3000 + seed),
    )
    given = (as_network(nets[seed]), task, memory, EXACT[config["method"]])
    with jax.default_matmul_precision("highest"):  # a Krylov basis needs its digits
        path = wm.walk(
            operator.call, *given, method=how, steps=steps, key=key, record=steps
        )
    return ravel_pytree(eqx.filter(path.weights[-1], eqx.is_array))[0], nets[seed]


def run_exact(config, key, split):
    """One walk along exact directions, measured on a split."""
    first, second, fingerprint = tasks_of(config)
    try:
        w, start = walked(config, seed_of(key))
    except (FloatingPointError, ValueError) as error:
        if isinstance(error, ValueError) and "not finite" not in str(error):
            raise  # else the steps were too large
        nothing = jnp.full_like(fresh(key), jnp.nan)
        w, start = nothing, nothing
    metrics = score(w, first[split], second[split])
    metrics["displacement"] = float(jnp.linalg.norm(w - start))
    return {"metrics": metrics, "data": fingerprint}


def tune_exact(config, key):
    """One run of the search, on the validation images."""
    return run_exact(config, key, 1)


def evaluate_exact(config, key):
    """One run, on the test images."""
    return run_exact(config, key, 2)


most = scale.most if scale.name != "quick" else 0  # else each run is compiled
search(list(EXACT), exact_round, least=rounds, most=most)
grid = [
    {**common, "exact": scale.exact, "method": m, "setting": setting(best_place(m)[0])}
    for m in EXACT
]
exact_rows = wm.sweep("continual_fair_exact", evaluate_exact, grid, scale)

# %% [markdown]
# Both end below penalised descent by the same distance: by 0.4 points [0.0, 0.8] with KL and by 1.0 [0.7, 1.4] with the squared distance. They have seen
# 60,000 images of clothes, where the others saw 55,000. Between the two metrics there are 0.2 points.

# %% [markdown]
# ## The authors' method, in PyTorch
#
# Their network has two convolutions with batch normalisation, pooling, dropout and three linear layers. Here it learns the digits once, from batches of
# four, then the clothes for three epochs, from batches of a hundred in their order, by SGD at 0.001 with momentum 0.9. To the loss it adds the *sum* of the
# Bhattacharyya distances over the first fifty digits. Their notebook keeps the network in training mode throughout, tests it so, and adds a small number
# inside the root; so do we. What differs: the notebook learns the digits for ten epochs and the clothes for fifty; the reference of its penalty is the network
# itself, where the text, and we, have a fixed copy of the first network, in training mode as well ({ref}`erratum 23 <erratum-23>`); its figures are of a hundred
# *training* images of each task, ours are of all test images; and it loads fine-tuned networks from files, so that arm is ours.
#
# In training mode a batch is normalised by its own statistics. A batch of one task's images so tells the task. We test it in two ways more: with images of both tasks in each batch, and
# in evaluation mode, where dropout is off and the statistics are those that training collected.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The authors' method, 122 lines", "code_prompt_hide": "Hide it"}
def authors_network():
    """The network of their notebook."""
    from torch import nn

    return nn.Sequential(
        *(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        *(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(2304, 600), nn.Dropout(0.25), nn.Linear(600, 120)),
        nn.Linear(120, 20),
    )


@functools.cache
def authors_images(first, second, images, test):
    """Images and labels of both tasks, by split, standardised as they do."""
    found, prints = [], []
    for split, count in (("train", images), ("test", test)):
        both = [wm.load_dataset(name, split, count) for name in (first, second)]
        found.append(
            [(np.float32((d.inputs - 0.1307) / 0.3081), d.labels) for d in both]
        )
        prints += [d.fingerprint for d in both]
    return *found, " ".join(prints)


def authors_step(net, optimiser, loss):
    """One step of their optimiser."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def authors_penalty(net, reference, memory, x):
    """The sum of the Bhattacharyya distances on the memory, with their small number."""
    import torch

    with torch.no_grad():
        told = reference(memory).softmax(dim=1)
        small = (reference(x).softmax(dim=1).min() * 1e-3).clamp(min=1e-10)
    said = net(memory).softmax(dim=1)
    return -(said * told + small).sqrt().sum(dim=1).log().sum()


def authors_train(config, seed):
    """Their two phases: the network that ends the second, and the images to test on."""
    import torch

    torch.manual_seed(seed)
    where = torch.accelerator.current_accelerator(check_available=True)
    train, test, fingerprint = authors_images(*[config[k] for k in AUTHORS[:4]])

    def put(part):
        return [torch.as_tensor(np.array(a), device=where) for a in part]

    (x1, y1), (x2, y2) = (put(part) for part in train)
    y1, y2 = y1.long(), y2.long() + OLD
    net, entropy = authors_network().to(device=where), torch.nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(net.parameters(), 0.001, momentum=0.9)
    for i in range(0, 4 * config["small"], 4):
        rows = slice(i % len(x1), i % len(x1) + 4)
        authors_step(net, optimiser, entropy(net(x1[rows]), y1[rows]))
    reference, memory = copy.deepcopy(net), x1[: config["memories"]]
    before = copy.deepcopy(net)  # a call in training mode moves the reference's means
    optimiser = torch.optim.SGD(net.parameters(), 0.001, momentum=0.9)
    for _ in range(config["epochs"]):
        for i in range(0, len(x2), 100):
            rows = slice(i, i + 100)
            loss = entropy(net(x2[rows]), y2[rows])
            if config["arm"] == "FIP":
                loss = loss + authors_penalty(net, reference, memory, x2[rows])
            authors_step(net, optimiser, loss)
    where = str(next(net.parameters()).device)
    return net, before, [put(part) for part in test], where, fingerprint


def authors_right(net, training, x, y):
    """The accuracy of a copy: a call in training mode changes the network."""
    import torch

    net, size = copy.deepcopy(net).train(training), len(x) if training else 1000
    pieces = [x[i : i + size] for i in range(0, len(x), size)]
    said = torch.cat([net(piece).argmax(dim=1) for piece in pieces])
    return float((said == y).float().mean())


def authors_mixed(net, tests, size=1000):
    """In training mode again, but with images of both tasks in each batch, so that the
    statistics of a batch do not tell the task."""
    import torch

    x, y = (torch.cat(parts) for parts in zip(*tests, strict=True))
    task = torch.arange(len(tests), device=y.device).repeat_interleave(len(tests[0][1]))
    order = np.random.default_rng(0).permutation(len(y))
    order = torch.as_tensor(order, device=y.device)
    net = copy.deepcopy(net).train()
    said = torch.cat([net(x[i]).argmax(dim=1) for i in order.split(size)])
    found = (said == y[order].long() + OLD * task[order]).float()
    means = [float(found[task[order] == k].mean()) for k in range(len(tests))]
    return {"mixed_on_first": means[0], "mixed_on_second": means[1]}


def authors(config, key):
    """One run: tested in training mode, as they do, with the tasks mixed, and in
    evaluation mode."""
    import torch

    net, before, tests, where, fingerprint = authors_train(config, seed_of(key))
    metrics = {}
    with torch.no_grad():
        for k, (x, y) in enumerate(tests):
            y, name = y.long() + k * OLD, ("on_first", "on_second")[k]
            metrics[name] = authors_right(net, True, x, y)  # as they test it
            metrics[f"still_{name}"] = authors_right(net, False, x, y)
        metrics |= authors_mixed(net, tests)
        metrics["base"] = authors_right(before, False, tests[0][0], tests[0][1].long())
    curves = {"torch_device": [where], "torch": [torch.__version__]}
    return {"metrics": metrics, "curves": curves, "data": fingerprint}


# %%
AUTHORS = ("first", "second", "images", "test", "small", "epochs", "memories")
theirs = {"first": scale.first, "second": scale.second, **scale.authors}
grid = [{**theirs, "arm": arm} for arm in ("fine-tuning", "FIP")]
three_seeds = dataclasses.replace(scale, seeds=min(scale.seeds, 3))
published = wm.sweep("continual_authors", authors, grid, three_seeds)

# %% tags=["remove-input"]
WAYS = {
    "": "as their notebook tests", "mixed_": "both tasks in each batch",
    "still_": "in evaluation mode",
}  # fmt: skip
WHAT = {"on_first": "digits", "on_second": "clothes"}
by_arm = dict(list(published.groupby("arm")))
table = pd.DataFrame([
    {"tested": words, **{f"{arm}: {name}": pages.percent(by_arm[arm][way + k])
                         for arm in ("fine-tuning", "FIP") for k, name in WHAT.items()}}
    for way, words in WAYS.items()
])  # fmt: skip
pages.table(
    table,
    f"The authors' method in PyTorch with a fixed reference, {published.seed.nunique()} seeds: test accuracy among all twenty outputs, per cent with 95 % t-intervals."
    f" The first network is right on {pages.percent(published.base)} of the digits in evaluation mode.",
    name="tab-fair-authors",
    disable_numparse=True,
)

# %% [markdown]
# {numref}`tab-fair-authors` has its rows. FIP ends at 95.0 % of the digits and 86.7 % of the clothes, fine-tuning at 64.3 and 86.9. Tested in three ways FIP is
# 31, 31 and 37 points above fine-tuning on the digits. In evaluation mode it pays 1.2 points of the clothes for them [0.9, 1.6]. With both tasks in each
# batch, of 1,000 images, FIP is right on 0.7 points less of the digits [−0.1, 1.6] and on 1.2 less of the clothes: batches of one task had told little.
#
# The claims name one *reference run* with this network: 93.7 and 87.6 % with FIP, 39.5 and 87.8 % without. It is not recorded, nor is for how many
# epochs it ran. FIP is above it on the digits and 0.9 points below on the clothes; fine-tuning forgets 25 points less here.
#
# ## The comparison
#
# {numref}`fig-fair-rivals` compares all methods, asked in both ways, and {numref}`tab-fair-accuracy` has the numbers.
#
# - **Among all outputs** FIP by the squared distance and DER++ are level, a point above FIP by the authors' distance and 0.7 below joint training. KL,
#   Hellinger and exact directions are within 0.3 points of the authors' distance. Below it are EWC by 0.4 points, GEM by 1.2, replay by 1.7, the anchor by 2.4, LwF by 4.4,
#   OGD by 5.7 and fine-tuning by 10.2.
# - **A-GEM** has all fifty memories in every step here. It still ends 6.3 points below, and between 76 and 89 % by seed; GEM, with a margin and at another
#   rate, between 88 and 91.
# - **Told the task**, for which no setting was chosen, EWC is above FIP by the authors' distance, by 0.5 points [0.2, 0.9]. It keeps 97.9 % of the digits, and so does LwF, which never sees
#   an old image: the base networks had 98.2. FIP keeps 96.0, and LwF has learned 4.1 points less of the clothes. Fine-tuning is still 6.3 points behind in the mean: its best rate is so low that it
#   learns 74 % of the clothes where FIP learns 86.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 34 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "Among all outputs DER++ alone of the rivals is above FIP by the authors' distance, and FIP by the squared one is level with it; told the task, EWC is above the one and below the other. Each method's mean test accuracy over both tasks minus that of FIP with the authors' distance; left among all twenty outputs, right among the ten of the right task. Dots are means over five seeds, bars 95 % t-intervals of the paired differences; the grey band is a point either way.", "name": "fig-fair-rivals"}, "image": {"alt": "Two panels with a row for each method: points beyond FIP in the mean accuracy over both tasks. Among all outputs: joint +1.7, DER++ and FIP squared +1.0, KL +0.2, Hellinger +0.1, exact squared 0.0, exact KL −0.2, EWC −0.4, GEM −1.2, replay −1.7, L2 −2.4, LwF −4.4, OGD −5.7, A-GEM −6.3, fine-tuning −10.2. Told the task: joint +1.6, DER++ and squared +0.9, EWC +0.5, KL +0.3, Hellinger +0.1, exact squared 0.0, exact KL −0.1, replay −0.4, GEM −0.7, LwF −1.1, L2 −1.6, OGD −3.1, A-GEM −3.7, fine-tuning −6.3."}}
every = pd.concat([rows, exact_rows], ignore_index=True)
COLOURS = {m: figures.PATH_COLOURS.get(m, figures.PALETTE[6]) for m in scores}
COLOURS |= dict.fromkeys(EXACT, figures.PATH_COLOURS["FIP, exact"])
FIP = "FIP, Bhattacharyya"
COLOURS[FIP] = figures.PATH_COLOURS["FIP"]


def by_seed(what):
    """A metric as a frame of seeds and methods."""
    return 100 * every.pivot(index="seed", columns="method", values=what)


def lead(what):
    """What each method is above FIP with the authors' distance, in points."""
    frame = by_seed(what)
    return frame.sub(frame[FIP], axis=0).drop(columns=FIP)


order = lead("mean").mean().sort_values().index
fig, axes = plt.subplots(1, 2, figsize=(7.2, 5), sharey=True)
for ax, what in zip(axes, ("mean", "told_mean"), strict=True):
    gaps = lead(what)
    ax.axvspan(-1, 1, color=figures.PALETTE[6], alpha=0.15, lw=0)
    ax.axvline(0, color=COLOURS[FIP], lw=1.2)
    low, high = figures.t_interval(gaps[order].to_numpy())
    for i, method in enumerate(order):
        ax.plot([low[i], high[i]], [i, i], color=COLOURS[method], lw=2.5, alpha=0.6)
        ax.plot(gaps[method].mean(), i, "o", color=COLOURS[method])
    ax.set(xlabel="points beyond FIP")
    ax.locator_params(axis="x", nbins=6)
axes[0].set_title("among all outputs")
axes[1].set_title("told the task")
axes[0].set_yticks(range(len(order)), order)
plt.show()

# %% tags=["remove-input"]
WHAT = {"on_first": "digits", "on_second": "clothes", "mean": "mean"}
WHAT |= {
    k.replace("on_", "told_"): f"{v}, told" for k, v in WHAT.items() if k != "mean"
}
WHAT |= {"told_mean": "mean, told"}
table = pd.DataFrame([
    {"method": m, **{name: pages.percent(part[what]) for what, name in WHAT.items()}}
    for m in every.groupby("method")["mean"].mean().sort_values(ascending=False).index
    for part in [every[every.method == m]]
])  # fmt: skip
pages.table(
    table,
    "Stored outputs lead among all outputs; told the task, EWC and LwF are within 0.3 points of joint training on the digits. "
    f"Test accuracy in per cent with 95 % t-intervals over {rows.seed.nunique()} seeds, among all twenty outputs and told the task. {len(every)} runs at"
    f" preset `{scale.name}` on {rows.device.iloc[0]}, {every.seconds.sum() / 60:.0f} minutes of processes that shared it; the base networks are right on"
    f" {pages.percent(rows.base)} of the digits. Rows from code that has changed since: {int(every.stale.sum() + published.stale.sum())}.",
    name="tab-fair-accuracy",
)

# %% [markdown]
# {numref}`fig-fair-told` splits the loss of the digits in two: what a preference for the other ten outputs costs, and what is lost also when the
# task is told. Of the 7.1 points that LwF loses, 0.3 are lost when it is told the task; of the 2.5 that FIP loses, 2.2.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 11 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "What EWC, LwF, OGD and fine-tuning lose is for the most part which outputs to use; what FIP loses, it has lost also when told. Points of accuracy on the digits that each method loses to the base network: told the task (dark), and beyond it among all outputs (pale). Means over five seeds, without their intervals.", "name": "fig-fair-told"}, "image": {"alt": "A bar for each method in two parts, points of digits lost even when told the task, and in all: joint 0.1, DER++ 1.2 of 1.3, FIP squared 1.3 of 1.4, exact squared 2.0 of 2.2, exact KL 1.9 of 2.3, FIP by KL 1.9 of 2.4, EWC 0.3 of 2.4, FIP by the authors' distance 2.2 of 2.5, Hellinger 2.4 of 2.8, L2 2.9 of 4.8, GEM 3.6 of 4.9, replay 3.1 of 5.9, LwF 0.3 of 7.1, OGD 2.0 of 7.4, fine-tuning 3.4 of 11.5, A-GEM 9.0 of 14.6."}}
kept = {k: by_seed(k).mean() for k in ("on_first", "told_first")}
base = 100 * rows.base.mean()
order = kept["on_first"].sort_values().index
fig, ax = plt.subplots(figsize=(6.6, 4.6))
for i, method in enumerate(order):
    told, whole = (base - kept[k][method] for k in ("told_first", "on_first"))
    ax.barh(i, whole, color=COLOURS[method], alpha=0.35)
    ax.barh(i, told, color=COLOURS[method])
ax.set_yticks(range(len(order)), order)
ax.set(xlabel="digits lost (points)")
plt.show()


# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the text above, checked", "code_prompt_hide": "Hide the check"}
def points(frame, what):
    """The mean of a metric over the seeds, in points, to one digit."""
    return round(100 * float(frame[what].mean()), 1)


def in_words(gaps):
    """A mean and its interval, in points."""
    return pages.interval(gaps, count=False).replace("\N{NO-BREAK SPACE}", " ")


if scale.name == "cpu":
    gaps, told_gaps = lead("mean"), lead("told_mean")
    means, told_means = (g.mean().round(1).to_dict() for g in (gaps, told_gaps))
    low, high = figures.t_interval(gaps.to_numpy())
    above = {m for m, a in zip(gaps, low, strict=True) if a > 0}
    assert above == {"joint", "DER++", "FIP, squared"}
    below = {"EWC": -0.4, "GEM": -1.2, "replay": -1.7, "L2": -2.4, "LwF": -4.4}
    below |= {"OGD": -5.7, "A-GEM": -6.3, "fine-tuning": -10.2}
    assert {m: means[m] for m in below} == below
    assert {m for m, b in zip(gaps, high, strict=True) if b < 0} >= set(below)
    near = ["FIP, KL", "FIP, Hellinger", *EXACT]
    assert max(abs(means[m]) for m in near) <= 0.3
    assert means["DER++"] == means["FIP, squared"] == 1.0
    short = by_seed("mean").sub(by_seed("mean")["joint"], axis=0).mean().round(1)
    assert short["DER++"] == short["FIP, squared"] == -0.7
    assert in_words(told_gaps["EWC"]) == "+0.5 [+0.2, +0.9]"
    assert told_means["fine-tuning"] == -6.3
    each = by_seed("mean")["A-GEM"].round()
    assert (each.min(), each.max()) == (76, 89)
    each = by_seed("mean")["GEM"].round()
    assert (each.min(), each.max()) == (88, 91)
    digits, clothes = by_seed("told_first").mean(), by_seed("on_second").mean()
    assert [digits.round(1)[m] for m in ("EWC", "LwF", FIP)] == [97.9, 97.9, 96.0]
    assert (round(clothes["fine-tuning"]), round(clothes[FIP])) == (74, 86)
    lost = {
        m: (base - kept["told_first"][m], base - kept["on_first"][m]) for m in order
    }
    assert [round(v, 1) for v in (*lost["LwF"], *lost[FIP])] == [0.3, 7.1, 2.2, 2.5]
    assert [round(lost[m][0], 1) for m in ("EWC", "LwF")] == [0.3, 0.3]
    assert max(digits["joint"] - digits[m] for m in ("EWC", "LwF")) < 0.3
    pairs = [("exact, KL", "FIP, KL"), ("exact, squared", "FIP, squared")]
    apart = [(by_seed("mean")[b] - by_seed("mean")[a]) for a, b in pairs]
    assert [in_words(gap) for gap in apart] == [
        "+0.4 [+0.0, +0.8]",
        "+1.0 [+0.7, +1.4]",
    ]
    walks, plain = by_arm["FIP"], by_arm["fine-tuning"]
    found = [points(a, w) for a in (walks, plain) for w in ("on_first", "on_second")]
    assert found == [95.0, 86.7, 64.3, 86.9]
    found = [
        points(walks, w + k) - points(plain, w + k) for w in WAYS for k in ["on_first"]
    ]
    assert [round(gap) for gap in found] == [31, 31, 37]
    found = [
        walks[k].mean() - walks["mixed_" + k].mean() for k in ("on_first", "on_second")
    ]
    assert [round(100 * gap, 1) for gap in found] == [0.7, 1.2]
    walks, plain = (a.sort_values("seed").reset_index() for a in (walks, plain))
    price = 100 * (plain.still_on_second - walks.still_on_second)
    assert in_words(price) == "+1.2 [+0.9, +1.6]"
    told = 100 * (walks.on_first - walks.mixed_on_first)
    assert in_words(told) == "+0.7 [−0.1, +1.6]"
    assert round(clothes[FIP] - clothes["LwF"], 1) == 4.1
    halves = (gaps.loc[:1].mean(), gaps.loc[2:].mean())
    found = [half.round(1)[m] for m in ("A-GEM", "fine-tuning") for half in halves]
    assert found == [-4.2, -7.7, -8.2, -11.5]
    told = by_seed("told_mean").mean()
    assert round(told.max() - told.min(), 1) == 7.9
    low = {p: v for p, v in scores[FIP].items() if p[0] == best_place(FIP)[0][0]}
    assert [round(low[-9.0, j], 1) for j in (13.0, 14.5)] == [0.5, 0.5]
    plateau = [scores["FIP, squared"][p] for p in scores["FIP, squared"]
               if p[0] == best_place("FIP, squared")[0][0] and p[1] <= -5]  # fmt: skip
    assert len(plateau) == 4
    assert max(plateau) - min(plateau) < 0.002
    late = [m for m in scores if ends(*best_place(m))]
    assert late == ["FIP, squared", "FIP, Hellinger", "exact, squared"]
    tried = [list(scores[m].values()) for m in late]  # in their order
    assert max(max(t[-5:]) - max(t[:-5]) for t in tried) < 0.002
    assert [m for m in scores if unbounded(*best_place(m))] == ["FIP, squared"]

# %% [markdown]
# ## Verdict
#
# {numref}`fig-fair-verdicts` draws the claims and {numref}`tab-fair-verdicts` lists them. All but one were written, with their margins, before any of the rows; the one on A-GEM with ten
# memories compares with rows of {doc}`continual`, which were there. What the words mean is said in {doc}`/book/verdicts`.
#
# **What the paper and its code say.** The paper compares on longer sequences; these two tasks are those of its notebook.
#
# - With the authors' network FIP keeps the digits that fine-tuning forgets: {claim}`3 reproduced`, by 31 to 37 points. It reaches the reference run: {claim}`1 partly`,
#   1.3 points above on the digits; on the clothes 0.9 below, [0.7, 1.1]. Fine-tuning ends where the reference run did: {claim}`2 contradicted`, 25 points above on the digits.
# - FIP meets or exceeds the other approaches: {claim}`4 reproduced`. None of EWC, GEM, A-GEM, OGD, LwF and the anchor is above it, by any of its four distances. It exceeds EWC and GEM by a point: {claim}`5 undecided`,
#   by 0.4 [0.0, 0.7], which is less than a point, and by 1.2 [0.5, 1.9]. (That a lead is *smaller* than a point is what a claim of *the same* tests.)
#
# **What we expected beyond it.**
#
# - EWC, searched finely, is within a point of FIP: {claim}`6 holds`. The squared distance is a point above EWC: {claim}`7 holds`, by 1.4 [1.1, 1.7].
# - With fifty memories for ten, A-GEM gains a point: {claim}`8 undecided`, 1.5 [−3.6, +6.6]. GEM's margin pays: {claim}`9 undecided`, 5.1 [−0.1, +10.2].
# - The labels that DER++ adds to the squared distance are worth a point: {claim}`10 undecided`, and less than one: {claim}`11 holds`, 0.0 [−0.3, +0.3].
# - Exact directions are better with the squared distance: {claim}`12 undecided`, 0.2 [0.1, 0.3]. They are not below penalised descent: {claim}`13 partly`; with KL they are
#   not by a point, with the squared distance, 1.0 below, five seeds do not decide.
# - Stored outputs are worth more than labels: {claim}`14 holds`, by 1.7 to 2.7.
# - Told the task, LwF keeps the digits: {claim}`15 holds`, 1.9 points more of them than FIP. Fine-tuning still has 95 % of them: {claim}`16 undecided`, 94.9 [92.1, 97.6]. FIP is above fine-tuning: {claim}`17 holds`, by 6.3. The rivals are
#   within a point of FIP: {claim}`18 contradicted`, OGD is 3.1 below.

# %% tags=["remove-input"]
frames = {"continual_fair": every, "continual_fair_exact": exact_rows}
frames |= {"continual_authors": published}
judged = verdicts.verdict_table("paths/continual_fair", scale.name, rows=frames)
pages.table(
    judged,
    "The claims of this chapter, judged by the rule of the book.",
    name="tab-fair-verdicts",
    look="verdicts",
    disable_numparse=True,
)

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the text above, checked", "code_prompt_hide": "Hide the check"}
if scale.name == "cpu":
    judgements = verdicts.judge_chapter("paths/continual_fair", "cpu", rows=frames)
    of = [judgement.comparisons for judgement in judgements]
    words = [
        [o.interval.replace("\N{NO-BREAK SPACE}", " ") for o in each] for each in of
    ]
    assert [round(o.mean) for o in of[2]] == [31, 31, 37]
    assert words[0][0].startswith("+1.3")
    assert words[0][1] == "−0.9 [−1.1, −0.7]"
    assert round(of[1][0].mean) == 25
    assert words[4] == ["+0.4 [+0.0, +0.7]", "+1.2 [+0.5, +1.9]"]
    assert words[6:9] == [
        ["+1.4 [+1.1, +1.7]"],
        ["+1.5 [−3.6, +6.6]"],
        ["+5.1 [−0.1, +10.2]"],
    ]
    assert words[10] == ["−0.0 [−0.3, +0.3]"]
    assert words[11] == ["+0.2 [+0.1, +0.3]"]
    found = [o.mean for o in of[13]]
    assert (round(min(found), 1), round(max(found), 1)) == (1.7, 2.7)
    assert round(of[14][0].mean, 1) == 1.9
    plain = every[every.method == "fine-tuning"].told_first
    assert in_words(100 * plain) == "+94.9 [+92.1, +97.6]"
    assert [round(min(o.mean for o in of[17] if o.state == "contradicted"), 1)] == [
        -3.1
    ]

# %% [markdown]
# ## Limits
#
# What limits every chapter is said in {doc}`/book/verdicts`. This chapter's own limits are these.
#
# - **One question in the search.** Settings were chosen by the accuracy among all outputs. Told the task, each network was tuned for another question.
# - **Two seeds in the search**, one epoch, fifty memories. These two are among the five of the comparison, and kinder: A-GEM is 4.2 points
#   below FIP on them and 7.7 on the others, fine-tuning 8.2 and 11.5.
# - **Equal counts.** Thirty-five places are many for a method with one number and few for one with three. FIP has four forms, and which is best was seen on test images.
# - **EWC** has its metric from fifty images, where the paper gives it 500; A-GEM with ten memories, in {doc}`continual`, had other base networks.
# - **Momentum** is 0.9 for every method and was not searched; GEM, A-GEM and OGD change the gradient before it.
# - **A-GEM** with all fifty memories is GEM without a margin. GEM's margin is searched above zero only.
# - **Layer normalisation** in our network; batch normalisation in the authors', whose running statistics move the function by themselves.
# - **One pair of tasks, in one order.**
#
# ## Exercises
#
# ::::{admonition} Exercise 1
# With one earlier task GEM asks for the $z$ nearest to the gradient $g$ with $z \cdot m \ge 0$, where $m$ is the gradient of the loss on the memories.
# Solve it. Its authors add a margin γ: where the memories object, $z = g + v\, m$ with $v \ge \gamma$. What is that when they object hardly at all?
# :::{dropdown} Solution
# If $g \cdot m \ge 0$ then $z = g$. Else $z = g + v\, m$ with $v = -\, g \cdot m / m \cdot m$, so that $z \cdot m = 0$: this is A-GEM. With the margin $v$ is at least γ. Where
# $g \cdot m$ is a little below zero, $z = g + \gamma\, m$ is a step of replay with the strength γ; where it is a little above, there is no replay at all.
# :::
# ::::
#
# ::::{admonition} Exercise 2
# A network is told the task. It has twenty outputs. Show that adding one number to all ten old outputs can change its accuracy among all outputs and not
# its accuracy told the task. What does that say of a method's rank in {numref}`fig-fair-rivals`?
# :::{dropdown} Solution
# Told the task, the answer is the largest of ten outputs, which such a number moves together. Among all twenty it decides which ten win. So a part of
# the left panel is one number, the balance between the two groups of outputs, which ten old and ten new images could set; what is left on the right spans 7.9 points.
# :::
# ::::
#
# ## Next
#
# - Ten methods on twenty tasks, with the same rule of search: {doc}`sequences`. Five rivals beside a library of rivals: {doc}`rivals`.
# - The preset `paper`, with twenty seeds.

# %% [markdown]
# ## Appendix: the plan
#
# {numref}`tab-fair-plan` was committed, with the claims, before the first run, with four rounds in place of five.
#
# ```{table} What was planned. All but exact directions and the authors' method train ten networks as one program.
# :name: tab-fair-plan
#
# | part | methods | runs of each | networks a run | steps | steps of a program, in all |
# |---|---|---|---|---|---|
# | search, ten settings | 14 | 2 | 5 settings × 2 seeds | 550 | 15,400 |
# | search, one to five rounds of five more | 14 | 1 to 5 | 5 × 2 | 550 | 7,700 to 38,500 |
# | the comparison | 14 | 1 | 5 seeds | 550 | 7,700 |
# | exact directions, search | 2 | 30 to 70 | 1 | 150 | 9,000 to 21,000 |
# | exact directions | 2 | 5 | 1 | 150 | 1,500 |
# | the authors' method, in PyTorch | 2 | 3 | 1 | 15,000 small, 1,800 | 100,800 |
# ```
#
# A pilot: a step of ten networks takes 0.24 s of one thread of a processor, one along exact directions 0.3 s; in PyTorch a small step 7 ms, one of a hundred
# images 80 to 170 ms. For four rounds that is 5.5 hours of a thread at the most, and half an hour of PyTorch's. Five rounds took 8.1, in processes that shared
# two cores.
#
# ## Appendix: the search
#
# {numref}`tab-fair-search` has what the search chose.


# %% tags=["remove-input"]
table = [
    {"method": m, "chosen": " / ".join(f"{v:.3g}" for v in setting(best)[: len(best)]), "settings": len(tried),
     "validation, %": f"{100 * tried[best]:.1f}", "lowest, %": f"{100 * min(tried.values()):.1f}",
     "open on a side": "yes" if unbounded(best, tried) else "no"}
    for m in scores for best, tried in [best_place(m)]
]  # fmt: skip
pages.table(
    pd.DataFrame(table),
    f"For {sum(row['open on a side'] == 'no' for row in table)} of {len(table)} methods the best setting lies inside what was tried. The best of each: rate, strength (margin for GEM; β and the square of a step's length for exact directions) and the ratio of DER++'s two"
    " terms. Mean accuracy on validation images of both tasks, over two seeds.",
    name="tab-fair-search",
    disable_numparse=True,
)
