"""Influence by EK-FAC as for one ordinary model, as if there were no inner problem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ...bilevel.inner.ekfac import EKFACPlusIdentity
from ...bilevel.kfac import Block, PseudoGradients, task_blocks
from ...bilevel.kfac.layers import Layer
from ...bilevel.local import LocalProblem, SolvedBatch
from ...bilevel.task import Samples
from ...errors import TaskShapeError
from ...influence.snapshot import Snapshot
from .base import Baseline, each_task
from .one_model import OneModel, pooled

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
        curvature_tasks: how many tasks F is made from, at most (drawn at random, scaled up to all); their activations
            are in memory together.
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
        *args: Any,
        damping: float | Literal["auto"] = "auto",
        curvature_tasks: int = 64,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if curvature_tasks < 1:
            raise ValueError(f"curvature_tasks must be at least 1, got {curvature_tasks}")
        self._damping, self._most, self._seed = damping, curvature_tasks, seed

    def _measure(self, study: Snapshot, test: LocalProblem) -> list[Tensor]:
        model = OneModel.of(study)
        tests = torch.stack(each_task(test, model.query_gradient)).to(study.local.lam)
        values = self._curvature(study, model).inverse(tests)
        return each_task(study.local, lambda at: -self._of_items(at, model.losses_along(at, values)))

    def _of_items(self, at: SolvedBatch, slopes: Tensor) -> Tensor:
        """From all samples' ``[B, n_s + n_q, R]`` to the items': ``[B, count, R]``."""
        support = at.batch.support.w.shape[1]
        parts = {"support sample": slopes[:, :support], "query sample": slopes[:, support:]}
        return parts.get(self._level.what, slopes.sum(1, keepdim=True))

    def _curvature(self, study: Snapshot, model: OneModel) -> EKFACPlusIdentity:
        blocks = shared_blocks(model, *self._chosen(study))
        eigenvalues = sum(float(block.values.sum()) for block in blocks)
        damping = RELATIVE_DAMPING * eigenvalues / len(model.lam) if self._damping == "auto" else float(self._damping)
        return EKFACPlusIdentity(blocks, study.problem.l2 + damping, "")

    def _chosen(self, study: Snapshot) -> tuple[Samples, Tensor]:
        """The samples that F is made from, ``[B, …]``, and what each of these tasks stands for, ``[B]``."""
        count = len(study.recorded)
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(self._seed))[: self._most]
        some = list(study.local.subset(drawn.sort().values.tolist()).solved("EK-FAC"))
        parts = [pooled(solved.batch) for solved in some]
        if len({part.x.shape[1:] for part in parts}) > 1:
            raise TaskShapeError("single-level EK-FAC needs tasks of the same shape: pass tasks=, some that are")
        samples = Samples(*(torch.cat(same) for same in zip(*parts, strict=True)))
        weights = torch.cat([solved.batch.weight for solved in some])
        return samples, weights * count / len(drawn)

    def _notes(self) -> list[str]:
        return [f"EK-FAC of λ as one model's parameters; damping {self._damping}; at most {self._most} tasks in it"]


def shared_blocks(model: OneModel, samples: Samples, weights: Tensor) -> list[Block]:
    """EK-FAC at λ of Σ_i c_i Σ_j w_j ℓ_j, with factors that all tasks of ``samples`` share; stacked, of one task."""
    weighted = samples._replace(w=samples.w * weights.unsqueeze(-1))
    theta, lam = model.lam.expand(len(weights), -1), model.layout.unravel(model.lam)
    roots = model.objective.output_curvature_root(model.lam, theta, weighted).permute(0, 3, 1, 2)
    tasks = [
        PseudoGradients(partial(model.outputs, x, y), lam, root)
        for x, y, root in zip(samples.x, samples.y, roots, strict=True)
    ]
    positions = model.layout.unravel(torch.arange(len(model.lam), device=model.lam.device))
    return [Block.stack([block]) for block in task_blocks(Pooled(tasks), weighted.w.flatten(), positions)]


class Pooled(PseudoGradients):
    """The pseudo-gradients of tasks of one shape as those of one task, which has the samples of all."""

    def __init__(self, tasks: Sequence[PseudoGradients]) -> None:
        first = tasks[0]
        self._tasks, self.layers, self.rest, self.together = tasks, first.layers, first.rest, first.together

    def __iter__(self) -> Iterator[tuple[list[Tensor], dict[str, Tensor]]]:
        for chunks in zip(*self._tasks, strict=True):
            by_layer = zip(*(layers for layers, _ in chunks), strict=True)
            rest = {name: torch.cat([part[name] for _, part in chunks]) for name in self.rest}
            yield [torch.cat(same, dim=2) for same in by_layer], rest

    def inputs(self, layer: Layer) -> Tensor:
        at = self.layers.index(layer)
        return torch.cat([task.inputs(task.layers[at]) for task in self._tasks], dim=1)
