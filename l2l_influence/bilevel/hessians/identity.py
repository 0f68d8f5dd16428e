"""No curvature at all: influence as the similarity of gradients."""

from __future__ import annotations

import torch

from ..solved_tasks import SolvedTasks
from .base import Curvature, ScaledIdentity, TaskSum


class Identity(Curvature):
    """H = I: scores are products of total gradients, not in the unit of the loss."""

    def operator(self, solved_tasks: SolvedTasks) -> TaskSum:
        count = len(solved_tasks.tasks)
        return ScaledIdentity(torch.full((count,), 1 / count, dtype=torch.float64))
