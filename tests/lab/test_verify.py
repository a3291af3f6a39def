"""Rows are carried to changed code, or not, as `make verify` says; the project is a small one in a folder of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wmlib.lab import verify as module
from wmlib.lab.records import append_row, content_digest, leads_to, read_lines, read_rows
from wmlib.lab.verify import _Sample, _within, differences, methods

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]

CHAPTER = '''
# %%
import jax
import jax.numpy as jnp
import numpy as np

import wmlib as wm
from wmlib.lab.toy import first, kept

scale = wm.preset(quick=dict(seeds=1), cpu=dict(seeds=2))


def chaotic(config, key):
    """The logistic map from a drawn start: two starts part until they have nothing in common."""
    x = jax.random.uniform(key, (50,))
    for _ in range(config["steps"]):
        x = first(x)
    curve = np.asarray(x)[:5]
    return {"metrics": {"mean": float(x.mean()), "step_wall_s": 0.5}, "curves": {"x": curve}, "data": "synthetic: none"}


def still(config, key):
    """A sum, which nothing blows up."""
    x = jax.random.normal(key, (100,))
    return {"metrics": {"sum": kept(x, config["kind"])}, "data": "synthetic: none"}


# %%
grid = [{"kind": kind, "steps": steps} for kind in ("a", "b") for steps in (60, 61)]
rows = wm.sweep("chaotic", chaotic, grid, scale)
sums = wm.sweep("still", still, {"kind": ["a", "b"]}, scale)
'''

TOY = '''
"""What the chapter computes with."""


def first(x):
    """One step of the map."""
    return 3.9 * x * (1 - x)


def kept(x, kind):
    """A number of a vector."""
    return float(x.sum() if kind == "a" else x.max())
'''


def run(folder, *command, **environment):
    # Not where the tests check every type: programs run as they do for a reader.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WMLIB_")} | environment
    environment |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def git(folder, *command):
    done = run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b", *command)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def verify(folder, *options):
    return run(folder, sys.executable, "-m", "wmlib.lab.verify", "toys/toy", *options)


def write(folder, toy=TOY, chapter=CHAPTER, module="toy"):
    (folder / "wmlib" / "lab" / f"{module}.py").write_text(toy)
    (folder / "notebooks" / "toys" / "toy.py").write_text(chapter)


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "book" / "results").glob("*.jsonl")}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A repository whose one chapter has recorded its runs."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "wmlib", folder / "wmlib", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks" / "toys").mkdir(parents=True)
    (folder / "book" / "results").mkdir(parents=True)
    (folder / ".gitignore").write_text("_build/\n__pycache__/\n.claims/\n")
    write(folder)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    done = run(folder, sys.executable, "notebooks/toys/toy.py")
    assert done.returncode == 0, done.stderr
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "rows")
    return folder


@pytest.fixture
def project(recorded, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(recorded, folder)
    return folder


def test_code_that_has_moved_is_carried_and_nothing_is_run(project):
    before = contents(project)
    (project / "wmlib" / "lab" / "toy.py").unlink()
    chapter = CHAPTER.replace(
        "from wmlib.lab.toy import first, kept",
        "import wmlib.models.maps as maps\nfrom wmlib.models.maps import kept as number",
    )
    chapter = chapter.replace("first(x)", "maps.first(x)").replace("kept(x,", "number(x,")
    (project / "notebooks" / "toys" / "toy.py").write_text(chapter)
    (project / "wmlib" / "models" / "maps.py").write_text(TOY.replace("One step", "A step"))
    done = verify(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" moved\n") == 2
    after = contents(project)
    lines = read_lines(project / "book" / "results" / "equivalences.jsonl", ())
    assert {(line["experiment"], line["reason"], line["rows"]) for line in lines} == {
        ("chaotic", "moved", "all"), ("still", "moved", "all"),
    }  # fmt: skip
    assert {name: after[name] for name in before} == before
    assert not [*(project / "_build" / "verify").glob("*.jsonl")]
    # Fresh now, and a line leads there from the rows' own digest; asked again, nothing is done.
    for row in read_rows(project / "book" / "results" / "still.jsonl"):
        assert len(leads_to(row, [line for line in lines if line["experiment"] == "still"])) == 2
    done = verify(project)
    assert done.returncode == 0
    assert done.stdout.count(" fresh\n") == 2
    assert contents(project) == after


def test_a_sample_that_is_equal_bit_for_bit_verifies_the_rows(project):
    write(project, TOY.replace("return 3.9 * x * (1 - x)", "step = 3.9 * x * (1 - x)\n    return step"))
    done = verify(project, "--experiment", "chaotic")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = read_lines(project / "book" / "results" / "equivalences.jsonl", ())
    assert (line["experiment"], line["reason"], line["largest"]) == ("chaotic", "verified", 0.0)
    rows = read_rows(project / "book" / "results" / "chaotic.jsonl")
    cheapest = {k: (row["config"], row["seed"]) for k, row in methods(rows).items()}
    assert [(s["config"], *s["seeds"]) for s in line["sample"]] == [*cheapest.values()]
    assert len(cheapest) == 2
    for key in ("device", "processor", "threads", "time", "commit", "from_commit", "versions"):
        assert line[key], key
    assert line["commit"].endswith("+")  # what it was computed by is not committed


def test_a_reordered_product_is_measured_by_what_chance_does(project):
    write(project, TOY.replace("3.9 * x * (1 - x)", "3.9 * (x * (1 - x))").replace("x.sum()", "x[::-1].sum()"))
    done = verify(project)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {k["experiment"]: k for k in read_lines(project / "book" / "results" / "equivalences.jsonl", ())}
    assert lines["chaotic"]["largest"] > 1e-3  # nothing is left of the start after sixty steps
    apart, chance = lines["chaotic"]["apart_and_chance"]["x"]
    assert apart <= chance
    assert 0 < lines["still"]["largest"] < 1e-5
    # Of the old code nothing was asked where today's gave the recorded numbers: the largest is what it was.
    assert lines["still"]["equal"] == 1
    asked = [k["config"]["kind"] for k in read_lines(project / "_build/verify/still.jsonl", ())]
    assert (asked.count("b"), asked.count("a") > 2) == (1, True)


def test_results_that_differ_are_named_and_nothing_is_appended_for_them(project):
    write(project, TOY.replace("x.max()", "x.max() * 1.0001").replace("3.9", "0.9"))
    done = verify(project, "--starts", "2")
    assert done.returncode == 1
    of = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith(("still", "chaotic"))}
    assert "sum differ" in of["still"]
    assert "mean, x differ" in of["chaotic"]
    assert not (project / "book" / "results" / "equivalences.jsonl").exists()


def test_old_code_that_git_does_not_have_is_not_believed(project):
    path = project / "book" / "results" / "still.jsonl"
    rows = [json.loads(line) | {"code": "0123456789abcdef"} for line in path.read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k not in ("digest", "commit")} for row in rows]
    path.write_text("".join(json.dumps(row | {"digest": content_digest(row)}) + "\n" for row in rows))
    done = verify(project, "--experiment", "still")
    assert done.returncode == 1
    assert "no commit gives the digest 0123456789abcdef; name it: FROM=<commit>" in done.stdout


def test_a_digest_that_no_code_gives_is_replaced_by_the_commit_that_the_rows_name(project):
    path = project / "book" / "results" / "still.jsonl"
    rows = [json.loads(line) | {"code": "0123456789abcdef"} for line in path.read_text().splitlines()]

    def carried(commit, toy=TOY):
        named = [{k: v for k, v in row.items() if k != "digest"} | {"commit": commit} for row in rows]
        path.write_text("".join(json.dumps(row | {"digest": content_digest(row)}) + "\n" for row in named))
        write(project, toy)
        return verify(project, "--experiment", "still").stdout

    first = git(project, "rev-parse", "HEAD~1")
    # With changes beside the commit, or other code today, it says nothing.
    assert "no commit gives the digest" in carried(first[:12] + "+")
    assert "no commit gives the digest" in carried(first[:12], TOY.replace("x.max()", "2 * x.max()"))
    assert carried(first[:12]).count(" moved\n") == 1
    (line,) = read_lines(project / "book" / "results" / "equivalences.jsonl", ())
    assert line["from_commit"] == first
    assert "the commits which the rows name" in line["why"]


def test_rows_of_several_digests_that_were_carried_to_one_code_go_on_from_there(project):
    """The code of the rows themselves is in no commit; that which earlier lines carried them to is."""
    path = project / "book" / "results" / "still.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    given, ledger = rows[0]["code"], path.with_name("equivalences.jsonl")
    for i, row in enumerate(rows):
        row["code"] = f"{i % 2:016x}"
        row["digest"] = content_digest({k: v for k, v in row.items() if k != "digest"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in (0, 1):
        line = {"experiment": "still", "from": f"{i:016x}", "to": given, "rows": "all", "reason": "moved"}
        append_row(ledger, line | {"why": "a test", "largest": 0.0, "device": "", "versions": {}})
    write(project, TOY.replace("x.sum()", "1.0 * x.sum()"))
    done = verify(project, "--experiment", "still")
    assert done.returncode == 0, done.stdout + done.stderr
    line = read_lines(ledger, ())[-1]
    assert (line["from"], line["reason"]) == (given, "verified")
    assert len(line["sample"]) == 2  # one of each kind, not of each digest
    lines = [line for line in read_lines(ledger, ()) if line["experiment"] == "still"]
    assert all(line["to"] in leads_to(row, lines) for row in read_rows(path))


def test_two_processes_share_a_sample_and_a_killed_one_goes_on(project):
    # A run takes so long that both processes want one of them at once: one of the two waits for the other.
    slow = CHAPTER.replace("    x = jax.random.uniform", "    time.sleep(3)\n    x = jax.random.uniform")
    write(project, chapter=slow.replace("import jax\n", "import time\n\nimport jax\n", 1))
    environment = os.environ | {"PYTHONPATH": str(project)}
    command = [sys.executable, "-m", "wmlib.lab.verify", "toys/toy", "--experiment", "chaotic"]
    killed = subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 300
    kept = project / "_build" / "verify" / "chaotic.jsonl"
    while not kept.exists() and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    both = [subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(read_lines(project / "book" / "results" / "equivalences.jsonl", ())) == 1
    assert len(read_lines(kept, ())) == 2  # each run of the sample once


@pytest.mark.parametrize("broken", [{"loss": [1.0, 0.5]}, {"loss": [1.0, None, 0.2]}, {}])
def test_a_start_that_is_not_like_the_others_allows_nothing(broken, tmp_path):
    """A start without a number for chance does not let every difference through."""
    old = {"metrics": {}, "curves": {"loss": [1.0, 0.5, 0.2]}}
    kept = {
        ("from", 0): old,
        ("from", 1): {"metrics": {}, "curves": broken},
        ("to", 0): {"metrics": {}, "curves": {"loss": [9.0, 9.0, 9.0]}},
    }

    class Sample(_Sample):
        def results(self, side, ulps):
            return [kept[side, ulps]]

    sample = Sample({"experiment": "e"}, [], [], {})
    assert not _within(sample, 1, tmp_path)
    assert "loss differ" in sample.entry["how"]
    assert not (tmp_path / "equivalences.jsonl").exists()


def test_old_code_that_stopped_at_missing_rows_is_asked_again(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "toys").mkdir(parents=True)
    (tmp_path / "notebooks" / "toys" / "toy.py").touch()
    whole = {"calls": [{"experiment": "a"}, {"experiment": "b"}], "stopped": None}
    replies = [{"calls": [{"experiment": "a"}], "stopped": "LookupError: a run is missing"}, whole]
    monkeypatch.setattr(module, "_KEPT", tmp_path)
    monkeypatch.setattr(module, "_checkout", lambda commit: tmp_path)
    monkeypatch.setattr(module, "_replay", lambda *_: replies.pop(0))
    ask = lambda: module._old("c0ffee", "toys/toy", "cpu")  # noqa: E731
    assert ask() == ask() != whole  # once in one call of verify
    module._unfinished.clear()
    assert ask() == ask() == whole  # and once for all where it went through to its end
    assert not replies


def test_differences_leave_time_out_and_see_what_is_missing():
    a = {"metrics": {"m": 1.0, "n": None, "step_wall_s": 3.0}, "curves": {"c": [[1.0, 2.0], [3.0, None]]}}
    b = {"metrics": {"m": 1.5, "n": None, "step_wall_s": 4.0}, "curves": {"c": [[1.0, 2.25], [3.0, None]]}}
    assert differences(a, b) == {"m": 0.5, "n": 0.0, "c": 0.25}
    for other in ({"c": [[1.0, 2.0]]}, {"c": [[1.0, 2.0], [3.0, 4.0]]}, {}, {"d": [1.0]}):
        assert max(differences(a, {"metrics": a["metrics"], "curves": other}).values()) == float("inf")
