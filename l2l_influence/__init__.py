"""Influence functions for meta-learning with learn2learn.

Record an unchanged training loop with :class:`MAML` and :class:`TaskDataset`, then ask a hook such as
:class:`TaskInfluence` which training tasks made the meta-parameters what they are, and which of them hurt.
"""

from __future__ import annotations

from l2l_influence._version import __version__
from l2l_influence.influence import (
    DirectInfluence,
    QueryInfluence,
    SampleScores,
    SupportInfluence,
    TaskInfluence,
    TaskScores,
    TotalGradient,
    TotalHessian,
)
from l2l_influence.recording import MAML, TaskDataset, recording_of

TaskIF = TaskInfluence
"""The paper's name of :class:`TaskInfluence`."""

ValidationInstanceIF = QueryInfluence
"""The paper's name of :class:`QueryInfluence`."""

TrainingInstanceIF = SupportInfluence
"""The paper's name of :class:`SupportInfluence`."""

DirectIF = DirectInfluence
"""The paper's name of :class:`DirectInfluence`."""

__all__ = [
    "MAML",
    "DirectIF",
    "DirectInfluence",
    "QueryInfluence",
    "SampleScores",
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
    "recording_of",
]
