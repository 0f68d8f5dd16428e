"""MAML trained on all tasks at once: retraining without the noise of small meta-batches, and many times faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from ...bilevel.functional import FunctionalModel
from ..metrics import Floats

Parameters = Mapping[str, Tensor]

TaskTensors = tuple[Tensor, Tensor, Tensor, Tensor]
"""Support x, support y, query x, query y of tasks of equal shape, stacked: ``[N, n, …]`` each."""

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FullBatchMAML:
    """MAML's objective ``(1/N) Σ_i c_i L_O^i + (weight_decay/2) ‖λ‖²`` on stacked tasks, minimised with Adam.

    Args:
        model: the meta-model, left untouched.
        loss: mean-reduced ``loss(outputs, y)``.
        lr, steps: of the adaptation.
        meta_lr, meta_steps: of Adam; its step size falls linearly to zero.
        weight_decay: as torch's Adam takes it.
    """

    model: nn.Module
    loss: Loss
    lr: float
    steps: int
    meta_lr: float
    meta_steps: int
    weight_decay: float = 0.0
    _function: FunctionalModel = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_function", FunctionalModel(self.model))

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The model's parameters when this object was made."""
        return self._function.parameters

    def train(self, tasks: TaskTensors, weights: Tensor, start: Parameters) -> dict[str, Tensor]:
        """Train from ``start``. N in the objective is the number of all tasks, those of weight 0 included.

        Args:
            tasks: all N tasks.
            weights: c_i, ``(N,)``; 0 for a task that is removed.
            start: parameters by name, left untouched.
        """
        kept = weights.nonzero().squeeze(1)
        chosen = tuple(part[kept] for part in tasks)
        share = weights[kept] / len(weights)
        parameters = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
        optimiser = torch.optim.Adam(list(parameters.values()), self.meta_lr, weight_decay=self.weight_decay)
        decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / self.meta_steps)
        for _ in range(self.meta_steps):
            optimiser.zero_grad()
            (share * self._losses(parameters, chosen)[0]).sum().backward()
            optimiser.step()
            decay.step()
        return {name: value.detach() for name, value in parameters.items()}

    def evaluate(self, parameters: Parameters, tasks: TaskTensors) -> tuple[Floats, Floats]:
        """Query loss and accuracy of each task after adaptation, ``(N,)`` both."""
        with torch.no_grad():
            losses, accuracies = self._losses(parameters, tasks)
        return losses.double().numpy(), accuracies.double().numpy()

    def _losses(self, parameters: Parameters, tasks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        losses, accuracies = vmap(self._one, in_dims=(None, 0, 0, 0, 0))(dict(parameters), *tasks)
        return losses, accuracies

    def _one(self, parameters: dict[str, Tensor], xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> tuple[Tensor, ...]:
        theta = parameters
        for _ in range(self.steps):
            slopes = grad(lambda now: self.loss(self._function(now, xs), ys))(theta)
            theta = {name: theta[name] - self.lr * slopes[name] for name in theta}
        outputs = self._function(theta, xq)
        return self.loss(outputs, yq), (outputs.argmax(-1) == yq).to(outputs).mean()
