"""ANIL as users write it: features computed once, MAML on the head; recorded without a change, analysed as a whole."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
import torch
from torch import Tensor, nn

from l2l_influence import QueryInfluence, Study, SupportInfluence, TaskInfluence, TotalGradient, record
from l2l_influence.errors import UnmatchedInputError

from ..reference_problems.learn2learn import ListedTasks, pairs
from .anil import BATCHES, LOSS, TEST, Loop


def recorded(together: bool = True) -> tuple[Loop, Study]:
    with record() as study:
        loop = Loop(together).run()
    return loop, study


def states(loop: Loop) -> list[Tensor]:
    return [*loop.body.state_dict().values(), *loop.head.state_dict().values()]


def test_recording_changes_no_bit() -> None:
    plain = Loop().run()
    after = torch.get_rng_state(), random.getstate()
    watched, _ = recorded()
    assert plain.losses == watched.losses
    assert all(torch.equal(a, b) for a, b in zip(states(plain), states(watched), strict=True))
    assert torch.equal(after[0], torch.get_rng_state()) and after[1] == random.getstate()
    assert not watched.body._forward_hooks


@pytest.mark.parametrize("together", [True, False])
def test_rows_are_followed_through_the_body(together: bool) -> None:
    loop, study = recorded(together)
    assert study.recording.body is loop.body
    for task in study.training_tasks():
        assert task.support_rows == (0, 2, 4, 6, 8, 10) and task.query_rows == (1, 3, 5, 7, 9, 11)
        assert task.together is together
        assert torch.equal(task.support[0], BATCHES[task.key][0][::2])


class Whole(nn.Module):
    """A loop that is a module and called as one, with the learner in it."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.loop, self.body, self.head = loop, loop.body, loop.head

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loop.query_loss(x, y)


def test_a_loop_that_is_a_module_is_no_body() -> None:
    with record() as study:
        loop = Loop()
        whole = Whole(loop)
        for x, y in ListedTasks(BATCHES):
            whole(x, y).backward()
    assert study.recording.body is loop.body
    assert len(study.training_tasks()) == len(BATCHES)


def test_what_hooks_compute_inside_the_block_is_none_of_the_loops() -> None:
    with record() as study:
        loop = Loop().run(epochs=1)
        assert len(TaskInfluence(study, loss=LOSS).scores(pairs(BATCHES))) == len(study.training_tasks())
        loop.run(epochs=1)
        assert study.recording.body is loop.body
        assert sum(task.times_trained for task in study.training_tasks()) == 2 * len(BATCHES)


def test_no_body_is_kept_alive() -> None:
    loop, study = recorded()
    body = weakref.ref(loop.body)
    del loop, study
    gc.collect()
    assert body() is None


@pytest.mark.parametrize("together", [True, False])
def test_total_gradient_is_what_the_loops_own_backward_leaves(together: bool) -> None:
    loop, study = recorded(together)
    hook = TotalGradient(study, loss=LOSS)
    for task in study.training_tasks():
        found = hook.of(task.id)
        loop.optimizer.zero_grad()
        loop.query_loss(*BATCHES[task.key]).backward()
        expected = {f"body.{name}": p.grad for name, p in loop.body.named_parameters()}
        expected |= {f"module.{name}": p.grad for name, p in loop.head.module.named_parameters()}
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def test_hooks_answer_for_body_and_head() -> None:
    loop, study = recorded()
    hook = TaskInfluence(study, loss=LOSS)
    before = [value.clone() for value in states(loop)]
    scores = hook.scores(TEST)
    assert len(scores) == 5 and "5 training tasks" in str(scores)
    edited = hook.remove(scores[0].task)
    whole = nn.ModuleDict({"body": loop.body, "module": loop.head.module})
    assert set(edited) == set(whole.state_dict())
    assert not torch.equal(edited["body.0.weight"], loop.body[0].weight)
    samples = QueryInfluence.like(hook).scores(TEST)
    sums = {row.task: 0.0 for row in scores}
    for row in samples:
        sums[row.task] += row.score
    assert all(abs(sums[task] - value) < 1e-9 * max(map(abs, sums.values())) for task, value in scores.values.items())
    assert len(SupportInfluence.like(hook).scores(TEST)) == 30
    assert all(torch.equal(a, b) for a, b in zip(before, states(loop), strict=True))


def test_features_that_no_module_made_are_refused_with_a_way_out() -> None:
    with record() as study:
        loop = Loop()
        for x, y in ListedTasks(BATCHES):
            learner = loop.head.clone()
            features = 2 * loop.body(x)
            learner.adapt(LOSS(learner(features[::2]), y[::2]))
            LOSS(learner(features[1::2]), y[1::2]).backward()
    with pytest.raises(UnmatchedInputError, match="add_episode"):
        TaskInfluence(study, loss=LOSS).scores(TEST)
