"""Outcomes of retrainings, and a folder that caches them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from .atomic import replacing
from .manifest import versions

FORMAT = 1

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """The result of one retraining.

    Attributes:
        losses: of each test task, ``(T,)``.
        parameters: λ at the end, ``(P,)``; None where only losses are needed.

    Raises:
        ValueError: losses or parameters are not a vector, or not finite because training diverged.
    """

    losses: Floats
    parameters: Floats | None = None

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            if value is not None:
                object.__setattr__(self, field, _vector(field, value))


@dataclass(frozen=True)
class Cache:
    """Outcomes as files, each named by a digest of its inputs; without a folder nothing is kept.

    Attributes:
        folder: made if missing.
        name: identifies everything that an outcome depends on beyond weights and seed.
    """

    folder: Path | None
    name: str

    def key(self, weights: Floats, seed: int) -> str:
        """Digest of name, weights, seed, and the versions of torch and of this package."""
        about = {"format": FORMAT, "name": self.name, "seed": int(seed), "items": len(weights)}
        digest = hashlib.sha256(json.dumps(about | versions(), sort_keys=True).encode())
        digest.update(np.ascontiguousarray(weights, dtype="<f8").tobytes())
        return digest.hexdigest()[:32]

    def load(self, key: str) -> Outcome | None:
        """The outcome; None if its file is missing or damaged."""
        if self.folder is None:
            return None
        try:
            with np.load(self._path(self.folder, key)) as file:
                return Outcome(**file)
        except (OSError, EOFError, TypeError, ValueError, BadZipFile):
            return None

    def save(self, key: str, outcome: Outcome) -> None:
        """Write an outcome; several processes may share the folder."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._path(self.folder, key)) as new, new.open("wb") as file:
            np.savez(file, **{field: value for field, value in vars(outcome).items() if value is not None})

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / f"{key}.npz"


def _vector(name: str, value: Floats) -> Floats:
    vector = np.asarray(value, dtype=np.float64)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise ValueError(f"the {name} of a retraining must be a vector of finite numbers, not {vector!r}")
    return vector
