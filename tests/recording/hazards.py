"""Loops with batch normalisation, and the gradients that they took."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from l2l_influence import TotalGradient
from l2l_influence.recording import record, recording_of

from .loops import DROP_INS, PLAIN, Kit
from .omniglot_loop import fast_adapt, images, taskset

cross_entropy = nn.CrossEntropyLoss()


Block = Callable[[], AbstractContextManager[Any]]


WAYS_IN: dict[str, tuple[Kit, Block]] = {"record": (PLAIN, record), "drop-ins": (DROP_INS, nullcontext)}


each_way = pytest.mark.parametrize(("kit", "block"), WAYS_IN.values(), ids=WAYS_IN)


def step(maml: Any, batch: Any, **arguments: Any) -> None:
    fast_adapt(batch, maml.clone(), cross_entropy, **arguments)[0].backward()


def in_double(kit: Kit) -> Any:
    x, y = images(shape=(4,)).tensors
    return kit.wrapped(taskset(TensorDataset(x.double(), y), 3, samples=4))


def gradients_agree(maml: Any, kit: Kit, block: Block, **options: Any) -> None:
    """The total gradients of recorded tasks are what learn2learn's own backward leaves."""
    tasks = in_double(kit)
    with block():
        for key in range(2):
            step(maml, tasks[key], steps=2)
    hook = TotalGradient(maml, loss=cross_entropy, progress=False, **options)
    for task in recording_of(maml).training_tasks():
        maml.zero_grad()
        step(maml, tasks[task.key], steps=2)
        expected = {name: p.grad for name, p in maml.module.named_parameters() if p.requires_grad}
        found = hook.of(task.id)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            wanted = torch.zeros_like(gradient) if expected[name] is None else expected[name]
            torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


def normalised() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5)).double()
    model(3 * torch.randn(50, 4).double() + 1)  # running statistics unlike those of the batches
    return model
