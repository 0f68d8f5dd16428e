"""Lightning fits as it does without the callback, and what it fits is recorded."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import learn2learn as l2l
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from l2l_influence import Study, TaskInfluence, TotalGradient, record
from l2l_influence.errors import RecordingError
from l2l_influence.recording import RecordedTask
from l2l_influence.recording.interception.listener import listening

from .identity import assert_same, everything, seed
from .loops import network
from .manual import told
from .omniglot_loop import Run, images, taskset

pl = pytest.importorskip("pytorch_lightning", reason='needs Lightning: pip install "l2l-influence[lightning]"')

from learn2learn.algorithms import LightningANIL, LightningMAML  # noqa: E402
from learn2learn.utils.lightning import EpisodicBatcher  # noqa: E402
from pytorch_lightning.strategies import DDPStrategy  # noqa: E402

from l2l_influence.lightning import RecordingCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

WAYS, SHOTS, QUERIES, LENGTH = 3, 2, 1, 5
SUPPORT, QUERY = (0, 1, 3, 4, 6, 7), (2, 5, 8)
SETTING = {"adaptation_steps": 2, "train_ways": WAYS, "train_shots": SHOTS, "train_queries": QUERIES, "test_ways": WAYS,
           "test_shots": SHOTS, "test_queries": QUERIES, "lr": 0.01}  # fmt: skip


def maml(**arguments: Any) -> LightningMAML:
    return LightningMAML(network(), **SETTING, **arguments)


def anil(**arguments: Any) -> LightningANIL:
    return LightningANIL(network()[:3], nn.Linear(8, WAYS), **SETTING, **arguments)


MODULES = {"maml": maml, "anil": anil}
each_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


def small(seed: int = 0, num_tasks: int = 4) -> l2l.data.Taskset:
    return taskset(images(shape=(4,), seed=seed), num_tasks, WAYS, SHOTS + QUERIES)


def data(num_tasks: int = 4) -> EpisodicBatcher:
    return EpisodicBatcher(*(small(number, num_tasks) for number in range(3)), epoch_length=LENGTH)


def trainer(*callbacks: Any, **settings: Any) -> Any:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu",
             "enable_model_summary": False, "max_epochs": 2}  # fmt: skip
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **settings})


class Notes(pl.Callback):  # type: ignore[misc]
    """Losses and batches as Lightning itself hands them out."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].item())
        self.batches.append(tuple(batch))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.metrics.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def served(notes: Notes, task: RecordedTask) -> list[tuple[Tensor, Tensor]]:
    """The batches handed out that hold the rows of a task."""
    same = [x[list(SUPPORT)].shape == task.support[0].shape for x, _ in notes.batches]
    assert all(same)
    return [(x, y) for x, y in notes.batches if torch.equal(x[list(SUPPORT)], task.support[0])]


@pytest.fixture(autouse=True)
def seeded_and_nothing_left() -> Iterator[None]:
    seed()
    yield
    assert not listening()


SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "accumulated gradients": {"accumulate_grad_batches": 3},
    "no sanity check": {"num_sanity_val_steps": 0},
    "clipped gradients": {"gradient_clip_val": 0.1},
}


@each_module
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_same_bits(make: Any, settings: dict[str, Any]) -> None:
    def run(*recorder: Any) -> tuple[dict[str, Any], list[Any]]:
        seed()
        notes, module = Notes(), make()
        trainer(*recorder, notes, **settings).fit(module, data(num_tasks=-1))
        assert len(notes.metrics) == 2 and "valid_loss" in notes.metrics[0]
        return everything(Run(module, notes.losses)), notes.metrics

    (plain, logged), (recorded, logged_too) = run(), run(RecordingCallback())
    assert_same(plain, recorded)
    assert logged == logged_too


@each_module
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}], ids=["one by one", "accumulated"])
def test_tasks_rows_and_labels(make: Any, settings: dict[str, Any]) -> None:
    recorder, notes, batcher = RecordingCallback(), Notes(), data()
    trainer(recorder, notes, **settings).fit(make(), batcher)
    tasks = recorder.study.training_tasks(batcher.train_tasks)
    assert len(tasks) == len(recorder.study.training_tasks())
    assert sum(task.times_trained for task in tasks) == len(notes.batches) == 2 * LENGTH
    for task in tasks:
        batches = served(notes, task)
        assert task.times_trained == len(batches)
        assert (task.support_rows, task.query_rows, task.steps, task.lr) == (SUPPORT, QUERY, 2, 0.1)
        x, y = batcher.train_tasks[task.key]
        for part, rows in ((task.support, SUPPORT), (task.query, QUERY)):
            assert torch.equal(part[0], x[list(rows)]) and torch.equal(part[1], y[list(rows)])


def test_each_draw_of_an_infinite_taskset_is_a_task() -> None:
    recorder, notes = RecordingCallback(), Notes()
    trainer(recorder, notes).fit(maml(), data(num_tasks=-1))
    assert [len(served(notes, task)) for task in recorder.study.training_tasks()] == [1] * 2 * LENGTH


@each_module
def test_total_gradients_are_what_the_modules_own_loss_leaves(make: Any) -> None:
    smooth = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, WAYS)).double()
    module = LightningMAML(smooth, **SETTING) if make is maml else LightningANIL(smooth[:3], smooth[3], **SETTING)
    recorder, notes = RecordingCallback(), Notes()
    trainer(recorder, notes).fit(module, double())
    hook = TotalGradient(recorder.study, loss=module.loss)
    for task in recorder.study.training_tasks():
        module.zero_grad()
        module.meta_learn(served(notes, task)[0], 0, WAYS, SHOTS, QUERIES)[0].backward()
        found = hook.of(task.id)
        expected = {renamed(name): parameter.grad for name, parameter in module.named_parameters()}
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def double() -> EpisodicBatcher:
    x, y = images(shape=(4,)).tensors
    return EpisodicBatcher(
        taskset(torch.utils.data.TensorDataset(x.double(), y), 4, WAYS, SHOTS + QUERIES), epoch_length=LENGTH
    )


def renamed(name: str) -> str:
    """The hooks' name of a parameter of learn2learn's Lightning modules."""
    for before, after in (("model.module.", ""), ("classifier.", ""), ("features.", "body.")):
        name = name.replace(before, after)
    return name


@each_module
def test_scores(make: Any) -> None:
    recorder, batcher = RecordingCallback(), data()
    trainer(recorder).fit(make(), batcher)
    scores = TaskInfluence(recorder.study, loss=nn.CrossEntropyLoss()).scores(batcher.test_tasks, num_tasks=2)
    assert list(scores.values) and set(scores.values) == {task.id for task in recorder.study.training_tasks()}
    assert torch.tensor(list(scores.values.values())).isfinite().all()


@each_module
def test_one_recording_with_record_around_fit(make: Any) -> None:
    def fitted(*recorder: Any) -> None:
        seed()
        trainer(*recorder, num_sanity_val_steps=0).fit(make(), data())

    recorder = RecordingCallback()
    fitted(recorder)
    with record() as study:
        fitted()
    assert facts(study) == facts(recorder.study)


def facts(study: Study) -> list[dict[str, Any]]:
    return [told(task) for task in study.tasks]


def test_the_sanity_check_is_left_out() -> None:
    recorder, notes = RecordingCallback(), Notes()
    trainer(recorder, notes, num_sanity_val_steps=3, check_val_every_n_epoch=9).fit(maml(), data())
    assert all(task.times_seen == task.times_trained for task in recorder.study.tasks)
    assert sum(task.times_seen for task in recorder.study.tasks) == 2 * LENGTH
    assert "forwards" not in recorder.study.describe()


def test_validation_and_tests_in_between_are_no_training() -> None:
    class Testing(pl.Callback):  # type: ignore[misc]
        """As learn2learn's TrackTestAccuracyCallback, which finds no data under Lightning 2."""

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                trainer.test(pl_module, datamodule=batcher, verbose=False)

    recorder, notes, batcher = RecordingCallback(), Notes(), data()
    module = maml()
    fitting = trainer(recorder, notes, Testing(), inference_mode=False)
    fitting.fit(module, batcher)
    assert len(recorder.study.training_tasks(batcher.train_tasks)) == len(recorder.study.training_tasks())
    assert sum(task.times_trained for task in recorder.study.tasks) == len(notes.batches) == 2 * LENGTH
    assert sum(task.times_seen for task in recorder.study.tasks) == 3 * 2 * LENGTH
    before = recorder.study.describe()
    fitting.validate(module, batcher, verbose=False)
    assert recorder.study.describe() == before


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_loader_without_a_length(sanity: int) -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            return (tasks.sample() for _ in range(LENGTH))

    recorder, tasks = RecordingCallback(), small(num_tasks=-1)
    loaders = [DataLoader(Stream(), batch_size=None) for _ in range(2)]
    trainer(recorder, num_sanity_val_steps=sanity).fit(maml(), *loaders)
    assert len(recorder.study.training_tasks(tasks)) == 2 * LENGTH
    assert len(recorder.study.tasks) == 4 * LENGTH


def test_a_fit_that_breaks_off_leaves_its_recording() -> None:
    class Breaking(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, *_arguments: Any, **_named: Any) -> None:
            if len(notes.batches) == 4:
                raise ZeroDivisionError

    recorder, notes, module = RecordingCallback(), Notes(), maml()
    with pytest.raises(ZeroDivisionError):
        trainer(recorder, notes, Breaking()).fit(module, data())
    assert not listening()
    assert sum(task.times_trained for task in recorder.study.training_tasks()) == 4
    trainer(recorder).fit(module, data())
    assert sum(task.times_trained for task in recorder.study.training_tasks()) == 4 + 2 * LENGTH


def test_nothing_to_train() -> None:
    recorder = RecordingCallback()
    trainer(recorder, max_epochs=0).fit(maml(), data())
    assert not listening()
    assert recorder.study.learners == []


def test_several_fits() -> None:
    recorder, one, other = RecordingCallback(), maml(), maml()
    trainer(recorder).fit(one, data())
    first = recorder.study
    trainer(recorder).fit(one, data())
    assert recorder.study.learner is first.learner is one.model
    assert sum(task.times_trained for task in recorder.study.training_tasks()) == 2 * 2 * LENGTH
    trainer(recorder).fit(other, data())
    assert recorder.study.learner is other.model
    assert sum(task.times_trained for task in recorder.study.training_tasks()) == 2 * LENGTH


def test_checkpoints_know_nothing_of_it_and_going_on_from_one_is_mentioned(tmp_path: Path) -> None:
    path, recorder, plain = tmp_path / "one.ckpt", RecordingCallback(), maml()
    assert recorder.state_dict() == {}
    first = trainer(recorder, max_epochs=1)
    first.fit(plain, data())
    first.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["callbacks"] == {}
    for callbacks in ([RecordingCallback()], []):  # with and without, from the one file
        resumed = maml()
        trainer(*callbacks, max_epochs=2).fit(resumed, data(), ckpt_path=path)
        for callback in callbacks:
            assert "resumed from a checkpoint" in callback.study.describe()
            assert sum(task.times_trained for task in callback.study.training_tasks()) == LENGTH
    assert "checkpoint" not in recorder.study.describe()


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lightning leaves variables behind when it ends a process group, and torch an excepthook."""
    before = dict(os.environ)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    os.environ.clear()
    os.environ.update(before)


@each_module
@pytest.mark.usefixtures("own_process")
def test_distributed_data_parallel(make: Any) -> None:
    """In one process: Lightning then calls the module as a module, inside another."""
    recorder, notes = RecordingCallback(), Notes()
    try:
        strategy = DDPStrategy(process_group_backend="gloo")
        trainer(recorder, notes, strategy=strategy, devices=1).fit(make(), data())
    finally:
        torch.distributed.destroy_process_group()
    tasks = recorder.study.training_tasks()
    assert sum(task.times_trained for task in tasks) == 2 * LENGTH
    assert all(served(notes, task) and task.query_rows == QUERY for task in tasks)


@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to have two GPUs; with any, it would need them")
@each_module
def test_data_parallel(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without GPUs DataParallel calls what is inside; learn2learn's modules put it where the model was."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recorder, module = RecordingCallback(), make(data_parallel=True)
    trainer(recorder).fit(module, data())
    assert module.data_parallel
    assert sum(task.times_trained for task in recorder.study.training_tasks()) == 2 * LENGTH
    for task in recorder.study.training_tasks():
        assert list(task.adapted or {}) == [name for name, _ in recorder.study.learner.module.named_parameters()]
    assert len(TaskInfluence(recorder.study, loss=module.loss).scores(small(2), num_tasks=1))


def test_before_any_fit() -> None:
    with pytest.raises(RecordingError, match="no fit has begun in this process"):
        RecordingCallback().study  # noqa: B018


def test_without_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    monkeypatch.delitem(sys.modules, "l2l_influence.lightning")
    with pytest.raises(ImportError, match=r'pytorch_lightning.*Install it: pip install "l2l-influence\[lightning\]"'):
        importlib.import_module("l2l_influence.lightning")
