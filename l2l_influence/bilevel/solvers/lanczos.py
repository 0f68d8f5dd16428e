"""The Lanczos process: the extreme eigenvalues of a symmetric matrix from a few products with it."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import LinearOperator


class Lanczos:
    """Orthonormal vectors v_1, v_2, ... of the Krylov space of b, in which A is tridiagonal; one process per row.

    Attributes:
        beta: ``[R]``, the last off-diagonal entry; ‖b‖ at first.
    """

    def __init__(self, operator: LinearOperator, b: Tensor) -> None:
        self._operator = operator
        self._before, self._next, self.beta = torch.zeros_like(b), b, b.norm(dim=-1)

    def step(self) -> tuple[Tensor, Tensor]:
        """The next v, ``[R, P]``, and its vᵀAv, the diagonal entry."""
        v = self._next / self.beta.clamp_min(torch.finfo(self.beta.dtype).tiny).unsqueeze(-1)
        u = self._operator.matvec(v) - self.beta.unsqueeze(-1) * self._before
        alpha = (v * u).sum(-1)
        u = u - alpha.unsqueeze(-1) * v
        self._before, self._next, self.beta = v, u, u.norm(dim=-1)
        return v, alpha


def extreme_eigenvalues(operator: LinearOperator, like: Tensor, products: int) -> tuple[Tensor, Tensor]:
    """Estimates of the smallest and the largest eigenvalue of each row's operator, ``[R]``, from inside the spectrum.

    They depend on the operator alone: the start is fixed, and no global random state is used.
    """
    process = Lanczos(operator, fixed_start(like))
    diagonal, beside = [], []
    for _ in range(min(products, like.shape[1])):
        diagonal.append(process.step()[1])
        beside.append(process.beta)
    tridiagonal = torch.diag_embed(torch.stack(diagonal, -1))
    if len(beside) > 1:
        tridiagonal = tridiagonal + torch.diag_embed(torch.stack(beside[:-1], -1), -1)  # the lower half is what is read
    values = torch.linalg.eigvalsh(tridiagonal.nan_to_num())  # a row that is not finite must not stop the others
    return values[:, 0], values[:, -1]


def fixed_start(like: Tensor) -> Tensor:
    """A random vector, ``[R, P]``, that is the same in each row and in each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape[1], generator=generator, dtype=torch.float64).to(like).expand_as(like)
