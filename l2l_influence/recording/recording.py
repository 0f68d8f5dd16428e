"""The recording of one learner: open episodes, the ledger of those that are over, and what is read from them."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from learn2learn.data import Taskset
from torch import Tensor, nn

from ..errors import RecordingError
from .board import Identity
from .content import Data
from .diagnosis import require_complete, require_tasks
from .episode import Episode, Lifeline, Track, Watch
from .failures import Failures
from .ledger import Ledger
from .matching import Match
from .options import MIB, RecordingOptions
from .reading import Source
from .report import describe
from .stores import BoundedStore
from .task import RecordedTask
from .tasks import card_of


class Recording:
    """Which tasks a learner was fed, and which of them it trained on.

    Got by `recording_of`; it fills while the training loop runs and can be read at any time.
    """

    def __init__(self, options: RecordingOptions | None = None) -> None:
        self.options = options or RecordingOptions()
        self.failures = Failures()
        self.adapting = 0
        self._adapted: BoundedStore[Identity, dict[str, Tensor]] = BoundedStore()
        self._data: BoundedStore[Identity, Data] = BoundedStore()
        self._ledger = Ledger()
        self._open: dict[int, Episode] = {}
        self._lifelines: dict[int, weakref.ref[Lifeline]] = {}
        self._over: deque[int] = deque()
        self._numbers = itertools.count()
        self._ids: dict[Identity, int] = {}

    @property
    def tasks(self) -> list[RecordedTask]:
        """All tasks that the learner was fed, in order of first draw, those only used for validation included."""
        return self._handed_out(self._current_ledger())

    def training_tasks(self, tasks: Taskset | None = None) -> list[RecordedTask]:
        """The tasks whose loss reached the meta-parameters, in order of first draw.

        Args:
            tasks: only those drawn from this `TaskDataset` (or from the taskset that it wraps).

        Raises:
            NothingRecordedError: there is none.
            UnmatchedInputError: the learner also trained on input that no recorded taskset had served.
            AmbiguousTaskError: a draw fits two tasks.
            RecordingError: the recorder itself failed, or there were too many tasks.
        """
        ledger = self._current_ledger()
        require_complete(ledger, self.failures, self.options)
        trained = [task for task in self._handed_out(ledger) if task.trained]
        if tasks is not None:
            trained = [task for task in trained if task.taskset == card_of(tasks).number]
        require_tasks(trained, ledger, tasks)
        return trained

    @property
    def body(self) -> nn.Module | None:
        """What made the features that the learner was fed (ANIL), if it was not fed the rows themselves.

        Raises:
            RecordingError: not all tasks that trained came through the same modules.
        """
        found = {record.bodies for record in self._current_ledger().records.values() if record.trained}
        if len(found) > 1:
            raise RecordingError(
                "not all tasks that trained were fed as features of the same modules: pass body=, the module that "
                "makes them, or feed all tasks in the same way"
            )
        bodies = found.pop() if found else ()
        return bodies[0] if len(bodies) == 1 else nn.Sequential(*bodies) if bodies else None

    def describe(self) -> str:
        """What was recorded, what was not, and how much memory it takes."""
        return describe(self._current_ledger(), self.failures, (self._data.bytes + self._adapted.bytes) / MIB)

    def __repr__(self) -> str:
        return f"<Recording: {self.describe()}>"

    def begin(self, parent: Watch | None) -> Watch:
        """Start to watch a new clone, of the learner or of a clone that ``parent`` watches."""
        self._settle()
        if parent is not None and parent.track.forwards and not parent.episode.closed:
            track, episode, lifeline = parent.track.child(), parent.episode, parent.lifeline
        else:
            track, (episode, lifeline) = Track(), self._opened()
        episode.tracks.append(track)
        return Watch(track, episode, lifeline, self)

    def add(self, episode: Episode) -> None:
        """Enter an episode that nobody watched."""
        self._settle()
        self._enter(episode, self._ledger)

    def close(self) -> None:
        """End the open episodes: whatever their clones still do is not recorded."""
        self._settle()
        self._lifelines.clear()
        self._over.clear()  # of what ended since: it is still among the open ones
        for episode in self._open.values():
            episode.closed = True
            self._enter(episode, self._ledger)
        self._open.clear()

    @contextmanager
    def adaptation(self) -> Iterator[None]:
        """While a learner adapts, gradients are no sign of meta-training."""
        self.adapting += 1
        try:
            yield
        finally:
            self.adapting -= 1

    def _opened(self) -> tuple[Episode, Lifeline]:
        number, lifeline, episode = next(self._numbers), Lifeline(), Episode()
        self._open[number] = episode
        # The callback may run anywhere, also while autograd takes a graph down: it only leaves a note.
        self._lifelines[number] = weakref.ref(lifeline, partial(_note, self._over, number))
        return episode, lifeline

    def _settle(self) -> None:
        """Enter the episodes that are over."""
        while self._over:
            number = self._over.popleft()
            del self._lifelines[number]
            self._enter(self._open.pop(number), self._ledger)

    def _current_ledger(self) -> Ledger:
        """The ledger as it would be if the open episodes ended now."""
        self._settle()
        ledger = self._ledger.copy()
        for episode in self._open.values():
            self._enter(episode, ledger)
        return ledger

    def _enter(self, episode: Episode, ledger: Ledger) -> None:
        with self.failures.kept():
            for track, found in ledger.add(episode, self.options.max_tasks):
                self._keep_data(found, expendable=not track.trained)
                self._keep_adapted(track, found)

    def _keep_data(self, found: Match, expendable: bool) -> None:
        identity, data = found.served.identity, found.served.content.data
        if data is not None and data.intact:
            self._data.put(identity, data.on_cpu(), data.nbytes, self.options.data_bytes, expendable)

    def _keep_adapted(self, track: Track, found: Match) -> None:
        if track.adapted is None or not track.trained:
            return
        size = sum(tensor.nbytes for tensor in track.adapted.values())
        on_cpu = {name: tensor.cpu() for name, tensor in track.adapted.items()}
        self._adapted.put(found.served.identity, on_cpu, size, self.options.adapted_bytes)

    def _handed_out(self, ledger: Ledger) -> list[RecordedTask]:
        in_order = sorted(ledger.records.items(), key=lambda item: item[1].first)
        return [
            RecordedTask(
                id=self._ids.setdefault(identity, len(self._ids)),
                taskset=record.taskset,
                key=record.key,
                indices=record.indices,
                classes=record.classes,
                support_rows=record.support_rows,
                query_rows=record.query_rows,
                draws=record.draws,
                trained=record.trained,
                lr=record.lr,
                steps=record.steps,
                first_order=record.first_order,
                rule=record.rule,
                together=record.together,
                labels=record.labels,
                adapted=self._adapted.get(identity),
                seen_labels=record.seen_labels,
                read=partial(self._read, identity, record.source),
            )
            for identity, record in in_order
        ]

    def _read(self, identity: Identity, source: Source) -> tuple[Tensor, ...]:
        data = self._data.get(identity)
        if data is not None and data.intact and data.fingerprint == source.fingerprint:
            return data.tensors
        return source.read()


def _note(over: deque[int], number: int, _dead: object) -> None:
    over.append(number)
