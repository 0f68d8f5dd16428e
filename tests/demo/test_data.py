"""Tasks of the demo: each combination once, with wrong labels exactly where they are announced."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from l2l_influence.app.demo.data import SHOTS, WAYS, Digits, digits, support_rows, without


@pytest.fixture(scope="module")
def made() -> Digits:
    random.seed(1)
    np.random.seed(1)
    return digits(test_tasks=8)


def rows_of(taskset: object, task: int) -> tuple[Tensor, Tensor]:
    """The data set's labels and the task's labels, row by row."""
    description = taskset.sampled_descriptions[task]
    classes = torch.tensor([int(taskset.dataset[row.index][1]) for row in description])
    return classes, torch.as_tensor(taskset[task][1])


def meaning(classes: Tensor, labels: Tensor) -> dict[int, set[int]]:
    """The digits that have each label."""
    return {label: set(classes[labels == label].tolist()) for label in range(WAYS)}


def test_each_combination_of_five_digits_is_a_task(made: Digits) -> None:
    found = [tuple(sorted(set(rows_of(made.train, task)[0].tolist()))) for task in range(len(made.train))]
    assert found == list(combinations(range(10), WAYS))


def test_a_task_has_as_many_support_as_query_images_a_digit(made: Digits) -> None:
    support = support_rows()
    for task in (0, 100, 251):
        classes, _ = rows_of(made.train, task)
        for rows in (support, ~support):
            assert classes[rows].bincount().max() == SHOTS and len(classes[rows]) == WAYS * SHOTS


def test_labels_contradict_each_other_in_wrong_tasks_and_only_there(made: Digits) -> None:
    support = support_rows()
    assert len(made.wrong) == 50
    for task in range(len(made.train)):
        classes, labels = rows_of(made.train, task)
        adapted, asked = meaning(classes[support], labels[support]), meaning(classes[~support], labels[~support])
        assert all(len(digit) == 1 for digit in [*adapted.values(), *asked.values()])
        agreeing = sum(adapted[label] == asked[label] for label in range(WAYS))
        assert agreeing == (0 if task in made.wrong else WAYS)


def test_labels_are_names_without_meaning(made: Digits) -> None:
    orders = {tuple(meaning(*rows_of(made.train, task))[0]) for task in range(20) if task not in made.wrong}
    assert len(orders) > 3


def test_test_tasks_are_clean_and_on_other_images(made: Digits) -> None:
    known = {tuple(image.tolist()) for image, _ in made.train.dataset}
    for task in range(len(made.test)):
        assert all(len(digit) == 1 for digit in meaning(*rows_of(made.test, task)).values())
        assert not known & {tuple(image.tolist()) for image in made.test[task][0]}


def test_without_keeps_the_other_tasks_as_they_are(made: Digits) -> None:
    rest = without(made.train, [0, 2])
    assert len(rest) == 250
    for new, old in ((0, 1), (1, 3), (249, 251)):
        for left, right in zip(rest[new], made.train[old], strict=True):
            assert torch.equal(left, right)
