"""The study of faithfulness: its training, its figures, its tables, and the page that shows them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import learn2learn as l2l
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks import __main__ as benchmarks
from benchmarks.estimators.retraining import Weights
from benchmarks.estimators.worlds import Stacked
from benchmarks.fidelity import run as running
from benchmarks.fidelity import training as trainings
from benchmarks.fidelity.aims import aims
from benchmarks.fidelity.causes import CAUSES, Cause, row_of
from benchmarks.fidelity.estimators import DEFAULT, ESTIMATORS, by_position, positions
from benchmarks.fidelity.figures import detection, figures, measured, moves
from benchmarks.fidelity.plot import MARKS, cost_plot
from benchmarks.fidelity.recipes import WORLDS
from benchmarks.fidelity.rows import Rows
from benchmarks.fidelity.runs import followed, looped
from benchmarks.fidelity.tables import page_tables
from benchmarks.fidelity.tasks import Drawn, Images, MissingDataError, digits, draw
from benchmarks.fidelity.trainers import Again
from benchmarks.fidelity.training import MetaTraining, Schedule
from benchmarks.fidelity.truths import HALVES, SINGLES, TENTHS, designs, digest, true_ranking, weighted
from benchmarks.fidelity.worlds import Size, World
from l2l_influence import Checkpoints, QueryInfluence, SupportInfluence
from l2l_influence.evaluation import GroundTruth

pytestmark = pytest.mark.benchmarks

TINY = Size(share=0.1, steps=0.01, tests=3, halves=4, singles=2, scratch=2, noise=2)

SOME = tuple(
    replace(each, dampings=each.dampings[:2])
    for each in ESTIMATORS
    if each.name in (DEFAULT, "gamma", "direct", "random", "closed form")
)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 5))


def double() -> nn.Module:
    return network().double()


RECIPE = replace(WORLDS["digits"], network=network, levels=("task", "support"))
TRAINING = MetaTraining(double, lr=0.2, steps=2)


@pytest.fixture(scope="module")
def tasks() -> Stacked:
    drawn = draw(digits(), 6, 2, 2, 3, 0.5, seed=0).train
    return replace(drawn, support_x=drawn.support_x.double(), query_x=drawn.query_x.double())


@pytest.fixture(scope="module")
def world() -> World:
    return RECIPE("digits", TINY)


# ---- tasks --------------------------------------------------------------------------------------------------------


def test_wrong_tasks_have_other_query_labels_and_only_these() -> None:
    classes = [torch.full((6, 1), float(label)) for label in range(8)]
    drawn = draw(Images(classes, classes), 10, 4, 2, 3, 0.3, seed=1)
    assert len(drawn.wrong) == 3
    for task in range(10):
        named = dict(zip(drawn.train.support_y[task].tolist(), drawn.train.support_x[task, :, 0].tolist(), strict=True))
        right = [
            named[label] == x
            for label, x in zip(
                drawn.train.query_y[task].tolist(), drawn.train.query_x[task, :, 0].tolist(), strict=True
            )
        ]
        assert not any(right) if task in drawn.wrong else all(right)


def test_no_image_is_both_in_support_and_query() -> None:
    classes = [10.0 * label + torch.arange(6.0).unsqueeze(1) for label in range(8)]
    drawn = draw(Images(classes, classes), 5, 1, 2, 3, 0, seed=2)
    for support, query in zip(drawn.train.support_x, drawn.train.query_x, strict=True):
        assert len({*support.flatten().tolist(), *query.flatten().tolist()}) == 25


# ---- training -----------------------------------------------------------------------------------------------------


def plain_epoch(model: nn.Module, tasks: Stacked, weights: Weights, shares: list[tuple[int, float]]) -> None:
    """Leave in ``model`` the gradient of a weighted sum of tasks' losses, by learn2learn's own steps."""
    maml, each = l2l.algorithms.MAML(model, lr=TRAINING.lr), nn.CrossEntropyLoss(reduction="none")
    for task, share in shares:
        learner = maml.clone()
        for _ in range(TRAINING.steps):
            learner.adapt((weights.support[task] * each(learner(tasks.support_x[task]), tasks.support_y[task])).sum())
        loss = (weights.query[task] * each(learner(tasks.query_x[task]), tasks.query_y[task])).sum()
        (share * loss).backward()


def uneven(tasks: Stacked) -> Weights:
    """A task gone, one counted twice, samples weighted unequally."""
    support, query = (
        torch.linspace(0, 0.4, y.numel()).view(y.shape).double() for y in (tasks.support_y, tasks.query_y)
    )
    return Weights(torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 1.0]).double(), support, query)


def test_training_is_learn2learns_with_any_weights(tasks: Stacked) -> None:
    start, weights, schedule = TRAINING.fresh(3), uneven(tasks), Schedule(0.05, 4, weight_decay=0.1)
    model = double()
    vector_to_parameters(start.clone(), model.parameters())
    optimiser = torch.optim.Adam(model.parameters(), weight_decay=0.1)
    for step in range(4):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / 4)
        optimiser.zero_grad()
        plain_epoch(model, tasks, weights, [(task, float(c) / 6) for task, c in enumerate(weights.task)])
        optimiser.step()
    found = TRAINING.train(tasks, weights, start, schedule)
    torch.testing.assert_close(found, parameters_to_vector(model.parameters()).detach(), rtol=1e-9, atol=1e-11)
    assert torch.equal(start, TRAINING.fresh(3))


def test_training_settles_where_the_gradient_of_the_weighted_objective_is_nothing(tasks: Stacked) -> None:
    weights = Weights.of(tasks)
    weights.task[2], weights.query[3, 1] = 0, 0
    found = TRAINING.train(tasks, weights, TRAINING.fresh(3), Schedule(0.05, 5, weight_decay=0.1, settle=400))
    model = double()
    vector_to_parameters(found, model.parameters())
    plain_epoch(model, tasks, weights, [(task, float(c) / 6) for task, c in enumerate(weights.task)])
    left = parameters_to_vector([part.grad for part in model.parameters()]) + 0.1 * found
    assert left.abs().max() < 1e-5 < 0.1 * found.abs().max()


def test_tenths_hold_a_tenth_of_the_items_of_a_level(world: World) -> None:
    for level, items in (("task", 16), ("support", 16 * 25)):
        removed = designs(world, TINY, level)
        assert (removed[TENTHS].sum(1) == round(items / 10)).all()
        assert (removed[HALVES].sum(1) == items / 2).all()


def test_only_the_head_is_adapted_in_anil(tasks: Stacked) -> None:
    anil = MetaTraining(double, lr=0.2, steps=2, adapted="2.")
    lam, lost = anil.fresh(0), []
    for task in range(len(tasks)):
        model = double()
        vector_to_parameters(lam, model.parameters())
        head = l2l.algorithms.MAML(model[2], lr=0.2).clone()
        for _ in range(2):
            head.adapt(nn.functional.cross_entropy(head(model[:2](tasks.support_x[task])), tasks.support_y[task]))
        lost.append(nn.functional.cross_entropy(head(model[:2](tasks.query_x[task])), tasks.query_y[task]).item())
    np.testing.assert_allclose(anil.losses(lam, tasks), lost)


def test_the_recorded_loop_does_what_retraining_does(tasks: Stacked, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws lead both to the same λ*; and the loop is recorded as it was."""
    schedule, start = Schedule(0.05, 5, batch=3, weight_decay=0.1), TRAINING.fresh(0)
    study, lam, checkpoints = looped(TRAINING, tasks, schedule, start)
    random.seed(0)
    drawn = [random.randint(0, 5) for _ in range(15)]
    steps = iter(torch.tensor(drawn).view(5, 3))
    monkeypatch.setattr(trainings, "_chosen", lambda *_: (next(steps), torch.full((3,), 1 / 3)))
    ways: list[Checkpoints] = []
    expected = TRAINING.train(
        tasks, Weights.of(tasks), start, schedule, begun=lambda *at: ways.append(followed(TRAINING, schedule, *at))
    )
    torch.testing.assert_close(lam, expected, rtol=1e-6, atol=1e-8)
    for (state, lr), (there, rate) in zip(checkpoints, ways[0], strict=True):
        assert lr == pytest.approx(rate) and state.keys() == there.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, there[name], rtol=1e-6, atol=1e-8)
    assert [lr for _, lr in checkpoints] == pytest.approx([0.05, 0.04, 0.03, 0.02, 0.01])
    assert {task.key: task.times_trained for task in study.training_tasks()} == {
        key: drawn.count(key) for key in set(drawn)
    }


def test_batches_are_drawn_in_proportion_and_never_hold_what_is_removed() -> None:
    c = torch.tensor([1.0, 0.0, 3.0])
    rows, shares = trainings._chosen(c, 4000, torch.Generator().manual_seed(0))
    assert (rows != 1).all() and shares.sum().item() == pytest.approx(1)
    assert (rows == 2).double().mean().item() == pytest.approx(0.75, abs=0.03)


def test_a_digest_changes_with_anything_that_retraining_depends_on(tasks: Stacked) -> None:
    again = Again(TRAINING, Drawn(tasks, (1,), tasks), Schedule(0.1, 2), TRAINING.fresh(0))
    same = replace(again, drawn=Drawn(Stacked(*(part.clone() for part in vars(tasks).values())), (1,), tasks))
    moved = replace(tasks, query_x=tasks.query_x + 1e-9)
    others = [
        replace(again, start=None),
        replace(again, start=TRAINING.fresh(1)),
        replace(again, schedule=Schedule(0.1, 3)),
        replace(again, drawn=Drawn(moved, (1,), tasks)),
        replace(again, training=replace(TRAINING, lr=0.3)),
        replace(again, training=replace(TRAINING, network=network)),
    ]
    assert digest(same) == digest(again)
    assert len({digest(each) for each in [again, *others]}) == 7


def test_weights_of_one_level_leave_the_others(tasks: Stacked) -> None:
    flags = np.ones(6 * 15)
    flags[15 + 4] = 0
    found, whole = weighted(tasks, "query", flags), Weights.of(tasks)
    assert found.query[1, 4] == 0 and found.query.sum() == pytest.approx(6 - 1 / 15)
    assert torch.equal(found.task, whole.task) and torch.equal(found.support, whole.support)


# ---- scores, and how they are held against retraining -------------------------------------------------------------


def test_scores_are_put_where_their_items_stand(tasks: Stacked) -> None:
    """Ids are in order of first draw, and some tasks were never drawn."""
    study, *_ = looped(TRAINING, tasks, Schedule(0.01, 2, batch=2), TRAINING.fresh(0))
    some = SimpleNamespace(study=study, train=tasks)
    names, losses = QueryInfluence(study, None, nn.CrossEntropyLoss(), estimator="loss").score_matrix([_pair(tasks, 0)])
    found = by_position(names, losses, some, "query")  # type: ignore[arg-type]
    drawn = {task.key for task in study.training_tasks()}
    assert 0 < len(drawn) < 6
    for key in range(6):
        own = found[15 * key : 15 * (key + 1), 0]
        if key in drawn:
            expected = _query_losses(study.learner.module, tasks, key)
            np.testing.assert_allclose(own, expected, rtol=1e-6)
        else:
            assert not own.any()
    assert set(positions(names, some, "query")) == {15 * key + j for key in drawn for j in range(15)}  # type: ignore[arg-type]


def _pair(tasks: Stacked, key: int):
    return (tasks.support_x[key], tasks.support_y[key]), (tasks.query_x[key], tasks.query_y[key])


def _query_losses(model: nn.Module, tasks: Stacked, key: int) -> np.ndarray:
    learner = l2l.algorithms.MAML(model, lr=TRAINING.lr).clone()
    for _ in range(TRAINING.steps):
        learner.adapt(nn.functional.cross_entropy(learner(tasks.support_x[key]), tasks.support_y[key]))
    outputs = learner(tasks.query_x[key])
    return nn.functional.cross_entropy(outputs, tasks.query_y[key], reduction="none").detach().numpy()


def test_figures_by_hand() -> None:
    removals = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    scores = np.array([[3.0, 1.0], [1.0, 5.0], [2.0, 2.0]])
    change = np.array([[[-2.0, -1], [-3, -9], [-1, -3], [-4, -5]]])
    truth = GroundTruth(removals, (0,), np.zeros((1, 2)), change, None)
    world = SimpleNamespace(flags=np.array([True, False, False]), wrong=(0,))
    found = figures(world, "task", scores, {(HALVES, "warm"): truth, (SINGLES, "warm"): truth})  # type: ignore[arg-type]
    told = np.array([[-3, -1], [-1, -5], [-2, -2], [-4, -6]])
    ranks = [spearmanr(told[:, t], change[0, :, t])[0] for t in range(2)]
    assert found[HALVES]["warm"]["lds"][0] == pytest.approx(np.mean(ranks))
    assert found[HALVES]["warm"]["mean"] == pytest.approx(spearmanr(told.mean(1), change[0].mean(1))[0])
    own = scores[::-1]
    beside = figures(world, "task", scores, {(HALVES, "warm"): truth}, own)  # type: ignore[arg-type]
    alone = figures(world, "task", own, {(HALVES, "warm"): truth})  # type: ignore[arg-type]
    gain = alone[HALVES]["warm"]["lds"][0] - found[HALVES]["warm"]["lds"][0]
    assert beside[HALVES]["warm"]["behind"][0] == pytest.approx(gain)
    # Over two test tasks Pearson's r is whether both differences have the same sign, and nothing where there is none.
    assert found[SINGLES]["warm"]["pearson"] == pytest.approx((1 + 1 + 1) / 3)
    assert found["found"] == 0 and found["auc"] == 0.25


def test_the_true_ranking_is_the_fall_of_the_mean_loss() -> None:
    truth = GroundTruth(np.eye(2), (0,), np.zeros((1, 2)), np.array([[[-2.0, 0], [3, 1]]]), None)
    np.testing.assert_allclose(true_ranking(truth), [1, -2])
    world = SimpleNamespace(flags=np.array([True, False]), wrong=(0,))
    assert detection(true_ranking(truth), world) == {"found": 1.0, "auc": 1.0}  # type: ignore[arg-type]


def test_moves_are_those_of_the_hooks_edits(world: World) -> None:
    """A truth made of the hook's own edits is predicted exactly; of half of them, with an error of one."""
    hook = ESTIMATORS[0].on(world, "task")
    names, _ = hook.score_matrix(world.tests)
    before = parameters_to_vector(world.study.learner.module.parameters()).detach()
    torch.testing.assert_close(before, world.lam)
    edits = []
    for name in names:
        state = hook.remove(name)
        model = network()
        model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        edits.append((parameters_to_vector(model.parameters()).detach() - before).double().numpy())
    keys = [task.key for task in world.study.training_tasks()]
    removals = np.eye(len(world.train))[keys]
    truth = GroundTruth(removals, (0,), np.zeros((1, 3)), np.zeros((1, len(keys), 3)), np.stack(edits)[None])
    assert moves(world, "task", hook, names, truth) == pytest.approx({"cosine": 1, "error": 0}, abs=1e-5)
    half = replace(truth, parameter_change=truth.parameter_change / 2)
    assert moves(world, "task", hook, names, half) == pytest.approx({"cosine": 1, "error": 1}, abs=1e-5)


def test_support_samples_are_resolved_in_scores_and_edits_alike(world: World) -> None:
    hook, plain = ESTIMATORS[0].on(world, "support"), SupportInfluence(world.study, None, **_for_hooks(world))
    names, matrix = hook.score_matrix(world.tests)
    resolved = SupportInfluence.like(plain, removal="resolve")
    values = resolved.scores(world.tests).values
    np.testing.assert_allclose(matrix.mean(1), [values[name] for name in names], rtol=1e-4, atol=1e-7)
    found, expected = hook.remove(names[3]), resolved.remove(names[3])
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    closed = plain.remove(names[3])
    assert any(not torch.allclose(found[key], closed[key], rtol=1e-5, atol=1e-7) for key in expected)


def _for_hooks(world: World):
    return {**world.options, **ESTIMATORS[0].options, "progress": False}


def test_memory_and_time_are_those_of_the_call() -> None:
    size = 64
    result, cost = measured(lambda: float(torch.ones(size * 2**18).sum()))
    assert result == size * 2**18 and cost["seconds"] > 0
    if cost["mebibytes"] is not None:
        assert size - 1 < cost["mebibytes"] < size + 40  # the kernel counts in steps
    assert cost["mebibytes"] is not None or not Path("/proc/self/clear_refs").exists()


# ---- the run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory):
    """A tiny run of one world with a few estimators, and of one without data."""
    folder = tmp_path_factory.mktemp("fidelity")
    with pytest.MonkeyPatch.context() as patch:
        _tiny(patch)
        running.run(quick=True, out=folder, names=["digits", "elsewhere"])
    return folder, json.loads((folder / "fidelity.json").read_text(encoding="utf-8"))


def _tiny(patch: pytest.MonkeyPatch) -> None:
    def missing(name: str, size: Size) -> World:
        raise MissingDataError("no such data")

    patch.setattr(running, "QUICK", TINY)
    patch.setattr(running, "WORLDS", {"digits": RECIPE, "elsewhere": missing})
    patch.setattr(running, "ESTIMATORS", SOME)


def test_every_estimator_is_measured_at_every_level_it_scores(written) -> None:
    rows = Rows(written[1]["rows"])
    assert rows.worlds == ["digits"]
    for estimator in SOME:
        for level in ("task", "query", "support"):
            found = [row["damping"] for row in rows.of(level=level, estimator=estimator.name)]
            asked = level in estimator.levels and level in RECIPE.levels
            assert found == (list(estimator.dampings) if asked else [])
    assert rows.of(estimator="direct")[0]["verdict"] == "zero"
    assert {row["verdict"] for row in rows.of(estimator="random")} == {"measured"}


def test_tables_have_what_was_measured_and_say_what_made_it(written) -> None:
    folder, found = written
    text = (folder / "fidelity.md").read_text(encoding="utf-8")
    own = Rows(found["rows"]).one(level="task", estimator=DEFAULT, damping=1.0)
    assert own is not None
    value = f"{own['halves']['warm']['lds'][0]:.2f}".replace("0.", ".").replace("-", "−")
    line = next(line for line in page_tables(found)["task"].splitlines() if line.startswith(f"| {DEFAULT}"))
    assert line.startswith(f"| {DEFAULT} | {value} (")
    for table in page_tables(found).values():
        assert table in text and "`python -m benchmarks fidelity --quick`; l2l_influence " in table


def test_each_kind_of_hessian_has_a_mark_in_the_picture_of_costs(written) -> None:
    folder, found = written
    assert (folder / "fidelity.png").read_bytes().startswith(b"\x89PNG")
    kinds = {each.name for each in ESTIMATORS if not each.baseline and "task" in each.levels}
    assert MARKS.keys() == kinds and len(set(MARKS.values())) == len(kinds)
    axes = cost_plot(Rows(found["rows"])).axes[0]
    own = Rows(found["rows"]).one(level="task", estimator=DEFAULT, damping=1.0)
    assert own is not None
    points = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert points[DEFAULT].tolist() == [[own["seconds"], own["halves"]["warm"]["lds"][0]]]


def test_a_run_that_was_cut_off_goes_on_where_it_was(written, monkeypatch) -> None:
    folder, found = written
    _tiny(monkeypatch)
    kept = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "rows.jsonl").write_text("\n".join(kept[:-1]) + "\n", encoding="utf-8")
    asked: list[str] = []
    again = running.rows_of
    monkeypatch.setattr(running, "rows_of", lambda *a: asked.append(a[2].name) or again(*a))
    monkeypatch.setattr(
        "l2l_influence.evaluation.ground_truth.retraining._attempt", lambda *_: pytest.fail("this was retrained")
    )
    running.run(quick=True, out=folder, names=["digits"])
    assert asked == [json.loads(kept[-1])[0]["estimator"]]
    rows = json.loads((folder / "fidelity.json").read_text(encoding="utf-8"))["rows"]
    assert _less_costs(rows) == _less_costs(found["rows"])


def _less_costs(rows):
    return [{key: value for key, value in row.items() if key not in ("seconds", "mebibytes")} for row in rows]


def test_a_cause_says_how_well_halves_are_predicted_without_it(tmp_path: Path, world: World) -> None:
    found = row_of(Cause("small", RECIPE, "support", 0.1), replace(TINY, halves=8), tmp_path)
    table = page_tables({"rows": [describe(world), found], "command": "this", "versions": VERSIONS})["causes"]
    own = found["lds"]["1.0"]
    assert (
        own[1] <= own[0] <= own[2] and found["ceiling"] is None and len({each.what for each in CAUSES}) == len(CAUSES)
    )
    assert found["test"] == pytest.approx(world.trainers["warm"].losses(world.lam).mean())
    shown = table.splitlines()
    assert shown[2].startswith("|  | LDS, damping its own | LDS, damping a tenth | LDS, damping 0 | ceiling |")
    assert shown[4].startswith("| small | ") and f"| {found['test']:.2f} |" in shown[4].replace("| .", "| 0.")


def describe(world: World):
    noise = {"ceiling": {}}
    return {"table": "worlds", "world": "digits", "title": "x", "parameters": len(world.lam), "tasks": 16, "wrong": 3,
            "seeds": {"warm": 1}, "stationarity": 1.0, "test": 1.0, "noise": noise}  # fmt: skip


VERSIONS = {"l2l_influence": "1", "torch": "2"}


# ---- aims ---------------------------------------------------------------------------------------------------------


def row(estimator: str, value: float, high: float, found: float, behind: tuple[float, ...] = ()):
    lds = {name: {"lds": [value, 0.0, high], "mean": 0.0, "behind": list(behind)} for name in ("warm", "scratch")}
    return {"table": "fidelity", "world": "digits", "level": "task", "estimator": estimator, "damping": 1.0,
            "verdict": "measured", "halves": lds, "singles": {}, "found": found, "auc": 0.5}  # fmt: skip


def test_aims_say_what_was_missed_and_by_how_much() -> None:
    described = {"table": "worlds", "world": "digits", "title": "MLP, digits", "retraining": {"found": 0.9},
                 "noise": {"agreement": 0.3, "ceiling": {}}}  # fmt: skip
    behind = (-0.03, -0.05, -0.01)  # all of it, though intervals of the two overlap
    lines = aims(Rows([described, row(DEFAULT, 0.8, 0.84, 0.86), row("gamma", 0.83, 0.9, 0.1, behind)]))
    assert [line[2:] for line in lines[1:]] == [
        [".80", "missed by .05"],  # of .85
        [".80", "met"],  # of .30, from scratch
        [".80; gamma .83", "missed"],  # by more than the difference is unsure
        [".86", "met"],  # within .05 of .90
    ]


# ---- the command, and the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--quick"], (True, Path("benchmarks-fidelity"), [*WORLDS, "causes"])),
        (["--full", "--only", "anil", "mnist", "--out", "x"], (False, Path("x"), ["anil", "mnist"])),
    ],
)
def test_both_spellings_run_what_they_name(monkeypatch, arguments, expected) -> None:
    seen = []
    monkeypatch.setattr(running, "run", lambda *given: seen.append(given))
    running.main(arguments)
    benchmarks.main(["fidelity", *arguments])
    assert seen == [expected, expected]
