"""The user's model as one module: the learner's own, or a shared body with the learner's head on it (ANIL)."""

from __future__ import annotations

from collections.abc import Iterable

from learn2learn.algorithms.base_learner import BaseLearner
from torch import Tensor, nn

HEAD = "module."
"""What names of the head's parameters begin with."""


class BodyAndHead(nn.Module):
    """``head(body(x))``. Parameters are named ``body.…`` and, as in the learner's own state_dict, ``module.…``."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.module = body, head

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.module(self.body(x))
        return outputs


def model_of(learner: BaseLearner, body: nn.Module | None) -> nn.Module:
    """What maps a task's rows to outputs."""
    return learner.module if body is None else BodyAndHead(body, learner.module)


def adapted_names(names: Iterable[str], body: nn.Module | None) -> dict[str, str]:
    """The model's parameters that a task adapts, and what they are called in the learner's own module."""
    if body is None:
        return {name: name for name in names}
    return {name: name.removeprefix(HEAD) for name in names if name.startswith(HEAD)}
