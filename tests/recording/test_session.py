"""`record()` sees every learner and taskset of learn2learn's, and leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import learn2learn as l2l
import pytest
import torch
from learn2learn.data.samplers import TasksetSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader

import l2l_influence
from l2l_influence.errors import NothingRecordedError, RecordingError
from l2l_influence.recording import RecordedTask, RecordingOptions, Study, record, recording_of
from l2l_influence.recording.interception import observe
from l2l_influence.recording.interception.listener import listening
from l2l_influence.recording.tasksets import serving
from l2l_influence.recording.tasksets.sampling import read_tasks

from .identity import MAML, attributes
from .loops import PLAIN, network, plus_plus, trained_on
from .omniglot_loop import fast_adapt, images, taskset
from .tasksets import Augmented, Scaled, Shuffled, of_class

cross_entropy = nn.CrossEntropyLoss()


def small(num_tasks: int = 6, seed: int = 0) -> l2l.data.Taskset:
    return taskset(images(shape=(4,), seed=seed), num_tasks)


def linear() -> MAML:
    return MAML(nn.Linear(4, 5), lr=0.1)


def step(maml: Any, batch: Any) -> None:
    fast_adapt(batch, maml.clone(), cross_entropy)[0].backward()


def keys(learner: Any) -> list[int]:
    return [task.key for task in recording_of(learner).training_tasks()]


# Nothing is left behind


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After each test of this file all attributes are the very objects that they were before."""
    before = attributes()
    yield
    for was, now in zip(before, attributes(), strict=True):
        assert list(was) == list(now)
        assert all(was[name] is now[name] for name in was)
    assert not listening()


def test_methods_are_replaced_only_inside() -> None:
    before = MAML.clone, MAML.adapt, l2l.data.Taskset.__getitem__
    with record():
        inside = MAML.clone, MAML.adapt, l2l.data.Taskset.__getitem__
        assert not any(one is other for one, other in zip(before, inside, strict=True))
        assert all(one.__name__ == other.__name__ for one, other in zip(before, inside, strict=True))
    assert (MAML.clone, MAML.adapt, l2l.data.Taskset.__getitem__) == before


def test_an_exception_passes_and_the_recording_stays() -> None:
    maml, tasks = linear(), small()
    with pytest.raises(ZeroDivisionError), record() as study:
        step(maml, tasks[4])
        raise ZeroDivisionError
    assert [task.key for task in study.training_tasks(tasks)] == [4]


def test_what_happens_afterwards_is_not_recorded() -> None:
    maml, tasks = linear(), small()
    with record() as study:
        step(maml, tasks[0])
        held = maml.clone()
        x, y = tasks[1]
        loss = cross_entropy(held(x[::2]), y[::2])
    before = study.describe()
    held.adapt(loss)
    cross_entropy(held(x[1::2]), y[1::2]).backward()
    step(maml, tasks[2])
    assert study.describe() == before
    assert keys(maml) == [0]
    assert [task.key for task in study.tasks] == [0, 1]


def test_a_drop_in_goes_on_recording_afterwards() -> None:
    maml, tasks = l2l_influence.MAML(nn.Linear(4, 5), lr=0.1), l2l_influence.TaskDataset(small())
    with record() as study:
        step(maml, tasks[0])
    step(maml, tasks[2])
    assert [task.key for task in study.training_tasks()] == [0, 2]


def test_blocks_one_after_another_add_up() -> None:
    maml, tasks = linear(), small()
    with record() as first:
        step(maml, tasks[0])
    step(maml, tasks[1])
    with record() as second:
        step(maml, tasks[2])
    assert first.learner is second.learner is maml
    assert keys(maml) == [0, 2]


def test_blocks_inside_blocks() -> None:
    one, other, tasks = linear(), linear(), small()
    with record() as outer:
        step(one, tasks[0])
        with record() as inner:
            step(other, tasks[1])
        step(other, tasks[2])
        step(one, tasks[3])
    assert (outer.learners, inner.learners) == ([one, other], [other])
    assert (keys(one), keys(other)) == ([0, 3], [1, 2])
    assert all(task.times_seen == 1 for task in recording_of(other).tasks)


def test_blocks_that_end_in_another_order() -> None:
    maml, tasks = linear(), small()
    first, second = record(), record()
    first.__enter__()
    study = second.__enter__()
    first.__exit__(None, None, None)
    step(maml, tasks[5])
    second.__exit__(None, None, None)
    step(maml, tasks[1])
    assert study.learners == [maml]
    assert keys(maml) == [5]


def test_a_method_that_somebody_else_replaced_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    maml, tasks, called = linear(), small(), []
    monkeypatch.setattr(MAML, "clone", MAML.clone)  # for its end: puts back what it finds
    with record():
        watched = MAML.clone
        MAML.clone = lambda self: called.append(self) or watched(self)  # type: ignore[method-assign]
        step(maml, tasks[0])
    step(maml, tasks[1])
    assert called == [maml, maml]
    assert keys(maml) == [0]


# Learners


def test_learners_and_tasksets_from_before_the_block() -> None:
    maml, tasks = linear(), small()
    step(maml, tasks[0])
    with record() as study:
        step(maml, tasks[1])
    assert study.learner is maml
    assert keys(maml) == [1]


class Tempered(MAML):
    """A user's subclass with a clone and a forward of its own."""

    def __init__(self, model: nn.Module, lr: float, temperature: float) -> None:
        super().__init__(model, lr)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(x.flatten(1)) / self.temperature
        return output

    def clone(self, *_arguments: Any) -> Tempered:
        return Tempered(super().clone().module, self.lr, self.temperature)


class Clipped(MAML):
    """A user's subclass that takes its inner steps itself."""

    def adapt(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, list(self.module.parameters()), create_graph=True)
        self.module = l2l.algorithms.maml_update(self.module, self.lr, [g.clamp(-0.1, 0.1) for g in gradients])

    def clone(self) -> Clipped:
        return Clipped(l2l.clone_module(self.module), self.lr)


def test_a_subclass_with_its_own_forward_and_clone() -> None:
    maml, tasks = Tempered(network(), 0.1, 2.0), taskset(images(shape=(2, 2)), 6)
    with record() as study:
        step(maml, tasks[3])
    (task,) = study.training_tasks(tasks)
    assert (task.key, task.steps, task.lr, task.rule, task.times_seen) == (3, 1, 0.1, "sgd", 1)
    assert task.support[0].shape == (5, 2, 2)


def test_steps_of_a_subclass_s_own_are_no_gradient_steps() -> None:
    maml, tasks = Clipped(network(), 0.1), small()
    with record() as study:
        fast_adapt(tasks[3], maml.clone(), cross_entropy, steps=2)[0].backward()
    (task,) = study.training_tasks(tasks)
    assert (task.key, task.steps, str(task.lr), task.rule) == (3, 2, "nan", "other")
    assert task.support_rows == (0, 2, 4, 6, 8)
    assert not study.remarks


class Doubled(MAML):
    """A user's subclass that adds something to each of learn2learn's methods."""

    def clone(self) -> Doubled:
        clone = super().clone()
        clone.__class__ = Doubled
        return clone

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = 2 * super().forward(x)
        return output

    def adapt(self, loss: Tensor) -> None:
        super().adapt(2 * loss)


@pytest.mark.parametrize("kind", [MAML, Doubled, l2l_influence.MAML])
def test_each_call_is_recorded_once(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("cloned", "fed"):
        told = getattr(observe, name)
        monkeypatch.setattr(observe, name, lambda *args, told=told, name=name: calls.append(name) or told(*args))
    maml, tasks = kind(nn.Linear(4, 5), 0.1), small()
    with record() as study:
        step(maml, tasks[2])
    assert calls == ["cloned", "fed", "fed"]
    (task,) = study.training_tasks()
    assert (task.key, task.steps, task.lr, task.rule, task.times_seen, task.times_trained) == (2, 1, 0.1, "sgd", 1, 1)


def test_a_class_made_inside_is_watched_until_the_end() -> None:
    tasks = small()
    with record() as study:

        class Own(MAML):
            def forward(self, x: Tensor) -> Tensor:
                return torch.relu(self.module(x))

            def clone(self) -> Own:
                return Own(l2l.clone_module(self.module), self.lr)

        own = Own.forward
        maml = Own(nn.Linear(4, 5), 0.1)
        step(maml, tasks[1])
    step(maml, tasks[2])
    assert keys(study.learner) == [1]
    assert vars(Own)["forward"] is own.__wrapped__


def test_a_learner_like_maml_plus_plus() -> None:
    with record() as study:
        run = plus_plus(PLAIN)
    assert study.learner is run.maml
    for task in study.training_tasks():
        assert (task.steps, task.rule, str(task.lr)) == (2, "other", "nan")
        assert (task.support_rows, task.query_rows) == ((0, 2, 4, 6, 8), (1, 3, 5, 7, 9))


def test_a_learned_learning_rate_is_no_number() -> None:
    maml, tasks = linear(), small()
    maml.lr = nn.Parameter(torch.tensor(0.1))
    with record() as study:
        step(maml, tasks[0])
    (task,) = study.training_tasks()
    assert (task.rule, str(task.lr)) == ("other", "nan")
    assert maml.lr.grad is not None


@pytest.mark.parametrize("where", ["inside", "afterwards"])
def test_learners_can_be_copied_and_saved(where: str) -> None:
    def through_torch_save(learner: Any) -> Any:
        file = io.BytesIO()
        torch.save(learner, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    def check(study: Study) -> None:
        assert pickle.loads(pickle.dumps(maml.clone())).module.weight.shape == (5, 4)
        for copied in (copy.deepcopy, lambda learner: pickle.loads(pickle.dumps(learner)), through_torch_save):
            twin = copied(maml)
            assert type(twin) is MAML
            assert torch.equal(twin.module.weight, maml.module.weight)
            with record() as own:
                step(twin, tasks[2])
            assert own.learner is twin
            assert (keys(twin), keys(maml)) == ([2], [0])

    maml, tasks = linear(), small()
    with record() as study:
        step(maml, tasks[0])
        if where == "inside":
            check(study)
    if where == "afterwards":
        check(study)


def test_a_script_s_learner_survives_its_script() -> None:
    def script() -> None:
        maml, tasks = linear(), small()
        step(maml, tasks[0])

    with record() as study:
        script()
    (task,) = study.training_tasks()
    assert task.support[0].shape == (5, 4)


def test_two_threads() -> None:
    learners, failures = [linear() for _ in range(2)], []

    def loop(maml: Any, number: int) -> None:
        try:
            tasks = small(seed=number)
            for key in range(6):
                step(maml, tasks[key])
        except Exception as error:
            failures.append(error)

    with record() as study:
        threads = [threading.Thread(target=loop, args=pair) for pair in zip(learners, range(2), strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(study.learners) == 2
    assert all(keys(maml) == list(range(6)) for maml in learners)


def test_clones_from_before_the_block_are_mentioned() -> None:
    maml, tasks = linear(), small()
    learner = maml.clone()
    with record() as study:
        fast_adapt(tasks[0], learner, cross_entropy)[0].backward()
    assert "2 forwards of clones that were made before the recording began" in study.describe()


def test_errors_in_the_loop_pass_unchanged() -> None:
    maml, tasks = linear(), small()

    def stumble() -> list[str]:
        learner, texts = maml.clone(), []
        for call in (
            lambda: learner(torch.randn(3, 7)),
            lambda: learner.adapt(),
            lambda: learner.adapt(None),
            lambda: maml.clone(1, 2, 3, 4),
            lambda: tasks.get_task(3),
            lambda: learner.no_such_thing,
        ):
            with pytest.raises(Exception) as error:  # noqa: B017
                call()
            texts.append(f"{type(error.value).__name__}: {error.value}")
        return texts

    plain = stumble()
    with record() as study:
        assert stumble() == plain
        step(maml, tasks[0])
    assert not recording_of(maml).failures
    assert "1 of them trained" in study.describe()


# Tasksets


def recorded(draw: Callable[[], Any], learner: Any = None) -> list[RecordedTask]:
    """The tasks of a linear learner trained on what ``draw`` gives inside a block."""
    with record() as study:
        trained_on(learner or linear(), draw())
    return study.training_tasks()


def test_indexing_iteration_and_descriptions() -> None:
    tasks = small()
    found = recorded(lambda: [tasks[3], tasks[0], *tasks, tasks.get_task(tasks.sampled_descriptions[4])])
    assert [task.key for task in found] == [3, 0, 1, 2, 4, 5]
    assert [task.times_seen for task in found] == [2, 2, 1, 1, 2, 1]


def test_each_draw_of_an_infinite_taskset_is_a_task() -> None:
    tasks = small(-1)
    stream = iter(tasks)
    found = recorded(lambda: [tasks.sample(), next(stream), tasks[0], tasks.get_task(tasks.sample_task_description())])
    assert [task.key for task in found] == [0, 1, 2, 3]
    assert all(task.indices is not None for task in found)


def test_the_deprecated_task_dataset() -> None:
    inner = small()
    with record() as study, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tasks = l2l.data.TaskDataset(inner.dataset, inner.task_transforms, num_tasks=4)
        step(linear(), tasks[2])
    assert [task.key for task in study.training_tasks(tasks)] == [2]


@pytest.mark.parametrize("kind", [Scaled, Shuffled])
def test_overridden_methods(kind: type) -> None:
    tasks = of_class(kind)
    batches = [tasks.sample() for _ in range(2)]
    with record(RecordingOptions(data_bytes=0)) as study:
        maml = linear()
        step(maml, tasks[3])
        batches += [tasks.sample() for _ in range(3)]
        for batch in batches[2:]:
            step(maml, batch)
    found = study.training_tasks(tasks)
    assert sum(task.times_seen for task in found) == 4
    assert len({task.key for task in found}) == len(found)
    by_key = {task.key: task for task in found}
    assert torch.equal(by_key[3].support[0], tasks[3][0][::2])
    assert all(len(task.indices or ()) == 10 for task in found)


class Pooled(l2l.data.Taskset):
    """Two tasks of its own in one: no index is that of the whole."""

    def sample(self) -> Any:
        return tuple(torch.cat(parts) for parts in zip(self[0], self[1], strict=True))


def test_a_batch_put_together_of_two_is_one_task() -> None:
    tasks = of_class(Pooled)
    (task,) = recorded(lambda: [tasks.sample(), tasks.sample()])
    assert (task.times_seen, task.indices) == (2, None)
    assert task.key >= len(tasks)


def test_augmented_data_are_what_was_drawn() -> None:
    tasks = taskset(l2l.data.MetaDataset(Augmented()), 6)
    batches: list[Any] = []
    (task,) = recorded(lambda: batches.append(tasks[0]) or batches)
    assert torch.equal(task.support[0], batches[0][0][::2])


def test_a_taskset_outlives_draws_that_are_not_entered_yet() -> None:
    maml, tasks = linear(), small()
    with record(RecordingOptions(data_bytes=0)) as study:
        batch = tasks[3]
        learner = maml.clone()
        fast_adapt(batch, learner, cross_entropy)[0].backward()
        del tasks
        gc.collect()
    (task,) = study.training_tasks()
    assert task.classes is not None
    assert torch.equal(task.query[0], batch[0][1::2])


def test_reading_inside_the_block_serves_nothing() -> None:
    maml, tasks, test_tasks = linear(), small(-1), small(seed=1)
    posted: list[Any] = []
    with record(RecordingOptions(data_bytes=0)) as study:
        step(maml, tasks.sample())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serving, "record_served", lambda *args, **_kwargs: posted.append(args))
            study.training_tasks()[0].support  # noqa: B018
            read_tasks(test_tasks, 3, seed=0)
            assert not posted
            test_tasks.sample()
            assert len(posted) == 1
        step(maml, tasks.sample())
    assert keys(maml) == [0, 1]


@pytest.mark.parametrize("arguments", [{}, {"batch_size": None}, {"collate_fn": lambda batch: batch[0]}])
@pytest.mark.parametrize("workers", [0, 1])
def test_data_loaders(arguments: dict[str, Any], workers: int) -> None:
    tasks = small()
    loader = DataLoader(tasks, num_workers=workers, **arguments)
    batches: list[Any] = []

    def draw() -> Iterator[Any]:
        for x, y in loader:
            batches.append((x.squeeze(0), y.squeeze(0)))
            yield batches[-1]

    found = recorded(draw)
    assert len(found) == 6
    assert {task.taskset for task in found} == {found[0].taskset}
    for task, (x, y) in zip(found, batches, strict=True):
        assert torch.equal(task.query[0], x[1::2])
        assert torch.equal(task.query[1], y[1::2])


def test_worker_processes_record_nothing_themselves() -> None:
    tasks = small()
    with record():
        (recorder,) = listening()
        lengths = list(DataLoader(tasks, num_workers=1, collate_fn=lambda _batch: len(recorder.served)))
    assert len(lengths) == 6
    assert len(set(lengths)) == 1


def test_the_tasks_of_a_sampler() -> None:
    tasks = small()
    loader = DataLoader(tasks.dataset, batch_sampler=TasksetSampler(tasks))
    found = recorded(lambda: ((x, y % 5) for _epoch in range(2) for x, y in loader))
    assert [task.times_seen for task in found] == [2] * 6
    assert all(task.labels == "changed" for task in found)  # a sampler leaves out what remaps them


# The study


def test_options_are_for_new_recordings() -> None:
    known, new, tasks = linear(), linear(), small()
    recording_of(known).options.max_tasks = 7
    with record(RecordingOptions(keep_adapted=False)) as study:
        step(known, tasks[0])
        step(new, tasks[0])
    assert recording_of(known).options == RecordingOptions(max_tasks=7)
    assert recording_of(new).options == study.options == RecordingOptions(keep_adapted=False)
    assert recording_of(new).options is not study.options


def test_the_learner_is_the_one_that_trained() -> None:
    idle, maml, tasks = linear(), linear(), small()
    with record() as study:
        fast_adapt(tasks[0], idle.clone(), cross_entropy)
        step(maml, tasks[1])
    assert study.learners == [idle, maml]
    assert study.learner is maml
    assert study.recording is recording_of(maml)
    assert [task.key for task in study.tasks] == [1]


def test_several_learners_or_none_are_told() -> None:
    tasks = small()
    with record() as study:
        pass
    with pytest.raises(RecordingError, match=r"No learner was cloned.*add_episode"):
        study.learner  # noqa: B018
    assert "No learner was cloned" in repr(study)
    with record() as study:
        step(linear(), tasks[0])
        step(l2l.algorithms.MetaSGD(nn.Linear(4, 5)), tasks[0])
    with pytest.raises(RecordingError, match=r"2 learners.*MAML \(1 tasks\), MetaSGD \(1 tasks\)"):
        study.training_tasks()
    assert "MetaSGD: 1 tasks in 1 draws" in study.describe()


def test_why_nothing_was_recorded_is_the_learner_s_to_say() -> None:
    tasks = small()
    with record() as study:
        fast_adapt(tasks[0], linear().clone(), cross_entropy)
    with pytest.raises(NothingRecordedError, match="no backward"):
        study.training_tasks()


# Functional use


def by_meta_sgd(clone: nn.Module, gradients: Any) -> None:
    l2l.algorithms.meta_sgd_update(clone, [torch.ones(()) for _ in gradients], gradients)


def by_updates(clone: nn.Module, gradients: Any) -> None:
    l2l.update_module(clone, [-0.1 * gradient for gradient in gradients])


UPDATES: dict[str, Callable[[Any, Any], Any]] = {
    "maml_update": lambda clone, gradients: l2l.algorithms.maml_update(clone, lr=0.1, grads=gradients),
    "maml.maml_update": lambda clone, gradients: l2l.algorithms.maml.maml_update(model=clone, lr=0.1, grads=gradients),
    "meta_sgd_update": by_meta_sgd,
    "update_module": by_updates,
    "DifferentiableSGD": lambda clone, gradients: l2l.optim.DifferentiableSGD(0.1)(clone, gradients),
}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_updates_without_a_learner_are_mentioned(update: Callable[[Any, Any], Any]) -> None:
    model, tasks = network(), small()
    with record() as study:
        for key in range(2):
            x, y = tasks[key]
            clone = l2l.clone_module(model)
            update(clone, torch.autograd.grad(cross_entropy(clone(x[::2]), y[::2]), list(clone.parameters())))
            cross_entropy(clone(x[1::2]), y[1::2]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(RecordingError, match=r"2 updates \(by maml_update or the like\).*add_episode"):
        study.learner  # noqa: B018
    assert "2 updates" in study.describe()


@pytest.mark.parametrize("part", [lambda learner: learner, lambda learner: learner.module])
def test_updates_of_a_clone_s_model_are_inner_steps(part: Callable[[Any], Any]) -> None:
    maml, tasks = linear(), small()
    with record() as study:
        x, y = tasks[2]
        learner = maml.clone()
        for _step in range(2):
            loss = cross_entropy(learner(x[::2]), y[::2])
            gradients = torch.autograd.grad(loss, list(learner.parameters()), create_graph=True)
            l2l.algorithms.maml_update(part(learner), 0.1, [gradient.clamp(-1, 1) for gradient in gradients])
        cross_entropy(learner(x[1::2]), y[1::2]).backward()
    (task,) = study.training_tasks()
    assert (task.steps, task.rule) == (2, "other")
    assert (task.support_rows, task.query_rows) == ((0, 2, 4, 6, 8), (1, 3, 5, 7, 9))
    assert not study.remarks


def test_what_was_kept_from_inside_does_what_it_did() -> None:
    maml, tasks = linear(), small()
    with record() as study:
        step(maml, tasks[0])
        update, clone, forward, adapt = l2l.algorithms.maml_update, MAML.clone, MAML.forward, MAML.adapt
        draw = l2l.data.Taskset.__getitem__
    before = study.describe()
    x, y = draw(tasks, 1)
    learner = clone(maml)
    adapt(learner, cross_entropy(forward(learner, x[::2]), y[::2]))
    cross_entropy(forward(learner, x[1::2]), y[1::2]).backward()
    assert study.describe() == before
    weight = learner.module.weight
    update(learner.module, 1.0, [torch.ones(5, 4), torch.ones(5)])
    assert torch.equal(learner.module.weight, weight - 1)
