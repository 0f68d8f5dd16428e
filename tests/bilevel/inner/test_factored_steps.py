"""Unrolled steps that keep what wide layers move by in factors: against dense algebra and learn2learn's backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2l_influence.bilevel import BilevelProblem, FunctionalModel, Layout, ModelLoss, Task, Unrolled
from l2l_influence.bilevel import solved_tasks as local_module
from l2l_influence.bilevel.inner.steps import factored as in_factors
from l2l_influence.bilevel.inner.steps.factored import FactoredSteps, wide_layers
from l2l_influence.errors import LossStructureError

from ...reference_problems.autograd import Named, UnrolledReference, central_difference, generator, randn, relative
from .maml_loops import LR, STEPS_AND_ORDERS, backward, gradients, headed, mean_tasks, mlp


@pytest.fixture
def everywhere(monkeypatch):
    """In factors whatever can be: toys are too small for it to pay."""
    monkeypatch.setattr(in_factors, "NARROW", 0)


def parameters() -> Named:
    shapes = {"first": (4, 3), "scale": (4,), "shift": (4,), "second": (4, 4), "bias": (4,), "head": (3, 4)}
    return {name: 0.5 * randn(at, *shape) for at, (name, shape) in enumerate(shapes.items())}


SIZE = Layout(parameters()).size


def torchs(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, training=True)


def by_hand(x, weight, bias):
    """Torch's own is differentiated wrongly by the mapped Jacobians of the reference."""
    return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() * weight + bias


def once(p: Named, x, norm):
    """Normalisation couples the samples."""
    hidden = norm(F.linear(x, p["first"]), 1 + p["scale"], p["shift"])
    return F.linear(torch.tanh(F.linear(torch.tanh(hidden), p["second"], p["bias"])), p["head"])


def in_rows(p: Named, x, norm):
    """Each sample has two rows, and one weight goes into two layers."""
    rows = torch.stack([x, x.flip(1)], dim=1)
    hidden = torch.tanh(F.linear(rows, p["first"])) * (1 + p["scale"]) + p["shift"]
    twice = F.linear(torch.tanh(F.linear(hidden, p["second"], p["bias"])), p["second"])
    return F.linear(twice, p["head"]).sum(1)


NETWORKS = {"once": (once, {"first", "second", "head"}), "in rows": (in_rows, {"first", "head"})}


def penalised(network, norm):
    """A loss that uses λ and θ side by side, and θ's weights otherwise than in layers, in the outer loss alone."""

    def inner(lam, theta, x, y):
        return F.cross_entropy(network({**lam, **theta}, x, norm), y, reduction="none")

    def outer(lam, theta, x, y):
        apart = sum(0.1 * (theta[name] - lam[name]).square().sum() for name in theta)
        return inner(lam, theta, x, y) + apart + 0.2 * (theta["head"] @ theta["head"].T).sum()

    return inner, outer


def tasks() -> list[Task]:
    def pair(at, n):
        return randn(at, n, 3), torch.randint(0, 3, (n,), generator=generator(at + 1))

    return [Task(pair(10 * i, 5), pair(10 * i + 5, 6), randn(i, 5).abs(), randn(i + 1, 6).abs()) for i in range(2)]


class Reference(UnrolledReference):
    """With another loss outside."""

    def __init__(self, inner, outer, theta_keys, steps) -> None:
        super().__init__(inner, parameters(), theta_keys, LR, steps)
        self._outer = UnrolledReference(outer, parameters(), theta_keys, LR, steps)

    def outer(self, task):
        return UnrolledReference.outer(self._outer, task)


@pytest.fixture(
    params=[(name, keys, steps) for name in NETWORKS for keys in (None, "head") for steps in (1, 2)], ids=str
)
def case(request, everywhere):
    """The package's problem, dense references, and which weights are in factors."""
    name, keys, steps = request.param
    network, layers = NETWORKS[name]
    theta_keys = None if keys is None else [keys, "bias"]
    problem = BilevelProblem(*penalised(network, torchs), Unrolled(LR, steps), 0.3, theta_keys)
    reference = Reference(*penalised(network, by_hand), theta_keys, steps)
    return problem, reference, layers if theta_keys is None else {keys}


def test_theta_and_its_jacobians(case):
    problem, reference, layers = case
    (at,) = problem.at(parameters(), tasks()).microbatches()
    assert isinstance(at.solution, FactoredSteps)
    assert set(at.solution.point.inputs) == layers
    v, u, e = randn(1, 2, SIZE), randn(2, *at.solution.theta.shape), randn(3, 2, 5)
    for i, task in enumerate(tasks()):
        theta = reference.solve(reference.lam, task)
        dense = reference.theta_jacobian(task, theta)
        assert relative(at.solution.theta[i], theta) < 1e-12
        assert relative(at.solution.jvp(v)[i], dense @ v[i]) < 1e-9
        assert relative(at.solution.vjp(u)[i], dense.T @ u[i]) < 1e-9

        def adapted(w, task=task):
            return reference.solve(reference.lam, Task(task.support, task.query, w, task.query_weights))

        by_w = central_difference(adapted, task.support_weights)
        assert relative(at.solution.jvp_weights(e)[i], by_w @ e[i]) < 1e-6
        assert relative(at.solution.vjp_weights(u)[i], by_w.T @ u[i]) < 1e-6


def test_gradients_losses_and_curvatures(case):
    problem, reference, _ = case
    (at,) = problem.at(parameters(), tasks()).microbatches()
    v, weight = randn(4, SIZE), randn(5, 2)
    second = at.second(v.expand(2, -1), torch.zeros(2, 5, dtype=torch.float64))[0]
    for i, task in enumerate(tasks()):
        theta = reference.solve(reference.lam, task)
        assert relative(at.outer_loss()[i], reference.outer(task)(reference.lam, theta)) < 1e-12
        assert relative(at.gradient_and_loss[1][i], at.outer_loss()[i]) < 1e-12
        assert relative(at.total_gradient[i], reference.total_gradient(task)) < 1e-10
        assert relative(second[i], reference.total_hessian(task) @ v) < 1e-9
        assert relative(at.query_slopes(v)[i].sum(), reference.total_gradient(task) @ v) < 1e-9
    total = at.solution.sum_of_totals(weight, at.outer.value_of_one, at.batch.query)
    assert relative(total, weight @ torch.stack([reference.total_gradient(task) for task in tasks()])) < 1e-10


def test_the_loss_of_lambda_alone_is_not_moved(everywhere):
    """λ's own weights, in a loss that uses both, stay where they are."""

    def both(lam, theta, x, y):
        return (F.linear(x, lam["w"]) + 2 * F.linear(x, theta["w"]) - y).square().sum(1)

    lam, x = {"w": randn(0, 2, 3)}, randn(1, 4, 3)
    task = Task((x, randn(2, 4, 2)), (randn(3, 4, 3), randn(4, 4, 2)))
    (at,) = BilevelProblem(both, both, Unrolled(LR, 2), 0.1).at(lam, [task]).microbatches()
    reference = UnrolledReference(both, lam, None, LR, 2)
    assert isinstance(at.solution, FactoredSteps)
    assert relative(at.total_gradient[0], reference.total_gradient(task)) < 1e-10


def regression(lam, theta, x, y):
    return (F.linear(x, theta["w"]) - y).square().sum(1)


def mapped(w):
    """Where no torch function is given w itself."""
    return torch.func.vmap(lambda row: row.square().sum())(w).sum()


def with_a_mapped_penalty(lam, theta, x, y):
    return regression(lam, theta, x, y) + 0.1 * mapped(theta["w"])


def with_an_added_weight(lam, theta, x, y):
    total = torch.zeros_like(lam["w"]) + 0 * x.sum()  # one for each task
    total += theta["w"]
    return regression(lam, theta, x, y) + total.square().sum()


def with_slopes(lam, theta, x, y):
    """Of the outputs by the inputs, which depend on w otherwise than the outputs do."""
    slopes = torch.func.grad(lambda x: torch.tanh(F.linear(x, theta["w"])).sum())(x)
    return (slopes[:, :2] - y).square().sum(1)


def one_layer(inner, outer):
    lam, x = {"w": randn(0, 2, 3)}, randn(1, 4, 3)
    task = Task((x, randn(2, 4, 2)), (randn(3, 4, 3), randn(4, 4, 2)))
    (at,) = BilevelProblem(inner, outer, Unrolled(LR, 2), 0.1).at(lam, [task]).microbatches()
    reference = UnrolledReference(inner, lam, None, LR, 2)
    reference.outer = lambda task: UnrolledReference(outer, lam, None, LR, 2)._sum(*task.query, None)
    return at, reference.total_gradient(task)


@pytest.mark.parametrize("inner", [with_a_mapped_penalty, with_slopes])
def test_weights_that_are_used_where_it_is_not_seen_are_not_in_factors(everywhere, inner):
    at, expected = one_layer(inner, regression)
    assert not isinstance(at.solution, FactoredSteps)
    assert relative(at.total_gradient[0], expected) < 1e-10


@pytest.mark.parametrize("outer", [with_an_added_weight, with_slopes])
def test_other_uses_in_the_outer_loss_are_of_moved_weights(everywhere, outer):
    at, expected = one_layer(regression, outer)
    assert isinstance(at.solution, FactoredSteps)
    assert relative(at.total_gradient[0], expected) < 1e-10


def test_weights_that_the_outer_loss_uses_unseen_are_not_in_factors(everywhere):
    at, expected = one_layer(regression, with_a_mapped_penalty)
    assert not isinstance(at.solution, FactoredSteps)
    assert relative(at.total_gradient[0], expected) < 1e-10


@STEPS_AND_ORDERS
def test_total_gradients_are_what_maml_leaves_in_grad(everywhere, steps, first_order):
    torch.manual_seed(0)
    module, some = mlp().double(), mean_tasks(4)
    found = gradients(module, some, Unrolled(LR, steps, first_order))
    for row, task in zip(found, some, strict=True):
        assert relative(row, backward(module, nn.Identity(), module, task, steps, first_order)) < 1e-10


@STEPS_AND_ORDERS
def test_total_gradients_are_what_anil_leaves_in_grad(everywhere, steps, first_order):
    torch.manual_seed(0)
    module, some = headed().double(), mean_tasks(4)
    found = gradients(module, some, Unrolled(LR, steps, first_order), ["head.weight", "head.bias"])
    for row, task in zip(found, some, strict=True):
        assert relative(row, backward(module, module.body, module.head, task, steps, first_order)) < 1e-10


@pytest.mark.parametrize("kind", ["gauss-newton", "hessian", "exact", "sketch", "gamma", "identity"])
@pytest.mark.parametrize("few", [False, True], ids=["at once", "few at a time"])
def test_hessians_are_those_without_factors(kind, few, monkeypatch):
    torch.manual_seed(0)
    loss = ModelLoss(FunctionalModel(mlp().double()), lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
    lam, v = loss.model.parameters, randn(1, Layout(loss.model.parameters).size)
    problem = BilevelProblem(loss, loss, Unrolled(LR, 2), 0.1)
    dense = problem.total_hessian(lam, mean_tasks(4), kind) @ v
    monkeypatch.setattr(in_factors, "NARROW", 0)
    if few:  # two tasks at a time have room for vectors of λ's size, all three for what is made in factors
        monkeypatch.setattr(local_module, "RECYCLED", 2 * len(v) * 8)
    hessian = problem.total_hessian(lam, mean_tasks(4), kind)
    if few:
        (batch,) = hessian.solved_tasks.batches()
        assert [len(piece.batch.index) for piece in batch.microbatches] == [2, 1]
    # A sketch takes square roots of curvatures, and of the rounding of those that are zero.
    assert relative(hessian @ v, dense) < (1e-7 if kind == "sketch" else 1e-10)


def test_only_weights_much_wider_than_their_rows_are_in_factors():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    loss = ModelLoss(FunctionalModel(module), lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
    problem = BilevelProblem(loss, loss, Unrolled(LR, 1), 0.0)
    lam = loss.model.parameters
    (at,) = problem.at(lam, mean_tasks(80)).microbatches()
    assert wide_layers(at.solution.problem, 1) == {"0.weight": 5}
    assert wide_layers(at.solution.problem, 3) == {}
    assert problem.kind.written_out(at.solution.problem) == (Layout(lam).size - 80 * 80) * 8


def test_a_loss_that_changes_its_mind_is_refused(everywhere):
    """Layers are looked for once a batch; what the steps then find must be the same."""
    calls = []

    def fickle(lam, theta, x, y):
        calls.append(1)
        w = theta["w"]
        out = F.linear(x, w) if len(calls) < 4 else x @ w.T
        return (out - y).square().sum(1)

    task = Task((randn(1, 4, 3), randn(2, 4, 2)), (randn(3, 4, 3), randn(4, 4, 2)))
    problem = BilevelProblem(fickle, fickle, Unrolled(LR, 3), 0.1, execution="mapped")  # a probe would call it as well
    with pytest.raises(LossStructureError, match="outside F.linear in this call"):
        problem.total_gradient({"w": randn(0, 2, 3)}, task)
