"""The processes that torchrun starts for one script. They find out through files which of them ends last."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ...storage.atomic import write_text
from .page import clear

ENDED, MERGER = "ended", "merged-by"


@dataclass(frozen=True)
class TorchrunJob:
    """One process of a torchrun job; without torchrun, the only one.

    Attributes:
        folder: folder of the whole job, visible to all its processes.
        rank: rank of this process.
        size: number of processes.
        run: identifies this job among earlier ones in the same folder, as far as torchrun provides names.
    """

    folder: Path
    rank: int = 0
    size: int = 1
    run: str = ""

    @classmethod
    def of_environment(cls, folder: Path) -> TorchrunJob:
        """The job that torchrun describes in environment variables."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
        run = " ".join(os.environ.get(name, "-") for name in names)
        return cls(folder, int(os.environ["RANK"]), size, run) if size > 1 else cls(folder)

    @property
    def own_folder(self) -> Path:
        """Folder for the study of this process."""
        return self.folder_of(self.rank) if self.size > 1 else self.folder

    def folder_of(self, rank: int) -> Path:
        """Folder for the study of the process with this rank."""
        return self.folder / f"rank-{rank}"

    def begin(self) -> None:
        """Remove the files of an earlier job. Safe because no process of this job has saved anything yet."""
        if self.size == 1:
            return
        (self.folder / MERGER).unlink(missing_ok=True)
        for folder in (self.own_folder, *([self.folder, *self._others()] if self.rank == 0 else [])):
            (folder / ENDED).unlink(missing_ok=True)
            clear(folder)

    def _others(self) -> list[Path]:
        """Folders of an earlier job with more processes."""
        numbers = {folder.name.removeprefix("rank-"): folder for folder in self.folder.glob("rank-*")}
        return [folder for number, folder in numbers.items() if number.isdigit() and int(number) >= self.size]

    def end(self) -> bool:
        """Mark this process as ended; returns True for the one process that has to merge, because all have ended."""
        if self.size == 1:
            return True
        self.own_folder.mkdir(parents=True, exist_ok=True)
        write_text(self.own_folder / ENDED, self.run)
        return all(self._has_ended(rank) for rank in range(self.size)) and self._first()

    def _has_ended(self, rank: int) -> bool:
        mark = self.folder_of(rank) / ENDED
        return mark.is_file() and mark.read_text(encoding="utf-8") == self.run

    def _first(self) -> bool:
        """Two processes that end at once may both see that all have ended; only one can create this file."""
        try:
            (self.folder / MERGER).open("x").close()
        except FileExistsError:
            return False
        return True
