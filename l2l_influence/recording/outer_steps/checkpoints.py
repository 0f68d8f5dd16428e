"""Checkpoints of a training run: λ on its way, and the step size there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import InfluenceError

Checkpoint = tuple[Mapping[str, Tensor], float]
"""``(maml.state_dict(), learning rate)``; with a body that no task adapts, the state_dict of
``nn.ModuleDict({"body": body, "module": maml.module})``."""


class Checkpoints(Sequence[Checkpoint]):
    """Takes checkpoints of a learner while an optimizer steps, by a hook on the optimizer: the loop stays as it is.

    ```python
    with Checkpoints(maml, optimizer, every=50) as checkpoints:
        ...  # the loop, unchanged
    TracIn(maml, tasks, loss, checkpoints=checkpoints).scores(test)
    ```

    A checkpoint is taken before the 1st, the (every + 1)-th, … step, so each stands for the steps that follow it. It is
    a copy on the CPU: they take as much memory as so many models. No random number is used, and nothing is changed.

    Args:
        learner: the learner; with a body (ANIL), ``nn.ModuleDict({"body": body, "module": maml.module})``.
        optimizer: of the meta-parameters. Its learning rate at a checkpoint is the step size there.
        every: steps from one checkpoint to the next.
    """

    def __init__(self, learner: nn.Module, optimizer: Optimizer, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self._learner, self._every, self._steps = learner, every, 0
        self._taken: list[Checkpoint] = []
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take no more."""
        self._handle.remove()

    def __len__(self) -> int:
        return len(self._taken)

    def __getitem__(self, position: Any) -> Any:
        return self._taken[position]

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._steps % self._every == 0:
            state = {name: value.detach().cpu().clone() for name, value in self._learner.state_dict().items()}
            self._taken.append((state, _rate(optimizer)))
        self._steps += 1


def _rate(optimizer: Optimizer) -> float:
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    if len(rates) > 1:
        raise InfluenceError(
            f"the optimizer's groups have different learning rates ({sorted(rates)}): a checkpoint has one. Collect "
            "them by hand, as a list of (state_dict, learning rate)"
        )
    return rates.pop()
