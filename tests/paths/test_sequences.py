"""Walks over a sequence of tasks: against the same written out, and through kills."""

import copy
import functools
import operator
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.paths import sequences
from wmlib.paths._same import digest

KEY = jax.random.key(3)
SGD = optax.sgd(0.03, momentum=0.9)
NET = eqx.nn.MLP(3, 6, 5, 1, activation=jnp.tanh, key=jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (3, 12, 3))
LABELS = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 12)) + 2 * np.arange(3)[:, None])
TASKS = tuple(wm.objectives.Task(operator.call, x, y, 4) for x, y in zip(X, LABELS, strict=True))
MEMORIES = tuple(x[:6] for x in X)


def walked(tasks: Any = TASKS, memories: Any = MEMORIES, penalty=1.0, batch: int | None = 4, steps=5, **how: Any):
    method = wm.PenalisedDescent(SGD, penalty, batch)
    return wm.walk_sequence(operator.call, NET, tasks, memories, method=method, steps=steps, key=KEY, **how)


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def near(a, b, gap=1e-6):
    for x, y in zip(
        jax.tree.leaves(eqx.filter(a, eqx.is_array)), jax.tree.leaves(eqx.filter(b, eqx.is_array)), strict=True
    ):
        np.testing.assert_allclose(x, y, atol=gap)


def by_hand(penalty, steps, renew, distance):
    """The same with all memories in every step, from the formula and optax alone."""
    ends, kept = [NET], []
    for place, task in enumerate(TASKS):
        dynamic, static = eqx.partition(ends[-1], eqx.is_array)
        start = ends[-1]
        if renew:
            kept = [jax.vmap(start)(m) for m in MEMORIES[:place]]
        state, key = SGD.init(dynamic), jax.random.split(jax.random.fold_in(KEY, place))[0]
        if place:
            key = jax.random.split(key)[0]
        draws = task.draws(key)
        for _ in range(steps):
            rows = next(draws)

            def loss(dynamic, place=place, task=task, rows=rows, kept=tuple(kept), static=static):
                net = eqx.combine(dynamic, static)
                value = task.value(net, rows)
                if place:
                    moved = [jax.vmap(distance)(jax.vmap(net)(m), y) for m, y in zip(MEMORIES, kept, strict=False)]
                    value = value + penalty * jnp.mean(jnp.concatenate(moved))
                return value

            updates, state = SGD.update(jax.grad(loss)(dynamic), state)
            dynamic = optax.apply_updates(dynamic, updates)
        ends.append(eqx.combine(dynamic, static))
        if not renew:
            kept.append(jax.vmap(ends[-1])(MEMORIES[place]))
    return ends[1:]


@pytest.mark.parametrize("renew", [False, pytest.param(True, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    "distance", [wm.distances.kl, pytest.param(wm.distances.squared_error, marks=pytest.mark.thorough)]
)
def test_the_ends_are_those_of_the_formula(renew, distance):
    found = walked(penalty=0.7, batch=None, distance=distance, renew=renew).weights
    wanted = by_hand(0.7, 5, renew, distance)
    assert len(found) == 3
    for ours, theirs in zip(found, wanted, strict=True):
        near(ours, theirs, 2e-6)
    other = by_hand(0.7, 5, not renew, distance)
    leaves = [jax.tree.leaves(eqx.filter(w[2], eqx.is_array)) for w in (other, found)]
    gaps = [float(abs(x - y).max()) for x, y in zip(*leaves, strict=True)]
    assert max(gaps) > 1e-5


def test_without_a_penalty_they_are_walks_one_after_another():
    net = NET
    for place, end in enumerate(walked(penalty=0.0).weights):
        how: Any = dict(method=wm.PenalisedDescent(SGD, 0.0), steps=5, record=[5], key=jax.random.fold_in(KEY, place))
        net = wm.walk(operator.call, net, TASKS[place], MEMORIES[place], **how).weights[-1]
        equal(end, net)


def test_later_tasks_change_nothing_before_them():
    three = walked().weights
    two = walked(TASKS[:2], MEMORIES[:2]).weights
    equal(three[0], two[0])
    near(three[1], two[1])


@settings(max_examples=8, deadline=None)
@given(killed=st.integers(0, 2), steps=st.sampled_from([3, 5]), damage=st.booleans())
def test_a_killed_sequence_goes_on_with_the_same_numbers(killed, steps, damage, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    whole = walked(steps=steps)
    seen = []

    def dies(place):
        def make(ends):
            seen.append(place)
            assert len(ends) == place
            if place == killed and seen.count(place) == 1:
                raise KeyboardInterrupt
            return TASKS[place]

        return make

    tasks = tuple(dies(place) for place in range(3))
    with pytest.raises(KeyboardInterrupt):
        walked(tasks, steps=steps, folder=folder)
    files = sorted(folder.glob("*.npz"))
    assert len(files) == killed
    if damage and files:
        raw = bytearray(files[-1].read_bytes())
        raw[len(raw) // 2] ^= 1
        files[-1].write_bytes(bytes(raw))
        with pytest.warns(UserWarning, match="damaged"):
            again = walked(tasks, steps=steps, folder=folder)
    else:
        again = walked(tasks, steps=steps, folder=folder)
    equal(again.weights, whole.weights)
    assert seen.count(0) == (2 if killed == 0 or (damage and killed == 1) else 1)
    before = len(seen)
    equal(walked(tasks, steps=steps, folder=folder).weights, whole.weights)
    assert len(seen) == before


@pytest.mark.thorough
def test_a_folder_tells_sequences_apart(tmp_path):
    walked(folder=tmp_path)
    others = [dict(steps=6), dict(penalty=2.0), dict(batch=3), dict(renew=True), dict(distance=wm.distances.kl)]
    others += [dict(tasks=[wm.objectives.Task(operator.call, t.inputs, t.labels, 3) for t in TASKS])]
    others += [dict(tasks=TASKS[::-1]), dict(memories=MEMORIES[::-1])]
    for other in others:
        equal(walked(**other, folder=tmp_path).weights, walked(**other).weights)
    assert len([*tmp_path.glob("task-0-*")]) == 9


@pytest.mark.thorough
def test_a_folder_sees_what_closures_hide(tmp_path):
    """The rate of an optimiser, its schedule, and what `f` does."""
    schedules = [optax.linear_schedule(0.03, end, 5) for end in (0.01, 0.02)]
    optimisers = [SGD, optax.sgd(0.02, momentum=0.9), optax.sgd(0.03, momentum=0.8), *map(optax.sgd, schedules)]

    def ends(optimiser, factor, **folder):
        f = lambda net, x: factor * net(x)  # noqa: E731
        tasks = [wm.objectives.Task(f, task.inputs, task.labels, 4) for task in TASKS[:2]]
        method = wm.PenalisedDescent(optimiser, 1.0, 4)
        return wm.walk_sequence(f, NET, tasks, MEMORIES[:2], method=method, steps=3, key=KEY, **folder).weights

    different = [(optimiser, 1.0) for optimiser in optimisers] + [(SGD, 0.5)]
    for place, settled in enumerate(different):
        found = ends(*settled, folder=tmp_path)
        assert len([*tmp_path.iterdir()]) == 2 * (place + 1)
        equal(found, ends(*settled, folder=tmp_path))
        equal(found, ends(*settled))
    assert len([*tmp_path.iterdir()]) == 2 * len(different)


def of_closure(c):
    def loss(output, label):
        return c * wm.objectives.cross_entropy(output, label)

    return loss


def of_default(c):
    def loss(output, label, factor=c):
        return factor * wm.objectives.cross_entropy(output, label)

    return loss


def of_inner(c):
    factor = {"of": [c]}

    def scaled(x):
        return factor["of"][0] * x

    return lambda output, label: scaled(wm.objectives.cross_entropy(output, label))


def of_code(c):
    return types.FunctionType(compile(f"{c} * x", "edited.py", "eval"), {"__name__": "edited"}, "loss")


def of_global(c):
    scope: dict[str, Any] = {"__name__": "edited", "FACTOR": c}
    exec("def inner(x):\n    return FACTOR * x\ndef loss(x, y):\n    return inner(x) - y", scope)
    return scope["loss"]


def of_class(c):
    scope: dict[str, Any] = {"__name__": "edited"}
    exec(f"class Scaled:\n    def __call__(self, x):\n        return {c} * x", scope)
    return scope["Scaled"]()


CLASSES = {
    "base": "class Base:\n    def f(self): return {c}\nclass Made(Base): pass",
    "attribute": "class Made:\n    rate = {c}",
    "compiled": "import jax\nclass Made:\n    @jax.jit\n    def f(self): return {c}",
    "property": "class Made:\n    @property\n    def f(self): return {c}",
    "cached": "import functools\nclass Made:\n    @functools.cached_property\n    def f(self): return {c}",
    "within": "class Made:\n    class Inner:\n        rate = {c}",
    "slots": "class Made:\n    __slots__ = ()\n    def f(self): return {c}",
    "tuple": "import typing\nclass Made(typing.NamedTuple('T', [])):\n    def f(self): return {c}",
    "mapping": "class Made(dict):\n    def f(self): return {c}",
    "Equinox": "import equinox as eqx\nclass Base(eqx.Module):\n    def f(self): return {c}\nclass Made(Base): pass",
    "default": "import equinox as eqx\nclass Made(eqx.Module):\n    rate: float = {c}",
}


@pytest.mark.parametrize("text", CLASSES.values(), ids=CLASSES)
def test_objects_are_told_apart_by_the_code_of_their_class(text):
    def made(c):
        exec(text.replace("{c}", str(c)), scope := {"__name__": "edited"})
        return scope["Made"]

    for what in (lambda c: made(c)(), made):
        one, again, other = (digest(b"", what(c)) for c in (1, 1, 2))
        assert one == again != other


FUNCTIONS = {
    "star": ("f = lambda *v: v", "f = lambda v: v"),
    "try": ("def f():\n try: g()\n except KeyError: pass\n", "def f():\n try: pass\n except KeyError: pass\n g()"),
    "attribute": ("def f(): pass\nf.rate = 1", "def f(): pass\nf.rate = 2"),
    "method": ("f = {'a': 1}.get", "f = {'a': 2}.get"),
    "namespace": (
        "import types\nf = types.SimpleNamespace(loss=lambda: 1)",
        "import types\nf = types.SimpleNamespace(loss=lambda: 2)",
    ),
    "wrapped": (
        "import functools\ndef g(): pass\ndef f(): return 1\nfunctools.update_wrapper(f, g)",
        "import functools\ndef g(): pass\ndef f(): return 2\nfunctools.update_wrapper(f, g)",
    ),
    "mapped": (
        "import equinox as eqx\ndef g(x, y): return x\nf = eqx.filter_vmap(g, in_axes=(0, None))",
        "import equinox as eqx\ndef g(x, y): return x\nf = eqx.filter_vmap(g, in_axes=(None, 0))",
    ),
}


@pytest.mark.parametrize("texts", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_are_told_apart_by_all_that_they_are(texts):
    def made(text):
        exec(text, scope := {"__name__": "edited"})
        return scope["f"]

    one, again, other = (digest(b"", [made(text)]) for text in (texts[0], *texts))
    assert one == again != other


@pytest.mark.parametrize("changed", ["pkg/__init__.py", "pkg/losses.py", "pkg/base.py", "pkg/late.py"])
def test_modules_that_somebody_writes_count_with_what_they_use(changed, tmp_path, monkeypatch):
    files = {"pkg/__init__.py": "A = 1\n", "pkg/losses.py": "from .base import g\ndef f(x): return g(x)\n"}
    files |= {"pkg/base.py": "def g(x): return x\n", "pkg/late.py": "S = 1\n"}
    script = "import pkg.losses\ndef loss(x):\n    from pkg.late import S\n    return pkg.losses.f(x) + S\nloss(1)"
    found = []
    for place, more in enumerate(("", "", "# changed\n")):
        for name, text in files.items():
            path = tmp_path / str(place) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + (more if name == changed else ""))
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / str(place))
            exec(script, scope := {"__name__": "edited"})
            found.append(digest(b"", [scope["loss"]]))
            for name in [name for name in sys.modules if name.split(".")[0] == "pkg"]:
                del sys.modules[name]
    assert found[0] == found[1] != found[2]


def test_folders_whose_names_begin_alike_are_no_libraries():
    from wmlib.paths import _same

    def f():
        pass

    home = str(Path(wm.__file__).parent)
    for name, installed in {
        f"{home}_experiments/a.py": False,
        "/opt/user/lib/python3.11/site-packages/jax/a.py": True,
        "/usr/lib/python3/dist-packages/a.py": True,
        str(Path(functools.__file__).parent) + "_mine/a.py": False,
        functools.__file__: True,
    }.items():
        f.__code__ = f.__code__.replace(co_filename=name)
        assert _same._installed(f) == installed, name


class Keeper:
    """What is kept of earlier tasks grows as they are made."""

    def __init__(self):
        self.found, self.calls = [], 0

    def __call__(self, ends):
        self.calls += 1
        self.found += [end.layers[0].bias for end in ends[len(self.found) :]]
        return TASKS[len(ends)]


def test_what_keeps_notes_of_earlier_tasks_does_not_undo_a_resume(tmp_path):
    keeper = Keeper()
    tasks = [lambda ends: keeper(ends) for _ in TASKS]
    first = walked(tasks, folder=tmp_path, steps=1)
    assert keeper.calls == 3
    equal(walked(tasks, folder=tmp_path, steps=1).weights, first.weights)
    assert keeper.calls == 3


def of_jvp(c):
    @jax.custom_jvp
    def same(x):
        return x

    same.defjvp(lambda primals, tangents: (primals[0], c * tangents[0]))
    return same


class Times:
    def __init__(self, factor):
        self.factor = factor

    def call(self, net, x):
        return self.factor * net(x)


class Named(wm.objectives.AbstractObjective):
    names: Any = eqx.field(static=True)

    def draws(self, key):
        return iter(())

    def value(self, weights, draw):
        return jnp.float32(len(self.names))


@pytest.mark.parametrize(
    ("made", "kept"),
    [
        (made, kept)
        for made in (of_closure, of_default, of_code, of_global, of_class, of_inner)
        for kept in (lambda x: [x], jax.jit, lambda x: x)
    ][:-1],  # a function that stands alone may keep notes in a mapping
)
def test_functions_are_told_apart_by_what_they_compute(made, kept):
    one, again, other = (digest(b"", kept(made(c))) for c in (1, 1, 9))
    assert one == again != other


@pytest.mark.parametrize(
    "made",
    [
        lambda c: wm.objectives.Task(operator.call, X[0], LABELS[0], 4, loss=of_closure(c)),
        lambda c: wm.objectives.Penalised(TASKS[0], lambda w, kept, rows: c * jnp.sum(kept[rows]), X[0], batch=4),
        lambda c: wm.paths.distances.OutputDistance(lambda a, b: c * jnp.sum((a - b) ** 2)),
        lambda c: wm.ExactDirections(1.0, lambda step: c / (1 + step)),
        lambda c: wm.PenalisedDescent(optax.inject_hyperparams(optax.sgd)(learning_rate=c), 1.0),
        lambda c: wm.PenalisedDescent(optax.adagrad(0.1, initial_accumulator_value=c), 1.0),
        lambda c: wm.PenalisedDescent(optax.chain(optax.add_noise(0.1, 0.5, c), SGD), 1.0),
        lambda c: wm.PenalisedDescent(optax.sgd(optax.linear_schedule(0.1, c, 9)), 1.0),
        lambda c: Named(frozenset({"a", c})),
        lambda c: Named(complex(c)),
        lambda c: [np.array(["a", c], object)],
        lambda c: Named({"b": {c}}),
        lambda c: Times(c).call,
        lambda c: functools.partial(Times(2).call, c),
        lambda c: of_jvp(c),
        lambda c: jax.random.key(c),
        lambda c: jnp.asarray(c, jnp.bfloat16),
        lambda c: of_closure(jnp.full(3, c)),
    ],
)
def test_settings_are_told_apart_by_their_values(made):
    one, again, other = (digest(b"", made(c)) for c in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    "made",
    [
        lambda c: jax.jit(lambda net, x: net(x) * jnp.array([1.0, c])),
        lambda c: lambda net, x: jax.jit(lambda y: y * jnp.array([1.0, c]))(net(x)),
        lambda c: lambda net, x: net(x) if len(x) == 3 else c * net(x),
    ],
)
def test_programs_are_told_apart_by_constants_within_them_and_by_what_one_input_does_not_show(made):
    net = eqx.nn.Linear(3, 2, key=KEY)
    one, again, other = (digest(b"", sequences._program(made(c), net, X[0, 0])) for c in (1.0, 1.0, 3.0))
    assert one == again != other


@settings(max_examples=60)
@given(st.recursive(st.integers(0, 2) | st.booleans() | st.text("ab", max_size=2), lambda x: st.lists(x, max_size=3)))
def test_equal_values_have_one_digest_and_others_another(value):
    assert digest(b"", value) == digest(b"", copy.deepcopy(value))
    assert digest(b"", value) != digest(b"", [value])
    assert digest(b"", value) != digest(b"1", value)
    assert digest(b"", value, 0) != digest(b"", 0, value) or repr(value) == "0"


def test_a_maker_of_tasks_may_note_that_it_was_called():
    notes = []

    def makes(ends):
        notes.append(len(ends))
        return TASKS[0]

    first = digest(b"", makes)
    makes(())
    assert digest(b"", makes) == first


def test_what_refers_to_itself_has_a_digest():
    loop: list[Any] = [1]
    loop.append(loop)

    def recursive(n):
        return n and recursive(n - 1)

    def other(n):
        return n and other(n - 2)

    other.__qualname__ = recursive.__qualname__
    assert digest(b"", loop) != digest(b"", [1])
    assert digest(b"", recursive) != digest(b"", other)
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    assert len(digest(b"", deep)) == 32  # and of no use


def test_keys_in_the_weights_are_kept(tmp_path):
    net = {"w": jnp.ones(3), "key": jax.random.key(3), "other": jax.random.key(1, impl="rbg")}
    sequences._write(tmp_path / "a.npz", net)
    found = sequences._read(tmp_path / "a.npz", net)
    assert found is not None
    for name in ("key", "other"):
        assert jax.random.key_impl(found[name]) == jax.random.key_impl(net[name])
        equal(jax.random.key_data(found[name]), jax.random.key_data(net[name]))


def test_renewed_outputs_are_those_of_penalised_descent_alone():
    how: Any = dict(method=wm.ExactDirections(0.1, 0.01), steps=1, key=KEY, renew=True)
    with pytest.raises(ValueError, match="renew is for PenalisedDescent; ExactDirections always keeps"):
        wm.walk_sequence(operator.call, NET, TASKS, MEMORIES, **how)


class Slower(cast(Any, wm.PenalisedDescent)):
    """A method that adds a number, as no sequence would know."""

    rate: float

    def __init__(self, rate):
        super().__init__(optax.sgd(0.1))
        self.rate = rate


@pytest.mark.parametrize("method", [Slower(0.5), lambda ends: Slower(0.5)])
def test_what_a_class_adds_to_penalised_descent_is_not_lost(method):
    with pytest.raises(TypeError, match=r"what Slower adds to it would be lost: give wm\.PenalisedDescent itself"):
        wm.walk_sequence(operator.call, NET, TASKS, MEMORIES, method=method, steps=1, key=KEY)


RELU = """
import operator, sys, types
import equinox as eqx, jax, jax.numpy as jnp, optax
import wmlib as wm

x = jax.random.normal(jax.random.key(0), (6, 3))
net = eqx.nn.MLP(3, 2, 4, 1, activation=jax.nn.relu, key=jax.random.key(1))
words = {"to", "be", "or", "not"}
settings = types.SimpleNamespace(words=words, by={word: len(word) for word in words})
loss = lambda o, y: len(settings.words) * wm.objectives.cross_entropy(o, y)
task = wm.objectives.Task(operator.call, x, jnp.arange(6) % 2, 3, loss)
method = wm.PenalisedDescent(optax.sgd(optax.cosine_decay_schedule(0.1, 9), momentum=0.9), 1.0)
how = dict(method=method, steps=2, key=jax.random.key(2), folder=sys.argv[1])
wm.walk_sequence(operator.call, net, [task, task], [x, x], **how)
"""


@pytest.mark.thorough
def test_another_process_finds_the_same_files(tmp_path):
    """A kill ends the process: nothing in a name may hang on where Python put something."""
    for seed in ("1", "2"):
        hashed = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", RELU, str(tmp_path)], check=True, env=hashed)
    assert len([*tmp_path.iterdir()]) == 2


def test_weights_of_half_precision_are_kept_bit_for_bit(tmp_path):
    net = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, NET)
    sequences._write(tmp_path / "a.npz", net)
    equal(sequences._read(tmp_path / "a.npz", net), net)
    with pytest.warns(UserWarning, match="damaged"):
        assert sequences._read(tmp_path / "a.npz", NET) is None


def test_it_is_told_what_each_end_says_and_what_moves():
    last = eqx.tree_at(lambda net: net.layers[-1].weight, jax.tree.map(lambda _: False, NET), True)
    found = walked(observe=lambda net: float(net.layers[-1].weight[0, 0]), moving=last)
    equal(found.weights[-1].layers[0], NET.layers[0])
    assert found.observed == tuple(float(net.layers[-1].weight[0, 0]) for net in found.weights)
    assert len(set(found.observed)) == 3


def test_the_memory_keeps_what_earlier_tasks_had_learned():
    tasks = [wm.objectives.Task(operator.call, x, y, 12) for x, y in zip(X, LABELS, strict=True)]

    def loss(net):
        return float(tasks[0].value(net, np.arange(12)))

    free, kept = (walked(tasks, penalty=p, batch=None, steps=60, observe=loss).observed for p in (0.0, 3.0))
    assert kept[0] == free[0]
    assert kept[1] < 0.5 * free[1]
    assert kept[2] < 0.5 * free[2]


class Counted(wm.objectives.AbstractObjective):
    task: wm.objectives.Task

    def draws(self, key):
        return self.task.draws(key)

    def value(self, weights, draw):
        TRACED.append(1)
        return self.task.value(weights, draw)


TRACED: list[int] = []


def test_a_step_is_compiled_once_for_all_tasks_after_the_first():
    def count(times):
        TRACED.clear()
        walked([Counted(task) for task in TASKS[:1]] * times, MEMORIES[:1] * times, batch=3)
        return len(TRACED)

    few, many = count(2), count(6)
    assert 0 < many <= few


def test_another_method_is_given_all_earlier_memories_and_one_made_for_a_task_its_turn():
    seen = []

    class Looks(wm.paths.AbstractMethod):
        optimiser: Any = eqx.field(static=True)

        def start(self, problem, weights, key):
            seen.append(np.asarray(problem.memory))
            return wm.PenalisedDescent(self.optimiser, 0.0).start(problem, weights, key)

        def step(self, problem, weights, state, draw):
            return wm.PenalisedDescent(self.optimiser, 0.0).step(problem, weights, state, draw)

    plain = wm.walk_sequence(operator.call, NET, TASKS, MEMORIES, method=Looks(SGD), steps=2, key=KEY).weights
    for place, memory in enumerate(seen):
        np.testing.assert_array_equal(memory, np.concatenate(MEMORIES[: max(1, place)]))

    def made(ends):
        return wm.PenalisedDescent(SGD, 1.0, 4) if len(ends) < 2 else Looks(SGD)

    mixed = wm.walk_sequence(operator.call, NET, TASKS, MEMORIES, method=made, steps=2, key=KEY).weights
    equal(mixed[0], plain[0])
    equal(mixed[1], walked(steps=2).weights[1])
    assert abs(mixed[2].layers[0].weight - walked(steps=2).weights[2].layers[0].weight).max() > 0
