"""The hooks: influence functions of a recorded learn2learn run."""

from ..analysis.items.samples import QueryInfluence, SupportInfluence
from ..analysis.items.task import TaskInfluence
from ..analysis.results.matrix import ScoreMatrix
from ..analysis.results.result import SampleScore, SampleScores, TaskScore, TaskScores
from .direct import DirectInfluence
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
