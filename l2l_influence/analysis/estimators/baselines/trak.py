"""TRAK-like: gradients projected at random to a few numbers, and a kernel of these in the place of curvature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor

from ....bilevel.solved_tasks import SolvedTasks
from ....recording import Study
from ...problem.snapshot import Snapshot
from ..outer import RELATIVE_DAMPING
from ..scoring import each_test_gradient
from .base import Baseline, LevelName, each_gradient, each_task


class ProjectedGradients(Baseline):
    """−φ_tᵀ (ΦᵀΦ + ρI)⁻¹ φ_item, where φ = Πᵀ pull, φ_t = Πᵀ g_t, and Φ has a row φ for each item of the level.

    Π is ``[P, k]`` with entries ±1/√k at random. This is TRAK (Park et al., 2023) for total gradients of the loss, from
    one model and without its weights of correct-class probabilities; in other words, influence with the empirical
    Fisher matrix of the items in a random subspace. One pass over the items, however many test tasks there are.

    Positive = harmful. Sizes are no changes of loss: compare scores with each other only.

    Args:
        dimensions: k. Π takes P·k numbers, Φ a row of k for each item.
        ridge: ρ > 0; ``"auto"`` is a hundredth of the largest eigenvalue of ΦᵀΦ. Where items are fewer than k, little
            ridge makes all of them count alike, harmful or not.
        seed: of Π, the signs drawn by ``torch.randint`` from a generator of their own.
        maml, tasks, loss, level, options: see :class:`Baseline`.
    """

    reading = (
        "score = −⟨test task's projected gradient, the item's⟩ under the items' own kernel (TRAK); positive = harmful; "
        "no unit of the loss"
    )

    def __init__(
        self,
        maml: BaseLearner | Study,
        tasks: Taskset | None = None,
        loss: Callable[..., Tensor] | None = None,
        *,
        dimensions: int = 512,
        ridge: float | Literal["auto"] = "auto",
        seed: int = 0,
        level: LevelName = "task",
        **options: Any,
    ) -> None:
        super().__init__(maml, tasks, loss, level=level, **options)
        if dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, got {dimensions}")
        if ridge != "auto" and not ridge > 0:
            raise ValueError(f"ridge must be positive, got {ridge}")
        self._dimensions, self._ridge, self._seed = dimensions, ridge, seed

    def _measure(self, study: Snapshot, test: SolvedTasks) -> list[Tensor]:
        projection = self._projection(study.solved_tasks.lam)
        tests = (each_test_gradient(test, exact=True) @ projection).double().cpu()
        rows = each_task(
            study.solved_tasks,
            lambda solved: each_gradient(self._level, solved, lambda gradient: gradient @ projection),
        )
        values = torch.linalg.solve(self._kernel(torch.cat(rows)), tests.T)
        return [-row @ values for row in rows]

    def _projection(self, like: Tensor) -> Tensor:
        """Π, in the dtype of λ and where it is."""
        draw = torch.Generator().manual_seed(self._seed)
        signs = torch.randint(0, 2, (len(like), self._dimensions), generator=draw, dtype=torch.int8) * 2 - 1
        return signs.to(like) / self._dimensions**0.5

    def _kernel(self, features: Tensor) -> Tensor:
        """ΦᵀΦ + ρI, ``[k, k]``."""
        kernel = features.T @ features
        auto = RELATIVE_DAMPING * float(torch.linalg.matrix_norm(kernel, 2))
        return kernel + (auto if self._ridge == "auto" else float(self._ridge)) * torch.eye(len(kernel)).to(kernel)

    def _notes(self) -> list[str]:
        return [f"{self._dimensions} random dimensions, ridge {self._ridge}, seed {self._seed}"]
