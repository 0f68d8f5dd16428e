"""Each item's influence on its own loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from l2l_influence import QueryInfluence, SupportInfluence, TaskInfluence

from ..reference_problems.learn2learn import labelled_batches, pairs, train
from .retraining import L2, Retraining, Run, cross_entropies, flat, network, optimal_run


@pytest.fixture(scope="module", params=["unrolled", "proximal"])
def run(request) -> Run:
    return optimal_run(request.param)


def gradient(run: Run, level: str, item) -> torch.Tensor:
    """The derivative of D_λ L_Total by an item's relative weight: it is linear in those of tasks and query samples."""
    more, less = (run.reference.without(level, [item], scale) for scale in (1 + 1e-4, 1 - 1e-4))
    return (run.reference.gradient(run.lam, more) - run.reference.gradient(run.lam, less)) / 2e-4


def own_gradient(run: Run, support, query) -> torch.Tensor:
    """D_λ of the loss on ``query`` after adaptation to ``support``."""
    alone = Retraining(run.reference.model, [(support, query)], run.reference.loss, run.inner)
    return alone.gradient(run.lam) - L2 * run.lam


def test_tasks(run):
    """−g_kᵀ (δ_o I + H)⁻¹ c_k g_k."""
    found, expected = run.hook(TaskInfluence).self_influence(), {}
    for key, pair in enumerate(run.reference.tasks):
        weight = float(run.reference.weights.task[key])
        own = own_gradient(run, *pair)
        expected[run.ids[key]] = -weight * float(own @ torch.linalg.solve(run.hessian, own))
    assert found.values == pytest.approx(expected, rel=1e-8)
    assert [row.rank for row in found] == [1, 2, 3, 4, 5]
    assert [row.score for row in found] == sorted(found.values.values()) and found[-1].score < 0
    assert found.test_loss == pytest.approx(float(run.reference.losses(run.lam).mean()), rel=1e-10)
    assert "own loss" in found.reading and found.reading in str(found)


@pytest.mark.parametrize("level", ["query", "support"])
def test_samples(run, level):
    """A sample's own loss has no weight; its pull has that of the mean it is part of."""
    found = run.hook({"query": QueryInfluence, "support": SupportInfluence}[level]).self_influence()
    assert [row.score for row in found] == sorted(row.score for row in found) and len(found) == 20
    for key, j in [(0, 0), (1, 3), (2, 1)]:
        support, query = run.reference.tasks[key]
        x, y = {"query": query, "support": support}[level]
        own = own_gradient(run, support, (x[j, None], y[j, None]))
        expected = -float(own @ torch.linalg.solve(run.hessian, gradient(run, level, (key, j))))
        assert found.values[run.ids[key], j] == pytest.approx(expected, rel=1e-6)


def test_tasks_with_wrong_labels_come_first():
    """They alone pull λ where no other task does."""
    batches = labelled_batches(12, seed=3)
    wrong = [2, 9]
    for key in wrong:
        batches[key] = (batches[key][0], 1 - batches[key][1])
    model = network()
    maml, tasks = train(model, batches, nn.CrossEntropyLoss(), lr=0.1, steps=2)
    lam = Retraining(model, pairs(batches), cross_entropies, "unrolled").optimum(flat(dict(model.named_parameters())))
    torch.nn.utils.vector_to_parameters(lam, model.parameters())
    for hessian in ("exact", "gauss-newton", "sketch"):
        found = TaskInfluence(maml, tasks, nn.CrossEntropyLoss(), hessian=hessian, l2=L2).self_influence()
        assert {row.key for row in found[:2]} == set(wrong)
