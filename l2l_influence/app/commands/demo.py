"""``l2l-influence demo``: find mislabelled training tasks on handwritten digits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from ..requirements import require
from .application import application


@application.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, plots and scores.")] = Path("l2l-influence-demo"),
    seed: Annotated[int, typer.Option(help="Seed of tasks, training and random subsets.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only a summary and the paths of the files.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train and retrain much less, for a first look; results are less reliable.")
    ] = False,
) -> None:
    """Find the training tasks with wrong labels, on handwritten digits, in under three minutes."""
    require("l2l-influence demo", ["jinja2", "matplotlib", "rich", "scikit-learn"], extras="demo")
    # Deprecations inside torch concern its developers, not users of the demo.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    from ..demo import run_demo

    run_demo(out, seed=seed, quiet=quiet, quick=quick)
