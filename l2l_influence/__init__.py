"""Influence functions for meta-learning with learn2learn.

Record an unchanged training loop inside :func:`record`, or with :class:`MAML` and :class:`TaskDataset` in the place of
learn2learn's, then ask a hook such as :class:`TaskInfluence` which training tasks made the meta-parameters what they
are, and which of them hurt.
"""

from __future__ import annotations

from ._version import __version__
from .hooks import (
    DirectInfluence,
    QueryInfluence,
    SampleScores,
    ScoreMatrix,
    SupportInfluence,
    TaskInfluence,
    TaskScores,
    TotalGradient,
    TotalHessian,
)
from .recording import GBML, MAML, MetaSGD, Study, TaskDataset, record, recording_of

TaskIF = TaskInfluence
"""The paper's name of :class:`TaskInfluence`."""

ValidationInstanceIF = QueryInfluence
"""The paper's name of :class:`QueryInfluence`."""

TrainingInstanceIF = SupportInfluence
"""The paper's name of :class:`SupportInfluence`."""

DirectIF = DirectInfluence
"""The paper's name of :class:`DirectInfluence`."""

__all__ = [
    "GBML",
    "MAML",
    "DirectIF",
    "DirectInfluence",
    "MetaSGD",
    "QueryInfluence",
    "SampleScores",
    "ScoreMatrix",
    "Study",
    "SupportInfluence",
    "TaskDataset",
    "TaskIF",
    "TaskInfluence",
    "TaskScores",
    "TotalGradient",
    "TotalHessian",
    "TrainingInstanceIF",
    "ValidationInstanceIF",
    "__version__",
    "record",
    "recording_of",
]
