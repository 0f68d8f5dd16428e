"""The drop-ins for all three learners of learn2learn's, and what is said of other things."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import learn2learn as l2l
import pytest
import torch
from learn2learn.nn import PrototypicalClassifier
from torch import Tensor, nn

from l2l_influence import Study, TaskInfluence
from l2l_influence.errors import RecordingError, UncoveredParameterError
from l2l_influence.recording import GBML, MAML, MetaSGD, TaskDataset, recording_of
from l2l_influence.recording.learners.registry import known_step

from .loops import network
from .omniglot_loop import fast_adapt, images, taskset

cross_entropy = nn.CrossEntropyLoss()
kronecker = l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear)

MAKERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: MAML(nn.Linear(4, 5), lr=0.1),
    "meta-sgd": lambda: MetaSGD(nn.Linear(4, 5), lr=0.1),
    "gbml": lambda: GBML(nn.Linear(4, 5), kronecker, lr=0.1),
}
PLAIN_MAKERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1),
    "meta-sgd": lambda: l2l.algorithms.MetaSGD(nn.Linear(4, 5), lr=0.1),
    "gbml": lambda: l2l.algorithms.GBML(nn.Linear(4, 5), kronecker, lr=0.1),
}


def wrapped(num_tasks: int = 6) -> TaskDataset:
    return TaskDataset(taskset(images(shape=(4,)), num_tasks))


def step(learner: Any, batch: Any, steps: int = 2) -> None:
    fast_adapt(batch, learner.clone(), cross_entropy, steps)[0].backward()


def through_torch_save(learner: Any) -> Any:
    file = io.BytesIO()
    torch.save(learner, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("rule", MAKERS)
def test_how_a_task_was_adapted(rule: str) -> None:
    learner, tasks = MAKERS[rule](), wrapped()
    step(learner, tasks[3])
    (task,) = recording_of(learner).training_tasks(tasks)
    assert (task.key, task.rule, task.steps, task.first_order) == (3, rule, 2, False)
    assert str(task.lr) == ("0.1" if rule == "sgd" else "nan")
    assert (task.support_rows, task.query_rows) == ((0, 2, 4, 6, 8), (1, 3, 5, 7, 9))
    assert list(task.adapted or {}) == ["weight", "bias"]


@pytest.mark.parametrize("rule", MAKERS)
def test_a_drop_in_has_the_attributes_of_what_it_stands_for(rule: str) -> None:
    learner, plain = MAKERS[rule](), PLAIN_MAKERS[rule]()
    for one, other in ((learner, plain), (learner.clone(), plain.clone())):
        assert isinstance(one, type(plain))
        assert vars(one).keys() == vars(other).keys()
        assert [name for name, _ in one.named_parameters()] == [name for name, _ in other.named_parameters()]
        assert [name for name, _ in one.named_modules()] == [name for name, _ in other.named_modules()]
        assert list(one.state_dict()) == list(other.state_dict())
    assert type(learner.clone().clone()) is type(learner)


@pytest.mark.parametrize("rule", MAKERS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one)), through_torch_save])
def test_copies_work_and_have_recordings_of_their_own(rule: str, copied: Any) -> None:
    learner, tasks = MAKERS[rule](), wrapped()
    step(learner, tasks[0])
    twin = copied(learner)
    assert type(twin) is type(learner)
    step(twin, tasks[3])
    for one, key in ((learner, 0), (twin, 3)):
        assert [task.key for task in recording_of(one).training_tasks()] == [key]


def test_a_transform_that_is_a_module_and_learned_alongside() -> None:
    learner, tasks = GBML(network(), kronecker, lr=0.1, adapt_transform=True), wrapped()
    step(learner, tasks[0], steps=3)
    assert all(parameter.grad is not None for parameter in learner.compute_update.parameters())
    (task,) = recording_of(learner).training_tasks()
    assert task.rule == "gbml"


class Scaled(MetaSGD):
    """A user's subclass with a parameter and a setting of its own."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__(model, lr=0.1)
        self.temperature = temperature
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(x) * self.scale / self.temperature
        return output


def test_a_subclass_keeps_what_is_its_own() -> None:
    learner, tasks = Scaled(nn.Linear(4, 5), temperature=2.0), wrapped()
    clone = learner.clone()
    assert type(clone) is Scaled
    assert clone.scale is learner.scale
    step(learner, tasks[1])
    assert learner.scale.grad is not None
    assert all(rate.grad is not None for rate in learner.lrs)
    assert [task.key for task in recording_of(learner).training_tasks()] == [1]


def test_arguments_are_learn2learn_s() -> None:
    tasks = wrapped()
    (x, y), maml = tasks[0], MAML(nn.Linear(4, 5), lr=0.1)
    clone = maml.clone(True, True, True)
    assert (clone.first_order, clone.allow_unused, clone.allow_nograd) == (True, True, True)
    clone.adapt(loss=cross_entropy(clone(x[::2]), y[::2]), first_order=False, allow_nograd=False)
    cross_entropy(clone(x[1::2]), y[1::2]).backward()
    gbml = GBML(nn.Linear(4, 5), kronecker).clone(adapt_transform=True)
    assert gbml.adapt_transform
    assert recording_of(maml).training_tasks()[0].first_order is False
    with pytest.raises(TypeError):
        clone.adapt(cross_entropy(clone(x), y), nonsense=1)


def test_steps_of_two_rules_are_of_none() -> None:
    maml, tasks = MAML(nn.Linear(4, 5), lr=0.1), wrapped()
    x, y = tasks[0]
    clone = maml.clone()
    clone.adapt(cross_entropy(clone(x[::2]), y[::2]))
    clone.lr = torch.full((), 0.1, requires_grad=True)
    clone.adapt(cross_entropy(clone(x[::2]), y[::2]))
    cross_entropy(clone(x[1::2]), y[1::2]).backward()
    (task,) = recording_of(maml).training_tasks()
    assert (task.rule, str(task.lr), task.steps) == ("other", "nan", 2)


def test_what_a_learning_rate_can_say() -> None:
    assert known_step(0.5, "sgd") == known_step(torch.tensor(0.5), "sgd") == (0.5, "sgd")
    for learned in (nn.Parameter(torch.tensor(0.5)), torch.ones(3)):
        lr, rule = known_step(learned, "sgd")
        assert (str(lr), rule) == ("nan", "other")
    assert str(known_step(0.5, "gbml")) == "(nan, 'gbml')"


@pytest.mark.parametrize("rule", ["meta-sgd", "gbml"])
def test_what_learned_steps_are_attributed_to(rule: str) -> None:
    learner, tasks = MAKERS[rule](), wrapped()
    for key in range(3):
        step(learner, tasks[key])
    with pytest.raises(UncoveredParameterError, match=f"rule: {rule}.*proximal=, a number"):
        TaskInfluence(learner, tasks, cross_entropy, inner="proximal").scores([tasks[4]])
    before, initialisation = learner.state_dict(), ["module.weight", "module.bias"]
    for arguments, expected in (({}, list(before)), ({"inner": "proximal", "proximal": 1.0}, initialisation)):
        influence = TaskInfluence(learner, tasks, cross_entropy, **arguments)
        assert len(influence.scores([tasks[4]]).values) == 3
        edited = influence.remove([0])
        assert [name for name, value in edited.items() if not torch.equal(value, before[name])] == expected


class Reptile(nn.Module):
    """As learn2learn's example: a model that is copied with deepcopy."""


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), Reptile(), PrototypicalClassifier(), 3, None], ids=repr)
def test_an_object_that_is_no_learner_is_refused(thing: Any) -> None:
    text = r"cannot be recorded as a learner.*MAML, MetaSGD and GBML.*Reptile.*prototypical.*MetaOptNet"
    with pytest.raises(RecordingError, match=text):
        recording_of(thing)
    with pytest.raises(RecordingError, match=text):
        TaskInfluence(thing)


def test_a_study_without_a_learner_says_what_it_sees() -> None:
    with pytest.raises(RecordingError, match="No learner was cloned"):
        TaskInfluence(Study(), loss=cross_entropy).scores([])
