"""`lrpot cv`: cross-validation of a property model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from lrpot.console import Console
    from lrpot.training.cross_validation import CrossValidation


def cv(
    data: Annotated[
        Path | None,
        typer.Argument(help="Crystals with properties: id_prop.csv beside CIFs, extxyz, JSON, ...; as for lrpot fit."),
    ] = None,
    encoder: Annotated[
        Encoder | None, typer.Option("--encoder", help="Crystal -> features.", show_default="regnet")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Directory of the runs.")] = Path("runs/cv"),
    folds: Annotated[int, typer.Option("--folds", help="How many.")] = 5,
    fold_file: Annotated[
        Path | None,
        typer.Option(
            "--fold-file",
            help="JSON with the rows that each fold tests, in place of drawn folds: [[0, 5], [1, 2], ...].",
            show_default="none",
        ),
    ] = None,
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
    """Predict every crystal by a model that has not seen it: errors of each fold, their mean and spread.

    Leaves a run of each fold, predictions.csv, results.json and pictures.
    """
    from lrpot.config import parse_settings
    from lrpot.console import Console
    from lrpot.training.cross_validation import cross_validate

    settings: dict[str, Any] = {
        **property_settings(encoder, target, classification, head, diffraction),
        "training.ensemble": ensemble,
        "training.seed": seed,
    }
    settings = {name: value for name, value in settings.items() if value is not None} | parse_settings(set_ or [])
    found = cross_validate(
        data,
        out=out,
        folds=folds,
        fold_file=fold_file,
        config=config,
        settings=settings,
        resume=resume,
        overwrite=overwrite,
    )
    report(Console(), found, out)


def report(console: Console, found: CrossValidation, out: Path) -> None:
    """Tell the errors of all folds, draw pictures, and say what lies where."""
    from lrpot.properties.pictures import draw
    from lrpot.training.cross_validation import PREDICTIONS, RESULTS, table

    console.table("errors of what each fold holds back", *table(found))
    for file in (out / PREDICTIONS, out / RESULTS, *draw(found.whole, out)):
        console.line(f"wrote {file}")
