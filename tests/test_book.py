"""The book's table of contents, the form of its chapters, and its Sphinx extension."""

import ast
import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jupytext
import pytest
import yaml
from myst_nb.core.config import NbParserConfig
from myst_nb.core.execute import create_client
from sphinx.errors import ExtensionError

from wmlib.lab import figures
from wmlib.lab.records import identity, standing_rows

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "notebooks").rglob("*.py"))
CHAPTER_IDS = [path.relative_to(ROOT / "notebooks").with_suffix("").as_posix() for path in CHAPTERS]


@pytest.fixture(scope="module")
def wmbook():
    sys.path.insert(0, str(ROOT / "book/_ext"))
    import wmbook

    yield wmbook
    sys.path.remove(str(ROOT / "book/_ext"))


@pytest.fixture(scope="module")
def wmexecute():
    sys.path.insert(0, str(ROOT / "book/_ext"))
    import wmexecute

    yield wmexecute
    sys.path.remove(str(ROOT / "book/_ext"))


def _contents() -> list[str]:
    def files(entry):
        for key, value in entry.items():
            if key in ("root", "file"):
                yield value
            elif key in ("parts", "chapters", "sections"):
                for inner in value:
                    yield from files(inner)

    return list(files(yaml.safe_load((ROOT / "_toc.yml").read_text())))


# Chapters whose runs are still being recorded: tests run them, and the book has them when their rows are complete.
IN_PREPARATION = ["notebooks/paths/sparsity_longer"]
IN_PREPARATION += [f"notebooks/manifolds/{name}" for name in ("confirmed", "optimisers_longer")]


def test_the_contents_list_every_page_once_and_no_other():
    listed = [*_contents(), *IN_PREPARATION]
    assert len(set(listed)) == len(listed)
    pages = [*(ROOT / "book").rglob("*.md"), *CHAPTERS]
    assert sorted(listed) == sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in pages)


def test_every_module_of_the_library_has_a_page():
    modules = {
        f"{folder}/{path.stem}"
        for folder in ("manifolds", "paths", "lab")
        for path in (ROOT / "wmlib" / folder).glob("[!_]*.py")
    }
    pages = {
        path.relative_to(ROOT / "book/api").with_suffix("").as_posix() for path in (ROOT / "book/api").rglob("*.md")
    }
    assert modules | {"models", "rivals", "index"} == pages


def contrast(colour, ground):
    """The contrast of two colours (WCAG 2.2)."""
    bright, dark = sorted((_luminance(colour), _luminance(ground)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("path", CHAPTERS, ids=CHAPTER_IDS)
class TestChapter:
    def test_starts_with_its_only_title(self, path):
        notebook = jupytext.read(path, fmt="py:percent")
        assert notebook.metadata["kernelspec"]["name"] == "python3", "the header is not closed, and would be shown"
        prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
        assert notebook.cells[0].source == prose[0]
        assert prose[0].startswith("# ")
        titles = re.findall(r"^# ", re.sub(r"```.*?```", "", "\n".join(prose), flags=re.DOTALL), re.MULTILINE)
        assert len(titles) == 1

    def test_has_short_cells_and_none_that_calls_the_shell(self, path):
        for cell in jupytext.read(path, fmt="py:percent").cells:
            if cell.cell_type == "code":
                lines = [line for line in cell.source.splitlines() if line.strip()]
                # What is folded under a label that says what is inside may be longer: one fold a section.
                labelled = "code_prompt_show" in cell.metadata.get("mystnb", {})
                folded = {"hide-input", "remove-input"} & set(cell.metadata.get("tags", []))
                most = 200 if folded and labelled else 60 if "remove-input" in folded else 20
                assert len(lines) <= most, f"{len(lines)} lines:\n{cell.source}"
                assert not re.search(r"^\s*[!%]|\bpip install\b", cell.source, re.MULTILINE), cell.source

    def test_counts_the_lines_that_it_folds(self, path):
        for cell in jupytext.read(path, fmt="py:percent").cells:
            label = cell.metadata.get("mystnb", {}).get("code_prompt_show", "")
            if said := re.search(r"(\d+) lines", label):
                assert int(said[1]) == len(cell.source.splitlines()), label

    def test_draws_in_colours_that_can_be_seen(self, path):
        # Guides, which are no data, may be paler.
        for colour in set(re.findall(r"#[0-9A-Fa-f]{6}", path.read_text())) - {"#999999", "#DDDAD2"}:
            assert contrast(colour, figures.GROUND) >= 3, colour

    def test_describes_every_figure_in_words(self, path):
        for cell in jupytext.read(path, fmt="py:percent").cells:
            if "figure" not in (options := cell.metadata.get("mystnb", {})):
                continue
            assert options["figure"].get("caption"), cell.source
            assert re.fullmatch(r"fig-[\w-]+", options["figure"].get("name", "")), cell.source
            assert options.get("image", {}).get("alt"), cell.source

    def test_gives_every_figure_a_caption(self, path):
        for cell in jupytext.read(path, fmt="py:percent").cells:
            if cell.cell_type == "code" and re.search(r"\bplt\.(subplots|figure)\(", cell.source):
                assert "figure" in cell.metadata.get("mystnb", {}), cell.source

    def test_ends_figure_cells_with_the_figure_alone(self, path):
        # The value of a last expression would be a second output under the figure's caption.
        for cell in jupytext.read(path, fmt="py:percent").cells:
            if "figure" in cell.metadata.get("mystnb", {}):
                last = ast.parse(cell.source).body[-1]
                shown = isinstance(last, ast.Expr) and ast.unparse(last) != "plt.show()"
                assert not shown, f"end this cell with plt.show():\n{cell.source}"

    def test_has_no_word_that_waits_for_another(self, path):
        assert not re.search(r"\b(TODO|FIXME|XXX|TBD)\b", path.read_text())

    def test_refers_to_every_figure(self, path):
        text = path.read_text()
        for name in re.findall(r'"name":\s*"(fig-[\w-]+)"', text):
            assert f"`{name}`" in text, f"the text never refers to {name}; write {{numref}}`{name}`"


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example.org/x.js"></script>',
        "<script async src=//cdn.example.org/x.js></script>",
        '<link rel="stylesheet" href="https://fonts.example.org/css">',
        '<link href="https://fonts.example.org" rel="preconnect">',
        '<img alt="a > b" src="http://example.org/badge.svg">',
        '<iframe src="https://example.org"></iframe>',
        '<style>@import "https://example.org/a.css";</style>',
        "<style>body { background: url(//example.org/a.png) }</style>",
        '<script type="module">import x from "https://example.org/x.js"</script>',
    ],
)
def test_a_page_that_would_fetch_from_elsewhere_is_found(wmbook, tmp_path, page):
    (tmp_path / "page.html").write_text(f"<html><body>{page}</body></html>")
    (found,) = wmbook.foreign_references(tmp_path)
    assert "example.org" in found


@pytest.mark.parametrize(
    "page",
    [
        '<a href="https://example.org">a link</a>',
        '<script src="../_static/x.js?v=1"></script>',
        '<link rel="canonical" href="https://example.org/page.html">',
        '<img src="data:image/png;base64,AA==">',
        "<pre>&lt;script src=https://example.org&gt; url(https://example.org)</pre>",
        '<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    ],
)
def test_ordinary_links_are_not_mistaken_for_fetches(wmbook, tmp_path, page):
    (tmp_path / "page.html").write_text(f"<html><body>{page}</body></html>")
    assert wmbook.foreign_references(tmp_path) == []


def test_the_digest_covers_all_that_the_outputs_depend_on(wmbook, tmp_path):
    files = ["wmlib/a.py", "wmlib/models/b.py", "requirements.txt", "book/results/c.jsonl", "book/claims/e/f.toml"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one\n")
    seen = {wmbook.digest(tmp_path)}
    for name in files:
        (tmp_path / name).write_text("two\n")
        seen.add(wmbook.digest(tmp_path))
    assert len(seen) == 1 + len(files)
    (tmp_path / "README.md").write_text("prose\n")
    assert wmbook.digest(tmp_path) in seen


class TestExecution:
    """The chapters are executed together, before the pages are read."""

    CONFIG = NbParserConfig(
        custom_formats={".py": ("jupytext.reads", {"fmt": "py:percent"}, False)}, execution_mode="cache"
    )

    def chapters(self, wmexecute, folder, **texts):
        for name, text in texts.items():
            (folder / f"{name}.py").write_text(text)
        return {str(folder / f"{name}.py"): wmexecute.read(folder / f"{name}.py", self.CONFIG) for name in texts}

    def test_puts_what_myst_nb_looks_up_into_the_cache_once(self, wmexecute, tmp_path):
        text = "# %% [markdown]\n# # Title\n\n# %%\nimport os\nprint(os.getcwd(), {})\n\n# %%\n1 + 1\n"
        texts = {name: text.format(i) for i, name in enumerate("abc")}
        chapters = self.chapters(wmexecute, tmp_path, **texts)
        executed = wmexecute.execute_all(chapters, str(tmp_path / "cache"), workers=2)
        assert sorted(one.path for one in executed) == sorted(chapters)
        assert all(not one.failure and one.processor > 0 and one.seconds > 0 for one in executed)
        for path, name in zip(chapters, "abc", strict=True):
            # As myst-nb does: it must find the cells, and not execute them.
            notebook = wmexecute.read(Path(path), self.CONFIG)
            config = self.CONFIG.copy(execution_cache_path=str(tmp_path / "cache"), execution_timeout=0)
            with create_client(notebook, path, config, logging.getLogger()) as client:
                assert client.exec_metadata["runtime"] > 0
                assert client.notebook.cells[1].outputs[0].text == f"{tmp_path} {'abc'.index(name)}\n"
                assert client.notebook.cells[2].outputs[0].data["text/plain"] == "2"
        before = sorted(path.name for path in (tmp_path / "cache/executed").iterdir())
        assert len(before) == 3
        chapters = self.chapters(wmexecute, tmp_path, a=texts["a"].replace("Title", "Another"), b=texts["b"] + "2\n")
        again = wmexecute.execute_all(chapters, str(tmp_path / "cache"), workers=1)
        assert [Path(one.path).name for one in again] == ["b.py"]  # prose executes nothing

    def test_kernels_take_no_port_that_another_may_have_taken(self, wmexecute, tmp_path, monkeypatch):
        (long := tmp_path / ("long" * 30)).mkdir()
        monkeypatch.setenv("TMPDIR", str(long))
        text = "# %%\nimport json, ipykernel\nprint(json.loads(ipykernel.get_connection_info())['transport'])\n"
        chapters = self.chapters(wmexecute, tmp_path, **dict.fromkeys("abcd", text))
        executed = wmexecute.execute_all(chapters, str(tmp_path / "cache"), workers=2)
        assert [one.notebook.cells[0].outputs[0].text for one in executed] == ["ipc\n"] * 4

    def test_names_chapter_and_cell_of_a_failure_and_keeps_the_rest(self, wmexecute, tmp_path):
        chapters = self.chapters(wmexecute, tmp_path, bad="# %%\n1\n\n# %%\n1 / 0\n\n# %%\n2\n", good="# %%\n3\n")
        failed, kept = sorted(
            wmexecute.execute_all(chapters, str(tmp_path / "cache")), key=lambda one: Path(one.path).name
        )
        assert failed.path.endswith("bad.py")
        assert not kept.failure
        assert failed.failure.startswith("code cell 2 of 3:")
        assert "ZeroDivisionError" in failed.failure
        assert "1 / 0" in failed.failure
        assert len(list((tmp_path / "cache/executed").iterdir())) == 1
        # The page's build says so.
        app = SimpleNamespace(srcdir=tmp_path)
        config = self.CONFIG.copy(execution_cache_path=str(tmp_path / "cache"))
        env = SimpleNamespace(
            mystnb_config=config, myst_config=None, doc2path=lambda name: str(tmp_path / f"{name}.py")
        )
        wmexecute.before_reading(app, env, ["good"])
        with pytest.raises(ExtensionError, match=r"(?s)bad\.py, code cell 2 of 3:.*ZeroDivisionError"):
            wmexecute.before_reading(app, env, ["bad", "good"])

    def test_limits_processor_time_and_not_the_clock(self, wmexecute, tmp_path):
        waits = "# %%\nimport time\ntime.sleep(8)\n"
        works = "# %%\n1\n\n# %%\nwhile True:\n    pass\n"
        chapters = self.chapters(wmexecute, tmp_path, waits=waits, works=works)
        found = {Path(one.path).stem: one for one in wmexecute.execute_all(chapters, str(tmp_path / "cache"), limit=5)}
        assert not found["waits"].failure
        assert found["waits"].seconds >= 8 > found["waits"].processor
        assert re.match(r"code cell 2 of 2: the kernel died, after 5 seconds of processor", found["works"].failure)


def test_chapters_with_claims_come_in_the_order_of_the_contents(wmbook, tmp_path):
    import wmverdicts

    for name in ("part/a", "part/aa", "part/b"):
        path = tmp_path / f"book/claims/{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "_toc.yml").write_text("- file: notebooks/part/b\n- file: notebooks/part/aa\n")
    assert wmverdicts.claimed_chapters(tmp_path) == ["part/b", "part/aa"]  # part/a is not in the contents


def test_docstrings_become_what_autodoc_reads(wmbook):
    lines = ["Step `G` of $G^{-1} g$:", "- one", "- two", "", "```python", "x = 1", "```"]
    wmbook.markdown_to_rst(None, "function", "f", None, None, lines)
    text = "\n".join(lines)
    assert ":math:`G^{-1} g`" in text
    assert "\n\n- one\n- two\n" in text
    assert ".. code-block:: python\n\n   x = 1\n" in text
    indented = ["**Example:**", "", "    y = 2", "    z = 3", "", "- a list", "", "    goes on"]
    wmbook.markdown_to_rst(None, "function", "f", None, None, indented)
    assert indented[2:6] == [".. code-block:: python", "", "    y = 2", "    z = 3"]
    assert indented[-2:] == ["", "    goes on"]


def test_every_experiment_is_counted_among_what_its_chapter_cost(wmbook):
    found = wmbook.costs(ROOT, "cpu")
    asked = json.loads((ROOT / "book/results/asked.json").read_text())["cpu"]
    waiting = {name for page in IN_PREPARATION for name in asked.get(page.removeprefix("notebooks/"), ())}
    seconds = [
        row["seconds"]
        for path in (ROOT / "book/results").glob("*.jsonl")
        if path.stem not in {"equivalences", "withdrawn", *waiting}
        for row in {identity(r["config"], r["seed"]): r for r in standing_rows(path) if r["preset"] == "cpu"}.values()
    ]
    assert sum(count for _, _, count, _, _ in found) == len(seconds)
    assert sum(total for _, _, _, total, _ in found) == pytest.approx(sum(seconds))
    assert max(longest for _, _, _, _, longest in found) == max(seconds)
    assert {"manifolds/forward_pass", "paths/continual"} <= {chapter for chapter, *_ in found}
