"""The whole measurement: ``python -m benchmarks estimators [--quick] [--out FOLDER]``."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import scipy
import sklearn
import torch
from torch import Tensor
from tqdm import tqdm

import l2l_influence
from l2l_influence.bilevel.stationarity import stationarity

from .cost import seconds
from .fidelity import ESTIMATORS, Linearised, Row, rows_of
from .inverses import inverse_rows
from .retraining import Retraining
from .tables import page_tables
from .truth import choose, measure
from .worlds import FULL, QUICK, WORLDS, Size, World


def run(quick: bool, out: Path) -> None:
    """Measure what ``out`` does not hold yet, and write ``estimators.json`` and ``estimators.md`` there."""
    size = QUICK if quick else FULL
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / "rows.jsonl", _settings(quick, size))
    for name in WORLDS:
        for seed in range(size.seeds):
            if not journal.has(name, seed):
                journal.add(list(study(WORLDS[name](seed, size), size, seed)))
    measured = {**journal.settings, "rows": journal.rows}
    (out / "estimators.json").write_text(as_json(measured), encoding="utf-8")
    tables = "\n\n".join(page_tables(measured).values())
    (out / "estimators.md").write_text(tables + "\n", encoding="utf-8")
    print(f"{tables}\n\nwritten to {out}")


def study(world: World, size: Size, seed: int) -> Iterator[Row]:
    """All rows of a world and seed."""
    where: Row = {"world": world.name, "seed": seed}
    retraining = Retraining(world)
    found, hessian = retraining.trained()
    chosen = tqdm(
        choose(world, size, seed).items(), desc=f"{world.name}, seed {seed}: truth", unit="level", disable=None
    )
    truths = {level: measure(retraining, found.lam, hessian, removals) for level, removals in chosen}
    moved = {level: float(truth.moved.norm(dim=1).median() / found.lam.norm()) for level, truth in truths.items()}
    left = max(truth.left for truth in truths.values())
    linearised = Linearised(world, found.lam)
    yield where | _described(world, retraining, linearised, hessian) | {"moved": moved, "left": left}
    for estimator in tqdm(ESTIMATORS, desc=f"{world.name}, seed {seed}", unit="estimator", disable=None):
        for row in rows_of(linearised, estimator, truths):
            yield where | row
        yield where | seconds(world, found.lam, estimator, linearised.test_gradients.mean(0))
    for row in inverse_rows(world, found.lam):
        yield where | row


def _described(world: World, retraining: Retraining, linearised: Linearised, hessian: Tensor) -> Row:
    """λ* and its surroundings; ``hessian`` is by finite differences, with δ_o."""
    lam, values = linearised.local.lam, torch.linalg.eigvalsh(hessian)
    by_package = linearised.matrix(ESTIMATORS[0]) + world.l2 * torch.eye(len(lam)).to(lam)
    return {
        "table": "worlds",
        "parameters": len(lam),
        "tasks": len(world.train),
        "stationarity": stationarity(linearised.local, world.l2).tasks,
        "smallest": float(values[0]),
        "largest": float(values[-1]),
        "exact": float((by_package - hessian).norm() / hessian.norm()),
        "train": float(retraining.losses(lam, world.train).mean()),
        "test": float(retraining.losses(lam, world.test).mean()),
        "untrained": float(retraining.losses(world.layout.ravel(world.start), world.test).mean()),
    }


class Journal:
    """Rows on disk, a world and seed at a time, so that a run that was cut off goes on where it was.

    Raises:
        SystemExit: the file holds rows of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path, self.settings = path, settings
        if not path.exists():
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        first, *rest = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if first != settings:
            raise SystemExit(f"{path} was measured with other settings or versions: remove it, or pass another --out")
        self.rows: list[Row] = [row for unit in rest for row in unit]

    def has(self, world: str, seed: int) -> bool:
        return any((row["world"], row["seed"]) == (world, seed) for row in self.rows)

    def add(self, rows: list[Row]) -> None:
        rounded = [_rounded(row) for row in rows]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
        self.rows += rounded


def as_json(measured: dict[str, Any]) -> str:
    """One row a line."""
    head = json.dumps({key: value for key, value in measured.items() if key != "rows"}, indent=1)
    rows = ",\n".join(json.dumps(row) for row in measured["rows"])
    return f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n'


def _settings(quick: bool, size: Size) -> dict[str, Any]:
    return {
        "command": "python -m benchmarks estimators" + (" --quick" if quick else ""),
        "size": asdict(size),
        "versions": {
            "l2l_influence": l2l_influence.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }


def _rounded(value: Any) -> Any:
    """To four significant digits, all the way down."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
