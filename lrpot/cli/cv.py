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
    from lrpot.console import Console
    from lrpot.training.cross_validation import cross_validate

    chosen = property_settings(encoder, target, classification, head, diffraction)
    settings = fold_settings(chosen, ensemble, seed, set_)
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


def fold_settings(
    chosen: dict[str, Any], ensemble: int | None, seed: int | None, words: list[str] | None
) -> dict[str, Any]:
    """What a fit of a fold is told: `property_settings` and these, where they are given; `words` of --set go first."""
    from lrpot.config import parse_settings

    settings = {**chosen, "training.ensemble": ensemble, "training.seed": seed}
    return {name: value for name, value in settings.items() if value is not None} | parse_settings(words or [])


def report(console: Console, found: CrossValidation, out: Path) -> None:
    """Tell the errors of all folds, draw pictures, and say what lies where."""
    from lrpot.properties.pictures import draw
    from lrpot.training.cross_validation import PREDICTIONS, RESULTS, table

    console.table("errors of what each fold holds back", *table(found))
    for file in (out / PREDICTIONS, out / RESULTS, *draw(found.whole, out)):
        console.line(f"wrote {file}")
