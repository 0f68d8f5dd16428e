"""Records which tasks a learn2learn learner is trained on, without changing what it learns.

`record` watches an unchanged loop; `MAML`, `MetaSGD`, `GBML` and `TaskDataset` replace learn2learn's classes of the
same names. `recording_of` returns the recording of one learner; a `Study` holds those of all learners of a block.
"""

from __future__ import annotations

from .episodes.task import EpisodeFacts, RecordedTask
from .interception.drop_ins import GBML, MAML, MetaSGD
from .options import RecordingOptions
from .recording import Recording, recording_of
from .session import record
from .study.gathering import gather
from .study.study import Study
from .tasksets.tasks import TaskDataset

__all__ = [
    "GBML",
    "MAML",
    "EpisodeFacts",
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
