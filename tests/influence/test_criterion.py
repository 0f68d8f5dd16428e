"""Users' losses taken apart: per-sample values add up to the loss that training saw."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2l_influence.analysis.problem.criterion import take_apart
from l2l_influence.errors import LossStructureError

OUTPUTS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2, 2])
TARGETS = OUTPUTS.flip(0)
WEIGHTS = torch.tensor([1.0, 2.0, 3.0]).double()


@pytest.mark.parametrize(
    ("loss", "outputs", "y"),
    [
        (nn.CrossEntropyLoss(), OUTPUTS, CLASSES),
        (nn.CrossEntropyLoss(reduction="sum"), OUTPUTS, CLASSES),
        (nn.CrossEntropyLoss(label_smoothing=0.1), OUTPUTS, CLASSES),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double(), reduction="sum"), OUTPUTS, CLASSES),
        (nn.NLLLoss(), OUTPUTS.log_softmax(-1), CLASSES),
        (nn.NLLLoss(reduction="sum"), OUTPUTS.log_softmax(-1), CLASSES),
        (nn.CrossEntropyLoss(weight=WEIGHTS), OUTPUTS, CLASSES),
        (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1, ignore_index=1), OUTPUTS, CLASSES),
        (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1), OUTPUTS, OUTPUTS.softmax(-1).flip(0)),
        (nn.NLLLoss(weight=WEIGHTS, ignore_index=2), OUTPUTS.log_softmax(-1), CLASSES),
        (nn.BCEWithLogitsLoss(weight=WEIGHTS, pos_weight=WEIGHTS), OUTPUTS, TARGETS.sigmoid()),
        (nn.MSELoss(), OUTPUTS, TARGETS),
        (nn.MSELoss(reduction="sum"), OUTPUTS, TARGETS),
        (nn.SmoothL1Loss(), OUTPUTS, TARGETS),
        (F.cross_entropy, OUTPUTS, CLASSES),
        (F.nll_loss, OUTPUTS.log_softmax(-1), CLASSES),
        (F.mse_loss, OUTPUTS, TARGETS),
    ],
)
def test_samples_add_up_to_the_loss(loss, outputs, y):
    parts = take_apart(loss)
    values = parts.criterion(outputs, y)
    assert values.shape == parts.weights(y).shape == (7,)
    assert torch.allclose(parts.weights(y) @ values, loss(outputs, y))


def test_a_loss_of_ones_own():
    parts = take_apart(lambda o, y: (o - y).square().sum(-1), "sum")
    assert torch.equal(parts.criterion(OUTPUTS, TARGETS), (OUTPUTS - TARGETS).square().sum(-1))
    assert torch.equal(parts.weights(TARGETS), torch.ones(7).double())


def test_likelihood_has_the_curvature_of_its_softmax():
    criterion = take_apart(nn.NLLLoss(reduction="sum")).criterion
    log_p = OUTPUTS[0].log_softmax(-1)
    hessian = torch.autograd.functional.hessian(lambda o: criterion(o[None], CLASSES[:1]).sum(), log_p)
    p = log_p.exp()
    assert torch.allclose(hessian, torch.diag(p) - torch.outer(p, p))


@pytest.mark.parametrize(
    ("loss", "reduction", "message"),
    [
        (lambda o, y: o[:, 0], None, "reduction="),
        (nn.CrossEntropyLoss(reduction="none"), None, "'mean' or 'sum'"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(loss, reduction, message):
    with pytest.raises(LossStructureError, match=message):
        take_apart(loss, reduction)


def test_a_loss_that_sums_its_samples_is_refused():
    criterion = take_apart(lambda o, y: o.sum(), "sum").criterion
    with pytest.raises(LossStructureError, match="one per sample"):
        criterion(OUTPUTS, CLASSES)
