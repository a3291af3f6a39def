"""Bad arguments of every public function: each is answered before anything is computed, by an error that names the cure."""

import inspect
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wmlib as wm
from wmlib.lab import figures, verdicts
from wmlib.lab.fingerprints import fingerprint

KEY = jax.random.key(0)
NET = eqx.nn.MLP(3, 4, 6, 1, activation=jnp.tanh, key=KEY)
X, LABELS = jax.random.normal(KEY, (12, 3)), jnp.arange(12) % 4
OUTPUTS = jax.vmap(NET)(X)
PART = eqx.filter(NET, eqx.is_inexact_array)
MANY = jax.tree.map(lambda x: x[None], PART)
NAN = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), PART)
NOTHING = {"count": 2}
COMPLEX = {"w": jnp.ones(3, jnp.complex64)}
ARRAY = jnp.ones(3)
TIED = {"a": ARRAY, "b": ARRAY}
EMPTY = jnp.zeros((0, 3))
IMAGE = jnp.zeros((1, 8, 8))
SMALL = dict(in_shape=(1, 8, 8), widths=(2,), units=4)
call, scale = operator.call, lambda w, x: w["a"] * x + w["b"]
sgd = wm.PenalisedDescent(optax.sgd(0.1))
metric = wm.FunctionMetric(call, NET, X)
task = wm.objectives.Task(call, X, LABELS, 4)


def penalised(strength, **rows):
    return wm.objectives.Penalised(task, lambda net, kept, rows: jnp.zeros(()), None, strength, **rows)


modulated = wm.modulate(NET, wm.Ellipse(), key=KEY)

ENSEMBLE = eqx.filter_vmap(lambda key: wm.modulate(NET, wm.Ellipse(), key=key))(jax.random.split(KEY, 3))


def adapted(net=NET, rank=2, **changed):
    return wm.rivals.lora.adapt(net, rank, **(dict(alpha=4, where="layers", key=KEY) | changed))


def mapped(net=NET, **changed):
    return wm.rivals.relevance.split(net, **(dict(key=KEY) | changed))


def halved(net):
    return jax.tree.map(lambda x: x.astype(jnp.float16) if eqx.is_inexact_array(x) else x, net)


def coder():
    return wm.rivals.generative.VAE((1, 4, 4), 2, (2,), key=KEY)


def solved(**changed):
    rest = dict(points=jnp.ones((2, 3)), gradient=jnp.ones((2, 3)), contexts=jnp.linspace(0, 1, 5)) | changed
    return wm.solve_metric(lambda s, p: p[0] * (1 - s) + p[1] * s, **rest)


def batched(w, x):
    return x @ jnp.ones((12, 2)) if x.ndim == 2 else jnp.zeros((2, 2)) @ x


def one_logit(w, x):
    return w.layers[-1](jnp.ones(6))[:1]


def walk(**changed):
    rest = dict(f=call, weights=NET, objective=task, memory=X, method=sgd, steps=2, key=KEY) | changed
    return wm.walk(**rest)


def sequence(tasks=None, memories=None, **changed):
    rest = dict(method=wm.PenalisedDescent(optax.sgd(0.1), 1.0, 2), steps=2, key=KEY) | changed
    return wm.walk_sequence(call, NET, [task, task] if tasks is None else tasks, memories or [X, X], **rest)


def curve(**changed):
    rest = dict(f=call, weights=NET, velocity=PART, inputs=X) | changed
    return wm.geodesic(**rest)


def claims(text):
    def read(tmp):
        (tmp / "claims.toml").write_text(text)
        return verdicts.read_claims(tmp / "claims.toml")

    return read


def swept(grid, seeds=1):
    def run(config, key):
        return {"metrics": {"x": 1.0}}

    return lambda tmp: wm.sweep("probe", run, grid, wm.preset(quick=dict(seeds=seeds)), results=tmp)


V, T, F = ValueError, TypeError, FloatingPointError
HOT = jax.nn.one_hot(LABELS, 4, dtype=int)
WHOLE = jax.tree.map(lambda x: jnp.ones(x.shape, int), PART)
IMAGINARY = jax.tree.map(lambda x: jax.lax.complex(x, x), PART)
COUNT = r"use int\(\.\.\.\)|SupportsIndex"


def picky(w, x):
    if x.ndim != 2:
        raise RuntimeError("expected two axes")
    return x


def imaginary(w, x):
    y = call(w, x)
    return jax.lax.complex(y, y)


def pair(w, x):
    return call(w, x), 1.0


TABLE = [
    # manifolds
    ("BSpline", lambda: wm.BSpline(0), V, "add points or lower the degree"),
    ("BSpline", lambda: wm.BSpline(3, 5), V, "at least|degree"),
    ("Fourier", lambda: wm.Fourier(0), V, "1 is an ellipse"),
    ("Sphere", lambda: wm.Sphere(0), V, "1 is an ellipsoid"),
    ("Simplex", lambda: wm.Simplex(0), V, "2 are a line"),
    ("Product", lambda: wm.Product(), V, "at least two|manifold"),
    ("Ellipse", lambda: wm.Ellipse().basis(jnp.zeros(2)), V, r"jax\.vmap for a batch"),
    ("Line", lambda: wm.Line().basis(jnp.zeros(2)), V, r"jax\.vmap for a batch"),
    ("TetheredRod", lambda: wm.TetheredRod().basis(jnp.zeros(2)), V, r"jax\.vmap for a batch"),
    ("Ellipse", lambda: wm.Ellipse().basis(0.3 + 1j), T, "give the real part"),
    ("Fourier", lambda: wm.Fourier(2.0), T, r"use int\(\.\.\.\)"),
    ("Simplex", lambda: wm.Simplex(True), T, r"use int\(\.\.\.\)"),
    ("AbstractManifold", lambda: wm.Line().check(np.array([0.5j])), T, "give the real part"),
    ("AbstractManifold", lambda: wm.Line().check(np.array([0.5, 2.0])), V, "rescale or project the contexts first"),
    ("modulate", lambda: wm.modulate(NET, wm.Ellipse(), spread=-1.0, key=KEY), V, "spread must be a finite number"),
    ("modulate", lambda: wm.modulate(NET, wm.Ellipse(), spread=jnp.nan, key=KEY), V, "spread must be a finite number"),
    ("modulate", lambda: wm.modulate(modulated, wm.Ellipse(), key=KEY), V, r"one wm\.Product"),
    ("modulate", lambda: wm.modulate(NOTHING, wm.Ellipse(), key=KEY), V, "array"),
    ("modulate", lambda: wm.modulate(TIED, wm.Ellipse(), key=KEY), V, r"nn\.Shared"),
    ("modulate", lambda: wm.modulate({"w": ARRAY / 0}, wm.Ellipse(), key=KEY), V, "leave such an array, a mask"),
    ("modulate", lambda: wm.modulate(NET, wm.Ellipse(), key=KEY, memory=-1), V, "None for the default"),
    ("modulate", lambda: wm.modulate(NET, wm.Ellipse(), key=KEY, memory=True), V, r"use int\(\.\.\.\)"),
    ("Modulated", lambda: ENSEMBLE.at(0.3), V, "network by network"),
    ("Modulated", lambda: ENSEMBLE(X[0], 0.3), V, "network by network"),
    ("Modulated", lambda: ENSEMBLE.squared_norm(0.3), V, "network by network"),
    ("Modulated", lambda: eqx.tree_at(lambda n: n.manifold, modulated, wm.Fourier(1)).at(0.3), V, "modulate the model on"),
    ("Modulated", lambda: modulated(X[0], jnp.zeros(2)), V, "context"),
    ("precondition", lambda: wm.precondition(wm.Ellipse(), jnp.zeros((0,))), V, "samples at least 1"),
    ("solve_metric", lambda: wm.solve_metric(modulated, PART, X, jnp.zeros(3)), V, "structure"),
    ("solve_metric", lambda: solved(rtol=jnp.nan), V, "1e-5 is the default"),
    ("solve_metric", lambda: solved(rtol=np.inf), V, "1e-5 is the default"),
    ("solve_metric", lambda: solved(atol=-1.0), V, "1e-8 is the default"),
    ("solve_metric", lambda: solved(damping=np.inf), V, "0 is the default"),
    ("solve_metric", lambda: solved(max_steps=0), V, "None leaves it to lineax"),
    ("solve_metric", lambda: solved(max_steps=True), V, r"use int\(\.\.\.\)"),
    ("solve_metric", lambda: solved(points=jnp.ones((2, 3), int)), T, "astype"),
    ("solve_metric", lambda: solved(gradient=jnp.full((2, 3), jnp.nan)), V, "a loss that diverged"),
    ("solve_metric", lambda: solved(points={}, gradient={}), V, "give the points of the manifold"),
    ("infer_context", lambda: wm.infer_context(modulated, X, jnp.ones(2, complex)), T, "give the real part"),
    ("infer_context", lambda: wm.infer_context(ENSEMBLE, X, jnp.zeros(2)), V, "network by network"),
    ("infer_context", lambda: wm.infer_context(lambda x, s: jnp.arange(3), X, jnp.zeros(2)), T, "astype"),
    ("infer_context", lambda: wm.infer_context(modulated, EMPTY, jnp.zeros(2)), V, "no input"),
    ("infer_context", lambda: wm.infer_context(modulated, X, jnp.zeros(0)), V, "no candidate"),
    ("infer_context", lambda: wm.infer_context(modulated, X, jnp.zeros(2), batch=0), V, "500 is the default"),
    # the metric and its spectrum
    ("FunctionMetric", lambda: wm.FunctionMetric(call, NOTHING, X), V, "no floating-point array"),
    ("FunctionMetric", lambda: wm.FunctionMetric(call, COMPLEX, X), T, "two real arrays"),
    ("FunctionMetric", lambda: wm.FunctionMetric(scale, {"a": NAN.layers[0].bias, "b": 1.0}, X), V, "diverged"),
    ("FunctionMetric", lambda: wm.FunctionMetric(call, NET, EMPTY), V, "at least one input"),
    ("FunctionMetric", lambda: wm.FunctionMetric(call, NET, X, batch=0), V, "500 is the default"),
    ("FunctionMetric", lambda: wm.FunctionMetric(batched, NET, X), V, "called with one input"),
    ("FunctionMetric", lambda: wm.FunctionMetric(lambda w, x: (x, x), NET, X), T, "one floating-point array"),
    ("lanczos", lambda: wm.lanczos(metric, PART, 0), V, "at least 1"),
    ("lanczos", lambda: wm.lanczos(metric, jax.tree.map(jnp.zeros_like, PART), 3), V, "not zero"),
    ("lanczos", lambda: wm.lanczos(metric, jnp.ones(3), 3), V, "structure"),
    ("spectrum", lambda: wm.spectrum(metric, 0, key=KEY), V, "between 1 and|at least 1"),
    ("spectrum", lambda: wm.spectrum(metric, 3, key=KEY, dimension=2), V, "leave it out"),
    ("spectral_density", lambda: wm.spectral_density(metric, key=KEY, probes=0), V, "at least 1|positive"),
    ("spectrum", lambda: wm.spectrum(metric, 10**6, key=KEY), V, "between 1 and"),
    ("Spectrum", lambda: wm.spectrum(metric, 2, key=KEY).vector(2), IndexError, "a larger k"),
    ("Spectrum", lambda: wm.spectrum(metric, 2, key=KEY).vector(-1), IndexError, "a larger k"),
    ("Krylov", lambda: wm.lanczos(metric, PART, 3).combine(np.ones(2)), V, "one a vector"),
    ("SpectralDensity", lambda: wm.spectral_density(metric, key=KEY, probes=1).smoothed([-1.0]), V, "leave others out"),
    ("FunctionMetric", lambda: wm.FunctionMetric(scale, TIED, X), V, r"eqx\.nn\.Shared"),
    ("FunctionMetric", lambda: wm.FunctionMetric(picky, NET, X), V, r"called with one input.*x\[None\]"),
    ("FunctionMetric", lambda: wm.FunctionMetric(imaginary, NET, X), T, "must return one floating-point array"),
    ("FunctionMetric", lambda: wm.FunctionMetric(call, NET, X, batch=2.5), T, COUNT),
    ("FunctionMetric", lambda: metric.mv(WHOLE), T, "astype"),
    ("FunctionMetric", lambda: metric.mv(IMAGINARY), T, "two real arrays"),
    ("FunctionMetric", lambda: metric.mv(MANY), V, "structure and shapes"),
    ("infer_context", lambda: wm.infer_context(lambda x, s: picky(s, x), X, jnp.zeros(2)), V, "called with one input"),
    ("infer_context", lambda: wm.infer_context(modulated, X[:, None], jnp.zeros(2)), V, "called with one input"),
    # distances
    ("distances.squared_error", lambda: wm.distances.squared_error(OUTPUTS, OUTPUTS[0]), V, "reshape one of them"),
    ("distances.kl", lambda: wm.distances.kl(OUTPUTS[:, :1], OUTPUTS[:, 0]), V, "reshape one of them"),
    ("distances.hellinger", lambda: wm.distances.hellinger(OUTPUTS[0], OUTPUTS[0, :1]), V, "reshape one of them"),
    ("distances.bhattacharyya", lambda: wm.distances.bhattacharyya(jax.lax.complex(OUTPUTS, OUTPUTS), OUTPUTS), T, "two real arrays"),
    ("distances.kl", lambda: wm.distances.kl.hessian(OUTPUTS[0], OUTPUTS), V, "reshape one of them"),
    ("distances.OutputDistance", lambda: wm.distances.OutputDistance(lambda y, z: (y - z) ** 2)(ARRAY, ARRAY), V, "sum over"),
    # directions and geodesics
    ("direction", lambda: wm.direction(metric), V, "give a key"),
    ("direction", lambda: wm.direction(metric, PART, beta=0.0), V, "1.0 is the default"),
    ("direction", lambda: wm.direction(metric, PART, epsilon=-1.0), V, "1.0 is the default"),
    ("direction", lambda: wm.direction(metric, jnp.ones(3)), V, "structure"),
    ("direction", lambda: wm.direction(metric, NAN), V, "finite"),
    ("direction", lambda: wm.direction(metric, PART, beta=[1.0, 2.0], epsilon=[1.0, 2.0, 3.0]), V, r"beta\[:, None\]"),
    ("direction", lambda: wm.direction(metric, PART, beta=[]), V, "1.0 is the default"),
    ("direction", lambda: wm.direction(metric, PART, dimension=2.5), T, COUNT),
    ("ExactDirections", lambda: wm.ExactDirections(1.0, 1.0, dimension=2.5), T, COUNT),
    ("ExactDirections", lambda: wm.ExactDirections(0.0, 1.0), V, "positive"),
    ("ExactDirections", lambda: wm.ExactDirections(1.0, 1.0, momentum=1.0), V, "0.9 is usual"),
    ("ExactDirections", lambda: wm.ExactDirections(1.0, 1.0, dimension=0), V, "20 is usual|at least 1"),
    ("acceleration", lambda: wm.acceleration(call, NET, jnp.ones(3), X), V, "structure"),
    ("acceleration", lambda: wm.acceleration(call, COMPLEX, COMPLEX, X), T, "two real arrays"),
    ("acceleration", lambda: wm.acceleration(call, NET, NAN, X), V, "not finite"),
    ("acceleration", lambda: wm.acceleration(scale, TIED, TIED, X), V, r"eqx\.nn\.Shared"),
    ("acceleration", lambda: wm.acceleration(imaginary, NET, PART, X), T, "must return one floating-point array"),
    ("acceleration", lambda: wm.acceleration(call, NET, WHOLE, X), T, "astype"),
    ("acceleration", lambda: wm.acceleration(call, NET, PART, X, max_steps=2.5), T, COUNT),
    ("geodesic", lambda: curve(f=scale, weights=TIED, velocity=TIED), V, r"eqx\.nn\.Shared"),
    ("geodesic", lambda: curve(f=pair), T, "must return one floating-point array"),
    ("geodesic", lambda: curve(f=picky), V, "called with one input"),
    ("geodesic", lambda: curve(distance=lambda y, y0: jnp.sum((y - y0) ** 2)), V, "with an embedding"),
    ("geodesic", lambda: curve(f=lambda w, x: call(w, x).astype(jnp.bfloat16)), T, "to float32"),
    ("geodesic", lambda: curve(points=2.5), T, COUNT + "|np.ndarray"),
    ("geodesic", lambda: curve(points=np.array([[0.0, 1.0]])), V, "from 0 to 1"),
    ("geodesic", lambda: curve(points=1), V, "at least 2"),
    ("geodesic", lambda: curve(velocity=NAN), V, "not finite"),
    ("geodesic", lambda: curve(inputs=EMPTY), V, "at least one input"),
    ("geodesic", lambda: curve(weights=NOTHING), V, "no floating-point array"),
    # walks
    ("walk_sequence", lambda: sequence([]), V, "give at least one"),
    ("walk_sequence", lambda: sequence(memories=[X]), V, "as many memories"),
    ("walk_sequence", lambda: sequence([task, X]), T, r"wm\.objectives|AbstractObjective"),
    ("walk_sequence", lambda: sequence([task, lambda ends: X]), T, r"wm\.objectives"),
    ("walk_sequence", lambda: sequence(method=0.1), T, r"wm\.PenalisedDescent|AbstractMethod"),
    ("walk_sequence", lambda: sequence(method=lambda ends: 0.1), T, "no method of walk|AbstractMethod"),
    ("walk_sequence", lambda: sequence(memories=[X, EMPTY]), V, "at least one input"),
    ("walk_sequence", lambda: sequence(memories=[X, X[:, :2]]), V, r"than memories\[0\]"),
    ("walk_sequence", lambda: sequence(method=wm.PenalisedDescent(optax.sgd(0.1), 1.0, 13)), V, "lower it"),
    ("walk_sequence", lambda: sequence(steps=[1]), V, "one for each"),
    ("walk_sequence", lambda: sequence(steps=0), V, "at least 1"),
    ("walk_sequence", lambda: sequence(steps=1.5), T, COUNT),
    ("walk_sequence", lambda: sequence(method=wm.ExactDirections(1.0, 0.1), renew=True), V, "leave renew out"),
    ("walk", lambda: walk(weights=TIED, moving={"a": True, "b": False}), V, r"nn\.Shared"),
    ("walk", lambda: walk(steps=0), V, "at least 1"),
    ("walk", lambda: walk(steps=2.5), T, COUNT),
    ("walk", lambda: walk(method=optax.sgd), T, r"wm\.PenalisedDescent|AbstractMethod"),
    ("walk", lambda: walk(objective=optax.sgd), T, r"wm\.objectives|AbstractObjective"),
    ("walk", lambda: walk(f=pair), T, "must return one floating-point array"),
    ("walk", lambda: walk(f=picky), V, "called with one input"),
    ("walk", lambda: walk(reference=lambda w: eqx.nn.Linear(3, 1, key=KEY)), V, "weights of the same network"),
    ("walk", lambda: walk(target=np.float32("nan")), V, "leave it out"),
    ("walk", lambda: walk(drift_limit=np.float64("nan")), V, "leave it out"),
    ("walk", lambda: walk(record=np.array([0.5])), V, r"use int\(\.\.\.\)"),
    ("walk", lambda: walk(batch=0), V, "500 is the default"),
    ("walk", lambda: walk(keep=-1), V, "leave it out"),
    ("walk", lambda: walk(drift_limit=0.0), V, "leave it out for no limit"),
    ("walk", lambda: walk(drift_limit=jnp.nan), V, "leave it out for no limit"),
    ("walk", lambda: walk(target=float("nan")), V, "leave it out"),
    ("walk", lambda: walk(objective=None, target=1.0), V, "give a function"),
    ("walk", lambda: walk(objective=None), V, r"give an objective, or walk by wm\.ExactDirections"),
    ("walk", lambda: walk(record=0), V, "record must be at least 1"),
    ("walk", lambda: walk(record=[7]), V, "between 0 and 2"),
    ("walk", lambda: walk(memory=EMPTY), V, "at least one input"),
    ("walk", lambda: walk(held_out=EMPTY), V, "at least one input"),
    ("walk", lambda: walk(memory=X * jnp.nan), V, "finite numbers"),
    ("walk", lambda: walk(f=batched), V, "called with one input"),
    ("walk", lambda: walk(weights=NOTHING), V, "no floating-point array"),
    ("walk", lambda: walk(f=scale, weights=COMPLEX), T, "two real arrays"),
    ("walk", lambda: walk(f=scale, weights=TIED), V, r"eqx\.nn\.Shared"),
    ("walk", lambda: walk(weights=eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "b", mode="batch")[0]), V, "LayerNorm"),
    ("walk", lambda: walk(objective=wm.objectives.Task(call, X, LABELS + 2, 4)), V, "number the classes from 0"),
    ("PenalisedDescent", lambda: wm.PenalisedDescent(optax.sgd(1.0), 1e39), V, "scale the objective instead"),
    ("objectives.Penalised", lambda: penalised(1e-50), V, "scale the objective instead"),
    ("PenalisedDescent", lambda: wm.PenalisedDescent(optax.sgd(1.0), -1.0), V, "finite and at least 0"),
    ("PenalisedDescent", lambda: wm.PenalisedDescent(optax.sgd(1.0), jnp.inf), V, "finite and at least 0"),
    ("PenalisedDescent", lambda: wm.PenalisedDescent(optax.sgd(1.0), memory_batch=0), V, "leave it out"),
    ("PenalisedDescent", lambda: walk(method=wm.PenalisedDescent(optax.sgd(1.0), memory_batch=13)), V, "leave it out"),
    ("PenalisedDescent", lambda: wm.PenalisedDescent(optax.sgd), T, r"optax\.sgd\(0\.1\)|GradientTransformation"),
    ("PenalisedDescent", lambda: wm.PenalisedDescent(optax.sgd(1.0), memory_batch=2.5), T, COUNT),
    # objectives
    ("objectives.Task", lambda: wm.objectives.Task(call, X, LABELS[:3]), V, "each input needs one label"),
    ("objectives.Task", lambda: wm.objectives.Task(call, X, LABELS, 0), V, "between 1 and"),
    ("objectives.Task", lambda: wm.objectives.Task(call, X, LABELS, 13), V, "between 1 and"),
    ("objectives.Task", lambda: wm.objectives.Task(call, X, LABELS - 1, 4), V, "number the classes from 0"),
    ("objectives.Task", lambda: wm.objectives.Task(call, X, LABELS.astype(float), 4), T, "astype"),
    ("objectives.Task", lambda: wm.objectives.Task(call, X, LABELS[:, None], 4), V, "argmax"),
    ("objectives.Task", lambda: task.value(eqx.nn.Linear(3, 2, key=KEY), np.arange(3)), V, "an output for each"),
    ("objectives.Task", lambda: wm.objectives.Task(call, X, LABELS, 2.5), T, COUNT),
    ("objectives.cross_entropy", lambda: wm.objectives.cross_entropy(OUTPUTS[0], HOT[0]), V, "argmax"),
    ("objectives.cross_entropy", lambda: wm.objectives.cross_entropy(OUTPUTS, LABELS[0]), T, "one vector"),
    ("objectives.shuffled", lambda: wm.objectives.shuffled(KEY, 5, 2.5), T, COUNT),
    ("objectives.Sparsity", lambda: wm.objectives.Sparsity(np.ones(2)), (V, T), "one real number|float"),
    ("objectives.cross_entropy", lambda: wm.objectives.cross_entropy(OUTPUTS[0], jnp.array(4)), V, "between 0 and 3"),
    ("objectives.cross_entropy", lambda: wm.objectives.cross_entropy(OUTPUTS[0], jnp.array(-1)), V, "between 0 and 3"),
    ("objectives.cross_entropy", lambda: wm.objectives.cross_entropy(jnp.ones(1), jnp.array(0)), V, "one output a class"),
    ("objectives.Penalised", lambda: penalised(-1.0), V, "strength"),
    ("objectives.Penalised", lambda: penalised(np.nan), V, "strength"),
    ("objectives.Penalised", lambda: penalised(1.0, batch=13, count=12), V, "between 1 and"),
    ("objectives.Penalised", lambda: penalised(1.0, batch=4), V, "count"),
    ("objectives.Penalised", lambda: penalised(1.0, batch=2.5, count=12), T, COUNT),
    ("objectives.shuffled", lambda: wm.objectives.shuffled(KEY, 5, 10), V, "between 1 and"),
    ("objectives.shuffled", lambda: wm.objectives.shuffled(KEY, 5, 0), V, "between 1 and"),
    ("objectives.Sparsity", lambda: wm.objectives.Sparsity(1.0), V, r"in \[0, 1\)"),
    ("objectives.project", lambda: wm.objectives.project(NET, -0.1), V, r"in \[0, 1\)"),
    ("objectives.project", lambda: wm.objectives.project({"b": jnp.ones(3)}, 0.5), V, "another prunable"),
    ("objectives.project", lambda: wm.objectives.project(COMPLEX, 0.5), T, "two real arrays"),
    ("objectives.project", lambda: wm.objectives.project(TIED, 0.5, lambda x: True), V, r"eqx\.nn\.Shared"),
    # rivals in continual learning
    ("rivals.fisher_diagonal", lambda: wm.rivals.fisher_diagonal(call, NET, EMPTY), V, "at least one input"),
    ("rivals.fisher_diagonal", lambda: wm.rivals.fisher_diagonal(call, NET, X, batch=-1), V, "leave it out"),
    ("rivals.fisher_diagonal", lambda: wm.rivals.fisher_diagonal(batched, NET, X), V, "called with one input"),
    ("rivals.fisher_diagonal", lambda: wm.rivals.fisher_diagonal(one_logit, NET, X), V, "one output a class"),
    ("rivals.fisher_diagonal", lambda: wm.rivals.fisher_diagonal(scale, COMPLEX, X), T, "two real arrays"),
    ("rivals.fisher_diagonal", lambda: wm.rivals.fisher_diagonal(scale, TIED, X), V, r"eqx\.nn\.Shared"),
    ("rivals.ewc_penalty", lambda: wm.rivals.ewc_penalty(NET, eqx.nn.Linear(3, 2, key=KEY), PART), V, "structure"),
    ("rivals.ewc_penalty", lambda: wm.rivals.ewc_penalty(NET, NET, MANY), V, "structure"),
    ("rivals.l2_penalty", lambda: wm.rivals.l2_penalty({"a": ARRAY}, {"a": jnp.ones(1)}), V, "structure"),
    ("rivals.l2_penalty", lambda: wm.rivals.l2_penalty(COMPLEX, COMPLEX), T, "two real arrays"),
    ("rivals.replay_loss", lambda: wm.rivals.replay_loss(call, NET, X, LABELS + 1), V, "an output for each"),
    ("rivals.replay_loss", lambda: wm.rivals.replay_loss(call, NET, X, LABELS - 1), V, "number the classes from 0"),
    ("rivals.replay_loss", lambda: wm.rivals.replay_loss(batched, NET, X, LABELS), V, "called with one input"),
    ("rivals.replay_loss", lambda: wm.rivals.replay_loss(one_logit, NET, X, 0 * LABELS), V, "one output a class"),
    ("rivals.der_loss", lambda: wm.rivals.der_loss(call, NET, X, OUTPUTS[:, :1]), V, "earlier network"),
    ("rivals.der_loss", lambda: wm.rivals.der_loss(call, NET, X, OUTPUTS, alpha=-1.0), V, "alpha must be finite"),
    ("rivals.der_loss", lambda: wm.rivals.der_loss(call, NET, X, OUTPUTS, LABELS, beta=jnp.nan), V, "beta must be finite"),
    ("rivals.der_loss", lambda: wm.rivals.der_loss(call, NET, X, OUTPUTS, LABELS + 1), V, "an output for each"),
    ("rivals.lwf_loss", lambda: wm.rivals.lwf_loss(call, NET, NET, X, 9), V, "between 2 and the number of outputs, 4"),
    ("rivals.lwf_loss", lambda: wm.rivals.lwf_loss(call, NET, NET, X, 1), V, "between 2 and"),
    ("rivals.lwf_loss", lambda: wm.rivals.lwf_loss(call, NET, NET, X, 3, 0.0), V, "above 0"),
    ("rivals.lwf_loss", lambda: wm.rivals.lwf_loss(call, NET, NET, X, 3, -1.0), V, "above 0"),
    ("rivals.lwf_loss", lambda: wm.rivals.lwf_loss(call, NET, NET, X, 3, jnp.nan), V, "finite and above 0"),
    ("rivals.lwf_loss", lambda: wm.rivals.lwf_loss(call, NET, NET, EMPTY, 3), V, "at least one input"),
    ("rivals.gem_projection", lambda: wm.rivals.gem_projection(PART, MANY, -0.5), V, "margin must be finite and at least 0"),
    ("rivals.gem_projection", lambda: wm.rivals.gem_projection(PART, MANY, jnp.nan), V, "margin must be finite"),
    ("rivals.gem_projection", lambda: wm.rivals.gem_projection(PART, MANY, sweeps=0), V, "1000 is the default"),
    ("rivals.gem_projection", lambda: wm.rivals.gem_projection(ARRAY, jnp.ones((0, 3))), V, "at least one memory"),
    ("rivals.gem_projection", lambda: wm.rivals.gem_projection(PART, PART), V, "one more, first axis"),
    ("rivals.gem_projection", lambda: wm.rivals.gem_projection(COMPLEX, COMPLEX), T, "two real arrays|one more"),
    ("rivals.agem_projection", lambda: wm.rivals.agem_projection(PART, MANY), V, "gradients of the same weights"),
    ("rivals.agem_projection", lambda: wm.rivals.agem_projection(jnp.ones((2, 3)), jnp.ones((3, 2))), V, "same weights"),
    ("rivals.ogd_basis", lambda: wm.rivals.ogd_basis(call, NET, EMPTY, LABELS[:0]), V, "at least one input"),
    ("rivals.ogd_basis", lambda: wm.rivals.ogd_basis(call, NET, X, LABELS + 1), V, "an output for each"),
    ("rivals.ogd_basis", lambda: wm.rivals.ogd_basis(call, NET, X, LABELS, batch=0), V, "batch must be at least 1"),
    ("rivals.ogd_basis", lambda: wm.rivals.ogd_basis(call, NET, X, LABELS, rtol=1.0), V, r"rtol must be in \[0, 1\)"),
    ("rivals.ogd_basis", lambda: wm.rivals.ogd_basis(batched, NET, X, LABELS), V, "called with one input"),
    ("rivals.ogd_projection", lambda: wm.rivals.ogd_projection(PART, jnp.ones((2, 3))), V, "the same weights"),
    ("rivals.fisher_diagonal", lambda: wm.rivals.fisher_diagonal(picky, NET, X), V, "called with one input"),
    ("rivals.fisher_diagonal", lambda: wm.rivals.fisher_diagonal(call, NET, X, batch=1.5), T, COUNT),
    ("rivals.ewc_penalty", lambda: wm.rivals.ewc_penalty(NET, NET, IMAGINARY), T, "two real arrays"),
    ("rivals.replay_loss", lambda: wm.rivals.replay_loss(call, NET, X, LABELS[:, None]), V, r"labels\.reshape\(-1\)"),
    ("rivals.replay_loss", lambda: wm.rivals.replay_loss(call, NET, X, HOT), V, "argmax"),
    ("rivals.replay_loss", lambda: wm.rivals.replay_loss(picky, NET, X, LABELS), V, "called with one input"),
    ("rivals.der_loss", lambda: wm.rivals.der_loss(call, NET, X, OUTPUTS, LABELS[:, None]), V, r"labels\.reshape\(-1\)"),
    ("rivals.der_loss", lambda: wm.rivals.der_loss(call, NET, X, jax.lax.complex(OUTPUTS, OUTPUTS)), T, "two real arrays"),
    ("rivals.der_loss", lambda: wm.rivals.der_loss(call, NET, X, HOT), T, "astype"),
    ("rivals.der_loss", lambda: wm.rivals.der_loss(call, NET, X, OUTPUTS, alpha=jnp.ones(2)), V, "one real number"),
    ("rivals.lwf_loss", lambda: wm.rivals.lwf_loss(call, NET, NET, X, 2.0), T, COUNT),
    ("rivals.lwf_loss", lambda: wm.rivals.lwf_loss(picky, NET, NET, X, 2), V, "called with one input"),
    ("rivals.lwf_loss", lambda: wm.rivals.lwf_loss(call, NET, NET, X, 2, 1j), V, "one real number"),
    ("rivals.gem_projection", lambda: wm.rivals.gem_projection(PART, MANY, sweeps=float("nan")), T, COUNT),
    ("rivals.gem_projection", lambda: wm.rivals.gem_projection(PART, MANY, ARRAY), V, "one real number"),
    ("rivals.gem_projection", lambda: wm.rivals.gem_projection(jnp.arange(3), jnp.ones((1, 3))), T, "astype"),
    ("rivals.agem_projection", lambda: wm.rivals.agem_projection(WHOLE, PART), T, "astype"),
    ("rivals.ogd_basis", lambda: wm.rivals.ogd_basis(call, NET, X, HOT), V, "argmax"),
    ("rivals.ogd_basis", lambda: wm.rivals.ogd_basis(picky, NET, X, LABELS), V, "called with one input"),
    ("rivals.ogd_basis", lambda: wm.rivals.ogd_basis(call, NET, X, LABELS, batch=1.5), T, COUNT),
    ("rivals.ogd_projection", lambda: wm.rivals.ogd_projection(jnp.arange(3), jnp.ones((2, 3))), T, "astype"),
    ("rivals.ogd_projection", lambda: wm.rivals.ogd_projection(ARRAY, jnp.ones((2, 3), jnp.complex64)), T, "two real arrays"),
    ("rivals.ogd_projection", lambda: wm.rivals.ogd_projection(COMPLEX["w"], jnp.ones((2, 3))), T, "two real arrays"),
    # many tasks
    ("rivals.ewc_penalties", lambda: wm.rivals.ewc_penalties(NET, [NET], []), V, "for each start"),
    ("rivals.ewc_penalties", lambda: wm.rivals.ewc_penalties(NET, [NET], [MANY]), V, "structure"),
    ("rivals.online_ewc", lambda: wm.rivals.online_ewc(None, NET, PART, 1.5), V, r"in \[0, 1\].*1 forgets nothing"),
    ("rivals.online_ewc", lambda: wm.rivals.online_ewc(None, NET, PART, -0.5), V, "gamma must be finite and at least 0"),
    ("rivals.online_ewc", lambda: wm.rivals.online_ewc(None, NET, MANY), V, "structure"),
    ("rivals.online_ewc", lambda: wm.rivals.online_ewc(None, NET, IMAGINARY), T, "two real arrays"),
    ("rivals.online_ewc", lambda: wm.rivals.online_ewc(wm.rivals.Anchor(NET, MANY), NET, PART), V, "the anchor's fisher"),
    ("rivals.class_masks", lambda: wm.rivals.class_masks([], 4), V, "give the classes of at least one"),
    ("rivals.class_masks", lambda: wm.rivals.class_masks([(1,)], 4), V, "at least two classes"),
    ("rivals.class_masks", lambda: wm.rivals.class_masks([(1, 1)], 4), V, "each once"),
    ("rivals.class_masks", lambda: wm.rivals.class_masks([(1, 4)], 4), V, "between 0 and 3"),
    ("rivals.class_masks", lambda: wm.rivals.class_masks([(1, 2.0)], 4), T, COUNT),
    ("rivals.class_masks", lambda: wm.rivals.class_masks([0, 1], 4), T, r"give \[\(0, 1\)|Sequence"),
    ("rivals.class_masks", lambda: wm.rivals.class_masks([(0, 1)], 1), V, "at least 2"),
    ("rivals.told", lambda: wm.rivals.told(OUTPUTS[0], np.ones((3, 4), bool)), (V, T), r"wm\.rivals\.class_masks|mask"),
    ("rivals.told", lambda: wm.rivals.told(LABELS[:4], np.ones(4, bool)), T, "astype|Float"),
    ("rivals.told", lambda: wm.rivals.told(OUTPUTS, np.ones(4)), T, r"wm\.rivals\.class_masks|Bool"),
    ("rivals.told", lambda: wm.rivals.told(OUTPUTS, np.ones(3, bool)), (V, T), r"wm\.rivals\.class_masks|mask"),
    ("rivals.told", lambda: wm.rivals.told(OUTPUTS, np.arange(4) == 1), V, "widen the mask"),
    ("rivals.told_cross_entropy", lambda: wm.rivals.told_cross_entropy(OUTPUTS[0], LABELS[0], np.arange(4) > 1), V, "give the mask of its task"),
    ("rivals.told_cross_entropy", lambda: wm.rivals.told_cross_entropy(OUTPUTS[0], LABELS[0] + 9, np.arange(4) > 1), V, "between 0 and 3"),
    ("rivals.told_cross_entropy", lambda: wm.rivals.told_cross_entropy(OUTPUTS[0], ARRAY[0], np.arange(4) > 1), T, "astype"),
    # relevance maps
    ("rivals.relevance.split", lambda: mapped(sharpness=0.0), V, "sharpness must be finite and above 0"),
    ("rivals.relevance.split", lambda: mapped(own=("head",)), V, "choose among 'layers'"),
    ("rivals.relevance.split", lambda: mapped(own=("layers",)), V, "name fewer layers in own"),
    ("rivals.relevance.split", lambda: mapped([NET.layers[0], NET.layers[0]]), V, r"nn\.Shared"),
    ("rivals.relevance.split", lambda: mapped(NOTHING, own=("head",)), V, "leave own out"),
    ("rivals.relevance.split", lambda: mapped(modulated), V, r"net\.at\(s\)"),
    ("rivals.relevance.split", lambda: mapped([eqx.nn.Linear(2, 2, dtype=jnp.complex64, key=KEY)]), T, "two real arrays"),
    ("rivals.relevance.apply", lambda: wm.rivals.relevance.apply({}, mapped()[1]), V, "structure"),
    ("rivals.relevance.apply", lambda: wm.rivals.relevance.apply(*mapped(), mapped()[0]), T, "give what freeze returns"),
    ("rivals.relevance.penalty", lambda: wm.rivals.relevance.penalty(wm.rivals.relevance.TaskMap({}, NET, 1.0)), V, r"by wm\.rivals\.relevance\.split"),
    ("rivals.relevance.free", lambda: wm.rivals.relevance.free(mapped()[0], mapped()[0]), T, "give what freeze returns"),
    ("rivals.relevance.free", lambda: wm.rivals.relevance.free({}, mapped()[0]), V, "structure"),
    ("rivals.relevance.rounded", lambda: wm.rivals.relevance.rounded(mapped()[1], 1.0), V, r"in \[0, 1\)"),
    ("rivals.relevance.freeze", lambda: wm.rivals.relevance.freeze(mapped()[1]), V, r"freeze\(rounded\(task\)\)"),
    ("rivals.relevance.freeze", lambda: wm.rivals.relevance.freeze(wm.rivals.relevance.rounded(mapped()[1]), mapped()[0]), T, "give what freeze returns"),
    ("rivals.relevance.share", lambda: wm.rivals.relevance.share(mapped()[0]), V, "give what freeze returns"),
    # generative replay
    ("rivals.generative.VAE", lambda: wm.rivals.generative.VAE((1, 6, 8), key=KEY), V, "give fewer widths"),
    ("rivals.generative.VAE", lambda: wm.rivals.generative.VAE((1, 8, 8), widths=(), key=KEY), V, "at least one"),
    ("rivals.generative.VAE", lambda: wm.rivals.generative.VAE((1, 8, 8), 0, key=KEY), V, "sizes must be positive"),
    ("rivals.generative.VAE", lambda: coder().encode(IMAGE), V, "give in_shape"),
    ("rivals.generative.VAE", lambda: coder().decode(ARRAY), V, r"jax\.vmap for a batch"),
    ("rivals.generative.kl", lambda: wm.rivals.generative.kl(ARRAY, ARRAY[:2]), (V, T), r"vae\.encode|log_variance"),
    ("rivals.generative.kl", lambda: wm.rivals.generative.kl(LABELS, LABELS), T, "astype|Float"),
    ("rivals.generative.elbo", lambda: wm.rivals.generative.elbo(coder(), IMAGE[None], key=KEY), V, "in_shape the size"),
    ("rivals.generative.elbo", lambda: wm.rivals.generative.elbo(coder(), jnp.zeros((0, 1, 4, 4)), key=KEY), V, "n of at least 1"),
    ("rivals.generative.elbo", lambda: wm.rivals.generative.elbo(coder(), jnp.zeros((1, 1, 4, 4), jnp.float16), key=KEY), T, r"images\.astype"),
    ("rivals.generative.sample", lambda: wm.rivals.generative.sample(coder(), 0, key=KEY), V, "at least 1"),
    ("rivals.generative.sample", lambda: wm.rivals.generative.sample(coder(), 1.5, key=KEY), T, COUNT),
    ("rivals.generative.replayed", lambda: wm.rivals.generative.replayed(coder(), pair, NET, 0, key=KEY), V, "at least 1"),
    ("rivals.generative.replayed", lambda: wm.rivals.generative.replayed(coder(), one_logit, NET, 1, key=KEY), V, "one output a class"),
    ("rivals.generative.replayed", lambda: wm.rivals.generative.replayed(coder(), lambda w, x: (x, x), NET, 1, key=KEY), T, "must return its logits"),
    ("rivals.generative.replayed", lambda: wm.rivals.generative.replayed(coder(), lambda w, x: jnp.full(3, jnp.nan), NET, 1, soft=False, key=KEY), V, "not finite; look where training diverged"),
    # low-rank adaptation
    ("rivals.lora.adapt", lambda: adapted(rank=0), V, "rank must be at least 1"),
    ("rivals.lora.adapt", lambda: adapted(rank=5), V, "train a layer in full instead"),
    ("rivals.lora.adapt", lambda: adapted(rank=1.5), T, COUNT),
    ("rivals.lora.adapt", lambda: adapted(alpha=0.0), V, "alpha must be finite and above 0"),
    ("rivals.lora.adapt", lambda: adapted(alpha=jnp.nan), V, "alpha must be finite and above 0"),
    ("rivals.lora.adapt", lambda: adapted(dropout=1.0), V, r"dropout must be in \[0, 1\)"),
    ("rivals.lora.adapt", lambda: adapted(where=("query",)), V, "choose among 'layers'"),
    ("rivals.lora.adapt", lambda: adapted(where=()), V, r"such as \(\"query\", \"value\"\)"),
    ("rivals.lora.adapt", lambda: adapted(adapted()), V, "merge it first"),
    ("rivals.lora.adapt", lambda: adapted(modulated), V, "before it is modulated"),
    ("rivals.lora.adapt", lambda: adapted({"a": NET.layers[0], "b": NET.layers[0]}, where="a"), V, r"nn\.Shared"),
    ("rivals.lora.adapt", lambda: adapted(jax.tree.map(lambda x: x.astype(jnp.complex64), PART)), T, "two real arrays"),
    ("rivals.lora.AdaptedLinear", lambda: adapted(dropout=0.5)(X[0]), V, r"inference_mode\(adapted\)"),
    ("rivals.lora.trainable", lambda: wm.rivals.lora.trainable(NET), V, r"make some by wm\.rivals\.lora\.adapt"),
    ("rivals.lora.trainable", lambda: wm.rivals.lora.trainable(adapted()), V, r"give full=\(\) for the factors alone"),
    ("rivals.lora.merge", lambda: wm.rivals.lora.merge(NET), V, "use it as it is"),
    ("rivals.lora.merge", lambda: wm.rivals.lora.merge(wm.modulate(adapted(), wm.Line(), key=KEY)), V, r"merge net\.at\(s\)"),
    # networks
    ("models.CNN", lambda: wm.models.CNN(units=2.5, key=KEY), T, COUNT + "|units"),
    ("models.ResNet", lambda: wm.models.ResNet(width=2.5, key=KEY), T, COUNT + "|width"),
    ("models.CNN", lambda: wm.models.CNN((1, 4, 4), key=KEY), V, "give fewer widths"),
    ("models.CNN", lambda: wm.models.CNN(classes=0, key=KEY), V, "must be positive"),
    ("models.CNN", lambda: wm.models.CNN(**SMALL, key=KEY)(jnp.zeros((3, 8, 8))), V, r"jax\.vmap for a batch"),
    ("models.CNN", lambda: wm.models.CNN(**SMALL, key=KEY)(jnp.zeros((1, 9, 12))), V, "in_shape the size of the images"),
    ("models.LayerNormCNN", lambda: wm.models.LayerNormCNN(units=0, key=KEY), V, "must be positive"),
    ("models.LayerNormCNN", lambda: wm.models.LayerNormCNN(**SMALL, key=KEY)(jnp.zeros((1, 4, 4))), V, "in_shape"),
    ("models.LayerNormCNN", lambda: halved(wm.models.LayerNormCNN(**SMALL, key=KEY))(IMAGE.astype(jnp.float16)), T, "bfloat16, or of float32"),
    ("models.ResNet", lambda: halved(wm.models.ResNet((1, 8, 8), width=2, blocks=(1,), key=KEY))(IMAGE.astype(jnp.float16)), T, "bfloat16, or of float32"),
    ("models.LeNet300", lambda: wm.models.LeNet300(units=(0,), key=KEY), V, "must be positive"),
    ("models.LeNet300", lambda: wm.models.LeNet300((1, 2, 2), key=KEY)(IMAGE), V, "in_shape the size of the images"),
    ("models.Transformer", lambda: wm.models.Transformer(key=KEY), V, "give either vocabulary, for texts, or in_shape"),
    ("models.Transformer", lambda: wm.models.Transformer(vocabulary=5, heads=5, key=KEY), V, "a multiple of the heads"),
    ("models.Transformer", lambda: wm.models.Transformer(vocabulary=5, depth=2.5, key=KEY), T, COUNT + "|depth"),
    ("models.load_pretrained", lambda tmp: wm.models.load_pretrained(tmp), V, "a folder that save_pretrained has written"),
    ("models.load_pretrained", lambda: wm.models.load_pretrained("./nothing"), V, r"give that of config\.json"),
    ("models.save_pretrained", lambda tmp: wm.models.save_pretrained(NET, tmp), V, "takes a Transformer.*merge an adapted"),
    ("models.ResNet", lambda: wm.models.ResNet(norm="batch", key=KEY), V, '"layer" or "group"'),
    ("models.ResNet", lambda: wm.models.ResNet(blocks=(), key=KEY), V, "at least one stage"),
    ("models.ResNet", lambda: wm.models.ResNet(width=0, key=KEY), V, "must be positive"),
    ("models.ResNet", lambda: wm.models.ResNet(width=2, blocks=(1,), key=KEY)(IMAGE), V, r"jax\.vmap for a batch"),
    # conditioning
    ("rivals.Unconditioned", lambda: wm.rivals.Unconditioned(in_shape=(1, 4, 4), key=KEY), V, "give fewer widths"),
    ("rivals.Concat", lambda: wm.rivals.Concat(inputs=0, key=KEY), V, "must be positive"),
    ("rivals.Concat", lambda: wm.rivals.Concat(inputs=3, **SMALL, key=KEY)(IMAGE, 0.1), V, "give inputs the length"),
    ("rivals.Concat", lambda: wm.rivals.Concat(lambda s: jnp.stack([s, s]), **SMALL, key=KEY)(IMAGE, jnp.zeros(2)), V, r"jax\.vmap for a batch"),
    ("rivals.Embed", lambda: wm.rivals.Embed(width=0, key=KEY), V, "must be positive"),
    ("rivals.Embed", lambda: wm.rivals.Embed(inputs=3, **SMALL, key=KEY)(IMAGE, 0.1), V, "give inputs the length"),
    ("rivals.FiLM", lambda: wm.rivals.FiLM(width=0, key=KEY), V, "must be positive"),
    ("rivals.FiLM", lambda: wm.rivals.FiLM(inputs=3, **SMALL, key=KEY)(IMAGE, 0.1), V, "give inputs the length"),
    # the lab
    ("load_dataset", lambda: wm.load_dataset("mnist6k", "train"), V, "choose one of"),
    ("load_dataset", lambda: wm.load_dataset("mnist5k", "train", 0), V, "None for all rows"),
    ("load_dataset", lambda: wm.load_dataset("mnist5k", "train", True), V, r"use int\(\.\.\.\)"),
    ("load_dataset", lambda: wm.load_dataset("mnist5k", "validation"), V, "train"),
    ("load_splits", lambda: wm.load_splits("mnist5k", 10, 5, 5, pool=5), V, "pool must divide"),
    ("load_splits", lambda: wm.load_splits("mnist6k", 10, 5, 5), V, "choose one of"),
    ("load_texts", lambda: wm.load_texts("sst3", "train", None, 9), V, "choose one of texts"),
    ("load_texts", lambda: wm.load_texts("mnist5k", "train", None, 9), V, r"wm\.load_dataset loads this one"),
    ("load_texts", lambda: wm.load_texts("sst2", "train", None, 0), V, "length, which counts the tokens"),
    ("load_texts", lambda: wm.load_texts("sst2", "train", None, True), V, r"use int\(\.\.\.\)"),
    ("load_texts", lambda: wm.load_texts("sst2", "train", None, 9, 0), V, "None for all rows"),
    ("load_texts", lambda tmp: wm.load_texts("sst2", "train", tmp, 9), (V, ImportError), r"holds tokenizer\.json|wmlib\[texts\]"),
    ("load_words", lambda: wm.load_words("sst2", "train", None, 9), V, r"wm\.load_texts loads this one"),
    ("load_words", lambda: wm.load_words("wikitext-2-raw-v1", "test", None, 9, 0), V, "None for all blocks"),
    ("load_words", lambda: wm.load_words("wikitext-2-raw-v1", "test", None, 9), (V, ImportError), r"fast tokenizer of|wmlib\[texts\]"),
    ("preset", lambda: wm.preset(fast=dict(seeds=1)), V, "presets are named"),
    ("preset", lambda: wm.preset(), V, "presets are named"),
    ("preset", lambda: wm.preset(quick=dict(seeds=0)), V, "whole number of at least 1"),
    ("Preset", lambda: wm.preset(quick=dict(seeds=1)).steps, AttributeError, "it has name, seeds"),
    ("sweep", swept([]), V, "at least one configuration"),
    ("sweep", swept([dict(seed=1)]), V, "something else"),
    ("sweep", swept([dict(a=1), dict(a=1)]), V, "give each one once"),
    ("sweep", swept(dict(a="xy")), V, r"write \[value\]"),
    ("transforms.rotate", lambda: wm.transforms.rotate(jnp.zeros((1, 8, 9)), 0.1), V, "square image"),
    ("lab.fingerprint", lambda: fingerprint(len), V, "give a function that def makes"),
    ("lab.t_interval", lambda: figures.t_interval([]), V, "at least one run"),
    ("lab.t_interval", lambda: figures.t_interval([1.0, 2.0], confidence=2.0), V, "0.95 is usual"),
    ("lab.principal_plane", lambda: figures.principal_plane(jnp.zeros((1, 5))), V, "both at least 2"),
    ("lab.read_claims", lambda tmp: verdicts.read_claims(tmp / "none.toml"), FileNotFoundError, "write them there"),
    ("lab.read_claims", claims("a = 1"), V, r"\[\[claim\]\]"),
    ("lab.read_claims", claims('[[claim]]\ntext = "A"\nsource = "Fig. 1"\n'), V, r"add a table \[\[claim.compare\]\]"),
    ("lab.read_claims", claims("[[claim]\n"), V, "is not TOML"),
]  # fmt: skip

RESULTS = {  # made by the library, never by a caller
    "Dataset", "Splits", "Texts", "Words", "Preset", "InferredContext", "MetricSolution", "BasisPoints", "ManifoldArray", "Direction",
    "Geodesic", "InvariantDimension", "Krylov", "Path", "SpectralDensity", "Spectrum", "rivals.Anchor",
    "rivals.relevance.TaskMap",
}  # fmt: skip
UNCHECKED = {
    "objectives.AbstractObjective": "abstract",
    "objectives.matrices": "asks an array for its axes",
    "transforms.mix_noise": "any numbers and any shape; the two shapes are one by its annotation",
}


@pytest.mark.parametrize(("name", "bad", "error", "cure"), TABLE, ids=[f"{i}-{row[0]}" for i, row in enumerate(TABLE)])
def test_a_bad_argument_is_answered_by_its_cure(name, bad, error, cure, tmp_path, monkeypatch):
    monkeypatch.setenv("WMLIB_PRESET", "quick")
    with pytest.raises(error, match=cure):
        bad(tmp_path) if inspect.signature(bad).parameters else bad()


def test_the_table_is_long_enough():
    assert len(TABLE) >= 100


def test_every_public_callable_is_in_the_table():
    own = {name: getattr(wm, name) for name in dir(wm) if not name.startswith("_")}
    for name in (
        "objectives",
        "distances",
        "models",
        "rivals",
        "rivals.lora",
        "rivals.relevance",
        "rivals.generative",
        "transforms",
    ):
        module = operator.attrgetter(name)(wm)
        here = {k: v for k, v in vars(module).items() if getattr(v, "__module__", "").startswith(module.__name__)}
        own |= {f"{name}.{k}": v for k, v in here.items() if not k.startswith("_")}
    own = {name for name, thing in own.items() if inspect.isclass(thing) or inspect.isroutine(thing)}
    assert own - {row[0] for row in TABLE} - RESULTS - set(UNCHECKED) == set()
