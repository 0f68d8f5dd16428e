"""Records which tasks a learn2learn learner is trained on, without changing what it learns.

`record` watches a loop of which not a line changes; `MAML`, `MetaSGD`, `GBML` and `TaskDataset` stand in for
learn2learn's. `recording_of` gives what was seen of a learner, a `Study` what was seen of all.
"""

from __future__ import annotations

from .drop_ins import GBML, MAML, MetaSGD
from .gathering import gather
from .observe import recording_of
from .options import RecordingOptions
from .recording import Recording
from .session import record
from .study import Study
from .task import RecordedTask
from .tasks import TaskDataset

__all__ = [
    "GBML",
    "MAML",
    "MetaSGD",
    "RecordedTask",
    "Recording",
    "RecordingOptions",
    "Study",
    "TaskDataset",
    "gather",
    "record",
    "recording_of",
]
