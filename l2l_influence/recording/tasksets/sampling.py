"""Reading tasks from a taskset without side effects: no random numbers are used up, no description is added."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from learn2learn.data import Taskset
from torch import Tensor

from .reading import random_state_kept
from .serving import drawing
from .tasks import plain

DEFAULT_COUNT = 100


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random number generators of Python, NumPy and torch inside, and restore all three afterwards."""
    with random_state_kept():
        random.seed(seed)
        np.random.seed(seed)
        # torch.manual_seed would seed all devices, of which only the current one is restored.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)
        yield


def read_tasks(taskset: Taskset, num_tasks: int | None, seed: int) -> list[tuple[Tensor, Tensor]]:
    """``(x, y)`` of the first ``num_tasks`` tasks of a finite taskset, or of that many draws from an infinite one.

    The taskset itself does not change: a shallow copy is read, with a copy of the descriptions sampled so far.
    """
    own = copy.copy(plain(taskset))
    own.sampled_descriptions = dict(own.sampled_descriptions)
    count = DEFAULT_COUNT if num_tasks is None else num_tasks
    if own.num_tasks != -1:
        count = min(count, own.num_tasks)
    with seeded(seed), drawing():
        return [tuple(own[i])[:2] for i in range(count)]
