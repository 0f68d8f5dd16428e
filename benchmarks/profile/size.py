"""How much is profiled."""

from __future__ import annotations

from dataclasses import dataclass

from .. import processes


@dataclass(frozen=True)
class Size:
    """Numbers of tasks that are profiled.

    Attributes:
        tasks: N with a sketch.
        tests: few and many.
        iterative: N with Gauss–Newton.
        contest: N of the contests with other libraries.
        calls: of a contestant whose cold starts are looked at.
        shared: N that two processes share, by kind of Hessian.
        memory: N of the sketches whose memory is looked at.
    """

    tasks: int
    tests: tuple[int, int]
    iterative: int
    contest: int
    calls: int
    shared: dict[str, int]
    memory: tuple[int, int]


FULL = Size(1000, (100, 1000), 100, 16, 5, processes.FULL, (1000, 4000))
QUICK = Size(6, (2, 3), 4, 3, 2, processes.QUICK, (4, 6))
