"""What scores, removals and memory cost as studies grow: ``python -m benchmarks scale [--quick] [--out FILE]``.

Processor time is in units of a plain second-order epoch of learn2learn's over the same tasks, measured before and after
what it is compared with, in the same process. Each question is asked of a hook that has computed nothing yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import learn2learn as l2l
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from l2l_influence import MAML, QueryInfluence, SupportInfluence, TaskDataset, TaskInfluence

from .journal import Journal, Row, as_json, settings
from .markdown import Table, markdown
from .metering import measured
from .plain import LARGER, MINI_IMAGENET, MODELS, OMNIGLOT, epoch, taskset

COMMAND = "python -m benchmarks scale"

ITERATIONS, META_BATCH = 5000, 32
"""Of a retraining: the paper's iterations, each over as many tasks as in learn2learn's example."""

KINDS = ("gamma", "sketch", "gauss-newton")


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        tasks: N of the scores and removals.
        tests: test tasks, few and many.
        growth: N of the scores whose growth is looked at.
        wide: N, and test tasks, where it is the parameters that grow.
    """

    tasks: int
    tests: tuple[int, int]
    growth: tuple[int, ...]
    wide: tuple[int, int]


FULL = Size(1000, (100, 1000), (100, 1000, 10000), (8, 2))
QUICK = Size(12, (3, 6), (6, 12), (2, 1))

WIDE = ("OmniglotCNN", "MiniImagenetCNN", "OmniglotFC", "ResNet12")
"""Networks by their number of parameters."""

Question = Callable[[Callable[..., Any]], object]
"""``question(make)``, where ``make(kind_of_hook, **options)`` is a hook that has computed nothing."""


class Trained:
    """A learner that has seen ``count`` tasks once, and what that took without being recorded."""

    def __init__(self, model: str, count: int, lr: float = 0.5) -> None:
        self._model, self._count, self._lr = model, count, lr
        self._maml, self._tasks = MAML(self._network(), lr=lr), TaskDataset(self._drawn())
        epoch(self._maml, self._tasks)

    @property
    def parameters(self) -> int:
        return sum(value.numel() for value in self._maml.parameters())

    def ask(self, question: Question) -> Row:
        """Cost of a question to new hooks."""
        before = self._plain()
        cost = measured(lambda: question(self.hook))[1]
        plain = (before + self._plain()) / 2
        return {**cost, "epoch": plain, "ratio": cost["seconds"] / plain}

    def hook(self, kind: Any, **options: Any) -> Any:
        """A hook that has computed nothing."""
        return kind(self._maml, self._tasks, nn.CrossEntropyLoss(), progress=False, on_unconverged="warn", **options)

    def _plain(self) -> float:
        maml, tasks = l2l.algorithms.MAML(self._network(), lr=self._lr), self._drawn()
        few = range(min(self._count, SOME))
        seconds: float = measured(lambda: epoch(maml, [tasks[i] for i in few]))[1]["seconds"]
        return seconds * self._count / len(few)

    def _network(self) -> nn.Module:
        module: nn.Module = {**MODELS, **LARGER}[self._model]()
        return module

    def _drawn(self) -> l2l.data.Taskset:
        return taskset(self._count, _shape(self._model))


def _shape(model: str) -> tuple[int, int, int]:
    """Of its images."""
    return MINI_IMAGENET if model in LARGER else OMNIGLOT


SOME = 200
"""Tasks that an epoch is measured on, and taken to be as long for all others."""


def scores(model: str, size: Size) -> Iterator[Row]:
    """All training tasks on the mean of the test tasks, and on each."""
    trained, (few, many) = Trained(model, size.tasks), size.tests
    for kind in KINDS:
        yield _row("scores", model, size.tasks, f"{kind}, mean of {few}", trained.ask(mean(kind, few)))
    for count in (few, many):
        yield _row("scores", model, size.tasks, f"sketch, each of {count:,}", trained.ask(each("sketch", count)))


def removals(model: str, size: Size) -> Iterator[Row]:
    """Edits, in units of a retraining."""
    trained, retraining = Trained(model, size.tasks), ITERATIONS * META_BATCH / size.tasks
    for what, kind, items in (
        ("1 task", TaskInfluence, [0]),
        ("20 tasks", TaskInfluence, list(range(min(20, size.tasks)))),
        ("1 query sample", QueryInfluence, [(0, 0)]),
        ("1 support sample", SupportInfluence, [(0, 0)]),
    ):
        cost = trained.ask(lambda make: make(kind).remove(items))  # noqa: B023
        yield _row("removals", model, size.tasks, what, cost | {"ratio": cost["ratio"] / retraining})


def growth(model: str, size: Size) -> Iterator[Row]:
    """Scores for more and more tasks."""
    for count in size.growth:
        trained = Trained(model, count)
        for kind in ("gamma", "sketch"):
            yield _row("growth", model, count, kind, trained.ask(mean(kind, size.tests[0])))


def parameters(model: str, size: Size) -> Iterator[Row]:
    """Scores of few tasks by networks of different size, with steps that suit all of them."""
    count, tests = size.wide
    trained = Trained(model, count, lr=0.01)
    for kind in ("gamma", "sketch"):
        cost = trained.ask(mean(kind, tests, _shape(model)))
        yield _row("parameters", model, count, kind, {"parameters": trained.parameters, **cost})


PARTS: dict[str, Callable[[str, Size], Iterator[Row]]] = {
    "scores": scores,
    "removals": removals,
    "growth": growth,
    "parameters": parameters,
}


def units() -> list[tuple[str, str]]:
    """Parts of networks, in the order in which they are measured."""
    return [(part, model) for part in PARTS for model in (WIDE if part == "parameters" else MODELS)]


def mean(kind: str, tests: int, shape: tuple[int, int, int] = OMNIGLOT) -> Question:
    """Scores on the mean of so many test tasks."""
    drawn = taskset(tests, shape)
    return lambda make: make(TaskInfluence, hessian=kind).scores(drawn)


def each(kind: str, tests: int) -> Question:
    """Scores on each of so many test tasks."""
    drawn = taskset(tests)
    return lambda make: make(TaskInfluence, hessian=kind).score_matrix(drawn, tests)


def _row(part: str, model: str, tasks: int, what: str, cost: Row) -> Row:
    return {"part": part, "model": model, "tasks": tasks, "what": what, **cost}


def exponent(rows: list[Row]) -> float:
    """The slope of log time over log N."""
    counts, seconds = ([row[name] for row in rows] for name in ("tasks", "seconds"))
    return float(np.polyfit(np.log(counts), np.log(seconds), 1)[0])


def tables(rows: list[Row]) -> dict[str, str]:
    """What was aimed at, and what was found, by part; as the page shows them."""
    found = {name: [row for row in rows if row["part"] == name] for name in TABLES}
    shown = {name: markdown(table(found[name])) for name, table in TABLES.items() if found[name]}
    return {"aims": markdown(_aims_table(found)), **shown}


def _aims_table(found: dict[str, list[Row]]) -> Table:
    models = list(dict.fromkeys(row["model"] for row in found["scores"]))
    lines: Table = [["what", "aim", *models]]
    for what, aim, part, figure in AIMS:
        own = [[row for row in found[part] if row["model"] == model] for model in models]
        lines.append([what, f"≤ {aim:g}", *(_verdict(figure(rows), aim) if rows else "" for rows in own)])
    return lines


def _verdict(figure: float, aim: float) -> str:
    word = "" if np.isnan(figure) else ", met" if figure <= aim else ", **missed**"
    return f"{figure:.2g}{word}"


def _worst(text: str) -> Callable[[list[Row]], float]:
    """The largest ratio of rows about this."""
    return lambda rows: max(row["ratio"] for row in rows if text in row["what"])


def _each(rows: list[Row]) -> list[float]:
    """Ratios of the scores on each test task: of few, and of many."""
    return [row["ratio"] for row in rows if "each of" in row["what"]]


def _of_kinds(figure: Callable[[list[Row]], float]) -> Callable[[list[Row]], float]:
    """The largest of what each kind of Hessian has."""
    return lambda rows: max(figure([row for row in rows if row["what"] == kind]) for kind in {r["what"] for r in rows})


def _growth_of_memory(rows: list[Row]) -> float:
    """From the last but one to the last."""
    before, after = (row["mebibytes"] for row in rows[-2:])
    return float("nan") if None in (before, after) else float(after / before)


def _scores_table(rows: list[Row]) -> Table:
    lines: Table = [["network", "tasks", "scores", "time / epoch", "peak memory"]]
    for row in rows:
        lines.append([row["model"], f"{row['tasks']:,}", row["what"], f"{row['ratio']:.1f}", _memory(row)])
    return lines


def _removals_table(rows: list[Row]) -> Table:
    lines: Table = [["network", "tasks", "removed", "time / retraining", "peak memory"]]
    for row in rows:
        lines.append([row["model"], f"{row['tasks']:,}", row["what"], f"{row['ratio']:.4f}", _memory(row)])
    return lines


def _growth_table(rows: list[Row]) -> Table:
    lines: Table = [["network", "Hessian", "tasks", "time / epoch", "peak memory", "exponent of time in N"]]
    for model, kind in dict.fromkeys((row["model"], row["what"]) for row in rows):
        own = [row for row in rows if (row["model"], row["what"]) == (model, kind)]
        for row in own:
            slope = f"{exponent(own):.2f}" if row is own[-1] and len(own) > 1 else ""
            lines.append([model, kind, f"{row['tasks']:,}", f"{row['ratio']:.1f}", _memory(row), slope])
    return lines


def _parameters_table(rows: list[Row]) -> Table:
    lines: Table = [
        ["network", "parameters", "Hessian", "tasks", "time / epoch", "peak memory", "peak memory ÷ size of λ"]
    ]
    for row in rows:
        vectors = "not told" if row["mebibytes"] is None else f"{row['mebibytes'] * 2**20 / row['parameters'] / 4:.0f}"
        size = [f"{row['parameters']:,}", row["what"], f"{row['tasks']:,}", f"{row['ratio']:.1f}"]
        lines.append([row["model"], *size, _memory(row), vectors])
    return lines


AIMS: list[tuple[str, float, str, Callable[[list[Row]], float]]] = [
    ("Γ, mean of the test tasks: epochs", 4, "scores", _worst("gamma")),
    ("Gauss–Newton, mean of the test tasks: epochs", 10, "scores", _worst("gauss-newton")),
    ("sketch, each of few test tasks: epochs", 5, "scores", lambda rows: _each(rows)[0]),
    ("sketch, each of many ÷ each of few", 1.1, "scores", lambda rows: _each(rows)[1] / _each(rows)[0]),
    ("removal of tasks ÷ retraining", 0.02, "removals", _worst("task")),
    ("removal of a sample ÷ retraining", 0.005, "removals", _worst("sample")),
    ("exponent of time in N", 1.05, "growth", _of_kinds(exponent)),
    ("peak memory for the most tasks ÷ for fewer", 1.1, "growth", _of_kinds(_growth_of_memory)),
]
"""What, the aim, and the figure of a part's rows of one network. The aims were set before anything was measured."""

TABLES: dict[str, Callable[[list[Row]], Table]] = {
    "scores": _scores_table,
    "removals": _removals_table,
    "growth": _growth_table,
    "parameters": _parameters_table,
}


def _memory(row: Row) -> str:
    return "not told" if row["mebibytes"] is None else f"{row['mebibytes']:.0f} MiB"


def scale(quick: bool, out: Path) -> None:
    """Measure what is not in ``out`` with another ending, ``.jsonl``, yet; print the tables and write the rows."""
    torch.set_num_threads(1)
    size = QUICK if quick else FULL
    journal = Journal(out.with_suffix(".jsonl"), settings(COMMAND, vars(size)), ("part", "model"))
    for name, model in units():
        if not journal.has(name, model):
            journal.add(list(tqdm(PARTS[name](model, size), desc=f"{model}, {name}", unit="row", disable=None)))
    out.write_text(as_json({**journal.settings, "rows": journal.rows}), encoding="utf-8")
    print("\n\n".join(tables(journal.rows).values()))
