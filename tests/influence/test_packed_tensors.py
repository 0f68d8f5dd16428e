"""What passes find is given back as it was put, and lies in few pieces of memory."""

from __future__ import annotations

import pytest
import torch

from l2l_influence import TaskInfluence
from l2l_influence.analysis.passes import PackedTensors, packed_tensors

from .retraining import optimal_run


@pytest.mark.parametrize("piece", [1, 5, 7, 12, 10_000])
def test_each_tensor_comes_back_at_its_place(piece, monkeypatch):
    monkeypatch.setattr(packed_tensors, "PIECE", piece)
    found, put = PackedTensors(7), {}
    for positions, shape in (([4, 0], (2, 3)), ([5], (1, 3)), ([2, 1], (1, 1)), ([6], (0, 2))):
        values = torch.randn(len(positions), *shape)
        found.put(positions, values)
        put |= dict(zip(positions, values, strict=True))
    each = found.each()
    for position, value in put.items():
        assert each[position].dtype == torch.float64 and torch.equal(each[position], value.double())
    assert each[3].shape == (0,)


def test_as_many_rows_as_tasks():
    for rows in (1, 3):
        with pytest.raises(ValueError, match="zip"):
            PackedTensors(4).put([0, 1], torch.ones(rows, 2))


def test_nothing_was_found():
    assert [part.shape for part in PackedTensors(2).each()] == [(0,), (0,)]


def test_many_small_ones_share_their_memory():
    found = PackedTensors(3000)
    for position in range(3000):
        found.put([position], torch.ones(1, 2, 30))
    pieces = {part.untyped_storage().data_ptr() for part in found.each()}
    assert len(pieces) == 2


def test_what_was_found_later_does_not_touch_what_was_found_before():
    found = PackedTensors(2)
    found.put([0], torch.zeros(1, 4))
    first = found.each()[0]
    found.put([1], torch.ones(1, 4))
    assert not first.any() and bool(found.each()[1].all())


def test_a_pass_over_the_tasks_leaves_one_piece_of_scores_and_one_of_losses():
    hook = optimal_run("unrolled").hook(TaskInfluence)
    fit = hook.fitted()
    found = fit.walked(hook.items, fit.run.solved_tasks.lam.expand(2, -1))
    for parts in (found.scores, found.losses):
        assert len(parts) == 5 and len({part.untyped_storage().data_ptr() for part in parts}) == 1
