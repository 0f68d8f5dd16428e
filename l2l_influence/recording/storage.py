"""Recorded tasks as files: safetensors for tensors, JSON for the rest, nothing that runs code when it is read.

A folder holds ``study.json``, a file of weights (the model when it was saved) and files of tasks. Tensor files are
named by their content and never changed; ``study.json``, which says which of them belong to the study, is written last
and moved into place: what a reader finds is whole, whenever the writer was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .._version import __version__
from ..errors import RecordingError
from .options import MIB
from .task import RecordedTask

FORMAT = 1
MANIFEST = "study.json"
SHARD_BYTES = 64 * MIB

TENSORS = {"adapted", "seen_labels", "read"}
"""Fields of a task that go into the tensor files."""


@dataclass(frozen=True)
class Saved:
    """What a folder held.

    Attributes:
        tasks: as they were recorded; their data are read from the folder when needed.
        weights: the model's state_dict when it was saved.
        about: what the writer noted of the learner and the run.
    """

    tasks: list[RecordedTask]
    weights: dict[str, Tensor]
    about: dict[str, Any]


def save(
    folder: str | Path, tasks: Sequence[RecordedTask], weights: Mapping[str, Tensor], about: Mapping[str, Any]
) -> Path:
    """Write a recording to ``folder``, which is made if need be. A recording that it held before is replaced.

    Raises:
        RecordingError: the folder holds something else.
    """
    folder = Path(folder)
    _require_own(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights_file = _write(folder, "weights", _plain(weights))
    files, entries = [weights_file], []
    for shard in _shards(tasks):
        name = _write(folder, "tasks", {key: value for _, found in shard for key, value in found.items()})
        files.append(name)
        entries += [{**_described(task), "file": name} for task, _ in shard]
    manifest = {
        "format": FORMAT,
        "versions": _versions(),
        "about": dict(about),
        "weights": weights_file,
        "tasks": entries,
    }
    new = folder / f"{MANIFEST}.new"
    new.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    os.replace(new, folder / MANIFEST)
    for old in {path.name for path in folder.glob("*.safetensors")} - set(files):
        (folder / old).unlink()
    return folder


def load(folder: str | Path) -> Saved:
    """Read what :func:`save` wrote.

    Raises:
        RecordingError: the folder holds no recording, one of a later format, or a file was changed since.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise RecordingError(f"{folder} holds no recording: there is no {MANIFEST} in it")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise RecordingError(f"{folder} was written in format {manifest.get('format')}; this version reads {FORMAT}")
    for name in {manifest["weights"], *(entry["file"] for entry in manifest["tasks"])}:
        if not (folder / name).is_file() or _digest(folder / name) not in name:
            raise RecordingError(f"{folder / name} is missing or was changed after the recording was saved")
    weights = load_file(folder / manifest["weights"])
    return Saved([_task(folder, entry) for entry in manifest["tasks"]], weights, manifest["about"])


def _require_own(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise RecordingError(f"{folder} is not empty and holds no recording: pass a new folder")


def _shards(tasks: Iterable[RecordedTask]) -> Iterator[list[tuple[RecordedTask, dict[str, Tensor]]]]:
    """Tasks with their tensors, in groups of about :data:`SHARD_BYTES`."""
    shard: list[tuple[RecordedTask, dict[str, Tensor]]] = []
    size = 0
    for task in tasks:
        found = _tensors(task)
        shard.append((task, found))
        size += sum(value.nbytes for value in found.values())
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _tensors(task: RecordedTask) -> dict[str, Tensor]:
    found = {f"{task.id}.data.{position}": part for position, part in enumerate(task.read())}
    found |= {f"{task.id}.adapted.{name}": value for name, value in (task.adapted or {}).items()}
    if task.seen_labels is not None:
        found[f"{task.id}.seen_labels"] = task.seen_labels
    return _plain(found)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, and each with memory of its own, as safetensors wants them."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}


def _described(task: RecordedTask) -> dict[str, Any]:
    """A task's fields that are no tensors."""
    found = {field.name: getattr(task, field.name) for field in fields(task) if field.name not in TENSORS}
    if task.classes is not None:
        found["classes"] = [name if isinstance(name, (int, str)) else str(name) for name in task.classes]
    return found


def _task(folder: Path, entry: dict[str, Any]) -> RecordedTask:
    path, prefix = folder / entry.pop("file"), f"{entry['id']}."
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    found = dict(_named(path, prefix, but="data."))
    adapted = {name.removeprefix("adapted."): value for name, value in found.items() if name.startswith("adapted.")}
    read = partial(_read, path, f"{prefix}data.")
    return RecordedTask(**values, adapted=adapted or None, seen_labels=found.get("seen_labels"), read=read)


def _read(path: Path, prefix: str) -> tuple[Tensor, ...]:
    return tuple(value for _, value in sorted(_named(path, prefix)))


def _named(path: Path, prefix: str, but: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file whose names begin with ``prefix``, by the rest of their names; not those in ``but``."""
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (what safe_open gives is no mapping)
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and not (but and rest.startswith(but)):
                yield rest, file.get_tensor(name)


def _write(folder: Path, stem: str, tensors: dict[str, Tensor]) -> str:
    """Write a tensor file; returns its name, which holds its digest."""
    new = folder / f"{stem}.new"
    save_file(tensors, new)
    name = f"{stem}-{_digest(new)}.safetensors"
    os.replace(new, folder / name)
    return name


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()[:32]


def _versions() -> dict[str, str]:
    return {"l2l_influence": __version__, "torch": torch.__version__}
