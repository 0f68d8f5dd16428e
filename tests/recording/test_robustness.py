"""Learners survive copying, saving, subclassing and errors; the recorder's own errors are kept and told."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import learn2learn as l2l
import pytest
import torch
from torch import Tensor, nn

from l2l_influence import TaskInfluence
from l2l_influence.errors import NotCopiedError, NothingRecordedError, RecordingError
from l2l_influence.recording import MAML, Study, TaskDataset, record, recording_of
from l2l_influence.recording.episodes import clone_log, graph
from l2l_influence.recording.interception import observe

from .omniglot_loop import fast_adapt, images, taskset

cross_entropy = nn.CrossEntropyLoss()


def wrapped(num_tasks: int = 6) -> TaskDataset:
    return TaskDataset(taskset(images(shape=(4,)), num_tasks))


def linear() -> MAML:
    return MAML(nn.Linear(4, 5), lr=0.1)


def step(maml: Any, batch: Any) -> None:
    fast_adapt(batch, maml.clone(), cross_entropy)[0].backward()


def keys(maml: Any) -> list[int]:
    return [task.key for task in recording_of(maml).training_tasks()]


def through_torch_save(maml: MAML) -> MAML:
    file = io.BytesIO()
    torch.save(maml, file)
    file.seek(0)
    loaded: MAML = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda maml: pickle.loads(pickle.dumps(maml)), through_torch_save])
def test_copies_work_and_have_recordings_of_their_own(copied: Any) -> None:
    maml, tasks = linear(), wrapped()
    step(maml, tasks[0])
    twin = copied(maml)
    assert type(twin) is MAML
    assert all(torch.equal(a, b) for a, b in zip(maml.state_dict().values(), twin.state_dict().values(), strict=True))
    with pytest.raises(NothingRecordedError):
        recording_of(twin).training_tasks()
    step(twin, tasks[3])
    assert (keys(maml), keys(twin)) == ([0], [3])


def test_a_clone_can_be_pickled() -> None:
    maml, tasks = linear(), wrapped()
    learner = maml.clone()
    fast_adapt(tasks[0], learner, cross_entropy)
    loaded = pickle.loads(pickle.dumps(learner))
    assert type(loaded) is MAML
    assert torch.equal(loaded.module.weight, learner.module.weight)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "the oldest pickle": lambda thing: pickle.dumps(thing, protocol=0),
    "torch.save": lambda thing: torch.save(thing, io.BytesIO()),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_studies_and_recordings_are_saved_not_copied(copied: Any, tmp_path: Path) -> None:
    """Those that were loaded too."""
    maml, tasks = linear(), wrapped()
    with record() as study:
        step(maml, tasks[0])
    loaded = Study.load(study.save(tmp_path / "study"), nn.Linear(4, 5))
    for known in (study, loaded):
        for thing in (known, known.recording):
            refused = rf"a {type(thing).__name__} cannot be copied.*Study\.save.*Study\.load"
            with pytest.raises(NotCopiedError, match=refused):
                copied(thing)
        assert len(known.tasks) == 1


def test_what_holds_a_study_is_not_pickled_without_it() -> None:
    with record() as study:
        step(linear(), wrapped()[0])
    for thing in ([study], TaskInfluence(study), study.tasks[0]):
        with pytest.raises(NotCopiedError, match=r"Study\.save"):
            pickle.dumps(thing)


class Tempered(MAML):
    """A user's subclass with state of its own."""

    def __init__(self, model: nn.Module, lr: float, temperature: float) -> None:
        super().__init__(model, lr)
        self.temperature = temperature
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(x) * self.scale / self.temperature
        return output


def test_subclasses() -> None:
    maml, tasks = Tempered(nn.Linear(4, 5), 0.1, temperature=2.0), wrapped()
    learner = maml.clone()
    assert type(learner) is Tempered
    fast_adapt(tasks[1], learner, cross_entropy)[0].backward()
    assert keys(maml) == [1]
    assert maml.scale.grad is not None


def test_a_model_attribute_is_still_reached_through_the_learner() -> None:
    maml = linear()
    assert maml.clone().in_features == 4
    with pytest.raises(AttributeError):
        maml.options  # noqa: B018


def test_errors_in_the_loop_pass_unchanged() -> None:
    maml, tasks = linear(), wrapped()
    x, y = tasks[0]
    learner = maml.clone()
    with pytest.raises(RuntimeError) as recorded_error:
        learner(torch.randn(3, 7))
    with pytest.raises(RuntimeError) as plain_error:
        l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1).clone()(torch.randn(3, 7))
    assert str(recorded_error.value) == str(plain_error.value)
    with pytest.raises(TypeError):
        learner.adapt(None)
    with pytest.raises(IndexError):
        cross_entropy(learner(x), y + 5)
    assert not recording_of(maml).adapting
    assert not recording_of(maml).failures


def test_a_failed_adapt_is_as_learn2learns_and_leaves_nothing_broken(capfd: pytest.CaptureFixture[str]) -> None:
    maml, tasks = linear(), wrapped()
    x, y = tasks[0]
    learner = maml.clone()
    unrelated = torch.ones((), requires_grad=True) * 2
    with pytest.raises(UnboundLocalError):  # learn2learn prints the RuntimeError and then stumbles over it
        learner.adapt(unrelated)
    assert "RuntimeError" in capfd.readouterr().err
    assert not recording_of(maml).adapting
    fast_adapt((x, y), learner, cross_entropy)[0].backward()
    (task,) = recording_of(maml).training_tasks()
    assert (task.steps, task.times_trained) == (1, 1)


def test_an_episode_that_breaks_off_leaves_nothing_broken() -> None:
    maml, tasks = linear(), wrapped()
    for key in range(3):
        learner = maml.clone()
        x, y = tasks[key]
        learner.adapt(cross_entropy(learner(x[:5]), y[:5]))
        if key == 1:
            continue
        cross_entropy(learner(x[5:]), y[5:]).backward()
    assert keys(maml) == [0, 2]


@pytest.mark.parametrize(
    ("module", "name"), [(clone_log, "row_digests"), (observe, "read_loss"), (observe, "mark_output")]
)
def test_the_recorders_own_errors_do_not_reach_the_loop(
    module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: Any) -> Any:
        raise ZeroDivisionError("a bug in the recorder")

    monkeypatch.setattr(module, name, broken)
    maml, tasks = linear(), wrapped()
    step(maml, tasks[0])
    assert maml.module.weight.grad is not None
    assert "ZeroDivisionError: a bug in the recorder" in recording_of(maml).describe()
    with pytest.raises(RecordingError, match="a bug in the recorder"):
        recording_of(maml).training_tasks()


def test_a_graph_too_large_to_search_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MAX_NODES", 60)
    maml, tasks = linear(), wrapped()
    x, y = tasks[0]
    learner = maml.clone()
    output = learner(x)
    for _operation in range(100):
        output = output * 1.0
    learner.adapt(cross_entropy(output, y))
    with pytest.raises(RecordingError, match="first 60 nodes"):
        recording_of(maml).training_tasks()


def test_batches_without_labels_and_forwards_without_data() -> None:
    inner = taskset(images(shape=(4,)), 3)
    tasks = TaskDataset(l2l.data.Taskset(inner.dataset, inner.task_transforms, 3, lambda rows: torch.stack(
        [row[0] for row in rows]
    )))  # fmt: skip
    maml = linear()
    x = tasks[0]
    learner = maml.clone()
    learner.adapt(learner(x[:5]).pow(2).mean())
    learner(x[5:]).pow(2).mean().backward()
    (task,) = recording_of(maml).training_tasks()
    assert (task.support_rows, task.classes, task.labels) == (tuple(range(5)), None, "unseen")
    with pytest.raises(RecordingError, match="without labels"):
        task.support  # noqa: B018


def test_anomaly_mode() -> None:
    maml, tasks = linear(), wrapped()
    with torch.autograd.detect_anomaly(check_nan=False):
        step(maml, tasks[2])
    assert keys(maml) == [2]


def test_plain_learners_have_an_empty_recording() -> None:
    plain, tasks = l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1), wrapped()
    step(plain, tasks[0])
    with pytest.raises(NothingRecordedError, match=r"l2l_influence\.MAML"):
        recording_of(plain).training_tasks()
