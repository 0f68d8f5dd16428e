"""The plan that bounds the work of scoring, in numbers."""

from __future__ import annotations

import pytest

from l2l_influence.app.script_run.work import SAMPLES, StudySize, WorkPlan, plan_work
from l2l_influence.bilevel import Sketch, Subsample


def plan(
    trained: float,
    tasks: int,
    tests: int = 100,
    *,
    hessian: str = "sketch",
    rows: int = 4096,
    bound: float | None = 1.0,
) -> WorkPlan:
    return plan_work(StudySize(trained, tasks, tests, rows), hessian, bound)


def test_nothing_is_reduced_within_the_bound() -> None:
    found = plan(trained=10_000, tasks=100)
    assert (found.samples, found.test_tasks, found.hessian_tasks) == (SAMPLES, 100, 100)
    assert found.curvature == "sketch" and not found.reductions and "--work" not in str(found)


@pytest.mark.parametrize(("trained", "samples"), [(1800, 16), (1799, 15), (1000, 8), (300, 1)])
def test_samples_of_the_sketch_are_reduced_first(trained: int, samples: int) -> None:
    found = plan(trained, tasks=100)
    assert (found.samples, found.test_tasks, found.hessian_tasks) == (samples, 100, 100)
    assert found.passes <= trained < samples * 100 + 300 or samples == SAMPLES


def test_then_test_tasks_and_then_tasks_of_the_hessian() -> None:
    fewer_tests = plan(trained=250, tasks=100)
    assert (fewer_tests.samples, fewer_tests.test_tasks, fewer_tests.hessian_tasks) == (1, 50, 100)
    assert fewer_tests.curvature == Sketch(1) and fewer_tests.passes == 250
    fewer_tasks = plan(trained=200, tasks=100)
    assert (fewer_tasks.samples, fewer_tasks.test_tasks, fewer_tasks.hessian_tasks) == (1, 20, 80)
    assert fewer_tasks.curvature == Subsample(Sketch(1), tasks=80) and fewer_tasks.passes == 200
    assert str(fewer_tasks) == (
        "scored with 1 of 16 samples of the sketch, 20 of 100 test tasks and a Hessian of 80 of 100 training tasks, "
        "about 1.0 times the work of the training; --work all for everything"
    )


def test_a_rest_is_kept_and_the_line_says_what_it_costs() -> None:
    found = plan(trained=1000, tasks=1000)
    assert (found.samples, found.test_tasks, found.hessian_tasks) == (1, 100, 500) and "about 1.6 times" in str(found)
    small = plan(trained=10, tasks=10, tests=6)
    assert (small.samples, small.test_tasks, small.hessian_tasks) == (1, 6, 10)


def test_no_bound_and_a_larger_bound_ask_for_more() -> None:
    assert plan(10, 10, 6, bound=None).samples == 16 and not plan(10, 10, 6, bound=None).reductions
    assert [plan(100, 100, bound=bound).samples for bound in (3, 6, 18)] == [1, 4, 16]


def test_the_sketch_keeps_no_more_than_its_rows() -> None:
    assert plan(trained=1, tasks=1000, rows=4096, bound=None).hessian_passes == 4000
    assert plan(trained=1, tasks=1000, rows=50, bound=None).hessian_passes == 50


def test_other_hessians_are_counted_by_products() -> None:
    found = plan(trained=1000, tasks=100, hessian="exact")
    assert found.curvature == Subsample("exact", tasks=44) and found.test_tasks == 20 and found.passes <= 1000
    free = plan(trained=100, tasks=100, tests=50, hessian="identity")
    assert free.curvature == "identity" and free.hessian_passes == 0 and free.test_tasks == 20


def test_scores_come_in_blocks_if_these_cost_little() -> None:
    assert plan(10, 10, 6, bound=None).blocks == 4
    assert plan(10, 10, 1, bound=None).blocks == 1, "no more than test tasks"
    assert plan(1000, 100).blocks == 1, "the bound has no room for more"
    blocks = plan(5000, 100)
    assert blocks.blocks == 4 and blocks.passes <= 5000
