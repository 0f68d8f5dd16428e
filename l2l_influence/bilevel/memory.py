"""How much memory may be used, and how much some work takes."""

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

RECYCLED = 2**25
"""Bytes of a tensor up to which the C library hands out memory that was used before. A larger one comes from the system
anew each time, empty, which takes several times as long as most of what is done with it."""


class Allocated(NamedTuple):
    """Bytes of the tensors that a call computes on the way, whether kept or not: of all of them, and of the largest."""

    total: int
    largest: int


def in_bytes(memory: Memory) -> int:
    """A stated amount of memory as a number.

    Raises:
        ValueError: it is no amount.
    """
    if isinstance(memory, int) and memory > 0:
        return memory
    found = NUMBER.fullmatch(memory) if isinstance(memory, str) else None
    if found is None or found[2].upper() not in UNITS:
        raise ValueError(f'memory must be a number of bytes, or text such as "4GiB" or "500MB", not {memory!r}')
    return int(float(found[1]) * UNITS[found[2].upper()])


def allocated_bytes(function: Callable[[], Any]) -> Allocated:
    """What a call computes on the way."""
    with _Counting() as counting:
        function()
    return Allocated(sum(counting.sizes), max(counting.sizes, default=0))


class _Counting(TorchDispatchMode):
    """Notes the size of what every operation gives back."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {_storage(part) for part in _tensors((args, kwargs))}
        self.sizes += [part.nbytes for part in _tensors(out) if _storage(part) not in given]  # views take nothing
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [part for part in tree_leaves(tree) if isinstance(part, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
