"""Recorded tasks as files: safetensors for tensors and JSON for the rest; reading them runs no code.

A folder holds ``study.json``, a file with the weights (of the model when it was saved), files with the tasks' data, and
files with other tensors of the tasks. Tensor files are named by their content and never changed. ``study.json`` lists
those that belong to the study, is written last and moved into place, so a reader always finds a complete study, even if
the writer was interrupted. When a study is saved again, only new data are written.

All fields of a `RecordedTask` are written and read by their own names and types; nothing here lists them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ...errors import PartlySavedError, RecordingError, TaskDataChangedError
from ...storage import tensor_files as files
from ...storage.manifest import Manifest
from ..episodes.task import RecordedTask, values_of

MANIFEST = Manifest("study.json", "study", 2, missing=RecordingError, foreign=RecordingError, oldest=1)


RENAMED = {"draws": "times_seen", "trained": "times_trained"}
"""Names of a task's fields in format 1, and since."""

FIELDS = {field.name: field for field in fields(RecordedTask) if field.name not in ("adapted", "read")}
"""Fields of a task that hold values or a tensor."""


@dataclass(frozen=True)
class Saved:
    """The content of a folder.

    Attributes:
        tasks: as they were recorded; their data are read from the folder when needed.
        weights: the model's state_dict when it was saved.
        about: the settings of the learner, and notes on the run.
    """

    tasks: list[RecordedTask]
    weights: dict[str, Tensor]
    about: dict[str, Any]


def save(
    folder: str | Path, tasks: Sequence[RecordedTask], weights: Mapping[str, Tensor], about: Mapping[str, Any]
) -> Path:
    """Write a recording to ``folder``, which is created if necessary. A recording that it held before is replaced.

    Raises:
        RecordingError: the folder holds something else.
        PartlySavedError: everything was written except the data of some tasks, which could not be read again.
    """
    folder = Path(folder)
    _require_own(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights_file = files.write(folder, "weights", weights)
    data, missing = _write_data(folder, tasks)
    states = files.write_shards(folder, "states", ((str(task.id), found) for task in tasks if (found := _state(task))))
    entries = [
        {**_entry(task), "data": data.get(task.fingerprint), "state": states.get(str(task.id))} for task in tasks
    ]
    MANIFEST.write(folder, {"about": dict(about), "weights": weights_file}, {"tasks": entries})
    files.remove(folder, but={weights_file, *data.values(), *states.values()})
    if missing:
        raise PartlySavedError(
            f"the study was saved in {folder}, but without the data of {len(missing)} of {len(entries)} tasks. "
            f"{missing[0]}"
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
            raise RecordingError(
                f"{folder / name} is missing or was changed after the study was saved: restore the file, or save the "
                "study again"
            )
    found = _states(folder / name for name in states)
    tasks = [_task(folder, entry, found.get(str(entry["id"]), {})) for entry in entries]
    return Saved(tasks, load_file(folder / manifest["weights"]), manifest["about"])


def remove(folder: Path) -> None:
    """Delete the study that a folder holds, if it holds one, and the folder itself if nothing else is in it."""
    if MANIFEST.is_in(folder):
        (folder / MANIFEST.name).unlink()
        files.remove(folder)
        if not any(folder.iterdir()):
            folder.rmdir()


def _require_own(folder: Path) -> None:
    begun = folder.is_dir() and all(map(files.is_own, folder.iterdir()))  # by a writer that was interrupted
    if folder.is_dir() and not begun and not MANIFEST.is_in(folder):
        raise RecordingError(f"{folder} is not empty and holds no study, so nothing was written: pass a new folder")


# ---- the tasks' data --------------------------------------------------------------------------------------------


def _write_data(folder: Path, tasks: Sequence[RecordedTask]) -> tuple[dict[str, str], list[str]]:
    """The files that hold the data, by fingerprint; and the reason for each task whose data could not be read.

    Full files in the folder stay. The content of other files is written again, together with new data.
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
    """The data files of the study that the folder holds, by fingerprint."""
    try:
        entries = MANIFEST.read(folder)["tasks"]
        found = {entry["fingerprint"]: entry["data"] for entry in entries if entry["data"]}
    except (OSError, RecordingError, KeyError):  # no manifest, or one that this version cannot read
        return {}
    return {fingerprint: name for fingerprint, name in found.items() if (folder / name).is_file()}


def _data(tasks: Iterator[RecordedTask], held: Mapping[str, Tensor], missing: list[str]) -> Iterator[files.Named]:
    """The data of tasks; data in ``held`` are not read again."""
    for task in tasks:
        try:
            parts = _numbered(task.fingerprint, held) or dict(enumerate(task.read()))
        except Exception as error:  # the user's own data set may raise anything
            missing.append(str(error))
            continue
        yield task.fingerprint, {f"{task.fingerprint}.{position}": part for position, part in parts.items()}


def _numbered(fingerprint: str, held: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Inputs and labels, as far as they are in ``held``."""
    return {position: held[name] for position in (0, 1) if (name := f"{fingerprint}.{position}") in held}


def _read(path: Path, fingerprint: str) -> tuple[Tensor, ...]:
    with safe_open(path, "pt") as file:
        known = set(file.keys())
        names = [f"{fingerprint}.{position}" for position in (0, 1)]
        return tuple(file.get_tensor(name) for name in names if name in known)


def _unread(name: str) -> tuple[Tensor, ...]:
    raise TaskDataChangedError(
        f"The data of {name} could not be read when the study was saved. Set data_bytes higher in "
        "recording_of(learner).options before training, so that they are kept."
    )


# ---- the other fields of a task ---------------------------------------------------------------------------------


def _entry(task: RecordedTask) -> dict[str, Any]:
    """The fields of a task that are no tensors."""
    return {name: _plain(value) for name, value in _values(task).items() if not isinstance(value, Tensor)}


def _state(task: RecordedTask) -> dict[str, Tensor]:
    """The fields of a task that are tensors, and its adapted parameters."""
    found = {f"{task.id}.adapted.{name}": value for name, value in (task.adapted or {}).items()}
    return found | {f"{task.id}.{name}": each for name, each in _values(task).items() if isinstance(each, Tensor)}


def _values(task: RecordedTask) -> dict[str, Any]:
    return {name: value for name, value in values_of(task).items() if name in FIELDS}


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _states(paths: Iterator[Path]) -> dict[str, dict[str, Tensor]]:
    """The tensors in these files by task, and by the rest of their names."""
    found: dict[str, dict[str, Tensor]] = {}
    for path in paths:
        for name, value in load_file(path).items():
            task, _, rest = name.partition(".")
            found.setdefault(task, {})[rest] = value
    return found


def _task(folder: Path, entry: Mapping[str, Any], state: Mapping[str, Tensor]) -> RecordedTask:
    named = {RENAMED.get(name, name): value for name, value in entry.items()}
    values = {name: _decoded(name, value) for name, value in named.items() if name in FIELDS}
    tensors = {name: value for name, value in state.items() if name in FIELDS}
    adapted = {name.removeprefix("adapted."): value for name, value in state.items() if name.startswith("adapted.")}
    where = f"task {entry['key']} of taskset {entry['taskset']}"
    data = entry["data"]
    read = partial(_read, folder / data, entry["fingerprint"]) if data else partial(_unread, where)
    return RecordedTask(**{**values, **tensors}, adapted=adapted or None, read=read)


def _decoded(name: str, value: Any) -> Any:
    """A field's value as it was before it was written as JSON."""
    decode = FIELDS[name].metadata.get("decode", _tupled)
    return None if value is None else decode(value)


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
