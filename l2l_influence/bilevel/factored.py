"""θ after a few gradient steps; updates of wide linear layers are stored as low-rank factors.

The gradient by the weight W of a linear layer is a sum of outer products, one for each row that passes through the
layer: ``Dᵀ A`` for the gradients D ``[r, e]`` by its outputs and its inputs A ``[r, d]``. A task has few rows, and a
wide layer many weights. So the adapted weight is stored as ``W − Dᵀ A`` and used as ``x Wᵀ − (x Aᵀ) D``: W is the
start, one tensor for all tasks, and no vector of θ's size is computed for each of them.
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
    """θ of one task (of a batch, with a leading ``B``), or a gradient by it, with some weights in low-rank factors.

    Attributes:
        dense: the tensors that are stored as they are, by name.
        by_outputs, inputs: D ``[r, e]`` and A ``[r, d]`` of each other weight: the weight is its start W minus ``Dᵀ
            A``, and a gradient by it is ``Dᵀ A``.
    """

    dense: dict[str, Tensor]
    by_outputs: dict[str, Tensor]
    inputs: dict[str, Tensor]

    @classmethod
    def start(cls, initial: Named, names: Collection[str]) -> FactoredParameters:
        """θ = θ_0, given by name, with the weights of these names in factors."""
        dense = {name: value for name, value in initial.items() if name not in names}
        by_outputs = {name: initial[name].new_zeros(0, initial[name].shape[0]) for name in names}
        inputs = {name: initial[name].new_zeros(0, initial[name].shape[1]) for name in names}
        return cls(dense, by_outputs, inputs)

    def stepped(self, lr: float, slope: FactoredParameters) -> FactoredParameters:
        """θ − lr·slope."""
        return FactoredParameters(
            {name: value - lr * slope.dense[name] for name, value in self.dense.items()},
            {name: torch.cat([value, lr * slope.by_outputs[name]]) for name, value in self.by_outputs.items()},
            {name: torch.cat([value, slope.inputs[name]]) for name, value in self.inputs.items()},
        )

    def weight(self, name: str, initial: Named) -> Tensor:
        """One of the weights that are in factors, as a matrix."""
        return initial[name] - self.by_outputs[name].mT @ self.inputs[name]

    def flat(self, initial: Named, layout: Layout) -> Tensor:
        """θ as one flat vector, ``[Q]``."""
        return layout.ravel({**self.dense, **{name: self.weight(name, initial) for name in self.inputs}})

    @contextmanager
    def at_work(self, initial: Named, taps: Named | None = None) -> Iterator[tuple[Named, dict[str, Tensor]]]:
        """θ by name, for a loss that is called inside the block, and the inputs of the layers that the loss used.

        Args:
            initial: θ_0 by name.
            taps: added to the outputs of the layers whose weights are in factors, ``[r, e]``: the derivative by them is
                D. Each of these weights must then be used in one call of ``F.linear``, and nowhere else.

        Raises:
            LossStructureError: with ``taps``, a weight is used otherwise.
        """
        stand_ins = {name: stand_in(initial[name]) for name in self.inputs}
        with _AtWork(self, initial, stand_ins, taps) as work:
            yield {**self.dense, **stand_ins}, work.inputs


Theta = Tensor | FactoredParameters
"""θ of one task, ``[Q]`` (of a batch, ``[B, Q]``), or in low-rank factors."""


class _AtWork(ParameterWatch):
    """Replaces the stand-ins of θ's weights in the calls that a loss makes: by factors in linear layers, else by the
    matrix.

    If a loss uses a weight in a way that is not seen here, its result is NaN, and never computed from the start value.
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
        weights = {key: self._theta.weight(name, self._initial) for key, name in self.names.items()}
        output = call.given(weights).made()
        if self._taps is not None and list(tensors(output)):
            raise LossStructureError(
                f"the loss uses {', '.join(used)} outside F.linear in this call, but did not when its layers were "
                "searched: a loss must make the same calls each time"
            )
        return output

    def _linear(self, name: str, rows: Tensor, call: FunctionCall) -> Tensor:
        output: Tensor = call.given(
            {key: self._initial[name] for key, used in self.names.items() if used == name}
        ).made()
        update = (rows @ self._theta.inputs[name].mT) @ self._theta.by_outputs[name]
        if self._taps is not None:
            if name in self.inputs:
                raise LossStructureError(
                    f"the loss uses {name} twice in this call, but did not when its layers were searched: a loss must "
                    "make the same calls each time"
                )
            update = update - self._taps[name]
        self.inputs[name] = rows
        return output - update.reshape(output.shape)
