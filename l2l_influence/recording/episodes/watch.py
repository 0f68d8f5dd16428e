"""`CloneWatch`: lives as long as a clone or its graph, and writes their events into the clone's log.

When the last watch of an episode is deleted, no forward, adapt or backward can follow, and the episode is over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..deferred import DeferredCalls
from ..failures import Failures
from .clone_log import CloneLog, Forward
from .graph import OutputMark, running_backward_passes
from .losses import Comparison
from .normalisation import Layers


@dataclass(eq=False)
class Activity:
    """The part of a recording that the watches of its clones need.

    Attributes:
        calls: what is still to be examined.
        failures: of the recorder.
        adapting: number of adapt calls under way; meanwhile gradients are no sign of meta-training.
    """

    calls: DeferredCalls = field(default_factory=DeferredCalls)
    failures: Failures = field(default_factory=Failures)
    adapting: int = 0


@dataclass(eq=False, slots=True)
class Episode:
    """The logs of a clone and of the clones made from it once it had been fed something: one draw of a task.

    ``closed``: whatever the clones still do is not recorded.
    """

    logs: list[CloneLog] = field(default_factory=list)
    closed: bool = False


class Finalizer:
    """Is deleted with the last clone and the last graph of an episode, and has the episode entered then."""

    __slots__ = ("activity", "end", "number")

    def __init__(self, number: int, end: Callable[[], Callable[[int], None] | None], activity: Activity) -> None:
        self.number, self.end, self.activity = number, end, activity

    def __del__(self) -> None:
        # This may run anywhere, also while autograd deletes a graph: so it only defers the call.
        self.activity.calls.append(self.activity.failures, _end, self.end, self.number)


def _end(end: Callable[[], Callable[[int], None] | None], number: int) -> None:
    alive = end()
    if alive is not None:
        alive(number)


class CloneWatch:
    """Held by a clone and by its graph.

    Attributes:
        nodes: the graph nodes that the gradients of the clone's parameters go on to, until they have hooks.
        normalising: the clone's layers with running statistics.
    """

    __slots__ = ("activity", "episode", "finalizer", "log", "nodes", "normalising")

    def __init__(self, log: CloneLog, episode: Episode, finalizer: Finalizer, activity: Activity) -> None:
        self.log, self.episode, self.finalizer, self.activity = log, episode, finalizer, activity
        self.nodes: list[Any] = []
        self.normalising: Layers = []

    def passed(self, forward: Forward) -> None:
        """A backward passes the output of ``forward``."""
        forward.used = True
        if not self.log.trained:
            reaches = running_backward_passes(self.nodes)
            self.log.trained = bool(reaches)
            if reaches is None:
                self.listen()

    def listen(self) -> None:
        """Have autograd say when a gradient goes from the clone's parameters to the learner's."""
        nodes, self.nodes = self.nodes, []  # the nodes hold this watch from now on, so it may not hold them
        for node in nodes:
            node.register_hook(self._reached)

    def _reached(self, *_gradients: Any) -> None:
        if not self.activity.adapting:
            self.log.trained = True


class OutputHook:
    """Called by autograd when a gradient reaches the output of a forward."""

    __slots__ = ("forward", "watch")

    def __init__(self, watch: CloneWatch, forward: Forward) -> None:
        self.watch, self.forward = watch, forward

    @property
    def adapting(self) -> bool:
        """True if an adapt call is under way."""
        return self.watch.activity.adapting > 0

    def __call__(self, *_gradients: Any) -> None:
        if self.adapting:
            return
        try:
            self.watch.passed(self.forward)
        except Exception:
            self.watch.activity.failures.keep()


class LossHook:
    """Called by autograd when a backward reaches the value of a loss of a forward's output."""

    __slots__ = ("comparison", "output")

    def __init__(self, output: OutputMark, comparison: Comparison) -> None:
        self.output, self.comparison = output, comparison

    def __call__(self, gradients: Any) -> None:
        gradient = gradients[0].detach()  # with a graph it would keep this very graph alive
        if self.output.adapting:
            self.comparison.inner = gradient
        else:
            self.comparison.outer = gradient
