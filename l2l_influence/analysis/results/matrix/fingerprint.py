"""The fingerprint of a score matrix: everything its numbers depend on, in a form that another process can compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ....bilevel import Task
from ....bilevel.inner import Proximal
from ....errors import ForeignMatrixError
from ....recording import RecordedTask
from ....storage.fingerprints import content_digest
from ...estimators import DirectionalFit
from ...items import SingleItems
from ...passes import Targets
from ...problem.state import state_of
from .shard_plan import ShardPlan

UNUSED = {"taskset", "read", "classes", "indices", "times_seen"}
"""Fields of a recorded task that no score depends on: its ``fingerprint`` stands for the data, and tasksets are
numbered anew in each process."""

SAME = 1e-3
"""Relative tolerance for the loss, which covers rounding; another model or loss moves it further."""


@dataclass(frozen=True)
class MatrixFingerprint:
    """Digests of all inputs, and a loss that depends on what no digest covers: the code of the model and the loss.

    Attributes:
        digests: by name, of the meta-parameters, the training tasks, the test tasks and each setting.
        loss: of the first training task at λ*, after adaptation.
    """

    digests: dict[str, str]
    loss: float

    @classmethod
    def of(cls, fit: DirectionalFit[Any], items: SingleItems, targets: Targets, plan: ShardPlan) -> MatrixFingerprint:
        """Reads the data of all test tasks once, and solves one training task."""
        run, estimator = fit.run, fit.estimator
        start = isinstance(run.problem.kind, Proximal)
        options = {name: value for name, value in vars(run.run.options).items() if name != "body"}
        chosen = {field.name: _listed(getattr(estimator, field.name)) for field in fields(estimator)}
        asked = {"items": items, "test_gradient": targets.test_gradient, "shard": plan.shard, "block": plan.block}
        settings = {**options, "memory": run.problem.memory, "estimator": estimator.name, **chosen, **asked}
        digests = {
            "meta-parameters": content_digest([repr(run.run.view.model), *state_of(run.run.view.owner, [])]),
            "training tasks": content_digest(_use(task, start) for task in run.recorded),
            "test tasks": content_digest(map(_data, targets.tasks)),
        }
        named = {f"{name}=": content_digest([value]) for name, value in settings.items()}
        return cls({**digests, **named}, float(run.solved_tasks.one(0).outer_loss()[0]))

    def require(self, known: Mapping[str, Any], where: object) -> None:
        """Compare with a saved fingerprint; ``where`` it was found is named in the error.

        Raises:
            ForeignMatrixError: they differ.
        """
        of = known["digests"]
        different = [name for name in {**of, **self.digests} if of.get(name) != self.digests.get(name)]
        if different:
            raise ForeignMatrixError(
                f"{where} holds scores of another study or of other settings; these differ: {', '.join(different)}. "
                "Pass a new folder, or the study and settings that the matrix was begun with; "
                "ScoreMatrix.load(folder) reads a finished one"
            )
        if not math.isclose(self.loss, known["loss"], rel_tol=SAME, abs_tol=SAME**2):
            raise ForeignMatrixError(
                f"{where} holds scores of another model or loss: the loss of the first training task was "
                f"{known['loss']:.6g} and is {self.loss:.6g} now, with the same parameters and data. Pass a new "
                "folder, or restore the code of the model and the loss"
            )


def _listed(setting: Any) -> Any:
    """A setting; any sequence, such as checkpoints, as a list, which is digested by its contents."""
    return list(setting) if isinstance(setting, Sequence) and not isinstance(setting, str) else setting


def _use(task: RecordedTask, start: bool) -> dict[str, Any]:
    """The fields of a recorded task that scores depend on; adapted parameters only where a solver starts at them."""
    unused = UNUSED if start else UNUSED | {"adapted"}
    return {field.name: getattr(task, field.name) for field in fields(task) if field.name not in unused}


def _data(task: Task) -> dict[str, Any]:
    return vars(task)
