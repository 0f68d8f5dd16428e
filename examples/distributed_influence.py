"""Influence scores by several processes that share the training tasks.

    torchrun --nproc-per-node 2 examples/distributed_influence.py
    python examples/distributed_influence.py                       # the same by one process

Process 0 trains a second-order MAML on tasks of synthetic images and saves the recording; all load it, and score the
tasks together. Each ends with the same scores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import learn2learn as l2l
import torch
import torch.distributed as dist
from torch import Tensor, nn

from l2l_influence import Study, TaskInfluence, record

Pair = tuple[Tensor, Tensor]
WAYS, SHOTS, PIXELS = 5, 2, 64


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(PIXELS, 64), nn.ReLU(), nn.Linear(64, WAYS))


def task(generator: torch.Generator) -> tuple[Pair, Pair]:
    """Classes are noisy copies of patterns of their own."""
    patterns = torch.randn(WAYS, PIXELS, generator=generator)
    y = torch.arange(WAYS).repeat_interleave(SHOTS)
    return tuple((patterns[y] + torch.randn(len(y), PIXELS, generator=generator), y) for _ in range(2))


def train(count: int, seed: int, folder: Path) -> None:
    """The loop, and its recording in a folder that all processes can read."""
    torch.manual_seed(seed)
    generator, loss = torch.Generator().manual_seed(seed), nn.CrossEntropyLoss()
    with record() as study:
        maml = l2l.algorithms.MAML(model(), lr=0.1)
        optimizer = torch.optim.Adam(maml.parameters(), 3e-3)
        for _ in range(count):
            (x, y), (query_x, query_y) = task(generator)
            learner = maml.clone()
            learner.adapt(loss(learner(x), y))
            optimizer.zero_grad()
            loss(learner(query_x), query_y).backward()
            optimizer.step()
    study.save(folder)


@contextmanager
def processes() -> Iterator[dist.ProcessGroup | None]:
    """All those that torchrun started; None for this one alone."""
    if "RANK" not in os.environ:
        yield None
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def shared_folder(group: dist.ProcessGroup | None, given: Path | None) -> Path:
    """One name for all: that of process 0."""
    name = [str(given or tempfile.mkdtemp()) if group is None or dist.get_rank(group) == 0 else None]
    if group is not None:
        dist.broadcast_object_list(name)
    return Path(str(name[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100, help="training tasks")
    parser.add_argument("--hessian", default="sketch", help="kind of total Hessian")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of the recording, on a disk that all machines share")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args()
    with processes() as group:
        first, folder = group is None or dist.get_rank(group) == 0, shared_folder(group, options.folder)
        if first:
            train(options.tasks, options.seed, folder)
        if group is not None:
            dist.barrier()
        study = Study.load(folder, model().to("cuda" if torch.cuda.is_available() else "cpu"))
        progress = False if options.quiet else None
        hook = TaskInfluence(study, loss=nn.CrossEntropyLoss(), hessian=options.hessian, group=group, progress=progress)
        test = [task(torch.Generator().manual_seed(options.seed + 1 + at)) for at in range(20)]
        start = time.perf_counter()
        result = hook.scores(test)
        if first:
            count = 1 if group is None else dist.get_world_size(group)
            print(f"{options.tasks} tasks scored by {count} process(es) in {time.perf_counter() - start:.2f} s")
            print("\n".join(f"task {row.task}: {row.score:+.3e}" for row in result.top(5)))


if __name__ == "__main__":
    main()
