"""The search for the inner minimum, row by row."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, hessian, vmap

from l2l_influence.bilevel import CG, BilevelProblem, Proximal, Task
from l2l_influence.bilevel.inner.minimise import minimise
from l2l_influence.errors import NotConvergedError

from ...reference_problems.autograd import classification, classification_tasks, generator, parameters, randn, relative
from ..systems import Matrices


def search(function, start, data=(), tolerance=1e-10, max_iterations=200, scale=None):
    """Newton by CG on ``function(point, *data)`` for one row, mapped over rows; also where it was asked for values."""
    asked = []

    def value(points):
        asked.append(points)
        return vmap(function)(points, *data)

    def slope(points):
        return vmap(grad(function))(points, *data)

    def direction(points, slopes):
        return -CG(1e-2, 100).solve(Matrices(vmap(hessian(function))(points, *data)), slopes).value

    scale = torch.ones(len(start)).to(start) if scale is None else scale
    return minimise(value, slope, direction, start, scale, tolerance, max_iterations), asked


def quadratic(point, matrix, linear):
    return 0.5 * point @ matrix @ point - linear @ point


def rosenbrock(point):
    return (1 - point[0]) ** 2 + 100 * (point[1] - point[0] ** 2) ** 2


def two_wells(point, tilt):
    return ((point.square() - 1).square()).sum() + tilt @ point


def test_ill_conditioned_convex_rows():
    eigenvalues = torch.stack([10.0 ** -(k * torch.linspace(0, 1, 8, dtype=torch.float64)) for k in (0, 2, 4)])
    q = torch.linalg.qr(randn(0, 3, 8, 8)).Q
    matrices, linear = q @ torch.diag_embed(eigenvalues) @ q.mT, randn(1, 3, 8)
    found, _ = search(quadratic, torch.zeros(3, 8, dtype=torch.float64), (matrices, linear))
    assert found.iterations <= 20
    assert bool((found.residual <= 1e-10).all())
    gradient = (matrices @ found.point.unsqueeze(-1)).squeeze(-1) - linear
    assert torch.allclose(found.residual, gradient.norm(dim=-1), atol=1e-11)


def test_curved_valleys_are_followed():
    starts = torch.tensor([[-1.2, 1.0], [2.0, -3.0], [0.0, 5.0]], dtype=torch.float64)
    found, _ = search(rosenbrock, starts)
    assert torch.allclose(found.point, torch.ones(3, 2, dtype=torch.float64), atol=1e-8)


def test_nonconvex_rows_end_in_minima():
    """From next to the maximum at 0, where Newton's own step would climb back to it."""
    starts, tilts = 0.05 * randn(0, 6, 4), 0.1 * randn(1, 6, 4)
    found, _ = search(two_wells, starts, (tilts,))
    assert bool((found.residual <= 1e-10).all())
    curvature = torch.linalg.eigvalsh(vmap(hessian(two_wells))(found.point, tilts))
    assert bool((curvature > 1).all())
    assert bool((vmap(two_wells)(found.point, tilts) < vmap(two_wells)(starts, tilts)).all())


def test_rows_at_their_minimum_stay_there_and_cost_nothing():
    found, asked = search(rosenbrock, torch.ones(2, 2, dtype=torch.float64))
    assert found.iterations == 0 and torch.equal(found.point, torch.ones(2, 2, dtype=torch.float64))
    assert len(asked) == 1
    mixed = torch.tensor([[1.0, 1.0], [-1.2, 1.0]], dtype=torch.float64)
    found, asked = search(rosenbrock, mixed)
    assert torch.equal(found.point[0], mixed[0])
    assert all(torch.equal(points[0], mixed[0]) for points in asked)


def test_values_that_are_not_numbers_shorten_the_step():
    """−log is not a number left of 0, where Newton's full step from a point far out leads."""

    def barrier(point, weight):
        return (weight * point - torch.log(point)).sum()

    starts = torch.tensor([[5.0], [0.9], [1e3]], dtype=torch.float64)
    weights = torch.tensor([[1.0], [1.0], [2.0]], dtype=torch.float64)
    found, asked = search(barrier, starts, (weights,))
    assert any(bool((points < 0).any()) for points in asked)
    assert torch.allclose(found.point, 1 / weights, atol=1e-8)


def test_a_row_that_is_not_a_number_is_reported_and_leaves_the_others_alone():
    starts = torch.tensor([[float("nan"), 1.0], [-1.2, 1.0]], dtype=torch.float64)
    found, asked = search(rosenbrock, starts)
    assert bool(found.residual[0].isnan())
    assert torch.allclose(found.point[1], torch.ones(2, dtype=torch.float64))
    alone, asked_alone = search(rosenbrock, starts[1:])
    assert torch.allclose(found.point[1:], alone.point) and len(asked) == len(asked_alone)


def test_directions_that_are_no_descent_fall_back_to_the_gradient():
    for bad in (float("nan"), float("inf"), 1.0):
        found = minimise(
            lambda p: 0.3 * p.square().sum(-1),
            lambda p: 0.6 * p,
            lambda p, s, bad=bad: bad * s,  # 1.0: uphill
            randn(0, 3, 4),
            torch.ones(3, dtype=torch.float64),
            1e-8,
            200,
        )
        assert bool((found.residual <= 1e-8).all())


def test_kinks_end_the_search_and_are_reported():
    """|x| has its minimum where no gradient vanishes: no row may pass as solved, none may run on for ever."""

    def kinked(point, slope):
        return (slope * point).abs().sum() + 0.5 * point.square().sum()

    found, _ = search(kinked, 1 + randn(0, 3, 5).abs(), (1 + randn(1, 3, 5).abs(),), max_iterations=1000)
    assert found.iterations < 100
    assert bool((found.residual > 0.1).all())


def test_a_row_does_not_depend_on_the_batch_it_is_in():
    starts = torch.cat(
        [torch.tensor([[-1.2, 1.0], [1.0, 1.0], [30.0, -3.0]]), 3 * torch.randn(5, 2, generator=generator(0))]
    )
    starts = starts.double()
    together, _ = search(rosenbrock, starts, tolerance=1e-6)
    for i in range(len(starts)):
        alone, _ = search(rosenbrock, starts[i : i + 1], tolerance=1e-6)
        assert torch.allclose(together.point[i], alone.point[0], rtol=1e-12, atol=1e-14)
        assert torch.allclose(together.residual[i], alone.residual[0], rtol=1e-3, atol=1e-12)


def test_a_lower_budget_gives_the_best_point_so_far():
    starts = torch.tensor([[-1.2, 1.0]], dtype=torch.float64)
    found, _ = search(rosenbrock, starts, max_iterations=4)
    assert found.iterations == 4
    slope = vmap(grad(rosenbrock))(found.point).norm()
    assert torch.allclose(found.residual, slope.reshape(1)) and slope < vmap(grad(rosenbrock))(starts).norm()


# ---- through the inner problem -----------------------------------------------------------------------------------

DELTA = 3.0


def problem(**options):
    return BilevelProblem(classification, classification, DELTA, 0.5, inner_tolerance=1e-11, **options)


def test_warm_starts_change_where_the_search_begins_and_not_where_it_ends():
    lam, (task,) = parameters(), classification_tasks(1)
    cold = problem().solve_inner(lam, task)
    near = {key: value + 1e-3 * randn(3, *value.shape) for key, value in cold.theta.items()}
    for start in (near, cold.theta, {key: torch.zeros_like(value) for key, value in lam.items()}):
        warm = problem().solve_inner(lam, Task(task.support, task.query, start=start))
        assert all(relative(warm.theta[key], cold.theta[key]) < 1e-9 for key in lam)
        assert warm.residual <= 1e-11


def test_the_inner_solution_does_not_depend_on_the_batch():
    lam, tasks = parameters(), classification_tasks(6)
    (together,) = problem().at(lam, tasks).microbatches()
    for i, task in enumerate(tasks):
        (alone,) = problem().at(lam, [task]).microbatches()
        assert relative(together.solution.theta[i], alone.solution.theta[0]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_task_whose_minimum_is_lambda_itself_is_solved(dtype):
    """∂_θ L_I(λ) is then 0, or what rounding makes of 0: no gradient can be small beside it."""

    def squares(lam, theta, x, y):
        return 0.5 * (x @ theta["w"] - y).square()

    lam = {"w": randn(0, 5).to(dtype)}
    x = randn(1, 7, 5).to(dtype)
    fitted = Task((x, (x.double() @ lam["w"].double()).to(dtype)), (x, torch.zeros(7, dtype=dtype)))
    other = Task((x, torch.ones(7, dtype=dtype)), (x, torch.zeros(7, dtype=dtype)))
    ridge = BilevelProblem(squares, squares, 2.0, 0.5)
    (solved,) = ridge.at(lam, [fitted, other]).microbatches()
    assert relative(solved.solution.theta[0], lam["w"]) < 4 * torch.finfo(dtype).eps
    unweighted = Task(other.support, other.query, support_weights=torch.zeros(7))
    assert torch.equal(ridge.solve_inner(lam, unweighted).theta["w"], lam["w"])


def test_losses_that_are_not_numbers_are_an_error():
    def broken(lam, theta, x, y):
        return classification(lam, theta, x, y) * float("nan")

    with pytest.raises(NotConvergedError, match="1 of 1 tasks"):
        BilevelProblem(broken, classification, DELTA, 0.5).solve_inner(parameters(), classification_tasks(1)[0])


def test_a_solution_is_not_accepted_beyond_its_tolerance():
    lam, (task,) = parameters(), classification_tasks(1)
    with pytest.raises(NotConvergedError, match="after 1 iterations"):
        kind = Proximal(0.1, "cg", 1e-9, max_iterations=1)
        BilevelProblem(classification, classification, kind, 0.5).solve_inner(lam, task)
