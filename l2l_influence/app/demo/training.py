"""The training loop that the demo analyses: MAML as in learn2learn's examples, without any code for recording."""

from __future__ import annotations

from collections.abc import Callable

import learn2learn as l2l
import torch
from torch import nn

from .data import WAYS, support_rows

ADAPT_LR, ADAPT_STEPS = 0.5, 1
META_LR, META_BATCH = 0.01, 12
WEIGHT_DECAY = 1e-4


def new_model() -> nn.Module:
    """A small network for images of 8×8 pixels, with P = 2,245 parameters."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, WAYS))


def meta_train(
    maml: l2l.algorithms.MAML, tasks: l2l.data.Taskset, iterations: int, advance: Callable[[], None] = lambda: None
) -> None:
    """Train ``maml`` on tasks sampled from ``tasks``; ``advance`` is called after each iteration."""
    loss = nn.CrossEntropyLoss()
    optimiser = torch.optim.Adam(maml.parameters(), META_LR, weight_decay=WEIGHT_DECAY)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, total_iters=iterations)
    support = support_rows()
    for _ in range(iterations):
        optimiser.zero_grad()
        for _ in range(META_BATCH):
            learner = maml.clone()
            x, y = tasks.sample()
            for _ in range(ADAPT_STEPS):
                learner.adapt(loss(learner(x[support]), y[support]))
            query_loss = loss(learner(x[~support]), y[~support])
            (query_loss / META_BATCH).backward()
        optimiser.step()
        decay.step()
        advance()
