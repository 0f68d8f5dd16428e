"""Entry point of the command ``l2l-influence``."""

from __future__ import annotations

from collections.abc import Sequence

from .requirements import require


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: what follows ``l2l-influence``; those of the process if None.

    Raises:
        SystemExit: always, with the command's exit code.
    """
    require("l2l-influence", ["typer"], extras="cli")
    from .commands import application

    application(args=None if arguments is None else list(arguments), prog_name="l2l-influence")
