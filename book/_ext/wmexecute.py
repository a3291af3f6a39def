"""Executes the chapters on all cores, before Sphinx reads the first page.

myst-nb would execute each page when it comes to it, one after another. Here every chapter without a fresh record is
executed first, several at a time, and put into the same cache in the same form, where myst-nb then finds it:

1. chapters are read by myst-nb's own reader and looked up as its client looks them up;
2. each runs in the folder of its script, on one core, the longest script first;
3. only this process writes to the cache;
4. the limit on a chapter counts processor time, so that a busy machine fails nothing.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.config import NbParserConfig
from myst_nb.core.read import create_nb_reader
from myst_parser.config.main import MdParserConfig
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from traitlets.config import Config

LIMIT = 300
"""Seconds of processor time that a chapter may take."""
HANGS = 3600
"""Seconds on the clock after which a cell is taken to hang: it then waits for something that never comes."""

_logger = logging.getLogger(__name__)


class Executed(NamedTuple):
    """A chapter with its outputs, the seconds it took on the clock and on the processors, and what stopped it."""

    path: str
    notebook: NotebookNode
    seconds: float
    processor: float
    failure: str = ""


def read(path: Path, nb_config: NbParserConfig, md_config: MdParserConfig | None = None) -> NotebookNode | None:
    """The chapter as myst-nb reads it; None of a page without cells."""
    text = path.read_text(encoding="utf8")
    reader = create_nb_reader(str(path), md_config or MdParserConfig(), nb_config, text)
    return reader and reader.read(text)


@contextlib.contextmanager
def by_files() -> Iterator[Config]:
    """How a kernel is reached: by sockets in a folder of its own.

    By default it is reached by ports, and one found free for this kernel can be taken by another before this one binds it.
    """
    # TMPDIR may be long, and the path of a socket has at most 107 bytes.
    short = "/tmp" if os.path.isdir("/tmp") else None
    with tempfile.TemporaryDirectory(prefix="wm-", dir=short) as folder:
        yield Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})


def execute(path: str, notebook: NotebookNode, limit: int = LIMIT) -> Executed:
    """Run all cells in a kernel of its own, in the folder of `path`, until `limit` seconds of processor time."""
    # A kernel is a child of this process and inherits its limit, with a clock that starts at zero.
    _lower(resource.RLIMIT_CPU, math.ceil(time.process_time()) + limit)
    _lower(resource.RLIMIT_CORE, 0)
    before = _processor_seconds()
    try:
        with by_files() as reached:
            done = single_nb_execution(
                notebook, cwd=str(Path(path).parent), timeout=HANGS, allow_errors=False, config=reached
            )
        seconds, failure = done.time, done.exc_string and f"{_last_cell(notebook)}:\n{done.err}"
    except DeadKernelError:
        seconds, failure = 0.0, f"{_last_cell(notebook)}: the kernel died"
        if _processor_seconds() - before > 0.95 * limit:  # the kernel counts in ticks of its own
            failure += f", after {limit} seconds of processor time, which is the limit of a chapter"
    return Executed(path, notebook, seconds, _processor_seconds() - before, failure or "")


def execute_all(
    chapters: dict[str, NotebookNode], cache_path: str, workers: int | None = None, limit: int = LIMIT
) -> list[Executed]:
    """Execute the chapters that the cache does not have, and put those that succeed into it.

    `chapters` are notebooks by the path of their source; `workers` run at a time, one on each core by default.
    """
    cache = get_cache(cache_path)
    missing = {}
    for path, notebook in chapters.items():
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            missing[path] = notebook
    if not missing:
        return []
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None] * (os.cpu_count() or 1)
    cores = cores[: min(workers or len(cores), len(missing))]
    # Forked processes would inherit the locks of Sphinx's threads.
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for core in cores:
        free.put(core)
    executed = []
    with ProcessPoolExecutor(len(cores), context, initializer=_stay_on, initargs=(free,)) as pool:
        longest_first = sorted(missing, key=lambda path: -sum(len(cell.source) for cell in missing[path].cells))
        for future in as_completed([pool.submit(execute, path, missing[path], limit) for path in longest_first]):
            one = future.result()
            if not one.failure:
                cache.cache_notebook_bundle(
                    CacheBundleIn(one.notebook, one.path, data={"execution_seconds": one.seconds}),
                    check_validity=False,
                    overwrite=True,
                )
            executed.append(one)
    return executed


def before_reading(app: Sphinx, env: Any, docnames: Sequence[str]) -> None:
    """Fill the cache for the pages that Sphinx is about to read; a chapter that fails fails the build."""
    nb_config, root = env.mystnb_config, Path(app.srcdir)
    if nb_config.execution_mode != "cache":
        return
    chapters = {}
    for path in (Path(env.doc2path(name)) for name in docnames):
        if path.suffix in nb_config.custom_formats and (notebook := read(path, nb_config, env.myst_config)):
            chapters[str(path)] = notebook
    executed = execute_all(chapters, nb_config.execution_cache_path)
    for one in executed:
        with contextlib.suppress(ValueError):
            path = Path(one.path).relative_to(root)
            _logger.info("%s: %.0f s, %.0f s of processor time", path, one.seconds, one.processor)
    if failed := sorted(f"{Path(one.path).relative_to(root)}, {one.failure}" for one in executed if one.failure):
        raise ExtensionError("these chapters failed:\n\n" + "\n\n".join(failed))


def _stay_on(free: Any) -> None:
    """One core for this process and its kernels: JAX makes as many threads as it may use cores."""
    core = free.get()
    if core is not None:
        os.sched_setaffinity(0, {core})


def _lower(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _last_cell(notebook: NotebookNode) -> str:
    """The cell that a kernel stopped in: the last that was started."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    stopped = next((i for i, cell in enumerate(code, 1) if _failed(cell) or not cell.execution_count), len(code))
    return f"code cell {stopped} of {len(code)}"


def _failed(cell: NotebookNode) -> bool:
    return any(output.output_type == "error" for output in cell.outputs)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-before-read-docs", before_reading)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
