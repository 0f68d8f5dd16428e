"""Describes the torch losses that a loop calls: function, settings, and the forward whose output they are called on."""

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
"""The functions of ``torch.nn.functional`` that are recognised, and torch's class for each."""

MAX_WEIGHTS = 10_000
"""Largest number of entries in a tensor that is a setting, such as class weights."""

_EQUAL = 1e-3
"""Numbers with a smaller relative difference count as equal: they were computed in the precision of the loop."""


@dataclass(frozen=True)
class Loss:
    """One of torch's losses, as a loop used it.

    Attributes:
        function: its name in ``torch.nn.functional``.
        settings: its arguments that differ from the defaults, without input and target; tensors as tuples.
        scale: the factor by which the loop multiplied its value.
    """

    function: str
    settings: tuple[tuple[str, Setting], ...] = ()
    scale: float = 1.0

    @classmethod
    def decoded(cls, entry: Mapping[str, Any]) -> Loss:
        """A loss from its fields as JSON gives them back, with lists in place of tuples."""
        settings = [(name, tuple(value) if isinstance(value, list) else value) for name, value in entry["settings"]]
        return cls(entry["function"], tuple(settings), entry["scale"])

    def module(self) -> nn.Module:
        """The loss, without its scale, as a module."""
        values = {name: torch.tensor(value) if isinstance(value, tuple) else value for name, value in self.settings}
        return CLASSES[self.function](**values)

    def same_but_scale(self, other: Loss) -> bool:
        """True if the two differ at most in their scales."""
        return (self.function, self.settings) == (other.function, other.settings)

    def agrees(self, other: Loss) -> bool:
        """True if the two are the same loss, to the precision of a loop."""
        return self.same_but_scale(other) and abs(self.scale - other.scale) <= _EQUAL * abs(self.scale)

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings)
        factor = "" if abs(self.scale - 1) <= _EQUAL else f"{self.scale:.4g} · "
        return f"{factor}nn.{CLASSES[self.function].__name__}({settings})"


@dataclass(eq=False, slots=True)
class Comparison:
    """One call of a loss: outputs of a forward against labels.

    Attributes:
        loss: the loss; None if no `Loss` can describe its settings.
        labels: a copy of the labels.
        row_by_row: whether row i of the labels belongs to row i of the input.
        inner: gradient of the loss given to ``adapt`` with respect to this value, once there is one.
        outer: gradient of the loss of a backward outside ``adapt`` with respect to this value, once there is one.
    """

    loss: Loss | None
    labels: Tensor
    row_by_row: bool
    inner: Tensor | None = None
    outer: Tensor | None = None

    @classmethod
    def after(cls, between: Sequence[str], loss: Loss | None, labels: Tensor) -> Comparison:
        """A call on the result of the operations ``between``, applied to a forward's output."""
        return cls(_of_output(loss, between), labels, all(name.startswith(_ROWWISE) for name in between))


def _of_output(loss: Loss | None, between: Sequence[str]) -> Loss | None:
    """A loss after operations on the output, as a loss of the output itself; None if it is not one of torch's."""
    changes = [name for name in between if not name.startswith(_SAME)]
    if loss is not None and loss.function == "nll_loss" and _are(changes, "LogSoftmax"):
        return replace(loss, function="cross_entropy")  # torch computes it as these two
    return None if changes else loss


def _are(names: Sequence[str], *expected: str) -> bool:
    return len(names) == len(expected) and all(map(str.startswith, names, expected))


def called(function: str, original: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Tensor, Loss | None]:
    """The labels given to a call of a loss, and the loss."""
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
    """The loss of an autograd node that has labels; None if it is not recognised."""
    function = _NODES.get(node.name().rstrip("0123456789"))
    if function is None:
        return None
    arguments = {name: _plain(getattr(node, f"_saved_{name}", None)) for name in _SAVED}
    arguments["reduction"] = _REDUCTIONS.get(node._saved_reduction)
    return _loss(function, {name: value for name, value in arguments.items() if value is not None})


def inner_loss(calls: Sequence[Comparison]) -> Loss | None:
    """The loss that all these calls of the inner loop agree on; None if they differ or there is none."""
    found = [_scaled(call.loss, call.inner) for call in calls]
    first = found[0] if found else None
    return first if first is not None and all(loss is not None and loss.agrees(first) for loss in found) else None


def outer_loss(calls: Sequence[Comparison]) -> Loss | None:
    """The loss that all calls for one outer loss agree on, with the sum of their scales; None if they differ."""
    found = [loss for call in calls if (loss := _scaled(call.loss, call.outer)) is not None]
    if not found or len(found) < len(calls) or not all(loss.same_but_scale(found[0]) for loss in found):
        return None
    return replace(found[0], scale=sum(loss.scale for loss in found))


def _scaled(loss: Loss | None, gradient: Tensor | None) -> Loss | None:
    """A loss with its scale, and with the reduction that the loop computed itself, if it did."""
    if loss is None or gradient is None:
        return None
    settings, values = dict(loss.settings), gradient.reshape(-1)
    each = float(values[0])
    if settings.get("reduction") != "none":
        return replace(loss, scale=each)
    if bool((values - each).abs().max() > _EQUAL * abs(each)):
        return None  # the loop weights the samples unequally
    summed = abs(each - 1) <= _EQUAL
    settings["reduction"] = "sum" if summed else "mean"
    return Loss(loss.function, _sorted(settings), 1.0 if summed else each * len(values))


# Operations that keep row i in row i, and those that change no value.
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
    """A saved value as it was passed: autograd shows negative integers as unsigned."""
    return value - 2**64 if isinstance(value, int) and value >= 2**63 else value


def _loss(function: str, arguments: Mapping[str, Any]) -> Loss | None:
    """A loss with these arguments; None if its class does not take them."""
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
    """The settings as sorted tuples, without a default reduction."""
    return tuple(sorted((name, value) for name, value in settings.items() if (name, value) != ("reduction", "mean")))


_OLD = {"size_average", "reduce"}
"""Arguments that torch had before ``reduction``."""


@lru_cache
def _defaults(function: str) -> dict[str, Any]:
    """The arguments of the function's class, with their defaults."""
    return {name: parameter.default for name, parameter in inspect.signature(CLASSES[function]).parameters.items()}
