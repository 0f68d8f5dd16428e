"""The single-level EK-FAC estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ....bilevel.inner.inverses.ekfac import EKFACPlusIdentity
from ....bilevel.item_gradients import ItemGradient, QueryGradient, SupportGradient
from ....bilevel.solved_tasks import SolvedBatch
from ...items import Items
from ...passes import Targets, each_task
from ...problem.options import require_count, require_number
from ..base import Estimator
from ..directions import DirectionalFit, Directions
from .one_model import OneModel
from .shared_factors import Chosen, shared_blocks, task_nbytes

RELATIVE_DAMPING = 0.1
"""``damping="auto"`` is this times the mean eigenvalue, as is usual for EK-FAC influence."""


class SingleLevelEKFACFit(DirectionalFit["SingleLevelEKFAC"]):
    """Solves with EK-FAC factors of one model."""

    finds_stationarity = False

    @cached_property
    def model(self) -> OneModel:
        """The single-level view of the run."""
        return OneModel.of(self.run)

    @cached_property
    def curvature(self) -> EKFACPlusIdentity:
        """F + (δ_o + damping) I."""
        run, chosen = self.run, self._chosen()
        blocks = shared_blocks(self.model, chosen)
        mean, given = sum(float(block.values.sum()) for block in blocks) / len(self.model.lam), self.estimator.damping
        damping = RELATIVE_DAMPING * mean if given == "auto" else float(given)
        about = (
            f"EK-FAC of λ as one model's parameters, from {len(chosen.weights)} of {len(run.recorded)} tasks; "
            f"l2 {run.problem.l2:.3g} + damping {damping:.3g}"
        )
        return EKFACPlusIdentity(blocks, run.problem.l2 + damping, about)

    def directions(self, items: Items, targets: Targets, part: int = 0) -> Directions:
        here = targets.at(self.run)
        gradients = torch.stack(each_task(here.solved(), self.model.query_gradient, "test tasks"))
        rows = targets.reduced(gradients).to(self.run.solved_tasks.lam)
        note = f"estimator: {self.estimator.name}, {self.curvature.note}"
        return Directions(self.curvature.inverse(rows), here.losses(), note)

    def along(self, items: Items, solved: SolvedBatch, positions: Sequence[int], vectors: Tensor) -> Tensor:
        return -_of_items(items.gradient, solved, self.model.losses_along(solved, vectors))

    def _chosen(self) -> Chosen:
        """A random draw of the training tasks, as many as are asked for and fit."""
        count, how = len(self.run.recorded), self.estimator
        order = torch.randperm(count, generator=torch.Generator().manual_seed(how.seed)).tolist()
        first = Chosen.of(self.run, order[:1])
        fitting = max(1, self.run.problem.memory // task_nbytes(self.model, first))
        return Chosen.of(self.run, sorted(order[: min(how.curvature_tasks, fitting)]))


def _of_items(gradient: ItemGradient, solved: SolvedBatch, slopes: Tensor) -> Tensor:
    """From all samples' slopes, ``[B, n_s + n_q, R]``, to the items', ``[B, count, R]``."""
    support = solved.batch.support.w.shape[1]
    if isinstance(gradient, SupportGradient):
        return slopes[:, :support]
    return slopes[:, support:] if isinstance(gradient, QueryGradient) else slopes.sum(1, keepdim=True)


@dataclass(frozen=True)
class SingleLevelEKFAC(Estimator):
    """−⟨(F + (δ_o + damping) I)⁻¹ ∂_λ L^test(λ*), ∂_λ L^item(λ*)⟩: influence of training data on one ordinary model.

    There is no inner problem. λ* is taken for the parameters of a model that was trained on all samples of all tasks,
    support and query alike: its loss is Σ_i c_i Σ_j w_j ℓ(z_ij; λ), each task's samples going through the model in one
    batch. L^item is the item's part of it; a task's is that of all its samples. L^test is the loss of a test task's
    query samples at λ*, unadapted. F is the EK-FAC approximation of the whole loss's Gauss–Newton matrix (Grosse et
    al., 2023) over λ, with factors that all tasks share.

    Positive = harmful. Labels mean what they mean in their task: where one number stands for different classes in
    different tasks, this model has learned nothing; the baseline is there to show that. Unit: the loss, of unadapted
    models.

    Args:
        damping: added to δ_o; ``"auto"`` is a tenth of the mean eigenvalue of F.
        curvature_tasks: the largest number of tasks that F is made from: a random draw, scaled up to all tasks. Fewer
            are taken if the memory does not hold their activations and gradients; the notes say how many were used.
        seed: of that draw.

    Raises:
        ValueError: a setting is not one of those above.
    """

    name = "single-level-ekfac"
    fitted = SingleLevelEKFACFit

    damping: float | Literal["auto"] = "auto"
    curvature_tasks: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.damping != "auto":
            require_number("damping", self.damping, words=("auto",))
        require_count("curvature_tasks", self.curvature_tasks)

    def reading(self, what: str, test_loss: float) -> str:
        return (
            "score = loss of the unadapted model on the test tasks' query samples now − predicted loss after the item "
            "is removed from its training data; positive = harmful; unit: the loss"
        )
