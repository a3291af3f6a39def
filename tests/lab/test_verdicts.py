"""Claims as data, and the rule that judges them."""

import dataclasses
import datetime
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wmlib.lab.figures import t_interval
from wmlib.lab.records import append_row
from wmlib.lab.verdicts import Claim, Comparison, judge, plot_verdicts, read_claims, verdict_table

ROOT = Path(__file__).parents[2]
CLAIMS = sorted((ROOT / "book/claims").rglob("*.toml"))
CLAIM_IDS = [path.relative_to(ROOT / "book/claims").with_suffix("").as_posix() for path in CLAIMS]

GOOD = """
[[claim]]
text = "A is above B"
source = "Fig. 1"
written = "before"
date = 2026-11-25
unit = "points"
margin = 0
margin_date = 2026-11-25
experiment = "e"
metric = "m"
[[claim.compare]]
a = { method = "A" }
b = { method = "B" }
expect = "higher"
"""


def write(tmp_path, text):
    path = tmp_path / "claims.toml"
    path.write_text(text)
    return path


def frame(**values):
    """Rows of one experiment, the metric m of each method by seed."""
    return pd.DataFrame(
        {"method": method, "m": m, "seed": seed, "stale": False}
        for method, ms in values.items()
        for seed, m in enumerate(ms)
    )


DAY, LATER = datetime.date(2026, 11, 25), datetime.date(2026, 11, 26)
TEXT = "A is what it is"


def claim(*expect, b=None, source="Fig. 1", unit="points", written="before", margin_date=DAY, **comparison):
    """A claim that A differs from B, C, ... as expected, with the margins given."""
    pairs = [(e, 0.0) if isinstance(e, str) else e for e in expect]
    a = {"experiment": "e", "metric": "m", "method": "A"}
    others = [b or {**a, "method": chr(ord("B") + i)} for i in range(len(pairs))]
    comparisons = [Comparison(a, o, e, m, margin_date, **comparison) for o, (e, m) in zip(others, pairs, strict=True)]
    return Claim(TEXT, source, unit, written, DAY, tuple(comparisons))


def one(tmp_path, text=GOOD):
    (read,) = read_claims(write(tmp_path, text))
    return read


# Reading


def test_a_list_stands_for_one_comparison_with_each_entry(tmp_path):
    text = GOOD.replace('"B" }', '["B", "C"] }\nat = { fraction = [0.1, 1.0], widths = [[16, 32]] }')
    read = one(tmp_path, text)
    common = {"experiment": "e", "metric": "m", "widths": [16, 32]}
    assert [(c.a, c.b) for c in read.comparisons] == [
        ({**common, "fraction": f, "method": "A"}, {**common, "fraction": f, "method": m})
        for m in "BC"
        for f in (0.1, 1.0)
    ]
    assert {(c.expect, c.margin) for c in read.comparisons} == {("higher", 0.0)}
    assert (read.text, read.source, read.unit) == ("A is above B", "Fig. 1", "points")
    assert (read.written, read.date) == ("before", DAY)


def test_what_stands_nearer_comes_before_what_stands_further(tmp_path):
    text = GOOD.replace('"A" }', '"A", metric = "n" }\nexperiment = "f"').replace('"B" }', '"B", experiment = "g" }')
    (comparison,) = one(tmp_path, text).comparisons
    assert comparison.a == {"experiment": "f", "metric": "n", "method": "A"}
    assert comparison.b == {"experiment": "g", "metric": "m", "method": "B"}


def test_several_tables_of_comparisons_and_a_constant(tmp_path):
    text = GOOD + "[[claim.compare]]\na = { method = 'A' }\nb = { value = 0.1 }\nexpect = 'same'\nmargin = 2\nby = -1\n"
    first, second = one(tmp_path, text).comparisons
    assert first.b["method"] == "B"
    assert second.b == {"value": 0.1}
    assert (second.expect, second.margin, second.by) == ("same", 2, -1)
    assert (first.margin, first.by, first.margin_date, first.deterministic) == (0, 0, DAY, False)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"higher"', '"above"', "expect must be one of higher, lower"),
        ('expect = "higher"', "", "expect must be one of"),
        ('"higher"', '"same"', "needs a margin above 0"),
        (
            "margin = 0\n",
            "",
            "it needs a margin, the least difference that matters, in its unit, as in margin = 1 (0 too)",
        ),
        ("margin = 0\n", "margin = -1\n", "margin must be a number of at least 0"),
        ("margin = 0\n", "margin = true\n", "margin must be a number"),
        ("margin = 0\n", "margin = 0\nby = 'x'\n", "by must be a number"),
        ("margin = 0\n", "margin = 0\ndeterministic = 1\n", "deterministic must be true or false"),
        ("margin_date = 2026-11-25\n", "", "it needs margin_date, the day its margin was fixed"),
        ("\ndate = 2026-11-25", "", "it needs date, the day it was written"),
        ("\ndate = 2026-11-25", '\ndate = "2026-11-25"', "as in date = 2026-11-26"),
        ("\ndate = 2026-11-25", "\ndate = 2026-11-25T10:00:00", "without quotes and hour"),
        ('written = "before"\n', "", 'written = "before", or "after"'),
        ('"before"', '"then"', 'written = "before", or "after"'),
        ('unit = "points"\n', "", "it needs a unit"),
        ('b = { method = "B" }', "", 'compare needs b, settings as in b = { method = "ellipse" }'),
        ('{ method = "B" }', '"B"', "compare needs b"),
        ('{ method = "B" }', "{ value = 'x' }", "must be a number"),
        ('{ method = "B" }', "{ value = 1, method = 'B' }", "value = … is a constant"),
        ('{ method = "A" }', "{ value = 1 }", "value = … is a constant"),
        ('{ method = "B" }', '{ method = ["A", "B"] }', "compared with itself"),
        ('{ method = "B" }', "{ method = [] }", "nothing to compare"),
        ('metric = "m"', "", "a has no metric"),
        ('experiment = "e"', "", "a has no experiment"),
        ('metric = "m"', 'metric = "m[-1]"', 'an entry of a curve as "loss'),
        ('metric = "m"', 'metrik = "m"', "the claim has no 'metrik'; it has by, compare, date"),
        ('expect = "higher"', 'expect = "higher"\nseeds = 3', "compare has no 'seeds'"),
        ('text = "A is above B"', "", "it needs a text"),
        ('source = "Fig. 1"', "source = 2", 'it needs a source, as in source = "Fig. 2b"'),
        ('unit = "points"', "unit = 3", "it needs a unit"),
        ("[[claim.compare]]", "[claim.compare]", "it compares nothing; add a table"),
    ],
)
def test_a_wrong_claim_is_refused_with_its_place_and_the_cure(tmp_path, old, new, says):
    path = write(tmp_path, GOOD + GOOD.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        read_claims(path)
    named = "without text" if "text" in old else "A is above B"
    assert str(error.value).startswith(f"{path}, claim 2 ({named!r}): ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[claim]\n", "is not TOML"),
        ("", "must hold tables [[claim]]"),
        ("[claim]\n", "must hold tables"),
        ("x = 1\n" + GOOD, "must hold"),
    ],
)
def test_a_file_that_holds_no_claims_is_refused(tmp_path, text, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        read_claims(write(tmp_path, text))
    assert "claims.toml" in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"book/claims/part/none\.toml; write them there"):
        read_claims("part/none")


# The rule

EXPECT = ("higher", "lower", "not lower", "not higher", "same")


@pytest.mark.parametrize(
    ("low", "high", "higher", "lower", "not_lower", "not_higher", "same"),
    [
        # intervals of a difference, with the margin 1: shown, contradicted or undecided
        (1.1, 2.0, "s", "c", "s", "c", "c"),
        (0.5, 1.5, "u", "u", "s", "u", "u"),
        (-0.9, 0.9, "u", "u", "s", "s", "s"),
        (-2.0, 2.0, "u", "u", "u", "u", "u"),
        (-1.5, -0.5, "u", "u", "u", "s", "u"),
        (-2.0, -1.1, "c", "s", "c", "s", "c"),
        # values without spread
        (1.1, 1.1, "s", "c", "s", "c", "c"),
        (1.0, 1.0, "u", "u", "s", "s", "s"),
        (-1.0, -1.0, "u", "u", "s", "s", "s"),
        (-1.1, -1.1, "c", "s", "c", "s", "c"),
    ],
)
@pytest.mark.parametrize("by", [0.0, -3.0])
def test_an_interval_shows_contradicts_or_leaves_undecided(low, high, higher, lower, not_lower, not_higher, same, by):
    states = {"higher": higher, "lower": lower, "not lower": not_lower, "not higher": not_higher, "same": same}
    for expect, state in states.items():
        (comparison,) = claim((expect, 1.0), by=by).comparisons
        assert comparison.decide(low + by, high + by)[0] == state, expect


FAR, NEAR, NIL = 1000, 3.5, 0.5  # t values of three seeds' mean: certain, p = 0.07, and nothing; 4.3 is p = 0.05


def rows_with(*ts, seeds=3):
    """Rows in which A is above B, C, ... with these t values (NaN: no run), on differences of standard error 1."""
    noise = np.linspace(-1, 1, seeds)
    noise *= np.sqrt(seeds) / noise.std(ddof=1)
    found = {chr(ord("B") + i): list(-(t + noise) / 100) for i, t in enumerate(ts) if not np.isnan(t)}
    return frame(A=[0.0] * seeds, **found)


@pytest.mark.parametrize(
    ("ts", "seeds", "value"),
    [
        ([FAR], 3, "reproduced"),
        ([NEAR], 3, "undecided"),
        ([-NEAR], 3, "undecided"),
        ([-FAR], 3, "contradicted"),
        ([5.0], 3, "reproduced"),  # p = 0.038
        ([5.0, 5.0], 3, "reproduced"),  # all have to be shown: no correction
        ([5.0, NIL], 3, "undecided"),  # of two, the smaller p has to be below 0.025
        ([FAR, 5.0, NIL], 3, "partly"),
        ([FAR, NIL, NIL], 3, "partly"),
        ([FAR, -FAR, NIL], 3, "mixed"),
        ([FAR, -5.0], 3, "mixed"),  # after one is decided, the other is the last
        ([FAR, -5.0, NIL], 3, "partly"),
        ([-FAR, NIL], 3, "contradicted"),
        ([-5.0, NIL], 3, "undecided"),
        ([-5.0, -5.0], 3, "undecided"),
        ([FAR, np.nan], 3, "not tested"),
        ([FAR], 2, "not tested"),
        ([-FAR, np.nan], 3, "not tested"),
    ],
)
def test_a_claim_comes_to_one_of_six_verdicts(ts, seeds, value):
    rows = rows_with(*ts, seeds=seeds)
    expect = ["higher"] * len(ts)
    assert judge(claim(*expect), rows).value == value
    ours = judge(claim(*expect, source="not in the paper"), rows).value
    assert ours == ("holds" if value == "reproduced" else value)


def test_the_margin_is_in_the_unit_of_the_claim():
    rows = frame(A=[0.52, 0.53, 0.54], B=[0.5, 0.5, 0.5])  # 3 points above, 6 % above
    for unit, size in (("points", 3.0), ("%", 6.0), ("", 0.03)):
        half = size / 3 * stats.t.ppf(0.975, 2) / np.sqrt(3)
        for factor, state in ((0.99, "shown"), (1.01, "undecided")):
            (outcome,) = judge(claim(("higher", factor * (size - half)), unit=unit), rows).comparisons
            assert (outcome.state, outcome.mean) == (state, pytest.approx(size))


def test_per_cent_of_what_is_not_above_zero_is_refused():
    with pytest.raises(ValueError, match=r'method A against method B .* is given in "%" of b, which is -0.5; choose'):
        judge(claim("higher", unit="%"), frame(A=[0.6] * 3, B=[0.5, -0.5, 0.5]))


def test_equal_differences_are_deterministic_whatever_their_rounding():
    b = np.array([0.1, 0.2, 0.7])
    (outcome,) = judge(claim("higher"), frame(A=b + 0.1, B=b)).comparisons
    assert (outcome.deterministic, outcome.state, outcome.p) == (True, "shown", 0)
    assert outcome.low == outcome.high == outcome.mean == pytest.approx(10)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_what_is_declared_deterministic_needs_one_seed(seeds):
    rows = frame(A=[0.6] * seeds, B=[0.5] * seeds)
    assert judge(claim("higher", deterministic=True), rows).value == "reproduced"
    assert judge(claim("higher"), rows).value == ("reproduced" if seeds == 3 else "not tested")
    assert judge(claim("higher", deterministic=True), rows[:0]).value == "not tested"


def test_what_is_declared_deterministic_must_not_differ():
    rows = frame(A=[0.6, 0.61, 0.6], B=[0.5] * 3)
    with pytest.raises(ValueError, match=r"differs between seeds, by up to 1; leave out deterministic = true"):
        judge(claim("higher", deterministic=True), rows)


def test_what_has_no_spread_takes_no_part_in_holms_levels():
    exact = {name: [-1.0] * 3 for name in "CDEFG"}
    rows = pd.concat([rows_with(5.0), frame(**exact)])  # p = 0.038, and five that are certain
    judgement = judge(claim("higher", *["lower"] * 5), rows)
    assert [c.state_holm for c in judgement.comparisons] == ["shown", *["contradicted"] * 5]
    assert judgement.value == "mixed"


_DIFFERENCES = st.lists(st.integers(-1000, 1000).map(lambda x: x / 1000), min_size=3, max_size=6)


@pytest.mark.thorough
@settings(max_examples=40, deadline=None)
@given(_DIFFERENCES, st.floats(0.1, 50))
def test_the_five_expectations_agree_with_each_other(differences, margin):
    rows = frame(A=differences, B=[0.0] * len(differences))

    def state(expect, margin):
        return judge(claim((expect, margin)), rows).comparisons[0].state

    for m in (0.0, margin):
        higher, lower = state("higher", m), state("lower", m)
        assert (higher == "shown") == (lower == "contradicted") == (state("not higher", m) == "contradicted")
        assert (lower == "shown") == (higher == "contradicted") == (state("not lower", m) == "contradicted")
    within = state("not lower", margin) == "shown" == state("not higher", margin)
    assert (state("same", margin) == "shown") == within
    assert (state("same", margin) == "contradicted") == ("shown" in {state("higher", margin), state("lower", margin)})
    assert (state("higher", 0.0) == "shown") >= (state("higher", margin) == "shown")
    mirrored = frame(A=[0.0] * len(differences), B=differences)
    (there,), (back,) = (judge(claim("higher"), r).comparisons for r in (rows, mirrored))
    np.testing.assert_allclose([there.mean, there.low, there.high], [-back.mean, -back.high, -back.low], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(_DIFFERENCES.filter(lambda d: np.ptp(d) > 0), st.floats(0.1, 50), st.sampled_from(EXPECT), st.floats(-20, 20))
def test_p_is_the_least_level_at_which_the_interval_decides(differences, margin, expect, by):
    wanted = claim((expect, margin), by=by)
    (outcome,) = judge(wanted, frame(A=differences, B=[0.0] * len(differences))).comparisons
    (comparison,) = wanted.comparisons
    assert (outcome.state != "undecided") == (outcome.p < 0.05)
    for p in (0.98 * outcome.p, 1.02 * outcome.p):
        if 1e-6 < p < 1:
            interval = t_interval(100 * np.array(differences), confidence=1 - p)
            assert (comparison.decide(*map(float, interval)) != "undecided") == (p > outcome.p)


def holm(ps, alpha=0.05):
    """Which nulls fall, from the definition: the k-th smallest p as long as all up to it are below their levels."""
    ordered = sorted(ps)
    levels = [alpha / (len(ps) - k) for k in range(len(ps))]
    fallen = next((k for k, (p, level) in enumerate(zip(ordered, levels, strict=True)) if p >= level), len(ps))
    return [ordered.index(p) < fallen for p in ps]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-12, 12), min_size=1, max_size=6, unique_by=abs), st.sampled_from([3, 5]))
def test_holms_levels_are_those_of_the_definition(ts, seeds):
    outcomes = judge(claim(*["higher"] * len(ts)), rows_with(*ts, seeds=seeds)).comparisons
    ps = [2 * stats.t.sf(abs(t), seeds - 1) for t in ts]
    np.testing.assert_allclose([o.p for o in outcomes], ps, rtol=1e-6)
    sides = ["shown" if t > 0 else "contradicted" for t in ts]
    assert [o.state for o in outcomes] == [s if p < 0.05 else "undecided" for s, p in zip(sides, ps, strict=True)]
    assert [o.state_holm for o in outcomes] == [
        side if falls else "undecided" for side, falls in zip(sides, holm(ps), strict=True)
    ]
    if len(ts) == 1:
        assert outcomes[0].state == outcomes[0].state_holm


@settings(max_examples=20, deadline=None)
@given(_DIFFERENCES.filter(lambda d: np.ptp(d) > 0), st.integers(0, 1000))
def test_the_interval_is_that_of_the_paired_t_test(differences, seed):
    b = np.random.default_rng(seed).uniform(size=len(differences))
    a = b + differences
    rows = frame(A=a, B=b).sample(frac=1, random_state=seed)  # whatever the order of the rows
    (outcome,) = judge(claim("higher", unit=""), rows).comparisons
    test = stats.ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    np.testing.assert_allclose((outcome.low, outcome.high), (interval.low, interval.high), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose((outcome.mean, outcome.p), (np.mean(differences), test.pvalue), rtol=1e-6, atol=1e-12)


def test_a_claim_without_difference_is_found_contradicted_or_shown_no_oftener_than_said():
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        rows = frame(A=[0.0] * 5, **{name: list(rng.normal(size=5)) for name in "BCD"})
        found.append(judge(claim(*["higher"] * 3), rows).value)
    wrong = 1 - found.count("undecided") / len(found)
    assert wrong == pytest.approx(0.05, abs=0.03)  # 400 draws: ± 0.011


def test_only_seeds_that_both_sides_have_are_compared():
    rows = frame(A=[1.0, 2.0, 3.0, 4.0, 100.0], B=[0.5, 1.5, 2.5, 3.5])
    (outcome,) = judge(claim("higher"), rows).comparisons
    assert (outcome.mean, outcome.seeds) == (50, 4)


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("seeds", [3, 10])
def test_seeds_without_a_number_are_never_left_out_unseen(side, seeds):
    values = {"A": [0.9] * seeds, "B": [0.7] * seeds}
    values[side][1:] = [np.nan] * (seeds - 1)
    judgement = judge(claim("higher"), frame(**values))
    assert judgement.value == "not tested"
    assert not judgement.is_test
    listed = ", ".join(map(str, range(1, seeds)))
    assert judgement.missing[0].endswith(f"has no number at {seeds - 1} of {seeds} seeds ({listed})")


def test_seeds_without_a_number_decide_nothing_where_the_other_side_has_none():
    rows = frame(A=[1.0, 3.0, 4.0, np.nan], B=[0.5, 2.5, 3.5])
    (outcome,) = judge(claim("higher"), rows).comparisons
    assert outcome.seeds == 3


def test_the_seeds_of_a_side_are_of_the_same_data():
    rows = frame(A=[0.9] * 3, B=[0.7] * 3)
    rows["data"] = ["one"] * 3 + ["another"] * 3  # two sides may differ on purpose
    assert judge(claim("higher"), rows).value == "reproduced"
    rows.loc[1, "data"] = "another"
    with pytest.raises(ValueError, match=r"method A.* were computed on different data: another; one"):
        judge(claim("higher"), rows)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (frame(A=[0.6], B=[0.5]), "method A against method B at metric m has 0 of 3 seeds"),
        (frame(A=[0.6] * 2, B=[0.5] * 2), "method A against method B at metric m has 0 of 3 seeds"),
        (frame(A=[0.6] * 3, B=[0.5] * 2), "has 2 of 3 seeds"),
        (frame(A=[0.6] * 3, C=[0.5] * 3), "has 0 of 3 seeds"),
        (pd.DataFrame(columns=["seed"]), "has 0 of 3 seeds"),
    ],
)
def test_too_few_seeds_decide_nothing(rows, says):
    judgement = judge(claim("higher"), rows)
    assert judgement.value == "not tested"
    assert judgement.comparisons == ()
    assert says in judgement.missing[0]
    assert judgement.ours.startswith("runs are missing: ")


def test_one_comparison_without_runs_leaves_the_claim_undecided():
    rows = frame(A=[0.6] * 3, B=[0.5] * 3)
    judgement = judge(claim("higher", "higher", "higher"), rows)
    assert judgement.value == "not tested"
    assert [c.state for c in judgement.comparisons] == ["shown"]
    assert judgement.ours.endswith("has 0 of 3 seeds, and 1 more")


def test_a_setting_with_the_name_of_a_key_stands_in_a_table_of_its_own(tmp_path):
    text = GOOD.replace('b = { method = "B" }', 'b = { method = "A", settings = { metric = false } }')
    text = text.replace('a = { method = "A" }', 'a = { method = "A", settings = { metric = true } }')
    rows = pd.concat([frame(A=np.arange(4) / 7 + given).assign(metric=given) for given in (True, False)])
    (outcome,) = judge(one(tmp_path, text), rows).comparisons
    assert outcome.mean == pytest.approx(100)


def test_settings_that_fit_several_runs_are_refused_by_name():
    rows = pd.concat([frame(A=np.arange(4) / 7 + f, B=np.arange(4) / 9).assign(fraction=f, same=1) for f in (0.1, 1.0)])
    with pytest.raises(ValueError, match=r"method A fits several .* name one in a, b or at: fraction \(0.1 or 1.0\)$"):
        judge(claim("higher"), rows)


def test_a_setting_or_metric_that_no_run_has_is_refused_by_name():
    rows = frame(A=[0.6] * 3, B=[0.5] * 3)
    with pytest.raises(ValueError, match="no run of 'e' has m; they have method, n, seed, stale"):
        judge(claim("higher"), rows.rename(columns={"m": "n"}))
    with pytest.raises(ValueError, match="no run of 'e' has fraction"):
        judge(claim("higher", b={"experiment": "e", "metric": "m", "fraction": 1}), rows)


def test_two_metrics_of_the_same_runs_a_constant_and_entries_of_a_curve():
    rows = frame(A=[0.5, 0.6, 0.7]).assign(n=[0.4, 0.5, 0.6], curve=[[1, [0.2, x]] for x in (0.3, 0.4, 0.5)])
    for b, mean in [
        ({"experiment": "e", "metric": "n", "method": "A"}, 0.1),
        ({"value": 0.4}, 0.2),
        ({"experiment": "e", "metric": "curve[1][1]", "method": "A"}, 0.2),
        ({"experiment": "e", "metric": "curve[0]", "method": "A"}, -0.4),
    ]:
        (outcome,) = judge(claim("higher", b=b), rows).comparisons
        assert outcome.mean == pytest.approx(100 * mean)
    beyond = judge(claim("higher", b={"experiment": "e", "metric": "curve[2]", "method": "A"}), rows)
    assert beyond.value == "not tested"


def test_the_numbers_in_words():
    rows = frame(A=[0.5] * 3, B=[0.512] * 3, C=[0.4] * 3, D=[0.51, 0.512, 0.514])
    single, several = judge(claim("higher"), rows), judge(claim("higher", ("higher", 1.0)), rows)
    assert single.ours == "exactly −1.2 points; margin 0"
    assert judge(claim("higher", b={"experiment": "e", "metric": "m", "method": "D"}), rows).ours == (
        "−1.2 [−1.7, −0.7] points; margin 0"
    )
    assert several.ours == "1 of 2 shown, 1 contradicted, means from −1.2 to +10.0 points; margin 0 to 1"
    assert judge(claim("lower", by=-1.0), rows).ours == "exactly −1.2 points; margin 0 beyond −1"
    assert judge(claim("higher", unit=""), rows).ours == "exactly −0.012; margin 0"
    assert judge(claim("higher", unit="degrees"), rows).ours == "exactly −0.012 degrees; margin 0"
    assert judge(claim("higher", unit="%"), rows).ours == "exactly −2.3 %; margin 0"
    assert [c.says for c in several.comparisons] == ["lower", "higher"]
    tied = judge(claim(("higher", 2.0)), rows)
    assert tied.comparisons[0].says == "no difference shown"
    narrow = judge(claim("higher", "higher"), rows_with(5.0, NIL))
    assert narrow.ours == "1 of 2 shown (at Holm's levels 0), means from +0.5 to +5.0 points; margin 0"
    both = judge(claim(*["higher"] * 3), rows_with(5.0, NIL, -5.0))
    assert both.ours.startswith("1 of 3 shown, 1 contradicted (at Holm's levels 0 and 0), means")


@pytest.mark.parametrize(
    ("written", "margin_date", "is_test", "when"),
    [
        ("before", DAY, True, "2026-11-25, before its rows, with its margin: a test"),
        ("before", LATER, False, "2026-11-25, before its rows; margin of 2026-11-26"),
        ("after", DAY, False, "2026-11-25, after its rows"),
    ],
)
def test_only_what_was_fixed_before_its_rows_is_a_test(written, margin_date, is_test, when):
    made = claim("higher", written=written, margin_date=margin_date)
    assert (made.is_test, made.when) == (is_test, when)
    rows = frame(A=[0.6] * 3, B=[0.5] * 3)
    assert judge(made, rows).is_test == is_test
    assert not judge(made, rows[:0]).is_test


# The table


def record(path, experiment, rows, code="new", data="abc"):
    with open(path / f"{experiment}.jsonl", "a") as file:
        for config, seed, m in rows:
            row = {"experiment": experiment, "config": config, "seed": seed, "preset": "cpu", "metrics": {"m": m}}
            file.write(json.dumps(row | {"curves": {}, "seconds": 1, "code": code, "data": data}) + "\n")


def test_the_table_reads_the_recorded_runs(tmp_path):
    path = write(tmp_path, GOOD)
    record(tmp_path, "e", [({"method": m}, seed, 0.6 if m == "A" else 0.5) for m in "AB" for seed in range(3)])
    table = verdict_table(path, "cpu", results=tmp_path)
    assert table.to_dict("records") == [
        {"claim": "1. A is above B", "the paper": "Fig. 1",
         "written": "2026-11-25, before its rows, with its margin: a test",
         "ours": "exactly +10.0 points; margin 0", "seeds": "3", "verdict": "reproduced"},
    ]  # fmt: skip
    quick = verdict_table(path, "quick", results=tmp_path)
    assert quick.verdict.tolist() == ["not tested"]
    assert quick.seeds.tolist() == ["–"]


@pytest.mark.parametrize("data", [None, "abc"])
def test_rows_that_do_not_tell_their_data_are_never_silent(data, tmp_path):
    path = write(tmp_path, GOOD)
    record(tmp_path, "e", [({"method": "A"}, seed, 0.6) for seed in range(3)], data=data)
    record(tmp_path, "e", [({"method": "B"}, seed, 0.5) for seed in range(3)])
    table = verdict_table(path, "cpu", results=tmp_path)
    assert table.seeds.tolist() == ["3" if data else "3; data not fingerprinted"]
    assert table.verdict.tolist() == ["reproduced"]


def test_an_equivalence_carries_rows_of_older_code(tmp_path):
    path = write(tmp_path, GOOD)
    runs = [({"method": m}, seed, 0.6 if m == "A" else 0.5) for m in "AB" for seed in range(3)]
    record(tmp_path, "e", runs, code="old")
    record(tmp_path, "e", runs[:2])
    assert "4 rows from code that has changed since" in verdict_table(path, "cpu", results=tmp_path).verdict[0]
    line = {"experiment": "e", "from": "old", "to": "new", "rows": "all", "reason": "verified", "why": "a test"}
    append_row(tmp_path / "equivalences.jsonl", line)
    assert verdict_table(path, "cpu", results=tmp_path).verdict.tolist() == ["reproduced"]


def test_runs_of_older_code_are_never_silent(tmp_path):
    path = write(tmp_path, GOOD)
    runs = [({"method": m}, seed, 0.6 if m == "A" else 0.5) for m in "AB" for seed in range(3)]
    record(tmp_path, "e", runs, code="old")
    record(tmp_path, "e", runs[:2])  # done again: the last row of a run counts
    (verdict,) = verdict_table(path, "cpu", results=tmp_path).verdict
    assert verdict == "reproduced; 4 rows from code that has changed since"
    rows = frame(A=[0.6] * 3, B=[0.5] * 3).assign(stale=True)
    (verdict,) = verdict_table(path, "cpu", rows={"e": rows}).verdict
    assert verdict == "reproduced; 6 rows from code that has changed since"


def test_numbers_of_seeds_that_differ_are_a_range(tmp_path):
    path = write(tmp_path, GOOD.replace('"B" }', '["B", "C"] }'))
    rows = frame(A=[0.6] * 5, B=[0.5] * 5, C=[0.5] * 4)
    assert verdict_table(path, "cpu", rows={"e": rows}).seeds.tolist() == ["4–5"]


# The book


def test_every_part_of_a_judgement_is_immutable():
    judgement = judge(claim("higher"), frame(A=[0.6] * 3, B=[0.5] * 3))
    for part in (judgement, judgement.claim, judgement.claim.comparisons[0], judgement.comparisons[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.value = 0


# Those of chapters in preparation are decided when their rows are complete and the contents have them.
DECIDED = [i for i in CLAIM_IDS if f"notebooks/{i}\n" in (ROOT / "_toc.yml").read_text()]


@pytest.mark.parametrize("path", [ROOT / f"book/claims/{i}.toml" for i in DECIDED], ids=DECIDED)
def test_every_claim_of_the_book_is_decided_by_recorded_runs(path, monkeypatch):
    monkeypatch.delenv("WMLIB_RESULTS", raising=False)
    chapter = path.relative_to(ROOT / "book/claims").with_suffix("").as_posix()
    assert (ROOT / f"notebooks/{chapter}.py").exists(), f"{path} belongs to no chapter"
    table = verdict_table(chapter, "cpu")
    undecided = table[table.verdict.str.startswith("not tested")]
    assert undecided.empty, undecided.to_dict("records")


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_page_says_how_often_an_interval_covers_the_mean(seeds):
    page = (ROOT / "book/verdicts.md").read_text()
    assert "bootstrap cover it 85 times, with three 75" in page
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(seeds, 20_000))
    low, high = t_interval(draws)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.95, abs=0.005)  # 20,000 draws: ± 0.0015
    resampled = draws[rng.integers(seeds, size=(seeds, 500)), :2000].mean(axis=0)  # the same for all experiments
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx({3: 0.75, 5: 0.85}[seeds], abs=0.03)
    assert f"{stats.t.ppf(0.975, seeds - 1):.1f} for {['three', 'five'][seeds == 5]}" in page


# The plot


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from(["higher", "lower", "not lower", "not higher", "same"]), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.01, 1.0]),
    st.integers(1, 6),
)
def test_the_plot_has_what_is_shown_right_of_its_bound(expects, margin, seed):
    rng = np.random.default_rng(seed)
    rows = frame(**{method: rng.normal(0, 0.02, 5).tolist() for method in "ABCDE"})
    judgement = judge(claim(*[(e, margin) for e in expects], unit=""), rows)
    fig = plot_verdicts([judgement])
    (ax,) = fig.axes
    dots = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert len(dots) == len(expects)
    for outcome, dot in zip(judgement.comparisons, dots, strict=True):
        assert (dot.get_marker() == "s") == (outcome.expect == "same")
        sign = -1 if outcome.expect in ("lower", "not higher") else 1
        (x,) = dot.get_xdata()
        assert np.sign(x) == np.sign(sign * outcome.mean)
        if margin:
            assert x == pytest.approx(sign * outcome.mean / margin)
    assert any(judgement.value in text.get_text() for text in ax.texts)
    plt.close(fig)


def test_a_plot_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no judgement to draw"):
        plot_verdicts([])
