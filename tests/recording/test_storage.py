"""Studies as files: what is read is what was recorded, on another machine too, and never half of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from l2l_influence import Study, TaskInfluence, record
from l2l_influence.errors import RecordingError
from l2l_influence.recording import storage

from ..influence.test_anil import LOSS, TEST, Loop


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
        names = ("id", "key", "indices", "classes", "support_rows", "query_rows", "draws", "trained", "lr", "steps")
        assert [getattr(task, name) for name in names] == [getattr(back, name) for name in names]
        assert (task.rule, task.together, task.labels) == (back.rule, back.together, back.labels)
        assert all(torch.equal(a, b) for a, b in zip(task.support + task.query, back.support + back.query, strict=True))
        assert all(torch.equal(value, back.adapted[name]) for name, value in task.adapted.items())


def test_tasks_are_written_in_several_files(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SHARD_BYTES", 1)
    folder = study.save(tmp_path / "study")
    assert len(list(folder.glob("tasks-*"))) == len(study.tasks)
    assert len(Study.load(folder, model(), body()).tasks) == len(study.tasks)
    monkeypatch.undo()
    assert len(list(study.save(folder).glob("tasks-*"))) == 1  # the former files are gone


def test_nothing_in_the_folder_runs_code(study: Study, tmp_path: Path) -> None:
    folder = study.save(tmp_path / "study")
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    json.loads((folder / storage.MANIFEST).read_text(encoding="utf-8"))


def test_a_changed_or_missing_file_is_refused(study: Study, tmp_path: Path) -> None:
    folder = study.save(tmp_path / "study")
    shard = next(folder.glob("tasks-*"))
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
    monkeypatch.setattr(storage.json, "dumps", lambda *_, **__: 1 / 0)
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
    (tmp_path / "other" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RecordingError, match="not empty"):
        study.save(tmp_path / "other")
    assert (tmp_path / "other" / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_recording_that_is_not_the_whole_story_says_so_when_loaded(tmp_path: Path) -> None:
    with record() as study:
        loop = Loop().run()
        learner = loop.head.clone()
        strange = torch.randn(6, 8, dtype=torch.float64)
        learner.adapt(LOSS(learner(strange), torch.arange(6) % 3))
        LOSS(learner(strange), torch.arange(6) % 3).backward()
    loaded = Study.load(study.save(tmp_path / "study"), model(), body())
    assert len(loaded.tasks) == 5
    with pytest.raises(RecordingError, match="belongs to no task served"):
        loaded.training_tasks()
