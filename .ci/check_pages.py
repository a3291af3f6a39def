"""Checks of the built pages, after `make book`: the form of a chapter, on the chapters that have it.

    .venv/bin/python .ci/check_pages.py [_build/html]

1. No line of code is wider than its box on a screen of 1,400 px: 88 characters fit.
2. No more than 200 lines of code are unfolded.
3. Every table has a caption.
4. No colour stands twice in the legend of a figure.
5. The box of findings comes first: before any code, and short enough for the first screen.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from bs4 import BeautifulSoup, Tag

# The chapters in the new form. Each new chapter is added here.
CHAPTERS = ("manifolds/rotated_images", "manifolds/rotated_longer", "manifolds/topology", "manifolds/spheres")
CHAPTERS += ("manifolds/curvature", "paths/continual", "paths/language", "paths/sequences")
CHAPTERS += ("paths/vision_transformer", "paths/continual_fair", "manifolds/topology_pairs")
WIDTH, LINES, WORDS = 88, 200, 160


def article(page: BeautifulSoup) -> Tag:
    found = page.select_one("article.bd-article")
    if found is None:
        raise SystemExit("a page has no article.bd-article; has the theme changed?")
    return found


def wide_code(page: BeautifulSoup, folder: Path) -> Iterator[str]:
    """Lines of code that are wider than their box."""
    for block in article(page).select("div.highlight pre"):
        for line in block.get_text().splitlines():
            if len(line) > WIDTH:
                yield f"a line of code has {len(line)} characters, and {WIDTH} fit: {line.strip()[:60]}…"


def unfolded_code(page: BeautifulSoup, folder: Path) -> Iterator[str]:
    """Too many lines of code that are not folded."""
    blocks = [b for b in article(page).select("div.cell_input div.highlight pre") if b.find_parent("details") is None]
    lines = sum(len(block.get_text().rstrip("\n").splitlines()) for block in blocks)
    if lines > LINES:
        yield f"{lines} lines of code are unfolded, and {LINES} are the most; fold what is not the idea"


def bare_tables(page: BeautifulSoup, folder: Path) -> Iterator[str]:
    """Tables without a caption."""
    for table in article(page).find_all("table"):
        if table.find("caption") is None:
            yield f"a table has no caption: {' '.join(table.get_text(' ').split())[:60]}…"


def legends(svg: str) -> Iterator[tuple[int, list[str]]]:
    """Of each legend in a figure, how many entries it has and the colours of their keys; the book's have no frame."""
    group = "{http://www.w3.org/2000/svg}g"
    for legend in ElementTree.fromstring(svg).iter(group):
        if not re.fullmatch(r"legend_\d+", legend.get("id", "")):
            continue
        names = [child.get("id", "") for child in legend.iter(group)]
        keys = [child for child in legend.iter(group) if re.match(r"line2d|patch|\w+Collection", child.get("id", ""))]
        styles = [" ".join(part.get("style", "") for part in key.iter()) for key in keys]
        colours = [found[0] for style in styles if (found := re.findall(r"(?:stroke|fill): (#[0-9a-f]{6})", style))]
        yield sum(name.startswith("text_") for name in names), list(dict.fromkeys(colours))


def same_colours(page: BeautifulSoup, folder: Path) -> Iterator[str]:
    """Legends in which one colour stands for two things."""
    for image in article(page).find_all("img", src=re.compile(r"_images/[^/]+\.svg$")):
        svg = folder / "_images" / Path(unquote(image["src"])).name
        for entries, colours in legends(svg.read_text(encoding="utf-8")):
            if len(colours) < entries:
                yield f"a legend has {entries} entries in {len(colours)} colours: {image.get('alt', '')[:60]}…"


def findings_first(page: BeautifulSoup, folder: Path) -> Iterator[str]:
    """The box of findings is missing, comes late or is long."""
    box = article(page).select_one("div.admonition.findings")
    if box is None:
        yield "there is no box of findings"
        return
    heading = article(page).find("h1")
    above = [tag for tag in heading.find_all_next() if tag in box.find_all_previous()]
    if any("highlight" in (tag.get("class") or []) for tag in above):
        yield "code stands before the box of findings"
    text = [tag.get_text() for tag in above if tag.name == "p"]
    words = len(" ".join([*text, box.get_text()]).split())
    if words > WORDS:
        yield f"the box of findings ends after {words} words, and {WORDS} fit on the first screen"


CHECKS: tuple[Callable[[BeautifulSoup, Path], Iterator[str]], ...] = (
    wide_code,
    unfolded_code,
    bare_tables,
    same_colours,
    findings_first,
)


def check(html: str, folder: Path) -> list[str]:
    """What is wrong with the form of a built page."""
    page = BeautifulSoup(html, "html.parser")
    return [wrong for test in CHECKS for wrong in test(page, folder)]


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "_build/html")
    found = []
    for chapter in CHAPTERS:
        path = folder / "notebooks" / f"{chapter}.html"
        if not path.is_file():
            raise SystemExit(f"{path} is not there; run make book first")
        found += [f"{chapter}: {wrong}" for wrong in check(path.read_text(encoding="utf-8"), folder)]
    if found:
        raise SystemExit("\n".join(["the built pages are not in the form of a chapter:", *found]))
    print(f"{len(CHAPTERS)} chapters are in the form of a chapter")


if __name__ == "__main__":
    main()
