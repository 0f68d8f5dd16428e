"""The whole measurement: ``python -m benchmarks estimators [--quick] [--out FOLDER]``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from l2l_influence.bilevel.stationarity import stationarity

from ..journal import Journal, Row, as_json, settings
from .cost import seconds
from .fidelity import ESTIMATORS, Linearised, rows_of
from .inverses import inverse_rows
from .retraining import Retraining
from .tables import page_tables
from .truth import choose, measure
from .worlds import FULL, QUICK, WORLDS, Size, World


def run(quick: bool, out: Path) -> None:
    """Measure what ``out`` does not hold yet, and write ``estimators.json`` and ``estimators.md`` there."""
    size = QUICK if quick else FULL
    command = "python -m benchmarks estimators" + (" --quick" if quick else "")
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / "rows.jsonl", settings(command, asdict(size)), ("world", "seed"))
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
    lam, values = linearised.solved_tasks.lam, torch.linalg.eigvalsh(hessian)
    by_package = linearised.matrix(ESTIMATORS[0]) + world.l2 * torch.eye(len(lam)).to(lam)
    return {
        "table": "worlds",
        "parameters": len(lam),
        "tasks": len(world.train),
        "stationarity": stationarity(linearised.solved_tasks, world.l2).tasks,
        "smallest": float(values[0]),
        "largest": float(values[-1]),
        "exact": float((by_package - hessian).norm() / hessian.norm()),
        "train": float(retraining.losses(lam, world.train).mean()),
        "test": float(retraining.losses(lam, world.test).mean()),
        "untrained": float(retraining.losses(world.layout.ravel(world.start), world.test).mean()),
    }
