"""`lrpot cv`: cross-validation of a property model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lrpot.cli.fit import Encoder, Head


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
    matbench: Annotated[
        str | None,
        typer.Option(
            "--matbench",
            metavar="TASK",
            help="Official folds of a task of MatBench, such as matbench_jdft2d; DATA is its file.",
            show_default="none",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="A property to learn; may be repeated.", show_default="all of id_prop.csv"),
    ] = None,
    classification: Annotated[
        list[str] | None,
        typer.Option(
            "--classification", help="A target that is a class, 0 or 1; may be repeated.", show_default="none"
        ),
    ] = None,
    head: Annotated[Head | None, typer.Option("--head", help="As for lrpot fit.", show_default="shared")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with settings.", show_default="none")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE ...", help="Any setting, as for lrpot fit.", show_default="none"),
    ] = None,
    ensemble: Annotated[
        int | None, typer.Option("--ensemble", help="Models to fit in each fold.", show_default="1")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove what is in --out first.")] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of weights, folds and order.", show_default="0")
    ] = None,
) -> None:
    """Predict every crystal by a model that has not seen it: errors of each fold, their mean and spread.

    Leaves a run of each fold, predictions.csv, results.json and pictures.
    """
    from lrpot.config import parse_settings
    from lrpot.console import Console
    from lrpot.properties.pictures import draw
    from lrpot.training.cross_validation import PREDICTIONS, RESULTS, cross_validate, table

    settings: dict[str, Any] = {
        "properties.encoder.name": encoder and encoder.value,
        "properties.targets": target or None,
        "properties.classification": classification or None,
        "properties.head.kind": head and head.value,
        "training.ensemble": ensemble,
        "training.seed": seed,
    }
    settings = {name: value for name, value in settings.items() if value is not None} | parse_settings(set_ or [])
    console = Console()
    found = cross_validate(
        data,
        out=out,
        folds=folds,
        fold_file=fold_file,
        matbench=matbench,
        config=config,
        settings=settings,
        resume=resume,
        overwrite=overwrite,
    )
    console.table("errors of what each fold holds back", *table(found))
    for file in (out / PREDICTIONS, out / RESULTS, *draw(found.whole, out)):
        console.line(f"wrote {file}")
