"""`gather`: the studies of all processes of a ``torch.distributed`` job, merged, in each of them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

import torch.distributed as dist

from ...errors import PartlySavedError, RecordingError
from .folders import copies
from .study import Study

Files = dict[str, bytes]


def gather(study: Study) -> Study:
    """This process's study merged with those of all other processes of the ``torch.distributed`` job.

    All processes must call it, at the end of training, and each gets all tasks; see `Study.load` for how they are
    merged. The studies pass through memory and a temporary folder, which is deleted when the process ends. If they are
    too large for that, let each process save its study to a shared folder, and load them together.

    Raises:
        RecordingError: the study of one of the processes could not be saved; the message says which, and why.
        RanksDisagreeError: the processes do not have the same parameters.
    """
    found: list[Files | str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, _files(study))
    for rank, files in enumerate(found):
        if isinstance(files, str):
            raise RecordingError(f"the study of process {rank} could not be saved, so no study was gathered: {files}")
    place = Path(tempfile.mkdtemp(prefix="l2l-influence-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)  # until then tasks are read from there
    folders = [_write(place / f"rank-{rank}", files) for rank, files in enumerate(found)]
    return Study.load(folders, *copies(study))


def _files(study: Study) -> Files | str:
    """The files to send, or an error message: an exception here would leave the other processes waiting."""
    with tempfile.TemporaryDirectory(prefix="l2l-influence-") as folder:
        try:
            study.save(folder)
        except PartlySavedError:
            pass  # raised again for the tasks whose data are missing, when these are read
        except Exception as error:
            return str(error)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _write(folder: Path, files: Files | str) -> Path:
    assert not isinstance(files, str)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
