"""The ways in which a recorder that is to change nothing could break a loop, or be misled by it: a test for each.

In the order in which they come up in the life of a learner. Where other files go further, they are named:

- a clone that forgets its class: `test_clone_of_a_drop_in_is_a_drop_in`
- attributes that a clone loses, and names that clash with the model's: `test_attributes_are_the_users_alone`;
  subclasses: test_learners.py::test_a_subclass_keeps_what_is_its_own
- state on a module that all clones share: `test_nothing_is_put_on_the_model`
- sampling before or after cloning: `test_sampling_before_or_after_cloning`
- rows of support and query unknown: `test_rows_are_found_by_content`,
  `test_rows_that_were_changed_are_refused_or_as_fed`; test_unserved.py::test_values_changed_after_sampling;
  ambiguous rows: test_binding.py::test_a_draw_that_fits_two_tasks_is_refused;
  features: test_anil.py::test_rows_are_followed_through_the_body
- labels that the learner never sees: `test_labels_are_read_from_the_loss`;
  changed ones: test_binding.py::test_labels_changed_after_sampling
- which forwards are support and which are query: `test_several_forwards_of_support_and_query`;
  features: test_anil.py::test_rows_are_followed_through_the_body
- validation interleaved with training: `test_validation_on_the_same_learner_and_tasks_is_no_training`;
  test_training.py::test_a_gradient_that_stops_at_the_clone_does_not_count
- interleaved learners and nested clones: `test_interleaved_learners_and_nested_clones`
- infinite tasksets: `test_draws_of_an_infinite_taskset_have_a_cap`
- augmentation: `test_what_augmentation_drew_is_kept`; test_memory.py::test_augmented_data_are_kept_or_refused
- random numbers: `test_recording_reading_and_scoring_draw_no_random_numbers`; test_surfaces.py::test_the_same_bits
- running statistics: `test_scoring_leaves_running_statistics_alone`; test_state.py::test_nothing_of_the_users_changes
- dropout: `test_random_layers_are_switched_off_with_a_warning`
- evaluation mode: `test_evaluation_mode_of_the_model`; of some layers, forwards or tasks:
  test_normalisation.py::test_two_modes_in_a_task_are_refused_unless_told
- first order, unused, frozen and shared parameters: `test_gradients_with_the_flags_of_maml`
- an adapt call that fails: `test_a_failing_adapt_fails_as_learn2learns`
- functional updates: `test_updates_by_hand_are_inner_steps_or_mentioned`;
  test_session.py::test_updates_without_a_learner_are_mentioned;
  told by hand: test_add_episode.py::test_a_told_episode_is_a_trained_draw_of_a_task
- memory: `test_no_clone_or_graph_outlives_its_iteration`; test_memory.py::test_data_without_room_are_read_again
- copies: `test_copies_of_learners_and_clones`; test_session.py::test_learners_can_be_copied_and_saved
- DataParallel: `test_data_parallel_inside_a_clone`, `test_data_parallel_around_a_clone_is_refused`
- distributed processes: test_ranks.py::test_two_processes_of_torchrun_leave_one_scored_study
- worker processes: `test_worker_processes_of_drop_ins_are_refused`; test_session.py::test_data_loaders
- Lightning: test_lightning.py::test_the_same_bits, test_lightning.py::test_the_sanity_check_is_left_out
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learn2learn as l2l
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from l2l_influence import TaskInfluence
from l2l_influence.errors import UnmatchedInputError
from l2l_influence.recording import RecordedTask, RecordingOptions, record, recording_of

from .hazards import Block, cross_entropy, each_way, gradients_agree, normalised, step
from .identity import assert_same, everything, random_rows, seed
from .loops import DROP_INS, PLAIN, Kit, network, tasks_of
from .omniglot_loop import Run, even_rows, fast_adapt, images, taskset
from .tasksets import Augmented

kronecker = l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear)


LEARNERS: dict[str, Callable[[Kit], Any]] = {
    "maml": lambda kit: kit.MAML(nn.Linear(4, 5), lr=0.1),
    "meta-sgd": lambda kit: kit.MetaSGD(nn.Linear(4, 5), lr=0.1),
    "gbml": lambda kit: kit.GBML(nn.Linear(4, 5), kronecker, lr=0.1),
}
each_learner = pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)


def linear(kit: Kit) -> Any:
    return kit.MAML(nn.Linear(4, 5), lr=0.1)


def keys(maml: Any) -> list[int]:
    return [task.key for task in recording_of(maml).training_tasks()]


def test_the_list_above_is_of_tests_that_exist() -> None:
    named = re.findall(r"(?:(test_\w+\.py)::)?\b(test_\w+)(?![\w.])", __doc__ or "")
    assert len(named) >= 40
    sources = {path.name: path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py")}
    for file, name in named:
        assert f"\ndef {name}(" in sources[file or Path(__file__).name], name
    own = set(re.findall(r"^def (test_\w+)", sources[Path(__file__).name], flags=re.MULTILINE))
    assert own - {name for _, name in named} == {"test_the_list_above_is_of_tests_that_exist"}


@each_way
@each_learner
def test_clone_of_a_drop_in_is_a_drop_in(make: Callable[[Kit], Any], kit: Kit, block: Block) -> None:
    """And that of a learner of learn2learn's is one of these; clones of clones are recorded like clones."""
    learner, tasks = make(kit), tasks_of(kit)
    with block():
        grandchild = learner.clone().clone()
        fast_adapt(tasks[3], grandchild, cross_entropy)[0].backward()
    assert type(grandchild) is type(learner)
    assert keys(learner) == [3]


class Named(nn.Linear):
    """Has attributes of the names that a recorder could want."""

    options = recording = watch = track = study = episode = learners = "mine"


@each_way
def test_attributes_are_the_users_alone(kit: Kit, block: Block) -> None:
    plain, maml, tasks = l2l.algorithms.MAML(nn.Linear(4, 5), 0.1), kit.MAML(Named(4, 5), lr=0.1), tasks_of(kit)
    with block():
        clone = maml.clone()
        fast_adapt(tasks[0], clone, cross_entropy)[0].backward()
        for learner in (maml, clone):
            assert vars(learner).keys() == vars(plain).keys()
            assert {getattr(learner, name) for name in ("options", "recording", "watch", "track", "study")} == {"mine"}
            with pytest.raises(AttributeError):
                learner.nothing_of_this_name  # noqa: B018
        with pytest.raises(KeyError, match="_modules"):  # learn2learn's own word for half-built objects
            kit.MAML.__new__(kit.MAML).lr  # noqa: B018
    assert keys(maml) == [0]


def places(model: nn.Module) -> list[Any]:
    """Where something could be put on a model: its modules' attributes, its parameters' attributes and hooks."""
    modules = [(name, sorted(vars(module)), hooks(module)) for name, module in model.named_modules()]
    return [modules, [(vars(parameter), parameter._backward_hooks) for parameter in model.parameters()]]


def hooks(module: nn.Module) -> list[Any]:
    return [value for name, value in vars(module).items() if name.endswith("hooks") and value]


@each_way
def test_nothing_is_put_on_the_model(kit: Kit, block: Block) -> None:
    maml, tasks = kit.MAML(network(), lr=0.1), tasks_of(kit)
    before = places(maml.module)
    with block():
        clone = maml.clone()
        assert places(clone.module) == before
        fast_adapt(tasks[0], clone, cross_entropy)[0].backward()
        assert places(maml.module) == before
        assert not any(hooks(module) for module in clone.modules())
        assert not any(parameter._backward_hooks for parameter in clone.parameters())
    assert keys(maml) == [0]


@each_way
@pytest.mark.parametrize("order", ["clone, sample", "sample, clone", "all sampled before"])
def test_sampling_before_or_after_cloning(order: str, kit: Kit, block: Block) -> None:
    maml, tasks = linear(kit), tasks_of(kit)
    with block():
        served = [tasks[key] for key in (1, 2, 3, 4)] if order == "all sampled before" else []
        for key in (4, 2):
            clone = maml.clone() if order == "clone, sample" else None
            batch = served[key - 1] if served else tasks[key]
            fast_adapt(batch, clone or maml.clone(), cross_entropy)[0].backward()
    found = recording_of(maml).training_tasks()
    assert {task.key for task in found} == {2, 4}
    for task in found:
        assert torch.equal(task.query[0], tasks[task.key][0][1::2])


SPLITS: dict[str, Callable[[int], tuple[Any, Any]]] = {
    "numpy masks": even_rows,
    "random permutation": lambda rows: tuple(torch.randperm(rows).split(rows // 2)),
    "random everything": random_rows,
    "strides": lambda rows: (slice(0, None, 2), slice(1, None, 2)),
}


@each_way
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_rows_are_found_by_content(split: Callable[[int], tuple[Any, Any]], kit: Kit, block: Block) -> None:
    maml, tasks = linear(kit), tasks_of(kit)
    with block():
        x, y = tasks[2]
        support, query = split(len(x))
        elsewhere = torch.empty(len(x), 9)[:, ::2][:, :4].copy_(x)  # as on another device: other memory, other strides
        fast_adapt((elsewhere, y), maml.clone(), cross_entropy, split=lambda _rows: (support, query))[0].backward()
    (task,) = recording_of(maml).training_tasks()
    numbers = torch.arange(len(x))
    assert task.support_rows == tuple(numbers[support].tolist())
    assert task.query_rows == tuple(numbers[query].tolist())
    assert task.labels == "confirmed"


@each_way
@pytest.mark.parametrize("change", [lambda x: x.double(), lambda x: x / 255, lambda x: x[:, [1, 0, 2, 3]]])
def test_rows_that_were_changed_are_refused_or_as_fed(
    change: Callable[[Tensor], Tensor], kit: Kit, block: Block
) -> None:
    """Inside record() their labels are seen, and what was fed is the task."""
    maml, tasks = kit.MAML(nn.Linear(4, 5, dtype=change(torch.ones(1, 4)).dtype), lr=0.1), tasks_of(kit)
    with block():
        x, y = tasks[0]
        step(maml, (change(x), y))
    if block is record:
        (task,) = recording_of(maml).training_tasks()
        assert torch.equal(torch.cat([task.support[0], task.query[0]]), change(torch.cat([x[::2], x[1::2]])))
    else:
        with pytest.raises(UnmatchedInputError, match="no change of values, dtype or shape"):
            recording_of(maml).training_tasks()


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "class weights": (nn.CrossEntropyLoss(weight=torch.arange(1.0, 6.0)), "confirmed"),
    "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), "confirmed"),
    "a sum, divided": (lambda output, y: nn.CrossEntropyLoss(reduction="sum")(output, y) / len(y), "confirmed"),
    "one value a sample": (lambda output, y: nn.CrossEntropyLoss(reduction="none")(output, y).mean(), "confirmed"),
    "log-likelihood": (lambda output, y: nn.functional.nll_loss(output.log_softmax(1), y), "confirmed"),
    "soft labels": (lambda output, y: cross_entropy(output, nn.functional.one_hot(y, 5).float()), "unseen"),
    "squared error of a column": (lambda output, y: nn.functional.mse_loss(output[:, 0], y.float()), "unseen"),
    "margins by hand": (lambda output, y: (1 - output[range(len(y)), y]).relu().mean(), "unseen"),
}


@each_way
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(("loss", "seen"), LOSSES.values(), ids=LOSSES)
def test_labels_are_read_from_the_loss(loss: Any, seen: str, first_order: bool, kit: Kit, block: Block) -> None:
    """Before a first-order step lets the graph go; where they cannot be read, those served are taken."""
    maml, tasks = kit.MAML(nn.Linear(4, 5), lr=0.1, first_order=first_order), tasks_of(kit)
    with block():
        x, y = tasks[0]
        fast_adapt((x, y), maml.clone(), loss)[0].backward()
    (task,) = recording_of(maml).training_tasks()
    assert task.labels == seen
    assert torch.equal(task.support[1], y[::2]) and torch.equal(task.query[1], y[1::2])


@each_way
def test_several_forwards_of_support_and_query(kit: Kit, block: Block) -> None:
    """The inner loss accumulated over parts, a look at the query set in between, and the outer loss over parts."""
    maml, tasks = linear(kit), tasks_of(kit)
    with block():
        (x, y), learner = tasks[1], maml.clone()
        for _step in range(2):
            learner.adapt(sum(cross_entropy(learner(x[rows]), y[rows]) for rows in ([4, 0], [2])))
            learner(x[[1, 3]])
        sum(cross_entropy(learner(x[rows]), y[rows]) for rows in ([9], [7, 5])).backward()
    (task,) = recording_of(maml).training_tasks()
    assert (task.support_rows, task.query_rows, task.steps) == ((4, 0, 2), (9, 7, 5), 2)


@each_way
def test_validation_on_the_same_learner_and_tasks_is_no_training(kit: Kit, block: Block) -> None:
    maml, tasks, held_out = linear(kit), tasks_of(kit), tasks_of(kit, seed=1)
    with block():
        for key in (0, 1):
            fast_adapt(held_out[key], maml.clone(), cross_entropy)
            step(maml, tasks[key])
            fast_adapt(tasks[key], maml.clone(), cross_entropy, split=lambda _rows: ([0, 1], [2, 3]))
            fast_adapt(tasks[5], maml.clone(), cross_entropy)
    found = recording_of(maml).training_tasks(tasks)
    assert [(task.key, task.times_seen, task.times_trained) for task in found] == [(0, 2, 1), (1, 2, 1)]
    assert all(task.support_rows == (0, 2, 4, 6, 8) for task in found)
    assert len(recording_of(maml).training_tasks()) == 2
    assert len(recording_of(maml).tasks) == 5


@each_way
def test_interleaved_learners_and_nested_clones(kit: Kit, block: Block) -> None:
    one, other, tasks = linear(kit), kit.MetaSGD(nn.Linear(4, 5), lr=0.1), tasks_of(kit)
    with block():
        for key in (0, 1, 2):
            (x, y), a, b = tasks[key], one.clone(), other.clone()
            a.adapt(cross_entropy(a(x[::2]), y[::2]))
            b.adapt(cross_entropy(b(x[1::2]), y[1::2]))
            nested = a.clone()
            nested.adapt(cross_entropy(nested(x[::2]), y[::2]))
            (cross_entropy(nested(x[1::2]), y[1::2]) + cross_entropy(b(x[::2]), y[::2])).backward()
    for learner, steps, support in ((one, 2, (0, 2, 4, 6, 8)), (other, 1, (1, 3, 5, 7, 9))):
        found = recording_of(learner).training_tasks()
        assert [(task.key, task.times_trained) for task in found] == [(0, 1), (1, 1), (2, 1)]
        assert all((task.steps, task.support_rows) == (steps, support) for task in found)


@each_way
def test_draws_of_an_infinite_taskset_have_a_cap(kit: Kit, block: Block) -> None:
    maml, tasks = linear(kit), tasks_of(kit, num_tasks=-1)
    recording_of(maml).options = RecordingOptions(max_tasks=4)
    with block():
        for _draw in range(12):
            step(maml, tasks.sample())
    recording = recording_of(maml)
    assert [task.times_trained for task in recording.training_tasks()] == [1] * 4
    assert recording.stands_for == 3
    assert "uniform sample" in recording.describe()


@each_way
def test_what_augmentation_drew_is_kept(kit: Kit, block: Block) -> None:
    maml, tasks = linear(kit), kit.wrapped(taskset(l2l.data.MetaDataset(Augmented()), 6))
    with block():
        x, y = tasks[0]
        step(maml, (x, y))
        assert not torch.equal(tasks[0][0], x)
    (task,) = recording_of(maml).training_tasks()
    assert torch.equal(task.support[0], x[::2]) and torch.equal(task.query[0], x[1::2])


def scored(maml: Any) -> Any:
    tasks = taskset(images(shape=(4,), seed=1), -1)
    return TaskInfluence(maml, loss=cross_entropy, progress=False).scores(tasks, num_tasks=2)


@each_way
@pytest.mark.filterwarnings("ignore:Dropout is switched off")
def test_recording_reading_and_scoring_draw_no_random_numbers(kit: Kit, block: Block) -> None:
    seed()
    maml, tasks = kit.MAML(network(), lr=0.1), tasks_of(kit, num_tasks=-1)
    with block():
        for _draw in range(3):
            step(maml, tasks.sample())
        before = everything(Run(maml))
        assert [task.support[0].shape for task in recording_of(maml).training_tasks()] == [(5, 4)] * 3
        assert len(scored(maml)) == 3
        assert_same(before, everything(Run(maml)))


@each_way
def test_scoring_leaves_running_statistics_alone(kit: Kit, block: Block) -> None:
    """In training mode a forward of a clone changes them, since clones share buffers: that of the loop's own, only."""
    maml = kit.MAML(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)), lr=0.1)
    tasks = tasks_of(kit)
    with block():
        for key in range(3):
            step(maml, tasks[key])
    assert int(maml.module[1].num_batches_tracked) == 6
    before = [buffer.clone() for buffer in maml.buffers()]
    scored(maml)
    assert all(map(torch.equal, before, maml.buffers()))


@each_way
def test_random_layers_are_switched_off_with_a_warning(kit: Kit, block: Block) -> None:
    block_out = l2l.vision.models.resnet12.DropBlock(block_size=1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (2, 2, 2)), Blocked(block_out), nn.Flatten(),
                          nn.Dropout(0.5), nn.Linear(8, 5))  # fmt: skip
    maml, tasks = kit.MAML(model, lr=0.1), tasks_of(kit)
    with block():
        for key in range(3):
            step(maml, tasks[key])
    with pytest.warns(UserWarning, match="DropBlock, Dropout is switched off"):
        one = scored(maml)
    with pytest.warns(UserWarning, match="switched off"):
        assert scored(maml).values == one.values
    assert all(module.training for module in maml.modules())


class Blocked(nn.Module):
    """DropBlock as learn2learn's ResNet-12 calls it, with a rate."""

    def __init__(self, drop_block: nn.Module) -> None:
        super().__init__()
        self.drop_block = drop_block

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.drop_block(x, gamma=0.3)
        return output


@each_way
@pytest.mark.parametrize("options", [{"batch_norm": "running"}, {}], ids=["told", "untold"])
def test_evaluation_mode_of_the_model(options: dict[str, Any], kit: Kit, block: Block) -> None:
    """A clone says that it is in training mode whatever the mode of the model inside, which it leaves as it is."""
    maml = kit.MAML(normalised(), lr=0.1)
    maml.eval()
    with block():
        clone = maml.clone()
    assert clone.training and not clone.module.training
    gradients_agree(maml, kit, block, **options)
    assert not any(module.training for module in maml.modules())


class Partly(nn.Module):
    """One layer is frozen, one is never used, and two share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.unused, self.one, self.other, self.last = (nn.Linear(4, 4) for _ in range(5))
        self.frozen.requires_grad_(False)
        self.other.weight = self.one.weight
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.frozen, self.one, self.other):
            x = torch.tanh(layer(x))
        output: Tensor = self.last(x)
        return output


@each_way
@pytest.mark.parametrize("first_order", [False, True])
def test_gradients_with_the_flags_of_maml(first_order: bool, kit: Kit, block: Block) -> None:
    maml = kit.MAML(Partly().double(), lr=0.1, first_order=first_order, allow_unused=True, allow_nograd=True)
    gradients_agree(maml, kit, block)
    (task, _other) = recording_of(maml).training_tasks()
    assert task.first_order is first_order
    assert "frozen.weight" in (task.adapted or {}) and "other.weight" not in (task.adapted or {})


@each_way
def test_a_failing_adapt_fails_as_learn2learns(kit: Kit, block: Block, capfd: pytest.CaptureFixture[str]) -> None:
    """It prints the RuntimeError and stumbles over it. The clone can be adapted all the same afterwards."""
    maml, tasks = linear(kit), tasks_of(kit)
    with block():
        (x, y), learner = tasks[0], maml.clone()
        with pytest.raises(UnboundLocalError):
            learner.adapt(cross_entropy(learner(x[::2]).detach(), y[::2]))
        assert "does not require grad" in capfd.readouterr().err
        fast_adapt((x, y), learner, cross_entropy)[0].backward()
    (task,) = recording_of(maml).training_tasks()
    assert (task.key, task.steps, task.times_trained) == (0, 1, 1)


def test_updates_by_hand_are_inner_steps_or_mentioned() -> None:
    """Of a clone's model, and of a model that no learner made."""
    maml, tasks = linear(PLAIN), tasks_of(PLAIN)
    with record() as study:
        x, y = tasks[0]
        for model in (maml.clone(), l2l.clone_module(nn.Linear(4, 5))):
            gradients = torch.autograd.grad(cross_entropy(model(x[::2]), y[::2]), list(model.parameters()))
            l2l.algorithms.maml_update(model, 0.1, gradients)
            cross_entropy(model(x[1::2]), y[1::2]).backward()
    (task,) = study.training_tasks()
    assert (task.steps, task.rule, task.support_rows) == (1, "other", (0, 2, 4, 6, 8))
    assert "1 updates (by maml_update or the like) of modules that no learner made" in study.describe()


@each_way
@pytest.mark.parametrize("trains", [True, False])
def test_no_clone_or_graph_outlives_its_iteration(trains: bool, kit: Kit, block: Block) -> None:
    maml, tasks = linear(kit), tasks_of(kit)
    gc.disable()  # by reference counts alone
    try:
        with block():
            for key in range(3):
                learner = maml.clone()
                loss, _ = fast_adapt(tasks[key], learner, cross_entropy, steps=3)
                if trains:
                    loss.backward()
                gone = [weakref.ref(thing) for thing in (learner, loss, *learner.parameters())]
                del learner, loss
                assert not any(reference() is not None for reference in gone)
    finally:
        gc.enable()
    assert len(recording_of(maml).tasks) == 3


def through_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def through_torch_save(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@each_way
@each_learner
@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
def test_copies_of_learners_and_clones(copied: Any, make: Callable[[Kit], Any], kit: Kit, block: Block) -> None:
    """A copy of a learner is a learner with a recording of its own; of clones learn2learn allows no deep copy."""
    learner, tasks = make(kit), tasks_of(kit)
    with block():
        clone = learner.clone()
        fast_adapt(tasks[0], clone, cross_entropy)[0].backward()
        twin = copied(learner)
        assert type(twin) is type(learner)
        step(twin, tasks[2])
        if copied is copy.deepcopy:
            with pytest.raises(RuntimeError, match="created explicitly by the user"):
                copied(clone)
        else:
            loaded = copied(clone)
            assert type(loaded) is type(learner)
            assert torch.equal(loaded(torch.ones(1, 4)), clone(torch.ones(1, 4)))
    assert (keys(learner), keys(twin)) == ([0], [2])


class InThreads(nn.Module):
    """`nn.DataParallel` for one processor: replicas that work on a part of the rows each, in threads of their own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        parts: dict[int, Tensor] = {}

        def work(number: int, rows: Tensor) -> None:
            parts[number] = replica(self.module)(rows)

        threads = [threading.Thread(target=work, args=pair) for pair in enumerate(x.chunk(2))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return torch.cat([parts[number] for number in sorted(parts)])


def replica(module: nn.Module) -> Any:
    """As DataParallel makes them, whose parameters are plain tensors."""
    made: Any = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        made._modules[name] = child and replica(child)
    for name, parameter in module._parameters.items():
        setattr(made, name, parameter * 1)
    return made


@each_way
def test_data_parallel_inside_a_clone(kit: Kit, block: Block) -> None:
    """As learn2learn's Lightning modules have it."""
    maml, tasks = linear(kit), tasks_of(kit)
    with block():
        learner = maml.clone()
        learner.module = InThreads(learner.module)
        fast_adapt(tasks[3], learner, cross_entropy, steps=2)[0].backward()
    (task,) = recording_of(maml).training_tasks()
    assert (task.key, task.steps, task.labels, list(task.adapted or {})) == (3, 2, "confirmed", ["weight", "bias"])
    assert (task.support_rows, task.query_rows) == ((0, 2, 4, 6, 8), (1, 3, 5, 7, 9))


@each_way
@pytest.mark.parametrize("around", [InThreads, lambda clone: clone.module], ids=["replicas", "the model inside"])
def test_data_parallel_around_a_clone_is_refused(around: Callable[[Any], Any], kit: Kit, block: Block) -> None:
    """What a clone is fed by other means than calling it is not seen; if that trains, it is not passed over."""
    maml, tasks = linear(kit), tasks_of(kit)
    with block():
        step(maml, tasks[1])
        for trains in (False, True):
            (x, y), clone = tasks[0], maml.clone()
            clone.adapt(cross_entropy(around(clone)(x[::2]), y[::2]))
            loss = cross_entropy(around(clone)(x[1::2]), y[1::2])
            if trains:
                loss.backward()
            else:
                assert keys(maml) == [1]
    with pytest.raises(UnmatchedInputError, match=r"DataParallel belongs inside, learner\.module ="):
        recording_of(maml).training_tasks()


def test_worker_processes_of_drop_ins_are_refused() -> None:
    """They record on their own. Inside record() what they made is posted where it arrives."""
    maml, tasks = linear(DROP_INS), tasks_of(DROP_INS)
    for x, y in DataLoader(tasks, num_workers=1, batch_size=None):
        step(maml, (x, y))
    with pytest.raises(UnmatchedInputError, match="num_workers=0"):
        recording_of(maml).training_tasks()
    with record() as study:
        twin: Any = linear(DROP_INS)
        for x, y in DataLoader(tasks, num_workers=1, batch_size=None):
            step(twin, (x, y))
    found: list[RecordedTask] = study.training_tasks(tasks)
    assert len(found) == 6
