"""θ a few gradient steps away from λ, without what its wide linear layers moved by being written out.

The gradient by the weight W of a linear layer is a sum of outer products, one for each row that goes through the
layer: ``Dᵀ A``, for the gradients D ``[r, e]`` by its outputs and its inputs A ``[r, d]``. A task has few rows, and a
wide layer many weights. So what W became is kept as ``W − Dᵀ A`` and used as ``x Wᵀ − (x Aᵀ) D``: there W is λ's, one
tensor for all tasks, and no vector of θ's size is made for each of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LossStructureError
from .kfac.layers import LAYERS, FunctionCall, ParameterWatch, stand_in, tensors
from .layout import Layout, Named


class FactoredParameters(NamedTuple):
    """One task's θ (a batch's with a leading ``B``), or a gradient by it.

    Attributes:
        own: the tensors that are written out, by name.
        by_outputs, inputs: D ``[r, e]`` and A ``[r, d]`` of each other weight: it is λ's W less ``Dᵀ A``, and a
            gradient by it is ``Dᵀ A``.
    """

    own: dict[str, Tensor]
    by_outputs: dict[str, Tensor]
    inputs: dict[str, Tensor]

    @classmethod
    def start(cls, initial: Named, names: Collection[str]) -> FactoredParameters:
        """θ = θ_0, with the weights of these names in factors."""
        own = {name: value for name, value in initial.items() if name not in names}
        by_outputs = {name: initial[name].new_zeros(0, initial[name].shape[0]) for name in names}
        inputs = {name: initial[name].new_zeros(0, initial[name].shape[1]) for name in names}
        return cls(own, by_outputs, inputs)

    def stepped(self, lr: float, slope: FactoredParameters) -> FactoredParameters:
        """θ − lr·slope."""
        return FactoredParameters(
            {name: value - lr * slope.own[name] for name, value in self.own.items()},
            {name: torch.cat([value, lr * slope.by_outputs[name]]) for name, value in self.by_outputs.items()},
            {name: torch.cat([value, slope.inputs[name]]) for name, value in self.inputs.items()},
        )

    def weight(self, name: str, initial: Named) -> Tensor:
        """One that is in factors, written out."""
        return initial[name] - self.by_outputs[name].mT @ self.inputs[name]

    def flat(self, initial: Named, layout: Layout) -> Tensor:
        """θ written out, ``[Q]``."""
        return layout.ravel({**self.own, **{name: self.weight(name, initial) for name in self.inputs}})

    @contextmanager
    def at_work(self, initial: Named, taps: Named | None = None) -> Iterator[tuple[Named, dict[str, Tensor]]]:
        """θ by name, for a loss that is called inside the block, and the inputs of the layers that it went through.

        Args:
            initial: θ_0 by name.
            taps: added to the outputs of the layers whose weights are in factors, ``[r, e]``: the derivative by them is
                D. Then these weights must go into one call of ``F.linear`` each, and into nothing else.

        Raises:
            LossStructureError: they do not.
        """
        stand_ins = {name: stand_in(initial[name]) for name in self.inputs}
        with _AtWork(self, initial, stand_ins, taps) as work:
            yield {**self.own, **stand_ins}, work.inputs


Theta = Tensor | FactoredParameters
"""θ of one task, ``[Q]`` (a batch's, ``[B, Q]``), or in factors."""


class _AtWork(ParameterWatch):
    """Gives what θ's weights give where the loss uses their stand-ins: by factors in linear layers, else written out.

    Where a loss uses one in a way that is not seen here, what comes of it is NaN, and not what λ's weight gives.
    """

    def __init__(self, theta: FactoredParameters, initial: Named, stand_ins: Named, taps: Named | None) -> None:
        super().__init__(stand_ins)
        self._theta, self._initial, self._taps = theta, initial, taps
        self.inputs: dict[str, Tensor] = {}

    def meet(self, used: list[str], call: FunctionCall) -> Any:
        if call.function is F.linear and len(used) == 1:
            weight, _, inputs = LAYERS[F.linear](*call.args, **call.kwargs)
            if self.names.get(id(weight)) == used[0]:
                return self._linear(used[0], inputs.flatten(0, 2), call)
        output = call.given({at: self._theta.weight(name, self._initial) for at, name in self.names.items()}).made()
        if self._taps is not None and list(tensors(output)):
            raise LossStructureError("the loss uses a weight otherwise than where its layers were looked for")
        return output

    def _linear(self, name: str, rows: Tensor, call: FunctionCall) -> Tensor:
        output: Tensor = call.given({at: self._initial[name] for at, own in self.names.items() if own == name}).made()
        moved = (rows @ self._theta.inputs[name].mT) @ self._theta.by_outputs[name]
        if self._taps is not None:
            if name in self.inputs:
                raise LossStructureError(
                    f"the loss uses {name} twice, which it did not where its layers were looked for"
                )
            moved = moved - self._taps[name]
        self.inputs[name] = rows
        return output - moved.reshape(output.shape)
