"""Run by torchrun: loops as users write them for several processes, plain and recorded. Used by test_processes.

Each leaves in the folder given a saved study and the batches drawn of each process, and what process 0 found of all.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learn2learn as l2l
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from l2l_influence import TaskInfluence, record
from l2l_influence.recording import gather
from tests.recording.identity import assert_same, everything
from tests.recording.omniglot_loop import Run, images, taskset

LOSS = nn.CrossEntropyLoss()
SHAPE, TASKS, STEPS = (6,), 6, 5


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5)).double()


def halves(batch: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = batch
    return x[::2].double(), y[::2], x[1::2].double(), y[1::2]


def query_loss(learner: Any, batch: Any) -> Tensor:
    x, y, query_x, query_y = halves(batch)
    for _ in range(2):
        learner.adapt(LOSS(learner(x), y))
    loss: Tensor = LOSS(learner(query_x), query_y)
    return loss


def data(common: bool) -> Any:
    """Float64 tasks; ``common``: the same ones in all processes."""
    x, y = images(shape=SHAPE).tensors
    tasks = taskset(torch.utils.data.TensorDataset(x.double(), y), TASKS)
    if common:
        random.seed(7), np.random.seed(7), torch.manual_seed(7)
        for key in range(TASKS):
            tasks[key]
    random.seed(42 + dist.get_rank()), np.random.seed(42 + dist.get_rank()), torch.manual_seed(42 + dist.get_rank())
    return tasks


def trained(maml: Any, tasks: Any, seen: list[Any], loss: Callable[[Any], Tensor], average: Callable[[], None]) -> Run:
    opt, run = torch.optim.Adam(maml.parameters(), 0.003), Run(maml)
    for _ in range(STEPS):
        opt.zero_grad()
        seen.append(tasks.sample())
        error = loss(seen[-1])
        error.backward()
        average()
        run.printed.append(error.item())
        opt.step()
    return run


def averaged_by_hand(seen: list[Any]) -> Run:
    """As learn2learn's distributed_maml.py and cherry do."""
    maml = l2l.algorithms.MAML(network(), lr=0.1)

    def average() -> None:
        for parameter in maml.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(dist.get_world_size())

    return trained(maml, data(common=True), seen, lambda batch: query_loss(maml.clone(), batch), average)


def parallel_model(seen: list[Any]) -> Run:
    maml = l2l.algorithms.MAML(nn.parallel.DistributedDataParallel(network()), lr=0.1)
    return trained(maml, data(common=False), seen, lambda batch: query_loss(maml.clone(), batch), lambda: None)


class Episode(nn.Module):
    """What a user wraps who wants the whole of a learner in DistributedDataParallel."""

    def __init__(self, maml: Any) -> None:
        super().__init__()
        self.maml = maml

    def forward(self, batch: Any) -> Tensor:
        return query_loss(self.maml.clone(), batch)


def parallel_learner(seen: list[Any]) -> Run:
    maml = l2l.algorithms.MAML(network(), lr=0.1)
    whole = nn.parallel.DistributedDataParallel(Episode(maml))
    return trained(maml, data(common=False), seen, whole, lambda: None)


LOOPS = {loop.__name__: loop for loop in (averaged_by_hand, parallel_model, parallel_learner)}


def tests() -> list[Any]:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        batches = [(torch.randn(10, *SHAPE).double(), torch.arange(10) // 2) for _ in range(3)]
    return [((x, y), (query_x, query_y)) for x, y, query_x, query_y in map(halves, batches)]


def scored(source: Any) -> dict[str, float]:
    """By what is in a task. Without curvature: what is tested is which tasks there are, with which weights."""
    values = TaskInfluence(source, loss=LOSS, hessian="identity").scores(tests()).values
    return {task.fingerprint: values[task.id] for task in source.training_tasks()}


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for name, loop in LOOPS.items():
        plain = everything(loop([]))
        seen: list[Any] = []
        with record() as study:
            recorded = everything(loop(seen))
        assert_same(plain, recorded)
        study.save(folder / name / f"rank-{rank}")
        torch.save(seen, folder / name / f"seen-{rank}")
        whole = gather(study)
        if rank == 0:
            uses = [(task.rank, task.key, task.times_seen, task.times_trained) for task in whole.training_tasks()]
            names = [sorted(task.adapted or ()) for task in whole.tasks]
            torch.save({"scores": scored(whole), "uses": uses, "adapted": names}, folder / name / "found")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
