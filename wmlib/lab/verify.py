"""Whether code that has changed gives the results that were recorded: `python -m wmlib.lab.verify <chapter>`.

For each experiment of a chapter whose rows are of other code than today's:

1. the old code, from git, is compared with today's as syntax trees without the modules in which definitions lie. If they
   are equal, the code has *moved*, and nothing is run;
2. else a sample is computed again: of each method (the distinct values of the settings that are words, true, false or
   nothing) the run that was cheapest. If all metrics and curves are equal bit for bit, the rows are *verified*;
3. else those runs of the sample that differ are made by old and new code on this machine, and by the old once more,
   started one unit in the last place apart, then two … The rows are verified if no metric and no curve of these runs
   parts new from old by more than the largest difference that such a start makes of it (or eight units in the last
   place of its largest number). A start is one draw of what chance does to a chaotic computation, so a few are tried.

Metrics and curves that measure time (see `sweep`) are left out. The results of the sample are kept in `_build/verify`;
a line is appended to `equivalences.jsonl` when the whole sample of an experiment is done. Start it twice to share the work.
"""

from . import _extra as _extra  # isort: split

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from . import records
from .runs import _folder, measures_time

_ROOT = Path(__file__).resolve().parents[2]
_KEPT = _ROOT / "_build" / "verify"
_LAST_PLACES = 8 * float(np.finfo(np.float32).eps)


class Refused(Exception):
    """Rows that cannot be carried; the message says which and why."""


def methods(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The cheapest run of each method, by the settings that are words, true, false or nothing."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        words = ", ".join(str(v) for v in row["config"].values() if v is None or isinstance(v, (str, bool)))
        if words not in found or row["seconds"] < found[words]["seconds"]:
            found[words] = row
    return found


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, float]:
    """The largest absolute difference of each metric and each curve of two results, time left out.

    It is infinite where one of them has no such number, or a list of another length.
    """
    found = {}
    for part in ("metrics", "curves"):
        for name in dict.fromkeys((*a[part], *b[part])):
            if not measures_time(name):
                absent = object()
                found[name] = _apart(a[part].get(name, absent), b[part].get(name, absent))
    return found


def _apart(a: Any, b: Any) -> float:
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        return max((_apart(a[k], b[k]) for k in a), default=0.0)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return max((_apart(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if a == b:
        return 0.0
    return abs(a - b) if isinstance(a, (int, float)) and isinstance(b, (int, float)) else math.inf


def _size(value: Any) -> float:
    """The largest number in a metric or a curve."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, list):
        return max(map(_size, value), default=0.0)
    return abs(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


def _largest(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, float]:
    """For each metric and curve, the largest difference in some pairs of results."""
    found: dict[str, float] = {}
    for a, b in pairs:
        for name, apart in differences(a, b).items():
            found[name] = max(found.get(name, 0.0), apart)
    return found


def _replay(root: Path, chapter: str, preset: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a chapter's script of the version in `root` under `_replay.py`."""
    work = _KEPT / "jobs"
    work.mkdir(parents=True, exist_ok=True)
    name = f"{chapter.replace('/', '-')}-{os.getpid()}"
    out, asked, log = (work / f"{name}.{ending}" for ending in ("out.json", "json", "log"))
    asked.write_text(
        json.dumps({
            "chapter": str(root / "notebooks" / f"{chapter}.py"), "out": str(out), "kept": str(_KEPT), "ulps": 0, **job,
        })
    )  # fmt: skip
    # What else is to be found, such as a pretrained network, stays so; but no other code of this project.
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and not Path(p, "wmlib").exists()]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), *others]), "WMLIB_RESULTS": str(_folder(None, preset).absolute()),
        "WMLIB_PRESET": preset, "WMLIB_RECORDED_ONLY": "1", "MPLBACKEND": "agg",
    }  # fmt: skip
    environment.pop("WMLIB_RERUN", None)
    command = [sys.executable, "-P", str(Path(__file__).with_name("_replay.py")), str(asked)]
    out.unlink(missing_ok=True)
    with open(log, "w") as file:
        done = subprocess.Popen(command, cwd=root, env=environment, stdout=file, stderr=subprocess.PIPE, text=True)
        try:
            assert done.stderr is not None
            for line in done.stderr:
                file.write(line)
                if line.startswith("  "):
                    print(line, end="", file=sys.stderr, flush=True)
            done.wait()
        finally:
            done.kill()
    if done.returncode or not out.exists():
        tail = log.read_text().splitlines()[-5:]
        raise Refused(f"{chapter} could not be run in {root}; the whole of its output is in {log}:\n" + "\n".join(tail))
    seen = json.loads(out.read_text())
    for file in (out, asked, log):
        file.unlink()
    return seen


def _checkout(commit: str) -> Path:
    """The files of a commit, in a folder of their own."""
    folder = _KEPT / "code" / commit
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            files = subprocess.run(["git", "-C", _ROOT, "archive", commit], capture_output=True, check=True).stdout
            partial = folder.with_name(f"{commit}.partial")
            with tarfile.open(fileobj=io.BytesIO(files)) as archive:
                archive.extractall(partial, filter="data")
            partial.rename(folder)
    return folder


_unfinished: dict[str, dict[str, Any]] = {}  # of one call of `verify`: scripts that stopped, by what `_old` would keep


def _old(commit: str, chapter: str, preset: str) -> dict[str, Any] | None:
    """What the sweeps of a chapter were at a commit; None if it had no such chapter."""
    # What is seen of a commit hangs on how digests are made today.
    asked_by = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("_replay.py", "fingerprints.py"))
    name = f"{chapter.replace('/', '-')}-{preset}-{commit}-{hashlib.sha256(asked_by).hexdigest()[:8]}.json"
    kept = _KEPT / "seen" / name
    if name in _unfinished:
        return _unfinished[name]
    if not kept.exists():
        if not (root := _checkout(commit)).joinpath("notebooks", f"{chapter}.py").exists():
            return None
        print(f"asking {chapter} of {commit[:12]}", file=sys.stderr, flush=True)
        seen = _replay(root, chapter, preset, {})
        if seen["stopped"]:  # where rows are missing: more is seen when they are there
            return _unfinished.setdefault(name, seen)
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}")
        partial.write_text(json.dumps(seen))
        partial.replace(kept)
    return json.loads(kept.read_text())


def _candidates(chapter: str, rows: Sequence[Mapping[str, Any]], given: str | None) -> Iterator[str]:
    """Commits whose code may have computed rows: as given, as the rows say, as lines say, then the newest first."""
    seen = set()
    named = [given] if given else [*dict.fromkeys(row["commit"] for row in rows if row.get("commit"))]
    if not given:
        lines = records.read_lines(_folder(None, "cpu") / "equivalences.jsonl", (), "line")
        named += dict.fromkeys(
            line["from_commit"] for line in reversed(lines) if line["reason"] != "replaced" and line.get("from_commit")
        )
        log = ["git", "-C", _ROOT, "log", "--format=%H", "--", "wmlib", f"notebooks/{chapter}.py"]
        named += subprocess.run(log, capture_output=True, text=True, check=True).stdout.split()
    for name in named:
        done = subprocess.run(
            ["git", "-C", _ROOT, "rev-parse", "--verify", "--quiet", f"{name.rstrip('+')}^{{commit}}"],
            capture_output=True,
            text=True,
        )
        if done.returncode and given:
            raise Refused(f"git knows no commit {given}; give FROM= one that git log lists")
        if (commit := done.stdout.strip()) and commit not in seen:
            seen.add(commit)
            yield commit


def _call(seen: Mapping[str, Any] | None, experiment: str, code: str) -> Mapping[str, Any] | None:
    calls = seen["calls"] if seen else []
    return next((c for c in calls if c["experiment"] == experiment and c["code"] == code), None)


def verify(
    chapter: str,
    preset: str = "cpu",
    experiment: str | None = None,
    limit: float = math.inf,
    since: str | None = None,
    starts: int = 4,
) -> list[dict[str, Any]]:
    """Carry the rows of a chapter to today's code, as the text above says.

    **Arguments:** `chapter`, as "paths/metric"; `preset`, whose rows; `experiment`, one of the chapter's, or all;
    `limit`, the seconds that the cheapest run of a method may have taken: an experiment with a dearer one is left for
    another time; `since`, the commit of the old code; `starts`, the most that are run.

    **Returns:** for each experiment and old digest a mapping with `experiment`, `rows`, `from`, `to`, `how` ("fresh",
    "moved", "verified", "left", or what is wrong) and, where it was verified, `runs`, `largest` and `seconds`.
    """
    _unfinished.clear()
    seen = _replay(_ROOT, chapter, preset, {})
    calls = [c for c in seen["calls"] if experiment in (None, c["experiment"])]
    if experiment and not calls:
        raise Refused(
            f"{chapter} has no experiment {experiment!r}; it has {', '.join(c['experiment'] for c in seen['calls'])}"
        )
    folder = _folder(None, preset)
    if not seen["stopped"]:
        note_asked(folder, chapter, preset, seen["calls"])
    table, work = [], []
    for name in dict.fromkeys(c["experiment"] for c in calls):
        codes = [*dict.fromkeys(c["code"] for c in calls if c["experiment"] == name)]
        rows = [r for r in records.standing_rows(folder / f"{name}.jsonl") if r["preset"] == preset]
        for code in codes:
            reached = {i for c in calls if (c["experiment"], c["code"]) == (name, code) for i in c["runs"]}
            # Rows that no sweep asks for go with the others, unless one experiment has two kinds of run.
            mine = [r for r in rows if len(codes) == 1 or records.identity(r["config"], r["seed"]) in reached]
            fresh = records.freshness(folder, name)
            for old in dict.fromkeys(r["code"] for r in mine):
                these = [r for r in mine if r["code"] == old]
                stale = [r for r in these if not fresh(r, code)]
                entry = {"experiment": name, "rows": len(these), "from": old, "to": code, "how": "fresh"}
                table.append(entry)
                if stale:
                    which = "all" if len(codes) == 1 else [records.content_digest(r) for r in stale]
                    work.append(
                        (entry, stale, which, next(c for c in calls if c["code"] == code and c["experiment"] == name))
                    )
    work = [w for w in work if not _moved(chapter, preset, since, folder, *w)]
    samples = [_sample(*w) for w in _joined(work, table)]
    for sample in samples:
        if (dearest := max(unit["seconds"] for unit in sample.units)) > limit:
            sample.entry["how"] = f"left: a run of the sample took {dearest:.0f} s"
    samples = [sample for sample in samples if sample.entry["how"] == "fresh"]
    _compute(chapter, preset, samples, "to", 0)
    differing = []
    for sample in samples:
        new = sample.results("to", 0)
        if new is None:
            sample.entry["how"] = "the sample was not computed: its sweep was not reached"
        elif not (apart := _largest([*zip(new, sample.recorded, strict=True)])):
            sample.entry["how"] = "all it records is time; run it anew"
        elif any(apart.values()):
            differing.append(sample.that_differs())
        else:
            why = "metrics and curves of the sample are equal bit for bit"
            _append(folder, sample.entry, sample.line | {"why": why, "largest": 0.0})
            sample.entry.update(how="verified", largest=0.0)
    if differing:
        _compute(chapter, preset, differing, "from", 0)
    for start in range(1, starts + 1):
        _compute(chapter, preset, differing, "from", start)
        differing = [sample for sample in differing if not _within(sample, start, folder)]
    for name in dict.fromkeys(c["experiment"] for c in calls):
        if idle := unasked(folder, name, preset):
            how = "no sweep of a chapter asks for these rows; draw them, or withdraw them (wmlib.lab.records.withdraw)"
            table.append({"experiment": name, "rows": len(idle), "from": "", "to": "", "how": how})
    if seen["stopped"]:
        table.append(
            {"experiment": "", "rows": 0, "from": "", "to": "", "how": f"the script stopped: {seen['stopped']}"}
        )
    return table


def note_asked(folder: Path, chapter: str, preset: str, calls: Sequence[Mapping[str, Any]]) -> None:
    """Write into `asked.json` which runs a chapter's sweeps ask for, by the first digits of their identities' SHA-256."""
    folder.joinpath(".claims").mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".claims" / "asked.json.lock"):
        path = folder / "asked.json"
        asked = json.loads(path.read_text()) if path.exists() else {}
        runs: dict[str, set[str]] = {}
        for call in calls:
            runs.setdefault(call["experiment"], set()).update(map(_short, call["runs"]))
        asked.setdefault(preset, {})[chapter] = {name: sorted(found) for name, found in runs.items()}
        text = json.dumps(asked, indent=0, sort_keys=True) + "\n"
        if not path.exists() or path.read_text() != text:
            (partial := path.with_name(f"{path.name}.{os.getpid()}")).write_text(text)
            partial.replace(path)


def unasked(folder: Path, experiment: str, preset: str) -> list[dict[str, Any]]:
    """The standing rows of an experiment that no chapter's sweep asked for when it was last verified."""
    path = folder / "asked.json"
    asked = json.loads(path.read_text()).get(preset, {}) if path.exists() else {}
    known = {run for chapter in asked.values() for run in chapter.get(experiment, ())}
    rows = records.standing_rows(folder / f"{experiment}.jsonl")
    return [r for r in rows if r["preset"] == preset and _short(records.identity(r["config"], r["seed"])) not in known]


def _short(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def _moved(chapter, preset, since, folder, entry, rows, which, call) -> bool:
    """Whether the code is equal but for where definitions lie; then a line says so."""
    lines = records.equivalences(folder, entry["experiment"])
    # What every one of the rows was carried to; the code that a row names itself comes first.
    known = set.intersection(*(set(records.leads_to(r, lines)) for r in rows))
    known = sorted(known, key=lambda digest: digest != entry["from"])
    for commit in _candidates(chapter, rows, since):
        try:
            seen = _old(commit, chapter, preset)
        except Refused as error:
            print(error, file=sys.stderr)
            continue
        for digest in known:
            if (old := _call(seen, entry["experiment"], digest)) is None:
                continue
            # As digests are made today: the commit's own may have been made otherwise.
            if old["listed"] == call["listed"]:
                why = "the code is equal but for the modules in which definitions lie; nothing was run"
                _append(
                    folder,
                    entry,
                    {
                        "from": digest,
                        "rows": which,
                        "reason": "moved",
                        "why": why,
                        "largest": 0.0,
                        "from_commit": commit,
                    },
                )
                entry["how"] = "moved"
                return True
        for digest in known:
            if _call(seen, entry["experiment"], digest) is not None:
                entry.update({"commit": commit, "from": digest})
                return False
    if commits := _named(chapter, preset, since, rows, call):
        why = "no code gives the digest, which held what the interpreter keeps while it runs; that of the commits which the"
        why += " rows name is equal but for the modules in which definitions lie; nothing was run"
        line = {"from": entry["from"], "rows": which, "reason": "moved", "why": why, "largest": 0.0}
        _append(folder, entry, line | {"from_commit": commits[0]})
        entry["how"] = "moved"
        return True
    entry["how"] = f"no commit gives the digest {entry['from']}; name it: FROM=<commit>"
    return True


def _joined(work, table):
    """Rows that earlier lines carried to one code share a sample."""
    joined: dict[tuple[str, str, str], Any] = {}
    for entry, rows, which, call in work:
        key = (entry["experiment"], entry["from"], entry["to"])
        if key not in joined:
            joined[key] = entry, [*rows], which, call
            continue
        first, others, listed, _ = joined[key]
        first["rows"] += entry["rows"]
        others += rows
        joined[key] = first, others, which if which == "all" else listed + which, call
        table.remove(entry)
    return [*joined.values()]


def _named(chapter, preset, since, rows, call) -> list[str]:
    """The commits that rows say they were computed at, or the one given, if the code of each is today's, wherever
    definitions lie.

    None unless every row names one, and none of them had changes beside it ("+").
    """
    names = {since} if since else {row.get("commit") or "+" for row in rows}
    if any(name.endswith("+") for name in names):
        return []
    found = []
    for name in sorted(names):
        done = ["git", "-C", str(_ROOT), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
        commit = subprocess.run(done, capture_output=True, text=True).stdout.strip()
        seen = _old(commit, chapter, preset) if commit else None
        mine = [c for c in seen["calls"] if c["experiment"] == call["experiment"]] if seen else []
        if not mine or any(c["listed"] != call["listed"] for c in mine):
            return []
        found.append(commit)
    return found


@dataclasses.dataclass(frozen=True)
class _Sample:
    """The runs of an experiment that stand for its rows."""

    entry: dict[str, Any]
    units: list[dict[str, Any]]
    recorded: list[dict[str, Any]]
    line: dict[str, Any]

    def results(self, side: str, ulps: int) -> list[Mapping[str, Any]] | None:
        """What code of a side, "from" or "to", gave; None where some of it has not been computed."""
        lines = records.read_lines(_KEPT / f"{self.entry['experiment']}.jsonl", ("results",), "result")
        found = []
        for unit in self.units:
            key = {"code": self.entry[side], "ulps": ulps, "config": unit["config"], "seeds": unit["seeds"]}
            line = next((k for k in reversed(lines) if all(k[i] == v for i, v in key.items())), None)
            if line is None:
                return None
            found += line["results"]
        return found

    def that_differs(self) -> "_Sample":
        """Without the runs that are equal bit for bit: of those nothing is left to be asked."""
        new, units, recorded, at = self.results("to", 0), [], [], 0
        assert new is not None
        for unit in self.units:
            rows = slice(at, at + len(unit["seeds"]))
            if any(_largest([*zip(new[rows], self.recorded[rows], strict=True)]).values()):
                units.append(unit)
                recorded += self.recorded[rows]
            at = rows.stop
        equal = len(self.recorded) - len(recorded)
        return dataclasses.replace(self, units=units, recorded=recorded, line=self.line | {"equal": equal})


def _sample(entry, rows, which, call) -> _Sample:
    units, recorded = [], []
    for words, row in methods(rows).items():
        by_seed = {r["seed"]: r for r in rows if r["config"] == row["config"]}
        seeds = sorted(by_seed) if call["together"] else [row["seed"]]  # a batch is computed as it was
        words = f"{words or 'run'}, seed {seeds[0]}"
        units.append({"config": row["config"], "seeds": seeds, "words": words, "seconds": row["seconds"] * len(seeds)})
        recorded += [{part: by_seed[seed][part] for part in ("metrics", "curves")} for seed in seeds]
    entry["runs"] = len(recorded)
    sample = [{"config": unit["config"], "seeds": unit["seeds"]} for unit in units]
    line = {"rows": which, "reason": "verified", "from_commit": entry.get("commit"), "sample": sample}
    return _Sample(entry, units, recorded, line)


def _compute(chapter: str, preset: str, samples: Sequence[_Sample], side: str, ulps: int) -> None:
    """Compute what is missing of some samples, in one pass through the script for each version of the code."""
    asked: dict[Path, dict[str, Any]] = {}
    for sample in samples:
        if sample.results(side, ulps) is None:
            root = _ROOT if side == "to" else _checkout(sample.entry["commit"])
            asked.setdefault(root, {})[f"{sample.entry['experiment']} {sample.entry[side]}"] = sample.units
    for root, units in asked.items():
        words = "today's code" if side == "to" else f"old code, {ulps} units apart" if ulps else "old code"
        print(f"{sum(map(len, units.values()))} runs of {words}", file=sys.stderr, flush=True)
        began = time.monotonic()
        seen = _replay(root, chapter, preset, {"sample": units, "ulps": ulps})
        for sample in samples:
            sample.entry["seconds"] = sample.entry.get("seconds", 0.0) + time.monotonic() - began
        if seen["stopped"]:
            print(f"the script stopped: {seen['stopped']}", file=sys.stderr)


def _within(sample: _Sample, starts: int, folder: Path) -> bool:
    """Whether old and new code differ no more than chance does; then a line says so, else the table what differs."""
    new, old = sample.results("to", 0), sample.results("from", 0)
    moved = [sample.results("from", start) for start in range(1, starts + 1)]
    if new is None or old is None or None in moved:
        sample.entry["how"] = "the sample was not computed with the old code: its sweep was not reached"
        return False
    apart = _largest([*zip(new, old, strict=True)])
    chance = _largest([pair for other in moved if other is not None for pair in zip(other, old, strict=True)])
    parts = [{**r["metrics"], **r["curves"]} for r in old]
    # A start that leaves a curve of another length, or a metric without a value, measures nothing.
    allowed = {
        k: max(chance[k] if math.isfinite(chance[k]) else 0.0, _LAST_PLACES * max(_size(r.get(k)) for r in parts))
        for k in apart
    }
    if beyond := {k: v for k, v in apart.items() if v > allowed[k]}:
        worst = max(beyond, key=lambda k: beyond[k] / max(allowed[k], 1e-300))
        sample.entry["how"] = (
            f"{', '.join(beyond)} differ: {worst} by {beyond[worst]:.3g}, where {starts} starts units in the last place"
            f" apart differ by at most {chance[worst]:.3g}"
        )
        return False
    why = (
        f"old and new code differ by no more than {starts} starts of the old code, units in the last place"
        " apart, on this machine"
    )
    if sample.line.get("equal"):
        why += f"; {sample.line['equal']} more runs of the sample are equal bit for bit"
    numbers = {k: [v, chance[k]] for k, v in apart.items() if v}
    _append(
        folder, sample.entry, sample.line | {"why": why, "largest": max(apart.values()), "apart_and_chance": numbers}
    )
    sample.entry.update(how="verified", largest=max(apart.values()))
    return True


def _append(folder: Path, entry: Mapping[str, Any], line: Mapping[str, Any]) -> None:
    """Append a line, unless another process has by now."""
    path = folder / "equivalences.jsonl"
    (folder / ".claims").mkdir(exist_ok=True)
    with filelock.FileLock(folder / ".claims" / "equivalences.verify"):
        same = ("experiment", "from", "to", "rows", "reason")
        new = {"experiment": entry["experiment"], "from": entry["from"], "to": entry["to"], **line}
        if not any(
            all(have.get(k) == new[k] for k in same) for have in records.equivalences(folder, entry["experiment"])
        ):
            records.append_row(path, new | records.circumstances(_ROOT))


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; 0 if every row is fresh at its end."""
    parser = argparse.ArgumentParser(prog="make verify", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("chapter")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--experiment")
    parser.add_argument("--limit", type=float, default=math.inf)
    parser.add_argument("--since", help="the commit of the old code")
    parser.add_argument("--starts", type=int, default=4)
    given = parser.parse_args(arguments)
    try:
        table = verify(given.chapter, given.preset, given.experiment, given.limit, given.since, given.starts)
    except Refused as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{'experiment':28} {'rows':>5}  {'from':16} {'to':16} {'runs':>5} {'largest':>9} {'min':>5}  how")
    for row in table:
        largest, minutes = row.get("largest"), row.get("seconds")
        print(
            f"{row['experiment']:28} {row['rows']:5}  {row['from']:16} {row['to']:16} {row.get('runs', ''):>5}"
            f" {'' if largest is None else format(largest, '.2g'):>9}"
            f" {'' if minutes is None else format(minutes / 60, '.1f'):>5}  {row['how']}"
        )
    return int(any(row["how"] not in ("fresh", "moved", "verified") for row in table))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
