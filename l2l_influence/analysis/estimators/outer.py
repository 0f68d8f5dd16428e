"""The outer system (δ_o I + H) x = v of a study: its Hessian, damping and solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ...bilevel import HessianOperator
from ...bilevel.hessians import Curvature, Subsets, curvature
from ...bilevel.item_gradients import ItemGradient
from ...bilevel.solvers import LinearSolver, Solution, SolveReport
from ..problem.snapshot import Snapshot

RELATIVE_DAMPING = 1e-2
"""``damping="auto"`` is this times the largest eigenvalue of the total Hessian."""


@dataclass(frozen=True)
class Curved:
    """How a hook models the outer curvature; see :class:`~l2l_influence.analysis.estimators.curved.CurvedHook`."""

    hessian: str | Curvature
    damping: float | Literal["auto"]
    tolerance: float
    solver: LinearSolver | None


def settings_told(how: Curved) -> list[str]:
    """What a Hessian and its solver are, in words that are the same in every process; objects by their class."""
    values = [how.hessian, how.damping, how.tolerance, how.solver]
    return [repr(v) if is_dataclass(v) or isinstance(v, (str, float, int)) else type(v).__qualname__ for v in values]


class Outer:
    """The outer system at λ*, made when first needed.

    Attributes:
        study: whose it is.
        how: the curvature is modelled.
        report: of the last solve.
    """

    def __init__(self, study: Snapshot, how: Curved) -> None:
        study.problem.ranks.require_same("settings of the outer system", settings_told(how))
        self.study, self.how = study, how
        self.report: SolveReport | None = None

    @property
    def curvature(self) -> Curvature:
        """The kind of Hessian, which needs no pass over the tasks as the Hessian itself does."""
        return curvature(self.how.hessian)

    @cached_property
    def hessian(self) -> HessianOperator:
        return HessianOperator(
            self.study.solved_tasks, self.study.problem.l2, self.how.hessian, self.study.problem.policy
        )

    @cached_property
    def damping(self) -> float:
        """What is added to δ_o."""
        if self.how.damping != "auto":
            return float(self.how.damping)
        return RELATIVE_DAMPING * self.hessian.largest_eigenvalue(8)

    @property
    def tolerance(self) -> float:
        """Relative residual that the default solver is asked for."""
        return self.how.tolerance

    def with_hessian(self, kind: Curvature) -> Outer:
        """The same system, with this one's damping, under another Hessian."""
        return Outer(self.study, replace(self.how, hessian=kind, damping=self.damping))

    def solve(self, rows: Tensor, without: Subsets | None = None) -> Tensor:
        """(δ_o I + H)⁻¹ of each row, ``[R, P]``; without some tasks' part of H where these are given for each row.

        As many rows are solved together as the memory allows.
        """
        size = len(rows) if without is not None else self.study.solved_tasks.settings.right_hand_sides_at_once(rows[0])
        solutions = [self._solve(some, without) for some in rows.split(size)]
        self.report = SolveReport.of_all([each.report for each in solutions])
        return torch.cat([each.value for each in solutions])

    def _solve(self, rows: Tensor, without: Subsets | None) -> Solution[Tensor]:
        how = self.how
        return self.hessian.solve_rows(rows, how.solver, damping=self.damping, tolerance=how.tolerance, without=without)

    def gradient(self, level: ItemGradient, items: Sequence[tuple[int, int]]) -> Tensor:
        """The pulls of items (position of the task, j), added up: ``[1, P]``."""
        total = self.study.solved_tasks.lam.new_zeros(1, self.study.solved_tasks.lam.numel())
        for position, j in items:
            total += level.gradient(self.hessian.linearised(position), j)
        return total

    def note(self) -> str:
        """What was solved, and how well."""
        kind = self.hessian.operator.note or self.how.hessian
        solved = f"; {self.report}" if self.report is not None else ""
        return f"outer: {kind} Hessian, l2 {self.study.problem.l2:.3g} + damping {self.damping:.3g}{solved}"
