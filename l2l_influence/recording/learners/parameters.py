"""The parameters of clones, found without a walk through all their modules (needed twice per episode)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from torch import Tensor, nn


class ParameterPaths:
    """The module paths of a model's parameters. Learned from the first clone; other clones have the same paths.

    Attributes:
        names: name of each parameter as in ``named_parameters``, in order; None for a shared one that was named before.
    """

    def __init__(self) -> None:
        self.names: list[str | None] = []
        self._steps: list[tuple[int, str]] = []
        self._sizes: list[int] = []

    def of(self, model: nn.Module) -> list[Tensor]:
        """The parameters of a model in the order of `names`; a shared one as often as it occurs."""
        return self.located(model)[1]

    def located(self, model: nn.Module) -> tuple[list[nn.Module], list[Tensor]]:
        """The model and its modules that have parameters or buffers; and the parameters, as in `of`."""
        modules = self._found(model)
        parameters = _parameters(modules)
        if len(parameters) != len(self.names) or not modules:
            self._learn(model)
            modules = self._found(model)
            parameters = _parameters(modules)
        return modules, parameters

    def _found(self, model: nn.Module) -> list[nn.Module]:
        modules = [model]
        for parent, name in self._steps:
            child = modules[parent]._modules.get(name)
            if child is None:
                return []
            modules.append(child)
        return modules if [len(module._modules) for module in modules] == self._sizes else []

    def _learn(self, model: nn.Module) -> None:
        named = {name for name, _ in model.named_parameters()}
        every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        if len(every) != len(self.names):  # a wrapper around a clone's model does not change the names
            self.names = [name if name in named else None for name in every]
        self._steps, self._sizes = [], [len(model._modules)]
        for step, size in _walk(model, 0, iter(range(1, 2**31))):
            self._steps.append(step)
            self._sizes.append(size)


def _parameters(modules: Sequence[nn.Module]) -> list[Tensor]:
    places = [module._parameters.values() for module in modules]
    return [parameter for place in places for parameter in place if parameter is not None]


def _walk(module: nn.Module, number: int, numbers: Iterator[int]) -> Iterator[tuple[tuple[int, str], int]]:
    """Each module below that has parameters or buffers, in the order of ``named_parameters``: the number of its parent,
    its name there, and its number of children."""
    for name, child in module._modules.items():
        if child is not None and next(chain(child.parameters(), child.buffers()), None) is not None:
            yield (number, name), len(child._modules)
            yield from _walk(child, next(numbers), numbers)
