"""The quick start is a script that runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "quickstart.md"


def test_the_quick_start_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    code = "\n".join(blocks)
    for words, fewer in {"num_tasks=100": "num_tasks=25", "range(200)": "range(80)"}.items():
        assert code.count(words) == 1
        code = code.replace(words, fewer)  # more draws of each task than on the page, and a quarter of the tasks
    exec(compile(code, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out
    assert "25 training tasks" in printed and "625 query samples" in printed and "positive = harmful" in printed
    assert "‖D_λ L_Total‖" in printed
