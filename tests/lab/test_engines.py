"""A chapter spread over several processes: who computes what, and what survives the death of a worker."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import filelock
import pytest

from wmlib.lab import engines
from wmlib.lab.records import read_rows

pytestmark = pytest.mark.processes

# The functions of the script are its own, and one is cached: no engine could send them. The second sweep is of other
# code where the first was not complete. A run is held up until its process is killed, the first time that it is begun.
CHAPTER = """
    import os
    import time
    from functools import cache
    from pathlib import Path

    import wmlib as wm

    HERE = Path(__file__).parent


    @cache
    def squares():
        return [x**2 for x in range(6)]


    def began(config):
        with open(HERE / "began", "a") as log:
            log.write(f"{config} {os.getpid()} {os.getppid()}\\n")


    def first(config, key):
        began(config)
        if config["x"] == 3 and HERE.joinpath("hold").exists():
            HERE.joinpath("hold").unlink()
            HERE.joinpath("held").write_text(f"{os.getpid()} {os.getppid()}")
            time.sleep(600)
        if config["x"] == 4 and HERE.joinpath("fail").exists():
            if HERE.joinpath("fail").read_text() == "once":
                HERE.joinpath("fail").unlink()
            raise RuntimeError("out of ink")
        time.sleep(0.1)
        return {"metrics": {"y": squares()[config["x"]]}, "data": "synthetic: squares"}


    frame = wm.sweep("first", first, {"x": [*range(6)]}, wm.preset(cpu=dict(seeds=2)))
    LARGEST = float(frame["y"].max())


    def second(config, key):
        began(config)
        return {"metrics": {"y": LARGEST + config["z"]}, "data": "synthetic: squares"}


    frame = wm.sweep("second", second, {"z": [1, 2]}, wm.preset(cpu=dict(seeds=2)))
    print("stale:", frame["stale"].sum(), wm.lab.runs.recorded_runs("first", "cpu")["stale"].sum())
"""

RUNS = {"first": [(x, seed) for x in range(6) for seed in range(2)], "second": [(z, s) for z in (1, 2) for s in (0, 1)]}


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    for name in ("WMLIB_PRESET", "WMLIB_RERUN", "WMLIB_RECORDED_ONLY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WMLIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (path := tmp_path / "chapter.py").write_text(textwrap.dedent(CHAPTER))
    return path


@contextlib.contextmanager
def rerun(chapter, engine):
    command = [sys.executable, "-W", "error", "-m", "wmlib.lab.engines", str(chapter), "--engine", engine]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # after its end, nothing; a test that fails does not wait for it


def until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def is_alive(process):
    """Whether a process runs; one that has ended may wait to be asked how."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def began(chapter):
    return [line.rsplit(maxsplit=2) for line in (chapter.parent / "began").read_text().splitlines()]


def assert_complete(chapter):
    """Each run is recorded once; no lock, process or folder is left."""
    results = chapter.parent / "results"
    for name, runs in RUNS.items():
        rows = read_rows(results / f"{name}.jsonl")
        assert sorted((*row["config"].values(), row["seed"]) for row in rows) == runs
        assert len({row["code"] for row in rows}) == 1
    assert not [*results.glob(".claims/engine-*")]
    for claim in results.glob(".claims/*"):
        with filelock.FileLock(claim, blocking=False):
            pass
    for _, process, _ in began(chapter):
        until(lambda process=process: not is_alive(int(process)), 5)


# ------------------------------------------------------------------------------------------------ a worker dies


@pytest.fixture
def cluster(tmp_path):
    """The address of a scheduler of dask.distributed with two workers, which nothing starts again when they die."""
    pytest.importorskip("distributed", reason="no distributed, which the extra `engines` brings")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scheduler = ["dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = ["dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    said, processes = tmp_path / "cluster.log", []
    try:
        with open(said, "wb") as log:
            for program, *words in (scheduler, worker, worker):
                command = [sys.executable, "-m", f"distributed.cli.{program}", *words]
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path))
        until(lambda: said.read_text().count("Registered to:") == 2)
        yield f"127.0.0.1:{port}"
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_worker_of_dask_that_is_killed_in_a_run_loses_and_doubles_none(chapter, cluster):
    (chapter.parent / "hold").touch()
    with rerun(chapter, f"dask://{cluster}") as command:
        until((chapter.parent / "held").exists)
        until(lambda: len(read_rows(chapter.parent / "results" / "first.jsonl")) == 11)  # by the other; it waits now
        process, worker = map(int, (chapter.parent / "held").read_text().split())
        assert command.poll() is None
        os.kill(worker, signal.SIGKILL)
        _, said = command.communicate(timeout=120)
    assert command.returncode == 0, said
    assert "came through the chapter" in said
    assert not is_alive(process)
    # The run was begun twice, and no other: by the worker that died, then by the one that waited for it.
    assert len(began(chapter)) == 1 + 12 + 4
    owners = [int(parent) for run, _, parent in began(chapter) if run == "{'x': 3}"]
    assert (len(owners), owners.count(worker), len({*owners})) == (3, 1, 2)
    assert_complete(chapter)


# ------------------------------------------------------------------------------------------------ other engines


def test_processes_here_share_the_runs_and_one_completes_what_another_failed_at(chapter):
    (chapter.parent / "fail").write_text("once")
    with rerun(chapter, "local://2") as command:
        _, said = command.communicate(timeout=120)
    assert command.returncode == 0, said
    assert said.count("in first\n    raise RuntimeError") == 1
    failed = next(process for run, process, _ in began(chapter) if run == "{'x': 4}")
    assert f"{socket.gethostname()}, process {failed}: ended with status 1; RuntimeError: out of ink\n" in said
    assert len({process for _, process, _ in began(chapter)}) == 2
    assert_complete(chapter)
    # To the script alone, the rows are those of its own code.
    only_recorded = {**os.environ, "WMLIB_RECORDED_ONLY": "1"}
    plain = subprocess.run([sys.executable, str(chapter)], env=only_recorded, capture_output=True, text=True)
    assert plain.stdout == "stale: 0 0\n", plain.stderr


def test_runs_that_are_missing_afterwards_are_named(chapter):
    (chapter.parent / "fail").write_text("always")
    with rerun(chapter, "local://1") as command:
        _, said = command.communicate(timeout=120)
    assert command.returncode == 1
    assert said.count("process ") == 2  # when it happens, with the traceback, and at the end
    assert "of 12 runs of 'first' are not recorded at the preset 'cpu'" in said
    assert "{'x': 4} seed 0" in said
    assert not [*chapter.parent.glob("results/.claims/engine-*")]


def test_jobs_of_submitit_compute_each_run_once(chapter):
    pytest.importorskip("submitit", reason="no submitit, which the extra `engines` brings")
    with rerun(chapter, "slurm?cluster=local&jobs=2&timeout_min=1&partition=any") as command:
        _, said = command.communicate(timeout=120)
    assert command.returncode == 0, said
    assert len(began(chapter)) == 16
    assert_complete(chapter)


@pytest.fixture
def interruptible():
    """What is started in the background of a shell ignores Ctrl-C, and so does all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_command_that_is_interrupted_stops_its_workers(chapter, interruptible):
    (chapter.parent / "hold").touch()
    with rerun(chapter, "local://1") as command:
        until((chapter.parent / "held").exists)
        command.send_signal(signal.SIGINT)
        assert command.wait(10) == 130
    (_, process, _) = began(chapter)[-1]
    until(lambda: not is_alive(int(process)), 5)
    assert not [*chapter.parent.glob("results/.claims/engine-*")]


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.fixture
def worker(chapter, tmp_path):
    return engines.Worker(str(chapter), str(tmp_path), str(tmp_path), {})


def test_a_worker_without_the_shared_folder_starts_nothing(worker, chapter):
    report = worker()
    assert (report.status, chapter.parent.joinpath("began").exists()) == ("refused", False)
    assert f"there is no {chapter.parent / 'lock'} on {socket.gethostname()}; share that folder" in str(report)


def test_a_worker_that_gets_a_lock_which_another_holds_starts_nothing(worker, chapter):
    (chapter.parent / "lock").touch()  # as it looks where locks do not hold between machines
    report = worker()
    assert (report.status, chapter.parent.joinpath("began").exists()) == ("refused", False)
    assert "locks of this file system do not hold between machines; mount it with locks" in str(report)


def test_a_refusal_and_a_lost_worker_are_told(chapter, capfd, monkeypatch):
    class Job:
        cancelled = False

        def __init__(self, result):
            self.result = result

        def done(self):
            return True

        def cancel(self):
            self.cancelled = True

    def lost():
        raise RuntimeError("the machine is gone")

    class Made(engines.AbstractEngine):
        def start(self, worker, held):
            return dict.fromkeys(jobs, "it")

    jobs = [Job(lost), Job(lambda: engines.Report("there", "refused", "no folder")), Job(lost)]
    monkeypatch.setattr(engines, "_missing", lambda *_: "3 runs are missing")
    with pytest.raises(engines.Unfinished, match=r"^3 runs are missing\nit: lost; RuntimeError: the machine is gone\n"):
        engines.run(chapter, "cpu", Made())
    assert all(job.cancelled for job in jobs)
    assert capfd.readouterr().err.endswith("no folder\nthere: refused; no folder\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ray://2", "no engine 'ray://2'; give local://2 .* dask://host:port .* or slurm"),
        ("", "no engine ''; give"),
        ("local://", "how many processes are wanted"),
        ("local://0", "give local://2"),
        ("local://2?jobs=3", "local:// has no options"),
        ("dask://host", "where does the scheduler listen.* give dask://host:8786"),
        ("slurm", "how many jobs are wanted.* give slurm.jobs=8"),
        ("slurm?jobs=two", "how many jobs"),
        ("slurm://host?jobs=2", "Slurm is asked from where you are"),
    ],
)
def test_engines_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        engines.find_engine(text)


def test_options_and_addresses_are_read(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: True)
    assert engines.find_engine("local://3") == engines.Local(3)
    assert engines.find_engine("dask://host:8786") == engines.Dask("tcp://host:8786")
    found = engines.find_engine("slurm?partition=gpu&gpus_per_node=1&timeout_min=240&jobs=8")
    assert found == engines.Slurm(8, "slurm", {"partition": "gpu", "gpus_per_node": 1, "timeout_min": 240})


@pytest.mark.parametrize(("text", "package"), [("dask://host:1", "distributed"), ("slurm?jobs=1", "submitit")])
def test_a_package_that_is_missing_is_named_with_its_extra(text, package, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=rf'needs {package}.* pip install "wmlib\[engines\]"'):
        engines.find_engine(text)


def test_an_engine_that_does_not_serve_says_so_before_anything_runs(chapter, monkeypatch, capfd):
    for name in ("submitit", "distributed"):
        pytest.importorskip(name, reason=f"no {name}, which the extra `engines` brings")
    monkeypatch.setattr(engines, "_PATIENCE", 0.5)
    monkeypatch.setenv("PATH", "")
    for engine, message in [
        ("slurm?jobs=1", "submitit refuses the engine"),
        ("slurm?jobs=1&cluster=local&colour=red", "Unknown argument 'colour'"),
        ("dask://127.0.0.1:1", "no scheduler answers at tcp://127.0.0.1:1; start one: dask scheduler"),
    ]:
        assert engines.main([str(chapter), "--engine", engine]) == 1
        assert message in capfd.readouterr().err
    assert engines.main([str(chapter.with_name("none.py")), "--engine", "local://1"]) == 1
    assert "there is no script" in capfd.readouterr().err
    assert not [*chapter.parent.glob("results/.claims/engine-*"), *chapter.parent.glob("began")]
