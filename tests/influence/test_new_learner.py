"""A learner that the package does not know, added by an adapter of its own.

It is CAVIA: a task adapts context parameters, which start at 0 and are no entries of λ. Gradients are compared with the
loop's own backward, and the influence of a task with the derivative by its weight in that loop.
"""

from __future__ import annotations

from typing import Any

import learn2learn as l2l
import pytest
import torch
from torch import Tensor, nn

from l2l_influence import QueryInfluence, Study, TaskInfluence, TotalGradient, record
from l2l_influence.recording.learners import registry
from l2l_influence.recording.learners.base import LearnerAdapter

LOSS = nn.CrossEntropyLoss()
LR, STEPS = 0.5, 3


class CAVIA(l2l.algorithms.MAML):
    """Adapts ``model.context`` alone, from 0 for each task."""

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        made = super().clone(*args, **kwargs)
        made.__class__ = type(self)
        made.module._parameters["context"] = torch.zeros_like(self.module.context).requires_grad_()
        return made

    def adapt(self, loss: Tensor, first_order: bool | None = None, **_: Any) -> None:
        context = self.module._parameters["context"]
        (gradient,) = torch.autograd.grad(loss, context, create_graph=True)
        self.module._parameters["context"] = context - self.lr * gradient


class CAVIAAdapter(LearnerAdapter):
    """Plain gradient steps of the context parameters."""

    rule = "cavia"
    root = CAVIA
    plain_steps = True
    needs_learner = True

    def adapted(self) -> dict[str, Tensor | None]:
        return {"context": torch.zeros_like(self.model.context)}

    @classmethod
    def step(cls, lr: Any) -> tuple[float, str]:
        return float(lr), cls.rule


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.context = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(torch.cat([x, self.context.expand(len(x), 2)], dim=1))))


def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3


def episode(maml: CAVIA, task: Any) -> Tensor:
    (x, y), (query_x, query_y) = task
    learner = maml.clone()
    for _ in range(STEPS):
        learner.adapt(LOSS(learner(x), y))
    return LOSS(learner(query_x), query_y)


def gradient(maml: CAVIA, task: Any) -> dict[str, Tensor]:
    """By the loop's own backward, of all meta-parameters."""
    own = {name: value for name, value in maml.module.named_parameters() if name != "context"}
    return dict(zip(own, torch.autograd.grad(episode(maml, task), list(own.values())), strict=True))


@pytest.fixture(scope="module")
def adapter():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "LEARNERS", (CAVIAAdapter, *registry.LEARNERS))
        yield


@pytest.fixture(scope="module")
def recorded(adapter) -> tuple[CAVIA, list[Any], Study]:
    torch.manual_seed(0)
    maml, tasks = CAVIA(Conditioned().double(), lr=LR), [(rows(), rows()) for _ in range(4)]
    with record() as study:
        for task in tasks:
            episode(maml, task).backward()
    maml.zero_grad()
    return maml, tasks, study


def test_total_gradients_are_those_of_the_loop(recorded):
    maml, tasks, study = recorded
    for number, task in enumerate(tasks):
        found, expected = TotalGradient(study).of(number), gradient(maml, task)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def test_scores_are_products_of_the_loop_s_gradients(recorded):
    maml, tasks, study = recorded
    test = [(rows(), rows())]
    flat = torch.stack([torch.cat([g.flatten() for g in gradient(maml, task).values()]) for task in (*tasks, *test)])
    names, found = TaskInfluence(study, estimator="gradient-similarity").score_matrix(test)
    assert names == list(range(4))
    torch.testing.assert_close(found[:, 0], -flat[:4] @ flat[4], rtol=1e-9, atol=1e-12)
    _, samples = QueryInfluence(study, estimator="gradient-similarity").score_matrix(test)
    torch.testing.assert_close(samples.view(4, 9).sum(1), found[:, 0], rtol=1e-9, atol=1e-12)


def test_a_saved_study_is_loaded_into_such_a_learner(recorded, tmp_path):
    maml, tasks, study = recorded
    loaded = Study.load(study.save(tmp_path / "study"), CAVIA(Conditioned().double(), lr=LR))
    expected = TotalGradient(study).of(1)
    for name, value in TotalGradient(loaded).of(1).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=0)
