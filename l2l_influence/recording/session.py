"""`record`: records a loop without any change to it, by wrapping learn2learn's own classes for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .options import RecordingOptions
from .recorder import Recorder
from .study.folders import save_each
from .study.saver import Saver
from .study.study import Study


@contextmanager
def record(
    options: RecordingOptions | None = None, *, save_to: str | Path | None = None, save_every: float = 60.0
) -> Iterator[Study]:
    """Record all of learn2learn's learners and tasksets that are used inside the block, without a change to the loop.

    Learners are objects of classes derived from learn2learn's ``MAML``, ``MetaSGD`` and ``GBML``, including the user's
    own classes. Tasksets are all ``Taskset`` objects, and what a DataLoader draws from one. They may have been created
    before the block, but clones must be made inside it. After the block the recording can still be read; what the
    learners do then is not recorded.

    Blocks can be nested: each study knows the learners that were cloned inside its block. A block records its own
    thread (or asyncio task) and threads that have no block, such as those of DataParallel; blocks in other threads know
    nothing of it.

    Args:
        options: what to keep, for learners that have no recording yet.
        save_to: a folder for `Study.load`. The study is saved there when the block ends, and from time to time while it
            runs, so that a process that is killed leaves what was recorded until then. If several learners trained,
            each has a folder in it (``learner-1``, ...).
        save_every: seconds between two saves; 0 saves at the end only. Slow saves are made less often: all together
            they take at most a twentieth of the time.

    Example:
        ``with record() as study: main()``, then ``TaskInfluence(study, loss=loss)``.
    """
    study = Study(options)
    recorder = Recorder(study)
    try:
        recorder.begin()
        if save_to is None:
            yield study
        else:
            with _saved(study, Path(save_to).resolve(), save_every):
                yield study
    finally:
        recorder.end()


@contextmanager
def _saved(study: Study, folder: Path, every: float) -> Iterator[None]:
    saver = Saver(partial(save_each, study, folder, Study.save_so_far), every)
    study.between_steps = saver.step
    try:
        yield
    except BaseException:
        if not saver.foreign:
            saver.now()  # logs its errors, so that they do not hide the one under way
        raise
    finally:
        study.between_steps = None
    if not saver.foreign:
        save_each(study, folder, Study.save)
