"""`LoadedRecording`: a recording that was read from files; nothing is added to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from learn2learn.data import Taskset
from torch import nn

from ...errors import NothingRecordedError, RecordingError
from ..episodes.task import RecordedTask
from ..recording import Recording


class LoadedRecording(Recording):
    """A recording as it was saved.

    Args:
        saved: all its tasks.
        body: the modules that computed their features, or None.
        about: the notes that were saved with it.
    """

    def __init__(self, saved: list[RecordedTask], body: nn.Module | None, about: Mapping[str, Any]) -> None:
        super().__init__()
        self._saved, self._saved_body, self._about = saved, body, about

    @property
    def tasks(self) -> list[RecordedTask]:
        """All tasks that were saved."""
        return list(self._saved)

    @property
    def tasks_so_far(self) -> list[RecordedTask]:
        """The same tasks, since nothing is added."""
        return self.tasks

    @property
    def trouble(self) -> str:
        """The reason why the tasks that trained are incomplete, or an empty string."""
        trouble: str = self._about["trouble"]
        return trouble

    @property
    def stands_for(self) -> float:
        """As `Recording.stands_for`."""
        return float(self._about["stands_for"])

    @property
    def unmatched(self) -> int:
        """As `Recording.unmatched`; 0 if the file has no count."""
        return int(self._about.get("unmatched", 0))

    def training_tasks(self, tasks: Taskset | None = None) -> list[RecordedTask]:
        """As `Recording.training_tasks`, of all tasksets, because tasksets are not saved."""
        if self.trouble:
            raise RecordingError(self.trouble)
        if tasks is not None:
            raise RecordingError(
                "a loaded study cannot tell which of its tasks come from a taskset of this process: leave out tasks="
            )
        trained = [task for task in self._saved if task.times_trained]
        if not trained:
            raise NothingRecordedError(
                "no task of the saved study trained the meta-parameters: record a loop that calls backward() on the "
                "query loss of adapted clones, and save it again"
            )
        return trained

    @property
    def body(self) -> nn.Module | None:
        """The module that was passed when the study was loaded."""
        return self._saved_body

    def describe(self) -> str:
        """The description from when it was saved."""
        return f"{self._about['summary']} Loaded from files."
