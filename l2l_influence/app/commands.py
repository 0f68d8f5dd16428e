"""What the command line offers. Needs the extra ``demo``; `cli` makes sure of that."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from .._version import __version__

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


# What follows the script's path is the script's, whatever it looks like.
@application.command(context_settings={"allow_interspersed_args": False})
def run(
    script: Annotated[str, typer.Argument(help="A python file.", show_default=False)],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="The script's own.", show_default=False)
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the study, scores, picture and report.", file_okay=False)
    ] = Path("l2l-influence-run"),
    loss: Annotated[
        str | None, typer.Option(help="The script's loss, where it cannot be read off: cross-entropy or mse.")
    ] = None,
    reduction: Annotated[str, typer.Option(help="How the one given reduces its samples: mean or sum.")] = "mean",
    hessian: Annotated[str | None, typer.Option(help="Kind of total Hessian, such as gauss-newton or exact.")] = None,
    test_tasks: Annotated[int, typer.Option(help="Most tasks to score on.")] = 100,
    seed: Annotated[int, typer.Option(help="Of which tasks, where there are more.")] = 0,
    save_every: Annotated[
        float, typer.Option(min=0, help="Seconds between two saves of the study while the script runs; 0 for none.")
    ] = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only where the files are.")] = False,
) -> None:
    """Run a learn2learn script as python would, and rank the tasks that it trained on. The exit code is its own."""
    from .script_run import Settings, run_script

    if not Path(script).is_file():
        raise typer.BadParameter(f"there is no file {script}", param_hint="SCRIPT")
    try:
        settings = Settings(loss, reduction, hessian, test_tasks, seed, progress=False if quiet else None)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    raise SystemExit(run_script(script, arguments or [], out, settings, quiet=quiet, save_every=save_every))
