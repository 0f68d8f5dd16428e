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
from torch.utils._pytree import tree_map

from ..errors import LossStructureError
from .kfac.layers import LAYERS, Call, Watch
from .layout import Layout, Named


class Moved(NamedTuple):
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
    def start(cls, lam: Named, names: Collection[str], part: Layout) -> Moved:
        """θ = λ_θ, with the weights of these names in factors."""
        own = {name: lam[name] for name in part.shapes if name not in names}
        by_outputs = {name: lam[name].new_zeros(0, lam[name].shape[0]) for name in names}
        inputs = {name: lam[name].new_zeros(0, lam[name].shape[1]) for name in names}
        return cls(own, by_outputs, inputs)

    def stepped(self, lr: float, slope: Moved) -> Moved:
        """θ − lr·slope."""
        return Moved(
            {name: value - lr * slope.own[name] for name, value in self.own.items()},
            {name: torch.cat([value, lr * slope.by_outputs[name]]) for name, value in self.by_outputs.items()},
            {name: torch.cat([value, slope.inputs[name]]) for name, value in self.inputs.items()},
        )

    def weight(self, name: str, lam: Named) -> Tensor:
        """One that is in factors, written out."""
        return lam[name] - self.by_outputs[name].mT @ self.inputs[name]

    def flat(self, lam: Named, part: Layout) -> Tensor:
        """θ written out, ``[Q]``."""
        return part.ravel({**self.own, **{name: self.weight(name, lam) for name in self.inputs}})

    @contextmanager
    def at_work(self, lam: Named, taps: Named | None = None) -> Iterator[tuple[Named, dict[str, Tensor]]]:
        """θ by name, for a loss that is called inside the block, and the inputs of the layers that it went through.

        Args:
            lam: λ.
            taps: added to the outputs of the layers whose weights are in factors, ``[r, e]``: the derivative by them is
                D. Then these weights must go into one call of ``F.linear`` each, and into nothing else.

        Raises:
            LossStructureError: they do not.
        """
        # Views are objects of their own, which tells θ's entries from λ's.
        weights = {name: lam[name].view_as(lam[name]) for name in self.inputs}
        with _AtWork(self, lam, weights, taps) as work:
            yield {**self.own, **weights}, work.inputs


Theta = Tensor | Moved
"""θ of one task, ``[Q]`` (a batch's, ``[B, Q]``), or in factors."""


class _AtWork(Watch):
    """Gives what moved weights give where the loss uses the unmoved ones in their place."""

    def __init__(self, theta: Moved, lam: Named, weights: Named, taps: Named | None) -> None:
        super().__init__(weights)
        self._theta, self._lam, self._weights, self._taps = theta, lam, weights, taps
        self.inputs: dict[str, Tensor] = {}

    def meet(self, used: list[str], call: Call) -> Any:
        if call.function is F.linear and len(used) == 1:
            (name,) = used
            weight, _, inputs = LAYERS[F.linear](*call.args, **call.kwargs)
            if weight is self._weights[name]:
                return self._linear(name, inputs.flatten(0, 2), call.output)
        return self._written_out(call)

    def _linear(self, name: str, rows: Tensor, output: Tensor) -> Tensor:
        moved = (rows @ self._theta.inputs[name].mT) @ self._theta.by_outputs[name]
        if self._taps is not None:
            if name in self.inputs:
                raise LossStructureError(
                    f"the loss uses {name} twice, which it did not where its layers were looked for"
                )
            moved = moved - self._taps[name]
        self.inputs[name] = rows
        return output - moved.view_as(output)

    def _written_out(self, call: Call) -> Any:
        """The call with the moved weights themselves."""
        if self._taps is not None:
            raise LossStructureError("the loss uses a weight otherwise than where its layers were looked for")
        names = {id(weight): name for name, weight in self._weights.items()}

        def moved(part: Any) -> Any:
            return self._theta.weight(names[id(part)], self._lam) if id(part) in names else part

        args, kwargs = tree_map(moved, (call.args, call.kwargs))
        return call.function(*args, **kwargs)
