"""A study that an earlier version saved still loads, and gives the scores that it gave then.

``format_1/`` holds a study as version 0.1.0 wrote it (four tasks, one of them drawn twice, two inner steps, float64),
and the scores that version computed from it on one test task, by item, inner kind and Hessian.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from l2l_influence import QueryInfluence, Study, SupportInfluence, TaskInfluence

FOLDER = Path(__file__).parent / "format_1"
SCORES = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))
HOOKS = {"task": TaskInfluence, "query": QueryInfluence, "support": SupportInfluence}


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.load(FOLDER / "study", nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double())


@pytest.fixture(scope="module")
def test_tasks():
    """One task: its inputs are standard normal, and its labels say where the first of them is positive, with noise."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + 0.3 * torch.randn(6, generator=generator, dtype=torch.float64) > 0).long()
    return [((x[::2], y[::2]), (x[1::2], y[1::2]))]


@pytest.mark.parametrize("case", SCORES)
def test_scores_are_what_they_were(study, test_tasks, case):
    item, inner, hessian = case.split()
    hook = HOOKS[item](study, hessian=hessian, inner=inner, damping=1.0, on_indefinite="minres", inner_tolerance=1e-6)
    _, matrix = hook.score_matrix(test_tasks)
    np.testing.assert_allclose(matrix[:, 0], SCORES[case], rtol=1e-6, atol=1e-9 * np.abs(SCORES[case]).max())


def test_counts_and_rules_are_read(study):
    tasks = study.training_tasks()
    assert len(tasks) == 4
    assert [(task.lr, task.steps, task.first_order) for task in tasks] == [(0.3, 2, False)] * 4
