"""Finds the panels of a figure in its SVG, so that `figures.js` can stack them on a phone."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from sphinx.application import Sphinx

_GROUP, _PATH = (f"{{http://www.w3.org/2000/svg}}{tag}" for tag in ("g", "path"))
_NUMBER = re.compile(r"-?[\d.]+")


def _columns(axes: list[ElementTree.Element], width: float) -> list[tuple[float, float, bool, bool]] | None:
    """From where to where the columns of a figure reach, whether one has numbers on its vertical axis, and a bar of colours."""
    columns: list[tuple[float, float, bool, bool]] = []
    found = []
    for part in axes:
        ground = next((child for child in part if child.get("id", "").startswith("patch_")), None)
        path = None if ground is None else ground.find(_PATH)
        if path is None:  # an axes that is switched off
            return None
        across = [float(x) for x in _NUMBER.findall(path.get("d", ""))[::2]]
        axis = [child for child in part if child.get("id", "").startswith("matplotlib.axis_")]
        numbers = any(g.get("id", "").startswith("text_") for child in axis[1:2] for g in child.iter(_GROUP))
        found.append((min(across), max(across), numbers))
    for left, right, numbers in sorted(found):
        bar = right - left < 0.06 * width  # a bar of colours belongs to what is left of it
        if columns and (bar or left < columns[-1][1]):
            start, end, before, barred = columns[-1]
            columns[-1] = (start, max(end, right), before or (numbers and not bar), barred or bar)
        else:
            columns.append((left, right, numbers, False))
    return columns


def panels(svg: str) -> dict[str, Any] | None:
    """Where the columns of a figure stand that can be stacked, as shares of its size; None if it has to stay whole.

    What matplotlib draws is read back: each axes by its background. A column ends a little right of its axes, by the
    overhang of a last label, and the next begins there. A column without numbers on its vertical axis is "shared": they are
    those of the first column, whose strip `axis` is shown again beside it. A figure with a legend or text of its own, or
    with axes that are switched off, stays whole.
    """
    root = ElementTree.fromstring(svg)
    figure = root.find(_GROUP)
    parts = [] if figure is None else [(child.get("id", ""), child) for child in figure]
    axes = [child for name, child in parts if name.startswith("axes_")]
    if len(axes) < 2 or any(name.startswith(("legend_", "text_")) for name, _ in parts):
        return None
    width = float(root.get("viewBox", "0 0 1 1").split()[2])
    columns = _columns(axes, width)
    if columns is None or not 2 <= len(columns) <= 4:
        return None
    gaps = [following[0] - before[1] for before, following in itertools.pairwise(columns)]
    # The numbers of a bar stand right of it.
    ends = [
        right + (0.6 * gap if barred else min(4.0, gap / 2))
        for (_, right, _, barred), gap in zip(columns, gaps, strict=False)
    ]
    return {
        "axis": round((columns[0][0] - 3) / width, 4),
        "panels": [
            {"box": [round(a / width, 4), 0, round((b - a) / width, 4), 1], "shared": not numbers and a > 0}
            for (a, b), (_, _, numbers, _) in zip(itertools.pairwise([0.0, *ends, width]), columns, strict=True)
        ],
    }


def natural_width(svg: str) -> float:
    """The width of a figure in CSS pixels, 96 to the inch."""
    return float(ElementTree.fromstring(svg).get("viewBox", "0 0 480 1").split()[2]) * 96 / 72


_IMAGE = re.compile(r'<img\b[^>]*?\bsrc="[^"]*_images/([^"/]+\.svg)"')


def mark_panels(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: Any) -> None:
    """Tell the page's script where the panels of its figures are."""
    if app.builder.format != "html" or doctree is None:
        return
    sources = {name: source for source, name in app.builder.images.items()}

    def marked(match: re.Match) -> str:
        source = Path(app.srcdir, sources.get(unquote(match[1]), ""))
        if not source.is_file():
            return match[0]
        svg = source.read_text(encoding="utf-8")
        told = f'style="--natural-width: {natural_width(svg):.0f}px"'
        if found := panels(svg):
            told += f" data-panels='{json.dumps(found, separators=(',', ':'))}'"
        return match[0].replace("<img", f"<img {told}", 1)

    context["body"] = _IMAGE.sub(marked, context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", mark_panels)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
