"""The examples of the docstrings run as they stand."""

import inspect
import itertools
import operator
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wmlib as wm
from wmlib.rivals import generative, heads, online, relevance

MODULES = (online, heads, relevance, generative)
RESULTS = {"Anchor", "TaskMap"}  # made by functions of their modules, whose examples show how


def public():
    for module in MODULES:
        for name, thing in vars(module).items():
            if not name.startswith("_") and getattr(thing, "__module__", "") == module.__name__:
                yield f"{module.__name__}.{name}", thing


def example(thing):
    """The indented lines below the word Example."""
    below = (inspect.getdoc(thing) or "").partition("**Example:**")[2].splitlines()[1:]
    return textwrap.dedent("\n".join(itertools.takewhile(lambda line: not line.strip() or line[:4] == "    ", below)))


@pytest.mark.parametrize(("name", "thing"), [pytest.param(*pair, id=pair[0]) for pair in public()])
def test_an_example_runs(name, thing):
    code = example(thing)
    if name.rpartition(".")[2] in RESULTS:
        assert not code
        return
    assert code.strip(), f"{name} has no example"
    exec(code, dict(wm=wm, eqx=eqx, jax=jax, jnp=jnp, np=np, operator=operator, key=jax.random.key(0)))
