"""MAML: plain gradient steps from the learner's own parameters."""

from __future__ import annotations

from typing import Any

from learn2learn.algorithms import MAML
from torch import Tensor

from .base import OTHER, PLAIN, LearnerAdapter


class MAMLAdapter(LearnerAdapter):
    """learn2learn's ``MAML``: θ ← θ − lr · gradient, from all parameters of the model."""

    rule = PLAIN
    root = MAML
    plain_steps = True

    @classmethod
    def step(cls, lr: Any) -> tuple[float, str]:
        """A learning rate that is learned, or is not one number, makes the rule an unknown one."""
        if isinstance(lr, Tensor) and (lr.requires_grad or lr.numel() != 1):
            return super().step(lr)[0], OTHER
        return float(lr), cls.rule
