"""Total gradients and Hessians against re-optimisation and dense algebra."""

from __future__ import annotations

import pytest
import torch

from l2l_influence.bilevel import BilevelProblem, Task, Unrolled
from l2l_influence.errors import LossStructureError, NotConvergedError, TaskShapeError

from ..reference_problems.autograd import (
    SIZE,
    Reference,
    central_difference,
    classification,
    classification_tasks,
    network,
    parameters,
    randn,
    relative,
)

DELTA = 3.0
KEYS = pytest.mark.parametrize("theta_keys", [None, ["head"]], ids=["maml", "anil"])


def problem(theta_keys: list[str] | None, **options: object) -> BilevelProblem:
    return BilevelProblem(
        classification, classification, DELTA, l2=0.5, theta_keys=theta_keys, inner_tolerance=1e-12, **options
    )


@KEYS
@pytest.mark.parametrize("inner_solver", ["cg", "dense"])
def test_total_gradient_is_the_derivative_of_the_reoptimised_outer_loss(theta_keys, inner_solver):
    lam, (task,) = parameters(), classification_tasks(1)
    reference = Reference(classification, lam, theta_keys, DELTA)
    expected = central_difference(lambda l: reference.outer(task)(l, reference.solve(l, task)), reference.lam)
    found = reference.layout.ravel(problem(theta_keys, inner_solver=inner_solver).total_gradient(lam, task))
    assert relative(found, expected) < 1e-6


@KEYS
def test_inner_solution_and_its_jacobian(theta_keys):
    lam, (task,) = parameters(), classification_tasks(1)
    reference = Reference(classification, lam, theta_keys, DELTA)
    solution = problem(theta_keys).solve_inner(lam, task)
    theta = reference.solve(reference.lam, task)
    assert relative(reference.part.ravel(solution.theta), theta) < 1e-10
    assert solution.residual < 1e-12

    jacobian = central_difference(lambda l: reference.solve(l, task), reference.lam)
    v, u = randn(1, reference.layout.size), randn(2, reference.part.size)
    assert relative(solution.jvp(v), jacobian @ v) < 1e-6
    assert relative(solution.vjp(u), jacobian.T @ u) < 1e-6
    named = solution.jvp(reference.layout.unravel(v))
    assert torch.equal(reference.part.ravel(named), solution.jvp(v))


@KEYS
def test_unrolled_total_gradient(theta_keys):
    lam, (task,) = parameters(), classification_tasks(1)
    reference = Reference(classification, lam, theta_keys, DELTA)

    def adapted(l):
        theta = l[reference.where]
        support = reference._sum(*task.support, None)
        for _ in range(3):
            theta = theta - 0.1 * torch.autograd.functional.jacobian(lambda t: support(l, t), theta)
        return theta

    unrolled = BilevelProblem(classification, classification, Unrolled(lr=0.1, steps=3), 0.5, theta_keys)
    expected = central_difference(lambda l: reference.outer(task)(l, adapted(l)), reference.lam)
    assert relative(reference.layout.ravel(unrolled.total_gradient(lam, task)), expected) < 1e-6
    solution = unrolled.solve_inner(lam, task)
    jacobian = central_difference(adapted, reference.lam)
    v, u = randn(1, reference.layout.size), randn(2, reference.part.size)
    assert relative(solution.jvp(v), jacobian @ v) < 1e-6
    assert relative(solution.vjp(u), jacobian.T @ u) < 1e-6


def dense(operator, size: int) -> torch.Tensor:
    return torch.stack([operator @ e for e in torch.eye(size, dtype=torch.float64)], dim=1)


@KEYS
def test_gauss_newton_hessian_equals_dense_algebra(theta_keys):
    lam, tasks = parameters(), classification_tasks(3)
    weights = [1.0, 2.0, 0.5]
    reference = Reference(classification, lam, theta_keys, DELTA)
    expected = torch.zeros(reference.layout.size, reference.layout.size, dtype=torch.float64)
    for weight, task in zip(weights, tasks, strict=True):
        theta = reference.solve(reference.lam, task)
        z = reference.chain(task, theta)
        outputs = torch.autograd.functional.jacobian(
            lambda l, t, x=task.query[0]: network({**reference.layout.unravel(l), **reference.part.unravel(t)}, x),
            (reference.lam, theta),
        )
        j = torch.cat([block.flatten(0, 1) for block in outputs], dim=1) @ z
        p = network({**lam, **reference.part.unravel(theta)}, task.query[0]).softmax(-1)
        curvature = torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p))
        expected += weight * j.T @ curvature @ j
    found = dense(problem(theta_keys).total_hessian(lam, tasks, "gauss-newton", weights), reference.layout.size)
    assert relative(found, expected) < 1e-8
    assert relative(found, found.T) < 1e-10


@KEYS
def test_gamma_hessian_equals_dense_algebra(theta_keys):
    lam, tasks = parameters(), classification_tasks(3)
    reference = Reference(classification, lam, theta_keys, DELTA)
    size = reference.layout.size
    expected = torch.zeros(size, size, dtype=torch.float64)
    for task in tasks:
        theta = reference.solve(reference.lam, task)
        joint = reference.joint_hessian(task, theta)
        cross = reference.theta_jacobian(task, theta).T @ joint[size:, :size]
        slope = torch.autograd.functional.jacobian(lambda t, task=task: reference.outer(task)(reference.lam, t), theta)
        expected += joint[:size, :size] + cross + cross.T + slope.abs().sum() * torch.eye(size, dtype=torch.float64)
    found = dense(problem(theta_keys).total_hessian(lam, tasks, "gamma"), size)
    assert relative(found, expected) < 1e-8


def test_gamma_is_a_multiple_of_the_identity_without_direct_dependence():
    lam, tasks = parameters(), classification_tasks(3)
    found = dense(problem(None).total_hessian(lam, tasks, "gamma"), SIZE)
    assert torch.allclose(found, found[0, 0] * torch.eye(SIZE, dtype=torch.float64), atol=1e-12)
    assert found[0, 0] > 0


def test_batches_of_any_size_and_mixed_shapes_give_the_same_products():
    lam = parameters()
    tasks = classification_tasks(5)
    tasks[2] = Task((tasks[2].support[0][:4], tasks[2].support[1][:4]), tasks[2].query)
    v = randn(3, SIZE)
    whole = problem(None).total_hessian(lam, tasks) @ v
    singly = sum(problem(None).total_hessian(lam, [task]) @ v for task in tasks)
    starved = problem(None, memory=1).total_hessian(lam, tasks) @ v
    assert relative(whole, singly) < 1e-10
    assert relative(starved, singly) < 1e-10


def test_gram_is_exact_where_outputs_are_linear_in_theta():
    lam, (task,) = parameters(), classification_tasks(1)
    exact = problem(["head"], inner_solver="dense").total_gradient(lam, task)
    gram = problem(["head"], inner_solver="gram").total_gradient(lam, task)
    assert all(relative(gram[key], exact[key]) < 1e-8 for key in lam)


def test_sample_weights_scale_the_losses():
    lam, (task,) = parameters(), classification_tasks(1)
    halved = Task(task.support, task.query, torch.full((6,), 0.5), torch.full((7,), 0.5))
    weak = BilevelProblem(classification, classification, 2 * DELTA, 0.5, inner_tolerance=1e-12)
    strong = BilevelProblem(classification, classification, DELTA, 0.5, inner_tolerance=1e-12)
    twice, once = weak.total_gradient(lam, task), strong.total_gradient(lam, halved)
    assert all(relative(2 * once[key], twice[key]) < 1e-9 for key in lam)


def test_gauss_newton_needs_to_see_the_outputs():
    def opaque(lam, theta, x, y):
        return (network(theta, x).logsumexp(-1) - network(theta, x).gather(1, y[:, None])[:, 0]).abs()

    lam, tasks = parameters(), classification_tasks(2)
    hidden = BilevelProblem(opaque, opaque, DELTA, 0.5)
    with pytest.raises(LossStructureError, match="ModelLoss"):
        hidden.total_hessian(lam, tasks, "gauss-newton") @ randn(0, SIZE)


def test_bad_input_is_refused_at_the_door():
    lam, tasks = parameters(), classification_tasks(2)
    with pytest.raises(TaskShapeError, match="weights"):
        problem(None).total_hessian(lam, tasks, weights=[1.0])
    with pytest.raises(TaskShapeError, match="rows"):
        Task((randn(0, 3, 4), torch.zeros(2)), tasks[0].query)
    with pytest.raises(TaskShapeError, match="one value per sample"):
        mean = BilevelProblem(lambda *a: classification(*a).mean(), classification, DELTA, 0.5)
        mean.solve_inner(lam, tasks[0])
    with pytest.raises(TaskShapeError, match="theta_keys"):
        problem(["nothing"]).solve_inner(lam, tasks[0])
    with pytest.raises(IndexError, match="task 2 is out of range"):
        problem(None).task_influence(lam, tasks, 2)
    with pytest.raises(ValueError, match="positive"):
        BilevelProblem(classification, classification, 0.0, 0.5)
    with pytest.raises(ValueError, match="kind"):
        problem(None).total_hessian(lam, tasks, "fancy")


def test_an_inner_problem_that_is_not_solved_is_an_error():
    def steep(lam, theta, x, y):
        return -(theta["body"].sum() ** 4) * torch.ones(len(y), dtype=torch.float64)

    with pytest.raises(NotConvergedError, match="inner problem"):
        BilevelProblem(steep, classification, 0.1, 0.5).solve_inner(parameters(), classification_tasks(1)[0])
