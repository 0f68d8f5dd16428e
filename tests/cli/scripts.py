"""Scripts for ``l2l-influence run``: write them, run them in an empty folder, and read what they leave."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path
from textwrap import dedent

import pytest
from torch import nn

from l2l_influence import Study
from l2l_influence.app.cli import main

FILES = {"study", "scores.csv", "ranking.png", "report.html"}

SET_UP = """
import argparse, os, pickle, random, sys
import learn2learn as l2l, numpy as np, torch
from torch import nn
from learn2learn.data.transforms import FusedNWaysKShots, LoadData, RemapLabels

random.seed(0), np.random.seed(0), torch.manual_seed(0)
labels = torch.arange(60) % 6
images = torch.randn(6, 8)[labels] + torch.randn(60, 8)
support = torch.arange(12) % 2 == 0

def taskset(count):
    data = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images, labels))
    transforms = [FusedNWaysKShots(data, n=3, k=4), LoadData(data), RemapLabels(data)]
    return l2l.data.Taskset(data, transforms, num_tasks=count)

def evaluate(maml, batch):
    learner, (x, y) = maml.clone(), batch
    learner.adapt(loss(learner(x[support]), y[support]))
    return loss(learner(x[~support]), y[~support])

def step(maml, batch):
    optimiser = torch.optim.SGD(maml.parameters(), 0.1)
    error = evaluate(maml, batch)
    error.backward()
    optimiser.step()
    print("error", error.item())

loss = nn.CrossEntropyLoss()
training, validation = taskset(10), taskset(6)
maml = l2l.algorithms.MAML(nn.Linear(8, 3), lr=0.4)
"""

TRAINING = """
for i in range(10):
    step(maml, training[i])
"""

VALIDATION = """
print("validation", sum(evaluate(maml, validation[i]).item() for i in range(6)) / 6)
"""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder. Imported into a test module, this applies to all its tests."""
    monkeypatch.chdir(tmp_path)


def write(*parts: str) -> None:
    Path("script.py").write_text("".join(dedent(part) for part in parts))


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        main(["run", *arguments])
    return end.value.code


def page(folder: str = "l2l-influence-run") -> str:
    """Text of the report, white space normalised."""
    text = re.sub(r"<(style|pre).*?</\1>|<[^>]+>", " ", (Path(folder) / "report.html").read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def code_on_the_page(folder: str = "l2l-influence-run") -> str:
    """The Python code with which the report says to continue."""
    whole = (Path(folder) / "report.html").read_text()
    return html.unescape(re.findall(r"<pre><code>([^<]*Study[.]load.*?)</code>", whole, re.DOTALL)[0])


def rows(folder: str = "l2l-influence-run") -> list[dict[str, str]]:
    with (Path(folder) / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scores(folder: str = "l2l-influence-run") -> dict[int, float]:
    return {int(row["task"]): float(row["score"]) for row in rows(folder)}


def loaded(folder: str = "l2l-influence-run") -> Study:
    return Study.load(Path(folder) / "study", nn.Linear(8, 3))
