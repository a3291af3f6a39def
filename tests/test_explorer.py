"""The interactive figure is built from a recorded run, stands alone, and says what the run says."""

import base64
import importlib.util
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wmlib as wm
from wmlib.lab.runs import read_rows

BOOK = Path(__file__).parents[1] / "book"
COMMITTED = BOOK / "static/explorer.html"
IMAGE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


@pytest.fixture(scope="module")
def built() -> str:
    spec = importlib.util.spec_from_file_location("explorer", BOOK / "explorer.py")
    assert spec is not None
    assert spec.loader is not None
    explorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(explorer)
    return explorer.recorded()


def _pixels(page: str) -> np.ndarray:
    (encoded,) = IMAGE.findall(page)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def test_the_committed_block_is_the_one_that_the_recorded_run_gives(built):
    committed = COMMITTED.read_text(encoding="utf-8")
    assert IMAGE.sub("", committed) == IMAGE.sub("", built), "run book/explorer.py again"
    np.testing.assert_array_equal(_pixels(committed), _pixels(built))  # compressed differently by another zlib


def test_it_shows_the_first_test_image_of_each_digit():
    images, labels, _ = wm.load_dataset("mnist5k", "test")
    first = [np.flatnonzero(labels == digit)[0] for digit in range(10)]
    np.testing.assert_array_equal(_pixels(COMMITTED.read_text()), np.rint(255 * np.hstack(images[first, 0])))


def test_its_probabilities_are_those_of_the_row():
    row = [r for r in read_rows(BOOK / "results/hidden_context_explorer.jsonl") if r["preset"] == "cpu"][-1]
    found = re.search(r'<script type="application/json">(.*?)</script>', COMMITTED.read_text())
    assert found is not None
    data = json.loads(found[1])
    for shown in ("upright", "turned"):
        p = np.array(data[shown])
        assert p.shape == (10, 48, 10)
        np.testing.assert_allclose(p / 1000, row["curves"][shown], atol=1e-9)
        np.testing.assert_allclose(p.sum(axis=2), 1000, atol=5)


def test_it_loads_nothing_and_stays_small():
    page = COMMITTED.read_text()
    assert not re.search(r"https?://|url\((?!\"data:)|\bsrc=|\bhref=|@\w+@|\bimport\b|\bfetch\b", page)
    assert len(page) < 200_000


def test_it_says_something_without_scripts_and_to_a_screen_reader():
    page = COMMITTED.read_text()
    fallback = re.search(r"<noscript>(.*?)</noscript>", page, re.DOTALL)
    assert fallback is not None
    assert fallback[1].count("<li>") == 6
    for needed in ("aria-live", "aria-valuetext", '<label for="wmx-context">', "<legend>", 'role="group"'):
        assert needed in page
