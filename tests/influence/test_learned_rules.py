"""MetaSGD and GBML with the unrolled kind: rates and transforms are meta-parameters beside the initialisation. Held
against learn2learn's own backward, and against re-optimising all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import learn2learn as l2l
import pytest
import torch
from learn2learn.nn import KroneckerLinear
from learn2learn.optim import KroneckerTransform, MetaCurvatureTransform, ModuleTransform
from torch import Tensor, nn
from torch.func import grad, hessian
from torch.nn.utils import vector_to_parameters

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
from l2l_influence.influence.rules import learned_rule

from ..bilevel.toys import relative
from .runs import ListedTasks, classification_batches, everything, pairs, regression_batches

LOSS, LR = nn.CrossEntropyLoss(), 0.3

Maker = Callable[..., Any]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 3))


def gbml(transform: Any, **settings: Any) -> Maker:
    return lambda model, **more: l2l.algorithms.GBML(model, transform, lr=LR, **settings, **more)


def meta_sgd(model: nn.Module, **settings: Any) -> Any:
    return l2l.algorithms.MetaSGD(model, lr=LR, **settings)


class Bounded(nn.Module):
    """A transform that a user may write."""

    def __init__(self, _parameter: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, gradient: Tensor) -> Tensor:
        return torch.tanh(self.scale * gradient)


MAKERS: dict[str, Maker] = {
    "meta-sgd": meta_sgd,
    "kronecker": gbml(KroneckerTransform(KroneckerLinear)),
    "kronecker, biased": gbml(KroneckerTransform(KroneckerLinear, bias=True, psd=False)),
    "kronecker, adapted": gbml(KroneckerTransform(KroneckerLinear), adapt_transform=True),
    "module": gbml(ModuleTransform(nn.Linear)),
    "module, adapted": gbml(ModuleTransform(nn.Linear), adapt_transform=True),
    "meta-curvature": gbml(MetaCurvatureTransform),
    "meta-curvature, adapted": gbml(MetaCurvatureTransform, adapt_transform=True),
    "user's own": gbml(Bounded),
    "weights only": gbml(lambda parameter: Bounded(parameter) if parameter.dim() > 1 else None),
    "none": gbml(lambda parameter: None),
}


def make(rule: str, model: nn.Module | None = None, **settings: Any) -> Any:
    """A learner in float64 whose rates or transforms are away from where they are initialised."""
    torch.manual_seed(0)
    learner = MAKERS[rule](model or network(), **settings).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return learner


def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    return [(x.double(), y) for x, y in classification_batches(count, seed, (3,))]


def outer_loss(learner: Any, pair: Any, steps: int, loss: nn.Module = LOSS) -> Tensor:
    """As users write it."""
    (xs, ys), (xq, yq) = pair
    clone = learner.clone()
    for _ in range(steps):
        clone.adapt(loss(clone(xs), ys))
    value: Tensor = loss(clone(xq), yq)
    return value


def recorded(learner: Any, tasks: Sequence[Any], steps: int, loss: nn.Module = LOSS) -> Study:
    """The study of a loop that leaves the learner where it is."""
    served = ListedTasks(tasks)
    with record() as study:
        for key in range(len(tasks)):
            x, y = served[key]
            outer_loss(learner, ((x[::2], y[::2]), (x[1::2], y[1::2])), steps, loss).backward()
    learner.zero_grad()
    return study


def by_own_name(learner: Any) -> dict[str, Tensor]:
    """What backward left in .grad, by the names that hooks use."""
    found = {name.removeprefix("module."): p.grad for name, p in learner.named_parameters()}
    return {name: value for name, value in found.items() if value is not None}


CASES = [
    (rule, first_order, steps)
    for rule in MAKERS
    for first_order, steps in ((False, 3), (True, 1), (True, 2))
    if not (first_order and "adapted" in rule and steps > 1)  # there learn2learn itself fails
]


@pytest.mark.parametrize(("rule", "first_order", "steps"), CASES)
def test_total_gradients_are_what_the_learner_leaves_in_grad(rule: str, first_order: bool, steps: int) -> None:
    learner, tasks = make(rule, first_order=first_order), batches(1, seed=1)
    found = TotalGradient(recorded(learner, tasks, steps), loss=LOSS).of(0)
    outer_loss(learner, pairs(tasks)[0], steps).backward()
    expected = by_own_name(learner)
    assert list(found) == [name.removeprefix("module.") for name, _ in learner.named_parameters()]
    for name, value in found.items():
        torch.testing.assert_close(value, expected.get(name, torch.zeros_like(value)), rtol=1e-9, atol=1e-12)


# ---- against re-optimisation -------------------------------------------------------------------------------------


def meta_sgd_steps(lam: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
    """Two steps of MetaSGD on a linear model of three weights; λ holds these and their rates."""
    theta = lam[:3]
    for _ in range(2):
        theta = theta - lam[3:] * slope(theta)
    return theta


def curved_steps(lam: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
    """Two steps of GBML with meta-curvature, which is a 1 × 1 and a 3 × 3 matrix for that model."""
    theta, first, second = lam[:3], lam[3], lam[4:].view(3, 3)
    for _ in range(2):
        theta = theta - LR * first * slope(theta) @ second
    return theta


SMALL: dict[str, Any] = {"meta-sgd": meta_sgd_steps, "meta-curvature": curved_steps}
L2 = 0.1


class Retraining:
    """argmin_λ Σ_i c_i L_O^i(θ_i(λ)) + (l2/2) ‖λ‖² by Newton's method, rates or transforms being a part of λ.

    Weights ``[T]`` of tasks, ``[T, n]`` of samples in the outer and in the inner loss; ``items`` are positions in them.
    """

    def __init__(self, rule: str) -> None:
        self._steps, self._learner = SMALL[rule], make(rule, nn.Linear(3, 1, bias=False))
        self.batches = regression_batches(5, seed=0)
        self._weights = [torch.ones(5), torch.ones(5, 4), torch.ones(5, 4)]
        self._start = flat(self._learner.parameters())

    def loss(self, lam: Tensor, pair: Any, query: Tensor, support: Tensor) -> Tensor:
        (xs, ys), (xq, yq) = pair
        slope = grad(lambda theta: (support * (xs @ theta - ys[:, 0]).square()).mean())
        outer: Tensor = (query * (xq @ self._steps(lam, slope) - yq[:, 0]).square()).mean()
        return outer

    def objective(self, lam: Tensor, weights: Sequence[Tensor]) -> Tensor:
        losses = map(self.loss, [lam] * 5, pairs(self.batches), *weights[1:])
        total: Tensor = sum(w * loss for w, loss in zip(weights[0], losses, strict=True)) + L2 / 2 * lam @ lam
        return total

    def __call__(self, what: int = 0, item: Any = 0, change: float = 0.0) -> Tensor:
        """λ* where one item's weight is 1 + ``change``."""
        weights = [w.double().clone() for w in self._weights]
        weights[what][item] += change
        lam = self._start
        while float((slope := grad(self.objective)(lam, weights)).norm()) > 1e-12:
            values, vectors = torch.linalg.eigh(hessian(self.objective)(lam, weights))
            step = vectors @ (vectors.T @ slope / values.abs().clamp_min(1e-2))  # downhill, wherever the search is
            while float(slope.norm()) > 1e-6 and self.objective(lam - step, weights) > self.objective(lam, weights):
                step = step / 2
            lam = lam - step
        assert float(torch.linalg.eigvalsh(hessian(self.objective)(lam, weights)).min()) > 0
        self._start = lam if change == 0 else self._start
        return lam

    def study(self) -> tuple[Any, Any]:
        """A learner at λ*, and the study of a loop that leaves it there."""
        vector_to_parameters(self(), self._learner.parameters())
        return self._learner, recorded(self._learner, self.batches, 2, nn.MSELoss())

    def test_loss(self, lam: Tensor) -> float:
        ones = torch.ones(4).double()
        tests = pairs(regression_batches(3, seed=1))
        return float(sum(self.loss(lam, pair, ones, ones) for pair in tests) / len(tests))


ITEMS = {TaskInfluence: (0, 1), QueryInfluence: (1, (1, 2)), SupportInfluence: (2, (1, 2))}


@pytest.mark.parametrize("kind", ITEMS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("rule", SMALL)
def test_scores_are_derivatives_of_the_test_loss_of_retrained_meta_parameters(rule: str, kind: Any) -> None:
    retraining = Retraining(rule)
    learner, study = retraining.study()
    hook = kind(study, loss=nn.MSELoss(), hessian="exact", l2=L2, damping=0.0, tolerance=1e-12)
    scores, (what, item) = hook.scores(pairs(regression_batches(3, seed=1))), ITEMS[kind]
    more, less = (retraining(what, item, sign * 1e-4) for sign in (1, -1))
    slope = (retraining.test_loss(more) - retraining.test_loss(less)) / 2e-4
    assert scores.values[item] == pytest.approx(slope, rel=1e-5)
    moved, sign = flat(hook.influence(item).values()), kind._level.sign
    expected = -sign * (more - less) / 2e-4
    assert relative(moved[:3], expected[:3]) < 1e-5 and relative(moved[3:], expected[3:]) < 1e-5
    edited, other = hook.remove(item), make(rule, nn.Linear(3, 1, bias=False))
    other.load_state_dict(edited)
    at = flat(learner.parameters())
    torch.testing.assert_close(flat(other.parameters()), at + sign * moved, rtol=1e-9, atol=1e-12)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


# ---- what is left alone, and what is followed --------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["meta-sgd", "meta-curvature, adapted"])
def test_nothing_of_the_users_changes(rule: str) -> None:
    learner, tasks, test = make(rule, nn.Linear(3, 3)), batches(2, seed=1), pairs(batches(1, seed=2))
    study = recorded(learner, tasks, 2)
    before = everything(learner)
    options = {"loss": LOSS, "damping": 1e6, "progress": False}
    questions = [
        *(partial(kind(study, **options).scores, test) for kind in (*ITEMS, DirectInfluence)),
        *(partial(kind(study, **options).remove, item) for kind, (_, item) in ITEMS.items()),
        partial(TaskInfluence(study, **options).add, test),
        partial(TaskInfluence(study, **options).scores, test, exact=False, leave_one_out=True),
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
    with pytest.raises(UncoveredParameterError, match=r"those of a GBML.*Study.load\(path, GBML\(model"):
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
    "registered twice": (lambda model: meta_sgd(Twice()), "several places of the model"),
    "a plain list": (lambda model: meta_sgd(model, lrs=[torch.ones(1)] * 6), "must be an nn.ParameterList"),
    "too few rates": (
        lambda model: meta_sgd(model, lrs=nn.ParameterList([nn.Parameter(torch.ones(1))])),
        "an entry for each parameter",
    ),
    "update of one's own": (own_update, "OwnUpdate, not of a learn2learn.optim.ParameterUpdate"),
    "a learned lr": (
        lambda model: l2l.algorithms.GBML(model, lambda p: None, lr=nn.Parameter(torch.tensor(0.1))),
        "GBML's lr= is learned itself",
    ),
    "a parameter in two places": (lambda model: gbml(lambda p: model[3])(model), "cannot be told apart"),
    "two of a name": (with_own_names, "are called like"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_rules_that_cannot_be_known_are_refused_by_name(strange: str) -> None:
    maker, words = STRANGE[strange]
    learner = maker(network())
    learned = {"gbml": l2l.algorithms.GBML, "meta-sgd": l2l.algorithms.MetaSGD}
    (rule,) = [rule for rule, kind in learned.items() if isinstance(learner, kind)]
    names = {name: name for name, p in learner.module.named_parameters()}
    with pytest.raises(UncoveredParameterError, match=words):
        learned_rule(learner, rule, names)


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
