"""The complete Omniglot as learn2learn tasks, read from the two zip files of its author's repository.

learn2learn downloads the zip files, and torchvision checks their MD5. This module reads local copies, which may have
been packed again; it unpacks and writes nothing. Differences from
``learn2learn.vision.benchmarks.get_tasksets('omniglot')``, release 0.2.0:

- Training, validation and test tasks use different characters (``filter_labels``). learn2learn splits the characters in
  the same way but draws all tasks from all of them (vision/benchmarks/omniglot_benchmark.py, lines 43-61).
- Each character of a task is rotated by its own angle. learn2learn's ``RandomClassRotation`` rotates all of them by the
  angle of the last one (vision/transforms.py, lines 56-57).
- A label prints as the name of its character.
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
    """The folder that contains ``omniglot-py``: from the environment variable, or else beside the project.

    Raises:
        FileNotFoundError: the archives are not there; the message says which files are expected where.
    """
    named = os.environ.get(VARIABLE)
    root = Path(named).expanduser() if named else BESIDE_THE_PROJECT
    missing = [str(root / FOLDER / name) for name in ARCHIVES if not (root / FOLDER / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"Omniglot was not found: missing {' and '.join(missing)}. Set the environment variable {VARIABLE} to a "
            f"folder that contains {FOLDER}/{ARCHIVES[0]} and {FOLDER}/{ARCHIVES[1]}, the two archives in the folder "
            "python/ of the repository brendenlake/omniglot"
        )
    return root


class Character(int):
    """A class label: the number of a character in torchvision's order; prints as the name of the character."""

    name: str

    def __new__(cls, number: int, name: str) -> Character:
        character = super().__new__(cls, number)
        character.name = name
        return character

    def __str__(self) -> str:
        return self.name


class Omniglot(torch.utils.data.Dataset):
    """All 32,460 images, ``(1, 28, 28)`` floats with ink = 1; decoded at first use, cached at a byte per pixel."""

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
    """Training, validation and test tasks; characters are split at random, as in learn2learn."""
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
    """Task transform that rotates all images of a class by the same random multiple of 90 degrees."""

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
    """``(1, 28, 28)`` bytes, paper = 255; resized as in learn2learn."""
    with Image.open(io.BytesIO(png)) as image:
        return torch.from_numpy(np.array(image.convert("L").resize((28, 28), Image.Resampling.LANCZOS))).unsqueeze(0)


def _characters(paths: list[str]) -> list[Character]:
    """Label of each image, from its path ``<archive>/<alphabet>/character<NN>/<image>``."""
    numbers: dict[str, Character] = {}
    for folder in (path.rsplit("/", 1)[0] for path in paths):
        if folder not in numbers:
            _, alphabet, character = folder.split("/")
            numbers[folder] = Character(len(numbers), f"{alphabet}/{character.removeprefix('character')}")
    return [numbers[path.rsplit("/", 1)[0]] for path in paths]
