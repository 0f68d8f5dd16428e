"""Fingerprints of tensor rows: equal exactly when bytes, dtype and shape are equal, wherever the tensor lives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors (and numpy arrays, as tensors) inside nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.ndarray):
        yield torch.as_tensor(value)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def row_digests(tensor: Tensor) -> tuple[bytes, ...]:
    """One digest for each ``tensor[i]``. A tensor without rows (zero-dimensional) has none."""
    if tensor.dim() == 0 or tensor.numel() == 0:
        return ()
    # A view of plain bytes: numpy has no bfloat16, and the bytes do not change on the way from a device.
    raw = tensor.detach().cpu().contiguous().reshape(len(tensor), -1).view(torch.uint8).numpy()
    kind = f"{tensor.dtype}{tuple(tensor.shape[1:])}".encode()
    return tuple(_digest((kind, row.data)) for row in raw)


def combined(digests: Iterable[bytes]) -> bytes:
    """One digest for a sequence of digests."""
    return _digest(digests)


def _digest(parts: Iterable[Any]) -> bytes:
    # Of the standard library's hashes SHA-1 is the fastest where the processor has it, and among them where not.
    state = hashlib.sha1(usedforsecurity=False)
    for part in parts:
        state.update(part)
    return state.digest()
