"""Blocks of a curvature matrix in an eigenbasis: Kronecker-factored for layers, dense for other parameters.

Both are ``U diag(values) Uᵀ``, with U = left ⊗ right for a layer and U = right for a dense block. U need not be square:
directions that no input or gradient reaches have no curvature, and eigenvalues of exactly 0.
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
    """The curvature of some entries of θ, for ``B`` tasks if stacked, else for one.

    Attributes:
        names: the parameters.
        kronecker: whether it belongs to a layer.
        index: ``[groups, e, d]``, positions of these entries in θ.
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
    """The blocks of one task; each entry of θ is in exactly one.

    Args:
        gradients: the pseudo-gradients, whose second moment is the curvature.
        w: sample weights, ``[n]``.
        positions: of each entry of θ, by name.

    Raises:
        UncoveredParameterError: a parameter belongs to no layer and is too large for a dense block.
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
    """The block of a layer from the second moments A of its inputs and G of the gradients by its outputs.

    Their eigenvectors form the basis. The eigenvalues are not those of A ⊗ G but the second moments of the coordinates
    of the pseudo-gradients, ``Σ (U_Gᵀ ∇W U_A)²``: the diagonal in this basis is that of the curvature.

    Args:
        inputs: ``[groups, N, S, d]``.
        weights: of the positions, ``[N·S]``.
    """

    def __init__(self, inputs: Tensor, weights: Tensor) -> None:
        self._right = _eigenvectors(inputs.flatten(1, 2), weights)
        self._inputs = inputs @ self._right.unsqueeze(1)
        self._moment = self._values = torch.zeros((), device=inputs.device)

    def add_moment(self, slopes: Tensor) -> None:
        """Add gradients by the layer's outputs, ``[r, groups, N, S, e]``, to the moments, in the first pass."""
        flat = slopes.transpose(0, 1).flatten(1, 3)
        self._moment = self._moment + flat.mT @ flat

    @cached_property
    def _left(self) -> Tensor:
        return torch.linalg.eigh(self._moment.double()).eigenvectors.to(self._inputs)

    def add_values(self, slopes: Tensor) -> None:
        """Add the same gradients to the eigenvalues, in the second pass."""
        for slope in slopes:
            coordinates = (slope @ self._left.unsqueeze(1)).mT @ self._inputs
            self._values = self._values + coordinates.square().sum(1)

    def block(self, names: list[str], index: Tensor) -> Block:
        return Block(names, True, index, self._left, self._right, self._values)


def _dense_block(names: list[str], positions: Named, rows: list[dict[str, Tensor]]) -> Block:
    """The Gauss–Newton matrix of a few parameters by its eigenvectors, from the pseudo-gradients by name."""
    slopes = torch.cat([torch.cat([part[name].flatten(1) for name in names], dim=1) for part in rows])
    right = _eigenvectors(slopes, torch.ones_like(slopes[:, 0]))
    values = (slopes @ right).square().sum(0)
    index = torch.cat([positions[name].flatten() for name in names])
    return Block(
        names, False, index.view(1, 1, -1), slopes.new_ones(1, 1, 1), right.unsqueeze(0), values.view(1, 1, -1)
    )


def _eigenvectors(rows: Tensor, weights: Tensor) -> Tensor:
    """Eigenvectors of ``Σ_m weights_m rows_m rows_mᵀ`` in the span of the rows: ``[..., m, d]``, ``[m] -> [..., d,
    r]``."""
    wide = rows.double()
    span = torch.eye(rows.shape[-1]).to(wide) if rows.shape[-2] >= rows.shape[-1] else torch.linalg.qr(wide.mT).Q
    inside = wide @ span
    moment = inside.mT @ (weights.double().unsqueeze(-1) * inside)
    return (span @ torch.linalg.eigh(moment).eigenvectors).to(rows)


def _position_weights(layer: Layer, w: Tensor) -> Tensor:
    return w.repeat_interleave(layer.inputs.shape[2])


def _by_module(rest: Named) -> list[list[str]]:
    """The names of parameters, in one list for each module.

    Raises:
        UncoveredParameterError: a module has too many for a dense block.
    """
    modules: dict[str, list[str]] = {}
    for name in rest:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    for names in modules.values():
        size = sum(rest[name].numel() for name in names)
        if size > DENSE_LIMIT:
            raise UncoveredParameterError(
                f"ekfac has no block for {', '.join(names)} ({size} entries): it factorises weights that are used in "
                "one call of F.linear or F.conv2d, with samples along the first dimension, and nowhere else; other "
                f"parameters form dense blocks of up to {DENSE_LIMIT} entries per module. Use inner_solver='gram' or "
                "'cg'"
            )
    return list(modules.values())
