"""The learn2learn reference problem: small recorded runs of loops as users write them, on tasks held in memory."""

from __future__ import annotations

import random
from collections.abc import Sequence

import learn2learn as l2l
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from l2l_influence import MAML, TaskDataset

Batch = tuple[Tensor, Tensor]


class ListedTasks(l2l.data.Taskset):
    """A finite taskset over batches that are given."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        super().__init__(TensorDataset(torch.zeros(1), torch.zeros(1, dtype=torch.long)), num_tasks=len(batches))
        self.batches = list(batches)

    def __getitem__(self, i: int) -> Batch:
        return self.batches[i]


def train(
    model: nn.Module,
    batches: Sequence[Batch],
    loss: nn.Module,
    *,
    lr: float = 0.1,
    steps: int = 1,
    order: Sequence[int] | None = None,
    optimizer_lr: float = 0.0,
    first_order: bool = False,
) -> tuple[MAML, TaskDataset]:
    """Train on even rows, query on odd rows, one task a step; a learning rate of 0 leaves the model where it is."""
    maml = MAML(model, lr=lr, first_order=first_order)
    tasks = TaskDataset(ListedTasks(batches))
    optimizer = torch.optim.SGD(maml.parameters(), lr=optimizer_lr)
    for i in range(len(batches)) if order is None else order:
        x, y = tasks[i]
        learner = maml.clone()
        for _ in range(steps):
            learner.adapt(loss(learner(x[::2]), y[::2]))
        optimizer.zero_grad()
        loss(learner(x[1::2]), y[1::2]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return maml, tasks


def pairs(batches: Sequence[Batch]) -> list[tuple[Batch, Batch]]:
    """Batches split as :func:`train` splits them."""
    return [((x[::2], y[::2]), (x[1::2], y[1::2])) for x, y in batches]


def regression_batches(count: int, seed: int, rows: int = 8, width: int = 3) -> list[Batch]:
    """Linear regression tasks with slopes of their own, float64."""
    g = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        x = torch.randn(rows, width, generator=g, dtype=torch.float64)
        slope = 1 + torch.randn(width, 1, generator=g, dtype=torch.float64)
        batches.append((x, x @ slope + 0.1 * torch.randn(rows, 1, generator=g, dtype=torch.float64)))
    return batches


def classification_batches(count: int, seed: int, shape: tuple[int, ...] = (4,), ways: int = 3) -> list[Batch]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(4 * ways, *shape, generator=g), torch.arange(ways).repeat_interleave(4)) for _ in range(count)]


def labelled_batches(count: int, seed: int) -> list[Batch]:
    """Two classes, eight rows of width 3, float64: labels go by the first input and some noise."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, 3, generator=g, dtype=torch.float64)
    y = (x[..., 0] + 0.5 * torch.randn(count, 8, generator=g, dtype=torch.float64) > 0).long()
    return list(zip(x, y, strict=True))


def everything(maml: nn.Module) -> list[object]:
    """All that must stay: objects, values, flags, modes, gradients, hooks and random states."""
    named = [*maml.named_parameters(remove_duplicate=False), *maml.named_buffers(remove_duplicate=False)]
    return [
        [(name, id(t), t.detach().clone().tolist(), t.requires_grad, t._version, id(t.grad)) for name, t in named],
        [(name, None if t.grad is None else t.grad.tolist()) for name, t in named],
        [(name, id(m), m.training, len(m._forward_hooks)) for name, m in maml.named_modules()],
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    ]
