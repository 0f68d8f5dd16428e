"""The processes that torchrun starts for one script: which of them is the last to end, with no word between them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .page import clear

ENDED, MERGER = "ended", "merged-by"


@dataclass(frozen=True)
class Job:
    """One process among those of a job; without torchrun, the only one.

    Attributes:
        folder: of the whole job; all its processes see it.
        rank: of this process.
        size: how many there are.
        run: what tells this job from others before it, as far as torchrun says.
    """

    folder: Path
    rank: int = 0
    size: int = 1
    run: str = ""

    @classmethod
    def of_environment(cls, folder: Path) -> Job:
        """What torchrun tells the processes that it starts."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
        run = " ".join(os.environ.get(name, "-") for name in names)
        return cls(folder, int(os.environ["RANK"]), size, run) if size > 1 else cls(folder)

    @property
    def own(self) -> Path:
        """The folder of this process's own study."""
        return self.of(self.rank) if self.size > 1 else self.folder

    def of(self, rank: int) -> Path:
        """The folder of the study of one of the processes."""
        return self.folder / f"rank-{rank}"

    def begin(self) -> None:
        """Take away what an earlier job left. None of this one has ended yet, so that nothing of its own is lost."""
        if self.size == 1:
            return
        (self.folder / MERGER).unlink(missing_ok=True)
        for folder in (self.own, *([self.folder, *self._others()] if self.rank == 0 else [])):
            (folder / ENDED).unlink(missing_ok=True)
            clear(folder)

    def _others(self) -> list[Path]:
        """Folders of a job that had more processes."""
        numbers = {folder.name.removeprefix("rank-"): folder for folder in self.folder.glob("rank-*")}
        return [folder for number, folder in numbers.items() if number.isdigit() and int(number) >= self.size]

    def end(self) -> bool:
        """This process has saved its study. Says whether it is the one that goes on, because all others have too."""
        if self.size == 1:
            return True
        self.own.mkdir(parents=True, exist_ok=True)
        (self.own / ENDED).write_text(self.run, encoding="utf-8")
        return all(self._has_ended(rank) for rank in range(self.size)) and self._first()

    def _has_ended(self, rank: int) -> bool:
        mark = self.of(rank) / ENDED
        return mark.is_file() and mark.read_text(encoding="utf-8") == self.run

    def _first(self) -> bool:
        """Two that end at once may both see that all have ended: one of them makes this file."""
        try:
            (self.folder / MERGER).open("x").close()
        except FileExistsError:
            return False
        return True
