"""A retraining with a closed form: the weighted mean of some points. Worker processes can import it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from l2l_influence.evaluation import Outcome
from l2l_influence.evaluation.metrics import Floats

POINTS = np.array([0.0, 1.0, 2.0, 9.0, -3.0, 5.0])
TARGETS = np.array([1.0, 3.0])


@dataclass(frozen=True)
class Mean:
    """The parameter is the weighted mean of the points plus noise by seed; each call leaves a file in ``calls``.

    Attributes:
        calls: a folder.
        noise: standard deviation of each of its two terms.
        deadly: the process dies in a retraining without these points.
        failing: a retraining without these points raises.
    """

    calls: Path
    noise: float = 0.0
    deadly: frozenset[int] = field(default=frozenset())
    failing: frozenset[int] = field(default=frozenset())

    def __call__(self, weights: Floats, seed: int) -> Outcome:
        self.calls.mkdir(exist_ok=True)
        (self.calls / f"{len(list(self.calls.iterdir()))}-{os.getpid()}").touch()
        removed = frozenset(np.flatnonzero(weights == 0).tolist())
        if removed & self.deadly:
            os._exit(1)
        if removed & self.failing:
            raise ArithmeticError("diverged")
        mean = weights @ POINTS / weights.sum() + self.noise * (torch.randn(()).item() + np.random.randn())
        return Outcome((mean - TARGETS) ** 2, np.array([mean]))

    @property
    def count(self) -> int:
        return len(list(self.calls.iterdir())) if self.calls.exists() else 0
