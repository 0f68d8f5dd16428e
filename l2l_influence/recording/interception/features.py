"""Rows that reach a learner as features: what a shared body made of rows that a taskset served (ANIL).

While a loop is recorded, each module that is called by the loop itself (not by another module) is taken for a possible
body: which rows went in, and which came out. A learner that is fed what came out was fed the rows that went in. A loop
may be a module itself, with the learner in it, and be called as one; Lightning does so under some strategies.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.utils.hooks import RemovableHandle

from ...storage.fingerprints import first_tensor, is_transformed, row_digests
from ..episodes.normalisation import BatchNorm, common, normalising, statistics
from ..learners.base import ROOTS
from ..tasksets.board import board
from ..tasksets.content import copied
from .journal import journal

MAX_CALLS = 64


@dataclass(eq=False)
class Call:
    """One call of a body.

    Attributes:
        bodies: the modules that the rows went through, the first one first.
        rows: the served row that each row of the output was made of.
        batch_norm: what their layers worked with.
    """

    bodies: tuple[nn.Module, ...]
    rows: dict[bytes, bytes]
    batch_norm: BatchNorm | None
    serial: int = field(default_factory=itertools.count().__next__)

    def origin(self, digests: Sequence[bytes]) -> tuple[bytes, ...]:
        """The served rows that these rows of the output were made of."""
        return tuple(self.rows[digest] for digest in digests)


@dataclass
class Features:
    """A bounded memory of the latest calls, found by the rows that came out."""

    _calls: OrderedDict[int, Call] = field(default_factory=OrderedDict)
    _by_row: dict[bytes, Call] = field(default_factory=dict)

    def source(self, digests: Sequence[bytes]) -> Call | None:
        """The one call that all these rows came out of."""
        call = self._by_row.get(digests[0]) if digests else None
        return call if call is not None and all(digest in call.rows for digest in digests) else None

    def note(self, body: nn.Module, rows: Tensor, made: Tensor, batch_norm: BatchNorm | None) -> None:
        """``body`` made these rows, in order, of those; nothing is noted if those were not served."""
        fed = row_digests(rows)
        before = self.source(fed)
        origin = before.origin(fed) if before else tuple(fed)
        if not board.holding(origin):
            return
        bodies = (*(before.bodies if before else ()), body)
        modes = batch_norm, before.batch_norm if before else None
        call = Call(bodies, dict(zip(row_digests(made), origin, strict=True)), common(modes))
        self._calls[call.serial] = call
        self._by_row.update(dict.fromkeys(call.rows, call))
        while len(self._calls) > MAX_CALLS:
            self._forget(next(iter(self._calls)))

    def clear(self) -> None:
        """Forget all calls."""
        self._calls.clear()
        self._by_row.clear()

    def _forget(self, serial: int) -> None:
        call = self._calls.pop(serial)
        for digest in call.rows:
            if self._by_row.get(digest) is call:
                del self._by_row[digest]


features = Features()
"""The one memory of this process, as there is one board."""


class _Nesting(threading.local):
    """How many module calls are under way in this thread."""

    depth = 0


class Watcher:
    """Tells :data:`features` of the modules that the loop calls, while it is on. No module is changed."""

    def __init__(self) -> None:
        self._nesting = _Nesting()
        self._handles: list[RemovableHandle] = []
        self._on = False
        self._resting = 0
        self._lock = threading.Lock()

    def on(self) -> None:
        """Begin to watch."""
        self._on = True
        self._register()

    def off(self) -> None:
        """Stop, and keep none of the bodies alive."""
        self._on = False
        self._remove()
        journal.catch_up()
        features.clear()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """While a learner computes, modules are called by it and not by the loop: there is nothing to watch.

        With any hook in place torch calls each module in a slower way.
        """
        with self._lock:
            self._resting += 1
            self._remove()
        try:
            yield
        finally:
            with self._lock:
                self._resting -= 1
                if self._on and not self._resting:
                    self._register()

    def _register(self) -> None:
        self._handles = [
            modules.register_module_forward_pre_hook(self._entering),
            modules.register_module_forward_hook(self._left, always_call=True),
        ]

    def _remove(self) -> None:
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()

    def _entering(self, module: nn.Module, _args: Any) -> None:
        if self._nesting.depth or isinstance(module, ROOTS) or not _has_learner(module):
            self._nesting.depth += 1

    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        # It may begin inside a call that it has not seen begin.
        self._nesting.depth = max(0, self._nesting.depth - 1)
        if self._nesting.depth or not isinstance(output, Tensor) or is_transformed(output) or _has_learner(module):
            return
        with board.failures.kept():
            self._note(module, args, output)

    @staticmethod
    def _note(module: nn.Module, args: Any, output: Tensor) -> None:
        rows = first_tensor((args,))
        if rows is not None and min(rows.dim(), output.dim()) > 0 and len(rows) == len(output):
            fed, made = copied(rows), copied(output)
            mode = statistics(normalising(module.modules()))
            journal.note(fed.nbytes + made.nbytes, board.failures, features.note, module, fed, made, mode)


def _has_learner(module: nn.Module) -> bool:
    """Whether a learner is, or is part of, this module. One that has a learner is not a body but the loop itself."""
    return any(isinstance(part, ROOTS) for part in module.modules())


watcher = Watcher()
"""On while anything is recorded by `record`."""
