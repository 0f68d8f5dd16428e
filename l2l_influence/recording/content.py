"""The content of one served batch: its tensors, and the fingerprints by which its rows are known again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .digests import combined, row_digests, tensors_in


@dataclass(frozen=True, eq=False)
class Data:
    """``(inputs, labels)`` of a batch as it was served: by reference, so it has to be seen whether they changed since.

    ``fingerprint`` is that of the tensors when their ``versions`` (torch's counters of in-place changes) were read.
    """

    tensors: tuple[Tensor, ...]
    fingerprint: bytes
    versions: tuple[int, ...]

    @classmethod
    def of(cls, tensors: tuple[Tensor, ...], fingerprint: bytes) -> Data:
        """Tensors that have this fingerprint now."""
        return cls(tensors, fingerprint, _versions(tensors))

    @property
    def nbytes(self) -> int:
        """Memory that the tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def intact(self) -> bool:
        """Whether nobody changed the tensors in place."""
        return self.versions == _versions(self.tensors)

    def on_cpu(self) -> Data:
        """The same on the CPU; without a copy if it is there already. Only for intact data."""
        return Data.of(tuple(tensor.cpu() for tensor in self.tensors), self.fingerprint)


@dataclass(eq=False)
class Content:
    """A batch with one row for each sample.

    ``rows`` maps the digest of an input row to the numbers of the rows that have it. ``labels`` are a copy. ``data``
    are the user's own tensors, or None once they were let go.
    """

    rows: dict[bytes, list[int]]
    length: int
    labels: Tensor | None
    fingerprint: bytes
    data: Data | None

    def contains(self, digests: Sequence[bytes]) -> bool:
        """Whether every row fed is a row of this batch."""
        return all(digest in self.rows for digest in digests)


def read_batch(batch: Any) -> Content | None:
    """The content of what a taskset served, or None if it has no rows that a learner could be fed."""
    tensors = tuple(tensor.detach() for tensor in itertools.islice(tensors_in(batch), 2))
    digests = row_digests(tensors[0]) if tensors else ()
    if not digests:
        return None
    labels = tensors[1] if len(tensors) > 1 and tensors[1].dim() else None
    fingerprint = combined((*digests, *(() if labels is None else row_digests(labels))))
    return Content(
        rows=_positions(digests),
        length=len(digests),
        labels=None if labels is None else labels.cpu().clone(),
        fingerprint=fingerprint,
        data=Data.of(tensors, fingerprint),
    )


def _positions(digests: Sequence[bytes]) -> dict[bytes, list[int]]:
    rows: dict[bytes, list[int]] = {}
    for row, digest in enumerate(digests):
        rows.setdefault(digest, []).append(row)
    return rows


def _versions(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    # Inference tensors have no counter.
    return tuple(-1 if tensor.is_inference() else tensor._version for tensor in tensors)
