"""Blocks of a curvature matrix in an eigenbasis: Kronecker-factored for layers, dense for what is left.

Both are ``U diag(values) Uᵀ``, with U = left ⊗ right for a layer and U = right for a dense block. U need not be square:
what no input or gradient reaches has no curvature, and its eigenvalue is exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...errors import UncoveredParameterError
from ..layout import Named
from .gradients import PseudoGradients
from .layers import Layer

DENSE_LIMIT = 1024
"""Entries of the largest dense block."""


@dataclass(frozen=True)
class Block:
    """The curvature of some of θ's entries; ``B`` tasks once stacked, one task before.

    Attributes:
        names: the parameters.
        kronecker: whether it is a layer's.
        index: ``[groups, e, d]``, where these entries lie in θ.
        left, right: ``[(B,) groups, e, p]`` and ``[(B,) groups, d, r]``, orthonormal columns.
        values: ``[(B,) groups, p, r]``, eigenvalues.
    """

    names: Sequence[str]
    kronecker: bool
    index: Tensor
    left: Tensor
    right: Tensor
    values: Tensor

    @staticmethod
    def stack(blocks: Sequence[Block]) -> Block:
        """The same block of several tasks."""
        first = blocks[0]
        left, right, values = (
            torch.stack([getattr(block, part) for block in blocks]) for part in ("left", "right", "values")
        )
        return Block(first.names, first.kronecker, first.index, left, right, values)

    def product(self, v: Tensor, values: Tensor) -> Tensor:
        """``U diag(values) Uᵀ`` times these entries of ``v``: ``[B, Q] -> [B, groups, e, d]``."""
        coordinates = self.left.mT @ v[:, self.index] @ self.right
        return self.left @ (values * coordinates) @ self.right.mT

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.index, self.left, self.right, self.values))


def task_blocks(gradients: PseudoGradients, w: Tensor, positions: Named) -> list[Block]:
    """All blocks of one task; each entry of θ is in exactly one.

    Args:
        gradients: whose second moment the curvature is.
        w: sample weights, ``[n]``.
        positions: where each entry of θ lies, by name.

    Raises:
        UncoveredParameterError: a parameter is no layer's and too large for a dense block.
    """
    modules = _by_module(gradients.rest)
    estimates = [_Kronecker(gradients.inputs(layer), _position_weights(layer, w)) for layer in gradients.layers]
    rows = []
    for by_layer, by_rest in gradients:
        rows.append(by_rest)
        for estimate, slopes in zip(estimates, by_layer, strict=True):
            estimate.add_moment(slopes)
    for by_layer, _ in gradients:
        for estimate, slopes in zip(estimates, by_layer, strict=True):
            estimate.add_values(slopes)
    layers = zip(gradients.layers, estimates, strict=True)
    kronecker = [estimate.block(layer.names, layer.matrix(positions)) for layer, estimate in layers]
    return kronecker + [_dense_block(names, positions, rows) for names in modules]


class _Kronecker:
    """A layer's block from the second moments A of its inputs and G of the gradients by its outputs.

    Their eigenvectors are the basis. The eigenvalues are not those of A ⊗ G but the second moments of the
    pseudo-gradients' own coordinates, ``Σ (U_Gᵀ ∇W U_A)²``: the diagonal in this basis is that of the curvature.

    Args:
        inputs: ``[groups, N, S, d]``.
        weights: of the positions, ``[N·S]``.
    """

    def __init__(self, inputs: Tensor, weights: Tensor) -> None:
        self._right = _eigenvectors(inputs.flatten(1, 2), weights)
        self._inputs = inputs @ self._right.unsqueeze(1)
        self._moment = self._values = torch.zeros((), device=inputs.device)

    def add_moment(self, slopes: Tensor) -> None:
        """The first pass over the gradients by the layer's outputs, ``[r, groups, N, S, e]``."""
        flat = slopes.transpose(0, 1).flatten(1, 3)
        self._moment = self._moment + flat.mT @ flat

    @cached_property
    def _left(self) -> Tensor:
        return torch.linalg.eigh(self._moment.double()).eigenvectors.to(self._inputs)

    def add_values(self, slopes: Tensor) -> None:
        """The second pass."""
        for slope in slopes:
            coordinates = (slope @ self._left.unsqueeze(1)).mT @ self._inputs
            self._values = self._values + coordinates.square().sum(1)

    def block(self, names: list[str], index: Tensor) -> Block:
        return Block(names, True, index, self._left, self._right, self._values)


def _dense_block(names: list[str], positions: Named, rows: list[dict[str, Tensor]]) -> Block:
    """The Gauss–Newton matrix of a few parameters by its own eigenvectors, from the pseudo-gradients by name."""
    slopes = torch.cat([torch.cat([part[name].flatten(1) for name in names], dim=1) for part in rows])
    right = _eigenvectors(slopes, torch.ones_like(slopes[:, 0]))
    values = (slopes @ right).square().sum(0)
    index = torch.cat([positions[name].flatten() for name in names])
    return Block(
        names, False, index.view(1, 1, -1), slopes.new_ones(1, 1, 1), right.unsqueeze(0), values.view(1, 1, -1)
    )


def _eigenvectors(rows: Tensor, weights: Tensor) -> Tensor:
    """Those of ``Σ_m weights_m rows_m rows_mᵀ`` in the span of the rows: ``[..., m, d]``, ``[m] -> [..., d, r]``."""
    wide = rows.double()
    span = torch.eye(rows.shape[-1]).to(wide) if rows.shape[-2] >= rows.shape[-1] else torch.linalg.qr(wide.mT).Q
    inside = wide @ span
    moment = inside.mT @ (weights.double().unsqueeze(-1) * inside)
    return (span @ torch.linalg.eigh(moment).eigenvectors).to(rows)


def _position_weights(layer: Layer, w: Tensor) -> Tensor:
    return w.repeat_interleave(layer.inputs.shape[2])


def _by_module(rest: Named) -> list[list[str]]:
    """The names of parameters that share a module, a list each.

    Raises:
        UncoveredParameterError: they are too many for a dense block.
    """
    modules: dict[str, list[str]] = {}
    for name in rest:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    for names in modules.values():
        size = sum(rest[name].numel() for name in names)
        if size > DENSE_LIMIT:
            raise UncoveredParameterError(
                f"ekfac has no block for {', '.join(names)} ({size} entries): it factorises weights that go into one "
                f"call of F.linear or F.conv2d with the samples along its first dimension, and into nothing else, and "
                f"keeps other parameters as dense blocks of up to {DENSE_LIMIT} entries a module. Choose "
                "inner_solver='gram' or 'cg'"
            )
    return list(modules.values())
