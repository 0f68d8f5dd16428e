"""The truth about removals: train again without the items, and see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ...errors import RetrainingError
from ...storage.outcomes import Cache, Outcome
from ..metrics import Floats
from .retraining import Failure, Job, Retrain, retrain_all

State = TypeVar("State")


@dataclass(frozen=True)
class Truth:
    """What removals did: S seeds, G removals, n items, T test tasks, P parameters.

    Attributes:
        removals: ``(G, n)``, the share of each item that a removal took away: 1 removed, 0 kept, −1 counted twice.
        seeds: of the retrainings, S of them.
        baseline: ``(S, T)``, losses of the test tasks after retraining with all items.
        change: ``(S, G, T)``, loss after retraining without what was removed minus ``baseline`` of the same seed;
            negative = the removal helped.
        moved: Δλ, ``(S, G, P)``, likewise the difference of two retrainings; None where they tell no parameters.
    """

    removals: Floats
    seeds: tuple[int, ...]
    baseline: Floats
    change: Floats
    moved: Floats | None

    @property
    def losses(self) -> Floats:
        """Loss of each test task after each removal, ``(S, G, T)``."""
        return self.baseline[:, None] + self.change

    @property
    def mean_change(self) -> Floats:
        """``change``, averaged over seeds, ``(G, T)``."""
        return np.asarray(self.change.mean(0))

    def predicted(self, scores: ArrayLike) -> Floats:
        """The change that influence scores (positive = harmful) predict: minus the sum over what is removed.

        Args:
            scores: ``(n,)`` for the mean test loss, or ``(n, T)`` for each test task.

        Returns:
            ``(G,)`` or ``(G, T)``.
        """
        return -(self.removals @ np.asarray(scores, dtype=np.float64))


def measure(
    retrain: Retrain,
    removals: ArrayLike,
    seeds: Sequence[int] = (0,),
    *,
    processes: int = 1,
    cache: str | Path | None = None,
    name: str = "",
    progress: bool | None = None,
) -> Truth:
    """Retrain without each of ``removals``, and with all items for comparison, once with each seed.

    The comparison takes out what training again does by itself. Before each retraining the random generators of Python,
    NumPy and torch are set to its seed, and torch computes in one thread, so that an outcome depends neither on how
    many processes there are nor on what ran before. In this process both are put back.

    Args:
        retrain: ``retrain(weights, seed) -> Outcome``; ``weights``, ``(n,)``, is 1 for an item that is kept and 0 for
            one that is removed. Each retraining gets an array of its own.
        removals: ``(G, n)``, flags, or shares of items that are taken away: item i has weight 1 − ``removals[g, i]``.
        seeds: of the retrainings, not negative.
        processes: how many run side by side. With more than one, ``retrain`` is pickled: it is a function of a module
            that can be imported, or an object of a class of one.
        cache: a folder, made if missing, that keeps every outcome as soon as it is there. A measurement that was cut
            off goes on where it was, and one that is asked for again reads what it finds.
        name: everything that ``retrain`` depends on beyond weights and seed (data, model, settings), in words of your
            own. Outcomes are found again by it, weights, seed, and the versions of torch and of this package.
        progress: show a bar; None for only on a terminal.

    Raises:
        RetrainingError: some retrainings failed. The others were done, and are in the error and in ``cache``.
        TypeError: ``retrain`` cannot be pickled.
        ValueError: ``removals`` is no matrix, ``seeds`` are none or not different, the cache has no ``name``, or
            outcomes are of different sizes.
    """
    taken, seeds = np.asarray(removals, dtype=np.float64), tuple(map(int, seeds))
    _check(taken, seeds, cache, name)
    kept = Cache(None if cache is None else Path(cache), name)
    jobs = [[Job(weights, seed) for weights in (np.ones(taken.shape[1]), *(1 - taken))] for seed in seeds]
    keys = [[kept.key(*job) for job in row] for row in jobs]
    wanted = {key: job for key_row, row in zip(keys, jobs, strict=True) for key, job in zip(key_row, row, strict=True)}
    found = retrain_all(retrain, wanted, kept, processes, progress)
    return _truth(taken, seeds, [[found[key] for key in row] for row in keys])


def along_path(optimise: Callable[[State, Floats], State], start: State, weights: Floats, steps: int = 1) -> State:
    """Warm-started retraining: weights go from 1 to ``weights`` in equal steps, and each step goes on from the last.

    A path stays in the basin that training ended in, as far as there is one; that is the removal that an influence
    function speaks of. With all weights 1 the same optimisation is done as often, for comparison.

    Args:
        optimise: ``optimise(state, weights) -> state``: train on from there with these weights of the items.
        start: where training with all items ended.
        weights: of the items at the end, ``(n,)``.
        steps: how many; 1 goes there at once.
    """
    state = start
    for share in np.linspace(0, 1, steps + 1)[1:]:
        state = optimise(state, 1 + share * (weights - 1))
    return state


def _check(removals: Floats, seeds: Sequence[int], cache: str | Path | None, name: str) -> None:
    if removals.ndim != 2 or 0 in removals.shape:
        raise ValueError(f"removals must be a matrix, a row each and a column for each item, not {removals.shape}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different, and at least one, not {list(seeds)}")
    if cache is not None and not name:
        raise ValueError("a cache needs a name that says what is retrained: data, model, settings")


def _truth(removals: Floats, seeds: tuple[int, ...], found: list[list[Outcome | Failure]]) -> Truth:
    """``found`` holds a row for each seed: the outcome with all items, then that of each removal.

    Raises:
        RetrainingError: a retraining failed.
    """
    failures = {
        (seed, column - 1 if column else None): outcome.reason
        for seed, row in zip(seeds, found, strict=True)
        for column, outcome in enumerate(row)
        if isinstance(outcome, Failure)
    }
    if not failures:
        return _compared(removals, seeds, found)
    failed = {removal for _, removal in failures}
    others = [removal for removal in range(len(removals)) if removal not in failed]
    if None in failed or not others:
        raise RetrainingError(failures, None)
    remaining = [[row[0], *(row[1 + removal] for removal in others)] for row in found]
    raise RetrainingError(failures, _compared(removals[others], seeds, remaining))


def _compared(removals: Floats, seeds: tuple[int, ...], found: Sequence[Sequence[Outcome | Failure]]) -> Truth:
    outcomes = [[outcome for outcome in row if isinstance(outcome, Outcome)] for row in found]
    _require_alike(outcomes)
    losses = np.stack([[outcome.losses for outcome in row] for row in outcomes])
    ends = [[outcome.parameters for outcome in row if outcome.parameters is not None] for row in outcomes]
    moved = _against_first(np.stack(ends)) if all(map(len, ends)) else None
    return Truth(removals, seeds, losses[:, 0], _against_first(losses), moved)


def _require_alike(outcomes: list[list[Outcome]]) -> None:
    sizes = {
        (len(outcome.losses), outcome.parameters is not None and len(outcome.parameters))
        for row in outcomes
        for outcome in row
    }
    if len(sizes) > 1:
        raise ValueError(
            f"retrainings gave different numbers of losses and of parameters, {sorted(sizes)}: take another name for "
            "the cache wherever test tasks or model have changed"
        )


def _against_first(values: Floats) -> Floats:
    return np.asarray(values[:, 1:] - values[:, :1])
