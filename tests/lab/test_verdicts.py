"""Claims as data, and the rule that judges them."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmlib.lab.figures import bootstrap_interval
from wmlib.lab.records import append_row
from wmlib.lab.verdicts import Claim, Comparison, judge, read_claims, verdict_table

ROOT = Path(__file__).parents[2]
CLAIMS = sorted((ROOT / "book/claims").rglob("*.toml"))
CLAIM_IDS = [path.relative_to(ROOT / "book/claims").with_suffix("").as_posix() for path in CLAIMS]

GOOD = """
[[claim]]
text = "A is above B"
source = "Fig. 1"
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


def claim(*expect, b=None, source="Fig. 1", unit="points"):
    """A claim that A differs from B, C, ... as expected, with the margins given."""
    pairs = [(e, 0.0) if isinstance(e, str) else e for e in expect]
    a = {"experiment": "e", "metric": "m", "method": "A"}
    others = [b or {**a, "method": "BCDEF"[i]} for i in range(len(pairs))]
    return Claim(
        "A is what it is", source, unit, tuple(Comparison(a, o, e, m) for o, (e, m) in zip(others, pairs, strict=True))
    )


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


def test_what_stands_nearer_comes_before_what_stands_further(tmp_path):
    text = GOOD.replace('"A" }', '"A", metric = "n" }\nexperiment = "f"').replace('"B" }', '"B", experiment = "g" }')
    (comparison,) = one(tmp_path, text).comparisons
    assert comparison.a == {"experiment": "f", "metric": "n", "method": "A"}
    assert comparison.b == {"experiment": "g", "metric": "m", "method": "B"}


def test_several_tables_of_comparisons_and_a_constant(tmp_path):
    text = GOOD + "[[claim.compare]]\na = { method = 'A' }\nb = { value = 0.1 }\nexpect = 'same'\nmargin = 0.02\n"
    first, second = one(tmp_path, text).comparisons
    assert first.b["method"] == "B"
    assert second.b == {"value": 0.1}
    assert (second.expect, second.margin) == ("same", 0.02)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"higher"', '"above"', "expect must be one of higher, lower"),
        ('expect = "higher"', "", "expect must be one of"),
        ('"higher"', '"same"', "needs a margin"),
        ('"higher"', '"higher"\nmargin = -1', "margin must be a number of at least 0"),
        ('"higher"', '"higher"\nmargin = true', "margin must be a number"),
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
        ('metric = "m"', 'metrik = "m"', "the claim has no 'metrik'; it has compare, expect"),
        ('expect = "higher"', 'expect = "higher"\nseeds = 3', "compare has no 'seeds'"),
        ('text = "A is above B"', "", "it needs a text"),
        ('source = "Fig. 1"', "source = 2", 'it needs a source, as in source = "Fig. 2b"'),
        ('source = "Fig. 1"', 'source = "Fig. 1"\nunit = 3', "unit must be a word"),
        ("[[claim.compare]]", "[claim.compare]", "it compares nothing; add a table"),
    ],
)
def test_a_wrong_claim_is_refused_with_its_place_and_the_cure(tmp_path, old, new, says):
    path = write(tmp_path, GOOD + GOOD.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        read_claims(path)
    assert str(error.value).startswith(f"{path}, claim 2 (")


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


@pytest.mark.parametrize(
    ("expect", "margin", "shown"),
    [
        # a − b lies around −0.04, 0 and +0.04, at most 0.01 away
        ("higher", 0.0, [False, False, True]),
        ("higher", 0.02, [False, False, True]),
        ("higher", 0.06, [False, False, False]),
        ("lower", 0.0, [True, False, False]),
        ("lower", 0.06, [False, False, False]),
        ("not lower", 0.0, [False, True, True]),
        ("not higher", 0.0, [True, True, False]),
        ("not lower", 0.06, [True, True, True]),
        ("same", 0.02, [False, True, False]),
        ("same", 0.001, [False, False, False]),
        ("same", 0.06, [True, True, True]),
    ],
)
def test_what_is_expected_is_decided_by_the_interval(expect, margin, shown):
    b = np.array([0.5, 0.6, 0.4])
    found = []
    for centre in (-0.04, 0.0, 0.04):
        rows = frame(A=b + centre + [0.01, -0.01, 0.002], B=b)
        (outcome,) = judge(claim((expect, margin)), rows).comparisons
        found.append(outcome.shown)
    assert found == shown


_DIFFERENCES = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=3, max_size=6)


@settings(max_examples=40, deadline=None)
@given(_DIFFERENCES, st.floats(0.001, 0.5))
def test_the_five_expectations_agree_with_each_other(differences, margin):
    rows = frame(A=differences, B=[0.0] * len(differences))

    def shown(expect, margin):
        return judge(claim((expect, margin)), rows).comparisons[0].shown

    for m in (0.0, margin):
        assert shown("not lower", m) != shown("lower", m)
        assert shown("not higher", m) != shown("higher", m)
        assert not (shown("higher", m) and shown("lower", m))
        assert not (shown("same", margin) and (shown("higher", margin) or shown("lower", margin)))
    assert shown("higher", 0.0) >= shown("higher", margin)
    mirrored = frame(A=[0.0] * len(differences), B=differences)
    (there,), (back,) = (judge(claim("higher"), r).comparisons for r in (rows, mirrored))
    np.testing.assert_allclose([there.mean, there.low, there.high], [-back.mean, -back.high, -back.low], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([True, False]), min_size=1, max_size=5), st.booleans())
def test_all_some_or_none(shown, ours):
    rows = frame(A=[0.5] * 3, **{name: [0.4 if s else 0.6] * 3 for name, s in zip("BCDEF", shown, strict=False)})
    judgement = judge(claim(*["higher"] * len(shown), source="not in the paper" if ours else "Fig. 1"), rows)
    words = ("holds", "does not hold") if ours else ("reproduced", "not reproduced")
    assert judgement.value == (words[0] if all(shown) else "partly" if any(shown) else words[1])
    assert [c.shown for c in judgement.comparisons] == shown


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=3, max_size=5), st.integers(0, 1000))
def test_the_interval_is_that_of_the_paired_differences(differences, seed):
    b = np.random.default_rng(seed).uniform(size=len(differences))
    a = b + differences
    rows = frame(A=a, B=b).sample(frac=1, random_state=seed)  # whatever the order of the rows
    (outcome,) = judge(claim("higher"), rows).comparisons
    assert outcome.mean == np.mean(a - b)
    assert (outcome.low, outcome.high) == bootstrap_interval(a - b)
    # All resamples there are, instead of some drawn.
    means = [np.mean(runs) for runs in itertools.product(a - b, repeat=len(a))]
    for found, share in ((outcome.low, 0.025), (outcome.high, 0.975)):
        low, high = np.quantile(means, [share - 0.008, share + 0.008], method="inverted_cdf")
        assert low - 1e-9 <= found <= high + 1e-9


def test_only_seeds_that_both_sides_have_are_compared():
    rows = frame(A=[1.0, 2.0, 3.0, 4.0, 100.0], B=[0.5, 1.5, 2.5, 3.5])
    (outcome,) = judge(claim("higher"), rows).comparisons
    assert (outcome.mean, outcome.seeds) == (0.5, 4)


def test_a_run_that_diverged_is_no_run():
    rows = frame(A=[1.0, np.nan, 3.0, 4.0], B=[0.5, 1.5, 2.5, 3.5])
    (outcome,) = judge(claim("higher"), rows).comparisons
    assert outcome.seeds == 3


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (frame(A=[0.6] * 2, B=[0.5] * 2), "method A against method B at metric m has 0 of 3 seeds"),
        (frame(A=[0.6] * 3, B=[0.5] * 2), "has 2 of 3 seeds"),
        (frame(A=[0.6] * 3, C=[0.5] * 3), "has 0 of 3 seeds"),
        (pd.DataFrame(columns=["seed"]), "has 0 of 3 seeds"),
    ],
)
def test_too_few_seeds_decide_nothing(rows, says):
    judgement = judge(claim("higher"), rows)
    assert judgement.value == "not tested at this scale"
    assert judgement.comparisons == ()
    assert says in judgement.missing[0]
    assert judgement.ours.startswith("runs are missing: ")


def test_one_comparison_without_runs_leaves_the_claim_undecided():
    rows = frame(A=[0.6] * 3, B=[0.5] * 3)
    judgement = judge(claim("higher", "higher", "higher"), rows)
    assert judgement.value == "not tested at this scale"
    assert [c.shown for c in judgement.comparisons] == [True]
    assert judgement.ours.endswith("has 0 of 3 seeds, and 1 more")


def test_a_setting_with_the_name_of_a_key_stands_in_a_table_of_its_own(tmp_path):
    text = GOOD.replace('b = { method = "B" }', 'b = { method = "A", settings = { metric = false } }')
    text = text.replace('a = { method = "A" }', 'a = { method = "A", settings = { metric = true } }')
    rows = pd.concat([frame(A=np.arange(4) / 7 + given).assign(metric=given) for given in (True, False)])
    (outcome,) = judge(one(tmp_path, text), rows).comparisons
    assert outcome.mean == pytest.approx(1)


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
        assert outcome.mean == pytest.approx(mean)
    beyond = judge(claim("higher", b={"experiment": "e", "metric": "curve[2]", "method": "A"}), rows)
    assert beyond.value == "not tested at this scale"


def test_the_numbers_in_words():
    rows = frame(A=[0.5] * 3, B=[0.512] * 3, C=[0.4] * 3)
    single, several = judge(claim("higher"), rows), judge(claim("higher", "higher"), rows)
    assert single.ours == "−1.2 [−1.2, −1.2] points"
    assert single.comparisons[0].interval == "−1.2 [−1.2, −1.2]"
    assert several.ours == "1 of 2 shown, from −1.2 to +10.0 points"
    assert judge(claim("higher", unit=""), rows).ours == "−0.012 [−0.012, −0.012]"
    assert judge(claim("higher", unit="degrees"), rows).ours.endswith("] degrees")
    assert [c.says for c in several.comparisons] == ["lower", "higher"]
    tied = judge(claim("higher"), frame(A=[0.5] * 3, B=[0.5] * 3))
    assert tied.comparisons[0].says == "no difference shown"


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
        {"claim": "A is above B", "the paper": "Fig. 1", "ours": "+10.0 [+10.0, +10.0] points", "seeds": "3",
         "verdict": "reproduced"},
    ]  # fmt: skip
    quick = verdict_table(path, "quick", results=tmp_path)
    assert quick.verdict.tolist() == ["not tested at this scale"]
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


@pytest.mark.parametrize("path", CLAIMS, ids=CLAIM_IDS)
def test_every_claim_of_the_book_is_decided_by_recorded_runs(path, monkeypatch):
    monkeypatch.delenv("WMLIB_RESULTS", raising=False)
    chapter = path.relative_to(ROOT / "book/claims").with_suffix("").as_posix()
    assert (ROOT / f"notebooks/{chapter}.py").exists(), f"{path} belongs to no chapter"
    table = verdict_table(chapter, "cpu")
    undecided = table[table.verdict.str.startswith("not tested")]
    assert undecided.empty, undecided.to_dict("records")


@pytest.mark.parametrize(("seeds", "one_in"), [(3, 8), (5, 13), (20, 30)])
def test_the_page_says_how_often_chance_alone_shows_a_difference(seeds, one_in):
    assert "once in eight times" in (text := (ROOT / "book/verdicts.md").read_text())
    assert "one time in\n  thirteen" in text
    assert "with twenty one in thirty" in text
    low, high = bootstrap_interval(np.random.default_rng(0).normal(size=(seeds, 8000)), resamples=2000)
    for wrong in (np.mean(low > 0), np.mean(high < 0)):
        assert wrong == pytest.approx(1 / one_in, rel=0.15)
