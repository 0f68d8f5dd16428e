"""The hooks: influence functions of a recorded learn2learn run."""

from .direct import DirectInfluence
from .matrix import ScoreMatrix
from .result import SampleScore, SampleScores, TaskScore, TaskScores
from .samples import QueryInfluence, SupportInfluence
from .task import TaskInfluence
from .total import TotalGradient, TotalHessian

__all__ = [
    "DirectInfluence",
    "QueryInfluence",
    "SampleScore",
    "SampleScores",
    "ScoreMatrix",
    "SupportInfluence",
    "TaskInfluence",
    "TaskScore",
    "TaskScores",
    "TotalGradient",
    "TotalHessian",
]
