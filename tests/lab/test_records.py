"""Recorded lines: what was written is what is read, or the reader hears of it; rows carried to newer code; withdrawn rows."""

import functools
import json
import platform
import random
import re
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.lab import records
from wmlib.lab.fingerprints import fingerprint
from wmlib.lab.presets import Preset
from wmlib.lab.records import append_row, content_digest, leads_to, read_rows, standing_rows
from wmlib.lab.runs import recorded_runs
from wmlib.lab.verify import note_asked, unasked

RESULTS = Path(__file__).resolve().parents[2] / "book" / "results"
APART = ("equivalences.jsonl", "withdrawn.jsonl")
FILES = sorted(path for path in RESULTS.glob("*.jsonl") if path.name not in APART)


def test_the_manifest_seals_every_row_without_a_digest_of_its_own():
    sealed = records.manifest(RESULTS)
    found = {path.name: [content_digest(row) for row in read_rows(path) if "digest" not in row] for path in FILES}
    assert {name: digests for name, digests in found.items() if digests} == sealed
    assert sum(map(len, sealed.values())) == 1953


@functools.cache
def entries(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def noticed(path, rows):
    """What is said of a changed record file: "", where it still says the same."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = read_rows(path)
        except ValueError as error:
            return str(error)
    if found == rows:
        return ""
    assert found == rows[:-1]  # its last line has lost its end, and is passed over with a warning
    return str(said[0].message)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([path for path in FILES if path.stat().st_size < 70_000]), st.integers(0, 2**40), st.integers(0, 7)
)
def test_a_flipped_bit_in_a_sealed_row_is_found(path, at, bit):
    changed = bytearray(path.read_bytes())
    changed[at % len(changed)] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(RESULTS / "manifest.json", folder)
        (copy := Path(folder) / path.name).write_bytes(changed)
        said = noticed(copy, entries(path))
        assert not said or str(copy) in said


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(FILES), st.integers(0, 2**40), st.integers(0, 9))
def test_a_changed_digit_in_a_sealed_row_is_found_and_named(path, at, digit):
    text = path.read_bytes()
    places = [i for i, byte in enumerate(text) if chr(byte).isdigit()]
    place = places[at % len(places)]
    changed = text[:place] + str(digit).encode() + text[place + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(RESULTS / "manifest.json", folder)
        (copy := Path(folder) / path.name).write_bytes(changed)
        said = noticed(copy, entries(path))
        if said:
            line = text[:place].count(b"\n") + 1
            assert re.match(
                rf"(row|line) {line} of {copy} .*restore the file, or delete that line", said
            )  # else the row says what it said: a digit was written over by itself, or is beyond what a float holds


ROW = {
    "experiment": "e", "config": {"rate": 0.1, "name": "ß"}, "seed": 3, "preset": "cpu",
    "metrics": {"m": 0.25, "n": None}, "curves": {"c": [1e-300, 2.5]}, "seconds": 1.5,
    "processor": "a processor", "code": "0123456789abcdef", "data": "abc",
}  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**40), st.integers(0, 7))
def test_a_flipped_bit_in_a_row_with_a_digest_is_found(at, bit):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.jsonl"
        for seed in range(3):
            append_row(path, {**ROW, "seed": seed})
        whole = read_rows(path)
        changed = bytearray(path.read_bytes())
        changed[at % len(changed)] ^= 1 << bit
        path.write_bytes(changed)
        said = noticed(path, whole)
        assert not said or str(path) in said


def test_a_damaged_manifest_is_named(tmp_path):
    text = (RESULTS / "manifest.json").read_text()
    shutil.copy(FILES[0], tmp_path)
    for changed in (text.replace('"a', '"b', 1), text[:-10], "[]"):
        (tmp_path / "manifest.json").write_text(changed)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged .*; restore it from git"):
            read_rows(tmp_path / FILES[0].name)


# --------------------------------------------------------------------------------------------- equivalences


@settings(deadline=None, max_examples=60)
@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans())), st.integers(0, 6))
def test_lines_lead_as_far_as_they_go(pairs, start):
    row = {**ROW, "code": str(start)}
    lines = [{"from": str(a), "to": str(b), "rows": "all" if every else ["another"]} for a, b, every in sorted(pairs)]
    reach = np.eye(7, dtype=bool)
    for a, b, every in pairs:
        reach[a, b] |= every
    for _ in range(7):
        reach = reach | (reach.astype(int) @ reach.astype(int) > 0)
    assert leads_to(row, lines) == {str(i) for i in np.flatnonzero(reach[start])}
    named = [{**line, "rows": [content_digest(row)]} for line in lines]
    everywhere = [{**line, "rows": "all"} for line in lines]
    assert leads_to(row, named) == leads_to(row, everywhere)


def first(config, key):
    return {"metrics": {"y": config["x"]}, "data": "none"}


def second(config, key):
    return {"metrics": {"y": 2 * config["x"] / 2}, "data": "none"}


def third(config, key):
    raise AssertionError("run was called")


def equivalent(folder, old, new, **more):
    line = {"experiment": "e", "from": fingerprint(old), "to": fingerprint(new), "rows": "all"}
    append_row(folder / "equivalences.jsonl", {**line, "reason": "verified", "why": "a test", **more})


@pytest.mark.parametrize("preset", ["cpu", "quick"])
def test_a_row_that_is_carried_is_fresh_and_not_computed_again(preset, tmp_path, monkeypatch):
    monkeypatch.setenv("WMLIB_RERUN", "stale")
    scale = Preset(preset, 1)
    wm.sweep("e", first, {"x": [1, 2]}, scale, results=tmp_path)
    equivalent(tmp_path, first, second)
    equivalent(tmp_path, second, third)
    for run in (second, third):
        frame = wm.sweep("e", run, {"x": [1, 2]}, scale, results=tmp_path)
        assert not frame["stale"].any()
        assert frame["y"].tolist() == [1, 2]
    assert len(read_rows(tmp_path / "e.jsonl")) == 2
    assert not recorded_runs("e", preset, results=tmp_path)["stale"].any()


def test_what_is_not_carried_is_stale(tmp_path):
    wm.sweep("e", first, {"x": [1, 2]}, Preset("cpu", 1), results=tmp_path)
    one = read_rows(tmp_path / "e.jsonl")[0]
    equivalent(tmp_path, first, second, rows=[content_digest(one)])
    equivalent(tmp_path, first, second, experiment="another")
    equivalent(tmp_path, third, first)  # it leads the other way
    frame = wm.sweep("e", second, {"x": [1, 2]}, Preset("cpu", 1), results=tmp_path)
    assert frame["stale"].tolist() == [False, True]
    assert wm.sweep("e", third, {"x": [1, 2]}, Preset("cpu", 1), results=tmp_path)["stale"].all()


def test_a_row_of_newer_code_makes_only_those_stale_that_no_line_leads_to_it(tmp_path):
    wm.sweep("e", first, {"x": [1]}, Preset("cpu", 1), results=tmp_path)
    wm.sweep("e", second, {"x": [1, 2]}, Preset("cpu", 1), results=tmp_path)
    assert recorded_runs("e", "cpu", results=tmp_path)["stale"].tolist() == [True, False]
    equivalent(tmp_path, first, second)
    assert recorded_runs("e", "cpu", results=tmp_path)["stale"].tolist() == [False, False]


def test_a_half_written_equivalence_is_passed_over_and_a_damaged_one_is_named(tmp_path):
    wm.sweep("e", first, {"x": [1]}, Preset("cpu", 1), results=tmp_path)
    equivalent(tmp_path, first, second)
    equivalent(tmp_path, second, third)
    path = tmp_path / "equivalences.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.warns(UserWarning, match=r"equivalences\.jsonl ends in a half-written line"):
        assert len(records.equivalences(tmp_path, "e")) == 1
    equivalent(tmp_path, second, third)
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b"verified", b"Verified", 1))
    with pytest.raises(ValueError, match=r"line 1 of .*equivalences\.jsonl is damaged .*its content has the digest"):
        wm.sweep("e", second, {"x": [1]}, Preset("cpu", 1), results=tmp_path)


def test_every_recorded_equivalence_is_about_rows_that_are_there():
    lines = records.read_lines(RESULTS / "equivalences.jsonl", records._LINE)
    assert lines
    for line in lines:
        rows = read_rows(RESULTS / f"{line['experiment']}.jsonl")
        assert line["reason"] in ("moved", "verified", "replaced")
        assert line["rows"] == "all" or {*line["rows"]} <= {content_digest(row) for row in rows}
    replaced = [line for line in lines if line["reason"] == "replaced"]
    assert sum(len(line["rows"]) for line in replaced) == 412  # of 435; 23 were taken out since


# --------------------------------------------------------------------------------------------- withdrawn rows


def test_a_withdrawn_row_stays_in_its_file_and_counts_no_more(tmp_path):
    wm.sweep("e", first, {"x": [1, 2]}, Preset("cpu", 1), results=tmp_path)
    before = (tmp_path / "e.jsonl").read_bytes()
    row = read_rows(tmp_path / "e.jsonl")[1]
    records.withdraw(tmp_path, row, "its clock stood still")
    assert (tmp_path / "e.jsonl").read_bytes() == before
    assert [r["config"]["x"] for r in standing_rows(tmp_path / "e.jsonl")] == [1]
    assert recorded_runs("e", "cpu", results=tmp_path)["x"].tolist() == [1]
    with pytest.raises(LookupError, match="1 of 2 runs of 'e' are not recorded"):
        wm.sweep("e", first, {"x": [1, 2]}, Preset("cpu", 1), results=tmp_path, compute=False)
    # Computed anew it is another row, with another time, and stands.
    assert len(wm.sweep("e", first, {"x": [1, 2]}, Preset("cpu", 1), results=tmp_path)) == 2
    assert [r["config"]["x"] for r in standing_rows(tmp_path / "e.jsonl")] == [1, 2]


def test_withdrawn_rows_of_the_book_are_in_their_files_and_have_a_reason():
    for line in records.withdrawals(RESULTS):
        rows = {content_digest(row): row for row in read_rows(RESULTS / f"{line['experiment']}.jsonl")}
        assert rows[line["row"]]["config"] == line["config"]
        assert rows[line["row"]]["seed"] == line["seed"]
        assert len(line["reason"]) > 20


# --------------------------------------------------------------------------------------------- circumstances


def test_where_a_row_was_computed(tmp_path, monkeypatch):
    said = records.circumstances(tmp_path)
    assert said["device"].endswith("cores") or jax.devices()[0].platform != "cpu"
    assert said["commit"] is None  # no repository
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert records.circumstances(tmp_path)["threads"]["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("text", [None, "", "model name\n", "processor : 0\nmodel name : A B\n", "Hardware: x\n"])
def test_a_processor_without_a_name_is_unknown(text, monkeypatch):
    def read_text(path, **_):
        if text is None:
            raise PermissionError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert records.processor.__wrapped__() == ("A B" if text and "A B" in text else "unknown")


def test_a_commit_says_whether_its_files_have_changed(tmp_path):
    def git(*command):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True)

    of = records.commit.__wrapped__
    assert of(tmp_path) is None
    git("init", "-q")
    assert of(tmp_path) is None  # no commit yet
    (tmp_path / "book" / "results").mkdir(parents=True)
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "book" / "results" / "e.jsonl").write_text("")
    git("add", "-A")
    git("commit", "-qm", "first")
    head = of(tmp_path)
    assert len(head) == 12
    (tmp_path / "book" / "results" / "e.jsonl").write_text("{}\n")
    assert of(tmp_path) == of(tmp_path / "book") == head  # rows are what code writes
    (tmp_path / "code.py").write_text("2")
    assert of(tmp_path) == of(tmp_path / "book") == f"{head}+"


def test_content_digests_do_not_depend_on_the_order_of_keys():
    shuffled = [*ROW.items()]
    random.Random(0).shuffle(shuffled)
    assert content_digest(dict(shuffled)) == content_digest(ROW) == content_digest({**ROW, "digest": "x"})
    assert content_digest({**ROW, "seed": 4}) != content_digest(ROW)


def test_every_row_of_the_book_is_asked_for_by_a_chapter_or_withdrawn():
    idle = {path.stem: len(rows) for path in FILES if (rows := unasked(RESULTS, path.stem, "cpu"))}
    assert not idle, (
        "draw these rows, or withdraw them (wmlib.lab.records.withdraw); make verify lists what is asked for"
    )


def test_rows_that_no_chapter_asks_for_are_told(tmp_path):
    wm.sweep("e", first, {"x": [1, 2, 3]}, Preset("cpu", 1), results=tmp_path)
    runs = [records.identity({"x": x}, 0) for x in (1, 3)]
    note_asked(tmp_path, "a/chapter", "cpu", [{"experiment": "e", "runs": runs[:1]}, {"experiment": "e", "runs": runs}])
    (row,) = unasked(tmp_path, "e", "cpu")
    assert row["config"] == {"x": 2}
    records.withdraw(tmp_path, row, "nothing draws it")
    assert not unasked(tmp_path, "e", "cpu")
    note_asked(tmp_path, "a/chapter", "cpu", [{"experiment": "e", "runs": runs[:1]}])  # asked for no more
    assert [row["config"]["x"] for row in unasked(tmp_path, "e", "cpu")] == [3]


def _copied(tmp_path, *names):
    for name in ("manifest.json", *names):
        tmp_path.joinpath(name).write_bytes(RESULTS.joinpath(name).read_bytes())
    return tmp_path / names[0]


def _write(path, lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))


@pytest.mark.parametrize(
    "kind", ["of another experiment", "edited and signed", "deleted", "in a file that is not sealed"]
)
def test_a_row_that_is_not_where_it_belongs_is_named(kind, tmp_path):
    path = _copied(tmp_path, "forward_pass_cost.jsonl" if kind.startswith("in") else "sparsity_ticket.jsonl")
    first, *rest = lines = path.read_bytes().splitlines()
    says = "is damaged: it is of the experiment"
    if kind == "of another experiment":
        _write(path, [*lines, RESULTS.joinpath("forward_pass_cost.jsonl").read_bytes().splitlines()[0]])
    elif kind == "edited and signed":
        row = json.loads(first)
        row["seconds"] += 1
        row["digest"] = content_digest(row)
        _write(path, [json.dumps(row).encode(), *rest])
        says = "lacks 1 of the"
    elif kind == "deleted":
        _write(path, rest)
        says = "lacks 1 of the"
    else:
        row = {key: value for key, value in json.loads(first).items() if key not in ("digest", "processor")}
        _write(path, [json.dumps(row).encode(), *rest])
        says = "is not sealed in manifest.json"
    with pytest.raises(ValueError, match=says):
        read_rows(path)


def test_a_withdrawal_without_its_end_is_no_row_come_back(tmp_path):
    path = _copied(tmp_path, "metric_cost.jsonl", "withdrawn.jsonl")
    standing_rows(path)
    gone = tmp_path / "withdrawn.jsonl"
    gone.write_bytes(gone.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"line \d+ of .*withdrawn\.jsonl is damaged"):
        standing_rows(path)


def test_a_withdrawal_that_is_sealed_stands_without_its_line(tmp_path):
    path = _copied(tmp_path, "metric_cost.jsonl", "withdrawn.jsonl")
    before = standing_rows(path)
    assert len(before) < len(read_rows(path))
    records.withdraw(tmp_path, before[0], "to see it go")
    (tmp_path / "withdrawn.jsonl").write_bytes(b"")
    assert standing_rows(path) == before[1:]
    assert {line["row"] for line in records.withdrawals(RESULTS)} <= {
        *json.loads((tmp_path / "manifest.json").read_text())["withdrawn"]
    }
