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
# # Sparsity, walked to the end
#
# The walk of *functionally invariant paths* (FIP) {cite:p}`raghavan2024fip` to a sparse network again, with what {doc}`sparsity` could not
# afford: twenty times the steps, both readings of Algorithm 2, both pulls, and a search of every method that goes on until no best setting
# lies at the edge of what was tried.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The imports of this chapter, 20 lines", "code_prompt_hide": "Hide the imports"}
import dataclasses
import functools
import itertools
import operator
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
from jax.flatten_util import ravel_pytree

import wmlib as wm
from wmlib.lab import figures, pages, verdicts
from wmlib.paths.distances import bhattacharyya
from wmlib.paths.objectives import cross_entropy

figures.use_style()

# %% [markdown]
# ## The question
#
# After 858 steps the tuned walk of {doc}`sparsity` ends where pruning and some training end, and the walk that was meant to follow the authors'
# code has hardly left home. Both may be matters of the budget and of the pull. So here every method has 17,160 steps, forty epochs, beyond
# the training of the dense network; and the pull is either the gradient of the distance $|w - w_p|$, which Algorithm 2 prints, or that of
# $\tfrac12 |w - w_p|^2$, which the authors' code adds, and which pulls the more the farther there is to go.
#
# {numref}`tab-end-plan` was committed, with the claims, before the first run.
#
# ```{table} What was planned. A run trains all models of its row as one program.
# :name: tab-end-plan
#
# | part | methods | runs of each | models a run | epochs × steps | steps of a program, in all |
# |---|---|---|---|---|---|
# | search, ten settings | 9 | 2 | 5 settings × 4 sparsities | 10 × 429 | 77,220 |
# | search, one to four rounds of five more | 9 | 1 to 4 | 5 × 4 | 10 × 429 | 38,610 to 154,440 |
# | the comparison, searched | 9 | 1 | 5 seeds × 4 sparsities | 40 × 429 | 154,440 |
# | the comparison, settings of the authors | 3 | 1 | 5 × 4 | 40 × 429 | 51,480 |
# ```
#
# A pilot: a step of one network takes 3 ms of one thread of a processor with the mask held and 7 to 10 ms on a walk, which projects at each step;
# a program's compilation 3 s. At the most that is 8.7 million steps of a network, 17 hours of a thread, and half a million steps of a program.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The settings of the three presets, 13 lines", "code_prompt_hide": "Hide the settings"}
shared = dict(dataset="mnist", images=55_000, validation=5_000, test=10_000, batch=128)
cpu = shared | dict(
    seeds=5, dense=4, epochs=40, search=10, unit=33,
    fractions=[0.89, 0.96, 0.987, 0.994], round=5, most=4,
)  # fmt: skip
tiny = dict(dataset="mnist5k", images=256, validation=100, test=200, batch=32)
quick = tiny | dict(
    seeds=2, dense=1, epochs=1, search=1, unit=4, fractions=[0.96], round=2, most=1,
)  # fmt: skip
scale = wm.preset(quick=quick, cpu=cpu, paper=cpu | dict(seeds=20, search=40))

# How often the lottery ticket takes a fifth of what is left, until so many are zero.
ROUNDS = {0.89: 10, 0.96: 14, 0.987: 19, 0.994: 23}

# %% [markdown]
# ## One step for all
#
# A network is one vector of 266,610 weights here. Its nearest sparse neighbour $w_p$ needs a threshold. Sizes are ordered as their bits are
# when read as whole numbers, so that the threshold can be found by two bits at a time, without sorting.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "A network as one vector, 10 lines", "code_prompt_hide": "Hide it"}
def fresh(key):
    """The first weights of a network, as one vector."""
    return ravel_pytree(wm.models.LeNet300(key=key))[0]


_net = wm.models.LeNet300(key=jax.random.key(0))
_, as_network = ravel_pytree(_net)
_may_go = jax.tree.map(lambda leaf: jnp.full(leaf.shape, leaf.ndim > 1), _net)
MATRICES = np.asarray(ravel_pytree(_may_go)[0])  # biases stay
SIZE = int(MATRICES.sum())


# %%
def goes(w, count):
    """Which weights a projection sets to zero: so many, the smallest of matrices."""
    sizes = jnp.where(MATRICES, jnp.abs(w), jnp.inf)
    bits, low = jax.lax.bitcast_convert_type(sizes, jnp.uint32), jnp.uint32(0)
    for shift in range(30, -1, -2):
        marks = [low + jnp.uint32(digit << shift) for digit in (1, 2, 3)]
        fewer = [(bits < mark).sum() < count for mark in marks]
        low = low + (sum(fewer).astype(jnp.uint32) << shift)
    return (bits <= low) & (count > 0)


# %% [markdown]
# **Check.** It is the library's projection, weight for weight.

# %%
probe = fresh(jax.random.key(1))
for fraction in scale.fractions:
    ours = jnp.where(jax.jit(goes)(probe, round(fraction * SIZE)), 0.0, probe)
    theirs = ravel_pytree(wm.objectives.project(as_network(probe), fraction))[0]
    assert jnp.array_equal(ours, theirs)
    assert int((ours == 0).sum()) == round(fraction * SIZE)

# %% [markdown]
# A method is said by three words: which outputs it keeps, how it is pulled, and how long its steps are.
#
# - **keeps** the outputs of the network at the *start* (the text and the authors' code), those of the present network, *pruned* (Algorithm
#   2 as printed), or the *labels*;
# - **pull**: the *norm* $|w - w_p|$, the *square* $\tfrac12 |w - w_p|^2$, or none: then the weights that were pruned are held at zero;
# - **steps** of *Adam*, or of *one length* along the gradient, as in the authors' code.
#
# A walk descends its pull plus a penalty times the mean Bhattacharyya distance of the outputs. The rate falls to zero like a cosine,
# but for the settings of the authors, where it stays.

# %%
METHODS = {
    "FIP, norm": ("start", "norm", "adam"),
    "FIP, square": ("start", "square", "adam"),
    "FIP, square, one length": ("start", "square", "one length"),
    "as printed, norm": ("pruned", "norm", "adam"),
    "as printed, square": ("pruned", "square", "adam"),
    "distillation": ("start", None, "adam"),
    "fine-tuning": ("labels", None, "adam"),
    "gradual": ("labels", None, "adam"),
    "ticket": ("labels", None, "adam"),
}
GIVEN = {  # not searched: the settings of paper and code
    "one shot": None,
    "FIP, paper, sum": ("start", "norm", "adam"),
    "FIP, paper, mean": ("start", "norm", "adam"),
    "FIP, authors' code": ("start", "square", "one length"),
}


# %%
def loss(kind, w, sparse, penalty, x, y, told):
    """What a method descends, on a minibatch; `told` are the outputs at the start."""
    keeps, pull, _ = kind
    said = jax.vmap(as_network(w))(x)
    if keeps == "labels":
        return jax.vmap(cross_entropy)(said, y).mean()
    if keeps == "pruned":
        told = jax.vmap(as_network(sparse))(x)
    moved = jax.vmap(bhattacharyya)(said, told).mean()
    if pull is None:
        return moved
    gap = ((w - sparse) ** 2).sum()
    return (gap / 2 if pull == "square" else jnp.sqrt(gap)) + penalty * moved


# %%
def step(kind, state, drop, count, rate, penalty, x, y, told):
    """One step; a walk projects anew, others hold what was dropped at zero."""
    w, m, v, t = state
    drop = goes(w, count) if kind[1] else drop
    sparse = jax.lax.stop_gradient(jnp.where(drop, 0.0, w))
    g = jax.grad(loss, argnums=1)(kind, w, sparse, penalty, x, y, told)
    if kind[2] == "one length":
        return w - rate * g / jnp.linalg.norm(g), m, v, t
    m, v, t = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, t + 1
    new = w - rate * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return jnp.where(drop & (kind[1] is None), 0.0, new), m, v, t


# %% [markdown]
# **Check.** Three steps of either pull are those of the library's `wm.walk`.

# %%
x, aim, how = (
    jax.random.normal(jax.random.key(2), (16, 1, 28, 28)), 0.9, optax.adam(0.01)
)  # fmt: skip
told = jax.vmap(as_network(probe))(x)
for pull in ("norm", "square") if scale.name != "quick" else ("square",):
    path = wm.walk(
        operator.call, as_network(probe), wm.objectives.Sparsity(aim, pull == "square"),
        x, bhattacharyya, method=wm.PenalisedDescent(how, 10.0), steps=3, record=3,
        key=jax.random.key(0),
    )  # fmt: skip
    one = jax.jit(functools.partial(step, ("start", pull, "adam")))
    state = (probe, 0 * probe, 0 * probe, 0)
    for _ in range(3):
        state = one(state, False, round(aim * SIZE), 0.01, 10.0, x, None, told)
    there = ravel_pytree(path.weights[-1])[0]
    gap, far = (float(jnp.linalg.norm(there - w)) for w in (state[0], probe))
    print(f"{pull}: they end {gap:.0e} apart, {far:.0e} from the start")
    assert gap < 1e-3 * far

# %% [markdown]
# ## Many networks as one program
#
# Seeds and sparsities, or settings and sparsities, are trained together, an epoch at a time. What differs from step to step is a
# table made beforehand, the *plan*: the rate of each step and, each 33 steps, how many weights are to be zero, and whether a lottery ticket
# {cite:p}`frankle2019lottery` goes back to its first values. *Gradual* pruning raises the number each epoch for three quarters of the
# time, the faster the earlier {cite:p}`zhu2018prune`.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The plan of a method, 33 lines", "code_prompt_hide": "Hide the plan"}
def cosine(rate, steps, total):
    """A rate that falls to zero over some steps; none is left for the rest."""
    falls = rate * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    return np.concatenate([falls, np.zeros(total - steps)])


def plan(method, fraction, rate, epochs, config):
    """How many weights are zero and whether to go back, by unit; the rate, by step."""
    each, unit = epoch_of(config), config["unit"]
    units, steps = epochs * each // unit, epochs * each
    count = np.full(units, round(fraction * SIZE))
    back, rates = np.zeros(units, bool), cosine(rate, steps, steps)
    if method.startswith("FIP, paper") or method == "FIP, authors' code":
        rates = np.full(steps, rate)
    if method == "gradual":
        done = (np.arange(units) * unit // each + 1) / max(1.0, 0.75 * epochs)
        shares = fraction * (1 - (1 - np.minimum(done, 1)) ** 3)
        count = np.rint(shares * SIZE).astype(int)
    if method == "ticket":
        rounds = ROUNDS[fraction]
        long = max(1, units // (rounds + 1))  # units of a round
        of = np.minimum(np.arange(units) // long, rounds)
        count = np.rint((1 - (1 - fraction) ** (of / rounds)) * SIZE).astype(int)
        back[1:] = np.diff(of) > 0
        round_ = cosine(rate, long * unit, long * unit)
        many = np.tile(round_, rounds + 1)[:steps]
        rates = np.concatenate([many, np.zeros(steps - len(many))])
    return count, back, rates


def epoch_of(config):
    """The steps of an epoch, in whole units."""
    return config["images"] // config["batch"] // config["unit"] * config["unit"]


# %% tags=["hide-input"] mystnb={"code_prompt_show": "An epoch of many networks, 23 lines", "code_prompt_hide": "Hide it"}
@functools.partial(jax.jit, static_argnums=0)
def epoch(kind, states, first, penalty, plans, rows, seeds, x, y, told):
    """One epoch of many networks; `told` are the outputs at the start, by seed."""

    def one(state, first, penalty, plans, rows, seed):
        def unit(state, now):
            w, *rest = state
            count, back, rates, rows = now
            drop = goes(w, count)
            if kind[1] is None:
                again = [jnp.where(back, 0, part) for part in rest]
                w, rest = jnp.where(drop, 0.0, jnp.where(back, first, w)), again

            def of_step(state, now):
                rate, i = now
                of_images = x[i], y[i], told[seed, i]
                return step(kind, state, drop, count, rate, penalty, *of_images), None

            return jax.lax.scan(of_step, (w, *rest), (rates, rows))[0], None

        return jax.lax.scan(unit, state, (*plans, rows))[0]

    return jax.vmap(one)(states, first, penalty, plans, rows, seeds)


# %% tags=["hide-input"] mystnb={"code_prompt_show": "Training and what is measured, 83 lines", "code_prompt_hide": "Hide it"}
@jax.jit
def look(nets, counts, starts, x, y):
    """The distance left, accuracy before and after projection, and drift."""

    def one(w, count, start):
        sparse = jnp.where(goes(w, count), 0.0, w)
        before, after, told = (jax.vmap(as_network(v))(x) for v in (w, sparse, start))
        right = [(said.argmax(axis=1) == y).mean() for said in (before, after)]
        drift = jax.vmap(bhattacharyya)(after, told).mean()
        return jnp.linalg.norm(w - sparse), *right, drift

    return jnp.stack(jax.vmap(one)(nets, counts, starts))


def orders(keys, epochs, config):
    """The rows of minibatches, (seeds, epochs, units, steps, batch)."""
    each, n = epoch_of(config), config["images"]
    shape = (-1, config["unit"], config["batch"])

    def one(key):
        mixed = jax.random.permutation(key, n)[: each * config["batch"]]
        return mixed.reshape(shape)

    split = jax.vmap(lambda key: jax.random.split(key, epochs))(keys)
    return jax.jit(jax.vmap(jax.vmap(one)))(split)


def train(kind, nets, first, penalty, plans, order, seeds, parts, told, see=None):
    """Train many networks, and look at each of them after each epoch."""
    states = (nets, *(jnp.zeros_like(nets),) * 2, jnp.zeros(len(nets), jnp.int32))
    epochs, units, unit = order.shape[1:4]
    counts, backs, rates = (np.stack(part) for part in zip(*plans, strict=True))
    counts, backs = (a.reshape(-1, epochs, units) for a in (counts, backs))
    rates = np.float32(rates).reshape(-1, epochs, units, unit)
    seen = [] if see is None else [see(nets)]
    for e in range(epochs):
        now = (np.int32(counts[:, e]), backs[:, e], rates[:, e])
        states = epoch(
            kind,
            states,
            first,
            penalty,
            now,
            order[seeds, e],
            seeds,
            *parts.train,
            told,
        )
        if see is not None:
            seen.append(see(states[0]))
    return states[0], seen


@functools.cache
def parts_of(*what):
    """The images."""
    return wm.load_splits(*what)


def data(config):
    """The images of a configuration."""
    return parts_of(*[config[k] for k in ("dataset", "images", "validation", "test")])


def dense(keys, many, config):
    """First and trained networks of some seeds, their outputs on all training images.

    As many are trained as the program takes, so that it is compiled once.
    """
    parts, of = data(config), jax.vmap(jax.random.split)(keys)
    first = jax.vmap(fresh)(of[:, 0])
    seeds = np.arange(many) % len(keys)
    plans = [plan("dense", 0.0, 0.0012, config["dense"], config)] * many
    order = orders(of[:, 1], config["dense"], config)
    none = jnp.zeros(many, jnp.float32)
    told = jnp.zeros((len(keys), config["images"], 10), jnp.float32)
    kind = METHODS["fine-tuning"]
    nets, _ = train(
        kind, first[seeds], first[seeds], none, plans, order, seeds, parts, told
    )
    nets = nets[: len(keys)]
    say = jax.jit(lambda w: jax.vmap(as_network(w))(parts.train[0]))
    return first, nets, jnp.stack([say(w) for w in nets])


# %% tags=["hide-input"] mystnb={"code_prompt_show": "One run of a method, 68 lines", "code_prompt_hide": "Hide the run"}
@functools.cache
def bases(seeds, many, *names):
    """The dense networks of some seeds, once a process."""
    config = dict(zip(BASE, names, strict=True))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    return dense(keys, many, config)


def sparsify(config, keys, models, epochs, see=None):
    """Networks of one method: for each model its seed (a place in keys), its fraction,
    rate and penalty. Keys are repeated up to as many as a program takes."""
    seeds = [int(jax.random.key_data(key)[-1]) for key in keys]
    seeds = tuple(seeds[i % len(seeds)] for i in range(config["together"]))
    first, nets, told = bases(seeds, len(models), *[config[k] for k in BASE])
    which, fractions, rates, penalties = map(np.array, zip(*models, strict=True))
    method, parts = config["method"], data(config)
    if method == "one shot":
        return nets[which], nets[which], []
    kind, starts = (METHODS | GIVEN)[method], nets[which]
    if method == "ticket":
        epochs, starts = epochs + config["dense"], first[which]
    plans = [
        plan(method, float(p), r, epochs, config)
        for p, r in zip(fractions, rates, strict=True)
    ]
    of = [jax.random.fold_in(jax.random.key(seed), 1) for seed in seeds]
    order = orders(jnp.stack(of), epochs, config)
    left, seen = train(
        kind, starts, first[which], jnp.float32(penalties), plans, order, which, parts,
        told, see and functools.partial(see, nets[which]),
    )  # fmt: skip
    return left, nets[which], seen


def evaluate(config, keys):
    """A method at all sparsities and seeds: the test images after projection."""
    chosen = list(zip(*[config[k] for k in CHOSEN], strict=True))
    models = [(s, *c) for s in range(config["together"]) for c in chosen]
    counts = np.array([round(p * SIZE) for _, p, *_ in models])
    parts = data(config)

    def see(starts, nets, x=parts.validation[0], y=parts.validation[1]):
        return np.asarray(look(nets, counts, starts, x, y))

    left, starts, seen = sparsify(config, keys, models, config["epochs"], see)
    size, (x, y) = config["validation"], parts.test  # so many at once, one program
    cuts = [slice(i, i + size) for i in range(0, len(x), size)]
    apart, before, after, drift = np.mean(
        [see(starts, left, x[c], y[c]) for c in cuts], 0
    )
    whole = np.mean([see(starts, starts, x[c], y[c]) for c in cuts], axis=0)
    numbers = {"accuracy": after, "before": before, "drift": drift}
    numbers |= {"left": apart / whole[0]}
    many, results = len(chosen), []
    for s in range(len(keys)):
        mine = slice(s * many, (s + 1) * many)
        metrics = {"dense": float(whole[1][mine][0])}
        for name, values in numbers.items():
            each = zip(config["fractions"], values[mine], strict=True)
            metrics |= {f"{name} at {p:.1%}": float(v) for p, v in each}
        courses = np.array([part[:, mine] for part in seen]).reshape(-1, 4, many)
        curves = {
            name: courses[:, k].T.round(5).tolist() for k, name in enumerate(COURSES)
        }
        results.append(
            {"metrics": metrics, "curves": curves, "data": parts.fingerprint}
        )
    return results


# %% tags=["hide-input"] mystnb={"code_prompt_show": "One run of a search, 19 lines", "code_prompt_hide": "Hide it"}
BASE = ("dataset", "images", "validation", "test", "batch", "unit", "dense")
CHOSEN = ("fractions", "rates", "penalties")
COURSES = ("apart", "before_course", "after_course", "drift_course")


def tune(config, keys):
    """Some settings at each sparsity, on the validation images, of one seed."""
    models = [
        (0, p, *setting(place))
        for p, places in zip(config["fractions"], config["places"], strict=True)
        for place in places
    ]
    counts = np.array([round(p * SIZE) for _, p, *_ in models])
    left, starts, _ = sparsify(config, keys, models, config["epochs"])
    (x, y), fingerprint = data(config).validation, data(config).fingerprint
    after = np.asarray(look(left, counts, starts, x, y)[2], float)
    curves = {"validation": after.reshape(len(config["places"]), -1).tolist()}
    best = {"metrics": {"best": after.max()}, "curves": curves, "data": fingerprint}
    return [best]


# %% [markdown]
# ## A search that ends inside
#
# A setting is a place on a lattice: $(i, j)$ is the rate $10^{i/4}$ and the penalty $10^{j/2}$. Every method begins with ten places at each
# sparsity, over three decades of rates or over rates and penalties. Then come rounds of five more, for all methods alike: up to four places
# beyond an end, the best place's neighbours on each axis, then others about it. They go on while, for any method at any sparsity, the
# best lies at an end of what was tried on an axis through it, but at most for four rounds. The walk as printed found nothing there that is as good as not to
# walk at all; so after these rows, and before the comparison's, it was given five rates more, from $10^{-7}$ to $10^{-5}$, where it hardly moves, for all forty epochs: not to move at
# all is to prune in one shot. A search walks ten epochs, on one seed, and is judged on validation images after projection.


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The places that are tried, 48 lines", "code_prompt_hide": "Hide them"}
def setting(place):
    """Rate and penalty of a place."""
    return round(10 ** (place[0] / 4), 8), round(10 ** (place[1] / 2), 6)


MIDDLE = {  # of the first places of a walk; the rivals' are a line of rates
    "FIP, norm": (-10, 0),
    "FIP, square": (-10, 2),
    "FIP, square, one length": (-7, 4),
    "as printed, norm": (-10, 2),
    "as printed, square": (-10, 4),
}


def first_places(method):
    """Ten places to begin with."""
    if method not in MIDDLE:
        return [(float(i), 0.0) for i in range(-16, -6)]
    a, b = MIDDLE[method]
    grid = [(a + 2.0 * i, b + 2.0 * j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return [*grid, (a + 1.0, float(b))]


LINE = [1, 0.5, 0.25, 0.75, 2, 1.5, 0.125, 0.375, 0.625, 0.875, 1.25, 1.75, 2.5, 3]
LINE = [(sign * d, 0.0) for d in LINE for sign in (1, -1)]
PLANE = sorted(
    set(itertools.product([1, -1, 0.5, -0.5, 0], repeat=2)) - {(0, 0)},
    key=lambda d: (0 not in d or 0.5 in map(abs, d), -abs(d[0] * d[1]), *d),
)  # neighbours on the axes, then at the corners, then closer by


def ends(best, tried, axes):
    """The directions, on each axis through the best place, in which none was tried."""
    found = []
    for axis in axes:
        on = [p[axis] for p in tried if p[1 - axis] == best[1 - axis]]
        one = (1, 0) if axis == 0 else (0, 1)
        found += [one] if best[axis] == max(on) else []
        found += [(-one[0], -one[1])] if best[axis] == min(on) else []
    return found


def further(best, tried, axes, count):
    """The next places: one, two and four beyond an end, then others about the best."""
    beyond = [(k * a, k * b) for k in (1, 2, 4) for a, b in ends(best, tried, axes)]
    about = [*beyond, *(LINE if len(axes) == 1 else PLANE)]
    near = dict.fromkeys((best[0] + a, best[1] + b) for a, b in about)
    return [place for place in near if place not in tried][:count]


# %% tags=["hide-input"] mystnb={"code_prompt_show": "The search, 73 lines", "code_prompt_hide": "Hide the search"}
SEARCHED = list(METHODS)
if scale.name == "quick":  # compiling takes longer than training
    SEARCHED = ["FIP, square", "fine-tuning"]
    GIVEN = {"one shot": None}
common = {k: scale.settings[k] for k in BASE}
common |= {"fractions": scale.fractions, "together": scale.seeds}
one_seed = dataclasses.replace(scale, seeds=1)
scores: dict = {(m, p): {} for m in SEARCHED for p in scale.fractions}


def turned(grid):
    """The same runs; each process begins elsewhere, and so compiles few programs."""
    at = os.getpid() % len(grid)
    return grid[at:] + grid[:at]


def search_round(places):
    """One round of the search: some places for each method and sparsity."""
    grid = []
    for method in SEARCHED:
        of = [places[method, p] for p in scale.fractions]
        of = {"method": method, "epochs": scale.search, "places": of}
        of["places"] = [[list(place) for place in some] for some in of["places"]]
        grid.append({**common, **of})
    found = wm.sweep("sparsity_end_tuning", tune, turned(grid), one_seed, together=True)
    for row in found.itertuples():
        for p, some, values in zip(
            scale.fractions, row.places, row.validation, strict=True
        ):
            pairs = zip(map(tuple, some), values, strict=True)
            scores[row.method, p] |= dict(pairs)
    return found


def best_place(method, fraction):
    """The best place, all that were tried, and the axes that are searched."""
    tried = scores[method, fraction]
    return max(tried, key=tried.get), tried, (0, 1) if method in MIDDLE else (0,)


firsts = {(m, p): first_places(m) for m, p in scores}
size = scale.round
begun = range(0, 10, size) if scale.name != "quick" else [4]
searches = [
    search_round({k: v[i : i + size] for k, v in firsts.items()}) for i in begun
]
while len(searches) < len(begun) + scale.most:
    if len(searches) > len(begun) and not any(ends(*best_place(*at)) for at in scores):
        break
    nexts = {at: further(*best_place(*at), scale.round) for at in scores}
    searches.append(search_round(nexts))
LOW = [m for m in SEARCHED if m.startswith("as printed")]
grid = []
for method in LOW:
    places = [[[float(i), float(MIDDLE[method][1])] for i in range(-28, -19, 2)]]
    of = {"epochs": scale.epochs, "places": places * len(scale.fractions)}
    grid.append({**common, "method": method} | of)
if grid:
    lowest = wm.sweep("sparsity_end_low", tune, grid, one_seed, together=True)
    for row in lowest.itertuples():
        tried = zip(scale.fractions, row.places, row.validation, strict=True)
        for p, some, values in tried:
            scores[row.method, p] |= dict(zip(map(tuple, some), values, strict=True))


def unbounded(best, tried, axes):
    """Whether on some side of the best nothing was tried, within a step off its line."""
    near = [p for p in tried if sum(abs(p[k] - best[k]) > 1 for k in axes) < 2]
    sides = [{np.sign(p[axis] - best[axis]) for p in near} for axis in axes]
    return any(not {-1.0, 1.0} <= side for side in sides)


still_open = [at for at in scores if unbounded(*best_place(*at))]

# %% [markdown]
# Published settings are used as they are. With a sum over the minibatch the paper's $\lambda = 1$ is a penalty of 128, with a mean of 1; the authors'
# code has $\lambda = 0.1$ and a sum.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "The comparison, 21 lines", "code_prompt_hide": "Hide the sweep"}
batch, many = float(scale.batch), len(scale.fractions)
PUBLISHED = {
    "one shot": (0.0, 0.0),
    "FIP, paper, sum": (0.01, batch),
    "FIP, paper, mean": (0.01, 1.0),
    "FIP, authors' code": (0.01, 10 * batch),
}


def chosen(method, fraction):
    """Rate and penalty of a method."""
    if method in PUBLISHED:
        return PUBLISHED[method]
    return setting(best_place(method, fraction)[0])


grid = [{**common, "method": m, "epochs": scale.epochs} for m in (*SEARCHED, *GIVEN)]
for config in grid:
    both = [chosen(config["method"], p) for p in scale.fractions]
    config["rates"], config["penalties"] = map(list, zip(*both, strict=True))
rows = wm.sweep("sparsity_end", evaluate, turned(grid), scale, together=True)

# %% [markdown]
# ## What is left of the accuracy
#
# {numref}`fig-end-accuracy` has the accuracies after projection, {numref}`tab-end-accuracy` the numbers, and {numref}`fig-end-against` the
# differences that the claims are about.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Colours, names and values, 49 lines", "code_prompt_hide": "Hide them", "figure": {"caption": "Test accuracy after projection, below that of the dense network, in points, by method and share of zeros. Dots are means over five seeds, bars 95 % t-intervals of the paired differences.", "name": "fig-end-accuracy"}, "image": {"alt": "One panel for each share of zeros, with a row for each method: the points of accuracy lost to the dense network."}}
NAMES = {
    "as printed, norm": "FIP as printed, norm",
    "as printed, square": "FIP as printed, square",
    "distillation": "pruned, then distilled",
    "fine-tuning": "pruned, then fine-tuned",
    "gradual": "gradual pruning",
    "ticket": "lottery ticket",
    "one shot": "pruned in one shot",
}
COLOURS = {
    "FIP, norm": figures.PATH_COLOURS["FIP"],
    "FIP, square": figures.PATH_COLOURS["FIP, squared"],
    "FIP, square, one length": "#289FA7", "as printed, norm": "#A5188A",
    "as printed, square": "#6208AC", "distillation": "#249B60",
    "fine-tuning": figures.PATH_COLOURS["fine-tuning"], "gradual": "#B1842D",
    "ticket": "#2B2B2B", "one shot": "#6E6E6E", "FIP, paper, sum": "#BB4D36",
    "FIP, paper, mean": "#5624EB", "FIP, authors' code": "#8A8A8A",
}  # fmt: skip


def values(method, metric="accuracy"):
    """A metric of a method, (seeds, sparsities)."""
    part = rows[rows.method == method].sort_values("seed")
    return part[[f"{metric} at {p:.1%}" for p in scale.fractions]].to_numpy(float)


def over(method, other):
    """A method above another, in points, (seeds, sparsities)."""
    return 100 * (values(method) - values(other))


def lost(method):
    """What a method loses to the dense network, in points."""
    part = rows[rows.method == method].sort_values("seed")
    return 100 * (part.dense.to_numpy()[:, None] - values(method))


shown = [m for m in COLOURS if m in set(rows.method)][::-1]
fig, axes = plt.subplots(1, many, figsize=(8.4, 4.6), sharey=True, squeeze=False)
for k, (ax, p) in enumerate(zip(axes[0], scale.fractions, strict=True)):
    for i, method in enumerate(shown):
        gaps = lost(method)[:, k]
        ax.hlines(i, *figures.t_interval(gaps), color=COLOURS[method], lw=2.5)
        ax.plot(gaps.mean(), i, "o", color=COLOURS[method])
    ax.set(xscale="symlog", title=f"{p:.1%} zeros", xlabel="points lost")
    ax.set_xticks([0, 1, 10, 80], ["0", "1", "10", "80"])
    ax.minorticks_off()
axes[0, 0].set_yticks(range(len(shown)), [NAMES.get(m, m) for m in shown])
plt.show()

# %% tags=["remove-input"]
table = pd.DataFrame([
    {"method": NAMES.get(m, m),
     **{f"{p:.1%}": pages.percent(v) for p, v in zip(scale.fractions, values(m).T, strict=True)}}
    for m in shown[::-1]
])  # fmt: skip
pages.table(
    table,
    f"Test accuracy after projection, by the share of zeros, in per cent with 95 % t-intervals over {scale.seeds} seeds; the dense"
    f" networks have {pages.percent(rows[rows.method == 'one shot'].dense)}. {rows.seconds.sum() / 60:.0f} minutes of processes that shared a"
    f" device, {rows.device.iloc[0]}; {len(rows)} runs at preset `{scale.name}`. Rows from code that has changed since: {int(rows.stale.sum())}.",
    name="tab-end-accuracy",
)

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 16 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "The walk with the squared pull minus other methods, in points of test accuracy after projection, against the share of zeros. Means over five seeds and 95 % t-intervals; the grey band is one point.", "name": "fig-end-against"}, "image": {"alt": "Differences in points at four shares of zeros, with one line of points for each other method."}}
AGAINST = ["FIP, norm", "as printed, square", "distillation", "fine-tuning"]
AGAINST = [m for m in (*AGAINST, "gradual", "ticket") if m in set(rows.method)]
fig, ax = plt.subplots(figsize=(6.6, 3.6))
for i, method in enumerate(AGAINST):
    gaps = over("FIP, square", method)
    at = np.arange(many) + 0.12 * (i - len(AGAINST) / 2)
    ax.vlines(at, *figures.t_interval(gaps), color=COLOURS[method], lw=2)
    label = NAMES.get(method, method)
    ax.plot(at, gaps.mean(axis=0), "o", color=COLOURS[method], label=label, ms=4)
ax.axhspan(-1, 1, color="#6E6E6E", alpha=0.12, lw=0)
ax.set_xticks(range(many), [f"{100 * p:g}" for p in scale.fractions])
ax.set(xlabel="weights set to zero (%)", ylabel="points", yscale="symlog")
ax.set_yticks([-1, 0, 1, 10, 80], ["−1", "0", "1", "10", "80"])
ax.minorticks_off()
ax.legend(fontsize=8, ncols=2)
plt.show()

# %% [markdown]
# ## Along the walks
#
# {numref}`fig-end-course` shows, epoch by epoch, how far there is still to go and what the networks would be worth if they were
# projected.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "How it is drawn, 24 lines", "code_prompt_hide": "Hide it", "figure": {"caption": "Left, the distance to the sparse submanifold by epoch; middle, the drift of the projected network's outputs from those at the start; right, accuracy on validation images before projection (dashed) and after it (solid). At 98.7 % zeros, means over five seeds.", "name": "fig-end-course"}, "image": {"alt": "Three panels against the epoch, with a curve for each walk: distance left, drift, and accuracy before and after projection."}}
at = scale.fractions.index(0.987) if 0.987 in scale.fractions else 0
WALKED = [m for m in COLOURS if (METHODS | GIVEN).get(m, (0, 0))]
WALKED = [m for m in WALKED if m in shown and (METHODS | GIVEN)[m][1]]


def course(method, what):
    """A course at one sparsity, mean over seeds."""
    part = rows[rows.method == method]
    return np.array([run[at] for run in part[what]], float).mean(axis=0)


fig, axes = plt.subplots(1, 3, figsize=(8.4, 3.6))
for method in WALKED:
    look_ = dict(color=COLOURS[method], label=NAMES.get(method, method))
    axes[0].plot(np.maximum(course(method, "apart"), 1e-6), **look_)
    axes[1].plot(np.maximum(course(method, "drift_course"), 1e-6), **look_)
    axes[2].plot(100 * course(method, "after_course"), **look_)
    axes[2].plot(100 * course(method, "before_course"), **look_, ls="--")
for ax, title in zip(axes, ("distance left", "drift", "accuracy (%)"), strict=True):
    ax.set(xlabel="epoch", title=title)
axes[0].set_yscale("log")
axes[1].set_yscale("log")
axes[0].legend(fontsize=7)
plt.show()

# %% [markdown]
# ## Verdict
#
# The claims stand in `book/claims/paths/sparsity_longer.toml`. All but the last were written, with their margins, before any of the rows; the last compares with
# rows of {doc}`sparsity`, which were there. {doc}`/book/verdicts` has the rule, {numref}`tab-end-verdicts` what became of them.

# %% tags=["remove-input"]
judged = verdicts.verdict_table(
    "paths/sparsity_longer", scale.name, rows={"sparsity_end": rows}
)
pages.table(
    judged,
    "The claims of this chapter, judged by the rule of the book.",
    name="tab-end-verdicts",
    look="verdicts",
    disable_numparse=True,
)

# %% [markdown]
# ## Limits of this chapter
#
# - **The search is shorter than the runs.** It walks ten epochs where the runs walk forty, on one seed, and it ran on a GPU at JAX's default precision, the runs on
#   a processor: the dense networks of a seed are not the same.
# - **Readings.** What is pruned are the matrices and not the biases; minibatches have 128 images where the authors' code has 200, so that its sum
#   is pulled against 1,280 times the mean here, and 2,000 times there. It walks up to a thousand epochs. The walks end with a projection, which theirs do not.
# - **The lottery ticket** has the steps of the dense network and of the walk together, shared among its rounds, and is trained by Adam.
# - **One network**, LeNet-300-100, on one data set.
#
# ## Appendix: the search
#
# {numref}`tab-end-search` has what the search chose, and the range of what it tried.

# %% tags=["remove-input"]
table = [
    {"method": NAMES.get(m, m), "zeros": f"{p:.1%}",
     "rate": f"{setting(best)[0]:.3g}", "tried": f"{setting(min(tried))[0]:.2g} to {setting(max(tried))[0]:.2g}",
     "penalty": f"{setting(best)[1]:.3g}" if m in MIDDLE else "", "settings": len(tried),
     "validation, %": f"{100 * tried[best]:.2f}", "at an edge": "yes" if (m, p) in still_open else "no"}
    for (m, p), tried in scores.items()
    for best in [max(tried, key=tried.get)]
]  # fmt: skip
pages.table(
    pd.DataFrame(table),
    f"The best settings of each method and sparsity, one seed, {scale.search} epochs, the low rates of the walk as printed {scale.epochs}. {len(still_open)} of"
    f" {len(scores)} searches ended with nothing tried on one side of their best.",
    name="tab-end-search",
    disable_numparse=True,
)
