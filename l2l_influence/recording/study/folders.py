"""Folders for the studies of several learners: one study is saved in the folder itself, several in one folder each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ..learners.registry import adapter_of
from . import storage
from .study import Study


def folders(study: Study, folder: Path) -> list[tuple[Path, Study]]:
    """A study of each learner that trained, with its folder."""
    parts = study.parts()
    if len(parts) == 1:
        return [(folder, parts[0])]
    return [(folder / f"learner-{number}", part) for number, part in enumerate(parts, start=1)]


def save_each(study: Study, folder: Path, save: Callable[[Study, Path], object], name: str = "") -> None:
    """Save one study per learner that trained, and delete studies of an earlier save that this one does not replace.

    A single learner is saved to ``folder/name``; several to ``folder/learner-1/name``, ``folder/learner-2/name``, ….
    Only studies at such paths are deleted. If no learner trained, the studies are those of all recorded learners.

    Args:
        study: the recording of all learners.
        folder: folder for the studies.
        save: ``save(study, path)`` writes one study.
        name: subfolder of each study; empty to use the folder itself.

    Raises:
        RecordingError: no learner was recorded.
        Exception: the first error of ``save``, raised after all other studies are saved.
    """
    found = {each / name: part for each, part in folders(study, folder)} or {folder / name: study}
    for each in (folder, *folder.glob("learner-*")):
        if each / name not in found:
            storage.remove(each / name)
    errors = [error for path, part in found.items() if (error := _error(save, part, path)) is not None]
    if errors:
        raise errors[0]


def copies(study: Study) -> tuple[nn.Module, nn.Module | None]:
    """Copies of the learner's model (of the learner, if it needs that) and of the body, for `Study.load`."""
    adapter = adapter_of(study.learner)
    module = adapter.learner if adapter.needs_learner else adapter.model
    return copy.deepcopy(module), copy.deepcopy(study.recording.body)


def _error(save: Callable[[Study, Path], object], part: Study, path: Path) -> Exception | None:
    try:
        save(part, path)
    except Exception as error:
        return error
    return None
