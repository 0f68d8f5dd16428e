"""Three real processes answer as one does, and tell each other of mistakes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from ..processes import ended, started
from .questions import alone, answer

RANKS = range(3)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    processes = [started(answer, folder, rank, len(RANKS)) for rank in RANKS]
    assert [ended(process) for process in processes] == [0] * len(RANKS)
    return [torch.load(folder / f"found-{rank}", weights_only=False) for rank in RANKS]


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, torch.Tensor]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return alone()


def test_all_ranks_say_what_one_process_says(found: list[dict[str, Any]], expected: Any) -> None:
    wrong = []
    for rank in RANKS:
        for group, answers in found[rank]["answers"].items():
            assert answers.keys() == expected[group].keys()
            for question, value in answers.items():
                true = expected[group][question]
                error = float((value - true).norm() / true.norm().clamp_min(1e-30)) if value.numel() else 0.0
                if value.shape != true.shape or not error < 1e-10:
                    wrong.append((rank, group, question, error))
    assert not wrong, wrong


def test_all_ranks_say_the_same_to_the_bit(found: list[dict[str, Any]]) -> None:
    for group, answers in found[0]["answers"].items():
        for question, value in answers.items():
            assert torch.equal(value, found[2]["answers"][group][question])


@pytest.mark.parametrize("mistake", ["other weights", "fewer tasks", "other order", "other size"])
def test_different_questions_are_an_error_on_all(found: list[dict[str, Any]], mistake: str) -> None:
    assert all(found[rank]["mistakes"][mistake].startswith("RanksApartError") for rank in RANKS)


def test_what_fails_on_one_is_told_to_all(found: list[dict[str, Any]]) -> None:
    """Task 1 is rank 1's."""
    told = [found[rank]["mistakes"]["unreadable"] for rank in RANKS]
    assert told[1] == "OSError: the disk is gone"
    assert told[0].startswith("RankFailedError") and "[1]" in told[0] and told[2].startswith("RankFailedError")


def test_after_mistakes_they_go_on(found: list[dict[str, Any]]) -> None:
    assert all(found[rank]["mistakes"]["in the end"] == "nothing" for rank in RANKS)
