"""Small float64 problems, and the dense algebra that the core is checked against.

The reference knows nothing of the package: it builds each matrix from reverse-mode Jacobians of plain functions of flat
vectors, one task at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jacrev

from l2l_influence.bilevel import Layout, Task

Named = dict[str, Tensor]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def parameters(seed: int = 0) -> Named:
    return {"body": 0.5 * randn(seed, 3, 4), "bias": 0.3 * randn(seed + 1, 4), "head": 0.5 * randn(seed + 2, 4, 3)}


SIZE = 28
"""Entries of :func:`parameters`."""


def network(p: Named, x: Tensor) -> Tensor:
    return torch.tanh(x @ p["body"] + p["bias"]) @ p["head"]


def classification(lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(network({**lam, **theta}, x), y, reduction="none")


def classification_tasks(count: int, seed: int = 100) -> list[Task]:
    def pair(at: int, n: int) -> tuple[Tensor, Tensor]:
        return randn(at, n, 3), torch.randint(0, 3, (n,), generator=generator(at + 1))

    return [Task(pair(seed + 10 * i, 6), pair(seed + 10 * i + 5, 7)) for i in range(count)]


class Reference:
    """One task's derivatives as dense matrices, by brute force.

    ``loss(lam_flat, theta_flat, x, y)`` gives per-sample losses, ``outputs(lam_flat, theta_flat, x)`` what they are a
    function of.
    """

    def __init__(self, loss: Callable[..., Tensor], lam: Named, theta_keys: list[str] | None, delta: float) -> None:
        self.layout = Layout(lam)
        self.part = self.layout.keep(theta_keys or lam)
        self.lam = self.layout.ravel(lam)
        self.delta, self._loss = delta, loss
        keys = list(self.part.shapes)
        names = [key for key, shape in self.layout.shapes.items() for _ in range(int(torch.tensor(shape).prod()))]
        self.where = torch.tensor([name in keys for name in names])

    def outer(self, task: Task) -> Callable[[Tensor, Tensor], Tensor]:
        return self._sum(*task.query, task.query_weights)

    def inner(self, task: Task) -> Callable[[Tensor, Tensor], Tensor]:
        data = self._sum(*task.support, task.support_weights)
        return lambda lam, theta: data(lam, theta) + 0.5 * self.delta * (theta - lam[self.where]).square().sum()

    def _sum(self, x: Tensor, y: Tensor, w: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        def total(lam: Tensor, theta: Tensor) -> Tensor:
            losses = self._loss(self.layout.unravel(lam), self.part.unravel(theta), x, y)
            return losses.sum() if w is None else (w * losses).sum()

        return total

    def solve(self, lam: Tensor, task: Task) -> Tensor:
        """argmin_θ by Newton's method with dense Hessians; plain Newton, so the toys are kept mild."""
        inner = self.inner(task)
        theta = lam[self.where].clone()
        for _ in range(20):
            slope = jacrev(inner, 1)(lam, theta)
            if slope.norm() < 1e-12:
                return theta
            theta = theta - torch.linalg.solve(jacrev(jacrev(inner, 1), 1)(lam, theta), slope)
        raise AssertionError("the reference's Newton iteration did not converge")

    def theta_jacobian(self, task: Task, theta: Tensor) -> Tensor:
        """dθ/dλ = −H_in⁻¹ ∂_θ∂_λ L_I, dense."""
        cross, curved = jacrev(jacrev(self.inner(task), 1), (0, 1))(self.lam, theta)
        return -torch.linalg.solve(curved, cross)

    def chain(self, task: Task, theta: Tensor) -> Tensor:
        """Z = [I; dθ/dλ], dense."""
        return torch.cat([torch.eye(self.layout.size, dtype=torch.float64), self.theta_jacobian(task, theta)])

    def joint_hessian(self, task: Task, theta: Tensor) -> Tensor:
        blocks = jacrev(jacrev(self.outer(task), (0, 1)), (0, 1))(self.lam, theta)
        return torch.cat([torch.cat(list(row), dim=1) for row in blocks])

    def total_loss(self, lam: Tensor, tasks: list[Task], weights: Tensor, l2: float) -> Tensor:
        """L_Total with every inner problem re-optimised."""
        terms = [w * self.outer(t)(lam, self.solve(lam, t)) for w, t in zip(weights, tasks, strict=True)]
        return sum(terms, torch.zeros((), dtype=torch.float64)) + 0.5 * l2 * lam.square().sum()


def central_difference(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """Gradient of a scalar function (or Jacobian of a vector one) by central differences."""
    columns = [(function(at + step * e) - function(at - step * e)) / (2 * step) for e in torch.eye(len(at)).to(at)]
    return torch.stack(columns, dim=-1)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
