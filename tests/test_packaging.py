"""What an import of the library loads, what it is called by, and what it rests on in other packages."""

import functools
import importlib
import re
import resource
import statistics
import subprocess
import sys
import types
import warnings
from importlib import metadata
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wmlib as wm
from wmlib import _lazy
from wmlib.lab import _extra
from wmlib.manifolds import modulation

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(0)
BASE = "import jax, equinox, optax, quax, lineax"


def python(code: str) -> str:
    """What a fresh process prints, in which nothing of the tests is loaded and every warning is an error."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestImport:
    def test_loads_the_core_only(self):
        print_loaded = "; import sys; print(*sys.modules)"
        ours, base = (set(python(code + print_loaded).split()) for code in ("import wmlib", BASE))
        later = {"diffrax", "optimistix", "scipy.optimize", "sklearn", "wmlib.paths.geodesics", *_extra.PACKAGES}
        assert not (ours - base) & later
        assert not [name for name in ours if name.startswith("wmlib.lab")]

    @pytest.mark.processes
    def test_takes_at_most_1_35_times_that_of_the_core(self):
        """Processor time, in pairs, at the median: other work on the machine moves it little."""

        def seconds(code):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            python(code)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        seconds("import wmlib")  # writes the compiled files
        ratios = [seconds("import wmlib") / seconds(BASE) for _ in range(11)]
        assert statistics.median(ratios) <= 1.35

    def test_needs_no_extra_for_what_needs_none(self):
        """As where the extra is not installed: its packages cannot be found."""
        python(f"""
import importlib, pkgutil, sys
hidden = {_extra.PACKAGES!r}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

import wmlib as wm
for name in [n for n in sys.modules if n.split(".")[0] in hidden]:
    del sys.modules[name]
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in hidden else real(name, package)
sys.meta_path.insert(0, Hide())

def refused(use):
    try:
        use()
    except ImportError as error:
        assert 'pip install "wmlib[lab]"' in str(error), error
        assert error.name in hidden
    else:
        raise SystemExit(f"{{use}} was not refused")

lab = {{"cache", "data", "engines", "figures", "pages", "records", "runs", "texts", "verdicts", "verify"}}
for module in pkgutil.walk_packages(wm.__path__, "wmlib."):
    if module.name.split(".")[-1] in lab:
        refused(lambda: importlib.import_module(module.name))
        refused(lambda: importlib.import_module(module.name))  # and again
    elif not module.name.startswith("wmlib.lab._"):
        importlib.import_module(module.name)
for name in ("sweep", "load_dataset", "load_splits", "load_texts", "load_words", "Dataset", "Splits", "Texts", "Words"):
    refused(lambda: getattr(wm, name))
for name in lab:
    refused(lambda: getattr(wm.lab, name))
assert wm.Preset("quick", 1).seeds == 1
assert wm.preset and wm.transforms.rotate and wm.geodesic
""")

    @pytest.mark.thorough
    def test_every_module_can_be_the_first(self):
        """No order of imports is needed: neither a cycle nor a name that another import has left."""
        files = [path for path in sorted((ROOT / "wmlib").rglob("*.py")) if path.name != "_replay.py"]  # a program
        modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
        assert len(modules) > 40
        code = f"""
import importlib, sys
import jax, equinox, optax, quax, lineax
for name in {[m.removesuffix(".__init__") for m in modules]!r}:
    for loaded in [m for m in sys.modules if m.split(".")[0] == "wmlib"]:
        if not loaded.startswith("wmlib.manifolds"):  # rules that are registered twice are ambiguous
            del sys.modules[loaded]
    importlib.import_module(name)
"""
        python(code)


class TestNamesLoadedOnFirstUse:
    @pytest.mark.parametrize("package", [wm, wm.paths, wm.lab], ids=lambda p: p.__name__)
    def test_are_those_that_the_type_checker_sees(self, package):
        text = Path(package.__file__).read_text().partition("if TYPE_CHECKING:")[2]
        seen = set(re.findall(r"^    from \S+ import \w+ as (\w+)$", text, re.MULTILINE))
        # Asked in a process where no wrapper that checks types stands around the function.
        names = python(
            f"import inspect, {package.__name__} as package\n"
            "print(*inspect.getclosurevars(package.__getattr__).nonlocals['names'])"
        ).split()
        moved = set(OLD) if package is wm else set()
        assert seen <= set(names) <= seen | moved
        for name in names:
            assert name in dir(package)
            value = getattr(package, name)
            assert vars(package)[name] is value
        assert seen <= set(dir(package))

    def test_of_a_submodule_is_an_attribute(self):
        out = python("import wmlib as wm; print(wm.lab.figures.__name__, wm.lab.transforms is wm.transforms)")
        assert out.split() == ["wmlib.lab.figures", "True"]
        assert python("from wmlib import figures; print(figures.__name__)").split() == ["wmlib.lab.figures"]

    def test_that_do_not_exist_are_attribute_errors(self):
        for package in (wm, wm.paths, wm.lab):
            with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
                _ = package.nothing
            assert not hasattr(package, "nothing")

    def test_are_loaded_once(self, monkeypatch):
        package = types.ModuleType("made_up")
        monkeypatch.setitem(sys.modules, "made_up", package)
        home = types.ModuleType("made_up.home")
        home.name = object()
        monkeypatch.setitem(sys.modules, "made_up.home", home)
        package.__getattr__, package.__dir__ = _lazy.on_first_use("made_up", {"name": "home", "home": None})
        assert "name" not in vars(package)
        assert {"name", "home"} <= set(dir(package))
        assert package.name is home.name is vars(package)["name"]
        assert package.home is home


# Every module of the release before the folders, what it defined, and where it is now.
OLD = {
    "__init__": (
        "wmlib",
        "distances models objectives rivals transforms Dataset Splits load_dataset load_splits MetricSolution precondition"
        " solve_metric Direction ExactDirections direction FunctionMetric Geodesic acceleration geodesic InferredContext"
        " infer_context InvariantDimension Krylov SpectralDensity Spectrum lanczos spectral_density spectrum"
        " AbstractManifold BSpline Ellipse Fourier Line Product Simplex Sphere TetheredRod BasisPoints ManifoldArray"
        " Modulated modulate Path PenalisedDescent walk Preset preset sweep",
    ),
    "data": ("wmlib.lab.data", "Dataset load_dataset Splits load_splits"),
    "descent": ("wmlib.manifolds.descent", "precondition MetricSolution solve_metric"),
    "directions": ("wmlib.paths.directions", "Direction direction ExactDirections"),
    "distances": ("wmlib.paths.distances", "OutputDistance squared_error kl hellinger bhattacharyya"),
    "figures": (
        "wmlib.lab.figures",
        "PALETTE METHOD_COLOURS PATH_COLOURS GROUND use_style bootstrap_interval accuracy_curve principal_plane"
        " paths_in_plane manifold_in_plane",
    ),
    "fingerprints": ("wmlib.lab.fingerprints", "fingerprint"),
    "function_space": ("wmlib.paths.metric", "FunctionMetric"),
    "geodesics": ("wmlib.paths.geodesics", "Geodesic acceleration geodesic"),
    "inference": ("wmlib.manifolds.inference", "InferredContext infer_context"),
    "krylov": (
        "wmlib.paths.krylov",
        "Krylov lanczos Spectrum spectrum SpectralDensity InvariantDimension spectral_density",
    ),
    "manifolds": (
        "wmlib.manifolds",
        "AbstractManifold Line TetheredRod Ellipse Fourier BSpline Sphere Simplex Product",
    ),
    "modulation": ("wmlib.manifolds.modulation", "BasisPoints ManifoldArray Modulated modulate"),
    "objectives": (
        "wmlib.paths.objectives",
        "AbstractObjective cross_entropy shuffled Task matrices project Sparsity",
    ),
    "paths": ("wmlib.paths", "Path Problem AbstractMethod PenalisedDescent walk"),
    "presets": ("wmlib.lab.presets", "Preset preset"),
    "runs": ("wmlib.lab.runs", "sweep read_rows recorded_runs append_row"),
    "transforms": ("wmlib.lab.transforms", "rotate mix_noise"),
    "verdicts": (
        "wmlib.lab.verdicts",
        "Comparison Claim Outcome Judgement read_claims judge verdict_table",
    ),
}


class TestNamesOfTheLastRelease:
    @pytest.mark.parametrize("old", OLD)
    def test_are_the_same_objects(self, old):
        new, names = OLD[old]
        module, now = (
            importlib.import_module("wmlib" if old == "__init__" else f"wmlib.{old}"),
            importlib.import_module(new),
        )
        assert module is now
        for name in names.split():
            assert hasattr(module, name), f"{module.__name__} has lost the name {name}"
        if old != "__init__":
            assert getattr(wm, old) is now

    @pytest.mark.parametrize("first", ["old", "new"])
    def test_are_the_same_whichever_is_imported_first(self, first):
        pairs = [
            pair if first == "new" else pair[::-1]
            for pair in ((OLD[old][0], f"wmlib.{old}") for old in OLD if old != "__init__")
        ]
        python(
            "import importlib\n"
            f"for a, b in {pairs!r}:\n"
            "    assert importlib.import_module(a) is importlib.import_module(b), (a, b)\n"
            "import wmlib.function_space, wmlib.runs as runs\n"
            "from wmlib.function_space import FunctionMetric\n"
            "assert wmlib.function_space.FunctionMetric is wmlib.paths.metric.FunctionMetric is wmlib.FunctionMetric\n"
            "assert runs is wmlib.lab.runs\n"
        )

    def test_go_with_a_shim_for_each(self):
        shims = {path.stem for path in (ROOT / "wmlib").glob("[!_]*.py")}
        assert shims == set(OLD) - {"__init__", "manifolds", "paths"}


class TestQuax:
    """Its private trace is told to build `W(s)` before a function with a derivative of its own."""

    def test_is_known(self):
        assert modulation._QUAX_IS_KNOWN, (
            f"quax {metadata.version('quax')} has changed `quax._trace._QuaxTrace`, which wmlib wraps: read its"
            " process_custom_jvp_call, mend `_TRACE` and `_build_first` in wmlib/manifolds/modulation.py, or lower the"
            " bound in pyproject.toml. Until then M(s) is built for every example."
        )
        trace = importlib.import_module("quax._trace")._QuaxTrace
        assert hasattr(vars(trace)["process_custom_jvp_call"], "__wrapped__")

    def test_is_told(self):
        """The derivative of `relu(w)` in context, which quax alone takes for that of the parts."""
        net = wm.modulate(Activated(jnp.array([1.0, -2.0, 0.5])), wm.Ellipse(), key=KEY)
        x, s = jnp.array([1.0, 2.0, -3.0]), jnp.array(0.3)
        ours = jax.jvp(lambda s: net(x, s), (s,), (jnp.ones(()),))
        built = jax.jvp(lambda s: net.at(s)(x), (s,), (jnp.ones(()),))
        np.testing.assert_allclose(ours, built, rtol=1e-5)

    def test_that_is_not_known_has_the_weights_built(self, monkeypatch):
        monkeypatch.setattr(modulation, "_QUAX_IS_KNOWN", False)
        net = wm.modulate(Activated(jnp.array([1.0, -2.0, 0.5])), wm.Ellipse(), key=KEY)
        x, s = jax.random.normal(KEY, (4, 3)), jnp.linspace(0.0, 1.0, 4)

        def loss(net):
            return jnp.sum(jnp.sin(jax.vmap(net)(x, s)))

        with pytest.warns(UserWarning, match=r'not known to wmlib.* pip install "quax<=0\.4\.\d"'):
            value, gradient = eqx.filter_value_and_grad(loss)(net)
        monkeypatch.undo()
        wanted_value, wanted = eqx.filter_value_and_grad(loss)(net)
        np.testing.assert_allclose(value, wanted_value, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("change", ["no module", "no class", "no method", "another signature", "renamed tracers"])
    def test_that_has_changed_is_left_alone(self, change, monkeypatch):
        class Trace:
            def to_value(self, val): ...

            def process_primitive(self, primitive, tracers, params): ...

            def process_custom_jvp_call(self, primitive, fun, jvp, tracers, *, symbolic_zeros): ...

        fake = types.ModuleType("fake")
        fake.Trace = Trace
        if change == "no class":
            del fake.Trace
        if change == "no method":
            del Trace.process_custom_jvp_call
        if change == "another signature":
            Trace.process_primitive = lambda self, primitive, params, *tracers: None
        if change == "renamed tracers":
            Trace.process_custom_jvp_call = lambda self, primitive, jvp, tracers, *, symbolic_zeros: None
        if change != "no module":
            monkeypatch.setitem(sys.modules, "fake", fake)
        before = dict(vars(Trace))
        assert not modulation._tell("fake", "Trace")
        assert dict(vars(Trace)) == before

    @pytest.mark.parametrize("vjp", [False, True])
    def test_of_the_known_shape_is_told(self, vjp, monkeypatch):
        class Trace:
            def to_value(self, val):
                return val

            def process_primitive(self, primitive, tracers, params):
                return "built"

            def process_custom_jvp_call(self, primitive, fun, jvp, tracers, *, symbolic_zeros):
                return tracers

            if vjp:

                def process_custom_vjp_call(self, primitive, fun, fwd, bwd, tracers, *, out_trees, symbolic_zeros):
                    return tracers

        fake = types.ModuleType("fake")
        fake.Trace = Trace
        monkeypatch.setitem(sys.modules, "fake", fake)
        assert modulation._tell("fake", "Trace")
        weights = wm.ManifoldArray(jnp.ones((2, 3)), jnp.ones(2))
        assert Trace().process_custom_jvp_call(None, None, None, [weights, 1], symbolic_zeros=False) == ["built", 1]
        if vjp:
            call = functools.partial(Trace().process_custom_vjp_call, out_trees=None, symbolic_zeros=False)
            assert call(None, None, None, None, [1, weights]) == [1, "built"]


class Activated(eqx.Module):
    """`relu(w) · x`: `relu` has a derivative of its own."""

    weight: jax.Array

    def __call__(self, x):
        return jax.nn.relu(self.weight) @ x


class Loops(eqx.Module):
    """Each place in which an array of weights can come to a `scan`: constant, first state, rows."""

    matrix: jax.Array
    state: jax.Array
    rows: jax.Array
    where: tuple[str, ...] = eqx.field(static=True)
    reverse: bool = eqx.field(static=True)

    def __call__(self, x):
        matrix = self.matrix if "constant" in self.where else jnp.ones_like(self.matrix)
        state = self.state if "carried" in self.where else jnp.ones_like(self.state)
        rows = self.rows if "rows" in self.where else jnp.ones_like(self.rows)

        def step(carry, row):
            count, state = carry
            state = jnp.tanh(matrix @ state + row * x)
            return (count + 1, state), {"state": state, "sum": row.sum()}

        (count, state), stacked = jax.lax.scan(step, (jnp.int32(0), state), rows, reverse=self.reverse)
        return {"state": state, "count": count, **stacked}


@pytest.mark.parametrize("length", [1, 3, 4])  # of as many rows as entries, too
@pytest.mark.parametrize(
    "where",
    [("constant",), ("carried",), ("rows",), ("constant", "rows"), ("constant", "carried", "rows")],
    ids="-".join,
)
def test_a_scan_is_told_apart_by_its_shapes(where, length):
    shapes = (3, 3), (3,), (length, 3)
    draws = (jax.random.normal(k, shape) for k, shape in zip(jax.random.split(KEY, 3), shapes, strict=True))
    net = wm.modulate(Loops(*draws, where, reverse=length == 3), wm.Ellipse(), key=KEY)
    x, s = jax.random.normal(KEY, (2, 3)), jnp.array([0.1, 0.7])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = jax.jit(jax.vmap(net))(x, s)
    built = jax.vmap(lambda x, s: net.at(s)(x))(x, s)
    assert jax.tree.structure(ours) == jax.tree.structure(built)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(built), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
