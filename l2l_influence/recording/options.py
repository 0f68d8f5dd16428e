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
        adapted_bytes: for how many bytes of them there is room. When not all of them fit, none are kept.
        data_bytes: for how many bytes of the tasks' data there is room; the latest are kept. What has no room is read
            again from the taskset when asked for, and of a taskset that has shown that it serves the same again, all.
        max_tasks: for how many different tasks there is room (an infinite taskset makes a new one at each draw). Tasks
            that did not train make room for those that did.
        overflow: what becomes of a recording with more tasks that trained: ``"reservoir"`` keeps a uniform sample of
            them, and `Recording.stands_for` says of how many draws each one is an example; with ``"raise"``,
            `Recording.training_tasks` refuses.
        seed: of the sample. It is no random generator of the loop's.
        unmatched: what `Recording.training_tasks` does if the learner trained on input that no recorded taskset had
            served: ``"raise"``, or ``"ignore"`` to leave it out of account.
    """

    keep_adapted: bool = True
    adapted_bytes: int = 256 * MIB
    data_bytes: int = 1024 * MIB
    max_tasks: int = 100_000
    overflow: Literal["raise", "reservoir"] = "reservoir"
    seed: int = 0
    unmatched: Literal["raise", "ignore"] = "raise"
