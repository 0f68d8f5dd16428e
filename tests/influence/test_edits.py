"""Removal, addition and what-if labels: where λ would be, against re-optimisation and linear algebra of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from l2l_influence import QueryInfluence, SupportInfluence, TaskInfluence
from l2l_influence.errors import InfluenceError, ItemsError, TaskShapeError

from ..reference_problems.learn2learn import ListedTasks, labelled_batches, pairs, regression_batches, train
from .retraining import L2, LR, ORDER, STEPS, Retraining, Run, changes, flat, optimal_run, relative

HOOKS = {"task": TaskInfluence, "query": QueryInfluence, "support": SupportInfluence}
ITEM_GRADIENTS = pytest.mark.parametrize("level", list(HOOKS))
SOME = {"task": [0, 3], "query": [(1, 2), (1, 3), (4, 0)], "support": [(1, 2), (1, 3), (4, 0)]}
"""Items to ask about, by their tasks' keys."""


@pytest.fixture(scope="module", params=["unrolled", "proximal"])
def run(request) -> Run:
    return optimal_run(request.param)


def names(run: Run, items):
    return [run.ids[item] if isinstance(item, int) else (run.ids[item[0]], item[1]) for item in items]


# ---- influences and removals ------------------------------------------------------------------------------------


@ITEM_GRADIENTS
def test_a_group_is_the_sum_of_its_members(level):
    run = optimal_run("unrolled")
    hook, group = run.hook(HOOKS[level]), names(run, SOME[level])
    alone = torch.stack([flat(hook.influence(item)) for item in group])
    assert relative(flat(hook.influence(group)), alone.sum(0)) < 1e-9
    assert relative(flat(hook.influence(iter(group))), alone.sum(0)) < 1e-9
    assert not torch.allclose(alone[0], alone[1])


@ITEM_GRADIENTS
def test_removal_subtracts_influences_but_adds_those_of_support_samples(level):
    run = optimal_run("unrolled")
    hook, group = run.hook(HOOKS[level]), names(run, SOME[level])
    sign = 1 if level == "support" else -1
    edited = hook.remove(group)
    assert set(edited) == set(run.maml.state_dict())
    assert torch.allclose(changes(edited, run.maml), sign * flat(hook.influence(group)), rtol=1e-9, atol=1e-12)


def test_removal_of_support_samples_takes_either_way():
    run = optimal_run("unrolled")
    group, moved = names(run, SOME["support"]), {}
    for removal in ("closed-form", "resolve"):
        hook = run.hook(SupportInfluence, removal=removal)
        moved[removal] = changes(hook.remove(group), run.maml)
        assert relative(moved[removal], flat(hook.influence(group))) < 1e-9
    assert relative(moved["resolve"], moved["closed-form"]) > 0.01


def test_removal_goes_where_retraining_goes(run):
    """To first order: a tenth of a per cent of the weight, taken out, moves λ* by that much of the edit."""
    for level in HOOKS:
        hook, items = run.hook(HOOKS[level]), SOME[level][:1]
        less = run.reference.optimum(run.lam, run.reference.without(level, items, scale=1 - 1e-3))
        assert relative(changes(hook.remove(names(run, items)), run.maml), (less - run.lam) / 1e-3) < 5e-3


# ---- residuals and leave-one-out --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["unrolled", "proximal"])
def quadratic(request) -> Run:
    """A linear model under squared error, away from its minimum: L_Total is quadratic."""
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    model.weight.data = torch.tensor([[0.7, -1.2, 0.4]], dtype=torch.float64)
    batches, test = regression_batches(5, seed=0), pairs(regression_batches(3, seed=1))
    maml, tasks = train(model, batches, nn.MSELoss(), lr=LR, steps=STEPS, order=ORDER)
    draws = [ORDER.count(key) for key in range(5)]
    reference = Retraining(model, pairs(batches), squared_errors, request.param, draws=draws)
    at = Retraining(model, test, squared_errors, request.param)
    return Run(maml, tasks, reference, at, flat({"": model.weight}), request.param, nn.MSELoss())


def squared_errors(outputs, y):
    return (outputs - y).square().squeeze(-1)


@pytest.mark.parametrize("group", [[1], [3], [0, 4]])
def test_leaving_out_with_the_residual_is_exact_on_quadratic_problems(quadratic, group):
    """From wherever λ is, one step goes to where training without the tasks ends."""
    run = quadratic
    hook, left_out = run.hook(TaskInfluence), run.hook(TaskInfluence, leave_one_out=True)
    end = run.reference.optimum(run.lam, run.reference.without("task", group)) - run.lam
    assert relative(run.reference.optimum(run.lam) - run.lam, end) > 0.01
    ids = names(run, group)
    edited = left_out.remove(ids, correct_residual=True)
    assert relative(changes(edited, run.maml), end) < 1e-9
    for other in (hook.remove(ids), left_out.remove(ids), hook.remove(ids, correct_residual=True)):
        assert relative(changes(other, run.maml), end) > 0.01


@ITEM_GRADIENTS
def test_the_residual_is_a_step_to_the_minimum(quadratic, level):
    run, items = quadratic, SOME[level]
    hook, ids = run.hook(HOOKS[level]), names(quadratic, items)
    step = changes(hook.remove(ids, correct_residual=True), run.maml) - changes(hook.remove(ids), run.maml)
    assert relative(step, run.reference.optimum(run.lam) - run.lam) < 1e-9


def test_there_is_no_residual_at_the_minimum(run):
    for options in ({}, {"leave_one_out": True}):
        hook = run.hook(TaskInfluence, **options)
        plain, corrected = (hook.remove([2], correct_residual=on) for on in (False, True))
        assert relative(changes(corrected, run.maml), changes(plain, run.maml)) < 1e-9


def test_scores_leaving_out_equal_dense_algebra(run):
    """(δ_o I + H − c_k H_k)⁻¹ for each task."""
    reference, found = run.reference, run.hook(TaskInfluence, leave_one_out=True).scores(run.test.tasks).values
    for key in range(5):
        rest = reference.without("task", [key])
        gradient = reference.gradient(run.lam) - reference.gradient(run.lam, rest)
        solved = torch.linalg.solve(reference.hessian(run.lam, rest), gradient)
        assert found[run.ids[key]] == pytest.approx(-float(run.test_gradient @ solved), rel=1e-8)
    plain = run.hook(TaskInfluence).scores(run.test.tasks).values
    assert plain != pytest.approx(found, rel=0.01)


# ---- addition ---------------------------------------------------------------------------------------------------


def test_added_tasks_pull_as_much_as_the_average_task(run):
    new = labelled_batches(2, seed=5)
    hook, adding = run.hook(TaskInfluence), Retraining(run.reference.model, pairs(new), run.reference.loss, run.inner)
    gradient = adding.gradient(run.lam) - L2 * run.lam
    expected = -torch.linalg.solve(run.hessian, gradient)
    for source in (pairs(new), new, ListedTasks(new)):
        assert relative(changes(hook.add(source), run.maml), expected) < 1e-8
    apart = [changes(hook.add([one]), run.maml) for one in new]
    assert relative(apart[0] + apart[1], expected) < 1e-8
    assert torch.equal(changes(hook.add(ListedTasks(new), num_tasks=1), run.maml), apart[0])


def test_an_added_task_moves_lambda_where_retraining_with_it_does(run):
    """By the derivative: with the new task at a weight of ±1e-4, λ* is found anew."""
    new = pairs(labelled_batches(1, seed=5))
    joined = Retraining(run.reference.model, [*run.reference.tasks, *new], run.reference.loss, run.inner)
    ends = []
    for weight in (1e-4, -1e-4):
        weights = joined.weights._replace(task=torch.cat([run.reference.weights.task, torch.tensor([weight])]))
        ends.append(joined.optimum(run.lam, weights))
    assert relative(changes(run.hook(TaskInfluence).add(new), run.maml), (ends[0] - ends[1]) / 2e-4) < 1e-6


# ---- other labels -----------------------------------------------------------------------------------------------


def relabelled(run: Run, new: dict[int, torch.Tensor]) -> torch.Tensor:
    """−(δ_o I + H)⁻¹ times the change of D_λ L_Total under other labels of whole batches, by key."""
    tasks = list(run.reference.tasks)
    for key, y in new.items():
        (xs, _), (xq, _) = tasks[key]
        tasks[key] = (xs, y[::2]), (xq, y[1::2])
    draws = [ORDER.count(key) for key in range(5)]
    other = Retraining(run.reference.model, tasks, run.reference.loss, run.inner, draws=draws)
    change = other.gradient(run.lam) - run.reference.gradient(run.lam)
    return -torch.linalg.solve(run.hessian, change)


def served(run: Run, key: int) -> torch.Tensor:
    """A task's labels as the taskset serves them: support on even rows, query on odd ones."""
    (_, ys), (_, yq) = run.reference.tasks[key]
    return torch.stack([ys, yq], dim=1).flatten()


def test_relabelled_tasks(run):
    hook, new = run.hook(TaskInfluence), {1: 1 - served(run, 1), 4: 1 - served(run, 4)}
    by_id = {run.ids[key]: y for key, y in new.items()}
    assert relative(changes(hook.relabel(by_id), run.maml), relabelled(run, new)) < 1e-8
    unchanged = hook.relabel({run.ids[key]: served(run, key) for key in new})
    assert changes(unchanged, run.maml).norm() == 0


@pytest.mark.parametrize("level", ["query", "support"])
def test_relabelled_samples(run, level):
    hook, new = run.hook(HOOKS[level]), {}
    for key, j in SOME[level]:
        y = new.setdefault(key, served(run, key))
        y[2 * j + (level == "query")] = 1 - y[2 * j + (level == "query")]
    labels = {(run.ids[key], j): new[key][2 * j + (level == "query")] for key, j in SOME[level]}
    edited = hook.relabel(labels)
    assert relative(changes(edited, run.maml), relabelled(run, new)) < 1e-8
    as_numbers = hook.relabel({name: int(label) for name, label in labels.items()})
    assert torch.equal(changes(as_numbers, run.maml), changes(edited, run.maml))


def test_targets_are_relabelled_like_classes(quadratic):
    run = quadratic
    y = served(run, 2)[:, None].clone()
    y[5] += 1.5
    found = run.hook(QueryInfluence).relabel({(run.ids[2], 2): y[5]})
    assert relative(changes(found, run.maml), relabelled(run, {2: y})) < 1e-8


# ---- refusals ---------------------------------------------------------------------------------------------------


@ITEM_GRADIENTS
def test_items_that_are_not_there_are_refused(level):
    run = optimal_run("unrolled")
    hook = run.hook(HOOKS[level])
    unknown, twice = (9, [0, 0]) if level == "task" else ((9, 0), [(0, 1), (0, 1)])
    for ask in (hook.influence, hook.remove):
        with pytest.raises(InfluenceError, match="no training task has id 9.*0 to 4"):
            ask(unknown)
        with pytest.raises(ValueError, match=f"one {level}.*each once"):
            ask(twice)
        with pytest.raises(ValueError, match=f"at least one {level}"):
            ask([])


@pytest.mark.parametrize("level", ["query", "support"])
def test_samples_are_named_by_pairs(level):
    run = optimal_run("unrolled")
    hook = run.hook(HOOKS[level])
    for outside in (4, -1):
        with pytest.raises(InfluenceError, match=rf"4 {level} samples, 0 to 3: {outside} is out of range"):
            hook.remove((0, outside))
    # A list names several: two numbers in one would be two tasks, where a hook of tasks was meant.
    for wrong in (3, [3, 1], (3, 1, 2), [(3, 1, 2)], (3, 1.0), "ab"):
        with pytest.raises(InfluenceError, match=r"\(task, sample\)"):
            hook.influence(wrong)
    expected = hook.influence((3, 1))["0.bias"]
    rows = np.array([[3, 1]])
    for right in ([(3, 1)], ((3, 1),), tuple(rows[0]), rows):
        assert torch.equal(hook.influence(right)["0.bias"], expected)


def test_numpy_integers_name_tasks():
    hook = optimal_run("unrolled").hook(TaskInfluence)
    expected = hook.influence(3)["0.bias"]
    for right in (np.int64(3), np.array([3]), [np.int64(3)]):
        assert torch.equal(hook.influence(right)["0.bias"], expected)


def test_ways_to_remove_support_samples_are_known_by_name():
    with pytest.raises(ValueError, match="'closed-form', 'resolve'.*'anew'"):
        optimal_run("unrolled").hook(SupportInfluence, removal="anew")


def test_labels_that_do_not_fit_are_refused():
    run = optimal_run("unrolled")
    hook = run.hook(TaskInfluence)
    for count in (4, 16):
        with pytest.raises(TaskShapeError, match=f"8 rows.*{count}"):
            hook.relabel({0: torch.zeros(count, dtype=torch.long)})
    with pytest.raises(TaskShapeError, match="whole number"):
        hook.relabel({0: torch.full((8,), 0.5)})
    with pytest.raises(TaskShapeError, match="whole number"):
        run.hook(QueryInfluence).relabel({(0, 0): 0.5})
    with pytest.raises(InfluenceError, match="no training task has id 9"):
        hook.relabel({9: torch.zeros(8, dtype=torch.long)})
    with pytest.raises(InfluenceError, match="4 is out of range"):
        run.hook(SupportInfluence).relabel({(0, 4): 1})


@ITEM_GRADIENTS
def test_nothing_to_relabel_or_remove_is_refused(level):
    hook = optimal_run("unrolled").hook(HOOKS[level])
    with pytest.raises(ItemsError, match=f"at least one {HOOKS[level]._items.what}, with its new label"):
        hook.relabel({})
    with pytest.raises(ItemsError, match=f"at least one {HOOKS[level]._items.what}, each once"):
        hook.remove([])


@pytest.mark.parametrize("label", [-1, 2, 7, torch.tensor(2)])
def test_labels_that_are_no_classes_of_the_model_are_refused(label):
    run = optimal_run("unrolled")
    for level in ("query", "support"):
        with pytest.raises(TaskShapeError, match="is out of range: the model has 2 classes"):
            run.hook(HOOKS[level]).relabel({(run.ids[1], 3): label})
    y = served(run, 1)
    y[6] = label
    with pytest.raises(TaskShapeError, match="is out of range: the model has 2 classes"):
        run.hook(TaskInfluence).relabel({run.ids[1]: y})


def test_labels_of_another_shape_are_refused(quadratic):
    with pytest.raises(TaskShapeError, match=r"shape \(1,\) in this task"):
        quadratic.hook(QueryInfluence).relabel({(0, 0): torch.zeros(2)})


def test_a_label_that_the_loss_ignores_may_stay():
    """Rows without a label have one that is no class."""
    batches = labelled_batches(3, seed=21)
    batches[0][1][5] = -100
    maml, _tasks = train(nn.Linear(3, 2).double(), batches, nn.CrossEntropyLoss())
    hook = TaskInfluence(maml, loss=nn.CrossEntropyLoss(), progress=False)
    assert changes(hook.relabel({0: batches[0][1]}), maml).norm() == 0
    turned = torch.where(batches[0][1] < 0, -100, 1 - batches[0][1])
    assert changes(hook.relabel({0: turned}), maml).norm() > 0


def test_whole_numbers_that_are_no_classes_may_be_any():
    """Counts, for a loss of one output a sample."""
    batches = [(x, 4 * y) for x, y in labelled_batches(3, seed=22)]
    maml, _tasks = train(nn.Linear(3, 1).double(), batches, lambda outputs, y: squares(outputs, y).mean())
    hook = QueryInfluence(maml, loss=squares, reduction="mean", progress=False)
    one, other = (changes(hook.relabel({(0, 0): label}), maml) for label in (3, 9))
    assert not torch.allclose(one, other)


def squares(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (outputs.squeeze(1) - y) ** 2
