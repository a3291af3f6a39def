"""Claims that are fixed before the numbers, and verdicts that one rule computes from recorded runs."""

from . import _extra as _extra  # isort: split

import dataclasses
import itertools
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from .figures import bootstrap_interval
from .runs import recorded_runs

_CLAIMS = Path(__file__).resolve().parents[2] / "book" / "claims"
_ENOUGH = 3  # seeds; with fewer nothing is decided
_OURS = "not in the paper"
_WORDS = {True: ("holds", "partly", "does not hold"), False: ("reproduced", "partly", "not reproduced")}
_UNTESTED = "not tested at this scale"
_EXPECT = ("higher", "lower", "not lower", "not higher", "same")
_INHERITED = {"experiment", "metric", "expect", "margin"}  # may stand in the claim, for all its comparisons


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared, and what the claim expects of the difference a − b.

    A side holds `experiment`, `metric` and the settings of its runs; `b` may be a constant, `{"value": 0.1}`.
    """

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    expect: Literal["higher", "lower", "not lower", "not higher", "same"]
    margin: float

    def shows(self, low: float, high: float) -> bool:
        """Whether an interval $[l, h]$ of the difference shows what is expected.

        With the margin $m$ (0 unless given): "higher" is $l > m$, "lower" is $h < -m$, "not lower" and "not higher" are
        their negations, and "same" is $-m < l$ and $h < m$.
        """
        higher, lower = low > self.margin, high < -self.margin
        same = -self.margin < low and high < self.margin
        return {"higher": higher, "lower": lower, "not lower": not lower, "not higher": not higher, "same": same}[
            self.expect
        ]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim: its `text`, where it stands (`source`), the `unit` of its differences and the comparisons behind it."""

    text: str
    source: str
    unit: str
    comparisons: tuple[Comparison, ...]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One comparison decided: the mean of the paired differences a − b, its 95 % interval, and whether it is shown."""

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    mean: float
    low: float
    high: float
    seeds: int
    shown: bool
    unit: str

    @property
    def interval(self) -> str:
        """Mean and interval in words, in the claim's unit: "+1.2 [+0.4, +2.0]"."""
        return f"{_show(self.mean, self.unit)} [{_show(self.low, self.unit)}, {_show(self.high, self.unit)}]"

    @property
    def says(self) -> str:
        """What the interval says of a: "higher", "lower" or "no difference shown"."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "no difference shown"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A claim judged.

    `value` is the verdict, `comparisons` the outcomes of all comparisons that have the runs, `missing` says which have
    not. `stale` counts the rows used that were computed by code that has changed since, with no recorded equivalence;
    `unfingerprinted` those that do not tell their data.
    """

    claim: Claim
    value: str
    comparisons: tuple[Outcome, ...]
    missing: tuple[str, ...]
    stale: int
    unfingerprinted: int = 0

    @property
    def ours(self) -> str:
        """The decisive numbers in words, differences in the claim's unit; or what is missing."""
        if self.missing:
            first, *others = self.missing
            return f"runs are missing: {first}" + (f", and {len(others)} more" if others else "")
        if len(self.comparisons) == 1:
            return f"{self.comparisons[0].interval} {self.claim.unit}".rstrip()
        means = [outcome.mean for outcome in self.comparisons]
        low, high = (_show(mean, self.claim.unit) for mean in (min(means), max(means)))
        shown = sum(outcome.shown for outcome in self.comparisons)
        return f"{shown} of {len(means)} shown, from {low} to {high} {self.claim.unit}".rstrip()


def read_claims(path: str | os.PathLike[str]) -> list[Claim]:
    """The claims of a chapter.

    **Arguments:** `path`, of a TOML file, or a chapter as "manifolds/rotated_images", whose claims are in
    `book/claims/manifolds/rotated_images.toml`. The file has a table `[[claim]]` for each claim:

        [[claim]]
        text = "The ellipse is above every rival, at every fraction of the angles"
        source = "Fig. 2b"                  # or "not in the paper"
        experiment = "rotated_images"       # whose rows decide
        metric = "all"
        [[claim.compare]]                   # perhaps several
        a = { method = "ellipse" }
        b = { method = ["none", "film"] }   # a list stands for one comparison with each
        at = { fraction = [0.1, 1.0] }      # settings common to both
        expect = "higher"                   # of a − b

    `expect` is one of "higher", "lower", "not lower", "not higher" and "same"; see `Comparison.shows`. `metric` may also
    stand in `a`, `b` or `at`, and may be one entry of a curve, `"sector[0]"`, counted from 0. `b = { value = 0.1 }` is a
    constant. `margin` is how much a difference has to exceed, in the metric's own size; "same" needs one. `unit` is what
    differences are given in: "points" (hundredths, the default), or any other word or none for the numbers as they are.
    A setting that is itself called `metric`, `experiment` or `value` stands in a table, `settings = { metric = true }`.

    **Raises:** `FileNotFoundError` if there is no such file; `ValueError`, with the file and the claim, if it is wrong.
    """
    file = Path(path) if str(path).endswith(".toml") else _CLAIMS / f"{path}.toml"
    if not file.exists():
        raise FileNotFoundError(f"there are no claims at {file}; write them there, or give the path of a .toml file")
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not TOML: {error}") from error
    claims = tables.get("claim")
    if set(tables) != {"claim"} or not isinstance(claims, list) or not all(isinstance(c, dict) for c in claims):
        raise ValueError(f"{file} must hold tables [[claim]] and nothing else, got {', '.join(tables) or 'nothing'}")
    read = []
    for number, table in enumerate(claims, 1):
        try:
            read.append(_claim(table))
        except ValueError as error:
            raise ValueError(f"{file}, claim {number} ({table.get('text', 'without text')!r}): {error}") from error
    return read


def judge(claim: Claim, rows: pd.DataFrame | Mapping[str, pd.DataFrame]) -> Judgement:
    """The verdict on a claim.

    Differences are paired over the seeds that both sides have, and each comparison is decided by the 95 % percentile
    bootstrap interval of their mean. If all comparisons show what the claim expects it is "reproduced" ("holds", for a
    claim that is not in the paper), if some do "partly", if none does "not reproduced" ("does not hold"). With fewer
    than three seeds for any of them it is "not tested at this scale".

    **Arguments:** `rows`, what `sweep` returned; one frame, or a mapping of experiments to frames.

    **Raises:** `ValueError` if the settings of a comparison fit several runs of one seed, or name nothing recorded.
    """
    outcomes, missing, stale, untold = [], [], 0, 0
    for comparison in claim.comparisons:
        frames = rows if isinstance(rows, Mapping) else {comparison.a["experiment"]: rows}
        a, *counts_a = _values(comparison.a, frames)
        constant = dict.fromkeys(a, float(comparison.b.get("value", math.nan)))
        b, *counts_b = (constant, 0, 0) if "value" in comparison.b else _values(comparison.b, frames)
        seeds = sorted(a.keys() & b.keys())
        if len(seeds) < _ENOUGH:
            missing.append(f"{_against(comparison)} has {len(seeds)} of {_ENOUGH} seeds")
            continue
        differences = np.array([a[seed] - b[seed] for seed in seeds])
        low, high = map(float, bootstrap_interval(differences))
        shown = comparison.shows(low, high)
        mean, count = float(differences.mean()), len(seeds)
        outcomes.append(Outcome(comparison.a, comparison.b, mean, low, high, count, shown, claim.unit))
        stale, untold = stale + counts_a[0] + counts_b[0], untold + counts_a[1] + counts_b[1]
    every, some, none = _WORDS[claim.source == _OURS]
    shown = [outcome.shown for outcome in outcomes]
    value = _UNTESTED if missing else every if all(shown) else some if any(shown) else none
    return Judgement(claim, value, tuple(outcomes), tuple(missing), stale, untold)


def verdict_table(
    chapter: str | os.PathLike[str],
    preset: str,
    *,
    rows: Mapping[str, pd.DataFrame] | None = None,
    results: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Every claim of a chapter with its verdict, as a frame to show.

    **Arguments:** `chapter`, as for `read_claims`. `preset`, the name of the scale whose rows decide. `rows`, frames of
    `sweep` by experiment; those not given are read from the recorded runs, in `results` or where `sweep` looks.

    **Returns:** a frame with the columns claim, the paper (where it is), ours, seeds and verdict. A verdict that rests
    on rows of changed code says so, and beside the seeds stands where rows do not tell which data they were computed on.

    **Raises:** as `read_claims` and `judge`.

        table = verdict_table("manifolds/rotated_images", "cpu")
        print(table.to_markdown(index=False))
    """
    claims = read_claims(chapter)
    names = {side["experiment"] for c in claims for o in c.comparisons for side in (o.a, o.b) if "value" not in side}
    given = rows or {}
    frames = {n: given[n] if n in given else recorded_runs(n, preset, results=results) for n in names}
    table = []
    for judgement in (judge(claim, frames) for claim in claims):
        seeds = sorted({outcome.seeds for outcome in judgement.comparisons})
        untold = "; data not fingerprinted" if judgement.unfingerprinted else ""
        old = f"; {judgement.stale} rows from code that has changed since" if judgement.stale else ""
        table.append({
            "claim": judgement.claim.text,
            "the paper": judgement.claim.source,
            "ours": judgement.ours,
            "seeds": "–" if judgement.missing else "–".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) + untold,
            "verdict": judgement.value + old,
        })  # fmt: skip
    return pd.DataFrame(table)


def _show(difference: float, unit: str) -> str:
    return (f"{100 * difference:+.1f}" if unit == "points" else f"{difference:+.3g}").replace("-", "−")


def _claim(table: dict[str, Any]) -> Claim:
    """A claim from its table; a `ValueError` says what is wrong."""
    _known(table, {"text", "source", "unit", "compare"} | _INHERITED, "the claim")
    for key in ("text", "source"):
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise ValueError(f'it needs a {key}, as in {key} = "{"Fig. 2b" if key == "source" else "A is above B"}"')
    if not isinstance(unit := table.get("unit", "points"), str):
        raise ValueError(f'unit must be a word, or "" for none, got {unit!r}')
    compare = table.get("compare")
    if not isinstance(compare, list) or not compare or not all(isinstance(c, dict) for c in compare):
        raise ValueError("it compares nothing; add a table [[claim.compare]] with a, b and expect")
    common = {key: table[key] for key in _INHERITED & table.keys()}
    comparisons = [comparison for c in compare for comparison in _comparisons({**common, **c})]
    return Claim(table["text"], table["source"], unit, tuple(comparisons))


def _comparisons(table: dict[str, Any]) -> list[Comparison]:
    """The comparisons that one table stands for."""
    _known(table, {"a", "b", "at"} | _INHERITED, "compare")
    for key in ("a", "b", "at"):
        if not isinstance(table.setdefault(key, {} if key == "at" else None), dict):
            raise ValueError(f'compare needs {key}, settings as in {key} = {{ method = "ellipse" }}')
    expect, margin = table.get("expect"), table.get("margin", 0.0)
    if expect not in _EXPECT:
        raise ValueError(f"expect must be one of {', '.join(_EXPECT)}, got {expect!r}")
    if not _is_number(margin) or margin < 0:
        raise ValueError(f"margin must be a number of at least 0, in the metric's own size, got {margin!r}")
    if expect == "same" and margin == 0:
        raise ValueError('expect = "same" needs a margin, the difference that counts as none, as in margin = 0.01')
    common = {key: table[key] for key in ("experiment", "metric") if key in table}
    found = []
    for a, b, at in itertools.product(*[_expand(table[key]) for key in ("a", "b", "at")]):
        a = common | at | a
        b = b if "value" in b else common | at | b
        for name, side in {"a": a, "b": b}.items():
            if side.keys() == {"value"} and name == "b":
                if not _is_number(side["value"]):
                    raise ValueError(f"the constant b = {{ value = … }} must be a number, got {side['value']!r}")
            elif "value" in side:
                raise ValueError("value = … is a constant; it stands in b, and alone")
            elif not re.fullmatch(r"[^][]+(\[\d+\])*", str(side.get("metric", "none"))):
                raise ValueError(f'a metric is a name, or an entry of a curve as "loss[0]", got {side["metric"]!r}')
            elif lacks := [key for key in ("experiment", "metric") if not isinstance(side.get(key), str)]:
                raise ValueError(
                    f"{name} has no {' and no '.join(lacks)}; name it in the claim, in compare or in {name}"
                )
        if a == b:
            raise ValueError(f"{_words(a)} is compared with itself; leave it out of one of the two lists")
        found.append(Comparison(a, b, expect, float(margin)))
    if not found:
        raise ValueError("an empty list of settings leaves nothing to compare; give it at least one entry")
    return found


def _expand(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = [value if isinstance(value, list) else [value] for value in settings.values()]
    return [dict(zip(settings, values, strict=True)) for values in itertools.product(*lists)]


def _known(table: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := sorted(table.keys() - known):
        raise ValueError(f"{what} has no {', '.join(map(repr, unknown))}; it has {', '.join(sorted(known))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _against(comparison: Comparison) -> str:
    """A comparison in words, what the sides share last."""
    a, b = comparison.a, comparison.b
    common = {key: value for key, value in a.items() if key in b and b[key] == value}
    a, b = ({key: value for key, value in side.items() if key not in common} for side in (a, b))
    return f"{_words(a)} against {_words(b)}" + (f" at {_words(common)}" if len(common) > 1 else "")


def _words(side: Mapping[str, Any]) -> str:
    """A side of a comparison in words."""
    return ", ".join(f"{k} {v:g}" if _is_number(v) else f"{k} {v}" for k, v in side.items() if k != "experiment")


def _values(side: Mapping[str, Any], frames: Mapping[str, pd.DataFrame]) -> tuple[dict[int, float], int, int]:
    """A metric by seed, for the runs with the settings of a side; how many are stale, and how many tell no data."""
    frame = frames.get(side["experiment"])
    if frame is None or len(set(frame["seed"])) < _ENOUGH:
        return {}, 0, 0
    settings = _settings(side)
    name, _, index = side["metric"].rstrip("]").partition("[")
    if unknown := [key for key in (*settings, name) if key not in frame]:
        raise ValueError(f"no run of {side['experiment']!r} has {', '.join(unknown)}; they have {', '.join(frame)}")
    found: dict[int, list[dict[str, Any]]] = {}
    for row in frame.to_dict("records"):
        if all(row[key] == value for key, value in settings.items()):
            found.setdefault(int(row["seed"]), []).append(row)
    if any(len(several) > 1 for several in found.values()):
        raise ValueError(f"{_words(side)} fits several runs of one seed; {_ambiguous(list(found.values()))}")
    values, stale, untold = {}, 0, 0
    for seed, (row,) in found.items():
        number: Any = row[name]
        for place in filter(None, index.split("][")):  # entries of a curve
            number = number[int(place)] if isinstance(number, list) and int(place) < len(number) else math.nan
        if _is_number(number):  # not where a run diverged, or has no such metric
            values[seed], stale = float(number), stale + bool(row.get("stale"))
            untold += "data" in row and not isinstance(row["data"], str)
    return values, stale, untold


def _settings(side: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a side, those in its table `settings` among them."""
    named = {key: value for key, value in side.items() if key not in ("experiment", "metric", "settings")}
    return named | dict(side.get("settings", {}))


def _ambiguous(runs: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Which settings tell the runs of one seed apart: those with no more values than a seed has runs."""
    most = max(map(len, runs))
    values = {key: sorted({repr(run[key]) for seed in runs for run in seed}) for key in runs[0][0]}
    told = [f"{key} ({' or '.join(v)})" for key, v in values.items() if 1 < len(v) <= most and key != "seed"]
    return f"name one in a, b or at: {', '.join(told) or 'they differ in nothing but their results'}"
