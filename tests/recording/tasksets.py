"""Tasksets as users derive them."""

from __future__ import annotations

import random
from typing import Any

import learn2learn as l2l
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .omniglot_loop import images, taskset


class Augmented(Dataset[tuple[Tensor, int]]):
    """Adds noise from all three generators whenever a sample is read."""

    def __init__(self) -> None:
        self.plain = images(shape=(4,))

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.plain[index]
        return x + torch.randn(4) + float(np.random.randn()) + random.random(), int(y)


def small(num_tasks: int = 6, seed: int = 0) -> l2l.data.Taskset:
    return taskset(images(shape=(4,), seed=seed), num_tasks)


class Scaled(l2l.data.Taskset):
    """A user's own taskset."""

    offset = 1.0

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return 2 * x, y

    def get_task(self, task_description: Any) -> Any:
        x, y = super().get_task(task_description)
        return x + self.offset, y


class Shuffled(l2l.data.Taskset):
    """A user's own way to draw."""

    def sample(self) -> Any:
        return self[2 * random.randrange(3)]


def of_class(kind: type, num_tasks: int = 6) -> Any:
    inner = small()
    return kind(inner.dataset, inner.task_transforms, num_tasks=num_tasks)
