"""The opening figure is drawn from the recorded runs."""

import importlib.util
import re
from pathlib import Path

from wmlib.lab.runs import read_rows

BOOK = Path(__file__).parents[1] / "book"


def test_the_opening_figure_is_the_one_that_the_recorded_runs_give(tmp_path):
    spec = importlib.util.spec_from_file_location("opening", BOOK / "opening.py")
    assert spec is not None
    assert spec.loader is not None
    opening = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(opening)
    opening.draw(read_rows(BOOK / "results/rotated_images.jsonl"), tmp_path / "opening.svg")

    def paths(file):  # the curves; fonts and ids may differ between versions of matplotlib
        return re.findall(r'd="([^"]+)"', file.read_text())

    assert paths(tmp_path / "opening.svg") == paths(BOOK / "static/opening.svg"), "run book/opening.py again"
