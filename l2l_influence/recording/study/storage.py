"""Recorded tasks as files: safetensors for tensors, JSON for the rest, nothing that runs code when it is read.

A folder holds ``study.json``, a file of weights (the model when it was saved), files of the tasks' data, and files of
what else is known of them. Tensor files are named by their content and never changed; ``study.json``, which says which
of them belong to the study, is written last and moved into place: what a reader finds is whole, whenever the writer was
stopped. Data are named by their content too: of a study that is saved again and again only what is new is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ...errors import PartlySavedError, RecordingError, TaskDataChangedError
from ...storage import tensor_files as files
from ...storage.manifest import Manifest
from ..episodes.losses import Loss
from ..episodes.task import RecordedTask

MANIFEST = Manifest("study.json", "recording", 2, missing=RecordingError, foreign=RecordingError, oldest=1)

RENAMED = {"draws": "times_seen", "trained": "times_trained"}
"""Names of a task's fields in format 1, and since."""

TENSORS = {"adapted", "seen_labels", "seen_query_labels", "read"}
"""Fields of a task that go into the tensor files."""

SEEN = ("seen_labels", "seen_query_labels")
LOSSES = ("loss", "query_loss")


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
        PartlySavedError: all was written but the data of some tasks, which could not be read again.
    """
    folder = Path(folder)
    _require_own(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights_file = files.write(folder, "weights", weights)
    data, missing = _write_data(folder, tasks)
    states = files.write_shards(folder, "states", ((str(task.id), found) for task in tasks if (found := _state(task))))
    entries = [
        {**_described(task), "data": data.get(task.fingerprint), "state": states.get(str(task.id))} for task in tasks
    ]
    MANIFEST.write(folder, {"about": dict(about), "weights": weights_file}, {"tasks": entries})
    files.remove(folder, but={weights_file, *data.values(), *states.values()})
    if missing:
        raise PartlySavedError(
            f"{folder} holds the study, but of {len(missing)} of {len(entries)} tasks not the data. {missing[0]}"
        )
    return folder


def load(folder: str | Path) -> Saved:
    """Read what :func:`save` wrote.

    Raises:
        RecordingError: the folder holds no recording, one of a later format, or a file was changed since.
    """
    folder = Path(folder)
    manifest = MANIFEST.read(folder)
    entries = manifest["tasks"]
    states = {entry["state"] for entry in entries} - {None}
    for name in {manifest["weights"], *(entry["data"] for entry in entries), *states} - {None}:
        if not files.is_whole(folder / name):
            raise RecordingError(f"{folder / name} is missing or was changed after the recording was saved")
    found = _states(folder / name for name in states)
    tasks = [_task(folder, entry, found.get(str(entry["id"]), {})) for entry in entries]
    return Saved(tasks, load_file(folder / manifest["weights"]), manifest["about"])


def remove(folder: Path) -> None:
    """Take away the recording that a folder holds, if it holds one, and the folder if nothing else is in it."""
    if MANIFEST.is_in(folder):
        (folder / MANIFEST.name).unlink()
        files.remove(folder)
        if not any(folder.iterdir()):
            folder.rmdir()


def _require_own(folder: Path) -> None:
    begun = folder.is_dir() and all(map(files.is_own, folder.iterdir()))  # by a writer that was stopped
    if folder.is_dir() and not begun and not MANIFEST.is_in(folder):
        raise RecordingError(f"{folder} is not empty and holds no recording: pass a new folder")


# ---- the tasks' data --------------------------------------------------------------------------------------------


def _write_data(folder: Path, tasks: Sequence[RecordedTask]) -> tuple[dict[str, str], list[str]]:
    """The files that hold the data, by fingerprint; and for each task whose data could not be had, why.

    Full files that the folder has already stay. What is in others is written again, with what is new.
    """
    wanted = {task.fingerprint: task for task in tasks}
    known = {fingerprint: name for fingerprint, name in _known_data(folder).items() if fingerprint in wanted}
    full = {name for name in set(known.values()) if (folder / name).stat().st_size >= files.SHARD_BYTES}
    kept = {fingerprint: name for fingerprint, name in known.items() if name in full}
    held = {
        name: value
        for shard in {name for name in known.values() if name not in full and files.is_whole(folder / name)}
        for name, value in load_file(folder / shard).items()
    }
    missing: list[str] = []
    new = (task for fingerprint, task in wanted.items() if fingerprint not in kept)
    return kept | files.write_shards(folder, "data", _data(new, held, missing)), missing


def _known_data(folder: Path) -> dict[str, str]:
    """By fingerprint the files of the recording that the folder holds."""
    try:
        entries = MANIFEST.read(folder)["tasks"]
        found = {entry["fingerprint"]: entry["data"] for entry in entries if entry["data"]}
    except (OSError, RecordingError, KeyError):  # no manifest, or one that this version cannot read
        return {}
    return {fingerprint: name for fingerprint, name in found.items() if (folder / name).is_file()}


def _data(tasks: Iterator[RecordedTask], held: Mapping[str, Tensor], missing: list[str]) -> Iterator[files.Named]:
    """The data of tasks: those ``held`` are not asked for again."""
    for task in tasks:
        try:
            parts = _numbered(task.fingerprint, held) or dict(enumerate(task.read()))
        except Exception as error:  # the user's own data set may be asked, which may do anything
            missing.append(str(error))
            continue
        yield task.fingerprint, {f"{task.fingerprint}.{position}": part for position, part in parts.items()}


def _numbered(fingerprint: str, held: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Inputs and labels, as far as they are there."""
    return {position: held[name] for position in (0, 1) if (name := f"{fingerprint}.{position}") in held}


def _read(path: Path, fingerprint: str) -> tuple[Tensor, ...]:
    with safe_open(path, "pt") as file:
        known = set(file.keys())
        names = [f"{fingerprint}.{position}" for position in (0, 1)]
        return tuple(file.get_tensor(name) for name in names if name in known)


def _unread(name: str) -> tuple[Tensor, ...]:
    raise TaskDataChangedError(
        f"The data of {name} could not be had when the study was saved: set data_bytes higher in "
        "recording_of(learner).options before training."
    )


# ---- what else is known of a task -------------------------------------------------------------------------------


def _described(task: RecordedTask) -> dict[str, Any]:
    """A task's fields that are no tensors."""
    found = {field.name: getattr(task, field.name) for field in fields(task) if field.name not in TENSORS}
    found |= {name: asdict(found[name]) for name in LOSSES if found[name] is not None}
    if task.classes is not None:
        found["classes"] = [name if isinstance(name, (int, str)) else str(name) for name in task.classes]
    return found


def _state(task: RecordedTask) -> dict[str, Tensor]:
    found = {f"{task.id}.adapted.{name}": value for name, value in (task.adapted or {}).items()}
    return found | {f"{task.id}.{name}": seen for name in SEEN if (seen := getattr(task, name)) is not None}


def _states(paths: Iterator[Path]) -> dict[str, dict[str, Tensor]]:
    """The tensors in these files by task, and by the rest of their names."""
    found: dict[str, dict[str, Tensor]] = {}
    for path in paths:
        for name, value in load_file(path).items():
            task, _, rest = name.partition(".")
            found.setdefault(task, {})[rest] = value
    return found


def _task(folder: Path, entry: dict[str, Any], state: Mapping[str, Tensor]) -> RecordedTask:
    data = entry.pop("data")
    del entry["state"]
    values: dict[str, Any] = {
        RENAMED.get(name, name): tuple(value) if isinstance(value, list) else value for name, value in entry.items()
    }
    adapted = {name.removeprefix("adapted."): value for name, value in state.items() if name.startswith("adapted.")}
    where = f"task {entry['key']} of taskset {entry['taskset']}"
    read = partial(_read, folder / data, entry["fingerprint"]) if data else partial(_unread, where)
    values |= {name: state.get(name) for name in SEEN} | {name: _loss(entry.get(name)) for name in LOSSES}
    return RecordedTask(**values, adapted=adapted or None, read=read)


def _loss(entry: dict[str, Any] | None) -> Loss | None:
    if entry is None:
        return None
    settings = [(name, tuple(value) if isinstance(value, list) else value) for name, value in entry["settings"]]
    return Loss(entry["function"], tuple(settings), entry["scale"])
