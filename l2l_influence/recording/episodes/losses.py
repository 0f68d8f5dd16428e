"""The losses that a loop calls: which of torch's, with which settings, on the output of which forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

Setting = bool | int | float | str | tuple[float, ...]

CLASSES: Mapping[str, type[nn.Module]] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "nll_loss": nn.NLLLoss,
    "mse_loss": nn.MSELoss,
    "l1_loss": nn.L1Loss,
    "smooth_l1_loss": nn.SmoothL1Loss,
    "huber_loss": nn.HuberLoss,
    "binary_cross_entropy": nn.BCELoss,
    "binary_cross_entropy_with_logits": nn.BCEWithLogitsLoss,
}
"""The functions of ``torch.nn.functional`` that are known again, and the class that is each one with its settings."""

MAX_WEIGHTS = 10_000
"""Numbers in a tensor that is taken for a setting, such as the weights of classes."""

_EQUAL = 1e-3
"""Numbers that differ by less, relatively, are one: they were computed in the precision of the loop."""


@dataclass(frozen=True)
class Loss:
    """A loss of torch's, as a loop used it.

    Attributes:
        function: its name in ``torch.nn.functional``.
        settings: its arguments but for input and target, where they are not the defaults; tensors as tuples.
        scale: what the loop multiplied its value by.
    """

    function: str
    settings: tuple[tuple[str, Setting], ...] = ()
    scale: float = 1.0

    def module(self) -> nn.Module:
        """The loss, without its scale, as an object of torch's class."""
        values = {name: torch.tensor(value) if isinstance(value, tuple) else value for name, value in self.settings}
        return CLASSES[self.function](**values)

    def same_but_scale(self, other: Loss) -> bool:
        """Whether the two differ at most in what their values were multiplied by."""
        return (self.function, self.settings) == (other.function, other.settings)

    def agrees(self, other: Loss) -> bool:
        """Whether the two are one loss, to the precision of a loop."""
        return self.same_but_scale(other) and abs(self.scale - other.scale) <= _EQUAL * abs(self.scale)

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings)
        factor = "" if abs(self.scale - 1) <= _EQUAL else f"{self.scale:.4g} · "
        return f"{factor}nn.{CLASSES[self.function].__name__}({settings})"


@dataclass(eq=False, slots=True)
class Comparison:
    """One call of a loss: outputs of a forward against labels.

    Attributes:
        loss: which; None if its settings are such as no `Loss` has.
        labels: what the outputs were compared with; a copy.
        row_by_row: whether row i of the labels belongs to row i of what was fed.
        inner: the gradient of an ``adapt`` call's loss by this value, once it had a part in one.
        outer: the gradient of what a backward outside was called on by this value, once it had a part in one.
    """

    loss: Loss | None
    labels: Tensor
    row_by_row: bool
    inner: Tensor | None = None
    outer: Tensor | None = None

    @classmethod
    def after(cls, between: Sequence[str], loss: Loss | None, labels: Tensor) -> Comparison:
        """A call on what the operations ``between`` made of a forward's output."""
        return cls(_of_output(loss, between), labels, all(name.startswith(_ROWWISE) for name in between))


def _of_output(loss: Loss | None, between: Sequence[str]) -> Loss | None:
    """A loss of what operations made of an output, as a loss of the output; None if it is none of torch's."""
    changes = [name for name in between if not name.startswith(_SAME)]
    if loss is not None and loss.function == "nll_loss" and _are(changes, "LogSoftmax"):
        return replace(loss, function="cross_entropy")  # torch's is made of these two
    return None if changes else loss


def _are(names: Sequence[str], *expected: str) -> bool:
    return len(names) == len(expected) and all(map(str.startswith, names, expected))


def called(function: str, original: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Tensor, Loss | None]:
    """The labels that a call of a loss was given, and which loss it was."""
    labels: Tensor = args[1] if len(args) > 1 else kwargs["target"]
    rest, named = args[2:], tuple((name, value) for name, value in kwargs.items() if name not in ("input", "target"))
    settings = [*rest, *(value for _, value in named)]
    known = _bound.__wrapped__ if any(isinstance(value, Tensor) for value in settings) else _bound
    return labels, known(function, original, rest, named)


@lru_cache
def _bound(function: str, original: Callable[..., Any], rest: tuple[Any, ...], named: tuple[Any, ...]) -> Loss | None:
    """The loss with these arguments after input and target."""
    arguments = dict(inspect.signature(original).bind(None, None, *rest, **dict(named)).arguments)
    return _loss(function, {name: value for name, value in arguments.items() if name not in ("input", "target")})


def saved(node: Any) -> Loss | None:
    """Which loss an autograd node is that has labels; None for one that is not known."""
    function = _NODES.get(node.name().rstrip("0123456789"))
    if function is None:
        return None
    arguments = {name: _plain(getattr(node, f"_saved_{name}", None)) for name in _SAVED}
    arguments["reduction"] = _REDUCTIONS.get(node._saved_reduction)
    return _loss(function, {name: value for name, value in arguments.items() if value is not None})


def inner_loss(calls: Sequence[Comparison]) -> Loss | None:
    """The one loss that all these calls of the inner loops are of; None if there is none."""
    found = [_scaled(call.loss, call.inner) for call in calls]
    first = found[0] if found else None
    return first if first is not None and all(loss is not None and loss.agrees(first) for loss in found) else None


def outer_loss(calls: Sequence[Comparison]) -> Loss | None:
    """The one loss that all these calls for one outer loss are of, their scales added up; None if there is none."""
    found = [loss for call in calls if (loss := _scaled(call.loss, call.outer)) is not None]
    if not found or len(found) < len(calls) or not all(loss.same_but_scale(found[0]) for loss in found):
        return None
    return replace(found[0], scale=sum(loss.scale for loss in found))


def _scaled(loss: Loss | None, gradient: Tensor | None) -> Loss | None:
    """A loss with its scale, and with the reduction that the loop did itself, if it did."""
    if loss is None or gradient is None:
        return None
    settings, values = dict(loss.settings), gradient.reshape(-1)
    each = float(values[0])
    if settings.get("reduction") != "none":
        return replace(loss, scale=each)
    if bool((values - each).abs().max() > _EQUAL * abs(each)):
        return None  # samples of different weights
    summed = abs(each - 1) <= _EQUAL
    settings["reduction"] = "sum" if summed else "mean"
    return Loss(loss.function, _sorted(settings), 1.0 if summed else each * len(values))


# Operations that leave row i in row i, and those that leave all as it is.
_ROWWISE = ("LogSoftmax", "Div", "Mul", "Add", "Sub", "Squeeze", "Unsqueeze", "View", "UnsafeView", "ReshapeAlias",
            "Alias", "ToCopy", "Clone", "Neg")  # fmt: skip
_SAME = ("Alias", "ToCopy", "Clone")

_NODES = {
    "NllLossBackward": "nll_loss",
    "MseLossBackward": "mse_loss",
    "SmoothL1LossBackward": "smooth_l1_loss",
    "HuberLossBackward": "huber_loss",
    "BinaryCrossEntropyBackward": "binary_cross_entropy",
    "BinaryCrossEntropyWithLogitsBackward": "binary_cross_entropy_with_logits",
}
_SAVED = ("weight", "ignore_index", "beta", "delta", "pos_weight")
_REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}


def _plain(value: Any) -> Any:
    """What a node saved, as it was passed: autograd shows negative numbers without their sign."""
    return value - 2**64 if isinstance(value, int) and value >= 2**63 else value


def _loss(function: str, arguments: Mapping[str, Any]) -> Loss | None:
    """A loss with these arguments, or None if they are not such as its class takes."""
    settings = {name: _setting(value) for name, value in arguments.items() if value is not None}
    defaults = _defaults(function)
    if not settings.keys() <= defaults.keys() - _OLD or None in settings.values():
        return None
    return Loss(function, _sorted({name: value for name, value in settings.items() if value != defaults[name]}))


def _setting(value: Any) -> Setting | None:
    if not isinstance(value, Tensor):
        return cast(Setting, value)
    return tuple(value.tolist()) if value.dim() == 1 and len(value) <= MAX_WEIGHTS else None


def _sorted(settings: Mapping[str, Any]) -> tuple[tuple[str, Setting], ...]:
    """As tuples, in order; without a reduction that is the default."""
    return tuple(sorted((name, value) for name, value in settings.items() if (name, value) != ("reduction", "mean")))


_OLD = {"size_average", "reduce"}
"""What torch took before there was a reduction."""


@lru_cache
def _defaults(function: str) -> dict[str, Any]:
    """What the class takes that is the function with its settings, and takes where nothing is said."""
    return {name: parameter.default for name, parameter in inspect.signature(CLASSES[function]).parameters.items()}
