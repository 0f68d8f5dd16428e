"""The questions that can be asked about items: scores, influences, edits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_args

from learn2learn.data import Taskset
from torch import Tensor

from ..analysis.edits import Addition, Removal
from ..analysis.estimators import DirectionalFit, FittedEstimator
from ..analysis.inner_notes import inner_notes
from ..analysis.items import Items, Ranked
from ..analysis.passes import Pass, Targets, TestGradient
from ..analysis.problem.data import Split
from ..analysis.results.matrix import MatrixFingerprint, ScoreMatrix, ShardPlan, Writer
from ..analysis.results.result import Scores
from ..analysis.run import RunAt
from ..bilevel.stationarity import Stationarity
from ..errors import EstimatorError, ItemsError, NotSharedError
from .hook import EstimatorHook

if TYPE_CHECKING:
    from ..evaluation import Diagnosis, Retrain

Ref = TypeVar("Ref")
"""How a user names an item: a task's id, (task's id, sample), or a group's name."""

Result = TypeVar("Result", bound=Scores[Any])


class Influence(EstimatorHook, Generic[Ref, Result]):
    """Scores, influences and edits for one kind of items. See :class:`~l2l_influence.hooks.hook.EstimatorHook` for the
    arguments, and the class of the estimator for what a score means."""

    _items: Items

    def _check(self) -> None:
        self._settings.estimator.prepared(self._items)

    @property
    def items(self) -> Items:
        """The items, as the estimator removes them."""
        return self._settings.estimator.prepared(self._items)

    # ---- scores ---------------------------------------------------------------------------------------------------

    def scores(
        self,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
        test_gradient: TestGradient = "total",
    ) -> Result:
        """Scores of every item on the mean loss of some test tasks, as ranked rows, the most harmful first.

        Positive = harmful. The result says what a score means, in which unit, and how it was computed.

        Args:
            test_tasks: a learn2learn taskset (read without using your random numbers), or a sequence of ``(x, y)``
                batches or ``((x, y), (x, y))`` support and query pairs.
            num_tasks: how many of them; by default all of a sequence, 100 of a taskset.
            split: ``split(x, y) -> ((x, y), (x, y))`` for a taskset's batches; by default as in training.
            seed: of the tasks drawn from a taskset that has not sampled them yet.
            test_gradient: ``"total"``, the test tasks' total gradient; or ``"partial"``, ∂_θ L_O alone, as the paper
                prints the score.

        Raises:
            EstimatorError: the estimator does not use test gradients, and ``"partial"`` was asked for.
        """
        run = self.run_at()
        targets = self._targets(run, test_tasks, num_tasks, split, seed, test_gradient, mean=True)
        fit = self._fitted_at(run)
        found = fit.scores(self.items, targets)
        loss = float(found.test_losses.mean())
        reading = self._settings.estimator.reading(self._plural, loss)
        return self._result(run, fit, found, loss, reading, [targets.note], "highest")

    def score_matrix(
        self,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
        test_gradient: TestGradient = "total",
    ) -> tuple[list[Ref], Tensor]:
        """Scores on each test task by itself: the items' names, and scores of shape ``(items, test)``, float64.

        The arguments are those of :meth:`scores`, whose score is the mean of a row.
        """
        run, items = self.run_at(), self.items
        targets = self._targets(run, test_tasks, num_tasks, split, seed, test_gradient)
        fit = self._fitted_at(run)
        found = fit.scores(items, targets)
        self._keep(run, fit, found.stationarity)
        return items.names(run), items.scores(run, found.scores)

    def score_matrix_to(
        self,
        folder: str | Path,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
        test_gradient: TestGradient = "total",
        shard: int | None = None,
    ) -> ScoreMatrix:
        """:meth:`score_matrix` for more scores than fit in memory: written to ``folder`` as ``.npy`` files.

        To resume an interrupted run, call again with the same arguments; finished shards are reused and the result is
        bit-identical. The scores have the dtype of the meta-parameters, in which they are computed.

        Args:
            folder: a new one, or one that was begun by this method.
            test_tasks, num_tasks, split, seed, test_gradient: as for :meth:`scores`. A sequence is read when needed,
                more than once; a taskset's tasks are drawn and kept in memory.
            shard: training tasks per file; by default about 64 MiB of scores.

        Raises:
            EstimatorError: the estimator's scores are not products with one direction per test task.
            ItemsError: the items are groups.
            NotSharedError: the hook has a process group.
            ForeignMatrixError: the folder holds scores that depend on something else, or other files.
        """
        run, items = self.run_at(), self.items.members
        fit = self._fitted_for_shards(run)
        targets = self._targets(run, test_tasks, num_tasks, split, seed, test_gradient)
        counts = [items.count(task) for task in run.recorded]
        plan = ShardPlan.within(targets.solved(), counts, shard)
        writer = Writer(folder, fit, items, targets, plan)
        writer.begin(MatrixFingerprint.of(fit, items, targets, plan))
        computed = writer.compute_directions()
        writer.write_shards()
        self._keep(run, fit, writer.stationarity)
        notes = _notes(fit.run, writer.residual, computed, writer.stationarity)
        writer.finish([*notes, self._recorded, targets.note])
        return ScoreMatrix.load(folder)

    def self_influence(self) -> Result:
        """Each item's score on its own loss, the most negative first.

        Items with wrong labels tend to stand at the top: nothing else in the data explains them. A group's score is the
        sum of its members' scores. The implicit estimator takes one outer solve per item.

        Raises:
            EstimatorError: the estimator does not answer this question.
        """
        run = self.run_at()
        fit = self._fitted_at(run)
        found = fit.self_scores(self.items)
        loss = float(found.test_losses.mean())
        reading = self._settings.estimator.self_reading(self._plural, loss)
        return self._result(run, fit, found, loss, reading, [], "lowest")

    # ---- influences and edits -------------------------------------------------------------------------------------

    def influence(self, items: Ref | Iterable[Ref]) -> dict[str, Tensor]:
        """The paper's influence function of an item, or the sum of several.

        Removal subtracts it, but adds that of support samples (Prop. 4.8, corrected).

        Returns:
            named tensors like ``maml.module``'s parameters, and like the learned rates and transforms as
            ``maml.state_dict()`` names them.

        Raises:
            EstimatorError: the estimator predicts no change of λ.
        """
        run, own = self.run_at(), self.items
        change = self._fitted_at(run).change(Removal(own.gradient, own.places(run, items)))
        return run.named(own.gradient.influence(change))

    def remove(self, items: Ref | Iterable[Ref], *, correct_residual: bool = False) -> dict[str, Tensor]:
        """The learner's state_dict with λ* moved to where training without these items is predicted to end.

        ``maml.load_state_dict(edited)`` applies it, MetaSGD's rates and GBML's transforms included; ``maml`` itself is
        left as it is. With a ``body`` it is the state_dict of
        ``nn.ModuleDict({"body": body, **dict(maml.named_children())})``.

        Args:
            items: one, or several, each named once; or rows of a result, such as ``result.top(2)``.
            correct_residual: also take the step to the minimum that λ* has not reached, −(δ_o I + H)⁻¹ D_λ L_Total
                (see :meth:`stationarity`). Compare the edit with training to the end then.

        Raises:
            EstimatorError: the estimator predicts no change of λ, or takes no such step.
        """
        run, own = self.run_at(), self.items
        removal = Removal(own.gradient, own.places(run, items))
        residual = self._stationarity_at(run).gradient if correct_residual else None
        return run.edited_state(self._fitted_at(run).change(removal, residual))

    def relabel(self, labels: Mapping[Any, Any]) -> dict[str, Tensor]:
        """The learner's state_dict if these items had had other labels: they are removed and added again, relabelled.

        Args:
            labels: by task id, the labels of all rows of the batch that the taskset served; or the new label of each
                ``(task, sample)``.

        Raises:
            TaskShapeError: a label does not fit its task, or is not a class of the model.
            ItemsError: there is no item, or the items are groups.
            EstimatorError: the estimator predicts no change of λ.
        """
        run = self.run_at()
        return run.edited_state(self._fitted_at(run).change(self.items.relabelling(run, labels)))

    def add(
        self, tasks: Taskset | Sequence[Any], num_tasks: int | None = None, *, split: Split | None = None, seed: int = 0
    ) -> dict[str, Tensor]:
        """The learner's state_dict with λ* moved to where training with these tasks as well is predicted to end.

        Each counts as much as the average training task. The arguments are those of :meth:`scores`.

        Raises:
            EstimatorError: the estimator predicts no change of λ.
        """
        run = self.run_at()
        new = run.test_tasks(tasks, num_tasks, split, seed)
        return run.edited_state(self._fitted_at(run).change(Addition(new.tasks)))

    # ---- trust ----------------------------------------------------------------------------------------------------

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
        """Check how far the numbers of this hook can be trusted. ``print`` shows verdicts, and what to do.

        It checks the coverage of the recording, stationarity, inner residuals, the curvature at λ*, and how much of it
        the damping covers. Given test tasks it also checks how much of the scores is error of the solver or noise of
        the sketch, and makes a spot check: some tasks are removed one by one, and the predicted change of the mean test
        loss is compared with the actual one.

        Args:
            test_tasks, num_tasks, split: as for :meth:`scores`; without them scores are not checked.
            retrain: ``retrain(weights, seed) -> Outcome``, see :data:`~l2l_influence.evaluation.Retrain`: train as the
                loop does with these weights of the training tasks, in the order of their ids, and return the losses of
                the test tasks. None for continued optimisation of L_Total from λ*, on a private copy: 20 gradient
                steps, so 20·(``spot_checks`` + 1) passes over the tasks.
            spot_checks: how many tasks are removed, drawn at random; 0 for none.
            seed: of that draw, of retraining, and of test tasks drawn from a taskset that has not sampled them yet.
        """
        from ..evaluation.diagnosis import diagnose  # imports SciPy, which nothing else here needs

        run, targets = self.run_at(), None
        if test_tasks is not None:
            targets = self._targets(run, test_tasks, num_tasks, split, seed, "total", mean=True)
        return diagnose(
            self._fitted_at(run),
            self.items,
            targets,
            stationarity=self._stationarity_at(run),
            retrain=retrain,
            spot_checks=spot_checks,
            seed=seed,
        )

    # ---- helpers --------------------------------------------------------------------------------------------------

    def _targets(
        self,
        run: RunAt,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None,
        split: Split | None,
        seed: int,
        test_gradient: TestGradient,
        *,
        mean: bool = False,
    ) -> Targets:
        estimator = self._settings.estimator
        if test_gradient not in get_args(TestGradient):
            raise ValueError(f"test_gradient must be one of {list(get_args(TestGradient))}, not {test_gradient!r}")
        if test_gradient == "partial" and not estimator.reads_test_gradients:
            raise EstimatorError(
                f'the "{estimator.name}" estimator does not use test gradients: leave test_gradient= out'
            )
        return Targets(run, run.test_tasks(test_tasks, num_tasks, split, seed).tasks, mean, test_gradient)

    def _fitted_for_shards(self, run: RunAt) -> DirectionalFit[Any]:
        """The fitted estimator, if its scores can be written in shards."""
        fit = self._fitted_at(run)
        if not isinstance(fit, DirectionalFit):
            raise fit.refusal("score_matrix_to()", "along")
        if self._items is not self._items.members:
            raise ItemsError(
                "score_matrix_to() writes single items: write the matrix of the members, for example with "
                "QueryInfluence.like(influence), and add up its rows by group"
            )
        if self._settings.resources.process_group is not None:
            raise NotSharedError("score_matrix_to() does not support a process group: make the hook without one")
        return fit

    def _result(
        self,
        run: RunAt,
        fit: FittedEstimator[Any],
        found: Pass,
        loss: float,
        reading: str,
        notes: Sequence[str],
        first: str,
    ) -> Result:
        items = self.items
        self._keep(run, fit, found.stationarity)
        said = [*_notes(fit.run, found.residual, found.notes, found.stationarity), self._recorded, *notes]
        scores, losses = items.scores(run, found.scores)[:, 0], items.losses(run, found.losses)
        return cast(Result, items.result(run, Ranked.of(scores, losses, loss, reading, said, first)))

    def _keep(self, run: RunAt, fit: FittedEstimator[Any], found: Stationarity | None) -> None:
        """Keep the stationarity that a pass found, unless the estimator reads the run otherwise."""
        if found is not None and fit.run is run:
            self._stationarity.put(run, found)

    @property
    def _plural(self) -> str:
        return f"{self._items.what}s"

    @property
    def _recorded(self) -> str:
        return f"recording: {self._run.view.recording.describe()}"


def _notes(run: RunAt, residual: float, computed: Sequence[str], found: Stationarity | None) -> list[str]:
    """How scores were computed: losses, inner and outer problems, and how stationary λ is."""
    stationary = [] if found is None else [f"λ*: {found}"]
    return [*run.losses.notes, *inner_notes(run, residual), *computed, *stationary]
