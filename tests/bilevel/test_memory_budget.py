"""Stated memory, and what work is thought to take."""

from __future__ import annotations

import pytest
import torch

from l2l_influence.bilevel.memory import allocated_bytes, in_bytes


@pytest.mark.parametrize(
    ("stated", "expected"),
    [(5, 5), ("4GiB", 4 * 2**30), ("1.5 GB", 1_500_000_000), ("64", 64), ("500 mb", 500_000_000), (" 2KiB ", 2048)],
)
def test_memory_is_bytes_or_text(stated, expected):
    assert in_bytes(stated) == expected


@pytest.mark.parametrize("stated", [0, -1, "", "4 parsecs", "-4GiB", "GiB", 1.5])
def test_what_is_no_amount_is_refused(stated):
    with pytest.raises(ValueError, match="memory must be"):
        in_bytes(stated)


def test_every_tensor_on_the_way_counts():
    x = torch.ones(10, 10)
    assert allocated_bytes(lambda: (x + 1).sum()) == (400 + 4, 400)


def test_views_take_nothing():
    x = torch.ones(10, 10)
    assert allocated_bytes(lambda: x.view(100)[:50].t()) == (0, 0)
