"""Steps of stateful optimisers, against finite differences of the steps written out by hand and of torch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import higher
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad

from l2l_influence.bilevel import BilevelProblem, FunctionalModel, Layout, ModelLoss, Task, Unrolled, UnrolledWith
from l2l_influence.errors import UncoveredParameterError

from ...reference_problems.autograd import (
    SIZE,
    Reference,
    central_difference,
    classification,
    classification_tasks,
    network,
    parameters,
    randn,
    relative,
)

LR, STEPS = 0.1, 3
Gradient = Callable[[Tensor], Tensor]


def momentum(gradient: Gradient, theta: Tensor) -> Tensor:
    velocity = torch.zeros_like(theta)
    for _ in range(STEPS):
        velocity = 0.9 * velocity + gradient(theta)
        theta = theta - LR * velocity
    return theta


def adam(gradient: Gradient, theta: Tensor) -> Tensor:
    """With ε before the bias correction, and large, so that it matters where it stands."""
    first = second = torch.zeros_like(theta)
    for step in range(1, STEPS + 1):
        slope = gradient(theta)
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        size = LR * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
        theta = theta - size * first / (safe_root(second) + 1e-3)
    return theta


def safe_root(x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)


MOMENTUM = UnrolledWith(partial(torch.optim.SGD, lr=LR, momentum=0.9), STEPS)
ADAM = UnrolledWith(partial(torch.optim.Adam, lr=LR, eps=1e-3), STEPS)
BY_HAND = pytest.mark.parametrize("kind, steps", [(MOMENTUM, momentum), (ADAM, adam)], ids=["momentum", "adam"])
KEYS = pytest.mark.parametrize("theta_keys", [None, ["head"]], ids=["maml", "anil"])


class ByHand:
    """One toy task whose θ is a hand-written optimiser's, as plain functions of λ and the support weights."""

    def __init__(self, steps, theta_keys, task: Task, loss=classification, lam=None) -> None:
        self.reference = Reference(loss, lam or parameters(), theta_keys, 0.0)
        self.lam, self.weights = self.reference.lam, torch.ones(len(task.support[0]), dtype=torch.float64)
        self._steps, self._task = steps, task

    def theta(self, lam: Tensor, w: Tensor) -> Tensor:
        support = self.reference._sum(*self._task.support, w)
        return self._steps(lambda theta: grad(support, 1)(lam, theta), lam[self.reference.where])

    def loss(self, lam: Tensor, w: Tensor) -> Tensor:
        return self.reference.outer(self._task)(lam, self.theta(lam, w))

    def outputs(self, lam: Tensor) -> Tensor:
        theta = self.reference.part.unravel(self.theta(lam, self.weights))
        return network({**self.reference.layout.unravel(lam), **theta}, self._task.query[0])

    def hessian(self) -> Tensor:
        return central_difference(lambda lam: grad(self.loss)(lam, self.weights), self.lam)

    def gauss_newton(self) -> Tensor:
        rows = central_difference(lambda lam: self.outputs(lam).flatten(), self.lam)
        p = self.outputs(self.lam).softmax(-1)
        return rows.T @ torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p)) @ rows

    def gradient_by_weights(self) -> Tensor:
        return central_difference(lambda w: grad(self.loss)(self.lam, w), self.weights)


def problem(kind: UnrolledWith, theta_keys: list[str] | None = None, loss=classification) -> BilevelProblem:
    return BilevelProblem(loss, loss, kind, 5.0, theta_keys)


@KEYS
@BY_HAND
def test_theta_and_its_jacobians(kind, steps, theta_keys):
    tasks = classification_tasks(3)
    solution = next(problem(kind, theta_keys).at(parameters(), tasks).microbatches()).solution
    v, u, e = randn(1, 3, SIZE), randn(2, *solution.theta.shape), randn(3, 3, 6)
    assert not solution.residual.any()
    for i, task in enumerate(tasks):
        expected = ByHand(steps, theta_keys, task)
        by_lam = central_difference(lambda lam, one=expected: one.theta(lam, one.weights), expected.lam)
        by_w = central_difference(lambda w, one=expected: one.theta(one.lam, w), expected.weights)
        assert relative(solution.theta[i], expected.theta(expected.lam, expected.weights)) < 1e-12
        assert relative(solution.jvp(v)[i], by_lam @ v[i]) < 1e-6
        assert relative(solution.vjp(u)[i], by_lam.T @ u[i]) < 1e-6
        assert relative(solution.jvp_weights(e)[i], by_w @ e[i]) < 1e-6
        assert relative(solution.vjp_weights(u)[i], by_w.T @ u[i]) < 1e-6


@KEYS
@BY_HAND
def test_hessians_and_influences(kind, steps, theta_keys):
    lam, tasks, v = parameters(), classification_tasks(3), randn(4, SIZE)
    expected = [ByHand(steps, theta_keys, task) for task in tasks]
    found = problem(kind, theta_keys)

    exact, curved = sum(one.hessian() for one in expected), sum(one.gauss_newton() for one in expected)
    assert relative(found.total_hessian(lam, tasks, "exact") @ v, exact @ v) < 1e-6
    assert relative(found.total_hessian(lam, tasks, "gauss-newton") @ v, curved @ v) < 1e-6

    by_weight = expected[1].gradient_by_weights()[:, 2]
    influence = expected[1].reference.layout.ravel(found.support_influence(lam, tasks, 1, 2, "gauss-newton"))
    system = curved + 5.0 * torch.eye(SIZE, dtype=torch.float64)
    assert relative(influence, torch.linalg.solve(system, by_weight)) < 1e-6


@KEYS
def test_plain_gradient_steps_equal_the_unrolled_kind(theta_keys):
    lam, tasks, v = parameters(), classification_tasks(3), randn(4, SIZE)
    plain = problem(UnrolledWith(partial(torch.optim.SGD, lr=LR), STEPS), theta_keys)
    unrolled = problem(Unrolled(LR, STEPS), theta_keys)
    # A sketch takes square roots of curvatures, and of the rounding of those that are zero.
    for kind, tolerance in (("exact", 1e-10), ("hessian", 1e-10), ("gauss-newton", 1e-10), ("sketch", 1e-7)):
        expected = unrolled.total_hessian(lam, tasks, kind) @ v
        assert relative(plain.total_hessian(lam, tasks, kind) @ v, expected) < tolerance
    expected = unrolled.support_influence(lam, tasks, 0, 3, "sketch")
    found = plain.support_influence(lam, tasks, 0, 3, "sketch")
    assert all(relative(found[key], expected[key]) < 1e-7 for key in lam)


def normalised() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.LayerNorm(5)]
    return nn.Sequential(*body, nn.Linear(5, 3)).double()


def mean_loss(module: nn.Module) -> ModelLoss:
    return ModelLoss(FunctionalModel(module), lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))


def mean_task(seed: int = 5) -> Task:
    x, y = randn(seed, 10, 4), torch.arange(10) % 3
    mean = torch.full((5,), 0.2, dtype=torch.float64)
    return Task((x[:5], y[:5]), (x[5:], y[5:]), mean, mean)


# With a small ε where it matters whether it is added before the bias correction (higher) or after it (torch).
OPTIMISERS = {
    "Adadelta": partial(torch.optim.Adadelta, lr=LR),
    "Adagrad": partial(torch.optim.Adagrad, lr=LR, lr_decay=0.1, initial_accumulator_value=0.1),
    "Adam": partial(torch.optim.Adam, lr=LR, eps=1e-15, weight_decay=0.1),
    "AMSGrad": partial(torch.optim.Adam, lr=LR, eps=1e-15, amsgrad=True),
    "Adamax": partial(torch.optim.Adamax, lr=LR),
    "ASGD": partial(torch.optim.ASGD, lr=LR, t0=1),
    "RMSprop": partial(torch.optim.RMSprop, lr=LR, momentum=0.5, centered=True),
    "Rprop": partial(torch.optim.Rprop, lr=LR),
    "SGD": partial(torch.optim.SGD, lr=LR, momentum=0.9, dampening=0.5, weight_decay=0.1),
    "Nesterov": partial(torch.optim.SGD, lr=LR, momentum=0.9, nesterov=True),
}


@pytest.mark.filterwarnings("ignore:Differentiable R")
@pytest.mark.parametrize("name", OPTIMISERS)
def test_steps_are_those_of_torch_itself(name):
    module, task = normalised(), mean_task()

    def adapted(lam: Tensor) -> Tensor:
        net = copy.deepcopy(module)
        nn.utils.vector_to_parameters(lam.clone(), net.parameters())
        optimizer = OPTIMISERS[name](net.parameters())
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(net(task.support[0]), task.support[1]).backward()
            optimizer.step()
        return nn.utils.parameters_to_vector(net.parameters()).detach()

    loss = mean_loss(module)
    solution = problem(UnrolledWith(OPTIMISERS[name], STEPS), loss=loss).solve_inner(loss.model.parameters, task)
    lam = nn.utils.parameters_to_vector(module.parameters()).detach()
    jacobian = central_difference(adapted, lam, step=1e-6)
    v, u = randn(6, len(lam)), randn(7, len(lam))
    assert relative(torch.cat([part.flatten() for part in solution.theta.values()]), adapted(lam)) < 1e-6
    assert relative(solution.jvp(v), jacobian @ v) < 1e-6
    assert relative(solution.vjp(u), jacobian.T @ u) < 1e-6


@pytest.mark.parametrize("name", ["Adam", "SGD", "Nesterov"])
def test_total_gradient_is_that_of_a_loop_under_higher(name):
    module, task = normalised(), mean_task()
    loss = mean_loss(module)
    found = problem(UnrolledWith(OPTIMISERS[name], STEPS), loss=loss).total_gradient(loss.model.parameters, task)

    optimizer = OPTIMISERS[name](module.parameters())
    with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (functional, differentiable):
        for _ in range(STEPS):
            differentiable.step(F.cross_entropy(functional(task.support[0]), task.support[1]))
        F.cross_entropy(functional(task.query[0]), task.query[1]).backward()
    assert all(relative(found[key], value.grad) < 1e-10 for key, value in module.named_parameters())


def test_exact_hessian_through_normalisation_layers():
    module, task = normalised(), mean_task()
    loss = mean_loss(module)
    found, layout = problem(ADAM, loss=loss), Layout(loss.model.parameters)
    lam, v = layout.ravel(loss.model.parameters), randn(8, layout.size)
    moved = central_difference(
        lambda t: layout.ravel(found.total_gradient(layout.unravel(lam + t * v), task)), torch.zeros(1).to(lam)
    )
    assert relative(found.total_hessian(loss.model.parameters, [task], "exact") @ v, moved[:, 0]) < 1e-6


def dead(lam, theta, x, y):
    """A unit that never fires, so some gradients are exactly zero."""
    p = {**lam, **theta}
    hidden = F.softplus(x @ p["body"] + p["bias"]) * torch.tensor([1.0, 1.0, 1.0, 0.0])
    return F.cross_entropy(hidden @ p["head"], y, reduction="none")


def test_adam_at_gradients_that_are_exactly_zero():
    lam, task, v = parameters(), classification_tasks(1)[0], randn(9, SIZE)
    expected = ByHand(adam, None, task, dead)
    solution = problem(ADAM, loss=dead).solve_inner(lam, task)
    jacobian = central_difference(lambda lam: expected.theta(lam, expected.weights), expected.lam)
    assert (expected.theta(expected.lam, expected.weights) == expected.lam).sum() == 7
    assert relative(solution.jvp(v), jacobian @ v) < 1e-6
    assert relative(solution.vjp(v), jacobian.T @ v) < 1e-6
    found = problem(ADAM, loss=dead).total_hessian(lam, [task], "exact") @ v
    assert relative(found, expected.hessian() @ v) < 1e-6


def test_derivatives_that_are_not_finite_are_an_error():
    kind = UnrolledWith(partial(torch.optim.Adam, lr=LR, eps=0.0), STEPS)
    solution = problem(kind, loss=dead).solve_inner(parameters(), classification_tasks(1)[0])
    for product in (solution.jvp, solution.vjp):
        with pytest.raises(UncoveredParameterError, match="not finite.* of body.* larger eps"):
            product(randn(0, SIZE))


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, torch.optim.AdamW])
def test_optimisers_that_higher_does_not_know_are_refused(optimizer):
    with pytest.raises(ValueError, match=f"{optimizer.__name__}.*Adam, .*SGD"):
        UnrolledWith(partial(optimizer, lr=LR), STEPS)


def test_bad_settings_are_refused_at_the_door():
    with pytest.raises(ValueError, match="maximize"):
        UnrolledWith(partial(torch.optim.SGD, lr=LR, maximize=True), STEPS)
    with pytest.raises(ValueError, match="steps"):
        UnrolledWith(torch.optim.Adam, 0)
    with pytest.raises(TypeError, match="partial"):
        UnrolledWith(torch.optim.Adam([torch.zeros(1, requires_grad=True)]), STEPS)


def test_nothing_of_the_user_is_touched():
    module, task = normalised(), mean_task()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    loss = mean_loss(module)
    with torch.no_grad():
        solution = problem(ADAM, loss=loss).solve_inner(loss.model.parameters, task)
        moved = solution.jvp(solution.vjp(torch.ones(sum(p.numel() for p in module.parameters()))))
    assert not moved.requires_grad
    assert not any(part.requires_grad for part in (*solution.theta.values(), *loss.model.parameters.values()))
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
