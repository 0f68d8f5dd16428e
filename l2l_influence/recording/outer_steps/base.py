"""`OuterStep` and `OuterSteps`: a run's steps on the meta-parameters, as those who analyse a run read them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor


@dataclass(frozen=True, eq=False)
class OuterStep:
    """One step of the optimiser.

    Attributes:
        state: λ_t, the learner's ``state_dict`` before the step, on the CPU; with a body that no task adapts (ANIL),
            that of ``nn.ModuleDict({"body": body, "module": maml.module})``.
        lr: the learning rate.
        number: of the step, from 0.
        optimizer: name of the optimiser's class.
        settings: of each of the optimiser's parameter groups, such as ``betas`` and ``weight_decay``.
    """

    state: Mapping[str, Tensor]
    lr: float
    number: int
    optimizer: str
    settings: tuple[Mapping[str, Any], ...]

    def __iter__(self) -> Iterator[Any]:
        """As the pair ``(state, lr)``, which users may also collect by hand."""
        return iter((self.state, self.lr))


class OuterSteps(Sequence[OuterStep]):
    """Outer steps of a run, in order; not necessarily all of them."""

    @overload
    def __getitem__(self, position: int) -> OuterStep: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[OuterStep]: ...
    @abstractmethod
    def __getitem__(self, position: int | slice) -> OuterStep | Sequence[OuterStep]:
        """A step, or several."""
