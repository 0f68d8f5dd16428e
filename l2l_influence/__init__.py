"""Influence functions for meta-learning with learn2learn.

Record an unchanged training loop inside :func:`record`, or with :class:`MAML` and :class:`TaskDataset` in place of
learn2learn's. Then ask a hook such as :class:`TaskInfluence` which training tasks made the meta-parameters what they
are, and which of them hurt.
"""

from __future__ import annotations

from ._version import __version__
from .analysis.estimators import (
    ESTIMATORS,
    AscentSteps,
    CosineSimilarity,
    Estimator,
    FirstOrder,
    GradientNorm,
    GradientSimilarity,
    Implicit,
    OwnLoss,
    ProjectedGradients,
    RandomScores,
    SingleLevelEKFAC,
    TracIn,
)
from .analysis.resources import Resources
from .analysis.results.matrix import ScoreMatrix
from .analysis.results.result import GroupScore, GroupScores, SampleScore, SampleScores, TaskScore, TaskScores
from .errors import (
    AmbiguousTaskError,
    BatchNormError,
    EstimatorError,
    ForeignMatrixError,
    InfluenceError,
    ItemsError,
    LabelMismatchError,
    LossStructureError,
    NegativeCurvatureError,
    NotConvergedError,
    NotCopiedError,
    NothingRecordedError,
    NotSharedError,
    PartlySavedError,
    RankFailedError,
    RanksApartError,
    RanksDisagreeError,
    RecordingError,
    RetrainingError,
    TaskDataChangedError,
    TaskShapeError,
    UncoveredParameterError,
    UnfinishedMatrixError,
    UnmatchedInputError,
)
from .hooks import (
    DirectInfluence,
    GroupInfluence,
    QueryInfluence,
    SupportInfluence,
    TaskInfluence,
    TotalGradient,
    TotalHessian,
)
from .recording import GBML, MAML, MetaSGD, RecordingOptions, Study, TaskDataset, record, recording_of
from .recording.outer_steps.checkpoints import Checkpoints

TaskIF = TaskInfluence
"""The paper's name of :class:`TaskInfluence`."""

ValidationInstanceIF = QueryInfluence
"""The paper's name of :class:`QueryInfluence`."""

TrainingInstanceIF = SupportInfluence
"""The paper's name of :class:`SupportInfluence`."""

DirectIF = DirectInfluence
"""The paper's name of :class:`DirectInfluence`."""

__all__ = [
    "ESTIMATORS",
    "GBML",
    "MAML",
    "AmbiguousTaskError",
    "AscentSteps",
    "BatchNormError",
    "Checkpoints",
    "CosineSimilarity",
    "DirectIF",
    "DirectInfluence",
    "Estimator",
    "EstimatorError",
    "FirstOrder",
    "ForeignMatrixError",
    "GradientNorm",
    "GradientSimilarity",
    "GroupInfluence",
    "GroupScore",
    "GroupScores",
    "Implicit",
    "InfluenceError",
    "ItemsError",
    "LabelMismatchError",
    "LossStructureError",
    "MetaSGD",
    "NegativeCurvatureError",
    "NotConvergedError",
    "NotCopiedError",
    "NotSharedError",
    "NothingRecordedError",
    "OwnLoss",
    "PartlySavedError",
    "ProjectedGradients",
    "QueryInfluence",
    "RandomScores",
    "RankFailedError",
    "RanksApartError",
    "RanksDisagreeError",
    "RecordingError",
    "RecordingOptions",
    "Resources",
    "RetrainingError",
    "SampleScore",
    "SampleScores",
    "ScoreMatrix",
    "SingleLevelEKFAC",
    "Study",
    "SupportInfluence",
    "TaskDataChangedError",
    "TaskDataset",
    "TaskIF",
    "TaskInfluence",
    "TaskScore",
    "TaskScores",
    "TaskShapeError",
    "TotalGradient",
    "TotalHessian",
    "TracIn",
    "TrainingInstanceIF",
    "UncoveredParameterError",
    "UnfinishedMatrixError",
    "UnmatchedInputError",
    "ValidationInstanceIF",
    "__version__",
    "record",
    "recording_of",
]
