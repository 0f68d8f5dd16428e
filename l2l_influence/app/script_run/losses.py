"""The losses that ``--loss`` names: torch's losses with their settings, or a function of a module."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...analysis.problem.criterion import Reduction
from .modules import find_source, top_level_names
from .script import search_path

REDUCTIONS = ("mean", "sum")

_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"


def _torch_losses() -> Iterator[tuple[str, type[nn.Module]]]:
    for name, kind in vars(nn).items():
        if name.endswith("Loss") and "reduction" in (settings := inspect.signature(kind).parameters):
            arguments = list(inspect.signature(kind.forward).parameters)
            needs_none = all(setting.default is not setting.empty for setting in settings.values())
            if needs_none and len(arguments) == 3 and arguments[-1] == "target":  # self, outputs and target
                words = re.findall(r"[A-Z]+\d*(?![a-z])|[A-Z][a-z]+", name.removesuffix("Loss"))
                yield "-".join(words).lower(), kind


LOSSES: Mapping[str, type[nn.Module]] = dict(sorted(_torch_losses()))
"""Torch's losses of outputs and one target that are a mean or a sum over samples, by name on the command line."""


class UnknownLossError(ValueError):
    """The loss that ``--loss`` names does not exist."""


@dataclass(frozen=True)
class ChosenLoss:
    """A loss that the user named, as hooks take it.

    Attributes:
        loss: a torch loss, or a function of outputs and labels; None for the loss that the script called.
        reduction: of a function that returns one value per sample; None if the loss itself says it.
        imports: lines of Python that ``code`` needs.
        code: the arguments of a hook; empty for the loss that the script called.
    """

    loss: Callable[..., Tensor] | None = None
    reduction: Reduction | None = None
    imports: str = "from torch import nn"
    code: str = ""


class NamedLoss(ABC):
    """A loss as named on the command line."""

    def check(self, script: str) -> str:
        """Check before the script runs what can be checked without running any code.

        Returns:
            A warning, or an empty string.

        Raises:
            UnknownLossError: there is no such loss.
        """
        return ""

    @abstractmethod
    def load(self, script: str, like: Tensor) -> ChosenLoss:
        """The loss, when the script has ended.

        Args:
            script: path of the script, which is still the module ``__main__``.
            like: a tensor with the dtype and device of the model.

        Raises:
            UnknownLossError: there is no such loss.
        """


def named_loss(text: str, reduction: str | None = None) -> NamedLoss:
    """Read the value of ``--loss``; runs no code of the user.

    Args:
        text: a name in :data:`LOSSES`, the same with settings in parentheses, or ``module:function``.
        reduction: the value of ``--reduction``, if it was given.

    Raises:
        ValueError: there is no such loss, or it has no such setting.

    >>> named_loss("huber(delta=2.0)")
    TorchLoss(name='huber', settings={'delta': 2.0, 'reduction': 'mean'})
    >>> named_loss("losses:soft")
    ImportedLoss(module='losses', name='soft', reduction=None)
    """
    if reduction is not None:
        _require_known("reduction", reduction, REDUCTIONS)
    imported = re.fullmatch(rf"({_NAME}):({_NAME})", text.strip())
    if imported:
        return ImportedLoss(imported[1], imported[2], cast("Reduction | None", reduction))
    found = re.fullmatch(r"([\w-]+)\s*(?:\((.*)\))?", text.strip(), re.DOTALL)
    if found is None or found[1] not in LOSSES:
        raise ValueError(f"the loss must be module:function or one of {', '.join(LOSSES)}; got {text!r}")
    settings = _settings(found[1], found[2] or "")
    if reduction is not None and settings.get("reduction", reduction) != reduction:
        raise ValueError(f"--loss says reduction={settings['reduction']!r} and --reduction says {reduction!r}")
    settings.setdefault("reduction", reduction or "mean")
    _require_known("reduction", settings["reduction"], REDUCTIONS)
    return TorchLoss(found[1], settings)


@dataclass(frozen=True)
class TorchLoss(NamedLoss):
    """One of torch's losses.

    Attributes:
        name: in :data:`LOSSES`.
        settings: its arguments by name; tensors as tuples of numbers.
    """

    name: str
    settings: Mapping[str, Any]

    def load(self, script: str, like: Tensor) -> ChosenLoss:
        kind = LOSSES[self.name]
        values = {name: torch.tensor(v) if isinstance(v, tuple) else v for name, v in self.settings.items()}
        code = ", ".join(
            f"{name}=torch.tensor({list(v)})" if isinstance(v, tuple) else f"{name}={v!r}"
            for name, v in self.settings.items()
        )
        return ChosenLoss(
            kind(**values).to(like.device, like.dtype),
            imports="import torch\nfrom torch import nn" if "torch." in code else "from torch import nn",
            code=f"loss=nn.{kind.__name__}({code})",
        )


@dataclass(frozen=True)
class ImportedLoss(NamedLoss):
    """A function, a torch loss module, or a class of such modules, from a module on the script's path or the script.

    Attributes:
        module, name: where it is; both may contain dots.
        reduction: the value of ``--reduction``, if it was given.
    """

    module: str
    name: str
    reduction: Reduction | None = None

    def check(self, script: str) -> str:
        source = Path(script) if self._is_script(script) else find_source(self.module, search_path(script))
        if source is None:
            return (
                f"Warning: there is no module {self.module} yet. --loss looks for it again when the script has ended."
            )
        names = top_level_names(source)
        if names is not None and self._first not in names:
            raise UnknownLossError(f"{source} defines no {self._first}, which {self} names")
        return ""

    def load(self, script: str, like: Tensor) -> ChosenLoss:
        found = self._found(script)
        loss = self._called(found) if inspect.isclass(found) else found
        if not callable(loss):
            raise UnknownLossError(f"{self} is no loss: {type(loss).__name__} objects cannot be called")
        reduction = self.reduction or (None if _says_reduction(loss) else "mean")
        code = f"loss={self.name}{'()' if inspect.isclass(found) else ''}"
        imports = f"from {self.module} import {self._first}"
        if self._is_script(script):
            imports = f"# {self._first} is defined in {script}; importing the script would run it again"
        return ChosenLoss(loss, reduction, imports, f"{code}, reduction={reduction!r}" if reduction else code)

    def _found(self, script: str) -> Any:
        try:
            module = sys.modules["__main__"] if self._is_script(script) else importlib.import_module(self.module)
            return _attribute(module, self.name)
        except (Exception, SystemExit) as error:  # the module is the user's, and may raise anything
            raise UnknownLossError(f"{self} could not be imported: {type(error).__name__}: {error}") from error

    def _called(self, kind: type) -> Any:
        try:
            return kind()
        except Exception as error:
            raise UnknownLossError(f"{self} is a class, and {kind.__name__}() failed: {error}") from error

    def _is_script(self, script: str) -> bool:
        return self.module in ("__main__", Path(script).stem)

    @property
    def _first(self) -> str:
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        return f"--loss {self.module}:{self.name}"


def _attribute(module: ModuleType, name: str) -> Any:
    return reduce(getattr, name.split("."), module)


def _says_reduction(loss: Any) -> bool:
    try:
        return hasattr(loss, "reduction") or "reduction" in inspect.signature(loss).parameters
    except (TypeError, ValueError):  # some functions written in C have no signature
        return False


def _settings(name: str, text: str) -> dict[str, Any]:
    """The settings in parentheses, checked against the arguments of torch's class."""
    known = {
        setting: parameter.default
        for setting, parameter in inspect.signature(LOSSES[name]).parameters.items()
        if setting not in ("size_average", "reduce")  # deprecated forms of the reduction
    }
    settings = {}
    for setting, value in _literals(name, text):
        if setting not in known:
            raise ValueError(f"{name} has no setting {setting!r}; its settings are {', '.join(known)}")
        settings[setting] = _fitting(name, setting, value, known[setting])
    return settings


def _literals(name: str, text: str) -> Iterator[tuple[str, Any]]:
    """``a=1, b='x'`` as names and values."""
    try:
        call = ast.parse(f"f({text}\n)", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError
        found = [(each.arg, ast.literal_eval(each.value)) for each in call.keywords]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError(
            f"settings of a loss are names and plain values, as in \"{name}(reduction='sum')\"; got {text!r}"
        ) from None
    for setting, value in found:
        if setting is None:
            raise ValueError(f"settings of {name} need names, as in {name}(reduction='sum'); got {text!r}")
        yield setting, value


def _fitting(name: str, setting: str, value: Any, default: Any) -> Any:
    """The value, if it is of the kind of the setting's default; a setting without default value is a tensor."""
    if default is None:
        numbers = isinstance(value, (list, tuple)) and value and all(map(_is_number, value))
        if value is None or numbers:
            return None if value is None else tuple(map(float, value))
        raise ValueError(f"{setting} of {name} must be a list of numbers; got {value!r}")
    fits = _is_number(value) if _is_number(default) else type(value) is type(default)
    if not fits:
        kind = "a number" if _is_number(default) else type(default).__name__
        raise ValueError(f"{setting} of {name} must be {kind}; got {value!r}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require_known(setting: str, value: Any, known: Collection[str]) -> None:
    if value not in known:
        raise ValueError(f"{setting} must be one of {', '.join(known)}; got {value!r}")
