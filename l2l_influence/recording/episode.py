"""Evidence about one draw: what a clone of the learner was fed, and what became of its outputs.

Evidence holds no graph. What lives as long as a clone or its graph is the `Watch`; when the last of an episode's
watches is gone, no forward, adapt or backward can come any more, and the episode is over.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .board import Board, Served
from .features import Call
from .graph import LossReading
from .task import Rule

if TYPE_CHECKING:
    from .recording import Recording

_serials = itertools.count()


@dataclass(eq=False)
class Forward:
    """One call of a clone: the rows fed, in order, and what became of the output.

    ``matched``: the rows belong to a task served. ``step``: number of adapt calls before. ``consumed``: the loss given
    to ``adapt`` came from it. ``used``: a backward outside ``adapt`` passed through it. ``features``: what made
    the rows fed of those served, if they were not the same.
    """

    digests: tuple[bytes, ...]
    shape: str
    step: int
    matched: bool
    consumed: bool = False
    used: bool = False
    labels: Tensor | None = None
    features: Call | None = None
    serial: int = field(default_factory=lambda: next(_serials))


@dataclass(eq=False)
class Track:
    """The evidence about one clone. A clone of a clone starts with what is known of its parent."""

    forwards: list[Forward] = field(default_factory=list)
    candidates: list[Served] = field(default_factory=list)
    steps: int = 0
    lr: float = float("nan")
    first_order: bool = False
    rule: Rule = "sgd"
    adapted: dict[str, Tensor] | None = None
    unseen_losses: int = 0
    trained: bool = False
    _tasksets: list[Any] = field(default_factory=list)

    def child(self) -> Track:
        """The track of a clone of this clone."""
        return Track(
            list(self.forwards),
            self.candidates,
            self.steps,
            self.lr,
            self.first_order,
            self.rule,
            self.adapted,
            self.unseen_losses,
        )

    def fed(self, digests: tuple[bytes, ...], shape: str, board: Board) -> Forward:
        """Note a forward, and keep only those candidates that contain its rows too."""
        fitting = self._fitting(digests, board) if digests else []
        forward = Forward(digests, shape, self.steps, matched=bool(fitting))
        self.forwards.append(forward)
        self._consider(fitting or self.candidates)
        return forward

    def _consider(self, candidates: list[Served]) -> None:
        self.candidates = candidates
        # They outlive the loop, if need be, until the draw is entered, for its class names and its data.
        self._tasksets = [served.taskset() for served in candidates]

    def adapted_to(self, reading: LossReading, lr: float, first_order: bool, rule: Rule) -> None:
        """Note an adapt call that succeeded, on the loss that was read."""
        for forward in self.forwards:
            forward.consumed = forward.consumed or forward.serial in reading.forwards
            forward.labels = reading.labels.get(forward.serial, forward.labels)
        self.unseen_losses += not reading.forwards
        self._stepped(lr, rule)
        self.first_order = first_order

    def updated(self) -> None:
        """Note an update by other means than adapt: its loss is what gradients were taken of until now."""
        for forward in self.forwards:
            forward.consumed = forward.consumed or forward.used
        self._stepped(math.nan, "other")

    def _stepped(self, lr: float, rule: Rule) -> None:
        self.rule = rule if rule == self.rule or not self.steps else "other"
        self.lr = lr if self.rule == "sgd" else math.nan
        self.steps += 1

    def _fitting(self, digests: Sequence[bytes], board: Board) -> list[Served]:
        if not self.candidates:
            return board.holding(digests)
        return [served for served in self.candidates if served.content.contains(digests)]


@dataclass(eq=False)
class Episode:
    """The tracks of a clone and of the clones made from it once it had been fed something: one draw.

    ``closed``: whatever the clones still do is not recorded.
    """

    tracks: list[Track] = field(default_factory=list)
    closed: bool = False


class Lifeline:
    """Dies with the last clone and the last graph of an episode."""

    __slots__ = ("__weakref__",)


class Watch:
    """Held by a clone and by its graph; tells the track what they do."""

    def __init__(self, track: Track, episode: Episode, lifeline: Lifeline, recording: Recording) -> None:
        self.track, self.episode, self.lifeline, self.recording = track, episode, lifeline, recording

    def reached_meta_parameters(self, *_gradients: Any) -> None:
        """Called by autograd when a gradient goes from the clone's parameters to the learner's."""
        if not self.recording.adapting:
            self.track.trained = True

    def watch_output(self, forward: Forward) -> _OutputHook:
        """A hook for autograd to call when a gradient reaches the output of ``forward``."""
        return _OutputHook(self, forward)


class _OutputHook:
    __slots__ = ("forward", "watch")

    def __init__(self, watch: Watch, forward: Forward) -> None:
        self.watch, self.forward = watch, forward

    def __call__(self, *_gradients: Any) -> None:
        if not self.watch.recording.adapting:
            self.forward.used = True
