"""Compute influence scores with several processes that share the training tasks.

    torchrun --nproc-per-node 2 examples/distributed_influence.py
    python examples/distributed_influence.py                       # the same with one process

Process 0 trains second-order MAML on tasks of synthetic images and saves the study. All processes load the study and
score the tasks together. Each process gets all scores.
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
    """Support and query set of a task. The images of a class are noisy copies of one random pattern."""
    patterns = torch.randn(WAYS, PIXELS, generator=generator)
    y = torch.arange(WAYS).repeat_interleave(SHOTS)
    return tuple((patterns[y] + torch.randn(len(y), PIXELS, generator=generator), y) for _ in range(2))


def train(count: int, seed: int, folder: Path) -> None:
    """Train, and save the study to a folder that all processes can read."""
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
    """The processes that torchrun started; None without torchrun."""
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


def shared_folder(process_group: dist.ProcessGroup | None, given: Path | None) -> Path:
    """The folder that process 0 chooses, for all processes."""
    first = process_group is None or dist.get_rank(process_group) == 0
    name = [str(given or tempfile.mkdtemp()) if first else None]
    if process_group is not None:
        dist.broadcast_object_list(name)
    return Path(str(name[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100, help="training tasks")
    parser.add_argument("--hessian", default="sketch", help="kind of total Hessian")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="folder for the study, on a disk that all machines share")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args()
    with processes() as process_group:
        first = process_group is None or dist.get_rank(process_group) == 0
        folder = shared_folder(process_group, options.folder)
        if first:
            train(options.tasks, options.seed, folder)
        if process_group is not None:
            dist.barrier()
        study = Study.load(folder, model().to("cuda" if torch.cuda.is_available() else "cpu"))
        progress = False if options.quiet else None
        influence = TaskInfluence(
            study, loss=nn.CrossEntropyLoss(), hessian=options.hessian, process_group=process_group, progress=progress
        )
        tests = [task(torch.Generator().manual_seed(options.seed + 1 + number)) for number in range(20)]
        start = time.perf_counter()
        scores = influence.scores(tests)
        if first:
            count = 1 if process_group is None else dist.get_world_size(process_group)
            print(f"{options.tasks} tasks scored by {count} process(es) in {time.perf_counter() - start:.2f} s")
            print("\n".join(f"task {row.task}: {row.score:+.3e}" for row in scores.top(5)))


if __name__ == "__main__":
    main()
