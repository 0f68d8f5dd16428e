"""The reader of Omniglot: the same images as learn2learn's pipeline, tasks from disjoint characters."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import omniglot_data
import pytest
import torch
from omniglot_data import Omniglot
from PIL import Image
from torchvision import transforms


@pytest.fixture(scope="module")
def omniglot(omniglot_root: Path) -> Omniglot:
    return Omniglot(omniglot_root)


@pytest.fixture
def tasksets(omniglot_root: Path) -> omniglot_data.Tasksets:
    random.seed(0)
    return omniglot_data.get_tasksets(omniglot_root, 5, 2, 4, 6, num_tasks=50)


def test_it_is_the_complete_data_set(omniglot: Omniglot) -> None:
    assert len(omniglot) == 32_460
    assert set(Counter(omniglot.labels.values()).values()) == {20}
    assert sorted(set(omniglot.labels.values())) == list(range(1623))


def test_labels_are_torchvisions_and_print_as_names(omniglot: Omniglot) -> None:
    # Alphabets and their characters in sorted order, those of the evaluation archive after the others.
    assert [str(omniglot[i][1]) for i in (0, 20, 963 * 20, 964 * 20)] == [
        "Alphabet_of_the_Magi/01",
        "Alphabet_of_the_Magi/02",
        "Tifinagh/55",
        "Angelic/01",
    ]
    assert omniglot[964 * 20][1] == 964


def test_images_are_those_of_learn2learns_transforms(omniglot: Omniglot) -> None:
    theirs = transforms.Compose(
        [transforms.Resize(28, interpolation=Image.LANCZOS), transforms.ToTensor(), lambda x: 1.0 - x]
    )
    for index in (0, 19_279, 19_280, 32_459):
        archive, name = omniglot._images[index]
        with archive.open(name) as file, Image.open(file) as image:
            assert torch.equal(omniglot[index][0], theirs(image.convert("L")))
        assert 0.02 < omniglot[index][0].mean() < 0.5  # ink is 1, and there is less of it than of paper


def test_training_validation_and_test_share_no_character(tasksets: omniglot_data.Tasksets) -> None:
    drawn = [characters_of(taskset) for taskset in tasksets]
    assert all(len(characters) > 80 for characters in drawn)
    assert not drawn[0] & drawn[1] and not drawn[0] & drawn[2] and not drawn[1] & drawn[2]


def test_tasks_have_consecutive_labels_and_the_shape_asked_for(tasksets: omniglot_data.Tasksets) -> None:
    x, y = tasksets.test[0]
    assert x.shape == (24, 1, 28, 28) and x.dtype == torch.float32
    assert sorted(y.tolist()) == sorted(list(range(4)) * 6)
    assert all(len(set(labels.tolist())) == 1 for labels in y.split(6))


def test_classes_are_rotated_each_by_an_angle_of_its_own(tasksets: omniglot_data.Tasksets) -> None:
    dataset, mixed = tasksets.test.dataset, 0
    for i in range(10):
        x, _ = tasksets.test[i]
        plain = [dataset[sample.index][0] for sample in tasksets.test.sampled_descriptions[i]]
        turns = [
            {k for k in range(4) if all(torch.equal(x[row], torch.rot90(plain[row], k, (-2, -1))) for row in rows)}
            for rows in (range(start, start + 6) for start in range(0, 24, 6))
        ]
        assert all(turns)  # one angle fits all images of a class
        mixed += len(set(map(frozenset, turns))) > 1
    assert mixed > 5


def test_a_missing_folder_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(omniglot_data.VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="L2L_INFLUENCE_DATA.*images_evaluation.zip"):
        omniglot_data.find_data()


def characters_of(taskset: omniglot_data.l2l.data.Taskset) -> set[int]:
    for i in range(len(taskset)):
        _ = taskset[i]
    labels = taskset.dataset.indices_to_labels
    return {labels[sample.index] for description in taskset.sampled_descriptions.values() for sample in description}
