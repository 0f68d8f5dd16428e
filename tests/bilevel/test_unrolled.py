"""The unrolled kind as the batched core uses it: many tasks at once, on networks with normalisation layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l_influence.bilevel import BilevelProblem, FunctionalModel, ModelLoss, Task, Unrolled
from l2l_influence.bilevel.local import SolvedBatch

LR, STEPS = 0.1, 2
NORMS = {
    "batch": nn.BatchNorm1d(6, track_running_stats=False),
    "batch, tracked": nn.BatchNorm1d(6),
    "layer": nn.LayerNorm(6),
    "none": nn.Identity(),
}


def solved_batch(norm: str = "batch") -> SolvedBatch:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), copy.deepcopy(NORMS[norm]), nn.Tanh(), nn.Linear(6, 3))
    model = FunctionalModel(net.double())
    loss = ModelLoss(model, lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
    x, y = torch.randn(3, 10, 4, dtype=torch.float64), torch.arange(10) % 3
    mean = torch.full((5,), 0.2, dtype=torch.float64)
    tasks = [Task((rows[:5], y[:5]), (rows[5:], y[5:]), mean, mean) for rows in x]
    return next(BilevelProblem(loss, loss, Unrolled(LR, STEPS), 0.0).at(model.parameters, tasks).solved())


def jacobian(at: SolvedBatch, task: int) -> Tensor:
    """dθ/dλ of one task by central differences of plain gradient steps on it alone."""
    layout, loss = at.outer._lam_layout, at.outer._loss
    x, y = at.batch.support.x[task], at.batch.support.y[task]

    def adapt(lam: Tensor) -> Tensor:
        theta = lam
        for _ in range(STEPS):
            theta = theta.detach().requires_grad_()
            value = loss({}, layout.unravel(theta), x, y).mean()
            theta = theta - LR * torch.autograd.grad(value, theta)[0]
        return theta.detach()

    step, columns = 1e-6, []
    for direction in torch.eye(at.lam.numel(), dtype=torch.float64):
        columns.append((adapt(at.lam + step * direction) - adapt(at.lam - step * direction)) / (2 * step))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("norm", NORMS)
def test_products_are_those_of_the_jacobian(norm: str) -> None:
    at = solved_batch(norm)
    v = torch.randn(3, at.lam.numel(), dtype=torch.float64)
    for task in range(3):
        dense = jacobian(at, task)
        torch.testing.assert_close(at.solution.jvp(v)[task], dense @ v[task], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(at.solution.vjp(v)[task], dense.T @ v[task], rtol=1e-6, atol=1e-7)


def test_results_hold_no_graph() -> None:
    at = solved_batch()
    v = torch.randn(3, at.lam.numel(), dtype=torch.float64)
    assert not at.solution.jvp(v).requires_grad
    assert not at.solution.vjp(v).requires_grad
    assert not at.total_gradient.requires_grad
