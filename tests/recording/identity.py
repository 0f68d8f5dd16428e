"""Everything that a recorded loop must leave as it is, and how two runs are compared."""

from __future__ import annotations

import random
from typing import Any

import learn2learn as l2l
import numpy as np
import torch
from learn2learn.algorithms.base_learner import BaseLearner
from torch.utils.data.dataloader import _BaseDataLoaderIter

import l2l_influence


def everything(run: Any) -> dict[str, Any]:
    """All that training leaves behind: parameters, buffers, printed numbers, and where the generators stand."""
    return {
        "state": {name: value.clone() for name, value in run.maml.state_dict().items()},
        "printed": run.printed,
        "modes": [module.training for module in run.maml.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(one["state"]) == list(other["state"])
    for name, value in one["state"].items():
        assert torch.equal(value, other["state"][name]), name
    assert one["printed"] == other["printed"]
    assert one["modes"] == other["modes"]
    assert torch.equal(one["torch"], other["torch"])
    assert one["python"] == other["python"]
    assert str(one["numpy"]) == str(other["numpy"])


def seed() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def random_rows(rows: int) -> tuple[Any, Any]:
    """A new split at each draw, from each of the three generators."""
    order = torch.randperm(rows)[torch.from_numpy(np.random.permutation(rows))]
    cut = rows // 2 + random.choice([-1, 0, 1])
    return order[:cut], order[cut:]


MAML = l2l.algorithms.MAML


WATCHED = (
    BaseLearner, MAML, l2l.algorithms.MetaSGD, l2l.algorithms.GBML, l2l.data.Taskset, l2l.data.TaskDataset,
    l2l_influence.MAML, l2l_influence.TaskDataset, _BaseDataLoaderIter, l2l.optim.DifferentiableSGD,
    l2l.algorithms.maml, l2l.algorithms.meta_sgd, l2l.algorithms, l2l.utils, l2l,
)  # fmt: skip


def attributes() -> list[dict[str, Any]]:
    return [{name: value for name, value in vars(owner).items() if name != "__warningregistry__"} for owner in WATCHED]
