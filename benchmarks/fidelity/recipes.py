"""The learners that are asked about: trained on real data, a fifth or more of their tasks with wrong labels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.optim import Optimizer

from l2l_influence.recording import Study
from l2l_influence.recording.outer_steps.checkpoints import Checkpoint

from ..estimators import worlds as convex_worlds
from ..estimators.retraining import Retraining, Weights, whitening
from ..estimators.worlds import Stacked
from .networks import body_and_head, mlp, omniglot_cnn, omniglot_fc, plain_cnn, smooth_mlp
from .runs import followed, looped, told
from .tasks import WAYS, Images, digits, draw, mnist, omniglot
from .trainers import Again, ToTheMinimum
from .training import MetaTraining, Schedule
from .worlds import Size, World


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
        fit, again = _scaled(self.fit, size.steps), _scaled(self.again, size.steps)
        study, lam, body, checkpoints = _trained(training, drawn.train, fit)
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
            checkpoints=checkpoints,
        )


def _scaled(schedule: Schedule, share: float) -> Schedule:
    """With this share of its steps, but no fewer than four."""
    steps, settle = (max(min(4, each), round(each * share)) for each in (schedule.steps, schedule.settle))
    return replace(schedule, steps=steps, settle=settle)


def _trained(
    training: MetaTraining, tasks: Stacked, fit: Schedule
) -> tuple[Study, Tensor, nn.Module | None, Sequence[Checkpoint]]:
    """The study, λ*, the body in ANIL, and the way to λ*. Small batches are trained in learn2learn's own loop."""
    start = training.fresh(0)
    if fit.batch is not None:
        study, lam, checkpoints = looped(training, tasks, fit, start)
        return study, lam, None, checkpoints
    taken: Sequence[Checkpoint] = ()

    def begun(lam: Tensor, optimiser: Optimizer) -> None:
        nonlocal taken
        taken = followed(training, fit, lam, optimiser)

    lam = training.train(tasks, Weights.of(tasks), start, fit, begun=begun)
    study, body = told(training, tasks, lam)
    return study, lam, body, taken


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
    network=smooth_mlp,
    lr=0.05,
    adapt_steps=5,
    tasks=160,
    shots=5,
    queries=5,
    fit=Schedule(0.01, 400, weight_decay=1e-2, settle=400),
    again=Schedule(0.001, 0, weight_decay=1e-2, settle=100),
)
"""Trained, and trained again, towards rest, as far as its steps go; what stands between that and a learner that stops
on its way is in :mod:`.causes`."""
OMNIGLOT = Recipe(
    title="OmniglotFC, 32 hidden units",
    images=omniglot,
    network=omniglot_fc,
    lr=0.5,
    adapt_steps=1,
    tasks=300,
    shots=1,
    queries=10,
    fit=Schedule(0.005, 400, weight_decay=1e-2),
    again=Schedule(0.0005, 100, weight_decay=1e-2),  # 60 steps of 0.0001 were predicted better, but end half-way
    large=True,
    scratch=False,
)

WORLDS: Mapping[str, Callable[[str, Size], World]] = {
    "digits": DIGITS,
    "convex": convex,
    "digits-40": replace(
        DIGITS, title="MLP, digits, 40 % wrong", tasks=100, wrong=0.4, levels=("task",), scratch=False
    ),
    "digits-sgd": replace(
        DIGITS,
        title="MLP, digits, stochastic",
        network=mlp,
        lr=0.1,
        adapt_steps=3,
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
    ),
    "mnist": replace(
        DIGITS,
        title="CNN, MNIST",
        images=mnist,
        network=plain_cnn,
        lr=0.2,
        adapt_steps=3,
        tasks=60,
        fit=Schedule(0.01, 300, weight_decay=1e-3),
        again=Schedule(0.001, 40, weight_decay=1e-3),
        large=True,
        scratch=False,
    ),
    "omniglot-cnn": replace(
        OMNIGLOT,
        title="OmniglotCNN, 16 channels",
        network=omniglot_cnn,
        tasks=120,
        queries=3,
        fit=Schedule(0.005, 100, weight_decay=1e-2),
        again=Schedule(0.0005, 40, weight_decay=1e-2),
        levels=("task",),
    ),
}
