"""Influence of query and support samples, against re-optimisation with their weights changed."""

from __future__ import annotations

import collections
import random

import learn2learn as l2l
import numpy as np
import pytest
import torch
from learn2learn.data.transforms import ConsecutiveLabels, KShots, LoadData, NWays, RemapLabels
from torch import nn
from torch.func import grad, vmap
from torch.utils.data import TensorDataset

from l2l_influence import MAML, QueryInfluence, SupportInfluence, TaskDataset, TaskInfluence
from l2l_influence.errors import RecordingError

from ..reference_problems.learn2learn import classification_batches, pairs, regression_batches, train
from .retraining import LR, STEPS, Run, flat, optimal_run, relative, stacked

ITEMS = [(key, j) for key in range(5) for j in range(4)]
"""All samples of the run, by their tasks' keys."""

HOOKS = {"query": QueryInfluence, "support": SupportInfluence}
ITEM_GRADIENTS = pytest.mark.parametrize("level", list(HOOKS))


@pytest.fixture(scope="module", params=["unrolled", "proximal"])
def run(request) -> Run:
    return optimal_run(request.param)


def by_item(run: Run, values: dict[tuple[int, int], float]) -> torch.Tensor:
    return torch.tensor([values[run.ids[key], j] for key, j in ITEMS], dtype=torch.float64)


def test_the_reference_is_the_loops_own_problem_at_its_minimum(run):
    """Its losses are learn2learn's (after as many steps), its gradient is that of L_Total, and its λ* is a minimum."""
    if run.inner == "unrolled":
        losses = [adapted_loss(run.maml.module, *pair) for pair in run.test.tasks]
        assert run.test.losses(run.lam).tolist() == pytest.approx(losses, rel=1e-12)
    reference, away = run.reference, run.lam + 0.3
    for e in torch.eye(len(run.lam), dtype=torch.float64)[::3]:
        slope = (reference.value(away + 1e-5 * e) - reference.value(away - 1e-5 * e)) / 2e-5
        assert float(reference.gradient(away) @ e) == pytest.approx(float(slope), rel=1e-7)
    assert torch.linalg.eigvalsh(run.hessian).min() > 0.1
    assert reference.gradient(run.lam).norm() <= 1e-11


def adapted_loss(module, support, query, steps=STEPS) -> float:
    learner, loss = l2l.algorithms.MAML(module, lr=LR).clone(), nn.CrossEntropyLoss()
    for _ in range(steps):
        learner.adapt(loss(learner(support[0]), support[1]))
    return loss(learner(query[0]), query[1]).item()


@ITEM_GRADIENTS
def test_scores_are_derivatives_of_the_retrained_test_loss(run, level):
    """Positive = harmful: the test loss rises with the sample's weight."""
    more, less = run.reference.around(run.lam, level, ITEMS)
    rises = [run.test.losses(a).mean() - run.test.losses(b).mean() for a, b in zip(more, less, strict=True)]
    slopes = torch.stack(rises) / 2e-4
    hook = run.hook(HOOKS[level])
    scores = hook.scores(run.test.tasks)
    assert relative(by_item(run, scores.values), slopes) < 1e-6
    assert torch.equal(by_item(run, scores.values).sign(), slopes.sign())
    assert scores.test_loss == pytest.approx(float(run.test.losses(run.lam).mean()), rel=1e-12)
    sign = -1 if level == "support" else 1  # of the paper's functions: that of a support sample is added on removal
    for at in (0, 7, 13):
        influence = flat(hook.influence((run.ids[ITEMS[at][0]], ITEMS[at][1])))
        assert relative(influence, sign * (more[at] - less[at]) / 2e-4) < 1e-6


@ITEM_GRADIENTS
def test_the_mean_of_a_row_of_the_matrix_is_the_score(run, level):
    hook = run.hook(HOOKS[level], hessian="gauss-newton")
    names, matrix = hook.score_matrix(run.test.tasks)
    assert matrix.shape == (20, 3) and sorted(names) == [(task, j) for task in range(5) for j in range(4)]
    values = hook.scores(run.test.tasks).values
    assert matrix.mean(1).tolist() == pytest.approx([values[name] for name in names], rel=1e-8)
    alone = hook.scores(run.test.tasks[1:2]).values
    assert matrix[:, 1].tolist() == pytest.approx([alone[name] for name in names], rel=1e-8)


def test_the_query_samples_of_a_task_sum_to_the_task(run):
    tasks = run.hook(TaskInfluence).scores(run.test.tasks).values
    sums = collections.Counter()
    for row in run.hook(QueryInfluence).scores(run.test.tasks):
        sums[row.task] += row.score
    assert sums == pytest.approx(tasks, rel=1e-9)


def test_every_kind_of_hessian_scores_samples_as_it_scores_tasks():
    """Whatever stands for H: what query samples are scored with is what their tasks are scored with."""
    run = optimal_run("unrolled")
    for hessian in ("sketch", "gauss-newton", "hessian", "gamma", "direct-first-order", "identity"):
        sums = collections.Counter()
        for row in run.hook(QueryInfluence, hessian=hessian).scores(run.test.tasks):
            sums[row.task] += row.score
        assert sums == pytest.approx(run.hook(TaskInfluence, hessian=hessian).scores(run.test.tasks).values, rel=1e-8)


# ---- support samples, by adapting anew --------------------------------------------------------------------------


def test_resolve_is_the_difference_that_adapting_without_the_sample_makes(run):
    """λ* stays: only the task's total gradient changes, from its value without the sample to its value with it."""
    reference, hook = run.reference, run.hook(SupportInfluence, removal="resolve")
    inverse = torch.linalg.inv(run.hessian)
    without = stacked([reference.without("support", [item]) for item in ITEMS])
    expected = (reference.gradient(run.lam) - vmap(reference.gradient, (None, 0))(run.lam, without)) @ inverse
    for at in (0, 6, 19):
        name = (run.ids[ITEMS[at][0]], ITEMS[at][1])
        assert relative(flat(hook.influence(name)), expected[at]) < 1e-8
    scores = -expected @ run.test_gradient
    assert relative(by_item(run, hook.scores(run.test.tasks).values), scores) < 1e-8
    assert relative(by_item(run, run.hook(SupportInfluence).scores(run.test.tasks).values), scores) > 0.01


@pytest.mark.parametrize("inner", ["unrolled", "proximal"])
def test_a_support_set_of_one_can_be_adapted_without_it(inner):
    """θ is λ then: no step moves it, or nothing but the proximal term is left."""
    batches = [(x[:2], y[:2]) for x, y in regression_batches(4, seed=40)]  # no other test's rows
    maml, tasks = train(nn.Linear(3, 1, bias=False, dtype=torch.float64), batches, nn.MSELoss(), lr=0.1, steps=1)
    (support, query), (target, wanted) = batches[2]

    def adapted(weight):
        slope = 2 * (weight @ support - target) * support
        return weight - slope * (0.1 if inner == "unrolled" else 1 / (10 + 2 * support @ support))

    def loss(weight):
        return (weight @ query - wanted).square()

    weight = maml.module.weight.detach()[0]
    expected = grad(lambda w: loss(adapted(w)).sum())(weight) - grad(lambda w: loss(w).sum())(weight)
    options = {"hessian": "identity", "l2": 0.0, "damping": 0.0, "removal": "resolve"}
    hook = SupportInfluence(maml, tasks, nn.MSELoss(), inner=inner, **options)
    assert relative(hook.influence((2, 0))["weight"][0], expected) < 1e-8


# ---- what a row says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", list(HOOKS))
def test_rows_say_whose_they_are(level):
    """Tasks are drawn out of order, one without training: ids are neither keys nor positions among trained tasks."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    data = l2l.data.MetaDataset(TensorDataset(torch.randn(60, 4), torch.arange(60) // 12))
    transforms = [NWays(data, 3), KShots(data, 4), LoadData(data), RemapLabels(data), ConsecutiveLabels(data)]
    tasks = TaskDataset(l2l.data.TaskDataset(data, transforms, num_tasks=6))
    maml, loss, served = MAML(nn.Linear(4, 3), lr=0.1), nn.CrossEntropyLoss(), {}
    maml.clone()(tasks[2][0])
    for key in (4, 1, 5, 4):
        x, y = served[key] = tasks[key]
        learner = maml.clone()
        learner.adapt(loss(learner(x[::2]), y[::2]))
        loss(learner(x[1::2]), y[1::2]).backward()
    scores = HOOKS[level](maml, tasks, loss).scores(pairs(classification_batches(2, seed=1)))

    keys, first = {1: 4, 2: 1, 3: 5}, {"support": 0, "query": 1}[level]
    assert sorted((row.task, row.sample) for row in scores) == [(task, j) for task in keys for j in range(6)]
    for row in scores:
        key = keys[row.task]
        x, y = served[key]
        assert row.row == 2 * row.sample + first and row.label == y[row.row]
        assert torch.equal(data[row.index][0], x[row.row])
        assert row.times_trained == (2 if key == 4 else 1)
        own = adapted_loss(maml.module, (x[::2], y[::2]), (x[row.row, None], y[row.row, None]), steps=1)
        assert row.loss == pytest.approx(own, rel=1e-5)
    assert [row.rank for row in scores] == list(range(1, 19))
    assert [row.score for row in scores] == sorted((row.score for row in scores), reverse=True)
    assert_sums_by_index(scores)


def assert_sums_by_index(scores):
    sums = scores.by_index()
    assert len(sums) < len(scores)  # some samples are in several tasks
    for index, found in sums.items():
        assert found == pytest.approx(sum(row.score for row in scores if row.index == index), rel=1e-12)
    assert sum(sums.values()) == pytest.approx(sum(row.score for row in scores))
    assert list(sums.values()) == sorted(sums.values(), reverse=True)


def test_without_indices_there_are_no_sums_by_index():
    maml, tasks = train(nn.Linear(4, 3), classification_batches(3, 0), nn.CrossEntropyLoss())
    scores = QueryInfluence(maml, tasks, nn.CrossEntropyLoss()).scores(pairs(classification_batches(2, 1)))
    assert {row.index for row in scores} == {None}
    with pytest.raises(RecordingError, match="which samples"):
        scores.by_index()


def test_samples_are_read_and_saved_like_tasks(tmp_path):
    batches = [(x, torch.cat([y, -y], dim=1)) for x, y in regression_batches(3, seed=0)]
    maml, tasks = train(nn.Linear(3, 2, dtype=torch.float64), batches, nn.MSELoss())
    scores = SupportInfluence(maml, tasks, nn.MSELoss()).scores(pairs(batches))
    text = str(scores)
    assert "12 support samples" in text and "one of the support samples is removed" in text
    lines = scores.to_csv(tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "rank,task,sample,row,index,label,times_trained,loss,score" and len(lines) == 13
    first = scores[0]
    x, y = batches[first.task]
    assert first.label == pytest.approx(tuple(y[first.row].tolist()))
    assert lines[1].split(",")[3:5] == [str(first.row), ""] and float(lines[1].split(",")[-1]) == first.score
    frame = pytest.importorskip("pandas") and scores.to_frame()
    assert list(frame.columns) == lines[0].split(",") and list(frame["score"]) == [row.score for row in scores]
