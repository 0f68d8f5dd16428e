"""Records which tasks a learn2learn learner is trained on, without changing what it learns.

`record` watches a loop of which not a line changes; `MAML`, `MetaSGD`, `GBML` and `TaskDataset` stand in for
learn2learn's. `recording_of` gives what was seen of a learner, a `Study` what was seen of all.
"""

from __future__ import annotations

from .episodes.task import RecordedTask
from .interception.drop_ins import GBML, MAML, MetaSGD
from .interception.observe import recording_of
from .options import RecordingOptions
from .recorder import Recording
from .session import record
from .study.gathering import gather
from .study.study import Study
from .tasksets.tasks import TaskDataset

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
