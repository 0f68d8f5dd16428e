"""TRAK-like scores: gradients projected at random to few dimensions, with the items' own kernel as curvature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ...bilevel.item_gradients import ItemGradient
from ...bilevel.solved_tasks import SolvedBatch
from ..items import Items
from ..latest import Latest
from ..passes import each_task
from ..passes.passes import each_gradient
from ..problem.options import require_count, require_number
from ..run import RunAt
from .base import Estimator
from .directions import FeatureFit
from .implicit import RELATIVE_DAMPING


class ProjectedGradientsFit(FeatureFit["ProjectedGradients"]):
    """Features are projected gradients; the kernel is kept for the kind of items that was asked about last."""

    def __init__(self, estimator: ProjectedGradients, run: RunAt) -> None:
        super().__init__(estimator, run)
        self._kernels: Latest[ItemGradient, Tensor] = Latest(lambda one, other: type(one) is type(other))

    @cached_property
    def projection(self) -> Tensor:
        """Π, ``[P, k]``, in the dtype of λ and on its device."""
        like, k = self.run.solved_tasks.lam, self.estimator.dimensions
        draw = torch.Generator().manual_seed(self.estimator.seed)
        signs = torch.randint(0, 2, (len(like), k), generator=draw, dtype=torch.int8) * 2 - 1
        return signs.to(like) / k**0.5

    def features(self, gradients: Tensor) -> Tensor:
        """φ = Πᵀ g of each row, float64, on the CPU."""
        return (gradients @ self.projection).double().cpu()

    def inverted(self, items: Items, rows: Tensor) -> tuple[Tensor, str]:
        how = self.estimator
        kernel = self._kernels.get(items.gradient, lambda: self._kernel(items.gradient))
        note = f"estimator: {how.name}, {how.dimensions} random dimensions, ridge {how.ridge}, seed {how.seed}"
        return torch.linalg.solve(kernel, rows.T).T, note

    def _kernel(self, gradient: ItemGradient) -> Tensor:
        """ΦᵀΦ + ρI, ``[k, k]``, by one pass over the items."""

        def rows(solved: SolvedBatch) -> Tensor:
            return each_gradient(gradient, solved, self.features)

        features = torch.cat(each_task(self.run.solved_tasks, rows, "kernel"))
        kernel, ridge = features.T @ features, self.estimator.ridge
        auto = RELATIVE_DAMPING * float(torch.linalg.matrix_norm(kernel, 2))
        return kernel + (auto if ridge == "auto" else float(ridge)) * torch.eye(len(kernel)).to(kernel)


@dataclass(frozen=True)
class ProjectedGradients(Estimator):
    """−φ_testᵀ (ΦᵀΦ + ρI)⁻¹ φ_item, where φ = Πᵀ g, and Φ has a row φ for each item of the kind that is scored.

    Π is ``[P, k]`` with random entries ±1/√k. This is TRAK (Park et al., 2023) for total gradients of the loss, from
    one model and without its weights by correct-class probabilities: influence with the empirical Fisher matrix of the
    items in a random subspace. It takes two passes over the items, however many test tasks there are.

    Positive = harmful. Scores are not changes of the loss: compare them with each other only.

    Args:
        dimensions: k. Π takes P·k numbers, Φ has a row of k for each item.
        ridge: ρ > 0; ``"auto"`` is a hundredth of the largest eigenvalue of ΦᵀΦ. With fewer items than k, a small ridge
            makes all items count alike, harmful or not.
        seed: of Π, drawn by ``torch.randint`` from a generator of its own.

    Raises:
        ValueError: a setting is not one of those above.
    """

    name = "projected-gradients"
    fitted = ProjectedGradientsFit
    reads_test_gradients = True

    dimensions: int = 512
    ridge: float | Literal["auto"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require_count("dimensions", self.dimensions)
        if self.ridge != "auto":
            require_number("ridge", self.ridge, above=True, words=("auto",))

    def reading(self, what: str, test_loss: float) -> str:
        return (
            "score = −⟨test task's projected gradient, the item's⟩ under the items' own kernel (TRAK); positive = "
            "harmful; no unit of the loss"
        )
