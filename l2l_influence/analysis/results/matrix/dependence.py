"""What a score matrix depends on, in a form that another process can compare."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from ....bilevel import Task
from ....bilevel.inner import Proximal
from ....bilevel.item_gradients import ItemGradient
from ....bilevel.solved_tasks import SolvedTasks
from ....errors import ForeignMatrixError
from ....recording import RecordedTask
from ....storage.fingerprints import plain_bytes
from ...estimators.outer import Outer
from ...problem.state import state_of
from ...run import Run
from .cut import Cut

UNUSED = {"taskset", "read", "classes", "indices", "times_seen"}
"""Fields of a recorded task that no score depends on, its fingerprint standing for its data; tasksets are numbered
anew in each process."""

SAME = 1e-3
"""How far a loss may be from what it was, for rounding: another model or loss moves it further."""

PLAIN = (type(None), bool, int, float, complex, str, bytes, Tensor)


@dataclass(frozen=True)
class Dependence:
    """Digests by what they are of; and a loss, which sees what no digest can, the code of the model and the loss.

    Attributes:
        digests: of the meta-parameters, the training tasks, the test tasks and each setting.
        loss: of the first training task at λ*, after adaptation.
    """

    digests: dict[str, str]
    loss: float

    @classmethod
    def of(cls, run: Run, outer: Outer, level: ItemGradient, test: SolvedTasks, exact: bool, cut: Cut) -> Dependence:
        """Reads the data of all test tasks once, and solves one training task."""
        study = outer.study
        start = isinstance(study.problem.kind, Proximal)
        options = {name: value for name, value in vars(study.options).items() if name != "progress"}
        chosen = {"level": level, "exact": exact, "shard": cut.shard, "block": cut.block}
        settings = {**options, **vars(outer.how), **chosen}
        digests = {
            "meta-parameters": digest([repr(run.model), *state_of(run.owner, [])]),
            "training tasks": digest(_use(task, start) for task in study.recorded),
            "test tasks": digest(map(_data, test.tasks)),
        }
        named = {f"{name}=": digest([value]) for name, value in settings.items()}
        return cls({**digests, **named}, float(study.solved_tasks.one(0).outer_loss()[0]))

    def require(self, known: Mapping[str, Any], where: object) -> None:
        """Raise a `ForeignMatrixError` unless what was written down agrees; ``where`` it was."""
        of = known["digests"]
        different = [name for name in {**of, **self.digests} if of.get(name) != self.digests.get(name)]
        if different:
            raise ForeignMatrixError(
                f"{where} holds scores of another study, or asked for otherwise: not the same are "
                f"{', '.join(different)}. Pass a new folder, or go on with what it was begun with; "
                "ScoreMatrix.load(folder) reads a finished one"
            )
        if not math.isclose(self.loss, known["loss"], rel_tol=SAME, abs_tol=SAME**2):
            raise ForeignMatrixError(
                f"{where} holds scores of another model or loss: that of the first training task was "
                f"{known['loss']:.6g} and is {self.loss:.6g}, on the same parameters and data. Pass a new folder, or "
                "put the code back"
            )


def digest(values: Iterable[Any]) -> str:
    """The same in every process for equal values: numbers, words, tensors, tuples, lists, mappings and dataclasses of
    these by what is in them, functions by their code, modules by their settings and tensors, all else by its type and
    its plain attributes."""
    found = hashlib.sha256()
    for value in values:
        for part in _parts(value):
            found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield plain_bytes(value)
    elif isinstance(value, PLAIN):
        yield repr(value).encode()
    elif isinstance(value, Mapping):
        yield from _parts(list(value.items()))
    elif isinstance(value, (tuple, list)):
        yield f"{len(value)} of".encode()
        for item in value:
            yield from _parts(item)
    else:
        yield from _parts(_contents(value))


def _contents(value: Any) -> list[Any]:
    """What an object is known by."""
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, FunctionType):
        return _code(value)
    if isinstance(value, partial):
        return [name, value.func, value.args, value.keywords]
    if isinstance(value, nn.Module):
        return [name, repr(value), _plain(vars(value)), value.state_dict()]
    if is_dataclass(value):
        return [name, *((field.name, getattr(value, field.name)) for field in fields(value))]
    return [name, str(getattr(value, "__qualname__", "")), _plain(getattr(value, "__dict__", {}))]


def _code(function: FunctionType) -> list[Any]:
    code, cells = function.__code__, [cell.cell_contents for cell in function.__closure__ or ()]
    constants = [constant for constant in code.co_consts if isinstance(constant, PLAIN)]
    held = [cell for cell in cells if isinstance(cell, PLAIN)]
    return [function.__qualname__, code.co_code, code.co_names, constants, held, _plain(function.__kwdefaults__ or {})]


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if isinstance(value, PLAIN)}


def _use(task: RecordedTask, start: bool) -> dict[str, Any]:
    """What is known of a recorded task, its adapted parameters only where they are a ``start``."""
    unused = UNUSED if start else UNUSED | {"adapted"}
    return {field.name: getattr(task, field.name) for field in fields(task) if field.name not in unused}


def _data(task: Task) -> dict[str, Any]:
    return vars(task)
