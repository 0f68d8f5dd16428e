"""Running a script as ``python script.py`` would: what it finds, and how it ends."""

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
        how: to be read after "the script ended".
        status: what it ended with, as ``sys.exit`` takes it; 130 for Ctrl-C, as shells report that.
        early: whether an exception or Ctrl-C stopped it.
    """

    how: str = "by itself"
    status: int | str | None = 0
    early: bool = False


@contextmanager
def as_main(script: str, arguments: Sequence[str]) -> Iterator[ModuleType]:
    """A module ``__main__`` for the script, with the ``sys.argv`` and ``sys.path`` that python gives it, for a while.

    What a script leaves behind, such as data sets, may still need its module: end the block after the last use.
    """
    module = _main_module(script)
    argv, path, main = sys.argv, list(sys.path), sys.modules["__main__"]
    sys.argv, sys.modules["__main__"] = [script, *arguments], module
    if not getattr(sys.flags, "safe_path", False):  # else the first entry is nobody's folder
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    try:
        yield module
    finally:
        sys.argv, sys.path[:], sys.modules["__main__"] = argv, path, main


def execute(module: ModuleType) -> Ending:
    """Run the script of :func:`as_main`. An exception is shown as python shows it, and goes no further."""
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
    module, path = ModuleType("__main__"), os.path.join(os.getcwd(), script)  # as python has it: absolute, but as typed
    loader = SourceFileLoader("__main__", path)
    vars(module).update(__file__=path, __cached__=None, __loader__=loader, __builtins__=builtins, __annotations__={})
    return module


def _show(error: BaseException, module: ModuleType) -> None:
    """Print the traceback from the script's own first line on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is not vars(module):
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)
