"""Total gradients of proximal inner problems: δ (∇²L_I + δI)⁻¹ ∇L_O at θ_i, where all are placed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor, nn

from l2l_influence.bilevel import Proximal, Task
from l2l_influence.bilevel.inner import InnerKind, InnerProblem, ProximalMap
from l2l_influence.bilevel.inner.minimise import Minimum

from .contest import Contest, Contestant
from .worlds import World, flat, like

RESIDUAL = 1e-3

Product = Callable[[Tensor], Tensor]
"""With a task's matrix: ``[P] -> [P]``."""


@dataclass(frozen=True)
class Placed(InnerKind):
    """θ_i is where tasks start, and differentiated as the minimum would be."""

    kind: Proximal

    def work(self, forward: int, lam: int, rows: int) -> int:
        return self.kind.work(forward, lam, rows)

    def solve(self, problem: InnerProblem) -> ProximalMap:
        nothing = torch.zeros(len(problem.start)).to(problem.start)
        return ProximalMap(problem, Minimum(problem.start, nothing, 0), self.kind, RESIDUAL)


def contest(world: World) -> Contest:
    return Contest(
        "total gradients, implicit",
        [
            Contestant("l2l_influence, cg", lambda: ours(world, "cg")),
            Contestant("l2l_influence, cg+gram", lambda: ours(world, "cg+gram")),
            Contestant("TorchOpt, solve_cg", lambda: torchopt_gradients(world, "cg"), "torchopt"),
            Contestant("TorchOpt, solve_normal_cg", lambda: torchopt_gradients(world, "normal_cg"), "torchopt"),
            Contestant("autograd and SciPy's cg", lambda: scipy_gradients(world)),
        ],
        lambda gradients: residual(world, gradients / world.delta, hessian),
        RESIDUAL,
    )


def ours(world: World, inverse: str) -> Tensor:
    return world.gradients(Placed(Proximal(world.delta, inverse)))


def scipy_gradients(world: World) -> Tensor:
    """The loop that one writes: a double backward a product, its graph kept; one solve a task."""
    return torch.stack([_scipy_gradient(world.delta, *placed) for placed in world.placed()])


def _scipy_gradient(delta: float, module: nn.Module, task: Task) -> Tensor:
    product, b = hessian(module, task), query_gradient(module, task)

    def matvec(v: np.ndarray) -> np.ndarray:
        return (product(torch.from_numpy(v)) + delta * torch.from_numpy(v)).numpy()

    operator = LinearOperator((len(b), len(b)), matvec, dtype=np.float32)
    return delta * torch.from_numpy(cg(operator, b.numpy(), rtol=RESIDUAL)[0])


def torchopt_gradients(world: World, solver: str) -> Tensor:
    """As its iMAML example does it: an ``ImplicitMetaGradientModule`` around the network, a task after the other."""
    return torch.stack(list(_torchopt_gradients(world, solver)))


def _torchopt_gradients(world: World, solver: str) -> Iterator[Tensor]:
    adapted = _torchopt_module(solver)(world.module, world.delta)
    for task, theta in zip(world.tasks, world.theta, strict=True):
        adapted.place(theta)
        adapted.solve(*task.support)
        x, y = task.query
        yield flat(torch.autograd.grad(F.cross_entropy(adapted(x), y), list(world.module.parameters())))


def _torchopt_module(solver: str) -> Callable[[nn.Module, float], nn.Module]:
    import torchopt

    solve = getattr(torchopt.linear_solve, f"solve_{solver}")(rtol=RESIDUAL)

    class Adapted(torchopt.nn.ImplicitMetaGradientModule, linear_solve=solve):
        def __init__(self, network: nn.Module, delta: float) -> None:
            super().__init__()
            self.meta, self.delta = network, delta
            self.net = torchopt.module_clone(network, by="deepcopy")

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def objective(self, x: Tensor, y: Tensor) -> Tensor:
            pairs = zip(self.parameters(), self.meta_parameters(), strict=True)
            return F.cross_entropy(self(x), y) + 0.5 * self.delta * sum((a - b).square().sum() for a, b in pairs)

        def place(self, theta: Tensor) -> None:
            for parameter, value in zip(self.parameters(), like(theta, self.parameters()), strict=True):
                parameter.data.copy_(value)
                parameter.detach_().requires_grad_()

        def solve(self, x: Tensor, y: Tensor) -> nn.Module:
            return self  # θ_i is in place

    return Adapted


def residual(world: World, solutions: Tensor, curvature: Callable[[nn.Module, Task], Product]) -> Tensor:
    """‖∇L_O − (C + δI) x‖ / ‖∇L_O‖ of each x, for the task's own C, by an exact product."""
    return torch.stack(
        [_residual(world.delta, x, curvature, *at) for x, at in zip(solutions, world.placed(), strict=True)]
    )


def _residual(
    delta: float, x: Tensor, curvature: Callable[[nn.Module, Task], Product], module: nn.Module, task: Task
) -> Tensor:
    b = query_gradient(module, task)
    return (b - curvature(module, task)(x) - delta * x).norm() / b.norm()


def query_gradient(module: nn.Module, task: Task) -> Tensor:
    x, y = task.query
    return flat(torch.autograd.grad(F.cross_entropy(module(x), y), list(module.parameters())))


def hessian(module: nn.Module, task: Task) -> Product:
    """Products with ∇²L_I of the support set."""
    x, y = task.support
    parameters = list(module.parameters())
    slope = flat(torch.autograd.grad(F.cross_entropy(module(x), y), parameters, create_graph=True))
    return lambda v: flat(torch.autograd.grad(slope, parameters, v, retain_graph=True))
