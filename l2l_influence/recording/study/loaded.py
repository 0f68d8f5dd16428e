"""A recording that was read from files: what it was when it was saved, and nothing is added to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from learn2learn.data import Taskset
from torch import nn

from ...errors import NothingRecordedError, RecordingError
from ..episodes.task import RecordedTask
from ..recorder import Recording


class LoadedRecording(Recording):
    """Tasks as they were saved.

    Args:
        saved: all of them.
        body: what their features were made by, or None.
        about: what the recording said of itself.
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
        """The same: nothing is added."""
        return self.tasks

    @property
    def trouble(self) -> str:
        """Why the tasks that trained are not the whole story, or nothing."""
        trouble: str = self._about["trouble"]
        return trouble

    @property
    def stands_for(self) -> float:
        """As `Recording.stands_for`."""
        return float(self._about["stands_for"])

    @property
    def unmatched(self) -> int:
        """As `Recording.unmatched`; of a study that did not say, none are known."""
        return int(self._about.get("unmatched", 0))

    def training_tasks(self, tasks: Taskset | None = None) -> list[RecordedTask]:
        """As `Recording.training_tasks`; of all tasksets, for none of them was saved."""
        if self.trouble:
            raise RecordingError(self.trouble)
        if tasks is not None:
            raise RecordingError("a loaded study does not know this process's tasksets: leave tasks= out")
        trained = [task for task in self._saved if task.times_trained]
        if not trained:
            raise NothingRecordedError("none of the tasks that were saved trained the meta-parameters")
        return trained

    @property
    def body(self) -> nn.Module | None:
        """What was passed for it when the study was loaded."""
        return self._saved_body

    def describe(self) -> str:
        """What the recording said of itself when it was saved."""
        return f"{self._about['summary']} Loaded from files."
