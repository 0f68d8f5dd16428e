"""Few-shot tasks from images: handwritten digits, MNIST, Omniglot; some of them with wrong query labels."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..estimators.worlds import Stacked

WAYS = 5
EXAMPLES = Path(__file__).parents[2] / "examples"


class Images(NamedTuple):
    """Images by class: of class c there are ``[n_c, …]``."""

    train: Sequence[Tensor]
    test: Sequence[Tensor]


class MissingDataError(Exception):
    """A world's data are not on this machine; the message says what is expected where."""


@dataclass(frozen=True)
class Drawn:
    """Training tasks, those of them whose query labels are wrong, and clean test tasks on other images."""

    train: Stacked
    wrong: tuple[int, ...]
    test: Stacked


def draw(images: Images, tasks: int, tests: int, shots: int, queries: int, wrong_share: float, seed: int) -> Drawn:
    """Tasks of ``WAYS`` classes; in a share of the training tasks each query image has the next class's label."""
    generator = torch.Generator().manual_seed(seed)
    train = _episodes(images.train, tasks, shots, queries, generator)
    wrong = torch.randperm(tasks, generator=generator)[: round(wrong_share * tasks)].sort().values
    labels = train.query_y.clone()
    labels[wrong] = (labels[wrong] + 1) % WAYS
    test = _episodes(images.test, tests, shots, queries, generator)
    return Drawn(replace(train, query_y=labels), tuple(wrong.tolist()), test)


def _episodes(classes: Sequence[Tensor], count: int, shots: int, queries: int, generator: torch.Generator) -> Stacked:
    support, query = [], []
    for _ in range(count):
        chosen = torch.randperm(len(classes), generator=generator)[:WAYS].tolist()
        drawn = [_some(classes[which], shots + queries, generator) for which in chosen]
        support.append(torch.cat([images[:shots] for images in drawn]))
        query.append(torch.cat([images[shots:] for images in drawn]))
    names = torch.arange(WAYS)
    labels = [names.repeat_interleave(each).expand(count, -1) for each in (shots, queries)]
    return Stacked(torch.stack(support), labels[0], torch.stack(query), labels[1])


def _some(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return images[torch.randperm(len(images), generator=generator)[:count]]


# ---- images -------------------------------------------------------------------------------------------------------


@cache
def digits() -> Images:
    """scikit-learn's 1,797 scanned digits, 64 pixels, standardised; the last third is held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    x, y = torch.as_tensor(bunch.data[order], dtype=torch.float32), torch.as_tensor(bunch.target[order])
    known = 1200
    x = (x - x[:known].mean()) / x[:known].std()
    return Images(_by_class(x[:known], y[:known]), _by_class(x[known:], y[known:]))


@cache
def mnist() -> Images:
    """MNIST's first 6,000 training and 2,000 test images, standardised.

    Raises:
        MissingDataError: they are not there.
    """
    folder = _root() / "MNIST" / "raw"
    parts = [
        (_idx(folder / f"{name}-images-idx3-ubyte.gz"), _idx(folder / f"{name}-labels-idx1-ubyte.gz"))
        for name in ("train", "t10k")
    ]
    (x, y), (x_test, y_test) = [
        (torch.as_tensor(x[:many]).float().div(255).unsqueeze(1), torch.as_tensor(y[:many]))
        for (x, y), many in zip(parts, (6000, 2000), strict=True)
    ]
    mean, scale = x.mean(), x.std()
    return Images(_by_class((x - mean) / scale, y), _by_class((x_test - mean) / scale, y_test))


@cache
def omniglot() -> Images:
    """Omniglot's characters: 1,100 to train on and 423 others to test on, each in a rotation of its own.

    Raises:
        MissingDataError: the archives are not there.
    """
    characters = _Characters(_example("omniglot_data").Omniglot(_root()))
    order = torch.randperm(len(characters), generator=torch.Generator().manual_seed(0)).tolist()
    return Images(characters.some(order[:1100]), characters.some(order[1200:]))


class _Characters(Sequence[Tensor]):
    """The images of each character, ``[20, 1, 28, 28]``, decoded when asked for."""

    def __init__(self, data: Any, chosen: Sequence[int] | None = None) -> None:
        self._data = data
        self._rows: dict[int, list[int]] = {}
        for row, label in data.labels.items():
            self._rows.setdefault(int(label), []).append(row)
        self._chosen = list(self._rows) if chosen is None else list(chosen)

    def some(self, chosen: Sequence[int]) -> _Characters:
        return _Characters(self._data, chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, position: Any) -> Any:
        character = self._chosen[position]
        images = torch.stack([self._data[row][0] for row in self._rows[character]])
        return torch.rot90(images, character % 4, (-2, -1))


def _by_class(x: Tensor, y: Tensor) -> list[Tensor]:
    return [x[y == label] for label in y.unique()]


def _idx(path: Path) -> np.ndarray:
    """Yann LeCun's format: a magic number that tells the dimensions, their sizes, bytes."""
    if not path.is_file():
        raise MissingDataError(f"MNIST was not found: there is no {path}")
    with gzip.open(path) as file:
        data = file.read()
    start = 4 + 4 * data[3]
    return np.frombuffer(data, np.uint8, offset=start).reshape(np.frombuffer(data[4:start], ">i4")).copy()


def _root() -> Path:
    """The folder of the data, as the examples find it.

    Raises:
        MissingDataError: there is none.
    """
    try:
        root: Path = _example("omniglot_data").find_data()
    except FileNotFoundError as missing:
        raise MissingDataError(str(missing)) from missing
    return root


@cache
def _example(name: str) -> Any:
    """A module of the examples, which are scripts and no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
