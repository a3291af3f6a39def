"""Claims as data, with the day each was written, and verdicts that one rule computes from recorded runs."""

from . import _extra as _extra  # isort: split

import dataclasses
import datetime
import itertools
import math
import os
import re
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure
from scipy import stats

from .figures import PALETTE, VERDICT_COLOURS, t_interval
from .runs import recorded_runs

_CLAIMS = Path(__file__).resolve().parents[2] / "book" / "claims"
_ALPHA = 0.05
_ENOUGH = 3  # seeds; with fewer nothing is decided that has a spread
_OURS = "not in the paper"
_UNITS = {"points": "points of 100, of the plain difference", "%": "per cent of b"}  # the units that change a number
_EXPECT = ("higher", "lower", "not lower", "not higher", "same")
# May stand in the claim, for all its comparisons.
_INHERITED = {"experiment", "metric", "expect", "by", "margin", "margin_date", "deterministic"}

State = Literal["shown", "contradicted", "undecided"]
Verdict = Literal["reproduced", "holds", "contradicted", "mixed", "partly", "undecided", "not tested"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared, and what the claim expects of the difference a − b.

    A side holds `experiment`, `metric` and the settings of its runs; `b` may be a constant, `{"value": 0.1}`. `margin` is
    the least difference that matters, in the unit of the claim, and `margin_date` the day it was fixed. `by` moves zero:
    with `by` = −1, "lower" expects a to be lower than b by more than 1. `deterministic` says that the difference is no
    matter of chance.
    """

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    expect: Literal["higher", "lower", "not lower", "not higher", "same"]
    margin: float
    margin_date: datetime.date
    by: float = 0.0
    deterministic: bool = False

    def decide(self, low: float, high: float) -> State:
        """What an interval $[l, h]$ of the difference, less `by`, says of the expectation, with the margin $m$.

        - "higher" is shown if $l > m$, contradicted if $h < -m$;
        - "lower" is shown if $h < -m$, contradicted if $l > m$;
        - "not lower" is shown if $l > -m$, contradicted if $h < -m$;
        - "not higher" is shown if $h < m$, contradicted if $l > m$;
        - "same" is shown if $-m < l$ and $h < m$, contradicted if $l > m$ or $h < -m$.

        Otherwise it is undecided. A value without spread, $l = h$, may lie on the bound of the last three and is shown
        there: 80 is not higher than 80.
        """
        low, high = low - self.by, high - self.by
        above, below = low > self.margin, high < -self.margin
        not_lower = low > -self.margin or low == high == -self.margin
        not_higher = high < self.margin or low == high == self.margin
        shown, contradicted = {
            "higher": (above, below),
            "lower": (below, above),
            "not lower": (not_lower, below),
            "not higher": (not_higher, above),
            "same": (not_lower and not_higher, above or below),
        }[self.expect]
        return "shown" if shown else "contradicted" if contradicted else "undecided"

    def p_value(self, mean: float, error: float, seeds: int) -> float:
        r"""The least $\alpha$ at which the $1 - \alpha$ interval of Student's $t$ decides the comparison.

        It is the two-sided $p$ of the null that the decision rejects: with $T$ of $n - 1$ degrees of freedom,
        $2 P(T > (\bar d - c)/e)$ for an interval above $c$ and $2 P(T < (\bar d - c)/e)$ for one below it, where $c$ is
        $m$ or $-m$, and `by` more, as `decide` asks. "Same" asks for two of these, and has the larger.

        **Arguments:** the `mean` $\bar d$ of the differences, its standard `error` $e > 0$, and the number $n$ of `seeds`.
        """

        def above(bound: float) -> float:
            return 2 * float(stats.t.sf((mean - self.by - bound) / error, seeds - 1))

        def below(bound: float) -> float:
            return 2 * float(stats.t.cdf((mean - self.by - bound) / error, seeds - 1))

        m = self.margin
        bounds = {"not lower": [above(-m)], "not higher": [below(m)], "same": [max(above(-m), below(m))]}
        return min(1.0, above(m), below(-m), *bounds.get(self.expect, []))


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim: its `text`, where it stands (`source`), the `unit` of its differences and the comparisons behind it.

    `written` says whether it was written "before" the first rows of its experiments or "after", and `date` when. Claims of
    several chapters about one thing have a `topic` in common.
    """

    text: str
    source: str
    unit: str
    written: Literal["before", "after"]
    date: datetime.date
    comparisons: tuple[Comparison, ...]
    topic: str = ""

    @property
    def is_test(self) -> bool:
        """Whether runs can test it: it was written before its rows, and so was every margin."""
        return self.written == "before" and all(c.margin_date <= self.date for c in self.comparisons)

    @property
    def when(self) -> str:
        """When it was written, in words."""
        if self.written == "after":
            return f"{self.date}, after its rows"
        if self.is_test:
            return f"{self.date}, before its rows, with its margin: a test"
        return f"{self.date}, before its rows; margin of {max(c.margin_date for c in self.comparisons)}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One comparison decided.

    `mean`, `low` and `high` are those of the paired differences a − b and of their 95 % interval, and `margin` is the
    least difference that matters (beyond `by`), all in the claim's `unit`. `state` is what that interval says; `state_holm` is what is
    left of it at the comparison's level of Holm, and `p` the value that Holm ranks (see `Comparison.p_value`).
    `deterministic` differences have no spread: `low` and `high` are their value, and `p` is 0 or, undecided, 1.
    """

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    expect: str
    mean: float
    low: float
    high: float
    seeds: int
    unit: str
    by: float
    margin: float
    state: State
    state_holm: State
    p: float
    deterministic: bool

    @property
    def interval(self) -> str:
        """Mean and interval in words, in the claim's unit: "+1.2 [+0.4, +2.0]", or "exactly +1.2"."""
        if self.deterministic:
            return f"exactly {_show(self.mean, self.unit)}"
        return f"{_show(self.mean, self.unit)} [{_show(self.low, self.unit)}, {_show(self.high, self.unit)}]"

    @property
    def says(self) -> str:
        """What the interval says of a, whatever was expected: "higher", "lower" or "no difference shown"."""
        return "higher" if self.low > self.margin else "lower" if self.high < -self.margin else "no difference shown"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A claim judged.

    `value` is the verdict, `comparisons` the outcomes of all comparisons that have the runs, `missing` says which have
    not. `stale` counts the rows used that were computed by code that has changed since, with no recorded equivalence;
    `unfingerprinted` those that do not tell their data.
    """

    claim: Claim
    value: Verdict
    comparisons: tuple[Outcome, ...]
    missing: tuple[str, ...]
    stale: int
    unfingerprinted: int = 0

    @property
    def is_test(self) -> bool:
        """Whether the runs tested the claim: it and its margins were fixed before them, and none is missing."""
        return self.claim.is_test and not self.missing

    @property
    def ours(self) -> str:
        """The decisive numbers in words, differences in the claim's unit; or what is missing."""
        if self.missing:
            first, *others = self.missing
            return f"runs are missing: {first}" + (f", and {len(others)} more" if others else "")
        unit = f" {self.claim.unit}".rstrip()
        margins = sorted({outcome.margin for outcome in self.comparisons})
        beyond = "".join(f" beyond {_show(by, '')}" for by in sorted({o.by for o in self.comparisons} - {0}))
        margin = f"margin {' to '.join(f'{m:g}' for m in dict.fromkeys((margins[0], margins[-1])))}{beyond}"
        if len(self.comparisons) == 1:
            return f"{self.comparisons[0].interval}{unit}; {margin}"
        means = [outcome.mean for outcome in self.comparisons]
        low, high = (_show(mean, self.claim.unit) for mean in (min(means), max(means)))
        (plain, against), (holm, against_holm) = (
            [sum(getattr(o, of) == state for o in self.comparisons) for state in ("shown", "contradicted")]
            for of in ("state", "state_holm")
        )
        said = f"{plain} of {len(means)} shown" + (f", {against} contradicted" if against else "")
        if (plain, against) != (holm, against_holm) and plain < len(means):
            said += f" (at Holm's levels {holm}" + (f" and {against_holm})" if against else ")")
        return f"{said}, means from {low} to {high}{unit}; {margin}"


def read_claims(path: str | os.PathLike[str]) -> list[Claim]:
    """The claims of a chapter.

    **Arguments:** `path`, of a TOML file, or a chapter as "manifolds/rotated_images", whose claims are in
    `book/claims/manifolds/rotated_images.toml`. The file has a table `[[claim]]` for each claim:

        [[claim]]
        text = "The ellipse is above every rival, at every fraction of the angles"
        source = "Fig. 2b"                  # or "not in the paper"
        written = "before"                  # its rows; or "after", as in the same commit
        date = 2026-11-25                   # the day it was written
        unit = "points"                     # of the differences and of the margin
        margin = 1                          # the least difference that matters
        margin_date = 2026-11-25            # the day that was fixed
        experiment = "rotated_images"       # whose rows decide
        metric = "all"
        [[claim.compare]]                   # perhaps several
        a = { method = "ellipse" }
        b = { method = ["none", "film"] }   # a list stands for one comparison with each
        at = { fraction = [0.1, 1.0] }      # settings common to both
        expect = "higher"                   # of a − b

    `expect` is one of "higher", "lower", "not lower", "not higher" and "same"; see `Comparison.decide`. `metric` may also
    stand in `a`, `b` or `at`, and may be one entry of a curve, `"sector[0]"`, counted from 0. `b = { value = 0.1 }` is a
    constant, in the metric's own size.

    `unit` is what differences are given in, and the margin with them: "points" are hundredths, 100 (a − b); "%" is per
    cent of b, 100 (a − b)/b, for b above zero; any other word, or "" for none, is the metric's own size, a − b. A
    `margin` has to be given, zero too. A claim that says by how much has that as `by`, with the sign of a − b and in the
    same unit: `by = -1` and "lower" for "lower by more than 1". These, the margin's date and `deterministic = true`, for what
    is no matter of chance, may stand in the claim or in a comparison. A claim is a test of what it says if it was written before its rows and no margin is
    of a later day than the claim.

    `topic`, words that may be given, joins claims of several chapters about one thing.

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

    Differences are paired over the seeds that both sides have. Each comparison is decided, by `Comparison.decide`, from
    the 95 % interval of Student's $t$ of their mean; if they have no spread, or the claim says that they are deterministic,
    from their value. The claim is

    - "reproduced" ("holds", if it is not in the paper) if all comparisons are shown. All have to be, and so no level is
      corrected.

    Otherwise its comparisons are judged at Holm's levels (Holm 1979), those with a spread among each other, so that it is

    - "contradicted" if some are contradicted and none is shown,
    - "mixed" if some are shown and some contradicted,
    - "partly" if some are shown and the others undecided,
    - "undecided" if none is decided.

    With fewer than three seeds for any of them, or than one where it is deterministic, it is "not tested"; so it is where
    a run of any of the seeds has no number, as one that diverged.

    **Arguments:** `rows`, what `sweep` returned; one frame, or a mapping of experiments to frames.

    **Raises:** `ValueError` if the settings of a comparison fit several runs of one seed, or name nothing recorded; if
    what is declared deterministic differs between seeds; or if the unit is "%" and a value of b is not above zero.
    """
    outcomes, missing, stale, untold = [], [], 0, 0
    for comparison in claim.comparisons:
        frames = rows if isinstance(rows, Mapping) else {comparison.a["experiment"]: rows}
        enough = 1 if comparison.deterministic else _ENOUGH
        a, *counts_a = _values(comparison.a, frames, enough)
        constant = dict.fromkeys(a, float(comparison.b.get("value", math.nan)))
        b, *counts_b = (constant, 0, 0) if "value" in comparison.b else _values(comparison.b, frames, enough)
        seeds = sorted(a.keys() & b.keys())
        # Which seeds have no number may hang on the method: what is left would be chosen by what is asked.
        if lost := [seed for seed in seeds if math.isnan(a[seed]) or math.isnan(b[seed])]:
            listed = ", ".join(map(str, lost))
            missing.append(f"{_against(comparison)} has no number at {len(lost)} of {len(seeds)} seeds ({listed})")
            continue
        if len(seeds) < enough:
            missing.append(f"{_against(comparison)} has {len(seeds)} of {enough} seeds")
            continue
        sides = [np.array([side[seed] for seed in seeds]) for side in (a, b)]
        outcomes.append(_outcome(comparison, sides[0], sides[1], claim.unit))
        stale, untold = stale + counts_a[0] + counts_b[0], untold + counts_a[1] + counts_b[1]
    outcomes = _at_holm(outcomes)
    value = "not tested" if missing else _verdict(outcomes)
    if value == "reproduced" and claim.source == _OURS:
        value = "holds"
    return Judgement(claim, value, tuple(outcomes), tuple(missing), stale, untold)


def judge_chapter(
    chapter: str | os.PathLike[str],
    preset: str,
    *,
    rows: Mapping[str, pd.DataFrame] | None = None,
    results: str | os.PathLike[str] | None = None,
) -> list[Judgement]:
    """The verdicts on every claim of a chapter, in their order.

    **Arguments:** `chapter`, as for `read_claims`. `preset`, the name of the scale whose rows decide. `rows`, frames of
    `sweep` by experiment; those not given are read from the recorded runs, in `results` or where `sweep` looks.

    **Raises:** as `read_claims` and `judge`.

        first, *others = judge_chapter("manifolds/rotated_images", "cpu")
    """
    claims = read_claims(chapter)
    names = {side["experiment"] for c in claims for o in c.comparisons for side in (o.a, o.b) if "value" not in side}
    given = rows or {}
    frames = {n: given[n] if n in given else recorded_runs(n, preset, results=results) for n in names}
    return [judge(claim, frames) for claim in claims]


def verdict_table(
    chapter: str | os.PathLike[str],
    preset: str,
    *,
    rows: Mapping[str, pd.DataFrame] | None = None,
    results: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Every claim of a chapter with its verdict, as a frame to show.

    **Arguments:** as for `judge_chapter`.

    **Returns:** a frame with the columns claim, the paper (where it is), written (when, and whether that makes it a test),
    ours, seeds and verdict. A verdict that rests on rows of changed code says so, and beside the seeds stands where rows
    do not tell which data they were computed on.

    **Raises:** as `judge_chapter`.

        table = verdict_table("manifolds/rotated_images", "cpu")
        print(table.to_markdown(index=False))
    """
    table = []
    for number, judgement in enumerate(judge_chapter(chapter, preset, rows=rows, results=results), 1):
        seeds = sorted({outcome.seeds for outcome in judgement.comparisons})
        untold = "; data not fingerprinted" if judgement.unfingerprinted else ""
        old = f"; {judgement.stale} rows from code that has changed since" if judgement.stale else ""
        table.append({
            "claim": f"{number}. {judgement.claim.text}",
            "the paper": judgement.claim.source,
            "written": judgement.claim.when,
            "ours": judgement.ours,
            "seeds": "–" if judgement.missing else "–".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) + untold,
            "verdict": judgement.value + old,
        })  # fmt: skip
    return pd.DataFrame(table)


def plot_verdicts(judgements: Sequence[Judgement], *, width: float | int = 3.8, letters: int = 36) -> Figure:
    r"""Draw the claims of a chapter as intervals, each in units of its margin, under its words and its verdict.

    A bar is the 95 % interval of a comparison's difference $d$, a dot its mean, as $\pm (d - b)/m$ with the margin $m$ and the
    claim's own difference $b$ (`by`). The sign turns what is expected to the right: "higher" and "lower" are shown right
    of 1, "not lower" and "not higher" right of −1. "Same", drawn with squares, is shown between the two. The axis is
    linear between −1 and 1 and logarithmic beyond. In the place of a margin of zero stands a tenth of the claim's
    largest difference.

    **Arguments:** `judgements`, numbered from 1 in their order. `width`, of the figure in inches, and `letters`, of a line of a
    claim's words.

    **Raises:** `ValueError` if there is none.

        plot_verdicts(judge_chapter("manifolds/rotated_images", "cpu"))
    """
    if not judgements:
        raise ValueError("there is no judgement to draw; give those of the claims of a chapter")
    words = [textwrap.wrap(f"{n}. {j.claim.text}", letters) for n, j in enumerate(judgements, 1)]
    heights = [
        0.17 * len(lines) + 0.09 * max(len(j.comparisons), 2) + 0.16 for lines, j in zip(words, judgements, strict=True)
    ]
    fig, ax = plt.subplots(figsize=(width, sum(heights) + 0.55))
    for top, lines, judgement in zip(itertools.accumulate(heights, initial=0.0), words, judgements, strict=False):
        colour, outcomes = VERDICT_COLOURS[judgement.value], judgement.comparisons
        y = top + 0.17 * len(lines) + 0.06
        for k, outcome in enumerate(outcomes):
            low, mean, high = _in_margins(outcome, judgement)
            ax.plot([low, high], [y + 0.09 * (k + 0.5)] * 2, color=colour, lw=1.6, solid_capstyle="butt")
            ax.plot([mean], [y + 0.09 * (k + 0.5)], "s" if outcome.expect == "same" else "o", color=colour, ms=3)
        for at, text, side in ((0.0, "\n".join(lines), "left"), (1.0, judgement.value, "right")):
            ax.annotate(text, (at, top + 0.03), xycoords=("axes fraction", "data"), va="top", ha=side, fontsize=9.5,
                        color="#2B2B2B" if side == "left" else colour, weight="normal" if side == "left" else "bold")  # fmt: skip
    ax.axvspan(-1, 1, color=PALETTE[6], alpha=0.12, lw=0)
    ax.axvline(0, color=PALETTE[6], lw=0.8)
    ax.set_xscale("symlog", linthresh=1, linscale=0.6)
    ax.xaxis.set_major_locator(ticker.SymmetricalLogLocator(base=10, linthresh=1))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.spines["left"].set_visible(False)
    ax.set(ylim=(sum(heights), 0), yticks=[], xlabel="difference in margins, as claimed →")
    return fig


def _in_margins(outcome: Outcome, judgement: Judgement) -> list[float]:
    """The ends of an interval with the mean between them, in units of the margin, what is expected to the right."""
    unit = outcome.margin or max(abs(o.mean - o.by) for o in judgement.comparisons) / 10 or 1.0
    sign = -1 if outcome.expect in ("lower", "not higher") else 1
    return sorted(sign * (value - outcome.by) / unit for value in (outcome.low, outcome.mean, outcome.high))


def _show(difference: float, unit: str) -> str:
    return (f"{difference:+.1f}" if unit in _UNITS else f"{difference:+.3g}").replace("-", "−")


def _outcome(comparison: Comparison, a: np.ndarray, b: np.ndarray, unit: str) -> Outcome:
    """A comparison decided from the values of both sides, by seed; Holm's level is not known yet."""
    if unit == "%":
        if (b <= 0).any():
            raise ValueError(f'{_against(comparison)} is given in "%" of b, which is {b.min():g}; choose another unit')
        a, b = a / b, np.ones_like(b)
    differences = (a - b) * (100 if unit in _UNITS else 1)
    mean = float(differences.mean())
    # Beyond the rounding of equal differences of unequal numbers.
    spread = np.ptp(a - b) > 1e-12 * max(np.abs(a).max(), np.abs(b).max())
    if spread and comparison.deterministic:
        raise ValueError(
            f"{_against(comparison)} is said to be deterministic and differs between seeds, by up to"
            f" {np.ptp(differences):.3g}; leave out deterministic = true"
        )
    low, high = map(float, t_interval(differences)) if spread else (mean, mean)
    state = comparison.decide(low, high)
    p = float(state == "undecided")
    if spread:
        p = comparison.p_value(mean, float(differences.std(ddof=1)) / math.sqrt(len(a)), len(a))
    return Outcome(
        comparison.a,
        comparison.b,
        comparison.expect,
        mean,
        low,
        high,
        len(a),
        unit,
        comparison.by,
        comparison.margin,
        state,
        state,
        p,
        not spread,
    )


def _at_holm(outcomes: list[Outcome]) -> list[Outcome]:
    """The outcomes with their states at Holm's levels.

    Of $K$ outcomes with a spread the smallest $p$ has to be below $\\alpha/K$, the next below $\\alpha/(K - 1)$, and so on
    until the first that is not; it and all after it are undecided (Holm 1979).
    """
    ranked = sorted((i for i, o in enumerate(outcomes) if not o.deterministic), key=lambda i: outcomes[i].p)
    found = list(outcomes)
    for rank, i in enumerate(ranked):
        if outcomes[i].p >= _ALPHA / (len(ranked) - rank):
            for j in ranked[rank:]:
                found[j] = dataclasses.replace(outcomes[j], state_holm="undecided")
            break
    return found


def _verdict(outcomes: Sequence[Outcome]) -> Verdict:
    if all(outcome.state == "shown" for outcome in outcomes):
        return "reproduced"
    states = {outcome.state_holm for outcome in outcomes}
    if "contradicted" in states:
        return "mixed" if "shown" in states else "contradicted"
    return "partly" if "shown" in states else "undecided"


def _claim(table: dict[str, Any]) -> Claim:
    """A claim from its table; a `ValueError` says what is wrong."""
    _known(table, {"text", "source", "unit", "written", "date", "topic", "compare"} | _INHERITED, "the claim")
    for key in ("text", "source"):
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise ValueError(f'it needs a {key}, as in {key} = "{"Fig. 2b" if key == "source" else "A is above B"}"')
    compare = table.get("compare")
    if not isinstance(compare, list) or not compare or not all(isinstance(c, dict) for c in compare):
        raise ValueError("it compares nothing; add a table [[claim.compare]] with a, b and expect")
    if not isinstance(unit := table.get("unit"), str):
        raise ValueError(
            f'it needs a unit, of its differences and of the margin: "points" (hundredths), "%" (of b), another word, or ""'
            f" for the metric's own size, got {unit!r}"
        )
    if (written := table.get("written")) not in ("before", "after"):
        raise ValueError(
            'it has to say whether it was written before its rows, as in written = "before", or "after" (in the same'
            f" commit counts as after), got {written!r}"
        )
    if not isinstance(topic := table.get("topic", ""), str):
        raise ValueError(f'a topic is a few words that claims share, as in topic = "the metric helps", got {topic!r}')
    date = _date(table, "date", "the day it was written")
    common = {key: table[key] for key in _INHERITED & table.keys()}
    comparisons = [comparison for c in compare for comparison in _comparisons({**common, **c})]
    return Claim(table["text"], table["source"], unit, written, date, tuple(comparisons), topic)


def _comparisons(table: dict[str, Any]) -> list[Comparison]:
    """The comparisons that one table stands for."""
    _known(table, {"a", "b", "at"} | _INHERITED, "compare")
    for key in ("a", "b", "at"):
        if not isinstance(table.setdefault(key, {} if key == "at" else None), dict):
            raise ValueError(f'compare needs {key}, settings as in {key} = {{ method = "ellipse" }}')
    expect, margin, exact = table.get("expect"), table.get("margin"), table.get("deterministic", False)
    if expect not in _EXPECT:
        raise ValueError(f"expect must be one of {', '.join(_EXPECT)}, got {expect!r}")
    if margin is None:
        raise ValueError("it needs a margin, the least difference that matters, in its unit, as in margin = 1 (0 too)")
    if not _is_number(margin) or margin < 0:
        raise ValueError(f"margin must be a number of at least 0, in the claim's unit, got {margin!r}")
    if expect == "same" and margin == 0:
        raise ValueError('expect = "same" needs a margin above 0, the difference that counts as none')
    if not _is_number(by := table.get("by", 0.0)):
        raise ValueError(f"by must be a number, with the sign of a − b and in the claim's unit, got {by!r}")
    if not isinstance(exact, bool):
        raise ValueError(f"deterministic must be true or false, got {exact!r}")
    margin_date = _date(table, "margin_date", "the day its margin was fixed")
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
        found.append(Comparison(a, b, expect, float(margin), margin_date, float(by), exact))
    if not found:
        raise ValueError("an empty list of settings leaves nothing to compare; give it at least one entry")
    return found


def _expand(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = [value if isinstance(value, list) else [value] for value in settings.values()]
    return [dict(zip(settings, values, strict=True)) for values in itertools.product(*lists)]


def _known(table: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := sorted(table.keys() - known):
        raise ValueError(f"{what} has no {', '.join(map(repr, unknown))}; it has {', '.join(sorted(known))}")


def _date(table: Mapping[str, Any], key: str, what: str) -> datetime.date:
    date = table.get(key)
    if not isinstance(date, datetime.date) or isinstance(date, datetime.datetime):
        raise ValueError(f"it needs {key}, {what}, without quotes and hour, as in {key} = 2026-11-26, got {date!r}")
    return date


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


def _values(
    side: Mapping[str, Any], frames: Mapping[str, pd.DataFrame], enough: int
) -> tuple[dict[int, float], int, int]:
    """A metric by seed (NaN where a run diverged, or has none), for the runs with the settings of a side; how many are
    stale, and how many tell no data."""
    frame = frames.get(side["experiment"])
    if frame is None or len(set(frame["seed"])) < enough:
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
        values[seed] = float(number) if _is_number(number) else math.nan
        stale += bool(row.get("stale"))
        untold += "data" in row and not isinstance(row["data"], str)
    told = {row["data"] for (row,) in found.values() if isinstance(row.get("data"), str)}
    if len(told) > 1:
        raise ValueError(f"the seeds of {_words(side)} were computed on different data: {'; '.join(sorted(told))}")
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
