"""The learners that are asked about: trained on real data, a fifth or more of their tasks with wrong labels."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import learn2learn as l2l
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from l2l_influence import record
from l2l_influence.bilevel import Layout
from l2l_influence.evaluation.metrics import Flags, Floats
from l2l_influence.recording import Study

from ..estimators import worlds as convex_worlds
from ..estimators.retraining import Retraining, Weights, whitening
from ..estimators.worlds import Stacked
from .tasks import WAYS, Drawn, Images, digits, draw, mnist, omniglot
from .training import MetaTraining, Schedule

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Size:
    """How much of everything is done.

    Attributes:
        share: of each world's own number of training tasks.
        steps: of each world's own number of training steps.
        tests: test tasks.
        halves: random halves of the items of each level, removed as a whole.
        singles: items of each level, removed one at a time; of tasks it is all of them unless the network is large.
        scratch: seeds of retraining from new starts, in worlds that train in full batches.
        noise: seeds of retraining in worlds that train in small batches.
    """

    share: float
    steps: float
    tests: int
    halves: int
    singles: int
    scratch: int
    noise: int


FULL = Size(share=1, steps=1, tests=30, halves=24, singles=16, scratch=1, noise=6)
QUICK = Size(share=0.1, steps=0.05, tests=6, halves=6, singles=3, scratch=2, noise=2)


class Trainer(Protocol):
    """Trains again, for any weights of tasks and samples; can be pickled."""

    def __call__(self, weights: Weights, seed: int) -> Tensor:
        """λ, ``[P]``."""

    def losses(self, lam: Tensor) -> Floats:
        """Of the test tasks, ``[T]``."""


@dataclass(frozen=True)
class World:
    """A trained learner, what it was trained on, and how to train it again.

    Attributes:
        name: as the command calls it; ``title`` as tables do.
        train, test: its tasks; ``wrong`` says which of the training tasks have wrong query labels.
        study: its recording; ``lam`` is λ*, ``[P]``, in the order of ``layout``.
        options: what hooks are to know of the problem.
        trainers: by name of the ground truth; the first is the one that scores are first held against.
        seeds: of each ground truth.
        levels: what is removed.
        large: whether estimators that are dear are left out, and most single removals.
    """

    name: str
    title: str
    train: Stacked
    wrong: tuple[int, ...]
    test: Stacked
    study: Study
    lam: Tensor
    layout: Layout
    options: Mapping[str, Any]
    trainers: Mapping[str, Trainer]
    seeds: Mapping[str, int]
    levels: tuple[str, ...] = ("task", "query", "support")
    large: bool = False

    @property
    def flags(self) -> Flags:
        """``[N]``, whether a training task has wrong labels."""
        return np.isin(np.arange(len(self.train)), self.wrong)

    @property
    def tests(self) -> list[tuple[Batch, Batch]]:
        """Test tasks as hooks take them."""
        return _pairs(self.test)


def _pairs(tasks: Stacked) -> list[tuple[Batch, Batch]]:
    return [((sx, sy), (qx, qy)) for sx, sy, qx, qy in zip(*vars(tasks).values(), strict=True)]


# ---- networks -----------------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    """For 8×8 images; P = 2,245."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, WAYS))


def omniglot_fc() -> nn.Module:
    return l2l.vision.models.OmniglotFC(28 * 28, WAYS)


def omniglot_cnn() -> nn.Module:
    return l2l.vision.models.OmniglotCNN(WAYS)


def plain_cnn() -> nn.Module:
    """Two strided convolutions and a linear layer for 28×28 images, without normalisation; P = 5,173."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 49, WAYS),
    )


def body_and_head() -> nn.Module:
    """For ANIL: OmniglotFC's features, and a linear head, which alone is adapted."""
    model = omniglot_fc()
    return nn.Sequential(OrderedDict(body=model.features, module=model.classifier))


# ---- training again -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Again:
    """Retraining from λ*, or, where ``start`` is None, from a start that the seed draws."""

    training: MetaTraining
    drawn: Drawn
    schedule: Schedule
    start: Tensor | None

    def __call__(self, weights: Weights, seed: int) -> Tensor:
        start = self.training.fresh(1 + seed) if self.start is None else self.start
        return self.training.train(self.drawn.train, weights, start, self.schedule, seed)

    def losses(self, lam: Tensor) -> Floats:
        return self.training.losses(lam, self.drawn.test)


@dataclass(frozen=True)
class ToTheMinimum:
    """Retraining of a smooth problem to its minimum, from λ*."""

    problem: convex_worlds.World
    lam: Tensor
    metric: Tensor = field(repr=False)

    def __call__(self, weights: Weights, seed: int) -> Tensor:
        return self._retraining.optimum(self.lam, weights, self.metric).lam

    def losses(self, lam: Tensor) -> Floats:
        return self._retraining.losses(lam, self.problem.test).numpy()

    @cached_property
    def _retraining(self) -> Retraining:
        return Retraining(self.problem)


# ---- recorded runs ------------------------------------------------------------------------------------------------


class ListedTasks(l2l.data.Taskset):
    """A finite taskset over batches that are given: support rows first."""

    def __init__(self, tasks: Stacked) -> None:
        nothing = torch.utils.data.TensorDataset(torch.zeros(1), torch.zeros(1, dtype=torch.long))
        super().__init__(nothing, num_tasks=len(tasks))
        self._batches = [(torch.cat([sx, qx]), torch.cat([sy, qy])) for (sx, sy), (qx, qy) in _pairs(tasks)]

    def __getitem__(self, i: int) -> Batch:
        return self._batches[i]


def told(training: MetaTraining, tasks: Stacked, lam: Tensor) -> tuple[Study, nn.Module | None]:
    """The study of a learner that stands at λ* after training in full batches, where each task counts as often as the
    others; and its body, in ANIL."""
    model = training.network()
    vector_to_parameters(lam, model.parameters())
    body, head = (model.body, model.module) if training.adapted else (None, model)
    learner = l2l.algorithms.MAML(head, lr=training.lr)
    with record() as study:
        for key, (support, query) in enumerate(_pairs(tasks)):
            study.add_episode(
                learner=learner, support=support, query=query, lr=training.lr, steps=training.steps, key=key
            )
    return study, body


def looped(training: MetaTraining, tasks: Stacked, schedule: Schedule, start: Tensor) -> tuple[Study, Tensor]:
    """A learner trained as in learn2learn's examples, by a loop that knows nothing of being recorded; and λ*."""
    model, shots = training.network(), tasks.support_y.shape[1]
    vector_to_parameters(start.clone(), model.parameters())
    random.seed(0)
    with record() as study:
        maml, taskset, loss = l2l.algorithms.MAML(model, lr=training.lr), ListedTasks(tasks), nn.CrossEntropyLoss()
        optimiser = torch.optim.Adam(maml.parameters(), schedule.lr, weight_decay=schedule.weight_decay)
        cooling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / schedule.steps)
        for _ in range(schedule.steps):
            optimiser.zero_grad()
            for _ in range(schedule.batch or len(tasks)):
                learner, (x, y) = maml.clone(), taskset.sample()
                for _ in range(training.steps):
                    learner.adapt(loss(learner(x[:shots]), y[:shots]))
                (loss(learner(x[shots:]), y[shots:]) / (schedule.batch or len(tasks))).backward()
            optimiser.step()
            cooling.step()
    return study, parameters_to_vector(model.parameters()).detach()


# ---- the worlds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A world whose network is trained by gradient steps.

    Attributes:
        title: as tables call it.
        images: what tasks are drawn from.
        network, lr, adapt_steps, adapted: see :class:`MetaTraining`.
        tasks, shots, queries, wrong: see :func:`draw`.
        fit: how λ* is come by.
        again: how one goes on from there.
        levels: what is removed.
        large: whether estimators that are dear are left out.
        scratch: whether it is retrained from new starts too.
    """

    title: str
    images: Callable[[], Images]
    network: Callable[[], nn.Module]
    lr: float
    adapt_steps: int
    tasks: int
    shots: int
    queries: int
    fit: Schedule
    again: Schedule
    wrong: float = 0.2
    adapted: str = ""
    levels: tuple[str, ...] = ("task", "query", "support")
    large: bool = False
    scratch: bool = True

    def __call__(self, name: str, size: Size) -> World:
        training = MetaTraining(self.network, self.lr, self.adapt_steps, self.adapted)
        count = max(10, round(self.tasks * size.share))
        drawn = draw(self.images(), count, size.tests, self.shots, self.queries, self.wrong, 0)
        fit, again = (replace(each, steps=max(4, round(each.steps * size.steps))) for each in (self.fit, self.again))
        study, lam, body = _trained(training, drawn.train, fit)
        scratch = {"scratch": Again(training, drawn, fit, None)} if self.scratch else {}
        new_starts = dict.fromkeys(scratch, size.noise if fit.batch else size.scratch)
        return World(
            name=name,
            title=self.title,
            train=drawn.train,
            wrong=drawn.wrong,
            test=drawn.test,
            study=study,
            lam=lam,
            layout=training.layout,
            options={"loss": nn.CrossEntropyLoss(), "l2": fit.weight_decay * count, "body": body},
            trainers={"warm": Again(training, drawn, again, lam)} | scratch,
            seeds={"warm": size.noise if again.batch else 1} | new_starts,
            levels=self.levels,
            large=self.large,
        )


def _trained(training: MetaTraining, tasks: Stacked, fit: Schedule) -> tuple[Study, Tensor, nn.Module | None]:
    """The study, λ*, and the body in ANIL. Small batches are trained in learn2learn's own loop."""
    start = training.fresh(0)
    if fit.batch is not None:
        return *looped(training, tasks, fit, start), None
    lam = training.train(tasks, Weights.of(tasks), start, fit)
    study, body = told(training, tasks, lam)
    return study, lam, body


def convex(name: str, size: Size) -> World:
    """A linear softmax head on fixed features, proximal inner problem, float64, to the minimum."""
    scaled = convex_worlds.Size(max(0.4, size.share), size.tests, 0, 0, 1, 1)
    problem = convex_worlds.convex(0, scaled)
    wrong = tuple(range(0, len(problem.train), 5))
    labels = problem.train.query_y.clone()
    labels[list(wrong)] = (labels[list(wrong)] + 1) % WAYS
    problem = replace(problem, train=replace(problem.train, query_y=labels))
    found, hessian = Retraining(problem).trained()
    model = nn.Sequential(OrderedDict(head=nn.Linear(convex_worlds.PRINCIPAL, WAYS))).double()
    training = MetaTraining(lambda: model, lr=1 / (4 * problem.kind.delta), steps=4)
    study, _ = told(training, problem.train, found.lam)
    return World(
        name=name,
        title="convex head",
        train=problem.train,
        wrong=wrong,
        test=problem.test,
        study=study,
        lam=found.lam,
        layout=problem.layout,
        options={
            "loss": nn.CrossEntropyLoss(),
            "l2": problem.l2,
            "inner": "proximal",
            "proximal": problem.kind.delta,
            "inner_tolerance": 1e-6,
        },
        trainers={"warm": ToTheMinimum(problem, found.lam, whitening(hessian))},
        seeds={"warm": 1},
    )


DIGITS = Recipe(
    title="MLP, digits",
    images=digits,
    network=mlp,
    lr=0.1,
    adapt_steps=3,
    tasks=160,
    shots=5,
    queries=5,
    fit=Schedule(0.01, 800, weight_decay=1e-3),
    again=Schedule(0.001, 150, weight_decay=1e-3),
)
OMNIGLOT = Recipe(
    title="OmniglotFC",
    images=omniglot,
    network=omniglot_fc,
    lr=0.5,
    adapt_steps=1,
    tasks=200,
    shots=1,
    queries=1,
    fit=Schedule(0.003, 200, batch=16),
    again=Schedule(0.0005, 15),
    levels=("task",),
    large=True,
    scratch=False,
)

WORLDS: Mapping[str, Callable[[str, Size], World]] = {
    "digits": DIGITS,
    "convex": convex,
    "digits-40": replace(DIGITS, title="MLP, digits, 40 % wrong", tasks=100, wrong=0.4, levels=("task",)),
    "digits-sgd": replace(
        DIGITS,
        title="MLP, digits, stochastic",
        fit=Schedule(0.01, 800, batch=12, weight_decay=1e-3),
        again=Schedule(0.001, 150, batch=12, weight_decay=1e-3),
        levels=("task",),
        scratch=False,
    ),
    "omniglot-fc": OMNIGLOT,
    "anil": replace(
        OMNIGLOT,
        title="ANIL, Omniglot",
        network=body_and_head,
        adapted="module.",
        adapt_steps=3,
        fit=Schedule(0.003, 100),
    ),
    "mnist": replace(
        DIGITS,
        title="CNN, MNIST",
        images=mnist,
        network=plain_cnn,
        lr=0.2,
        tasks=60,
        fit=Schedule(0.01, 300, weight_decay=1e-3),
        again=Schedule(0.001, 60, weight_decay=1e-3),
        levels=("task", "query"),
        scratch=False,
    ),
    "omniglot-cnn": replace(
        OMNIGLOT,
        title="OmniglotCNN",
        network=omniglot_cnn,
        tasks=60,
        fit=Schedule(0.003, 100, batch=16),
        again=Schedule(0.0005, 10),
    ),
}
