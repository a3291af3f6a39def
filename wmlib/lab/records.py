"""Files of recorded lines, JSON, one a line: appended and synced, sealed by digests, never edited.

Beside the rows of each experiment stand `equivalences.jsonl`, which says where results are known to be those of newer
code; `withdrawn.jsonl`; and `manifest.json`, the digests of rows from before rows carried their own. This file imports nothing of wmlib: older versions of the library are asked through it.
"""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

if __package__:  # not where it is loaded by its path, for another version of the library
    from . import _extra as _extra

import filelock
import jax
import numpy as np

_ROW = frozenset({"experiment", "config", "seed", "preset", "metrics", "curves", "seconds", "code"})
_VERSIONS = ("jax", "jaxlib", "equinox", "optax", "quax", "numpy", "wmlib")
_WHERE_USED = ("scipy", "lineax", "diffrax", "datasets", "transformers")
_LINE = frozenset({"experiment", "from", "to", "rows", "reason", "why", "digest"})
_WITHDRAWN = frozenset({"experiment", "config", "seed", "row", "reason", "digest"})


def identity(config: Mapping[str, Any], seed: int | None) -> str:
    """What tells a run from the others of its experiment."""
    return json.dumps([config, seed], sort_keys=True)


def content_digest(entry: Mapping[str, Any]) -> str:
    """SHA-256 (16 hex digits) of an entry's canonical JSON, its own `digest` left out."""
    rest = {key: value for key, value in entry.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def read_lines(path: str | os.PathLike[str], needs: Iterable[str], what: str = "row") -> list[dict[str, Any]]:
    """The entries of a file of JSON lines; none if there is no file.

    A last line that a kill left half-written is passed over, with a warning; a withdrawal is not, or what it withdraws
    would be back.

    **Raises:** `ValueError`, with the number of the line, if another line is damaged, lacks one of the keys `needs`, or
    is not what its `digest` was made of.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            entry = json.loads(line)
            if not entry.keys() >= {*needs}:
                raise ValueError(f"it is not a {what}")
            if "digest" in entry and entry["digest"] != content_digest(entry):
                raise ValueError(f"its content has the digest {content_digest(entry)}, not {entry['digest']}")
            entries.append(entry)
        except (ValueError, AttributeError) as error:
            ended = "has the digest" in str(error)  # no newline after it: the write did not end
            if number == len(lines) and not ended and what != "withdrawal":
                lost = "; its run is missing" if what == "row" else ""
                warnings.warn(f"{path} ends in a half-written line, which is left out{lost}", stacklevel=3)
            else:
                raise ValueError(
                    f"line {number} of {path} is damaged ({error}); restore the file, or delete that line to compute"
                    " its run again"
                ) from error
    return entries


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a record file, those withdrawn among them; none if there is no file.

    A last line that a kill left half-written is passed over, with a warning. Rows from before rows had a digest of
    their content are held against `manifest.json` in the same folder, where there is one.

    **Raises:** `ValueError`, with the number of the line, if another line is damaged, its content is not what was written
    or it is of another experiment; and if a row that the manifest seals is not there.
    """
    path = Path(path)
    rows, sealed = read_lines(path, _ROW), manifest(path.parent)
    mine, unsigned = sealed.get(path.name, []), []
    for number, row in enumerate(rows, 1):
        wrong = ""
        if row["experiment"] != path.stem:
            wrong = f"it is of the experiment {row['experiment']!r}"
        elif "digest" not in row:
            unsigned.append(content_digest(row))
            if "processor" in row or (sealed and unsigned[-1] not in mine):
                wrong = f"its content has the digest {unsigned[-1]}, which is not sealed in manifest.json"
        if wrong:
            raise ValueError(
                f"row {number} of {path} (seed {row['seed']}, {row['config']!r:.100}) is damaged: {wrong}; restore the"
                " file, or delete that line to compute its run again"
            )
    if rows and (lacks := {*mine} - {*unsigned}):
        raise ValueError(
            f"{path} lacks {len(lacks)} of the {len(mine)} rows that manifest.json seals ({min(lacks)}, …); restore the file"
        )
    return rows


def standing_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a record file that have not been withdrawn. **Raises:** as `read_rows`.

    A withdrawal that `manifest.json` seals stands, also where its line is no longer there.
    """
    path = Path(path)
    gone = {line["row"] for line in withdrawals(path.parent)} | {*_sealed(path.parent).get("withdrawn", ())}
    return [row for row in read_rows(path) if not gone or (row.get("digest") or content_digest(row)) not in gone]


def withdrawals(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of `withdrawn.jsonl` in a folder: the `experiment`, `config` and `seed` of a row, the digest of its
    content (`row`), and the `reason`. The rows themselves stay where they are.

    **Raises:** `ValueError` for a damaged line.
    """
    return read_lines(Path(folder) / "withdrawn.jsonl", _WITHDRAWN, "withdrawal")


def withdraw(folder: str | os.PathLike[str], row: Mapping[str, Any], reason: str) -> None:
    """Add a row to `withdrawn.jsonl`, and to what the manifest seals; nothing reads it as a result from then on."""
    line = {key: row[key] for key in ("experiment", "preset", "config", "seed")}
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    append_row(Path(folder) / "withdrawn.jsonl", {**line, "row": content_digest(row), "reason": reason, "time": when})
    if sealed := _sealed(folder):
        sealed["withdrawn"] = [*sealed.get("withdrawn", ()), content_digest(row)]
        sealed["digest"] = content_digest(sealed)
        (Path(folder) / "manifest.json").write_text(json.dumps(sealed, indent=1) + "\n")


def manifest(folder: str | os.PathLike[str]) -> dict[str, list[str]]:
    """What `manifest.json` in a folder seals: by file, the digests of the rows that carry none, in their order.

    **Raises:** `ValueError` for a damaged manifest.
    """
    return _sealed(folder).get("rows", {})


def _sealed(folder: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(folder) / "manifest.json"
    if not path.exists():
        return {}
    try:
        sealed = json.loads(path.read_bytes())
        if sealed["digest"] != content_digest(sealed):
            raise ValueError("its content is not what was written")
        return sealed
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from git") from error


def append_row(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Append one entry, with the digest of its content, and sync it to disk; a half-written last line is first cut off.

    Numbers that are not finite are written as null.
    """
    path = Path(path)
    entry = plain(row)
    entry["digest"] = content_digest(json.loads(json.dumps(entry, allow_nan=False)))
    line = json.dumps(entry, allow_nan=False).encode() + b"\n"
    lock = path.parent / ".claims" / f"{path.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock), open(path, "a+b") as file:
        file.seek(0)
        whole, newline, tail = file.read().rpartition(b"\n")
        try:  # a last line that lacks nothing but its end is a row all the same
            line = b"\n" * bool(tail and json.loads(tail)) + line
        except ValueError:
            file.truncate(len(whole + newline))
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def equivalences(folder: str | os.PathLike[str], experiment: str) -> list[dict[str, Any]]:
    """The lines of `equivalences.jsonl` in a folder that are about one experiment.

    A line leads from the digest `from` of the code that computed rows to the digest `to` of newer code with the same
    results. `rows` is "all", for all rows of the digest `from`, or a list of the digests of their contents. `reason` is
    "moved", "verified" or, for rows whose digest was once written over, "replaced"; `why` says the same in words.

    **Raises:** `ValueError` for a damaged line.
    """
    lines = read_lines(Path(folder) / "equivalences.jsonl", _LINE, "line on equivalence")
    return [line for line in lines if line["experiment"] == experiment]


def leads_to(row: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]) -> set[str]:
    """The digests of all code that is known to give a row's results: its own, and those that lines lead to from it."""
    known, lines = {row["code"]}, [*lines]
    content = content_digest(row) if any(line["rows"] != "all" for line in lines) else None
    lines = [line for line in lines if line["rows"] == "all" or content in line["rows"]]
    while new := {line["to"] for line in lines if line["from"] in known and line["to"] not in known}:
        known |= new
    return known


def freshness(folder: str | os.PathLike[str], experiment: str) -> Callable[[Mapping[str, Any], str], bool]:
    """A function of a row and a digest: whether code with that digest is known to give the row's results."""
    lines = equivalences(folder, experiment)
    return lambda row, code: row["code"] == code or (bool(lines) and code in leads_to(row, lines))


def circumstances(root: str | os.PathLike[str]) -> dict[str, Any]:
    """What a row says of where it was computed: device, processor, threads, time, commit and versions.

    `threads` has the number of cores that this process may use (`cores`) and, where they are set, the variables that
    bound the threads of XLA and its libraries. `commit` is that of the folder `root`, with a "+" if a file of it has
    been changed since, None outside git. `versions` are those of the core, and of what else has been imported.
    """
    device = jax.devices()[0]
    is_cpu = device.platform == "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    bounds = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "XLA_FLAGS") if os.environ.get(name)}
    used = [name for name in _WHERE_USED if name in sys.modules]
    return {
        "device": f"{device.device_kind}, {os.cpu_count()} cores" if is_cpu else device.device_kind,
        "processor": processor(),
        "threads": {"cores": cores, **bounds},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "commit": commit(root),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in (*_VERSIONS, *used)},
    }


@functools.cache
def processor() -> str:
    """The model of the processor, "unknown" where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    try:
        return platform.processor() or "unknown"
    except OSError:
        return "unknown"


@functools.cache  # that of the code which this process has loaded, not of what becomes of it meanwhile
def commit(root: str | os.PathLike[str]) -> str | None:
    """The commit that a folder's files are of, with a "+" if a file that git knows has changed since; None outside git.

    Recorded runs do not count: they are what the code writes.
    """
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)book/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)


def _git(root: str | os.PathLike[str], *command: str) -> str:
    done = subprocess.run(["git", "-C", os.fspath(root), *command], capture_output=True, text=True, check=True)
    return done.stdout.strip()
