"""The drop-in taskset behaves as the one it wraps, and says what was drawn from it."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from typing import Any

import learn2learn as l2l
import pytest
import torch
from torch import nn

from l2l_influence.recording import MAML, TaskDataset, recording_of
from l2l_influence.recording.tasksets.tasks import info_of

from .omniglot_loop import fast_adapt, images
from .tasksets import Scaled, Shuffled, of_class, small


def recorded(batches: Any) -> Any:
    """The recording of a linear learner that trained on these batches."""
    maml = MAML(nn.Linear(4, 5), lr=0.1)
    for batch in batches:
        fast_adapt(batch, maml.clone(), nn.CrossEntropyLoss())[0].backward()
    return recording_of(maml)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_wrapping_shares_the_sampled_descriptions() -> None:
    inner = small()
    first = inner[2]
    tasks = TaskDataset(inner)
    assert tasks.sampled_descriptions is inner.sampled_descriptions
    assert same(tasks[2], first)
    assert same(inner[4], tasks[4])
    assert len(tasks) == 6
    assert isinstance(tasks, l2l.data.Taskset)


def test_wrapping_does_not_warn() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TaskDataset(small())
    assert not caught


def test_takes_learn2learns_own_arguments() -> None:
    inner = small()
    tasks = TaskDataset(inner.dataset, inner.task_transforms, num_tasks=3, task_collate=lambda rows: ("mine", rows))
    assert len(tasks) == 3
    assert tasks[0][0] == "mine"
    with pytest.raises(TypeError, match="from the taskset"):
        TaskDataset(inner, num_tasks=3)


def test_the_same_draws_as_the_wrapped_taskset() -> None:
    inner = small()
    twin = copy.deepcopy(inner)
    random.seed(3)
    plain = [inner.sample() for _ in range(5)] + list(inner)
    random.seed(3)
    tasks = TaskDataset(twin)
    wrapped = [tasks.sample() for _ in range(5)] + list(tasks)
    assert len(plain) == len(wrapped) == 11
    assert all(same(a, b) for a, b in zip(plain, wrapped, strict=True))


def test_indexing_and_iteration_are_recorded() -> None:
    tasks = TaskDataset(small())
    recording = recorded([tasks[3], tasks[0], *tasks])
    assert [task.key for task in recording.training_tasks(tasks)] == [3, 0, 1, 2, 4, 5]
    assert [task.times_seen for task in recording.tasks] == [2, 2, 1, 1, 1, 1]
    assert [task.id for task in recording.tasks] == list(range(6))


def test_each_draw_of_an_infinite_taskset_is_a_task() -> None:
    tasks = TaskDataset(small(num_tasks=-1))
    stream = iter(tasks)
    recording = recorded([tasks.sample(), next(stream), tasks[0], tasks.get_task(tasks.sample_task_description())])
    assert [task.key for task in recording.training_tasks()] == [0, 1, 2, 3]
    assert tasks.sampled_descriptions == {}


def test_a_description_given_to_get_task_keeps_its_index() -> None:
    tasks = TaskDataset(small())
    batch = tasks[4]
    again = tasks.get_task(tasks.sampled_descriptions[4])
    recording = recorded([batch, again])
    assert [(task.key, task.times_seen) for task in recording.tasks] == [(4, 2)]


def test_indices_and_classes_are_those_of_the_data_set() -> None:
    tasks = TaskDataset(small())
    x, y = tasks[1]
    (task,) = recorded([(x, y)]).training_tasks()
    data = tasks.dataset
    assert task.indices is not None
    assert torch.equal(x, torch.stack([data[index][0] for index in task.indices]))
    assert task.classes is not None
    assert [task.classes[label] for label in y.tolist()] == [int(data[index][1]) for index in task.indices]


def test_labels_are_asked_of_the_data_set_without_adding_to_it() -> None:
    tasks = TaskDataset(small())
    known = dict(tasks.dataset.indices_to_labels)
    recorded([tasks[1]]).tasks  # noqa: B018
    assert dict(tasks.dataset.indices_to_labels) == known


def test_overridden_methods_are_kept_and_recorded() -> None:
    inner = of_class(Scaled)
    tasks = TaskDataset(inner)
    assert same(tasks[3], inner[3])
    assert tasks.offset == 1.0
    recording = recorded([tasks[3], tasks[1]])
    recording.options.data_bytes = 0
    assert [task.key for task in recording.training_tasks()] == [3, 1]
    (x, _), rows = recording.training_tasks()[0].support, recording.training_tasks()[0].support_rows
    assert torch.equal(x, inner[3][0][list(rows)])


def test_an_overridden_sample_gives_equal_draws_one_key() -> None:
    tasks = TaskDataset(of_class(Shuffled))
    random.seed(0)
    recording = recorded([tasks.sample() for _ in range(10)])
    assert len(tasks.sampled_descriptions) == 3
    assert sorted(task.times_seen for task in recording.training_tasks()) == sorted(
        task.times_trained for task in recording.training_tasks()
    )
    assert sum(task.times_seen for task in recording.tasks) == 10
    assert len(recording.tasks) == 3


def test_all_wrappers_of_a_taskset_are_one_source() -> None:
    inner = small()
    one, other = TaskDataset(inner), TaskDataset(TaskDataset(inner))
    recording = recorded([one[0], other[0]])
    for source in (one, other, inner):
        assert [task.times_seen for task in recording.training_tasks(source)] == [2]


def test_tasks_sampled_anew_under_an_old_index_are_other_tasks() -> None:
    tasks = TaskDataset(small())
    batches = [tasks[0]]
    tasks.sampled_descriptions.clear()
    batches.append(tasks[0])
    recording = recorded(batches)
    assert [(task.key, task.times_seen) for task in recording.training_tasks()] == [(0, 1), (0, 1)]
    first, second = recording.training_tasks()
    assert first.indices != second.indices
    recording.options.data_bytes = 0
    assert torch.equal(first.support[0], batches[0][0][list(first.support_rows)])


def test_copies_are_sources_of_their_own() -> None:
    tasks = TaskDataset(small())
    tasks[0]
    twin = copy.deepcopy(tasks)
    assert same(twin[0], tasks[0])
    assert twin.sampled_descriptions is not tasks.sampled_descriptions
    assert info_of(twin).number != info_of(tasks).number
    assert not same(twin[1], tasks[1])


def test_a_fresh_taskset_can_be_pickled() -> None:
    tasks = pickle.loads(pickle.dumps(TaskDataset(small())))
    assert len(tasks) == 6
    assert tasks.sampled_descriptions is tasks._plain.sampled_descriptions
    assert [task.key for task in recorded([tasks[2]]).training_tasks(tasks)] == [2]


def test_classes_of_a_filtered_taskset_are_those_of_the_whole_data_set() -> None:
    """learn2learn's benchmarks sample from a filtered data set and load from the whole one."""
    data = l2l.data.MetaDataset(images())
    filtered = l2l.data.FilteredMetaDataset(data, labels=list(range(106, 112)))
    transforms = [
        l2l.data.transforms.FusedNWaysKShots(data, n=3, k=2, filter_labels=filtered.labels),
        l2l.data.transforms.LoadData(data),
        l2l.data.transforms.RemapLabels(data),
    ]
    tasks = TaskDataset(l2l.data.Taskset(filtered, transforms, num_tasks=4))
    maml = MAML(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), lr=0.1)
    for i in range(4):
        x, y = tasks[i]
        learner = maml.clone()
        learner.adapt(nn.functional.cross_entropy(learner(x[::2]), y[::2]))
        nn.functional.cross_entropy(learner(x[1::2]), y[1::2]).backward()
    for task in recording_of(maml).training_tasks():
        labels = tasks[task.key][1].tolist()
        assert task.classes is not None and task.indices is not None
        assert [task.classes[label] for label in labels] == [int(data[index][1]) for index in task.indices]


def test_classes_that_do_not_go_with_the_labels_are_not_named() -> None:
    """A task that mixes classes under one label has no class names, rather than wrong ones."""
    data = l2l.data.MetaDataset(images())

    def two_by_two(description: object) -> list[l2l.data.DataDescription]:
        return [l2l.data.DataDescription(i) for i in (0, 1, 6, 7)]

    class Coarse:
        def __call__(self, rows: list[l2l.data.DataDescription]) -> list[l2l.data.DataDescription]:
            for row in rows:
                row.transforms.append(lambda sample: (sample[0], 0))
            return rows

    tasks = TaskDataset(l2l.data.Taskset(data, [two_by_two, l2l.data.transforms.LoadData(data), Coarse()], num_tasks=1))
    maml = MAML(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), lr=0.1)
    x, y = tasks[0]
    learner = maml.clone()
    learner.adapt(nn.functional.cross_entropy(learner(x[::2]), y[::2]))
    nn.functional.cross_entropy(learner(x[1::2]), y[1::2]).backward()
    (task,) = recording_of(maml).training_tasks()
    assert task.indices == (0, 1, 6, 7) and task.classes is None
