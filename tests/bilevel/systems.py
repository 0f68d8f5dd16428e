"""Symmetric systems whose spectra and solutions are known, for tests of solvers."""

from __future__ import annotations

import torch
from torch import Tensor

from l2l_influence.bilevel.solvers import Invertible, LinearOperator

from ..reference_problems.autograd import randn


class Matrices(LinearOperator):
    """Symmetric matrices ``[R, P, P]``, counting their products."""

    def __init__(self, matrices: Tensor) -> None:
        self.matrices, self.products = matrices, 0

    def matvec(self, v: Tensor) -> Tensor:
        self.products += 1
        return (self.matrices @ v.unsqueeze(-1)).squeeze(-1)


class Inverted(Invertible):
    """Positive definite matrices ``[R, P, P]`` that know their inverses."""

    def __init__(self, matrices: Tensor) -> None:
        self.matrices, self.inverses = matrices, torch.linalg.inv(matrices)
        self.floor = float(torch.linalg.eigvalsh(matrices).min())

    def matvec(self, v: Tensor) -> Tensor:
        return (self.matrices @ v.unsqueeze(-1)).squeeze(-1)

    def inverse(self, v: Tensor) -> Tensor:
        return (self.inverses @ v.unsqueeze(-1)).squeeze(-1)


def rotated(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """Symmetric matrices with the given eigenvalues ``[R, P]`` in random directions."""
    count, size = eigenvalues.shape
    q = torch.linalg.qr(randn(seed, count, size, size)).Q
    return q @ torch.diag_embed(eigenvalues.double()) @ q.mT


def spread(count: int, size: int, conditions: list[float]) -> Tensor:
    """Eigenvalues from 1 down to 1/condition, log-uniform, one condition a row."""
    steps = torch.linspace(0, 1, size, dtype=torch.float64)
    return torch.stack([float(c) ** -steps for c in conditions]).expand(count, size)


def indefinite(count: int, size: int, negative: int, seed: int = 0) -> Tensor:
    """Eigenvalues of magnitude 0.1 to 5, ``negative`` of them below zero in each row."""
    values = 0.1 + 4.9 * torch.rand(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values[:, :negative] *= -1
    return values


def shifted(matrices: Tensor, shift: Tensor) -> Tensor:
    """``A_r + shift_r I``."""
    return matrices + shift.view(-1, 1, 1) * torch.eye(matrices.shape[-1]).to(matrices)


def true_residual(matrices: Tensor, x: Tensor, b: Tensor) -> Tensor:
    matrices, x, b = matrices.double(), x.double(), b.double()
    size = b.norm(dim=-1)
    return (b - (matrices @ x.unsqueeze(-1)).squeeze(-1)).norm(dim=-1) / torch.where(size > 0, size, 1.0)


def close(x: Tensor, matrices: Tensor, b: Tensor) -> float:
    """The largest relative error of a row's solution."""
    expected = torch.linalg.solve(matrices, b)
    return float(((x - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
