"""Losses that differ from step to step, and step sizes that do, against loops written by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l_influence.bilevel import BilevelProblem, LearnedRates, PlainSteps, Proximal, Task, Unrolled, UnrolledWith
from l2l_influence.bilevel.inner.steps.factored import FactoredSteps
from l2l_influence.errors import LossStructureError

from ...reference_problems.autograd import (
    Named,
    Reference,
    UnrolledReference,
    classification,
    network,
    parameters,
    randn,
    relative,
)

RATES = (0.3, 0.1, 0.2)
ROWS = (slice(0, 2), slice(1, 6), slice(0, 6))
"""The rows that each step uses: another number in each."""


class Stepped:
    """Step k uses its rows only, with a penalty of its own that is the last value."""

    steps_differ = True

    def __call__(self, lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(network({**lam, **theta}, x), y, reduction="none")
        return torch.cat([losses, losses.new_zeros(1)])

    def at_step(self, k: int) -> Callable[..., Tensor]:
        return partial(self._step, k)

    @staticmethod
    def _step(k: int, lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(network({**lam, **theta}, x[ROWS[k]]), y[ROWS[k]], reduction="none")
        before, after = ROWS[k].start, 6 - ROWS[k].stop
        penalty = (k + 1) * theta["head"].square().sum()
        return torch.cat([F.pad(losses, (before, after)), penalty.unsqueeze(0)])


class SameSteps(Stepped):
    """A loss that says that its steps are the same."""

    steps_differ = False


def task(seed: int = 1) -> Task:
    w = torch.cat([torch.full((6,), 1 / 6, dtype=torch.float64), torch.tensor([0.05], dtype=torch.float64)])
    return Task((randn(seed, 6, 3), torch.arange(6) % 3), (randn(seed + 1, 5, 3), torch.arange(5) % 3), w)


class SteppedReference(UnrolledReference):
    """The loop that a user would write: other rows, another penalty and another step size in each step."""

    def __init__(self, keys: list[str] | None, first_order: bool = False) -> None:
        super().__init__(classification, parameters(), keys, 0.0, 3)
        self.first_order = first_order

    def solve(self, lam: Tensor, task: Task, w: Tensor | None = None) -> Tensor:
        theta, (x, y) = self.start(lam), task.support
        w = task.support_weights if w is None else w
        for k, (rate, rows) in enumerate(zip(RATES, ROWS, strict=True)):
            at = self.part.unravel(theta)
            outputs = network({**self.layout.unravel(lam), **at}, x[rows])
            loss = (w[:6][rows] * F.cross_entropy(outputs, y[rows], reduction="none")).sum()
            loss = loss + w[6] * (k + 1) * at["head"].square().sum()
            (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - rate * (slope.detach() if self.first_order else slope)
        return theta

    def gradient(self, task: Task) -> Tensor:
        lam = self.lam.clone().requires_grad_()
        return torch.autograd.grad(self.outer(task)(lam, self.solve(lam, task)), lam)[0]

    def hessian_product(self, task: Task, v: Tensor) -> Tensor:
        lam = self.lam.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.outer(task)(lam, self.solve(lam, task)), lam, create_graph=True)
        return torch.autograd.grad(slope @ v, lam)[0]

    def weight_slopes(self, task: Task, v: Tensor) -> Tensor:
        """∂⟨g, v⟩/∂w_j."""
        lam, w = self.lam.clone().requires_grad_(), task.support_weights.clone().requires_grad_()
        value = self.outer(task)(lam, self.solve(lam, task, w))
        (slope,) = torch.autograd.grad(value, lam, create_graph=True)
        return torch.autograd.grad(slope @ v, w)[0]


KEYS = pytest.mark.parametrize("keys", [None, ["bias", "head"]], ids=["all adapted", "some adapted"])


@KEYS
@pytest.mark.parametrize("first_order", [False, True])
def test_total_gradients_through_steps_that_differ(keys: list[str] | None, first_order: bool) -> None:
    kind = Unrolled(RATES, 3, first_order)
    solved = next(
        BilevelProblem(Stepped(), classification, kind, 0.0, keys).at(parameters(), [task(), task(5)]).batches()
    )
    for row, one in zip(solved.total_gradient, [task(), task(5)], strict=True):
        assert relative(row, SteppedReference(keys, first_order).gradient(one)) < 1e-10


@KEYS
def test_second_derivatives_through_steps_that_differ(keys: list[str] | None) -> None:
    problem, truth, v = (
        BilevelProblem(Stepped(), classification, Unrolled(RATES, 3), 0.0, keys),
        SteppedReference(keys),
        randn(9, 28),
    )
    assert relative(problem.total_hessian(parameters(), [task()], "exact") @ v, truth.hessian_product(task(), v)) < 1e-9
    solved = problem.at(parameters(), [task()]).one(0)
    expected = truth.weight_slopes(task(), v) * task().support_weights
    assert relative(solved.support_slopes(v.unsqueeze(0))[0], expected[:6]) < 1e-9
    e = randn(11, 1, 7)
    by_weight = solved.solution.vjp_weights(solved.solution.jvp_weights(e))
    dense = jacobian_by_weights(truth)
    assert relative(by_weight[0], dense.T @ (dense @ e[0])) < 1e-9


def jacobian_by_weights(truth: SteppedReference) -> Tensor:
    lam, w = truth.lam.clone().requires_grad_(), task().support_weights.clone().requires_grad_()
    theta = truth.solve(lam, task(), w)
    return torch.stack([torch.autograd.grad(entry, w, retain_graph=True)[0] for entry in theta])


def test_a_learned_rule_and_an_optimiser_use_the_loss_of_each_step() -> None:
    lam = {**parameters(), "rates": torch.full((1,), 0.1, dtype=torch.float64)}
    rule = LearnedRates({"head": "rates"})
    kinds = [
        Unrolled(rule, 3),
        UnrolledWith(partial(torch.optim.SGD, lr=0.1), 3),
        Unrolled(0.1, 3),
        Unrolled([0.1] * 3, 3),
    ]
    gradients = [
        BilevelProblem(Stepped(), classification, kind, 0.0, ["head"]).total_gradient(lam, task()) for kind in kinds
    ]
    for other in gradients:
        for name in parameters():
            torch.testing.assert_close(gradients[0][name], other[name], rtol=1e-9, atol=1e-12)
    by_rate = UnrolledReference(classification, parameters(), ["head"], 0.1, 3)

    def value(rate: float) -> Tensor:
        theta, part = by_rate.start(by_rate.lam), by_rate.part
        for k in range(3):
            theta = theta.detach().requires_grad_()
            losses = Stepped().at_step(k)(parameters(), part.unravel(theta), *task().support)
            theta = theta - rate * torch.autograd.grad((task().support_weights * losses).sum(), theta)[0]
        return by_rate.outer(task())(by_rate.lam, theta).detach()

    assert relative(gradients[0]["rates"], ((value(0.1 + 1e-5) - value(0.1 - 1e-5)) / 2e-5).unsqueeze(0)) < 1e-6


def test_the_proximal_kind_needs_the_same_loss_in_each_step() -> None:
    with pytest.raises(LossStructureError, match="differs from step to step.*Unrolled"):
        BilevelProblem(Stepped(), classification, Proximal(6.0), 0.0).solve_inner(parameters(), task())
    same = BilevelProblem(SameSteps(), classification, Proximal(6.0, "cg", 1e-12), 0.0)
    truth = Reference(lambda *given: SameSteps()(*given), parameters(), None, 6.0)
    expected = truth.layout.unravel(truth.solve(truth.lam, task()))
    assert relative(same.solve_inner(parameters(), task()).theta["head"], expected["head"]) < 1e-9


def test_a_loss_whose_steps_are_the_same_is_called_itself() -> None:
    gradients = [
        BilevelProblem(loss, classification, Unrolled(0.1, 2), 0.0).total_gradient(parameters(), task())["body"]
        for loss in (SameSteps(), lambda *given: Stepped()(*given))
    ]
    assert torch.equal(*gradients)


# ---- step sizes --------------------------------------------------------------------------------------------------


def wide_problem(rates: tuple[float, ...]) -> tuple[BilevelProblem, Named, list[Task]]:
    def loss(lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(torch.tanh(F.linear(x, theta["wide"])), theta["head"]), y, reduction="none")

    lam = {"wide": randn(1, 40, 50) / 7, "head": randn(2, 3, 40) / 6}
    tasks = [Task((randn(s, 2, 50), torch.arange(2)), (randn(s + 1, 3, 50), torch.arange(3))) for s in (3, 5)]
    return BilevelProblem(loss, loss, Unrolled(rates, len(rates)), 0.0), lam, tasks


def test_wide_layers_take_steps_of_different_sizes() -> None:
    rates = (0.5, 0.2)
    problem, lam, tasks = wide_problem(rates)
    solved = next(problem.at(lam, tasks).microbatches())
    assert isinstance(solved.solution, FactoredSteps)
    for row, one in zip(solved.total_gradient, tasks, strict=True):
        start = {name: value.clone().requires_grad_() for name, value in lam.items()}
        theta = start
        for rate in rates:
            slopes = torch.autograd.grad(
                problem.inner_loss(lam, theta, *one.support).sum(), list(theta.values()), create_graph=True
            )
            theta = {name: value - rate * slope for (name, value), slope in zip(theta.items(), slopes, strict=True)}
        outer = problem.outer_loss(lam, theta, *one.query).sum()
        expected = torch.cat([slope.flatten() for slope in torch.autograd.grad(outer, list(start.values()))])
        assert relative(row, expected) < 1e-10


def test_wrong_step_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 step sizes for 3 steps"):
        Unrolled([0.1, 0.2], 3)
    with pytest.raises(ValueError, match="lr > 0"):
        Unrolled([0.1, 0.0], 2)
    assert Unrolled([0.1, 0.2], 2) == Unrolled((0.1, 0.2), 2)
    assert PlainSteps((0.1, 0.2)).rate(1) == 0.2


def test_stepped_losses_of_wide_layers_are_differentiated_through_each_step() -> None:
    """The rows of a layer differ from step to step, so no low-rank factors are used."""
    _, lam, tasks = wide_problem((0.5,))
    layer = nn.Identity()

    class Halves:
        def __call__(self, lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(F.linear(F.linear(layer(x), theta["wide"]), theta["head"]), y, reduction="none")

        def at_step(self, k: int) -> Callable[..., Tensor]:
            return lambda lam, theta, x, y: F.pad(self(lam, theta, x[k : k + 1], y[k : k + 1]), (k, 1 - k))

    solved = next(BilevelProblem(Halves(), Halves(), Unrolled(0.1, 2), 0.0).at(lam, tasks).microbatches())
    assert not isinstance(solved.solution, FactoredSteps)
    assert solved.total_gradient.isfinite().all()
