"""Recording a loop of which not a line changes: learn2learn's own classes are watched for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .interception.drop_ins import Recorded
from .interception.features import watcher
from .interception.observe import recorded_learners, recording_of
from .interception.patches import patches, studies
from .options import RecordingOptions
from .study.folders import save_each
from .study.saver import Saver
from .study.study import Study

_lock = threading.RLock()


@contextmanager
def record(
    options: RecordingOptions | None = None, *, save_to: str | Path | None = None, save_every: float = 60.0
) -> Iterator[Study]:
    """Record every learner and taskset of learn2learn's that is used inside, with no change to the loop.

    Learners are those derived from learn2learn's ``MAML``, ``MetaSGD`` and ``GBML``, users' own classes among them;
    tasksets are all ``Taskset`` and what a DataLoader draws from one. They may have been made before, but a clone
    has to be made inside. Blocks can be nested: each study knows the learners that were cloned inside its block. What
    was recorded can still be read after the block; what the learners do then is not recorded.

    Args:
        options: what to keep, for learners that have no recording yet.
        save_to: a folder for `Study.load`: the study is saved there when the block ends, and from time to time while
            it runs, so that a process that is killed leaves what was recorded until then. Where several learners
            trained, there is one in it for each (``learner-1``, ...).
        save_every: seconds between two saves; 0 for only at the end. A save that takes long is waited for longer: all
            together they take no more than a twentieth of the time.

    Example:
        ``with record() as study: main()``, then ``TaskInfluence(study.learner, loss=loss)``.
    """
    study = Study(options)
    try:
        _begin(study)
        if save_to is None:
            yield study
        else:
            with _saved(study, Path(save_to).resolve(), save_every):
                yield study
    finally:
        _end(study)


@contextmanager
def _saved(study: Study, folder: Path, every: float) -> Iterator[None]:
    saver = Saver(partial(save_each, study, folder, Study.save_so_far), every)
    study.between_steps = saver.step
    try:
        yield
    except BaseException:
        if not saver.foreign:
            saver.now()  # logs what goes wrong: it may not hide what is under way
        raise
    finally:
        study.between_steps = None
    if not saver.foreign:
        save_each(study, folder, Study.save)


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
