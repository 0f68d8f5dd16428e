"""Studies as files: what is read is what was recorded, on another machine too, and never half of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from l2l_influence import MAML, Study, TaskInfluence, record
from l2l_influence.errors import PartlySavedError, RecordingError, TaskDataChangedError
from l2l_influence.recording.episodes.stores import BoundedStore
from l2l_influence.recording.study import storage
from l2l_influence.recording.tasksets.reading import Source
from l2l_influence.storage import tensor_files as files

from ..influence.anil import LOSS, TEST, Loop


def model(seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(8, 3).double()


def body() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh()).double()


@pytest.fixture
def study() -> Study:
    with record() as study:
        Loop().run()
    return study


def test_a_loaded_study_gives_the_same_scores(study: Study, tmp_path: Path) -> None:
    expected = TaskInfluence(study, loss=LOSS).scores(TEST)
    loaded = Study.load(study.save(tmp_path / "study"), model(), body())
    found = TaskInfluence(loaded, loss=LOSS).scores(TEST)
    assert found.values == expected.values and found.test_loss == expected.test_loss
    assert "Loaded from files" in str(found)


def test_tasks_are_as_they_were(study: Study, tmp_path: Path) -> None:
    loaded = Study.load(study.save(tmp_path / "study"), model(), body())
    for task, back in zip(study.tasks, loaded.tasks, strict=True):
        names = (
            "id",
            "key",
            "indices",
            "classes",
            "support_rows",
            "query_rows",
            "times_seen",
            "times_trained",
            "lr",
            "steps",
        )
        assert [getattr(task, name) for name in names] == [getattr(back, name) for name in names]
        assert (task.rule, task.together, task.labels) == (back.rule, back.together, back.labels)
        assert all(torch.equal(a, b) for a, b in zip(task.support + task.query, back.support + back.query, strict=True))
        assert all(torch.equal(value, back.adapted[name]) for name, value in task.adapted.items())


def test_tasks_are_written_in_several_files(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SHARD_BYTES", 1)
    folder = study.save(tmp_path / "study")
    assert len(list(folder.glob("data-*"))) == len(study.tasks)
    assert len(Study.load(folder, model(), body()).tasks) == len(study.tasks)
    monkeypatch.undo()
    assert len(list(study.save(folder).glob("data-*"))) == 1  # the former files are gone


@pytest.fixture
def told() -> Study:
    """Five episodes that were told by hand."""
    study, learner = Study(), MAML(model(), lr=0.1)
    for _ in range(5):
        tell(study, learner)
    return study


def tell(study: Study, learner: nn.Module) -> None:
    study.add_episode(learner=learner, support=features(3), query=features(2), lr=0.1, steps=1)


def test_full_files_stay_where_they_are(told: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SHARD_BYTES", 1)
    folder = told.save(tmp_path / "study")
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("data-*")}
    tell(told, told.learner)
    after = {path.name: path.stat().st_mtime_ns for path in told.save(folder).glob("data-*")}
    assert len(after) == len(before) + 1 and after.items() > before.items()
    assert len(Study.load(folder, model()).tasks) == len(told.tasks)


def features(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 8, dtype=torch.float64), torch.arange(rows) % 3


def unreadable(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no data of the study were in memory, and its taskset served others."""
    study.recording._data = BoundedStore()
    monkeypatch.setattr(Source, "read", lambda _self: 1 / 0)


def test_data_that_cannot_be_read_are_left_out_and_named(
    told: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(told, told.learner)
    monkeypatch.setattr(told.recording._data, "_values", dict(list(told.recording._data._values.items())[-1:]))
    monkeypatch.setattr(Source, "read", lambda _self: 1 / 0)
    with pytest.raises(PartlySavedError, match=r"without the data of 5 of 6 tasks. division by zero"):
        told.save(tmp_path / "study")
    *lost, kept = Study.load(tmp_path / "study", model()).tasks
    assert torch.equal(kept.support[0], told.tasks[-1].support[0])
    for task in lost:
        assert task.times_trained == 1
        with pytest.raises(TaskDataChangedError, match="could not be read when"):
            task.query  # noqa: B018


def test_data_that_the_folder_has_are_not_asked_for_again(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [task.query[0] for task in study.tasks]
    folder = study.save(tmp_path / "study")
    unreadable(study, monkeypatch)
    again = Study.load(study.save(folder), model(), body()).tasks
    assert all(torch.equal(task.query[0], x) for task, x in zip(again, expected, strict=True))
    shard = next(folder.glob("data-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(PartlySavedError):  # a damaged file is not taken over
        study.save(folder)


def test_nothing_in_the_folder_runs_code(study: Study, tmp_path: Path) -> None:
    folder = study.save(tmp_path / "study")
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    json.loads((folder / storage.MANIFEST.name).read_text(encoding="utf-8"))


def test_a_changed_or_missing_file_is_refused(study: Study, tmp_path: Path) -> None:
    folder = study.save(tmp_path / "study")
    shard = next(folder.glob("data-*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RecordingError, match="changed after"):
        Study.load(folder, model(), body())
    shard.unlink()
    with pytest.raises(RecordingError, match="missing"):
        Study.load(folder, model(), body())


def test_a_writer_that_is_stopped_leaves_the_study_before(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study.save(tmp_path / "study")
    with torch.no_grad():
        before = study.learner.module.weight.clone()
        study.learner.module.weight.add_(1)
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        study.save(folder)
    monkeypatch.undo()
    assert torch.equal(Study.load(folder, model(), body()).learner.module.weight, before)


def test_what_does_not_fit_is_refused(study: Study, tmp_path: Path) -> None:
    folder = study.save(tmp_path / "study")
    with pytest.raises(RecordingError, match="not like the one"):
        Study.load(folder, nn.Linear(8, 4).double(), body())
    with pytest.raises(RecordingError, match="pass body="):
        Study.load(folder, model())
    with pytest.raises(RecordingError, match="no study.json"):
        Study.load(tmp_path, model())
    (tmp_path / "other").mkdir()
    mine = tmp_path / "other" / "model.safetensors"
    mine.touch()
    with pytest.raises(RecordingError, match="not empty"):
        study.save(tmp_path / "other")
    assert mine.exists()


def test_what_a_writer_began_is_in_nobody_s_way(study: Study, tmp_path: Path) -> None:
    (tmp_path / f"data-{32 * '0'}.safetensors").touch()
    (tmp_path / "weights.new").touch()
    assert len(Study.load(study.save(tmp_path), model(), body()).tasks) == 5
    assert not list(tmp_path.glob("*.new"))


def test_a_recording_that_is_not_the_whole_story_says_so_when_loaded(tmp_path: Path) -> None:
    with record() as study:
        loop = Loop().run()
        learner = loop.head.clone()
        strange = torch.randn(6, 8, dtype=torch.float64)
        learner.adapt(learner(strange).square().mean())
        learner(strange).square().mean().backward()
    loaded = Study.load(study.save(tmp_path / "study"), model(), body())
    assert len(loaded.tasks) == 5
    with pytest.raises(RecordingError, match="belongs to no task served"):
        loaded.training_tasks()


def test_features_of_several_bodies_are_saved_and_the_reason_why_they_are_of_no_use(tmp_path: Path) -> None:
    with record() as study:
        loop = Loop().run()
    tell(study, loop.head)
    loaded = Study.load(study.save(tmp_path / "study"), model())
    assert len(loaded.tasks) == 6
    with pytest.raises(RecordingError, match="features of the same modules"):
        loaded.training_tasks()
