"""What a pass over the tasks holds in memory does not grow with their number."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch

from l2l_influence.bilevel import BilevelProblem, Task, Unrolled


class Drawn(Sequence[Task]):
    """Linear regression tasks that are made when they are read, and not kept."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i):
        x = torch.full((2, 8), 1.0 + i % 7)
        return Task(support=(x, x[:, :1]), query=(x, x[:, :1]))


def losses(lam, theta, x, y):
    return (x @ theta["w"] - y).square().sum(1)


def held() -> int:
    """Bytes of all tensors that are alive, each memory once."""
    alive = [value for value in gc.get_objects() if type(value) is torch.Tensor]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}.values())


def peak(count: int) -> int:
    problem = BilevelProblem(losses, losses, Unrolled(0.01, 1), 0.1, memory=2**15, progress=False)
    solved_tasks = problem.at({"w": torch.ones(8, 1)}, Drawn(count))
    gc.collect()  # errors of other tests hold tensors of torch.func, which have no storage
    before, most = held(), 0
    for number, solved in enumerate(at for _ in range(2) for at in solved_tasks.microbatches()):
        solved.weighted_gradient()
        if number % 20 == 0:  # going through all objects takes its time
            most = max(most, held())
    return most - before


def test_the_peak_is_that_of_a_tenth_of_the_tasks():
    few, many = peak(200), peak(2000)
    assert 0 < many <= 1.02 * few
