"""Full-batch MAML against learn2learn's own loop, step for step, in float64."""

from __future__ import annotations

import learn2learn as l2l
import pytest
import torch
from torch import Tensor, nn

from l2l_influence.evaluation import FullBatchMAML
from l2l_influence.evaluation.ground_truth.full_batch import TaskTensors

N, LR, STEPS, META_LR, META_STEPS, DECAY = 4, 0.3, 2, 0.05, 6, 0.02
LOSS = nn.CrossEntropyLoss()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


@pytest.fixture
def tasks() -> TaskTensors:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, N, 6, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (2, N, 6), generator=generator)
    return x[0], y[0], x[1], y[1]


def learn2learn_loop(model: nn.Module, tasks: TaskTensors, weights: Tensor, kept: list[int]) -> dict[str, Tensor]:
    maml = l2l.algorithms.MAML(model, lr=LR)
    optimiser = torch.optim.Adam(maml.parameters(), META_LR, weight_decay=DECAY)
    for step in range(META_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = META_LR * (1 - step / META_STEPS)
        optimiser.zero_grad()
        for task in kept:
            learner = maml.clone()
            xs, ys, xq, yq = (part[task] for part in tasks)
            for _ in range(STEPS):
                learner.adapt(LOSS(learner(xs), ys))
            (weights[task] * LOSS(learner(xq), yq) / N).backward()
        optimiser.step()
    return {name: value.detach() for name, value in maml.module.named_parameters()}


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [1, 3]])
def test_trains_as_learn2learn_does(model: nn.Module, tasks: TaskTensors, kept: list[int]) -> None:
    weights = torch.tensor([0.5, 1.0, 2.0, 0.5], dtype=torch.float64)
    full_batch = FullBatchMAML(model, LOSS, LR, STEPS, META_LR, META_STEPS, DECAY)
    start = {name: value.clone() for name, value in full_batch.parameters.items()}
    present = torch.isin(torch.arange(N), torch.tensor(kept))
    trained = full_batch.train(tasks, weights * present, full_batch.parameters)
    for name, value in model.named_parameters():
        assert torch.equal(value, start[name]) and torch.equal(full_batch.parameters[name], start[name])
    expected = learn2learn_loop(model, tasks, weights, kept)
    for name, value in expected.items():
        assert not torch.allclose(value, start[name])
        torch.testing.assert_close(trained[name], value, rtol=1e-9, atol=1e-12)


def test_evaluates_as_learn2learn_does(model: nn.Module, tasks: TaskTensors) -> None:
    full_batch = FullBatchMAML(model, LOSS, LR, STEPS, META_LR, META_STEPS)
    losses, accuracies = full_batch.evaluate(full_batch.parameters, tasks)
    maml = l2l.algorithms.MAML(model, lr=LR)
    for task in range(N):
        learner = maml.clone()
        xs, ys, xq, yq = (part[task] for part in tasks)
        for _ in range(STEPS):
            learner.adapt(LOSS(learner(xs), ys))
        outputs = learner(xq)
        assert losses[task] == pytest.approx(LOSS(outputs, yq).item(), rel=1e-10)
        assert accuracies[task] == pytest.approx((outputs.argmax(1) == yq).double().mean().item())
