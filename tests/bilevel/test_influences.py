"""All influences against λ* that is optimised anew with an item's weight changed, and what they must add up to.

The reference minimises both levels on plain functions of flat vectors, for many choices of weights at once, and shares
nothing with the package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.func import jacrev, vmap

from l2l_influence.bilevel import BilevelProblem, Task, Unrolled
from l2l_influence.bilevel.hessians import Sketch

from ..reference_problems.autograd import (
    CONTEXT,
    SIZE,
    Named,
    Reference,
    UnrolledReference,
    classification,
    classification_tasks,
    conditioned_parameters,
    network,
    parameters,
    randn,
    relative,
)

TASKS, SUPPORT, QUERY = 3, 6, 7
DELTA, L2 = 20.0, 1.0
EPSILON = 1e-4
EYE = torch.eye(SIZE, dtype=torch.float64)

Item = tuple
"""The level and the position: ``("task", k)``, ``("query", k, j)`` or ``("support", k, j)``."""


class Weights(NamedTuple):
    """Of tasks ``[T]``, support samples ``[T, n_s]`` and query samples ``[T, n_q]``."""

    task: Tensor
    support: Tensor
    query: Tensor

    def scaled(self, items: list[Item], by: float) -> Weights:
        """The same with the weights of some items multiplied."""
        scaled = Weights(*(weight.clone() for weight in self))
        for level, *position in items:
            getattr(scaled, level)[tuple(position)] *= by
        return scaled


# None is 1: a weight that is forgotten, or taken twice, shows.
WEIGHTS = Weights(*(0.5 + randn(at, *shape).square() for at, shape in ((50, [3]), (51, [3, 6]), (52, [3, 7]))))
PLAIN = classification_tasks(TASKS)
DATA = [torch.stack(parts) for parts in zip(*((*task.support, *task.query) for task in PLAIN), strict=True)]


def weighted(weights: Weights) -> list[Task]:
    pairs = zip(PLAIN, weights.support, weights.query, strict=True)
    return [Task(task.support, task.query, support, query) for task, support, query in pairs]


class MappedReference(Reference):
    """A search for θ that can be mapped over tasks and weights: always as many Newton steps."""

    def solve(self, lam: Tensor, task: Task) -> Tensor:
        inner, theta = self.inner(task), self.start(lam)
        for _ in range(5):
            theta = theta - torch.linalg.solve(jacrev(jacrev(inner, 1), 1)(lam, theta), jacrev(inner, 1)(lam, theta))
        return theta


def differences(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The Jacobian of a function of a vector by central differences, all at once."""
    step = 1e-5 * torch.eye(len(at), dtype=at.dtype)
    return ((vmap(function)(at + step) - vmap(function)(at - step)) / 2e-5).movedim(0, -1)


class OptimisedProblem:
    """A toy problem, its λ* for any weights, and the package's problem at λ*."""

    def __init__(self, theta_keys: list[str] | None, kind: float | Unrolled, theta_start: Named | None = None) -> None:
        lam = conditioned_parameters() if theta_start else parameters()
        if isinstance(kind, Unrolled):
            reference = UnrolledReference(classification, lam, theta_keys, kind.lr, kind.steps, theta_start)
        else:
            reference = MappedReference(classification, lam, theta_keys, kind, theta_start)
        self.size = reference.layout.size
        self.reference, self.tasks = reference, weighted(WEIGHTS)
        self._near, self._hessian = self._minimum()
        self.optimum = self.optima([WEIGHTS])[0]
        self.reference = reference.at(self.optimum)
        self.lam = reference.layout.unravel(self.optimum)
        self.problem = BilevelProblem(
            classification, classification, kind, L2, theta_keys, theta_start=theta_start, inner_solver="dense"
        )

    def total(self, lam: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """L_Total and its gradient, ``[P]``."""

        def of_task(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor, sw: Tensor, qw: Tensor) -> tuple[Tensor, Tensor]:
            here, task = self.reference.at(lam), Task((sx, sy), (qx, qy), sw, qw)
            theta, outer = here.solve(lam, task), here.outer(task)
            return outer(lam, theta), here.chain(task, theta).T @ torch.cat(jacrev(outer, (0, 1))(lam, theta))

        losses, slopes = vmap(of_task)(*DATA, weights.support, weights.query)
        return weights.task @ losses + 0.5 * L2 * lam @ lam, weights.task @ slopes + L2 * lam

    def optima(self, variants: list[Weights]) -> Tensor:
        """λ* for each choice of weights, ``[E, P]``; one Hessian is near enough for all."""
        stacked = Weights(*(torch.stack(parts) for parts in zip(*variants, strict=True)))
        lam = self._near.expand(len(variants), -1)
        for _ in range(20):
            slope = vmap(self.total)(lam, stacked)[1]
            if slope.norm(dim=-1).max() < 1e-12:
                return lam
            lam = lam - torch.linalg.solve(self._hessian, slope.mT).mT
        raise AssertionError("the reference did not converge")

    def derivatives(self, groups: list[list[Item]]) -> Tensor:
        """dλ*/dε for each group of items, their weights times 1 + ε: ``[E, P]``."""
        ends = [self.optima([WEIGHTS.scaled(group, 1 + sign * EPSILON) for group in groups]) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * EPSILON)

    @cache  # noqa: B019 (as long-lived as the module's fixture)
    def derivative(self, item: Item) -> Tensor:
        """dλ*/dε as the package has it: the paper's influence of a support sample is that of its removal."""
        level, *position = item
        influence = getattr(self.problem, f"{level}_influence")
        found = self.reference.layout.ravel(influence(self.lam, self.tasks, *position, "exact", WEIGHTS.task))
        return -found if level == "support" else found

    def _minimum(self) -> tuple[Tensor, Tensor]:
        """λ*, nearly, and its Hessian."""

        def value_and_slope(lam):
            value, slope = self.total(torch.from_numpy(lam), WEIGHTS)
            return float(value), slope.numpy()

        start = self.reference.lam.numpy()
        lam = torch.from_numpy(minimize(value_and_slope, start, jac=True, method="BFGS", options={"gtol": 1e-6}).x)
        hessian = differences(lambda lam: self.total(lam, WEIGHTS)[1], lam)
        assert torch.linalg.eigvalsh((hessian + hessian.mT) / 2).min() > 0.05
        return lam, hessian


CASES = {
    "maml, proximal": (None, DELTA),
    "anil, proximal": (["head"], DELTA),
    "maml, unrolled": (None, Unrolled(lr=0.1, steps=2)),
    "anil, unrolled": (["head"], Unrolled(lr=0.1, steps=2)),
    "context, proximal": ([], 5.0, CONTEXT),
    "context, unrolled": ([], Unrolled(lr=0.1, steps=3), CONTEXT),
    "context and head, proximal": (["head"], DELTA, CONTEXT),
    "context and head, unrolled": (["head"], Unrolled(lr=0.1, steps=2), CONTEXT),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return OptimisedProblem(*CASES[request.param])


def test_the_reference_solves_its_inner_problems(case):
    if not isinstance(case.reference, UnrolledReference):
        for task in case.tasks:
            theta = case.reference.solve(case.optimum, task)
            assert jacrev(case.reference.inner(task), 1)(case.optimum, theta).norm() < 1e-12


# ---- derivatives of λ* -----------------------------------------------------------------------------------------


ITEMS = [("task", 2), ("query", 1, 4), ("support", 1, 5)]


def test_influences_are_derivatives_of_reoptimised_lambda(case):
    for item, expected in zip(ITEMS, case.derivatives([[item] for item in ITEMS]), strict=True):
        assert relative(case.derivative(item), expected) < 1e-5, item


def test_a_groups_influence_is_the_sum_of_its_members(case):
    """Items of all levels, of one task and of several, against λ* with all their weights changed together."""
    (expected,) = case.derivatives([ITEMS])
    assert relative(sum(case.derivative(item) for item in ITEMS), expected) < 1e-5


def test_one_solve_scores_all_items(case):
    v = randn(8, case.size)
    hessian = case.problem.total_hessian(case.lam, case.tasks, "exact", WEIGHTS.task)
    x = hessian.solve(v).value.expand(TASKS, -1)
    (solved,) = hessian.solved_tasks.microbatches()
    weight = solved.batch.weight.unsqueeze(-1)
    found = [
        solved.weighted_gradient() @ x[0],
        (weight * solved.query_slopes(x[0])).ravel(),
        (weight * solved.support_slopes(x)).ravel(),
    ]
    items = [("task", k) for k in range(TASKS)]
    items += [("query", k, j) for k in range(TASKS) for j in range(QUERY)]
    items += [("support", k, j) for k in range(TASKS) for j in range(SUPPORT)]
    assert relative(-torch.cat(found), case.derivatives([[item] for item in items]) @ v) < 1e-5


def test_query_samples_sum_to_their_task(case):
    """With the identity as Hessian, so that each influence is the derivative of a total gradient and no more."""
    given = (case.lam, case.tasks, 1)
    whole = case.problem.task_influence(*given, kind="identity", weights=WEIGHTS.task)
    parts = [case.problem.query_influence(*given, j, "identity", WEIGHTS.task) for j in range(QUERY)]
    for key in whole:
        assert relative(sum(part[key] for part in parts), whole[key]) < 1e-10


# ---- what they are made of -------------------------------------------------------------------------------------


def of_task(case, k):
    """The package's solution of one task, and the task."""
    return case.problem.at(case.lam, case.tasks, WEIGHTS.task).one(k), case.tasks[k]


def reweighted(task, support=None, query=None):
    keep = lambda new, old: old if new is None else new  # noqa: E731
    return Task(task.support, task.query, keep(support, task.support_weights), keep(query, task.query_weights))


def test_samples_slopes_are_products_with_their_gradients(case):
    solved, task = of_task(case, 1)
    v = randn(3, case.size)
    by_query = [case.reference.total_gradient(reweighted(task, query=w)) @ v for w in torch.diag(task.query_weights)]
    assert relative(solved.query_slopes(v)[0], torch.stack(by_query)) < 1e-8

    by_weights = differences(lambda w: case.reference.total_gradient(reweighted(task, support=w)), task.support_weights)
    by_support = by_weights * task.support_weights
    assert relative(solved.support_slopes(v.unsqueeze(0))[0], v @ by_support) < 1e-7
    e = randn(4, SUPPORT)
    assert relative(solved.gradient_by_support(e.unsqueeze(0))[0], by_support @ e) < 1e-7


def test_inner_jacobians_and_their_transposes(case):
    solved, task = of_task(case, 2)
    reference, solution = case.reference, solved.solution
    by_lam = differences(lambda lam: reference.solve(lam, task), case.optimum)
    by_weights = differences(lambda w: reference.solve(case.optimum, reweighted(task, support=w)), task.support_weights)
    v, e, u = randn(1, 1, case.size), randn(2, 1, SUPPORT), randn(3, 1, reference.part.size)
    assert relative(solution.jvp(v)[0], by_lam @ v[0]) < 1e-7
    assert relative(solution.jvp_weights(e)[0], by_weights @ e[0]) < 1e-7
    assert abs((u * solution.jvp(v)).sum() - (solution.vjp(u) * v).sum()) < 1e-9
    assert abs((u * solution.jvp_weights(e)).sum() - (solution.vjp_weights(u) * e).sum()) < 1e-9


def test_second_derivatives_by_lambda_and_support_weights_together(case):
    solved, task = of_task(case, 0)
    reference = case.reference

    def outer_loss(both):
        lam, w = both.split([case.size, SUPPORT])
        again = reweighted(task, support=w)
        return reference.outer(again)(lam, reference.solve(lam, again))

    expected = differences(jacrev(outer_loss), torch.cat([case.optimum, task.support_weights]))
    sizes = [case.size, SUPPORT]
    rows = [solved.second(*row.unsqueeze(0).split(sizes, dim=1)) for row in torch.eye(sum(sizes)).double()]
    found = torch.stack([torch.cat(row, dim=1)[0] for row in rows])
    assert relative(found, expected) < 1e-7
    assert relative(found[case.size :, case.size :], expected[case.size :, case.size :]) < 1e-7
    assert relative(found, found.T) < 1e-8


# ---- without a support sample, solved anew ---------------------------------------------------------------------


def test_resolved_support_influence_is_the_difference_of_total_gradients(case):
    k, j = 1, 5
    reference = case.reference
    weights = case.tasks[k].support_weights.clone()
    weights[j] = 0
    without = reference.total_gradient(reweighted(case.tasks[k], support=weights))
    change = WEIGHTS.task[k] * (without - reference.total_gradient(case.tasks[k]))
    hessian = sum(c * reference.total_hessian(task) for c, task in zip(WEIGHTS.task, case.tasks, strict=True))
    expected = -torch.linalg.solve(L2 * torch.eye(case.size).double() + hessian, change)
    found = case.problem.support_influence(case.lam, case.tasks, k, j, "exact", WEIGHTS.task, removal="resolve")
    assert relative(reference.layout.ravel(found), expected) < 1e-7


def test_resolved_and_closed_form_agree_for_samples_of_little_weight(case):
    """The closed form is a derivative: what it leaves out is in proportion to the weight that is taken away."""

    def error(weight):
        support = WEIGHTS.support.clone()
        support[1, 5] = weight
        given = (case.lam, weighted(WEIGHTS._replace(support=support)), 1, 5, "identity", WEIGHTS.task)
        closed, resolved = (case.problem.support_influence(*given, removal=kind) for kind in ("closed-form", "resolve"))
        return relative(case.reference.layout.ravel(closed), case.reference.layout.ravel(resolved))

    larger, smaller = error(1e-2), error(1e-3)
    assert smaller < 1e-3
    assert 9 < larger / smaller < 11


# ---- without a task's own Hessian ------------------------------------------------------------------------------


def gauss_newton(reference, task):
    """Zᵀ Jᵀ Λ J Z for the weighted cross entropy."""
    theta = reference.solve(reference.lam, task)

    def outputs(lam, theta):
        return network({**reference.layout.unravel(lam), **reference.part.unravel(theta)}, task.query[0])

    jacobian = torch.cat(jacrev(outputs, (0, 1))(reference.lam, theta), dim=2) @ reference.chain(task, theta)
    p = outputs(reference.lam, theta).softmax(-1)
    curvature = task.query_weights.view(-1, 1, 1) * (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))
    return torch.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian)


def gamma(reference, task):
    """∂_λλ L_O + sym(2 (dθ/dλ)ᵀ ∂_θ∂_λ L_O) + ‖∂_θ L_O‖₁ I."""
    theta = reference.solve(reference.lam, task)
    joint = reference.joint_hessian(task, theta)
    cross = reference.theta_jacobian(task, theta).T @ joint[SIZE:, :SIZE]
    size = jacrev(reference.outer(task), 1)(reference.lam, theta).abs().sum()
    return joint[:SIZE, :SIZE] + cross + cross.T + size * EYE


def from_rows(operator):
    """c_i H_i of each task from a sketch's own rows."""
    return [rows.T @ rows for rows in operator.rows.split(len(operator.rows) // TASKS)]


DENSE = {"exact": lambda reference, task: reference.total_hessian(task), "gauss-newton": gauss_newton, "gamma": gamma}


@pytest.mark.parametrize("kind", [*DENSE, "sketch"])
def test_leave_one_out_leaves_the_tasks_own_hessian_out(kind):
    k, l2, lam, tasks, theta_keys = 1, 20.0, parameters(), weighted(WEIGHTS), ["head"]
    problem = BilevelProblem(classification, classification, DELTA, l2, theta_keys, inner_solver="dense")
    reference = MappedReference(classification, lam, theta_keys, DELTA)
    if kind == "sketch":
        parts = from_rows(problem.total_hessian(lam, tasks, Sketch(samples=4), WEIGHTS.task).operator)
    else:
        parts = [c * DENSE[kind](reference, task) for c, task in zip(WEIGHTS.task, tasks, strict=True)]
    gradient = WEIGHTS.task[k] * reference.total_gradient(tasks[k])
    for leave_one_out, hessian in ((True, sum(parts) - parts[k]), (False, sum(parts))):
        found = problem.task_influence(
            lam, tasks, k, Sketch(samples=4) if kind == "sketch" else kind, WEIGHTS.task, leave_one_out=leave_one_out
        )
        expected = -torch.linalg.solve(l2 * EYE + hessian, gradient)
        assert relative(reference.layout.ravel(found), expected) < 1e-7
