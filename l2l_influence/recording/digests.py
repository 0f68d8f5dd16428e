"""Fingerprints of tensor rows: equal exactly when bytes, dtype and shape are equal, wherever the tensor lives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
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
    # As plain bytes: numpy has no bfloat16, and the bytes do not change on the way from a device.
    raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    width = len(raw) // len(tensor)
    kind = _kind(tensor.dtype, tensor.shape[1:])
    return tuple(kind + _digest(raw[start : start + width]) for start in range(0, len(raw), width))


def combined(digests: Iterable[bytes]) -> bytes:
    """One digest for a sequence of digests."""
    return _digest(b"".join(digests))


@lru_cache
def _kind(dtype: torch.dtype, shape: torch.Size) -> bytes:
    return _digest(f"{dtype} {tuple(shape)}".encode())[:8]


def _digest(content: bytes | memoryview) -> bytes:
    # Of the standard library's hashes SHA-1 is the fastest where the processor has it, and among them where not.
    return hashlib.sha1(content, usedforsecurity=False).digest()
