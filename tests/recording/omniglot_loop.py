"""The loop of learn2learn's examples/vision/maml_omniglot.py on synthetic images, for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import learn2learn as l2l
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

WAYS, SHOTS = 5, 1


def images(classes: int = 12, per_class: int = 6, shape: tuple[int, ...] = (1, 28, 28), seed: int = 0) -> TensorDataset:
    """Noisy prototypes, labelled 100, 101, ... so that a class is never taken for a row or a task's label."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(classes, 1, *shape, generator=generator)
    x = prototypes + 0.5 * torch.randn(classes, per_class, *shape, generator=generator)
    return TensorDataset(x.reshape(-1, *shape), 100 + torch.arange(classes).repeat_interleave(per_class))


def taskset(dataset: Any, num_tasks: int = 20, ways: int = WAYS, samples: int = 2 * SHOTS) -> l2l.data.Taskset:
    """Few-shot tasks as learn2learn's benchmarks make them."""
    dataset = dataset if isinstance(dataset, l2l.data.MetaDataset) else l2l.data.MetaDataset(dataset)
    transforms = [
        l2l.data.transforms.NWays(dataset, ways),
        l2l.data.transforms.KShots(dataset, samples),
        l2l.data.transforms.LoadData(dataset),
        l2l.data.transforms.RemapLabels(dataset),
        l2l.data.transforms.ConsecutiveLabels(dataset),
    ]
    return l2l.data.Taskset(dataset, transforms, num_tasks=num_tasks)


def even_rows(rows: int) -> tuple[Tensor, Tensor]:
    """The split of learn2learn's examples: numpy masks, even rows to adapt on."""
    mask = np.zeros(rows, dtype=bool)
    mask[np.arange(rows // 2) * 2] = True
    return torch.from_numpy(mask), torch.from_numpy(~mask)


def accuracy(predictions: Tensor, targets: Tensor) -> Tensor:
    predictions = predictions.argmax(dim=1).view(targets.shape)
    return (predictions == targets).sum().float() / targets.size(0)


def fast_adapt(
    batch: Any, learner: Any, loss: Callable[..., Tensor], steps: int = 1, split: Any = even_rows, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    data, labels = batch
    data, labels = data.to(device), labels.to(device)
    adaptation_indices, evaluation_indices = split(data.size(0))
    adaptation_data, adaptation_labels = data[adaptation_indices], labels[adaptation_indices]
    evaluation_data, evaluation_labels = data[evaluation_indices], labels[evaluation_indices]
    for _step in range(steps):
        train_error = loss(learner(adaptation_data), adaptation_labels)
        learner.adapt(train_error)
    predictions = learner(evaluation_data)
    return loss(predictions, evaluation_labels), accuracy(predictions, evaluation_labels)


@dataclass
class Run:
    """What a run of the loop leaves behind, to be compared bit by bit."""

    maml: Any
    printed: list[float] = field(default_factory=list)


def train(
    maml: Any,
    training: Any,
    validation: Any,
    iterations: int = 3,
    meta_batch: int = 4,
    steps: int = 1,
    split: Any = even_rows,
) -> Run:
    opt = torch.optim.Adam(maml.parameters(), 0.003)
    loss = nn.CrossEntropyLoss(reduction="mean")
    run = Run(maml)
    for _iteration in range(iterations):
        opt.zero_grad()
        sums = [0.0] * 4
        for _task in range(meta_batch):
            learner = maml.clone()
            batch = training.sample()
            evaluation_error, evaluation_accuracy = fast_adapt(batch, learner, loss, steps, split)
            evaluation_error.backward()
            sums[0] += evaluation_error.item()
            sums[1] += evaluation_accuracy.item()

            learner = maml.clone()
            batch = validation.sample()
            evaluation_error, evaluation_accuracy = fast_adapt(batch, learner, loss, steps, split)
            sums[2] += evaluation_error.item()
            sums[3] += evaluation_accuracy.item()
        run.printed += [value / meta_batch for value in sums]
        for p in maml.parameters():
            p.grad.data.mul_(1.0 / meta_batch)
        opt.step()
    return run
