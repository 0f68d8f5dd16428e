"""Digests of rows, files and nested values: equal content, equal digest, in any process; else not."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from l2l_influence.analysis.results.matrix.fingerprint import UNUSED
from l2l_influence.recording import RecordedTask
from l2l_influence.storage.fingerprints import combined, content_digest, file_digest, row_digests

from ..processes import HASH_SEED, ended, started


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_rows_are_told_apart_by_every_byte(dtype: torch.dtype) -> None:
    rows = torch.arange(60).reshape(4, 3, 5).remainder(7).to(dtype)
    found = row_digests(rows)
    assert found == row_digests(rows.clone().transpose(0, 1).contiguous().transpose(0, 1)) and len(found) == 4
    changed = rows.clone()
    changed[2, 1, 3] = 0 if rows[2, 1, 3] else 1
    assert [a == b for a, b in zip(found, row_digests(changed), strict=True)] == [True, True, False, True]
    assert set(found).isdisjoint(row_digests(rows.flatten(1)))


def test_dtype_counts_and_a_scalar_has_no_rows() -> None:
    assert set(row_digests(torch.zeros(2, 4))).isdisjoint(row_digests(torch.zeros(2, 4, dtype=torch.int32)))
    assert row_digests(torch.tensor(1.0)) == row_digests(torch.zeros(0, 4)) == ()


def test_combined_digests_keep_their_order() -> None:
    assert combined([b"a", b"b"]) == combined([b"a", b"b"]) != combined([b"b", b"a"])


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()[:32]


@dataclass(frozen=True)
class Settings:
    rate: float
    names: tuple[str, ...] = ()


class Weighted:
    def __init__(self, weight: float) -> None:
        self.weight = weight


def scaled(factor: float) -> Any:
    return lambda x: factor * x


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "number": (1, 2),
    "number and text": (1, "1"),
    "int and float": (1, 1.0),
    "nesting": ((1, (2, 3)), ((1, 2), 3)),
    "order": ([1, 2], [2, 1]),
    "set": ({1, 2}, {1, 3}),
    "mapping": ({"a": 1}, {"a": 2}),
    "tensor": (torch.zeros(2), torch.ones(2)),
    "shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "array": (np.zeros(3), np.ones(3)),
    "array of text": (np.array(["a"], dtype=object), np.array(["b"], dtype=object)),
    "dataclass": (Settings(0.1), Settings(0.2)),
    "object": (Weighted(1.0), Weighted(2.0)),
    "function": (scaled(1.0), scaled(2.0)),
    "code": (lambda x: x + 1, lambda x: x - 1),
    "partial": (partial(max, 1), partial(max, 2)),
    "module": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "buffer": (nn.CrossEntropyLoss(weight=torch.ones(2)), nn.CrossEntropyLoss(weight=torch.zeros(2))),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_values_are_told_apart_by_content(name: str) -> None:
    a, b = DIFFERENT[name]
    assert content_digest([a]) == content_digest([a]) != content_digest([b])


VALUES: list[Any] = [1, 2.5, {"a": (None, b"x")}, frozenset("influence")]


def write_digest(path: Path) -> None:
    path.write_text(f"{content_digest(VALUES)} {hash('influence')}")


def test_the_digest_is_the_same_in_another_process(tmp_path: Path) -> None:
    """Of another hash seed, so that sets have another order."""
    assert ended(started(write_digest, tmp_path / "digest")) == 0
    digest, seeded = (tmp_path / "digest").read_text().split()
    assert int(seeded) != hash("influence") or os.environ.get("PYTHONHASHSEED") == HASH_SEED
    assert digest == content_digest(VALUES)


def test_fields_that_a_score_matrix_ignores_exist() -> None:
    """A field that gets another name must get it there too, or else it counts as an input of the scores."""
    assert {field.name for field in fields(RecordedTask)} >= UNUSED
