"""The recording of one learner: open episodes, the ledger of those that are over, and what is read from them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial

from learn2learn.data import Taskset
from torch import Tensor, nn

from ..errors import RecordingError, TaskDataChangedError
from .episodes.completeness import require_complete, require_tasks
from .episodes.description import describe
from .episodes.episode import Episode, Forward, Lifeline, Track, Watch
from .episodes.ledger import Ledger
from .episodes.matching import Match
from .episodes.parameters import ParameterPlaces
from .episodes.stores import BoundedStore, CompleteStore
from .episodes.task import RecordedTask
from .episodes.unserved import as_fed, is_unserved
from .interception.failures import Failures
from .interception.journal import journal
from .options import MIB, RecordingOptions
from .study.uncopied import Uncopied
from .tasksets.board import Identity
from .tasksets.content import Tensors
from .tasksets.reading import Source
from .tasksets.tasks import Card, card_of, new_card


class Recording(Uncopied):
    """Which tasks a learner was fed, and which of them it trained on.

    Got by `recording_of`; it fills while the training loop runs and can be read at any time.
    """

    def __init__(self, options: RecordingOptions | None = None) -> None:
        self.options = options or RecordingOptions()
        self.failures = Failures()
        self.adapting = 0
        self.places = ParameterPlaces()
        self._adapted: CompleteStore[Identity, dict[str, Tensor]] = CompleteStore()
        self._data: BoundedStore[Identity, Tensors] = BoundedStore()
        self._ledger = Ledger()
        self._open: dict[int, Episode] = {}
        self._numbers = itertools.count()
        self._ids: dict[Identity, int] = {}

    @property
    def tasks(self) -> list[RecordedTask]:
        """All tasks that the learner was fed, in order of first draw, those only used for validation included."""
        return self._handed_out(self._current_ledger())

    @property
    def tasks_so_far(self) -> list[RecordedTask]:
        """`tasks`, for who looks on while the loop goes on: no ids are given for good, and no more memory is held.

        Data are given only as far as they are in memory, or to be had of a taskset that serves the same again.
        """
        ledger = self._current_ledger()
        return [
            replace(task, id=number, read=partial(self._read_on, identity, ledger))
            for number, (identity, task) in enumerate(self._described(ledger))
        ]

    @property
    def trouble(self) -> str:
        """Why the tasks that trained are not the whole story, or nothing."""
        try:
            require_complete(self._current_ledger(), self.failures, self.options)
        except RecordingError as error:
            return str(error)
        return ""

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
        trained = [task for task in self._handed_out(ledger) if task.times_trained]
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
        found = {record.bodies for record in self._current_ledger().records.values() if record.times_trained}
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

    @property
    def stands_for(self) -> float:
        """How many draws that trained there were for each one recorded: 1, unless there were too many tasks for all.

        Those recorded are then a uniform sample; see ``overflow`` in `RecordingOptions`.
        """
        return self._current_ledger().stands_for

    @property
    def unmatched(self) -> int:
        """How many forwards of input that belongs to no task served had a part in training."""
        return self._current_ledger().foreign.total()

    @cached_property
    def own_card(self) -> Card:
        """For tasks that no taskset served; the keys of their content are negative."""
        return new_card(itertools.count(-1, -1))

    @property
    def keeps_adapted(self) -> bool:
        """Whether adapted parameters are worth being remembered."""
        return self.options.keep_adapted and self._adapted.open

    def begin(self, parent: Watch | None) -> Watch:
        """Start to watch a new clone, of the learner or of a clone that ``parent`` watches."""
        if parent is not None and parent.track.forwards and not parent.episode.closed:
            journal.catch_up()  # it goes on with what its parent was found to be fed
            track, episode, lifeline = parent.track.child(), parent.episode, parent.lifeline
        else:
            track, (episode, lifeline) = Track(), self._opened()
        episode.tracks.append(track)
        return Watch(track, episode, lifeline, self)

    def add(self, episode: Episode) -> None:
        """Enter an episode that nobody watched."""
        self._enter(episode, self._ledger)

    def end(self, number: int) -> None:
        """Enter an episode that is over, unless all were closed."""
        episode = self._open.pop(number, None)
        if episode is not None:
            self._enter(episode, self._ledger)

    def close(self) -> None:
        """End the open episodes: whatever their clones still do is not recorded."""
        journal.catch_up()
        for number, episode in list(self._open.items()):
            episode.closed = True
            with self.failures.kept():
                self.end(number)

    def open_forwards(self) -> list[Forward]:
        """What the clones in open episodes were fed."""
        tracks = (track for episode in list(self._open.values()) for track in episode.tracks)
        return [forward for track in tracks for forward in track.forwards]

    def _opened(self) -> tuple[Episode, Lifeline]:
        number = next(self._numbers)
        episode = self._open[number] = Episode()
        return episode, Lifeline(number, weakref.ref(self), self.failures)

    def _current_ledger(self) -> Ledger:
        """The ledger as it would be if the open episodes ended now."""
        journal.catch_up()
        ledger = self._ledger.copy()
        for episode in self._open.values():
            with self.failures.kept():
                self._enter(episode, ledger)
        return ledger

    def _enter(self, episode: Episode, ledger: Ledger) -> None:
        for track, found in ledger.add([self._as_fed(track, ledger) for track in episode.tracks]):
            again = ledger.gives_back(found.served.identity)
            self._keep_data(found, expendable=not track.trained, again=again)
            self._keep_adapted(track, found)
        for identity in ledger.shrink(self.options):
            self._data.discard(identity)
            self._adapted.discard(identity)

    def _as_fed(self, track: Track, ledger: Ledger) -> Track:
        """The track; of one that was fed what no taskset served, the same as if one had, where that can be told."""
        found = as_fed(track, self.own_card) if is_unserved(track) else None
        if found is not None:
            ledger.remarks["draws of rows that no taskset had served, kept as they were fed"] += 1
        return found or track

    def _keep_data(self, found: Match, expendable: bool, again: bool) -> None:
        """Keep the data of a task, unless they are to be had ``again`` from the taskset or were let go already."""
        tensors, identity = found.served.content.tensors, found.served.identity
        if again or tensors is None:
            self._data.discard(identity)
        else:
            self._keep(identity, tuple([tensor.cpu() for tensor in tensors]), expendable)

    def _keep(self, identity: Identity, tensors: Tensors, expendable: bool) -> None:
        size = sum([tensor.nbytes for tensor in tensors])
        self._data.put(identity, tensors, size, self.options.data_bytes, expendable)

    def _keep_adapted(self, track: Track, found: Match) -> None:
        if track.adapted is not None and track.trained:
            on_cpu = track.adapted.on_cpu()
            size = sum([value.nbytes for value in on_cpu.values()])
            self._adapted.put(found.served.identity, on_cpu, size, self.options.adapted_bytes)

    def _handed_out(self, ledger: Ledger) -> list[RecordedTask]:
        return [
            replace(task, id=self._ids.setdefault(identity, len(self._ids)))
            for identity, task in self._described(ledger)
        ]

    def _described(self, ledger: Ledger) -> Iterator[tuple[Identity, RecordedTask]]:
        """The tasks in order of first draw, without their ids."""
        for identity, record in sorted(ledger.records.items(), key=lambda item: item[1].first):
            yield (
                identity,
                RecordedTask(
                    id=-1,
                    taskset=record.taskset,
                    key=record.key,
                    indices=record.indices,
                    classes=record.classes,
                    support_rows=record.support_rows,
                    query_rows=record.query_rows,
                    times_seen=record.times_seen,
                    times_trained=record.times_trained,
                    lr=record.lr,
                    steps=record.steps,
                    first_order=record.first_order,
                    rule=record.rule,
                    together=record.together,
                    batch_norm=record.batch_norm,
                    labels=record.labels,
                    adapted=self._adapted.get(identity),
                    seen_labels=record.seen_labels,
                    seen_query_labels=record.seen_query_labels,
                    loss=record.loss,
                    query_loss=record.query_loss,
                    read=partial(self._read, identity, record.source),
                    fingerprint=record.source.fingerprint.hex(),
                ),
            )

    def _read(self, identity: Identity, source: Source) -> Tensors:
        tensors = self._data.get(identity)
        if tensors is None:
            tensors = source.read()
            self._keep(identity, tensors, expendable=True)
        return tensors

    def _read_on(self, identity: Identity, ledger: Ledger) -> Tensors:
        tensors, source = self._data.get(identity), ledger.records[identity].source
        if tensors is None and not ledger.gives_back(identity):
            raise TaskDataChangedError(f"the data of {source.name} were not kept: data_bytes has no room for them")
        return source.read() if tensors is None else tensors
