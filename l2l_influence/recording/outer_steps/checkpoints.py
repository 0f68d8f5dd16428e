"""`Checkpoints`: copies of λ, taken while an optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, overload

from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import InfluenceError
from .base import OuterStep, OuterSteps

Checkpoint = OuterStep | tuple[Mapping[str, Tensor], float]
"""An outer step, or the pair ``(maml.state_dict(), learning rate)``."""


class Checkpoints(OuterSteps):
    """Takes checkpoints of a learner while an optimiser steps, by a hook on the optimiser; the loop does not change.

    ```python
    with Checkpoints(maml, optimizer, every=50) as checkpoints:
        ...  # the loop, unchanged
    TracIn(maml, tasks, loss, checkpoints=checkpoints).scores(test)
    ```

    A checkpoint is taken before the 1st, the (every + 1)-th, … step, so each represents the steps that follow it. It is
    a copy on the CPU; n checkpoints take the memory of n models. No random number is used, and nothing is changed.

    Args:
        learner: the learner; with a body (ANIL), ``nn.ModuleDict({"body": body, "module": maml.module})``.
        optimizer: the optimiser of the meta-parameters, with one learning rate for all of them.
        every: number of steps from one checkpoint to the next.
    """

    def __init__(self, learner: nn.Module, optimizer: Optimizer, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self._learner, self._every, self._steps = learner, every, 0
        self._taken: list[OuterStep] = []
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take no more checkpoints."""
        self._handle.remove()

    def __len__(self) -> int:
        return len(self._taken)

    @overload
    def __getitem__(self, position: int) -> OuterStep: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[OuterStep]: ...
    def __getitem__(self, position: int | slice) -> OuterStep | Sequence[OuterStep]:
        return self._taken[position]

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._steps % self._every == 0:
            state = {name: value.detach().cpu().clone() for name, value in self._learner.state_dict().items()}
            settings = tuple({k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups)
            self._taken.append(OuterStep(state, _rate(optimizer), self._steps, type(optimizer).__name__, settings))
        self._steps += 1


def _rate(optimizer: Optimizer) -> float:
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    if len(rates) > 1:
        raise InfluenceError(
            f"the optimiser's parameter groups have different learning rates ({sorted(rates)}), and a checkpoint has "
            "one. Collect checkpoints in the loop, as a list of (maml.state_dict(), learning rate)"
        )
    return rates.pop()
