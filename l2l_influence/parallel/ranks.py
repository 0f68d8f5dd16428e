"""Collective operations of processes that share the tasks of one problem.

Rank r of n holds the tasks at positions r, r + n, …, and none of the other tasks' data. Sums over tasks are summed over
ranks, so that all ranks end with the same numbers; only vectors of the size of λ are exchanged.
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

from ..errors import RankFailedError, RanksApartError

Value = TypeVar("Value")

AT_ONCE = 2**24
"""Bytes of rows that are exchanged at a time: buffers so small are reused by the C library for the next rows, larger
ones come from the system anew each time, which takes longer than the exchange."""


class Ranks(ABC):
    """The processes that work on one problem, seen from one of them.

    All ranks have to call the same methods in the same order, except :meth:`share`, :meth:`slot`, :meth:`slab` and
    :meth:`guard`, which exchange nothing.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
    """

    rank: int
    size: int

    def share(self, count: int) -> range:
        """The positions of this rank's tasks, out of ``count`` tasks."""
        return range(self.rank, count, self.size)

    def slot(self, positions: Sequence[int]) -> list[int]:
        """The indices within this rank's share of tasks at these positions, which have to belong to it."""
        return [position // self.size for position in positions]

    def slab(self, v: Tensor) -> Tensor:
        """This rank's part of the columns, ``[..., P] -> [..., ⌈P/size⌉]``, padded with zeros."""
        width = -(-v.shape[-1] // self.size)
        mine = v[..., self.rank * width : (self.rank + 1) * width]
        return pad(mine, (0, width - mine.shape[-1]))

    @abstractmethod
    def sum(self, part: Tensor) -> Tensor:
        """Sum over ranks of tensors of equal shape and dtype."""

    @abstractmethod
    def maximum(self, value: float) -> float:
        """The largest value of all ranks."""

    @abstractmethod
    def first(self, say: Callable[[], Value]) -> Value:
        """Call ``say()`` on rank 0 only, and return its value on all ranks; the value has to be picklable."""

    @abstractmethod
    def joined(self, part: Tensor, width: int) -> Tensor:
        """All columns from the slabs of all ranks, ``[..., ⌈width/size⌉] -> [..., width]``; inverts :meth:`slab`."""

    @abstractmethod
    def columns(self, rows: Tensor, count: int) -> Tensor:
        """Exchange rows for columns: this rank gives all columns of the rows of its share, and gets its slab of the
        rows of all ``count`` tasks, ``[share, m, P] -> [count, m, ⌈P/size⌉]``."""

    @abstractmethod
    def require_same(self, what: str, parts: Iterable[Any]) -> None:
        """Check that all ranks were given the same parts: tensors by their bytes, anything else by its ``repr``.

        A single process does not look at them.

        Args:
            what: names the parts in the error.

        Raises:
            RanksApartError: they differ; raised on all ranks.
        """

    @abstractmethod
    @contextmanager
    def guard(self) -> Iterator[None]:
        """For work of this rank alone: if it fails, the others get an error at their next operation."""

    def gather(self, found: list[Tensor]) -> list[Tensor]:
        """One tensor for each task, of at most three dimensions and in float64, from the ranks that hold the tasks.

        Args:
            found: a list with one entry for each task, of which only those of this rank's share are used.
        """
        if self.size == 1:
            return found
        own = self.share(len(found))
        shapes = torch.zeros(len(found), 5, dtype=torch.int64)
        for position in own:
            shape = found[position].shape
            shapes[position, : 2 + len(shape)] = torch.tensor([shape.numel(), len(shape), *shape])
        shapes = self.sum(shapes)
        sizes = shapes[:, 0].tolist()
        flat = torch.zeros(sum(sizes), dtype=torch.float64)
        targets = flat.split(sizes)
        for position in own:
            targets[position].copy_(found[position].flatten())
        parts = self.sum(flat).split(sizes)
        return [part.view(shape[:dim]) for part, (_, dim, *shape) in zip(parts, shapes.tolist(), strict=True)]


class Alone(Ranks):
    """A single process, which holds all tasks and exchanges nothing."""

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


class DistributedRanks(Ranks):
    """The processes of a ``torch.distributed`` process group.

    Before each exchange the ranks tell each other which operation they have reached. If a rank has failed or has
    reached another operation, all ranks get an error instead of a deadlock. A rank that never arrives, because its
    process died or still computes, is waited for until the timeout of the process group; ``torchrun`` ends all
    processes when one has died.

    Args:
        process_group: gloo or NCCL; tensors are exchanged on a device that it serves.

    Raises:
        ValueError: this process is not in the process group.
    """

    def __init__(self, process_group: dist.ProcessGroup) -> None:
        self._group = process_group
        self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)
        if self.rank < 0:
            raise ValueError("this process is not in the process group: use the hook on ranks of the group only")

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
        """Exchanged in portions, so that little more than the rows and the slab is in memory."""
        share, width = -(-count // self.size), -(-rows.shape[-1] // self.size)
        samples = rows.shape[1]
        self._meet("columns", torch.empty(share, samples, width, dtype=rows.dtype, device="meta"))
        slab = rows.new_empty(share, self.size, samples, width)
        portion = max(1, AT_ONCE // (samples * width * self.size * rows.element_size()))
        for lo in range(0, share, portion):
            hi = min(share, lo + portion)
            part = rows[lo:hi]
            part = pad(part, (0, width * self.size - rows.shape[-1], 0, 0, 0, hi - lo - len(part)))
            by_rank = part.unflatten(-1, (self.size, width)).movedim(2, 0).contiguous()
            slab[lo:hi] = self._exchanged(by_rank).movedim(0, 1)
        return slab.flatten(0, 1)[:count]

    def _exchanged(self, by_rank: Tensor) -> Tensor:
        """``[size, ...] -> [size, ...]``: part k is sent to rank k and replaced by what rank k sent."""
        sent = by_rank.to(self._device_for(by_rank))
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self._group)
        return received.to(by_rank.device)

    def require_same(self, what: str, parts: Iterable[Any]) -> None:
        with self.guard():
            own = _digest(parts)
        self._meet("require_same")
        found = self._gathered(torch.tensor([own], dtype=torch.int64))
        if len(set(found.flatten().tolist())) > 1:
            raise RanksApartError(
                f"the {self.size} processes of the process group have different inputs: {what} differ. Every process "
                "has to ask the same question about the same study: save it on one of them, wait with "
                "torch.distributed.barrier(), load it on each with Study.load, and pass the same test tasks"
            )

    @contextmanager
    def guard(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._gathered(torch.tensor([1, 0, 0]))
            raise

    def _meet(self, purpose: str, about: Tensor | None = None) -> None:
        """Check that all ranks have reached the same operation and none has failed.

        Raises:
            RankFailedError: one has failed.
            RanksApartError: they have reached different operations, or have tensors of different sizes.
        """
        kind = _digest((purpose, None if about is None else about.dtype))
        met = self._gathered(torch.tensor([0, kind, 0 if about is None else about.numel()]))
        failed = met[:, 0].nonzero()[:, 0].tolist()
        if failed:
            raise RankFailedError(
                f"of the {self.size} processes of the process group, ranks {failed} failed: see the error that was "
                f"raised there. Rank {self.rank} stops too, as it would wait for a result that never comes"
            )
        if not bool((met == met[0]).all()):
            raise RanksApartError(
                f"the {self.size} processes of the process group have reached different operations (this one: "
                f"{purpose}). All have to ask the same questions in the same order: do not call a hook inside "
                "`if rank == 0:`"
            )

    def _gathered(self, row: Tensor) -> Tensor:
        """A short row from each rank, ``[k] -> [size, k]``, on the CPU."""
        mine = row.to(self._device_for(row))
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine, group=self._group)
        return torch.stack(rows).cpu()

    def _device_for(self, tensor: Tensor) -> torch.device:
        """The device to exchange it on: its own if the process group serves that; gloo serves the CPU, NCCL the current
        GPU."""
        # "cpu:gloo,cuda:nccl"
        served = [pair.split(":")[0] for pair in str(dist.get_backend_config(self._group)).split(",")]
        kind = tensor.device.type if tensor.device.type in served else served[0]
        if kind == tensor.device.type:
            return tensor.device
        return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def ranks_of(process_group: dist.ProcessGroup | None) -> Ranks:
    """The ranks of a process group; without one, this process alone."""
    return ALONE if process_group is None else DistributedRanks(process_group)


def _digest(parts: Iterable[Any]) -> int:
    """A 64-bit digest of the parts: tensors by their bytes, anything else by its ``repr``."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.detach().cpu().contiguous() if isinstance(part, Tensor) else None
        found.update(repr(part).encode() if data is None else repr((data.dtype, data.shape)).encode())
        if data is not None:
            found.update(data.flatten().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(found.digest(), "big", signed=True)
