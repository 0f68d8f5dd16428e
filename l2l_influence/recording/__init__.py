"""Records which tasks a learn2learn learner is trained on, without changing what it learns.

`MAML` and `TaskDataset` stand in for learn2learn's; `recording_of` gives what they saw.
"""

from __future__ import annotations

from .maml import MAML
from .observe import recording_of
from .options import RecordingOptions
from .recording import Recording
from .task import RecordedTask
from .tasks import TaskDataset

__all__ = ["MAML", "RecordedTask", "Recording", "RecordingOptions", "TaskDataset", "recording_of"]
