"""The files around the code agree with each other and with the code."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from safetensors import safe_open

from wmlib.lab import _extra

ROOT = Path(__file__).parents[1]
BASE = ROOT / "book/results/vision_base.safetensors"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {
    extra: [Requirement(line) for line in lines if not line.startswith("wmlib[")]
    for extra, lines in PROJECT["optional-dependencies"].items()
}
DECLARED = RUNTIME + [
    requirement
    for extra, group in EXTRAS.items()
    if extra not in ("minilm", "peers", "rivals")
    for requirement in group
]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


def _lock(file: str = "requirements.txt") -> dict[str, Version]:
    lock = {}
    for line in (ROOT / file).read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, version = line.partition("==")
        assert separator, f"{file} must pin every package exactly (name==version), got {line!r}"
        assert canonicalize_name(name) not in lock, f"{name} is locked twice"
        lock[canonicalize_name(name)] = Version(version)
    return lock


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_what_pyproject_asks_for_is_locked_within_its_range(requirement):
    locked = _lock().get(canonicalize_name(requirement.name))
    assert locked is not None, f"{requirement.name} is in pyproject.toml and not in requirements.txt; run `make lock`"
    assert locked in requirement.specifier, f"{requirement} does not allow the locked version {locked}"


def test_every_declared_package_has_a_range():
    without = [str(r) for r in DECLARED if not any(s.operator in (">=", "==", "~=") for s in r.specifier)]
    assert not without


@pytest.mark.parametrize("file", ["requirements.txt", "constraints-newest.txt"])
def test_the_lock_names_no_machine(file):
    text = (ROOT / file).read_text()
    assert "@" not in text
    assert "file:" not in text
    local = [name for name, version in _lock(file).items() if version.local]
    assert not local, f"{local} are locked to a build that other machines cannot install"
    assert canonicalize_name(PROJECT["name"]) not in _lock(file)


@pytest.mark.parametrize("requirement", [*RUNTIME, *EXTRAS["lab"], *EXTRAS["test"]], ids=str)
def test_the_newest_packages_are_within_the_ranges(requirement):
    newest = _lock("constraints-newest.txt").get(canonicalize_name(requirement.name))
    assert newest is not None, f"{requirement.name} is not in constraints-newest.txt; run `make newest-constraints`"
    assert newest in requirement.specifier


def test_the_newest_packages_are_dated_and_without_torch():
    text = (ROOT / "constraints-newest.txt").read_text()
    assert re.search(r"^# Date: 20\d\d-[01]\d-[0-3]\d, Python 3\.1[23]", text, re.MULTILINE)
    assert "make newest-constraints" in text
    assert "torch" not in _lock("constraints-newest.txt")
    assert _lock("constraints-newest.txt")["jax"] > _lock()["jax"]


def test_github_tries_the_packages_of_the_day_once_a_week():
    workflow = yaml.safe_load((ROOT / ".github/workflows/newest.yml").read_text())
    (when,) = workflow[True]["schedule"]  # YAML reads `on` as true
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", when["cron"])
    (job,) = workflow["jobs"].values()
    assert "make newest CONSTRAINTS= NEWEST=python" in [step.get("run") for step in job["steps"]]
    tried = job["strategy"]["matrix"]["python"]
    supported = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert tried == [v for v in supported if v != ENVIRONMENT["dependencies"][0].partition("=")[2]]
    makefile = (ROOT / "Makefile").read_text()
    assert f"for v in {' '.join(reversed(tried))};" in makefile


@pytest.mark.parametrize(
    "package",
    ["jax", "equinox", "optax", "matplotlib", "sympy", "transformers", "torch", "jupytext", "jupyter-book"],
)
def test_the_lock_has_what_the_book_is_made_with(package):
    assert package in _lock()


def test_the_book_is_built_with_jupyter_book_1():
    assert _lock()["jupyter-book"] in SpecifierSet(">=1.0.4,<2")
    (asked,) = [r for r in EXTRAS["book"] if r.name == "jupyter-book"]
    assert Version("2.0") not in asked.specifier


def test_conda_and_pip_install_the_same():
    *packages, last = ENVIRONMENT["dependencies"]
    assert last == {"pip": ["-r requirements.txt", "-e ."]}
    (python,) = [p for p in packages if p.startswith("python=")]
    version = python.removeprefix("python=").strip("=")
    assert Version(version) in SpecifierSet(PROJECT["requires-python"])
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    workflow = (ROOT / ".github/workflows/book.yml").read_text()
    assert f'python-version: "{version}"' in workflow
    # Everything else comes from the lock, so that there is one place for versions.
    assert set(packages) - {python} == {"pip"}


def test_the_makefile_wants_the_same_python():
    lowest = PROJECT["requires-python"].removeprefix(">=").split(".")
    assert f"({', '.join(lowest)})" in (ROOT / "Makefile").read_text()


def _imported(files) -> set[str]:
    names = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(), path.name)):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"wmlib", "__future__"}


_CORE = [r.name for r in RUNTIME]
_LAB = [*_CORE, *(r.name for r in EXTRAS["lab"])]
_TEST = [*_LAB, *(r.name for r in EXTRAS["test"])]


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        ("wmlib/*.py", _CORE),
        *((f"wmlib/{folder}/**/*.py", _CORE) for folder in ("manifolds", "paths", "rivals")),
        ("wmlib/models/**/*.py", [*_CORE, *(r.name for r in EXTRAS["pretrained"])]),
        # IPython is looked for and done without.
        (
            "wmlib/lab/**/*.py",
            [*_LAB, *(r.name for e in ("engines", "texts") for r in EXTRAS[e]), "ipython", "matplotlib-inline"],
        ),
        # The library that one chapter's rows compare with, whose module has another name than its package.
        ("notebooks/**/*.py", [*_LAB, *(r.name for r in EXTRAS["book"]), "avalanche-lib", "avalanche"]),
        (".ci/try_wheel.py", _CORE),
        (".ci/check_*.py", [r.name for r in EXTRAS["book"]]),
        # nbformat and traitlets come with nbclient, where it is asked for; torch is done without.
        *(
            (f"tests/{folder}/**/*.py", [*_TEST, "nbformat", "traitlets", "torch"])
            for folder in ("manifolds", "paths", "lab")
        ),
        # Peers, which the tests are skipped without.
        ("tests/models/**/*.py", [*_TEST, "torch", "transformers", *(r.name for r in EXTRAS["pretrained"])]),
        ("tests/rivals/**/*.py", [*_TEST, "torch", "peft", "transformers"]),
        ("tests/test_packaging.py", _TEST),
        ("tests/conftest.py", [*_TEST, "draws"]),  # tests/startup/draws.py
        ("tests/startup/*.py", _TEST),
        (
            "tests/*.py",
            [
                *_TEST,
                *(r.name for r in EXTRAS["book"]),
                "draws",
                "wmbook",
                "wmexecute",
                "wmfigures",
                "wmverdicts",
                "myst-nb",
                "sphinx",
            ],
        ),  # the book's own extensions, and what it is built with
    ],
)
def test_what_is_imported_is_declared(pattern, allowed):
    allowed = {canonicalize_name(name) for name in allowed}
    distributions = packages_distributions()
    files = [*ROOT.glob(pattern)]
    assert files
    undeclared = {
        name
        for name in _imported(files)
        if not {canonicalize_name(d) for d in distributions.get(name, [name])} & allowed
    }
    assert not undeclared, f"{pattern} imports {sorted(undeclared)}, which pyproject.toml does not declare for it"


def test_every_folder_of_the_library_is_covered_above():
    folders = {path.parent.name for path in (ROOT / "wmlib").glob("*/__init__.py")}
    assert folders == {"manifolds", "paths", "models", "rivals", "lab"}


def test_what_the_lab_asks_for_is_its_extra():
    distributions = packages_distributions()
    asked = {canonicalize_name(distributions[module][0]) for module in _extra.PACKAGES}
    assert asked == {canonicalize_name(r.name) for r in EXTRAS["lab"]}
    for extra in ("engines", "texts", "book", "test"):
        assert "wmlib[lab]" in PROJECT["optional-dependencies"][extra]


def test_every_extra_that_a_message_or_an_extra_names_is_there():
    texts = [path.read_text() for path in (ROOT / "wmlib").rglob("*.py")]
    named = {extra for text in texts for extra in re.findall(r"wmlib\[(\w+)\]", text)}
    named |= {
        line[6:-1] for lines in PROJECT["optional-dependencies"].values() for line in lines if line[:6] == "wmlib["
    }
    assert {"lab", "texts", "pretrained"} <= named <= EXTRAS.keys()


def _tracked() -> list[Path]:
    """The files of the project: git's, or all but what building leaves, where there is no git (an archive)."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        built = {".venv", "_build", "__pycache__", ".claims"}
        files = (p for p in ROOT.rglob("*") if p.is_file() and not built & {*p.relative_to(ROOT).parts})
        return [p for p in files if not any(part.endswith(("_cache", ".egg-info")) for part in p.parts)]
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_neither_notebooks_nor_data_nor_builds_are_committed():
    unwanted = {".ipynb", ".parquet", ".npy", ".npz", ".pkl", ".safetensors", ".eqx", ".pyc", ".whl", ".arrow"}
    files = [p for p in _tracked() if p != BASE]
    assert [p for p in files if p.suffix in unwanted or "_build" in p.parts or p.stem.endswith("egg-info")] == []


def test_no_committed_file_is_large_but_for_the_weights_of_one_network():
    assert [p for p in _tracked() if p.stat().st_size > (2**21 if p == BASE else 2**20)] == []


def test_these_weights_are_those_of_the_recorded_run():
    rows = map(json.loads, BASE.with_suffix(".jsonl").read_text().splitlines())
    row = next(row for row in rows if row["config"]["base"] == 0)
    with safe_open(BASE, "np") as file:
        recipe = json.loads(file.metadata()["recipe"])
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"float16"}  # noqa: SIM118
    assert recipe.pop("images") == row["data"]
    assert recipe == {name: value for name, value in row["config"].items() if name != "test"}


def test_no_committed_file_names_a_place_on_one_machine():
    place = re.compile(r"(?<![\w./:~-])/(?:home|root|Users|work|mnt|tmp)/\w")
    named = []
    for path in _tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        named += [f"{path.relative_to(ROOT)}: {m.group()}" for m in place.finditer(text)]
    assert named == []


def test_the_check_script_runs_the_tests_then_the_book_then_the_newest_packages_and_the_wheel():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert re.findall(r"^make (\w+)$", text, re.MULTILINE) == ["test", "book", "newest", "wheel"]
    assert "bash .ci/run" in (ROOT / ".github/workflows/book.yml").read_text()


def test_version_and_licences_are_stated_alike():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == ["MIT", "CC-BY-4.0"]
    assert "MIT License" in (ROOT / "LICENSE").read_text()
    assert "CC-BY-4.0" in (ROOT / "LICENSE-BOOK").read_text()
    assert PROJECT["license"] == "MIT"


def test_the_examples_of_the_readme_run():
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    names = {}
    for example in examples:  # each goes on from the one before
        exec(example, names)
    assert names["outputs"].shape == (32, 3)
    length = sum(float((leaf**2).sum()) for leaf in names["jax"].tree.leaves(names["step"].value))
    assert length == pytest.approx(1e-4, rel=1e-3)
