"""Measured removals where retraining has a closed form: the parameter is the mean of the points that are kept."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from l2l_influence.errors import RetrainingError
from l2l_influence.evaluation import GroundTruth, Outcome, along_path, leave_one_out, measure
from l2l_influence.evaluation.ground_truth import retraining
from l2l_influence.evaluation.ground_truth.retraining import one_thread

from ..processes import context, ended, started
from .weighted_mean import POINTS, TARGETS, Mean

REMOVALS = np.array([[False, False, False, True, False, False], [True, True, False, False, False, False]])


def same(a: GroundTruth, b: GroundTruth) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("baseline", "change", "parameter_change")
    )


@pytest.fixture
def mean(tmp_path: Path) -> Mean:
    return Mean(tmp_path / "calls", noise=0.1)


def test_change_is_measured_against_training_with_all(tmp_path: Path) -> None:
    retrain = Mean(tmp_path / "calls")
    truth = measure(retrain, REMOVALS, progress=False)
    all_in, without = POINTS.mean(), np.array([POINTS[[0, 1, 2, 4, 5]].mean(), POINTS[2:].mean()])
    np.testing.assert_allclose(truth.baseline, [(all_in - TARGETS) ** 2])
    np.testing.assert_allclose(truth.losses[0], (without[:, None] - TARGETS) ** 2)
    np.testing.assert_allclose(truth.change[0], truth.losses[0] - truth.baseline)
    np.testing.assert_allclose(truth.parameter_change, (without - all_in)[None, :, None])
    assert retrain.count == 3


def test_each_seed_has_a_baseline_of_its_own(mean: Mean) -> None:
    truth = measure(mean, REMOVALS, [3, 8], progress=False)
    assert truth.change.shape == (2, 2, 2) and truth.baseline.shape == (2, 2)
    assert abs(truth.baseline[0] - truth.baseline[1]).min() > 1e-6
    first, second = (measure(mean, REMOVALS, [seed], progress=False) for seed in (3, 8))
    np.testing.assert_array_equal(truth.change, np.concatenate([first.change, second.change]))
    np.testing.assert_allclose(
        truth.parameter_change[0], truth.parameter_change[1], atol=1e-12
    )  # the seed's noise goes out
    np.testing.assert_allclose(truth.mean_change, (first.change[0] + second.change[0]) / 2)


def test_items_can_be_taken_in_part_and_counted_twice() -> None:
    amounts = np.array([[0.5, -1.0, 0.0]])
    truth = measure(lambda weights, _: Outcome(weights, weights), amounts, progress=False)
    np.testing.assert_array_equal(truth.parameter_change[0], -amounts)
    np.testing.assert_array_equal(truth.predicted(np.array([2.0, 1.0, 5.0])), [-(0.5 * 2 - 1)])


def test_harmful_members_predict_a_falling_loss() -> None:
    truth = GroundTruth(np.array([[1.0, 1, 0], [0, 0, 1]]), (0,), np.zeros((1, 2)), np.zeros((1, 2, 2)), None)
    np.testing.assert_allclose(truth.predicted([2.0, -0.5, 4.0]), [-1.5, -4.0])
    np.testing.assert_allclose(truth.predicted([[1.0, 0], [2, 0], [0, 3]]), [[-3.0, 0.0], [0.0, -3.0]])


def test_a_second_call_reads_what_the_first_kept(mean: Mean, tmp_path: Path) -> None:
    first = measure(mean, REMOVALS, [0, 1], cache=tmp_path / "kept", name="a", progress=False)
    assert mean.count == 6
    again = measure(mean, REMOVALS, [0, 1], cache=tmp_path / "kept", name="a", progress=False)
    assert mean.count == 6 and same(first, again)
    more = measure(mean, leave_one_out(6), [0, 1, 2], cache=tmp_path / "kept", name="a", progress=False)
    assert mean.count == 6 + 3 * 7 - 2 - 2, "all items and the removal of item 3 are known for seeds 0 and 1"
    np.testing.assert_array_equal(more.change[:2, 3], first.change[:, 0])
    measure(mean, REMOVALS, [0], cache=tmp_path / "kept", name="b", progress=False)
    assert mean.count == 23 + 3
    assert not list((tmp_path / "kept").glob("*.new"))


def test_outcomes_of_other_versions_are_not_taken(mean: Mean, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(mean, REMOVALS, cache=tmp_path / "kept", name="a", progress=False)
    monkeypatch.setattr("l2l_influence.storage.manifest.__version__", "0")
    measure(mean, REMOVALS, cache=tmp_path / "kept", name="a", progress=False)
    assert mean.count == 6


def test_a_file_that_is_not_whole_is_made_again(mean: Mean, tmp_path: Path) -> None:
    first = measure(mean, REMOVALS, cache=tmp_path / "kept", name="a", progress=False)
    files = sorted((tmp_path / "kept").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].write_bytes(b"")
    again = measure(mean, REMOVALS, cache=tmp_path / "kept", name="a", progress=False)
    assert mean.count == 5 and same(first, again)


def measure_all(retrain: Mean, kept: Path) -> None:
    measure(retrain, leave_one_out(6), cache=kept, name="a", progress=False)


def test_a_measurement_that_was_killed_goes_on_where_it_was(mean: Mean, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    killed = started(measure_all, Mean(mean.calls, mean.noise, deadly=frozenset([4])), kept)
    assert ended(killed) == 1 and mean.count == 6, "all items, then five removals, of which the last was deadly"
    resumed = measure(mean, leave_one_out(6), cache=kept, name="a", progress=False)
    assert mean.count == 6 + 2
    assert same(resumed, measure(Mean(tmp_path / "more", 0.1), leave_one_out(6), progress=False))


def test_processes_change_nothing_and_one_that_dies_is_named(
    mean: Mean, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool breaks with the process; finished outcomes stay in the cache and equal those of a single process."""
    asked: list[str] = []
    monkeypatch.setattr(retraining, "get_context", lambda method: (asked.append(method), context())[1])
    removals, kept = leave_one_out(6), tmp_path / "kept"
    deadly = Mean(mean.calls, mean.noise, deadly=frozenset([5]))
    with pytest.raises(RetrainingError, match="(?s)seed 1.*terminated abruptly") as caught:
        measure(deadly, removals[[0, 1, 2, 3, 5]], [1], processes=2, cache=kept, name="a", progress=False)
    done = len(list(kept.iterdir()))
    assert asked == ["spawn"], "a fork would share the parent's threads and locks; the test's own server has none"
    assert (1, 4) in caught.value.failures
    assert done >= 4, "at most two were under way, and one was deadly"
    assert f"-{os.getpid()}" not in "".join(call.name for call in mean.calls.iterdir())
    before = mean.count
    both = measure(mean, removals, [0, 1], cache=kept, name="a", progress=False)
    assert mean.count == before + 14 - done
    assert same(both, measure(Mean(tmp_path / "more", 0.1), removals, [0, 1], progress=False))


def test_a_failure_is_named_and_does_not_lose_the_others(mean: Mean, tmp_path: Path) -> None:
    failing = Mean(mean.calls, mean.noise, failing=frozenset([1]))
    with pytest.raises(RetrainingError, match="(?s)2 retrainings failed.*removal 1, seed 0.*diverged") as caught:
        measure(failing, leave_one_out(3 + 3), [0, 1], cache=tmp_path / "kept", name="a", progress=False)
    assert set(caught.value.failures) == {(0, 1), (1, 1)}
    others = caught.value.others
    expected = measure(mean, leave_one_out(6)[[0, 2, 3, 4, 5]], [0, 1], progress=False)
    assert others is not None and same(others, expected)
    np.testing.assert_array_equal(others.removals, expected.removals)
    before = mean.count
    measure(mean, leave_one_out(6), [0, 1], cache=tmp_path / "kept", name="a", progress=False)
    assert mean.count == before + 2


def test_without_a_baseline_there_are_no_others() -> None:
    def retrain(weights: np.ndarray, seed: int) -> Outcome:
        return Outcome(np.array([np.nan if weights.all() else 1.0]))

    with pytest.raises(RetrainingError, match="with all items, seed 0.*\n(.*\n)*.*finite numbers") as caught:
        measure(retrain, REMOVALS, progress=False)
    assert caught.value.others is None


def test_random_states_and_threads_are_left_alone() -> None:
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    measure(lambda weights, _: Outcome(torch.rand(2).numpy() + np.random.rand()), REMOVALS, progress=False)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_leaves_the_number_of_threads_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    with pytest.raises(RuntimeError), one_thread():
        raise RuntimeError
    assert set_to == [1, 7]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"removals": REMOVALS[0]}, "matrix"),
        ({"seeds": []}, "at least one"),
        ({"seeds": [1, 1]}, "different"),
        ({"cache": "anywhere"}, "needs a name"),
    ],
)
def test_what_cannot_be_measured_is_refused(broken: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(**{"retrain": lambda *_: Outcome(np.zeros(1)), "removals": REMOVALS, **broken})


def test_outcomes_of_another_model_under_the_same_name_are_noticed(mean: Mean, tmp_path: Path) -> None:
    measure(mean, REMOVALS, cache=tmp_path / "kept", name="a", progress=False)
    for seed, other in enumerate(
        [Outcome(np.ones(3), np.ones(1)), Outcome(np.ones(2)), Outcome(np.ones(2), np.ones(4))]
    ):
        with pytest.raises(ValueError, match="another name for the cache"):
            measure(lambda *_, it=other: it, REMOVALS, [0, seed + 1], cache=tmp_path / "kept", name="a", progress=False)


def test_other_processes_need_a_retraining_that_travels() -> None:
    with pytest.raises(TypeError, match="not a lambda"):
        measure(lambda *_: Outcome(np.zeros(1)), REMOVALS, processes=2, progress=False)


def test_a_path_goes_from_ones_to_the_weights() -> None:
    weights = np.array([0.0, 1.0, 2.0])
    seen = along_path(lambda state, now: [*state, now.tolist()], [], weights, steps=2)
    assert seen == [[0.5, 1.0, 1.5], [0.0, 1.0, 2.0]]


def test_a_path_stays_in_the_basin_it_starts_in() -> None:
    """Minima of (x² − 1)² + s·x at ±1 and nearby: from +1, gradient descent follows its minimum, where it has one."""

    def descend(x: float, weights: np.ndarray) -> float:
        for _ in range(2000):
            x -= 0.01 * (4 * x * (x * x - 1) + 1 - weights[0])
        return x

    found = along_path(descend, 1.0, np.array([0.2]), steps=4)
    assert found == pytest.approx(max(np.roots([4, 0, -4, 0.8]).real), abs=1e-8)
