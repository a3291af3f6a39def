"""What a chapter shows besides its figures: the box of findings and numbered tables, in MyST Markdown."""

from . import _extra as _extra  # isort: split

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from .figures import t_interval


class Shown(str):
    """Markdown that a notebook renders."""

    def _repr_markdown_(self) -> str:
        return str(self)


def findings(sentence: str, numbers: Mapping[str, str] | None = None, *, before: str = "") -> Shown:
    """The box at the head of a chapter: what was found, for who reads nothing else.

    **Arguments:** `sentence`, what was found. `numbers`, at most three, each by what it is: a value with its interval, as
    `interval` writes it. `before`, what to have read, as Markdown. The book adds the reading time, the preset and the links
    to notebook and script.

    **Raises:** `ValueError` for an empty sentence or more than three numbers.

        findings("The ellipse leads while angles are many.", {"lead at all angles": interval(lead, "points")})
    """
    if not sentence.strip():
        raise ValueError("the box of findings needs a sentence that says what was found")
    if len(numbers := numbers or {}) > 3:
        raise ValueError(
            f"at most three numbers fit the box of findings, got {len(numbers)}; leave out the least of them"
        )
    lines = [sentence.strip(), "", *(f"- {what}: **{value}**" for what, value in numbers.items())]
    if before:
        lines += ["", f"Read before: {before}"]
    return Shown("\n".join([":::{admonition} What was found", ":class: findings", "", *lines, ":::"]))


def interval(differences: Any, unit: str = "", *, spec: str = "+.1f", count: bool = True) -> str:
    """A mean with the 95 % interval of Student's $t$ over the runs, in words: "+4.4 [+2.2, +6.5] points, n = 5".

    **Arguments:** `differences`, one for each run, already in the `unit`. `spec`, how a number is written. `count`, whether to
    say how many they are.

    **Raises:** `ValueError` if there are fewer than two, or one is not finite.
    """
    values = np.asarray(differences, float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"an interval needs the values of two runs at least, one for each, got the shape {values.shape}"
        )
    low, high = t_interval(values)
    mean, low, high = (f"{float(v):{spec}}".replace("-", "−") for v in (values.mean(), low, high))
    said = f"{mean} [{low},\u00a0{high}]{f' {unit}' if unit else ''}"
    return f"{said}, n\u00a0=\u00a0{len(values)}" if count else said


def percent(shares: Any) -> str:
    """The mean of some shares in per cent, and half of its 95 % interval of Student's $t$: "64.1 ± 0.6".

    **Arguments:** `shares`, one for each run, from 0 to 1 as accuracies are. One has no interval; of none, or of one that
    is not finite, nothing is said: "–".
    """
    values = 100 * np.asarray(shares, float)
    if values.ndim != 1:
        raise ValueError(f"give one share for each run, got the shape {values.shape}")
    if not len(values) or not np.isfinite(values).all():
        return "–"
    half = f"\u00a0±\u00a0{values.mean() - t_interval(values)[0]:.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{half}".replace("-", "−")


def table(frame: pd.DataFrame, caption: str, *, name: str, look: str = "", **options: Any) -> Shown:
    """A numbered table with a caption, that the text refers to by its name, with the role `numref`.

    **Arguments:** `frame`; its index is shown if it has a name or is not 0, 1, 2, …. `caption`, what the table says, in one
    paragraph. `name`, as in "tab-rates". `look`, a class of the book's style: "verdicts" for claims with their verdicts, each of
    which is a block of its own on a phone. `options` go to `pandas.DataFrame.to_markdown`.

    **Raises:** `ValueError` for an empty frame or caption, or another form of name.
    """
    if frame.empty or not caption.strip():
        raise ValueError("a table needs rows and a caption that says what it shows")
    if not re.fullmatch(r"tab-[a-z0-9-]+", name):
        raise ValueError(f'the name of a table has the form "tab-rates", got {name!r}')
    counted = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    settings: dict[str, Any] = {"index": not counted} | options
    body = frame.to_markdown(**settings)
    look = f"\n:class: {look}" if look else ""
    # Tildes: after a fence of backticks a caption could have no code in it (CommonMark 0.31, 4.5).
    return Shown(f"~~~{{table}} {' '.join(caption.split())}\n:name: {name}{look}\n\n{body}\n~~~")
