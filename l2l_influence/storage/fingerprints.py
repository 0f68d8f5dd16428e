"""Digests of content: of tensor rows (fast), of files, and of any nested values (settings, models, tasks).

A row is read as 32-bit words x_i; its digest is two sums Σ k_i x_i mod 2^64 with random keys k_i (multilinear hashing).
Over the choice of keys, two different rows collide with probability at most 2^-66. This is several times faster than a
cryptographic hash, and sufficient because rows are not forged. Files and nested values are hashed with SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

LANES = 2
WIDTH = 8 * LANES

PLAIN = (type(None), bool, int, float, complex, str, bytes, Tensor)
"""Values that are hashed directly, and the only attributes of unknown objects that are."""

BLOCK = 2**20
"""Bytes of a file that are in memory at a time."""


# ---- tensors in nested values -----------------------------------------------------------------------------------


def tensors_in(value: Any) -> Sequence[Tensor]:
    """The tensors (and numpy arrays, as tensors) inside nested tuples, lists and mappings, in order."""
    return (value,) if isinstance(value, Tensor) else tuple(_search(value))


def first_tensor(values: Iterable[Any]) -> Tensor | None:
    """The first tensor inside the values."""
    return next((tensor for value in values for tensor in tensors_in(value)), None)


def is_transformed(tensor: Tensor) -> bool:
    """True for a tensor inside a transform of ``torch.func``, whose values cannot be read."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def _search(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.ndarray):
        yield from _as_tensor(value)
    elif isinstance(value, Mapping):
        yield from _search(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _search(item)


def _as_tensor(array: npt.NDArray[Any]) -> list[Tensor]:
    """The array as a tensor; nothing if torch has no such dtype, as for strings and objects."""
    try:
        return [torch.as_tensor(array)]
    except TypeError:
        return []


# ---- rows -------------------------------------------------------------------------------------------------------


def row_digests(tensor: Tensor) -> tuple[bytes, ...]:
    """One digest for each ``tensor[i]``; equal if and only if bytes, dtype and shape are, on any device.

    A zero-dimensional or empty tensor has no rows.
    """
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
    """Dtype, shape and all values of a tensor as bytes."""
    return _kind(tensor.dtype, tensor.shape) + _flat(tensor).tobytes()


def _words(tensor: Tensor) -> npt.NDArray[Any]:
    """The bytes of the rows, as 32-bit words where these divide a row."""
    rows = _flat(tensor).reshape(tensor.shape[0], -1)
    return rows if rows.shape[1] % 4 else rows.view(np.uint32)


def _flat(tensor: Tensor) -> npt.NDArray[np.uint8]:
    # As plain bytes: numpy has no bfloat16, and bytes do not change on the way from a device.
    flat: npt.NDArray[np.uint8] = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return flat


@lru_cache(maxsize=16)
def _keys(words: int) -> npt.NDArray[np.uint64]:
    """Random keys for rows of this many words, drawn without touching any global random generator."""
    return np.random.default_rng(words).integers(0, 2**64, size=(words, LANES), dtype=np.uint64)


@lru_cache
def _kind(dtype: torch.dtype, shape: torch.Size) -> bytes:
    return combined([f"{dtype} {tuple(shape)}".encode()])[:8]


# ---- files ------------------------------------------------------------------------------------------------------


def file_digest(path: Path) -> str:
    """Digest of a file's content, 32 hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()[:32]


# ---- nested values ----------------------------------------------------------------------------------------------


def content_digest(values: Iterable[Any]) -> str:
    """Digest of values of any kind, the same in every process for equal values; 64 hexadecimal digits.

    Numbers, strings, tensors, arrays, and tuples, lists, sets, mappings and dataclasses of these count by their
    content, functions by their code, modules by their settings and tensors, any other object by its type and those of
    its attributes that are :data:`PLAIN`.
    """
    found = hashlib.sha256()
    for value in values:
        for part in _parts(value):
            found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield plain_bytes(value)
    elif isinstance(value, PLAIN):
        yield repr(value).encode()
    elif isinstance(value, Mapping):
        yield from _parts(list(value.items()))
    elif isinstance(value, (tuple, list)):
        yield f"{len(value)} of".encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, Set):
        yield from _parts(sorted(content_digest([item]) for item in value))  # whatever their order in this process
    else:
        yield from _parts(_contents(value))


def _contents(value: Any) -> list[Any]:
    """The values that stand for an object."""
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, FunctionType):
        return _code(value)
    if isinstance(value, partial):
        return [name, value.func, value.args, value.keywords]
    if isinstance(value, nn.Module):
        return [name, repr(value), _plain(vars(value)), value.state_dict()]
    if isinstance(value, np.ndarray):
        return [name, str(value.dtype), value.shape, value.tolist() if value.dtype.hasobject else value.tobytes()]
    if is_dataclass(value):
        return [name, *((field.name, getattr(value, field.name)) for field in fields(value))]
    return [name, str(getattr(value, "__qualname__", "")), _plain(getattr(value, "__dict__", {}))]


def _code(function: FunctionType) -> list[Any]:
    code, cells = function.__code__, [cell.cell_contents for cell in function.__closure__ or ()]
    constants = [constant for constant in code.co_consts if isinstance(constant, PLAIN)]
    held = [cell for cell in cells if isinstance(cell, PLAIN)]
    return [function.__qualname__, code.co_code, code.co_names, constants, held, _plain(function.__kwdefaults__ or {})]


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if isinstance(value, PLAIN)}
