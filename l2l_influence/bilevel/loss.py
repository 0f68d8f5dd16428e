"""Per-sample losses, and their split into model outputs and a criterion, which Gauss–Newton curvature needs."""

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
    """``loss(lam, theta, x, y)``: per-sample losses, shape ``(n,)``, from named λ and θ and the samples of one task."""

    def __call__(self, lam: Named, theta: Named, x: Tensor, y: Tensor, /) -> Tensor: ...


class ModelLoss:
    """The loss of a model whose parameters are θ, and λ where θ does not have them.

    Prefer it to a plain function: it says which outputs the loss is computed from, so that Gauss–Newton curvature works
    with any criterion.

    Args:
        model: ``model(parameters, x) -> outputs``, such as a :class:`FunctionalModel`.
        criterion: per-sample losses from outputs and targets.
        names: the entries of λ and θ that are parameters of the model, if there are others (such as learned step
            sizes); all of them if None.

    >>> import torch
    >>> import torch.nn.functional as F
    >>> loss = ModelLoss(lambda p, x: x @ p["w"], lambda out, y: F.cross_entropy(out, y, reduction="none"))
    >>> loss({"w": torch.zeros(4, 3)}, {}, torch.ones(2, 4), torch.tensor([0, 2]))
    tensor([1.0986, 1.0986])
    """

    def __init__(
        self, model: Callable[[Named, Tensor], Tensor], criterion: Criterion, names: Collection[str] | None = None
    ) -> None:
        self.model = model
        self.criterion = criterion
        self._names = None if names is None else frozenset(names)

    def reads(self, name: str) -> bool:
        """Whether the entry of λ or θ with this name is a parameter of the model."""
        return self._names is None or name in self._names

    def predict(self, lam: Named, theta: Named, x: Tensor) -> Tensor:
        """Outputs of the model, one row for each row of x."""
        return self.model({name: value for name, value in {**lam, **theta}.items() if self.reads(name)}, x)

    def __call__(self, lam: Named, theta: Named, x: Tensor, y: Tensor, /) -> Tensor:
        return self.criterion(self.predict(lam, theta, x)[: len(y)], y)


def outputs_of(loss: PerSampleLoss, lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
    """The model outputs from which ``loss`` computes its per-sample losses.

    Raises:
        LossStructureError: the loss is a function that does not call exactly one of torch's loss functions.
    """
    if isinstance(loss, ModelLoss):
        return loss.predict(lam, theta, x)[: len(y)]
    with _LossCall() as call:
        loss(lam, theta, x, y)
    return call.outputs()


def criterion_of(loss: PerSampleLoss, lam: Named, theta: Named, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """``loss`` as a function of the model outputs alone: ``outputs -> per-sample losses``."""
    if isinstance(loss, ModelLoss):
        return lambda outputs: loss.criterion(outputs, y)

    def criterion(outputs: Tensor) -> Tensor:
        with _LossCall(outputs):
            return loss(lam, theta, x, y)

    return criterion


class _LossCall(TorchFunctionMode):
    """Watches a loss function for its one call of a torch loss; can replace the outputs passed to that call."""

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
        self._outputs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if inspect.unwrap(func) in self.FUNCTIONS:  # a recording that watches torch's losses has wrapped them
            self._outputs.append(args[0] if args else kwargs["input"])
            if self._instead is not None:
                args, kwargs = self._replace_outputs(args, kwargs)
        return func(*args, **kwargs)

    def _replace_outputs(self, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (self._instead, *args[1:]), kwargs
        return args, {**kwargs, "input": self._instead}

    def outputs(self) -> Tensor:
        if len(self._outputs) == 1:
            return self._outputs[0]
        names = ", ".join(function.__name__ for function in self.FUNCTIONS)
        raise LossStructureError(
            "Gauss–Newton curvature needs the model's outputs, which are found by the loss function's call of a torch "
            f"loss. This loss makes {len(self._outputs)} such calls ({names}), but exactly 1 is needed. Pass "
            "ModelLoss(model, criterion) instead, or use methods that do not need outputs: inner_solver='cg' or "
            "'dense', and the Hessian kinds 'exact' or 'hessian'"
        )
