"""Influence by EK-FAC as for one ordinary model, as if there were no inner problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor

from ....bilevel.inner.inverses.ekfac import EKFACPlusIdentity
from ....bilevel.solved_tasks import SolvedBatch, SolvedTasks
from ....recording import Study
from ...problem.snapshot import Snapshot
from .base import Baseline, LevelName, each_task
from .one_model import OneModel
from .shared_factors import Chosen, shared_blocks, task_nbytes

RELATIVE_DAMPING = 0.1
"""``damping="auto"`` is this times the mean eigenvalue, as is usual for EK-FAC influence."""


class SingleLevelEKFAC(Baseline):
    """−⟨(F + (δ_o + damping) I)⁻¹ ∂_λ L^t(λ*), ∂_λ L^item(λ*)⟩: the influence of training data on one ordinary model.

    There is no inner problem here. λ* is taken for the parameters of a model that was trained on all samples of all
    tasks, support and query alike: its loss is Σ_i c_i Σ_j w_j ℓ(z_ij; λ), each task's samples going through the model
    in one batch. L^item is the item's part of it; a task's is that of all its samples. L^t is the loss of test task t's
    query samples at λ*, unadapted. F is the EK-FAC approximation of the whole loss's Gauss–Newton matrix (Grosse et
    al., 2023), over λ, with factors that all tasks share.

    Positive = harmful. Labels mean what they mean in their task: where the same number stands for different classes in
    different tasks, this model has learned nothing, which is what the baseline is there to show. Unit: the loss, of
    unadapted models.

    Args:
        damping: added to δ_o; ``"auto"`` is a tenth of the mean eigenvalue of F.
        curvature_tasks: how many tasks F is made from, at most: a random draw, scaled up to all tasks. They are fewer
            where ``memory`` (of ``options``) does not hold the activations and gradients of so many; the notes say how
            many they were.
        seed: of that draw.
        maml, tasks, loss, level, options: see :class:`Baseline`.

    Raises:
        UncoveredParameterError: a parameter is no layer's and too large for a dense block.
        LossStructureError: the loss shows no outputs, or is not convex in them.
        TaskShapeError: tasks have different shapes.
    """

    reading = (
        "score = loss of the unadapted model on the test tasks' query samples now − predicted loss after the item is "
        "removed from its training data; positive = harmful; unit: the loss"
    )

    def __init__(
        self,
        maml: BaseLearner | Study,
        tasks: Taskset | None = None,
        loss: Callable[..., Tensor] | None = None,
        *,
        damping: float | Literal["auto"] = "auto",
        curvature_tasks: int = 256,
        seed: int = 0,
        level: LevelName = "task",
        **options: Any,
    ) -> None:
        super().__init__(maml, tasks, loss, level=level, **options)
        if curvature_tasks < 1:
            raise ValueError(f"curvature_tasks must be at least 1, got {curvature_tasks}")
        self._damping, self._most, self._seed = damping, curvature_tasks, seed
        self._about = ""

    def _measure(self, study: Snapshot, test: SolvedTasks) -> list[Tensor]:
        model = OneModel.of(study)
        tests = torch.stack(each_task(test, model.query_gradient)).to(study.solved_tasks.lam)
        values = self._curvature(study, model).inverse(tests)
        return each_task(study.solved_tasks, lambda solved: -self._of_items(solved, model.losses_along(solved, values)))

    def _of_items(self, solved: SolvedBatch, slopes: Tensor) -> Tensor:
        """From all samples' ``[B, n_s + n_q, R]`` to the items': ``[B, count, R]``."""
        support = solved.batch.support.w.shape[1]
        parts = {"support sample": slopes[:, :support], "query sample": slopes[:, support:]}
        return parts.get(self._level.item_name, slopes.sum(1, keepdim=True))

    def _curvature(self, study: Snapshot, model: OneModel) -> EKFACPlusIdentity:
        chosen = self._chosen(study, model)
        blocks = shared_blocks(model, chosen)
        mean = sum(float(block.values.sum()) for block in blocks) / len(model.lam)
        damping = RELATIVE_DAMPING * mean if self._damping == "auto" else float(self._damping)
        self._about = (
            f"EK-FAC of λ as one model's parameters, from {len(chosen.weights)} of {len(study.recorded)} tasks; "
            f"l2 {study.problem.l2:.3g} + damping {damping:.3g}"
        )
        return EKFACPlusIdentity(blocks, study.problem.l2 + damping, self._about)

    def _chosen(self, study: Snapshot, model: OneModel) -> Chosen:
        """A random draw of the training tasks, as many as are asked for and fit."""
        count = len(study.recorded)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self._seed)).tolist()
        first = Chosen.of(study, order[:1])
        fitting = max(1, study.problem.memory // task_nbytes(model, first))
        return Chosen.of(study, sorted(order[: min(self._most, fitting)]))

    def _notes(self) -> list[str]:
        return [self._about]
