"""`lrpot benchmark`: all folds of a task of a suite, and its results in the form of the suite."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lrpot.cli.options import (
    Classes,
    ConfigFile,
    DiffractionUse,
    Encoder,
    FitSeed,
    HeadKind,
    Overwrite,
    Resume,
    Settings,
    Targets,
    property_settings,
)


class Suite(StrEnum):
    """Suites of benchmarks."""

    matbench = "matbench"
    jarvis = "jarvis"
    unconv = "unconv"


def benchmark(
    suite: Annotated[Suite, typer.Argument(help="MatBench, JARVIS-Leaderboard or UnconvBench.")],
    data: Annotated[Path, typer.Argument(help="File of the task, as the suite has it.")],
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="Such as matbench_jdft2d, unconvbench_defected; of JARVIS a property, such as mbj_bandgap.",
            show_default="name of DATA",
        ),
    ] = None,
    dataset: Annotated[str, typer.Option("--dataset", help="Data set of JARVIS.")] = "dft_3d",
    encoder: Annotated[
        Encoder | None, typer.Option("--encoder", help="Crystal -> features.", show_default="regnet")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Directory of the runs.")] = Path("runs/benchmark"),
    target: Targets = None,
    classification: Classes = None,
    head: HeadKind = None,
    diffraction: DiffractionUse = None,
    config: ConfigFile = None,
    set_: Settings = None,
    ensemble: Annotated[
        int | None, typer.Option("--ensemble", help="Models to fit in each fold.", show_default="1")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    seed: FitSeed = None,
) -> None:
    """Fit a model for each official fold of a task, and write what it predicts in the form of the suite.

    Leaves what lrpot cv leaves, and the file of the suite; lrpot export makes a submission of it. After Ctrl-C the same
    command with --resume goes on in the fold where it was.
    """
    from lrpot.cli.cv import fold_settings, report
    from lrpot.console import Console
    from lrpot.properties.leaderboards.suites import suite_task
    from lrpot.training.cross_validation import cross_validate

    own = suite_task(suite.value, task, data, dataset)
    chosen = property_settings(encoder, target, classification, head, diffraction)
    settings = fold_settings(chosen, ensemble, seed, set_)
    if target is None:
        settings = own.settings() | settings
    console = Console()
    found = cross_validate(
        data, out=out, suite=own, config=config, settings=settings, resume=resume, overwrite=overwrite
    )
    report(console, found, out)
    written = own.write(out, found.whole, found.names)
    if written is not None:
        console.line(f"wrote {written}")
