"""Saving a study while its loop runs: the loop is the same to the bit, and the time that saving takes is bounded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from l2l_influence import Study, record
from l2l_influence.errors import RecordingError
from l2l_influence.recording.study import saver as module
from l2l_influence.recording.study.saver import Saver

from .identity import assert_same, everything, seed
from .loops import DROP_INS, LOOPS, PLAIN, network

ALWAYS = 1e-9


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE", 0)


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("loop", ["maml", "infinite taskset", "data loader", "many query forwards", "clone of a clone"])
def test_saving_at_each_step_changes_no_bit(loop: str, tmp_path: Path) -> None:
    seed()
    plain = everything(LOOPS[loop](PLAIN))
    for number, kit in enumerate((PLAIN, DROP_INS)):
        seed()
        with record(save_to=tmp_path / str(number), save_every=ALWAYS) as study:
            run = LOOPS[loop](kit)
        assert_same(plain, everything(run))
        assert len(Study.load(tmp_path / str(number), network()).tasks) == len(study.tasks)


@pytest.mark.usefixtures("every_step")
def test_what_is_saved_meanwhile_is_what_was_recorded_until_then(tmp_path: Path) -> None:
    """Read when the last clone is about to be made, and compared with the study itself at that moment."""
    seen: list[tuple[Any, Any]] = []
    with record(save_to=tmp_path, save_every=ALWAYS) as study:
        save = study.between_steps
        assert save is not None

        def look() -> None:
            save()
            loaded = Study.load(tmp_path, network())
            seen.append(([use(task) for task in loaded.tasks], [use(task) for task in study.tasks]))
            weights = study.learner.module.state_dict()
            assert all(torch.equal(value, weights[name]) for name, value in loaded.learner.module.state_dict().items())

        study.between_steps = look
        LOOPS["maml"](PLAIN)
    assert len(seen) > 10 and all(loaded == live for loaded, live in seen)


def use(task: Any) -> tuple[Any, ...]:
    return task.id, task.key, task.times_seen, task.times_trained, task.support_rows, task.query_rows, task.fingerprint


def test_looking_on_gives_no_ids_and_holds_no_data() -> None:
    with record() as study:
        LOOPS["maml"](PLAIN)
    recording = study.recording
    held = recording._data.bytes
    assert all(len(task.read()) == 2 for task in recording.tasks_so_far)
    assert recording._data.bytes == held and not recording._ids


def test_saving_takes_a_twentieth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    saves: list[float] = []

    def save() -> None:
        saves.append(clock[0])
        clock[0] += 1.0 if len(saves) < 3 else 0.1

    saver = Saver(save, every=5.0)
    while clock[0] < 100:
        clock[0] += 0.5
        saver.step()
    assert saves[:4] == pytest.approx([5.0, 26.0, 47.0, 52.1]) and 10 <= len(saves) <= 14


def test_zero_is_never_and_less_is_nothing() -> None:
    saver = Saver(lambda: 1 / 0, every=0)
    saver.step()
    assert not saver.trouble
    with pytest.raises(ValueError, match="0"):
        Saver(lambda: None, every=-1)


@pytest.mark.usefixtures("every_step")
def test_what_goes_wrong_is_logged_once_and_raised_at_the_end_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine").touch()
    seed()
    plain = everything(LOOPS["maml"](PLAIN))
    seed()
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(RecordingError, match="not empty"),
        record(save_to=tmp_path, save_every=ALWAYS),
    ):
        run = LOOPS["maml"](PLAIN)
    assert_same(plain, everything(run))
    assert len(caplog.records) == 1 and "not empty" in caplog.text


def test_a_loop_that_fails_is_saved_and_fails_with_its_own_error(tmp_path: Path) -> None:
    def fail() -> None:
        LOOPS["maml"](PLAIN)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), record(save_to=tmp_path, save_every=0):
        fail()
    assert Study.load(tmp_path, network()).training_tasks()


def test_several_learners_have_folders_of_their_own(tmp_path: Path) -> None:
    seed()
    with record(save_to=tmp_path) as study:
        LOOPS["two learners"](PLAIN)
    assert {path.name for path in tmp_path.iterdir()} == {"learner-1", "learner-2"}
    for number, part in enumerate(study.parts(), start=1):
        loaded = Study.load(tmp_path / f"learner-{number}", network())
        assert [use(task) for task in loaded.tasks] == [use(task) for task in part.tasks]
    with record(save_to=tmp_path):
        LOOPS["maml"](PLAIN)
    assert Study.load(tmp_path, network()).tasks and not list(tmp_path.glob("learner-*"))


def test_no_learner_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="No learner was cloned"), record(save_to=tmp_path / "none"):
        nn.Linear(1, 1)
