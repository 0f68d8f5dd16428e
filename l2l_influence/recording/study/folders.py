"""Where the studies of several learners go: into one folder, or one for each in it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ..learners.base import model_of, rule_of
from . import storage
from .study import Study


def places(study: Study, folder: Path) -> list[tuple[Path, Study]]:
    """A study of each learner that trained, and the folder for it."""
    parts = study.parts()
    if len(parts) == 1:
        return [(folder, parts[0])]
    return [(folder / f"learner-{number}", part) for number, part in enumerate(parts, start=1)]


def save_each(study: Study, folder: Path, save: Callable[[Study, Path], object], name: str = "") -> None:
    """Save the study of each learner in its place, as ``name`` there, and take away others that the folder has.

    Raises:
        RecordingError: there is no learner.
        Exception: the first that ``save`` raised, once all others are saved.
    """
    found = {place / name: part for place, part in places(study, folder)} or {folder / name: study}
    for place in (folder, *folder.glob("learner-*")):
        if place / name not in found:
            storage.remove(place / name)
    errors = [error for path, part in found.items() if (error := _error(save, part, path)) is not None]
    if errors:
        raise errors[0]


def copies(study: Study) -> tuple[nn.Module, nn.Module | None]:
    """Modules like the learner's model (or like the learner, where it takes that) and body, for `Study.load`."""
    learner = study.learner
    module = learner if rule_of(learner) == "gbml" else model_of(learner)
    return copy.deepcopy(module), copy.deepcopy(study.recording.body)


def _error(save: Callable[[Study, Path], object], part: Study, path: Path) -> Exception | None:
    try:
        save(part, path)
    except Exception as error:
        return error
    return None
