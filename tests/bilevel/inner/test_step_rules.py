"""Inner steps by learned rules: everything against steps that are written out here, and dense derivatives of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, hessian, jacrev, vjp

from l2l_influence.bilevel import (
    BilevelProblem,
    Layout,
    LearnedRates,
    LearnedTransforms,
    ModelLoss,
    Sketch,
    StepRule,
    Task,
    Unrolled,
)

from ...reference_problems.autograd import (
    Named,
    classification,
    classification_tasks,
    network,
    parameters,
    randn,
    relative,
)

LR, STEPS, L2 = 0.3, 3, 0.5

WEIGHTS = [1.0, 2.0, 0.5]

RATES = {"rates.bias": torch.tensor(0.2).double(), "rates.head": 0.3 + 0.1 * randn(7, 4, 3)}
TRANSFORM = {"left": torch.eye(4, dtype=torch.float64) + 0.1 * randn(8, 4, 4), "shift": 0.1 * randn(9, 16)}


def transformed(p: Named, gradient: Tensor) -> Tensor:
    """T_φ: not linear, neither in φ nor in the gradient."""
    return torch.tanh(p["left"] @ gradient.view(4, 4)).flatten() + p["shift"] ** 2


ByHand = Callable[[Named, Tensor, Callable[[Tensor], Tensor]], Tensor]
"""``(lam, theta_0, slope) -> theta_K`` for θ = (bias, head), flat."""


def rates_by_hand(lam: Named, theta: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
    for _ in range(STEPS):
        g = slope(theta)
        theta = theta - torch.cat([lam["rates.bias"] * g[:4], lam["rates.head"].flatten() * g[4:]])
    return theta


def transform_by_hand(lam: Named, theta: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
    for _ in range(STEPS):
        theta = theta - LR * transformed({"left": lam["t.left"], "shift": lam["t.shift"]}, slope(theta))
    return theta


def adapted_by_hand(lam: Named, theta: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
    """φ steps down its own gradient of the loss at θ, which ``slope`` is the derivative of."""
    p, back = {"left": lam["t.left"], "shift": lam["t.shift"]}, None
    for _ in range(STEPS):
        g = slope(theta)
        if back is not None:
            p = {name: value - LR * s for (name, value), s in zip(p.items(), back(g)[0].values(), strict=True)}
        (theta, back) = _moved(theta, g, p)
    return theta


def _moved(theta: Tensor, g: Tensor, p: Named) -> tuple[Tensor, Callable[..., tuple[Named]]]:
    return vjp(lambda p: theta - LR * transformed(p, g), p)


@dataclass(frozen=True)
class Case:
    """A rule, its entries of λ, and its steps by hand."""

    rule: StepRule
    entries: Named
    by_hand: ByHand

    @property
    def lam(self) -> Named:
        return {**parameters(), **self.entries}


T = {f"t.{name}": value for name, value in TRANSFORM.items()}
OWN = {name: f"t.{name}" for name in TRANSFORM}
CASES = {
    "rates": Case(LearnedRates({"bias": "rates.bias", "head": "rates.head"}), RATES, rates_by_hand),
    "some rates": Case(
        LearnedRates({"bias": "rates.bias", "head": "rates.head"}, {"rates.bias": RATES["rates.bias"]}),
        {"rates.head": RATES["rates.head"]},
        lambda lam, *rest: rates_by_hand({**RATES, **lam}, *rest),
    ),
    "transform": Case(LearnedTransforms(LR, transformed, OWN), T, transform_by_hand),
    "transform, adapted": Case(LearnedTransforms(LR, transformed, OWN, adapted=True), T, adapted_by_hand),
}
SECOND_AND_FIRST = pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class Reference:
    """One task's θ and outer loss, as functions of λ and of the support weights."""

    def __init__(self, case: Case, task: Task, first_order: bool = False) -> None:
        self.layout, self.case, self.task, self._first_order = Layout(case.lam), case, task, first_order
        self.lam = self.layout.ravel(case.lam)
        self.w = torch.ones(len(task.support[1]), dtype=torch.float64)

    def theta(self, lam: Tensor, w: Tensor) -> Tensor:
        named, at = self.layout.unravel(lam), self.layout.unravel(self.lam)

        def slope(theta: Tensor, lam: Named = named) -> Tensor:
            def loss(theta: Tensor) -> Tensor:
                return (w * classification(lam, _named(theta), *self.task.support)).sum()

            return grad(loss)(theta)

        start = torch.cat([named["bias"], named["head"].flatten()])
        if not self._first_order:
            return self.case.by_hand(named, start, slope)
        fixed: list[Tensor] = []
        noted = lambda theta: fixed.append(slope(theta, at)) or fixed[-1]  # noqa: E731
        self.case.by_hand(at, torch.cat([at["bias"], at["head"].flatten()]), noted)
        return self.case.by_hand(named, start, lambda theta: fixed.pop(0))

    def outer(self, lam: Tensor, w: Tensor) -> Tensor:
        return classification(self.layout.unravel(lam), _named(self.theta(lam, w)), *self.task.query).sum()


def _named(theta: Tensor) -> Named:
    return {"bias": theta[:4], "head": theta[4:].view(4, 3)}


def problem(case: Case, first_order: bool = False) -> BilevelProblem:
    loss = ModelLoss(own_names_only, lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"), parameters())
    return BilevelProblem(loss, loss, Unrolled(case.rule, STEPS, first_order), L2, ["bias", "head"])


def own_names_only(p: Named, x: Tensor) -> Tensor:
    assert set(p) == {"body", "bias", "head"}
    return network(p, x)


TASKS = classification_tasks(3)


@SECOND_AND_FIRST
@ALL
def test_theta_and_its_jacobians(case: Case, first_order: bool) -> None:
    solution = problem(case, first_order).at(case.lam, TASKS[:1]).one(0).solution
    reference = Reference(case, TASKS[0], first_order)
    at = reference.lam, reference.w
    by_lam, by_w = (jacrev(reference.theta, argnums=i)(*at) for i in (0, 1))
    v, u, e = (randn(i, 1, n) for i, n in enumerate((len(reference.lam), 16, 6)))
    assert relative(solution.theta[0], reference.theta(*at)) < 1e-12
    for found, expected in (
        (solution.jvp(v)[0], by_lam @ v[0]),
        (solution.vjp(u)[0], by_lam.T @ u[0]),
        (solution.jvp_weights(e)[0], by_w @ e[0]),
        (solution.vjp_weights(u)[0], by_w.T @ u[0]),
    ):
        assert relative(found, expected) < 1e-10


@ALL
def test_the_jacobian_is_the_finite_difference_of_the_steps(case: Case) -> None:
    solved_tasks = problem(case).at(case.lam, TASKS[:1])
    layout, step = Layout(case.lam), 1e-5
    v = randn(3, 1, layout.size)
    ends = [
        problem(case).solve_inner(layout.unravel(layout.ravel(case.lam) + sign * step * v[0]), TASKS[0]).theta
        for sign in (1, -1)
    ]
    slope = torch.cat([((ends[0][key] - ends[1][key]) / (2 * step)).flatten() for key in ends[0]])
    assert relative(solved_tasks.one(0).solution.jvp(v)[0], slope) < 1e-8


@SECOND_AND_FIRST
@ALL
def test_total_gradients_and_their_derivatives_by_lambda_and_support_weights(case: Case, first_order: bool) -> None:
    """For first order the derivative by λ is at the gradients that are held fixed, that by the weights is in full."""
    at = problem(case, first_order).at(case.lam, TASKS[:1]).one(0)
    reference = Reference(case, TASKS[0], first_order)
    both = reference.lam, reference.w
    (by_lam, _), (across, _) = hessian(reference.outer, argnums=(0, 1))(*both)
    v, e = randn(5, 1, len(reference.lam)), randn(6, 1, 6)
    assert relative(at.total_gradient[0], grad(reference.outer)(*both)) < 1e-10
    found, along = at.second(v, torch.zeros_like(e))
    assert relative(found[0], by_lam @ v[0]) < 1e-9
    assert relative(along[0], across @ v[0]) < 1e-9
    assert relative(at.gradient_by_support(e)[0], across.T @ (reference.w * e[0])) < 1e-9


@pytest.mark.parametrize("kind", ["exact", "hessian", "gauss-newton", "gamma", "direct-first-order"])
@pytest.mark.parametrize("rule", ["rates", "transform, adapted"])
def test_hessians_are_dense_algebra(rule: str, kind: str) -> None:
    case = CASES[rule]
    expected = sum(c * dense(Reference(case, task), kind) for c, task in zip(WEIGHTS, TASKS, strict=True))
    v = randn(2, 2, Layout(case.lam).size)
    found = problem(case).total_hessian(case.lam, TASKS, kind, WEIGHTS).operator.matvec(v)
    assert relative(found, v @ expected) < 1e-9


def dense(reference: Reference, kind: str) -> Tensor:
    """H_i of one task."""
    lam, theta = reference.lam, reference.theta(reference.lam, reference.w)
    if kind == "exact":
        return hessian(reference.outer)(lam, reference.w)
    x, y = reference.task.query

    def outputs(lam: Tensor, theta: Tensor) -> Tensor:
        return network({**reference.layout.unravel(lam), **_named(theta)}, x)

    def outer(lam: Tensor, theta: Tensor) -> Tensor:
        return F.cross_entropy(outputs(lam, theta), y, reduction="sum")

    jacobian = jacrev(reference.theta)(lam, reference.w)
    if kind == "direct-first-order":
        jacobian = torch.zeros_like(jacobian)
        jacobian[:, 12:28] = torch.eye(16)  # body is first in λ, then bias and head
    z = torch.cat([torch.eye(len(lam), dtype=lam.dtype), jacobian])
    if kind == "gauss-newton":
        at = outputs(lam, theta)
        curvature = hessian(lambda at: F.cross_entropy(at, y, reduction="sum"))(at).reshape(at.numel(), -1)
        j = torch.cat([part.reshape(at.numel(), -1) for part in jacrev(outputs, argnums=(0, 1))(lam, theta)], dim=1)
        return z.T @ j.T @ curvature @ j @ z
    (ll, lt), (tl, tt) = hessian(outer, argnums=(0, 1))(lam, theta)
    if kind == "gamma":
        cross = jacobian.T @ tl
        return ll + cross + cross.T + grad(outer, argnums=1)(lam, theta).abs().sum() * torch.eye(len(lam)).to(lam)
    return z.T @ torch.cat([torch.cat([ll, lt], 1), torch.cat([tl, tt], 1)]) @ z


def test_the_rows_of_a_sketch_are_derivatives_of_outputs_through_the_steps() -> None:
    case = CASES["rates"]
    rows = Sketch(samples=3).operator(problem(case).at(case.lam, TASKS[:1])).rows
    reference = Reference(case, TASKS[0])

    def outputs(lam: Tensor) -> Tensor:
        named = reference.layout.unravel(lam)
        return network({**named, **_named(reference.theta(lam, reference.w))}, TASKS[0].query[0]).flatten()

    jacobian = jacrev(outputs)(reference.lam)
    assert len(jacobian) < rows.shape[1]
    assert relative(rows @ torch.linalg.pinv(jacobian) @ jacobian, rows) < 1e-9


def test_the_loss_depends_on_the_rules_entries_through_theta_alone() -> None:
    case = CASES["rates"]
    everything = BilevelProblem(
        ModelLoss(network, lambda out, y: F.cross_entropy(out, y, reduction="none"), parameters()),
        ModelLoss(network, lambda out, y: F.cross_entropy(out, y, reduction="none"), parameters()),
        Unrolled(LearnedRates({"body": "rates.bias", "bias": "rates.bias", "head": "rates.head"}), STEPS),
        L2,
        ["body", "bias", "head"],
    )
    assert not everything.at(case.lam, TASKS).settings.outer.direct
    assert problem(case).at(case.lam, TASKS).settings.outer.direct  # by the body
    with pytest.warns(UserWarning, match="identically zero"):
        assert not everything.total_hessian(case.lam, TASKS, "direct").operator.matvec(randn(0, 1, 41)).any()
