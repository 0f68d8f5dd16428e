"""`Recording`: everything recorded about one learner. It owns all of its state."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial

from learn2learn.data import Taskset
from torch import Tensor, nn

from ..errors import RecordingError, TaskDataChangedError
from .deferred import catch_up
from .directory import alive, directory
from .episodes.clone_log import CloneLog, Forward
from .episodes.manual import ManualEpisode
from .episodes.matching import Match
from .episodes.records import TaskRecords
from .episodes.stores import BoundedStore, CompleteStore
from .episodes.summary import describe, require_complete, require_tasks
from .episodes.task import RecordedTask, values_of
from .episodes.unserved import as_fed, is_unserved
from .episodes.watch import Activity, CloneWatch, Episode, Finalizer
from .failures import Failures
from .learners.base import model_of
from .learners.parameters import ParameterPaths
from .learners.registry import require_learner
from .options import MIB, RecordingOptions
from .tasksets.content import Tensors
from .tasksets.info import TasksetInfo
from .tasksets.reading import Source
from .tasksets.served import Identity, known_tasksets
from .tasksets.tasks import info_of
from .uncopied import Uncopied


class Recording(Uncopied):
    """The tasks that a learner was fed, and those that it trained on.

    `recording_of` returns it. It fills while the training loop runs and can be read at any time.
    """

    def __init__(self, options: RecordingOptions | None = None) -> None:
        self.options = options or RecordingOptions()
        self.activity = Activity()
        self.parameter_paths = ParameterPaths()
        self.watches: weakref.WeakKeyDictionary[nn.Module, CloneWatch] = weakref.WeakKeyDictionary()
        self._learner: weakref.ref[nn.Module] | None = None
        self._recorders: list[Failures] = []
        self._adapted: CompleteStore[Identity, dict[str, Tensor]] = CompleteStore()
        self._data: BoundedStore[Identity, Tensors] = BoundedStore()
        self._records = TaskRecords()
        self._open: dict[int, Episode] = {}
        self._numbers = itertools.count()
        self._ids: dict[Identity, int] = {}

    @property
    def tasks(self) -> list[RecordedTask]:
        """All tasks that the learner was fed, in order of first draw; tasks that were only used for validation too."""
        return self._handed_out(self._current_records())

    @property
    def tasks_so_far(self) -> list[RecordedTask]:
        """A read-only view of `tasks` during training: assigns no permanent ids and keeps no extra memory.

        Data can be read only if they are in memory, or if the taskset has proved to serve the same data again.
        """
        records = self._current_records()
        return [
            replace(task, id=number, read=partial(self._read_only, identity, records))
            for number, (identity, task) in enumerate(self._described(records))
        ]

    @property
    def trouble(self) -> str:
        """The reason why the tasks that trained are incomplete, or an empty string."""
        try:
            self._require_complete(self._current_records())
        except RecordingError as error:
            return str(error)
        return ""

    def training_tasks(self, tasks: Taskset | None = None) -> list[RecordedTask]:
        """The tasks whose loss had a gradient that reached the meta-parameters, in order of first draw.

        Args:
            tasks: only tasks drawn from this `TaskDataset` (or from the taskset that it wraps).

        Raises:
            NothingRecordedError: there is no such task.
            UnmatchedInputError: the learner also trained on input that no recorded taskset had served.
            AmbiguousTaskError: a draw fits two tasks.
            RecordingError: the recorder itself failed, or there were too many tasks.
        """
        records = self._current_records()
        self._require_complete(records)
        trained = [task for task in self._handed_out(records) if task.times_trained]
        if tasks is not None:
            trained = [task for task in trained if task.taskset == info_of(tasks).number]
        require_tasks(trained, records, tasks)
        return trained

    @property
    def body(self) -> nn.Module | None:
        """The modules that computed the features that the learner was fed (ANIL); None if it was fed the rows itself.

        Raises:
            RecordingError: the tasks that trained went through different modules.
        """
        found = {record.bodies for record in self._current_records().records.values() if record.times_trained}
        if len(found) > 1:
            raise RecordingError(
                "the tasks that trained were not all fed as features of the same modules. Pass body= (the module that "
                "computes the features), or feed all tasks in the same way"
            )
        bodies = found.pop() if found else ()
        return bodies[0] if len(bodies) == 1 else nn.Sequential(*bodies) if bodies else None

    def describe(self) -> str:
        """Counts of what was recorded and what was not, and the memory used."""
        records = self._current_records()
        return describe(records, self._failures(records), (self._data.bytes + self._adapted.bytes) / MIB)

    def __repr__(self) -> str:
        return f"<Recording: {self.describe()}>"

    @property
    def stands_for(self) -> float:
        """Number of draws that trained for each recorded one: 1, unless there were more than ``max_tasks`` tasks.

        The recorded tasks are then a uniform sample; see ``overflow`` in `RecordingOptions`.
        """
        return self._current_records().stands_for

    @property
    def unmatched(self) -> int:
        """Number of forwards that contributed to training with input that belongs to no served task."""
        return self._current_records().foreign.total()

    @property
    def failures(self) -> Failures:
        """Failures of the recorder while it watched this learner."""
        return self.activity.failures

    @property
    def adapting(self) -> int:
        """Number of adapt calls under way."""
        return self.activity.adapting

    @property
    def learner(self) -> nn.Module | None:
        """The learner, while it is alive."""
        return None if self._learner is None else self._learner()

    @cached_property
    def own_info(self) -> TasksetInfo:
        """The info for tasks that no taskset served; keys that are given by content are negative."""
        return TasksetInfo.new(itertools.count(-1, -1))

    @property
    def keeps_adapted(self) -> bool:
        """True while adapted parameters are kept: they are wanted, and all of them fit into ``adapted_bytes``."""
        return self.options.keep_adapted and self._adapted.open

    def begin(self, parent: CloneWatch | None) -> CloneWatch:
        """Start to watch a new clone, of the learner or of a clone that ``parent`` watches."""
        if parent is not None and parent.log.forwards and not parent.episode.closed:
            catch_up()  # the log continues from what its parent was found to be fed
            log, episode, finalizer = parent.log.child(), parent.episode, parent.finalizer
        else:
            log, (episode, finalizer) = CloneLog(), self._opened()
        episode.logs.append(log)
        return CloneWatch(log, episode, finalizer, self.activity)

    def add_manual(self, episode: ManualEpisode) -> None:
        """Enter an episode by hand."""
        catch_up()  # in order with what was recorded
        self._enter(Episode([episode.log(self.own_info)]), self._records)

    def end(self, number: int) -> None:
        """Enter an episode that is over, unless it was entered when it was closed."""
        episode = self._open.pop(number, None)
        if episode is not None:
            self._enter(episode, self._records)

    def close(self) -> None:
        """End the open episodes: whatever their clones still do is not recorded."""
        catch_up()
        for number, episode in list(self._open.items()):
            episode.closed = True
            with self.failures.kept():
                self.end(number)

    def concerned_by(self, failures: Failures) -> None:
        """A recorder has recorded the learner: its failures make the recording incomplete."""
        if not any(failures is known for known in self._recorders):
            self._recorders.append(failures)

    def open_forwards(self) -> list[Forward]:
        """The forwards of all clones in open episodes."""
        logs = (log for episode in list(self._open.values()) for log in episode.logs)
        return [forward for log in logs for forward in log.forwards]

    def _opened(self) -> tuple[Episode, Finalizer]:
        number = next(self._numbers)
        episode = self._open[number] = Episode()
        return episode, Finalizer(number, weakref.WeakMethod(self.end), self.activity)

    def _failures(self, records: TaskRecords) -> list[Failures]:
        """The failures that concern this learner: those of tasksets only if it was fed something unknown."""
        tasksets = [info.failures for _, info in known_tasksets()] if records.foreign else []
        return [failures for failures in (self.failures, *self._recorders, *tasksets) if failures]

    def _require_complete(self, records: TaskRecords) -> None:
        require_complete(records, self._failures(records), self.options)

    def _current_records(self) -> TaskRecords:
        """The records as they would be if the open episodes ended now."""
        catch_up()
        records = self._records.copy()
        for episode in self._open.values():
            with self.failures.kept():
                self._enter(episode, records)
        return records

    def _enter(self, episode: Episode, records: TaskRecords) -> None:
        for log, found in records.add([self._as_fed(log, records) for log in episode.logs]):
            again = records.gives_back(found.served.identity)
            self._keep_data(found, expendable=not log.trained, again=again)
            self._keep_adapted(log, found)
        for identity in records.shrink(self.options):
            self._data.discard(identity)
            self._adapted.discard(identity)

    def _as_fed(self, log: CloneLog, records: TaskRecords) -> CloneLog:
        """The log; if its clone was fed what no taskset served, the log as if one had, where possible."""
        found = as_fed(log, self.own_info) if is_unserved(log) else None
        if found is not None:
            records.remarks["draws of rows that no taskset had served, kept as they were fed"] += 1
        return found or log

    def _keep_data(self, found: Match, expendable: bool, again: bool) -> None:
        """Keep the data of a task, unless the taskset gives them ``again`` or they were released already."""
        tensors, identity = found.served.content.tensors, found.served.identity
        if again or tensors is None:
            self._data.discard(identity)
        else:
            self._keep(identity, tuple([tensor.cpu() for tensor in tensors]), expendable)

    def _keep(self, identity: Identity, tensors: Tensors, expendable: bool) -> None:
        size = sum([tensor.nbytes for tensor in tensors])
        self._data.put(identity, tensors, size, self.options.data_bytes, expendable)

    def _keep_adapted(self, log: CloneLog, found: Match) -> None:
        if log.adapted is not None and log.trained:
            on_cpu = log.adapted.on_cpu()
            size = sum([value.nbytes for value in on_cpu.values()])
            self._adapted.put(found.served.identity, on_cpu, size, self.options.adapted_bytes)

    def _handed_out(self, records: TaskRecords) -> list[RecordedTask]:
        return [
            replace(task, id=self._ids.setdefault(identity, len(self._ids)))
            for identity, task in self._described(records)
        ]

    def _described(self, records: TaskRecords) -> Iterator[tuple[Identity, RecordedTask]]:
        """The tasks in order of first draw, without their ids."""
        for identity, record in sorted(records.records.items(), key=lambda item: item[1].first):
            yield (
                identity,
                RecordedTask(
                    id=-1,
                    **values_of(record.name),
                    **values_of(record.facts),
                    times_seen=record.times_seen,
                    times_trained=record.times_trained,
                    adapted=self._adapted.get(identity),
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

    def _read_only(self, identity: Identity, records: TaskRecords) -> Tensors:
        tensors, source = self._data.get(identity), records.records[identity].source
        if tensors is None and not records.gives_back(identity):
            raise TaskDataChangedError(
                f"The data of {source.name} were not kept, because they exceed data_bytes. Set data_bytes higher in "
                "recording_of(learner).options before training."
            )
        return source.read() if tensors is None else tensors


def recording_of(learner: nn.Module) -> Recording:
    """The recording of a learner, or of the learner that a clone was made from. Created when first asked for.

    Raises:
        RecordingError: this object cannot be recorded; the message says which objects can.
    """
    require_learner(learner)
    recording: Recording | None = directory.recordings.get(learner)
    return enter(learner, Recording()) if recording is None else recording


def enter(learner: nn.Module, recording: Recording) -> Recording:
    """Make ``recording`` that of a learner that has none yet."""
    recording._learner = weakref.ref(learner)
    directory.recordings[learner] = recording
    return recording


def prepare(learner: nn.Module, options: RecordingOptions) -> None:
    """Create the recording of a learner that has none yet, with a copy of ``options``."""
    if learner not in directory.recordings:
        enter(learner, Recording(replace(options)))


def watch_of(learner: nn.Module) -> CloneWatch | None:
    """The watch of a clone; None for a learner that is no clone, or a clone that is not recorded."""
    recording: Recording | None = directory.recordings.get(learner)
    return None if recording is None else recording.watches.get(learner)


def watched(learner: nn.Module) -> bool:
    """True if everything that a clone does is recorded."""
    watch = watch_of(learner)
    return watch is not None and not watch.episode.closed


def updated_clones(model: object) -> list[CloneWatch]:
    """The watches of the clones that are ``model``, or have it inside."""
    clones = [(clone, watch) for clone in alive(directory.recordings) if (watch := watch_of(clone)) is not None]
    return [watch for clone, watch in clones if model in (clone, clone.module, model_of(clone))]
