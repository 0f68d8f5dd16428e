"""The hook against brute force: derivatives of re-optimised meta-parameters, and what it must leave alone."""

from __future__ import annotations

import copy
import functools

import learn2learn as l2l
import pytest
import torch
from torch import nn

from l2l_influence import MAML, TaskDataset, TaskInfluence
from l2l_influence.bilevel import CG
from l2l_influence.errors import (
    InfluenceError,
    LossStructureError,
    NotConvergedError,
    NothingRecordedError,
    RecordingError,
    TaskShapeError,
)

from ..reference_problems.learn2learn import (
    ListedTasks,
    classification_batches,
    everything,
    pairs,
    regression_batches,
    train,
)

L2 = 0.3
LR, STEPS = 0.1, 2


def adapted(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor, inner: str) -> torch.Tensor:
    """θ(λ) of a linear model under mean squared error, written out: K gradient steps, or the proximal solution."""
    n, eye = len(x), torch.eye(len(w), dtype=w.dtype)
    if inner == "proximal":
        delta = 1 / (LR * STEPS)
        return torch.linalg.solve(2 / n * x.T @ x + delta * eye, 2 / n * x.T @ y + delta * w)
    for _ in range(STEPS):
        w = w - LR * 2 / n * x.T @ (x @ w - y)
    return w


def outer_loss(w: torch.Tensor, pair, inner: str) -> torch.Tensor:
    (xs, ys), (xq, yq) = pair
    return (xq @ adapted(w, xs, ys, inner) - yq).square().mean()


class Retraining:
    """argmin_λ of the whole problem for any task weights: it is quadratic, so each task's part is found once."""

    def __init__(self, tasks, inner: str) -> None:
        zero = torch.zeros(3, dtype=torch.float64)
        losses = [lambda w, pair=pair: outer_loss(w.unsqueeze(1), pair, inner) for pair in tasks]
        self.slopes = torch.stack([torch.autograd.functional.jacobian(loss, zero) for loss in losses])
        self.hessians = torch.stack([torch.autograd.functional.hessian(loss, zero) for loss in losses])

    def __call__(self, weights: torch.Tensor) -> torch.Tensor:
        hessian = torch.einsum("i,ijk->jk", weights, self.hessians) + L2 * torch.eye(3, dtype=torch.float64)
        return -torch.linalg.solve(hessian, weights @ self.slopes).unsqueeze(1)


@pytest.mark.parametrize("inner", ["proximal", "unrolled"])
def test_scores_are_derivatives_of_the_retrained_test_loss(inner):
    batches, test = regression_batches(20, seed=0), pairs(regression_batches(4, seed=1))
    order = [*range(20), 2, 2]  # task 2 counts three times
    weights = torch.tensor([3.0 if i == 2 else 1.0 for i in range(20)], dtype=torch.float64) * 20 / 22
    retrained = Retraining(pairs(batches), inner)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    model.weight.data = retrained(weights).T
    maml, tasks = train(model, batches, nn.MSELoss(), lr=LR, steps=STEPS, order=order)
    hook = TaskInfluence(
        maml,
        tasks,
        nn.MSELoss(),
        inner=inner,
        hessian="gauss-newton",
        l2=L2,
        damping=0.0,
        tolerance=1e-12,
        inner_tolerance=1e-12,
    )
    scores = hook.scores(test)

    def retrained_test_loss(w):
        return sum(outer_loss(retrained(w), pair, inner) for pair in test) / len(test)

    assert scores.test_loss == pytest.approx(float(retrained_test_loss(weights)), rel=1e-9)
    for row in scores:
        step = 1e-4 * weights[row.key] * torch.eye(20, dtype=torch.float64)[row.key]
        slope = (retrained_test_loss(weights + step) - retrained_test_loss(weights - step)) / 2e-4
        assert row.score == pytest.approx(float(slope), rel=1e-5)
        influence = hook.influence(row.task)["weight"].T
        expected = (retrained(weights + step) - retrained(weights - step)) / 2e-4
        assert torch.allclose(influence, expected, rtol=1e-5, atol=1e-9)

    removed = hook.remove([scores[0].task])["module.weight"].T
    moved = removed - model.weight.detach().T
    weights[scores[0].key] = 0
    true = retrained(weights) - model.weight.detach().T
    assert float((moved * true).sum() / moved.norm() / true.norm()) > 0.99


def test_gamma_ranks_as_the_product_of_total_gradients():
    batches, test = classification_batches(6, seed=0), pairs(classification_batches(3, seed=1))
    maml, tasks = train(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), batches, nn.CrossEntropyLoss())
    scores = TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), hessian="gamma", inner="unrolled").scores(test)

    def gradient(pair):
        learner = l2l.algorithms.MAML(maml.module, lr=0.1).clone()
        (xs, ys), (xq, yq) = pair
        learner.adapt(nn.functional.cross_entropy(learner(xs), ys))
        loss = nn.functional.cross_entropy(learner(xq), yq)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(maml.parameters()))])

    test_gradient = sum(gradient(pair) for pair in test)
    products = [-float(test_gradient @ gradient(pair)) for pair in pairs(batches)]
    assert [row.key for row in scores] == sorted(range(6), key=lambda i: -products[i])


@pytest.mark.parametrize("inner", ["proximal", "unrolled"])
@pytest.mark.parametrize("network", ["fc", "cnn"])
def test_nothing_of_the_users_changes(network, inner):
    torch.manual_seed(0)
    if network == "fc":
        model, shape = l2l.vision.models.OmniglotFC(28 * 28, 3, sizes=[8, 8]), (28, 28)
    else:
        model, shape = l2l.vision.models.OmniglotCNN(3, hidden_size=4), (1, 28, 28)
    loss = nn.CrossEntropyLoss()
    maml, tasks = train(model, classification_batches(2, 0, shape), loss, lr=0.5, optimizer_lr=0.1)
    before = everything(maml)
    # How well the inner problems are solved does not matter here.
    hook = TaskInfluence(maml, tasks, loss, inner=inner, inner_tolerance=1.0, damping=1.0, progress=False)
    calls = [
        lambda: hook.scores(ListedTasks(classification_batches(1, 1, shape))),
        lambda: hook.scores(pairs(classification_batches(1, 1, shape))),
        lambda: hook.influence(0),
        lambda: hook.remove([0, 1]),
    ]
    for call in calls:
        call()
        assert everything(maml) == before


def test_removal_gives_a_state_dict_that_loads_everywhere():
    torch.manual_seed(0)
    model = l2l.vision.models.OmniglotCNN(3, hidden_size=4)
    maml, tasks = train(model, classification_batches(3, 0, (1, 28, 28)), nn.CrossEntropyLoss(), lr=0.5)
    hook = TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), inner="unrolled", damping=1.0)
    influence, edited = hook.influence(1), hook.remove([1])
    assert set(edited) == set(maml.state_dict())
    copied = MAML(copy.deepcopy(model), lr=0.5)
    copied.load_state_dict(edited)
    for name, parameter in copied.module.named_parameters():
        was = dict(model.named_parameters())[name]
        assert torch.allclose(parameter, was - influence[name], atol=1e-6)
        assert not torch.equal(parameter, was)
    # The trunk is registered twice; both names must carry the edit.
    assert torch.equal(edited["module.base.0.conv.weight"], edited["module.features.1.0.conv.weight"])


def test_group_removal_is_the_sum_of_its_members():
    batches = [(x.double(), y) for x, y in classification_batches(4, 0)]
    maml, tasks = train(nn.Linear(4, 3, dtype=torch.float64), batches, nn.CrossEntropyLoss())
    hook = TaskInfluence(maml, tasks, nn.CrossEntropyLoss())
    start = maml.state_dict()["module.weight"]
    moves = [hook.remove(group)["module.weight"] - start for group in ([0], [3], [0, 3])]
    assert torch.allclose(moves[0] + moves[1], moves[2], rtol=1e-9, atol=0)


def test_scores_on_each_test_task_average_to_the_scores_on_all():
    batches = [(x.double(), y) for x, y in classification_batches(5, 0)]
    test = pairs([(x.double(), y) for x, y in classification_batches(3, 1)])
    maml, tasks = train(nn.Linear(4, 3, dtype=torch.float64), batches, nn.CrossEntropyLoss())
    hook = TaskInfluence(maml, tasks, nn.CrossEntropyLoss())
    ids, matrix = hook.score_matrix(test)
    assert matrix.shape == (5, 3)
    for task, mean in zip(ids, matrix.mean(1).tolist(), strict=True):
        assert hook.scores(test).values[task] == pytest.approx(mean, rel=1e-9)
    for at, pair in enumerate(test):
        alone = hook.scores([pair]).values
        assert [alone[task] for task in ids] == pytest.approx(matrix[:, at].tolist(), rel=1e-9)


@pytest.mark.parametrize("hessian", ["gauss-newton", "exact"])
def test_what_memory_does_not_hold_at_once_is_solved_in_parts(hessian):
    batches = [(x.double(), y) for x, y in classification_batches(3, 10)]
    test = pairs([(x.double(), y) for x, y in classification_batches(3, 11)])
    maml, tasks = train(nn.Linear(4, 3, dtype=torch.float64), batches, nn.CrossEntropyLoss())
    options = {"hessian": hessian, "damping": 0.5, "tolerance": 1e-10, "l2": L2}
    ample, scarce = (
        TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), memory=memory, **options) for memory in ("1GiB", 1)
    )
    expected, found = ample.score_matrix(test)[1], scarce.score_matrix(test)[1]
    assert torch.allclose(found, expected, rtol=1e-8, atol=0)
    rows = scarce.run_at().solved_tasks.lam.expand(3, -1)
    assert scarce.fitted().system.solve(rows).report.residual.shape == (3,)  # of all parts


def test_a_taskset_is_read_without_a_trace():
    data = l2l.data.MetaDataset(torch.utils.data.TensorDataset(torch.randn(60, 4), torch.arange(60) // 12))

    def taskset(num_tasks):
        transforms = [
            l2l.data.transforms.FusedNWaysKShots(data, n=3, k=4),
            l2l.data.transforms.LoadData(data),
            l2l.data.transforms.RemapLabels(data),
            l2l.data.transforms.ConsecutiveLabels(data),
        ]
        return l2l.data.Taskset(data, transforms, num_tasks=num_tasks)

    maml, tasks = train(nn.Linear(4, 3), classification_batches(3, 0), nn.CrossEntropyLoss())
    hook = TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), inner="unrolled")
    for test in (taskset(5), taskset(-1)):
        before = (everything(maml), dict(test.sampled_descriptions))
        first, second = hook.scores(test, num_tasks=4), hook.scores(test, num_tasks=4)
        assert (everything(maml), dict(test.sampled_descriptions)) == before
        assert first.values == second.values
        assert hook.scores(test, num_tasks=4, seed=1).values != first.values


def test_the_hook_can_be_made_before_the_loop_and_follows_the_learner():
    model, loss, batches = nn.Linear(4, 3), nn.CrossEntropyLoss(), classification_batches(3, 0)
    maml, tasks = MAML(model, lr=0.1), TaskDataset(ListedTasks(batches))
    hook = TaskInfluence(maml, tasks, loss, inner="unrolled")
    with pytest.raises(NothingRecordedError):
        hook.scores(pairs(batches))
    for x, y in (tasks[i] for i in range(3)):
        learner = maml.clone()
        learner.adapt(loss(learner(x[::2]), y[::2]))
        loss(learner(x[1::2]), y[1::2]).backward()
    first = hook.scores(pairs(batches)).values
    model.weight.data.mul_(1.5)
    assert hook.scores(pairs(batches)).values != first


def test_batches_pairs_and_tasksets_are_the_same_test_tasks():
    batches = regression_batches(3, seed=1)
    maml, tasks = train(nn.Linear(3, 1, dtype=torch.float64), regression_batches(4, seed=0), nn.MSELoss())
    hook = TaskInfluence(maml, tasks, nn.MSELoss())
    expected = hook.scores(pairs(batches)).values
    assert hook.scores(batches).values == hook.scores(ListedTasks(batches)).values == expected
    with pytest.raises(TaskShapeError, match="a test task must be"):
        hook.scores([batches[0][0]])
    with pytest.raises(ValueError, match="at least 1"):
        hook.scores(ListedTasks(batches), num_tasks=0)


def test_a_loss_that_does_not_add_up_is_refused():
    batches = classification_batches(3, 0)
    maml, tasks = train(nn.Linear(4, 3), batches, nn.CrossEntropyLoss())
    weighted = functools.partial(nn.functional.cross_entropy, weight=torch.tensor([1.0, 5.0, 9.0]))
    for loss, reduction in (
        (weighted, None),
        (nn.CrossEntropyLoss(), "sum"),
    ):
        with pytest.raises(LossStructureError, match="unequally"):
            TaskInfluence(maml, tasks, loss, reduction=reduction).scores(pairs(batches))


def test_ids_stay_when_more_is_recorded():
    batches, loss = classification_batches(4, 0), nn.CrossEntropyLoss()
    maml, tasks = MAML(nn.Linear(4, 3), lr=0.1), TaskDataset(ListedTasks(batches))
    hook = TaskInfluence(maml, tasks, loss)
    served = [tasks[i] for i in range(4)]
    keys = {}
    for part in (served[2:], served[:2]):
        for x, y in part:
            learner = maml.clone()
            learner.adapt(loss(learner(x[::2]), y[::2]))
            loss(learner(x[1::2]), y[1::2]).backward()
        found = {row.task: row.key for row in hook.scores(pairs(batches))}
        assert found.items() >= keys.items()
        keys = found
    assert sorted(keys.values()) == [0, 1, 2, 3]


def test_running_statistics_are_read_anew():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    batches = classification_batches(3, 0)
    maml, tasks = train(model, batches, nn.CrossEntropyLoss())
    hook = TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), batch_norm="running")
    before = hook.scores(pairs(batches)).values
    model[1].running_var.mul_(9)
    assert hook.scores(pairs(batches)).values != before


@pytest.mark.parametrize("inner", ["proximal", "unrolled"])
def test_frozen_parameters_are_no_part_of_the_analysis(inner):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    maml, tasks = MAML(model, lr=0.1, allow_nograd=True), TaskDataset(ListedTasks(classification_batches(3, 0)))
    for x, y in (tasks[i] for i in range(3)):
        learner = maml.clone()
        learner.adapt(nn.functional.cross_entropy(learner(x[::2]), y[::2]))
        nn.functional.cross_entropy(learner(x[1::2]), y[1::2]).backward()
    hook = TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), inner=inner)
    assert set(hook.influence(0)) == {"2.weight", "2.bias"}
    edited = hook.remove([0])
    assert torch.equal(edited["module.0.weight"], model[0].weight)
    assert not torch.equal(edited["module.2.weight"], model[2].weight)


def test_errors_say_what_to_do():
    maml, tasks = train(nn.Linear(4, 3), classification_batches(3, 0), nn.CrossEntropyLoss())
    hook = TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), inner="unrolled")
    with pytest.raises(LossStructureError, match=r"record\(\).*loss=nn.CrossEntropyLoss"):
        TaskInfluence(maml, tasks).scores(pairs(classification_batches(1, 1)))
    with pytest.raises(InfluenceError, match="no training task has id 7"):
        hook.remove([7])
    with pytest.raises(ValueError, match="at least one task"):
        hook.remove([])
    with pytest.raises(ValueError, match="each once"):
        hook.remove([1, 1])
    with pytest.raises(InfluenceError, match="no test tasks"):
        hook.scores([])
    with pytest.raises(RecordingError, match="split="):
        hook.scores(ListedTasks([(torch.randn(5, 4), torch.arange(5) % 3)]))
    with pytest.raises(LossStructureError, match="reduction="):
        TaskInfluence(maml, tasks, lambda o, y: (o[:, 0] - y) ** 2).scores(pairs(classification_batches(1, 1)))
    with pytest.raises(ValueError, match="inner='proximal' too"):
        TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), proximal=2.0).scores(pairs(classification_batches(1, 1)))
    with pytest.raises(ValueError, match="inner must be"):
        TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), inner="both").scores(pairs(classification_batches(1, 1)))


def test_an_unsolved_outer_system_is_an_error_and_can_be_a_warning():
    maml, tasks = train(nn.Linear(4, 3), classification_batches(3, 0), nn.CrossEntropyLoss())
    test = pairs(classification_batches(2, 1))
    options = {"inner": "unrolled", "hessian": "gauss-newton", "solver": CG(tolerance=1e-6, max_iterations=1)}
    with pytest.raises(NotConvergedError, match="outer system"):
        TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), **options).scores(test)
    with pytest.warns(UserWarning, match="outer system"):
        TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), on_unconverged="warn", **options).scores(test)


def test_the_result_reads_well(tmp_path):
    maml, tasks = train(nn.Linear(4, 3), classification_batches(25, 0), nn.CrossEntropyLoss())
    scores = TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), inner="unrolled").scores(
        pairs(classification_batches(2, 1))
    )
    values = [row.score for row in scores]
    assert values == sorted(values, reverse=True) and [row.rank for row in scores] == list(range(1, 26))
    assert scores.top(3) == scores[:3] and scores.bottom(1)[0] == scores[-1]
    text = str(scores)
    assert "positive = harmful" in text and "25 training tasks" in text and "…" in text
    lines = scores.to_csv(tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "rank,task,key,classes,times_trained,loss,score" and len(lines) == 26
    assert float(lines[1].split(",")[-1]) == values[0]
    frame = pytest.importorskip("pandas") and scores.to_frame()
    assert list(frame.columns) == lines[0].split(",") and list(frame["score"]) == values
