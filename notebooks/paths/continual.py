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
# # Learning a second task
#
# A network that has learned to read digits is now taught to tell shirts from shoes, and forgets the digits. It need not. This
# chapter walks from the first task to the second along a path that keeps what the network says of fifty digits, by the
# authors' algorithm and by exact directions. Then it puts beside them what the paper leaves out: the older methods with the
# same memory and the same number of steps, each tuned alike. Two of these turn out to be the same algorithm under other names.
#
# **The paper.** Its Algorithm 1 descends the loss of the new task plus λ times a distance that the outputs of remembered
# inputs have moved. It reports that such paths learn tasks in sequence without losing the earlier ones, that on convolutional
# networks they meet or exceed EWC and GEM among others, and that they travel far in weight space (its Fig. 2d)
# {cite:p}`raghavan2024fip`. The pair of tasks here, MNIST then Fashion-MNIST, is that of its two-task settings and of the
# authors' public code; for that code's network, with 50 memories and after three epochs of 60,000 images, 93.7 % on MNIST and
# 87.6 % on Fashion-MNIST have been measured, where fine-tuning has 39.5 % and 87.8 %.

# %%
import dataclasses
import operator
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
import scipy.optimize
from IPython.display import Markdown, display
from jax.flatten_util import ravel_pytree

import wmlib as wm
from wmlib import paths
from wmlib.lab import figures, verdicts

figures.use_style()

# %% [markdown]
# ## Two tasks, one head
#
# The digits have the labels 0 to 9, the clothes {cite:p}`xiao2017fashion` the labels 10 to 19, and one head has all twenty
# outputs. Nothing tells the network which task an image belongs to, so that whoever answers must choose among all twenty.
# This is the harder form of the problem: a network can lose a task by nothing more than a preference for the other ten
# outputs.

# %% [markdown]
# The settings of the three presets; the rows of this page were recorded at `cpu`.

# %%
paper = dict(
    seeds=5, first="mnist", second="fashion_mnist", images=55_000, validation=5_000,
    test=10_000, watched=10_000, base_rate=0.03, base_epochs=2, batch=100,
    steps=1_800, long=1_800, widths=[32, 64, 128], units=512, memories=500, recall=500,
    sizes=[10, 50, 1_000], strengths=[0.01, 0.1, 1, 10], lengths=[100, 500], repeats=9, exact=[450, 400],
)  # fmt: skip

# %%
scale = wm.preset(
    quick=dict(
        seeds=1, first="mnist5k", second="mnist5k", images=300, validation=100,
        test=100, watched=100, base_rate=0.03, base_epochs=1, batch=20,
        steps=6, long=8, widths=[4], units=8, memories=10, recall=5,
        sizes=[5], strengths=[0.1], lengths=[2, 4], repeats=1, exact=[2, 40],
    ),
    cpu=dict(
        seeds=5, first="mnist", second="fashion_mnist", images=55_000, validation=5_000,
        test=10_000, watched=2_000, base_rate=0.03, base_epochs=2, batch=100,
        steps=550, long=1_800, widths=[16, 32], units=100, memories=50, recall=50,
        sizes=[10, 500, 1_000], strengths=[0.01, 0.1, 1, 10], lengths=[20, 60], repeats=5, exact=[150, 400],
    ),
    paper=paper,
)  # fmt: skip

# %%
OLD = 10  # classes of the first task; the second has the outputs 10 to 19 of the same head


@cache
def data(first, second, images, validation, test):
    """The two tasks; the second's labels begin at 10."""
    tasks = [wm.load_splits(name, images, validation, test) for name in (first, second)]
    parts = [t[:3] for t in tasks]
    parts[1] = [(x, y + OLD) for x, y in parts[1]]
    return *parts, " ".join(t.fingerprint for t in tasks)


def tasks(config):
    """The two tasks of a configuration, each as training, validation and test images with labels."""
    return data(*[config[k] for k in ("first", "second", "images", "validation", "test")])


# %% [markdown]
# The network has two convolutions and a hidden layer, with *layer* normalisation where the authors' code has batch
# normalisation. That is no matter of taste here. Batch normalisation keeps running statistics, and they would go on moving the
# function while the weights stand still; `wm.walk` refuses it. Everything is trained by SGD with momentum 0.9, and the base
# network of a seed is trained once, on the digits alone, with all twenty outputs in its softmax: it knows already that no
# digit is a shirt.


# %%
@cache  # one object for one rate, so that a step is compiled once
def sgd(rate):
    """The optimiser of everything here: momentum 0.9, as in the authors' code."""
    return optax.sgd(rate, momentum=0.9)


# %%
@eqx.filter_jit
def outputs(net, x):
    """Logits of a batch."""
    return jax.vmap(net)(x)


def logits(net, x, batch=500):
    """Logits of many images."""
    return jnp.concatenate([outputs(net, x[i : i + batch]) for i in range(0, len(x), batch)])


def accuracy(net, x, y):
    """Share of images whose largest of all twenty outputs is the right one."""
    return float((logits(net, x).argmax(axis=1) == y).mean())


# %%
@cache
def base(seed, rate, epochs, batch, widths, units, *names):
    """The network that has learned the first task."""
    of_net, of_order = jax.random.split(jax.random.key(seed))
    (x, y), *_ = data(*names)[0]
    net = wm.models.LayerNormCNN(widths=widths, units=units, key=of_net)
    first = wm.objectives.Task(operator.call, x, y, batch)
    method, steps = wm.PenalisedDescent(sgd(rate), 0.0), epochs * (len(x) // batch)
    return wm.walk(operator.call, net, first, x[:1], method=method, steps=steps, key=of_order).weights[-1]


def start(config, seed):
    """The base network of a configuration, trained once in a process."""
    names = [config[k] for k in ("first", "second", "images", "validation", "test")]
    training = [config[k] for k in ("base_rate", "base_epochs", "batch")]
    return base(seed, *training, tuple(config["widths"]), config["units"], *names)


# %% [markdown]
# ## Algorithm 1
#
# With a memory of $N$ inputs $x_i$ of the first task, and $w_0$ the weights that ended it,
#
# ```{math}
# :label: eq-continual-algorithm
# w \leftarrow w - \eta \nabla_w \Big( L_2(w) + \frac{\lambda}{N} \sum_{i=1}^N d\big(f(w, x_i), f(w_0, x_i)\big) \Big) .
# ```
#
# We say $\lambda/N$ where the authors' code takes the *sum* over its memories, so that their λ is ours divided by $N$: the
# paper's λ = 1 with 50 memories is λ = 50 here. As printed, line 11 of the algorithm compares outputs for other inputs on either
# side, and with a network that had not yet learned the task that is to be kept. What is meant is what stands above.
#
# The naive version follows the letter: at every step it asks the old network again what it says of each memory.


# %%
def naive(net, task, memory, distance, penalty, rate, steps, key):
    """Algorithm 1, word by word; the old network is asked at every step."""
    old, optimise = net, sgd(rate)
    state = optimise.init(eqx.filter(net, eqx.is_inexact_array))

    def loss(net, rows):
        moved = [distance(net(x), old(x)) for x in memory]
        return task.value(net, rows) + penalty * sum(moved) / len(memory)

    slope, draws = eqx.filter_jit(eqx.filter_grad(loss)), task.draws(jax.random.split(key)[0])
    for _ in range(steps):
        net, state = stepped(optimise, slope(net, next(draws)), net, state)
    return net


@eqx.filter_jit
def stepped(optimise, gradient, net, state):
    """One step of an optimiser."""
    updates, state = optimise.update(gradient, state)
    return eqx.apply_updates(net, updates), state


def flat(net):
    """All weights as one vector."""
    leaves = jax.tree.leaves(eqx.filter(net, eqx.is_array))
    return np.concatenate([np.ravel(x) for x in leaves])


# %% [markdown]
# `wm.walk` is the real one. It asks the old network once, before the first step, looks at the memories together, and records
# where it went.
#
# **Check.** Five steps on a small network and real digits end at the same weights.

# %%
digits = wm.load_splits("mnist5k", 60, 2, 5)
small = wm.models.LayerNormCNN(widths=(4,), units=8, key=jax.random.key(0))
remembered, (x, y) = digits.validation, digits.train
new = wm.objectives.Task(operator.call, x, y + OLD, batch=10)
key = jax.random.key(1)


def five_steps(task, distance, penalty):
    """Where five steps of penalised descent lead the small network."""
    how = dict(method=wm.PenalisedDescent(sgd(0.1), penalty), steps=5, key=key, record=[5])
    return wm.walk(operator.call, small, task, remembered[0], distance, **how).weights[-1]


walked = flat(five_steps(new, wm.distances.bhattacharyya, 5.0))
by_word = naive(small, new, remembered[0], wm.distances.bhattacharyya, 5.0, 0.1, 5, key)
gap, farthest = np.abs(walked - flat(by_word)).max(), np.abs(walked - flat(small)).max()
print(f"largest difference {gap:.0e}, largest movement {farthest:.0e}")
assert gap < 1e-5 < 1e-2 < farthest

# %% [markdown]
# ## The same algorithm under other names
#
# Take the squared distance $d = \tfrac12 |y - y_0|^2$. The penalty's gradient is
# $\frac{\lambda}{N} \sum_i J_i^{\mathsf T} (f(w, x_i) - f(w_0, x_i))$. *Dark Experience Replay* {cite:p}`buzzega2020der` stores
# with each remembered input the logits $z_i$ that the network gave it, and adds $\alpha \cdot \frac1N \sum_i |f(w, x_i) - z_i|^2$
# to the loss: with the logits of the network that ended the first task, and $\alpha = \lambda/2$, it is equation
# {eq}`eq-continual-algorithm` to the letter. The paper compares with GEM and EWC, and not with it.
#
# Now take the new task's own images for memory, and for $d$ the Kullback–Leibler divergence of the softmax over the old ten
# outputs. This is *Learning without Forgetting* {cite:p}`li2016lwf` at temperature 1; its authors divide the logits by 2.
#
# And expand the divergence to second order. Its mean over the memory is $\tfrac12 \delta^{\mathsf T} g\, \delta$ for a movement
# $\delta = w - w_0$, with the metric $g$ of {doc}`metric`. *Elastic weight consolidation* {cite:p}`kirkpatrick2017ewc` is what is
# left when $g$ is frozen at $w_0$ and all of it but the diagonal thrown away. So the four are one family: EWC keeps a diagonal
# of the metric at one point, the exact direction of {doc}`directions` keeps all of it at each point, penalised descent keeps the
# distance itself, and LwF keeps it on inputs of another kind.
#
# **Check.** Dark Experience Replay, from the library's own file and through a loop that knows nothing of distances, against
# `wm.walk` with the squared distance, step for step; Learning without Forgetting by its gradient; and the Fisher diagonal
# of EWC against that of the metric, in every twentieth entry.

# %%
stored = outputs(small, remembered[0])


def dark(net, rows):
    """The new task's loss, and that of Dark Experience Replay with α = 1/2."""
    kept = wm.rivals.der_loss(operator.call, net, remembered[0], stored, alpha=0.5)
    return new.value(net, rows) + kept


slope, draws = eqx.filter_jit(eqx.filter_grad(dark)), new.draws(jax.random.split(key)[0])
net, state = small, sgd(0.1).init(eqx.filter(small, eqx.is_inexact_array))
path = wm.walk(
    operator.call, small, new, remembered[0], wm.distances.squared_error,
    method=wm.PenalisedDescent(sgd(0.1), 1.0), steps=5, key=key, record=1,
)  # fmt: skip
for there in path.weights[1:]:
    net, state = stepped(sgd(0.1), slope(net, next(draws)), net, state)
    print(f"largest difference {np.abs(flat(net) - flat(there)).max():.0e}")
    assert np.abs(flat(net) - flat(there)).max() < 1e-5

# %%
there, reference = path.weights[-1], outputs(small, x)[:, :OLD]


def kept_on_new(net):
    """The mean divergence of the old ten outputs on the new task's images."""
    apart = lambda x, y0: wm.distances.kl(net(x)[:OLD], y0)  # noqa: E731
    return jax.vmap(apart)(x, reference).mean()


def lwf_at_one(net):
    """Learning without Forgetting at temperature 1."""
    return wm.rivals.lwf_loss(operator.call, net, small, x, OLD, temperature=1.0)


ours, theirs = (flat(eqx.filter_jit(eqx.filter_grad(f))(there)) for f in (kept_on_new, lwf_at_one))
error = np.abs(ours - theirs).max()
print(f"gradient of LwF {error:.0e}")
assert error < 1e-5 < np.abs(ours).max()

# %%
fisher = flat(wm.rivals.fisher_diagonal(operator.call, small, remembered[0]))
metric = wm.FunctionMetric(operator.call, small, remembered[0], wm.distances.kl)
zero, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, eqx.filter(small, eqx.is_inexact_array)))
picked = np.argsort(fisher)[::-20]
error = max(abs(fisher[i] - flat(metric.mv(unravel(zero.at[i].set(1.0))))[i]) for i in picked)
print(f"diagonal of EWC, {len(picked)} entries {error:.0e}")
assert error < 1e-5 < 1e-3 < fisher[picked[0]]

# %% [markdown]
# ## The rivals
#
# All rivals share the seed's base network, memory and minibatches, and differ by one mechanism of `wm.rivals`. Some add a
# penalty to the new task's loss: *replay* the loss on the memories and their labels {cite:p}`chaudhry2019tiny`, *DER++* the stored outputs
# and the labels, *L2* the distance to the starting weights. *Joint* training is replay of the whole first task, and no rival but a ceiling.
# What each may keep of the first task is this:


# %%
class Kept(NamedTuple):
    """What a method may keep of the first task."""

    start: Any
    inputs: Any
    labels: Any
    outputs: Any
    fisher: Any = None
    basis: Any = None


def keep(method, net, x, y, key, memories):
    """A random part of the first task's training images, nested for one key; for joint training, all of it."""
    chosen = jax.random.permutation(key, len(x))[: len(x) if method == "joint" else memories]
    x, y = x[chosen], y[chosen]
    kept = Kept(net, x, y, logits(net, x) if method == "DER++" else None)
    if method == "EWC":
        kept = kept._replace(fisher=wm.rivals.fisher_diagonal(operator.call, net, x))
    if method == "OGD":
        kept = kept._replace(basis=wm.rivals.ogd_basis(operator.call, net, x, y))
    return kept


# %%
def replay(net, x, kept, rows):
    return wm.rivals.replay_loss(operator.call, net, kept.inputs[rows], kept.labels[rows])


def derpp(net, x, kept, rows):
    memories = [part[rows] for part in (kept.inputs, kept.outputs, kept.labels)]
    return wm.rivals.der_loss(operator.call, net, *memories, alpha=0.25)


def lwf(net, x, kept, rows):
    return wm.rivals.lwf_loss(operator.call, net, kept.start, x, OLD)


def ewc(net, x, kept, rows):
    return wm.rivals.ewc_penalty(net, kept.start, kept.fisher)


def l2(net, x, kept, rows):
    return wm.rivals.l2_penalty(net, kept.start)


PENALTIES = {"replay": replay, "joint": replay, "DER++": derpp, "LwF": lwf, "EWC": ewc, "L2": l2}

# %% [markdown]
# For `wm.walk` a task with a penalty beside it is an objective like any other.


# %%
class Beside(wm.objectives.AbstractObjective):
    """A new task with a rival's penalty beside it."""

    task: wm.objectives.Task
    penalty: Callable = eqx.field(static=True)
    kept: Kept
    strength: Any
    recall: int = eqx.field(static=True)

    def draws(self, key):
        """Images of the task, and which memories to recall."""
        memories = wm.objectives.shuffled(jax.random.fold_in(key, 1), len(self.kept.labels), self.recall)
        return zip(self.task.draws(key), memories, strict=True)

    def value(self, weights, draw):
        """The loss of the task and the scaled penalty."""
        rows, recalled = draw
        beside = self.penalty(weights, self.task.inputs[rows], self.kept, recalled)
        return self.task.value(weights, rows) + self.strength * beside


# %% [markdown]
# Others change the new task's gradient. *GEM* asks that the loss on the memories should not rise to first order, and takes the
# nearest gradient of that kind, a quadratic program {cite:p}`lopezpaz2017gem`; *A-GEM* does so with a few memories drawn anew
# each time {cite:p}`chaudhry2019agem`; *OGD* removes from it the span of the gradients of the memories' own logits, taken once
# at the start {cite:p}`farajtabar2020ogd`.


# %%
def gem(gradient, recalled, kept, margin):
    one = jax.tree.map(lambda x: x[None], recalled)
    return wm.rivals.gem_projection(gradient, one, margin)


def agem(gradient, recalled, kept, margin):
    return wm.rivals.agem_projection(gradient, recalled)


def ogd(gradient, recalled, kept, margin):
    return wm.rivals.ogd_projection(gradient, kept.basis)


RULES = {"GEM": gem, "A-GEM": agem, "OGD": ogd}


@eqx.filter_jit
def projected_step(fixed, task, kept, margin, net, state, draw, rows):
    """One step along a gradient that a rule has changed."""
    optimiser, rule = fixed
    value, gradient = eqx.filter_value_and_grad(task.value)(net, draw)
    recalled = eqx.filter_grad(replay)(net, None, kept, rows)
    updates, state = optimiser.update(rule(gradient, recalled, kept, margin), state)
    length = optax.global_norm(updates)
    return eqx.apply_updates(net, updates), state, {"objective": value, "kept": jnp.nan, "length": length}


# %%
class Projected(paths.AbstractMethod):
    """Descent of the task along projected gradients."""

    optimiser: Any = eqx.field(static=True)
    rule: Callable = eqx.field(static=True)
    kept: Kept
    margin: Any
    recall: int = eqx.field(static=True)

    def start(self, problem, weights, key):
        """The optimiser's state and the memories that each step recalls."""
        memories = wm.objectives.shuffled(key, len(self.kept.labels), self.recall)
        return self.optimiser.init(eqx.filter(weights, eqx.is_inexact_array)), memories

    def step(self, problem, weights, state, draw):
        """One step."""
        state, memories = state
        fixed, task = (self.optimiser, self.rule), problem.objective
        given = (self.kept, self.margin, weights, state, draw, next(memories))
        weights, state, told = projected_step(fixed, task, *given)
        return weights, (state, memories), told


# %% [markdown]
# **Check.** The quadratic program of GEM, with three memories and a margin, against non-negative least squares of `scipy`.
# (Here there is one earlier task, so one constraint, and the solution has a closed form.)

# %%
draw = np.random.default_rng(0)
g, constraints = draw.normal(size=40), draw.normal(size=(3, 40))
ours = wm.rivals.gem_projection(jnp.float32(g), jnp.float32(constraints), 0.5)
shifted = g + 0.5 * constraints.sum(axis=0)
multipliers, _ = scipy.optimize.nnls(constraints.T, -shifted)
gap = np.abs(ours - (shifted + multipliers @ constraints)).max()
print(f"{(constraints @ g < 0).sum()} memories object; largest difference {gap:.0e}")
assert (constraints @ g < 0).any()
assert gap < 1e-4

# %% [markdown]
# ## One path for all
#
# FIP itself is four methods, one for each output distance, and a fifth: exact directions. These solve Eq. 4 of the paper at every
# step by {doc}`directions`, here with the metric of the Kullback–Leibler divergence, in a Krylov basis of twenty products. A step
# of theirs costs as much as many of the others', and it is a step on the metric's terms, so it may be longer and can use a surer gradient:
# they take fewer steps with larger batches, and see about as many images of the second task as the rest.

# %%
DISTANCES = {
    "FIP, squared": wm.distances.squared_error,
    "FIP, KL": wm.distances.kl,
    "FIP, Hellinger": wm.distances.hellinger,
    "FIP, Bhattacharyya": wm.distances.bhattacharyya,
}


def mechanism(method, setting, task, kept, recall):
    """What `wm.walk` needs for a method: an objective, a distance and a way of taking steps."""
    rate, strength = setting
    number, few = np.float32(strength), min(recall, len(kept.labels))
    if method in DISTANCES:
        part = None if few == len(kept.labels) else few
        return task, DISTANCES[method], wm.PenalisedDescent(sgd(rate), strength, part)
    if method in PENALTIES:
        task = Beside(task, PENALTIES[method], kept, number, few)
    if method in RULES:
        few = min(few, 10) if method == "A-GEM" else few
        return task, wm.distances.kl, Projected(sgd(rate), RULES[method], kept, number, few)
    return task, wm.distances.kl, wm.PenalisedDescent(sgd(rate), 0.0)


# %%
def decaying(epsilon, steps):
    """The square of a step's length, falling to nothing as a cosine."""
    return lambda taken: epsilon * np.cos(np.pi / 2 * taken / steps) ** 2 + 1e-12


def follow(config, seed):
    """Learn the second task by one method; returns the path, and the network that it began with."""
    (first, *_), (second, *_), _ = tasks(config)
    net, method, setting = start(config, seed), config["method"], config["setting"]
    of_memory, of_walk = jax.random.split(jax.random.key(1000 + seed))
    kept = keep(method, net, *first, of_memory, config["memories"])
    steps, batch = config["steps"], config["batch"]
    if method == "FIP, exact":
        steps, batch = config["exact"]
        how = wm.ExactDirections(setting[0], decaying(setting[1], steps), momentum=0.9)
        task, distance = wm.objectives.Task(operator.call, *second, batch), wm.distances.kl
    else:
        task = wm.objectives.Task(operator.call, *second, batch)
        task, distance, how = mechanism(method, setting, task, kept, config["recall"])
    at = sorted({round(steps * part) for part in RECORDED})
    how = dict(method=how, steps=steps, key=of_walk, record=at)
    return wm.walk(operator.call, net, task, kept.inputs[: config["memories"]], distance, **how)


# %% [markdown]
# At the recorded points of a path both tasks are tested on the first images of their test splits, and at its end on all of
# them; drift is the mean Kullback–Leibler divergence of the outputs on test *digits*, which no method has seen.

# %% tags=["hide-input"]
RECORDED = [0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.55, 0.7, 0.85, 1]


def drift(before, after):
    """Mean Kullback–Leibler divergence between two sets of logits."""
    return float(jax.vmap(wm.distances.kl)(after, before).mean())


def travelled(path, first, second, watched):
    """Accuracy on both tasks and drift at the recorded points of a path."""
    (x, y), before = first, logits(path.weights[0], first[0][:watched])
    curves = {"step": path.steps, "length": path.lengths.round(4), "first": [], "second": [], "drift": []}
    for net in path.weights:
        after = logits(net, x[:watched])
        curves["first"].append(round(float((after.argmax(axis=1) == y[:watched]).mean()), 4))
        curves["second"].append(round(accuracy(net, second[0][:watched], second[1][:watched]), 4))
        curves["drift"].append(round(drift(before, after), 5))
    return curves


def score(net, first, second):
    """Accuracy on both tasks, and the mean of the two."""
    both = {"on_first": accuracy(net, *first), "on_second": accuracy(net, *second)}
    return both | {"mean": (both["on_first"] + both["on_second"]) / 2}


# %%
DIVERGED = {"on_first": 0.0, "on_second": 0.0, "mean": 0.0, "diverged": 1}


def seed_of(key):
    """The number that a run's key was made from."""
    return int(jax.random.key_data(key)[-1])


def evaluate(config, key):
    """One run: accuracy on the test images of both tasks, along the path and at its end."""
    first, second, fingerprint = tasks(config)
    try:
        path = follow(config, seed_of(key))
    except FloatingPointError:  # the steps were too large for the penalty
        return {"metrics": DIVERGED, "data": fingerprint}
    metrics = score(path.weights[-1], first[2], second[2])
    metrics |= {"base": accuracy(path.weights[0], *first[2]), "length": path.length}
    metrics["displacement"] = float(np.linalg.norm(path.movements()[-1]))
    curves = travelled(path, first[2], second[2], config["watched"])
    return {"metrics": metrics, "curves": curves, "data": fingerprint}


# %% tags=["hide-input"]
def tune(config, key):
    """One run of a search: the mean accuracy on the validation images of both tasks."""
    first, second, fingerprint = tasks(config)
    try:
        path = follow(config, seed_of(key))
    except FloatingPointError:
        return {"metrics": DIVERGED, "data": fingerprint}
    return {"metrics": score(path.weights[-1], first[1], second[1]), "data": fingerprint}


# %% [markdown]
# ## Tuning
#
# Each method gets a search of eight settings on one seed, judged by the mean accuracy on validation images of the two tasks: a
# learning rate and, where there is one, the strength of the mechanism (for exact directions, β and the square of a step's length). A
# method without a strength gets eight rates. All learn for one epoch from 50 memories, and the test images play no part. The
# first four of a row were searched together; then the best of nearly every method had turned out to be its lowest rate, and
# each got a fifth beyond what it had; then three more around the best that it had by then. On another seed the best EWC diverged, which
# is no fair picture of it; so the three best of every method are run on a second seed, and the best mean of both is chosen.

# %%
METHODS = [
    "fine-tuning", "joint", *DISTANCES, "FIP, exact",
    "replay", "DER++", "LwF", "EWC", "L2", "GEM", "A-GEM", "OGD",
]  # fmt: skip
if scale.name == "quick":
    METHODS = ["fine-tuning", "FIP, Bhattacharyya", "FIP, exact", "replay"]

# %% tags=["hide-input"]
SEARCHED = {  # rate:strength
    "fine-tuning": "0.001:0 0.003:0 0.01:0 0.03:0 0.0003:0 0.0001:0 0.0005:0 0.002:0",
    "joint": "0.003:1 0.01:1 0.03:1 0.1:1 0.02:1 0.05:1 0.03:0.3 0.03:3",
    "FIP, squared": "0.01:0.1 0.01:1 0.03:0.1 0.03:1 0.003:0.1 0.003:1 0.003:0.3 0.01:0.3",
    "FIP, KL": "0.01:1 0.01:10 0.03:1 0.03:10 0.003:10 0.003:30 0.003:100 0.001:30",
    "FIP, Hellinger": "0.01:10 0.01:100 0.03:10 0.03:100 0.003:30 0.003:100 0.003:10 0.001:100",
    "FIP, Bhattacharyya": "0.01:10 0.01:100 0.03:10 0.03:100 0.003:30 0.003:100 0.003:10 0.001:100",
    "FIP, exact": "1:0.0025 0.2:0.0025 1:0.01 0.2:0.01 0.05:0.01 0.02:0.01 0.05:0.04 0.02:0.04",
    "replay": "0.01:1 0.01:10 0.03:1 0.03:10 0.003:10 0.003:30 0.003:3 0.001:30",
    "DER++": "0.01:0.3 0.01:3 0.03:0.3 0.03:3 0.003:0.3 0.003:1 0.003:3 0.01:1",
    "LwF": "0.01:1 0.01:10 0.03:1 0.03:10 0.003:1 0.001:1 0.003:3 0.001:3",
    "EWC": "0.01:100 0.01:1000 0.01:10000 0.03:1000 0.003:1000 0.003:3000 0.003:300 0.001:3000",
    "L2": "0.01:0.01 0.01:0.1 0.01:1 0.03:0.1 0.003:0.1 0.003:0.3 0.001:0.1 0.01:0.03",
    "GEM": "0.003:0.5 0.01:0 0.01:0.5 0.03:0.5 0.001:0.5 0.003:1 0.002:0.5 0.003:0",
    "A-GEM": "0.003:0 0.01:0 0.03:0 0.1:0 0.001:0 0.0003:0 0.0005:0 0.002:0",
    "OGD": "0.001:0 0.003:0 0.01:0 0.03:0 0.0003:0 0.0005:0 0.002:0 0.0001:0",
}
SEARCHED = {m: [[float(x) for x in pair.split(":")] for pair in row.split()] for m, row in SEARCHED.items()}

# %%
one_seed = dataclasses.replace(scale, seeds=1)
three_seeds = dataclasses.replace(scale, seeds=min(scale.seeds, 3))
common = {k: v for k, v in scale.settings.items() if k not in ("sizes", "strengths", "long", "lengths", "repeats")}


def candidates(method):
    """The settings searched for a method, as many for each."""
    return SEARCHED[method][: 1 if scale.name == "quick" else None]


assert len({len(candidates(m)) for m in METHODS}) == 1  # one budget for all
grid = [{**common, "method": m, "setting": s} for m in METHODS for s in candidates(m)]
search = wm.sweep("continual_tuning", tune, grid, one_seed)
finals = search.sort_values("mean", ascending=False).groupby("method").head(3)
grid = [{**common, "method": m, "setting": s} for m, s in zip(finals.method, finals.setting, strict=True)]
finals = wm.sweep("continual_tuning", tune, grid, dataclasses.replace(scale, seeds=min(2, scale.seeds)))


# %%
def best_of(frame):
    """The setting of each method with the best mean over the seeds that it was tried on."""
    tried = (
        frame.assign(key=frame.setting.map(str)).groupby(["method", "key"]).agg({"setting": "first", "mean": "mean"})
    )
    return tried.loc[tried.groupby("method")["mean"].idxmax()].reset_index("key").sort_index()


best = best_of(finals)
chosen = {m: list(best.setting[m]) for m in METHODS}


# %% tags=["hide-input"]
def in_words(setting):
    """A setting: the rate, and the strength unless there is none."""
    return f"{setting[0]:g}" + (f"/{setting[1]:g}" if setting[1] else "")


table = pd.DataFrame(
    [
        {
            "method": m,
            "chosen": in_words(chosen[m]),
            "searched, best first": "; ".join(
                f"{in_words(setting)}: {100 * value:.1f}"
                for setting, value in search[search.method == m]
                .sort_values("mean", ascending=False)[["setting", "mean"]]
                .itertuples(index=False)
            ),
        }
        for m in METHODS
    ]
)
display(Markdown(table.to_markdown(index=False)))

# %% [markdown]
# The rate/the strength and, after the colon, the mean accuracy in per cent; 0.0 is a walk that diverged. A low rate keeps and a high rate
# learns, and where the mechanism is weak (A-GEM, OGD, fine-tuning) little but the rate is left to keep anything. The best rate of
# nearly every method that looks at its memories is 0.003, with lower and higher ones searched.
#
# ## As published
#
# First the authors' settings, for as many steps as three epochs of 60,000: fine-tuning, FIP, the FIP that the search chose, and
# joint training.

# %%
tuned = best["mean"][[m for m in METHODS if m in DISTANCES]].idxmax()
ARMS = {
    "fine-tuning, as published": ("fine-tuning", [0.001, 0.0]),
    "FIP, as published": ("FIP, Bhattacharyya", [0.001, 1.0 * common["memories"]]),
    "FIP, tuned": (tuned, chosen[tuned]),
}
if "joint" in METHODS:
    ARMS["joint"] = ("joint", chosen["joint"])
long = {**common, "steps": scale.long}
grid = [{**long, "arm": a, "method": m, "setting": s} for a, (m, s) in ARMS.items()]
published = wm.sweep("continual_published", evaluate, grid, scale)

# %% tags=["hide-input"]
COLOURS = {m: figures.PATH_COLOURS[m] for m in ("fine-tuning", "joint", "replay", "L2", "FIP, squared", "FIP, exact")}
COLOURS["FIP, Bhattacharyya"] = figures.PATH_COLOURS["FIP"]
OF_ARMS = dict(
    zip(ARMS, [COLOURS["fine-tuning"], COLOURS["FIP, Bhattacharyya"], "#009E73", COLOURS["joint"]], strict=False)
)
NAMES = ["digits", "clothes"]


def along(frame, what):
    """A recorded curve of every seed, stacked."""
    return np.stack([np.array(values, float) for values in frame[what]])


def points(values):
    """Mean and 95 % t-interval over seeds, in percentage points."""
    values = 100 * np.asarray(values, float)
    return values.mean(), *map(float, figures.t_interval(values))


def in_points(values):
    """The same in words."""
    return "{:.1f} [{:.1f}, {:.1f}]".format(*points(values))


# %% mystnb={"figure": {"caption": "Accuracy on both tasks along the path, from the base network on: the authors' settings, a tuned FIP, fine-tuning and joint training. All twenty outputs compete. The axis begins at one half. Means over seeds, bands are 95 % t-intervals.", "name": "fig-continual-published"}, "image": {"alt": "Two panels against the number of steps: accuracy on digits falls steeply for fine-tuning and stays high for the others, accuracy on clothes rises for all."}}
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.5), sharey=True)
for arm, colour in OF_ARMS.items():
    part = published[published.arm == arm]
    for ax, what in zip(axes, ("first", "second"), strict=True):
        at = np.array(part.step.iloc[0])
        figures.accuracy_curve(ax, at, along(part, what), colour=colour, label=arm, marker="")
for ax, name in zip(axes, NAMES, strict=True):
    ax.set(title=name, xlabel="step")
axes[0].set(ylabel="test accuracy", ylim=(0.5, 1) if scale.name == "cpu" else None)
axes[1].legend(fontsize=9)
plt.show()

# %% tags=["hide-input"]
PUBLISHED = {"fine-tuning, as published": (39.5, 87.8), "FIP, as published": (93.7, 87.6)}
table = pd.DataFrame(
    [
        {
            "arm": arm,
            "setting": in_words(setting),
            **{f"{n}, %": in_points(part[m]) for n, m in zip(NAMES, ("on_first", "on_second"), strict=True)},
            "sum": f"{200 * part['mean'].mean():.1f}",
            "authors' code": "{} + {}".format(*PUBLISHED[arm]) if arm in PUBLISHED else "",
        }
        for arm, (_, setting) in ARMS.items()
        for part in [published[published.arm == arm]]
    ]
)
display(Markdown(table.to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# {numref}`fig-continual-published` shows the walk. With the authors' settings our network keeps more of the digits than theirs and
# learns the clothes more slowly, as does fine-tuning; the sum of both is a little above theirs. So the algorithm does what the
# paper says it does. But the published learning rate is a careful one. The tuned FIP, on the same network, memories
# and number of steps, takes ten times larger steps, reaches on the clothes what joint training reaches, and gives up little
# of the digits for it. The distance that the search chose among the four is the squared one: the best FIP here
# is Dark Experience Replay.


# %%
def mean_of(frame, **where):
    """Mean metrics over the seeds of some runs."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame[["on_first", "on_second", "mean", "displacement"]].mean()


if scale.name == "cpu":
    slow, ours, better, ceiling = (mean_of(published, arm=arm) for arm in ARMS)
    assert ours.on_first > 0.937 > 0.395
    assert ours.on_second < 0.876
    assert slow.on_second < 0.878
    assert 1.813 < 2 * ours["mean"] < 1.83
    assert 2 * better["mean"] > 1.813 + 0.03
    assert better.on_second > ceiling.on_second - 0.01
    assert 0 < ceiling["mean"] - better["mean"] < 0.015
    assert tuned == "FIP, squared"
    assert chosen[tuned][0] == 0.01

# %% [markdown]
# ## The same memory for all

# %%
grid = [{**common, "method": m, "setting": chosen[m]} for m in METHODS]
rows = wm.sweep("continual", evaluate, grid, scale)
Markdown(
    f"{len(rows)} runs, {rows.seed.nunique()} seeds for each method, preset `{scale.name}`: {common['steps']} steps of "
    f"{common['batch']} images, {common['memories']} memories, on {rows.device.iloc[0]}; "
    f"{rows.seconds.sum() / 60:.0f} minutes of one core in all. Rows from code that has changed since: "
    f"{int(rows.stale.sum())}. The base networks are right on {100 * rows.base.mean():.1f} % of the test digits."
)


# %% mystnb={"figure": {"caption": "All methods with the same 50 memories and the same number of steps, each tuned alike, from the worst to the best mean. Exact directions see as many images in fewer steps; joint training keeps the whole first task, LwF and L2 keep no image of it. Dots are means over seeds, bars 95 % t-intervals.", "name": "fig-continual-rivals"}, "image": {"alt": "Three panels with one row for each method: accuracy on digits, accuracy on clothes, and their mean, with dots and bars."}}
def family(method):
    """A colour for each kind of method."""
    kinds = {"FIP, exact": 3, **dict.fromkeys(DISTANCES, 0), "replay": 1, "DER++": 1, "LwF": 2, "EWC": 2, "L2": 2}
    return COLOURS.get(method) if method in ("fine-tuning", "joint") else figures.PALETTE[kinds.get(method, 4)]


order = rows.groupby("method")["mean"].mean().sort_values().index
fig, axes = plt.subplots(1, 3, figsize=(7.6, 4.4), sharey=True)
for ax, what, name in zip(axes, ("on_first", "on_second", "mean"), (*NAMES, "mean of both"), strict=True):
    for i, method in enumerate(order):
        middle, low, high = points(rows[rows.method == method][what])
        ax.plot([low, high], [i, i], color=family(method), lw=2.5, alpha=0.5)
        ax.plot(middle, i, "o", color=family(method))
    ax.set(title=name, xlabel="test accuracy (%)")
axes[0].set_yticks(range(len(order)), order)
plt.show()

# %% tags=["hide-input"]
table = pd.DataFrame(
    [
        {
            "method": m,
            "setting": in_words(chosen[m]),
            "digits, %": in_points(part.on_first),
            "clothes, %": in_points(part.on_second),
            "mean, %": in_points(part["mean"]),
            "drift": f"{along(part, 'drift')[:, -1].mean():.2f}",
            "length": f"{along(part, 'length')[:, -1].mean():.1f}",
            "distance": f"{part.displacement.mean():.1f}",
            "seconds": f"{part.seconds.median():.0f}",
        }
        for m in order[::-1]
        for part in [rows[rows.method == m]]
    ]
)
display(Markdown(table.to_markdown(index=False)))

# %% [markdown]
# {numref}`fig-continual-rivals` is the comparison that the paper lacks, and {numref}`fig-continual-along` shows the walks. From
# below there are the methods that hold little: fine-tuning, A-GEM, OGD, and LwF, which has no image of a digit. Then come L2, replay, GEM and
# EWC, within about a point of each other. EWC, which a table of the paper has at 45 % where FIP has 82.5 % (on twenty tasks of split CIFAR, its
# number from the literature), is here the best of them: tuned, and with the Fisher diagonal of the same fifty images. (At three times its strength it was better still on one seed, and diverged on another.)
#
# All FIP is above all of these, as the paper has it; with its own distance the lead over EWC is three tenths of a point. And the distances are not alike.
# The *squared* one, on logits, is a point or more above the three that compare probabilities, and within half a point of
# joint training, which keeps 55,000 digits where it keeps fifty. (Perhaps because a probability hardly tells how sure a sure network was, and a
# logit does; that is not tested here.) So
# the best of FIP is the one member of its family that the paper does not name, Dark Experience Replay. DER++, which looks at the labels
# as well, adds nothing to it that five seeds can show. Bhattacharyya's distance and Hellinger's cannot be told apart, having one Hessian and small
# distances.
#
# Exact directions do not pay here. They cost several times the seconds and end half a point below penalised descent by the same divergence: they learn
# the clothes a little better and let more of the digits go. A quadratic model, however exact, knows of the function only what the
# weights before a step tell; the penalty looks at the distance itself.

# %%
if scale.name == "cpu":
    of = rows.groupby("method")["mean"].mean()
    held = ["L2", "replay", "GEM", "EWC"]
    assert max(of[["fine-tuning", "A-GEM", "OGD", "LwF"]]) < min(of[held])
    assert max(of[held]) - min(of[held]) < 0.012
    assert of[held].idxmax() == "EWC"
    stronger = finals[(finals.method == "EWC") & (finals.setting.map(str) == "[0.003, 3000.0]")].set_index("seed")[
        "mean"
    ]
    assert stronger[0] > best["mean"]["EWC"] > stronger[1] == 0
    assert min(of[["FIP, exact", *DISTANCES]]) > of["EWC"]
    assert 0.002 < of["FIP, Bhattacharyya"] - of["EWC"] < 0.004
    assert of["FIP, squared"] - max(of[["FIP, KL", "FIP, Hellinger", "FIP, Bhattacharyya"]]) > 0.01
    assert 0 < of["joint"] - of["FIP, squared"] < 0.005
    assert abs(of["FIP, Hellinger"] - of["FIP, Bhattacharyya"]) < 0.001

# %%
if scale.name == "cpu":
    by_seed = rows.pivot(index="seed", columns="method", values="mean")
    low, high = figures.t_interval((by_seed["DER++"] - by_seed["FIP, squared"]).to_numpy())
    assert low < 0 < high
    first, second = (rows.groupby("method")[m].mean() for m in ("on_first", "on_second"))
    assert 0.004 < of["FIP, KL"] - of["FIP, exact"] < 0.007
    assert first["FIP, exact"] < first["FIP, KL"]
    assert second["FIP, exact"] > second["FIP, KL"]

# %% mystnb={"figure": {"caption": "Accuracy on both tasks along the path for seven of the methods. Means over seeds, bands are 95 % t-intervals.", "name": "fig-continual-along"}, "image": {"alt": "Two panels against the share of the steps taken: accuracy on digits and on clothes for seven methods."}}
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.5), sharey=True)
shown = [m for m in COLOURS if m in METHODS]
for method in shown:
    part = rows[rows.method == method]
    share = np.array(part.step.iloc[0]) / part.step.iloc[0][-1]
    for ax, what in zip(axes, ("first", "second"), strict=True):
        figures.accuracy_curve(ax, share, along(part, what), colour=COLOURS[method], label=method, marker="")
for ax, name in zip(axes, NAMES, strict=True):
    ax.set(title=name, xlabel="share of the steps")
axes[0].set_ylabel("test accuracy")
axes[1].legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# ## How much memory, and how strong
#
# Beyond fifty memories a step looks at fifty of them, drawn anew each time, so that the penalty is noisier than before and wants other
# settings. The three best of the search are tried once more with 500, on validation images, and the best of them serves 500 and 1,000.

# %%
KEPT = [m for m in METHODS if m in ("FIP, Bhattacharyya", "FIP, squared", "replay")]
left_out = ("fine-tuning", "joint", "FIP, exact", "L2", "FIP, KL", "FIP, Hellinger")
sized = [(n, m) for n in scale.sizes for m in METHODS if m in KEPT or (n == 500 and m not in left_out)]
many = dict(chosen)
if 500 in scale.sizes:
    again = finals[(finals.seed == 0) & ~finals.method.isin(left_out)]
    grid = [
        {**common, "memories": 500, "method": m, "setting": s} for m, s in zip(again.method, again.setting, strict=True)
    ]
    again = wm.sweep("continual_tuning", tune, grid, one_seed)
    many |= {m: list(s) for m, s in best_of(again).setting.items()}
grid = [{**common, "memories": n, "method": m, "setting": (many if n >= 500 else chosen)[m]} for n, m in sized]
memory = wm.sweep("continual_memory", evaluate, grid, three_seeds)

# %%
grid = [
    {**common, "method": m, "setting": [chosen[m][0], s * chosen[m][1]]}
    for m in KEPT for s in scale.strengths if m != "replay"
]  # fmt: skip
strength = wm.sweep("continual_strength", evaluate, grid, three_seeds)

# %% mystnb={"figure": {"caption": "What memory and λ are worth: mean accuracy on both tasks against the number of memories, left, and against λ at the tuned learning rate, right. Means over three seeds, bands are 95 % t-intervals.", "name": "fig-continual-memory"}, "image": {"alt": "Two panels on logarithmic axes: mean accuracy against the number of memories for three methods, and against the strength of the penalty for two."}}
both = pd.concat([memory, rows[rows.seed < three_seeds.seeds]])
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.5))
for method in KEPT:
    part = both[both.method == method].pivot(index="seed", columns="memories", values="mean")
    figures.accuracy_curve(axes[0], part.columns, part, colour=COLOURS[method], label=method)
    part = strength[strength.method == method]
    if len(part):
        part = part.assign(strength=[s[1] for s in part.setting])
        part = part.pivot(index="seed", columns="strength", values="mean")
        figures.accuracy_curve(axes[1], part.columns, part, colour=COLOURS[method], label=method)
axes[0].set(xscale="log", xlabel="memories", ylabel="mean accuracy on both tasks")
axes[1].set(xscale="log", xlabel="λ")
axes[0].legend(fontsize=9)
plt.show()

# %% tags=["hide-input"]
if 500 in scale.sizes:
    part = memory[memory.memories == 500]
    table = part.groupby("method")[["on_first", "on_second", "mean"]].agg(in_points).sort_values("mean")[::-1]
    table.columns = ["digits, %", "clothes, %", "mean, %"]
    display(Markdown(table.to_markdown()))

# %% [markdown]
# {numref}`fig-continual-memory`, left: from ten memories to fifty the gain is four to nine points, one for each class being little; from fifty
# to 500, the paper's number, another point for FIP with the authors' distance and half as much for the squared one; beyond that nothing. Replay
# gains most, so that with 500 memories it is hardly behind, and so are GEM and EWC (the table is for 500): where there are
# images enough, labels serve as well as outputs. The settings matter more than the method: with the λ of fifty memories FIP by
# Bhattacharyya's distance is three points lower on validation images than with another one of its search.
#
# Right: over two decades λ hardly matters, and one step further the walk diverges. The paper's λ = 1, a sum over fifty memories and so 50 on this
# axis, is on the plateau, close to its end.

# %%
if scale.name == "cpu":
    of_size = both.groupby(["memories", "method"])["mean"].mean().unstack()
    gain = of_size.diff()[KEPT]
    assert gain.loc[50].between(0.04, 0.095).all()
    assert 0.007 < gain.loc[500, "FIP, Bhattacharyya"] < 0.012
    assert gain.loc[1_000].abs().max() < 0.002
    assert gain.loc[500].idxmax() == "replay"
    at_500 = of_size.loc[500].dropna()
    assert at_500["FIP, Bhattacharyya"] - at_500[["EWC", "replay", "GEM"]].min() < 0.005
    validated = again[again.method == "FIP, Bhattacharyya"]["mean"]
    assert validated.max() - validated.min() > 0.025
    of_strength = strength.assign(strength=[s[1] for s in strength.setting]).groupby(["method", "strength"])["mean"]
    assert (of_strength.mean().groupby("method").nlargest(3).groupby(level=0).agg(np.ptp) < 0.015).all()
    assert (of_strength.min().groupby("method").min() < 0.1).all()

# %% [markdown]
# ## In weight space


# %% tags=["hide-input"]
def plane(config, key):
    """Paths of one seed by several methods, in the plane of most variance of them all."""
    found = {}
    for method, setting in config["methods"]:
        path = follow({**config, "method": method, "setting": setting}, seed_of(key))
        found[method] = path.movements().astype(np.float32)
    centre, axes, share = figures.principal_plane(np.concatenate([*found.values()]))
    curves = {m: ((moves - centre) @ axes.T).round(4) for m, moves in found.items()}
    ends = np.stack([moves[-1] for moves in found.values()])
    apart = np.linalg.norm(ends[:, None] - ends[None], axis=2)
    return {"metrics": {"share": share}, "curves": curves | {"apart": apart.round(4)}, "data": tasks(config)[2]}


# %% mystnb={"figure": {"caption": "Paths of one seed in the plane of most variance of them all; the star is the network that knows the digits. Coordinates are Euclidean distances between weights.", "name": "fig-continual-plane"}, "image": {"alt": "Six curves that leave one point of a plane in weight space in different directions, one for each method."}}
DRAWN = [m for m in METHODS if m in ("fine-tuning", "FIP, Bhattacharyya", "FIP, exact", "replay", "L2", "joint")]
grid = [{**common, "methods": [[m, chosen[m]] for m in DRAWN]}]
planes = wm.sweep("continual_plane", plane, grid, three_seeds)
fig, ax = plt.subplots(figsize=(6.6, 3.2))
run = planes.iloc[0]
figures.paths_in_plane(ax, {m: run[m] for m in DRAWN}, COLOURS)
ax.lines[2 * DRAWN.index("replay")].set(lw=4, zorder=1)
ax.legend(fontsize=8, loc="upper right")
plt.show()

# %% tags=["hide-input"]
apart = pd.DataFrame(np.mean([np.array(a) for a in planes.apart], axis=0), DRAWN, DRAWN)
display(Markdown(apart.to_markdown(floatfmt=".2f")))
Markdown(
    f"Mean distances between the ends of the paths, over {len(planes)} seeds. The plane of the figure holds "
    f"{100 * run.share:.0f} % of the variance of its paths."
)

# %% [markdown]
# In {numref}`fig-continual-plane` FIP and replay walk side by side, though one remembers outputs and the other labels: their ends are a
# third as far from each other as from the start. The exact walk takes another way. Joint training goes three times as far as any of them, with
# its high rate and all the digits. The anchored walk of L2 goes out and is pulled back; what it loses of the digits on the way out,
# all of them ({numref}`fig-continual-along`), returns with it. So much for *invariant*: of a path it says more than its end does.

# %%
if scale.name == "cpu":
    assert apart.loc["FIP, Bhattacharyya", "replay"] < 0.35 * rows[rows.method == "replay"].displacement.mean()
    reached = rows.groupby("method").displacement.mean()
    assert reached["joint"] > 2.5 * reached["FIP, Bhattacharyya"]
    assert along(rows[rows.method == "L2"], "first").min() < 0.05

# %% [markdown]
# ## What a step costs
#
# A step of fine-tuning passes 100 images through the network and back. One of FIP passes 50 memories with them, whose old outputs are known,
# and so should cost half as much again. It is measured between walks that alternate and differ by their number of steps alone.


# %%
def seconds_a_step(config, method, seed):
    """The time of a step: of the longer of two walks beyond the shorter."""
    taken = []
    for steps in config["lengths"]:
        begun = time.perf_counter()
        follow({**config, "method": method, "setting": config["settings"][method], "steps": steps}, seed)
        taken.append(time.perf_counter() - begun)
    return (taken[1] - taken[0]) / (config["lengths"][1] - config["lengths"][0])


def cost(config, key):
    """What a step of penalised FIP costs, in steps of fine-tuning: the median of pairs, taken in turn."""
    pairs = [
        [seconds_a_step(config, m, seed_of(key)) for m in config["settings"]] for _ in range(1 + config["repeats"])
    ]
    fine, fip = np.array(pairs[1:]).T  # the first compiles
    ratios = {"ratio_wall": np.median(fip) / np.median(fine), "fine_wall_s": np.median(fine)}
    return {"metrics": ratios, "data": tasks(config)[2]}


# %%
timed = {m: chosen[m] for m in ("fine-tuning", "FIP, Bhattacharyya")}
grid = [{**common, "settings": timed, "lengths": scale.lengths, "repeats": scale.repeats}]
costs = wm.sweep("continual_cost", cost, grid, three_seeds)
Markdown(
    f"A step of FIP with {common['memories']} memories takes {costs.ratio_wall.mean():.2f} ({costs.ratio_wall.min():.2f} to "
    f"{costs.ratio_wall.max():.2f}) steps of fine-tuning with {common['batch']} images, of {1000 * costs.fine_wall_s.mean():.0f} ms on "
    f"{costs.device.iloc[0]}."
)

# %% [markdown]
# ## Verdict
#
# The claims below were written down before the runs.

# %%
every = {"continual_published": published, "continual": rows, "continual_memory": memory}
judged = verdicts.verdict_table("paths/continual", scale.name, rows=every)
display(Markdown(judged.to_markdown(index=False)))
if scale.name == "cpu":
    said = [
        "partly",
        "reproduced",
        "reproduced",
        "holds",
        "reproduced",
        "holds",
        "does not hold",
        "partly",
        "does not hold",
    ]
    assert judged.verdict.tolist() == [*said, "holds", "reproduced"]
    assert abs(slow.displacement - ours.displacement) < 0.05

# %% [markdown]
# Ours keeps more of the digits and learns less of the clothes than the authors' network did, so that the first claim is met in
# one half. A walk that keeps the function does not go farther than one that does not: the two end equally far from
# their start. The paper's main claim for convolutional networks, that FIP meets or exceeds the older methods, stands in every one of 24
# comparisons, against rivals that were given the same memory and the same search. What we had expected beyond the paper failed three
# times: labels add nothing to stored logits that we can show, the distance does matter, and exact directions do not pay.
#
# ## The paper's own scale, traced
#
# The `paper` preset has a wider network, the paper's 500 memories, all of them looked at in every step, and three epochs of
# 60,000 images for each method. It has been traced, and not run. Tracing needs shapes alone.


# %% tags=["hide-input"]
def work(memories, batch, widths, units):
    """Floating-point operations of one step of Algorithm 1, by XLA's count; nothing is computed."""
    net = eqx.filter_eval_shape(
        lambda: wm.models.LayerNormCNN(widths=tuple(widths), units=units, key=jax.random.key(0))
    )
    images = [jax.ShapeDtypeStruct((count, 1, 28, 28), float) for count in (batch, max(memories, 1))]

    def loss(net, labels, seen, recalled, stored):
        value = optax.softmax_cross_entropy_with_integer_labels(jax.vmap(net)(seen), labels).mean()
        if memories:
            value += jax.vmap(wm.distances.bhattacharyya)(jax.vmap(net)(recalled), stored).mean()
        return value

    arrays, rest = eqx.partition(net, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    labels, stored = jax.ShapeDtypeStruct((batch,), int), jax.ShapeDtypeStruct((max(memories, 1), 2 * OLD), float)
    slope = jax.jit(jax.grad(lambda arrays, *given: loss(eqx.combine(arrays, rest), *given)))
    return slope.lower(arrays, labels, *images, stored).cost_analysis()["flops"]


# %%
settings = (paper["batch"], paper["widths"], paper["units"])
step_of = {"fine-tuning": work(0, *settings), "FIP": work(paper["memories"], *settings)}
runs = paper["seeds"] * (len(SEARCHED) + len(ARMS)) + sum(len(row) + 3 for row in SEARCHED.values())
total = runs * paper["steps"] * step_of["FIP"]
Markdown(
    f"A step of fine-tuning is {step_of['fine-tuning'] / 1e9:.1f} GFLOP, and one of FIP with {paper['memories']} memories "
    f"{step_of['FIP'] / 1e9:.1f}. {runs} runs of {paper['steps']:,} such steps, the tuning and all seeds, are "
    f"{total / 1e15:.1f} PFLOP: {total / 1e13 / 60:.0f} minutes on a device that sustains 10 TFLOP/s on this program."
)

# %% [markdown]
# ## What differs from the paper, and limits
#
# - **The network** is smaller than the authors', has layer in place of batch normalisation and strided convolutions in place of
#   pooling; the numbers measured with the authors' code are those of their network, and stand beside ours for orientation.
# - **The images.** Of 60,000 we train on 55,000, since settings have to be chosen on images that are neither trained nor tested
#   on. *Three epochs of 60,000* is the number of steps, 1,800 of 100 images.
# - **λ.** The text of the paper gives λ = 1 for two tasks; the authors' code sums the distances over its memories. Our reading
#   of the two together is λ = 50 on the mean over 50 memories.
# - **Tuning.** Eight settings for each method on one seed and the best three on a second, one epoch, 50 memories. The same settings then
#   serve three epochs and other numbers of memories. Where the best lies at the edge of what was searched (the table above shows all), a
#   wider search might raise that method further, the rivals as well as FIP.
# - **Exact directions** were tuned over β and the step's length alone; the dimension of the basis, the momentum, the schedule
#   and the choice of the metric were fixed before anything was measured.
# - **What was changed after a look.** EWC's first setting diverged on one seed in five, so that every method got a second seed for its
#   search. The first runs with 500 memories had the settings of fifty, with which FIP by the authors' distance lost three points; every method got a
#   search with 500. The settings, not the claims, were changed, for all methods alike and on validation images.
# - **Seeds.** Five, and three where the number of memories and λ vary. The first two are those of the search, which saw their validation images.
# - **Memories** are drawn at random, not by class or by how much they tell, and beyond fifty a step looks at fifty of them at a time.
#   With 500, exact directions, the anchor without images and two of the distances were left out.
# - **One pair of tasks, in one order.** A second task that contradicted the first would leave less room.
#
# ## Next
#
# - More tasks in sequence, and the transformers of the paper's Fig. 2, are later chapters of this part.
# - The best settings lie between keeping and learning at a point that validation images of *both* tasks chose. A method that
#   finds it without looking at the first task again, from the drift on its memories alone, is not in the paper, and wanted.
#
# ## Exercises
#
# ::::{admonition} Exercise 1
# Let $\epsilon$ shrink with β in Eq. 4 so that its multiplier μ stays the same, $(g + \mu I) v = -\tfrac\beta2 \nabla L$. What does the direction
# tend to when μ is small beside all eigenvalues of $g$ that are not zero, and which rival takes that step?
# :::{dropdown} Solution
# In the eigenbasis the components are $-\tfrac\beta2 \nabla L_i / (g_i + \mu)$. Where $g_i \gg \mu$ they vanish beside those where $g_i = 0$, which
# are $-\tfrac{\beta}{2\mu} \nabla L_i$. What is left is the gradient's projection on the null space of $g$, which for the squared distance is the
# orthogonal complement of the gradients of all outputs of all memories: orthogonal gradient descent, with a basis that is
# renewed at each step, and of every logit and not of the true one alone.
# :::
# ::::
#
# ::::{admonition} Exercise 2
# With which λ would EWC be the second-order expansion of FIP by the Bhattacharyya distance, were the metric diagonal?
# :::{dropdown} Solution
# The Hessian of the Bhattacharyya distance at zero is a quarter of the Fisher matrix, so that $\lambda_{\text{EWC}} = \lambda / 4$: the
# authors' λ = 50 would be 12.5. The paper's EWC has 5,000, and our search chose among the values in the table of settings: a diagonal leaves
# out so much that it takes another strength to hold a network by it.
# :::
# ::::
#
# ::::{admonition} Exercise 3
# How much of fine-tuning's loss of the digits is a preference for the other ten outputs, and how much is lost for good? Test the fine-tuned
# network of one seed on digits with its first ten outputs alone.
# :::{dropdown} Solution
# ```python
# setting = dict(method="fine-tuning", setting=chosen["fine-tuning"])
# path = follow({**common, **setting}, seed=0)
# x, y = tasks(common)[0][2]
# print(accuracy(path.weights[-1], x, y), (logits(path.weights[-1], x)[:, :OLD].argmax(axis=1) == y).mean())
# ```
# If the second number is far above the first, the features of the digits have outlived the answers.
# :::
# ::::
