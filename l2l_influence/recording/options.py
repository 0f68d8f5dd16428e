"""`RecordingOptions`: limits and switches of a recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB = 2**20


@dataclass
class RecordingOptions:
    """Limits and switches of a recording. Set them before training: ``recording_of(maml).options.max_tasks = 500``.

    Attributes:
        keep_adapted: keep the adapted parameters of each task's last episode that trained (on the CPU).
        adapted_bytes: memory limit for adapted parameters. If they do not all fit, all are dropped.
        data_bytes: memory limit for the data of the tasks. The latest are kept; others are read again from the taskset
            when asked for, and so are all data of a taskset that has proved to serve the same data again.
        max_tasks: largest number of different tasks (every draw from an infinite taskset is a new task). Tasks that did
            not train are dropped first.
        overflow: what happens when more than ``max_tasks`` tasks trained. ``"reservoir"`` keeps a uniform sample of
            them, and `Recording.stands_for` is the number of draws that each one represents; ``"raise"`` makes
            `Recording.training_tasks` raise.
        seed: of that sample. The loop's random number generators are not used.
        unmatched: what `Recording.training_tasks` does if the learner trained on input that no recorded taskset had
            served: ``"raise"`` an error, or ``"ignore"`` that input.
    """

    keep_adapted: bool = True
    adapted_bytes: int = 256 * MIB
    data_bytes: int = 1024 * MIB
    max_tasks: int = 100_000
    overflow: Literal["raise", "reservoir"] = "reservoir"
    seed: int = 0
    unmatched: Literal["raise", "ignore"] = "raise"
