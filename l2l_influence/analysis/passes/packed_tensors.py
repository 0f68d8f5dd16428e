"""One small tensor per task, packed into few pieces of memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PIECE = 2**17
"""Numbers per piece of memory: one MiB."""


class PackedTensors:
    """A tensor for each of ``count`` tasks, in float64 on the CPU.

    They lie side by side in large pieces of memory. Small tensors that outlive the large ones around them fragment the
    memory: after a thousand of them, hundreds of MiB less can be used again.
    """

    def __init__(self, count: int) -> None:
        self._pieces: list[Tensor] = []
        self._used = PIECE
        self._places: list[tuple[int, int, torch.Size]] = [(0, 0, torch.Size([0]))] * count

    def put(self, positions: Sequence[int], values: Tensor) -> None:
        """Store ``values``, ``[B, ...]``, one row per task."""
        shape, numel = values.shape[1:], values.shape[1:].numel()
        if self._used + values.numel() > PIECE:
            self._pieces.append(torch.empty(max(PIECE, values.numel()), dtype=torch.float64))
            self._used = 0
        start, self._used = self._used, self._used + values.numel()
        self._pieces[-1][start : self._used].view(values.shape).copy_(values)
        for place, position in zip(range(len(values)), positions, strict=True):
            self._places[position] = (len(self._pieces) - 1, start + place * numel, shape)

    def each(self) -> list[Tensor]:
        """One tensor per task; of shape ``[0]`` where nothing was stored."""
        pieces = self._pieces or [torch.empty(0, dtype=torch.float64)]
        return [pieces[piece][start : start + shape.numel()].view(shape) for piece, start, shape in self._places]
