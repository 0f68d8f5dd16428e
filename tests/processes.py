"""Other processes for tests, without the seven seconds that an interpreter takes to import torch and learn2learn.

They are forked from a server that has imported both once, and has computed nothing. It starts when a test first needs
it, serves all tests of a worker, and has its own hash seed, as any other interpreter would.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

HASH_SEED = "7"


@cache
def context() -> BaseContext:
    """New processes: forks of the server, or new interpreters on systems that cannot fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["torch", "learn2learn", "l2l_influence"])
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": HASH_SEED, "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        forkserver.ensure_running()  # type: ignore[attr-defined]
    return found


def started(function: Callable[..., object], *args: Any) -> BaseProcess:
    """A process that calls a function of a module, and ends with its exception or with 0."""
    process = context().Process(target=function, args=args, daemon=True)  # type: ignore[attr-defined]
    process.start()
    return process  # type: ignore[no-any-return]


def ended(process: BaseProcess, timeout: float = 300) -> int:
    """The exit code, negative for a signal; a process that takes longer is killed."""
    process.join(timeout)
    code = process.exitcode
    if code is None:
        process.kill()
        raise TimeoutError(f"{process.name} has not ended in {timeout} s")
    return code


def run_python(
    arguments: list[str], environment: Mapping[str, str], printed: Path, said: Path, paths: Sequence[str] = ()
) -> None:
    """Run ``script.py ...`` or ``-m module ...`` as ``python -u`` does; to be called in another process.

    Args:
        environment: variables to set.
        printed, said: files for stdout and stderr.
        paths: folders to import from before all others.
    """
    os.environ.update(environment)
    for number, path in ((1, printed), (2, said)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    sys.path[:0] = paths
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")
