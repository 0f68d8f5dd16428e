"""MetaSGD and GBML with the unrolled kind: rates and transforms are meta-parameters beside the initialisation. Held
against learn2learn's own backward, and against re-optimising all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian
from torch.nn.utils import vector_to_parameters

from l2l_influence import QueryInfluence, SupportInfluence, TaskInfluence, TotalGradient

from ..reference_problems.autograd import relative
from ..reference_problems.learn2learn import pairs, regression_batches
from .learned import LOSS, LR, MAKERS, batches, by_own_name, make, outer_loss, recorded

CASES = [
    (rule, first_order, steps)
    for rule in MAKERS
    for first_order, steps in ((False, 3), (True, 1), (True, 2))
    if not (first_order and "adapted" in rule and steps > 1)  # there learn2learn itself fails
]


@pytest.mark.parametrize(("rule", "first_order", "steps"), CASES)
def test_total_gradients_are_what_the_learner_leaves_in_grad(rule: str, first_order: bool, steps: int) -> None:
    learner, tasks = make(rule, first_order=first_order), batches(1, seed=1)
    found = TotalGradient(recorded(learner, tasks, steps), loss=LOSS).of(0)
    outer_loss(learner, pairs(tasks)[0], steps).backward()
    expected = by_own_name(learner)
    assert list(found) == [name.removeprefix("module.") for name, _ in learner.named_parameters()]
    for name, value in found.items():
        torch.testing.assert_close(value, expected.get(name, torch.zeros_like(value)), rtol=1e-9, atol=1e-12)


# ---- against re-optimisation -------------------------------------------------------------------------------------


def meta_sgd_steps(lam: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
    """Two steps of MetaSGD on a linear model of three weights; λ holds these and their rates."""
    theta = lam[:3]
    for _ in range(2):
        theta = theta - lam[3:] * slope(theta)
    return theta


def curved_steps(lam: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
    """Two steps of GBML with meta-curvature, which is a 1 × 1 and a 3 × 3 matrix for that model."""
    theta, first, second = lam[:3], lam[3], lam[4:].view(3, 3)
    for _ in range(2):
        theta = theta - LR * first * slope(theta) @ second
    return theta


SMALL: dict[str, Any] = {"meta-sgd": meta_sgd_steps, "meta-curvature": curved_steps}
L2 = 0.1


class Retraining:
    """argmin_λ Σ_i c_i L_O^i(θ_i(λ)) + (l2/2) ‖λ‖² by Newton's method, rates or transforms being a part of λ.

    Weights ``[T]`` of tasks, ``[T, n]`` of samples in the outer and in the inner loss; ``items`` are positions in them.
    """

    def __init__(self, rule: str) -> None:
        torch.manual_seed(0)
        self._steps, self._learner = SMALL[rule], make(rule, nn.Linear(3, 1, bias=False))
        self.batches = regression_batches(5, seed=0)
        self._weights = [torch.ones(5), torch.ones(5, 4), torch.ones(5, 4)]
        self._start = flat(self._learner.parameters())

    def loss(self, lam: Tensor, pair: Any, query: Tensor, support: Tensor) -> Tensor:
        (xs, ys), (xq, yq) = pair
        slope = grad(lambda theta: (support * (xs @ theta - ys[:, 0]).square()).mean())
        outer: Tensor = (query * (xq @ self._steps(lam, slope) - yq[:, 0]).square()).mean()
        return outer

    def objective(self, lam: Tensor, weights: Sequence[Tensor]) -> Tensor:
        losses = map(self.loss, [lam] * 5, pairs(self.batches), *weights[1:])
        total: Tensor = sum(w * loss for w, loss in zip(weights[0], losses, strict=True)) + L2 / 2 * lam @ lam
        return total

    def __call__(self, what: int = 0, item: Any = 0, change: float = 0.0) -> Tensor:
        """λ* where one item's weight is 1 + ``change``."""
        weights = [w.double().clone() for w in self._weights]
        weights[what][item] += change
        lam = self._start
        while float((slope := grad(self.objective)(lam, weights)).norm()) > 1e-12:
            values, vectors = torch.linalg.eigh(hessian(self.objective)(lam, weights))
            step = vectors @ (vectors.T @ slope / values.abs().clamp_min(1e-2))  # downhill, wherever the search is
            while float(slope.norm()) > 1e-6 and self.objective(lam - step, weights) > self.objective(lam, weights):
                step = step / 2
            lam = lam - step
        assert float(torch.linalg.eigvalsh(hessian(self.objective)(lam, weights)).min()) > 0
        self._start = lam if change == 0 else self._start
        return lam

    def study(self) -> tuple[Any, Any]:
        """A learner at λ*, and the study of a loop that leaves it there."""
        vector_to_parameters(self(), self._learner.parameters())
        return self._learner, recorded(self._learner, self.batches, 2, nn.MSELoss())

    def test_loss(self, lam: Tensor) -> float:
        ones = torch.ones(4).double()
        tests = pairs(regression_batches(3, seed=1))
        return float(sum(self.loss(lam, pair, ones, ones) for pair in tests) / len(tests))


ITEMS = {TaskInfluence: (0, 1), QueryInfluence: (1, (1, 2)), SupportInfluence: (2, (1, 2))}


@pytest.mark.parametrize("kind", ITEMS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("rule", SMALL)
def test_scores_are_derivatives_of_the_test_loss_of_retrained_meta_parameters(rule: str, kind: Any) -> None:
    retraining = Retraining(rule)
    learner, study = retraining.study()
    hook = kind(study, loss=nn.MSELoss(), hessian="exact", l2=L2, damping=0.0, tolerance=1e-12)
    scores, (what, item) = hook.scores(pairs(regression_batches(3, seed=1))), ITEMS[kind]
    more, less = (retraining(what, item, sign * 1e-4) for sign in (1, -1))
    slope = (retraining.test_loss(more) - retraining.test_loss(less)) / 2e-4
    assert scores.values[item] == pytest.approx(slope, rel=1e-5)
    moved, sign = flat(hook.influence(item).values()), kind._items.gradient.sign
    expected = -sign * (more - less) / 2e-4
    assert relative(moved[:3], expected[:3]) < 1e-5 and relative(moved[3:], expected[3:]) < 1e-5
    edited, other = hook.remove(item), make(rule, nn.Linear(3, 1, bias=False))
    other.load_state_dict(edited)
    at = flat(learner.parameters())
    torch.testing.assert_close(flat(other.parameters()), at + sign * moved, rtol=1e-9, atol=1e-12)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
