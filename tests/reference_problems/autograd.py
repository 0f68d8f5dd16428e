"""Small float64 problems, and the dense algebra that the core is checked against.

The reference knows nothing of the package: it builds each matrix from reverse-mode Jacobians of plain functions of flat
vectors, one task at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jacrev

from l2l_influence.bilevel import Layout, Task
from l2l_influence.bilevel.objective import Objective
from l2l_influence.bilevel.task import Samples

Named = dict[str, Tensor]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def parameters(seed: int = 0) -> Named:
    return {"body": 0.5 * randn(seed, 3, 4), "bias": 0.3 * randn(seed + 1, 4), "head": 0.5 * randn(seed + 2, 4, 3)}


SIZE = 28
"""Entries of :func:`parameters`."""


CONTEXT = {"context": torch.tensor([0.3, -0.2], dtype=torch.float64)}
"""Where context parameters start: entries of θ that are not in λ."""


def conditioned_parameters(seed: int = 0) -> Named:
    """With a matrix that brings context parameters in."""
    return {**parameters(seed), "gate": 0.7 * randn(seed + 3, 2, 4)}


def network(p: Named, x: Tensor) -> Tensor:
    conditions = p["context"] @ p["gate"] if "context" in p else 0.0
    return torch.tanh(x @ p["body"] + p["bias"] + conditions) @ p["head"]


def classification(lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(network({**lam, **theta}, x), y, reduction="none")


def classification_tasks(count: int, seed: int = 100) -> list[Task]:
    def pair(at: int, n: int) -> tuple[Tensor, Tensor]:
        return randn(at, n, 3), torch.randint(0, 3, (n,), generator=generator(at + 1))

    return [Task(pair(seed + 10 * i, 6), pair(seed + 10 * i + 5, 7)) for i in range(count)]


def gauss_newton_factor(objective: Objective, lam: Tensor, theta: Tensor, z: Samples) -> Tensor:
    """Rows A with ``AᵀA = GGN_θθ(L)``, written out: ``[B, n·C, Q]``; from the roots of the criterion's curvature."""
    roots = objective.output_curvature_root(lam, theta, z)
    return torch.stack([_rows(objective, lam, *task) for task in zip(theta, *z, roots, strict=True)])


def _rows(objective: Objective, lam: Tensor, theta: Tensor, x: Tensor, y: Tensor, w: Tensor, root: Tensor) -> Tensor:
    outputs = jacrev(lambda theta: objective.outputs_of_one(lam, theta, Samples(x, y, w)))(theta)
    return torch.einsum("jcq,jck->jkq", outputs.flatten(1, -2), root).flatten(0, 1)


class Reference:
    """One task's derivatives as dense matrices, by brute force.

    ``loss(lam_flat, theta_flat, x, y)`` gives per-sample losses, ``outputs(lam_flat, theta_flat, x)`` what they are a
    function of.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        lam: Named,
        theta_keys: list[str] | None,
        delta: float,
        theta_start: Named | None = None,
    ) -> None:
        fixed, keys = theta_start or {}, list(lam) if theta_keys is None else theta_keys
        self.layout = Layout(lam)
        self.part = Layout({**{key: value for key, value in lam.items() if key in keys}, **fixed})
        self.lam = self.layout.ravel(lam)
        self.delta, self._loss = delta, loss
        self.where = torch.cat([torch.full((value.numel(),), key in keys) for key, value in lam.items()])
        self._fixed = torch.cat([torch.zeros(0, dtype=torch.float64), *(value.flatten() for value in fixed.values())])

    def start(self, lam: Tensor) -> Tensor:
        """Where θ starts."""
        return torch.cat([lam[self.where], self._fixed])

    def outer(self, task: Task) -> Callable[[Tensor, Tensor], Tensor]:
        return self._sum(*task.query, task.query_weights)

    def inner(self, task: Task) -> Callable[[Tensor, Tensor], Tensor]:
        data = self._sum(*task.support, task.support_weights)
        return lambda lam, theta: data(lam, theta) + 0.5 * self.delta * (theta - self.start(lam)).square().sum()

    def _sum(self, x: Tensor, y: Tensor, w: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        def total(lam: Tensor, theta: Tensor) -> Tensor:
            losses = self._loss(self.layout.unravel(lam), self.part.unravel(theta), x, y)
            return losses.sum() if w is None else (w * losses).sum()

        return total

    def solve(self, lam: Tensor, task: Task) -> Tensor:
        """argmin_θ by Newton's method with dense Hessians; plain Newton, so the toys are kept mild."""
        inner = self.inner(task)
        theta = self.start(lam)
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
        return self._second(self.outer(task), theta)

    def _second(self, function: Callable[[Tensor, Tensor], Tensor], theta: Tensor) -> Tensor:
        """∇²_(λ, θ) of a function."""
        blocks = jacrev(jacrev(function, (0, 1)), (0, 1))(self.lam, theta)
        return torch.cat([torch.cat(list(row), dim=1) for row in blocks])

    def at(self, lam: Tensor) -> Reference:
        """The same at another λ, ``[P]``."""
        moved = copy.copy(self)
        moved.lam = lam
        return moved

    def total_gradient(self, task: Task) -> Tensor:
        """Zᵀ ∇L_O."""
        theta = self.solve(self.lam, task)
        return self.chain(task, theta).T @ torch.cat(jacrev(self.outer(task), (0, 1))(self.lam, theta))

    def projected_hessian(self, task: Task) -> Tensor:
        """Zᵀ ∇²L_O Z."""
        theta = self.solve(self.lam, task)
        z = self.chain(task, theta)
        return z.T @ self.joint_hessian(task, theta) @ z

    def total_hessian(self, task: Task) -> Tensor:
        """Zᵀ ∇²(L_O − ⟨u, ∂_θ L_I⟩) Z with u = H_in⁻¹ ∂_θ L_O held fixed."""
        theta = self.solve(self.lam, task)
        z, by_theta = self.chain(task, theta), jacrev(self.inner(task), 1)
        u = torch.linalg.solve(jacrev(by_theta, 1)(self.lam, theta), jacrev(self.outer(task), 1)(self.lam, theta))
        third = self._second(lambda lam, theta: u @ by_theta(lam, theta), theta)
        return z.T @ (self.joint_hessian(task, theta) - third) @ z

    def total_loss(self, lam: Tensor, tasks: list[Task], weights: Tensor, l2: float) -> Tensor:
        """L_Total with every inner problem re-optimised."""
        terms = [w * self.outer(t)(lam, self.solve(lam, t)) for w, t in zip(weights, tasks, strict=True)]
        return sum(terms, torch.zeros((), dtype=torch.float64)) + 0.5 * l2 * lam.square().sum()


class UnrolledReference(Reference):
    """The same where θ_i(λ) is the end of gradient steps from λ, by differentiating through them."""

    def __init__(
        self,
        loss: Callable[..., Tensor],
        lam: Named,
        theta_keys: list[str] | None,
        lr: float,
        steps: int,
        theta_start: Named | None = None,
    ) -> None:
        super().__init__(loss, lam, theta_keys, 0.0, theta_start)
        self.lr, self.steps = lr, steps

    def solve(self, lam: Tensor, task: Task) -> Tensor:
        theta = self.start(lam)
        for _ in range(self.steps):
            theta = theta - self.lr * jacrev(self.inner(task), 1)(lam, theta)
        return theta

    def theta_jacobian(self, task: Task, theta: Tensor) -> Tensor:
        return jacrev(lambda lam: self.solve(lam, task))(self.lam)

    def total_hessian(self, task: Task) -> Tensor:
        return jacrev(jacrev(lambda lam: self.outer(task)(lam, self.solve(lam, task))))(self.lam)


def central_difference(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """Gradient of a scalar function (or Jacobian of a vector one) by central differences."""
    columns = [(function(at + step * e) - function(at - step * e)) / (2 * step) for e in torch.eye(len(at)).to(at)]
    return torch.stack(columns, dim=-1)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
