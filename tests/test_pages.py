"""The checks of built pages find what they are for."""

import importlib.util
import io
import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from wmlib.lab import figures

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("check_pages", ROOT / ".ci/check_pages.py")
assert _spec is not None
assert _spec.loader is not None
check_pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_pages)

BOX = '<div class="admonition findings"><p>It leads by 1.0.</p></div>'
CODE = '<div class="cell_input"><div class="highlight"><pre>{}</pre></div></div>'
TABLE = "<table><caption>Rates.</caption><tr><td>1</td></tr></table>"


def page(*parts):
    return f'<article class="bd-article"><section><h1>Title</h1>{"".join(parts)}</section></article>'


def legend(folder, *colours):
    """A page with a figure whose legend has keys of the colours given."""
    figures.use_style()
    fig, ax = plt.subplots()
    for i, colour in enumerate(colours):
        ax.plot([0, i], marker="o", color=colour, label=f"line {i}")
    ax.errorbar([0], [1], yerr=[0.1], color="#123456", label="with bars")
    ax.fill_between([0, 1], [0, 1], color="#654321", label="a band")
    ax.legend()
    folder.joinpath("_images").mkdir()
    fig.savefig(folder / "_images/f.svg", metadata={"Date": None})
    plt.close(fig)
    return page(BOX, '<img src="../_images/f.svg" alt="A figure">')


def test_a_page_in_the_form_passes(tmp_path):
    lines = "\n".join(["x = 1"] * 200)
    folded = f"<details>{CODE.format(lines)}</details>"
    assert check_pages.check(page("<p>Run this.</p>", BOX, CODE.format(lines), folded, TABLE), tmp_path) == []


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([BOX, CODE.format("x" * 89)], "89 characters, and 88 fit"),
        ([BOX, CODE.format("\n".join(["x"] * 201))], "201 lines of code are unfolded"),
        ([BOX, TABLE.replace("<caption>Rates.</caption>", "")], "a table has no caption: 1"),
        ([TABLE], "there is no box of findings"),
        ([CODE.format("x = 1"), BOX], "code stands before the box"),
        ([f"<p>{'word ' * 200}</p>", BOX], "fit on the first screen"),
    ],
)
def test_what_is_wrong_is_found(parts, says, tmp_path):
    (found,) = check_pages.check(page(*parts), tmp_path)
    assert says in found


def test_a_colour_twice_in_a_legend_is_found(tmp_path):
    (found,) = check_pages.check(legend(tmp_path, "#0072b2", "#bb4d36", "#0072b2"), tmp_path)
    assert "a legend has 5 entries in 4 colours: A figure" in found


def test_a_legend_of_different_colours_passes(tmp_path):
    assert check_pages.check(legend(tmp_path, "#0072b2", "#bb4d36"), tmp_path) == []


def test_each_chapter_on_the_list_is_in_the_table_of_contents():
    contents = (ROOT / "_toc.yml").read_text()
    assert all(f"notebooks/{chapter}" in contents for chapter in check_pages.CHAPTERS)


def drawn(columns, share, extra=None):
    fig, axes = plt.subplots(1, columns, figsize=(7.2, 3), sharey=share, squeeze=False)
    for ax in axes[0]:
        ax.plot([0, 1000], [0, 1000])
    if extra == "legend":
        axes[0, 0].lines[0].set_label("a line")
        fig.legend()
    elif extra == "off":
        axes[0, -1].set_axis_off()
    elif extra == "bar":
        fig.colorbar(plt.cm.ScalarMappable(), ax=axes[0, 0])
    file = io.StringIO()
    fig.savefig(file, format="svg")
    plt.close(fig)
    return file.getvalue()


@pytest.mark.parametrize(("columns", "share", "extra"), [(2, True, None), (3, False, None), (2, False, "bar")])
def test_the_panels_of_a_figure_cover_it(wmfigures, columns, share, extra):
    found = wmfigures.panels(drawn(columns, share, extra))
    boxes = [panel["box"] for panel in found["panels"]]
    assert len(boxes) == columns
    assert boxes[0][0] == 0
    for (x, _, width, _), (following, *_) in itertools.pairwise(boxes):
        assert x + width == pytest.approx(following, abs=2e-4)
    assert sum(box[2] for box in boxes) == pytest.approx(1, abs=5e-4)
    assert [panel["shared"] for panel in found["panels"]] == [False, *[share] * (columns - 1)]


@pytest.mark.parametrize(("columns", "extra"), [(1, None), (5, None), (2, "legend"), (2, "off")])
def test_a_figure_that_cannot_be_cut_stays_whole(wmfigures, columns, extra):
    assert wmfigures.panels(drawn(columns, False, extra)) is None


@pytest.fixture
def wmfigures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book/_ext")
    import wmfigures

    return wmfigures
