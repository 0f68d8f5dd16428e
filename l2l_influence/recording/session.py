"""Recording a loop of which not a line changes: learn2learn's own classes are watched for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .drop_ins import Recorded
from .features import watcher
from .observe import recorded_learners, recording_of
from .options import RecordingOptions
from .patches import patches, studies
from .study import Study

_lock = threading.RLock()


@contextmanager
def record(options: RecordingOptions | None = None) -> Iterator[Study]:
    """Record every learner and taskset of learn2learn's that is used inside, with no change to the loop.

    Learners are those derived from learn2learn's ``MAML``, ``MetaSGD`` and ``GBML``, users' own classes among them;
    tasksets are all ``Taskset`` and what a DataLoader draws from one. They may have been made before, but a clone
    has to be made inside. Blocks can be nested: each study knows the learners that were cloned inside its block. What
    was recorded can still be read after the block; what the learners do then is not recorded.

    Args:
        options: what to keep, for learners that have no recording yet.

    Example:
        ``with record() as study: main()``, then ``TaskInfluence(study.learner, loss=loss)``.
    """
    study = Study(options)
    try:
        _begin(study)
        yield study
    finally:
        _end(study)


def _begin(study: Study) -> None:
    with _lock:
        studies.append(study)
        if len(studies) == 1:
            patches.apply()
            watcher.on()


def _end(study: Study) -> None:
    with _lock:
        studies.remove(study)
        if studies:
            return
        patches.undo()
        watcher.off()
        for learner in recorded_learners():
            if not isinstance(learner, Recorded):
                recording_of(learner).close()
