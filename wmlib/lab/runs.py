"""Recorded, resumable experiments: one JSON object a line, appended the moment a run is done."""

from . import _extra as _extra  # isort: split

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from .fingerprints import fingerprint
from .presets import Preset
from .records import append_row as append_row
from .records import circumstances, equivalences, freshness, identity, leads_to, standing_rows
from .records import read_rows as read_rows

_COLUMNS = ("seed", "seconds", "device", "data", "stale")
_POLL = 0.5  # seconds between two looks at the runs that other processes compute


def sweep(
    name: str,
    run: Callable[[dict[str, Any], Any], Any],
    grid: Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
    preset: Preset,
    *,
    results: str | os.PathLike[str] | None = None,
    executor: Any = None,
    compute: bool | None = None,
    together: bool = False,
) -> pd.DataFrame:
    """Run an experiment over a grid and seeds, once: runs that are recorded are read, the others computed.

    Each row is written and synced to disk when its run ends, so that a kill loses at most the runs in progress. Start
    the same sweep in several processes to share the work: a run is locked by the process that computes it.

    **Arguments:**

    - `name`: of the experiment; its rows are in `<results>/<name>.jsonl`.
    - `run`: a function of `(config, key)` that returns a mapping with `metrics` (numbers by name), and perhaps
      `curves` (lists by name), and `data`: the fingerprint of its dataset, or "synthetic: …", how its data are made.
      `key` is `jax.random.key(seed)`. A metric or curve that measures time says the clock in its name, "wall" or "cpu":
      "step_wall_s", "step_cpu_s" in seconds, "step_wall" as a ratio of two such. Times are no results that changed code
      could be held to (`make verify` leaves them out); rows that are about time are withdrawn and measured anew.
    - `grid`: configurations, each a mapping of JSON values; or one mapping of lists, for all their combinations.
    - `preset`: its name and its number of seeds.
    - `results`: the folder. Default: `WMLIB_RESULTS`, else the book's `book/results` (`_build/results` for the preset
      "quick", whose rows are computed again whenever the code has changed), else `results` here.
    - `executor`: anything whose `submit(function, *arguments)` gives an object with `done()`, `result()` and
      `cancel()`: every `concurrent.futures.Executor`, and submitit's. Default: one run after another in this process.
      One that uses other processes must be able to import `run`, and must start them without forking this one.
    - `compute`: whether missing runs may be computed. Default: yes, unless `WMLIB_RECORDED_ONLY` is set, and not to 0 (as when
      the book is built) and the preset is not "quick".
    - `together`: `run(config, keys)` takes the keys of all missing seeds of a configuration at once, as one array, and
      returns a sequence of results, one for each: for training many networks as one program under `jax.vmap`.

    **Returns:** a frame with a row for each run in the order of the grid, then seeds: the configuration, `seed`, the
    metrics (NaN where one was not finite), the curves, `seconds`, `device`, `data`, `stale` (the row was computed by
    code that has changed since, and no recorded equivalence carries it to today's). A curve hides a metric of the
    same name, and that a setting.

    **Raises:** `ValueError` for an empty grid, a configuration that is not JSON or that occurs twice, a damaged
    record file, a result that is none (metrics and data are missing, or a metric or curve is called like a column of its
    own), or seeds of one configuration that were computed on different data; `OSError` for a folder that cannot be written, before anything is computed; `LookupError` if runs are
    missing and may not be computed. An exception of `run` is passed on; what was recorded before stays.
    """
    configs = _configurations(grid)
    path = _folder(results, preset.name).absolute() / f"{name}.jsonl"
    code = fingerprint(run)
    wanted = [(config, seed) for config in configs for seed in range(preset.seeds)]
    if compute is None:
        compute = preset.name == "quick" or os.environ.get("WMLIB_RECORDED_ONLY", "0") in ("", "0")
    refresh = preset.name == "quick" or os.environ.get("WMLIB_RERUN") == "stale"

    def recorded() -> dict[str, dict[str, Any]]:
        fresh = freshness(path.parent, name)
        rows = [r for r in standing_rows(path) if r["preset"] == preset.name and (fresh(r, code) or not refresh)]
        # Of several rows of one run, the last; but one of the present code before any other, then one as good.
        order = sorted(rows, key=lambda r: (r["code"] == code) + fresh(r, code))
        return {identity(r["config"], r["seed"]): {**r, "stale": not fresh(r, code)} for r in order}

    rows = recorded()
    # Seed by seed, so that a sweep that is stopped is a complete one of fewer seeds.
    missing = sorted((w for w in wanted if identity(*w) not in rows), key=lambda w: w[1])
    if missing and not compute:
        which = ", ".join(f"{config} seed {seed}" for config, seed in missing[:5]) + ", …" * (len(missing) > 5)
        raise LookupError(
            f"{len(missing)} of {len(wanted)} runs of {name!r} are not recorded at the preset {preset.name!r} in {path}:"
            f" {which}; compute them with: make rerun CHAPTER=<the chapter> PRESET={preset.name}"
        )
    if missing:
        _writable(path)
        seconds = [r["seconds"] for r in rows.values()]
        known = f", about {np.median(seconds):.0f} s each" if seconds else ""
        print(f"{name}: {len(missing)} of {len(wanted)} runs to compute{known}", file=sys.stderr)
        task = _Task(name, run, preset.name, code, path, together)
        units = [(config, (seed,)) for config, seed in missing]
        if together:
            seeds = {identity(config, None): [] for config in configs}
            for config, seed in missing:
                seeds[identity(config, None)].append(seed)
            units = [(c, tuple(seeds[identity(c, None)])) for c in configs if seeds[identity(c, None)]]
        for _ in tqdm(_compute(task, units, executor), total=len(units), desc=name, file=sys.stderr, disable=None):
            pass
        rows = recorded()
        if lost := [w for w in wanted if identity(*w) not in rows]:
            raise LookupError(f"{len(lost)} rows of {name!r} vanished from {path} during the sweep; start it again")
    for config in configs:
        _check_same_data(name, config, [rows[identity(config, seed)] for seed in range(preset.seeds)])
    return pd.DataFrame([_flat(rows[identity(config, seed)]) for config, seed in wanted])


def _check_same_data(name: str, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise `ValueError` if rows of one configuration tell of different data; rows from before they told pass."""
    if len(told := sorted({row["data"] for row in rows if isinstance(row.get("data"), str)})) > 1:
        raise ValueError(
            f"the seeds of {name!r} at {config} were computed on different data ({'; '.join(told)}); compute them on the same,"
            " withdraw the others (wmlib.lab.records.withdraw), or name the data in the configuration"
        )


@dataclasses.dataclass(frozen=True)
class _Task:
    """Runs of one configuration, one seed or all at once, computed and recorded, wherever an executor takes them."""

    name: str
    run: Callable
    preset: str
    code: str
    path: Path
    together: bool

    def __call__(self, config: dict[str, Any], seeds: tuple[int, ...], wait: bool = True) -> bool:
        """Whether the runs are recorded now; without `wait`, those that another process computes are left to it."""
        unit = identity(config, None if self.together else seeds[0])
        claim = self.path.parent / ".claims" / hashlib.sha256(f"{self.path.stem}{unit}".encode()).hexdigest()[:16]
        claim.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            try:  # the system drops the lock of a process that dies, so a killed run is free again
                held.enter_context(filelock.FileLock(claim, timeout=-1 if wait else 0))
            except filelock.Timeout:
                return False
            fresh = freshness(self.path.parent, self.name)
            recorded = {
                identity(r["config"], r["seed"])
                for r in standing_rows(self.path)
                if r["preset"] == self.preset and fresh(r, self.code)
            }
            seeds = tuple(seed for seed in seeds if identity(config, seed) not in recorded)
            if not seeds:
                return True  # another process was faster
            start = time.perf_counter()
            keys = [jax.random.key(seed) for seed in seeds]
            given = copy.deepcopy(config)
            results = self.run(given, jnp.stack(keys)) if self.together else [self.run(given, keys[0])]
            jax.block_until_ready(results)
            seconds = (time.perf_counter() - start) / len(seeds)
            if self.together and (not isinstance(results, Sequence) or len(results) != len(seeds)):
                raise ValueError(f"run must return {len(seeds)} results, one for each key, got {results!r:.200}")
            for result in results:
                if not isinstance(result, Mapping) or not isinstance(result.get("metrics"), Mapping):
                    raise ValueError(f"run must return a mapping with 'metrics', numbers by name, got {result!r:.200}")
                if not isinstance(result.get("data"), str) or not result["data"]:
                    raise ValueError(
                        f"run must return 'data', what tells its data from others, got {result.get('data')!r:.200}; give"
                        " the fingerprint of load_dataset or load_splits, or 'synthetic: <how they are made>'"
                    )
                if taken := {*result["metrics"], *result.get("curves", {})} & {*_COLUMNS}:
                    raise ValueError(
                        f"{', '.join(sorted(taken))} names a column of its own; call the metric or curve something else"
                    )
            where = circumstances(Path.cwd())
            for seed, result in zip(seeds, results, strict=True):
                append_row(self.path, {
                    "experiment": self.name, "config": config, "seed": seed, "preset": self.preset,
                    "metrics": result["metrics"], "curves": result.get("curves", {}), "seconds": round(seconds, 3),
                    **where, "data": result["data"], "code": self.code,
                })  # fmt: skip
            return True


def _compute(task: _Task, runs: Sequence, executor: Any) -> Iterator[tuple]:
    """Compute runs; those that other processes are computing are left for last, and tried again until none is left."""
    wait = False
    while runs:
        futures = (
            {}
            if executor is None
            else {executor.submit(task, config, seeds, wait): (config, seeds) for config, seeds in runs}
        )
        if executor is None:
            done = (((config, seeds), task(config, seeds, wait)) for config, seeds in runs)
        else:
            done = ((futures[future], future.result()) for future in _as_completed(futures))
        left = []
        try:
            for run, is_recorded in done:
                if is_recorded:
                    yield run
                else:
                    left.append(run)
        finally:  # after an exception, begin nothing more
            for future in futures:
                future.cancel()
        runs, wait = left, executor is not None
        if left and not wait:  # all of them in turn: to wait for one would leave those whose process has died
            time.sleep(_POLL)


def _as_completed(futures: Iterable[Any]) -> Iterator[Any]:
    """`concurrent.futures.as_completed`, for everything that can say `done()`: submitit's jobs are no futures."""
    waiting = list(futures)
    while waiting:
        for future in [future for future in waiting if future.done()]:
            waiting.remove(future)
            yield future
        time.sleep(0.05)


def _configurations(grid) -> list[dict[str, Any]]:
    if isinstance(grid, Mapping):
        if wrong := {k: v for k, v in grid.items() if isinstance(v, (str, Mapping)) or not isinstance(v, Iterable)}:
            raise ValueError(f"a grid that is one mapping holds lists, got {wrong}; write [value] for a single one")
        configs = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    else:
        configs = [dict(config) for config in grid]
    if not configs:
        raise ValueError("the grid is empty; give at least one configuration")
    for config in configs:
        if taken := config.keys() & {*_COLUMNS}:
            raise ValueError(f"{', '.join(sorted(taken))} names a column of its own; call the setting something else")
        try:
            if json.loads(json.dumps(config)) != config:
                raise TypeError("it does not survive being written and read")
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"a configuration must be made of JSON values (text, numbers, lists, None), got {config!r}: {error}"
            ) from error
    identities = [identity(config, 0) for config in configs]
    if len(set(identities)) < len(identities):
        twice = next(c for c, i in zip(configs, identities, strict=True) if identities.count(i) > 1)
        raise ValueError(f"the configuration {twice} occurs twice in the grid; give each one once")
    return configs


def _folder(results: str | os.PathLike[str] | None, preset: str) -> Path:
    if results is not None or "WMLIB_RESULTS" in os.environ:
        return Path(results if results is not None else os.environ["WMLIB_RESULTS"])
    root = Path(__file__).resolve().parents[2]
    if not (root / "book" / "results").is_dir():
        return Path("results")
    return root / "_build" / "results" if preset == "quick" else root / "book" / "results"


def book_results() -> Path:
    """The folder of the recorded runs that come with the book, wherever `sweep` is told to look.

    `recorded_runs(name, "cpu", results=book_results())` tells what is recorded, whatever is run here.
    """
    return Path(__file__).resolve().parents[2] / "book" / "results"


_TIMES = re.compile(r"(^|[\W_])(wall|cpu|seconds)([\W_]|$)")


def measures_time(name: str) -> bool:
    """Whether a metric or a curve measures time: its name then says the clock, "wall" or "cpu"; see `sweep`."""
    return bool(_TIMES.search(name))


def _writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            pass
    except OSError as error:
        raise type(error)(
            error.errno,
            f"results cannot be written to {path} ({error.strerror}); nothing was computed. Make the folder writable"
            " or name another with results= or WMLIB_RESULTS",
        ) from error


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A recorded row as one level of columns."""
    metrics = {k: math.nan if v is None else v for k, v in row["metrics"].items()}
    rest = {k: row.get(k) for k in _COLUMNS}
    return {**row["config"], **metrics, **row["curves"], **rest}


def recorded_runs(name: str, preset: str, *, results: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """The recorded runs of an experiment at one preset, whatever their settings; nothing is computed.

    **Arguments:** `name` of the experiment; `preset`, its name; `results`, the folder, found as by `sweep`.

    **Returns:** a frame as that of `sweep`, empty if nothing is recorded, without rows that have been withdrawn. Of several rows of one run it has the last.
    What the present code is cannot be known here, so `stale` says that a row is of other code than the last one, and no
    recorded equivalence leads from the two to common code.

    **Raises:** `ValueError` for a damaged record file.
    """
    folder = _folder(results, preset)
    rows = [r for r in standing_rows(folder / f"{name}.jsonl") if r["preset"] == preset]
    if not rows:
        return pd.DataFrame(columns=[*_COLUMNS])
    lines = equivalences(folder, name)
    newest = leads_to(rows[-1], lines)
    last = {identity(r["config"], r["seed"]): r for r in rows}
    return pd.DataFrame([_flat({**row, "stale": not newest & leads_to(row, lines)}) for row in last.values()])
