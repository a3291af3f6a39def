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
# # The rivals, beside another library
#
# ## The idea
#
# The rivals of this part are code of this project: EWC, GEM, A-GEM, replay, DER++ and LwF. An opponent who writes his rivals himself may write
# them weak. So each is run beside the same method of Avalanche {cite:p}`lomonaco2021avalanche,carta2023avalanche`, a library for continual
# learning that others wrote, test and use.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The imports of this chapter, 11 lines", "code_prompt_hide": "Hide the imports"}
import operator
import random
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import wmlib as wm

# %% [markdown]
# ## One setting for both
#
# The three tasks are MNIST with its pixels permuted, for each task by another permutation {cite:p}`kirkpatrick2017ewc`. A network with two hidden
# layers and ten outputs sees 10,000 images of each task once, twenty at a time, by plain SGD. Nothing tells it the task. Both libraries
# start from the same weights and get the same images in the same order. A method may keep 200 images in all, and has one setting, the same in both
# libraries. It was chosen with our code alone, on other seeds and training images held out, so that the method differs from fine-tuning.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The settings, 22 lines", "code_prompt_hide": "Hide the settings"}
cpu = dict(dataset="mnist", images=10_000, batch=20, units=[100, 100], rate=0.1)
cpu |= dict(memories=100)  # of each earlier task
tiny = cpu | dict(dataset="mnist5k", images=40, batch=10, units=[8], memories=10)
more = dict(seeds=10, common=cpu)  # there is no paper
scale = wm.preset(
    quick=dict(seeds=1, common=tiny), cpu=dict(seeds=5, common=cpu), paper=more
)

# In our terms; a step of A-GEM recalls so many memories, others as many as are new.
SETTINGS: dict[str, dict] = {
    "fine-tuning": {},
    "joint": {},
    "EWC": dict(strength=5),
    "GEM": dict(margin=0.5),
    "A-GEM": dict(recall=scale.common["memories"] // 2),
    "replay": {},
    "DER++": dict(alpha=0.05, beta=0.5),
    "LwF": dict(strength=1, temperature=2),
}
# Of the other library, and of how many images EWC there squares the mean gradient.
AVALANCHE = "0.6.0"
SQUARED = {"EWC": 1, "EWC, squared by batch": scale.common["batch"]}


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The three tasks, 38 lines", "code_prompt_hide": "Hide the tasks"}
class Tasks(NamedTuple):
    """Images and labels of each task, to learn from and to be judged by."""

    train: list[tuple]
    test: list[tuple]
    data: str


@cache
def digits(name):
    """Training and test images in units of their spread, and a fingerprint."""
    found, prints = [], []
    for split in ("train", "test"):
        x, y, fingerprint = wm.load_dataset(name, split)
        found.append((np.float32((x - 0.1307) / 0.3081), y))
        prints.append(fingerprint)
    return *found, " ".join(prints)


def tasks_of(config, seed, count=3):
    """For each task a permutation, and images that no other task has."""
    draw = np.random.default_rng(seed)
    (x, y), (x_test, y_test), fingerprint = digits(config["dataset"])
    rows = draw.permutation(len(x))[: count * config["images"]].reshape(count, -1)
    orders = [draw.permutation(x[0].size) for _ in range(count)]

    def permuted(images, order):
        return images.reshape(len(images), -1)[:, order].reshape(images.shape)

    return Tasks(
        [(permuted(x[r], order), y[r]) for r, order in zip(rows, orders, strict=True)],
        [(permuted(x_test, order), y_test) for order in orders],
        fingerprint,
    )


def network(config, seed):
    return wm.models.LeNet300(units=tuple(config["units"]), key=jax.random.key(seed))


# %% [markdown]
# ## Six methods
#
# Four are losses. With the mean cross entropy $L$ on new images, $M$ on remembered ones $x$ with stored logits $z$, and of each earlier task $k$ its last weights
# $w_k$ and Fisher diagonal $F_k$, they are
#
# ```{math}
# :label: eq-rivals-losses
# \begin{aligned}
# \text{replay:} \quad & \tfrac12 (L + M), &
# \text{DER++:} \quad & L + \alpha\, \overline{|f(w, x) - z|^2} + \beta M, \\
# \text{EWC:} \quad & L + \tfrac{\lambda}{2} \sum_k \sum_i F_{ki} (w_i - w_{ki})^2, &
# \text{LwF:} \quad & L + \lambda T^2\, \overline{\mathrm{KL}}(q_T \,\|\, p_T).
# \end{aligned}
# ```


# %%
def entropy(net, x, y):
    return wm.rivals.replay_loss(operator.call, net, x, y)


def replay(config, net, new, kept, rows):
    return (entropy(net, *new) + entropy(net, kept.x[rows], kept.y[rows])) / 2


def derpp(config, net, new, kept, rows):
    memory = (kept.x[rows], kept.said[rows], kept.y[rows])
    settings = (config["alpha"], config["beta"])
    beside = wm.rivals.der_loss(operator.call, net, *memory, *settings)
    return entropy(net, *new) + beside


# %%
def ewc(config, net, new, kept, rows):
    beside = wm.rivals.ewc_penalties(net, kept.ends, kept.fishers)
    return entropy(net, *new) + config["strength"] * beside


def lwf(config, net, new, kept, rows):
    given = (net, kept.ends[-1], new[0], 10, config["temperature"])
    beside = wm.rivals.lwf_loss(operator.call, *given)
    return entropy(net, *new) + config["strength"] * beside


LOSSES = {"replay": replay, "DER++": derpp, "EWC": ewc, "LwF": lwf}

# %% [markdown]
# Two are rules that change the gradient of $L$. GEM looks at all memories of each earlier task, A-GEM at a batch of all together.


# %%
def gem(config, gradient, net, kept, rows):
    x, y = (part.reshape(len(kept.ends), -1, *part.shape[1:]) for part in kept[:2])
    recalled = jax.vmap(eqx.filter_grad(entropy), (None, 0, 0))(net, x, y)
    return wm.rivals.gem_projection(gradient, recalled, config["margin"])


def agem(config, gradient, net, kept, rows):
    recalled = eqx.filter_grad(entropy)(net, kept.x[rows], kept.y[rows])
    return wm.rivals.agem_projection(gradient, recalled)


RULES = {"GEM": gem, "A-GEM": agem}


# %% tags=["hide-input"] mystnb={"code_prompt_show": "What is kept, and a sequence of tasks, 73 lines", "code_prompt_hide": "Hide the sequence"}
class Kept(NamedTuple):
    """Remembered images and labels, and what was said of them when their task ended;
    and of each earlier task the weights that ended it and their Fisher diagonal."""

    x: Any
    y: Any
    said: Any
    ends: list
    fishers: list


@eqx.filter_jit
def said_of(net, x):
    return jax.vmap(net)(x)


def keep(config, train, ends, luck):
    """Of each task, or for DER++ of each class, the images with most luck."""
    method, done = config["method"], list(zip(ends, train, strict=False))
    x, y = (np.concatenate(part) for part in zip(*train[: len(ends)], strict=True))
    groups = y if method == "DER++" else np.arange(len(y)) // len(train[0][1])
    count = config["memories"]
    if method in ("replay", "DER++"):  # after the first task as many in all
        count = 2 * count // len(np.unique(groups))
    order = np.argsort(luck[: len(y)])
    rows = [order[groups[order] == group][:count] for group in np.unique(groups)]
    rows, said, fishers = np.concatenate(rows), None, []
    if method == "DER++":
        said = np.concatenate([said_of(end, part[0]) for end, part in done])[rows]
    if method == "EWC":
        fisher = wm.rivals.fisher_diagonal
        fishers = [fisher(operator.call, end, part[0]) for end, part in done]
    return Kept(x[rows], y[rows], said, ends, fishers)


@eqx.filter_jit
def stepped(config, net, new, kept, rows):
    """One step of plain descent."""
    method, loss = config["method"], lambda net: entropy(net, *new)
    if kept is not None and method in LOSSES:
        loss = lambda net: LOSSES[method](config, net, new, kept, rows)  # noqa: E731
    gradient = eqx.filter_grad(loss)(net)
    if kept is not None and method in RULES:
        gradient = RULES[method](config, gradient, net, kept, rows)
    step = jax.tree.map(lambda slope: -config["rate"] * slope, gradient)
    return eqx.apply_updates(net, step)


def together(train, draw):
    """All tasks as one, shuffled."""
    x, y = (np.concatenate(part) for part in zip(*train, strict=True))
    order = draw.permutation(len(y))
    return [(x[order], y[order])]


def ours(config, tasks, net, seed):
    """What the network that ends a sequence says of the test images, by wmlib."""
    draw, train, ends, kept, recalled = (
        np.random.default_rng(1000 + seed), tasks.train, [], None, None,
    )  # fmt: skip
    train = together(train, draw) if config["method"] == "joint" else train
    luck, batch = draw.random(sum(len(y) for _, y in train)), config["batch"]
    for x, y in train:
        if ends and config["method"] != "fine-tuning":
            kept, key = keep(config, train, ends, luck), jax.random.key(1000 + seed)
            count = config.get("recall", batch)
            key = jax.random.fold_in(key, len(ends))
            recalled = wm.objectives.shuffled(key, len(kept.y), count)
        for at in range(0, len(y), batch):
            new = (x[at : at + batch], y[at : at + batch])
            net = stepped(config, net, new, kept, recalled and next(recalled))
        ends = [*ends, net]
    return [said_of(net, x) for x, _ in tasks.test]


# %% [markdown]
# ## Their terms and ours
#
# Avalanche 0.6.0 means the same by other numbers, and in three places something a little different ({numref}`tab-rivals-terms`).
#
# ```{table} Three methods are the same but for a factor; EWC, GEM and A-GEM differ in a detail. What each is called there, and what it is here.
# :name: tab-rivals-terms
#
# | method | Avalanche | differs |
# | --- | --- | --- |
# | EWC | `ewc_lambda` $= \lambda/2$ | There $F$ is from the images' own labels, here from all labels, each weighted by its probability |
# | GEM | `memory_strength` is the margin | There $10^{-3}$ is added to the diagonal of the quadratic program |
# | A-GEM | `sample_size` is the batch | There as many are drawn of each earlier task, here at random of all |
# | replay | one mean over new and old | – |
# | DER++ | `alpha` $= 10\,\alpha$, for a mean over the ten outputs | – |
# | LwF | `alpha` $= \lambda T^2$ | – |
# ```
#
# One difference is larger. Avalanche squares the mean gradient of a *minibatch* of twenty, where the diagonal of the Fisher matrix is the mean of squares
# {cite:p}`vandeven2025fisher`. For the comparison we call its function with minibatches of one image. It also runs as it comes, with the same λ.
#
# DER++ stores logits when a task ends, in both libraries; its paper stores them while the task is being learned.
#
# **Check.** The losses of replay, DER++ and LwF, written as Avalanche words them, have the same values.

# %%
x = jax.random.normal(jax.random.key(0), (6, 1, 28, 28))
y, rows, few = np.arange(6), np.arange(3, 6), dict(alpha=0.05, beta=0.5)
few |= dict(strength=0.7, temperature=2)
net, old = (network(tiny, seed) for seed in range(2))
kept = Kept(x, y, said_of(old, x), [old], [])

said, before = said_of(net, x), kept.said
losses = -jax.nn.log_softmax(said)[y, y]
q, p = (jax.nn.softmax(part[:3] / 2) for part in (before, said))
theirs_are = {
    "replay": losses.mean(),
    "DER++": losses[:3].mean()
    + 10 * 0.05 * ((said - before)[3:] ** 2).mean()
    + 0.5 * losses[3:].mean(),
    "LwF": losses[:3].mean() + 0.7 * 2**2 * (q * jnp.log(q / p)).sum() / 3,
}
for name, value in theirs_are.items():
    assert jnp.allclose(LOSSES[name](few, net, (x[:3], y[:3]), kept, rows), value)

# %% [markdown]
# ## The other library
#
# Its own strategies do the work; we hand them the weights, the images in our order, and the settings in their terms. Replay and joint training shuffle by
# themselves. The package is in none of the locks; the extra `rivals` brings it, for who wants the rows computed again.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "A sequence by Avalanche's strategies, 84 lines", "code_prompt_hide": "Hide Avalanche's sequence"}
def perceptron(net):
    """The same network in PyTorch, with the same weights."""
    import torch

    layers = [torch.nn.Flatten()]
    for layer in net.layers:
        linear = torch.nn.Linear(layer.in_features, layer.out_features)
        for name in ("weight", "bias"):
            value = torch.tensor(np.asarray(getattr(layer, name)))
            getattr(linear, name).data.copy_(value)
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def strategy(config, net):
    """Avalanche's strategy of a method, and its network."""
    import torch
    from avalanche import training
    from avalanche.training.plugins import EWCPlugin

    class EWC(EWCPlugin):
        """EWC that squares the mean gradient of so many images."""

        def compute_importances(self, *given, **options):
            *given, _ = given  # the size of the minibatches of training
            return super().compute_importances(*given, config["squared"], **options)

    model, get = perceptron(net), config.get
    sgd = torch.optim.SGD(model.parameters(), config["rate"])
    loss, each = torch.nn.CrossEntropyLoss(), config["memories"]
    kinds: dict = {
        "fine-tuning": (training.Naive, {}),
        "joint": (training.JointTraining, {}),
        "GEM": (
            training.GEM,
            dict(patterns_per_exp=each, memory_strength=get("margin")),
        ),
        "A-GEM": (
            training.AGEM,
            dict(patterns_per_exp=each, sample_size=get("recall")),
        ),
        "replay": (training.Replay, dict(mem_size=2 * each)),
        "DER++": (
            training.DER,
            dict(mem_size=2 * each, alpha=10 * get("alpha", 0), beta=get("beta")),
        ),
        "LwF": (
            training.LwF,
            dict(
                alpha=get("strength", 0) * get("temperature", 0) ** 2,
                temperature=get("temperature"),
            ),
        ),
    }
    if "squared" in config:
        kind, given = training.Naive, dict(plugins=[EWC(config["strength"] / 2)])
    else:
        kind, given = kinds[config["method"]]
    common = dict(model=model, optimizer=sgd, criterion=loss, evaluator=None)
    return kind(**common, train_mb_size=config["batch"], **given), model


def theirs(config, tasks, net, seed):
    """What the network that ends a sequence says of the test images, by Avalanche."""
    import avalanche
    import torch
    from avalanche.benchmarks import tensors_benchmark

    if avalanche.__version__ != config["version"]:
        raise ImportError(f"these rows are of avalanche-lib {config['version']}")
    random.seed(seed)
    torch.manual_seed(seed)
    learner, model = strategy(config, net)
    train, test = (
        [(torch.tensor(x), torch.tensor(y, dtype=torch.long)) for x, y in part]
        for part in tasks[:2]
    )
    given = dict(train_tensors=train, test_tensors=test, task_labels=[0] * len(train))
    stream = tensors_benchmark(**given).train_stream
    method = config["method"]
    for part in [stream] if method == "joint" else stream:
        learner.train(part, shuffle=method in ("joint", "replay"))
    with torch.no_grad():
        return [model.eval()(x).numpy() for x, _ in test]


# %% tags=["hide-input"] mystnb={"code_prompt_show": "One run, and all of them, 30 lines", "code_prompt_hide": "Hide the runs"}
NAMES = ("first", "second", "third")


def compare(config, key):
    """The accuracy on each task after the last."""
    seed = int(jax.random.key_data(key)[-1])
    tasks, net = tasks_of(config, seed), network(config, seed)
    by = theirs if config["library"] == "avalanche" else ours
    pairs = zip(by(config, tasks, net, seed), tasks.test, strict=True)
    right = [float(np.mean(np.asarray(z).argmax(axis=1) == y)) for z, (_, y) in pairs]
    metrics = dict(zip(NAMES, right, strict=True)) | {"mean": float(np.mean(right))}
    return {"metrics": metrics, "data": tasks.data}


grid = [
    scale.common | dict(library="wmlib", method=method) | settings
    for method, settings in SETTINGS.items()
]
if scale.name != "quick":
    there = scale.common | dict(library="avalanche", version=AVALANCHE)
    grid += [
        there | dict(method=method) | settings
        for method, settings in SETTINGS.items()
        if method != "EWC"
    ]
    grid += [
        there | dict(method=method, squared=squared) | SETTINGS["EWC"]
        for method, squared in SQUARED.items()
    ]
rows = wm.sweep("rivals_avalanche", compare, grid, scale)
