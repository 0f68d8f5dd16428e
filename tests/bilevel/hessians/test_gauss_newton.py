"""Gauss–Newton curvature of learn2learn's convolutional and fully connected models, against dense algebra."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from learn2learn.vision.models import OmniglotCNN, OmniglotFC
from torch import nn

from l2l_influence.bilevel import BilevelProblem, FunctionalModel, Layout, ModelLoss, Proximal, Task
from l2l_influence.bilevel.inner import InnerProblem
from l2l_influence.bilevel.inner.inverses.inverse import GRAM_LIMIT, INVERSES
from l2l_influence.bilevel.objective import Objective
from l2l_influence.bilevel.solved_tasks import SolvedTasks
from l2l_influence.bilevel.task import stack
from l2l_influence.errors import LossStructureError

from ...reference_problems.autograd import gauss_newton_factor, generator, randn, relative

DELTA, WAYS = 2.0, 3


def cross_entropy(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


def cnn():
    return OmniglotCNN(WAYS, hidden_size=8, layers=4), (1, 28, 28)


def fc():
    return OmniglotFC(16, WAYS, sizes=[12, 8]), (16,)


class Case:
    """A small model, its tasks (3-way 1-shot, mean losses), and the reference by one backward pass an output."""

    def __init__(self, build, count=2):
        torch.manual_seed(0)
        model, shape = build()
        self.model = model.double().train()
        with torch.no_grad():  # weights as after training: batch normalisation makes tiny ones violently curved
            for module in self.model.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.weight.copy_(randn(1, *module.weight.shape) / module.weight[0].numel() ** 0.5)
        self.tasks = [self._task(i, shape) for i in range(count)]
        function = FunctionalModel(self.model)
        self.loss, self.lam = ModelLoss(function, cross_entropy), function.parameters
        self.layout = Layout(self.lam)

    @staticmethod
    def _task(i, shape):
        def pair(seed, rows):
            return randn(seed, rows, *shape), torch.arange(rows) % WAYS

        weights = (torch.full((rows,), 1 / rows, dtype=torch.float64) for rows in (WAYS, 2 * WAYS))
        return Task(pair(10 + i, WAYS), pair(20 + i, 2 * WAYS), *weights)

    def problem(self):
        # ReLU and max-pooling leave the minimum on a kink: the algebra is checked at whatever θ was found.
        kind = Proximal(DELTA, "gram", tolerance=10.0, max_iterations=3)
        return BilevelProblem(self.loss, self.loss, kind, 0.5)

    def jacobian(self, theta, x):
        """Outputs ``[n, C]`` and their derivatives ``[n, C, P]``, by the module's own backward."""
        twin = copy.deepcopy(self.model)
        with torch.no_grad():
            for key, parameter in twin.named_parameters():
                parameter.copy_(theta[key])
        outputs = twin(x)
        rows = [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(out, list(twin.parameters()), retain_graph=True)])
            for out in outputs.reshape(-1)
        ]
        return outputs.detach(), torch.stack(rows).reshape(*outputs.shape, -1)

    def curvature(self, theta, x):
        """JᵀΛJ of the mean cross entropy, ``[P, P]``."""
        outputs, j = self.jacobian(theta, x)
        p = outputs.softmax(-1)
        by_outputs = (torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)) / len(x)
        return torch.einsum("ncp,ncd,ndq->pq", j, by_outputs, j)

    def chain(self, theta, task):
        """dθ/dλ = δ (JᵀΛJ + δI)⁻¹."""
        h = self.curvature(theta, task.support[0])
        return DELTA * torch.linalg.inv(h + DELTA * torch.eye(len(h), dtype=h.dtype))

    def outer_slope(self, theta, task):
        x, y = task.query
        outputs, j = self.jacobian(theta, x)
        by_outputs = (outputs.softmax(-1) - F.one_hot(y, WAYS)) / len(x)
        return torch.einsum("ncp,nc->p", j, by_outputs)


MODELS = pytest.mark.parametrize("build", [cnn, fc])


@MODELS
def test_total_gradient_by_gram_equals_dense_algebra(build):
    case = Case(build)
    problem = case.problem()
    for task in case.tasks:
        theta = problem.solve_inner(case.lam, task).theta
        expected = case.chain(theta, task).T @ case.outer_slope(theta, task)
        found = problem.total_gradient(case.lam, task)
        assert relative(case.layout.ravel(found), expected) < 1e-8
        parts = case.layout.unravel(expected)
        affine = [key for key in parts if "normalize" in key]
        assert affine and all(parts[key].norm() > 0 for key in affine)
        for key in affine:  # each by itself: batch normalisation's own parameters are small beside the rest
            assert relative(found[key], parts[key]) < 1e-6


@MODELS
def test_gauss_newton_hessian_over_tasks_equals_dense_algebra(build):
    case = Case(build, 3)
    weights, problem = [1.0, 2.0, 0.5], case.problem()
    v = randn(5, case.layout.size)
    expected = torch.zeros_like(v)
    for weight, task in zip(weights, case.tasks, strict=True):
        theta = problem.solve_inner(case.lam, task).theta
        z = case.chain(theta, task)
        expected += weight * (z.T @ (case.curvature(theta, task.query[0]) @ (z @ v)))
    hessian = problem.total_hessian(case.lam, case.tasks, "gauss-newton", weights)
    assert relative(hessian @ v, expected) < 1e-7
    named = hessian @ case.layout.unravel(v)
    assert relative(case.layout.ravel(named), expected) < 1e-7


@MODELS
def test_the_inner_hessian_is_the_derivative_of_the_gradient(build):
    """Smooth activations, so that finite differences mean something; BatchNorm and convolutions stay."""

    def smooth():
        model, shape = build()
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU):
                    setattr(module, name, nn.Softplus(beta=2))
        return model, shape

    case = Case(smooth, 2)
    objective = Objective(case.loss, case.layout, case.layout.keep(case.lam))
    lam = case.layout.ravel(case.lam)
    batch = stack(case.tasks, [0, 1], [1.0, 1.0], lam)
    theta, v, step = lam.expand(2, -1) + 0.1 * randn(1, 2, len(lam)), randn(2, 2, len(lam)), 1e-6
    slopes = [objective.gradient_theta(lam, theta + s * v, batch.support) for s in (step, -step)]
    assert relative(objective.hessian_theta(lam, theta, batch.support, v), (slopes[0] - slopes[1]) / (2 * step)) < 1e-6


def test_auto_picks_gram_for_few_outputs_and_cg_otherwise():
    case = Case(fc, 1)

    def picked(solver, loss=None, task=case.tasks[0]):
        loss = loss or case.loss
        problem = BilevelProblem(loss, loss, 1000.0, 0.5, inner_solver=solver, inner_tolerance=0.9)
        return problem.at(case.lam, [task]).one(0).solution.note

    rows = GRAM_LIMIT // WAYS + 1
    large = Task((randn(0, rows, 16), torch.arange(rows) % WAYS), case.tasks[0].query)
    assert picked("auto") == "gram (9 outputs a task)"
    assert picked("auto", task=large) == f"cg ({3 * rows} outputs a task: too many for gram)"
    opaque = picked("auto", loss=lambda lam, theta, x, y: x[:, 0] * theta["classifier.bias"].sum().tanh())
    assert opaque.startswith("cg (the loss hides")
    assert picked("cg") == "cg"
    with pytest.raises(ValueError, match="inner_solver"):
        picked("magic")


def local_inverse(case, delta, dtype):
    lam = case.layout.ravel(case.lam).to(dtype)
    layout = Layout(case.layout.unravel(lam))
    part = layout.keep(layout.shapes)
    batch = stack(case.tasks, list(range(len(case.tasks))), [1.0] * len(case.tasks), lam)
    start = lam.expand(len(case.tasks), -1)
    problem = InnerProblem(Objective(case.loss, layout, part), lam, batch.support, start, layout, part)
    return INVERSES["gram"](problem, start, delta, torch.finfo(dtype).eps ** 0.6)


@pytest.mark.parametrize("delta", [0.4, 2.0, 20.0])
def test_gram_meets_its_tolerance_in_float32_at_real_size(delta):
    torch.manual_seed(0)
    model = OmniglotCNN(5)  # with its own, small initial weights: AAᵀ has eigenvalues of about 1000
    case = Case.__new__(Case)
    function = FunctionalModel(model)
    case.loss, case.lam = ModelLoss(function, cross_entropy), function.parameters
    case.layout = Layout(case.lam)
    pictures = [torch.rand(5, 1, 28, 28, generator=generator(i)) for i in range(2)]
    case.tasks = [Task((x, torch.arange(5)), (x, torch.arange(5)), torch.full((5,), 0.2)) for x in pictures]
    operator, solver = local_inverse(case, delta, torch.float32)
    v = torch.randn(2, case.layout.size, generator=generator(9))
    solution = solver.solve(operator, v)
    rows, x = operator.low_rank.rows.double(), solution.value.double()
    left = v.double() - (rows.mT @ (rows @ x.unsqueeze(-1))).squeeze(-1) - delta * x
    assert bool(solution.report.converged.all())
    assert float((left.norm(dim=-1) / v.double().norm(dim=-1)).max()) < torch.finfo(torch.float32).eps ** 0.5


# ---- the criterion's curvature -----------------------------------------------------------------------------------


def linear_objective(criterion):
    layout = Layout({"w": torch.zeros(4, 3)}).keep(["w"])
    return Objective(ModelLoss(lambda p, x: x @ p["w"], criterion), layout, layout)


def samples(w, x=None, y=None, dtype=torch.float32):
    x = torch.randn(1, 5, 4, generator=generator(3)).to(dtype) if x is None else x
    y = torch.zeros(1, 5, dtype=torch.long) if y is None else y
    return stack([Task((x[0], y[0]), (x[0], y[0]))], [0], [1.0], w).support


@pytest.mark.parametrize("scale", [1, 10, 100, 1e4])
def test_confident_predictions_in_float32_are_no_mistake(scale):
    """Their curvature is next to nothing and its rounding may be negative: the criterion is convex all the same."""
    objective = linear_objective(cross_entropy)
    for seed in range(20):
        w = scale * torch.randn(1, 12, generator=generator(seed))
        z = samples(w)
        z = z._replace(y=(z.x @ w.view(1, 4, 3)).argmax(-1))
        rows = gauss_newton_factor(objective, torch.zeros(12), w, z)
        exact = gauss_newton_factor(
            linear_objective(cross_entropy),
            torch.zeros(12).double(),
            w.double(),
            z._replace(x=z.x.double(), w=z.w.double()),
        )
        assert float((rows.mT @ rows - exact.mT @ exact).norm()) < 1e-4


def test_a_criterion_that_is_not_convex_is_refused():
    objective = linear_objective(lambda outputs, y: -outputs.square().sum(-1))
    w = torch.ones(1, 12)
    with pytest.raises(LossStructureError, match="not convex"):
        gauss_newton_factor(objective, torch.zeros(12), w, samples(w))


def test_curvature_that_is_not_finite_is_refused():
    objective = linear_objective(cross_entropy)
    w = torch.full((1, 12), float("nan"))
    with pytest.raises(LossStructureError, match="infinite or NaN"):
        gauss_newton_factor(objective, torch.zeros(12), w, samples(w))


def test_the_factor_is_the_gauss_newton_matrix():
    case = Case(fc, 2)
    solved_tasks: SolvedTasks = case.problem().at(case.lam, case.tasks)
    (solved,) = solved_tasks.microbatches()
    theta, z = solved.solution.theta, solved.batch.support
    rows = gauss_newton_factor(solved.outer, solved_tasks.lam, theta, z)
    for i, task in enumerate(case.tasks):
        expected = case.curvature(case.layout.unravel(theta[i]), task.support[0])
        assert relative(rows[i].T @ rows[i], expected) < 1e-10
