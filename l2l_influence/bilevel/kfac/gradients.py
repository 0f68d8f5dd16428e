"""Pseudo-gradients of one task, whose second moment is its curvature.

The curvature is ``Σ_jk s_jk s_jkᵀ`` over samples j and columns k of their residuals r, where the pseudo-gradient ``s_jk
= (∂outputs_j/∂θ)ᵀ r_jk`` belongs to sample j's term alone. If samples interact (batch normalisation with batch
statistics), this term depends on the activations of the others as well, and ``s_jk`` is its whole gradient, so that
results such as the diagonal of the curvature are right in that case too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..execution import Execution, Mapped
from ..layout import Named
from .layers import Layer, Model, ShiftedOutputs, find_layers

ENTRIES_AT_ONCE = 2**26
"""Numbers in the gradients by layer outputs of one chunk of pseudo-gradients."""

Chunk = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Gradients by the outputs of layers, and by the other parameters."""


class PseudoGradients:
    """The pseudo-gradients of one task, in chunks that are computed on each pass (a single chunk is kept).

    Samples that do not interact share a backward pass, which gives the same numbers in n times less work.

    Args:
        model: the outputs of one task as a function of its θ.
        theta: θ by name.
        residuals: ``[K, n, C]``; r_jk is ``residuals[k, j]``. If all outputs count as those of one sample, ``[K, 1,
            N]``.
        execution: how the model is differentiated; by ``torch.func`` if None.

    Attributes:
        layers: the layers of θ.
        rest: the tensors of θ that belong to no layer.
        together: whether a pseudo-gradient holds those of all samples, each at its position.
    """

    def __init__(self, model: Model, theta: Named, residuals: Tensor, execution: Execution | None = None) -> None:
        self._model, self._theta, self._execution = model, theta, execution or Mapped()
        self.layers = find_layers(model, theta)
        covered = {name for layer in self.layers for name in layer.names}
        self.rest = {name: tensor for name, tensor in theta.items() if name not in covered}
        self.together = not self.rest and not self._interact(residuals)
        self._chunks = (residuals if self.together else apart(residuals)).split(self._chunk_size)

    def __iter__(self) -> Iterator[tuple[list[Tensor], dict[str, Tensor]]]:
        """Gradients by the outputs of each layer, ``[r, groups, N, S, e]``, and by each other tensor, ``[r, ...]``."""
        for by_layer, by_rest in [self._only] if len(self._chunks) == 1 else map(self._pull_back, self._chunks):
            yield [self._per_sample(layer.by_position(by_layer[layer.weight])) for layer in self.layers], by_rest

    def inputs(self, layer: Layer) -> Tensor:
        """The inputs that belong to the gradients by a layer's outputs: ``[groups, N, S, d]``."""
        return self._per_sample(layer.augmented_inputs())

    def _per_sample(self, positions: Tensor) -> Tensor:
        """``[..., n, S, d]``, or ``[..., 1, n·S, d]`` if there is one sample, whose gradient sums over all
        positions."""
        return positions if self.together else positions.flatten(-3, -2).unsqueeze(-3)

    @cached_property
    def _only(self) -> Chunk:
        return self._pull_back(self._chunks[0])

    def _pull_back(self, cotangents: Tensor) -> Chunk:
        return pull_back(self._model, self._theta, self.layers, self.rest, cotangents, self._execution)

    def _interact(self, residuals: Tensor) -> bool:
        """Whether any sample's activations affect the outputs of another sample.

        Any two samples differ in a bit of their numbers, so that one of these masks keeps one sample and drops the
        other.
        """
        n = residuals.shape[1]
        if any(layer.inputs.shape[1] != n for layer in self.layers):
            return True  # all samples count as one
        bits = torch.arange(n).unsqueeze(0) >> torch.arange((n - 1).bit_length()).unsqueeze(1) & 1
        if len(bits) == 0:
            return False
        probe = torch.randn(residuals.shape[1:], generator=torch.Generator().manual_seed(0)).to(residuals)
        kept = torch.cat([bits, 1 - bits]).to(residuals)
        by_layer, _ = self._pull_back(kept.unsqueeze(-1) * probe)
        return any(bool(slope.flatten(2).any(-1)[kept == 0].any()) for slope in by_layer.values())

    @property
    def _chunk_size(self) -> int:
        return max(1, ENTRIES_AT_ONCE // max(1, sum(layer.shape.numel() for layer in self.layers)))


def pull_back(
    model: Model,
    theta: Named,
    layers: Sequence[Layer],
    rest: Named,
    cotangents: Tensor,
    execution: Execution | None = None,
) -> Chunk:
    """The backward pass of cotangents of the outputs, ``[r, n, C]``: by the outputs of layers and by the other tensors.

    Both results are by the name of a parameter.
    """

    def outputs(shifts: Named, rest: Named) -> Tensor:
        parameters = {**theta, **rest}
        with ShiftedOutputs(parameters, shifts):
            return model(parameters)

    shifts = {layer.weight: cotangents.new_zeros(layer.shape) for layer in layers}
    found, gradients = (execution or Mapped()).pull_back(outputs, shifts, rest)
    chunk: Chunk = gradients(cotangents.reshape(len(cotangents), *found.shape))
    return chunk


def apart(residuals: Tensor) -> Tensor:
    """``[K, n, C]`` as one cotangent per row, zero at the other samples: ``[K·n, n, C]``."""
    n = residuals.shape[1]
    return torch.einsum("ij,kjc->kjic", torch.eye(n).to(residuals), residuals).flatten(0, 1)
