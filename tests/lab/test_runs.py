"""Recorded sweeps: what is computed, when, what is kept, and what survives a kill at any moment."""

import ast
import contextlib
import copy
import dataclasses
import datetime
import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import equinox as eqx
import filelock
import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmlib as wm
from wmlib.lab import fingerprints, records, runs
from wmlib.lab.fingerprints import fingerprint
from wmlib.lab.presets import Preset
from wmlib.lab.runs import append_row, book_results, read_rows, recorded_runs

CPU = Preset("cpu", 2)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("WMLIB_PRESET", "WMLIB_RESULTS", "WMLIB_RERUN", "WMLIB_RECORDED_ONLY"):
        monkeypatch.delenv(name, raising=False)


NAMES = (f"experiment_{i}" for i in itertools.count())


def load(folder, source, name=None):
    """Import source text as a module of its own."""
    name = name or next(NAMES)
    path = Path(folder) / f"{name}.py"
    path.write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Counted:
    """A run function, and the calls it got."""

    def __init__(self, function):
        self.calls = []

        @functools.wraps(function)
        def run(config, key):
            self.calls.append((config, key))
            return function(config, key)

        self.run = run


def square(config, key):
    noise = float(jax.random.normal(key))
    return {
        "metrics": {"y": config["x"] ** 2 + noise, "n": np.int64(3)},
        "curves": {"loss": np.array([1.0, 0.5], np.float32)},
        "data": "abc",
    }


def without_time(path):
    """The rows of a record, as sorted text, without when they were computed and how long they took."""
    left_out = ("seconds", "time", "digest")
    return sorted(
        json.dumps({k: v for k, v in row.items() if k not in left_out}, sort_keys=True) for row in read_rows(path)
    )


# --------------------------------------------------------------------------------------------- presets


def test_a_preset_is_chosen_by_the_environment(monkeypatch):
    scales = dict(quick=dict(seeds=1, epochs=2), cpu=dict(seeds=5, epochs=20))
    chosen = wm.preset(**scales)
    assert (chosen.name, chosen.seeds, chosen.epochs) == ("cpu", 5, 20)
    assert scales["cpu"]["seeds"] == 5  # what was given is left as it was
    monkeypatch.setenv("WMLIB_PRESET", "quick")
    assert wm.preset(**scales).epochs == 2
    monkeypatch.setenv("WMLIB_PRESET", "paper")
    with pytest.raises(ValueError, match="WMLIB_PRESET is 'paper'; this experiment has quick, cpu"):
        wm.preset(**scales)
    with pytest.raises(ValueError, match=r"named quick, cpu, paper, got \['fast'\]"):
        wm.preset(fast=dict(seeds=1))
    with pytest.raises(ValueError, match="got none"):
        wm.preset()


@pytest.mark.parametrize("seeds", [None, 0, -1, 2.0, True, "3"])
def test_seeds_must_be_a_positive_whole_number(seeds):
    given = {} if seeds is None else {"seeds": seeds}
    with pytest.raises(ValueError, match=rf"'cpu' needs seeds, a whole number of at least 1, got {seeds!r}"):
        wm.preset(cpu=given)


def test_replacing_seeds_by_none_is_refused():
    assert dataclasses.replace(CPU, seeds=1).seeds == 1
    with pytest.raises(ValueError, match="needs seeds"):
        dataclasses.replace(CPU, seeds=0)


def test_an_unknown_setting_names_what_there_is():
    with pytest.raises(AttributeError, match="no setting 'epoch'; it has name, seeds, epochs, widths"):
        _ = Preset("cpu", 1, {"epochs": 2, "widths": [8]}).epoch


def test_a_preset_can_be_copied_and_pickled():
    scale = Preset("cpu", 5, {"epochs": 2})
    for same in (copy.copy(scale), copy.deepcopy(scale), pickle.loads(pickle.dumps(scale)), dataclasses.replace(scale)):
        assert same == scale
        assert same.epochs == 2


# --------------------------------------------------------------------------------------------- what is computed


def test_each_run_is_computed_once_and_read_ever_after(tmp_path):
    counted = Counted(square)
    grid = [{"x": 3, "tag": "b"}, {"x": 1, "tag": "a"}]
    first = wm.sweep("squares", counted.run, grid, CPU, results=tmp_path / "new")
    # Seed by seed, so that a sweep that is stopped is a complete one of fewer seeds.
    assert [(config, int(jax.random.key_data(key)[-1])) for config, key in counted.calls] == [
        (grid[0], 0),
        (grid[1], 0),
        (grid[0], 1),
        (grid[1], 1),
    ]
    # The frame: in the order of the grid, then of the seeds.
    assert first[["x", "tag", "seed"]].to_numpy().tolist() == [[3, "b", 0], [3, "b", 1], [1, "a", 0], [1, "a", 1]]
    assert first.columns.tolist() == ["x", "tag", "y", "n", "loss", "seed", "seconds", "device", "data", "stale"]
    noise = [float(jax.random.normal(jax.random.key(seed))) for seed in (0, 1)]
    assert first["y"].tolist() == [9 + noise[0], 9 + noise[1], 1 + noise[0], 1 + noise[1]]
    assert first["loss"].tolist() == [[1.0, 0.5]] * 4
    assert not first["stale"].any()

    pd.testing.assert_frame_equal(wm.sweep("squares", counted.run, grid, CPU, results=tmp_path / "new"), first)
    assert len(counted.calls) == 4
    # More seeds and configurations compute what is new; fewer, nothing.
    more = wm.sweep("squares", counted.run, [*grid, {"x": 0, "tag": "c"}], Preset("cpu", 3), results=tmp_path / "new")
    assert (len(more), len(counted.calls)) == (9, 9)
    one = wm.sweep("squares", counted.run, grid[1:], Preset("cpu", 1), results=tmp_path / "new")
    assert (one["y"].tolist(), len(counted.calls)) == ([1 + noise[0]], 9)
    # The order of the keys in a configuration does not matter.
    wm.sweep("squares", counted.run, [{"tag": "b", "x": 3}], CPU, results=tmp_path / "new")
    assert len(counted.calls) == 9


def test_what_a_row_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("WMLIB_RESULTS", str(tmp_path))
    wm.sweep("squares", square, [{"x": 2}], Preset("cpu", 1))
    (row,) = read_rows(tmp_path / "squares.jsonl")
    assert row.pop("seconds") >= 0
    versions = {"python", "jax", "jaxlib", "equinox", "optax", "quax", "numpy", "wmlib"}
    assert versions <= row["versions"].keys() <= versions | {"scipy", "lineax", "diffrax", "datasets", "transformers"}
    assert all(name in sys.modules for name in row.pop("versions").keys() - {"python"})
    assert row.pop("device")
    assert row.pop("processor")
    assert row.pop("threads")["cores"] == len(os.sched_getaffinity(0))
    assert abs(datetime.datetime.fromisoformat(row.pop("time")).timestamp() - time.time()) < 60
    assert row.pop("digest") == records.content_digest(json.loads((tmp_path / "squares.jsonl").read_text()))
    assert re.fullmatch(r"[0-9a-f]{12}\+?", row.pop("commit") or "0" * 12)
    assert row == {
        "experiment": "squares",
        "config": {"x": 2},
        "seed": 0,
        "preset": "cpu",
        "metrics": {"y": 4 + float(jax.random.normal(jax.random.key(0))), "n": 3},
        "curves": {"loss": [1.0, 0.5]},
        "data": "abc",
        "code": fingerprint(square),
    }


def test_a_run_cannot_change_its_configuration(tmp_path):
    def run(config, key):
        config["widths"].append(0)
        return {"metrics": {"n": len(config.pop("widths"))}, "data": "none"}

    frame = wm.sweep("spoiled", run, [{"widths": [1]}], CPU, results=tmp_path)
    assert frame[["widths", "n"]].to_numpy().tolist() == [[[1], 2]] * 2


def test_one_mapping_of_lists_stands_for_all_combinations(tmp_path):
    def run(config, key):
        return {"metrics": {"z": config["x"] * config["y"]}, "data": "none"}

    frame = wm.sweep("table", run, {"x": [1, 2], "y": [10, 20, 30]}, Preset("cpu", 1), results=tmp_path)
    assert frame["z"].tolist() == [10, 20, 30, 20, 40, 60]


def test_rows_of_another_preset_are_passed_over(tmp_path):
    counted = Counted(square)
    for scale in (CPU, Preset("paper", 2), Preset("quick", 2), CPU):
        wm.sweep("squares", counted.run, [{"x": 1}], scale, results=tmp_path)
    assert len(counted.calls) == 6
    assert [row["preset"] for row in read_rows(tmp_path / "squares.jsonl")] == ["cpu"] * 2 + ["paper"] * 2 + [
        "quick"
    ] * 2


def test_results_not_finite_are_null_on_disk_and_nan_in_the_frame(tmp_path):
    def run(config, key):
        return {
            "metrics": {"a": np.float32("nan"), "b": float("inf")},
            "curves": {"c": [1.0, float("nan")]},
            "data": "none",
        }

    frame = wm.sweep("broken", run, [{"x": 1}], Preset("cpu", 1), results=tmp_path)
    assert "NaN" not in (tmp_path / "broken.jsonl").read_text()
    assert "Infinity" not in (tmp_path / "broken.jsonl").read_text()
    assert np.isnan(frame["a"].mean())
    assert np.isnan(frame["b"].mean())
    assert frame["c"].tolist() == [[1.0, None]]


def test_rows_from_elsewhere_with_nan_and_without_newer_entries_are_read(tmp_path):
    row = dict(experiment="old", config={"x": 1}, seed=0, preset="cpu", metrics={"y": float("nan")}, curves={})
    (tmp_path / "old.jsonl").write_text(json.dumps(row | {"seconds": 1.0, "code": "?"}) + "\n\n")
    frame = wm.sweep("old", square, [{"x": 1}], Preset("cpu", 1), results=tmp_path)
    assert np.isnan(frame["y"][0])
    assert frame["stale"].tolist() == [True]


class Jobs:
    """An executor as submitit's: what it gives back can say done(), result() and cancel(), and is no future."""

    class Job:
        def __init__(self, call):
            self.call = call

        def done(self):
            return True

        def result(self):
            return self.call()

        def cancel(self):
            pass

    def submit(self, function, *arguments):
        return self.Job(functools.partial(function, *arguments))


@pytest.mark.parametrize("kind", ["threads", "processes", "jobs"])
def test_executors(kind, tmp_path, monkeypatch):
    source = """
        import os
        def run(config, key):
            return {"metrics": {"y": config["x"] ** 2, "process": os.getpid()}, "data": "none"}
    """
    name = next(NAMES)
    module = load(tmp_path, source, name)
    monkeypatch.syspath_prepend(tmp_path)
    executor, held = Jobs(), contextlib.nullcontext()
    if kind == "threads":
        executor = held = ThreadPoolExecutor(3)
    elif kind == "processes":
        executor = held = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with held:
        frame = wm.sweep("spread", module.run, {"x": [3, 1, 2]}, CPU, results=tmp_path, executor=executor)
    assert frame["y"].tolist() == [9, 9, 1, 1, 4, 4]
    assert (frame["process"] == os.getpid()).all() == (kind != "processes")
    assert len(read_rows(tmp_path / "spread.jsonl")) == 6


def test_all_seeds_of_a_configuration_at_once_give_the_rows_of_one_by_one(tmp_path):
    def draw(config, key):
        return {"metrics": {"y": jax.random.normal(key) * config["x"]}, "data": "none"}

    def draw_together(config, keys):
        calls.append((config["x"], len(keys)))
        return [{"metrics": {"y": y}, "data": "none"} for y in jax.vmap(jax.random.normal)(keys) * config["x"]]

    calls, grid = [], {"x": [3.0, 1.0]}
    alone = wm.sweep("alone", draw, grid, Preset("cpu", 4), results=tmp_path)
    wm.sweep("many", draw_together, {"x": [3.0]}, Preset("cpu", 1), results=tmp_path, together=True)
    with ThreadPoolExecutor(2) as executor:
        many = wm.sweep(
            "many", draw_together, grid, Preset("cpu", 4), results=tmp_path, together=True, executor=executor
        )
    assert many[["x", "seed", "y"]].equals(alone[["x", "seed", "y"]])
    assert sorted(calls) == [(1.0, 4), (3.0, 1), (3.0, 3)]
    assert len(read_rows(tmp_path / "many.jsonl")) == 8


@pytest.mark.parametrize("results", [{"metrics": {}}, [{"metrics": {}}], None])
def test_as_many_results_as_seeds_are_wanted(tmp_path, results):
    with pytest.raises(ValueError, match="must return 2 results, one for each key"):
        wm.sweep("few", lambda config, keys: results, [{}], CPU, results=tmp_path, together=True)


# --------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("threads", [0, 1])
def test_an_exception_is_passed_on_and_earlier_rows_stay(tmp_path, threads):
    calls, broken = [], [True]

    def run(config, key):
        calls.append(config["x"])
        if config["x"] == 2 and broken:
            raise RuntimeError("out of paper")
        if config["x"] > 2 and broken:
            time.sleep(0.3)
        return {"metrics": {"y": config["x"]}, "data": "none"}

    def sweep(executor=None):
        return wm.sweep(
            "fragile", run, {"x": [0, 1, 2, 3, 4, 5]}, Preset("cpu", 1), results=tmp_path, executor=executor
        )

    with ThreadPoolExecutor(1) as executor, pytest.raises(RuntimeError, match="out of paper"):
        sweep(executor if threads else None)
    kept = [row["config"]["x"] for row in read_rows(tmp_path / "fragile.jsonl")]
    assert kept[:2] == [0, 1]
    assert len(calls) <= 5  # a worker may have begun the next one or two
    broken.clear()
    assert sweep()["y"].tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(calls) == [0, 1, 2, 2, 3, 4, 5]


@pytest.mark.parametrize("result", [None, 0.5, {"accuracy": 0.5}, {"metrics": 0.5}])
def test_a_run_that_returns_something_else(tmp_path, result):
    def run(config, key):
        return result

    with pytest.raises(ValueError, match="run must return a mapping with 'metrics', numbers by name, got"):
        wm.sweep("wrong", run, [{"x": 1}], CPU, results=tmp_path)
    assert not read_rows(tmp_path / "wrong.jsonl")


@pytest.mark.parametrize("data", [{}, {"data": None}, {"data": ""}, {"data": 3}])
def test_a_run_that_does_not_say_what_its_data_are(tmp_path, data):
    with pytest.raises(ValueError, match=r"run must return 'data'.*fingerprint of load_dataset.*'synthetic: <how"):
        wm.sweep("wrong", lambda config, key: {"metrics": {"y": 1.0}, **data}, [{"x": 1}], CPU, results=tmp_path)
    assert not read_rows(tmp_path / "wrong.jsonl")


@pytest.mark.parametrize("name", ["seed", "seconds", "device", "data", "stale"])
@pytest.mark.parametrize("part", ["metrics", "curves"])
def test_a_metric_or_curve_called_like_a_column_is_never_hidden_by_it(tmp_path, name, part):
    result = {"metrics": {"y": 1.0}, "curves": {}, "data": "none"}
    result[part] = {name: [7.0] if part == "curves" else 7.0}
    with pytest.raises(ValueError, match=f"{name} names a column of its own; call the metric or curve"):
        wm.sweep("wrong", lambda config, key: result, [{"x": 1}], CPU, results=tmp_path)
    assert not read_rows(tmp_path / "wrong.jsonl")


def test_seeds_of_one_setting_on_different_data_are_never_mixed(tmp_path):
    data = {0: "one", 1: "one", 2: "another"}

    def run(config, key):
        return {"metrics": {"y": 1.0}, "data": data[int(jax.random.key_data(key)[-1])]}

    two, three = (dataclasses.replace(CPU, seeds=n) for n in (2, 3))
    assert len(wm.sweep("mixed", run, [{"x": 1}], two, results=tmp_path)) == 2
    with pytest.raises(ValueError, match=r"seeds of 'mixed' at \{'x': 1\} were .* different data \(another; one\)"):
        wm.sweep("mixed", run, [{"x": 1}], three, results=tmp_path)
    assert len(read_rows(tmp_path / "mixed.jsonl")) == 3  # nothing that was computed is lost
    data[0] = "another"
    wm.sweep("mixed", run, [{"x": 2}], dataclasses.replace(CPU, seeds=1), results=tmp_path)  # two settings may differ


@pytest.mark.parametrize(("value", "may"), [("0", True), ("", True), ("1", False), ("yes", False)])
def test_recorded_only_is_off_where_it_says_so(tmp_path, monkeypatch, value, may):
    monkeypatch.setenv("WMLIB_RECORDED_ONLY", value)
    if may:
        assert len(wm.sweep("square", square, [{"x": 1}], CPU, results=tmp_path)) == CPU.seeds
    else:
        with pytest.raises(LookupError, match="not recorded"):
            wm.sweep("square", square, [{"x": 1}], CPU, results=tmp_path)


def test_a_lambda_that_is_a_part_of_a_statement_is_answered_by_the_cure(tmp_path):
    # fmt: off
    try: run = lambda config, key: {"metrics": {"y": 1.0}, "data": "none"}  # noqa: E701, E731
    finally: pass  # noqa: E701
    # fmt: on
    with pytest.raises(ValueError, match="cannot be followed; give a function that def makes"):
        fingerprint(run)


def never(config, key):
    raise AssertionError("run was called")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "the grid is empty"),
        ({"x": []}, "the grid is empty"),
        ([{"x": 1}, {"y": 2}, {"x": 1}], r"\{'x': 1\} occurs twice"),
        ([{"x": (1, 2)}], r"made of JSON values .*got \{'x': \(1, 2\)\}: it does not survive"),
        ([{"x": np.float32(1)}], "made of JSON values"),
        ([{"x": float("nan")}], "made of JSON values"),
        ([{"x": never}], "made of JSON values"),
        ([{"seed": 3}], "seed names a column of its own"),
        ({"method": "film", "x": [1]}, r"holds lists, got \{'method': 'film'\}; write \[value\]"),
    ],
)
def test_wrong_grids(tmp_path, grid, message):
    with pytest.raises(ValueError, match=message):
        wm.sweep("wrong", never, grid, CPU, results=tmp_path)


def test_the_recorded_runs_of_the_book_are_found_wherever_sweep_is_told_to_look(tmp_path, monkeypatch):
    monkeypatch.setenv("WMLIB_RESULTS", str(tmp_path))
    assert recorded_runs("continual", "cpu").empty
    assert not recorded_runs("continual", "cpu", results=book_results()).empty


def test_recorded_runs_are_read_without_the_code_that_made_them(tmp_path):
    row = {"experiment": "e", "config": {"x": 1}, "seed": 0, "preset": "cpu", "metrics": {"m": 0.5, "n": None}}
    row |= {"curves": {"loss": [2, 1]}, "seconds": 1.0, "device": "cpu", "data": None, "code": "old"}
    new = {**row, "metrics": {"m": 0.7, "n": 1.0}, "code": "new"}
    for written in (row, row | {"seed": 1}, new, row | {"preset": "quick"}):
        append_row(tmp_path / "e.jsonl", written)
    frame = recorded_runs("e", "cpu", results=tmp_path)
    assert frame[["x", "seed", "m", "stale"]].to_numpy().tolist() == [[1, 0, 0.7, False], [1, 1, 0.5, True]]
    assert math.isnan(frame.n[1])
    assert frame.loss[0] == [2, 1]
    nothing = recorded_runs("other", "cpu", results=tmp_path)
    assert len(nothing) == 0
    assert "seed" in nothing


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_computed(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(
            OSError, match=r"cannot be written to .*nothing was computed\. Make the folder writable or name"
        ):
            wm.sweep("nowhere", never, [{"x": 1}], CPU, results=folder)


def test_a_folder_that_vanishes_meanwhile(tmp_path):
    def run(config, key):
        if config["x"] == 1:
            for path in sorted((tmp_path / "r").rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            (tmp_path / "r").rmdir()
        return {"metrics": {"y": config["x"]}, "data": "none"}

    with pytest.raises(LookupError, match=r"1 rows of 'gone' vanished from .*start it again"):
        wm.sweep("gone", run, {"x": [0, 1, 2]}, Preset("cpu", 1), results=tmp_path / "r")
    assert [row["config"]["x"] for row in read_rows(tmp_path / "r" / "gone.jsonl")] == [1, 2]


def test_where_only_recorded_rows_may_be_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("WMLIB_RECORDED_ONLY", "1")
    with pytest.raises(LookupError) as error:
        wm.sweep("squares", never, {"x": [1, 2]}, CPU, results=tmp_path)
    assert "4 of 4 runs of 'squares' are not recorded at the preset 'cpu'" in str(error.value)
    assert "make rerun CHAPTER=<the chapter> PRESET=cpu" in str(error.value)
    assert not isinstance(error.value, KeyError)  # which would show its message in quotes
    assert not list(tmp_path.iterdir())
    # The preset quick still computes; and compute= decides.
    wm.sweep("squares", square, [{"x": 1}], Preset("quick", 1), results=tmp_path)
    frame = wm.sweep("squares", square, [{"x": 1}], CPU, results=tmp_path, compute=True)
    pd.testing.assert_frame_equal(wm.sweep("squares", square, [{"x": 1}], CPU, results=tmp_path), frame)
    monkeypatch.delenv("WMLIB_RECORDED_ONLY")
    with pytest.raises(LookupError, match="2 of 4 runs"):
        wm.sweep("squares", never, {"x": [1, 2]}, CPU, results=tmp_path, compute=False)


# --------------------------------------------------------------------------------------------- changed code


@pytest.fixture
def versions(tmp_path):
    """Two versions of one experiment."""
    source = """
        def run(config, key):
            return {{"metrics": {{"y": config["x"] + {shift}}}, "data": "none"}}
    """
    return [load(tmp_path, source.format(shift=shift)).run for shift in (10, 20)]


def test_changed_code_is_shown_as_stale_and_computed_again_when_asked(versions, tmp_path, monkeypatch):
    old, new = versions
    wm.sweep("changing", old, {"x": [1, 2]}, Preset("cpu", 1), results=tmp_path)
    frame = wm.sweep("changing", new, {"x": [1, 2, 3]}, Preset("cpu", 1), results=tmp_path)
    assert frame["y"].tolist() == [11, 12, 23]
    assert frame["stale"].tolist() == [True, True, False]
    monkeypatch.setenv("WMLIB_RERUN", "stale")
    frame = wm.sweep("changing", new, {"x": [1, 2, 3]}, Preset("cpu", 1), results=tmp_path)
    assert frame["y"].tolist() == [21, 22, 23]
    assert not frame["stale"].any()
    monkeypatch.delenv("WMLIB_RERUN")
    pd.testing.assert_frame_equal(
        wm.sweep("changing", new, {"x": [1, 2, 3]}, Preset("cpu", 1), results=tmp_path), frame
    )
    # The old code again: its own rows, wherever they are in the file.
    frame = wm.sweep("changing", old, {"x": [1, 2, 3]}, Preset("cpu", 1), results=tmp_path)
    assert frame["y"].tolist() == [11, 12, 23]
    assert frame["stale"].tolist() == [False, False, True]


def test_the_quick_preset_computes_again_whenever_the_code_has_changed(versions, tmp_path):
    old, new = map(Counted, versions)
    for counted, shift in ((old, 10), (new, 20), (old, 10), (new, 20)):
        frame = wm.sweep("changing", counted.run, {"x": [1, 2]}, Preset("quick", 1), results=tmp_path)
        assert frame["y"].tolist() == [1 + shift, 2 + shift]
        assert not frame["stale"].any()
    assert len(old.calls) == len(new.calls) == 2


# --------------------------------------------------------------------------------------------- the record


def test_rows_are_synced_to_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_size), fsync(file)))
    wm.sweep("squares", square, [{"x": 1}], CPU, results=tmp_path)
    # Each after its row was handed over whole.
    lines = (tmp_path / "squares.jsonl").read_bytes().splitlines(keepends=True)
    assert synced == [len(lines[0]), len(lines[0]) + len(lines[1])]


def tenfold(config, key):
    return {"metrics": {"y": 10 * config["x"], "ß": "ü"}, "curves": {"c": [0.1, 1e-300]}, "data": "none"}


@functools.cache
def undisturbed():
    with tempfile.TemporaryDirectory() as folder:
        wm.sweep("cut", tenfold, {"x": [1, 2]}, CPU, results=folder)
        path = Path(folder) / "cut.jsonl"
        return path.read_bytes(), without_time(path)


@pytest.mark.thorough
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**20), st.sampled_from([b"", b"\x00\x00\x00"]))
def test_a_record_cut_at_any_byte_is_made_whole(at, tail):
    whole, rows = undisturbed()
    at %= len(whole)
    rest = whole[:at] + tail
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.jsonl"
        path.write_bytes(rest)
        last = rest.rpartition(b"\n")[2]
        missing = [r for r in whole.splitlines() if r not in rest.split(b"\n")]
        counted = Counted(tenfold)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            wm.sweep("cut", counted.run, {"x": [1, 2]}, CPU, results=folder)
        # It says so, unless the cut fell between two rows or took nothing but the end of a line.
        half_written = bool(last) and last not in whole.splitlines()
        assert {str(w.message) for w in said} == (
            {f"{path} ends in a half-written line, which is left out; its run is missing"} if half_written else set()
        )
        assert len(counted.calls) == len(missing)
        assert without_time(path) == rows
        assert path.read_bytes().startswith(whole[: whole.rfind(b"\n", 0, at) + 1])


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "squares.jsonl"
    wm.sweep("squares", square, {"x": [1, 2]}, CPU, results=tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    for damaged in ("{half\n", '{"experiment": "squares"}\n', "[1]\n", "3\n"):
        path.write_text("".join([lines[0], damaged, *lines[2:]]))
        with pytest.raises(ValueError, match=r"line 2 of .*squares\.jsonl is damaged .*restore the file, or delete"):
            wm.sweep("squares", never, {"x": [1, 2]}, CPU, results=tmp_path)
    path.write_text("".join([lines[0], *lines[2:]]))  # as the message says
    assert len(wm.sweep("squares", square, {"x": [1, 2]}, CPU, results=tmp_path)) == 4


def append_many(path, who, count):
    for i in range(count):
        append_row(path, {"who": who, "i": i, "text": "x" * (1 + 997 * i % 20_000)})


def test_rows_appended_by_several_processes_and_threads_are_whole(tmp_path):
    path = tmp_path / "new" / "many.jsonl"
    script = (
        "import sys; from wmlib.lab.runs import append_row\n" + inspect.getsource(append_many)
        + "append_many(sys.argv[1], sys.argv[2], 40)"
    )  # fmt: skip
    others = [subprocess.Popen([sys.executable, "-c", script, str(path), who]) for who in "ab"]
    threads = [threading.Thread(target=append_many, args=(path, who, 40)) for who in "cd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait() for other in others] == [0, 0]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 160
    for who in "abcd":
        assert [row["i"] for row in rows if row["who"] == who] == list(range(40))


# --------------------------------------------------------------------------------------------- killed sweeps

EXPERIMENT = """
    import os, sys, time
    from pathlib import Path
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    import wmlib as wm

    @eqx.filter_jit
    def step(net, state, x, y):
        def loss(net):
            return jnp.square(jax.vmap(net)(x)[:, 0] - y).mean()
        value, gradient = eqx.filter_value_and_grad(loss)(net)
        updates, state = optax.sgd(0.05, momentum=0.9).update(gradient, state)
        return eqx.apply_updates(net, updates), state, value

    def run(config, key):
        with open(os.environ["LOG"], "a") as log:
            log.write(f"{os.getpid()}\\n")
        of_net, of_data = jax.random.split(key)
        net = eqx.nn.MLP(4, 1, config["width"], 2, key=of_net)
        state = optax.sgd(0.05, momentum=0.9).init(eqx.filter(net, eqx.is_inexact_array))
        x = jax.random.normal(of_data, (64, 4))
        start, losses = time.monotonic(), []
        for _ in range(30):
            net, state, value = step(net, state, x, jnp.sin(x[:, 0]))
            losses.append(value)
        time.sleep(max(0, 0.2 - (time.monotonic() - start)))
        return {"metrics": {"loss": losses[-1]}, "curves": {"loss_curve": losses}, "data": "none"}

    if __name__ == "__main__":
        scale = wm.preset(cpu=dict(seeds=4))
        ready = Path(os.environ["LOG"]).with_suffix(".ready") / str(os.getpid())
        ready.parent.mkdir(exist_ok=True)
        ready.touch()
        while len(list(ready.parent.iterdir())) < int(os.environ["TOGETHER"]):
            time.sleep(0.01)
        wm.sweep("training", run, {"width": [8, 16]}, scale)
"""


def start(folder, script, together=1):
    """The experiment in a process of its own, with `folder` for its results."""
    log = folder / "log"
    environment = {**os.environ, "WMLIB_RESULTS": str(folder), "LOG": str(log), "TOGETHER": str(together)}
    return subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.processes
def test_a_sweep_killed_again_and_again_gives_the_rows_of_an_undisturbed_one(tmp_path):
    (script := tmp_path / "experiment.py").write_text(textwrap.dedent(EXPERIMENT))
    alone, killed, shared = (tmp_path / name for name in ("alone", "killed", "shared"))
    for folder in (alone, killed, shared):
        folder.mkdir()
        (folder / "log").touch()
    assert start(alone, script).wait() == 0
    expected = without_time(alone / "training.jsonl")
    assert len(expected) == 8

    # Killed at any moment of the first run that it begins, of the second, or between two runs.
    moments, kills = random.Random(0), 0
    for kills in range(5):
        process = start(killed, script)
        while process.poll() is None and (killed / "log").read_text().split().count(str(process.pid)) < 1 + kills % 2:
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0, 0.4))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert kills > 1
    assert read_rows(killed / "training.jsonl")
    assert start(killed, script).wait() == 0
    assert without_time(killed / "training.jsonl") == expected

    # Two at once share the work.
    processes = [start(shared, script, together=2) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert without_time(shared / "training.jsonl") == expected
    computed = (shared / "log").read_text().split()
    assert len(computed) == 8
    assert set(computed) == {str(process.pid) for process in processes}


def test_of_runs_that_others_compute_each_is_taken_over_as_soon_as_it_is_free(tmp_path, monkeypatch):
    """To wait for one of them would leave another whose process has died."""
    monkeypatch.setattr(runs, "_POLL", 0.02)
    order = []

    def claim(x):
        unit = f"e{records.identity({'x': x}, 0)}"
        name = hashlib.sha256(unit.encode()).hexdigest()[:16]
        return filelock.FileLock(tmp_path / ".claims" / name, thread_local=False)

    def run(config, key):
        order.append(config["x"])
        if config["x"] == 1:  # the process that had the first run ends only now
            held[0].release()
        return {"metrics": {}, "data": "none"}

    (tmp_path / ".claims").mkdir()
    held = [claim(0), claim(1)]
    for lock in held:
        lock.acquire()
    end = threading.Timer(0.2, held[1].release)
    end.start()
    wm.sweep("e", run, {"x": [0, 1, 2]}, Preset("cpu", 1), results=tmp_path)
    assert order == [2, 1, 0]


# --------------------------------------------------------------------------------------------- fingerprints

CODE = '''
    """An experiment."""
    from functools import cache

    import equinox as eqx
    import jax.numpy as jnp
    import wmlib as wm

    STEPS = 3
    METHODS = {"plain": None, "line": wm.Line}


    def helper(x: float) -> float:
        """Add."""
        if x < 0:
            raise ValueError(f"{x} is negative")
        return x + STEPS


    class Net(eqx.Module):
        weight: float

        def __call__(self, x):
            # A product.
            return self.weight * helper(x)


    @cache
    def shape():
        return wm.Ellipse().size


    @eqx.filter_jit
    def run(config, key):
        y = Net(2.0)(config["x"]) * shape() + len(METHODS)
        return {"metrics": {"y": y}, "data": "none"}
'''


def test_layout_and_messages_do_not_count(tmp_path):
    digest = fingerprint(load(tmp_path, CODE).run)
    for old, new in [
        ("# A product.", "# Something else\n\n"),
        ('"""Add."""', '"""Add a constant to `x`."""'),
        ('        """Add."""\n', ""),
        ("x: float) -> float", "x)"),
        ("is negative", "is less than zero"),
        ("if x < 0:", "if x < 1:"),
        ("return x + STEPS", "return (\n            x\n            + STEPS)"),
        ('"x"', "'x'"),
        ('"""An experiment."""', "UNUSED = 7"),
    ]:
        assert CODE.count(old) == 1
        assert fingerprint(load(tmp_path, CODE.replace(old, new)).run) == digest, new


REFUSAL = """if x < 0:
        raise ValueError(f"{x} is negative")
    return"""


@pytest.mark.parametrize(
    ("refusal", "counts"),
    [  # what stands in place of "if x < 0: raise …; return"
        ("return", False),
        ("if x < 0:\n        raise TypeError('no')\n    return", False),
        ("if x < 0:\n        words = f'{x}'\n        raise ValueError(words)\n    return", False),
        ("if x < 0:\n        raise ValueError\n    return", True),  # not as refusals are written
        ("if x < 0:\n        raise ValueError('a')\n    elif x > 9:\n        raise ValueError('b')\n    return", False),
        ("for y in (1, 2):\n        if x < y:\n            raise ValueError('no')\n    return", False),
        ("assert x == x\n    return", False),
        ("check_number(x)\n    return", False),
        ("wm.lab.refuse_words(x)\n    return", False),
        ("if x > 9:\n        _check(x)\n    return", False),
        ("x = check_number(x)\n    return", True),  # its value is used
        ("checked(x)\n    return", True),
        ("if x < 0:\n        raise FloatingPointError('diverged')\n    return", True),  # a chapter may catch it
        ("if x < 0:\n        x = 1\n    return", True),
        ("if x < 0:\n        raise ValueError('a')\n    else:\n        x = 1\n    return", True),
        ("if (x := abs(x)) > 9:\n        raise ValueError('a')\n    return", True),
        ("for x in (1, 2):\n        x = x + 1\n    return", True),
        ("if x < 0:\n        if x < -9:\n            return 1\n        raise ValueError('a')\n    return", True),
        ("if x < 0:\n        [x].clear()\n        raise ValueError('a')\n    return", True),
        ("if [x].pop() < 0:\n        raise ValueError('a')\n    return", True),
        ("if {}.setdefault(1, x) < 0:\n        raise ValueError('a')\n    return", True),
        ("for _ in helper(x):\n        pass\n    return", True),
        ("if helper(x):\n        pass\n    return", True),
        ("if helper(x):\n        check_number(x)\n    return", False),
        ("for y in iter([x]):\n        check_number(y)\n    return", False),
        ("while [x].pop():\n        check_number(x)\n    return", True),
        ("match x:\n        case 5:\n            check_number(x)\n    return", True),
        ("subprocess.check_call(x)\n    return", True),
        ("check_number([x].pop())\n    return", True),
        ("self.check(x)\n    return", False),
        (
            "try:\n        if x < 0:\n            raise ValueError('a')\n    except ValueError:\n        x = 1\n    return",
            True,
        ),
    ],
)
def test_what_refuses_an_argument_does_not_count(tmp_path, refusal, counts):
    assert CODE.count(textwrap.indent(REFUSAL, "    ").lstrip()) == 1
    text = CODE.replace(textwrap.indent(REFUSAL, "    ").lstrip(), textwrap.indent(refusal, "    ").lstrip())
    digest, other = (fingerprint(load(tmp_path, source).run) for source in (CODE, text))
    assert (digest != other) == counts


def test_within_what_may_catch_it_a_refusal_counts(tmp_path):
    source = """
        def run(config, key):
            try:
                if config["x"] < LIMIT:
                    raise ValueError("low")
                y = 1
            except ValueError:
                y = 2
            return {"metrics": {"y": y}, "data": "none"}
    """
    digests = [fingerprint(load(tmp_path, source.replace("LIMIT", limit)).run) for limit in "12"]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("caught", "counts"),
    [
        ("try:\n        y = outer(x)\n    except ValueError:\n        y = 2", True),
        ("try:\n        y = outer(x)\n    except (KeyError, TypeError):\n        y = 2", True),
        ("try:\n        y = outer(x)\n    except:\n        y = 2", True),
        ("try:\n        y = outer(x)\n    except builtins.ValueError:\n        y = 2", True),
        (
            "try:\n        y = outer(x)\n    except ValueError as error:\n        raise FloatingPointError from error",
            True,
        ),
        (
            "try:\n        y = outer(x)\n    except ValueError as error:\n        raise ValueError('in words') from error",
            False,
        ),
        ("try:\n        y = {'a': outer}['a'](x)\n    except ValueError:\n        y = 2", True),
        ("try:\n        y = attempt(outer, x)\n    except ValueError:\n        y = 2", True),
        ("try:\n        y = float(x)\n    except ValueError:\n        y = outer(x)", False),
        ("with contextlib.suppress(ValueError):\n        check_number(x, LIMIT)", True),
        ("with precision(x):\n        check_number(x, LIMIT)", True),  # a context may catch it
        ("with contextlib.suppress(ValueError):\n        y = outer(x)", True),
        ("try:\n        y = outer(x)\n    except FloatingPointError:\n        y = 2", False),
        ("try:\n        y = x\n    except ValueError:\n        y = outer(x)", False),
        ("with precision(x):\n        y = outer(x)", False),
    ],
)
def test_what_is_called_where_refusals_are_caught_counts_with_them(tmp_path, caught, counts):
    """A chapter may take what a function of the library refuses for a run that has failed."""
    source = f"""
import builtins
import contextlib

def inner(x):
    if x < LIMIT:
        raise ValueError("low")
    return x

def outer(x):
    return inner(x) + 1

def attempt(f, x):
    return f(x)

def run(config, key):
    x, y = config["x"], 0
    {caught}
    return {{"metrics": {{"y": y}}, "data": "none"}}
"""
    digests = [fingerprint(load(tmp_path, source.replace("LIMIT", limit)).run) for limit in "12"]
    assert (digests[0] != digests[1]) == counts


@pytest.mark.parametrize(
    "text",
    [  # as Python 3.11 writes them, whose f-strings cannot hold their own quotes
        """f"one of {', '.join(names)}\"""",
        """f"in {('(' if strict else '[')}{least:g}, {below:g})\"""",
        """f'{x}, {y!r:>{width}}'""",
        """f"it's {x}\"""",
        """f'say "{x}"'""",
        """f'''it's "{x}" {y['key']}'''""",
        """f'{{{x}}}\\n{y}'""",
        """f"{f'{x}'} {d(a='b')[m]}.\"""",
        """(lambda m: f"{m['a']}" + f'{m}')(1)""",
    ],
)
def test_strings_that_hold_expressions_are_the_same_text_in_every_version_of_python(text):
    assert fingerprints._text(ast.parse(text)) == text


def test_where_the_code_lies_does_not_count(tmp_path):
    source = """
        def run(config, key):
            return {"metrics": {}, "data": f"{__file__} {__name__}"}
    """
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here, there = (fingerprint(load(tmp_path / name, source).run) for name in ("here", "there"))
    assert here == there


def test_what_is_computed_counts(tmp_path):
    digests = [fingerprint(load(tmp_path, CODE).run)]
    for old, new in [
        ("STEPS = 3", "STEPS = 4"),
        ("return x + STEPS", "return x - STEPS"),
        ("self.weight * helper(x)", "helper(x)"),
        ("wm.Ellipse()", "wm.Line()"),
        ("Net(2.0)", "Net(2.5)"),
        ('"line": wm.Line', '"line": wm.Ellipse'),
        ('"plain": None', '"plain": wm.TetheredRod'),
        ('config["x"]', 'config["z"]'),
    ]:
        assert CODE.count(old) == 1
        digests.append(fingerprint(load(tmp_path, CODE.replace(old, new)).run))
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("jnp.arange(3)", "jnp.arange(3).at[1].set(5)"),
        ("{'b', 'a'}", "{'b', 'c'}"),
        ("wm.Fourier(2)", "wm.Fourier(3)"),
        ("partial(helper, y=1)", "partial(helper, y=2)"),
        ("[helper]", "[other]"),
        ("b'a'", "b'b'"),
    ],
)
def test_constants_count_by_value(tmp_path, first, second):
    source = """
        from functools import partial
        import jax.numpy as jnp
        import wmlib as wm
        def helper(x, y=0): return x + y
        def other(x, y=0): return x - y
        CONSTANT = {}
        def run(config, key):
            return CONSTANT
    """
    one, same, two = (fingerprint(load(tmp_path, source.format(value)).run) for value in (first, first, second))
    assert one == same != two


def test_variables_of_its_own_that_are_called_like_a_constant_do_not_count(tmp_path):
    source = "def run(config, key):\n    rate = 2\n    return [rate for seed in range(rate)]\n"
    assert fingerprint(load(tmp_path, source).run) == fingerprint(load(tmp_path, source + "rate = 3\nseed = 4\n").run)


def test_what_another_library_keeps_while_it_runs_is_no_part_of_the_digest(tmp_path):
    source = (
        "import sys, toy_state\n\ndef run(config, key):\n    return len(sys.modules), toy_state.seen, toy_state.RATE\n"
    )
    state = types.ModuleType("toy_state")
    state.seen, state.RATE = [], 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "toy_state", state)
        digest = fingerprint(load(tmp_path, source).run)
        patch.setitem(sys.modules, "one_module_more", types.ModuleType("one_module_more"))
        state.seen.append(1)
        assert fingerprint(load(tmp_path, source).run) == digest
        state.RATE = 0.25
        assert fingerprint(load(tmp_path, source).run) != digest


def test_the_digest_of_what_keeps_a_result_has_nothing_of_how_digests_are_made():
    """Nor of where it is kept: a cache decides nothing of what it keeps."""

    def run(config, key):
        return {"metrics": wm.lab.cache.once("name", square, config, key), "data": "none"}

    parts = fingerprints._parts(run)[0]
    assert not [place for place in parts if place[0] in ("wmlib.lab.fingerprints", "wmlib.lab.cache")]
    assert ("", "square") in parts
    parts = fingerprints._parts(wm.walk_sequence)[0]
    assert not [place for place in parts if place[1] in ("_digest", "_program", "_read", "_write", "digest")]
    assert [place for place in parts if place[1] == "Beside"]


def test_variables_of_an_enclosing_function_count():
    def experiment(shift, helper):
        def run(config, key):
            return {"metrics": {"y": helper(config["x"]) + shift}, "data": "none"}

        return run

    assert fingerprint(experiment(1, abs)) == fingerprint(experiment(1, abs))
    assert fingerprint(experiment(1, abs)) != fingerprint(experiment(2, abs))
    assert fingerprint(experiment(1, square)) != fingerprint(experiment(1, tenfold))


@pytest.mark.parametrize("changed", ["first", "second"])
def test_functions_that_share_a_name_count_each(tmp_path, changed):
    source = """
def made(shift):
    def f(x):
        return x + shift
    return f

a, b = made(FIRST), made(SECOND)
c, d = lambda x: x + FIRST, lambda x: x * SECOND

def run(config, key):
    return {"metrics": {"y": a(1) + b(2), "z": ONE(3)}, "data": "none"}
"""
    for one in ("a", "d if config else c"):
        text = source.replace("ONE", f"({one})" if " " in one else one)
        text = text if " " not in one else text.replace("a(1) + b(2)", "1")
        digests = [
            fingerprint(load(tmp_path, text.replace("FIRST", first).replace("SECOND", second)).run)
            for first, second in [("1", "2"), ("3", "2") if changed == "first" else ("1", "3")]
        ]
        assert digests[0] != digests[1], one


def scaled(config, key):
    return {"metrics": {"y": SCALE.epochs}, "data": "none"}


SCALE = Preset("cpu", 1, {"epochs": 3, "unused": 1})


def test_settings_of_a_preset_count_where_they_are_used(monkeypatch):
    digest = fingerprint(scaled)
    monkeypatch.setitem(globals(), "SCALE", Preset("cpu", 5, {"epochs": 3}))
    assert fingerprint(scaled) == digest
    monkeypatch.setitem(globals(), "SCALE", Preset("cpu", 5, {"epochs": 4}))
    assert fingerprint(scaled) != digest


def modulated(config, key):
    return wm.modulate(config, wm.Ellipse(), key=key)


@pytest.mark.parametrize(
    ("definition", "counts"),
    [
        (wm.Ellipse, True),
        (wm.AbstractManifold, True),  # a base of what is named
        (wm.BSpline, False),  # named by nothing here
        (sys.modules["wmlib.manifolds.modulation"], True),  # where rules are registered that nothing names
        (sys.modules["wmlib.manifolds.descent"], False),
    ],
)
def test_the_library_counts_where_it_is_used(monkeypatch, definition, counts):
    digest, source = fingerprint(modulated), inspect.getsource

    def changed(what):
        if what is definition:
            return source(what) + "\n@register(exp)\ndef _(x):\n    return x\n"
        if isinstance(definition, type) and what is sys.modules[definition.__module__]:
            return source(what).replace(text := source(definition), f"{text}    _more = 1\n")
        return source(what)

    monkeypatch.setattr(inspect, "getsource", changed)
    assert (fingerprint(modulated) != digest) == counts


def walked(config, key):
    return wm.walk(config, key, None, None)


def measured(config, key):
    return wm.FunctionMetric(config, key, key)


@pytest.mark.parametrize(("run", "counts"), [(walked, False), (measured, True)])
def test_a_modules_rules_count_where_one_of_its_classes_is_reached(monkeypatch, run, counts):
    """The walk uses functions of the module in which the metric has its rules, and no metric."""
    module, digest, source = sys.modules["wmlib.paths.metric"], fingerprint(run), inspect.getsource

    def changed(what):
        return source(what) + "\n@register(exp)\ndef _(x):\n    return x\n" if what is module else source(what)

    monkeypatch.setattr(inspect, "getsource", changed)
    assert (fingerprint(run) != digest) == counts
    monkeypatch.setattr(
        inspect, "getsource", lambda what: source(what).replace("must be arrays with", "are arrays with")
    )
    assert fingerprint(run) == digest  # an error message
    monkeypatch.setattr(
        inspect, "getsource", lambda what: source(what).replace("len(lengths) != 1", "len(lengths) != 2")
    )
    assert fingerprint(run) == digest  # a refusal, of `check_inputs`
    monkeypatch.setattr(inspect, "getsource", lambda what: source(what).replace("else gathered(inputs)", "else inputs"))
    assert fingerprint(run) != digest  # `remember`, by itself or with its module


def test_wrapped_functions_are_seen_through(tmp_path):
    digest = fingerprint(square)
    for wrap in (functools.cache, eqx.filter_jit, jax.jit, Counted):
        wrapped = wrap(square)
        assert fingerprint(wrapped.run if isinstance(wrapped, Counted) else wrapped) == digest
    assert fingerprint(functools.partial(square, x=1)) != fingerprint(functools.partial(square, x=2))
    assert fingerprint(functools.partial(square, x=1)) == fingerprint(functools.partial(square, x=1))


def test_code_that_cannot_be_read_is_refused():
    scope = {"__name__": __name__}
    exec("def run(config, key): return {}", scope)
    with pytest.raises(ValueError, match="the code of run cannot be read; define it in a file or a notebook"):
        fingerprint(scope["run"])
    with pytest.raises(ValueError, match="cannot be followed; give a function that def makes"):
        fingerprint(len)


@pytest.mark.filterwarnings("ignore")  # of the notebook's machinery
def test_a_script_a_module_and_a_notebook_have_the_same_fingerprint(tmp_path):
    """The latter two without the type checking that is installed in this process."""
    import nbclient
    import nbformat
    from traitlets.config import Config

    code = textwrap.dedent(CODE)
    (script := tmp_path / "script.py").write_text(
        code
        + "\nif __name__ == '__main__':\n    from wmlib.lab.fingerprints import fingerprint; print(fingerprint(run))\n"
    )
    as_module = fingerprint(load(tmp_path, CODE).run)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == as_module

    cells = [
        nbformat.v4.new_code_cell(cell)
        for cell in [*code.split("\n\n\n"), "from wmlib.lab.fingerprints import fingerprint; print(fingerprint(run))"]
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    place = {"metadata": {"path": tmp_path}}
    # Reached by files with short paths: a free port can be taken by another test before the kernel binds it.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        reached = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place, config=reached).execute()
    assert notebook.cells[-1].outputs[0].text.strip() == as_module
