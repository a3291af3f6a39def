"""Run a chapter's script in this process: `python -m wmlib.lab._chapter <script> [recorded]`. A program for `engines`.

It ends with the process that started it, however that one ends: their pipe, its standard input, is then closed. With
the word "recorded" nothing is computed, and the script stops at the first sweep of which runs are missing.
"""

import os
import runpy
import sys
import threading
from pathlib import Path

import wmlib as wm


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock a thread must not hold when the interpreter ends
    os._exit(1)


def main(script: str, *words: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "recorded" in words:
        sweep = wm.sweep
        wm.sweep = lambda *args, **options: sweep(*args, **{**options, "compute": False})
    sys.argv, sys.path[0] = [script], str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
