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
# A network that reads digits is taught to tell shirts from shoes, and forgets the digits. *Functionally invariant paths*
# (FIP) {cite:p}`raghavan2024fip` are walks in weight space that learn the second task and keep what the network says of fifty
# digits.

# %% tags=["remove-input"]
import matplotlib.pyplot as plt

from wmlib.lab import figures, pages, verdicts
from wmlib.lab.runs import book_results, recorded_runs

given = (("continual_published", "arm", "on_first"), ("continual", "method", "mean"))
runs = [recorded_runs(name, "cpu", results=book_results()) for name, *_ in given]
pivots = [
    dict(index="seed", columns=columns, values=values) for _, columns, values in given
]
arms, ends = (
    100 * frame.pivot(**pivot) for frame, pivot in zip(runs, pivots, strict=True)
)
fip = ends["FIP, Bhattacharyya"]
forgets = arms["FIP, as published"] - arms["fine-tuning, as published"]
pages.findings(
    "The walk keeps the digits. None of EWC, GEM and four more rivals with the same memory and the same tuning is above it by"
    " a point. One of its distances makes it another method, Dark Experience Replay, and that is its best form here.",
    {
        "digits kept beyond fine-tuning, at the authors' settings": pages.interval(
            forgets, "points"
        ),
        "mean of both tasks beyond EWC, the best of those six": pages.interval(
            fip - ends["EWC"], "points"
        ),
        "the squared distance beyond the authors' own": pages.interval(
            ends["FIP, squared"] - fip, "points"
        ),
    },
    before="{doc}`metric` and {doc}`directions`.",
)

# %% tags=["remove-input"] mystnb={"figure": {"caption": "With 50 memories FIP meets the older methods, as the paper says; much of what we expected beyond it five seeds cannot decide. Each bar is the 95 % interval of one comparison, in units of the least difference that matters; what the claim expects lies to the right. Right of 1 a claim of *higher* is shown, right of −1 one of *not lower*, and between the two one of *the same* (squares).", "name": "fig-continual-verdicts"}, "image": {"alt": "Eleven claims with the intervals of their comparisons. Claims 2, 4 and 5 are shown, in 1, 2 and 24 comparisons; 8 and 11 are shown in part, 2 of 3 and 5 of 6; claim 1 is mixed, one half shown and the other contradicted; claims 3, 6, 7, 9 and 10 are undecided."}}
figures.use_style()
judged = verdicts.judge_chapter("paths/continual", "cpu", results=book_results())
verdicts.plot_verdicts(judged)
plt.show()

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The imports of this chapter, 19 lines", "code_prompt_hide": "Hide the imports"}
import dataclasses
import operator
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import scipy.optimize
from IPython.display import Markdown
from jax.flatten_util import ravel_pytree

import wmlib as wm
from wmlib import paths

# %% [markdown]
# ## The idea
#
# The weights of a network are a point in a space. Many points say the same of a given image. The network of
# {numref}`fig-continual-idea` has two weights, $w = (w_1, w_2)$: it answers $w_1 w_2$ to the old image and $w_1$ to the new one. All
# points of the grey curve give the old answer, 1. All points of the dotted line give the right new one, 2.5.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Three walks with two weights, 20 lines", "code_prompt_hide": "Hide the three walks", "figure": {"caption": "FIP slides along the curve on which the old answer stays; fine-tuning leaves it, and an anchor to the start stops between. Three walks of gradient descent with two weights, from the star.", "name": "fig-continual-idea"}, "image": {"alt": "A plane of two weights with a falling grey curve, w1 times w2 equal to 1, and a dotted vertical line, w1 equal to 2.5. From the point (1, 1) fine-tuning goes straight right to (2.5, 1), off the curve. The anchor stops on the same way at w1 equal to 1.75. FIP bends down along the curve and ends at (2.5, 0.4), where curve and line meet."}}
PULLS = {
    "fine-tuning": lambda w: 0.0,
    "L2": lambda w: 0.5 * ((w - 1) ** 2).sum(),
    "FIP": lambda w: 5 * (w[0] * w[1] - 1) ** 2,
}
fig, ax = plt.subplots(figsize=(4.2, 2.8))
w1 = np.linspace(0.85, 2.75, 99)
ax.plot(w1, 1 / w1, color=figures.PALETTE[6], lw=6, alpha=0.3)
ax.axvline(2.5, color=figures.PALETTE[6], ls=":")
for name, pull in PULLS.items():
    slope = jax.jit(jax.grad(lambda w, pull=pull: 0.5 * (w[0] - 2.5) ** 2 + pull(w)))
    walked = [jnp.ones(2)]
    for _ in range(900):
        walked.append(walked[-1] - 0.01 * slope(walked[-1]))
    colour, (x, y) = figures.PATH_COLOURS[name], walked[-1]
    ax.plot(*np.array(walked).T, color=colour, lw=4 if name == "L2" else 2)
    ax.annotate(name, (x - 0.04, y + 0.04), ha="right", color=colour)
ax.plot(1, 1, "*", ms=13, color="black", zorder=4)
ax.set(xlabel="weight $w_1$", ylabel="weight $w_2$")
plt.show()

# %% [markdown]
# Three walks begin at the star.
#
# - **Fine-tuning** heads straight for the line. The old answer is lost on the way.
# - **An anchor to the starting weights** (L2) is pulled back from everywhere alike. It stops half way, with both answers wrong.
# - **FIP** is pulled back to the curve alone. It slides along the curve and ends where both answers are right.
#
# The weights change and the function does not: hence the name. The network of this chapter has more than a hundred thousand weights
# and fifty remembered images. The pull is measured on its outputs.
#
# The paper reports three things of such paths. They learn tasks in sequence without losing the earlier ones. On convolutional
# networks they meet or exceed older methods, among them EWC and GEM. And they travel far in weight space (its Fig. 2d). This chapter
# repeats the two-task setting of its public notebook, MNIST then Fashion-MNIST, and gives every rival the same memory, the same number of steps and the same
# search for its settings. Two older methods turn out to be FIP under other names.
#
# ## Two tasks, one head
#
# The digits have the labels 0 to 9, the clothes {cite:p}`xiao2017fashion` the labels 10 to 19. One head has all twenty outputs, and
# nothing tells the network which task an image is from. This is the harder form of the problem: a task can be lost by a
# mere preference for the other ten outputs.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The data of the two tasks, 16 lines", "code_prompt_hide": "Hide the data"}
OLD = 10  # classes of the first task; the second has the outputs 10 to 19


@cache
def data(first, second, images, validation, test):
    tasks = [wm.load_splits(name, images, validation, test) for name in (first, second)]
    parts = [t[:3] for t in tasks]
    parts[1] = [(x, y + OLD) for x, y in parts[1]]
    return *parts, " ".join(t.fingerprint for t in tasks)


def tasks(config):
    """The two tasks as training, validation and test images with labels."""
    return data(
        *[config[k] for k in ("first", "second", "images", "validation", "test")],
    )


# %% [markdown]
# All results of this page were recorded at the preset `cpu`.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The settings of the three presets, 17 lines", "code_prompt_hide": "Hide the settings"}
paper = dict(
    seeds=5, first="mnist", second="fashion_mnist", images=55_000, validation=5_000,
    test=10_000, watched=10_000, base_rate=0.03, base_epochs=2, batch=100,
    steps=1_800, long=1_800, widths=[32, 64, 128], units=512, memories=500,
    recall=500, sizes=[10, 50, 1_000], strengths=[0.01, 0.1, 1, 10],
    lengths=[100, 500], repeats=9, exact=[450, 400],
)  # fmt: skip
quick = dict(
    seeds=1, first="mnist5k", second="mnist5k", images=300, validation=100, test=100,
    watched=100, base_rate=0.03, base_epochs=1, batch=20, steps=6, long=8, widths=[4],
    units=8, memories=10, recall=5, sizes=[5], strengths=[0.1], lengths=[2, 4],
    repeats=1, exact=[2, 40],
)  # fmt: skip
reduced = dict(test=10_000, watched=2_000, steps=550, widths=[16, 32], units=100)
reduced |= dict(memories=50, recall=50, sizes=[10, 500, 1_000], lengths=[20, 60])
cpu = paper | reduced | dict(repeats=5, exact=[150, 400])
scale = wm.preset(quick=quick, cpu=cpu, paper=paper)

# %% [markdown]
# The network has two convolutions and a hidden layer. It has *layer* normalisation where the authors' code has batch
# normalisation, whose running statistics would move the function while the weights stand still; `wm.walk` refuses it.
# Everything is trained by SGD with momentum 0.9.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "What a network says, and how often it is right, 20 lines", "code_prompt_hide": "Hide these functions"}
@eqx.filter_jit
def outputs(net, x):
    return jax.vmap(net)(x)


def logits(net, x, batch=500):
    """Logits of many images."""
    return jnp.concatenate(
        [outputs(net, x[i : i + batch]) for i in range(0, len(x), batch)],
    )


def accuracy(net, x, y):
    """Share of images whose largest of all twenty outputs is the right one."""
    return float((logits(net, x).argmax(axis=1) == y).mean())


@cache  # one object for one rate, so that a step is compiled once
def sgd(rate):
    return optax.sgd(rate, momentum=0.9)


# %% [markdown]
# The base network of a seed is trained once, on the digits alone, with all twenty outputs in its softmax.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The first task is learned, 20 lines", "code_prompt_hide": "Hide how the first task is learned"}
@cache
def base(seed, rate, epochs, batch, widths, units, *names):
    """The network that has learned the first task."""
    of_net, of_order = jax.random.split(jax.random.key(seed))
    (x, y), *_ = data(*names)[0]
    net = wm.models.LayerNormCNN(widths=widths, units=units, key=of_net)
    first = wm.objectives.Task(operator.call, x, y, batch)
    method, steps = wm.PenalisedDescent(sgd(rate), 0.0), epochs * (len(x) // batch)
    return wm.walk(
        operator.call, net, first, x[:1], method=method, steps=steps, key=of_order,
    ).weights[-1]  # fmt: skip


def start(config, seed):
    """The base network of a configuration, trained once in a process."""
    names = [config[k] for k in ("first", "second", "images", "validation", "test")]
    training = [config[k] for k in ("base_rate", "base_epochs", "batch")]
    return base(
        seed, *training, tuple(config["widths"]), config["units"], *names,
    )  # fmt: skip


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
# The output distance $d$ is the Bhattacharyya distance of softmax outputs in the authors' code. That code takes the *sum* over its
# memories: the paper's λ = 1 with 50 memories is λ = 50 here. Line 11 of the printed algorithm compares outputs for other inputs on either
# side; the equation says what is meant (see the {doc}`errata </book/errata>`).
#
# The naive version follows the letter: at every step it asks the old network again.


# %%
def naive(net, task, memory, distance, penalty, rate, steps, key):
    """Algorithm 1, word by word; the old network is asked at every step."""
    old, optimise = net, sgd(rate)
    state = optimise.init(eqx.filter(net, eqx.is_inexact_array))

    def loss(net, rows):
        moved = [distance(net(x), old(x)) for x in memory]
        return task.value(net, rows) + penalty * sum(moved) / len(memory)

    slope = eqx.filter_jit(eqx.filter_grad(loss))
    draws = task.draws(jax.random.split(key)[0])
    for _ in range(steps):
        net, state = stepped(optimise, slope(net, next(draws)), net, state)
    return net


# %% tags=["hide-input"] mystnb={"code_prompt_show": "A step of an optimiser, and all weights as one vector, 10 lines", "code_prompt_hide": "Hide the step"}
@eqx.filter_jit
def stepped(optimise, gradient, net, state):
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
memory, (x, y) = digits.validation[0], digits.train
new = wm.objectives.Task(operator.call, x, y + OLD, batch=10)
key, distance = jax.random.key(1), wm.distances.bhattacharyya
how = dict(method=wm.PenalisedDescent(sgd(0.1), 5.0), steps=5, key=key)

walked = flat(wm.walk(operator.call, small, new, memory, distance, **how).weights[-1])
by_word = flat(naive(small, new, memory, distance, 5.0, 0.1, 5, key))
gap, farthest = abs(walked - by_word).max(), abs(walked - flat(small)).max()
print(f"largest difference {gap:.0e}, largest movement {farthest:.0e}")
assert gap < 1e-5 < 1e-2 < farthest

# %% [markdown]
# ## The same algorithm under other names
#
# Three older methods are this equation, or what is left of it.
#
# **Dark Experience Replay** {cite:p}`buzzega2020der` stores the logits $z_i$ that the network gave each remembered input, and adds
# $\alpha \cdot \frac1N \sum_i |f(w, x_i) - z_i|^2$ to the loss. Take the squared distance $d = \tfrac12 |y - y_0|^2$, the logits of the
# network that ended the first task, and $\alpha = \lambda/2$: it is {eq}`eq-continual-algorithm` to the letter. The paper does not
# compare with it.
#
# **Learning without Forgetting** (LwF) {cite:p}`li2016lwf` takes the new task's own images for memory. Its $d$ is the Kullback–Leibler
# divergence (KL) of the softmax over the old ten outputs. That is temperature 1; its authors divide the logits by 2.
#
# **Elastic weight consolidation** (EWC) {cite:p}`kirkpatrick2017ewc` follows in two steps. Expand the mean divergence to second order:
# it is $\tfrac12 \delta^{\mathsf T} g\, \delta$ for a movement $\delta = w - w_0$, with the metric $g$ of {doc}`metric`. Freeze $g$ at
# $w_0$ and keep its diagonal alone. The exact directions of {doc}`directions` keep all of $g$, at each point anew.
#
# **Check.** Dark Experience Replay, from a loop that knows nothing of distances, against `wm.walk` with the squared distance, at
# every step.

# %%
stored = outputs(small, memory)


def dark(net, rows):
    """The new task's loss, and that of Dark Experience Replay with α = 1/2."""
    kept = wm.rivals.der_loss(operator.call, net, memory, stored, alpha=0.5)
    return new.value(net, rows) + kept


draws = new.draws(jax.random.split(key)[0])
slope, gaps = eqx.filter_jit(eqx.filter_grad(dark)), []
net, state = small, sgd(0.1).init(eqx.filter(small, eqx.is_inexact_array))
how = dict(method=wm.PenalisedDescent(sgd(0.1), 1.0), steps=5, key=key, record=1)
path = wm.walk(operator.call, small, new, memory, wm.distances.squared_error, **how)
for there in path.weights[1:]:
    net, state = stepped(sgd(0.1), slope(net, next(draws)), net, state)
    gaps.append(np.abs(flat(net) - flat(there)).max())
print(f"largest difference in five steps {max(gaps):.0e}")
assert max(gaps) < 1e-5

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ LwF by its gradient, EWC by every twentieth entry of the metric's diagonal, 20 lines", "code_prompt_hide": "Hide the check"}
there, reference = path.weights[-1], outputs(small, x)[:, :OLD]
apart = lambda net, x, y0: wm.distances.kl(net(x)[:OLD], y0)  # noqa: E731
both = (
    lambda net: jax.vmap(apart, (None, 0, 0))(net, x, reference).mean(),
    lambda net: wm.rivals.lwf_loss(operator.call, net, small, x, OLD, temperature=1.0),
)
ours, theirs = (flat(eqx.filter_jit(eqx.filter_grad(f))(there)) for f in both)
error = np.abs(ours - theirs).max()
print(f"gradient of LwF: {error:.0e}")
assert error < 1e-5 < np.abs(ours).max()

fisher = flat(wm.rivals.fisher_diagonal(operator.call, small, memory))
metric = wm.FunctionMetric(operator.call, small, memory, wm.distances.kl)
zero = jax.tree.map(jnp.zeros_like, eqx.filter(small, eqx.is_inexact_array))
zero, unravel = ravel_pytree(zero)
picked = np.argsort(fisher)[::-20]
columns = ((i, flat(metric.mv(unravel(zero.at[i].set(1.0))))) for i in picked)
error = max(abs(fisher[i] - column[i]) for i, column in columns)
print(f"diagonal of EWC, {len(picked)} entries: {error:.0e}")
assert error < 1e-5 < 1e-3 < fisher[picked[0]]

# %% [markdown]
# ## The rivals
#
# All methods share the seed's base network, its memory and its minibatches. {numref}`tab-continual-rivals` says in what they differ.
#
# ```{table} Fifteen methods, one mechanism each. Fine-tuning and joint training are no rivals: they are the floor and the ceiling.
# :name: tab-continual-rivals
#
# | method | keeps of the first task | beside the new task's loss, or in its gradient |
# | --- | --- | --- |
# | fine-tuning | nothing | nothing |
# | joint training | all images and labels | the loss on fifty of them in each step |
# | FIP: squared, KL, Hellinger, Bhattacharyya | 50 images, their old outputs | that distance of the outputs |
# | FIP, exact | 50 images, their old outputs | the direction of Eq. 4 with the metric of KL |
# | replay {cite:p}`chaudhry2019tiny` | 50 images, their labels | the loss on them |
# | DER++ {cite:p}`buzzega2020der` | 50 images, old outputs, labels | both, with α : β fixed at 1 : 4 |
# | LwF | the old network | the old ten outputs on new images |
# | EWC | the diagonal of $g$ on 50 images | the square of the movement, weighted by it |
# | L2 | the old weights | the square of the movement |
# | GEM {cite:p}`lopezpaz2017gem` | 50 images, their labels | the nearest gradient along which their loss does not rise |
# | A-GEM {cite:p}`chaudhry2019agem` | the same | the same, with 10 of the 50 drawn anew in each step |
# | OGD {cite:p}`farajtabar2020ogd` | the logits' gradients of 50 images | the gradient without their span |
# ```
#
# Three things are ours and not those of the methods' papers. GEM, A-GEM and OGD change the gradient before SGD's momentum, so that a
# step itself may point where the changed gradient does not. A-GEM with all fifty images would be GEM with margin 0, which is
# searched under GEM. And DER++ has one strength: its α : β is not searched.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "What a method may keep of the first task, 21 lines", "code_prompt_hide": "Hide what is kept"}
class Kept(NamedTuple):
    start: Any
    inputs: Any
    labels: Any
    outputs: Any
    fisher: Any = None
    basis: Any = None


def keep(method, net, x, y, key, memories):
    """Random training images of the first task, nested for one key; for joint, all."""
    chosen = jax.random.permutation(key, len(x))[
        : len(x) if method == "joint" else memories
    ]  # fmt: skip
    x, y = x[chosen], y[chosen]
    kept = Kept(net, x, y, logits(net, x) if method == "DER++" else None)
    if method == "EWC":
        kept = kept._replace(fisher=wm.rivals.fisher_diagonal(operator.call, net, x))
    if method == "OGD":
        kept = kept._replace(basis=wm.rivals.ogd_basis(operator.call, net, x, y))
    return kept


# %% [markdown]
# A penalty is a function of the network, the new images, what is kept, and the memories that this step recalls.


# %%
def replay(net, x, kept, rows):
    return wm.rivals.replay_loss(
        operator.call, net, kept.inputs[rows], kept.labels[rows]
    )  # fmt: skip


def derpp(net, x, kept, rows):
    memories = [part[rows] for part in (kept.inputs, kept.outputs, kept.labels)]
    return wm.rivals.der_loss(operator.call, net, *memories, alpha=0.25)


def lwf(net, x, kept, rows):
    return wm.rivals.lwf_loss(operator.call, net, kept.start, x, OLD)


def ewc(net, x, kept, rows):
    return wm.rivals.ewc_penalty(net, kept.start, kept.fisher)


def l2(net, x, kept, rows):
    return wm.rivals.l2_penalty(net, kept.start)


PENALTIES = {"replay": replay, "joint": replay, "DER++": derpp}
PENALTIES |= {"LwF": lwf, "EWC": ewc, "L2": l2}


# %% tags=["hide-input"] mystnb={"code_prompt_show": "A task with a penalty beside it, 18 lines", "code_prompt_hide": "Hide the objective"}
class Beside(wm.objectives.AbstractObjective):
    task: wm.objectives.Task
    penalty: Callable = eqx.field(static=True)
    kept: Kept
    strength: Any
    recall: int = eqx.field(static=True)

    def draws(self, key):
        """Images of the task, and which memories to recall."""
        memories = wm.objectives.shuffled(
            jax.random.fold_in(key, 1), len(self.kept.labels), self.recall
        )  # fmt: skip
        return zip(self.task.draws(key), memories, strict=True)

    def value(self, weights, draw):
        rows, recalled = draw
        beside = self.penalty(weights, self.task.inputs[rows], self.kept, recalled)
        return self.task.value(weights, rows) + self.strength * beside


# %% [markdown]
# A rule changes the gradient. GEM asks for the nearest gradient along which the loss on the memories does not rise to first
# order: a quadratic program.


# %%
def gem(gradient, recalled, kept, margin):
    one = jax.tree.map(lambda x: x[None], recalled)
    return wm.rivals.gem_projection(gradient, one, margin)


def agem(gradient, recalled, kept, margin):
    return wm.rivals.agem_projection(gradient, recalled)


def ogd(gradient, recalled, kept, margin):
    return wm.rivals.ogd_projection(gradient, kept.basis)


RULES = {"GEM": gem, "A-GEM": agem, "OGD": ogd}


# %% tags=["hide-input"] mystnb={"code_prompt_show": "One step along a changed gradient, and the length of an exact one, 16 lines", "code_prompt_hide": "Hide the step"}
@eqx.filter_jit
def projected_step(fixed, task, kept, margin, net, state, draw, rows):
    optimiser, rule = fixed
    value, gradient = eqx.filter_value_and_grad(task.value)(net, draw)
    recalled = eqx.filter_grad(replay)(net, None, kept, rows)
    updates, state = optimiser.update(rule(gradient, recalled, kept, margin), state)
    length = optax.global_norm(updates)
    return (
        eqx.apply_updates(net, updates), state,
        {"objective": value, "kept": jnp.nan, "length": length},
    )  # fmt: skip


def decaying(epsilon, steps):
    """The square of a step's length, falling to nothing as a cosine."""
    return lambda taken: epsilon * np.cos(np.pi / 2 * taken / steps) ** 2 + 1e-12


# %% [markdown]
# **Check.** The quadratic program of GEM, with three constraints and a margin, against non-negative least squares of `scipy`.
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
# FIP is five of the methods: one for each output distance, and exact directions. These solve Eq. 4 of the paper at every step
# ({doc}`directions`), in a Krylov basis of twenty products. Their steps cost more and are longer. They take fewer of them, with
# larger batches, and see about as many images of the second task as the rest.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "Descent of a task along changed gradients, 18 lines", "code_prompt_hide": "Hide the descent"}
class Projected(paths.AbstractMethod):
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
        state, memories = state
        fixed, task = (self.optimiser, self.rule), problem.objective
        given = (self.kept, self.margin, weights, state, draw, next(memories))
        weights, state, told = projected_step(fixed, task, *given)
        return weights, (state, memories), told


# %%
DISTANCES = {
    "FIP, squared": wm.distances.squared_error,
    "FIP, KL": wm.distances.kl,
    "FIP, Hellinger": wm.distances.hellinger,
    "FIP, Bhattacharyya": wm.distances.bhattacharyya,
}


def mechanism(method, setting, task, kept, recall):
    rate, strength = setting
    number, few = np.float32(strength), min(recall, len(kept.labels))
    if method in DISTANCES:
        part = None if few == len(kept.labels) else few
        return task, DISTANCES[method], wm.PenalisedDescent(sgd(rate), strength, part)
    if method in PENALTIES:
        task = Beside(task, PENALTIES[method], kept, number, few)
    if method in RULES:
        few = min(few, 10) if method == "A-GEM" else few
        return task, wm.distances.kl, Projected(
            sgd(rate), RULES[method], kept, number, few
        )  # fmt: skip
    return task, wm.distances.kl, wm.PenalisedDescent(sgd(rate), 0.0)


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The second task by any method, 20 lines", "code_prompt_hide": "Hide the walk"}
def follow(config, seed):
    (first, *_), (second, *_), _ = tasks(config)
    net, method, setting = start(config, seed), config["method"], config["setting"]
    of_memory, of_walk = jax.random.split(jax.random.key(1000 + seed))
    kept = keep(method, net, *first, of_memory, config["memories"])
    steps, batch = config["steps"], config["batch"]
    if method == "FIP, exact":
        steps, batch = config["exact"]
        how = wm.ExactDirections(setting[0], decaying(setting[1], steps), momentum=0.9)
        task, distance = (
            wm.objectives.Task(operator.call, *second, batch), wm.distances.kl
        )  # fmt: skip
    else:
        task = wm.objectives.Task(operator.call, *second, batch)
        task, distance, how = mechanism(method, setting, task, kept, config["recall"])
    at = sorted({round(steps * part) for part in RECORDED})
    how = dict(method=how, steps=steps, key=of_walk, record=at)
    return wm.walk(
        operator.call, net, task, kept.inputs[: config["memories"]], distance, **how
    )  # fmt: skip


# %% [markdown]
# At twelve points of a path both tasks are tested on the first images of their test splits, and at its end on all of them. The
# *drift* is the mean KL of the outputs on test digits, which no method has seen.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "What is measured along a path, 24 lines", "code_prompt_hide": "Hide what is measured"}
RECORDED = [0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.55, 0.7, 0.85, 1]


def drift(before, after):
    return float(jax.vmap(wm.distances.kl)(after, before).mean())


def travelled(path, first, second, watched):
    """Accuracy on both tasks and drift at the recorded points of a path."""
    (x, y), before = first, logits(path.weights[0], first[0][:watched])
    curves = {
        "step": path.steps, "length": path.lengths.round(4),
        "first": [], "second": [], "drift": [],
    }  # fmt: skip
    for net in path.weights:
        after = logits(net, x[:watched])
        curves["first"].append(
            round(float((after.argmax(axis=1) == y[:watched]).mean()), 4)
        )  # fmt: skip
        curves["second"].append(
            round(accuracy(net, second[0][:watched], second[1][:watched]), 4)
        )  # fmt: skip
        curves["drift"].append(round(drift(before, after), 5))
    return curves


# %% [markdown]
# A walk that diverges counts as 0 on both tasks.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "One run, 23 lines", "code_prompt_hide": "Hide the run"}
DIVERGED = {"on_first": 0.0, "on_second": 0.0, "mean": 0.0, "diverged": 1}


def seed_of(key):
    return int(jax.random.key_data(key)[-1])


def score(net, first, second):
    both = {"on_first": accuracy(net, *first), "on_second": accuracy(net, *second)}
    return both | {"mean": (both["on_first"] + both["on_second"]) / 2}


def evaluate(config, key):
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


# %% [markdown]
# ## Tuning
#
# Each method gets eight settings: a learning rate and, where there is one, the strength of the mechanism. All learn for one epoch from
# 50 memories. The settings tried, the values they reached, and how the search grew are in the [appendix](#appendix-the-search).

# %% tags=["hide-input"] mystnb={"code_prompt_show": "What is searched, as rate:strength, 20 lines", "code_prompt_hide": "Hide what is searched"}
SEARCHED = """
fine-tuning         .001:0 .003:0 .01:0 .03:0 .0003:0 .0001:0 .0005:0 .002:0
joint               .003:1 .01:1 .03:1 .1:1 .02:1 .05:1 .03:.3 .03:3
FIP, squared        .01:.1 .01:1 .03:.1 .03:1 .003:.1 .003:1 .003:.3 .01:.3
FIP, KL             .01:1 .01:10 .03:1 .03:10 .003:10 .003:30 .003:100 .001:30
FIP, Hellinger      .01:10 .01:100 .03:10 .03:100 .003:30 .003:100 .003:10 .001:100
FIP, Bhattacharyya  .01:10 .01:100 .03:10 .03:100 .003:30 .003:100 .003:10 .001:100
FIP, exact          1:.0025 .2:.0025 1:.01 .2:.01 .05:.01 .02:.01 .05:.04 .02:.04
replay              .01:1 .01:10 .03:1 .03:10 .003:10 .003:30 .003:3 .001:30
DER++               .01:.3 .01:3 .03:.3 .03:3 .003:.3 .003:1 .003:3 .01:1
LwF                 .01:1 .01:10 .03:1 .03:10 .003:1 .001:1 .003:3 .001:3
EWC                 .01:100 .01:1e3 .01:1e4 .03:1e3 .003:1e3 .003:3e3 .003:300 .001:3e3
L2                  .01:.01 .01:.1 .01:1 .03:.1 .003:.1 .003:.3 .001:.1 .01:.03
GEM                 .003:.5 .01:0 .01:.5 .03:.5 .001:.5 .003:1 .002:.5 .003:0
A-GEM               .003:0 .01:0 .03:0 .1:0 .001:0 .0003:0 .0005:0 .002:0
OGD                 .001:0 .003:0 .01:0 .03:0 .0003:0 .0005:0 .002:0 .0001:0
"""
SEARCHED = dict(line.split("  ", 1) for line in SEARCHED.strip().splitlines())
pair = lambda setting: [float(x) for x in setting.split(":")]  # noqa: E731
SEARCHED = {m: [*map(pair, row.split())] for m, row in SEARCHED.items()}

# %% [markdown]
# They are judged by the mean accuracy on *validation* images of the two tasks. All eight run on one seed and the best three on a second;
# the best mean of both is chosen.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "A run of the search, and which is the best, 21 lines", "code_prompt_hide": "Hide the run"}
METHODS = list(SEARCHED)
if scale.name == "quick":
    METHODS = ["fine-tuning", "FIP, Bhattacharyya", "FIP, exact", "replay"]


def tune(config, key):
    first, second, fingerprint = tasks(config)
    try:
        path = follow(config, seed_of(key))
    except FloatingPointError:
        return {"metrics": DIVERGED, "data": fingerprint}
    return {
        "metrics": score(path.weights[-1], first[1], second[1]), "data": fingerprint
    }  # fmt: skip


def best_of(frame):
    """The setting of each method with the best mean over the seeds it was tried on."""
    tried = frame.assign(key=frame.setting.map(str)).groupby(["method", "key"])
    tried = tried.agg({"setting": "first", "mean": "mean"})
    return tried.loc[tried.groupby("method")["mean"].idxmax()].reset_index("key")


# %%
one_seed = dataclasses.replace(scale, seeds=1)
two_seeds = dataclasses.replace(scale, seeds=min(scale.seeds, 2))
three_seeds = dataclasses.replace(scale, seeds=min(scale.seeds, 3))
others = ("sizes", "strengths", "long", "lengths", "repeats")
common = {k: v for k, v in scale.settings.items() if k not in others}
count = 1 if scale.name == "quick" else None
pairs = [(m, s) for m in METHODS for s in SEARCHED[m][:count]]
grid = [{**common, "method": m, "setting": s} for m, s in pairs]
search = wm.sweep("continual_tuning", tune, grid, one_seed)
finals = search.sort_values("mean", ascending=False).groupby("method").head(3)
pairs = zip(finals.method, finals.setting, strict=True)
grid = [{**common, "method": m, "setting": s} for m, s in pairs]
finals = wm.sweep("continual_tuning", tune, grid, two_seeds)
best = best_of(finals).sort_index()
chosen = {m: list(best.setting[m]) for m in METHODS}
assert len({len(SEARCHED[m]) for m in METHODS}) == 1  # one budget for all

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Colours, intervals and names for the figures, 20 lines", "code_prompt_hide": "Hide the colours"}
COLOURS = {m: figures.PATH_COLOURS.get(m, figures.PALETTE[6]) for m in METHODS}
COLOURS["FIP, Bhattacharyya"] = figures.PATH_COLOURS["FIP"]
NAMES = {"on_first": "digits", "on_second": "clothes", "mean": "mean of both"}


def along(frame, what):
    """A recorded curve of every seed, stacked."""
    return np.stack([np.array(values, float) for values in frame[what]])


def in_points(values):
    """Mean and 95 % t-interval over seeds, in percentage points, in words."""
    words = pages.interval(100 * values, spec=".1f").partition(", n")[0]
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def named(ax, text, at, colour, **where):
    """A label in the colour of its curve, at a point, moved by some points."""
    where = {"xytext": (6, 0), "va": "center"} | where
    ax.annotate(text, at, textcoords="offset points", color=colour, **where)


# %% [markdown]
# ## As published
#
# First the settings of the authors' notebook, for as many steps as three epochs of 60,000 images; then FIP as our search chose it, and joint training.

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

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The figure, 13 lines", "code_prompt_hide": "Hide the code of the figure", "figure": {"caption": "With the authors' settings FIP keeps the digits where fine-tuning loses a fifth of them; tuned, it learns the clothes as well as joint training does. Test accuracy along the walk, from the base network on; all twenty outputs compete, and the axis begins at one half. Means over five seeds, bands are 95 % t-intervals.", "name": "fig-continual-published"}, "image": {"alt": "Two panels against the number of steps, to 1,800. On the digits fine-tuning falls to 77 %, FIP as published and tuned stay at 97 % and joint training at 98 %. On the clothes fine-tuning and FIP as published rise to 85 %, the tuned FIP and joint training to 89 %."}}
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.5), sharey=True)
for arm, (method, _) in ARMS.items():
    part = published[published.arm == arm]
    for ax, what in zip(axes, ("first", "second"), strict=True):
        figures.accuracy_curve(
            ax, np.array(part.step.iloc[0]), along(part, what),
            colour=COLOURS[method], label=arm, marker="",
        )  # fmt: skip
for ax, name in zip(axes, NAMES.values(), strict=False):
    ax.set(title=name, xlabel="step")
axes[0].set(ylabel="test accuracy", ylim=(0.5, 1) if scale.name == "cpu" else None)
axes[1].legend(fontsize=9, loc="lower right")
plt.show()

# %% tags=["remove-input"]
REFERENCE = recorded_runs("continual_authors", "cpu", results=book_results())
REFERENCE = {f"{arm}, as published": runs for arm, runs in REFERENCE.groupby("arm")}
enough = scale.seeds > 1  # for an interval
table = [
    {
        "walk": arm,
        **{f"{NAMES[m]}, %": in_points(part[m]) for m in NAMES if enough},
        **{
            f"{NAMES[m]}, authors' network, %": in_points(REFERENCE[arm][m])
            if arm in REFERENCE
            else "–"
            for m in NAMES
            if m != "mean"
        },
    }
    for arm in ARMS
    for part in [published[published.arm == arm]]
]
pages.table(
    pd.DataFrame(table),
    "FIP as in the authors' notebook keeps more of the digits here than with their network, and learns less of the clothes. Test accuracy with"
    f" 95 % t-intervals over five seeds; of the authors' network in PyTorch over three, {len(pd.concat(REFERENCE))} runs of {{doc}}`continual_fair`.",
    name="tab-continual-published",
    disable_numparse=True,
)

# %% [markdown]
# {numref}`fig-continual-published` and {numref}`tab-continual-published` show the walks. The algorithm does what the paper says: at its end
# FIP is right on twenty points more of the digits than fine-tuning, and on as many of the clothes.
#
# Beside them stands the network of the authors' public code, in PyTorch, with the same settings but its own first task, and with a fixed copy of the
# first network to stay close to, as the paper describes it ({ref}`erratum 23 <erratum-23>`); {doc}`continual_fair` has its code, its rows and what else differs. Ours
# keeps more of the digits, by 1.6 points with FIP and 13 without, and learns less of the clothes, by 1.6 and 2.0, where theirs is tested as
# their notebook does.
#
# The published learning rate is a careful one. The tuned FIP takes ten times larger steps. It reaches on the clothes what joint
# training reaches, and gives up less than two points of the digits for it. The distance that the search chose among the four is the squared one:
# this FIP is Dark Experience Replay.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the text above, checked", "code_prompt_hide": "Hide the check"}
def mean_of(frame, **where):
    """Mean metrics over the seeds of some runs."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame[["on_first", "on_second", "mean", "displacement"]].mean()


if scale.name == "cpu":
    slow, ours, better, ceiling = (mean_of(published, arm=arm) for arm in ARMS)
    assert 0.19 < ours.on_first - slow.on_first < 0.205
    assert abs(ours.on_second - slow.on_second) < 0.005
    theirs = [
        mean_of(REFERENCE[f"{arm}, as published"].assign(mean=0, displacement=0))
        for arm in ("fine-tuning", "FIP")
    ]
    less = [(100 * (a - b)).round(1) for a, b in zip((slow, ours), theirs, strict=True)]
    assert [round(d.on_first) for d in less] == [13, 2]
    assert less[1].on_first == 1.6
    assert [d.on_second for d in less] == [-2.0, -1.6]
    assert abs(better.on_second - ceiling.on_second) < 0.005
    assert 0 < ceiling.on_first - better.on_first < 0.02
    assert tuned == "FIP, squared"
    assert chosen[tuned][0] == 0.01

# %% [markdown]
# ## The same memory for all

# %%
grid = [{**common, "method": m, "setting": chosen[m]} for m in METHODS]
rows = wm.sweep("continual", evaluate, grid, scale)

# %% tags=["remove-input"]
Markdown(
    f"{len(rows)} runs, {rows.seed.nunique()} seeds for each method, preset `{scale.name}`: {common['steps']} steps of"
    f" {common['batch']} images, {common['memories']} memories. {rows.seconds.sum() / 60:.0f} minutes of one core in all."
    f" Rows from code that has changed since: {int(rows.stale.sum())}. The base networks are right on"
    f" {100 * rows.base.mean():.1f} % of the test digits."
)

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The figure, 15 lines", "code_prompt_hide": "Hide the code of the figure", "figure": {"caption": "With the same 50 memories only joint training, DER++ and FIP with the squared or the KL distance end above FIP with the authors' distance. Difference of each method's test accuracy to that of FIP by Bhattacharyya's distance, the line at 0. Dots are means over five seeds, bars are 95 % t-intervals of the paired differences; the grey band is a point either way.", "name": "fig-continual-rivals"}, "image": {"alt": "Three panels with one row for each of 14 methods: difference to FIP in accuracy on digits, on clothes, and in their mean. In the mean: joint +1.9, DER++ +1.7, FIP squared +1.6, FIP KL +0.5, FIP Hellinger and exact 0, EWC -0.3, GEM -0.9, replay -1.1, L2 -1.4, LwF -4.5, OGD -5.0, A-GEM -7.1 and fine-tuning -8.7 points."}}
by = {what: rows.pivot(index="seed", columns="method", values=what) for what in NAMES}
fip = "FIP, Bhattacharyya"
lead = {what: 100 * frame.sub(frame[fip], axis=0) for what, frame in by.items()}
order = lead["mean"].mean().drop(fip).sort_values().index
fig, axes = plt.subplots(1, 3, figsize=(7.2, 4.6), sharey=True)
for ax, (what, name) in zip(axes, NAMES.items(), strict=True):
    ax.axvspan(-1, 1, color=figures.PALETTE[6], alpha=0.15, lw=0)
    ax.axvline(0, color=figures.PATH_COLOURS["FIP"], lw=1.2)
    low, high = figures.t_interval(lead[what][order])
    for i, method in enumerate(order):
        ax.plot([low[i], high[i]], [i, i], color=COLOURS[method], lw=2.5, alpha=0.6)
        ax.plot(lead[what][method].mean(), i, "o", color=COLOURS[method])
    ax.set(title=name, xlabel="points beyond FIP")
axes[0].set_yticks(range(len(order)), order)
plt.show()

# %% tags=["remove-input"]
table = [
    {
        "method": m,
        **{f"{NAMES[w]}, %": in_points(part[w]) for w in NAMES if enough},
        "distance": f"{part.displacement.mean():.1f}",
        "seconds": f"{part.seconds.median():.0f}",
    }
    for m in rows.groupby("method")["mean"].mean().sort_values(ascending=False).index
    for part in [rows[rows.method == m]]
]
pages.table(
    pd.DataFrame(table),
    "From the best mean of both tasks to the worst. Test accuracy with 95 % t-intervals over the seeds; the distance from start"
    " to end in weight space, which is L2's, not the output's; seconds of a run on two cores, the median.",
    name="tab-continual-accuracy",
    disable_numparse=True,
)

# %% [markdown]
# {numref}`fig-continual-rivals` is the comparison that the paper lacks; {numref}`tab-continual-accuracy` has the accuracies themselves.
#
# **From below.** Fine-tuning, A-GEM, OGD and LwF hold little. A-GEM pays for its ten images a step: on the one seed of the
# search GEM with margin 0 and all fifty was four points above it, each at its best rate. L2, replay, GEM and EWC follow, within about a point of each other. EWC is the
# best of them here. Its grid goes in steps of three, and three times its strength was better on one seed and diverged on another; what lies
# between was not tried. How much of LwF's loss is a mere preference for the other ten outputs, the recorded rows cannot tell
# (Exercise 3 can).
#
# **The distances are not alike.** The squared one compares logits; its mean is a point or more above the three that compare
# probabilities, and within half a point of joint training, which keeps 55,000 digits where it keeps fifty. A probability hardly tells how sure a sure
# network was, and a logit does. That may be the reason; it is not tested here. Bhattacharyya's and Hellinger's distances have one Hessian, and
# end together.
#
# **DER++** looks at labels too and ends where Dark Experience Replay does: +0.1 points, with an interval inside the margin.
#
# **Exact directions** cost four times the seconds and end half a point below penalised descent by the same divergence. They learn the clothes a
# little better and lose more of the digits. Only the metric of KL was tried: the page says nothing of exact directions with the squared
# distance.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the text above, checked", "code_prompt_hide": "Hide the check"}
if scale.name == "cpu":
    of, first, second = (by[what].mean() for what in ("mean", "on_first", "on_second"))
    held = ["L2", "replay", "GEM", "EWC"]
    probabilities = ["FIP, KL", "FIP, Hellinger", "FIP, Bhattacharyya"]
    assert max(of[["fine-tuning", "A-GEM", "OGD", "LwF"]]) < min(of[held])
    assert max(of[held]) - min(of[held]) < 0.012
    assert of[held].idxmax() == "EWC"
    assert max(of[["EWC", "GEM", "A-GEM", "OGD", "LwF", "L2"]]) == of["EWC"]
    most = search.groupby(["method", search.setting.map(str)])["mean"].mean()
    assert most["GEM", "[0.003, 0.0]"] - most["A-GEM"].max() > 0.04
    three_times = finals[finals.setting.map(str) == "[0.003, 3000.0]"]
    three_times = three_times.set_index("seed")["mean"]
    assert three_times[0] > best["mean"]["EWC"] > three_times[1] == 0
    assert of["FIP, squared"] - max(of[probabilities]) > 0.01
    assert 0 < of["joint"] - of["FIP, squared"] < 0.005
    assert abs(of["FIP, Hellinger"] - of["FIP, Bhattacharyya"]) < 0.001
    assert 0.004 < of["FIP, KL"] - of["FIP, exact"] < 0.007
    taken = rows.groupby("method").seconds.median()
    assert 3.5 < taken["FIP, exact"] / taken["FIP, KL"] < 4.5
    assert first["FIP, exact"] < first["FIP, KL"]
    assert second["FIP, exact"] > second["FIP, KL"]

# %% [markdown]
# ## How much memory, and how strong
#
# Beyond fifty memories a step looks at fifty of them, drawn anew each time. That penalty is noisier and wants other settings: the three best of
# the search are tried once more with 500, and the best of them serves 500 and 1,000.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "More memories and other strengths, 18 lines", "code_prompt_hide": "Hide the sweeps"}
KEPT = [m for m in METHODS if m in ("FIP, Bhattacharyya", "FIP, squared", "replay")]
LEFT_OUT = ("fine-tuning", "joint", "FIP, exact", "L2", "FIP, KL", "FIP, Hellinger")
many = dict(chosen)
if 500 in scale.sizes:
    again = finals[(finals.seed == 0) & ~finals.method.isin(LEFT_OUT)]
    pairs = zip(again.method, again.setting, strict=True)
    grid = [{**common, "memories": 500, "method": m, "setting": s} for m, s in pairs]
    again = wm.sweep("continual_tuning", tune, grid, one_seed)
    many |= {m: list(s) for m, s in best_of(again).setting.items()}
sized = [(n, m) for n in scale.sizes for m in METHODS]
sized = [(n, m) for n, m in sized if m in KEPT or (n == 500 and m not in LEFT_OUT)]
of_size = [(n, m, (many if n >= 500 else chosen)[m]) for n, m in sized]
grid = [{**common, "memories": n, "method": m, "setting": s} for n, m, s in of_size]
memory = wm.sweep("continual_memory", evaluate, grid, three_seeds)
pairs = [(m, s) for m in KEPT for s in scale.strengths if m != "replay"]
other = {(m, s): [chosen[m][0], s * chosen[m][1]] for m, s in pairs}
grid = [{**common, "method": m, "setting": s} for (m, _), s in other.items()]
strength = wm.sweep("continual_strength", evaluate, grid, three_seeds)

# %% [markdown]
# From each method's choice λ is also multiplied by 0.01 to 10.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The figure, 14 lines", "code_prompt_hide": "Hide the code of the figure", "figure": {"caption": "Ten memories are too few and fifty nearly enough; λ hardly matters until the walk diverges. Mean test accuracy on both tasks against the number of memories, left, and against λ at the tuned learning rate, right. Dots are the three seeds, lines their means.", "name": "fig-continual-memory"}, "image": {"alt": "Two panels on logarithmic axes. Left, from 10 to 1,000 memories: FIP by Bhattacharyya's distance rises from 86 to 91 %, FIP by the squared distance from 82 to 92 %, replay from 81 to 91 %. Right, against λ: the first is at 89 to 90 % for λ from 1 to 100, the second at 90 to 91 % for λ from 0.001 to 0.1; at ten times as much the means fall to 61 and 29 %."}}
both = pd.concat([memory, rows[rows.seed < three_seeds.seeds]])
strength["strength"] = [setting[1] for setting in strength.setting]
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.6))
fig.get_layout_engine().set(w_pad=0.14)
PANELS = zip(axes, (both, strength), ("memories", "strength"), strict=True)
for ax, frame, x in PANELS:
    for method in [m for m in KEPT if m in set(frame.method)]:
        part, colour = frame[frame.method == method], COLOURS[method]
        ax.plot(part[x], part["mean"], "o", ms=3.5, color=colour, alpha=0.6)
        ax.plot(part.groupby(x)["mean"].mean(), color=colour, label=method)
axes[0].set(xscale="log", xlabel="memories", ylabel="mean accuracy on both tasks")
axes[0].legend(fontsize=9, loc="lower right")
axes[1].set(xscale="log", xlabel="λ")
plt.show()

# %% [markdown]
# {numref}`fig-continual-memory`, left: from ten memories to fifty the mean rises by four to nine points, and to 500, the paper's number, by
# another point or less for FIP. Replay gains most. With 500 memories replay, GEM and EWC are within half a point of FIP by the
# authors' distance ({numref}`tab-continual-many`, in the appendix).
#
# Right: over two decades λ moves the mean by less than 1.5 points. One step further the walk of a seed or two diverges. The paper's λ = 1, a sum over fifty memories and so 50 on
# this axis, is on the plateau, close to its end.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the text above, checked", "code_prompt_hide": "Hide the check"}
if scale.name == "cpu":
    of_size = both.groupby(["memories", "method"])["mean"].mean().unstack()
    gain = of_size.diff()[KEPT]
    assert gain.loc[50].between(0.04, 0.095).all()
    assert gain.loc[500].drop("replay").between(0.002, 0.012).all()
    assert gain.loc[1_000].abs().max() < 0.002
    assert gain.loc[500].idxmax() == "replay"
    at_500 = of_size.loc[500].dropna()
    assert at_500["FIP, Bhattacharyya"] - at_500[["EWC", "replay", "GEM"]].min() < 0.005
    validated = again[again.method == "FIP, Bhattacharyya"]["mean"]
    assert validated.max() - validated.min() > 0.025
    of_strength = strength.groupby(["method", "strength"])["mean"]
    level = of_strength.mean().groupby("method").nlargest(3).groupby(level=0)
    assert (level.agg(np.ptp) < 0.015).all()
    diverged = strength[strength["mean"] < 0.1].groupby("method")
    assert sorted(diverged.size()) == [1, 2]
    assert (diverged.strength.nunique() == 1).all()

# %% [markdown]
# ## In weight space
#
# Six walks of one seed are projected on the plane that holds most of their variance.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "Paths in one plane, 19 lines", "code_prompt_hide": "Hide the paths"}
def plane(config, key):
    found = {}
    for method, setting in config["methods"]:
        path = follow({**config, "method": method, "setting": setting}, seed_of(key))
        found[method] = path.movements().astype(np.float32)
    centre, axes, share = figures.principal_plane(np.concatenate([*found.values()]))
    curves = {m: ((moves - centre) @ axes.T).round(4) for m, moves in found.items()}
    ends = np.stack([moves[-1] for moves in found.values()])
    apart = np.linalg.norm(ends[:, None] - ends[None], axis=2)
    return {
        "metrics": {"share": share}, "curves": curves | {"apart": apart.round(4)},
        "data": tasks(config)[2],
    }  # fmt: skip


DRAWN = ("fine-tuning", "FIP, Bhattacharyya", "FIP, exact", "replay", "L2", "joint")
DRAWN = [m for m in METHODS if m in DRAWN]
grid = [{**common, "methods": [[m, chosen[m]] for m in DRAWN]}]
planes = wm.sweep("continual_plane", plane, grid, three_seeds)

# %% [markdown]
# In {numref}`fig-continual-plane` the ends of FIP and replay are about a third as far from each other as from the start. The exact walk
# takes another way. Joint training goes nearly three times as far, with its high rate and all the digits. The anchored walk of L2 goes out
# and is pulled back.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The figure, 12 lines", "code_prompt_hide": "Hide the code of the figure", "figure": {"caption": "FIP and replay walk side by side, though one remembers outputs and the other labels. Paths of one seed in the plane of most variance of them all; the star is the network that knows the digits. Coordinates are Euclidean distances between weights.", "name": "fig-continual-plane"}, "image": {"alt": "Six curves from one point of a plane in weight space. FIP and replay lie almost on each other; exact directions turn off; joint training goes about three times as far as FIP; fine-tuning stays near the start, and L2 goes out and comes half way back."}}
fig, ax = plt.subplots(figsize=(7.0, 2.9))
run = planes.iloc[0]
figures.paths_in_plane(ax, {m: run[m] for m in DRAWN}, COLOURS)
left = {"FIP, Bhattacharyya": 0, "fine-tuning": -7, "L2": 8}
for method in DRAWN:
    beside = dict(xytext=(-12, left.get(method, 0)), ha="right")
    aside = beside if method in left else {}
    aside = dict(xytext=(0, -11), ha="right") if method == "joint" else aside
    named(ax, method, run[method][-1], COLOURS[method], **aside)
ax.lines[2 * DRAWN.index("replay")].set(lw=4, zorder=1)
ax.margins(0.08)
plt.show()

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The figure, 15 lines", "code_prompt_hide": "Hide the code of the figure", "figure": {"caption": "Of a path, invariance says more than the end does: L2 loses every digit on the way and has them back at its end, and FIP never loses them. Test accuracy against the share of the steps taken, with the tuned settings. Means over five seeds, bands are 95 % t-intervals.", "name": "fig-continual-along"}, "image": {"alt": "Two panels against the share of steps. On the digits L2 falls to 0 % within the first tenth of the walk and climbs back to 94 %, FIP stays at 95 % or more, fine-tuning declines to 88 %. On the clothes L2 rises fastest and ends at 82 %, FIP at 84 %, fine-tuning at 73 %."}}
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.5), sharey=True)
for method in [m for m in ("fine-tuning", "L2", "FIP, Bhattacharyya") if m in METHODS]:
    part = rows[rows.method == method]
    share = np.array(part.step.iloc[0]) / part.step.iloc[0][-1]
    for ax, what in zip(axes, ("first", "second"), strict=True):
        colour, curve = COLOURS[method], along(part, what)
        figures.accuracy_curve(ax, share, curve, colour=colour, marker="")
PLACES = {"fine-tuning": (0.5, 0.77), "L2": (0.23, 0.5)}
PLACES |= {"FIP, Bhattacharyya": (0.45, 1)}
for method in [m for m in PLACES if m in METHODS]:
    named(axes[0], method, PLACES[method], COLOURS[method])
for ax, name in zip(axes, NAMES.values(), strict=False):
    ax.set(title=name, xlabel="share of the steps")
axes[0].set(ylabel="test accuracy", ylim=(-0.03, 1.06))
plt.show()

# %% [markdown]
# In {numref}`fig-continual-along` L2 loses all digits on the way out, and they return with it. Who uses every network of a path, and not its last alone, needs more than an anchor.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the text above, checked", "code_prompt_hide": "Hide the check"}
apart = np.mean([np.array(a) for a in planes.apart], axis=0)
apart = pd.DataFrame(apart, DRAWN, DRAWN).rename_axis("mean distance")
if scale.name == "cpu":
    reached = rows.groupby("method").displacement.mean()
    assert 0.25 < apart.loc["FIP, Bhattacharyya", "replay"] / reached["replay"] < 0.4
    assert 2.6 < reached["joint"] / reached["FIP, Bhattacharyya"] < 3
    assert along(rows[rows.method == "L2"], "first").min() < 0.05
    assert along(rows[rows.method == "FIP, Bhattacharyya"], "first").min() > 0.8

# %% [markdown]
# ## Verdict
#
# {numref}`fig-continual-verdicts` draws the claims and {numref}`tab-continual-verdicts` lists them. All but the third were written before
# their rows. Only the eighth had its margin then too, and it alone is a test. What the words mean is said in {doc}`/book/verdicts`.
#
# **What the paper says.**
#
# - FIP as published reaches what the reference run reached: {claim}`1 mixed`. The digits are above it, the clothes below, both by
#   more than a point. That was one run with the authors' network, 93.7 % of the digits and 87.6 % of the clothes, which is not recorded; three
#   that are say 95.0 and 86.7.
# - Fine-tuning forgets and FIP does not: {claim}`2 reproduced`.
# - FIP explores, that is, it ends farther from its start than fine-tuning: {claim}`3 undecided`. Both end equally far, to within 2 %: there is no
#   difference that would matter. This claim was sharpened after its rows.
# - FIP meets or exceeds the older methods: {claim}`5 reproduced`, in all 24 comparisons. *Meets* is what the margin decides: each interval lies
#   above −1 point. By how much FIP exceeds is another matter; over EWC it is 0.3 points with the authors' distance, and the interval holds 0.
# - The same with 500 memories: {claim}`11 partly`. Five of six are shown. Against EWC three seeds are too few.
#
# **What we expected beyond it.**
#
# - Tuning lifts FIP above its published settings: {claim}`4 holds`.
# - The distance hardly matters: {claim}`8 partly`. KL and Hellinger's are within a point of Bhattacharyya's. The squared distance's
#   interval reaches from half a point to nearly three.
# - Stored outputs are worth more than labels, by a point: {claim}`6 undecided`. All four means are above one point, no interval is.
# - Labels beside the outputs still help: {claim}`7 undecided`. The interval lies within the margin.
# - Exact directions are above penalised descent: {claim}`9 undecided`. The mean is below.
# - Memory pays, a point at each step: {claim}`10 undecided`. The means rise; three seeds leave wide intervals.

# %% tags=["remove-input"]
every = {
    "continual_published": published,
    "continual": rows,
    "continual_memory": memory,
}
judged = verdicts.verdict_table("paths/continual", scale.name, rows=every)
pages.table(
    judged,
    "The claims of this chapter, judged by the rule of the book.",
    name="tab-continual-verdicts",
    look="verdicts",
    disable_numparse=True,
)

# %% tags=["hide-input"] mystnb={"code_prompt_show": "✓ the text above, checked", "code_prompt_hide": "Hide the check"}
if scale.name == "cpu":
    judgements = verdicts.judge_chapter("paths/continual", "cpu", rows=every)
    of = [judgement.comparisons for judgement in judgements]
    digits, clothes = of[0]
    assert digits.low > 1 > -1 > clothes.high
    assert max(abs(of[2][0].low), abs(of[2][0].high)) < 2
    assert len(of[4]) == 24
    assert min(o.low for o in of[4]) > -1
    over_ewc = {o.a["method"]: o for o in of[4] if o.b["method"] == "EWC"}
    ewc_lead = over_ewc["FIP, Bhattacharyya"]
    assert ewc_lead.low < 0 < 0.25 < ewc_lead.mean < 0.35
    assert [o.b["method"] for o in of[10] if o.state != "shown"] == ["EWC"]
    assert [o.a["method"] for o in of[7] if o.state != "shown"] == ["FIP, squared"]
    assert 0.4 < of[7][0].low < 0.6 < 2.5 < of[7][0].high < 3
    assert all(o.mean > 1 > o.low for o in of[5])
    assert -1 < of[6][0].low < of[6][0].high < 1
    assert round(of[6][0].mean, 1) == 0.1
    assert of[8][0].mean < 0 < min(o.mean for o in of[9])

# %% [markdown]
# ## What differs from the paper, and limits
#
# What limits every chapter, few seeds and small networks among it, is said in {doc}`/book/verdicts`. This chapter's own limits are these.
#
# - **The network** is smaller than the authors'. It has layer in place of batch normalisation, and strided convolutions in place of pooling.
# - **The public notebook** hands its penalty the network that is being trained as the one to stay close to. What it penalises are two draws of dropout of one
#   network, and not its distance from the first. We take a copy, as the text says.
# - **The images.** We train on 55,000 of the 60,000, since settings are chosen on images that are neither trained nor tested on. *Three
#   epochs of 60,000* is the number of steps, 1,800 of 100 images.
# - **One search, many uses.** Settings found with one epoch and 50 memories also serve three epochs and ten memories. The first two
#   seeds are those of the search, which saw their validation images.
# - **What was not searched.** DER++'s α : β; momentum, for any method; for exact directions the metric, the dimension of the basis and the schedule.
# - **Memories** are drawn at random, not by class. With 500, exact directions, L2 and two of the distances were left out.
# - **One head, tested with all twenty outputs.** Accuracy among the ten outputs of the right task is in {doc}`continual_fair`, and so is a wider search.
# - **One pair of tasks, in one order.** A second task that contradicted the first would leave less room.
#
# ## Exercises
#
# ::::{admonition} Exercise 1
# Let $\epsilon$ shrink with β in Eq. 4 so that its multiplier μ stays the same, $(g + \mu I) v = -\tfrac\beta2 \nabla L$. What does the direction
# tend to when μ is small beside all eigenvalues of $g$ that are not zero, and which rival takes that step?
# :::{dropdown} Solution
# In the eigenbasis the components are $-\tfrac\beta2 \nabla L_i / (g_i + \mu)$. Where $g_i \gg \mu$ they vanish beside those where $g_i = 0$, which
# are $-\tfrac{\beta}{2\mu} \nabla L_i$. What is left is the gradient's projection on the null space of $g$. For the squared distance that space is
# orthogonal to the gradients of all outputs of all memories. So the step is that of orthogonal gradient descent, with a basis that is
# renewed at each step and has every logit, not the true one alone.
# :::
# ::::
#
# ::::{admonition} Exercise 2
# With which λ would EWC be the second-order expansion of FIP by the Bhattacharyya distance, were the metric diagonal?
# :::{dropdown} Solution
# The Hessian of the Bhattacharyya distance at zero is a quarter of the Fisher matrix, so $\lambda_{\text{EWC}} = \lambda / 4$: the
# authors' λ = 50 would be 12.5. The paper's EWC has 5,000, and our search chose 1,000. A diagonal leaves out so much that it takes another
# strength to hold a network by it.
# :::
# ::::
#
# ::::{admonition} Exercise 3
# How much of fine-tuning's loss of the digits is a preference for the other ten outputs, and how much is lost for good? Test the fine-tuned
# network of one seed on digits with its first ten outputs alone; then that of LwF.
# :::{dropdown} Solution
# ```python
# for method in ("fine-tuning", "LwF"):
#     setting = dict(method=method, setting=chosen[method])
#     net = follow({**common, **setting}, seed=0).weights[-1]
#     x, y = tasks(common)[0][2]
#     among_ten = logits(net, x)[:, :OLD].argmax(axis=1)
#     print(method, accuracy(net, x, y), (among_ten == y).mean())
# ```
# If the second number is far above the first, the features of the digits have outlived the answers.
# :::
# ::::
#
# ## Next
#
# - The same methods, each searched until its best lies inside what was tried or for five rounds, with all memories in every step, and told the task: {doc}`continual_fair`.
# - A walk with the same penalty, and a sparse network in place of a second task: {doc}`sparsity`.
# - More tasks in sequence, and the transformers of the paper's Fig. 2.
# - The best settings lie between keeping and learning at a point that validation images of *both* tasks chose. A method that
#   finds it from the drift on its memories alone is not in the paper, and wanted.
#
# ## Appendix: the search
#
# The first four settings of a row were searched together. The best of nearly every method was then its lowest rate, and each got a fifth
# beyond what it had; then three more around its best. On another seed the best EWC diverged, so the three best of every method got a
# second seed. The first runs with 500 memories had the settings of fifty, with which FIP by the authors' distance lost three points on
# validation images; every method got a search with 500. The settings, not the claims, were changed, for all methods alike. Where the
# best lies at the edge of {numref}`tab-continual-search`, a wider search might raise that method further.


# %% tags=["remove-input"]
def in_words(setting):
    """A setting: the rate, and the strength unless there is none."""
    return f"{setting[0]:g}" + (f"/{setting[1]:g}" if setting[1] else "")


def ranking(part):
    """What was tried on the first seed, best first."""
    part = part.sort_values("mean", ascending=False)
    return "; ".join(
        f"{in_words(s)}: {100 * v:.1f}"
        for s, v in zip(part.setting, part["mean"], strict=True)
    )


table = [
    {
        "method": m,
        "chosen": in_words(chosen[m]),
        "tried": ranking(search[search.method == m]),
    }
    for m in METHODS
]
pages.table(
    pd.DataFrame(table),
    "The best rate of nearly every method that looks at its memories is 0.003. Rate/strength (for exact directions β and the square of a"
    " step's length) and, after the colon, the mean accuracy on validation images in per cent, best first; 0.0 is a walk that diverged.",
    name="tab-continual-search",
    disable_numparse=True,
)

# %% tags=["remove-input"]
part = memory[memory.memories == max(scale.sizes[:2])]
table = part.groupby("method")[[*NAMES]].mean().sort_values("mean", ascending=False)
pages.table(
    (100 * table).rename(columns=lambda what: f"{NAMES[what]}, %"),
    "With 500 memories replay, EWC and GEM are within half a point of FIP by the authors' distance. Means over three seeds.",
    name="tab-continual-many",
    floatfmt=".1f",
)

# %% tags=["remove-input"]
pages.table(
    apart,
    f"How far the ends of the paths are from each other, over {len(planes)} seeds. The plane of the figure holds"
    f" {100 * run.share:.0f} % of the variance of its paths.",
    name="tab-continual-apart",
    floatfmt=".1f",
)

# %% [markdown]
# ## Appendix: what a step costs
#
# A step of fine-tuning passes 100 images through the network and back; one of FIP passes 50 memories with them, and so should cost half as
# much again. Both are timed between walks that alternate and differ by their number of steps alone.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The time of a step, 22 lines", "code_prompt_hide": "Hide the timing"}
def seconds_a_step(config, method, seed):
    taken = []
    for steps in config["lengths"]:
        begun = time.perf_counter()
        follow({
            **config, "method": method, "setting": config["settings"][method],
            "steps": steps,
        }, seed)  # fmt: skip
        taken.append(time.perf_counter() - begun)
    return (taken[1] - taken[0]) / (config["lengths"][1] - config["lengths"][0])


def cost(config, key):
    pairs = [
        [seconds_a_step(config, m, seed_of(key)) for m in config["settings"]]
        for _ in range(1 + config["repeats"])
    ]  # fmt: skip
    fine, fip = np.array(pairs[1:]).T  # the first compiles
    ratios = {
        "ratio_wall": np.median(fip) / np.median(fine), "fine_wall_s": np.median(fine)
    }  # fmt: skip
    return {"metrics": ratios, "data": tasks(config)[2]}


# %% tags=["remove-input"]
timed = {m: chosen[m] for m in ("fine-tuning", "FIP, Bhattacharyya")}
grid = [
    {**common, "settings": timed, "lengths": scale.lengths, "repeats": scale.repeats}
]
costs = wm.sweep("continual_cost", cost, grid, three_seeds)
Markdown(
    f"A step of FIP with {common['memories']} memories takes {costs.ratio_wall.mean():.2f}"
    f" ({costs.ratio_wall.min():.2f} to {costs.ratio_wall.max():.2f}) steps of fine-tuning with {common['batch']} images,"
    f" of {1000 * costs.fine_wall_s.mean():.0f} ms on {costs.device.iloc[0]}."
)

# %% [markdown]
# ## Appendix: the paper's own scale, traced
#
# The `paper` preset has a wider network, the paper's 500 memories, all of them looked at in every step, and three epochs of
# 60,000 images for each method. It has been traced, and not run. Tracing needs shapes alone.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The operations of one step, 21 lines", "code_prompt_hide": "Hide the trace"}
def work(memories, batch, widths, units):
    """Floating-point operations of a step of Algorithm 1, by XLA's count."""
    whole = lambda: wm.models.LayerNormCNN(  # noqa: E731
        widths=tuple(widths), units=units, key=jax.random.key(0)
    )
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
    arrays, rest = eqx.partition(eqx.filter_eval_shape(whole), is_shape)

    def loss(arrays, labels, seen, recalled, stored):
        net = eqx.combine(arrays, rest)
        entropy = optax.softmax_cross_entropy_with_integer_labels
        apart = jax.vmap(wm.distances.bhattacharyya)(jax.vmap(net)(recalled), stored)
        new = entropy(jax.vmap(net)(seen), labels).mean()
        return new + apart.mean() if memories else new

    counts = (batch, max(memories, 1))
    images = [jax.ShapeDtypeStruct((count, 1, 28, 28), float) for count in counts]
    shapes = ((counts[:1], int), ((counts[1], 2 * OLD), float))
    labels, stored = (jax.ShapeDtypeStruct(*shape) for shape in shapes)
    slope = jax.jit(jax.grad(loss)).lower(arrays, labels, *images, stored)
    return slope.cost_analysis()["flops"]


# %% tags=["remove-input"]
settings = (paper["batch"], paper["widths"], paper["units"])
step_of = {"fine-tuning": work(0, *settings), "FIP": work(paper["memories"], *settings)}
runs = paper["seeds"] * (len(SEARCHED) + len(ARMS)) + sum(
    len(row) + 3 for row in SEARCHED.values()
)
total = runs * paper["steps"] * step_of["FIP"]
Markdown(
    f"A step of fine-tuning is {step_of['fine-tuning'] / 1e9:.1f} GFLOP, and one of FIP with {paper['memories']} memories "
    f"{step_of['FIP'] / 1e9:.1f}. {runs} runs of {paper['steps']:,} such steps, the tuning and all seeds, are "
    f"{total / 1e15:.1f} PFLOP: {total / 1e13 / 60:.0f} minutes on a device that sustains 10 TFLOP/s on this program."
)
