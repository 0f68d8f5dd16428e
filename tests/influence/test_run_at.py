"""A run at any λ: what hooks compute for the learner there."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from l2l_influence import GradientSimilarity, Implicit, TaskInfluence, TotalGradient, record
from l2l_influence.analysis.edits import Addition, Removal
from l2l_influence.analysis.items import QuerySamples, SupportSamples, Tasks
from l2l_influence.analysis.passes import Targets
from l2l_influence.analysis.problem.options import ProblemOptions
from l2l_influence.analysis.run import Run
from l2l_influence.errors import InfluenceError

from ..reference_problems.learn2learn import ListedTasks, labelled_batches, pairs
from .learned import LOSS, batches, by_own_name, make, outer_loss, recorded
from .retraining import L2, flat, optimal_run, relative


@pytest.fixture(scope="module")
def study():
    """A recorded run at its optimum, and as an analysed run."""
    found = optimal_run("unrolled")
    return found, Run(found.maml, found.tasks, ProblemOptions(loss=nn.CrossEntropyLoss(), l2=L2))


def elsewhere(found) -> dict[str, torch.Tensor]:
    state = {name: value.clone() for name, value in found.maml.state_dict().items()}
    for value in state.values():
        value += 0.2
    return state


def test_the_present_is_kept_until_it_changes(study):
    found, run = study
    hook = TaskInfluence(found.maml, found.tasks, nn.CrossEntropyLoss())
    now = hook.run_at()
    assert hook.run_at() is now and torch.equal(now.solved_tasks.lam, found.lam)
    try:
        vector_to_parameters(found.lam + 1, found.maml.module.parameters())
        assert hook.run_at() is not now and torch.equal(run.at().solved_tasks.lam, found.lam + 1)
    finally:
        vector_to_parameters(found.lam, found.maml.module.parameters())


def test_a_hook_that_is_dropped_frees_what_it_computed():
    """At once, and not when Python next looks for cycles: solutions and Hessians are large."""
    found = optimal_run("unrolled")
    hook = found.hook(TaskInfluence, hessian="sketch")
    hook.scores(found.test.tasks)
    kept = [weakref.ref(thing) for thing in (hook.run_at(), hook.fitted(), hook.fitted().system)]
    del hook
    assert [thing() for thing in kept] == [None] * 3


def test_a_checkpoint_is_a_lambda_of_its_own(study):
    """Gradients and scores there are those of the learner, moved there; the learner stays."""
    found, run = study
    before = parameters_to_vector(found.maml.module.parameters()).clone()
    there = run.at(elsewhere(found))
    assert torch.allclose(there.solved_tasks.lam, found.lam + 0.2)
    gradient = there.problem.stationarity(there.lam, there.solved_tasks.tasks, there.solved_tasks.weights).gradient
    assert relative(gradient, found.reference.gradient(found.lam + 0.2)) < 1e-10
    targets = Targets(run.at(), run.at().test_tasks(found.test.tasks).tasks)
    scores = {}
    for kind in (Implicit(hessian="gauss-newton", damping=1.0, tolerance=1e-12), GradientSimilarity()):
        scores[kind] = torch.cat(kind.at(there).scores(Tasks(), targets.at(there)).scores)
    assert torch.equal(parameters_to_vector(found.maml.module.parameters()), before)
    try:
        vector_to_parameters(found.lam + 0.2, found.maml.module.parameters())
        for kind, expected in scores.items():
            hook = TaskInfluence(found.maml, found.tasks, nn.CrossEntropyLoss(), l2=L2, estimator=kind)
            assert torch.allclose(hook.score_matrix(found.test.tasks)[1], expected, rtol=1e-9)
    finally:
        vector_to_parameters(found.lam, found.maml.module.parameters())


def test_edits_say_what_they_do_to_the_gradient_at_any_lambda(study):
    found, run = study
    there, lam = run.at(elsewhere(found)), found.lam + 0.2
    reference, all_of_it = found.reference, found.reference.gradient(found.lam + 0.2)
    for items, level in ((Tasks(), "task"), (QuerySamples(), "query"), (SupportSamples("resolve"), "support")):
        ref = found.ids[1] if level == "task" else (found.ids[1], 2)
        edit = Removal(items.gradient, items.places(there, ref))
        rest = reference.gradient(lam, reference.without(level, [1 if level == "task" else (1, 2)]))
        assert relative(edit.gradient_change(there)[0], rest - all_of_it) < 1e-9
    new = Addition(there.test_tasks(found.test.tasks).tasks)
    expected = found.test.gradient(lam) - L2 * lam
    assert relative(new.gradient_change(there)[0], expected) < 1e-9
    moved = run.at().moved(lam)
    assert torch.equal(moved.solved_tasks.lam, lam) and relative(new.gradient_change(moved)[0], expected) < 1e-9


def test_what_does_not_fit_is_refused(study):
    found, run = study
    for state in (found.maml.module.state_dict(), {}, {"module.0.weight": torch.zeros(2, 3)}):
        with pytest.raises(InfluenceError, match=r"maml.state_dict\(\) of this learner"):
            run.at(state)


@pytest.mark.parametrize("rule", ["meta-sgd", "kronecker", "module, adapted"])
def test_learned_rates_and_transforms_are_those_of_the_checkpoint(rule):
    """They are meta-parameters too: the gradient is that of a learner that has the checkpoint's."""
    learner, tasks = make(rule), batches(2, 0)
    study = recorded(learner, tasks, 2)
    moved = copy.deepcopy(learner)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.1)
    there = Run(study, options=ProblemOptions(loss=LOSS)).at(moved.state_dict())
    outer_loss(moved, pairs(tasks)[0], 2).backward()
    gradient = there.named(there.solved_tasks.one(0).total_gradient[0])
    expected = by_own_name(moved)
    assert gradient.keys() == expected.keys()
    assert all(torch.allclose(gradient[name], expected[name], rtol=1e-8, atol=1e-10) for name in expected)
    here = TotalGradient(study, loss=LOSS).of(0)
    assert any(not torch.allclose(gradient[name], here[name], rtol=0.01) for name in here)
    state = {name: value for name, value in moved.state_dict().items() if name.startswith("module.")}
    with pytest.raises(InfluenceError, match="a checkpoint does not fit: it has no"):
        Run(study, options=ProblemOptions(loss=LOSS)).at(state)


def test_a_checkpoint_of_a_body_and_a_head():
    import learn2learn as l2l

    body, head = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    maml, loss = l2l.algorithms.MAML(head, lr=0.3), nn.CrossEntropyLoss()
    with record() as study:
        for x, y in map(ListedTasks(labelled_batches(3, seed=50)).__getitem__, range(3)):
            learner, features = maml.clone(), body(x)
            learner.adapt(loss(learner(features[::2]), y[::2]))
            loss(learner(features[1::2]), y[1::2]).backward()
    state = {name: value + 1 for name, value in nn.ModuleDict({"body": body, "module": head}).state_dict().items()}
    there = Run(study).at(state)
    assert all(torch.equal(there.lam[name], state[name]) for name in state) and len(there.lam) == 4
    assert flat(there.lam).shape == there.solved_tasks.lam.shape
