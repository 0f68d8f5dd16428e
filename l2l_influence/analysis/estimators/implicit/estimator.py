"""The implicit estimator: the influence functions of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, TypeVar

from torch import Tensor

from ....bilevel.hessians import Curvature, curvature
from ....bilevel.item_gradients import TaskGradient
from ....bilevel.problem import REMOVALS
from ....bilevel.solved_tasks import SolvedBatch
from ....bilevel.solvers import LinearSolver
from ...edits import Edit
from ...items import Items
from ...passes import Targets
from ...problem.options import require_number
from ...run import RunAt
from ..base import Estimator
from ..directions import Directions, GradientFit
from .system import OuterSystem

Removal = Literal["closed-form", "resolve"]

ImplicitType = TypeVar("ImplicitType", bound="Implicit", covariant=True)


class ImplicitFit(GradientFit[ImplicitType]):
    """The implicit estimator for one run.

    Attributes:
        system: the outer system.
    """

    takes_residual = True

    def __init__(self, estimator: ImplicitType, run: RunAt, system: OuterSystem | None = None) -> None:
        super().__init__(estimator, run)
        self.system = system or OuterSystem(run, estimator)

    def under(self, estimator: Estimator) -> ImplicitFit[Any]:
        assert isinstance(estimator, Implicit)
        return self if estimator == self.estimator else ImplicitFit(estimator, self.run, self.system)

    @property
    def damping(self) -> float:
        """The number that is added to δ_o when the outer system is solved."""
        return self.system.damping

    @property
    def solves_for_items(self) -> bool:
        return self.estimator.leave_one_out

    def linearised(self, solved: SolvedBatch) -> SolvedBatch:
        return self.system.curvature.linearised(solved)

    def inverted(self, items: Items, rows: Tensor) -> tuple[Tensor, str]:
        solution = self.system.solve(rows)
        return solution.value, self.system.note(solution.report)

    def inverted_of_items(self, items: Items, rows: Tensor, solved: SolvedBatch) -> tuple[Tensor, str]:
        without = self._left_out(solved.batch.index)
        solution = self.system.solve(rows, without)
        return solution.value, self.system.note(solution.report)

    def directions(self, items: Items, targets: Targets, part: int = 0) -> Directions:
        gradients, losses = targets.at(self.run).gradients()
        vectors, note = self.directions_for(items, gradients)
        return Directions(vectors, losses, note)

    def directions_for(self, items: Items, gradients: Tensor) -> tuple[Tensor, str]:
        """The directions for targets with these gradients, ``[R, P]``, and how they were computed."""
        if not self.estimator.leave_one_out:
            return self.inverted(items, gradients)
        return gradients, f"{self.system.note()}; each task's part of the Hessian left out"

    def along(self, items: Items, solved: SolvedBatch, positions: Sequence[int], vectors: Tensor) -> Tensor:
        if not self.estimator.leave_one_out:
            return super().along(items, solved, positions, vectors)
        # −⟨(δ_o I + H − c_k H_k)⁻¹ c_k g_k, g⟩: one solve per task.
        pulls = items.gradient.gradient(self.linearised(solved), 0)
        return -(self.system.solve(pulls, self._left_out(positions)).value @ vectors.T).unsqueeze(1)

    def change(self, edit: Edit, residual: Tensor | None = None) -> Tensor:
        change = edit.gradient_change(self.run, self.linearised)
        if residual is not None:
            change = change + residual.to(change)
        left_out = edit.removed_tasks if self.estimator.leave_one_out else []
        return -self.system.solve(change, [left_out] if left_out else None).value[0]

    def _left_out(self, positions: Sequence[int]) -> list[list[int]] | None:
        return [[position] for position in positions] if self.estimator.leave_one_out else None


@dataclass(frozen=True)
class Implicit(Estimator):
    """IS = −⟨(δ_o I + H)⁻¹ g_test, g_item⟩ (Def. 5.2), and Δλ = (δ_o I + H)⁻¹ g_item on removal (Thm 4.3, 4.5–4.8).

    g_item is the derivative of D_λ L_Total by the item's relative weight. Scores of all items take one outer solve per
    target, however many items there are. Positive = harmful: the test loss is predicted to fall by the score if the
    item is removed and λ retrained.

    >>> Implicit(hessian="exact", leave_one_out=True).hessian
    'exact'
    >>> Implicit(tolerance=2.0)
    Traceback (most recent call last):
    ValueError: tolerance must be a number between 0 and 1, not 2.0

    Args:
        hessian: kind of total Hessian: ``"sketch"`` (a sampled Gauss–Newton matrix), ``"gauss-newton"``, ``"exact"``,
            ``"hessian"``, ``"gamma"`` (the paper's), ``"direct"``, ``"direct-first-order"`` or ``"identity"``; or an
            object from ``l2l_influence.bilevel`` such as ``Sketch(samples=…, seed=…)`` or
            ``Subsample("gauss-newton", tasks=…)``.
        damping: added to l2 when solving; ``"auto"`` is a hundredth of the largest eigenvalue of the Hessian (of its
            sketch, for ``"gauss-newton"``).
        tolerance: relative residual of the outer solve, for the default solver.
        solver: of the outer system, with its own tolerance. None for conjugate gradients, or the direct solver of a
            sketch.
        removal: how a support sample is removed: ``"closed-form"``, the paper's derivative by its weight; or
            ``"resolve"``, the difference that adapting the task anew without it makes. The second costs one inner solve
            per sample, and is much closer to removal on small support sets.
        leave_one_out: for whole tasks, solve with the removed task's part of the Hessian left out, δ_o I + H − c_k H_k:
            closer to removal where the problem is convex, at the cost of one solve per task; an error where that matrix
            is indefinite. Relabelled and added tasks stay, so ``relabel`` and ``add`` leave nothing out.

    Raises:
        TypeError, ValueError: a setting is not one of those above.
    """

    name = "implicit"
    fitted = ImplicitFit
    reads_test_gradients = True

    hessian: str | Curvature = "sketch"
    damping: float | Literal["auto"] = "auto"
    tolerance: float = 1e-2
    solver: LinearSolver | None = None
    removal: Removal = "closed-form"
    leave_one_out: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.hessian, (str, Curvature)):
            raise TypeError(f"hessian must be the name of a kind or a Curvature object, not {self.hessian!r}")
        curvature(self.hessian)
        if self.damping != "auto":
            require_number("damping", self.damping, words=("auto",))
        if not isinstance(self.tolerance, Real) or not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be a number between 0 and 1, not {self.tolerance!r}")
        if not (self.solver is None or isinstance(self.solver, LinearSolver)):
            raise TypeError(
                f"solver must be a solver object of l2l_influence.bilevel, such as CG(), not {self.solver!r}"
            )
        if self.removal not in REMOVALS:
            raise ValueError(f"removal must be one of {sorted(REMOVALS)}, not {self.removal!r}")
        if not isinstance(self.leave_one_out, bool):
            raise TypeError(f"leave_one_out must be True or False, not {self.leave_one_out!r}")

    @property
    def computation(self) -> Implicit:
        return replace(self, removal="closed-form", leave_one_out=False)

    @property
    def needs_exact_inverse(self) -> bool:
        return curvature(self.hessian).needs_exact_inverse

    def prepared(self, items: Items) -> Items:
        if self.leave_one_out and not isinstance(items.gradient, TaskGradient):
            raise ValueError(
                f"leave_one_out=True is for whole tasks: a {items.members.what} has no part of the Hessian"
            )
        return items.resolved() if self.removal == "resolve" else items

    def reading(self, what: str, test_loss: float) -> str:
        return (
            f"score = mean loss of the test tasks now ({test_loss:.4f}) − predicted loss after one of the {what} is "
            "removed and λ retrained; positive = harmful, negative = helpful; unit: the loss"
        )

    def self_reading(self, what: str, loss: float) -> str:
        return (
            "score = the item's own loss now − predicted loss after it is removed and λ retrained; the most negative "
            "first: λ leans on these most, as it does on wrong labels; unit: the loss"
        )
