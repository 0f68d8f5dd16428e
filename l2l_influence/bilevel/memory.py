"""Memory budgets, and how much memory a computation takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Memory = int | str
"""Bytes, or text such as ``"4GiB"`` or ``"500 MB"``."""

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")

DEFAULT = 2 * 2**30
"""The memory budget if the user gives none, in bytes."""

RECYCLED = 2**25
"""Largest tensor, in bytes, for which the C library reuses freed memory. Memory of a larger one comes from the system
each time, cleared, which takes several times as long as most operations on it."""


class Allocated(NamedTuple):
    """Bytes of all tensors that a call computes, kept or not, and of the largest of them."""

    total: int
    largest: int


def in_bytes(memory: Memory) -> int:
    """An amount of memory as a number of bytes.

    Raises:
        ValueError: it is not a positive number of bytes or text with a known unit.

    >>> in_bytes("4GiB")
    4294967296
    >>> in_bytes("1.5 MB")
    1500000
    """
    if isinstance(memory, int) and memory > 0:
        return memory
    found = NUMBER.fullmatch(memory) if isinstance(memory, str) else None
    if found is None or found[2].upper() not in UNITS:
        raise ValueError(f'memory must be a number of bytes, or text such as "4GiB" or "500MB", not {memory!r}')
    return int(float(found[1]) * UNITS[found[2].upper()])


def allocated_bytes(function: Callable[[], Any]) -> Allocated:
    """Bytes of the tensors that a call computes."""
    with _Counting() as counting:
        function()
    return Allocated(sum(counting.sizes), max(counting.sizes, default=0))


class _Counting(TorchDispatchMode):
    """Records the size of each tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {_storage(part) for part in _tensors((args, kwargs))}
        self.sizes += [part.nbytes for part in _tensors(out) if _storage(part) not in given]  # views take no memory
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [part for part in tree_leaves(tree) if isinstance(part, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
