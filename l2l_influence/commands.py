"""What the command line offers. Needs the extra ``demo``; `cli` makes sure of that."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from ._version import __version__

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
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Influence functions for meta-learning with learn2learn."""


@application.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, pictures and scores.")] = Path("l2l-influence-demo"),
    seed: Annotated[int, typer.Option(help="Of tasks, training and groups.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only where the files are.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Far less training, for a first look; figures mean less.")
    ] = False,
) -> None:
    """Find the training tasks with wrong labels, on handwritten digits, in under three minutes."""
    # What torch says to those who write code with it says nothing to those who watch the demo.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    from .demo import run_demo  # imports torch and learn2learn, which takes seconds that --help need not wait for

    run_demo(out, seed=seed, quiet=quiet, quick=quick)
