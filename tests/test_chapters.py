"""Every chapter runs as a script, from nothing, at the smallest preset."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "notebooks").rglob("*.py"))
LIMIT = 300  # seconds; a chapter should take a tenth of it


@pytest.mark.parametrize(
    "path", CHAPTERS, ids=[p.relative_to(ROOT / "notebooks").with_suffix("").as_posix() for p in CHAPTERS]
)
def test_chapter_runs_as_a_script(path, tmp_path):
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes longer than running at this size
        "MPLBACKEND": "agg",
        "PYTHONWARNINGS": "ignore:FigureCanvasAgg",  # plt.show() has nowhere to show it
        "WMLIB_PRESET": "quick",
        "WMLIB_RESULTS": str(tmp_path / "results"),  # nothing is recorded there yet
    }
    for name in ("WMLIB_DATA", "WMLIB_RECORDED_ONLY", "WMLIB_RERUN"):
        environment.pop(name, None)
    before = _results()
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    tail = "\n".join(done.stderr.splitlines()[-40:])
    assert done.returncode == 0, f"{path.relative_to(ROOT)} failed:\n{tail}"
    assert "Warning:" not in done.stderr, f"{path.relative_to(ROOT)} warns:\n{tail}"
    assert _results() == before, f"{path.relative_to(ROOT)} changed book/results at the quick preset"


def _results() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (ROOT / "book/results").glob("*.jsonl")}
