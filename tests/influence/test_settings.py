"""Settings of hooks: every wrong one is refused when the hook is made, and short forms mean what objects say."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from torch import nn

from l2l_influence import (
    ESTIMATORS,
    AscentSteps,
    DirectInfluence,
    FirstOrder,
    GradientSimilarity,
    GroupInfluence,
    Implicit,
    ProjectedGradients,
    QueryInfluence,
    Resources,
    SingleLevelEKFAC,
    SupportInfluence,
    TaskInfluence,
    TotalGradient,
    TotalHessian,
    TracIn,
    record,
)
from l2l_influence.bilevel import CG, Dense, Sketch
from l2l_influence.errors import InfluenceError, LossStructureError

from ..reference_problems.learn2learn import classification_batches, pairs, train
from .retraining import optimal_run

LOSS = nn.CrossEntropyLoss()


@functools.cache
def run() -> Any:
    return train(nn.Linear(4, 3), classification_batches(3, seed=70), LOSS)  # no other test has these rows


def hook(kind: Any = TaskInfluence, loss: Any = LOSS, **settings: Any) -> Any:
    return kind(*run(), loss, **settings)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "hessian": ({"hessian": "exakt"}, ValueError, "'exact'.*'exakt'"),
    "hessian's type": ({"hessian": 3}, TypeError, "hessian must be .*not 3"),
    "damping": ({"damping": -1.0}, ValueError, "damping must be 'auto' or a number of at least 0, not -1.0"),
    "damping in words": ({"damping": "much"}, ValueError, "damping must be 'auto'"),
    "damping that is not finite": ({"damping": float("nan")}, ValueError, "damping must be 'auto'"),
    "tolerance of 0": ({"tolerance": 0.0}, ValueError, "tolerance must be a number between 0 and 1, not 0.0"),
    "tolerance of 1": ({"tolerance": 1.0}, ValueError, "tolerance must be a number between 0 and 1"),
    "solver by name": ({"solver": "cg"}, TypeError, "solver must be a solver object"),
    "solver's class": ({"solver": CG}, TypeError, "solver must be a solver object"),
    "removal": ({"removal": "anew"}, ValueError, "'closed-form', 'resolve'.*'anew'"),
    "removal of tasks": ({"removal": "resolve"}, ValueError, "for support samples"),
    "leave_one_out": ({"leave_one_out": "yes"}, TypeError, "leave_one_out must be True or False"),
    "inner": ({"inner": "both"}, ValueError, "inner must be 'proximal', 'unrolled' or an inner kind, not 'both'"),
    "inner_solver": ({"inner_solver": "cgx"}, ValueError, "inner_solver must be one of.*'cg'.*not 'cgx'"),
    "inner_solver's type": ({"inner_solver": 5}, TypeError, "inner_solver must be a name or an inverse"),
    "inner_tolerance": ({"inner_tolerance": 0.0}, ValueError, "inner_tolerance must be a number above 0"),
    "proximal": ({"inner": "proximal", "proximal": -2.0}, ValueError, "proximal must be 'auto' or a number above 0"),
    "proximal of unrolled steps": ({"proximal": 2.0}, ValueError, "pass inner='proximal' too"),
    "l2": ({"l2": -1.0}, ValueError, "l2 must be a number of at least 0, not -1.0"),
    "l2's type": ({"l2": "none"}, ValueError, "l2 must be a number of at least 0"),
    "batch_norm": ({"batch_norm": "eval"}, ValueError, "batch_norm must be one of.*'batch', 'running'.*'eval'"),
    "reduction": ({"reduction": "none"}, ValueError, "reduction must be one of.*'mean', 'sum'"),
    "on_indefinite": ({"on_indefinite": "ignore"}, ValueError, "on_indefinite must be one of"),
    "on_unconverged": ({"on_unconverged": "ignore"}, ValueError, "on_unconverged must be one of"),
    "body": ({"body": "resnet"}, TypeError, "body must be the module"),
    "memory": ({"memory": "much"}, ValueError, "memory must be a number of bytes"),
    "progress": ({"progress": "yes"}, TypeError, "progress must be True, False or None"),
    "process_group": ({"process_group": "gloo"}, TypeError, "process_group must be a torch.distributed.ProcessGroup"),
    "loss's class": ({"loss": nn.CrossEntropyLoss}, TypeError, r"pass loss=nn.CrossEntropyLoss\(\)"),
    "loss by name": ({"loss": "mse"}, TypeError, "loss must be a torch loss or a function"),
    "loss without reduction": ({"loss": lambda outputs, y: outputs[:, 0]}, LossStructureError, "reduction="),
    "estimator": ({"estimator": "influence"}, ValueError, "estimator must be one of.*'implicit'.*not 'influence'"),
    "estimator's class": ({"estimator": Implicit}, TypeError, r"an estimator object such as Implicit\(\)"),
    "resources": ({"resources": "4GiB"}, TypeError, "resources must be a Resources object"),
    "no such keyword": ({"dampening": 1.0}, TypeError, "dampening= is not a setting.*damping.*inner_solver.*memory"),
    "another estimator's": ({"estimator": "random", "hessian": "exact"}, TypeError, "hessian= is not a.*are seed"),
    "an estimator without settings": ({"estimator": "loss", "damping": 1.0}, TypeError, "it has no settings"),
    "said twice": ({"estimator": Implicit(), "damping": 1.0}, TypeError, r"write Implicit\(damping=...\)"),
    "resources said twice": ({"resources": Resources(), "memory": 9}, TypeError, r"write Resources\(memory=...\)"),
    "steps of ascent": ({"estimator": "ascent", "steps": 0}, ValueError, "steps must be a whole number of at least 1"),
    "size of a step": ({"estimator": "ascent", "lr": 0.0}, ValueError, "lr must be a number above 0"),
    "dimensions": ({"estimator": "projected-gradients", "dimensions": 0}, ValueError, "dimensions must be a whole"),
    "ridge": ({"estimator": "projected-gradients", "ridge": 0.0}, ValueError, "ridge must be 'auto' or a number above"),
    "tasks of a curvature": ({"estimator": "single-level-ekfac", "curvature_tasks": 0}, ValueError, "at least 1"),
    "damping of EK-FAC": ({"estimator": "single-level-ekfac", "damping": -1.0}, ValueError, "damping must be 'auto'"),
    "no checkpoints": ({"estimator": "tracin"}, InfluenceError, "at least one checkpoint"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_refused_when_the_hook_is_made(name):
    settings, error, words = WRONG[name]
    with pytest.raises(error, match=re.compile(words, re.DOTALL)):
        hook(**settings)


@pytest.mark.parametrize("name", ["inner_solver", "l2", "memory", "loss's class", "no such keyword", "process_group"])
def test_hooks_without_an_estimator_refuse_at_once_too(name):
    settings, error, _ = WRONG[name]
    with pytest.raises(error):
        hook(TotalGradient, **settings)
    with pytest.raises(TypeError, match="damping= is not a setting of this hook"):
        hook(TotalGradient, damping=1.0)
    with pytest.raises(TypeError, match="Implicit estimator"):
        hook(TotalHessian, estimator="random")


def test_settings_that_have_no_meaning_for_the_items_are_refused():
    for kind in (QueryInfluence, SupportInfluence):
        with pytest.raises(ValueError, match="leave_one_out=True is for whole tasks"):
            hook(kind, leave_one_out=True)
    with pytest.raises(ValueError, match="for support samples: a query sample"):
        hook(QueryInfluence, removal="resolve")
    with pytest.raises(ValueError, match="for support samples: a task"):
        hook(GroupInfluence, by="taskset", of="task", removal="resolve")
    with pytest.raises(ValueError, match="for support samples"):
        TaskInfluence.like(hook(SupportInfluence, removal="resolve"))
    for by, of in (("colour", "query"), ("class", "task"), ("score", "query"), ("key", "support")):
        with pytest.raises(ValueError, match=f"by must be one of.*not '{by}'"):
            hook(GroupInfluence, by=by, of=of)
    with pytest.raises(ValueError, match="of must be one of"):
        hook(GroupInfluence, by="class", of="image")
    with pytest.raises(TypeError, match="by"):
        hook(GroupInfluence)


@pytest.mark.parametrize("question", ["scores", "score_matrix"])
def test_a_wrong_question_is_refused(question):
    with pytest.raises(ValueError, match="test_gradient must be one of"):
        getattr(hook(), question)(pairs(classification_batches(2, 1)), test_gradient="exact")


# ---- short forms and objects --------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    test = pairs(classification_batches(2, 1))
    return torch.equal(one.score_matrix(test)[1], other.score_matrix(test)[1])


def test_short_forms_are_the_settings_of_the_objects():
    solver = Dense()
    short = hook(hessian="gauss-newton", damping=0.5, solver=solver, memory=2**20, progress=False)
    estimator = Implicit(hessian="gauss-newton", damping=0.5, solver=solver)
    long = hook(estimator=estimator, resources=Resources(memory=2**20, progress=False))
    assert short.fitted().estimator == long.fitted().estimator == estimator
    assert same(short, long) and not same(short, hook(hessian="gauss-newton", damping=5.0))
    assert hook(estimator="first-order", damping=0.5).fitted().estimator == FirstOrder(damping=0.5)
    assert same(hook(estimator="ascent", steps=1, lr=0.5), hook(estimator=AscentSteps(steps=1, lr=0.5)))


def test_each_estimator_has_a_name_in_the_registry():
    assert set(ESTIMATORS) == {
        "implicit", "first-order", "gradient-similarity", "cosine-similarity", "tracin", "projected-gradients",
        "single-level-ekfac", "ascent", "random", "loss", "gradient-norm",
    }  # fmt: skip
    assert all(ESTIMATORS[name].name == name for name in ESTIMATORS)
    assert hook(estimator="gradient-similarity").fitted().estimator == GradientSimilarity()
    assert {kind.name for kind in (TracIn, ProjectedGradients, SingleLevelEKFAC)} < set(ESTIMATORS)


# ---- hooks like other hooks ---------------------------------------------------------------------------------------


def test_a_hook_like_another_shares_what_they_have_in_common():
    first = optimal_run("unrolled").hook(TaskInfluence)
    system = first.fitted().system
    for kind, changed in (
        (QueryInfluence, {}),
        (SupportInfluence, {"removal": "resolve"}),
        (TaskInfluence, {"leave_one_out": True}),
    ):
        assert kind.like(first, **changed).fitted().system is system
    assert GroupInfluence.like(first, by="taskset", of="task").fitted().system is system
    assert TotalHessian.like(first).fitted().system is system
    damped = TaskInfluence.like(first, damping=3.0)
    assert damped.run_at() is first.run_at() and damped.fitted().system is not system and damped.fitted().damping == 3.0
    regularised = TaskInfluence.like(first, l2=3.0)
    assert regularised.run_at() is not first.run_at() and regularised.run_at().problem.l2 == 3.0
    other = TaskInfluence.like(first, estimator="gradient-similarity")
    assert other.run_at() is first.run_at() and other.fitted().estimator == GradientSimilarity()
    with pytest.raises(TypeError, match="hessian= is not a setting"):
        TaskInfluence.like(other, hessian="exact")


def test_groups_are_kept_or_given_anew():
    classes = hook(GroupInfluence, by="taskset", of="task")
    assert GroupInfluence.like(classes, damping=1.0).items == classes.items
    with pytest.raises(TypeError, match="say what the groups are"):
        GroupInfluence.like(hook())


def test_like_says_how_to_ask_a_study():
    maml, _ = run()
    with record() as study:
        pass
    for kind in (QueryInfluence, GroupInfluence):
        for source in (study, maml):
            with pytest.raises(TypeError, match=rf"write {kind.__name__}\(study"):
                kind.like(source, **({"by": "class"} if kind is GroupInfluence else {}))


def test_direct_influence_is_a_hessian_of_its_own():
    direct = hook(DirectInfluence)
    assert direct.fitted().estimator == Implicit(hessian="direct-first-order")
    assert hook(DirectInfluence, hessian="direct", damping=1.0).fitted().estimator.hessian == "direct"
    assert TaskInfluence.like(direct, hessian=Sketch(samples=2)).fitted().estimator.hessian == Sketch(samples=2)
