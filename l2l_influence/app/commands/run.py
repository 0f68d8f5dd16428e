"""``l2l-influence run``: run a learn2learn script under the recorder, and rank its training tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..requirements import require
from .application import application

LOSS_NAMES = (
    "bce", "bce-with-logits", "cross-entropy", "hinge-embedding", "huber", "kl-div", "l1", "mse", "multi-label-margin",
    "multi-label-soft-margin", "multi-margin", "nll", "poisson-nll", "smooth-l1", "soft-margin",
)  # fmt: skip
"""Written out here, because importing torch takes seconds. Later versions of torch may have more."""

LOSS_HELP = (
    "Loss of the script, if it cannot be detected: the name of a torch loss, with settings as in "
    "\"cross-entropy(label_smoothing=0.1, reduction='sum')\", or module:function. Names: " + ", ".join(LOSS_NAMES) + "."
)


# Everything after the path of the script is passed to the script, even if it looks like an option.
@application.command(context_settings={"allow_interspersed_args": False})
def run(
    script: Annotated[str, typer.Argument(help="A Python script.", show_default=False)],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="Arguments of the script.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the study, scores, plot and report.", file_okay=False)] = Path(
        "l2l-influence-run"
    ),
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="LOSS",
            help=LOSS_HELP,
            show_default=False,
        ),
    ] = None,
    reduction: Annotated[
        str | None,
        typer.Option(
            help="Reduction of the loss given by --loss, mean or sum; by default that of the loss, or mean.",
            show_default=False,
        ),
    ] = None,
    hessian: Annotated[
        str | None,
        typer.Option(help="Kind of total Hessian, such as sketch, gauss-newton or exact.", show_default=False),
    ] = None,
    test_tasks: Annotated[int, typer.Option(help="Maximum number of tasks to score on.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed for drawing these tasks, if there are more.")] = 0,
    work: Annotated[
        str,
        typer.Option(
            metavar="FACTOR",
            help="Largest work of scoring, relative to that of the training, counted in passes over episodes: fewer "
            "samples and test tasks are used to stay near it. 0 or all = no bound.",
        ),
    ] = "1",
    save_every: Annotated[
        float, typer.Option(min=0, help="Seconds between saves of the study while the script runs; 0 = never.")
    ] = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only warnings and the paths of the files.")] = False,
) -> None:
    """Run a learn2learn script as python does, and rank its training tasks. The exit code is the script's."""
    require("l2l-influence run", ["jinja2", "matplotlib"], extras="cli,report")
    from ..script_run import ScoringSettings, run_script

    if not Path(script).is_file():
        raise typer.BadParameter(f"there is no file {script}", param_hint="SCRIPT")
    try:
        settings = ScoringSettings(
            loss, reduction, hessian, test_tasks, seed, progress=False if quiet else None, work=_factor(work)
        )
        warning = settings.check(script)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if warning:
        typer.echo(warning, err=True)
    raise SystemExit(run_script(script, arguments or [], out, settings, quiet=quiet, save_every=save_every))


def _factor(work: str) -> float:
    try:
        return 0.0 if work == "all" else float(work)
    except ValueError:
        raise ValueError(f"--work must be a number or 'all'; got {work!r}") from None
