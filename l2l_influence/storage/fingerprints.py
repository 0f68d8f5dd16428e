"""Fingerprints of tensor rows: equal when bytes, dtype and shape are equal, wherever the tensor lives, and else not.

A row is read as words x_i of 32 bits, and its fingerprint is two sums Σ k_i x_i mod 2^64 with random k_i (multilinear
hashing): over the choice of keys two different rows collide with a chance of at most 2^-66. A few times faster than
cryptographic hashes, which guard against an enemy, and there is none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LANES = 2
WIDTH = 8 * LANES


def tensors_in(value: Any) -> Sequence[Tensor]:
    """The tensors (and numpy arrays, as tensors) inside nested tuples, lists and mappings, in order."""
    return (value,) if isinstance(value, Tensor) else tuple(_search(value))


def first_tensor(values: Iterable[Any]) -> Tensor | None:
    """The first of the tensors in them."""
    return next((tensor for value in values for tensor in tensors_in(value)), None)


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor is one that a transform of ``torch.func`` computes with: nobody can read its values."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def _search(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.ndarray):
        yield torch.as_tensor(value)
    elif isinstance(value, Mapping):
        yield from _search(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _search(item)


def row_digests(tensor: Tensor) -> tuple[bytes, ...]:
    """One digest for each ``tensor[i]``. A tensor without rows (zero-dimensional) has none."""
    if tensor.dim() == 0 or tensor.numel() == 0:
        return ()
    words = _words(tensor)
    sums: bytes = (words.astype(np.uint64) @ _keys(words.shape[1])).tobytes()
    kind = _kind(tensor.dtype, tensor.shape[1:])
    return tuple([kind + sums[start : start + WIDTH] for start in range(0, len(sums), WIDTH)])


def combined(digests: Iterable[bytes]) -> bytes:
    """One digest for a sequence of digests."""
    return hashlib.sha1(b"".join(digests), usedforsecurity=False).digest()


def plain_bytes(tensor: Tensor) -> bytes:
    """Dtype, shape and all values of a small tensor."""
    return _kind(tensor.dtype, tensor.shape) + _flat(tensor).tobytes()


def _words(tensor: Tensor) -> npt.NDArray[Any]:
    """The rows' bytes, as words of 32 bits where these divide a row."""
    rows = _flat(tensor).reshape(tensor.shape[0], -1)
    return rows if rows.shape[1] % 4 else rows.view(np.uint32)


def _flat(tensor: Tensor) -> npt.NDArray[np.uint8]:
    # As plain bytes: numpy has no bfloat16, and the bytes do not change on the way from a device.
    flat: npt.NDArray[np.uint8] = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return flat


@lru_cache(maxsize=16)
def _keys(words: int) -> npt.NDArray[np.uint64]:
    """Random keys for rows of so many words, from a generator of their own."""
    return np.random.default_rng(words).integers(0, 2**64, size=(words, LANES), dtype=np.uint64)


@lru_cache
def _kind(dtype: torch.dtype, shape: torch.Size) -> bytes:
    return combined([f"{dtype} {tuple(shape)}".encode()])[:8]
