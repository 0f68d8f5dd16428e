"""Learners that learn their inner steps, as users have them: left alone, followed, in parts, in files, and refused
where what they do cannot be known."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import learn2learn as l2l
import pytest
import torch
from learn2learn.nn import KroneckerLinear
from learn2learn.optim import KroneckerTransform
from torch import Tensor, nn

from l2l_influence import (
    DirectInfluence,
    QueryInfluence,
    Study,
    SupportInfluence,
    TaskInfluence,
    TotalGradient,
    record,
)
from l2l_influence.errors import InfluenceError, RecordingError, UncoveredParameterError
from l2l_influence.recording.learners.registry import adapter_of

from ..reference_problems.learn2learn import ListedTasks, everything, pairs
from .learned import (
    LOSS,
    LR,
    MAKERS,
    Maker,
    batches,
    by_own_name,
    gbml,
    make,
    meta_sgd,
    network,
    outer_loss,
    recorded,
)

# ---- what is left alone, and what is followed --------------------------------------------------------------------


ALL_KINDS: list[Any] = [TaskInfluence, QueryInfluence, SupportInfluence, DirectInfluence]


@pytest.mark.parametrize(("rule", "kinds"), [("meta-sgd", ALL_KINDS), ("meta-curvature, adapted", ALL_KINDS[:1])])
def test_nothing_of_the_users_changes(rule: str, kinds: list[Any]) -> None:
    learner, tasks, test = make(rule, nn.Linear(3, 3)), batches(2, seed=1), pairs(batches(1, seed=2))
    study = recorded(learner, tasks, 2)
    before = everything(learner)
    options = {"loss": LOSS, "damping": 1e6, "progress": False}
    hooks = [kind(study, **options) for kind in kinds]
    questions = [
        *(partial(hook.scores, test) for hook in hooks),
        partial(hooks[0].remove, [0]),
        partial(hooks[0].add, test),
        partial(TaskInfluence.like(hooks[0], leave_one_out=True).scores, test, test_gradient="partial"),
        TotalGradient(study, loss=LOSS).total,
    ]
    for ask in questions:
        ask()
        assert everything(learner) == before


@pytest.mark.parametrize("rule", ["meta-sgd", "kronecker"])
def test_answers_follow_the_rates_and_the_transforms(rule: str) -> None:
    learner = make(rule)
    study = recorded(learner, batches(2, seed=1), 2)
    hook = TotalGradient(study, loss=LOSS)
    before = hook.of(0)
    with torch.no_grad():
        list(learner.parameters())[-1].mul_(1.5)
    after, expected = hook.of(0), TotalGradient(study, loss=LOSS).of(0)
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    assert not torch.equal(after["0.weight"], before["0.weight"])


def test_results_say_that_the_rule_was_learned() -> None:
    for first_order, words in ((False, "the loop's own steps, by a learned"), (True, "along fixed gradients")):
        study = recorded(make("meta-sgd", nn.Linear(3, 3), first_order=first_order), batches(1, seed=1), 1)
        assert words in str(TaskInfluence(study, loss=LOSS).scores(pairs(batches(1, seed=2))))


# ---- parts of models -----------------------------------------------------------------------------------------------


def test_frozen_parameters_are_left_out() -> None:
    learner, tasks = make("kronecker", allow_nograd=True), batches(1, seed=1)
    learner.module[0].weight.requires_grad_(False)
    learner.compute_update.transforms_modules[1].transform.left.requires_grad_(False)
    found = TotalGradient(recorded(learner, tasks, 2), loss=LOSS).of(0)
    outer_loss(learner, pairs(tasks)[0], 2).backward()
    trained = {name.removeprefix("module."): p for name, p in learner.named_parameters() if p.requires_grad}
    assert list(found) == list(trained) and len(found) == sum(1 for _ in learner.parameters()) - 2
    for name, value in found.items():
        expected = trained[name].grad
        torch.testing.assert_close(value, torch.zeros_like(value) if expected is None else expected)


def test_frozen_rates_are_constants() -> None:
    learner, tasks = make("meta-sgd"), batches(1, seed=1)
    learner.lrs[0].requires_grad_(False)
    found = TotalGradient(recorded(learner, tasks, 2), loss=LOSS).of(0)
    outer_loss(learner, pairs(tasks)[0], 2).backward()
    assert "lrs.0" not in found and "lrs.1" in found
    torch.testing.assert_close(found["0.weight"], learner.module[0].weight.grad)


class Twice(nn.Module):
    """Its body is registered twice, as in learn2learn's OmniglotCNN."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 4)
        self.features = nn.Sequential(nn.Identity(), self.base, nn.Tanh())
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.classifier(self.features(x))
        return outputs


def test_modules_that_are_registered_twice() -> None:
    learner, tasks = make("kronecker", Twice()), batches(1, seed=1)
    study = recorded(learner, tasks, 2)
    outer_loss(learner, pairs(tasks)[0], 2).backward()
    expected = by_own_name(learner)
    for name, value in TotalGradient(study, loss=LOSS).of(0).items():
        torch.testing.assert_close(value, expected[name])
    edited = TaskInfluence(study, loss=LOSS, damping=1.0).remove(0)
    assert torch.equal(edited["module.base.weight"], edited["module.features.1.weight"])


class Ended(nn.Module):
    """A body and a head, of which the head is the learner's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double(), make("meta-sgd", nn.Linear(5, 3))


def test_a_head_s_rates_beside_a_body() -> None:
    both, (x, y) = Ended(), batches(1, seed=1)[0]
    served = ListedTasks([(x, y)])
    with record() as study:
        batch, clone = served[0], both.head.clone()
        features = both.body(batch[0])
        clone.adapt(LOSS(clone(features[::2]), y[::2]))
        LOSS(clone(features[1::2]), y[1::2]).backward()
    expected = {f"body.{name}": p.grad for name, p in both.body.named_parameters()}
    expected |= {name: p.grad for name, p in both.head.named_parameters()}
    found = TotalGradient(study, loss=LOSS).of(0)
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    edited = TaskInfluence(study, loss=LOSS, damping=1.0).remove(0)
    nn.ModuleDict({"body": both.body, **dict(both.head.named_children())}).load_state_dict(edited)
    assert all(torch.equal(value, edited[name]) for name, value in both.head.state_dict().items())


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "bare"), [("meta-sgd", True), ("meta-sgd", False), ("kronecker, adapted", False)])
def test_a_loaded_study_gives_the_same_scores(rule: str, bare: bool, tmp_path: Path) -> None:
    learner, test = make(rule, deep()), pairs(batches(2, seed=2))
    if rule == "meta-sgd":
        learner.lrs[3].requires_grad_(False)
    study = recorded(learner, batches(3, seed=1), 2)
    expected = TaskInfluence(study, loss=LOSS).scores(test)
    other = MAKERS[rule](deep()).double()
    if rule == "meta-sgd":
        other.lrs[3].requires_grad_(False)
    loaded = Study.load(study.save(tmp_path / "study"), other.module if bare else other)
    assert TaskInfluence(loaded, loss=LOSS).scores(test).values == expected.values


def deep() -> nn.Module:
    """More than ten parameters, so that "lrs.10" comes before "lrs.2" by name."""
    return nn.Sequential(*[nn.Linear(3, 3) for _ in range(6)])


def test_what_does_not_fit_a_saved_learner_is_refused(tmp_path: Path) -> None:
    folder = recorded(make("kronecker"), batches(1, seed=1), 2).save(tmp_path / "study")
    bare = Study.load(folder, network().double())
    with pytest.raises(UncoveredParameterError, match=r"inner steps of GBML.*Study.load\(path, GBML\(model"):
        TaskInfluence(bare, loss=LOSS).scores([])
    assert "0.weight" in TotalGradient(bare, loss=LOSS, inner="proximal", proximal=1.0, inner_tolerance=1.0).of(0)
    with pytest.raises(RecordingError, match="the learner that was passed is not like"):
        Study.load(folder, make("meta-curvature"))
    for name, arguments in {"lr": {"lr": 0.5}, "adapt_transform": {"lr": LR, "adapt_transform": True}}.items():
        with pytest.raises(RecordingError, match=f"{name}=.*with the same arguments"):
            Study.load(
                folder, l2l.algorithms.GBML(network().double(), KroneckerTransform(KroneckerLinear), **arguments)
            )


# ---- what cannot be known ------------------------------------------------------------------------------------------


class OwnUpdate(l2l.optim.ParameterUpdate):
    """A user's own update function."""


def own_update(model: nn.Module) -> Any:
    update = OwnUpdate(model.parameters(), lambda parameter: None)
    return l2l.algorithms.GBML(model, None, lr=LR, compute_update=update)


def with_own_names(model: nn.Module) -> Any:
    model.lrs = nn.ParameterList([nn.Parameter(torch.ones(1))])
    return meta_sgd(model)


STRANGE: dict[str, tuple[Maker, str]] = {
    "registered twice": (lambda model: meta_sgd(Twice()), "registers a parameter .or a module. twice"),
    "a plain list": (lambda model: meta_sgd(model, lrs=[torch.ones(1)] * 6), "must be an nn.ParameterList"),
    "too few rates": (
        lambda model: meta_sgd(model, lrs=nn.ParameterList([nn.Parameter(torch.ones(1))])),
        "one entry for each parameter",
    ),
    "update of one's own": (own_update, "OwnUpdate instead of a learn2learn.optim.ParameterUpdate"),
    "a learned lr": (
        lambda model: l2l.algorithms.GBML(model, lambda p: None, lr=nn.Parameter(torch.tensor(0.1))),
        "GBML's lr= is a parameter that is learned",
    ),
    "a parameter in two places": (lambda model: gbml(lambda p: model[3])(model), "cannot be told apart"),
    "two of a name": (with_own_names, "have the same name"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_rules_that_cannot_be_known_are_refused_by_name(strange: str) -> None:
    maker, words = STRANGE[strange]
    learner = maker(network())
    names = {name: name for name, p in learner.module.named_parameters()}
    with pytest.raises(UncoveredParameterError, match=words):
        adapter_of(learner).step_rule(names)


def test_a_clone_with_settings_of_its_own_took_steps_of_another_rule() -> None:
    learner, served = make("kronecker"), ListedTasks(batches(1, seed=1))
    with record() as study:
        (x, y), clone = served[0], learner.clone(adapt_transform=True)
        for _ in range(2):
            clone.adapt(LOSS(clone(x[::2]), y[::2]))
        LOSS(clone(x[1::2]), y[1::2]).backward()
    with pytest.raises(UncoveredParameterError, match="rule: other"):
        TaskInfluence(study, loss=LOSS).scores([])


def test_tasks_of_different_numbers_of_steps_are_refused() -> None:
    learner, served = make("meta-sgd"), ListedTasks(batches(2, seed=1))
    with record() as study:
        for key in range(2):
            (x, y), clone = served[key], learner.clone()
            for _ in range(key + 1):
                clone.adapt(LOSS(clone(x[::2]), y[::2]))
            LOSS(clone(x[1::2]), y[1::2]).backward()
    with pytest.raises(InfluenceError, match="different numbers of steps"):
        TaskInfluence(study, loss=LOSS).scores([])
