"""Handwritten digits as few-shot tasks, a fifth of them with wrong labels: learn2learn's tasksets and transforms."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import learn2learn as l2l
import numpy as np
import torch
from learn2learn.data.transforms import FusedNWaysKShots, LoadData, RemapLabels
from torch import Tensor
from torch.utils.data import TensorDataset

WAYS, SHOTS = 5, 5
TRAINING_IMAGES = 1200

Rows = list[Any]  # learn2learn's task description: one DataDescription a sample


@dataclass(frozen=True)
class Digits:
    """The demo's tasks.

    Attributes:
        train: training tasks, one for each choice of five digits out of ten.
        test: clean tasks on held-out images.
        wrong: indices of the training tasks whose query labels are wrong.
    """

    train: l2l.data.Taskset
    test: l2l.data.Taskset
    wrong: frozenset[int]


class EachCombination:
    """Task transform that starts a task: like ``FusedNWaysKShots``, but one combination of classes after the other."""

    def __init__(self, dataset: l2l.data.MetaDataset, combos: Iterable[Sequence[int]]) -> None:
        self._tasks = (FusedNWaysKShots(dataset, WAYS, 2 * SHOTS, filter_labels=list(combo)) for combo in combos)

    def __call__(self, description: Rows | None) -> Rows:
        rows: Rows = next(self._tasks)(description)
        return rows


class WrongQueryLabels:
    """Task transform that gives every query row of some tasks the label of another class.

    Support and query then contradict each other: a learner that adapted well is told that it is wrong. (Labels
    permuted in support and query alike would be no error: in few-shot tasks labels are names without meaning.)

    Args:
        wrong: for one task after the other, whether its labels are to be wrong.
    """

    def __init__(self, wrong: Iterable[bool]) -> None:
        self._wrong = iter(wrong)

    def __call__(self, description: Rows) -> Rows:
        if next(self._wrong):
            for row in description[1::2]:
                row.transforms.append(_another_label)
        return description


def _another_label(sample: Sequence[Any]) -> list[Any]:
    image, label = sample
    return [image, (label + 1) % WAYS]


def support_rows() -> Tensor:
    """Which rows of a batch are for adaptation: every other one, as in learn2learn's examples; the rest are queries."""
    return torch.arange(2 * SHOTS * WAYS) % 2 == 0


def digits(wrong_share: float = 0.2, test_tasks: int = 100) -> Digits:
    """Training and test tasks; draws from Python's and NumPy's random numbers, as learn2learn does."""
    train_images, test_images = _images()
    combos = list(combinations(range(10), WAYS))
    wrong = frozenset(random.sample(range(len(combos)), round(wrong_share * len(combos))))
    spoil = WrongQueryLabels(task in wrong for task in range(len(combos)))
    return Digits(
        _taskset(train_images, combos, [spoil]), _taskset(test_images, random.sample(combos, test_tasks), []), wrong
    )


def _images() -> tuple[l2l.data.MetaDataset, l2l.data.MetaDataset]:
    """scikit-learn's 1,797 scanned digits, 8×8 pixels, standardised; the last third is held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.permutation(len(bunch.target))
    x = torch.as_tensor(bunch.data[order], dtype=torch.float32)
    y = torch.as_tensor(bunch.target[order])
    known = x[:TRAINING_IMAGES]
    x = (x - known.mean()) / known.std()
    parts = (slice(None, TRAINING_IMAGES), slice(TRAINING_IMAGES, None))
    first, rest = (l2l.data.MetaDataset(TensorDataset(x[part], y[part])) for part in parts)
    return first, rest


def _taskset(dataset: l2l.data.MetaDataset, combos: Sequence[Sequence[int]], more: list[Any]) -> l2l.data.Taskset:
    transforms = [EachCombination(dataset, combos), LoadData(dataset), RemapLabels(dataset), *more]
    taskset = l2l.data.Taskset(dataset, transforms, num_tasks=len(combos))
    for task in range(len(taskset)):
        taskset[task]  # learn2learn composes a task when it is first asked for: here in order
    return taskset


def without(taskset: l2l.data.Taskset, removed: Iterable[int]) -> l2l.data.Taskset:
    """The same tasks, less some."""
    gone = set(removed)
    kept = [task for task in range(len(taskset)) if task not in gone]
    rest = l2l.data.Taskset(taskset.dataset, taskset.task_transforms, num_tasks=len(kept))
    rest.sampled_descriptions = {new: taskset.sampled_descriptions[old] for new, old in enumerate(kept)}
    return rest
