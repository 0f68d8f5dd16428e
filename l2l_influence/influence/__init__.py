"""The hooks: influence functions of a recorded learn2learn run."""

from .result import TaskScore, TaskScores
from .task import TaskInfluence

__all__ = ["TaskInfluence", "TaskScore", "TaskScores"]
