"""Processes that share the tasks of a problem, and what they tell each other.

Rank r of n holds the tasks at positions r, r + n, …, and nothing of the others' data. What adds up over tasks is added
up over ranks, so that all ranks end with the same numbers; vectors of λ's size are all that moves.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from ..bilevel.memory import RECYCLED
from ..errors import RankFailedError, RanksApartError

Value = TypeVar("Value")

AT_ONCE = RECYCLED // 2
"""Bytes of rows that are on their way from rank to rank at a time: what carries them is used again for the next."""


class Ranks(ABC):
    """The processes that work on one problem, as one of them sees them.

    Every method but :meth:`share`, :meth:`slot`, :meth:`slab` and :meth:`guard` is to be called by all ranks, in the
    same order.

    Attributes:
        rank, size: which of how many this one is.
    """

    rank: int
    size: int

    def share(self, count: int) -> range:
        """The positions of this rank's tasks, of ``count``."""
        return range(self.rank, count, self.size)

    def slot(self, positions: Sequence[int]) -> list[int]:
        """Where tasks of this rank's share stand in it."""
        return [position // self.size for position in positions]

    def slab(self, v: Tensor) -> Tensor:
        """This rank's part of the columns, ``[..., P] -> [..., ⌈P/size⌉]``, the last ones filled up with zeros."""
        width = -(-v.shape[-1] // self.size)
        mine = v[..., self.rank * width : (self.rank + 1) * width]
        return pad(mine, (0, width - mine.shape[-1]))

    @abstractmethod
    def sum(self, part: Tensor) -> Tensor:
        """Σ over ranks, of tensors of equal shape and dtype."""

    @abstractmethod
    def maximum(self, value: float) -> float:
        """The largest of all."""

    @abstractmethod
    def first(self, say: Callable[[], Value]) -> Value:
        """What rank 0 says, who alone is asked; anything that can be pickled."""

    @abstractmethod
    def joined(self, part: Tensor, width: int) -> Tensor:
        """Columns put together from all ranks' slabs, ``[..., ⌈width/size⌉] -> [..., width]``: undoes :meth:`slab`."""

    @abstractmethod
    def columns(self, rows: Tensor, count: int) -> Tensor:
        """Rows of the tasks of this rank's share become this rank's slab of the rows of all ``count`` tasks:
        ``[share, m, P] -> [count, m, ⌈P/size⌉]``."""

    @abstractmethod
    def require_same(self, what: str, parts: Iterable[Any]) -> None:
        """Raise on all ranks unless they were given the same: tensors by their bytes, all else by how it prints.

        One process does not look at them.

        Raises:
            RanksApartError: they were not.
        """

    @abstractmethod
    @contextmanager
    def guard(self) -> Iterator[None]:
        """Work of this rank alone: if it fails, the others are told at their next meeting, and need not wait."""

    def gather(self, found: list[Tensor]) -> list[Tensor]:
        """One tensor a task, of at most three dimensions: those of this rank's share are given, those of all return.

        Entries of other tasks are not looked at. Values travel, and return, in float64.
        """
        if self.size == 1:
            return found
        own = self.share(len(found))
        shapes = torch.zeros(len(found), 5, dtype=torch.int64)
        for at in own:
            shape = found[at].shape
            shapes[at, : 2 + len(shape)] = torch.tensor([shape.numel(), len(shape), *shape])
        shapes = self.sum(shapes)
        sizes = shapes[:, 0].tolist()
        flat = torch.zeros(sum(sizes), dtype=torch.float64)
        places = flat.split(sizes)
        for at in own:
            places[at].copy_(found[at].flatten())
        parts = self.sum(flat).split(sizes)
        return [part.view(shape[:dim]) for part, (_, dim, *shape) in zip(parts, shapes.tolist(), strict=True)]


class Alone(Ranks):
    """One process, which holds all tasks."""

    rank, size = 0, 1

    def sum(self, part: Tensor) -> Tensor:
        return part

    def maximum(self, value: float) -> float:
        return value

    def first(self, say: Callable[[], Value]) -> Value:
        return say()

    def joined(self, part: Tensor, width: int) -> Tensor:
        return part

    def columns(self, rows: Tensor, count: int) -> Tensor:
        return rows

    def require_same(self, what: str, parts: Iterable[Any]) -> None:
        pass

    @contextmanager
    def guard(self) -> Iterator[None]:
        yield


ALONE = Alone()


class Group(Ranks):
    """The processes of a ``torch.distributed`` group.

    Before anything is exchanged the ranks meet: each says what it has come for. One that failed, or has come for
    something else, is thus an error on all of them and no deadlock. A rank that never comes, because its process died
    or computes on, is waited for until the group's own timeout; ``torchrun`` ends all processes when one has died.

    Args:
        group: gloo or NCCL; tensors travel on a device that it serves.

    Raises:
        ValueError: this process is not in the group.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process is not in the group that was given: ask the hook on the group's ranks only")

    def sum(self, part: Tensor) -> Tensor:
        self._meet("sum", part)
        moved = part.to(self._device_for(part), copy=True).contiguous()
        dist.all_reduce(moved, group=self._group)
        return moved.to(part.device)

    def maximum(self, value: float) -> float:
        moved = torch.tensor(value, dtype=torch.float64)
        self._meet("maximum", moved)
        moved = moved.to(self._device_for(moved))
        dist.all_reduce(moved, dist.ReduceOp.MAX, group=self._group)
        return float(moved)

    def first(self, say: Callable[[], Value]) -> Value:
        said: list[Any] = [None]
        if self.rank == 0:
            with self.guard():
                said = [say()]
        self._meet("first")
        dist.broadcast_object_list(said, dist.get_global_rank(self._group, 0), self._group)
        return cast(Value, said[0])

    def joined(self, part: Tensor, width: int) -> Tensor:
        self._meet("joined", part)
        mine = part.to(self._device_for(part)).contiguous()
        slabs = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(slabs, mine, group=self._group)
        return torch.cat(slabs, dim=-1)[..., :width].to(part.device)

    def columns(self, rows: Tensor, count: int) -> Tensor:
        """In portions, so that beside the rows and the slab only a little is in memory."""
        share, width = -(-count // self.size), -(-rows.shape[-1] // self.size)
        draws = rows.shape[1]
        self._meet("columns", torch.empty(share, draws, width, dtype=rows.dtype, device="meta"))
        slab = rows.new_empty(share, self.size, draws, width)
        portion = max(1, AT_ONCE // (draws * width * self.size * rows.element_size()))
        for lo in range(0, share, portion):
            hi = min(share, lo + portion)
            some = rows[lo:hi]
            some = pad(some, (0, width * self.size - rows.shape[-1], 0, 0, 0, hi - lo - len(some)))
            by_rank = some.unflatten(-1, (self.size, width)).movedim(2, 0).contiguous()
            slab[lo:hi] = self._exchanged(by_rank).movedim(0, 1)
        return slab.flatten(0, 1)[:count]

    def _exchanged(self, by_rank: Tensor) -> Tensor:
        """``[size, ...] -> [size, ...]``: part k goes to rank k, and what comes from rank k is part k."""
        sent = by_rank.to(self._device_for(by_rank))
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self._group)
        return received.to(by_rank.device)

    def require_same(self, what: str, parts: Iterable[Any]) -> None:
        with self.guard():
            own = digest(parts)
        self._meet("require_same")
        found = self._gathered(torch.tensor([own], dtype=torch.int64))
        if len(set(found.flatten().tolist())) > 1:
            raise RanksApartError(
                f"the {self.size} processes that share the work were asked about different things: {what} differ. Each "
                "has to ask the same question about the same recording: save it on one of them, wait "
                "(torch.distributed.barrier()), and Study.load it on each; and pass the same test tasks"
            )

    @contextmanager
    def guard(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._gathered(torch.tensor([1, 0, 0]))
            raise

    def _meet(self, purpose: str, about: Tensor | None = None) -> None:
        """Whether all have come, for the same thing, in good health."""
        kind = digest((purpose, None if about is None else about.dtype))
        met = self._gathered(torch.tensor([0, kind, 0 if about is None else about.numel()]))
        failed = met[:, 0].nonzero()[:, 0].tolist()
        if failed:
            raise RankFailedError(
                f"the work that process {self.rank} of {self.size} shares has failed on {failed}: see what was raised "
                "there. All of them stop here, and none waits for another"
            )
        if not bool((met == met[0]).all()):
            raise RanksApartError(
                f"the {self.size} processes that share the work are at different steps of it (here: {purpose}). All "
                "have to ask the hook the same questions in the same order: no call may stand behind `if rank == 0:`"
            )

    def _gathered(self, row: Tensor) -> Tensor:
        """A short row of each rank, ``[k] -> [size, k]``, on the CPU."""
        mine = row.to(self._device_for(row))
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine, group=self._group)
        return torch.stack(rows).cpu()

    def _device_for(self, tensor: Tensor) -> torch.device:
        """Its own if the group can send from there: gloo serves the CPU, NCCL the GPU that is current."""
        # "cpu:gloo,cuda:nccl"
        served = [pair.split(":")[0] for pair in str(dist.get_backend_config(self._group)).split(",")]
        kind = tensor.device.type if tensor.device.type in served else served[0]
        if kind == tensor.device.type:
            return tensor.device
        return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def ranks_of(group: dist.ProcessGroup | None) -> Ranks:
    """Those of a group; this process alone unless one is given, whatever else it may be a part of."""
    return ALONE if group is None else Group(group)


def digest(parts: Iterable[Any]) -> int:
    """A number that differs, but by an incredible chance, where the parts do."""
    told = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.detach().cpu().contiguous() if isinstance(part, Tensor) else None
        told.update(repr(part).encode() if data is None else repr((data.dtype, data.shape)).encode())
        if data is not None:
            told.update(data.flatten().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(told.digest(), "big", signed=True)
