"""Gradients of items, against total gradients of problems in which an item's weight is changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2l_influence.bilevel import BilevelProblem, FunctionalModel, ModelLoss, Task, Unrolled
from l2l_influence.bilevel.item_gradients import (
    ItemGradient,
    QueryGradient,
    ResolvedSupportGradient,
    SupportGradient,
    TaskGradient,
)
from l2l_influence.bilevel.solved_tasks import SolvedBatch

from ..reference_problems.autograd import (
    SIZE,
    Reference,
    UnrolledReference,
    classification,
    classification_tasks,
    generator,
    parameters,
    randn,
    relative,
)

DELTA, LR, STEPS = 6.0, 0.1, 3
TASK_WEIGHTS = [1.5, 0.5]
ITEM_GRADIENTS = [TaskGradient(), QueryGradient(), SupportGradient(), ResolvedSupportGradient()]


def weighted_tasks() -> list[Task]:
    """Two tasks with sample weights of all sizes."""
    weights = [torch.rand(n, generator=generator(n), dtype=torch.float64) + 0.5 for n in (6, 7)]
    return [replace(t, support_weights=weights[0], query_weights=weights[1]) for t in classification_tasks(2)]


class SolvedCase:
    """The tasks solved as one batch, and their dense reference."""

    def __init__(self, inner: str, theta_keys: list[str] | None) -> None:
        lam, self.tasks = parameters(), weighted_tasks()
        if inner == "proximal":
            self.reference = Reference(classification, lam, theta_keys, DELTA)
            kind = DELTA
        else:
            self.reference = UnrolledReference(classification, lam, theta_keys, LR, STEPS)
            kind = Unrolled(LR, STEPS)
        problem = BilevelProblem(classification, classification, kind, 0.5, theta_keys, inner_tolerance=1e-12)
        (self.solved,) = problem.at(lam, self.tasks, TASK_WEIGHTS).microbatches()

    def gradient(self, i: int, item: ItemGradient, j: int, scale: float) -> torch.Tensor:
        """c_i g_i with item j's weight times ``scale``."""
        return TASK_WEIGHTS[i] * self.reference.total_gradient(scaled(self.tasks[i], item, j, scale))


def scaled(task: Task, item: ItemGradient, j: int, scale: float) -> Task:
    if isinstance(item, TaskGradient):
        return replace(task, query_weights=scale * task.query_weights)
    name = "query_weights" if isinstance(item, QueryGradient) else "support_weights"
    weights = getattr(task, name).clone()
    weights[j] *= scale
    return replace(task, **{name: weights})


CASES = [(inner, keys) for inner in ("proximal", "unrolled") for keys in (None, ["head"])]


@pytest.fixture(scope="module", params=CASES, ids=[f"{inner}-{'anil' if keys else 'maml'}" for inner, keys in CASES])
def case(request) -> SolvedCase:
    return SolvedCase(*request.param)


@pytest.mark.parametrize("item", ITEM_GRADIENTS, ids=lambda item: type(item).__name__)
def test_gradients_are_derivatives_of_the_total_gradient_by_the_items_weight(case, item):
    """By relative weight, and for an item that is adapted without, the difference that its weight makes."""
    last = item.count(case.solved) - 1
    assert last == {"task": 0, "query sample": 6, "support sample": 5}[item.item_name]
    for j in {0, last}:
        gradient = item.gradient(case.solved, j)
        for i in range(2):
            if isinstance(item, ResolvedSupportGradient):
                expected = case.gradient(i, item, j, 1) - case.gradient(i, item, j, 0)
            else:
                expected = (case.gradient(i, item, j, 1 + 1e-5) - case.gradient(i, item, j, 1 - 1e-5)) / 2e-5
            assert relative(gradient[i], expected) < 1e-7


@pytest.mark.parametrize("item", ITEM_GRADIENTS, ids=lambda item: type(item).__name__)
def test_products_with_all_gradients_at_once(case, item):
    v = randn(1, 3, SIZE)
    found = item.gradients_along(case.solved, v)
    assert found.shape == (2, item.count(case.solved), 3)
    for j in range(item.count(case.solved)):
        assert torch.allclose(found[:, j], item.gradient(case.solved, j) @ v.T, rtol=1e-7, atol=1e-10)


def test_gradients_of_query_samples_sum_to_that_of_their_task(case):
    together = sum(QueryGradient().gradient(case.solved, j) for j in range(7))
    assert relative(together, TaskGradient().gradient(case.solved, 0)) < 1e-10


def test_resolving_differs_from_the_derivative_in_proportion_to_the_samples_weight(case):
    """They are one for a sample that hardly counts, and are not for one that does."""
    closed, anew = SupportGradient().gradient(case.solved, 2), ResolvedSupportGradient().gradient(case.solved, 2)
    assert relative(closed, anew) > 0.01
    support = case.solved.batch.support
    light = support.w.clone()
    light[:, 2] *= 1e-4
    solved = case.solved.with_support(support._replace(w=light))
    assert relative(SupportGradient().gradient(solved, 2), ResolvedSupportGradient().gradient(solved, 2)) < 1e-3


@pytest.mark.parametrize("item", ITEM_GRADIENTS, ids=lambda item: type(item).__name__)
def test_an_items_own_loss_has_no_weight_of_its_own(case, item):
    """Its value after adaptation, and its total gradient; a task's is the whole of its outer loss."""
    losses = item.losses(case.solved)
    assert losses.shape == (2, item.count(case.solved))
    for i, task in enumerate(case.tasks):
        theta = case.reference.solve(case.reference.lam, task)
        for j in {0, item.count(case.solved) - 1}:
            own = (
                task if isinstance(item, TaskGradient) else replace(task, query=one(task, item, j), query_weights=None)
            )
            expected = case.reference.outer(own)(case.reference.lam, theta)
            assert float(losses[i, j]) == pytest.approx(float(expected), rel=1e-9)
            assert (
                relative(item.with_own_loss(case.solved, j).total_gradient[i], case.reference.total_gradient(own))
                < 1e-7
            )


def one(task: Task, item: ItemGradient, j: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = task.query if isinstance(item, QueryGradient) else task.support
    return x[j : j + 1], y[j : j + 1]


def test_the_batch_is_left_as_it_is(case):
    before = [part.clone() for part in (*case.solved.batch.support, *case.solved.batch.query)]
    for item in ITEM_GRADIENTS:
        item.gradient(case.solved, 0)
        item.with_own_loss(case.solved, 0)
        item.gradients_along(case.solved, randn(1, 1, SIZE))
    after = (*case.solved.batch.support, *case.solved.batch.query)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_samples_without_weight_have_no_gradient_and_a_loss():
    tasks = [
        replace(t, support_weights=ones_but(6, first=0.0), query_weights=ones_but(7, first=0.0))
        for t in classification_tasks(2)
    ]
    problem = BilevelProblem(classification, classification, DELTA, 0.5, inner_tolerance=1e-12)
    (solved,) = problem.at(parameters(), tasks).microbatches()
    for item in ITEM_GRADIENTS[1:]:
        assert item.gradient(solved, 0).norm() < 1e-12 < item.gradient(solved, 1).norm()
        assert (item.losses(solved) > 0).all() and item.with_own_loss(solved, 0).total_gradient.norm() > 0


def ones_but(n: int, first: float) -> torch.Tensor:
    return torch.tensor([first] + [1.0] * (n - 1), dtype=torch.float64)


def test_influence_functions_have_the_papers_signs():
    """What removal adds for a support sample, it subtracts for the others."""
    solved = randn(0, 1, 4)
    signs = [-1, -1, 1, 1]
    for item, sign in zip(ITEM_GRADIENTS, signs, strict=True):
        assert torch.equal(item.influence(solved), sign * solved)


# ---- rows that go through the model together --------------------------------------------------------------------


@pytest.fixture(scope="module")
def together() -> SolvedBatch:
    """Batch statistics over support and query rows, as where a body computes the features of both at once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)).double()
    functional = FunctionalModel(model)
    loss = ModelLoss(functional, lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
    tasks = [replace(task, together=True) for task in classification_tasks(2)]
    problem = BilevelProblem(loss, loss, Unrolled(LR, STEPS), 0.5, ["1.weight", "1.bias"])
    (solved,) = problem.at(functional.parameters, tasks, TASK_WEIGHTS).microbatches()
    return solved


def test_only_rows_with_a_loss_are_items(together):
    assert together.batch.query.x.shape[1] == together.batch.support.x.shape[1] == 13
    for item, count in zip(ITEM_GRADIENTS, (1, 7, 6, 6), strict=True):
        assert item.count(together) == count and item.losses(together).shape == (2, count)
        assert item.gradients_along(together, torch.ones_like(together.lam).unsqueeze(0)).shape == (2, count, 1)


def test_a_sample_leaves_the_loss_and_stays_in_the_statistics(together):
    """The others' features are as they were: c_i g_i is the sum over query samples, and linear in their weights."""
    whole = TaskGradient().gradient(together, 0)
    assert relative(sum(QueryGradient().gradient(together, j) for j in range(7)), whole) < 1e-10
    query = together.batch.query
    half = query.w.clone()
    half[:, 3] = 0.5
    without_half = together.with_query(query._replace(w=half)).weighted_gradient()
    assert relative(2 * (whole - without_half), QueryGradient().gradient(together, 3)) < 1e-10
