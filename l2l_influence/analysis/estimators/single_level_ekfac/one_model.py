"""The single-level view: λ as the parameters of one model, and all samples of all tasks as its training data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....bilevel.layout import Layout, Named
from ....bilevel.loss import outputs_of
from ....bilevel.objective import Objective
from ....bilevel.solved_tasks import SolvedBatch
from ....bilevel.task import Samples, TaskBatch
from ...run import RunAt


@dataclass(frozen=True)
class OneModel:
    """Losses of λ itself, which no task adapts, on flat vectors.

    Attributes:
        lam: λ, ``[P]``.
        layout: of λ.
        objective: Σ_j w_j ℓ(z_j; λ), with all of λ in the place of θ.
    """

    lam: Tensor
    layout: Layout
    objective: Objective

    @staticmethod
    def of(run: RunAt) -> OneModel:
        """The single-level view of a run, with its outer loss."""
        layout = run.solved_tasks.settings.layout
        return OneModel(
            run.solved_tasks.lam, layout, Objective(run.problem.outer_loss, layout, layout.keep(layout.shapes))
        )

    def outputs(self, x: Tensor, y: Tensor, parameters: Named) -> Tensor:
        """The model outputs for one batch, ``[n, …]``, with these parameters."""
        return outputs_of(self.objective.loss, parameters, parameters, x, y)

    def losses_along(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        """⟨∂_λ c_i w_j ℓ_j, v⟩ of the samples of :func:`pooled`, for each row of v: ``[R, P] -> [B, n, R]``."""
        samples, count = pooled(solved.batch), len(solved.batch.index)
        theta = self.lam.repeat(count, 1)
        rows = [row.repeat(count, 1) for row in v]
        slopes = [self.objective.losses_along(self.lam, theta, samples, row) for row in rows]
        return solved.batch.weight.view(-1, 1, 1) * torch.stack(slopes, dim=2)

    def query_gradient(self, solved: SolvedBatch) -> Tensor:
        """∂_λ Σ_j w_j ℓ_j of query samples at λ, ``[B, P]``."""
        return self.objective.gradient_theta(self.lam, self.lam.expand(len(solved.batch.index), -1), solved.batch.query)


def pooled(batch: TaskBatch) -> Samples:
    """Support samples, then query samples, as one set that goes through the model together."""
    own = [_with_loss(samples) for samples in (batch.support, batch.query)]
    return Samples(*(torch.cat(parts, dim=1) for parts in zip(*own, strict=True)))


def _with_loss(samples: Samples) -> Samples:
    """Without the further rows that have no loss."""
    return samples._replace(x=samples.x[:, : samples.y.shape[1]])
