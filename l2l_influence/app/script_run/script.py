"""Run a script as ``python script.py`` does, and report how it ended."""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from types import ModuleType

ERROR, INTERRUPTED = 1, 130


@dataclass(frozen=True)
class Ending:
    """How a script ended.

    Attributes:
        how: completes "the script ended …".
        status: exit status as ``sys.exit`` takes it; 130 for Ctrl-C, as in shells.
        early: True if an exception or Ctrl-C stopped it.
    """

    how: str = "normally"
    status: int | str | None = 0
    early: bool = False


@contextmanager
def as_main(script: str, arguments: Sequence[str]) -> Iterator[ModuleType]:
    """Inside the block: a module ``__main__`` for the script, and the ``sys.argv`` and ``sys.path`` that python sets.

    Objects of the script, such as data sets, may need its module, so keep the block open while they are in use.
    """
    module = _main_module(script)
    argv, path, main = sys.argv, list(sys.path), sys.modules["__main__"]
    sys.argv, sys.modules["__main__"] = [script, *arguments], module
    sys.path[:] = search_path(script)
    try:
        yield module
    finally:
        sys.argv, sys.path[:], sys.modules["__main__"] = argv, path, main


def search_path(script: str) -> list[str]:
    """The folders in which python looks for modules that a script imports."""
    if getattr(sys.flags, "safe_path", False):  # python then adds no folder of the script
        return list(sys.path)
    return [os.path.dirname(os.path.realpath(script)), *sys.path[1:]]


def execute(module: ModuleType) -> Ending:
    """Run the script of :func:`as_main`. An exception is printed as python does, and not raised."""
    try:
        loader = vars(module)["__loader__"]
        exec(loader.source_to_code(loader.get_data(loader.path), loader.path), vars(module))
    except SystemExit as request:
        return Ending(f"with sys.exit({'' if request.code is None else repr(request.code)})", request.code)
    except BaseException as error:
        _show(error, module)
        status = INTERRUPTED if isinstance(error, KeyboardInterrupt) else ERROR
        return Ending(f"early, with {type(error).__name__}", status, early=True)
    return Ending()


def _main_module(script: str) -> ModuleType:
    module = ModuleType("__main__")
    path = os.path.join(os.getcwd(), script)  # as in python: absolute, symbolic links kept
    loader = SourceFileLoader("__main__", path)
    vars(module).update(__file__=path, __cached__=None, __loader__=loader, __builtins__=builtins, __annotations__={})
    return module


def _show(error: BaseException, module: ModuleType) -> None:
    """Print the traceback, starting at the script itself."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is not vars(module):
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)
