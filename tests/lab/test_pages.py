"""The box of findings, and numbered tables."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy import stats

from wmlib.lab.pages import findings, interval, percent, table

FRAME = pd.DataFrame({"rate": [0.1, 0.3], "score": [40.0, 41.5]})


def test_the_box_has_the_sentence_the_numbers_and_what_to_read_before():
    shown = findings("It leads.", {"lead": "+1.0"}, before="{doc}`other`")
    assert shown._repr_markdown_() == shown
    head, *rest = shown.splitlines()
    assert head == ":::{admonition} What was found"
    assert rest == [":class: findings", "", "It leads.", "", "- lead: **+1.0**", "", "Read before: {doc}`other`", ":::"]


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_an_interval_is_that_of_a_t_test(values):
    said = interval(values, "points", spec="+.6f").replace("−", "-")
    mean, low, high = map(float, re.findall(r"[+-][\d.]+", said)[:3])
    assert mean == pytest.approx(np.mean(values), abs=1e-5)
    if np.ptp(values) > 1e-6:
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx(expected, rel=1e-6, abs=1e-5)
    assert said.endswith(f"points, n\u00a0=\u00a0{len(values)}")
    assert said.startswith(interval(values, spec="+.6f", count=False).replace("−", "-"))


def test_a_table_has_a_caption_and_a_name():
    shown = table(FRAME, "Scores\n by rate.", name="tab-rates", floatfmt=".1f")
    assert shown.startswith("~~~{table} Scores by rate.\n:name: tab-rates\n\n|")
    assert "0.1 |    40.0 |" in shown
    assert shown.endswith("\n~~~")
    assert "|   rate |" in shown.splitlines()[3]
    assert table(FRAME.set_index("rate"), "Scores.", name="tab-a").count("rate") == 1
    assert "\n:name: tab-a\n:class: verdicts\n\n|" in table(FRAME, "Scores.", name="tab-a", look="verdicts")


# The captions of CommonMark's own hard cases: code, fences, links, and mathematics.
@given(st.text("`~$\\\\[]{}*_ ab\n", min_size=1, max_size=40).filter(lambda text: text.strip()))
def test_a_table_is_one_directive_whatever_its_caption_says(caption):
    (token,) = MarkdownIt("commonmark").parse(table(FRAME, caption, name="tab-a"))
    assert token.type == "fence"
    assert re.match(r"\{table\} ", token.info)
    assert token.content.startswith(":name: tab-a\n\n|")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: findings(" "), "needs a sentence"),
        (lambda: findings("It.", dict.fromkeys("abcd", "1")), "at most three numbers"),
        (lambda: interval([1.0]), "two runs at least"),
        (lambda: interval([[1.0, 2.0]]), "two runs at least"),
        (lambda: table(FRAME[:0], "Scores.", name="tab-a"), "needs rows and a caption"),
        (lambda: table(FRAME, "", name="tab-a"), "needs rows and a caption"),
        (lambda: table(FRAME, "Scores.", name="fig-a"), 'the form "tab-rates"'),
    ],
)
def test_a_wrong_argument_is_refused_with_the_cure(call, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        call()


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=9))
def test_a_percentage_is_the_mean_and_half_of_the_interval(right):
    values = np.array(right) / 10
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean, other = (float(x) for x in percent(values / 100).split("\u00a0±\u00a0"))
    assert abs(mean - values.mean()) < 0.0501
    assert abs(other - half) < 0.0501


def test_a_percentage_of_one_run_has_no_interval_and_of_none_is_a_dash():
    assert percent([0.5]) == "50.0"
    assert percent([]) == percent([0.5, np.nan]) == "–"
    with pytest.raises(ValueError, match="one share for each run"):
        percent([[0.5]])
