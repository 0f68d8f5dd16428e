"""Run retrainings in turn or in several processes, and cache each outcome as soon as it is computed."""

from __future__ import annotations

import pickle
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as cached
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


class RetrainingJob(NamedTuple):
    """One retraining to run: weights of the items ``(n,)``, and a seed."""

    weights: Floats
    seed: int


@dataclass(frozen=True)
class FailedRetraining:
    """A retraining without an outcome; ``reason`` is the traceback."""

    reason: str


def retrain_all(
    retrain: Retrain, jobs: Mapping[str, RetrainingJob], cache: Cache, processes: int, progress: bool | None
) -> dict[str, Outcome | FailedRetraining]:
    """Outcome of each job by its key: read from ``cache`` if it is there, otherwise retrained for and cached.

    Args:
        progress: show a progress bar; None = only on a terminal.
    """
    loaded = {key: cache.load(key) for key in jobs}
    done: dict[str, Outcome | FailedRetraining] = {key: found for key, found in loaded.items() if found is not None}
    missing = {key: job for key, job in jobs.items() if key not in done}
    hidden = None if progress is None else not progress
    run = _in_turn(retrain, missing, cache) if processes == 1 else _in_processes(retrain, missing, cache, processes)
    with tqdm(total=len(jobs), initial=len(done), desc="retraining", unit="run", disable=hidden) as bar:
        for key, outcome in run:
            done[key] = outcome
            bar.update()
    return done


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread. On small tensors several threads are slower, and they change how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_turn(
    retrain: Retrain, jobs: Mapping[str, RetrainingJob], cache: Cache
) -> Iterator[tuple[str, Outcome | FailedRetraining]]:
    for key, job in jobs.items():
        yield key, _attempt(retrain, key, job, cache)


def _attempt(retrain: Retrain, key: str, job: RetrainingJob, cache: Cache) -> Outcome | FailedRetraining:
    """Retrain with seeded random generators, and restore their states afterwards."""
    with random_state_kept(), one_thread():
        random.seed(job.seed)
        np.random.seed(job.seed)
        torch.manual_seed(job.seed)
        try:
            outcome = retrain(job.weights.copy(), job.seed)
        except Exception:
            return FailedRetraining(traceback.format_exc())
    cache.save(key, outcome)
    return outcome


# ---- in processes -------------------------------------------------------------------------------------------------


def _in_processes(
    retrain: Retrain, jobs: Mapping[str, RetrainingJob], cache: Cache, processes: int
) -> Iterator[tuple[str, Outcome | FailedRetraining]]:
    workers = min(processes, max(len(jobs), 1))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _receive, (_pickled(retrain),))
    try:
        running = {pool.submit(_attempt_in_worker, key, job, cache): key for key, job in jobs.items()}
        for future in as_completed(running):
            yield running[future], _outcome(future)
    finally:
        pool.shutdown(cancel_futures=True)


def _pickled(retrain: Retrain) -> bytes:
    """Pickled here, once: multiprocessing itself would move the tensors in it to shared memory."""
    try:
        return pickle.dumps(retrain)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            "with processes > 1, retrain is pickled: it must be a function defined in a module, or an instance of a "
            f"class defined in one, not a lambda or a nested function ({error}). Or use processes=1"
        ) from error


def _outcome(future: Future[Outcome | FailedRetraining]) -> Outcome | FailedRetraining:
    try:
        return future.result()
    except Exception:  # the process itself died
        return FailedRetraining(traceback.format_exc())


_received: dict[str, bytes] = {}
"""In a worker process: the pickled retraining."""


def _receive(pickled: bytes) -> None:
    _received["retrain"] = pickled


@cached
def _retrain_of_worker() -> Retrain:
    return pickle.loads(_received["retrain"])


def _attempt_in_worker(key: str, job: RetrainingJob, cache: Cache) -> Outcome | FailedRetraining:
    return _attempt(lambda weights, seed: _retrain_of_worker()(weights, seed), key, job, cache)
