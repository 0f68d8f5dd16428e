"""The exact total Hessian against dense algebra and finite differences, on toys and on networks with normalisation."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l_influence.bilevel import BilevelProblem, FunctionalModel, ModelLoss, Task, Unrolled

from ...reference_problems.autograd import (
    SIZE,
    Reference,
    UnrolledReference,
    classification,
    classification_tasks,
    parameters,
    randn,
    relative,
)

DELTA, UNROLLED = 3.0, Unrolled(lr=0.1, steps=3)
WEIGHTS = [1.0, 2.0, 0.5]
EYE = torch.eye(SIZE, dtype=torch.float64)


def uneven_tasks() -> list[Task]:
    """Of different shapes, one with weights of its samples."""
    first, second, third = classification_tasks(3)
    smaller = Task((second.support[0][:4], second.support[1][:4]), (second.query[0][:5], second.query[1][:5]))
    return [first, smaller, Task(third.support, third.query, randn(1, 6).abs(), randn(2, 7).abs())]


class Case:
    """A problem at λ, and the reference at the same λ."""

    def __init__(self, theta_keys: list[str] | None, inner: str) -> None:
        self.lam, self.tasks = parameters(), uneven_tasks()
        given = (classification, self.lam, theta_keys)
        if inner == "unrolled":
            self.reference: Reference = UnrolledReference(*given, UNROLLED.lr, UNROLLED.steps)
            self.problem = BilevelProblem(classification, classification, UNROLLED, 0.5, theta_keys)
        else:
            self.reference = Reference(*given, DELTA)
            options = {"inner_solver": inner, "inner_tolerance": 1e-12}
            self.problem = BilevelProblem(classification, classification, DELTA, 0.5, theta_keys, **options)

    @cache  # noqa: B019 (as long-lived as the module's fixture)
    def found(self, kind: str) -> Tensor:
        """H, dense; its columns are one batch of right-hand sides."""
        return self.problem.total_hessian(self.lam, self.tasks, kind, WEIGHTS).operator.matvec(EYE).mT

    def over_tasks(self, function) -> Tensor:
        return sum(weight * function(task) for weight, task in zip(WEIGHTS, self.tasks, strict=True))


@pytest.fixture(
    scope="module", params=[(None, "dense"), (None, "unrolled"), (["head"], "dense"), (["head"], "unrolled")]
)
def case(request):
    return Case(*request.param)


def test_exact_is_the_dense_formula_and_symmetric(case):
    """Proximal: the Lagrangian form, Zᵀ∇²(L_O − ⟨u, ∂_θ L_I⟩)Z. Unrolled: the Hessian of the whole function."""
    found = case.found("exact")
    assert relative(found, case.over_tasks(case.reference.total_hessian)) < 1e-9
    assert relative(found, found.T) < 1e-10


def test_exact_is_the_derivative_of_total_gradients(case):
    v, step = randn(1, SIZE), 1e-4
    ends = (case.reference.at(case.reference.lam + sign * step * v) for sign in (1, -1))
    above, below = (case.over_tasks(end.total_gradient) for end in ends)
    product = case.problem.total_hessian(case.lam, case.tasks, "exact", WEIGHTS) @ v
    assert relative(product, (above - below) / (2 * step)) < 1e-6


def test_hessian_is_all_of_it_but_the_curvature_of_theta(case):
    found = case.found("hessian")
    assert relative(found, case.over_tasks(case.reference.projected_hessian)) < 1e-9
    assert relative(found, found.T) < 1e-10


def test_the_curvature_of_theta_matters(case):
    """Else the tests above would say nothing of the third-order term."""
    assert relative(case.found("hessian"), case.found("exact")) > 0.1


# ---- networks with normalisation layers ------------------------------------------------------------------------


def dense_net(norm: nn.Module) -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), nn.Linear(6, 3)), (4,)


def conv_net(norm: nn.Module) -> tuple[nn.Module, tuple[int, ...]]:
    layers = (nn.Conv2d(1, 4, 3), norm, nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    return nn.Sequential(*layers), (1, 6, 6)


NETS = {
    "batch norm": lambda: dense_net(nn.BatchNorm1d(6)),
    "layer norm": lambda: dense_net(nn.LayerNorm(6)),
    "rms norm": lambda: dense_net(nn.RMSNorm(6, eps=1e-5)),
    "conv, batch norm": lambda: conv_net(nn.BatchNorm2d(4)),
    "conv, group norm": lambda: conv_net(nn.GroupNorm(2, 4)),
    "conv, instance norm": lambda: conv_net(nn.InstanceNorm2d(4, affine=True)),
}


def network_problem(net: str, kind: float | Unrolled, statistics: str = "batch", theta_keys: list[str] | None = None):
    """The problem, λ and two tasks with mean losses."""
    torch.manual_seed(0)
    module, shape = NETS[net]()
    for buffer in module.double().buffers():
        if buffer.dim() > 0:  # running statistics unlike those of a fresh layer
            buffer.add_(0.3 * randn(5, *buffer.shape).abs())
    model = FunctionalModel(module, statistics)
    loss = ModelLoss(model, lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))

    def pair(seed, n):
        return randn(seed, n, *shape), torch.arange(n) % 3

    tasks = [
        Task(pair(10 * i, 5), pair(10 * i + 5, 6), torch.full((5,), 1 / 5), torch.full((6,), 1 / 6)) for i in (1, 2)
    ]
    problem = BilevelProblem(loss, loss, kind, 0.5, theta_keys, inner_tolerance=1e-12)
    lam = {key: value + 0.1 * randn(7, *value.shape) for key, value in model.parameters.items()}
    return problem, lam, tasks


def along(problem, lam, tasks, v):
    """The derivatives along v of L_Total and of D_λ L_Total (without l2), by central differences."""
    layout = problem.at(lam, tasks).settings.layout

    def at(step):
        moved = layout.unravel(layout.ravel(lam) + step * v)
        solved = list(problem.at(moved, tasks, WEIGHTS[:2]).microbatches())
        return (
            sum(one.batch.weight @ one.outer_loss() for one in solved),
            sum(one.weighted_gradient().sum(0) for one in solved),
        )

    step = 3e-5
    return [(above - below) / (2 * step) for above, below in zip(at(step), at(-step), strict=True)]


COSTLY = ("rms norm", "conv, instance norm")
"""Looked at through the unrolled kind alone."""

CASES = [
    (net, kind, "batch", None) for net in NETS for kind in (DELTA, UNROLLED) if kind is UNROLLED or net not in COSTLY
]
CASES += [("batch norm", kind, "running", ["3.weight", "3.bias"]) for kind in (DELTA, UNROLLED)]


@pytest.mark.parametrize(("net", "kind", "statistics", "theta_keys"), CASES)
def test_products_on_networks_are_derivatives_of_total_gradients(net, kind, statistics, theta_keys):
    """From forward passes alone: total gradients are derivatives of losses, and products derivatives of gradients."""
    problem, lam, tasks = network_problem(net, kind, statistics, theta_keys)
    layout = problem.at(lam, tasks).settings.layout
    v = randn(3, layout.size) / layout.size**0.5
    slope, curved = along(problem, lam, tasks, v)
    hessian = problem.total_hessian(lam, tasks, "exact", WEIGHTS[:2])
    gradient = sum(at.weighted_gradient().sum(0) for at in hessian.solved_tasks.microbatches())
    assert abs(gradient @ v - slope) < 1e-6 * abs(slope)
    assert relative(hessian @ v, curved) < 1e-6


@pytest.mark.parametrize("net", NETS)
def test_outer_curvature_on_networks_is_the_derivative_of_outer_gradients(net):
    """Along the tangent Z v, with the chain rule held fixed."""
    problem, lam, tasks = network_problem(net, UNROLLED, theta_keys=["3.weight"] if "conv" not in net else None)
    (at,) = problem.at(lam, tasks).microbatches()
    v, step = randn(3, 1, len(at.lam)).expand(2, -1), 1e-5
    moved = at.push_forward(v)
    # λ is shared by all tasks, so v is the same for both.
    ends = [at.outer.gradient(at.lam + s * v[0], at.solution.theta + s * moved, at.batch.query) for s in (step, -step)]
    expected = at.pull_back(*((above - below) / (2 * step) for above, below in zip(*ends, strict=True)))
    assert relative(at.hessian(v), expected) < 1e-6
