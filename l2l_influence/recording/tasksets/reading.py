"""Reading a task's data again from its taskset, without side effects and only if they are still the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import TaskDataChangedError
from .content import Content, batch_tensors, read_batch
from .served import Served
from .serving import drawing


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """The taskset that can give a task's data again, and the fingerprint that they must have."""

    taskset: Any
    key: int
    description: Any
    by_index: bool
    fingerprint: bytes
    name: str

    @classmethod
    def of(cls, served: Served) -> Source:
        """The source of a served batch. It keeps the taskset alive."""
        return cls(
            served.taskset(), served.key, served.description, served.by_index, served.content.fingerprint, str(served)
        )

    @property
    def readable(self) -> bool:
        """True if there is a taskset that can give this very task again."""
        return self.taskset is not None and (self.description is not None or self.by_index)

    def read(self) -> tuple[Tensor, ...]:
        """``(inputs, labels)`` on the CPU, read again.

        Raises:
            TaskDataChangedError: the taskset cannot give the task again, or gives different data.
        """
        content = self._read_quietly()
        if content is None or content.tensors is None or content.fingerprint != self.fingerprint:
            raise TaskDataChangedError(
                f"The data of {self.name} were not kept, and the taskset now gives different data: probably the data "
                "set is augmented at random or has changed. To keep the data, set data_bytes higher in "
                "recording_of(learner).options before training."
            )
        return tuple(tensor.cpu() for tensor in content.tensors)

    def _read_quietly(self) -> Content | None:
        if not self.readable:
            raise TaskDataChangedError(
                f"The data of {self.name} were not kept, and its taskset was deleted or cannot give a chosen task "
                "again. Keep the taskset alive, or set data_bytes higher in recording_of(learner).options before "
                "training."
            )
        with random_state_kept(), drawing():
            batch = self.taskset[self.key] if self.by_index else self.taskset.get_task(self.description)
        return read_batch(batch_tensors(batch))


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random number generators of Python, NumPy and torch (CPU and current GPU) afterwards."""
    python, array = random.getstate(), np.random.get_state()
    initialised = torch.cuda.is_initialized()
    devices = [torch.cuda.current_device()] if initialised else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
