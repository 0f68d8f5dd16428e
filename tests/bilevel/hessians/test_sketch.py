"""The sketch is an unbiased estimate of the Gauss–Newton matrix, and its solve through its own columns is exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from l2l_influence.bilevel import BilevelProblem, ModelLoss, Task, Unrolled
from l2l_influence.bilevel.hessians import Sketch, Subsample, sketch
from l2l_influence.bilevel.solvers import LowRank
from l2l_influence.bilevel.solvers.base import Shifted
from l2l_influence.bilevel.solvers.neumann import largest_eigenvalue

from ...reference_problems.autograd import (
    SIZE,
    classification,
    classification_tasks,
    network,
    parameters,
    randn,
    relative,
)

LAM = parameters()
EYE = torch.eye(SIZE, dtype=torch.float64)
UNROLLED = Unrolled(lr=0.1, steps=2)
TASKS = classification_tasks(4)


def regression(lam, theta, x, y):
    return F.mse_loss(network({**lam, **theta}, x), torch.eye(3, dtype=x.dtype)[y], reduction="none").sum(-1)


def mean_weights(tasks: list[Task]) -> list[Task]:
    return [Task(t.support, t.query, torch.full((6,), 1 / 6), torch.full((7,), 1 / 7)) for t in tasks]


def matrix(problem: BilevelProblem, tasks: list[Task], kind: object) -> torch.Tensor:
    weights = [1.0, 2.0, 0.5, 1.5][: len(tasks)]
    return problem.total_hessian(LAM, tasks, kind, weights).operator.matvec(EYE)


@pytest.mark.parametrize("loss", [classification, regression])
@pytest.mark.parametrize("reduce", [list, mean_weights], ids=["sum", "mean"])
@pytest.mark.parametrize("theta_keys", [None, ["head"]], ids=["maml", "anil"])
def test_its_mean_tends_to_gauss_newton_at_the_monte_carlo_rate(loss, reduce, theta_keys):
    problem = BilevelProblem(loss, loss, UNROLLED, 0.5, theta_keys)
    tasks = reduce(classification_tasks(2))
    exact = matrix(problem, tasks, "gauss-newton")
    few = [relative(matrix(problem, tasks, Sketch(samples=4, seed=s)), exact) for s in range(8)]
    expected = sum(few) / len(few) * (4 / 64) ** 0.5
    many = [relative(matrix(problem, tasks, Sketch(samples=64, seed=s)), exact) for s in (0, 1)]
    assert 0.6 * expected < sum(many) / 2 < 1.6 * expected


def test_its_solve_equals_the_dense_solve():
    problem = BilevelProblem(classification, classification, UNROLLED, l2=0.3)
    tasks, v = classification_tasks(4), randn(0, SIZE)
    hessian = problem.total_hessian(LAM, tasks, Sketch(samples=3))
    dense = hessian.operator.matvec(EYE) + (0.3 + 0.1) * EYE
    solution = hessian.solve(v, damping=0.1)
    assert relative(solution.value, torch.linalg.solve(dense, v)) < 1e-10
    assert solution.report.solver == "closed form" and bool(solution.report.converged.all())


@pytest.mark.parametrize("kind", [Sketch(samples=3), Subsample(Sketch(samples=3), tasks=2)], ids=["all", "some"])
@pytest.mark.parametrize("iterations", [1, 2, 8])
def test_its_largest_eigenvalue_is_what_power_iteration_finds(kind, iterations):
    operator = BilevelProblem(classification, classification, UNROLLED, 0.5).total_hessian(LAM, TASKS, kind).operator
    like = randn(0, 1, SIZE)
    found = operator.largest_eigenvalue(like, iterations)
    assert relative(found, largest_eigenvalue(Shifted(operator, 0.0), like, iterations)) < 1e-12
    assert float(found) <= float(torch.linalg.eigvalsh(operator.matvec(EYE))[-1]) * (1 + 1e-12)


def test_what_preconditions_is_looked_at_once(monkeypatch):
    """However many systems are solved with it, such as one for each task that is left out."""
    asked = []
    monkeypatch.setattr(
        sketch.torch.linalg, "eigvalsh", lambda a, real=torch.linalg.eigvalsh: asked.append(a) or real(a)
    )
    problem = BilevelProblem(classification, classification, UNROLLED, 0.5)
    hessian = problem.total_hessian(LAM, TASKS, "gauss-newton")
    gram = hessian._sketched.operator.gram()
    for k in range(3):
        hessian.solve_rows(randn(k, 1, SIZE), damping=0.1, without=[[k]])
    assert sum(a is gram for a in asked) == 1


def test_its_gram_matrix_is_made_once(monkeypatch):
    made = []
    monkeypatch.setattr(LowRank, "gram", lambda self, gram=LowRank.gram: made.append(1) or gram(self))
    hessian = BilevelProblem(classification, classification, UNROLLED, 0.5).total_hessian(LAM, TASKS, Sketch(samples=3))
    hessian.largest_eigenvalue(8)
    for damping in (0.1, 1.0, 10.0):
        hessian.solve(randn(0, SIZE), damping=damping)
    assert made == [1]


def test_it_does_not_depend_on_batches_and_repeats_exactly():
    tasks = classification_tasks(4)
    whole = BilevelProblem(classification, classification, UNROLLED, 0.5)
    once, again = (matrix(whole, tasks, Sketch(seed=3)) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, matrix(whole, tasks, Sketch(seed=4)))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    matrix(whole, tasks, Sketch())
    assert torch.equal(torch.get_rng_state(), state)


def test_beyond_its_memory_it_takes_fewer_draws_then_fewer_tasks(monkeypatch):
    problem = BilevelProblem(classification, classification, UNROLLED, 0.5)
    tasks = classification_tasks(4)
    monkeypatch.setattr(sketch, "MOST_ROWS", 8)
    assert len(problem.total_hessian(LAM, tasks, Sketch(samples=16)).operator.rows) == 8
    monkeypatch.setattr(sketch, "MOST_ROWS", 2)
    chosen = [problem.total_hessian(LAM, tasks, Sketch(samples=16, seed=s)).operator for s in range(60)]
    assert all(len(operator.rows) == 2 for operator in chosen)
    # Over many choices of tasks the mean is still the Gauss–Newton matrix of all of them.
    exact = problem.total_hessian(LAM, tasks, "gauss-newton").operator.matvec(EYE)
    mean = sum(operator.matvec(EYE) for operator in chosen) / len(chosen)
    single = sum(relative(operator.matvec(EYE), exact) for operator in chosen) / len(chosen)
    assert relative(mean, exact) < 1.6 * single / len(chosen) ** 0.5


def test_any_convex_criterion_will_do():
    def criterion(outputs, y):
        return outputs.exp().sum(-1) - outputs.gather(1, y[:, None])[:, 0]

    loss = ModelLoss(network, criterion)
    problem = BilevelProblem(loss, loss, UNROLLED, 0.5)
    tasks = classification_tasks(1)
    exact = matrix(problem, tasks, "gauss-newton")
    few = [relative(matrix(problem, tasks, Sketch(samples=4, seed=s)), exact) for s in range(8)]
    assert relative(matrix(problem, tasks, Sketch(samples=64)), exact) < 1.6 * sum(few) / len(few) * (4 / 64) ** 0.5
