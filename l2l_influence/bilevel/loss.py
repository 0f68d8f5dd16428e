"""Per-sample losses, and their split into model outputs and a criterion, which Gauss–Newton curvature needs."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any, Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import LossStructureError
from .layout import Named
from .task import Inputs

Criterion = Callable[[Tensor, Tensor], Tensor]
"""``criterion(outputs, y)``: per-sample losses, shape ``(n,)``, from outputs ``(n, ...)`` and targets ``(n, ...)``."""


class PerSampleLoss(Protocol):
    """``loss(lam, theta, x, y)``: per-sample losses, shape ``(n,)``, from named λ and θ and the samples of one task.

    It may return n + r values, where the last r are terms that belong to no sample; the task then has as many weights.
    """

    def __call__(self, lam: Named, theta: Named, x: Inputs, y: Tensor, /) -> Tensor: ...


@runtime_checkable
class SteppedLoss(Protocol):
    """A :class:`PerSampleLoss` that is another function in each inner step.

    Each of these functions takes the same arguments and returns as many values; rows that a step does not use have the
    value 0. Called itself, the loss gives the values that are reported for the samples. Its attribute ``steps_differ``,
    True if it has none, says whether the steps differ at all: if False, the loss itself is used in each step.
    """

    def at_step(self, k: int, /) -> PerSampleLoss:
        """The loss of inner step k = 0, 1, …"""

    def __call__(self, lam: Named, theta: Named, x: Inputs, y: Tensor, /) -> Tensor: ...


class OutputLoss(ABC):
    """A loss that says which model outputs it is computed from, as Gauss–Newton curvature needs.

    The curvature is that of :meth:`from_outputs` by the outputs. Terms that depend on λ or θ otherwise, such as a
    penalty on θ, have derivatives but no Gauss–Newton curvature, unless the outputs contain what they depend on.

    Attributes:
        coupled: whether a value depends on the outputs of several rows, as in a contrastive loss. All outputs of a task
            then count as those of one sample.
        theta_first: whether θ's entry takes the place of λ's entry of the same name wherever the loss reads one. False
            unless that is certain.
    """

    coupled: bool = False
    theta_first: bool = False

    @abstractmethod
    def outputs(self, lam: Named, theta: Named, x: Inputs, y: Tensor) -> Tensor:
        """Outputs of the model, ``(n, ...)``; of any shape if ``coupled``."""

    @abstractmethod
    def from_outputs(self, outputs: Tensor, lam: Named, theta: Named, x: Inputs, y: Tensor) -> Tensor:
        """The values of the loss, ``(n,)`` or ``(n + r,)``, for these outputs."""

    def reads(self, name: str) -> bool:
        """Whether the loss may depend on an entry of λ or θ with this name."""
        return True

    def __call__(self, lam: Named, theta: Named, x: Inputs, y: Tensor, /) -> Tensor:
        return self.from_outputs(self.outputs(lam, theta, x, y), lam, theta, x, y)


class ModelLoss(OutputLoss):
    """The loss of a model whose parameters are θ, and λ where θ does not have them.

    Prefer it to a plain function: it says which outputs the loss is computed from, so that Gauss–Newton curvature works
    with any criterion.

    Args:
        model: ``model(parameters, x) -> outputs``, such as a :class:`FunctionalModel`.
        criterion: per-sample losses from outputs and targets; a term that belongs to no sample may follow them.
        names: the entries of λ and θ that are parameters of the model, if there are others (such as learned step
            sizes); all of them if None.

    >>> import torch
    >>> import torch.nn.functional as F
    >>> loss = ModelLoss(lambda p, x: x @ p["w"], lambda out, y: F.cross_entropy(out, y, reduction="none"))
    >>> loss({"w": torch.zeros(4, 3)}, {}, torch.ones(2, 4), torch.tensor([0, 2]))
    tensor([1.0986, 1.0986])
    """

    theta_first = True

    def __init__(
        self, model: Callable[[Named, Any], Tensor], criterion: Criterion, names: Collection[str] | None = None
    ) -> None:
        self.model = model
        self.criterion = criterion
        self._names = None if names is None else frozenset(names)

    def reads(self, name: str) -> bool:
        """Whether the entry of λ or θ with this name is a parameter of the model."""
        return self._names is None or name in self._names

    def predict(self, lam: Named, theta: Named, x: Inputs) -> Tensor:
        """Outputs of the model, one row for each row of x."""
        return self.model({name: value for name, value in {**lam, **theta}.items() if self.reads(name)}, x)

    def outputs(self, lam: Named, theta: Named, x: Inputs, y: Tensor) -> Tensor:
        """Outputs of the model for the rows that have a loss."""
        return self.predict(lam, theta, x)[: len(y)]

    def from_outputs(self, outputs: Tensor, lam: Named, theta: Named, x: Inputs, y: Tensor) -> Tensor:
        return self.criterion(outputs, y)


def steps_differ(loss: PerSampleLoss) -> bool:
    """Whether the loss is another function in each inner step."""
    return isinstance(loss, SteppedLoss) and bool(getattr(loss, "steps_differ", True))


def is_coupled(loss: PerSampleLoss) -> bool:
    """Whether all outputs of a task count as those of one sample."""
    return isinstance(loss, OutputLoss) and bool(loss.coupled)


def reads_lam(loss: PerSampleLoss, lam: Collection[str], theta: Collection[str]) -> bool:
    """Whether the loss may depend on λ other than through θ, given their names. False only if that is certain."""
    if not isinstance(loss, OutputLoss) or not loss.theta_first:
        return True
    return any(loss.reads(name) for name in lam if name not in theta)


def outputs_of(loss: PerSampleLoss, lam: Named, theta: Named, x: Inputs, y: Tensor) -> Tensor:
    """The model outputs from which ``loss`` computes its per-sample losses.

    Raises:
        LossStructureError: the loss is a function that does not call exactly one of torch's loss functions.
    """
    if isinstance(loss, OutputLoss):
        return loss.outputs(lam, theta, x, y)
    with _LossCall() as call:
        loss(lam, theta, x, y)
    return call.outputs()


def criterion_of(loss: PerSampleLoss, lam: Named, theta: Named, x: Inputs, y: Tensor) -> Callable[[Tensor], Tensor]:
    """``loss`` as a function of the model outputs alone: ``outputs -> per-sample losses``."""
    if isinstance(loss, OutputLoss):
        return lambda outputs: loss.from_outputs(outputs, lam, theta, x, y)

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
