"""Evidence about one draw: what a clone of the learner was fed, and what became of its outputs.

Evidence holds no graph. What lives as long as a clone or its graph is the `Watch`; when the last of an episode's
watches is gone, no forward, adapt or backward can come any more, and the episode is over.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...storage.fingerprints import row_digests
from ..interception.failures import Failures
from ..interception.features import Call, features
from ..interception.journal import journal
from ..tasksets.board import Board, Served
from .graph import LossReading, running_backward_passes
from .losses import Comparison
from .normalisation import BatchNorm, Layers
from .task import Rule

if TYPE_CHECKING:
    from ..recorder import Recording


@dataclass(eq=False, slots=True)
class Forward:
    """One call of a clone: the rows fed, in order, and what became of the output.

    ``step``: number of adapt calls before. ``shape``: of the tensor fed, None if there was none. ``data``: it came from
    nothing that could be trained. ``matched``: the rows belong to a task served. ``rows``: themselves, if they are data
    that no taskset served. ``consumed``: the loss given to ``adapt`` came from it. ``used``: a backward outside
    ``adapt`` passed through it. ``comparisons``: losses called on the output. ``features``: what made the rows fed of
    those served, if they were not the same. ``batch_norm``: what the clone's layers worked with.
    """

    step: int
    shape: torch.Size | None
    data: bool = True
    digests: tuple[bytes, ...] = ()
    matched: bool = False
    rows: Tensor | None = None
    consumed: bool = False
    used: bool = False
    comparisons: list[Comparison] = field(default_factory=list)
    features: Call | None = None
    batch_norm: BatchNorm | None = None

    @property
    def counted(self) -> list[Comparison]:
        """The losses that had a part in a gradient; all, if none had."""
        took_part = [call for call in self.comparisons if call.inner is not None or call.outer is not None]
        return took_part or self.comparisons

    @property
    def labels(self) -> Tensor | None:
        """What the output was compared with, row by row; None if that was not seen, or not always the same."""
        calls = self.counted
        if not calls or not all(call.row_by_row and _same(call.labels, calls[0].labels) for call in calls):
            return None
        return calls[0].labels

    @property
    def partial(self) -> bool:
        """Whether some of the rows fed had no part in a loss, and it is not known which."""
        rows = self.shape[0] if self.shape else 0
        return any(not call.row_by_row and len(call.labels) < rows for call in self.counted if call.labels.dim())


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and bool((one == other).all()))


class Adapted(NamedTuple):
    """Adapted parameters and their names; None for a shared one that has been named before."""

    names: Sequence[str | None]
    values: Sequence[Tensor]

    @property
    def nbytes(self) -> int:
        """Memory that the values take."""
        return sum([value.nbytes for value in self.values])

    def on_cpu(self) -> dict[str, Tensor]:
        """By name."""
        pairs = zip(self.names, self.values, strict=True)
        return {name: value.cpu() for name, value in pairs if name is not None}


@dataclass(eq=False)
class Track:
    """The evidence about one clone. A clone of a clone starts with what is known of its parent.

    ``unseen_losses``: given to ``adapt``, and not known to have come from a forward. ``unread_losses``: of which it is
    not known what they are. ``tasksets``: those that the rows may come from. They outlive the loop, if need be, until
    the draw is entered, for its class names and its data.
    """

    forwards: list[Forward] = field(default_factory=list)
    candidates: list[Served] = field(default_factory=list)
    steps: int = 0
    lr: float = float("nan")
    first_order: bool = False
    rule: Rule = "sgd"
    adapted: Adapted | None = None
    unseen_losses: int = 0
    unread_losses: int = 0
    trained: bool = False
    tasksets: list[Any] = field(default_factory=list)

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
            self.unread_losses,
        )

    def fed(self, shape: torch.Size | None, data: bool = True) -> Forward:
        """Note a forward."""
        forward = Forward(self.steps, shape, data)
        self.forwards.append(forward)
        return forward

    def identify(self, forward: Forward, rows: Tensor, board: Board) -> None:
        """Find out which rows ``forward`` was fed, and keep only those candidates that contain them too."""
        digests = row_digests(rows)
        forward.features = features.source(digests)
        forward.digests = digests if forward.features is None else forward.features.origin(digests)
        fitting = self._fitting(forward.digests, board) if digests else []
        forward.matched = bool(fitting)
        if not fitting and forward.data:
            forward.rows = rows
        self.candidates = fitting or self.candidates
        self.tasksets = [served.taskset() for served in self.candidates]

    def adapted_to(self, reading: LossReading, lr: float, rule: Rule, first_order: bool) -> None:
        """Note an adapt call that succeeded, on the loss that was read."""
        for forward in self.forwards:
            forward.consumed = forward.consumed or forward in reading.forwards
        self.unseen_losses += not reading.forwards
        self.unread_losses += not reading.whole
        self._stepped(lr, rule)
        self.first_order = first_order

    def updated(self) -> None:
        """Note an update by other means than adapt: its loss is what gradients were taken of until now."""
        for forward in self.forwards:
            forward.consumed = forward.consumed or forward.used
        self.unread_losses += 1
        self._stepped(math.nan, "other")

    def _stepped(self, lr: float, rule: Rule) -> None:
        self.rule = rule if rule == self.rule or not self.steps else "other"
        self.lr = lr if self.rule == "sgd" else math.nan
        self.steps += 1

    def _fitting(self, digests: Sequence[bytes], board: Board) -> list[Served]:
        if not self.candidates:
            return board.holding(digests)
        return [served for served in self.candidates if served.content.contains(digests)]


@dataclass(eq=False, slots=True)
class Episode:
    """The tracks of a clone and of the clones made from it once it had been fed something: one draw.

    ``closed``: whatever the clones still do is not recorded.
    """

    tracks: list[Track] = field(default_factory=list)
    closed: bool = False


class Lifeline:
    """Dies with the last clone and the last graph of an episode, and leaves a note of it."""

    __slots__ = ("failures", "number", "recording")

    def __init__(self, number: int, recording: weakref.ref[Recording], failures: Failures) -> None:
        self.number, self.recording, self.failures = number, recording, failures

    def __del__(self) -> None:
        # This may run anywhere, also while autograd takes a graph down: so nothing but the note.
        journal.append(self.failures, _end, self.recording, self.number)


def _end(recording: weakref.ref[Recording], number: int) -> None:
    alive = recording()
    if alive is not None:
        alive.end(number)


class Watch:
    """Held by a clone and by its graph; tells the track what they do.

    ``nodes``: where the gradients of the clone's parameters go on to, until there are hooks on them. ``normalising``:
    the clone's layers with running statistics.
    """

    __slots__ = ("episode", "lifeline", "nodes", "normalising", "recording", "track")

    def __init__(self, track: Track, episode: Episode, lifeline: Lifeline, recording: Recording) -> None:
        self.track, self.episode, self.lifeline, self.recording = track, episode, lifeline, recording
        self.nodes: list[Any] = []
        self.normalising: Layers = []

    def passed(self, forward: Forward) -> None:
        """A backward passes the output of ``forward``."""
        forward.used = True
        if not self.track.trained:
            reaches = running_backward_passes(self.nodes)
            self.track.trained = bool(reaches)
            if reaches is None:
                self.listen()

    def listen(self) -> None:
        """Have autograd say when a gradient goes from the clone's parameters to the learner's."""
        nodes, self.nodes = self.nodes, []  # the nodes hold this watch from now on, so it may not hold them
        for node in nodes:
            node.register_hook(self._reached)

    def _reached(self, *_gradients: Any) -> None:
        if not self.recording.adapting:
            self.track.trained = True


class OutputHook:
    """What autograd calls when a gradient reaches the output of a forward."""

    __slots__ = ("forward", "watch")

    def __init__(self, watch: Watch, forward: Forward) -> None:
        self.watch, self.forward = watch, forward

    def __call__(self, *_gradients: Any) -> None:
        recording = self.watch.recording
        if recording.adapting:
            return
        try:
            self.watch.passed(self.forward)
        except Exception:
            recording.failures.keep()


class LossHook:
    """What autograd calls when a backward comes to the value of a loss of a forward's output."""

    __slots__ = ("comparison", "output")

    def __init__(self, output: OutputHook, comparison: Comparison) -> None:
        self.output, self.comparison = output, comparison

    def __call__(self, gradients: Any) -> None:
        gradient = gradients[0].detach()  # with a graph it would keep this very graph alive
        if self.output.watch.recording.adapting:
            self.comparison.inner = gradient
        else:
            self.comparison.outer = gradient
