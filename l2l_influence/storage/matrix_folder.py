"""The files of a score matrix.

``matrix.json`` describes it, ``tasks.npy`` names its rows, and ``scores-00000.npy``, … are its shards, in the order of
the training tasks. To resume an interrupted run there are ``solved00000-….safetensors``, … with the solved test vectors
and ``progress.safetensors`` with the digests of the finished shards and what they contribute to sums over all tasks.
"""

from __future__ import annotations

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
from . import tensor_files
from .atomic import TEMPORARY, replacing
from .fingerprints import file_digest
from .manifest import Manifest

MATRIX = Manifest("matrix.json", "score matrix", 1, missing=UnfinishedMatrixError, foreign=ForeignMatrixError)
TASKS = "tasks.npy"
PROGRESS = "progress.safetensors"
FINISHED = r"tasks\.npy|scores-\d+\.npy|solved\d+-[0-9a-f]{32}\.safetensors|progress\.safetensors"
UNFINISHED = re.compile(rf"(matrix\.json|tasks\.npy|scores-\d+\.npy|solved\d+|progress\.safetensors){TEMPORARY}")
OWN = re.compile(f"{FINISHED}|{UNFINISHED.pattern}")

DIGEST_BYTES = 16


@dataclass(frozen=True)
class Solved:
    """The solved vectors of a block of test tasks.

    Attributes:
        vectors: (δ_o I + H)⁻¹ g_test of each test task, ``[R, P]``.
        losses: L_O of each test task at λ*, ``[R]``, float64.
        note: how the systems were solved.
    """

    vectors: Tensor
    losses: Tensor
    note: str


class MatrixFolder:
    """A folder that holds one score matrix, finished or not."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    # ---- manifest -------------------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any] | None:
        """The content of ``matrix.json``, or None if there is none.

        Raises:
            ForeignMatrixError: it has another format, or is no manifest of a score matrix.
        """
        return MATRIX.read(self.path) if MATRIX.is_in(self.path) else None

    def begin(self, manifest: Mapping[str, Any], tasks: npt.NDArray[np.int64]) -> None:
        """Make the folder and describe the matrix; ``tasks`` are ``(id, items)`` of each training task, ``[N, 2]``.

        Raises:
            ForeignMatrixError: the folder holds something else.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        leftovers = list(self.path.iterdir())
        if not all(OWN.fullmatch(file.name) for file in leftovers):
            raise ForeignMatrixError(f"{self.path} is not empty and holds no score matrix: pass a new folder")
        for file in leftovers:
            file.unlink()
        with replacing(self.path / TASKS) as new, new.open("wb") as opened:
            np.save(opened, tasks)
        self.describe(manifest)

    def describe(self, manifest: Mapping[str, Any]) -> None:
        """Write ``matrix.json``, with format and versions."""
        MATRIX.write(self.path, manifest)

    def tasks(self) -> npt.NDArray[np.int64]:
        """``(id, items)`` of each training task, ``[N, 2]``."""
        found: npt.NDArray[np.int64] = np.load(self.path / TASKS)
        return found

    # ---- shards ---------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, number: int, shape: tuple[int, int], dtype: npt.DTypeLike) -> Iterator[npt.NDArray[Any]]:
        """A memory-mapped array to fill; it becomes the shard when the block ends."""
        with replacing(self.path / _scores(number)) as new:
            array = open_memmap(new, mode="w+", dtype=dtype, shape=shape)  # type: ignore[no-untyped-call]
            yield array
            array.flush()

    def shard(self, number: int) -> npt.NDArray[Any]:
        """A finished shard, memory-mapped: its values are read when they are used.

        Raises:
            UnfinishedMatrixError: the file is missing or truncated.
        """
        try:
            found: npt.NDArray[Any] = np.load(self.path / _scores(number), mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UnfinishedMatrixError(
                f"{self.path / _scores(number)} cannot be read ({error}): call score_matrix_to(folder, ...) again with "
                "the same study to rewrite it"
            ) from error
        return found

    def digest(self, number: int) -> Tensor:
        """Digest of the file of a shard, ``[DIGEST_BYTES]``; zeros if there is no file."""
        file = self.path / _scores(number)
        found = bytes.fromhex(file_digest(file)) if file.is_file() else bytes(DIGEST_BYTES)
        return torch.tensor(list(found), dtype=torch.uint8)

    # ---- to resume ------------------------------------------------------------------------------------------------

    def remove_unfinished(self) -> None:
        """Remove the temporary files of an interrupted run."""
        for file in self.path.iterdir():
            if UNFINISHED.fullmatch(file.name):
                file.unlink()

    def keep_solved(self, number: int, solved: Solved) -> None:
        """Write a block of solved test vectors."""
        tensors = {"vectors": solved.vectors, "losses": solved.losses}
        tensor_files.write(self.path, _solved(number), tensors, {"note": solved.note})

    def solved(self, number: int) -> Solved | None:
        """A block of solved test vectors; None if its file is missing or damaged."""
        file = next(filter(tensor_files.is_whole, self.path.glob(f"{_solved(number)}-*.safetensors")), None)
        if file is None:
            return None
        with safe_open(file, "pt") as found:
            # Cloned: the alignment of memory can change the last bits of a product.
            vectors, losses = (found.get_tensor(name).clone() for name in ("vectors", "losses"))
            return Solved(vectors, losses, found.metadata()["note"])

    def keep_progress(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the digests of the finished shards and their sums, in place of what was there."""
        with replacing(self.path / PROGRESS) as new:
            save_file(dict(tensors), new)

    def progress(self) -> dict[str, Tensor] | None:
        """What :meth:`keep_progress` wrote last; None if the file is missing or damaged."""
        try:
            return load_file(self.path / PROGRESS)
        except (OSError, SafetensorError):
            return None


def _scores(number: int) -> str:
    return f"scores-{number:05d}.npy"


def _solved(number: int) -> str:
    return f"solved{number:05d}"
