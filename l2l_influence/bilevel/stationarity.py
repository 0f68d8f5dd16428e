"""Measures how close λ* is to a minimum of L_Total, the point at which influence functions linearise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .solved_tasks import SolvedBatch, SolvedTasks


@dataclass(frozen=True)
class Stationarity:
    """The gradient D_λ L_Total at λ*, and the size of its terms.

    Attributes:
        gradient: Σ_i c_i g_i + δ_o λ, ``[P]``; 0 at a minimum.
        terms: Σ_i ‖c_i g_i‖ + ‖δ_o λ‖.
        task: ‖c_i g_i‖, averaged over tasks.
    """

    gradient: Tensor
    terms: float
    task: float

    @property
    def relative(self) -> float:
        """‖D_λ L_Total‖ relative to its terms: 0 at a minimum, at most 1."""
        return float(self.gradient.norm()) / self.terms if self.terms else 0.0

    @property
    def tasks(self) -> float:
        """‖D_λ L_Total‖ in units of the average task's gradient."""
        return float(self.gradient.norm()) / self.task if self.task else 0.0

    @property
    def trusted(self) -> bool:
        """Whether the remaining gradient is smaller than that which removing one average task leaves."""
        return self.tasks < 1

    def __str__(self) -> str:
        size = f"‖D_λ L_Total‖ is {self.relative:.2g} of its terms, {self.tasks:.2g} times the average task's gradient"
        if self.trusted:
            return f"{size}: λ* is stationary enough for removals to be trusted"
        return (
            f"{size}: λ* is NOT stationary. Scores still compare tasks, but removing fewer than about {self.tasks:.2g} "
            "of them changes λ less than further training would: train closer to a minimum, or correct edits for the "
            "remaining gradient by correct_residual=True"
        )


class StationaritySum:
    """Accumulates a :class:`Stationarity` batch by batch, and over the ranks of the problem."""

    def __init__(self, solved_tasks: SolvedTasks, l2: float) -> None:
        self._solved_tasks, self._decay = solved_tasks, l2 * solved_tasks.lam.double()
        self._gradient = torch.zeros_like(self._decay)
        self._tasks = 0.0

    def add(self, solved: SolvedBatch) -> None:
        """Add the tasks of one batch."""
        gradient, weight = solved.total_gradient, solved.batch.weight
        self._gradient += (weight @ gradient).double()
        self._tasks += float(weight.double().abs() @ gradient.norm(dim=-1).double())

    def tensors(self) -> dict[str, Tensor]:
        """The sums so far, on the CPU, so that another process can resume from them."""
        return {"gradient": self._gradient.cpu(), "tasks": torch.tensor(self._tasks, dtype=torch.float64)}

    def resume_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the sums that :meth:`tensors` returned."""
        self._gradient = tensors["gradient"].to(self._gradient)
        self._tasks = float(tensors["tasks"])

    def result(self) -> Stationarity:
        """The stationarity over all tasks of all ranks."""
        both = torch.cat([self._gradient, self._gradient.new_tensor([self._tasks])])
        *gradient, tasks = self._solved_tasks.settings.ranks.sum(both).split([len(self._decay), 1])
        size = float(tasks)
        return Stationarity(
            gradient[0] + self._decay, size + float(self._decay.norm()), size / len(self._solved_tasks.tasks)
        )


def stationarity(solved_tasks: SolvedTasks, l2: float) -> Stationarity:
    """The stationarity of λ, by one pass over the tasks."""
    total = StationaritySum(solved_tasks, l2)
    for solved in solved_tasks.microbatches("stationarity"):
        total.add(solved)
    return total.result()
