"""What hooks leave alone, and what they follow: the learner's state, and the recording's."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

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

from ..reference_problems.learn2learn import ListedTasks, classification_batches, everything, pairs

LOSS = nn.CrossEntropyLoss()


def batches(count: int = 4, seed: int = 0):
    return [(x.double(), y) for x, y in classification_batches(count, seed)]


class Loop:
    """A recorded loop over four tasks, on a network with batch normalisation, that can go on."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
        self.maml, self.tasks = MAML(model, lr=0.3), TaskDataset(ListedTasks(batches()))
        self.optimizer = torch.optim.SGD(self.maml.parameters(), lr=0.1)
        self.train([0, 1, 2])

    def train(self, keys: list[int]) -> None:
        for key in keys:
            x, y = self.tasks[key]
            learner = self.maml.clone()
            learner.adapt(LOSS(learner(x[::2]), y[::2]))
            self.optimizer.zero_grad()
            LOSS(learner(x[1::2]), y[1::2]).backward()
            self.optimizer.step()

    def hook(self, kind: type, **options):
        return kind(self.maml, self.tasks, LOSS, progress=False, **options)


def calls(loop: Loop, inner: str) -> dict[str, Callable[[], object]]:
    """Everything that can be asked."""
    # How well inner problems are solved, and by how much curvature is damped, does not matter here.
    options = {"inner": inner, "inner_tolerance": 1.0}
    task, query, support, direct = (
        loop.hook(kind, damping=1e6, **options)
        for kind in (TaskInfluence, QueryInfluence, SupportInfluence, DirectInfluence)
    )
    left_out, anew = (
        kind.like(task, **change)
        for kind, change in ((TaskInfluence, {"leave_one_out": True}), (SupportInfluence, {"removal": "resolve"}))
    )
    gradient, hessian = loop.hook(TotalGradient, **options), loop.hook(TotalHessian, **options)
    test, v = pairs(batches(2, seed=1)), torch.ones(53, dtype=torch.float64)
    labels = torch.zeros(12, dtype=torch.long)
    asked = {"of": lambda: gradient.of(0), "total": gradient.total, "@": lambda: hessian @ v}
    asked |= {"solve": lambda: hessian.solve(v), "stationarity": gradient.stationarity}
    for name, hook, item in (
        ("task", task, 1),
        ("direct", direct, 1),
        ("query", query, (1, 2)),
        ("support", support, (1, 2)),
    ):
        asked |= {
            f"{name} scores": lambda hook=hook: hook.scores(test),
            f"{name} scores of a taskset": lambda hook=hook: hook.scores(
                ListedTasks(batches(2, seed=1)), test_gradient="partial"
            ),
            f"{name} matrix": lambda hook=hook: hook.score_matrix(test),
            f"{name} itself": lambda hook=hook: hook.self_influence(),
            f"{name} influence": lambda hook=hook, item=item: hook.influence(item),
            f"{name} removal": lambda hook=hook, item=item: hook.remove(item, correct_residual=True),
        }
    return asked | {
        "leaving out": lambda: left_out.scores(test),
        "removal, leaving out": lambda: left_out.remove([0, 2]),
        "addition": lambda: task.add(test),
        "relabelled task": lambda: task.relabel({0: labels}),
        "relabelled query sample": lambda: query.relabel({(0, 1): 2}),
        "relabelled support sample": lambda: support.relabel({(0, 1): 2}),
        "adapting anew": lambda: anew.scores(test),
        "removal, adapting anew": lambda: anew.remove((0, 1)),
    }


@pytest.mark.parametrize(("inner", "training"), [("unrolled", True), ("unrolled", False), ("proximal", True)])
def test_nothing_of_the_users_changes(inner, training):
    """Parameters, buffers, gradients, flags, modes, hooks, and the random states of torch, NumPy and Python."""
    loop = Loop()
    loop.maml.train(training)
    loop.maml.module[0].weight.grad = torch.full((5, 4), 7.0, dtype=torch.float64)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    before, served = everything(loop.maml), dict(loop.tasks.sampled_descriptions)
    for name, call in calls(loop, inner).items():
        call()
        assert everything(loop.maml) == before, name
    assert dict(loop.tasks.sampled_descriptions) == served
    assert np.random.rand() == np.random.RandomState(3).rand()


# ---- answers are those of now ----------------------------------------------------------------------------------


QUESTIONS = {
    TaskInfluence: lambda hook, test, v: [by_name(hook.scores(test)), *hook.influence(1).values()],
    QueryInfluence: lambda hook, test, v: [by_name(hook.scores(test)), *hook.influence((1, 2)).values()],
    SupportInfluence: lambda hook, test, v: [by_name(hook.scores(test)), *hook.influence((1, 2)).values()],
    TotalGradient: lambda hook, test, v: [*hook.total().values(), *hook.of(1).values()],
    TotalHessian: lambda hook, test, v: [hook @ v, hook.solve(v).value],
}
"""What to ask a hook, given test tasks and a vector in parameter space."""


def by_name(scores) -> torch.Tensor:
    return torch.tensor([score for _, score in sorted(scores.values.items())], dtype=torch.float64)


def answers(loop: Loop, kind: type, hook) -> list[torch.Tensor]:
    trained = [parameter for parameter in loop.maml.parameters() if parameter.requires_grad]
    v = torch.linspace(-1, 1, sum(parameter.numel() for parameter in trained), dtype=torch.float64)
    return QUESTIONS[kind](hook, pairs(batches(2, seed=1)), v.to(trained[0]))


def move(loop: Loop) -> None:
    with torch.no_grad():
        loop.maml.module[0].weight.mul_(1.1)


def load(loop: Loop) -> None:
    loop.maml.load_state_dict({name: value * 1.1 for name, value in loop.maml.state_dict().items()})


CHANGES = {
    "moved": move,
    "loaded": load,
    "trained on": lambda loop: loop.train([1]),
    "trained on new tasks": lambda loop: loop.train([3]),
    "frozen in part": lambda loop: loop.maml.module[0].requires_grad_(False),
    "in single precision": lambda loop: loop.maml.float(),
}


@pytest.mark.parametrize("kind", list(QUESTIONS), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("change", list(CHANGES))
def test_a_hook_answers_as_one_that_is_made_afterwards(kind, change):
    """The Hessian, its damping and what is kept of solves included."""
    loop = Loop()
    hook = loop.hook(kind)
    before = answers(loop, kind, hook)
    again = answers(loop, kind, hook)
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))
    CHANGES[change](loop)
    after, expected = answers(loop, kind, hook), answers(loop, kind, loop.hook(kind))
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))
    assert [a.shape for a in after] != [a.shape for a in before] or any(
        not torch.equal(a.double(), b) for a, b in zip(after, before, strict=True)
    )


def test_batch_statistics_are_no_state_unless_they_are_used():
    """Running statistics that are not read may change; those that are read may not."""
    for mode, stays in (("batch", True), ("running", False)):
        loop = Loop()
        hook = loop.hook(TaskInfluence, batch_norm=mode)
        before = hook.influence(0)["0.weight"]
        loop.maml.module[2].running_var.mul_(4)
        assert torch.equal(hook.influence(0)["0.weight"], before) == stays


@pytest.mark.parametrize("kind", [QueryInfluence, SupportInfluence, TotalHessian])
def test_hooks_that_share_what_they_know_follow_the_learner_together(kind):
    loop = Loop()
    first = loop.hook(TaskInfluence)
    shared = kind.like(first)
    assert all(map(torch.equal, answers(loop, kind, shared), answers(loop, kind, loop.hook(kind))))
    move(loop)
    first.scores(pairs(batches(2, seed=1)))
    assert all(map(torch.equal, answers(loop, kind, shared), answers(loop, kind, loop.hook(kind))))
