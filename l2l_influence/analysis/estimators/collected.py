"""What passes over the tasks find and keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PIECE = 2**17
"""Numbers, for which memory is taken at a time: a MiB."""


class PackedTensors:
    """A tensor for each of ``count`` tasks, in float64 on the CPU.

    They are side by side in large pieces of memory. A small tensor that outlives the large ones around it cuts up what
    those give back, so that less of it can be used again: after a thousand of them, hundreds of MiB less.
    """

    def __init__(self, count: int) -> None:
        self._pieces: list[Tensor] = []
        self._used = PIECE
        self._places: list[tuple[int, int, torch.Size]] = [(0, 0, torch.Size([0]))] * count

    def put(self, positions: Sequence[int], values: Tensor) -> None:
        """``[B, ...]``, one row a task."""
        shape, numel = values.shape[1:], values.shape[1:].numel()
        if self._used + values.numel() > PIECE:
            self._pieces.append(torch.empty(max(PIECE, values.numel()), dtype=torch.float64))
            self._used = 0
        start, self._used = self._used, self._used + values.numel()
        self._pieces[-1][start : self._used].view(values.shape).copy_(values)
        for place, position in zip(range(len(values)), positions, strict=True):
            self._places[position] = (len(self._pieces) - 1, start + place * numel, shape)

    def each(self) -> list[Tensor]:
        """One a task; ``[0]`` where there is none."""
        pieces = self._pieces or [torch.empty(0, dtype=torch.float64)]
        return [pieces[piece][start : start + shape.numel()].view(shape) for piece, start, shape in self._places]
