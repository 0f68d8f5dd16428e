"""MAML trained on all tasks in each step: faster than small meta-batches, and without their noise."""

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
        model: the meta-model; not modified.
        loss: mean-reduced ``loss(outputs, y)``.
        lr, steps: learning rate and number of adaptation steps.
        meta_lr, meta_steps: Adam's initial learning rate, which falls linearly to zero, and its number of steps.
        weight_decay: as in torch's Adam.

    Example: a learner for two tasks of three samples each.

        >>> import torch
        >>> from torch import nn
        >>> from l2l_influence.evaluation import FullBatchMAML
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(2, 3, 4), torch.tensor([[0, 1, 0], [1, 0, 1]])
        >>> maml = FullBatchMAML(nn.Linear(4, 2), nn.CrossEntropyLoss(), lr=0.1, steps=1, meta_lr=0.1, meta_steps=20)
        >>> trained = maml.train((x, y, x, y), torch.ones(2), maml.parameters)
        >>> before, after = (maml.evaluate(lam, (x, y, x, y))[0].mean() for lam in (maml.parameters, trained))
        >>> bool(after < before)
        True
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
        """The model's parameters at the time this object was made."""
        return self._function.parameters

    def train(self, tasks: TaskTensors, weights: Tensor, start: Parameters) -> dict[str, Tensor]:
        """Train from ``start``. N in the objective counts all tasks, including those of weight 0.

        Args:
            tasks: all N tasks.
            weights: c_i, ``(N,)``; 0 removes a task.
            start: parameters by name; not modified.

        Returns:
            The trained parameters by name.
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
        """Query loss and accuracy of each task after adaptation, each ``(N,)``."""
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
