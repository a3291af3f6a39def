"""Runs chapters as scripts, each in a process of its own that is forked where the packages are imported already.

A program, not a module: it reads jobs from its input, a line of JSON each with the script's `path`, the `folder` to run it in,
the `environment` beside its own, the most seconds of processor time (`limit`), and the files `out` and `error`. For each it
writes a line with the `code` that the script ended with and the `seconds` of processor time, those of the imports with them.
"""

import gc
import importlib
import json
import os
import resource
import runpy
import sys
from pathlib import Path

COMMON = ["equinox", "IPython.display", "jax", "matplotlib.pyplot", "optax", "pandas", "scipy.optimize", "scipy.stats"]
COMMON += [f"wmlib.lab.{name}" for name in ("cache", "data", "figures", "pages", "runs", "verdicts")]


def seconds(who):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def serve():
    """The job of this process, in one that was forked for it; None at the end of the input, in the first."""
    imports = seconds(resource.RUSAGE_SELF)
    for line in sys.stdin:
        job = json.loads(line)
        if not (child := os.fork()):
            return job
        _, status, used = os.wait4(child, 0)
        found = {"code": os.waitstatus_to_exitcode(status), "seconds": imports + used.ru_utime + used.ru_stime}
        print(json.dumps(found), flush=True)
    return None


for name in COMMON:
    importlib.import_module(name)
gc.freeze()
if job := serve():
    for number, name, how in (
        (0, os.devnull, os.O_RDONLY),
        (1, job["out"], os.O_WRONLY),
        (2, job["error"], os.O_WRONLY),
    ):
        os.dup2(os.open(name, how | os.O_CREAT), number)
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    resource.setrlimit(resource.RLIMIT_CPU, (job["limit"],) * 2)
    sys.argv, sys.path[0] = [job["path"]], str(Path(job["path"]).parent)
    runpy.run_path(job["path"], run_name="__main__")
