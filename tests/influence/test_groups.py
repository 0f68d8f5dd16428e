"""Groups of items: they add up their members, whatever the estimator."""

from __future__ import annotations

from collections import Counter, defaultdict

import learn2learn as l2l
import numpy as np
import pytest
import torch
from learn2learn.data.transforms import ConsecutiveLabels, KShots, LoadData, NWays, RemapLabels
from torch import nn
from torch.utils.data import TensorDataset

from l2l_influence import (
    MAML,
    GroupInfluence,
    QueryInfluence,
    SupportInfluence,
    TaskDataset,
    TaskInfluence,
)
from l2l_influence.errors import EstimatorError, ItemsError, RecordingError

from ..reference_problems.learn2learn import ListedTasks, classification_batches, pairs
from .retraining import changes, flat, optimal_run, relative

HOOKS = {"task": TaskInfluence, "query": QueryInfluence, "support": SupportInfluence}
LOSS = nn.CrossEntropyLoss()


def parity(task, sample):
    """Even and odd tasks; of samples, the first half apart from the second."""
    return task.id % 2 if sample is None else (task.id % 2, sample < 2)


@pytest.fixture(scope="module")
def run():
    return optimal_run("unrolled")


def members_of(level, rows):
    """Rows of members by the group that `parity` puts them in."""
    found = defaultdict(list)
    for row in rows:
        found[row.task % 2 if level == "task" else (row.task % 2, row.sample < 2)].append(row)
    return found


@pytest.mark.parametrize("estimator", ["implicit", "gradient-similarity", "cosine-similarity", "loss"])
@pytest.mark.parametrize("level", list(HOOKS))
def test_a_groups_score_is_the_sum_of_its_members(run, level, estimator):
    options = {"l2": 0.3, "estimator": estimator}
    single = HOOKS[level](run.maml, run.tasks, LOSS, **options)
    groups = GroupInfluence(run.maml, run.tasks, LOSS, by=parity, of=level, **options)
    rows, members = groups.scores(run.test.tasks), members_of(level, single.scores(run.test.tasks))
    assert {row.group for row in rows} == set(members)
    for row in rows:
        assert row.members == len(members[row.group])
        assert row.score == pytest.approx(sum(member.score for member in members[row.group]), rel=1e-9, abs=1e-12)
        assert row.loss == pytest.approx(np.mean([member.loss for member in members[row.group]]))
    assert [row.score for row in rows] == sorted(rows.values.values(), reverse=True)
    assert [row.rank for row in rows] == list(range(1, len(rows) + 1))
    names, matrix = groups.score_matrix(run.test.tasks)
    assert matrix.mean(1).tolist() == pytest.approx([rows.values[name] for name in names], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("level", list(HOOKS))
def test_removing_a_group_removes_its_members(run, level):
    single = run.hook(HOOKS[level], hessian="sketch")
    groups = GroupInfluence.like(single, by=parity, of=level)
    members = members_of(level, single.scores(run.test.tasks))
    for group, rows in members.items():
        items = [row.item for row in rows]
        assert relative(flat(groups.influence(group)), flat(single.influence(items))) < 1e-9
        assert relative(changes(groups.remove([group]), run.maml), changes(single.remove(items), run.maml)) < 1e-9
    several = list(members)[:2]
    both = [row.item for group in several for row in members[group]]
    assert relative(changes(groups.remove(several), run.maml), changes(single.remove(both), run.maml)) < 1e-9


@pytest.mark.parametrize(("level", "changed"), [("task", "leave_one_out"), ("support", "removal")])
def test_groups_are_removed_as_the_estimator_says(run, level, changed):
    options = {changed: True if changed == "leave_one_out" else "resolve"}
    single = run.hook(HOOKS[level], hessian="sketch", **options)
    groups = GroupInfluence.like(single, by=parity, of=level)
    members = members_of(level, single.scores(run.test.tasks))
    for row in groups.scores(run.test.tasks):
        assert row.score == pytest.approx(sum(member.score for member in members[row.group]), rel=1e-9)
        items = [member.item for member in members[row.group]]
        assert relative(changes(groups.remove(row), run.maml), changes(single.remove(items), run.maml)) < 1e-9


def test_self_influence_of_a_group_is_the_sum_of_its_members(run):
    single = run.hook(QueryInfluence, hessian="sketch")
    members = members_of("query", single.self_influence())
    rows = GroupInfluence.like(single, by=parity).self_influence()
    assert [row.score for row in rows] == sorted(rows.values.values())
    for row in rows:
        assert row.score == pytest.approx(sum(member.score for member in members[row.group]), rel=1e-9)


# ---- what groups are made by ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled():
    """A run on tasks of three of five classes of a data set, drawn by learn2learn."""
    torch.manual_seed(0)
    np.random.seed(0)
    data = l2l.data.MetaDataset(TensorDataset(torch.randn(60, 4), torch.arange(60) // 12))
    transforms = [NWays(data, 3), KShots(data, 4), LoadData(data), RemapLabels(data), ConsecutiveLabels(data)]
    tasks = TaskDataset(l2l.data.Taskset(data, transforms, num_tasks=6))
    maml = MAML(nn.Linear(4, 3), lr=0.1)
    for key in (4, 1, 5, 4):
        x, y = tasks[key]
        learner = maml.clone()
        learner.adapt(LOSS(learner(x[::2]), y[::2]))
        LOSS(learner(x[1::2]), y[1::2]).backward()
    return maml, tasks, data


@pytest.mark.parametrize("level", ["query", "support"])
def test_classes_and_indices_are_those_of_the_data_set(sampled, level):
    maml, tasks, data = sampled
    test = pairs(classification_batches(2, seed=1))
    samples = HOOKS[level](maml, tasks, LOSS).scores(test)
    sums, classes = defaultdict(float), Counter()
    for row in samples:
        sums[data[row.index][1].item()] += row.score
        classes[data[row.index][1].item()] += 1
    found = GroupInfluence(maml, tasks, LOSS, by="class", of=level).scores(test)
    assert found.values == pytest.approx(sums, rel=1e-5, abs=1e-9)
    assert {row.group: row.members for row in found} == classes
    assert f"groups of {level} samples by class" in str(found) and "one of the groups" in found.reading
    by_index = GroupInfluence(maml, tasks, LOSS, by="index", of=level).scores(test)
    assert by_index.values == pytest.approx(samples.by_index(), rel=1e-5, abs=1e-9)


def test_tasksets_and_columns_make_groups(sampled):
    maml, tasks, _ = sampled
    other = TaskDataset(ListedTasks(classification_batches(2, 5)))
    for key in (0, 1):
        x, y = other[key]
        learner = maml.clone()
        learner.adapt(LOSS(learner(x[::2]), y[::2]))
        LOSS(learner(x[1::2]), y[1::2]).backward()
    test = pairs(classification_batches(2, seed=1))
    rows = TaskInfluence(maml, loss=LOSS).scores(test)
    by_taskset = GroupInfluence(maml, loss=LOSS, by="taskset", of="task").scores(test)
    assert len(by_taskset) == 2 and sorted(row.members for row in by_taskset) == [2, 3]
    assert sum(by_taskset.values.values()) == pytest.approx(sum(rows.values.values()), rel=1e-5)
    by_times = GroupInfluence(maml, loss=LOSS, by="times_trained", of="task").scores(test)
    expected = defaultdict(float)
    for row in rows:
        expected[row.times_trained] += row.score
    assert by_times.values == pytest.approx(expected, rel=1e-5)
    by_task = GroupInfluence(maml, loss=LOSS, by="task").scores(test)
    assert by_task.values == pytest.approx(rows.values, rel=1e-4, abs=1e-8)


def test_what_is_unknown_cannot_be_grouped_by(run):
    test = run.test.tasks
    for by, words in (("class", "class of sample 0 of task 0 is unknown"), ("index", "does not say the index")):
        with pytest.raises(RecordingError, match=words):
            GroupInfluence(run.maml, run.tasks, LOSS, by=by).scores(test)


def test_groups_are_named_and_found_as_they_are(run, tmp_path):
    groups = run.hook(GroupInfluence, by="label", of="query")
    assert {row.group for row in groups.scores(run.test.tasks)} == {0, 1}
    with pytest.raises(ItemsError, match="there is no group 7; the 2 groups are"):
        groups.remove(7)
    with pytest.raises(ItemsError, match="at least one group, each once"):
        groups.remove([0, 0])
    with pytest.raises(ItemsError, match="at least one group"):
        groups.influence([])
    with pytest.raises(ItemsError, match="groups have no labels"):
        groups.relabel({0: 1})
    with pytest.raises(ItemsError, match="writes single items"):
        groups.score_matrix_to(tmp_path / "matrix", run.test.tasks)
    lines = groups.scores(run.test.tasks).to_csv(tmp_path / "groups.csv").read_text().splitlines()
    assert lines[0] == "rank,group,members,loss,score" and len(lines) == 3


def test_an_estimator_that_edits_nothing_edits_no_group(run):
    with pytest.raises(EstimatorError, match="cosine-similarity"):
        GroupInfluence(run.maml, run.tasks, LOSS, by="label", estimator="cosine-similarity").remove(0)
