"""Per-sample losses, and their split into a model's outputs and a convex criterion (what Gauss–Newton needs)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import LossStructureError
from .layout import Named

Criterion = Callable[[Tensor, Tensor], Tensor]
"""``criterion(outputs, y)``: per-sample losses, shape ``(n,)``, from outputs ``(n, ...)`` and targets ``(n, ...)``."""


class PerSampleLoss(Protocol):
    """``loss(lam, theta, x, y)``: per-sample losses, shape ``(n,)``."""

    def __call__(self, lam: Named, theta: Named, x: Tensor, y: Tensor, /) -> Tensor: ...


class ModelLoss:
    """The loss of a model whose parameters are θ, with λ filling in what a task does not adapt.

    Args:
        model: ``model(parameters, x) -> outputs``.
        criterion: per-sample losses from outputs and targets.
        names: of the entries of λ that are the model's, where there are others (an inner rule's); None for all.
    """

    def __init__(
        self, model: Callable[[Named, Tensor], Tensor], criterion: Criterion, names: Collection[str] | None = None
    ) -> None:
        self.model = model
        self.criterion = criterion
        self._names = None if names is None else frozenset(names)

    def reads(self, name: str) -> bool:
        """Whether that entry of λ is the model's."""
        return self._names is None or name in self._names

    def predict(self, lam: Named, theta: Named, x: Tensor) -> Tensor:
        """The model's outputs, a row for each of x."""
        return self.model({name: value for name, value in {**lam, **theta}.items() if self.reads(name)}, x)

    def __call__(self, lam: Named, theta: Named, x: Tensor, y: Tensor, /) -> Tensor:
        return self.criterion(self.predict(lam, theta, x)[: len(y)], y)


def outputs_of(loss: PerSampleLoss, lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
    """The model outputs that ``loss`` computes on the way to its per-sample losses."""
    if isinstance(loss, ModelLoss):
        return loss.predict(lam, theta, x)[: len(y)]
    with _LossCall() as seen:
        loss(lam, theta, x, y)
    return seen.outputs()


def criterion_of(loss: PerSampleLoss, lam: Named, theta: Named, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """``loss`` as a function of the outputs alone: ``outputs -> per-sample losses``."""
    if isinstance(loss, ModelLoss):
        return lambda outputs: loss.criterion(outputs, y)

    def criterion(outputs: Tensor) -> Tensor:
        with _LossCall(outputs):
            return loss(lam, theta, x, y)

    return criterion


class _LossCall(TorchFunctionMode):
    """Watches the one torch loss that a hand-written loss function calls; can put other outputs in its place."""

    FUNCTIONS = (
        F.cross_entropy,
        F.mse_loss,
        F.binary_cross_entropy_with_logits,
        F.smooth_l1_loss,
        F.huber_loss,
    )

    def __init__(self, instead: Tensor | None = None) -> None:
        super().__init__()
        self._instead = instead
        self._seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if inspect.unwrap(func) in self.FUNCTIONS:  # whoever watches calls of torch's losses has them wrapped
            self._seen.append(args[0] if args else kwargs["input"])
            if self._instead is not None:
                args, kwargs = self._replace_outputs(args, kwargs)
        return func(*args, **kwargs)

    def _replace_outputs(self, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (self._instead, *args[1:]), kwargs
        return args, {**kwargs, "input": self._instead}

    def outputs(self) -> Tensor:
        if len(self._seen) == 1:
            return self._seen[0]
        names = ", ".join(function.__name__ for function in self.FUNCTIONS)
        raise LossStructureError(
            "Gauss–Newton curvature needs the model's outputs, and they could not be found in this loss: it calls "
            f"{len(self._seen)} of {names}, where exactly one is needed. Pass ModelLoss(model, criterion) instead, "
            "or choose an estimator that does without (inner_solver='cg' or 'dense')"
        )
