"""Episodes entered by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2l_influence import MAML, Study
from l2l_influence.recording import RecordedTask
from l2l_influence.recording.study import storage


def told(task: RecordedTask) -> dict[str, Any]:
    names = ("id", "key", "indices", "classes", "support_rows", "query_rows", "times_seen", "times_trained", "steps",
             "first_order", "labels", "rule", "batch_norm")  # fmt: skip
    tensors = (*task.support, *task.query, *(task.adapted or {}).values())
    return {
        **{name: getattr(task, name) for name in names},
        "lr": str(task.lr),
        "adapted": list(task.adapted or {}),
        "tensors": [tensor.numpy().tobytes() for tensor in tensors],
    }


def saved(folder: Path, seed: int = 0) -> storage.Saved:
    """A process that was told of two episodes."""
    torch.manual_seed(0)
    study, learner = Study(), MAML(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), lr=0.1)
    torch.manual_seed(seed)
    for _ in range(2):
        pairs = [(torch.randn(3, 4), torch.arange(3)) for _ in range(2)]
        study.add_episode(learner=learner, support=pairs[0], query=pairs[1], lr=0.1, steps=1)
    return storage.load(study.save(folder))
