"""Manifests: read as written; missing, damaged, foreign and later ones are told apart by a named error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from l2l_influence import __version__
from l2l_influence.errors import ForeignMatrixError, UnfinishedMatrixError
from l2l_influence.storage.manifest import Manifest

KIND = Manifest("things.json", "thing", 3, missing=UnfinishedMatrixError, foreign=ForeignMatrixError, oldest=2)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [{"id": 0, "classes": [1, "β"]}, {"id": 1, "classes": None}]
    KIND.write(tmp_path, {"what": "λ*", "shape": [2, 3]}, {"tasks": rows, "none": []})
    versions = {"l2l_influence": __version__, "torch": torch.__version__}
    expected = {"format": 3, "versions": versions, "what": "λ*", "shape": [2, 3], "tasks": rows, "none": []}
    assert KIND.is_in(tmp_path) and KIND.read(tmp_path) == expected
    assert list(KIND.read(tmp_path)) == list(expected)


def test_rows_take_a_line_each(tmp_path: Path) -> None:
    KIND.write(tmp_path, {}, {"tasks": ({"id": i, "shape": [1, 2]} for i in range(3))})
    lines = (tmp_path / "things.json").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"id"')][2] == {"id": 2, "shape": [1, 2]}


def test_any_text_can_be_written(tmp_path: Path) -> None:
    """The name of a file that is not UTF-8 has half surrogate pairs."""
    KIND.write(tmp_path, {"name": "caf\udce9 λ"})
    assert KIND.read(tmp_path)["name"] == "caf\udce9 λ"


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    assert not KIND.is_in(tmp_path)
    with pytest.raises(UnfinishedMatrixError, match="holds no thing: there is no things.json in it"):
        KIND.read(tmp_path)


@pytest.mark.parametrize(
    "content", ['{"format": 3', "\udcff", "", "[]", '{"name": "another program"}', '{"format": "3"}']
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "things.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ForeignMatrixError, match="cannot be read|has no format number"):
        KIND.read(tmp_path)


@pytest.mark.parametrize(
    ("number", "readable", "advice"), [(1, False, "an older"), (2, True, ""), (4, False, "a newer")]
)
def test_only_known_formats_are_read(tmp_path: Path, number: int, readable: bool, advice: str) -> None:
    (tmp_path / "things.json").write_text(json.dumps({"format": number, "versions": {"torch": "9"}}), encoding="utf-8")
    if readable:
        assert KIND.read(tmp_path)["format"] == number
        return
    with pytest.raises(
        ForeignMatrixError, match=rf"format {number} .*'torch': '9'.*formats 2 to 3: use {advice} version"
    ):
        KIND.read(tmp_path)
