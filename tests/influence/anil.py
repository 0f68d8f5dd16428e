"""A learner whose head is adapted on features of a body that is not (ANIL)."""

from __future__ import annotations

import random

import learn2learn as l2l
import numpy as np
import torch
from torch import Tensor, nn

from ..reference_problems.learn2learn import ListedTasks, classification_batches, pairs

LOSS = nn.CrossEntropyLoss()


BATCHES = [(x.double(), y) for x, y in classification_batches(5, 0)]


TEST = pairs([(x.double(), y) for x, y in classification_batches(3, 9)])


class Loop:
    """One pass over the tasks; ``together`` computes the features of both sets in one batch."""

    def __init__(self, together: bool = True) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        self.together = together
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh()).double()
        self.head = l2l.algorithms.MAML(nn.Linear(8, 3).double(), lr=0.1)
        self.optimizer = torch.optim.SGD([*self.body.parameters(), *self.head.parameters()], lr=0.1)
        self.losses: list[float] = []

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.together:
            return self.body(x[::2]), self.body(x[1::2])
        features = self.body(x)
        return features[::2], features[1::2]

    def query_loss(self, x: Tensor, y: Tensor) -> Tensor:
        learner = self.head.clone()
        support, query = self.features(x)
        for _ in range(2):
            learner.adapt(LOSS(learner(support), y[::2]))
        return LOSS(learner(query), y[1::2])

    def run(self, epochs: int = 6) -> Loop:
        tasks = ListedTasks(BATCHES)
        for _ in range(epochs * len(tasks)):
            loss = self.query_loss(*tasks.sample())
            self.losses.append(float(loss.detach()))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.optimizer.zero_grad()
        return self
