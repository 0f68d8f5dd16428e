"""learn2learn's own MAML on Omniglot, unchanged, under ``l2l-influence run``."""

from __future__ import annotations

import csv
import math
import zipfile
from pathlib import Path

import pytest

from .side_by_side import run_both

DRIVER = """
import hashlib
from pathlib import Path

from maml_omniglot import main
from torchvision.datasets import Omniglot

# The archives were packed again, so torchvision takes them only if told their digests.
data = Path("~/data/omniglot-py").expanduser()
Omniglot.zips_md5 = {name: hashlib.md5((data / f"{name}.zip").read_bytes()).hexdigest() for name in Omniglot.zips_md5}
main(num_iterations=2, meta_batch_size=4, cuda=False)
"""
DRAWINGS = tuple(f"_{number:02}.png" for number in (1, 2, 3))
"""Of a character's twenty, as many as its tasks need and one more: the example reads all there are when it starts."""


@pytest.fixture
def home(omniglot_root: Path, tmp_path: Path) -> Path:
    """A home folder with ``data/omniglot-py`` in it, as torchvision leaves it there after downloading."""
    data = tmp_path / "data" / "omniglot-py"
    data.mkdir(parents=True)
    for archive in sorted((omniglot_root / "omniglot-py").glob("*.zip")):
        (data / archive.name).symlink_to(archive.resolve())
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(data, [name for name in packed.namelist() if name.endswith(DRAWINGS)])
    return tmp_path


def test_the_example_prints_the_same_losses_and_leaves_a_scored_study(home: Path) -> None:
    driver, out = home / "driver.py", home / "out"
    driver.write_text(DRIVER)
    plain, recorded = run_both(home, [str(driver)], ["-m", "l2l_influence", "run", "--out", str(out), str(driver)])
    assert plain.count("Meta Train Error") == 2 and plain.count("Meta Test Error") == 1
    assert recorded == plain
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["score"]) for row in rows]
    assert len(rows) == 8, "two iterations of four tasks, all different"
    assert all(map(math.isfinite, scores)) and scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    assert "12 tasks that the learner was fed but never trained on" in (out / "report.html").read_text()
