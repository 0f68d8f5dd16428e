"""The same task given to several programs, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from torch import Tensor
from tqdm import tqdm

from ..journal import Row
from ..metering import measured


@dataclass(frozen=True)
class Contestant:
    """One way to compute something for each task.

    Attributes:
        name: as the table has it.
        run: the answers, ``[N, P]``.
        needs: the package it is, by the name it is imported under; None for what is always here.
        stops: whether it stops at the accuracy that was asked for. One that has no such setting shows what it reaches.
    """

    name: str
    run: Callable[[], Tensor]
    needs: str | None = None
    stops: bool = True

    @property
    def installed(self) -> bool:
        return self.needs is None or find_spec(self.needs) is not None


@dataclass(frozen=True)
class Contest:
    """What is computed, by whom, and how wrong an answer is.

    Attributes:
        what: as the table has it.
        contestants: the first is this package's, which the others are compared with.
        error: of answers ``[N, P]``, one a task, ``[N]``; computed by none of the contestants, outside their time.
        asked: the largest error that is accepted of those that stop at it.
    """

    what: str
    contestants: list[Contestant]
    error: Callable[[Tensor], Tensor]
    asked: float

    def rows(self, where: Row, turns: int) -> list[Row]:
        """One a contestant that is installed: medians over turns, each turn running all of them once."""
        present = [each for each in self.contestants if each.installed]
        costs: dict[str, list[Row]] = {each.name: [] for each in present}
        errors = {each.name: float(self.error(each.run()).max()) for each in present}  # and warms up
        for _ in tqdm(range(turns), desc=self.what, unit="turn", disable=None):
            for each in present:
                costs[each.name].append(measured(each.run)[1])
        ours = costs[present[0].name]
        return [
            {"what": self.what, **where, "by": each.name, "turns": turns, "stops": each.stops}
            | {"asked": self.asked, "error": errors[each.name]}
            | _summary(costs[each.name], ours)
            for each in present
        ]


def _summary(costs: list[Row], ours: list[Row]) -> Row:
    """Processor time in units of ours of the same turn."""
    ratios = [cost["seconds"] / our["seconds"] for cost, our in zip(costs, ours, strict=True)]
    peaks = [cost["mebibytes"] for cost in costs]
    return {
        "seconds": statistics.median(cost["seconds"] for cost in costs),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "mebibytes": None if None in peaks else statistics.median(peaks),
    }
