"""All errors that the package raises on purpose. Each message says what happened and what to do about it.

The tree, with the built-in classes that some of them also belong to::

    InfluenceError                       catches everything below
    ├── NotConvergedError                an iterative solver missed its tolerance
    ├── NegativeCurvatureError           a solver for positive definite systems met non-positive curvature
    ├── LossStructureError               the loss does not have the form that an estimator needs
    ├── UncoveredParameterError          an estimator cannot handle one of the parameters
    ├── BatchNormError                   batch normalisation mixed batch and running statistics
    ├── EstimatorError                   the chosen estimator cannot answer the question
    ├── TaskShapeError (ValueError)      shapes of data, weights or vectors do not fit together
    ├── ItemsError (ValueError)          unknown, repeated or missing items to remove or relabel
    ├── RecordingError                   the recording is empty, incomplete, or failed
    │   ├── NothingRecordedError         no training task was recorded
    │   ├── UnmatchedInputError          the learner trained on input that no taskset served
    │   ├── AmbiguousTaskError           the input fits two different tasks
    │   ├── LabelMismatchError           the loss saw other labels than the taskset served
    │   ├── TaskDataChangedError         a task read again has other data than it was trained on
    │   ├── PartlySavedError             the study was saved without the data of some tasks
    │   ├── NotCopiedError (TypeError)   a study was copied or pickled
    │   └── RanksDisagreeError           studies to merge end in different parameters
    ├── ForeignMatrixError               the folder holds something else than this score matrix
    ├── UnfinishedMatrixError            the score matrix is not finished, or files are missing
    ├── RanksApartError                  processes asked different questions
    ├── RankFailedError                  another process of the group failed
    ├── NotSharedError                   the operation does not support a process group
    └── RetrainingError                  some retrainings failed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class InfluenceError(Exception):
    """Base class of all errors of ``l2l_influence``."""


class NotConvergedError(InfluenceError):
    """An iterative solver missed its tolerance within the allowed number of iterations."""


class NegativeCurvatureError(InfluenceError):
    """A solver for positive definite systems met a direction of zero or negative curvature."""


class LossStructureError(InfluenceError):
    """The loss does not have the form that the chosen Hessian or estimator needs."""


class UncoveredParameterError(InfluenceError):
    """The chosen Hessian or estimator cannot handle one of the parameters."""


class BatchNormError(InfluenceError):
    """Batch normalisation used batch statistics in one part of the training loop and running statistics in another."""


class EstimatorError(InfluenceError):
    """The chosen estimator cannot answer this question; the message names estimators that can."""


class TaskShapeError(InfluenceError, ValueError):
    """Task data, weights or vectors have shapes that do not fit together."""


class ItemsError(InfluenceError, ValueError):
    """The items to score, remove or relabel are empty, unknown, or contain the same item twice."""


class RecordingError(InfluenceError):
    """The recording of a training loop is empty or incomplete, or recording it failed."""


class NothingRecordedError(RecordingError):
    """The recording contains no task that the learner trained on."""


class UnmatchedInputError(RecordingError):
    """The learner trained on input that no recorded taskset had served."""


class AmbiguousTaskError(RecordingError):
    """The input of the learner fits two different tasks equally well."""


class LabelMismatchError(RecordingError):
    """The loss saw other labels than the taskset had served."""


class TaskDataChangedError(RecordingError):
    """A task was read again from its taskset, and its data differ from those that were trained on."""


class PartlySavedError(RecordingError):
    """A study was saved without the data of some of its tasks, because these could not be read again."""


class NotCopiedError(RecordingError, TypeError):
    """A study or a recording was copied or pickled, which it does not support: save it to a folder instead."""


class RanksDisagreeError(RecordingError):
    """Studies to be merged end in different parameters, so they do not belong to the same run."""


class ForeignMatrixError(InfluenceError):
    """The folder holds the score matrix of another study, of other settings, or something else altogether."""


class UnfinishedMatrixError(InfluenceError):
    """The score matrix is incomplete: not finished, or files are missing or damaged."""


class RanksApartError(InfluenceError):
    """The processes of a group asked different questions, or asked them in a different order."""


class RankFailedError(InfluenceError):
    """Another process of the group failed; the cause was raised there."""


class NotSharedError(InfluenceError):
    """This operation does not support a process group."""


class RetrainingError(InfluenceError):
    """Some retrainings of a measurement failed; the others are in ``others``.

    Attributes:
        failures: the traceback of each failed retraining, by seed and row of the removals (row None: training with all
            items).
        others: the ground truth measured from the removals that succeeded with every seed, an
            ``evaluation.GroundTruth``; None if there are no such removals, or if a retraining with all items failed.
    """

    def __init__(self, failures: Mapping[tuple[int, int | None], str], others: Any) -> None:
        self.failures, self.others = dict(failures), others
        (seed, removal), reason = next(iter(self.failures.items()))
        where = "with all items" if removal is None else f"without removal {removal}"
        super().__init__(
            f"{len(self.failures)} retrainings failed: .failures has their tracebacks, .others the result of the "
            "others. With a cache, measuring again repeats only the failed ones. "
            f"The first failure, {where}, seed {seed}:\n{reason}"
        )
