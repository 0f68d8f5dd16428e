"""What goes into influences: total gradients and Hessians as hooks of their own, and what is left without dθ/dλ."""

from __future__ import annotations

from collections.abc import Iterator

import learn2learn as l2l
import pytest
import torch
from torch import nn
from torch.nn.utils import vector_to_parameters

from l2l_influence import (
    MAML,
    DirectInfluence,
    QueryInfluence,
    SupportInfluence,
    TaskDataset,
    TaskInfluence,
    TotalGradient,
    TotalHessian,
)
from l2l_influence.bilevel import Dense, Subsample
from l2l_influence.bilevel.hessians import Curvature
from l2l_influence.bilevel.hessians.exact import Exact
from l2l_influence.errors import InfluenceError

from ..reference_problems.learn2learn import (
    ListedTasks,
    classification_batches,
    labelled_batches,
    pairs,
    regression_batches,
    train,
)
from .retraining import L2, Run, changes, flat, optimal_run, relative


@pytest.fixture(scope="module", params=["unrolled", "proximal"])
def run(request) -> Run:
    return optimal_run(request.param)


@pytest.fixture
def moved(run) -> Iterator[Run]:
    """The learner elsewhere than at its minimum."""
    vector_to_parameters(run.lam + 0.2, run.maml.module.parameters())
    yield run
    vector_to_parameters(run.lam, run.maml.module.parameters())


# ---- total gradients --------------------------------------------------------------------------------------------


def learn2learns_gradient(module: nn.Module, pair, lr: float, steps: int, first_order: bool = False) -> torch.Tensor:
    """``.grad`` of learn2learn's own backward."""
    learner, loss = l2l.algorithms.MAML(module, lr=lr, first_order=first_order).clone(), nn.CrossEntropyLoss()
    (xs, ys), (xq, yq) = pair
    for _ in range(steps):
        learner.adapt(loss(learner(xs), ys))
    gradients = torch.autograd.grad(loss(learner(xq), yq), list(module.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def networks(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    if name == "omniglot":
        return l2l.vision.models.OmniglotCNN(3, hidden_size=4).double(), (1, 28, 28)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 3)).double(), (4,)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", ["small", "omniglot"])
def test_a_tasks_gradient_is_learn2learns_own(name, first_order):
    """Of the order in which the loop trained: second, or first where dθ/dλ was taken as I."""
    model, shape = networks(name)
    batches = [(x.double(), y) for x, y in classification_batches(2, 0, shape)]
    maml, tasks = train(
        model, batches, nn.CrossEntropyLoss(), lr=0.4, steps=2, order=[1, 0, 0], first_order=first_order
    )
    hook = TotalGradient(maml, tasks, nn.CrossEntropyLoss())
    for task, key in enumerate([1, 0]):
        pair = pairs(batches)[key]
        found = flat(hook.of(task))
        assert list(hook.of(task)) == [name for name, _ in model.named_parameters()]
        assert relative(found, learn2learns_gradient(model, pair, 0.4, 2, first_order)) < 1e-10
        assert relative(found, learn2learns_gradient(model, pair, 0.4, 2, not first_order)) > 0.01


def test_the_total_gradient_is_the_slope_of_the_whole_problem(moved):
    """Weights and the regulariser included; tasks' own gradients come without their weights."""
    hook, lam, reference = moved.hook(TotalGradient), moved.lam + 0.2, moved.reference
    total = flat(hook.total())
    for e in torch.eye(len(lam), dtype=torch.float64):
        slope = (reference.value(lam + 1e-5 * e) - reference.value(lam - 1e-5 * e)) / 2e-5
        assert float(total @ e) == pytest.approx(float(slope), rel=1e-6, abs=1e-9)
    parts = [flat(hook.of(task)) for task in moved.ids]
    assert relative(reference.weights.task @ torch.stack(parts) + L2 * lam, total) < 1e-10


def test_what_is_handed_out_is_the_users_own(moved):
    hook = moved.hook(TotalGradient)
    first = flat(hook.total())
    for value in hook.total().values():
        value.zero_()
    assert torch.equal(flat(hook.total()), first) and first.norm() > 0
    assert torch.equal(hook.stationarity().gradient, first)


def test_gradients_of_unknown_tasks_are_refused(run):
    with pytest.raises(InfluenceError, match="no training task has id 5"):
        run.hook(TotalGradient).of(5)


# ---- the total Hessian ------------------------------------------------------------------------------------------


def test_hessian_products_are_differences_of_total_gradients(run):
    """The regulariser is part of the gradient and none of H."""
    hook, gradient, maml = run.hook(TotalHessian), run.hook(TotalGradient), run.maml
    v = torch.randn(len(run.lam), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = hook @ v
    ends = []
    for step in (1e-5, -1e-5):
        vector_to_parameters(run.lam + step * v, maml.module.parameters())
        ends.append(flat(gradient.total()))
    vector_to_parameters(run.lam, maml.module.parameters())
    assert relative(product, (ends[0] - ends[1]) / 2e-5 - L2 * v) < 1e-6
    assert relative(product, run.hessian @ v - L2 * v) < 1e-8
    weight, bias, *rest = v.split([6, 2, 4, 2])
    named = {"0.weight": weight.view(2, 3), "0.bias": bias, "2.weight": rest[0].view(2, 2), "2.bias": rest[1]}
    assert torch.equal(flat(hook @ named), product)


def test_solving_with_the_hessian(run):
    v = torch.randn(len(run.lam), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eye = torch.eye(len(v), dtype=torch.float64)
    for damping in (0.0, 0.7):
        solution = run.hook(TotalHessian, damping=damping).solve(v)
        assert relative(solution.value, torch.linalg.solve(run.hessian + damping * eye, v)) < 1e-8
        assert bool(solution.report.converged.all()) and solution.report.shift == pytest.approx(L2 + damping)
    solved = run.hook(TotalHessian, solver=Dense()).solve(v)
    assert relative(solved.value, torch.linalg.solve(run.hessian, v)) < 1e-8 and solved.report.solver == "dense"


def test_automatic_damping_is_a_hundredth_of_the_largest_eigenvalue():
    run = optimal_run("unrolled")
    solution = run.hook(TotalHessian, damping="auto").solve(run.lam)
    largest = torch.linalg.eigvalsh(run.hessian)[-1] - L2
    assert solution.report.shift - L2 == pytest.approx(0.01 * float(largest), rel=0.05)


# ---- without dθ/dλ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inner", "hook"),
    [("proximal", TaskInfluence), ("unrolled", QueryInfluence), ("unrolled", SupportInfluence)],
)
def test_scores_as_the_paper_prints_them_leave_the_test_tasks_jacobian_out(inner, hook):
    """test_gradient="partial": ∂_θ L_O of the test tasks in the place of their total gradient; the influences are the
    same."""
    run = optimal_run(inner)
    slope = run.test.by_theta(run.lam)[0].mean(0)
    influence_hook = run.hook(hook)
    scores = influence_hook.scores(run.test.tasks, test_gradient="partial")
    for row in scores[::4]:
        item = row.task if hook is TaskInfluence else (row.task, row.sample)
        sign = -1 if hook is SupportInfluence else 1
        assert row.score == pytest.approx(sign * float(slope @ flat(influence_hook.influence(item))), rel=1e-8)
    assert any("without dθ/dλ" in note for note in scores.notes)
    names, matrix = influence_hook.score_matrix(run.test.tasks, test_gradient="partial")
    assert matrix.mean(1).tolist() == pytest.approx([scores.values[name] for name in names], rel=1e-8)
    assert scores.values != pytest.approx(influence_hook.scores(run.test.tasks).values, rel=0.01)


def test_direct_influence_takes_the_adapted_parameters_for_the_learners():
    """Gradient and curvature are ∂_θ L_O and ∂_θθ L_O at θ_i; the test tasks' gradients stay total."""
    run = optimal_run("unrolled")
    slopes, curvatures = run.reference.by_theta(run.lam)
    weights = run.reference.weights.task
    system = torch.einsum("i,ijk->jk", weights, curvatures) + L2 * torch.eye(len(run.lam), dtype=torch.float64)
    hook = DirectInfluence(
        run.maml, run.tasks, nn.CrossEntropyLoss(), l2=L2, damping=0.0, tolerance=1e-12, solver=Dense()
    )
    for key, task in enumerate(run.ids):
        expected = -torch.linalg.solve(system, weights[key] * slopes[key])
        assert relative(flat(hook.influence(task)), expected) < 1e-8
        assert relative(changes(hook.remove(task), run.maml), -expected) < 1e-8
    scores = hook.scores(run.test.tasks)
    for row in scores:
        assert row.score == pytest.approx(float(run.test_gradient @ flat(hook.influence(row.task))), rel=1e-8)
    assert any("direct-first-order" in note for note in scores.notes)


def test_the_literal_reading_is_zero_in_maml_and_says_so():
    """∂_λ L_O and ∂_λλ L_O: every parameter is adapted, so there is nothing of λ left."""
    run = optimal_run("unrolled")
    hook = DirectInfluence(run.maml, run.tasks, nn.CrossEntropyLoss(), hessian="direct")
    with pytest.warns(UserWarning, match="identically zero"):
        influence = flat(hook.influence(0))
    assert influence.norm() == 0 and changes(hook.remove([0, 3]), run.maml).norm() == 0
    assert set(hook.scores(run.test.tasks).values.values()) == {0.0}
    assert set(hook.self_influence().values.values()) == {0.0}
    gradient = TotalHessian(run.maml, run.tasks, nn.CrossEntropyLoss(), hessian="direct")
    with pytest.warns(UserWarning, match="identically zero"):
        assert (gradient @ run.lam).norm() == 0


def test_steps_of_both_orders_cannot_be_one_problem():
    maml, loss = MAML(nn.Linear(3, 2, dtype=torch.float64), lr=0.1), nn.CrossEntropyLoss()
    tasks = TaskDataset(ListedTasks(labelled_batches(2, seed=0)))
    for i in range(2):
        x, y = tasks[i]
        learner = maml.clone(first_order=i == 1)
        learner.adapt(loss(learner(x[::2]), y[::2]))
        loss(learner(x[1::2]), y[1::2]).backward()
    with pytest.raises(InfluenceError, match="first_order=True, others without: pass inner='proximal'"):
        TotalGradient(maml, tasks, loss).total()
    assert set(TotalGradient(maml, tasks, loss, inner="proximal").total()) == {"weight", "bias"}


def test_a_direct_hook_takes_over_no_other_hessian() -> None:
    maml, tasks = train(nn.Linear(3, 1).double(), regression_batches(3, 0), nn.MSELoss())
    hook = TaskInfluence(maml, tasks, nn.MSELoss())
    with pytest.raises(TypeError, match="a Hessian of its own"):
        DirectInfluence.like(hook)
    with pytest.raises(TypeError, match="a Hessian of its own"):
        TaskInfluence.like(DirectInfluence(maml, tasks, nn.MSELoss()))


@pytest.mark.parametrize("kind", ["exact", Exact(), Subsample("exact", tasks=2)], ids=["name", "object", "subsample"])
def test_exact_kinds_take_an_inner_inverse_that_leaves_nothing_out(kind: str | Curvature) -> None:
    maml, tasks = train(nn.Linear(3, 1).double(), regression_batches(3, 0), nn.MSELoss())
    hook = TaskInfluence(maml, tasks, nn.MSELoss(), inner="proximal", inner_tolerance=1e-6, hessian=kind, damping=1.0)
    notes = str(hook.scores(pairs(regression_batches(2, 7))))
    assert "inner inverse: cg" in notes
