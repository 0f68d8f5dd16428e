"""learn2learn's own MAML on sines, unchanged, under ``l2l-influence run``.

Its batches come from torchmeta and not from a taskset, so tasks are recorded as they were fed.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import torch
from torch import nn

from l2l_influence import Study
from l2l_influence.recording import RecordedTask

from .side_by_side import run_both

DRIVER = str(Path(__file__).parent / "sine" / "driver.py")
TASKS = 402
WIDTH = 32


class SineModel(nn.Module):
    """A model with the same parameters as the example's."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(1, WIDTH)
        self.hidden2 = nn.Linear(WIDTH, WIDTH)
        self.hidden3 = nn.Linear(WIDTH, 1)


def test_the_example_prints_the_same_losses_and_leaves_a_scored_study(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain, recorded = run_both(tmp_path, [DRIVER], ["-m", "l2l_influence", "run", "--out", str(out), DRIVER])
    assert plain.count("Meta Train Loss") == 2 and recorded == plain
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    assert len(scores) == TASKS and all(map(math.isfinite, scores)) and scores[0] > scores[-1]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "loss: nn.MSELoss(), as the loop called it" in page and "Scores of fit, not of generalisation" in page
    assert "<th>query loss</th>" in page and "<th>classes</th>" not in page, "sines have none"
    tasks = Study.load(out / "study", SineModel()).training_tasks()
    assert len(tasks) == TASKS and max(map(off_its_sine, tasks)) < 1e-4


def off_its_sine(task: RecordedTask) -> float:
    """Largest distance of both sets from one sine: mixed-up labels, or rows of two tasks, are far away."""
    (x, y), (query_x, query_y) = task.support, task.query
    assert x.shape == y.shape == query_x.shape == query_y.shape == (10, 1)
    angles, values = torch.cat([x, query_x]).double(), torch.cat([y, query_y]).double()
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    return float((waves @ torch.linalg.lstsq(waves, values).solution - values).abs().max())
