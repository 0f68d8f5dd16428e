"""How close λ is to a minimum: its numbers by hand, and what is said of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from l2l_influence.bilevel import BilevelProblem, Stationarity, Task, Unrolled

from ..reference_problems.autograd import Reference, classification, classification_tasks, parameters, randn, relative

# ---- one number to adapt ----------------------------------------------------------------------------------------

DELTA, L2 = 3.0, 0.5
CENTRES = [(1.0, 2.0), (-1.0, 0.5), (4.0, -3.0)]
"""Support and query target of each task."""
WEIGHTS = [1.0, 2.0, 0.5]


def distance(lam: dict[str, Tensor], theta: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (theta["at"] - y).square()


def scalar_tasks() -> list[Task]:
    return [Task(*((torch.zeros(1), torch.tensor([y], dtype=torch.float64)) for y in pair)) for pair in CENTRES]


def slopes(lam: float, proximal: bool) -> list[float]:
    """c_i g_i by hand: θ = (a + δλ)/(1 + δ), or one step of half the way; g = (θ − b) dθ/dλ."""
    chain = DELTA / (1 + DELTA) if proximal else 0.5
    return [c * chain * (chain * lam + (1 - chain) * a - b) for c, (a, b) in zip(WEIGHTS, CENTRES, strict=True)]


@pytest.mark.parametrize("proximal", [True, False])
def test_its_numbers_by_hand(proximal):
    problem = BilevelProblem(distance, distance, DELTA if proximal else Unrolled(lr=0.5, steps=1), L2)
    lam = 1.7
    found = problem.stationarity({"at": torch.tensor([lam], dtype=torch.float64)}, scalar_tasks(), WEIGHTS)
    parts = slopes(lam, proximal)
    total, terms = sum(parts) + L2 * lam, sum(map(abs, parts)) + L2 * lam
    assert float(found.gradient) == pytest.approx(total, rel=1e-7)
    assert found.terms == pytest.approx(terms, rel=1e-7)
    assert found.task == pytest.approx(sum(map(abs, parts)) / 3, rel=1e-7)
    assert found.relative == pytest.approx(abs(total) / terms, rel=1e-7)
    assert found.tasks == pytest.approx(abs(total) / (sum(map(abs, parts)) / 3), rel=1e-7)


def test_nothing_is_left_at_the_minimum():
    """L_Total is a parabola: its slope at 0 and at 1 say where it ends."""
    at_zero, at_one = (sum(slopes(lam, proximal=False)) + L2 * lam for lam in (0.0, 1.0))
    end = {"at": torch.tensor([-at_zero / (at_one - at_zero)], dtype=torch.float64)}
    problem = BilevelProblem(distance, distance, Unrolled(lr=0.5, steps=1), L2)
    found = problem.stationarity(end, scalar_tasks(), WEIGHTS)
    assert found.relative < 1e-15 and found.trusted and found.terms > 1


# ---- many parameters --------------------------------------------------------------------------------------------


def test_it_is_the_slope_of_the_reoptimised_problem():
    lam, tasks, weights = parameters(), classification_tasks(3), [1.0, 2.0, 0.5]
    reference = Reference(classification, lam, None, DELTA)
    expected = [w * reference.total_gradient(task) for w, task in zip(weights, tasks, strict=True)]
    problem = BilevelProblem(classification, classification, DELTA, L2, inner_tolerance=1e-12)
    found = problem.stationarity(lam, tasks, weights)
    assert relative(found.gradient, sum(expected) + L2 * reference.lam) < 1e-8
    assert found.terms == pytest.approx(float(sum(g.norm() for g in expected) + L2 * reference.lam.norm()), rel=1e-8)
    assert found.task == pytest.approx(float(sum(g.norm() for g in expected) / 3), rel=1e-8)


def test_batches_of_any_size_and_shape_give_the_same():
    lam = parameters()
    tasks = [
        *classification_tasks(3),
        *(Task((t.query[0], t.query[1]), t.support) for t in classification_tasks(2, 500)),
    ]
    whole, single = (
        BilevelProblem(classification, classification, Unrolled(0.1, 2), L2, memory=memory).stationarity(lam, tasks)
        for memory in (2**30, 1)
    )
    assert relative(single.gradient, whole.gradient) < 1e-12
    assert single.terms == pytest.approx(whole.terms, rel=1e-12) and single.task == pytest.approx(whole.task, rel=1e-12)


def test_sums_are_double_whatever_the_problem():
    lam = {name: value.float() for name, value in parameters().items()}
    tasks = [
        Task((t.support[0].float(), t.support[1]), (t.query[0].float(), t.query[1])) for t in classification_tasks(3)
    ]
    found = BilevelProblem(classification, classification, Unrolled(0.1, 2), L2).stationarity(lam, tasks)
    exact = BilevelProblem(classification, classification, Unrolled(0.1, 2), L2)
    assert found.gradient.dtype == torch.float64
    assert relative(found.gradient, exact.stationarity(parameters(), classification_tasks(3)).gradient) < 1e-5


# ---- what is said of it -----------------------------------------------------------------------------------------


def found(left: float, terms: float = 100.0, task: float = 10.0) -> Stationarity:
    return Stationarity(left * randn(0, 5) / randn(0, 5).norm(), terms, task)


def test_less_than_a_tasks_gradient_is_trusted():
    for left, trusted in ((9.9, True), (10.1, False)):
        assert found(left).trusted == trusted
        assert found(left).tasks == pytest.approx(left / 10) and found(left).relative == pytest.approx(left / 100)


def test_it_says_so_in_words():
    assert str(found(5.0)) == (
        "‖D_λ L_Total‖ is 0.05 of its terms, 0.5 times the average task's gradient: "
        "λ* is stationary enough for removals to be trusted"
    )
    text = str(found(42.0))
    for words in ("0.42 of its terms", "λ* is NOT stationary", "fewer than about 4.2 of them", "correct_residual=True"):
        assert words in text


def test_no_gradients_at_all_are_a_minimum():
    """A problem without regulariser whose tasks ask for nothing."""
    nothing = found(0.0, terms=0.0, task=0.0)
    assert (nothing.relative, nothing.tasks, nothing.trusted) == (0.0, 0.0, True)


def test_what_is_not_a_number_is_never_trusted():
    broken = found(math.nan, terms=math.nan, task=math.nan)
    assert not broken.trusted and "NOT stationary" in str(broken)
