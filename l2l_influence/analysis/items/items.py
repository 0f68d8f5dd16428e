"""What the influence hooks of tasks, query samples and support samples share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from learn2learn.data import Taskset
from torch import Tensor

from ...bilevel.hessians import Subsets
from ...bilevel.item_gradients import ItemGradient
from ...bilevel.solved_tasks import SolvedTasks
from ...bilevel.task import Samples
from ...errors import ItemsError, NotSharedError, TaskShapeError
from ...recording import RecordedTask
from ..editing import edited_state
from ..estimators.curved import CurvedHook
from ..estimators.outer import Outer
from ..estimators.scoring import Found, each_test_gradient, mean_test_gradient, score, score_on_itself
from ..problem.data import Split
from ..problem.inner_notes import inner_notes
from ..problem.snapshot import Snapshot
from ..results.matrix import MatrixFingerprint, ScoreMatrix, ShardPlan, Writer
from ..results.result import Scores

if TYPE_CHECKING:
    from ...evaluation import Diagnosis, Retrain

Ref = TypeVar("Ref")
"""How a user names an item: a task's id, or (task's id, sample)."""

Result = TypeVar("Result", bound=Scores[Any])

Labels = Mapping[int, Any]
"""New labels by position in a support or query set."""

Finder = Callable[[Outer, ItemGradient, Tensor], Found]

SELF_READING = (
    "score = the item's own loss now − predicted loss after it is removed and λ retrained; the most negative first: λ "
    "leans on these most, as it does on wrong labels; unit: the loss"
)


class ItemInfluence(CurvedHook, Generic[Ref, Result]):
    """Scores, influences and edits for the items of one :class:`~l2l_influence.bilevel.item_gradients.Level`."""

    _level: ItemGradient

    # ---- what a subclass says ---------------------------------------------------------------------------------

    @abstractmethod
    def _refs(self, study: Snapshot, position: int, count: int) -> list[Ref]:
        """The names of a task's ``count`` items."""

    @abstractmethod
    def _count(self, task: RecordedTask) -> int:
        """How many items a task has, without reading its data."""

    @abstractmethod
    def _locate(self, study: Snapshot, ref: Ref) -> tuple[int, int]:
        """(position of the task, j) of a named item."""

    @abstractmethod
    def _result(
        self, study: Snapshot, found: Found, order: list[int], loss: float, notes: list[str], reading: str | None = None
    ) -> Result:
        """The found items in that order, as rows; ``loss`` is the mean that they were scored on."""

    # ---- what a user asks -------------------------------------------------------------------------------------

    def scores(
        self,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
        exact: bool = True,
    ) -> Result:
        """IS = −⟨(δ_o I + H)⁻¹ g_test, pull⟩ of every item (Def. 5.2), by one outer solve in all.

        Positive = harmful: the mean test loss is predicted to fall by the score if the item is removed and λ retrained.

        Args:
            test_tasks: a learn2learn taskset (read without using random numbers of yours), or a sequence of ``(x, y)``
                batches or ``((x, y), (x, y))`` support and query pairs.
            num_tasks: how many of them; all of a sequence, 100 of a taskset unless given.
            split: ``split(x, y) -> ((x, y), (x, y))`` for a taskset's batches; as in training unless given.
            seed: of the tasks drawn from a taskset that has not sampled them yet.
            exact: take the test tasks' total gradient; False for ∂_θ L_O alone, as the paper prints the score.
        """
        return self._scores(score, self._level, test_tasks, num_tasks, split, seed, exact)

    def score_matrix(
        self,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
        exact: bool = True,
    ) -> tuple[list[Ref], Tensor]:
        """Scores on each test task by itself: the items' names, and IS of shape ``(items, test)``, float64.

        The arguments are those of :meth:`scores`, whose score is the mean of a row. All test tasks are solved together.
        """
        outer = self._outer()
        tests = each_test_gradient(outer.study.test_problem(test_tasks, num_tasks, split, seed), exact)
        found = score(outer, self._level, tests)
        return self._all_refs(outer.study, found), torch.cat(found.scores)

    def score_matrix_to(
        self,
        folder: str | Path,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
        exact: bool = True,
        shard: int | None = None,
    ) -> ScoreMatrix:
        """:meth:`score_matrix` for more scores than fit in memory: written to ``folder`` as ``.npy`` files.

        A run that was killed is gone on with by asking the same again: test vectors that are solved and shards that are
        done are not computed again, and all ends with the same bits as if it had not been killed. The scores have the
        dtype of the meta-parameters, which is what they are computed in.

        Args:
            folder: a new one, or one that was begun here.
            test_tasks, num_tasks, split, seed, exact: as for :meth:`scores`. A sequence is read when needed, and more
                than once; a taskset's tasks are drawn and kept in memory.
            shard: training tasks in a file; about 64 MiB of scores unless given.

        Raises:
            NotSharedError: the hook has a group of processes.
            ForeignMatrixError: the folder holds scores that depend on something else, or something else.
        """
        if self._options.group is not None:
            raise NotSharedError("score_matrix_to() writes from one process: make the hook without group= for it")
        outer = self._outer()
        study = outer.study
        test = study.test_problem(test_tasks, num_tasks, split, seed)
        plan = ShardPlan.within(test, [self._count(task) for task in study.recorded], shard)
        writer = Writer(folder, outer, self._level, test, exact, plan)
        writer.begin(MatrixFingerprint.of(self._run, outer, self._level, test, exact, plan))
        solved = writer.solve()
        writer.score()
        study.stationarity = writer.tally.stationarity()
        writer.finish([*self._notes(study, solved, writer.tally.residual), _test_note(test, exact)])
        return ScoreMatrix.load(folder)

    def self_influence(self) -> Result:
        """Each item's score on its own loss, by one outer solve an item; the strongest first.

        Items of wrong labels tend to stand high: nothing else in the data explains them.
        """
        outer = self._outer()
        found = score_on_itself(outer, self._level)
        values = torch.cat(found.scores)[:, 0]
        loss = float(torch.cat(found.losses).mean())
        order = values.argsort(stable=True).tolist()
        return self._result(
            outer.study, found, order, loss, self._notes(outer.study, [outer.note()], found.residual), SELF_READING
        )

    def influence(self, items: Ref | Iterable[Ref]) -> dict[str, Tensor]:
        """The paper's influence function of an item, or of a group (its members' sum): named tensors like
        ``maml.module``'s parameters, and like the learned rates and transforms as ``maml.state_dict()`` calls them."""
        outer = self._outer()
        return self._unravel(outer, self._level.influence(self._solved_gradient(outer, self._level, items)))

    def remove(self, items: Ref | Iterable[Ref], *, correct_residual: bool = False) -> dict[str, Tensor]:
        """The learner's state_dict with λ* moved to where training without these items is predicted to end.

        ``maml.load_state_dict(edited)`` applies it, MetaSGD's rates and GBML's transforms included; ``maml`` itself is
        left as it is. With a ``body`` it is the state_dict of
        ``nn.ModuleDict({"body": body, **dict(maml.named_children())})``.

        Args:
            items: one, or several, each named once.
            correct_residual: also take the step to the minimum that λ* has not reached, −(δ_o I + H)⁻¹ D_λ L_Total
                (see :meth:`stationarity`); the edit is then to be compared with training to the end.
        """
        outer = self._outer()
        gradient = outer.gradient(self._level, self._located(outer.study, items))
        return self._moved(outer, -gradient, correct_residual)

    def diagnose(
        self,
        test_tasks: Taskset | Sequence[Any] | None = None,
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        retrain: Retrain | None = None,
        spot_checks: int = 8,
        seed: int = 0,
    ) -> Diagnosis:
        """What this study's numbers can be trusted for; printed, it says so in words, and what to do.

        Coverage of the recording, stationarity, inner residuals, curvature at λ*, how much of it the damping covers;
        and given test tasks, how much of the scores is the solver's error or the sketch's luck, and a spot-check: some
        tasks are removed one by one, and the true change of the mean test loss is held against the predicted one.

        Args:
            test_tasks, num_tasks, split: as for :meth:`scores`; without them scores are not looked at.
            retrain: ``retrain(weights, seed) -> Outcome``, see :data:`~l2l_influence.evaluation.Retrain`: train as the
                loop does with these weights of the training tasks, in the order of their ids, and return the losses of
                the test tasks. None for continued optimisation of L_Total from λ*, on a private copy: 20 gradient
                steps, so 20·(``spot_checks`` + 1) passes over the tasks.
            spot_checks: k, how many tasks are removed, drawn at random; 0 for none.
            seed: of that draw, of retraining, and of test tasks drawn from a taskset that has not sampled them yet.
        """
        from ...evaluation.diagnosis import diagnose

        return diagnose(
            self._run,
            self._outer(),
            self._level,
            test_tasks,
            num_tasks,
            split=split,
            retrain=retrain,
            spot_checks=spot_checks,
            seed=seed,
        )

    # ---- how it is answered -----------------------------------------------------------------------------------

    def _scores(
        self,
        find: Finder,
        level: ItemGradient,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None,
        split: Split | None,
        seed: int,
        exact: bool,
    ) -> Result:
        outer = self._outer()
        test = outer.study.test_problem(test_tasks, num_tasks, split, seed)
        gradient, test_loss = mean_test_gradient(test, exact)
        note = _test_note(test, exact)
        del test  # and the solutions that it keeps: training tasks need the memory
        found = find(outer, level, gradient)
        order = torch.cat(found.scores)[:, 0].argsort(descending=True, stable=True).tolist()
        notes = [*self._notes(outer.study, [outer.note()], found.residual), note]
        return self._result(outer.study, found, order, test_loss, notes)

    def _solved_gradient(self, outer: Outer, level: ItemGradient, items: Ref | Iterable[Ref]) -> Tensor:
        return outer.solve(outer.gradient(level, self._located(outer.study, items)))[0]

    def _located(self, study: Snapshot, items: Ref | Iterable[Ref]) -> list[tuple[int, int]]:
        refs = self._listed(items)
        places = [self._locate(study, ref) for ref in refs]
        if not places or len(set(places)) < len(places):
            raise ItemsError(f"name at least one {self._level.item_name}, each once, got {refs}")
        return places

    def _require_labels(self, labels: Mapping[Ref, Any]) -> None:
        if not labels:
            raise ItemsError(f"name at least one {self._level.item_name}, with its new label")

    @abstractmethod
    def _listed(self, items: Ref | Iterable[Ref]) -> list[Ref]:
        """One item, or several, as a list."""

    def _moved(
        self, outer: Outer, change: Tensor, correct_residual: bool = False, without: Subsets | None = None
    ) -> dict[str, Tensor]:
        """The edited state_dict when D_λ L_Total changes by ``change``, ``[1, P]``."""
        study = outer.study
        if correct_residual:
            change = change + study.stationarity.gradient.to(change)
        edited = self._unravel(outer, study.solved_tasks.lam - outer.solve(change, without)[0])
        return edited_state(self._run.owner, self._run.parameters, edited)

    def _relabelled(self, outer: Outer, position: int, support: Labels, query: Labels) -> Tensor:
        """The change of c_i g_i when samples of a task get other labels, ``[1, P]``."""
        solved, outputs = outer.hessian.linearised(position), outer.study.output_shape
        anew = solved.with_query(_with_labels(solved.batch.query, query, outputs))
        if support:
            anew = anew.with_support(_with_labels(solved.batch.support, support, outputs))
        return anew.weighted_gradient() - solved.weighted_gradient()

    def _unravel(self, outer: Outer, flat: Tensor) -> dict[str, Tensor]:
        return outer.study.solved_tasks.settings.layout.unravel(flat)

    def _all_refs(self, study: Snapshot, found: Found) -> list[Ref]:
        return [ref for position, losses in enumerate(found.losses) for ref in self._refs(study, position, len(losses))]

    def _notes(self, study: Snapshot, solved: Sequence[str], residual: float) -> list[str]:
        """``solved``: how outer systems were; ``residual``: the largest of an inner problem."""
        return [
            *study.losses.notes,
            *inner_notes(study, residual),
            *solved,
            f"λ*: {study.stationarity}",
            f"recording: {self._run.recording.describe()}",
        ]


def _with_labels(samples: Samples, labels: Labels, outputs: torch.Size) -> Samples:
    """One task's samples, for which a model has outputs of that shape each, with other labels."""
    y = samples.y.clone()
    for j, label in labels.items():
        y[0, j] = _fitting(label, y[0, j], outputs)
    return samples._replace(y=y)


def _fitting(label: Any, known: Tensor, outputs: torch.Size) -> Tensor:
    """A label that can stand in for a known one."""
    new = torch.as_tensor(label, device=known.device)
    if new.is_floating_point() and not known.is_floating_point():
        raise TaskShapeError(f"labels are whole numbers ({known.dtype}) in this task, and {label} is none")
    if new.shape not in (known.shape, torch.Size()):
        raise TaskShapeError(f"labels have shape {tuple(known.shape)} in this task, and {label} has not")
    classes = _classes(known, outputs)
    # One that stays may be anything: the loss may ignore it.
    if classes and bool(((new != known) & ((new < 0) | (new >= classes))).any()):
        raise TaskShapeError(f"the model tells {classes} classes apart, 0 to {classes - 1}, and {label} is none")
    return new


def _classes(label: Tensor, outputs: torch.Size) -> int:
    """How many numbers of classes there are, where labels are such; else 0."""
    numbered = not label.is_floating_point() and label.dim() == len(outputs) - 1 and outputs[0] > 1
    return outputs[0] if numbered else 0


def _test_note(test: SolvedTasks, exact: bool) -> str:
    return f"test tasks: {len(test.tasks)}" + ("" if exact else "; their gradient is ∂_θ L_O, without dθ/dλ")
