"""The same questions asked by one process, and by several that share the tasks.

Process 0 leaves in the folder given what each group answered; each process leaves what it was told of mistakes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from l2l_influence import (
    GradientSimilarity,
    QueryInfluence,
    SupportInfluence,
    TaskInfluence,
    TotalGradient,
    TotalHessian,
)
from l2l_influence.bilevel import BilevelProblem, Sketch, Subsample, Task, Unrolled
from l2l_influence.evaluation import ContinuedOptimisation
from l2l_influence.parallel import ALONE, Ranks, ranks_of
from tests.reference_problems.autograd import SIZE, classification, parameters, randn
from tests.reference_problems.learn2learn import labelled_batches, pairs, train

Answers = dict[str, Tensor]

KINDS: dict[str, Any] = {
    "exact": "exact",
    "hessian": "hessian",
    "gauss-newton": "gauss-newton",
    "gamma": "gamma",
    "identity": "identity",
    "direct-first-order": "direct-first-order",
    "sketch": Sketch(samples=2),
    "some rows": Subsample("sketch", 3),
    "difficulty": Subsample("gauss-newton", 3, "difficulty"),
    "uncertainty": Subsample("hessian", 4, "uncertainty"),
}

TASKS = 7
WEIGHTS = (0.5 + randn(3, TASKS).square()).tolist()


def tasks(count: int) -> list[Task]:
    """Of two shapes, which take turns irregularly."""
    classes = torch.arange(9) % 3
    sizes = [6, 6, 5, 6, 5, 5, 6][:count]
    return [
        Task((randn(10 * i, n, 3), classes[:n]), (randn(10 * i + 5, n + 1, 3), classes[: n + 1]))
        for i, n in enumerate(sizes)
    ]


def core(ranks: Ranks, count: int, **options: Any) -> Answers:
    """Products, solves, influences and stationarity of a problem by hand; ``count`` tasks."""
    lam, some, weights = parameters(), tasks(count), WEIGHTS[:count]
    found: Answers = {}
    problem = BilevelProblem(classification, classification, Unrolled(0.1, 1), 30.0, ["head"], ranks=ranks, **options)
    state = problem.stationarity(lam, some, weights)
    found["stationarity"] = torch.cat([state.gradient, torch.tensor([state.terms, state.task])])
    for kind, hessian in KINDS.items():
        operator = problem.total_hessian(lam, some, hessian, weights)
        found[f"{kind} product"] = operator @ randn(1, SIZE)
        if kind in ("gauss-newton", "sketch", "some rows"):
            found[f"{kind} solve"] = operator.solve(randn(2, SIZE)).value
            found[f"{kind} without"] = operator.solve_rows(randn(4, 2, SIZE), without=[[0], [count - 1, 0]]).value
    for ask in (problem.query_influence, problem.support_influence):
        found[ask.__name__] = ask(lam, some, count - 1, 3, "sketch", weights)["body"]
    whole = BilevelProblem(classification, classification, 20.0, 30.0, ranks=ranks, **options)
    found["gamma of all parameters"] = whole.total_hessian(lam, some, "gamma", weights) @ randn(1, SIZE)
    return found


def hooks(group: dist.ProcessGroup | None) -> Answers:
    """A recorded run's scores at every level, edits, and totals."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    loss = nn.CrossEntropyLoss()
    maml, served = train(model, labelled_batches(5, 0), loss, order=[0, 1, 2, 3, 4, 2], optimizer_lr=0.1)
    test, common = pairs(labelled_batches(3, 50)), {"l2": 5.0, "progress": False, "process_group": group}
    found: Answers = {}
    asked: list[tuple[str, Any]] = [("sketch", QueryInfluence), ("gauss-newton", SupportInfluence)]
    for hessian, hook in [*asked, ("gamma", TaskInfluence), ("exact", TaskInfluence)]:
        inner = "proximal" if hook is SupportInfluence else "unrolled"
        study = hook(maml, served, loss, hessian=hessian, tolerance=1e-12, inner=inner, **common)
        name = f"{hessian} {hook.__name__}"
        result = study.scores(test)
        found[f"{name} scores"] = torch.tensor(list(result.values.values()))
        found[f"{name} losses"] = torch.tensor([row.loss for row in result])
        found[f"{name} matrix"] = study.score_matrix(test)[1]
        item: Any = 2 if hook is TaskInfluence else (2, 1)
        found[f"{name} edit"] = torch.cat([v.flatten() for v in study.remove(item, correct_residual=True).values()])
    study = TaskInfluence(maml, served, loss, hessian="sketch", tolerance=1e-12, **common)
    found["left out"] = torch.tensor(list(TaskInfluence.like(study, leave_one_out=True).scores(test).values.values()))
    found["self"] = torch.tensor(list(study.self_influence().values.values()))
    found["added"] = torch.cat([v.flatten() for v in study.add(test).values()])
    # Two steps instead of twenty: what processes share in one, they share in all.
    continued = ContinuedOptimisation(study.run_at(), study.run_at().test_tasks(test), 20.0, steps=2)
    checks = study.diagnose(test, spot_checks=4, retrain=continued).checks
    found["diagnosis"] = torch.tensor([check.figure for check in checks], dtype=torch.float64)
    found["similarity"] = TaskInfluence(maml, served, loss, estimator=GradientSimilarity(), **common).score_matrix(
        test
    )[1]
    found["total"] = torch.cat([v.flatten() for v in TotalGradient(maml, served, loss, **common).total().values()])
    found["solve"] = (
        TotalHessian(maml, served, loss, hessian="sketch", **common).solve(randn(1, len(found["total"]))).value
    )
    return found


def raised(question: Callable[[], object]) -> str:
    try:
        question()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Unreadable(list[Task]):
    """Tasks of which one cannot be read."""

    def __getitem__(self, position: Any) -> Any:
        if position == 1:
            raise OSError("the disk is gone")
        return super().__getitem__(position)


def mistakes(ranks: Ranks) -> dict[str, str]:
    """What each process is told when they ask different questions, or one of them fails; then, whether they go on."""
    own, lam, some = ranks.rank, parameters(), tasks(TASKS)
    problem = BilevelProblem(classification, classification, 20.0, 30.0, ranks=ranks)
    other = {**lam, "bias": lam["bias"] + own}
    return {
        "other weights": raised(lambda: problem.stationarity(other, some)),
        "fewer tasks": raised(lambda: problem.stationarity(lam, some[own:])),
        "other order": raised(lambda: (ranks.sum if own else ranks.maximum)(torch.tensor(1.0))),  # type: ignore[operator]
        "other size": raised(lambda: ranks.sum(torch.zeros(1 + own))),
        "unreadable": raised(lambda: problem.stationarity(lam, Unreadable(some))),
        "in the end": raised(lambda: problem.stationarity(lam, some)),
    }


def answer(folder: Path, rank: int, size: int) -> None:
    """Called in each of ``size`` processes, which find each other by a file in the folder."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=size)
    two = dist.new_group([0, 2])
    everyone = dist.group.WORLD
    answers = {"3 ranks": core(ranks_of(everyone), TASKS), "no task for one": core(ranks_of(everyone), 2)}
    if rank != 1:
        answers["small batches"] = core(ranks_of(two), 4, memory=1)
        answers["hooks, 2 ranks"] = hooks(two)
    torch.save({"answers": answers, "mistakes": mistakes(ranks_of(everyone))}, folder / f"found-{rank}")
    dist.destroy_process_group()


def alone() -> dict[str, Answers]:
    """What one process says to the same."""
    whole, few = core(ALONE, TASKS), core(ALONE, 2)
    small = core(ALONE, 4, memory=1)
    by_hook = hooks(None)
    return {
        "3 ranks": whole,
        "no task for one": few,
        "small batches": small,
        "hooks, 2 ranks": by_hook,
    }
