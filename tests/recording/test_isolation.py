"""Recordings in one process know nothing of each other, and leave learn2learn as they found it."""

from __future__ import annotations

import contextvars
import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import learn2learn as l2l
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from l2l_influence import Study
from l2l_influence.errors import RecordingError, UnmatchedInputError
from l2l_influence.recording import MAML, TaskDataset, record, recording_of
from l2l_influence.recording.interception import observe
from l2l_influence.recording.tasksets import served

from .identity import attributes
from .omniglot_loop import fast_adapt, images, taskset

cross_entropy = nn.CrossEntropyLoss()


def small(seed: int = 0, num_tasks: int = 6) -> Any:
    return taskset(images(shape=(4,), seed=seed), num_tasks)


def plain() -> Any:
    return l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1)


def step(maml: Any, batch: Any) -> None:
    fast_adapt(batch[:2], maml.clone(), cross_entropy)[0].backward()


def keys(learner: Any) -> list[int]:
    return [task.key for task in recording_of(learner).training_tasks()]


# ---- tasksets -----------------------------------------------------------------------------------------------------


class Named(l2l.data.Taskset):
    """A taskset whose batches carry the names of the samples, which no tensor can hold."""

    names: Any = np.array(["a"] * 10)

    def __getitem__(self, i: int) -> Any:
        return (*super().__getitem__(i), self.names)


class Objects(Named):
    names = np.array([object()] * 10)


def of_class(kind: type, seed: int = 1) -> Any:
    inner = small(seed)
    return kind(inner.dataset, inner.task_transforms, num_tasks=6)


@pytest.mark.parametrize("kind", [Named, Objects])
def test_arrays_that_torch_cannot_hold_are_no_tensors(kind: type) -> None:
    tasks, maml = TaskDataset(of_class(kind)), MAML(nn.Linear(4, 5), lr=0.1)
    for key in range(3):
        step(maml, tasks[key])
    assert keys(maml) == [0, 1, 2]
    assert len(recording_of(maml).tasks[0].read()) == 2


def broken_for(taskset: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """Fails with the batches of one taskset."""
    rows = {row.numpy().tobytes() for row in taskset[0][0]}

    def read(tensors: Any) -> Any:
        if tensors[0][0].numpy().tobytes() in rows:
            raise ZeroDivisionError("a bug in the recorder")
        return original(tensors)

    return read


def test_a_failure_with_one_taskset_concerns_only_learners_that_were_fed_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, bad = TaskDataset(small()), TaskDataset(small(1))
    before, victim, after = (MAML(nn.Linear(4, 5), lr=0.1) for _ in range(3))
    step(before, good[0])
    monkeypatch.setattr(served, "read_batch", broken_for(bad, served.read_batch))
    step(victim, bad[0])
    step(after, good[1])
    assert (keys(before), keys(after)) == ([0], [1])
    with pytest.raises(RecordingError, match="a bug in the recorder"):
        recording_of(victim).training_tasks()


def test_drop_ins_interleaved_in_one_thread() -> None:
    learners = [MAML(nn.Linear(4, 5), lr=0.1) for _ in range(2)]
    sources = [TaskDataset(small(seed)) for seed in range(2)]
    clones = []
    for key in range(4):
        batches = [tasks[key] for tasks in sources]
        clones = [maml.clone() for maml in learners]
        losses = [fast_adapt(batch, clone, cross_entropy)[0] for batch, clone in zip(batches, clones, strict=True)]
        for loss in losses:
            loss.backward()
    for maml, tasks in zip(learners, sources, strict=True):
        found = recording_of(maml).training_tasks()
        assert [task.key for task in found] == [0, 1, 2, 3]
        assert len(recording_of(maml).training_tasks(tasks)) == 4


# ---- blocks -------------------------------------------------------------------------------------------------------


class Loop:
    """A loop with a ``record()`` block of its own, which can be run step by step."""

    def __init__(self, seed: int, tasks: Any = None) -> None:
        self.maml, self.tasks, self.study = plain(), tasks or small(seed), Study()

    def steps(self) -> Iterator[None]:
        with record() as self.study:
            for key in range(4):
                clone, (x, y) = self.maml.clone(), self.tasks[key]
                yield
                clone.adapt(cross_entropy(clone(x[::2]), y[::2]))
                yield
                cross_entropy(clone(x[1::2]), y[1::2]).backward()
                yield
            yield

    def check(self) -> None:
        assert self.study.learners == [self.maml]
        (taskset,) = {task.taskset for task in self.study.training_tasks(self.tasks)}
        assert [(task.taskset, task.key) for task in self.study.tasks] == [(taskset, key) for key in range(4)]
        assert not self.study.remarks
        assert "3 draws" not in self.study.describe()


@pytest.mark.parametrize("shared", [False, True], ids=["a taskset each", "one taskset"])
def test_two_blocks_interleaved_in_one_thread(shared: bool) -> None:
    """As two tasks of asyncio are: each in a context of its own."""
    tasks = small() if shared else None
    loops = [Loop(seed, tasks) for seed in range(2)]
    contexts = [contextvars.copy_context() for _ in loops]
    for runs in itertools.zip_longest(*(_steps(loop, context) for loop, context in zip(loops, contexts, strict=True))):
        assert runs == (None, None)
    for loop in loops:
        loop.check()


def _steps(loop: Loop, context: contextvars.Context) -> Iterator[None]:
    steps = loop.steps()
    while context.run(next, steps, "done") != "done":
        yield


def test_two_blocks_interleaved_in_two_threads() -> None:
    loops, barrier, errors = [Loop(seed) for seed in range(2)], threading.Barrier(2), []

    def run(loop: Loop) -> None:
        try:
            for _ in loop.steps():
                barrier.wait(10)
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for loop in loops:
        loop.check()


def test_a_block_does_not_hear_a_thread_with_a_block_of_its_own() -> None:
    maml, tasks, loop = plain(), small(), Loop(1)
    with record() as study:
        thread = threading.Thread(target=lambda: list(loop.steps()))
        thread.start()
        thread.join()
        l2l.algorithms.maml_update(nn.Linear(1, 1), 0.1, [torch.ones(1, 1), torch.ones(1)])
        step(maml, tasks[2])
    assert (study.learners, keys(maml)) == ([maml], [2])
    loop.check()
    assert len(study.remarks) == 1


def test_a_block_hears_threads_without_a_block() -> None:
    maml, tasks = plain(), small()
    with record() as study:
        thread = threading.Thread(target=lambda: step(maml, tasks[4]))
        thread.start()
        thread.join()
    assert [task.key for task in study.training_tasks()] == [4]


def test_a_failure_in_one_block_does_not_concern_another(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, tasks = plain(), plain(), small()
    with record():
        step(one, tasks[0])
    with monkeypatch.context() as patch, record():
        patch.setattr(observe, "called", lambda *_args: 1 / 0)
        step(other, tasks[1])
    assert keys(one) == [0]
    with pytest.raises(RecordingError, match="ZeroDivisionError"):
        recording_of(other).training_tasks()


def test_rows_of_an_ended_block_are_not_remembered() -> None:
    maml, tasks = plain(), small()
    with record():
        x, y = tasks[0]
    with record():
        clone = maml.clone()
        clone.adapt(clone(x[::2]).square().mean())
        clone(x[1::2]).square().mean().backward()
    with pytest.raises(UnmatchedInputError):
        recording_of(maml).training_tasks()


def test_an_ended_block_keeps_no_taskset_alive() -> None:
    tasks = small()
    with record():
        _ = tasks[0]
        data = weakref.ref(tasks.dataset)
    del tasks
    gc.collect()
    assert data() is None


# ---- restoring ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_blocks_that_end_in_any_order_restore_learn2learn(order: tuple[int, ...]) -> None:
    before = attributes()
    losses = dict(vars(nn.functional))
    blocks = [record() for _ in order]
    studies = [block.__enter__() for block in blocks]

    class Own(l2l.algorithms.MAML):
        def clone(self) -> Any:
            made = super().clone()
            made.__class__ = Own
            return made

    own, maml, tasks = Own.clone, Own(nn.Linear(4, 5), lr=0.1), small()
    for ended, number in enumerate(order):
        step(maml, tasks[ended])
        blocks[number].__exit__(None, None, None)
    step(maml, tasks[5])
    for was, now in zip(before, attributes(), strict=True):
        assert was.keys() == now.keys() and all(was[name] is now[name] for name in was)
    assert all(vars(nn.functional)[name] is value for name, value in losses.items())
    assert vars(Own)["clone"] is own.__wrapped__.__wrapped__.__wrapped__  # type: ignore[attr-defined]
    assert all(study.learners == [maml] for study in studies)
    (first, second, third) = recording_of(maml).tasks
    assert [(task.key, task.times_seen, task.times_trained) for task in (first, second, third)] == [
        (key, 1, 1) for key in range(3)
    ]


def test_what_somebody_else_has_wrapped_stays_when_blocks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it looks like a wrapper of the recorder's, because functools.wraps has copied its attributes."""
    called: list[Tensor] = []
    first, second = record(), record()
    monkeypatch.setattr(nn.functional, "mse_loss", nn.functional.mse_loss)  # for its end: puts back what it finds
    original = nn.functional.mse_loss
    first.__enter__()
    inside = nn.functional.mse_loss

    def mine(*args: Any, **kwargs: Any) -> Tensor:
        called.append(args[0])
        return inside(*args, **kwargs)

    mine.__dict__.update(inside.__dict__)
    nn.functional.mse_loss = mine
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert nn.functional.mse_loss is mine
    nn.functional.mse_loss(torch.ones(1), torch.zeros(1))
    assert len(called) == 1 and original is not mine
