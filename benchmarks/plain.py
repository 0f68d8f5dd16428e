"""Plain learn2learn training, which costs are measured against. Images are random, since only time is measured."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import learn2learn as l2l
import torch
from torch import nn

WAYS = 5
MODELS = {"OmniglotFC": lambda: l2l.vision.models.OmniglotFC(784, WAYS), "OmniglotCNN": l2l.vision.models.OmniglotCNN}
LARGER = {
    "MiniImagenetCNN": lambda: l2l.vision.models.MiniImagenetCNN(WAYS),
    "ResNet12": lambda: l2l.vision.models.ResNet12(WAYS, dropblock_dropout=0.0),
}
"""For images of :data:`MINI_IMAGENET`'s shape."""

OMNIGLOT, MINI_IMAGENET = (1, 28, 28), (3, 84, 84)


def taskset(count: int, shape: tuple[int, int, int] = OMNIGLOT) -> l2l.data.Taskset:
    """5-way 1-shot tasks (and one query image a class) of random images."""
    images = torch.rand(50 * 20, *shape, generator=torch.Generator().manual_seed(0))
    data = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images, torch.arange(50).repeat_interleave(20)))
    transforms = [
        l2l.data.transforms.FusedNWaysKShots(data, n=WAYS, k=2),
        l2l.data.transforms.LoadData(data),
        l2l.data.transforms.RemapLabels(data),
    ]
    return l2l.data.Taskset(data, transforms, num_tasks=count)


def epoch(maml: l2l.algorithms.MAML, tasks: Any) -> None:
    """A second-order MAML step on each task, as learn2learn's example has it."""
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(maml.parameters(), 3e-3)
    for i in range(len(tasks)):
        x, y = tasks[i]
        learner = maml.clone()
        learner.adapt(loss(learner(x[::2]), y[::2]))
        optimizer.zero_grad()
        loss(learner(x[1::2]), y[1::2]).backward()
        optimizer.step()


def write_rows(rows: list[Any], out: Path) -> None:
    """As JSON, with what they were measured on."""
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": platform.machine()}
    out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")
