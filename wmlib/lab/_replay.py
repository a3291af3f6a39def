"""Run a chapter's script, of this or an older version of the library, and look at its sweeps in place of training.

A program, not a module: `python -P _replay.py <job.json>`, with the root of the version to run as the working folder
and first in PYTHONPATH. It loads `records.py` and `fingerprints.py` of the present version by their paths.

The job names the `chapter`'s script and where to write what was seen (`out`). With `sample`, lists of runs by
"<experiment> <digest>", those runs are computed and kept in the folder `kept`; without it, nothing is computed.

`ulps` starts the runs a number of units in the last place apart: whatever floating-point numbers `jax.random.normal`,
`uniform` and `truncated_normal` draw (starting weights, noise, contexts) are moved by so many units towards zero. That
is the smallest change of a run that means nothing; training is chaotic, and what it does to the results is the
measure for changes of rounding.
"""

import copy
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import jax
import jax.numpy as jnp

import wmlib as wm

_HERE = Path(__file__).resolve().parent


try:
    runs: Any = importlib.import_module("wmlib.lab.runs")
except ImportError:  # before the library had folders
    runs = importlib.import_module("wmlib.runs")


def _load(name: str, file: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, _HERE / file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


records = _load("_records_now", "records.py")
fingerprints = _load(f"{runs.__package__}._fingerprints_now", "fingerprints.py")


class _Seen(Exception):
    """Every run of the sample is there; the rest of the script is of no use."""


def _towards_zero(draw, ulps):
    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        values = draw(*args, **kwargs)
        for _ in range(ulps):
            values = values * (1 - float(jnp.finfo(values.dtype).eps) / 2)
        return values

    return drawn


def main(job):
    root = Path.cwd()
    if not Path(wm.__file__).is_relative_to(root):
        raise RuntimeError(f"wmlib is that of {wm.__file__}, not of {root}; put {root} first in PYTHONPATH")
    if job["ulps"]:
        for name in ("normal", "uniform", "truncated_normal"):
            setattr(jax.random, name, _towards_zero(getattr(jax.random, name), job["ulps"]))
    chapter = sys.modules["__main__"]
    calls, later, sample = [], [], {name: [*units] for name, units in (job.get("sample") or {}).items()}
    sweep = wm.sweep

    def compute(name, run, code, together, unit, wait):
        """Whether the runs of a unit are kept now; without `wait`, those another process computes are left to it."""
        key = {"code": code, "ulps": job["ulps"], "config": unit["config"], "seeds": unit["seeds"]}
        path = Path(job["kept"]) / f"{name}.jsonl"
        claim = path.parent / ".claims" / records.content_digest({"experiment": name, **key})
        claim.parent.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(claim, timeout=-1 if wait else 0):
                if any(all(kept[k] == v for k, v in key.items()) for kept in records.read_lines(path, key, "result")):
                    return True
                start = time.perf_counter()
                keys = [jax.random.key(seed) for seed in unit["seeds"]]
                config = copy.deepcopy(unit["config"])
                results = run(config, jnp.stack(keys)) if together else [run(config, key) for key in keys]
                jax.block_until_ready(results)
                results = [{k: result.get(k, {}) for k in ("metrics", "curves")} for result in results]
                seconds = round(time.perf_counter() - start, 3)
                records.append_row(path, {**key, "results": results, "seconds": seconds})
                print(f"  {name} {unit['words']}: {seconds:.0f} s", file=sys.stderr, flush=True)
        except filelock.Timeout:
            return False
        return True

    def seen(name, run, grid, preset, **options):
        nonlocal chapter
        chapter = sys.modules["__main__"]
        grid = grid if isinstance(grid, dict) else [*grid]
        together, code = bool(options.get("together")), runs.fingerprint(run)
        wanted = [(config, seed) for config in runs._configurations(grid) for seed in range(preset.seeds)]
        listed = [[n, hashlib.sha256(text.encode()).hexdigest()[:16]] for n, text in fingerprints.unplaced(run)]
        calls.append({
            "experiment": name, "preset": preset.name, "code": code, "together": together,
            "listed": listed, "runs": [records.identity(*w) for w in wanted],
        })  # fmt: skip
        for unit in sample.pop(f"{name} {code}", []):
            if not compute(name, run, code, together, unit, wait=False):
                later.append((name, run, code, together, unit))
        if job.get("sample") and not sample:
            raise _Seen
        return sweep(name, run, grid, preset, **{**options, "compute": False})

    wm.sweep = seen
    stopped = None
    try:
        runpy.run_path(job["chapter"], run_name="__main__")
    except _Seen:
        pass
    except Exception as error:
        stopped = f"{type(error).__name__}: {error}"
    sys.modules["__main__"] = chapter  # where the names of its runs are looked up; it is gone when its script ends
    for name, run, code, together, unit in later:
        if runs.fingerprint(run) != code:
            raise RuntimeError(
                f"{name}: what its run names has changed since the sweep; start again when it is not shared"
            )
        compute(name, run, code, together, unit, wait=True)
    out = Path(job["out"])
    partial = out.with_name(f"{out.name}.{os.getpid()}")
    partial.write_text(json.dumps({"calls": calls, "stopped": stopped}))
    partial.replace(out)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
