"""How well the estimators predict what removal does.

The matrices are the package's, column by column, so that one decomposition answers every damping and every removal; a
damped system that has an eigenvalue of zero or less is what its solvers refuse (``NegativeCurvatureError``).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2l_influence.analysis.estimators.implicit import RELATIVE_DAMPING
from l2l_influence.bilevel import HessianOperator, Sketch
from l2l_influence.bilevel.hessians import Curvature, curvature
from l2l_influence.bilevel.item_gradients import ItemGradient
from l2l_influence.bilevel.problem import ITEM_GRADIENTS, REMOVALS
from l2l_influence.bilevel.solved_tasks import SolvedTasks
from l2l_influence.errors import NegativeCurvatureError
from l2l_influence.evaluation import lds, pearson, spearman

from ..journal import Row
from .truth import Removal, Truth
from .worlds import World

DAMPINGS = (0.0, 1e-3, RELATIVE_DAMPING, 1e-1)
"""Relative to the largest eigenvalue of the estimator's own Hessian; the third is the hooks' default."""

QUESTIONS: dict[str, tuple[str, ItemGradient]] = {
    "task": ("task", ITEM_GRADIENTS["task"]),
    "query": ("query", ITEM_GRADIENTS["query"]),
    "support": ("support", REMOVALS["closed-form"]),
    "support, resolved": ("support", REMOVALS["resolve"]),
    "half": ("half", ITEM_GRADIENTS["task"]),
}
"""What is asked: which truth it is held against, and where the item gradient comes from."""


@dataclass(frozen=True)
class Estimator:
    """A total Hessian, with what is removed left out of it where ``leave_out`` says so."""

    name: str
    kind: str | Curvature
    leave_out: bool = False

    def answers(self, question: str) -> bool:
        """The package leaves whole tasks out, not samples."""
        return not self.leave_out or question in ("task", "half")


ESTIMATORS = (
    Estimator("exact", "exact"),
    Estimator("exact, left out", "exact", leave_out=True),
    Estimator("hessian", "hessian"),
    Estimator("gauss-newton", "gauss-newton"),
    Estimator("gauss-newton, left out", "gauss-newton", leave_out=True),
    Estimator("sketch, 4 samples", Sketch(samples=4)),
    Estimator("sketch, 16 samples", Sketch(samples=16)),
    Estimator("sketch, 64 samples", Sketch(samples=64)),
    Estimator("gamma", "gamma"),
    Estimator("direct", "direct"),
    Estimator("direct-first-order", "direct-first-order"),
    Estimator("identity", "identity"),
)

TASK_BY_TASK = frozenset(estimator.kind for estimator in ESTIMATORS if estimator.leave_out)
"""Kinds of which each task's own matrix is needed."""


FIGURES = ("cosine", "error", "pearson", "spearman", "lds")
"""What :func:`figures` gives."""


# ---- figures ------------------------------------------------------------------------------------------------------


def figures(predicted: Tensor, moved: Tensor, gradients: Tensor, change: Tensor) -> Row:
    """Predicted against true removals.

    Args:
        predicted, moved: Δλ, ``[R, P]``.
        gradients: D_λ L_O of the test tasks, ``[T, P]``: the predicted change of their losses is linear in Δλ.
        change: true changes of their losses, ``[R, T]``.

    Returns:
        The medians over removals of the cosine and of the relative error of Δλ; the mean over removals of Pearson's r
        of the test tasks' loss changes; Spearman's ρ over removals of the mean loss change; and that of each test task
        by itself, on average (LDS).
    """
    expected, happened = (predicted @ gradients.T).numpy(), change.numpy()
    return {
        "cosine": float(F.cosine_similarity(predicted, moved, dim=1).median()),
        "error": float(((predicted - moved).norm(dim=1) / moved.norm(dim=1)).median()),
        "pearson": float(np.mean([pearson(a, b) for a, b in zip(expected, happened, strict=True)])),
        "spearman": spearman(expected.mean(1), happened.mean(1)),
        "lds": lds(expected, happened),
    }


class System:
    """A symmetric matrix, decomposed once to be solved at any shift of its diagonal."""

    def __init__(self, matrix: Tensor) -> None:
        self.values, self._vectors = torch.linalg.eigh((matrix + matrix.T) / 2)

    def solve(self, rows: Tensor, shift: float) -> Tensor:
        """``(A + shift·I)⁻¹`` of each row.

        Raises:
            NegativeCurvatureError: that matrix is not positive definite.
        """
        if not float(self.values[0]) + shift > 0:
            raise NegativeCurvatureError(f"smallest eigenvalue {float(self.values[0]) + shift:.3g}")
        return (rows @ self._vectors / (self.values + shift)) @ self._vectors.T


# ---- predictions --------------------------------------------------------------------------------------------------


class Linearised:
    """A world at λ* (``lam``): what its estimators predict, with what they share computed once.

    Attributes:
        local: the training tasks there.
        test_gradients: D_λ L_O of the test tasks, ``[T, P]``.
    """

    def __init__(self, world: World, lam: Tensor) -> None:
        problem, named = world.problem(), world.layout.unravel(lam)
        self.solved_tasks = problem.at(named, world.train.listed())
        self.test_gradients = total_gradients(problem.at(named, world.test.listed()))
        self._l2 = world.l2
        self._pulls: dict[Any, Tensor] = {}
        self._matrices: dict[Any, Tensor] = {}
        self._systems: dict[Any, System] = {}

    def predict(self, estimator: Estimator, question: str, removals: list[Removal], damping: float) -> Tensor:
        """Δλ, ``[R, P]``, with ``damping`` times the largest eigenvalue of the Hessian added to l2.

        Raises:
            NegativeCurvatureError: a system is not positive definite.
        """
        shift = self._l2 + damping * float(self._system(estimator, ()).values[-1])
        moves = []
        for removal in removals:
            without = {task for task, _ in removal.items} if estimator.leave_out else ()
            system = self._system(estimator, tuple(sorted(without)))
            moves.append(system.solve(self._item_gradient(estimator, question, removal), shift))
        return torch.cat(moves)

    def matrix(self, estimator: Estimator) -> Tensor:
        """The total Hessian without δ_o, ``[P, P]``."""
        if estimator.kind in TASK_BY_TASK:
            return self._of_tasks(estimator).sum(0)
        operator = total_hessian(self.solved_tasks, self._l2, estimator).operator
        return operator.matvec(torch.eye(self.solved_tasks.lam.numel(), dtype=torch.float64))

    def _system(self, estimator: Estimator, without: tuple[int, ...]) -> System:
        if (estimator.kind, without) not in self._systems:
            left_out = self._of_tasks(estimator)[list(without)].sum(0) if without else 0
            self._systems[estimator.kind, without] = System(self.matrix(estimator) - left_out)
        return self._systems[estimator.kind, without]

    def _of_tasks(self, estimator: Estimator) -> Tensor:
        """Each task's own matrix, ``[N, P, P]``."""
        if estimator.kind not in self._matrices:
            self._matrices[estimator.kind] = task_matrices(total_hessian(self.solved_tasks, self._l2, estimator))
        return self._matrices[estimator.kind]

    def _item_gradient(self, estimator: Estimator, question: str, removal: Removal) -> Tensor:
        """Of all its items together, ``[1, P]``."""
        pulls = [self._item_gradients_of(estimator, question, j)[task] for task, j in removal.items]
        return torch.stack(pulls).sum(0, keepdim=True)

    def _item_gradients_of(self, estimator: Estimator, question: str, j: int) -> Tensor:
        """Of item j of each task, ``[N, P]``."""
        linearised = curvature(estimator.kind).linearised
        key = linearised.__func__, question, j  # kinds that linearise the tasks alike share them
        if key not in self._pulls:
            pulls = self.solved_tasks.lam.new_empty(len(self.solved_tasks.tasks), self.solved_tasks.lam.numel())
            for at in self.solved_tasks.microbatches():
                pulls[at.batch.index] = QUESTIONS[question][1].gradient(linearised(at), j)
            self._pulls[key] = pulls
        return self._pulls[key]


def total_hessian(solved_tasks: SolvedTasks, l2: float, estimator: Estimator) -> HessianOperator:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "direct" says that it is zero where it is; so do the tables
        return HessianOperator(solved_tasks, l2, estimator.kind)


def task_matrices(hessian: HessianOperator) -> Tensor:
    """The parts c_i H_i of a total Hessian, ``[N, P, P]``, column by column."""
    solved_tasks = hessian.solved_tasks
    size = solved_tasks.lam.numel()
    matrices = solved_tasks.lam.new_empty(len(solved_tasks.tasks), size, size)
    for at in solved_tasks.microbatches():
        for column, e in enumerate(torch.eye(size, dtype=torch.float64)):
            product = hessian.curvature.product(at, e)
            matrices[at.batch.index, :, column] = at.batch.weight.unsqueeze(-1) * product
    return matrices


def total_gradients(solved_tasks: SolvedTasks) -> Tensor:
    """D_λ L_O of each task, ``[N, P]``."""
    gradients = solved_tasks.lam.new_empty(len(solved_tasks.tasks), solved_tasks.lam.numel())
    for at in solved_tasks.microbatches():
        gradients[at.batch.index] = at.total_gradient
    return gradients


def rows_of(linearised: Linearised, estimator: Estimator, truths: dict[str, Truth]) -> list[Row]:
    """One row a question, each figure a list over ``DAMPINGS``."""
    rows = []
    for question, (level, _) in QUESTIONS.items():
        if estimator.answers(question):
            found = [_answer(linearised, estimator, question, truths[level], damping) for damping in DAMPINGS]
            row: Row = {"table": "fidelity", "question": question, "estimator": estimator.name}
            rows.append(row | {name: [each.get(name) for each in found] for name in ("verdict", *FIGURES)})
    return rows


def _answer(linearised: Linearised, estimator: Estimator, question: str, truth: Truth, damping: float) -> Row:
    try:
        predicted = linearised.predict(estimator, question, truth.removals, damping)
    except NegativeCurvatureError:
        return {"verdict": "indefinite"}
    if not bool(predicted.any()):
        return {"verdict": "zero"}
    return {"verdict": "measured"} | figures(predicted, truth.moved, linearised.test_gradients, truth.change)
