"""A chapter's runs on several processes or machines: `make rerun CHAPTER=<chapter> ENGINE=<engine>`.

The functions of a chapter live in its script, where no pickle finds them, so none is sent. Each worker runs the script
itself. All meet the same sweeps in the same order; at each, a worker computes the next run that no other has locked,
and waits at the end for those that others compute. A worker that dies loses its locks, and another computes its run.

All that workers share is one folder, at the same path on every machine, with the script, this package and the results.
Its file system must provide

1. advisory locks (`flock`, which NFS turns into those of POSIX) that hold between machines and are dropped when their
   process dies or its machine is lost: before a worker starts it tries a lock that is held here, and refuses to start
   if it gets it;
2. close-to-open consistency: who opens a file after another has closed it reads what the other wrote;
3. `fsync` that returns when the server has the data. Rows are appended under a lock, so appending need not be atomic.
"""

from . import _extra as _extra  # isort: split

import abc
import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import filelock

from .runs import _as_completed, _folder

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 10  # seconds in which a scheduler must answer
_FORMS = (
    "local://2 (processes here), dask://host:port (a scheduler that runs) or slurm?jobs=8&partition=<name> (submitit)"
)


class Unfinished(Exception):
    """No worker came through: runs are missing, which the message names, or the chapter stops; and how each ended."""


@dataclasses.dataclass(frozen=True)
class Report:
    """How a `worker` ended: its exit `status`, "refused" or "lost" where it has none, and the end of its `output`."""

    worker: str
    status: int | str
    output: str

    def __str__(self) -> str:
        if self.status == 0:
            return f"{self.worker} came through the chapter"
        how = self.status if isinstance(self.status, str) else f"ended with status {self.status}"
        return f"{self.worker}: {how}; {self.output.splitlines()[-1] if self.output else 'it wrote nothing'}"


@dataclasses.dataclass(frozen=True)
class Worker:
    """One pass through a chapter: what an engine takes to another process, and calls there, without arguments.

    **Arguments:** `script`, the path of the chapter's; `root`, the folder it is run in; `place`, a folder in which the
    command that waits for the workers holds `lock`, and that vanishes when they shall stop; `environment`, variables for
    the script.

    **Returns:** when called, a `Report`. It raises nothing for what goes wrong in the script.
    """

    script: str
    root: str
    place: str
    environment: Mapping[str, str]

    def __call__(self) -> Report:
        host, lock = socket.gethostname(), Path(self.place, "lock")
        if absent := [path for path in (self.script, self.root, lock) if not Path(path).exists()]:
            return Report(host, "refused", f"there is no {absent[0]} on {host}; share that folder at the same path")
        with contextlib.suppress(filelock.Timeout), filelock.FileLock(lock, blocking=False):
            return Report(
                host,
                "refused",
                f"{host} gets {lock}, which another process holds: locks of this file system do not hold between"
                " machines; mount it with locks (NFS: without nolock or local_lock; Lustre: with flock)",
            )
        environment = {**os.environ, **self.environment}
        environment.pop("WMLIB_RECORDED_ONLY", None)
        number, log = tempfile.mkstemp(suffix=".log", prefix=f"{host}-", dir=self.place)
        with (
            open(number, "wb") as output,
            subprocess.Popen(
                [sys.executable, "-m", "wmlib.lab._chapter", self.script],
                cwd=self.root,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            ) as process,
        ):
            try:
                while lock.exists():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.5)
                        break
            finally:
                process.kill()  # after its end, nothing
        try:
            lines = Path(log).read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return Report(f"{host}, process {process.pid}", process.returncode, "\n".join(lines[-40:]))


class AbstractEngine(abc.ABC):
    """Something that starts workers."""

    @abc.abstractmethod
    def start(self, worker: Worker, held: contextlib.ExitStack) -> dict[Any, str]:
        """Have `worker` called in each process or machine, and do not wait.

        **Arguments:** `worker`; `held`, which is closed when no worker is wanted any more.

        **Returns:** the name of each worker, by an object with `done()`, `result()` (a `Report`) and `cancel()`.

        **Raises:** `ValueError` or `OSError`, with the cure, before anything is started.
        """


@dataclasses.dataclass(frozen=True)
class Local(AbstractEngine):
    """`local://<workers>`: processes on this machine."""

    workers: int

    def start(self, worker: Worker, held: contextlib.ExitStack) -> dict[Any, str]:
        pool = ThreadPoolExecutor(self.workers)
        held.callback(pool.shutdown)
        return {pool.submit(worker): f"{i + 1} of {self.workers}" for i in range(self.workers)}


@dataclasses.dataclass(frozen=True)
class Dask(AbstractEngine):
    """`dask://<host>:<port>`: all workers that a scheduler of `dask.distributed` has, a pass through the chapter each.

    A worker process computes one chapter, so start each with one thread, in an environment with this package: on one
    machine `dask scheduler`, on each machine `dask worker <scheduler> --nthreads 1`. The pass of a worker that dies goes
    to another, behind its own. If all die, the command waits for new ones.
    """

    address: str

    def start(self, worker: Worker, held: contextlib.ExitStack) -> dict[Any, str]:
        from distributed import Client

        cure = f"start one worker on each machine: dask worker {self.address} --nthreads 1"
        try:
            client = held.enter_context(Client(self.address, timeout=_PATIENCE, set_as_default=False))
        except OSError as error:
            raise OSError(f"no scheduler answers at {self.address}; start one: dask scheduler. Then {cure}") from error
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as error:
            raise OSError(f"the scheduler at {self.address} has no workers; {cure}") from error
        threads: Any = client.nthreads()
        return {
            client.submit(worker, pure=False, workers=[address], allow_other_workers=True): address
            for address in threads
        }


@dataclasses.dataclass(frozen=True)
class Slurm(AbstractEngine):
    """`slurm?jobs=<jobs>&<option>=<value>&…`: jobs that submitit sends to Slurm; tested with submitit's local executor.

    The options are submitit's: `timeout_min`, `mem_gb`, `cpus_per_task`, `gpus_per_node` and `name` of its
    `AutoExecutor`, and all those of its `SlurmExecutor` that are numbers or words: `partition`, `account`, `qos`,
    `constraint`, … `cluster=local` or `cluster=debug` takes another of its executors instead. A job that runs out of time
    ends; give `timeout_min` for the chapter, or start the same command again.
    """

    jobs: int
    cluster: str
    options: Mapping[str, int | str]

    def start(self, worker: Worker, held: contextlib.ExitStack) -> dict[Any, str]:
        import submitit

        try:
            executor = submitit.AutoExecutor(Path(worker.place, "jobs"), cluster=self.cluster)
            shared = executor._typed_parameters()
            executor.update_parameters(**{k if k in shared else f"slurm_{k}": v for k, v in self.options.items()})
        except (RuntimeError, ValueError, NameError, AssertionError) as error:
            raise ValueError(f"submitit refuses the engine {self}: {error}") from error
        with executor.batch():
            jobs = [executor.submit(worker) for _ in range(self.jobs)]
        return {job: f"job {job.job_id}" for job in jobs}


def find_engine(text: str) -> AbstractEngine:
    """The engine that a word names: `local://2`, `dask://host:port` or `slurm?jobs=8&partition=gpu&timeout_min=240`.

    **Raises:** `ValueError` for anything else, `ModuleNotFoundError` where a package of the extra `engines` is missing.

    **Example:** `find_engine("local://2").workers == 2`.
    """
    head, _, query = text.partition("?")
    kind, _, place = head.partition("://")
    if kind not in ("local", "dask", "slurm"):
        raise ValueError(f"there is no engine {text!r}; give {_FORMS}")
    if kind == "slurm":
        if place:
            raise ValueError(f"Slurm is asked from where you are, got {text!r}; give slurm?jobs=8")
        options = {k: int(v) if re.fullmatch(r"\d+", v) else v for k, v in urllib.parse.parse_qsl(query)}
        jobs, cluster = options.pop("jobs", None), options.pop("cluster", "slurm")
        if not isinstance(jobs, int) or jobs < 1:
            raise ValueError(f"how many jobs are wanted? Got {text!r}; give slurm?jobs=8")
        _needs("submitit", text)
        return Slurm(jobs, str(cluster), options)
    if query:
        raise ValueError(f"{kind}:// has no options, got {text!r}; give {_FORMS}")
    if kind == "local":
        if not re.fullmatch(r"[1-9]\d*", place):
            raise ValueError(f"how many processes are wanted? Got {text!r}; give local://2")
        return Local(int(place))
    if not re.fullmatch(r".+:\d+", place):
        raise ValueError(f"where does the scheduler listen? Got {text!r}; give dask://host:8786")
    _needs("distributed", text)
    return Dask(f"tcp://{place}")


def _needs(package: str, text: str) -> None:
    if find_spec(package) is None:
        raise ModuleNotFoundError(
            f'the engine {text} needs {package}, which is not installed: pip install "wmlib[engines]"', name=package
        )


def run(
    script: str | os.PathLike[str],
    preset: str,
    engine: AbstractEngine,
    *,
    results: str | os.PathLike[str] | None = None,
) -> list[Report]:
    """Compute the missing runs of a chapter with the workers of an engine, and stop them when one has come through.

    **Arguments:** `script`, the path of the chapter's; `preset`, its name; `engine`; `results`, the folder of the rows,
    found as by `sweep`. Variables of the environment that are called `WMLIB_…` go to the workers.

    **Returns:** the reports of the workers that ended before the chapter was complete, and of the one that completed it.
    Each is also printed when it comes, with the traceback of what went wrong.

    **Raises:** `ValueError` or `OSError`, before anything is computed, if there is no such script, or the engine or the
    folder does not serve; `Unfinished` if no worker came through, and runs are missing or the chapter stops.

    **Example:** `run("notebooks/paths/metric.py", "cpu", find_engine("local://2"))`.
    """
    script = Path(script).absolute()
    if not script.is_file():
        raise ValueError(f"there is no script {script}; give a chapter's, as notebooks/paths/metric.py")
    folder = _folder(results, preset).absolute()
    (folder / ".claims").mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    environment = {name: value for name, value in os.environ.items() if name.startswith("WMLIB_")}
    environment |= {"WMLIB_PRESET": preset, "WMLIB_RESULTS": str(folder), "MPLBACKEND": "agg", "PYTHONPATH": paths}
    place = Path(tempfile.mkdtemp(prefix="engine-", dir=folder / ".claims"))
    worker = Worker(str(script), str(Path.cwd()), str(place), environment)
    jobs: dict[Any, str] = {}
    reports: list[Report] = []
    with contextlib.ExitStack() as held:
        held.callback(shutil.rmtree, place, ignore_errors=True)
        held.enter_context(filelock.FileLock(place / "lock"))
        try:
            jobs |= engine.start(worker, held)
            print(f"{len(jobs)} workers; what they write is in {place}", file=sys.stderr, flush=True)
            for job in _as_completed(jobs):
                try:
                    report = job.result()
                except Exception as error:  # each engine has its own for a worker that is gone
                    report = Report(jobs[job], "lost", f"{type(error).__name__}: {error}")
                reports.append(report)
                print(*filter(None, (report.status and report.output, report)), sep="\n", file=sys.stderr, flush=True)
                if report.status in (0, "refused"):
                    break
        finally:
            (place / "lock").unlink()  # at which workers stop
            for job in jobs:
                job.cancel()
    if reports[-1].status != 0 and (missing := _missing(script, environment)):
        raise Unfinished("\n".join([missing, *map(str, reports)]))
    return reports


def _missing(script: Path, environment: Mapping[str, str]) -> str:
    """What stops a chapter that may compute nothing: the runs that are missing, or an error of its own."""
    command = [sys.executable, "-m", "wmlib.lab._chapter", str(script), "recorded"]
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,  # open as long as this process lives
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        output = process.stderr.read()
    return output.strip().splitlines()[-1] if process.returncode else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; 0 if all runs of the chapter are recorded at its end."""
    parser = argparse.ArgumentParser(prog="make rerun", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("script")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--engine", required=True, help=_FORMS)
    given = parser.parse_args(arguments)
    try:
        run(given.script, given.preset, find_engine(given.engine))
    except (Unfinished, ValueError, OSError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    from wmlib.lab import engines  # what is sent to workers must not be of __main__

    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(engines.main())
    sys.exit(130)
