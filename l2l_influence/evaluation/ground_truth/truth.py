"""The ground truth of removals: train again without the items and compare."""

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
from .retraining import FailedRetraining, Retrain, RetrainingJob, retrain_all

State = TypeVar("State")


@dataclass(frozen=True)
class GroundTruth:
    """Measured effects of removals, as :func:`measure` returns them.

    Sizes: S seeds, G removals, n items, T test tasks, P parameters.

    Attributes:
        removals: ``(G, n)``, the share of each item that a removal takes away: 1 = removed, 0 = kept, −1 = counted
            twice.
        seeds: the S seeds of the retrainings.
        baseline: ``(S, T)``, losses of the test tasks after retraining with all items.
        change: ``(S, G, T)``, loss after retraining without the removed items minus ``baseline`` of the same seed;
            negative = the removal helped.
        parameter_change: Δλ, ``(S, G, P)``, likewise the difference of two retrainings; None if the retrainings return
            no parameters.
    """

    removals: Floats
    seeds: tuple[int, ...]
    baseline: Floats
    change: Floats
    parameter_change: Floats | None

    @property
    def losses(self) -> Floats:
        """Loss of each test task after each removal, ``(S, G, T)``."""
        return self.baseline[:, None] + self.change

    @property
    def mean_change(self) -> Floats:
        """``change``, averaged over seeds, ``(G, T)``."""
        return np.asarray(self.change.mean(0))

    def predicted(self, scores: ArrayLike) -> Floats:
        """Change of the loss that influence scores predict: minus the sum of the scores of the removed items.

        Args:
            scores: ``(n,)`` for the mean test loss, or ``(n, T)`` for each test task; positive = harmful.

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
) -> GroundTruth:
    """Measure the effect of each removal: retrain without it and with all items, once for each seed.

    The difference of the two cancels what retraining changes by itself. Before each retraining the random generators
    of Python, NumPy and torch are set to its seed, and torch computes in one thread; so an outcome depends neither on
    the number of processes nor on what ran before. Generators and thread count of this process are restored afterwards.

    To resume an interrupted measurement, call again with the same ``cache`` and ``name``: finished retrainings are read
    from the cache.

    Args:
        retrain: ``retrain(weights, seed) -> Outcome``. ``weights``, ``(n,)``, is 1 for an item that is kept and 0 for
            one that is removed. Each retraining receives its own copy of the array.
        removals: ``(G, n)``, flags, or the shares of the items that are taken away: item i has weight
            1 − ``removals[g, i]``.
        seeds: non-negative and different.
        processes: number of retrainings that run at the same time. If more than one, ``retrain`` is pickled: it must be
            a function defined in an importable module, or an instance of a class defined in one.
        cache: a folder, created if missing, that stores each outcome as soon as it is computed.
        name: describes everything that ``retrain`` depends on besides weights and seed (data, model, settings).
            Cached outcomes are found by this name, weights, seed, and the versions of torch and of this package.
        progress: show a progress bar; None = only on a terminal.

    Raises:
        RetrainingError: some retrainings failed. The others were completed; they are in the error and in ``cache``.
        TypeError: ``retrain`` cannot be pickled.
        ValueError: ``removals`` is not a matrix, ``seeds`` is empty or has duplicates, the cache has no ``name``, or
            outcomes differ in size.

    Example: each item contributes a known amount to the loss of the only test task.

        >>> import numpy as np
        >>> from l2l_influence.evaluation import Outcome, leave_one_out, measure
        >>> contributions = np.array([0.5, -0.25, 1.0])
        >>> def retrain(weights, seed):
        ...     return Outcome(losses=np.array([weights @ contributions]))
        >>> truth = measure(retrain, leave_one_out(3), progress=False)
        >>> truth.change[0, :, 0].tolist()
        [-0.5, 0.25, -1.0]
        >>> truth.predicted(contributions).tolist()
        [-0.5, 0.25, -1.0]
    """
    taken, seeds = np.asarray(removals, dtype=np.float64), tuple(map(int, seeds))
    _check(taken, seeds, cache, name)
    store = Cache(None if cache is None else Path(cache), name)
    jobs = [[RetrainingJob(weights, seed) for weights in (np.ones(taken.shape[1]), *(1 - taken))] for seed in seeds]
    keys = [[store.key(*job) for job in row] for row in jobs]
    wanted = {key: job for key_row, row in zip(keys, jobs, strict=True) for key, job in zip(key_row, row, strict=True)}
    outcomes = retrain_all(retrain, wanted, store, processes, progress)
    return _ground_truth(taken, seeds, [[outcomes[key] for key in row] for row in keys])


def along_path(optimise: Callable[[State, Floats], State], start: State, weights: Floats, steps: int = 1) -> State:
    """Warm-started retraining: move the weights from 1 to ``weights`` in equal steps, re-optimising after each.

    Each optimisation starts from the result of the previous one, so the path stays in the basin where training ended
    (if there is one). This is the removal that an influence function predicts. For the baseline, call with all weights
    1: the same number of optimisations is done.

    Args:
        optimise: ``optimise(state, weights) -> state``: continue training from a state, with these weights of the
            items.
        start: the state in which training with all items ended.
        weights: of the items at the end of the path, ``(n,)``.
        steps: number of steps; 1 goes to ``weights`` at once.

    Example:

        >>> import numpy as np
        >>> from l2l_influence.evaluation import along_path
        >>> along_path(lambda path, weights: [*path, weights.tolist()], [], np.array([0.0, 1.0]), steps=2)
        [[0.5, 1.0], [0.0, 1.0]]
    """
    state = start
    for share in np.linspace(0, 1, steps + 1)[1:]:
        state = optimise(state, 1 + share * (weights - 1))
    return state


def _check(removals: Floats, seeds: Sequence[int], cache: str | Path | None, name: str) -> None:
    if removals.ndim != 2 or 0 in removals.shape:
        raise ValueError(
            f"removals must be a matrix with a row for each removal and a column for each item; got shape "
            f"{removals.shape}"
        )
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different, and at least one; got {list(seeds)}")
    if cache is not None and not name:
        raise ValueError("a cache needs a name: pass name= with the data, model and settings that retrain depends on")


def _ground_truth(
    removals: Floats, seeds: tuple[int, ...], outcomes: list[list[Outcome | FailedRetraining]]
) -> GroundTruth:
    """``outcomes`` has a row for each seed: the outcome with all items, then that of each removal.

    Raises:
        RetrainingError: a retraining failed.
    """
    failures = {
        (seed, column - 1 if column else None): outcome.reason
        for seed, row in zip(seeds, outcomes, strict=True)
        for column, outcome in enumerate(row)
        if isinstance(outcome, FailedRetraining)
    }
    if not failures:
        return _compared(removals, seeds, outcomes)
    failed = {removal for _, removal in failures}
    others = [removal for removal in range(len(removals)) if removal not in failed]
    if None in failed or not others:
        raise RetrainingError(failures, None)
    remaining = [[row[0], *(row[1 + removal] for removal in others)] for row in outcomes]
    raise RetrainingError(failures, _compared(removals[others], seeds, remaining))


def _compared(
    removals: Floats, seeds: tuple[int, ...], results: Sequence[Sequence[Outcome | FailedRetraining]]
) -> GroundTruth:
    outcomes = [[outcome for outcome in row if isinstance(outcome, Outcome)] for row in results]
    _require_equal_sizes(outcomes)
    losses = np.stack([[outcome.losses for outcome in row] for row in outcomes])
    ends = [[outcome.parameters for outcome in row if outcome.parameters is not None] for row in outcomes]
    parameter_change = _minus_baseline(np.stack(ends)) if all(map(len, ends)) else None
    return GroundTruth(removals, seeds, losses[:, 0], _minus_baseline(losses), parameter_change)


def _require_equal_sizes(outcomes: list[list[Outcome]]) -> None:
    sizes = {
        (len(outcome.losses), outcome.parameters is not None and len(outcome.parameters))
        for row in outcomes
        for outcome in row
    }
    if len(sizes) > 1:
        raise ValueError(
            f"retrainings returned different numbers of losses and parameters, {sorted(sizes)}. If test tasks or model "
            "have changed, use another name for the cache"
        )


def _minus_baseline(values: Floats) -> Floats:
    return np.asarray(values[:, 1:] - values[:, :1])
