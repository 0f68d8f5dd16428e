"""Training loops in the manner of learn2learn's examples, each for learn2learn's classes or for stand-ins."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import learn2learn as l2l
import torch
from learn2learn.vision.models import OmniglotCNN
from torch import Tensor, nn
from torch.utils.data import DataLoader

import l2l_influence

from .identity import random_rows
from .omniglot_loop import Run, even_rows, fast_adapt, images, taskset, train

cross_entropy = nn.CrossEntropyLoss()


class Kit(NamedTuple):
    """The classes that a loop is written with."""

    MAML: Any = l2l.algorithms.MAML
    MetaSGD: Any = l2l.algorithms.MetaSGD
    GBML: Any = l2l.algorithms.GBML
    wrapped: Callable[[Any], Any] = lambda tasks: tasks


PLAIN = Kit()
DROP_INS = Kit(l2l_influence.MAML, l2l_influence.MetaSGD, l2l_influence.GBML, l2l_influence.TaskDataset)


def network() -> nn.Module:
    """Small, but with buffers, and random numbers drawn in each forward."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 5))


def tasks_of(kit: Kit, num_tasks: int = 6, seed: int = 0) -> Any:
    return kit.wrapped(taskset(images(shape=(4,), seed=seed), num_tasks))


def trained_on(maml: Any, batches: Any, **arguments: Any) -> Run:
    """Each batch a step of SGD."""
    opt = torch.optim.SGD(maml.parameters(), 0.1)
    run = Run(maml)
    for batch in batches:
        opt.zero_grad()
        loss, accuracy = fast_adapt(batch, maml.clone(), cross_entropy, **arguments)
        loss.backward()
        run.printed += [loss.item(), accuracy.item()]
        opt.step()
    return run


def omniglot(kit: Kit) -> Run:
    training, validation = (kit.wrapped(taskset(images(seed=seed), 8)) for seed in range(2))
    return train(kit.MAML(OmniglotCNN(5), lr=0.5), training, validation, iterations=2, meta_batch=2)


def interleaved(kit: Kit, maml: Any, num_tasks: int = 6) -> Run:
    """Training and validation on one learner, random splits, two inner steps."""
    training, validation = tasks_of(kit, num_tasks), tasks_of(kit, num_tasks, seed=1)
    return train(maml, training, validation, split=random_rows, steps=2)


def sample_then_clone(kit: Kit) -> Run:
    tasks, maml = tasks_of(kit), kit.MAML(network(), lr=0.1)
    batches = [tasks.sample() for _ in range(4)]
    learners = [maml.clone() for _ in batches]
    losses = [fast_adapt(batch, learner, cross_entropy)[0] for batch, learner in zip(batches, learners, strict=True)]
    sum(losses).backward()
    return Run(maml, [loss.item() for loss in losses] + [float(p.grad.sum()) for p in maml.parameters()])


def iteration(kit: Kit) -> Run:
    tasks = tasks_of(kit)
    tasks[3]
    return trained_on(kit.MAML(network(), lr=0.1), (batch for _epoch in range(2) for batch in tasks))


def data_loader(kit: Kit) -> Run:
    loader = DataLoader(tasks_of(kit), shuffle=True)
    return trained_on(kit.MAML(network(), lr=0.1), ((x.squeeze(0), y.squeeze(0)) for x, y in loader))


def several_tasksets(kit: Kit) -> Run:
    sources = [tasks_of(kit, num_tasks, seed) for num_tasks, seed in ((6, 0), (-1, 1), (3, 2))]
    return trained_on(kit.MAML(network(), lr=0.1), (random.choice(sources).sample() for _ in range(8)))


def two_learners(kit: Kit) -> Run:
    tasks = tasks_of(kit)
    one, other = kit.MAML(network(), lr=0.1), kit.MetaSGD(network(), lr=0.1)
    both = nn.ModuleList([one, other])
    run = Run(both)
    for _ in range(3):
        learners = one.clone(), other.clone()
        losses = [fast_adapt(tasks.sample(), learner, cross_entropy)[0] for learner in learners]
        sum(losses).backward()
        run.printed += [loss.item() for loss in losses]
    return run


def clone_of_clone(kit: Kit) -> Run:
    tasks, maml = tasks_of(kit), kit.MAML(network(), lr=0.1)
    x, y = tasks[0]
    parent = maml.clone()
    parent.adapt(cross_entropy(parent(x[::2]), y[::2]))
    child = parent.clone(first_order=True)
    loss = fast_adapt((x, y), child, cross_entropy)[0]
    loss.backward()
    return Run(maml, [loss.item()])


def many_query_forwards(kit: Kit) -> Run:
    """MAML++'s loss: a forward of the query set after each step, all weighted and summed."""
    tasks, maml = tasks_of(kit), kit.MAML(network(), lr=0.1)
    run = Run(maml)
    for _ in range(3):
        (x, y), learner = tasks.sample(), maml.clone()
        support, query = random_rows(len(x))
        total: Any = 0.0
        for step in range(3):
            learner.adapt(cross_entropy(learner(x[support]), y[support]))
            total = total + (step + 1) / 6 * cross_entropy(learner(x[query]), y[query])
        total.backward()
        run.printed.append(total.item())
    return run


def gbml(kit: Kit, transform: Any, **arguments: Any) -> Run:
    return interleaved(kit, kit.GBML(network(), transform, lr=0.1, **arguments))


LOOPS: dict[str, Callable[[Kit], Run]] = {
    "the omniglot example": omniglot,
    "maml": lambda kit: interleaved(kit, kit.MAML(network(), lr=0.1)),
    "first-order maml": lambda kit: interleaved(kit, kit.MAML(network(), lr=0.1, first_order=True)),
    "infinite taskset": lambda kit: interleaved(kit, kit.MAML(network(), lr=0.1), num_tasks=-1),
    "meta-sgd": lambda kit: interleaved(kit, kit.MetaSGD(network(), lr=0.1)),
    "first-order meta-sgd": lambda kit: interleaved(kit, kit.MetaSGD(network(), lr=0.1, first_order=True)),
    "gbml without transform": lambda kit: gbml(kit, lambda _parameter: None),
    "gbml with kronecker factors": lambda kit: gbml(kit, l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear)),
    "gbml with adapted transform": lambda kit: gbml(
        kit, l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear), adapt_transform=True
    ),
    "sample, then clone": sample_then_clone,
    "iteration": iteration,
    "data loader": data_loader,
    "several tasksets": several_tasksets,
    "two learners": two_learners,
    "clone of a clone": clone_of_clone,
    "many query forwards": many_query_forwards,
}


def plus_plus_update(model: nn.Module, rates: Tensor, gradients: Any) -> nn.Module:
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.update = -rates * gradient
    return l2l.utils.update_module(model)


class PlusPlus(l2l.algorithms.base_learner.BaseLearner):
    """A learner of a user's own, as learn2learn's MAML++ example has one: other arguments, no method of MAML's."""

    def __init__(self, model: nn.Module, rates: Any) -> None:
        super().__init__()
        self.module, self.rates = model, rates

    def forward(self, x: Tensor, step: int) -> Tensor:
        output: Tensor = self.module(x)
        return output * (1 + 0 * step)

    def adapt(self, loss: Tensor, step: int) -> None:
        gradients = torch.autograd.grad(loss, list(self.module.parameters()), create_graph=True)
        self.module = plus_plus_update(self.module, self.rates[step], gradients)

    def clone(self) -> PlusPlus:
        return PlusPlus(l2l.clone_module(self.module), self.rates.clone())


def plus_plus(kit: Kit) -> Run:
    tasks = tasks_of(kit)
    maml = PlusPlus(network(), nn.Parameter(torch.full((2,), 0.1)))
    opt = torch.optim.AdamW(maml.parameters(), 0.01)
    run = Run(maml)
    for _ in range(3):
        opt.zero_grad()
        (x, y), learner = tasks.sample(), maml.clone()
        support, query = even_rows(len(x))
        total: Any = 0.0
        for step in range(2):
            learner.adapt(cross_entropy(learner(x[support], step), y[support]), step=step)
            total = total + cross_entropy(learner(x[query], step=step), y[query]) / 2
        total.backward()
        run.printed.append(total.item())
        opt.step()
    return run
