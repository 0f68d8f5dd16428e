"""Estimators against their definitions, written out densely in float64 with plain autograd."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import learn2learn as l2l
import pytest
import torch
from torch import nn
from torch.func import functional_call

from l2l_influence import (
    ESTIMATORS,
    MAML,
    AscentSteps,
    Checkpoints,
    CosineSimilarity,
    GradientNorm,
    GradientSimilarity,
    OwnLoss,
    ProjectedGradients,
    QueryInfluence,
    RandomScores,
    SingleLevelEKFAC,
    Study,
    SupportInfluence,
    TaskDataset,
    TaskInfluence,
    TracIn,
    record,
)
from l2l_influence.errors import EstimatorError, InfluenceError, LossStructureError, NotConvergedError

from ..reference_problems.learn2learn import ListedTasks, everything, labelled_batches, pairs, train

LR, STEPS = 0.3, 2
ORDER = [*range(5), 2, 2]  # task 2 is drawn three times
WEIGHTS = torch.tensor([1, 1, 3, 1, 1], dtype=torch.float64) * 5 / 7
HOOKS = {"task": TaskInfluence, "query": QueryInfluence, "support": SupportInfluence}
LEVELS = list(HOOKS)
LOSS = nn.CrossEntropyLoss()


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


class Run:
    """A recorded run of five tasks, and everything about it by plain autograd."""

    def __init__(self, model: nn.Module | None = None, seed: int = 0) -> None:
        self.batches, self.test = labelled_batches(5, seed), pairs(labelled_batches(3, seed=100))
        self.model = model or small_model()
        self.maml, self.tasks = train(self.model, self.batches, LOSS, lr=LR, steps=STEPS, order=ORDER)
        self.train = pairs(self.batches)
        self.lam = nn.utils.parameters_to_vector(self.model.parameters()).detach()

    def outputs(self, lam, x):
        sizes = [p.numel() for p in self.model.parameters()]
        named = zip(self.model.named_parameters(), lam.split(sizes), strict=True)
        return functional_call(self.model, {name: part.view(p.shape) for (name, p), part in named}, (x,))

    def sample_losses(self, lam, pair):
        x, y = pair
        return nn.functional.cross_entropy(self.outputs(lam, x), y, reduction="none")

    def adapted(self, lam, support, w):
        theta = lam
        for _ in range(STEPS):
            inner = (w * self.sample_losses(theta, support)).sum()
            theta = theta - LR * torch.autograd.grad(inner, theta, create_graph=True)[0]
        return theta

    def part(self, lam, task, ws, wq):
        """L_O of a task at λ by the weights of its support and query samples."""
        support, query = task
        return (wq * self.sample_losses(self.adapted(lam, support, ws), query)).sum()

    def mean_part(self, lam, task):
        return self.part(lam, task, *(torch.full((len(y),), 1 / len(y), dtype=lam.dtype) for _, y in task))

    def total_gradient(self, task, lam):
        lam = lam.clone().requires_grad_()
        return torch.autograd.grad(self.mean_part(lam, task), lam)[0]

    def pulls(self, i, level, lam):
        """The items' pulls, ``[count, P]``: derivatives of c_i g_i by what is taken away."""
        lam = lam.clone().requires_grad_()
        ws, wq = (torch.full((len(y),), 1 / len(y), dtype=lam.dtype, requires_grad=True) for _, y in self.train[i])
        gradient = torch.autograd.grad(self.part(lam, self.train[i], ws, wq), lam, create_graph=True)[0]
        if level == "task":
            return WEIGHTS[i] * gradient.detach().unsqueeze(0)
        w = wq if level == "query" else ws
        by_w = torch.stack([torch.autograd.grad(entry, w, retain_graph=True)[0] for entry in gradient])
        return WEIGHTS[i] * (by_w * w.detach()).T

    def all_pulls(self, level, lam=None):
        lam = self.lam if lam is None else lam
        return torch.cat([self.pulls(i, level, lam) for i in range(5)])

    def own_gradients(self, level):
        """D_λ of each item's own loss after adaptation, a sample's without its weight, ``[count, P]``."""
        found = []
        for support, query in self.train:
            lam = self.lam.clone().requires_grad_()
            theta = self.adapted(lam, support, torch.full((4,), 0.25, dtype=lam.dtype))
            losses = self.sample_losses(theta, support if level == "support" else query)
            each = losses.mean().unsqueeze(0) if level == "task" else losses
            found += [torch.autograd.grad(loss, lam, retain_graph=True)[0] for loss in each]
        return torch.stack(found)

    def test_gradients(self, lam=None):
        return torch.stack([self.total_gradient(task, self.lam if lam is None else lam) for task in self.test])

    def test_losses(self, lam):
        return torch.stack([self.mean_part(lam.clone().requires_grad_(), task).detach() for task in self.test])

    def names(self, level):
        return list(range(5)) if level == "task" else list(itertools.product(range(5), range(4)))


@pytest.fixture(scope="module")
def run():
    return Run()


@pytest.fixture(scope="module")
def spoilt():
    """Labels go by the sign of the first input, but for the query set of task 3; trained until that is learned."""
    g = torch.Generator().manual_seed(30)
    x = torch.randn(24, 16, 3, generator=g, dtype=torch.float64)
    y = (x[..., 0] > 0).long()
    y[3, 1::2] = 1 - y[3, 1::2]
    batches = list(zip(x, y, strict=True))
    maml, tasks = train(small_model(), batches[:20], LOSS, lr=LR, order=[*range(20)] * 20, optimizer_lr=0.2)
    return SimpleNamespace(maml=maml, tasks=tasks, test=pairs(batches[20:]))


def matrix(run, estimator, level, **options):
    names, found = HOOKS[level](run.maml, run.tasks, LOSS, estimator=estimator, **options).score_matrix(run.test)
    assert names == run.names(level) and found.dtype == torch.float64
    return found


def close(found, expected, rtol=1e-9):
    return torch.allclose(found, expected, rtol=rtol, atol=1e-13)


@pytest.mark.parametrize("level", LEVELS)
def test_similarity_is_the_product_of_gradients(run, level):
    pulls, tests = run.all_pulls(level), run.test_gradients()
    assert close(matrix(run, GradientSimilarity(), level), -pulls @ tests.T)
    lengths = pulls.norm(dim=1, keepdim=True) * tests.norm(dim=1)
    assert close(matrix(run, CosineSimilarity(), level), -(pulls @ tests.T) / lengths)


def test_the_cosine_with_no_gradient_is_none():
    x, y = (part.double() for part in labelled_batches(1, seed=80)[0])
    batches = [(x, y.unsqueeze(1)), (torch.zeros_like(x), torch.zeros(8, 1).double())]
    maml, tasks = train(nn.Linear(3, 1, bias=False).double(), batches, nn.MSELoss())
    found = TaskInfluence(maml, tasks, nn.MSELoss(), estimator=CosineSimilarity()).score_matrix(pairs(batches))[1]
    assert found[0, 0] == pytest.approx(-1) and found.flatten()[1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("level", LEVELS)
def test_the_norm_is_that_of_the_pull(run, level):
    expected = run.all_pulls(level).norm(dim=1, keepdim=True).expand(-1, 3)
    assert close(matrix(run, GradientNorm(), level), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_the_loss_is_the_items_own_after_adaptation(run, level):
    expected = []
    for support, query in run.train:
        quarter = torch.full((4,), 0.25, dtype=torch.float64)
        theta = run.adapted(run.lam.clone().requires_grad_(), support, quarter)
        losses = run.sample_losses(theta, support if level == "support" else query).detach()
        expected.append(losses.mean().unsqueeze(0) if level == "task" else losses)
    assert close(matrix(run, OwnLoss(), level), torch.cat(expected).unsqueeze(1).expand(-1, 3))


@pytest.mark.parametrize("level", LEVELS)
def test_tracin_adds_up_over_checkpoints(run, level):
    others = [small_model(seed) for seed in (1, 2)]
    checkpoints = [(MAML(other, lr=0.1).state_dict(), lr) for other, lr in zip(others, (0.5, 0.2), strict=True)]
    expected = torch.zeros(len(run.names(level)), 3, dtype=torch.float64)
    for other, lr in zip(others, (0.5, 0.2), strict=True):
        lam = nn.utils.parameters_to_vector(other.parameters()).detach()
        expected -= lr * run.all_pulls(level, lam) @ run.test_gradients(lam).T
    assert close(matrix(run, TracIn(checkpoints), level), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_ascent_climbs_on_the_item_alone(run, level):
    found = matrix(run, AscentSteps(steps=2, lr=0.4), level)
    for task, j in ((0, 0), (2, 3)):  # the second was drawn three times
        item, at = (task, 0) if level == "task" else (4 * task + j, j)
        lam = run.lam
        for _ in range(2):
            lam = lam + 0.4 * run.pulls(task, level, lam)[at]
        assert close(found[item], run.test_losses(run.lam) - run.test_losses(lam))


@pytest.mark.parametrize("level", LEVELS)
def test_projected_gradients_use_the_items_own_kernel(run, level):
    draw = torch.Generator().manual_seed(3)
    signs = torch.randint(0, 2, (len(run.lam), 7), generator=draw, dtype=torch.int8) * 2.0 - 1
    projection = signs.double() / 7**0.5
    features, tests = run.all_pulls(level) @ projection, run.test_gradients() @ projection
    kernel = features.T @ features
    for ridge, value in ((0.01, 0.01), ("auto", 0.01 * float(torch.linalg.eigvalsh(kernel)[-1]))):
        inverse = torch.linalg.inv(kernel + value * torch.eye(7, dtype=torch.float64))
        expected = -features @ inverse @ tests.T
        found = matrix(run, ProjectedGradients(dimensions=7, seed=3, ridge=ridge), level)
        assert close(found, expected, rtol=1e-7)


def output_curvature(outputs, y, weight):
    """∂²(w ℓ)/∂outputs² of one sample, and a root of it, by its eigenvalues."""
    curvature = torch.autograd.functional.hessian(
        lambda out: weight * nn.functional.cross_entropy(out.unsqueeze(0), y.unsqueeze(0)), outputs.detach()
    )
    values, vectors = torch.linalg.eigh(curvature)
    return vectors * values.clamp(min=0).sqrt()


def dense_ekfac(run, model, normed, weights_of_tasks):
    """EK-FAC of a two-layer network on all samples of weighted tasks, by its definition, as one P × P matrix."""
    named = dict(model.named_parameters())
    first, last = ("0.", "3.") if normed else ("0.", "2.")
    weights = {prefix: named[f"{prefix}weight"] for prefix in (first, last)}
    moments = {prefix: [0, 0] for prefix in weights}
    slopes = {prefix: [] for prefix in weights}
    rest = []
    for c, ((xs, ys), (xq, yq)) in zip(weights_of_tasks, run.train, strict=True):
        x, y = torch.cat([xs, xq]), torch.cat([ys, yq])
        shifts = [torch.zeros(8, len(weight), dtype=x.dtype, requires_grad=True) for weight in weights.values()]
        hidden = nn.functional.linear(x, *(named[f"{first}{part}"] for part in ("weight", "bias"))) + shifts[0]
        features = model[2](model[1](hidden)) if normed else model[1](hidden)
        outputs = nn.functional.linear(features, *(named[f"{last}{part}"] for part in ("weight", "bias"))) + shifts[1]
        inputs = [torch.cat([part.detach(), torch.ones(8, 1).double()], dim=1) for part in (x, features)]
        others = [named["1.weight"], named["1.bias"]] if normed else []
        for prefix, a in zip(weights, inputs, strict=True):
            moments[prefix][0] = moments[prefix][0] + c / 4 * a.T @ a
        for j in range(8):
            root = output_curvature(outputs[j], y[j], c / 4)
            for column in root.T:
                found = torch.autograd.grad(outputs[j] @ column, shifts + others, retain_graph=True)
                for prefix, s, a in zip(weights, found, inputs, strict=False):
                    moments[prefix][1] = moments[prefix][1] + s.T @ s
                    slopes[prefix].append(s.T @ a)
                if normed:
                    rest.append(torch.cat(found[2:]))
    return torch.block_diag(*_dense_blocks(named, moments, slopes, rest, normed))


def _dense_blocks(named, moments, slopes, rest, normed):
    for prefix, (a, g) in moments.items():
        basis = torch.kron(torch.linalg.eigh(g).eigenvectors, torch.linalg.eigh(a).eigenvectors)
        values = sum((basis.T @ slope.flatten()).square() for slope in slopes[prefix])
        rows, columns = named[f"{prefix}weight"].shape
        entry = torch.arange(rows * (columns + 1)).view(rows, columns + 1)
        order = torch.cat([entry[:, :-1].flatten(), entry[:, -1]])  # all weights, then all biases
        yield (basis * values @ basis.T)[order][:, order]
        if normed and prefix == "0.":
            yield sum(torch.outer(row, row) for row in rest)


@pytest.mark.parametrize("normed", [False, True])
def test_single_level_ekfac_is_that_of_one_model_on_all_samples(normed):
    torch.manual_seed(5)
    layers = [nn.Linear(3, 4), *([nn.BatchNorm1d(4)] if normed else []), nn.Tanh(), nn.Linear(4, 2)]
    model = nn.Sequential(*layers).double()
    run = Run(model, seed=10 + normed)
    parameters = list(model.parameters())

    def gradient(loss):
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, retain_graph=True)])

    tests = torch.stack([gradient(LOSS(model(x), y)) for _, (x, y) in run.test])
    parts = {"task": [], "query": [], "support": []}
    for c, ((xs, ys), (xq, yq)) in zip(WEIGHTS, run.train, strict=True):
        outputs = model(torch.cat([xs, xq]))
        losses = c / 4 * nn.functional.cross_entropy(outputs, torch.cat([ys, yq]), reduction="none")
        each = torch.stack([gradient(loss) for loss in losses])
        parts["task"].append(each.sum(0, keepdim=True))
        parts["support"].append(each[:4])
        parts["query"].append(each[4:])

    drawn = torch.zeros(5, dtype=torch.float64)
    drawn[torch.randperm(5, generator=torch.Generator().manual_seed(4))[:3]] = 5 / 3
    for options, share in (({"curvature_tasks": 5}, torch.ones(5)), ({"curvature_tasks": 3, "seed": 4}, drawn)):
        curvature = dense_ekfac(run, model, normed, WEIGHTS * share)
        for damping, value in ((0.05, 0.05), ("auto", 0.1 * float(curvature.trace()) / len(curvature))):
            inverse = torch.linalg.inv(curvature + (0.3 + value) * torch.eye(len(curvature)).double())
            for level in LEVELS:
                found = matrix(run, SingleLevelEKFAC(damping=damping, **options), level, l2=0.3)
                assert close(found, -torch.cat(parts[level]) @ inverse @ tests.T, rtol=1e-8)


@pytest.mark.parametrize("level", LEVELS)
def test_single_level_ekfac_does_not_care_which_parameters_are_adapted(level):
    body, head, batches = nn.Linear(3, 4).double(), nn.Linear(4, 2).double(), labelled_batches(4, seed=70)
    anil, maml = l2l.algorithms.MAML(head, lr=LR), l2l.algorithms.MAML(nn.Sequential(body, head), lr=LR)
    with record() as recorded:
        for x, y in map(ListedTasks(batches).__getitem__, range(4)):
            learner, features = anil.clone(), body(x)
            learner.adapt(LOSS(learner(features[::2]), y[::2]))
            LOSS(learner(features[1::2]), y[1::2]).backward()
    told = Study()
    for key, (support, query) in enumerate(pairs(batches)):
        told.add_episode(learner=maml, support=support, query=query, lr=LR, steps=1, key=key)
    found, expected = (
        HOOKS[level](study, loss=LOSS, estimator=SingleLevelEKFAC()).score_matrix(pairs(labelled_batches(3, seed=100)))[
            1
        ]
        for study in (recorded, told)
    )
    assert close(found, expected)


def test_ekfac_takes_as_many_tasks_as_memory_holds(run):
    lines = [
        TaskInfluence(run.maml, run.tasks, LOSS, estimator="single-level-ekfac", **options).scores(run.test).notes
        for options in ({}, {"curvature_tasks": 3}, {"memory": 10_000}, {"memory": 1})
    ]
    assert [re.search(r"from (\d) of 5 tasks", " ".join(line))[1] for line in lines] == ["5", "3", "2", "1"]


# ---- all of them ------------------------------------------------------------------------------------------------

VARIANTS = {
    **{name: {"estimator": name} for name in ESTIMATORS},
    **{name: {"hessian": name} for name in ("direct", "direct-first-order", "gamma")},
}
"""Every estimator, and Hessians that make a baseline of the implicit one."""

NEEDED = {
    "ascent": {"steps": 1},
    "direct-first-order": {"damping": 9.0, "tolerance": 1e-12},  # its Hessian is indefinite here
    "projected-gradients": {"ridge": 1.0},  # with fewer tasks than parameters, little ridge makes all count alike
}


def make(name, run, level="task", **options):
    own = {"checkpoints": [(run.maml.state_dict(), 1.0)]} if name == "tracin" else NEEDED.get(name, {})
    return HOOKS[level](run.maml, run.tasks, LOSS, **VARIANTS[name], **own, **options)


@pytest.mark.filterwarnings("ignore:the direct total Hessian")
@pytest.mark.parametrize("name", VARIANTS)
def test_all_answer_as_hooks_do_and_leave_everything_as_it_was(run, name):
    before = everything(run.maml)
    for level in LEVELS:
        scorer = make(name, run, level)
        names, found = scorer.score_matrix(run.test)
        scores = scorer.scores(run.test)
        assert names == run.names(level) and found.shape == (len(names), 3)
        assert [scores.values[name] for name in names] == pytest.approx(found.mean(1).tolist(), rel=1e-9, abs=1e-15)
        assert [row.score for row in scores] == sorted(scores.values.values(), reverse=True)
        assert scores.test_loss == pytest.approx(run.test_losses(run.lam).mean().item(), rel=1e-9)
        assert str(scores)
    assert everything(run.maml) == before


@pytest.mark.parametrize("level", LEVELS)
def test_rows_say_what_the_hooks_rows_say(run, level):
    hook = make("gamma", run, level).scores(run.test)
    rows = make("gradient-similarity", run, level).scores(run.test)
    # In plain MAML Γ is a multiple of the identity: the same ranking, and so the same rows but for the scores' size.
    without = [[value for field, value in vars(row).items() if field != "score"] for row in hook]
    assert [[value for field, value in vars(row).items() if field != "score"] for row in rows] == without
    assert type(rows) is type(hook) and rows.what == hook.what and rows.reading != hook.reading


def test_first_order_takes_dtheta_for_the_identity(run):
    def gradients(tasks, weights):
        found = []
        for (support, query), c in zip(tasks, weights, strict=True):
            quarter = torch.full((4,), 0.25, dtype=torch.float64)
            theta = run.adapted(run.lam.clone().requires_grad_(), support, quarter).detach().requires_grad_()
            found.append(c * torch.autograd.grad(run.sample_losses(theta, query).mean(), theta)[0])
        return torch.stack(found)

    scorer = make("first-order", run, hessian="identity", l2=0.5, damping=0.0)
    expected = -gradients(run.train, WEIGHTS) @ gradients(run.test, [1, 1, 1]).T / 1.5
    assert close(scorer.score_matrix(run.test)[1], expected)


def test_direct_influence_reads_literally_is_nothing(run):
    with pytest.warns(UserWarning, match="identically zero"):
        assert not make("direct", run).score_matrix(run.test)[1].any()


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - {"random", "direct"}))
def test_a_task_of_wrong_query_labels_is_found_harmful(spoilt, name):
    scores = make(name, spoilt).scores(spoilt.test)
    assert scores[0].task == 3 and scores[0].score > 0


# ---- chance -----------------------------------------------------------------------------------------------------


def test_random_scores_are_normal_and_repeat_with_their_seed(run):
    first, again, other = (
        QueryInfluence(run.maml, run.tasks, LOSS, estimator=RandomScores(seed)).score_matrix(run.test)[1]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first.flatten().unique()) == first.numel()
    assert abs(float(first.mean())) < 0.4 and abs(float(first.std()) - 1) < 0.3


# ---- checkpoints ------------------------------------------------------------------------------------------------


def trained(watch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    maml, tasks = MAML(model, lr=LR), TaskDataset(ListedTasks(labelled_batches(5, seed=0)))
    optimizer = torch.optim.SGD(maml.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    checkpoints = Checkpoints(maml, optimizer, every=2) if watch else []
    seen = []
    for i in range(5):
        x, y = tasks[i]
        learner = maml.clone()
        learner.adapt(LOSS(learner(x[::2]), y[::2]))
        optimizer.zero_grad()
        LOSS(learner(x[1::2]), y[1::2]).backward()
        seen.append(model[0].weight.tolist())
        optimizer.step()
        schedule.step()
    if watch:
        checkpoints.close()
        for _ in range(2):
            optimizer.step()
    return checkpoints, seen, maml


def test_checkpoints_are_taken_without_a_trace():
    checkpoints, seen, watched = trained(watch=True)
    _, unwatched_seen, _ = trained(watch=False)
    after = torch.get_rng_state()
    assert seen == unwatched_seen
    trained(watch=True)
    assert torch.equal(after, torch.get_rng_state())
    assert [state["module.0.weight"].tolist() for state, _ in checkpoints] == seen[::2]
    assert [lr for _, lr in checkpoints] == [0.1, 0.025, 0.00625] and len(checkpoints) == 3
    assert set(checkpoints[0].state) == set(watched.state_dict())


def test_checkpoints_go_into_tracin(run):
    optimizer = torch.optim.SGD(run.maml.parameters(), lr=0.25)
    with Checkpoints(run.maml, optimizer) as checkpoints:
        optimizer.step()
    found = matrix(run, TracIn(checkpoints), "task")
    assert close(found, 0.25 * matrix(run, GradientSimilarity(), "task"))


def test_checkpoints_carry_running_statistics(run):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    maml, tasks = train(model, labelled_batches(3, seed=40), LOSS)
    state = {name: value.clone() for name, value in maml.state_dict().items()}
    similar = TaskInfluence(maml, tasks, LOSS, batch_norm="running", estimator="gradient-similarity")
    then = similar.score_matrix(run.test)[1]
    model[1].running_var.mul_(9)
    tracin = TaskInfluence(maml, tasks, LOSS, batch_norm="running", estimator=TracIn([(state, 1.0)]))
    found = tracin.score_matrix(run.test)[1]
    assert torch.equal(found, then)


def test_checkpoints_of_a_body_and_a_head(run):
    body, head = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    maml = l2l.algorithms.MAML(head, lr=LR)
    with record() as study:
        for x, y in map(ListedTasks(labelled_batches(4, seed=50)).__getitem__, range(4)):
            learner, features = maml.clone(), body(x)
            learner.adapt(LOSS(learner(features[::2]), y[::2]))
            LOSS(learner(features[1::2]), y[1::2]).backward()
    state = nn.ModuleDict({"body": body, "module": head}).state_dict()
    found = TaskInfluence(study, loss=LOSS, estimator=TracIn([(state, 2.0)])).score_matrix(run.test)[1]
    expected = TaskInfluence(study, loss=LOSS, estimator="gradient-similarity").score_matrix(run.test)[1]
    assert close(found, 2 * expected)


# ---- errors -----------------------------------------------------------------------------------------------------


def test_errors_say_what_to_do(run):
    def of(estimator, **options):
        return TaskInfluence(run.maml, run.tasks, LOSS, estimator=estimator, **options)

    with pytest.raises(LossStructureError, match="CrossEntropyLoss"):
        TaskInfluence(run.maml, run.tasks, estimator="loss").scores(run.test)
    with pytest.raises(InfluenceError, match="no test tasks"):
        of("gradient-norm").scores([])
    with pytest.raises(InfluenceError, match="at least one checkpoint"):
        TracIn([])
    with pytest.raises(InfluenceError, match=r"maml.state_dict\(\) of this learner"):
        of(TracIn([(run.model.state_dict(), 1.0)])).scores(run.test)
    with pytest.raises(NotConvergedError, match="lower lr"):
        of(AscentSteps(lr=1e308, steps=10)).scores(run.test)
    first, second = run.model[0].parameters(), run.model[2].parameters()
    optimizer = torch.optim.SGD([{"params": first, "lr": 0.1}, {"params": second, "lr": 0.2}])
    with Checkpoints(run.maml, optimizer), pytest.raises(InfluenceError, match="different learning rates"):
        optimizer.step()
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoints(run.maml, optimizer, every=0)


# ---- further questions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_self_influence_is_a_product_with_the_gradient_of_the_items_own_loss(run, level):
    """In plain products, cosines, sums over checkpoints, and under the items' kernel."""
    pulls, own = run.all_pulls(level), run.own_gradients(level)
    draw = torch.Generator().manual_seed(3)
    signs = torch.randint(0, 2, (len(run.lam), 7), generator=draw, dtype=torch.int8) * 2.0 - 1
    projection = signs.double() / 7**0.5
    features = pulls @ projection
    kernel = torch.linalg.inv(features.T @ features + 0.01 * torch.eye(7).double())
    expected = {
        GradientSimilarity(): -(pulls * own).sum(1),
        CosineSimilarity(): -torch.cosine_similarity(pulls, own, dim=1),
        TracIn([(run.maml.state_dict(), 0.5), (run.maml.state_dict(), 0.25)]): -0.75 * (pulls * own).sum(1),
        ProjectedGradients(dimensions=7, seed=3, ridge=0.01): -((features @ kernel) * (own @ projection)).sum(1),
    }
    for estimator, values in expected.items():
        scores = HOOKS[level](run.maml, run.tasks, LOSS, estimator=estimator).self_influence()
        found = torch.tensor([scores.values[name] for name in run.names(level)], dtype=torch.float64)
        assert close(found, values, rtol=1e-7)
        assert [row.score for row in scores] == sorted(scores.values.values())


@pytest.mark.parametrize("level", LEVELS)
def test_estimators_that_move_lambda_predict_edits(run, level):
    """TracIn takes back the item's share of its steps; ascent goes up it."""
    items = [0, 2] if level == "task" else [(0, 1), (2, 3)]
    rows = [run.names(level).index(item) for item in items]
    pull = run.all_pulls(level)[rows].sum(0)
    climbed, sign = run.lam, -1 if level != "support" else 1
    for _ in range(2):
        climbed = climbed + 0.4 * run.all_pulls(level, climbed)[rows].sum(0)
    moves = {
        TracIn([(run.maml.state_dict(), 0.5), (run.maml.state_dict(), 0.25)]): 0.75 * pull,
        AscentSteps(steps=2, lr=0.4): climbed - run.lam,
    }
    for estimator, expected in moves.items():
        hook = HOOKS[level](run.maml, run.tasks, LOSS, estimator=estimator)
        edited = hook.remove(items)
        assert close(torch.cat([value.flatten() for value in edited.values()]) - run.lam, expected)
        influence = torch.cat([value.flatten() for value in hook.influence(items).values()])
        assert close(influence, sign * expected)
        with pytest.raises(EstimatorError, match="correct_residual=True. These do: implicit, first-order"):
            hook.remove(items, correct_residual=True)


def test_questions_that_an_estimator_cannot_answer_are_refused_and_others_named(run):
    def of(name):
        return make(name, run)

    for name in ("gradient-similarity", "cosine-similarity", "projected-gradients", "single-level-ekfac", "random"):
        for ask in (lambda: of(name).influence(0), lambda: of(name).remove(0), lambda: of(name).add(run.test)):  # noqa: B023
            with pytest.raises(EstimatorError, match=f'"{name}".*These do: .*implicit.*tracin'):
                ask()
    for name in ("single-level-ekfac", "random", "loss", "gradient-norm", "ascent"):
        with pytest.raises(EstimatorError, match="self_influence.*gradient-similarity.*estimator="):
            of(name).self_influence()
    for name in ("random", "loss", "gradient-norm", "ascent"):
        with pytest.raises(EstimatorError, match="score_matrix_to.*cosine-similarity.*tracin"):
            of(name).score_matrix_to("nowhere", run.test)
        with pytest.raises(EstimatorError, match="does not use test gradients"):
            of(name).scores(run.test, test_gradient="partial")


def test_ekfac_of_tasks_of_different_shapes_is_refused(run):
    first, (x, y) = labelled_batches(2, seed=60)
    maml, tasks = train(run.model, [first, (x[:6], y[:6])], LOSS, lr=LR, steps=STEPS)
    with pytest.raises(InfluenceError, match="of one shape"):
        TaskInfluence(maml, tasks, LOSS, estimator=SingleLevelEKFAC()).scores(run.test)
