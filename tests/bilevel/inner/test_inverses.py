"""Every way to invert the inner Hessian against dense algebra, one task at a time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import jacrev

from l2l_influence.bilevel import CG, BilevelProblem, FunctionalModel, Layout, ModelLoss, Task, Unrolled
from l2l_influence.bilevel.inner import InnerProblem
from l2l_influence.bilevel.inner.inverses.inverse import INVERSES, InnerHessian, Iterative, pick
from l2l_influence.bilevel.objective import Objective
from l2l_influence.bilevel.solvers import Policy, agreement
from l2l_influence.bilevel.task import Samples, stack
from l2l_influence.errors import NegativeCurvatureError

from ...reference_problems.autograd import (
    Reference,
    classification,
    classification_tasks,
    network,
    parameters,
    randn,
    relative,
)
from ..systems import close, shifted, true_residual

DELTA = 3.0
KEYS = pytest.mark.parametrize("theta_keys", [None, ["head"]], ids=["maml", "anil"])
EXACT = sorted(set(INVERSES) - {"gram", "identity", "ekfac"})


def unequal_tasks():
    """Tasks whose inner Hessians have condition numbers from 1 to some tens."""
    weights = [1e-3, 0.3, 1.0, 3.0]
    return [
        Task(task.support, task.query, torch.full((6,), weight, dtype=torch.float64))
        for weight, task in zip(weights, classification_tasks(4), strict=True)
    ]


def solved(name, theta_keys, tasks, tolerance=1e-8):
    problem = BilevelProblem(
        classification, classification, DELTA, 0.5, theta_keys, inner_solver=name, inner_tolerance=tolerance
    )
    (batch,) = problem.at(parameters(), tasks).microbatches()
    return batch.solution


class Dense:
    """H_in, its Gauss–Newton part and ∂_θ∂_λ L_I of one task at θ, by brute force."""

    def __init__(self, theta_keys, task, theta):
        self.reference = Reference(classification, parameters(), theta_keys, DELTA)
        self.lam, self.theta, self.task = self.reference.lam, theta, task
        self.slope = jacrev(self.reference.inner(task), 1)
        self.cross, self.hessian = jacrev(self.slope, (0, 1))(self.lam, theta)

    def gauss_newton(self):
        def outputs(theta):
            named = {**self.reference.layout.unravel(self.lam), **self.reference.part.unravel(theta)}
            return network(named, self.task.support[0])

        j, p = jacrev(outputs)(self.theta), outputs(self.theta).softmax(-1)
        by_outputs = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        curved = torch.einsum("n,ncp,ncd,ndq->pq", self.task.support_weights, j, by_outputs, j)
        return curved + DELTA * torch.eye(len(self.theta), dtype=torch.float64)


@cache
def minima(theta_keys):
    """Each task's matrices at its minimum."""
    tasks = unequal_tasks()
    theta = solved("gram", theta_keys and list(theta_keys), tasks).theta
    return [Dense(theta_keys and list(theta_keys), *pair) for pair in zip(tasks, theta, strict=True)]


def check_products(name, theta_keys, inner_hessian):
    """dθ/dλ as products against −H⁻¹ ∂_θ∂_λ L_I, with the ``inner_hessian`` of each task's :class:`Dense`."""
    solution = solved(name, theta_keys, unequal_tasks())
    v, u = randn(1, 4, 28), randn(2, *solution.theta.shape)
    along, back = solution.jvp(v), solution.vjp(u)
    for i, dense in enumerate(minima(theta_keys and tuple(theta_keys))):
        jacobian = -torch.linalg.solve(inner_hessian(dense), dense.cross)
        assert relative(along[i], jacobian @ v[i]) < 1e-7
        assert relative(back[i], jacobian.T @ u[i]) < 1e-7


@KEYS
def test_these_are_minima_of_different_condition(theta_keys):
    found = minima(theta_keys and tuple(theta_keys))
    assert all(float(dense.slope(dense.lam, dense.theta).norm()) < 1e-7 for dense in found)
    conditions = [float(torch.linalg.cond(dense.hessian)) for dense in found]
    assert conditions[0] < 1.01 and conditions[-1] > 2


@KEYS
@pytest.mark.parametrize("name", EXACT)
def test_jacobian_products_equal_dense_algebra(name, theta_keys):
    check_products(name, theta_keys, lambda dense: dense.hessian)


@KEYS
def test_gram_products_equal_dense_gauss_newton_algebra(theta_keys):
    check_products("gram", theta_keys, lambda dense: dense.gauss_newton())


@KEYS
def test_identity_takes_the_loss_to_have_no_curvature(theta_keys):
    check_products("identity", theta_keys, lambda dense: DELTA * torch.eye(len(dense.theta), dtype=torch.float64))


# ---- away from a minimum -----------------------------------------------------------------------------------------


def away_from_a_minimum(dtype=torch.float64, delta=0.05):
    """Three tasks' inner problems at a θ where H_in has negative eigenvalues, and H_in itself."""
    loss = ModelLoss(network, lambda outputs, y: torch.nn.functional.cross_entropy(outputs, y, reduction="none"))
    tasks = classification_tasks(3)
    tasks = [Task((t.support[0].to(dtype), t.support[1]), (t.query[0].to(dtype), t.query[1])) for t in tasks]
    layout = Layout({key: value.to(dtype) for key, value in parameters().items()}).keep(parameters())
    lam, theta = layout.ravel({key: value.to(dtype) for key, value in parameters().items()}), randn(7, 3, 28).to(dtype)
    samples = stack(tasks, [0, 1, 2], [1.0] * 3, lam).support
    problem = InnerProblem(Objective(loss, layout, layout), lam, samples, theta, layout, layout)
    matrices = [
        Dense(None, task, at).hessian + (delta - DELTA) * torch.eye(28, dtype=torch.float64)
        for task, at in zip(classification_tasks(3), theta.double(), strict=True)
    ]
    return problem, theta, delta, torch.stack(matrices)


def test_indefinite_inner_hessians_by_minres():
    problem, theta, delta, matrices = away_from_a_minimum()
    assert bool((torch.linalg.eigvalsh(matrices)[:, 0] < -0.1).all())
    b = randn(3, 3, 28)
    operator, solver = INVERSES["minres"](problem, theta, delta, 1e-10)
    assert operator.note == "minres" and operator.shift == delta
    assert close(Policy().solve(operator, solver, b, "test").value, matrices, b) < 1e-7


@pytest.mark.parametrize("name", sorted(set(EXACT) - {"minres"}))
def test_indefinite_inner_hessians_are_refused_or_damped(name):
    problem, theta, delta, matrices = away_from_a_minimum()
    b = randn(3, 3, 28)
    operator, solver = INVERSES[name](problem, theta, delta, 1e-7)
    with pytest.raises(NegativeCurvatureError, match="the inner system"):
        Policy().solve(operator, solver, b, "the inner system")
    with pytest.warns(UserWarning, match="added to their diagonals"):
        damped = Policy("damp").solve(operator, solver, b, "the inner system")
    assert damped.report.shift == delta
    assert close(damped.value, shifted(matrices, damped.report.damping), b) < 1e-4
    assert close(Policy("minres").solve(operator, solver, b, "the inner system").value, matrices, b) < 1e-4


@pytest.mark.parametrize("name", EXACT)
def test_float32(name):
    problem, theta, delta, matrices = away_from_a_minimum(torch.float32, delta=15.0)
    b = randn(3, 3, 28)
    operator, solver = INVERSES[name](problem, theta, delta, 1e-4)
    solution = Policy().solve(operator, solver, b.float(), "test")
    assert solution.value.dtype == torch.float32
    assert float(true_residual(matrices, solution.value, b).max()) < 1.1e-4


def only(problem, i):
    """The inner problem of one task of the batch."""
    return replace(problem, samples=Samples(*(part[i : i + 1] for part in problem.samples)), start=problem.start[[i]])


@pytest.mark.parametrize("name", [*EXACT, "gram"])
def test_a_task_fares_alone_as_it_does_in_a_batch(name):
    problem, theta, delta, _ = away_from_a_minimum(delta=15.0)
    b = randn(3, 3, 28)
    operator, solver = INVERSES[name](problem, theta, delta, 1e-7)
    together = solver.solve(operator, b).value
    for i in range(3):
        operator, solver = INVERSES[name](only(problem, i), theta[i : i + 1], delta, 1e-7)
        assert relative(solver.solve(operator, b[i : i + 1]).value[0], together[i]) < 1e-10


# ---- names and choices -------------------------------------------------------------------------------------------


def picked(problem):
    operator, _ = pick("auto", problem)(problem, problem.start, DELTA, 1e-6)
    return operator.note


def test_auto_says_what_it_picked_and_why(monkeypatch):
    problem, *_ = away_from_a_minimum()
    assert picked(problem) == "gram (18 outputs a task)"
    monkeypatch.setattr("l2l_influence.bilevel.inner.inverses.inverse.GRAM_LIMIT", 17)
    assert picked(problem) == "cg (18 outputs a task: too many for gram)"


def test_auto_minds_the_memory_of_a_task_and_not_of_its_batch(monkeypatch):
    problem, *_ = away_from_a_minimum()
    needed = 18 * 28 * 8
    monkeypatch.setattr("l2l_influence.bilevel.inner.inverses.inverse.GRAM_BYTES", needed)
    assert picked(problem) == picked(only(problem, 0)) == "gram (18 outputs a task)"
    monkeypatch.setattr("l2l_influence.bilevel.inner.inverses.inverse.GRAM_BYTES", needed - 1)
    assert picked(problem) == picked(only(problem, 0))
    assert picked(problem).startswith("cg (18 outputs a task, whose gram rows would take")


def test_names_are_notes_and_unknown_ones_are_refused():
    tasks = classification_tasks(1)
    for name in ("gram", "cg", "minres", "neumann", "dense", "identity"):
        assert solved(name, None, tasks, 1e-6).note == name
    assert solved("cg+gram", None, tasks, 1e-6).note == "preconditioned cg (gram)"
    with pytest.raises(ValueError, match="inner_solver must be 'auto' or one of.*'cg\\+gram'"):
        solved("magic", None, tasks)


def test_an_inverse_with_settings_of_its_own_is_taken_as_it_is():
    problem, theta, delta, matrices = away_from_a_minimum(delta=15.0)
    for approximation in (None, INVERSES["gram"], INVERSES["identity"]):
        operator, solver = pick(Iterative(CG, approximation), problem)(problem, theta, delta, 1e-9)
        b = randn(3, 3, 28)
        assert close(Policy().solve(operator, solver, b, "test").value, matrices, b) < 1e-7
    with pytest.raises(ValueError, match="Stored has no closed-form inverse"):
        Iterative(CG, INVERSES["dense"])(problem, theta, delta, 1e-9)


def test_kept_memory_is_counted():
    problem, theta, delta, _ = away_from_a_minimum()
    rows, factor = 3 * 18 * 28 * 8, 3 * 18 * 18 * 8
    gram, _ = INVERSES["gram"](problem, theta, delta, 1e-9)
    assert gram.nbytes == rows + factor
    hessian, solver = INVERSES["cg+gram"](problem, theta, delta, 1e-9)
    assert hessian.nbytes == 0 and solver.nbytes == gram.nbytes
    dense, _ = INVERSES["dense"](problem, theta, delta, 1e-9)
    assert dense.nbytes == dense.matrices.nbytes


def test_agreement_of_approximate_inverses_with_the_inner_hessian():
    problem, theta, delta, matrices = away_from_a_minimum(delta=15.0)
    exact, b = InnerHessian(problem, theta, delta), randn(3, 3, 28)
    for name in ("gram", "identity"):
        approximate, _ = INVERSES[name](problem, theta, delta, 1e-9)
        found = agreement(approximate, exact, b, tolerance=1e-8)
        guess, right = approximate.inverse(b), torch.linalg.solve(matrices, b)
        assert torch.allclose(found.residual, true_residual(matrices, guess, b), rtol=1e-6)
        assert torch.allclose(found.cosine, torch.cosine_similarity(guess, right), rtol=1e-6)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3, affine=True), nn.LayerNorm([3, 3, 3])],
    ids=lambda norm: type(norm).__name__,
)
def test_many_products_through_normalisation_are_those_of_each_dense_hessian(norm):
    """Outside a map over tasks, torch's own normalisation would be differentiated wrongly."""
    torch.manual_seed(0)
    model = FunctionalModel(nn.Sequential(nn.Conv2d(1, 3, 2), norm, nn.Tanh(), nn.Flatten(), nn.Linear(27, 2)).double())
    loss = ModelLoss(model, lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
    pairs = [(randn(i, 4, 1, 4, 4), torch.tensor([0, 1, 1, 0])) for i in range(3)]
    problem = BilevelProblem(loss, loss, Unrolled(0.1, 2), 0.5)
    (batch,) = problem.at(model.parameters, [Task(pair, pair) for pair in pairs]).microbatches()
    inner, theta = batch.solution.problem, batch.solution.theta
    v = randn(9, *theta.shape)
    products = InnerHessian(inner, theta, DELTA).for_many_products().matvec(v)
    for product, at, along, (x, y) in zip(products, theta, v, pairs, strict=True):

        def value(at, x=x, y=y):
            return F.cross_entropy(model(inner.theta_layout.unravel(at), x), y, reduction="sum")

        dense = torch.autograd.functional.hessian(value, at)
        assert relative(product, dense @ along + DELTA * along) < 1e-12
