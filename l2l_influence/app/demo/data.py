"""Few-shot tasks of handwritten digits, a fifth of them with wrong labels, made with learn2learn's tasksets."""

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

Rows = list[Any]  # learn2learn's task description: one DataDescription for each sample


@dataclass(frozen=True)
class Digits:
    """The demo's tasks.

    Attributes:
        train: training tasks, one for each combination of five digits out of ten.
        test: correct tasks on held-out images.
        wrong: indices of the training tasks whose query labels are wrong.
    """

    train: l2l.data.Taskset
    test: l2l.data.Taskset
    wrong: frozenset[int]


class EachCombination:
    """Task transform that starts a task: like ``FusedNWaysKShots``, but goes through given combinations of classes."""

    def __init__(self, dataset: l2l.data.MetaDataset, combos: Iterable[Sequence[int]]) -> None:
        self._tasks = (FusedNWaysKShots(dataset, WAYS, 2 * SHOTS, filter_labels=list(combo)) for combo in combos)

    def __call__(self, description: Rows | None) -> Rows:
        rows: Rows = next(self._tasks)(description)
        return rows


class WrongQueryLabels:
    """Task transform that gives every query row of some tasks the label of another class.

    Support and query set then contradict each other, so a learner that adapts well gets a high query loss. (Permuting
    the labels of both sets in the same way would be no error, because labels of few-shot tasks are arbitrary.)

    Args:
        wrong: for one task after the other, True if its labels shall be wrong.
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
    """Flags of the support rows of a batch: every other one, as in learn2learn's examples; the rest are queries."""
    return torch.arange(2 * SHOTS * WAYS) % 2 == 0


def digits(wrong_share: float = 0.2, test_tasks: int = 100) -> Digits:
    """Make training and test tasks, with Python's and NumPy's global random generators, as learn2learn does."""
    train_images, test_images = _images()
    combos = list(combinations(range(10), WAYS))
    wrong = frozenset(random.sample(range(len(combos)), round(wrong_share * len(combos))))
    spoil = WrongQueryLabels(task in wrong for task in range(len(combos)))
    return Digits(
        _taskset(train_images, combos, [spoil]), _taskset(test_images, random.sample(combos, test_tasks), []), wrong
    )


def _images() -> tuple[l2l.data.MetaDataset, l2l.data.MetaDataset]:
    """scikit-learn's 1,797 scanned digits of 8×8 pixels, standardised: training images, and the last third held out."""
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
        taskset[task]  # learn2learn composes a task when it is first used; this fixes the order
    return taskset


def without(taskset: l2l.data.Taskset, removed: Iterable[int]) -> l2l.data.Taskset:
    """A taskset with the same tasks, except those removed."""
    gone = set(removed)
    kept = [task for task in range(len(taskset)) if task not in gone]
    rest = l2l.data.Taskset(taskset.dataset, taskset.task_transforms, num_tasks=len(kept))
    rest.sampled_descriptions = {new: taskset.sampled_descriptions[old] for new, old in enumerate(kept)}
    return rest
