"""The complete Omniglot as learn2learn tasks, read straight from the two zips of its author's repository.

learn2learn downloads the zips and has torchvision check their MD5. Here they are found on the machine, may have been
packed again, and are only read: nothing is unpacked and nothing is written. Differences from
``learn2learn.vision.benchmarks.get_tasksets('omniglot')``, release 0.2.0:

- Training, validation and test tasks draw from different characters (``filter_labels``). learn2learn splits the
  characters likewise but draws all tasks from all of them (vision/benchmarks/omniglot_benchmark.py, lines 43-61).
- Each character of a task has a rotation of its own. learn2learn's ``RandomClassRotation`` gives all of them that of
  the last one (vision/transforms.py, lines 56-57).
- A label says its character's name when printed.
"""

from __future__ import annotations

import io
import os
import random
import zipfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import learn2learn as l2l
import numpy as np
import torch
from PIL import Image
from torch import Tensor

VARIABLE = "L2L_INFLUENCE_DATA"
FOLDER = "omniglot-py"
ARCHIVES = ("images_background.zip", "images_evaluation.zip")
BESIDE_THE_PROJECT = Path(__file__).resolve().parents[2] / "shared" / "data"
TRAINING, VALIDATION = 1100, 100  # of 1,623 characters; the rest are for testing


class Tasksets(NamedTuple):
    """As learn2learn's benchmarks return them."""

    train: l2l.data.Taskset
    validation: l2l.data.Taskset
    test: l2l.data.Taskset


def find_data() -> Path:
    """The folder that holds ``omniglot-py``: the one that the environment variable names, or one beside the project.

    Raises:
        FileNotFoundError: it is not there; the message says what is expected where.
    """
    named = os.environ.get(VARIABLE)
    root = Path(named).expanduser() if named else BESIDE_THE_PROJECT
    missing = [str(root / FOLDER / name) for name in ARCHIVES if not (root / FOLDER / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"Omniglot was not found: there is no {' and no '.join(missing)}. Set the environment variable {VARIABLE} "
            f"to a folder that holds {FOLDER}/{ARCHIVES[0]} and {FOLDER}/{ARCHIVES[1]}, the two archives under python/ "
            "in the repository brendenlake/omniglot"
        )
    return root


class Character(int):
    """A class label: the character's number, in torchvision's order, that prints as its name."""

    name: str

    def __new__(cls, number: int, name: str) -> Character:
        character = super().__new__(cls, number)
        character.name = name
        return character

    def __str__(self) -> str:
        return self.name


class Omniglot(torch.utils.data.Dataset):
    """All 32,460 images, ``(1, 28, 28)`` floats with ink = 1, decoded when first asked for and kept, a byte a pixel."""

    def __init__(self, root: Path) -> None:
        self._archives = [zipfile.ZipFile(root / FOLDER / name) for name in ARCHIVES]
        self._images = [
            (archive, name)
            for archive in self._archives
            for name in sorted(archive.namelist())
            if name.endswith(".png")
        ]
        self._labels = _characters([name for _, name in self._images])
        self._decoded: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Character]:
        if index not in self._decoded:
            archive, name = self._images[index]
            self._decoded[index] = _decode(archive.read(name))
        return 1.0 - self._decoded[index].float().div(255), self._labels[index]

    @property
    def labels(self) -> dict[int, Character]:
        """The label of each image."""
        return dict(enumerate(self._labels))


def get_tasksets(
    root: Path, train_ways: int, train_samples: int, test_ways: int, test_samples: int, num_tasks: int
) -> Tasksets:
    """Training, validation and test tasks, from characters split at random as learn2learn does."""
    omniglot = Omniglot(root)
    dataset = l2l.data.MetaDataset(omniglot, indices_to_labels=omniglot.labels)
    classes = list(dataset.labels)
    random.shuffle(classes)
    ends = TRAINING, TRAINING + VALIDATION
    train, validation, test = classes[: ends[0]], classes[ends[0] : ends[1]], classes[ends[1] :]
    return Tasksets(
        l2l.data.Taskset(dataset, _transforms(dataset, train, train_ways, train_samples), num_tasks),
        l2l.data.Taskset(dataset, _transforms(dataset, validation, test_ways, test_samples), num_tasks),
        l2l.data.Taskset(dataset, _transforms(dataset, test, test_ways, test_samples), num_tasks),
    )


def _transforms(dataset: l2l.data.MetaDataset, classes: list[Character], ways: int, samples: int) -> list:
    return [
        l2l.data.transforms.FusedNWaysKShots(dataset, n=ways, k=samples, filter_labels=classes),
        l2l.data.transforms.LoadData(dataset),
        l2l.data.transforms.RemapLabels(dataset),
        l2l.data.transforms.ConsecutiveLabels(dataset),
        RotatedClasses(dataset),
    ]


class RotatedClasses:
    """A task transform that turns all images of a class by the same random multiple of 90 degrees."""

    def __init__(self, dataset: l2l.data.MetaDataset) -> None:
        self._label_of = dataset.indices_to_labels

    def __call__(self, description: list) -> list:
        turns: dict[int, int] = {}
        for sample in description:
            label = self._label_of[sample.index]
            if label not in turns:
                turns[label] = random.choice([0, 1, 2, 3])
            sample.transforms.append(partial(_turn, turns[label]))
        return description


def _turn(quarters: int, sample: tuple) -> tuple:
    return torch.rot90(sample[0], quarters, (-2, -1)), sample[1]


def _decode(png: bytes) -> Tensor:
    """``(1, 28, 28)`` bytes, paper = 255, made smaller as learn2learn does."""
    with Image.open(io.BytesIO(png)) as image:
        return torch.from_numpy(np.array(image.convert("L").resize((28, 28), Image.Resampling.LANCZOS))).unsqueeze(0)


def _characters(paths: list[str]) -> list[Character]:
    """The label of each image from its path, ``<archive>/<alphabet>/character<NN>/<image>``."""
    numbers: dict[str, Character] = {}
    for folder in (path.rsplit("/", 1)[0] for path in paths):
        if folder not in numbers:
            _, alphabet, character = folder.split("/")
            numbers[folder] = Character(len(numbers), f"{alphabet}/{character.removeprefix('character')}")
    return [numbers[path.rsplit("/", 1)[0]] for path in paths]
