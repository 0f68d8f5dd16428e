"""The unrolled kind as the batched core uses it: many tasks at once, on networks with normalisation layers; and its
total gradients against learn2learn's own backward."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l_influence.bilevel import BilevelProblem, FunctionalModel, ModelLoss, Task, Unrolled
from l2l_influence.bilevel.solved_tasks import SolvedBatch

from ...reference_problems.autograd import randn, relative
from .maml_loops import LR, STEPS_AND_ORDERS, backward, convolutional, gradients, headed, mean_tasks, mlp

STEPS = 2
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
    return next(BilevelProblem(loss, loss, Unrolled(LR, STEPS), 0.0).at(model.parameters, tasks).microbatches())


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


@STEPS_AND_ORDERS
@pytest.mark.parametrize("build, shape", [(mlp, (4,)), (convolutional, (1, 6, 6))], ids=["mlp", "convolutional"])
def test_total_gradients_are_what_maml_leaves_in_grad(build, shape, steps, first_order):
    torch.manual_seed(0)
    module, tasks = build().double(), mean_tasks(*shape)
    found = gradients(module, tasks, Unrolled(LR, steps, first_order))
    for row, task in zip(found, tasks, strict=True):
        assert relative(row, backward(module, nn.Identity(), module, task, steps, first_order)) < 1e-10


@STEPS_AND_ORDERS
def test_total_gradients_are_what_anil_leaves_in_grad(steps, first_order):
    torch.manual_seed(0)
    module, tasks = headed().double(), mean_tasks(4)
    found = gradients(module, tasks, Unrolled(LR, steps, first_order), ["head.weight", "head.bias"])
    for row, task in zip(found, tasks, strict=True):
        assert relative(row, backward(module, module.body, module.head, task, steps, first_order)) < 1e-10


def test_first_order_finds_the_same_theta_and_carries_it_with_lambda():
    torch.manual_seed(0)
    loss = ModelLoss(FunctionalModel(mlp().double()), lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
    task = mean_tasks(4)[0]
    whole, first = (
        BilevelProblem(loss, loss, Unrolled(LR, 3, first_order), 0.0).solve_inner(loss.model.parameters, task)
        for first_order in (False, True)
    )
    assert all(torch.equal(first.theta[key], value) for key, value in whole.theta.items())
    v = randn(1, sum(value.numel() for value in first.theta.values()))
    assert torch.equal(first.jvp(v), v)
    assert torch.equal(first.vjp(v), v)


@pytest.mark.parametrize("theta_keys", [None, ["head.weight", "head.bias"]], ids=["maml", "anil"])
def test_first_order_gradient_by_support_weight(theta_keys):
    torch.manual_seed(0)
    module, (task, *_) = headed().double(), mean_tasks(4)
    loss = ModelLoss(FunctionalModel(module), lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
    problem, lam = BilevelProblem(loss, loss, Unrolled(LR, 3, first_order=True), 0.0, theta_keys), loss.model.parameters
    e = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)

    def gradient(relative_weight: float) -> Tensor:
        weights = task.support_weights * (1 + relative_weight * e[0])
        return gradients(module, [replace(task, support_weights=weights)], problem.kind, theta_keys)

    expected = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    assert relative(problem.at(lam, [task]).one(0).gradient_by_support(e), expected) < 1e-6
