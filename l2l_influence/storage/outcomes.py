"""What a retraining led to, and the folder that keeps it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from .._version import __version__
from ..evaluation.metrics import Floats

FORMAT = 1


@dataclass(frozen=True)
class Outcome:
    """Where a retraining ended.

    Attributes:
        losses: of each test task, ``(T,)``.
        parameters: λ, ``(P,)``; None where only losses are asked for.

    Raises:
        ValueError: one of the two is no vector, or not finite: training diverged.
    """

    losses: Floats
    parameters: Floats | None = None

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            if value is not None:
                object.__setattr__(self, field, _vector(field, value))


@dataclass(frozen=True)
class Cache:
    """Outcomes as files, each named by a digest of what led to it; without a folder nothing is kept.

    Attributes:
        folder: made if missing.
        name: of the configuration: everything that an outcome depends on beyond weights and seed.
    """

    folder: Path | None
    name: str

    def key(self, weights: Floats, seed: int) -> str:
        """Digest of name, weights, seed, and the versions of torch and of this package."""
        about = {"format": FORMAT, "name": self.name, "seed": int(seed), "items": len(weights)}
        versions = {"torch": torch.__version__, "l2l_influence": __version__}
        digest = hashlib.sha256(json.dumps(about | versions, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(weights, dtype="<f8").tobytes())
        return digest.hexdigest()[:32]

    def load(self, key: str) -> Outcome | None:
        """None if it is not there, or not whole."""
        if self.folder is None:
            return None
        try:
            with np.load(self._path(self.folder, key)) as file:
                return Outcome(**file)
        except (OSError, EOFError, TypeError, ValueError, BadZipFile):
            return None

    def save(self, key: str, outcome: Outcome) -> None:
        """Moved into place when it is complete: whenever the writer is stopped, no reader finds half a file."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".new", delete=False) as file:
            np.savez(file, **{field: value for field, value in vars(outcome).items() if value is not None})
        os.replace(file.name, self._path(self.folder, key))

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / f"{key}.npz"


def _vector(name: str, value: Floats) -> Floats:
    vector = np.asarray(value, dtype=np.float64)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise ValueError(f"a retraining must give {name} that are a vector of finite numbers, not {vector!r}")
    return vector
