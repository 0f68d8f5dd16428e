"""A Hessian estimated from a few tasks: unbiased by enumeration of the draws, drawn as documented, repeatable."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from l2l_influence.bilevel import BilevelProblem, ModelLoss, Subsample, Task, Unrolled
from l2l_influence.bilevel.hessians import CURVATURES, Sketch
from l2l_influence.bilevel.hessians.subsample import probabilities
from l2l_influence.errors import InfluenceError, LossStructureError

from ...reference_problems.autograd import (
    SIZE,
    Reference,
    classification,
    classification_tasks,
    generator,
    network,
    parameters,
    randn,
    relative,
)

LAM = parameters()
ROWS = randn(7, 3, SIZE)
DELTA = 3.0
WEIGHTS = [1.0, 2.0, 0.5, 1.5, 3.0]
COUNT = len(WEIGHTS)
C = torch.tensor(WEIGHTS, dtype=torch.float64)
SCORED = pytest.mark.parametrize("by", ["difficulty", "uncertainty"])


def heterogeneous_tasks(count: int = COUNT) -> list[Task]:
    """Task i's query inputs are 0.3·i + 0.3 times as large: losses, entropies and Hessians all differ."""
    scaled = enumerate(classification_tasks(count))
    return [Task(t.support, ((0.3 * i + 0.3) * t.query[0], t.query[1])) for i, t in scaled]


TASKS = heterogeneous_tasks()
PROXIMAL = BilevelProblem(
    classification, classification, DELTA, 0.5, ["head"], inner_solver="dense", inner_tolerance=1e-12
)
QUICK = BilevelProblem(classification, classification, Unrolled(lr=0.1, steps=2), 0.5, ["head"])
LOSS = ModelLoss(network, lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
QUICK_MAML = BilevelProblem(LOSS, LOSS, Unrolled(lr=0.1, steps=2), 0.5)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(classification, LAM, ["head"], DELTA)


@pytest.fixture(scope="module")
def adapted(reference: Reference) -> list[torch.Tensor]:
    return [reference.solve(reference.lam, task) for task in TASKS]


@pytest.fixture(scope="module")
def dense(reference: Reference, adapted: list[torch.Tensor]) -> torch.Tensor:
    """``ROWS`` times Zᵀ ∇²L_O Z of each task, by dense algebra."""
    chains = [reference.chain(*pair) for pair in zip(TASKS, adapted, strict=True)]
    joint = [reference.joint_hessian(*pair) for pair in zip(TASKS, adapted, strict=True)]
    return torch.stack([ROWS @ z.T @ h @ z for z, h in zip(chains, joint, strict=True)])


@pytest.fixture(scope="module")
def scores(reference: Reference, adapted: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What tasks are drawn by, from the reference's solutions."""
    pairs = list(zip(TASKS, adapted, strict=True))
    losses = [reference.outer(task)(reference.lam, theta) for task, theta in pairs]
    p = [network({**LAM, **reference.part.unravel(theta)}, task.query[0]).softmax(-1) for task, theta in pairs]
    return {"difficulty": torch.stack(losses), "uncertainty": torch.stack([-(q * q.log()).sum() for q in p])}


def documented(weights: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return 0.5 * weights / weights.sum() + 0.5 * weights * scores / (weights * scores).sum()


def total(problem: BilevelProblem, kind: object, tasks: list[Task] = TASKS, weights: list[float] | None = None):
    return problem.total_hessian(LAM, tasks, kind, weights or WEIGHTS)


def products(hessian) -> torch.Tensor:
    """Three rows of products say as much of a linear operator as all of its columns would."""
    return hessian.operator.matvec(ROWS)


def left_of(hessian, groups: list[list[int]]) -> torch.Tensor:
    return hessian.operator.without(groups).matvec(ROWS)


def samples(problem: BilevelProblem, wanted: int, **settings) -> dict[tuple[int, ...], torch.Tensor]:
    """The estimate for each of the ``wanted`` possible sets of drawn tasks, from as many seeds as show them all."""
    found: dict[tuple[int, ...], torch.Tensor] = {}
    solved_tasks = problem.at(LAM, TASKS, WEIGHTS)
    for seed in range(1000):
        kind = Subsample(seed=seed, **settings)
        drawn = tuple(kind.draw(solved_tasks).positions)
        if drawn not in found:
            found[drawn] = products(total(problem, kind))
        if len(found) == wanted:
            return found
    raise AssertionError(f"only {sorted(found)} were drawn")


# ---- unbiased ---------------------------------------------------------------------------------------------------


def test_the_mean_over_all_random_subsets_is_the_dense_hessian(dense):
    subsets = list(combinations(range(COUNT), 2))
    found = samples(PROXIMAL, len(subsets), kind="hessian", tasks=2)
    assert sorted(found) == subsets
    assert relative(sum(found.values()) / len(found), torch.einsum("i,ijk->jk", C, dense)) < 1e-8
    assert relative(found[1, 3], COUNT / 2 * (2.0 * dense[1] + 1.5 * dense[3])) < 1e-8


@SCORED
def test_the_mean_over_all_draws_by_a_score_is_the_dense_hessian(by, dense, scores):
    p = documented(C, scores[by])
    found = samples(PROXIMAL, COUNT, kind="hessian", tasks=1, by=by)
    mean = sum(p[i] * found[i,] for i in range(COUNT))
    assert relative(mean, torch.einsum("i,ijk->jk", C, dense)) < 1e-8


@SCORED
def test_several_draws_are_the_mean_of_single_ones(by, dense, scores):
    p = documented(C, scores[by])
    solved_tasks = PROXIMAL.at(LAM, TASKS, WEIGHTS)
    several = [Subsample("hessian", 4, by, seed) for seed in range(8)]
    repeated = next(kind for kind in several if len(kind.draw(solved_tasks).positions) == 2)
    positions, weights = repeated.draw(solved_tasks)
    times = torch.tensor(weights, dtype=torch.float64) * 4 * p[positions] / C[positions]
    assert torch.allclose(times, times.round(), atol=1e-8)
    assert times.sum().round() == 4
    single = C[positions].view(-1, 1, 1) * dense[positions] / p[positions].view(-1, 1, 1)
    expected = torch.einsum("i,ijk->jk", times.round() / 4, single)
    assert relative(products(total(PROXIMAL, repeated)), expected) < 1e-8


@pytest.mark.parametrize("kind", [k for k in CURVATURES if k != "sketch"])
@pytest.mark.parametrize("theta_keys", [None, ["head"]], ids=["maml", "anil"])
@pytest.mark.filterwarnings("ignore:the direct total Hessian")
def test_the_mean_over_all_draws_is_the_full_operator_of_every_kind(kind, theta_keys):
    problem = BilevelProblem(LOSS, LOSS, Unrolled(lr=0.1, steps=2), 0.5, theta_keys)
    solved_tasks = problem.at(LAM, TASKS, WEIGHTS)
    losses = torch.cat([solved_tasks.one(i).outer_loss() for i in range(COUNT)])
    p = documented(C, losses)
    found = samples(problem, COUNT, kind=kind, tasks=1, by="difficulty")
    mean = sum(p[i] * found[i,] for i in range(COUNT))
    whole = products(total(problem, kind))
    assert torch.allclose(mean, whole, rtol=0, atol=1e-10 * float(whole.norm()))


def test_the_mean_over_all_draws_is_the_sum_of_the_sketches_of_single_tasks(scores):
    # Samples are drawn by seed and position, and a task that is drawn alone has the first.
    kind = Sketch(samples=3, seed=2)
    found = samples(PROXIMAL, COUNT, kind=kind, tasks=1, by="uncertainty")
    p = documented(C, scores["uncertainty"])
    mean = sum(p[i] * found[i,] for i in range(COUNT))
    single = [c * products(total(PROXIMAL, kind, [task], [1.0])) for c, task in zip(WEIGHTS, TASKS, strict=True)]
    assert relative(mean, sum(single)) < 1e-10


# ---- drawn as documented ----------------------------------------------------------------------------------------


def test_probabilities_of_a_hand_made_example():
    # By weight 1/4, 1/2, 1/4; by weight × score 4/8, 4/8, 0.
    p = probabilities([1.0, 2.0, 1.0], torch.tensor([4.0, 2.0, 0.0], dtype=torch.float64))
    assert torch.allclose(p, torch.tensor([3 / 8, 4 / 8, 1 / 8], dtype=torch.float64), rtol=1e-15)


def test_no_weight_exceeds_twice_an_equal_share_whatever_the_scores():
    weights = torch.tensor([1e-3, 1.0, 5.0, 40.0], dtype=torch.float64)
    for scores in ([0.0, 0.0, 1e9, 1e-9], [0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]):
        p = probabilities(weights.tolist(), torch.tensor(scores, dtype=torch.float64))
        assert p.sum() == pytest.approx(1)
        assert (weights / p).max() <= 2 * weights.sum() * (1 + 1e-12)


def test_scores_that_are_all_zero_leave_the_weights():
    assert probabilities([1.0, 3.0], torch.zeros(2)).tolist() == [0.25, 0.75]


@pytest.mark.parametrize(("weights", "score"), [([1.0, 1.0], float("nan")), ([1.0, 1.0], float("inf")), ([0, 0], 1.0)])
def test_what_cannot_be_drawn_by_is_refused(weights, score):
    with pytest.raises(InfluenceError, match="by='random'"):
        probabilities(weights, torch.tensor([1.0, score]))


def test_negative_losses_count_from_the_least():
    def shifted(lam, theta, x, y):
        return classification(lam, theta, x, y) - 10.0

    plain, lower = (QUICK, BilevelProblem(classification, shifted, QUICK.kind, 0.5, ["head"]))
    solved_tasks = plain.at(LAM, TASKS, WEIGHTS)
    losses = torch.cat([solved_tasks.one(i).outer_loss() for i in range(COUNT)])
    p = documented(C, losses - losses.min())
    ((position,), (weight,)) = Subsample("hessian", 1, "difficulty").draw(lower.at(LAM, TASKS, WEIGHTS))
    assert weight == pytest.approx(float(C[position] / p[position]), rel=1e-10)


@pytest.mark.parametrize("by", ["random", "difficulty", "uncertainty"])
def test_tasks_are_drawn_as_often_as_documented(by, scores):
    solved_tasks = PROXIMAL.at(LAM, TASKS, WEIGHTS)
    expected = torch.full((COUNT,), 1 / COUNT).double() if by == "random" else documented(C, scores[by])
    draws, seeds = COUNT - 1, 400
    times = torch.zeros(COUNT, dtype=torch.float64)
    for seed in range(seeds):
        positions, weights = Subsample("hessian", draws, by, seed).draw(solved_tasks)
        times[positions] += torch.tensor(weights, dtype=torch.float64) * draws * expected[positions] / C[positions]
    assert times.sum() == pytest.approx(draws * seeds)
    # Four standard deviations of independent draws; draws without replacement spread less.
    spread = (draws * seeds * expected * (1 - expected)).sqrt()
    assert ((times - draws * seeds * expected).abs() < 4 * spread).all()


def test_all_pairs_are_drawn_equally_often_at_random():
    solved_tasks = QUICK.at(LAM, TASKS, WEIGHTS)
    pairs = Counter(tuple(Subsample("hessian", 2, seed=seed).draw(solved_tasks).positions) for seed in range(2000))
    assert len(pairs) == 10
    assert all(abs(times - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5 for times in pairs.values())


def test_hard_and_uncertain_tasks_are_drawn_more_often():
    x, y = torch.eye(3).double(), torch.tensor([0, 1, 2])
    sure, unsure, wrong = 9.0 * x, 0.1 * x, 9.0 * x.roll(1, 0)
    loss = ModelLoss(lambda p, x: x + 0 * p["b"], lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
    problem = BilevelProblem(loss, loss, Unrolled(lr=0.1, steps=1), 0.5)
    tasks = [Task((x, y), (outputs, y)) for outputs in (sure, unsure, wrong)]
    solved_tasks = problem.at({"b": torch.zeros(3).double()}, tasks)

    def p_of_drawn(by: str) -> list[float]:
        p = {}
        for seed in range(100):
            (position,), (weight,) = Subsample("hessian", 1, by, seed).draw(solved_tasks)
            p[position] = 1 / weight
        return [p[i] for i in range(3)]

    # Nine above the rest: a loss of 9 where wrong, log 3 where unsure, next to none where sure.
    assert p_of_drawn("difficulty")[2] == pytest.approx(1 / 6 + 0.5 * 9 / (9 + 1.0986), abs=0.01)
    assert p_of_drawn("uncertainty")[1] == pytest.approx(1 / 6 + 0.5, abs=0.01)
    assert p_of_drawn("uncertainty")[0] == pytest.approx(p_of_drawn("uncertainty")[2], rel=1e-6)


# ---- repeatable -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["random", "difficulty", "uncertainty"])
def test_the_same_seed_draws_the_same_tasks_whatever_the_batches(by):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    kind, options = Subsample("hessian", 3, by, seed=5), dict(theta_keys=["head"])
    small = BilevelProblem(classification, classification, QUICK.kind, 0.5, **options, memory=100_000)
    whole, parts = QUICK.at(LAM, TASKS, WEIGHTS), small.at(LAM, TASKS, WEIGHTS)
    assert len(list(whole.microbatches())) == 1 < len(list(parts.microbatches()))
    assert kind.draw(whole).positions == kind.draw(parts).positions
    assert torch.equal(products(total(QUICK, kind)), products(total(QUICK, kind)))
    assert relative(products(total(QUICK, kind)), products(total(small, kind))) < 1e-12
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sketch_with_the_same_seed_draws_independently():
    solved_tasks, kinds = QUICK.at(LAM, TASKS, WEIGHTS), [Subsample("sketch", 2, seed=seed) for seed in range(200)]
    as_the_sketch = [torch.randperm(COUNT, generator=generator(kind.seed))[:2].sort().values.tolist() for kind in kinds]
    same = sum(kind.draw(solved_tasks).positions == other for kind, other in zip(kinds, as_the_sketch, strict=True))
    # One of ten pairs: 20 of 200 by chance.
    assert same < 20 + 4 * (200 * 0.1 * 0.9) ** 0.5


# ---- as an operator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gauss-newton", "sketch", "gamma", "identity"])
@pytest.mark.parametrize("tasks", [COUNT, COUNT + 1])
@pytest.mark.parametrize("by", ["random", "uncertainty"])
def test_with_as_many_tasks_as_there_are_it_is_the_full_operator(kind, tasks, by):
    assert torch.equal(products(total(QUICK, Subsample(kind, tasks, by))), products(total(QUICK, kind)))


def test_with_all_tasks_their_inner_solutions_are_shared():
    class Counted(list):
        reads = 0

        def __getitem__(self, position):
            self.reads += 1
            return super().__getitem__(position)

    def reads(kind) -> int:
        tasks = Counted(TASKS)
        hessian = total(QUICK, kind, tasks)
        products(hessian)
        list(hessian.solved_tasks.microbatches())
        return tasks.reads

    assert reads(Subsample("hessian", COUNT)) == reads("hessian")


def test_its_note_says_what_was_drawn():
    def note(*settings) -> str:
        return total(QUICK, Subsample(*settings)).operator.note

    assert note("gauss-newton", 2) == "gauss-newton from 2 of 5 tasks (at random)"
    assert note("gauss-newton", 9) == "gauss-newton from all 5 tasks"
    drawn = Subsample("exact", 4, "difficulty", 3).draw(QUICK.at(LAM, TASKS, WEIGHTS))
    distinct = len(drawn.positions)
    assert distinct < 4
    assert note("exact", 4, "difficulty", 3) == f"exact from 4 of 5 tasks (by difficulty, {distinct} distinct)"
    assert note("sketch", 2) == "sketch (16 samples of all 2 tasks) from 2 of 5 tasks (at random)"
    assert note(CURVATURES["gamma"], 2) == "Gamma from 2 of 5 tasks (at random)"


def test_a_sketch_is_still_solved_through_its_own_columns():
    hessian, v = total(QUICK, Subsample(Sketch(samples=2), 3)), randn(0, SIZE)
    eye = torch.eye(SIZE, dtype=torch.float64)
    whole = hessian.operator.matvec(eye) + (0.5 + 0.1) * eye
    solution = hessian.solve(v, damping=0.1)
    assert solution.report.solver == "closed form"
    assert relative(solution.value, torch.linalg.solve(whole, v)) < 1e-10


@SCORED
def test_without_tasks_what_they_add_is_dropped_row_by_row(by, dense, scores):
    kind = Subsample("hessian", 3, by, seed=1)
    hessian = total(PROXIMAL, kind)
    added = torch.zeros_like(dense)
    positions, weights = kind.draw(hessian.solved_tasks)
    added[positions] = torch.tensor(weights, dtype=torch.float64).view(-1, 1, 1) * dense[positions]
    assert 0 < len(positions) < COUNT
    for groups in ([[0], [1], [2]], [[3], [4], []], [[0, 4], [-1], list(range(COUNT))]):
        expected = torch.stack([products(hessian)[row] - added[group, row].sum(0) for row, group in enumerate(groups)])
        assert torch.allclose(left_of(hessian, groups), expected, rtol=0, atol=1e-8)
    with pytest.raises(IndexError):
        left_of(hessian, [[COUNT], [], []])


@SCORED
def test_without_a_task_the_mean_is_the_dense_hessian_of_the_others(by, dense, scores):
    p, k, mean = documented(C, scores[by]), 4, torch.zeros_like(ROWS)
    solved_tasks = PROXIMAL.at(LAM, TASKS, WEIGHTS)
    for i in range(COUNT):
        seed = next(s for s in range(1000) if Subsample("hessian", 1, by, s).draw(solved_tasks).positions == [i])
        mean += p[i] * left_of(total(PROXIMAL, Subsample("hessian", 1, by, seed)), [[k]] * len(ROWS))
    assert relative(mean, torch.einsum("i,ijk->jk", C[:k], dense[:k])) < 1e-8


@pytest.mark.parametrize("kind", ["hessian", "sketch", "gamma", "identity"])
def test_without_works_through_every_form_of_sum(kind):
    sampled = Subsample(kind, 2)
    hessian = total(QUICK_MAML if kind == "gamma" else QUICK, sampled)
    first, second = sampled.draw(hessian.solved_tasks).positions
    missing = next(k for k in range(COUNT) if k not in (first, second))
    assert relative(left_of(hessian, [[missing]] * 3), products(hessian)) < 1e-14
    parts = [products(hessian) - left_of(hessian, [[k]] * 3) for k in (first, second)]
    assert relative(parts[0] + parts[1], products(hessian)) < 1e-12
    assert float(left_of(hessian, [[first, second]] * 3).norm()) == 0
    solution = hessian.solve_rows(ROWS, tolerance=1e-10, without=[[first, second]] * 3)
    assert relative(solution.value, ROWS / 0.5) < 1e-8


def test_gradients_are_those_of_the_kind_that_is_estimated():
    direct, sampled = total(QUICK, "direct-first-order"), total(QUICK, Subsample("direct-first-order", 2))
    assert torch.equal(sampled.linearised(1).total_gradient, direct.linearised(1).total_gradient)
    assert not torch.equal(direct.linearised(1).total_gradient, total(QUICK, "hessian").linearised(1).total_gradient)


# ---- refusals ---------------------------------------------------------------------------------------------------


def regression(lam, theta, x, y):
    return F.mse_loss(network({**lam, **theta}, x), torch.eye(3).to(x)[y], reduction="none").sum(-1)


def hidden(lam, theta, x, y):
    return -network({**lam, **theta}, x).log_softmax(-1).gather(1, y[:, None])[:, 0]


def many_labels(lam, theta, x, y):
    outputs = network({**lam, **theta}, x)
    return F.binary_cross_entropy_with_logits(outputs, torch.eye(3).to(x)[y], reduction="none").sum(-1)


def of_two_axes(lam, theta, x, y):
    outputs = network({**lam, **theta}, x)
    return F.cross_entropy(torch.stack([outputs, outputs], -1), torch.stack([y, y], -1), reduction="none").sum(-1)


@pytest.mark.parametrize("loss", [regression, hidden, many_labels, of_two_axes])
def test_uncertainty_needs_class_scores(loss):
    problem = BilevelProblem(loss, loss, QUICK.kind, 0.5)
    with pytest.raises(LossStructureError, match="Use by='difficulty' or by='random'"):
        total(problem, Subsample("hessian", 2, "uncertainty"))
    total(problem, Subsample("hessian", 2, "difficulty"))


@pytest.mark.parametrize("settings", [("hessian", 0), ("hessian", 0.5), ("hessian", 2, "luck"), ("hesian", 2)])
def test_settings_are_checked_at_the_door(settings):
    with pytest.raises(ValueError, match="tasks, the number of tasks|by must be|the kind of the total"):
        Subsample(*settings)
