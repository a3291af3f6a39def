"""Finds the panels of a figure in its SVG, so that `figures.js` can stack them on a phone."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sphinx.application import Sphinx

_AXES = re.compile(r'<g id="axes_\d+">\s*<g id="patch_\d+">\s*<path d="([^"]+)"')
_POINT = re.compile(r"(-?[\d.]+) (-?[\d.]+)")
_VIEW = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def panels(svg: str) -> dict[str, Any] | None:
    """Where the columns of a figure stand that can be stacked, as shares of its size; None if it has to stay whole.

    What matplotlib draws is read back: each axes by its background. A column ends a little right of its axes, by the
    overhang of a last label, and the next begins there. A column is "shared" if there is no room for numbers left of it: they
    are those of the first column, whose strip `axis` is shown again beside it. A figure with a legend or text of its own,
    or with axes that are switched off, stays whole.
    """
    view, found = _VIEW.search(svg), _AXES.findall(svg)
    if view is None or len(found) < 2 or len(found) != len(re.findall(r'<g id="axes_\d+">', svg)):
        return None
    if re.search(r'^  <g id="(legend|text)_\d+"', svg, re.MULTILINE):
        return None
    width = float(view[1])
    boxes = []
    for path in found:
        x, _ = zip(*[(float(a), float(b)) for a, b in _POINT.findall(path)], strict=True)
        boxes.append((min(x), max(x)))
    columns: list[list[float]] = []
    for left, right in sorted(boxes):
        narrow = right - left < 0.06 * width  # a bar of colours belongs to what is left of it
        if columns and (narrow or left < columns[-1][1]):
            columns[-1][1] = max(columns[-1][1], right)
        else:
            columns.append([left, right])
    if not 2 <= len(columns) <= 4:
        return None
    gaps = [following[0] - before[1] for before, following in itertools.pairwise(columns)]
    cuts = [0.0, *(before[1] + min(9.0, gap / 2) for before, gap in zip(columns, gaps, strict=False)), width]
    axis = columns[0][0] - 3
    shared = [False, *(gap < 0.6 * columns[0][0] for gap in gaps)]
    return {
        "axis": round(axis / width, 4),
        "panels": [
            {"box": [round(a / width, 4), 0, round((b - a) / width, 4), 1], "shared": same}
            for (a, b), same in zip(itertools.pairwise(cuts), shared, strict=True)
        ],
    }


_IMAGE = re.compile(r'<img\b[^>]*?\bsrc="[^"]*_images/([^"/]+\.svg)"')


def mark_panels(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: Any) -> None:
    """Tell the page's script where the panels of its figures are."""
    if app.builder.format != "html" or doctree is None:
        return
    sources = {name: source for source, name in app.builder.images.items()}

    def marked(match: re.Match) -> str:
        source = Path(app.srcdir, sources.get(unquote(match[1]), ""))
        found = panels(source.read_text(encoding="utf-8")) if source.is_file() else None
        if not found:
            return match[0]
        return match[0].replace("<img", f"<img data-panels='{json.dumps(found, separators=(',', ':'))}'", 1)

    context["body"] = _IMAGE.sub(marked, context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", mark_panels)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
