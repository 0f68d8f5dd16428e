"""Pages that need no other file."""

from __future__ import annotations

import base64

import torch
from matplotlib.figure import Figure

from l2l_influence import __version__
from l2l_influence.report.html import embed, versions


def test_a_picture_travels_inside_the_page() -> None:
    address = embed(Figure())
    head, data = address.split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_versions_name_what_is_installed_and_leave_out_what_is_not() -> None:
    found = versions(["torch", "no-such-distribution"])
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(found) == {"Python", "l2l-influence", "torch"}
    assert found["l2l-influence"] == __version__
