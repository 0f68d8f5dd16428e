"""Retrainings, one after the other or side by side in processes, each kept as soon as it is there."""

from __future__ import annotations

import pickle
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ...recording.tasksets.reading import random_state_kept
from ...storage.outcomes import Cache, Outcome
from ..metrics import Floats

Retrain = Callable[[Floats, int], Outcome]
"""``retrain(weights of the items, seed) -> outcome``: weight 1 for an item that is kept, 0 for one that is removed."""


class Job(NamedTuple):
    """One retraining to do: weights of the items ``(n,)``, and a seed."""

    weights: Floats
    seed: int


@dataclass(frozen=True)
class Failure:
    """A retraining that gave no outcome, and the traceback that says why."""

    reason: str


def retrain_all(
    retrain: Retrain, jobs: Mapping[str, Job], kept: Cache, processes: int, progress: bool | None
) -> dict[str, Outcome | Failure]:
    """The outcome of each job, by its key in ``kept``: read where it is there, retrained for and kept where not.

    Args:
        progress: show a bar; None for only on a terminal.
    """
    found = {key: kept.load(key) for key in jobs}
    done: dict[str, Outcome | Failure] = {key: outcome for key, outcome in found.items() if outcome is not None}
    missing = {key: job for key, job in jobs.items() if key not in done}
    hidden = None if progress is None else not progress
    run = _in_turn(retrain, missing, kept) if processes == 1 else _in_processes(retrain, missing, kept, processes)
    with tqdm(total=len(jobs), initial=len(done), desc="retraining", unit="run", disable=hidden) as bar:
        for key, outcome in run:
            done[key] = outcome
            bar.update()
    return done


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than they give on small tensors, and change how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_turn(retrain: Retrain, jobs: Mapping[str, Job], kept: Cache) -> Iterator[tuple[str, Outcome | Failure]]:
    for key, job in jobs.items():
        yield key, _attempt(retrain, key, job, kept)


def _attempt(retrain: Retrain, key: str, job: Job, kept: Cache) -> Outcome | Failure:
    """Retrain from known random states, and leave everything else as it was."""
    with random_state_kept(), one_thread():
        random.seed(job.seed)
        np.random.seed(job.seed)
        torch.manual_seed(job.seed)
        try:
            outcome = retrain(job.weights.copy(), job.seed)
        except Exception:
            return Failure(traceback.format_exc())
    kept.save(key, outcome)
    return outcome


# ---- in processes -------------------------------------------------------------------------------------------------


def _in_processes(
    retrain: Retrain, jobs: Mapping[str, Job], kept: Cache, processes: int
) -> Iterator[tuple[str, Outcome | Failure]]:
    pool = ProcessPoolExecutor(min(processes, max(len(jobs), 1)), get_context("spawn"), _receive, (_sent(retrain),))
    try:
        running = {pool.submit(_attempt_there, key, job, kept): key for key, job in jobs.items()}
        for future in as_completed(running):
            yield running[future], _outcome(future)
    finally:
        pool.shutdown(cancel_futures=True)


def _sent(retrain: Retrain) -> bytes:
    """By pickle itself, once: what multiprocessing makes of tensors is shared memory."""
    try:
        return pickle.dumps(retrain)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            "other processes need a retraining that can be pickled: a function of a module, or an object of a class of "
            f"one, not a lambda or a function within another ({error}). Or take processes=1."
        ) from error


def _outcome(future: Future[Outcome | Failure]) -> Outcome | Failure:
    try:
        return future.result()
    except Exception:  # the process itself died
        return Failure(traceback.format_exc())


_received: dict[str, bytes] = {}
"""In a process of the pool: the pickled retraining."""


def _receive(sent: bytes) -> None:
    _received["retrain"] = sent


@cache
def _retrain_there() -> Retrain:
    return pickle.loads(_received["retrain"])


def _attempt_there(key: str, job: Job, kept: Cache) -> Outcome | Failure:
    return _attempt(lambda weights, seed: _retrain_there()(weights, seed), key, job, kept)
