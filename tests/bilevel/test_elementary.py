"""Normalisation from elementary operations: torch's own values and first two derivatives, and a right third one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

from l2l_influence.bilevel import BilevelProblem, Unrolled
from l2l_influence.bilevel.elementary import ElementaryNorms
from l2l_influence.errors import LossStructureError

from ..reference_problems.autograd import SIZE, classification_tasks, parameters, randn, relative

MEAN, VAR = randn(1, 4), 0.5 + randn(2, 4).square()
W, B = randn(3, 4), randn(4, 4)
FLAT, SEQUENCE, IMAGE = randn(5, 5, 4), randn(6, 2, 4, 3), randn(7, 2, 4, 2, 2)
NESTED = randn(8, 2, 2), randn(9, 2, 2)


def running() -> tuple[Tensor, Tensor]:
    """Running statistics to spare: torch's own batch normalisation writes into them."""
    return MEAN.clone(), VAR.clone()


CASES = {
    "batch, bare": (lambda x: F.batch_norm(x, None, None, training=True), FLAT),
    "batch, affine": (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), SEQUENCE, W, B),
    "batch, weight": (lambda x, w: F.batch_norm(x, None, None, weight=w, training=True, eps=0.1), IMAGE, W),
    "batch, by position": (lambda x, w, b: F.batch_norm(x, *running(), w, b, True, 0.3, 1e-3), FLAT, W, B),
    "batch, tracked": (lambda x: F.batch_norm(x, *running(), training=True, momentum=0.7), SEQUENCE),
    "batch, running": (lambda x: F.batch_norm(x, *running()), IMAGE),
    "batch, running, affine": (lambda x, w, b: F.batch_norm(x, *running(), w, b, eps=0.2), FLAT, W, B),
    "instance, bare": (lambda x: F.instance_norm(x), SEQUENCE),
    "instance, affine": (lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=0.1), IMAGE, W, B),
    "instance, by position": (lambda x, w, b: F.instance_norm(x, *running(), w, b, True, 0.3, 1e-3), IMAGE, W, B),
    "instance, tracked": (lambda x: F.instance_norm(x, *running(), momentum=0.7), SEQUENCE),
    "instance, running": (
        lambda x, w, b: F.instance_norm(x, *running(), w, b, use_input_stats=False, eps=0.2),
        SEQUENCE,
        W,
        B,
    ),
    "layer, bare": (lambda x: F.layer_norm(x, (4,)), FLAT),
    "layer, affine": (lambda x, w, b: F.layer_norm(x, [4], w, b, 0.1), FLAT, W, B),
    "layer, weight": (lambda x, w: F.layer_norm(x, x.shape[1:], weight=w), FLAT, W),
    "layer, nested": (lambda x, w, b: F.layer_norm(x, (2, 2), weight=w, bias=b), IMAGE, *NESTED),
    "group, bare": (lambda x: F.group_norm(x, 2), IMAGE),
    "group, affine": (lambda x, w, b: F.group_norm(x, 2, w, b, 0.1), SEQUENCE, W, B),
    "group, one": (lambda x, w: F.group_norm(x, num_groups=1, weight=w), IMAGE, W),
    "group, each its own": (lambda x, b: F.group_norm(x, 4, bias=b), IMAGE, B),
    "group, flat": (lambda x, w, b: F.group_norm(x, 2, w, b), FLAT, W, B),
    "rms, bare": (lambda x: F.rms_norm(x, (4,)), FLAT),
    "rms, weight": (lambda x, w: F.rms_norm(x, [4], weight=w, eps=0.1), FLAT, W),
    "rms, nested": (lambda x, w: F.rms_norm(x, (2, 2), w), IMAGE, NESTED[0]),
}
NORMS = pytest.mark.parametrize(("norm", "inputs"), [(norm, inputs) for norm, *inputs in CASES.values()], ids=CASES)


def composed(norm):
    def call(*inputs: Tensor) -> Tensor:
        with ElementaryNorms():
            return norm(*inputs)

    return call


def leaves(inputs: list[Tensor]) -> list[Tensor]:
    return [value.clone().requires_grad_() for value in inputs]


def derivatives(function, inputs: list[Tensor], directions: list[Tensor], order: int) -> list[Tensor]:
    """The gradient of the derivative of order − 1 along ``directions`` of Σ c·f + f³."""
    value = function(*inputs)
    scalar = (randn(11, *value.shape) * value + value**3).sum()
    slopes = grad(scalar, inputs, create_graph=True)
    for _ in range(order - 1):
        along = sum((slope * direction).sum() for slope, direction in zip(slopes, directions, strict=True))
        slopes = grad(along, inputs, create_graph=True)
    return [slope.detach() for slope in slopes]


def joined(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def agree(function, expected, inputs: list[Tensor]) -> None:
    """Values and two derivatives."""
    torch.testing.assert_close(function(*inputs), expected(*inputs), rtol=1e-12, atol=1e-12)
    directions = [randn(20 + i, *value.shape) for i, value in enumerate(inputs)]
    for order in (1, 2):
        ours, theirs = (joined(derivatives(each, leaves(inputs), directions, order)) for each in (function, expected))
        assert relative(ours, theirs) < 1e-9


@NORMS
def test_values_and_two_derivatives_are_torchs(norm, inputs):
    agree(composed(norm), norm, inputs)
    assert gradcheck(composed(norm), leaves(inputs), fast_mode=True)
    assert gradgradcheck(composed(norm), leaves(inputs), fast_mode=True)


def test_batch_norm_with_a_bias_and_no_weight():
    """Against a weight of one: torch 2.14's own second derivative is an error where there is none."""

    def shifted(x, b, weight=None):
        return F.batch_norm(x, None, None, weight, b, training=True)

    agree(composed(shifted), lambda x, b: shifted(x, b, torch.ones_like(b)), [FLAT, B])


@NORMS
def test_the_third_derivative_is_that_of_torchs_second(norm, inputs):
    directions, step = [randn(20 + i, *value.shape) for i, value in enumerate(inputs)], 1e-5
    ends = []
    for sign in (1, -1):
        moved = [value + sign * step * direction for value, direction in zip(inputs, directions, strict=True)]
        ends.append(joined(derivatives(norm, leaves(moved), directions, 2)))
    found = joined(derivatives(composed(norm), leaves(inputs), directions, 3))
    assert relative(found, (ends[0] - ends[1]) / (2 * step)) < 1e-6


# ---- as the core uses them -------------------------------------------------------------------------------------

UNITS = 4
"""Hidden units of the toy network."""

NATIVE = {
    "batch_norm": lambda h: torch.batch_norm(h, None, None, None, None, True, 0.1, 1e-5, False),
    "native_batch_norm": lambda h: torch.native_batch_norm(h, None, None, None, None, True, 0.1, 1e-5)[0],
    "layer_norm": lambda h: torch.layer_norm(h, (UNITS,)),
    "native_layer_norm": lambda h: torch.native_layer_norm(h, (UNITS,), None, None, 1e-5)[0],
    "group_norm": lambda h: torch.group_norm(h, 2),
    "instance_norm": lambda h: torch.instance_norm(
        h.unsqueeze(1), None, None, None, None, True, 0.1, 1e-5, False
    ).squeeze(1),
    "rms_norm": lambda h: torch.rms_norm(h, (UNITS,)),
}
FUNCTIONAL = {
    "batch_norm": lambda h: F.batch_norm(h, None, None, training=True),
    "layer_norm": lambda h: F.layer_norm(h, (UNITS,)),
    "group_norm": lambda h: F.group_norm(h, 2),
    "instance_norm": lambda h: F.instance_norm(h.unsqueeze(1)).squeeze(1),
    "rms_norm": lambda h: F.rms_norm(h, (UNITS,)),
}


def through(norm):
    """The toy's loss with its hidden units normalised."""

    def loss(lam, theta, x, y):
        p = {**lam, **theta}
        return F.cross_entropy(norm(x @ p["body"] + p["bias"]).tanh() @ p["head"], y, reduction="none")

    return loss


def product(norm, kind: str, inner: float | Unrolled) -> Tensor:
    """H v for the toy with this normalisation."""
    problem = BilevelProblem(through(norm), through(norm), inner, 0.5, ["head"], inner_solver="dense")
    return problem.total_hessian(parameters(), classification_tasks(2), kind) @ randn(0, SIZE)


INNERS = pytest.mark.parametrize("inner", [3.0, Unrolled(lr=0.1, steps=2)], ids=["proximal", "unrolled"])


@INNERS
@pytest.mark.parametrize("name", NATIVE)
def test_native_norms_are_refused_where_a_third_derivative_is_taken(name, inner):
    with pytest.raises(LossStructureError, match=f"calls torch.{name}, .*gauss-newton"):
        product(NATIVE[name], "exact", inner)


@INNERS
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_native_norms_do_elsewhere(name, inner):
    for kind in ("gauss-newton", "hessian"):
        native, functional = (product(norms[name], kind, inner) for norms in (NATIVE, FUNCTIONAL))
        assert relative(native, functional) < 1e-9
    assert product(FUNCTIONAL[name], "exact", inner).isfinite().all()


def test_nothing_is_left_changed():
    """After a product, and after an error in one, torch's functions are its own: they write running statistics."""
    kept = dict(vars(F))
    product(FUNCTIONAL["batch_norm"], "exact", 3.0)
    with pytest.raises(LossStructureError):
        product(NATIVE["layer_norm"], "exact", 3.0)
    assert vars(F) == kept
    mean, var = running()
    F.batch_norm(FLAT, mean, var, training=True)
    assert not torch.equal(mean, MEAN) and not torch.equal(var, VAR)
    assert torch.layer_norm(FLAT, (4,)).isfinite().all()

    mean, var = running()
    with ElementaryNorms():
        F.batch_norm(FLAT, mean, var, training=True)
    assert torch.equal(mean, MEAN) and torch.equal(var, VAR)
