"""θ with entries that are not in λ and start at fixed values, such as CAVIA's context parameters.

The references are plain autograd through the loop, and minimisation.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.func import jacrev

from l2l_influence.bilevel import BilevelProblem, Layout, Proximal, Task, Unrolled, UnrolledWith
from l2l_influence.bilevel.inner.steps import factored as factored_steps
from l2l_influence.bilevel.inner.steps.factored import FactoredSteps
from l2l_influence.bilevel.layout import ThetaLayout
from l2l_influence.errors import TaskShapeError

from ..reference_problems.autograd import (
    CONTEXT,
    Reference,
    UnrolledReference,
    classification,
    classification_tasks,
    conditioned_parameters,
    generator,
    network,
    randn,
    relative,
)

L2, STEPS, LR, DELTA = 30.0, 3, 0.2, 4.0
LAM = conditioned_parameters()
KEYS = pytest.mark.parametrize("keys", [None, ["head"]], ids=["context", "context and head"])
WEIGHTS = torch.tensor([0.7, 1.9], dtype=torch.float64)


def tasks() -> list[Task]:
    plain = classification_tasks(2)
    return [Task(t.support, t.query, 0.3 + randn(i, 6).abs(), 0.3 + randn(i + 7, 7).abs()) for i, t in enumerate(plain)]


def problem(kind, keys) -> BilevelProblem:
    return BilevelProblem(classification, classification, kind, L2, keys, theta_start=CONTEXT, inner_solver="dense")


def unrolled_reference(keys) -> UnrolledReference:
    return UnrolledReference(classification, LAM, keys or [], LR, STEPS, CONTEXT)


KINDS = {
    "unrolled": (Unrolled(LR, STEPS), unrolled_reference),
    "stateful": (UnrolledWith(partial(torch.optim.SGD, lr=LR), STEPS), unrolled_reference),
    "proximal": (Proximal(DELTA, "dense"), lambda keys: Reference(classification, LAM, keys or [], DELTA, CONTEXT)),
}
ALL_KINDS = pytest.mark.parametrize("name", KINDS)


@KEYS
@ALL_KINDS
def test_theta_and_its_jacobian(name, keys):
    kind, reference = KINDS[name][0], KINDS[name][1](keys)
    for task in tasks():
        solution = problem(kind, keys).solve_inner(LAM, task)
        theta = reference.solve(reference.lam, task)
        assert list(solution.theta) == [*(keys or []), "context"]
        assert relative(reference.part.ravel(solution.theta), theta) < 1e-9
        jacobian = reference.theta_jacobian(task, theta)
        v, u = randn(1, reference.layout.size), randn(2, reference.part.size)
        assert relative(solution.jvp(v), jacobian @ v) < 1e-8
        assert relative(solution.vjp(u), jacobian.T @ u) < 1e-8


@KEYS
@ALL_KINDS
def test_total_gradients_and_hessians(name, keys):
    kind, reference = KINDS[name][0], KINDS[name][1](keys)
    v, hessian = randn(3, reference.layout.size), 0
    for task, weight in zip(tasks(), WEIGHTS, strict=True):
        found = problem(kind, keys).total_gradient(LAM, task)
        assert relative(reference.layout.ravel(found), reference.total_gradient(task)) < 1e-8
        hessian = hessian + weight * reference.total_hessian(task)
    found = problem(kind, keys).total_hessian(LAM, tasks(), "exact", WEIGHTS)
    assert relative(found @ v, hessian @ v) < 1e-7


@KEYS
@ALL_KINDS
def test_gauss_newton_products(name, keys):
    kind, reference = KINDS[name][0], KINDS[name][1](keys)
    v, expected = randn(3, reference.layout.size), 0
    for task, weight in zip(tasks(), WEIGHTS, strict=True):
        theta = reference.solve(reference.lam, task)

        def outputs(lam, theta, x=task.query[0]):
            return network({**reference.layout.unravel(lam), **reference.part.unravel(theta)}, x)

        j = torch.cat(jacrev(outputs, (0, 1))(reference.lam, theta), dim=-1) @ reference.chain(task, theta)
        p = outputs(reference.lam, theta).softmax(-1)
        curvature = task.query_weights.view(-1, 1, 1) * (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))
        expected = expected + weight * torch.einsum("ncp,ncd,ndq,q->p", j, curvature, j, v)
    assert relative(problem(kind, keys).total_hessian(LAM, tasks(), "gauss-newton", WEIGHTS) @ v, expected) < 1e-7


@KEYS
@ALL_KINDS
def test_influences_are_dense_algebra(name, keys):
    """Derivatives of total gradients by a sample's weight, by plain autograd or by solving anew."""
    kind, reference = KINDS[name][0], KINDS[name][1](keys)
    given, k, j = tasks(), 1, 2
    hessian = sum(c * reference.total_hessian(task) for c, task in zip(WEIGHTS, given, strict=True))
    task, c = given[k], WEIGHTS[k]

    def solved(gradient):
        return -torch.linalg.solve(L2 * torch.eye(len(hessian)).double() + hessian, gradient)

    def gradient(support=task.support_weights, query=task.query_weights):
        return reference.total_gradient(Task(task.support, task.query, support, query))

    one_query = torch.zeros(7, dtype=torch.float64)
    one_query[j] = task.query_weights[j]
    step = torch.zeros(6, dtype=torch.float64)
    step[j] = 1e-5
    by_support = (gradient(task.support_weights + step) - gradient(task.support_weights - step)) / 2e-5
    expected = {
        "task": solved(c * gradient()),
        "query": solved(c * gradient(query=one_query)),
        "support": solved(-c * task.support_weights[j] * by_support),
    }
    for level, value in expected.items():
        item = (k,) if level == "task" else (k, j)
        found = getattr(problem(kind, keys), f"{level}_influence")(LAM, given, *item, "exact", WEIGHTS)
        assert relative(reference.layout.ravel(found), value) < 1e-6, level


# ---- approximate Jacobians ---------------------------------------------------------------------------------------


@KEYS
def test_first_order_context_does_not_depend_on_lambda(keys):
    task, reference = tasks()[0], unrolled_reference(keys)
    solution = problem(Unrolled(LR, STEPS, first_order=True), keys).solve_inner(LAM, task)
    assert relative(reference.part.ravel(solution.theta), reference.solve(reference.lam, task)) < 1e-12
    v, u = randn(1, reference.layout.size), randn(2, reference.part.size)
    expected = jacrev(reference.start)(reference.lam)
    assert torch.equal(solution.jvp(v), expected @ v)
    assert torch.equal(solution.vjp(u), expected.T @ u)


def test_the_direct_hessian_is_not_zero_where_lambda_is_not_adapted(recwarn):
    hessian = problem(Unrolled(LR, STEPS), None).total_hessian(LAM, tasks(), "direct")
    assert bool((hessian @ randn(1, hessian.solved_tasks.lam.numel())).any()) and not recwarn


# ---- low-rank factors ----------------------------------------------------------------------------------------------


def wide(lam, theta, x, y):
    """A matrix of θ alone, one of λ that is adapted, and one that is not."""
    p = {**lam, **theta}
    hidden = torch.tanh(F.linear(torch.tanh(F.linear(x, p["body"])), p["adapter"], p["shift"]))
    return F.cross_entropy(F.linear(hidden, p["head"]), y, reduction="none")


@pytest.mark.parametrize("steps", [1, 3])
def test_wide_layers_that_are_not_in_lambda_are_kept_in_factors(steps, monkeypatch):
    monkeypatch.setattr(factored_steps, "NARROW", 0)
    lam = {"body": randn(0, 4, 3), "shift": randn(1, 4), "head": randn(2, 3, 4)}
    start, keys = {"adapter": 0.5 * randn(3, 4, 4)}, ["head"]
    given = classification_tasks(2)
    found = BilevelProblem(wide, wide, Unrolled(LR, steps), L2, keys, theta_start=start)
    reference = UnrolledReference(wide, lam, keys, LR, steps, start)
    (solved,) = found.at(lam, given).microbatches()
    assert isinstance(solved.solution, FactoredSteps)
    assert set(solved.solution.point.inputs) == {"head", "adapter"}
    v, e = randn(1, 2, reference.layout.size), torch.zeros(2, 6).double()
    curved = solved.second(v, e)[0]
    for i, task in enumerate(given):
        theta = reference.solve(reference.lam, task)
        assert relative(solved.solution.theta[i], theta) < 1e-12
        assert relative(solved.total_gradient[i], reference.total_gradient(task)) < 1e-10
        assert relative(solved.solution.jvp(v)[i], reference.theta_jacobian(task, theta) @ v[i]) < 1e-10
        assert relative(curved[i], reference.total_hessian(task) @ v[i]) < 1e-9
    product = found.total_hessian(lam, given, "gauss-newton") @ v[0]
    monkeypatch.setattr(factored_steps, "NARROW", 10**9)
    assert relative(product, found.total_hessian(lam, given, "gauss-newton") @ v[0]) < 1e-10


# ---- where θ starts ------------------------------------------------------------------------------------------------


def test_the_start_is_affine_in_lambda():
    lam = {"a": randn(0, 2), "b": randn(1, 3), "c": randn(2, 1)}
    layout = Layout(lam)
    for keys in ([], ["b"], ["a", "c"], ["a", "b", "c"]):
        theta, flat = ThetaLayout(layout, keys, CONTEXT), layout.ravel(lam)
        assert torch.equal(theta.start(flat), theta.ravel(theta.start_by_name(lam)))
        jacobian = jacrev(theta.start)(flat)
        v, u = randn(3, 2, layout.size), randn(4, 2, theta.size)
        assert torch.equal(theta.jvp(v), v @ jacobian.T) and torch.equal(theta.vjp(u), u @ jacobian)
        assert theta.adapts_all == (len(keys) == 3)


def test_a_task_may_start_elsewhere():
    """Only the search for the minimum begins there: θ is the same."""
    task, kind = tasks()[0], Proximal(DELTA, "dense")
    elsewhere = Task(task.support, task.query, task.support_weights, task.query_weights, start={"context": randn(0, 2)})
    found = [problem(kind, None).solve_inner(LAM, each).theta["context"] for each in (task, elsewhere)]
    assert relative(*found) < 1e-8 and not torch.equal(*found)


def test_the_tasks_loss_falls_by_adapting_the_context():
    task = Task(*[(torch.randn(30, 3, dtype=torch.float64, generator=generator(0)), torch.zeros(30).long())] * 2)
    solved = problem(Unrolled(LR, STEPS), None).at(LAM, [task]).one(0)
    assert float(solved.outer_loss()) < float(classification(LAM, CONTEXT, *task.query).sum())


@pytest.mark.parametrize(
    ("keys", "start", "message"),
    [
        (["head"], {"bias": torch.zeros(4)}, "not in lam, but lam has \\['bias'\\]"),
        (["hat"], CONTEXT, "theta_keys must be entries of lam"),
        ([], None, "nothing to adapt"),
    ],
)
def test_what_cannot_be_adapted_is_refused(keys, start, message):
    with pytest.raises(TaskShapeError, match=message):
        BilevelProblem(classification, classification, 1.0, 0.0, keys, theta_start=start).at(LAM, tasks())
