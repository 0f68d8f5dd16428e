"""The files of a score matrix.

``matrix.json`` says what it is, ``tasks.npy`` names its rows, ``scores-00000.npy``, ... are its shards, in order of the
training tasks. ``solved00000-….safetensors``, ... hold the solved test vectors, and ``progress.safetensors`` which
shards are done and what they say of λ*: both are for runs that go on. Each file is written under another name and moved
into place when all of it is on the disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.format import open_memmap
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ForeignMatrixError, UnfinishedMatrixError
from . import tensor_files as files

FORMAT = 1
MANIFEST = "matrix.json"
TASKS = "tasks.npy"
PROGRESS = "progress.safetensors"
OWN = re.compile(r"(tasks|scores-\d+)\.npy|(solved\d+-[0-9a-f]{32}|progress)\.safetensors|.+\.new")


DIGEST_BYTES = 16


@dataclass(frozen=True)
class Solved:
    """A block of test tasks.

    Attributes:
        vectors: (δ_o I + H)⁻¹ g_test of each, ``[R, P]``.
        losses: L_O of each at λ*, ``[R]``, float64.
        note: how they were solved.
    """

    vectors: Tensor
    losses: Tensor
    note: str


class MatrixFolder:
    """A folder that holds one score matrix, whole or begun."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    # ---- what it is -----------------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any] | None:
        """What ``matrix.json`` says, or None if there is none.

        Raises:
            ForeignMatrixError: it is of another format.
        """
        file = self.path / MANIFEST
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if found.get("format") != FORMAT:
            raise ForeignMatrixError(f"{file} has format {found.get('format')}; this version reads {FORMAT}")
        return found

    def begin(self, manifest: Mapping[str, Any], tasks: npt.NDArray[np.int64]) -> None:
        """Make the folder, and say what it is to hold; ``tasks`` are ``(id, items)`` of each training task, ``[N, 2]``.

        Raises:
            ForeignMatrixError: the folder holds something else.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        leftovers = list(self.path.iterdir())
        if not all(OWN.fullmatch(file.name) for file in leftovers):
            raise ForeignMatrixError(f"{self.path} is not empty and holds no score matrix: pass a new folder")
        for file in leftovers:
            file.unlink()
        with self._replacing(TASKS) as new, new.open("wb") as opened:
            np.save(opened, tasks)
        self.describe(manifest)

    def describe(self, manifest: Mapping[str, Any]) -> None:
        """Write ``matrix.json``."""
        text = json.dumps({"format": FORMAT, **manifest}, indent=1, ensure_ascii=False)
        with self._replacing(MANIFEST) as new:
            new.write_text(f"{text}\n", encoding="utf-8")

    def tasks(self) -> npt.NDArray[np.int64]:
        """``(id, items)`` of each training task, ``[N, 2]``."""
        found: npt.NDArray[np.int64] = np.load(self.path / TASKS)
        return found

    # ---- its shards -----------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, number: int, shape: tuple[int, int], dtype: npt.DTypeLike) -> Iterator[npt.NDArray[Any]]:
        """A shard to be filled; it has its name once it is."""
        with self._replacing(_scores(number)) as new:
            array = open_memmap(new, mode="w+", dtype=dtype, shape=shape)  # type: ignore[no-untyped-call]
            yield array
            array.flush()

    def shard(self, number: int) -> npt.NDArray[Any]:
        """A shard that is done, mapped into memory and not read.

        Raises:
            UnfinishedMatrixError: the file is missing, or was cut off.
        """
        try:
            found: npt.NDArray[Any] = np.load(self.path / _scores(number), mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UnfinishedMatrixError(
                f"{self.path / _scores(number)} cannot be read ({error}): score_matrix_to(folder, ...) on the same "
                "study writes it again"
            ) from error
        return found

    def digest(self, number: int) -> Tensor:
        """Of the shard's file, ``[DIGEST_BYTES]``; zeros where there is none."""
        file = self.path / _scores(number)
        found = bytes.fromhex(files.digest(file)) if file.is_file() else bytes(DIGEST_BYTES)
        return torch.tensor(list(found), dtype=torch.uint8)

    # ---- for runs that go on --------------------------------------------------------------------------------------

    def keep_solved(self, number: int, solved: Solved) -> None:
        """Write a block of test vectors."""
        tensors = {"vectors": solved.vectors, "losses": solved.losses}
        files.write(self.path, _solved(number), tensors, {"note": solved.note})

    def solved(self, number: int) -> Solved | None:
        """A block of test vectors, if it is there and as it was written."""
        file = next(filter(files.is_whole, self.path.glob(f"{_solved(number)}-*.safetensors")), None)
        if file is None:
            return None
        with safe_open(file, "pt") as found:
            # Cloned: how memory is aligned can change the last bits of a product.
            vectors, losses = (found.get_tensor(name).clone() for name in ("vectors", "losses"))
            return Solved(vectors, losses, found.metadata()["note"])

    def keep_progress(self, tensors: Mapping[str, Tensor]) -> None:
        """Write which shards are done, and what goes with it."""
        with self._replacing(PROGRESS) as new:
            save_file(dict(tensors), new)

    def progress(self) -> dict[str, Tensor] | None:
        """What was last kept; None if there is nothing, or nothing that can be read."""
        try:
            return load_file(self.path / PROGRESS)
        except (OSError, SafetensorError):
            return None

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        """A file to write, which takes the place of ``name`` when all went well."""
        new = self.path / f"{name}.new"
        yield new
        files.move_into_place(new, self.path / name)


def _scores(number: int) -> str:
    return f"scores-{number:05d}.npy"


def _solved(number: int) -> str:
    return f"solved{number:05d}"
