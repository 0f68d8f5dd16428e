"""Every error this package raises on purpose. Each message says what happened and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class InfluenceError(Exception):
    """Base class of all errors of ``l2l_influence``."""


class NotConvergedError(InfluenceError):
    """An iterative solve missed its tolerance."""


class NegativeCurvatureError(InfluenceError):
    """A solver for positive definite systems met a direction of zero or negative curvature."""


class LossStructureError(InfluenceError):
    """A loss does not have the form that the chosen estimator needs."""


class UncoveredParameterError(InfluenceError):
    """A parameter cannot be treated by the chosen estimator."""


class BatchNormError(InfluenceError):
    """The loop's batch normalisation did not always work with the same kind of statistics."""


class TaskShapeError(InfluenceError, ValueError):
    """Task data, weights or vectors have shapes that do not fit together."""


class ItemsError(InfluenceError, ValueError):
    """What is to be removed or relabelled was named twice, or nothing was."""


class RecordingError(InfluenceError):
    """The recording of a training loop cannot answer: it is empty, incomplete, or something in it went wrong."""


class NothingRecordedError(RecordingError):
    """No task that the learner trained on was recorded."""


class UnmatchedInputError(RecordingError):
    """The learner trained on input that no recorded taskset had served."""


class AmbiguousTaskError(RecordingError):
    """What the learner was fed fits two different tasks equally well."""


class LabelMismatchError(RecordingError):
    """The loss saw other labels than the taskset had served."""


class TaskDataChangedError(RecordingError):
    """A task that was read again from its taskset no longer has the data that were trained on."""


class PartlySavedError(RecordingError):
    """A study was saved, but without the data of some of its tasks, which could not be had again."""


class NotCopiedError(RecordingError, TypeError):
    """A study or a recording was to be copied or pickled; there are files for that."""


class RanksDisagreeError(RecordingError):
    """Studies to be merged do not end in the same weights, so that they are not of one run."""


class ForeignMatrixError(InfluenceError):
    """A folder holds the score matrix of another study, or something else."""


class UnfinishedMatrixError(InfluenceError):
    """A score matrix is not all there yet, or no more."""


class RanksApartError(InfluenceError):
    """Processes that share the work were asked different questions, or are at different steps of it."""


class RankFailedError(InfluenceError):
    """Another of the processes that share the work failed; what failed was raised there."""


class NotSharedError(InfluenceError):
    """Several processes were to share work that only one can do."""


class RetrainingError(InfluenceError):
    """Some of the retrainings of a measurement failed.

    Attributes:
        failures: the traceback of each, by seed and by row of the removals (None: with all items).
        others: the :class:`~l2l_influence.evaluation.GroundTruth` of the removals that succeeded with every seed; None
            if there are none, or if a retraining with all items failed.
    """

    def __init__(self, failures: Mapping[tuple[int, int | None], str], others: Any) -> None:
        self.failures, self.others = dict(failures), others
        (seed, removal), reason = next(iter(self.failures.items()))
        where = "with all items" if removal is None else f"without removal {removal}"
        super().__init__(
            f"{len(self.failures)} retrainings failed; see .failures for all of them, and .others for what the others "
            "found. With a cache, measuring again repeats only those that failed. "
            f"The first, {where}, seed {seed}:\n{reason}"
        )
