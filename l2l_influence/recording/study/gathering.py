"""The studies of all processes of a torch.distributed job, in each of them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist

from ...errors import PartlySavedError, RecordingError
from .folders import copies
from .study import Study

Files = dict[str, bytes]

_places: list[TemporaryDirectory[str]] = []
"""What was gathered is read from there, until this process ends."""


def gather(study: Study) -> Study:
    """This process's study merged with those of all others of the ``torch.distributed`` job; see `Study.load`.

    All processes have to call it, at the end of training, and each gets all tasks. They pass through memory and a
    temporary folder; where there are too many for that, let each process save its study to a folder that all can see,
    and load them together.

    Raises:
        RecordingError: the study of one of the processes could not be saved; says which, and why.
        RanksDisagreeError: the processes do not have the same parameters.
    """
    found: list[Files | str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, _files(study))
    for rank, files in enumerate(found):
        if isinstance(files, str):
            raise RecordingError(f"the study of process {rank} could not be gathered: {files}")
    _places.append(TemporaryDirectory(prefix="l2l-influence-"))
    folders = [_write(Path(_places[-1].name) / f"rank-{rank}", files) for rank, files in enumerate(found)]
    return Study.load(folders, *copies(study))


def _files(study: Study) -> Files | str:
    """What is to be sent, or why there is nothing: an error here would leave the other processes waiting."""
    with TemporaryDirectory(prefix="l2l-influence-") as folder:
        try:
            study.save(folder)
        except PartlySavedError:
            pass  # what is missing is told when it is asked for
        except Exception as error:
            return str(error)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _write(folder: Path, files: Files | str) -> Path:
    assert not isinstance(files, str)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
