"""EK-FAC of one model on the samples of many tasks: Kronecker factors that all tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ....bilevel.kfac import Block, PseudoGradients, task_blocks
from ....bilevel.kfac.gradients import ENTRIES_AT_ONCE
from ....bilevel.kfac.layers import Layer
from ....bilevel.task import Samples
from ....errors import TaskShapeError
from ...run import RunAt
from .one_model import OneModel, pooled

COPIES = 4
"""How often activations and gradients are in memory at once: by task, put together, and in work."""


class Chosen(NamedTuple):
    """Tasks that stand for all: their samples, ``[B, …]``, and each one's weight, ``[B]``."""

    samples: Samples
    weights: Tensor

    @staticmethod
    def of(run: RunAt, positions: list[int]) -> Chosen:
        """Training tasks by their positions.

        Raises:
            TaskShapeError: they have different shapes.
        """
        some = list(
            run.solved_tasks.subset(positions).alone().microbatches("EK-FAC")
        )  # by each rank: factors are not sums
        parts = [pooled(solved.batch) for solved in some]
        if len({part.x.shape[1:] for part in parts}) > 1:
            raise TaskShapeError(
                "single-level EK-FAC needs training tasks of one shape: pass tasks=, a taskset of such"
            )
        weights = torch.cat([solved.batch.weight for solved in some])
        samples = Samples(*(torch.cat(same) for same in zip(*parts, strict=True)))
        return Chosen(samples, weights * len(run.recorded) / len(positions))

    @property
    def weighted(self) -> Samples:
        """The samples, each at its task's weight as well as its own."""
        return self.samples._replace(w=self.samples.w * self.weights.unsqueeze(-1))


def shared_blocks(model: OneModel, tasks: Chosen) -> list[Block]:
    """The Gauss–Newton matrix of Σ_i c_i Σ_j w_j ℓ_j at λ; stacked, as for a batch of one."""
    positions = model.layout.unravel(torch.arange(len(model.lam), device=model.lam.device))
    blocks = task_blocks(Pooled(pseudo_gradients(model, tasks)), tasks.weighted.w.flatten(), positions)
    return [Block.stack([block]) for block in blocks]


def pseudo_gradients(model: OneModel, tasks: Chosen) -> list[PseudoGradients]:
    """The pseudo-gradients of each task at λ."""
    samples, lam = tasks.weighted, model.layout.unravel(model.lam)
    theta = model.lam.repeat(len(tasks.weights), 1)
    roots = model.objective.output_curvature_root(model.lam, theta, samples).permute(0, 3, 1, 2)
    return [
        PseudoGradients(partial(model.outputs, x, y), lam, root)
        for x, y, root in zip(samples.x, samples.y, roots, strict=True)
    ]


def task_nbytes(model: OneModel, one: Chosen) -> int:
    """Memory that a task such as this one takes while the blocks are made."""
    (gradients,) = pseudo_gradients(model, one)
    x, y, _ = (part[0] for part in one.samples)
    outputs = model.outputs(x, y, model.layout.unravel(model.lam))
    rows = outputs[0].numel() if gradients.together else outputs.numel()
    slopes = min(ENTRIES_AT_ONCE, rows * sum(layer.shape.numel() for layer in gradients.layers))
    return COPIES * model.lam.element_size() * (slopes + sum(layer.inputs.numel() for layer in gradients.layers))


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
        solved = next(number for number, own in enumerate(self.layers) if own is layer)
        return torch.cat([task.inputs(task.layers[solved]) for task in self._tasks], dim=1)
