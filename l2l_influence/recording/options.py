"""What a recording keeps, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB = 2**20


@dataclass
class RecordingOptions:
    """Change them before training: ``recording_of(maml).options.keep_adapted = False``.

    Attributes:
        keep_adapted: keep the adapted parameters of the last draw of each task that trained (on the CPU).
        adapted_bytes: for how many bytes of them there is room; the latest are kept.
        data_bytes: the same for the tasks' data; what has no room is read again from the taskset when asked for.
        max_tasks: how many different tasks are told apart (an infinite taskset makes a new one at each draw).
        unmatched: what `Recording.training_tasks` does if the learner trained on input that no recorded taskset had
            served: ``"raise"``, or ``"ignore"`` to leave it out of account.
    """

    keep_adapted: bool = True
    adapted_bytes: int = 256 * MIB
    data_bytes: int = 1024 * MIB
    max_tasks: int = 200_000
    unmatched: Literal["raise", "ignore"] = "raise"
