"""learn2learn's own MAML on MNIST, unchanged, under ``l2l-influence run``."""

from __future__ import annotations

import csv
import gzip
import math
import os
from pathlib import Path

import pytest

from .side_by_side import EXAMPLES, run_both

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with MNIST in it, as torchvision leaves it there after downloading."""
    source = Path(os.environ.get("L2L_INFLUENCE_DATA", "data")) / "MNIST" / "raw"
    if not all((source / f"{name}.gz").is_file() for name in FILES):
        pytest.skip(
            f"the four files of MNIST are not in {source}: set L2L_INFLUENCE_DATA to the folder above MNIST/raw"
        )
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).write_bytes(gzip.decompress((source / f"{name}.gz").read_bytes()))
    return tmp_path


def test_the_example_prints_the_same_losses_and_leaves_a_scored_study(home: Path) -> None:
    script, out = str(EXAMPLES / "learn2learn" / "meta_mnist.py"), home / "out"
    options = ["--iterations", "2", "-tps", "3", "-fas", "2", "--no-cuda", "--download-location", str(home)]
    recorder = ["-m", "l2l_influence", "run", "--out", str(out)]
    plain, recorded = run_both(home, [script, *options], [*recorder, script, *options])
    assert plain.count("Loss :") == 2 and recorded == plain
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    assert len(scores) == 6 and all(map(math.isfinite, scores)) and scores[0] > scores[-1]
    assert "Scores of fit, not of generalisation" in (out / "report.html").read_text(encoding="utf-8")
