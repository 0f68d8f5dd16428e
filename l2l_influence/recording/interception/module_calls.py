"""`ModuleCalls`: hears which modules the loop itself calls, to recognise features (ANIL).

While a loop is recorded, each module that the loop calls (and not another module) is taken for a possible body: which
rows went in, and which came out. A loop may itself be a module that holds the learner and is called as one; Lightning
does so under some strategies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.utils.hooks import RemovableHandle

from ...storage.fingerprints import is_transformed
from ..learners.registry import ROOTS

Called = Callable[[nn.Module, Any, Tensor], None]
"""``called(module, arguments, output)``, once the loop has called a module that has no learner in it."""


class _Nesting(threading.local):
    """The number of module calls under way in this thread."""

    depth = 0


class ModuleCalls:
    """Calls ``called`` for each module that the loop calls, while it is on. No module is changed."""

    def __init__(self, called: Called) -> None:
        self._called = called
        self._nesting = _Nesting()
        self._handles: list[RemovableHandle] = []
        self._on = False
        self._pauses = 0
        self._lock = threading.Lock()

    def on(self) -> None:
        """Start."""
        self._on = True
        self._register()

    def off(self) -> None:
        """Stop."""
        self._on = False
        self._remove()

    def pause(self) -> None:
        """Stop while a learner computes: it calls modules then, and the loop does not.

        With any hook in place torch calls each module in a slower way.
        """
        with self._lock:
            self._pauses += 1
            self._remove()

    def resume(self) -> None:
        """End a pause."""
        with self._lock:
            self._pauses -= 1
            if self._on and not self._pauses:
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
        self._called(module, args, output)


def _has_learner(module: nn.Module) -> bool:
    """True if a learner is, or is part of, this module. A module that has a learner is the loop itself, and no body."""
    return any(isinstance(part, ROOTS) for part in module.modules())
