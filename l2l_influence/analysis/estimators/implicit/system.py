"""The outer system (δ_o I + H) x = v of a run: its Hessian, damping and solver."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ....bilevel import HessianOperator
from ....bilevel.hessians import Curvature, Subsets, curvature
from ....bilevel.solvers import Solution, SolveReport
from ...run import RunAt

if TYPE_CHECKING:
    from .estimator import Implicit

RELATIVE_DAMPING = 1e-2
"""``damping="auto"`` is this times the largest eigenvalue of the total Hessian."""


class OuterSystem:
    """The outer system of a run at one λ. The Hessian is computed when it is first needed, and then kept.

    Attributes:
        run: the run at λ.
        settings: the curvature, damping and solver.
    """

    def __init__(self, run: RunAt, settings: Implicit) -> None:
        self.run, self.settings = run, settings

    @property
    def curvature(self) -> Curvature:
        """The kind of Hessian, which needs no pass over the tasks as the Hessian itself does."""
        return curvature(self.settings.hessian)

    @cached_property
    def hessian(self) -> HessianOperator:
        """H, without the outer regulariser."""
        problem = self.run.problem
        return HessianOperator(self.run.solved_tasks, problem.l2, self.settings.hessian, problem.policy)

    @cached_property
    def damping(self) -> float:
        """The number that is added to δ_o when the system is solved."""
        if self.settings.damping != "auto":
            return float(self.settings.damping)
        return RELATIVE_DAMPING * self.hessian.largest_eigenvalue(8)

    @property
    def shift(self) -> float:
        """δ_o and the damping."""
        return self.run.problem.l2 + self.damping

    def with_hessian(self, kind: Curvature) -> OuterSystem:
        """The same system, with this one's damping, under another Hessian."""
        return OuterSystem(self.run, replace(self.settings, hessian=kind, damping=self.damping))

    def solve(self, rows: Tensor, without: Subsets | None = None) -> Solution[Tensor]:
        """(δ_o I + H)⁻¹ of each row, ``[R, P]``, and one report for all of them.

        As many rows are solved together as the memory allows.

        Args:
            without: for each row, positions of tasks whose part is left out of H.
        """
        size = len(rows) if without is not None else self.run.solved_tasks.settings.right_hand_sides_at_once(rows[0])
        solutions = [self._solve(some, without) for some in rows.split(size)]
        value = torch.cat([each.value for each in solutions])
        return Solution(value, SolveReport.of_all([each.report for each in solutions]))

    def _solve(self, rows: Tensor, without: Subsets | None) -> Solution[Tensor]:
        how = self.settings
        return self.hessian.solve_rows(rows, how.solver, damping=self.damping, tolerance=how.tolerance, without=without)

    def note(self, report: SolveReport | None = None) -> str:
        """A note that names the system and says how well it was solved."""
        kind = self.hessian.operator.note or self.settings.hessian
        solved = f"; {report}" if report is not None else ""
        return f"outer: {kind} Hessian, l2 {self.run.problem.l2:.3g} + damping {self.damping:.3g}{solved}"
