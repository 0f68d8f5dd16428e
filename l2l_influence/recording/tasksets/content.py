"""The content of one served batch: copies of its tensors, and the digests by which its rows are recognised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...storage.fingerprints import combined, plain_bytes, row_digests, tensors_in

Tensors = tuple[Tensor, ...]


@dataclass(eq=False, slots=True)
class Content:
    """A batch with one row for each sample.

    Attributes:
        tensors: ``(inputs, labels)``; None once they were released.
        fingerprint: digest of all inputs and labels.
        rows: from the digest of an input row to the number of a row that has it.
        repeated: from the digest of an input row that occurs several times to the numbers of all these rows.
        length: number of rows.
        labels: the labels, if there is one for each row.
    """

    tensors: Tensors | None
    fingerprint: bytes
    rows: Mapping[bytes, int]
    repeated: Mapping[bytes, tuple[int, ...]]
    length: int
    labels: Tensor | None
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = sum([tensor.nbytes for tensor in self.tensors or ()])

    def contains(self, digests: Sequence[bytes]) -> bool:
        """True if all these rows are rows of this batch."""
        return all(map(self.rows.__contains__, digests))

    def assign(self, digests: Sequence[bytes], avoid: Sequence[int] = ()) -> tuple[int, ...]:
        """Row numbers of the rows that were fed. Equal rows are numbered in order, those to ``avoid`` last."""
        if not self.repeated:
            return tuple([self.rows[digest] for digest in digests])
        given: Counter[bytes] = Counter()
        numbers = []
        for digest in digests:
            equal = self.repeated.get(digest, (self.rows[digest],))
            equal = tuple([row for row in equal if row not in avoid]) or equal
            numbers.append(equal[given[digest] % len(equal)])
            given[digest] += 1
        return tuple(numbers)


def copied(tensor: Tensor) -> Tensor:
    """A copy outside any graph, which the loop cannot change."""
    return tensor.detach().clone()


def batch_tensors(batch: Any) -> Tensors:
    """Copies of a batch's ``(inputs, labels)``."""
    return tuple([copied(tensor) for tensor in tensors_in(batch)[:2]])


def read_batch(tensors: Tensors) -> Content | None:
    """The content of ``(inputs, labels)``; None if they have no rows that a learner could be fed."""
    digests = row_digests(tensors[0]) if tensors else ()
    if not digests:
        return None
    labels = tensors[1] if len(tensors) > 1 and tensors[1].dim() else None
    rows = dict(zip(digests, range(len(digests)), strict=True))
    return Content(
        tensors=tensors,
        fingerprint=combined(digests if labels is None else (*digests, plain_bytes(labels))),
        rows=rows,
        repeated=_repeated(digests) if len(rows) < len(digests) else {},
        length=len(digests),
        labels=labels,
    )


def _repeated(digests: Sequence[bytes]) -> dict[bytes, tuple[int, ...]]:
    numbers: dict[bytes, tuple[int, ...]] = {}
    for row, digest in enumerate(digests):
        numbers[digest] = (*numbers.get(digest, ()), row)
    return {digest: rows for digest, rows in numbers.items() if len(rows) > 1}
