"""Low-rank operators whose rows are stored as outer products, and concatenations of operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .gram import CHUNK, LowRankOperator, each_times


class OuterProducts(LowRankOperator):
    """``AᵀA`` for rows ``Σ_m δ_m ⊗ a_m``: matrices ``[e, d]`` that are sums of N outer products with the same a_m.

    Args:
        left: δ of each row, ``[R, r, N, e]``.
        right: a, ``[R, N, d]``.
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right

    @property
    def nbytes(self) -> int:
        return self.left.nbytes + self.right.nbytes

    @property
    def width(self) -> int:
        return self.left.shape[-1] * self.right.shape[-1]

    def project(self, v: Tensor) -> Tensor:
        """``Σ_m δ_mᵀ V a_m`` for V, ``[e, d]``."""
        products = self.right @ v.unflatten(-1, (self.left.shape[-1], -1)).mT
        return each_times(products.flatten(1), self.left.flatten(2).mT)

    def lift(self, small: Tensor) -> Tensor:
        summed = each_times(small, self.left.flatten(2)).view(len(small), *self.left.shape[2:])
        return (summed.mT @ self.right).flatten(1)

    def gram(self) -> Tensor:
        """``Σ_mq ⟨δ_m, δ'_q⟩ ⟨a_m, a_q⟩``, ``[R, r, r]``, in float64, for a few of the e columns of δ at a time."""
        right = self.right.double()
        inner = (right @ right.mT).unsqueeze(1)
        total = torch.zeros((), dtype=torch.float64, device=right.device)
        for part in self.left.split(max(1, CHUNK // right.shape[1]), dim=-1):
            wide = part.double()
            total = total + wide.flatten(2) @ (inner @ wide).flatten(2).mT
        return total


class SideBySide(LowRankOperator):
    """``AᵀA`` for ``A = [A_1 … A_k]``, where each of the ``parts`` holds some columns of the same rows."""

    def __init__(self, parts: Sequence[LowRankOperator]) -> None:
        self.parts = parts

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    def project(self, v: Tensor) -> Tensor:
        columns = v.split([part.width for part in self.parts], dim=-1)
        return torch.stack([part.project(some) for part, some in zip(self.parts, columns, strict=True)]).sum(0)

    def lift(self, small: Tensor) -> Tensor:
        return torch.cat([part.lift(small) for part in self.parts], dim=-1)

    def gram(self) -> Tensor:
        return torch.stack([part.gram() for part in self.parts]).sum(0)
