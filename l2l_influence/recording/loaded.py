"""A recording that was read from files: what it was when it was saved, and nothing is added to it."""

from __future__ import annotations

from learn2learn.data import Taskset
from torch import nn

from ..errors import NothingRecordedError, RecordingError
from .recording import Recording
from .task import RecordedTask


class LoadedRecording(Recording):
    """Tasks as they were saved.

    Args:
        saved: all of them.
        body: what their features were made by, or None.
        summary: what the recording said of itself.
        trouble: why its training tasks are not the whole story; empty if they are.
    """

    def __init__(self, saved: list[RecordedTask], body: nn.Module | None, summary: str, trouble: str) -> None:
        super().__init__()
        self._saved, self._saved_body, self._summary, self._trouble = saved, body, summary, trouble

    @property
    def tasks(self) -> list[RecordedTask]:
        """All tasks that were saved."""
        return list(self._saved)

    def training_tasks(self, tasks: Taskset | None = None) -> list[RecordedTask]:
        """As `Recording.training_tasks`; of all tasksets, for none of them was saved."""
        if self._trouble:
            raise RecordingError(self._trouble)
        if tasks is not None:
            raise RecordingError("a loaded study does not know this process's tasksets: leave tasks= out")
        trained = [task for task in self._saved if task.trained]
        if not trained:
            raise NothingRecordedError("none of the tasks that were saved trained the meta-parameters")
        return trained

    @property
    def body(self) -> nn.Module | None:
        """What was passed for it when the study was loaded."""
        return self._saved_body

    def describe(self) -> str:
        """What the recording said of itself when it was saved."""
        return f"{self._summary} Loaded from files."
