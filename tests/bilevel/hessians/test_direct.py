"""Baselines that leave out how θ follows λ, against dense algebra at fixed θ_i, and what is left of them in MAML."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jacrev

from l2l_influence.bilevel import BilevelProblem, ModelLoss, Task, Unrolled

from ...reference_problems.autograd import (
    SIZE,
    Reference,
    UnrolledReference,
    central_difference,
    classification,
    classification_tasks,
    network,
    parameters,
    randn,
    relative,
)

DELTA, L2 = 10.0, 15.0
UNROLLED = Unrolled(lr=0.1, steps=2)
C = [1.0, 2.0, 0.5, 1.5]
LAM = parameters()
EYE = torch.eye(SIZE, dtype=torch.float64)
TASKS = [
    Task(task.support, task.query, 0.5 + randn(i, 6).abs(), 0.5 + randn(10 + i, 7).abs())
    for i, task in enumerate(classification_tasks(4))
]
MAML_LOSS = ModelLoss(network, lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
"""The same as ``classification``, known to depend on λ through θ alone where all of λ is adapted."""


class Case:
    """A problem, each task's θ_i, and the derivatives of L_O there by plain functions."""

    def __init__(self, theta_keys: list[str] | None, inner: float | Unrolled) -> None:
        self.problem = BilevelProblem(classification, classification, inner, L2, theta_keys, inner_solver="dense")
        if isinstance(inner, Unrolled):
            self.reference: Reference = UnrolledReference(classification, LAM, theta_keys, inner.lr, inner.steps)
        else:
            self.reference = Reference(classification, LAM, theta_keys, inner)
        self.thetas = [self.adapt(task) for task in TASKS]

    def adapt(self, task: Task) -> Tensor:
        return self.reference.solve(self.reference.lam, task)

    def slope(self, task: Task, theta: Tensor) -> Tensor:
        """∇_(λ, θ) L_O."""
        return torch.cat(jacrev(self.reference.outer(task), (0, 1))(self.reference.lam, theta))

    def influence(self, tangent: Tensor, k: int, gradient: Tensor) -> Tensor:
        """−(l2 I + Σ c_i Tᵀ∇²L_O T)⁻¹ c_k Tᵀ gradient for T = [I; an approximation of dθ/dλ]."""
        curved = [self.reference.joint_hessian(task, theta) for task, theta in zip(TASKS, self.thetas, strict=True)]
        hessian = sum(c * tangent.T @ one @ tangent for c, one in zip(C, curved, strict=True))
        return -torch.linalg.solve(L2 * EYE + hessian, C[k] * tangent.T @ gradient)

    def found(self, level: str, *item: int, kind: str) -> Tensor:
        influence = getattr(self.problem, f"{level}_influence")(LAM, TASKS, *item, kind, C)
        return self.reference.layout.ravel(influence)


CASES = {
    "anil, proximal": (["head"], DELTA),
    "anil, unrolled": (["head"], UNROLLED),
    "maml, proximal": (None, DELTA),
    "maml, unrolled": (None, UNROLLED),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(*CASES[request.param])


def constant(case: Case) -> Tensor:
    """[I; 0]: θ_i does not follow λ."""
    return torch.cat([EYE, torch.zeros(case.reference.part.size, SIZE, dtype=torch.float64)])


def carried(case: Case) -> Tensor:
    """[I; E]: θ_i moves as the entries of λ that it started from."""
    return torch.cat([EYE, EYE[case.reference.where]])


READINGS = pytest.mark.parametrize(
    ("kind", "tangent"), [("direct", constant), ("direct-first-order", carried)], ids=["direct", "first-order"]
)


@READINGS
def test_hessians_are_dense_algebra_at_fixed_theta(case, kind, tangent):
    along = tangent(case)
    expected = [
        c * along.T @ case.reference.joint_hessian(task, theta) @ along
        for c, task, theta in zip(C, TASKS, case.thetas, strict=True)
    ]
    found = case.problem.total_hessian(LAM, TASKS, kind, C).operator.matvec(EYE)
    torch.testing.assert_close(found, sum(expected), rtol=1e-8, atol=1e-10)


@READINGS
def test_task_and_query_influences_are_dense_algebra_at_fixed_theta(case, kind, tangent):
    k, j = 1, 4
    only = torch.zeros(7, dtype=torch.float64)
    only[j] = TASKS[k].query_weights[j]
    pulls = case.slope(TASKS[k], case.thetas[k]), case.slope(replace(TASKS[k], query_weights=only), case.thetas[k])
    for gradient, item in zip(pulls, [("task", k), ("query", k, j)], strict=True):
        expected = case.influence(tangent(case), k, gradient)
        torch.testing.assert_close(case.found(*item, kind=kind), expected, rtol=1e-7, atol=1e-9)


def test_first_order_support_influence_moves_theta_by_the_samples_weight(case):
    """The samples move θ_i as they do; only λ's way to it is read as I."""
    k, j, task = 2, 3, TASKS[2]
    by_weight = central_difference(lambda w: case.adapt(replace(task, support_weights=w)), task.support_weights)[:, j]
    moved = torch.cat([torch.zeros(SIZE, dtype=torch.float64), task.support_weights[j] * by_weight])
    gradient = case.reference.joint_hessian(task, case.thetas[k]) @ moved
    expected = -case.influence(carried(case), k, gradient)  # the paper's sign: removal adds it
    assert relative(case.found("support", k, j, kind="direct-first-order"), expected) < 1e-7


# ---- what is left in MAML --------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [DELTA, UNROLLED], ids=["proximal", "unrolled"])
def test_the_literal_direct_influence_is_nothing_in_maml_and_says_so(inner):
    problem = BilevelProblem(MAML_LOSS, MAML_LOSS, inner, L2)
    with pytest.warns(UserWarning, match="identically zero.*direct-first-order"):
        hessian = problem.total_hessian(LAM, TASKS, "direct", C)
    assert not (hessian @ randn(0, SIZE)).any()
    assert not hessian.linearised(1).total_gradient.any()
    for level, *item in [("task", 1), ("query", 1, 2), ("support", 1, 2)]:
        with pytest.warns(UserWarning, match="identically zero"):
            found = getattr(problem, f"{level}_influence")(LAM, TASKS, *item, "direct", C)
        assert not any(part.any() for part in found.values())


@pytest.fixture(scope="module")
def gradients():
    """c_k g_k of each task in MAML, dense."""
    reference = Reference(classification, LAM, None, DELTA)
    return [c * reference.total_gradient(task) for c, task in zip(C, TASKS, strict=True)]


def ravel(named) -> Tensor:
    return torch.cat([named[key].reshape(-1) for key in LAM])


def test_identity_is_the_product_of_gradients(gradients):
    problem = BilevelProblem(MAML_LOSS, MAML_LOSS, DELTA, L2)
    for k, gradient in enumerate(gradients):
        found = problem.task_influence(LAM, TASKS, k, "identity", C)
        assert relative(ravel(found), -gradient / (L2 + 1)) < 1e-8


@pytest.mark.parametrize("loss", [MAML_LOSS, classification], ids=["known", "found out"])
def test_gamma_ranks_tasks_as_the_product_of_gradients_in_maml(gradients, loss):
    """Its Hessian is Σ c_i ‖∂_θ L_O‖₁ I, so influences are the gradients, all scaled alike."""
    reference = Reference(classification, LAM, None, DELTA)
    sizes = [
        c * jacrev(reference.outer(task), 1)(reference.lam, reference.solve(reference.lam, task)).abs().sum()
        for c, task in zip(C, TASKS, strict=True)
    ]
    problem = BilevelProblem(loss, loss, DELTA, L2, inner_solver="dense")
    found = [ravel(problem.task_influence(LAM, TASKS, k, "gamma", C)) for k in range(len(TASKS))]
    for influence, gradient in zip(found, gradients, strict=True):
        assert relative(influence, -gradient / (L2 + sum(sizes))) < 1e-8

    new = reference.total_gradient(classification_tasks(1, seed=900)[0])
    scores, products = (torch.stack([row @ new for row in rows]) for rows in (found, gradients))
    assert torch.equal(scores.argsort(), products.argsort(descending=True))

    alone = problem.task_influence(LAM, TASKS, 2, "gamma", C, leave_one_out=True)
    assert relative(ravel(alone), -gradients[2] / (L2 + sum(sizes) - sizes[2])) < 1e-8
