"""The typer application that commands register with, and the options that belong to no command."""

from __future__ import annotations

from typing import Annotated

import typer

from ..._version import __version__

application = typer.Typer(
    help="Influence functions for meta-learning with learn2learn.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@application.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Influence functions for meta-learning with learn2learn."""
