"""The installed wheel, tried in a clean environment: `core` before the extra `lab` is there, `lab` after."""

import importlib
import importlib.metadata
import importlib.util
import operator
import pkgutil
import re
import sys
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import wmlib as wm

CURE = 'pip install "wmlib[lab]"'
EXTRA = [re.split(r"[^\w-]", line)[0] for line in importlib.metadata.requires("wmlib") if "lab" in line.split(";")[-1]]


def is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def answers_with_the_cure(use) -> None:
    said = "nothing"
    try:
        use()
    except ImportError as error:
        said = str(error)
    assert CURE in said, f"without the extra, this was said: {said}"


def needs_the_extra(module: pkgutil.ModuleInfo) -> bool:
    """Whether a module, or the one that a name of the last release leads to, begins by asking for the extra."""
    place = Path(wm.__path__[0], "lab", f"{module.name.split('.')[-1]}.py")
    return place.exists() and "from . import _extra" in place.read_text(encoding="utf-8")


def core() -> None:
    assert len(EXTRA) == 9, EXTRA
    assert not [name for name in EXTRA if is_installed(name)]
    assert not [name for name in ("torch", "scikit-learn", "pytest", "jupyter-book") if is_installed(name)]

    for module in pkgutil.walk_packages(wm.__path__, "wmlib."):
        if needs_the_extra(module):
            answers_with_the_cure(lambda name=module.name: importlib.import_module(name))
        elif not module.name.startswith("wmlib.lab._"):
            importlib.import_module(module.name)
    for name in ("sweep", "load_dataset", "load_splits", "Dataset", "Splits"):
        answers_with_the_cure(lambda name=name: getattr(wm, name))
    assert wm.Preset("quick", 1).seeds == 1

    key = jax.random.key(0)
    plain = eqx.nn.MLP(4, 3, 8, 1, activation=jnp.tanh, key=key)
    x = jax.random.normal(key, (6, 4))
    net, s = wm.modulate(plain, wm.Ellipse(), key=key), jnp.linspace(0.0, 1.0, 6)
    np.testing.assert_allclose(jax.vmap(net)(x, s)[2], net.at(s[2])(x[2]), rtol=1e-5, atol=1e-6)

    metric = wm.FunctionMetric(operator.call, plain, x, wm.distances.kl)
    gradient = eqx.filter_grad(lambda net: jax.vmap(net)(x)[:, 0].mean())(plain)
    step = wm.direction(metric, gradient, beta=0.1, epsilon=1e-4)
    assert abs(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(step.value)) - 1e-4) < 1e-6

    task = wm.objectives.Task(operator.call, x, jnp.arange(6) % 3, 3)
    method = wm.PenalisedDescent(optax.sgd(0.1))
    path = wm.walk(operator.call, plain, task, x, wm.distances.kl, method=method, steps=3, key=key)
    assert isinstance(path, wm.Path)
    velocity = jax.tree.map(lambda leaf: 0.01 * leaf, eqx.filter(plain, eqx.is_inexact_array))
    assert isinstance(wm.geodesic(operator.call, plain, velocity, x, time=0.1, points=2), wm.Geodesic)


def train(config, key):
    net = wm.modulate(eqx.nn.Linear(2, 1, key=key), wm.Line(), key=key, spread=config["spread"])
    return {"metrics": {"length": net.squared_norm(0.5)}, "data": "synthetic: none at all"}


def lab() -> None:
    assert [name for name in EXTRA if not is_installed(name)] == []
    for module in pkgutil.walk_packages(wm.__path__, "wmlib."):
        if not module.name.endswith("._replay"):  # a program
            importlib.import_module(module.name)
    with tempfile.TemporaryDirectory() as results:
        rows = wm.sweep("tried", train, {"spread": [0.1, 0.5]}, wm.Preset("quick", 2), results=results)
        assert len(rows) == 4
        assert (rows["length"] > 0).all()
        assert len((Path(results) / "tried.jsonl").read_text().splitlines()) == 4
    assert wm.load_dataset("mnist5k", "test").inputs.shape == (1000, 1, 28, 28)


if __name__ == "__main__":
    place = Path(wm.__file__).parent
    assert place.is_relative_to(sys.prefix), f"{place} is not the installed wheel"
    assert (place / "py.typed").is_file()
    {"core": core, "lab": lab}[sys.argv[1]]()
    print(f"The wheel works, tried as: {sys.argv[1]}")
