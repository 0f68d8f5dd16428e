"""The hooks: influence functions of a recorded learn2learn run."""

from .direct import DirectInfluence
from .result import SampleScore, SampleScores, TaskScore, TaskScores
from .samples import QueryInfluence, SupportInfluence
from .task import TaskInfluence
from .total import TotalGradient, TotalHessian

__all__ = [
    "DirectInfluence",
    "QueryInfluence",
    "SampleScore",
    "SampleScores",
    "SupportInfluence",
    "TaskInfluence",
    "TaskScore",
    "TaskScores",
    "TotalGradient",
    "TotalHessian",
]
