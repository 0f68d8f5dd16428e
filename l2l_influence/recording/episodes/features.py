"""Features: rows that a shared body (ANIL) computed from rows that a taskset served."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ...storage.fingerprints import row_digests
from ..tasksets.served import Served, ServedBatches, all_own_batches, by_age
from .normalisation import BatchNorm, common

MAX_CALLS = 64


@dataclass(eq=False)
class BodyCall:
    """One call of a body.

    Attributes:
        bodies: the modules that the rows went through, in order.
        rows: from the digest of each output row to that of the served row that it was computed from.
        batch_norm: the statistics that their layers used.
    """

    bodies: tuple[nn.Module, ...]
    rows: dict[bytes, bytes]
    batch_norm: BatchNorm | None

    def origin(self, digests: Sequence[bytes]) -> tuple[bytes, ...]:
        """The served rows that these rows of the output were computed from."""
        return tuple(self.rows[digest] for digest in digests)


class Features:
    """A bounded memory of a recorder's latest body calls, found by the rows that came out."""

    def __init__(self) -> None:
        self._calls: OrderedDict[int, BodyCall] = OrderedDict()
        self._by_row: dict[bytes, BodyCall] = {}
        self._numbers = itertools.count()

    def source(self, digests: Sequence[bytes]) -> BodyCall | None:
        """The one call that all these rows came out of."""
        call = self._by_row.get(digests[0]) if digests else None
        return call if call is not None and all(digest in call.rows for digest in digests) else None

    def note(self, body: nn.Module, fed: Tensor, made: Tensor, batch_norm: BatchNorm | None, lookup: Lookup) -> None:
        """``body`` computed the rows ``made`` from those ``fed``; ignored unless these were served."""
        digests = row_digests(fed)
        before = self.source(digests)
        origin = before.origin(digests) if before else tuple(digests)
        if not lookup.holding(origin):
            return
        bodies = (*(before.bodies if before else ()), body)
        modes = batch_norm, before.batch_norm if before else None
        call = BodyCall(bodies, dict(zip(row_digests(made), origin, strict=True)), common(modes))
        self._calls[next(self._numbers)] = call
        self._by_row.update(dict.fromkeys(call.rows, call))
        while len(self._calls) > MAX_CALLS:
            self._forget(next(iter(self._calls)))

    def clear(self) -> None:
        """Forget all calls."""
        self._calls.clear()
        self._by_row.clear()

    def _forget(self, number: int) -> None:
        call = self._calls.pop(number)
        for digest in call.rows:
            if self._by_row.get(digest) is call:
                del self._by_row[digest]


@dataclass(frozen=True, eq=False, slots=True)
class Lookup:
    """Searches for the origin of rows that a clone was fed.

    Attributes:
        batches: what was served to the recorders that listen. What any `TaskDataset` served is looked through too.
        features: what these recorders know of features.
    """

    batches: tuple[ServedBatches, ...]
    features: tuple[Features, ...]

    def holding(self, digests: Sequence[bytes]) -> list[Served]:
        """The batches that contain all these rows, oldest first."""
        found = [served for batches in (*self.batches, *all_own_batches()) for served in batches.holding(digests)]
        return by_age(found) if len(found) > 1 else found

    def source(self, digests: Sequence[bytes]) -> BodyCall | None:
        """The body call that all these rows came out of."""
        calls = (features.source(digests) for features in self.features)
        return next((call for call in calls if call is not None), None)
