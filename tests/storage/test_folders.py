"""Folders of tensor files and score matrices: whole files only, leftovers removed, files of others left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from l2l_influence.errors import ForeignMatrixError, UnfinishedMatrixError
from l2l_influence.storage import tensor_files
from l2l_influence.storage.matrix_folder import MatrixFolder
from l2l_influence.storage.outcomes import Cache, Outcome

TASKS = np.array([[0, 1], [3, 1]])


def test_a_tensor_file_is_named_by_its_content(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T}
    name = tensor_files.write(tmp_path, "data", tensors)
    assert tensor_files.write(tmp_path, "data", tensors) == name and tensor_files.is_whole(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    assert not tensor_files.is_whole(tmp_path / name) and not tensor_files.is_whole(tmp_path / "missing")


OWN = ["weights.new", "study.json.new", "data.01234567.new", "study.json.89abcdef.new", f"data-{32 * '0'}.safetensors"]
FOREIGN = ["model.safetensors", "notes.txt", "my.notes.new", "study.json", f"data-{31 * '0'}.safetensors"]


def test_leftovers_are_removed_and_files_of_others_are_not(tmp_path: Path) -> None:
    for name in OWN + FOREIGN:
        (tmp_path / name).touch()
    assert all(tensor_files.is_own(tmp_path / name) for name in OWN)
    tensor_files.remove(tmp_path, but={OWN[0]})
    assert {path.name for path in tmp_path.iterdir()} == {OWN[0], *FOREIGN}


def test_a_shard_has_its_name_when_it_is_filled(tmp_path: Path) -> None:
    folder = MatrixFolder(tmp_path / "scores")
    folder.begin({"what": "task"}, TASKS)
    with pytest.raises(UnfinishedMatrixError, match="scores-00000.npy cannot be read"):
        folder.shard(0)
    assert not folder.digest(0).any()
    with folder.writing(0, (2, 3), np.float32) as array:
        array[:] = 7
        assert not (folder.path / "scores-00000.npy").exists()
    assert (folder.shard(0) == 7).all() and folder.digest(0).any()
    np.testing.assert_array_equal(folder.tasks(), TASKS)


def test_a_new_matrix_takes_the_place_of_an_unfinished_one_only(tmp_path: Path) -> None:
    for name in ("scores-00000.npy", "scores-00001.npy.new", "solved00000.01234567.new", "matrix.json.01234567.new"):
        (tmp_path / name).touch()
    MatrixFolder(tmp_path).begin({}, TASKS)
    assert {path.name for path in tmp_path.iterdir()} == {"matrix.json", "tasks.npy"}
    (tmp_path / "matrix.json").unlink()
    (tmp_path / "thesis.new").touch()
    with pytest.raises(ForeignMatrixError, match="not empty"):
        MatrixFolder(tmp_path).begin({}, TASKS)
    assert (tmp_path / "thesis.new").exists()


def test_what_an_interrupted_run_left_is_removed_when_it_is_resumed(tmp_path: Path) -> None:
    folder = MatrixFolder(tmp_path)
    folder.begin({}, TASKS)
    folder.keep_progress({"done": torch.ones(1)})
    for name in ("scores-00001.npy.new", "scores-00001.npy.01234567.new", "progress.safetensors.01234567.new"):
        (tmp_path / name).touch()
    folder.remove_unfinished()
    assert {path.name for path in tmp_path.iterdir()} == {"matrix.json", "tasks.npy", "progress.safetensors"}


def test_a_later_format_of_the_matrix_is_refused(tmp_path: Path) -> None:
    folder = MatrixFolder(tmp_path)
    assert folder.manifest() is None
    (tmp_path / "matrix.json").write_text('{"format": 2}')
    with pytest.raises(ForeignMatrixError, match="format 2.*use a newer version"):
        folder.manifest()


def test_a_cached_outcome_is_found_by_what_led_to_it(tmp_path: Path) -> None:
    cache, weights = Cache(tmp_path / "kept", "a"), np.ones(3)
    key, outcome = cache.key(weights, 0), Outcome(np.array([1.0, 2.0]), np.zeros(4))
    cache.save(key, outcome)
    found = cache.load(key)
    assert found is not None and found.parameters is not None
    np.testing.assert_array_equal(found.losses, outcome.losses)
    np.testing.assert_array_equal(found.parameters, outcome.parameters)
    others = [cache.key(weights, 1), cache.key(2 * weights, 0), Cache(cache.folder, "b").key(weights, 0)]
    assert len({key, *others}) == 4 and [cache.load(other) for other in others] == [None] * 3
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [f"{key}.npz"]


def test_without_a_folder_nothing_is_kept() -> None:
    cache = Cache(None, "")
    cache.save("key", Outcome(np.ones(1)))
    assert cache.load("key") is None


@pytest.mark.parametrize("losses", [np.ones((2, 2)), np.array([np.nan])])
def test_an_outcome_is_finite_vectors(losses: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the losses of a retraining must be a vector of finite numbers"):
        Outcome(losses)
