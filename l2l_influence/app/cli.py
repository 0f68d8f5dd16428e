"""The command ``l2l-influence``: what can be said before its libraries are known to be there."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

NEEDED = {
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "typer": "typer",
}
"""What the commands import, by module, and the distributions these come from."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ``arguments`` are the command line's unless given. Ends in ``SystemExit``, as commands do."""
    missing = [distribution for module, distribution in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(
            f"l2l-influence needs {', '.join(missing)}, left out by a plain installation. "
            "This installs what is missing: pip install 'l2l-influence[demo]'"
        )
    from .commands import application

    application(args=None if arguments is None else list(arguments), prog_name="l2l-influence")
