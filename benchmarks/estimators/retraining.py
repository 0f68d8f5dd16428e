"""Both levels optimised for any weights of tasks and samples: what estimators are held against.

Nothing here is the package's but the loss: gradients come from automatic differentiation of plain functions, the
proximal inner problems from Newton's method with their Hessians written out, the total Hessian from finite differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from l2l_influence.bilevel import Unrolled

from .worlds import Named, Stacked, World, criterion, features, network

GRADIENT = 1e-9
"""‖D_λ L_Total‖ that is aimed at."""


class Weights(NamedTuple):
    """Of tasks ``[N]``, of support samples ``[N, n]`` and of query samples ``[N, n]``."""

    task: Tensor
    support: Tensor
    query: Tensor

    @staticmethod
    def of(tasks: Stacked) -> Weights:
        means = [torch.full(y.shape, 1 / y.shape[1], dtype=torch.float64) for y in (tasks.support_y, tasks.query_y)]
        return Weights(torch.ones(len(tasks), dtype=torch.float64), *means)


@dataclass(frozen=True)
class Optimum:
    """λ ``[P]`` and the ‖D_λ L_Total‖ that is left there."""

    lam: Tensor
    gradient: float


class Retraining:
    """L_Total of ``world``, and its minimum for any weights."""

    def __init__(self, world: World) -> None:
        self.world, self._layout = world, world.layout
        self._adapted = world.adapted or list(world.start)

    # ---- one level up -----------------------------------------------------------------------------------------

    def total(self, lam: Tensor, weights: Weights) -> tuple[float, Tensor]:
        """L_Total and D_λ L_Total, ``[P]``."""
        losses, gradient = self._outer(lam, self.world.train, weights)
        l2 = self.world.l2
        return float((weights.task * losses).sum() + 0.5 * l2 * lam @ lam), gradient + l2 * lam

    def losses(self, lam: Tensor, tasks: Stacked) -> Tensor:
        """Query loss of each task after adaptation, ``[N]``."""
        return self._outer(lam, tasks, Weights.of(tasks))[0]

    def hessian(self, lam: Tensor, step: float = 1e-5) -> Tensor:
        """D²_λ L_Total, ``[P, P]``, by central differences of the gradient."""
        weights = Weights.of(self.world.train)
        steps = step * torch.eye(len(lam)).to(lam)
        ends = [self.total(lam + e, weights)[1] - self.total(lam - e, weights)[1] for e in steps]
        columns = torch.stack(ends) / (2 * step)
        return (columns + columns.T) / 2

    def optimum(self, start: Tensor, weights: Weights, metric: Tensor | None = None) -> Optimum:
        """By L-BFGS from ``start``, in coordinates y with λ = start + metric · y, and Newton steps at the end."""
        basis = torch.eye(len(start)).to(start) if metric is None else metric

        def along(y: object) -> tuple[float, object]:
            value, gradient = self.total(start + basis @ torch.as_tensor(y), weights)
            return value, (basis.T @ gradient).numpy()

        options = {"maxiter": 3000, "maxfun": 6000, "maxcor": 30, "gtol": GRADIENT / 10, "ftol": 1e-15}
        found = minimize(along, torch.zeros_like(start).numpy(), jac=True, method="L-BFGS-B", options=options)
        return self._polished(start + basis @ torch.as_tensor(found.x), weights, basis)

    def trained(self) -> tuple[Optimum, Tensor]:
        """λ* from the world's start, and the exact total Hessian with δ_o there."""
        weights = Weights.of(self.world.train)
        found = self.optimum(self._layout.ravel(self.world.start), weights)
        for _ in range(10):
            hessian = self.hessian(found.lam)
            if found.gradient <= GRADIENT and float(torch.linalg.eigvalsh(hessian)[0]) > 0:
                return found, hessian
            found = self.optimum(found.lam, weights, whitening(hessian))
        raise ArithmeticError(f"{self.world.name}: training ended where the gradient is {found.gradient:.1e}")

    def _polished(self, lam: Tensor, weights: Weights, basis: Tensor) -> Optimum:
        """With a fixed matrix in place of the Hessian, as long as that helps: a line search drowns in rounding."""
        gradient = self.total(lam, weights)[1]
        for _ in range(30):
            there = lam - basis @ (basis.T @ gradient)
            slope = self.total(there, weights)[1]
            if not slope.norm() < 0.9 * gradient.norm():
                break
            lam, gradient = there, slope
        return Optimum(lam, float(gradient.norm()))

    # ---- one level down ---------------------------------------------------------------------------------------

    def _outer(self, lam: Tensor, tasks: Stacked, weights: Weights) -> tuple[Tensor, Tensor]:
        """L_O of each task, ``[N]``, and D_λ Σ_i c_i L_O^i, ``[P]``."""
        flat = lam.detach().clone().requires_grad_()
        named = self._layout.unravel(flat)
        if isinstance(self.world.kind, Unrolled):
            theta = self._stepped(named, tasks, weights.support)
            losses = _loss(named | theta, tasks.query_x, tasks.query_y, weights.query)
            surrogate = (weights.task * losses).sum()
        else:
            losses, surrogate = self._implicit(named, tasks, weights)
        return losses.detach(), torch.autograd.grad(surrogate, flat)[0]

    def _prior(self, named: Named, count: int) -> Named:
        return {key: named[key].expand(count, *named[key].shape) for key in self._adapted}

    def _stepped(self, named: Named, tasks: Stacked, support: Tensor) -> Named:
        """θ after the gradient steps, as a function of λ."""
        kind = self.world.kind
        theta = self._prior(named, len(tasks))
        for _ in range(kind.steps):
            inner = _loss(named | theta, tasks.support_x, tasks.support_y, support).sum()
            slopes = torch.autograd.grad(inner, list(theta.values()), create_graph=True)
            theta = {key: theta[key] - kind.lr * slope for key, slope in zip(theta, slopes, strict=True)}
        return theta

    def _implicit(self, named: Named, tasks: Stacked, weights: Weights) -> tuple[Tensor, Tensor]:
        """L_O of each task, and a function whose gradient by λ at fixed θ and u is D_λ Σ_i c_i L_O^i:
        L_O − ⟨u, ∂_θ L_I⟩ with u = H_in⁻¹ ∂_θ L_O."""
        head = ProximalHead(named, tasks.support_x, tasks.support_y, weights.support, self.world.kind.delta)
        theta = head.minimum()
        asked = theta.clone().requires_grad_()
        losses = _loss(named | head.named(asked), tasks.query_x, tasks.query_y, weights.query)
        by_theta = torch.autograd.grad(losses.sum(), asked, retain_graph=True)[0]
        u = torch.linalg.solve(head.hessian(theta), by_theta.unsqueeze(-1)).squeeze(-1)
        return losses, (weights.task * (losses - (u * head.slope(theta)).sum(-1))).sum()


class ProximalHead:
    """min_θ Σ_j w_j ℓ(z_j) + (δ/2) ‖θ − λ_θ‖² of each task, over linear softmax heads on given features.

    θ is ``[N, C·(F + 1)]``: for each class its weights and its bias.
    """

    def __init__(self, named: Named, x: Tensor, y: Tensor, w: Tensor, delta: float) -> None:
        hidden = features(named, x)
        self._features = torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1)
        self._classes = len(named["head.bias"])
        self._prior = torch.cat([named["head.weight"], named["head.bias"].unsqueeze(1)], 1).flatten()
        self._labels = F.one_hot(y, self._classes).to(w)
        self._w, self._delta = w.unsqueeze(-1), delta

    def named(self, theta: Tensor) -> Named:
        rows = theta.unflatten(-1, (self._classes, -1))
        return {"head.weight": rows[..., :-1], "head.bias": rows[..., -1]}

    def slope(self, theta: Tensor) -> Tensor:
        """∂_θ L_I, as a function of λ."""
        by_outputs = self._w * (self._predicted(theta) - self._labels)
        return (by_outputs.mT @ self._features).flatten(1) + self._delta * (theta - self._prior)

    def hessian(self, theta: Tensor) -> Tensor:
        """∂_θθ L_I, ``[N, Q, Q]``."""
        p, phi = self._predicted(theta).detach(), self._features.detach()
        curvature = self._w.unsqueeze(-1) * (torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2))
        pairs = phi.unsqueeze(-1) * phi.unsqueeze(-2)
        blocks = curvature.flatten(2).mT @ pairs.flatten(2)  # [N, C·C, F·F]
        wide = blocks.unflatten(1, curvature.shape[-2:]).unflatten(3, pairs.shape[-2:]).transpose(2, 3)
        return wide.flatten(3).flatten(1, 2) + self._delta * torch.eye(theta.shape[1]).to(phi)

    @torch.no_grad()
    def minimum(self) -> Tensor:
        theta = self._prior.expand(len(self._labels), -1)
        for _ in range(50):
            slope = self.slope(theta)
            if float(slope.norm(dim=-1).max()) < 1e-13:
                return theta
            theta = theta - torch.linalg.solve(self.hessian(theta), slope.unsqueeze(-1)).squeeze(-1)
        raise ArithmeticError(f"Newton's method left inner gradients of {float(slope.norm(dim=-1).max()):.1e}")

    def _predicted(self, theta: Tensor) -> Tensor:
        return (self._features @ theta.unflatten(-1, (self._classes, -1)).mT).softmax(-1)


def whitening(hessian: Tensor) -> Tensor:
    """Columns in which a positive definite Hessian is the identity; directions of other curvature are tamed."""
    values, vectors = torch.linalg.eigh(hessian)
    return vectors / values.abs().clamp_min(1e-4 * float(values[-1])).sqrt()


def _loss(parameters: Named, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (w * criterion(network(parameters, x), y)).sum(-1)
