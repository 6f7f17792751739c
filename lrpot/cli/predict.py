"""`lrpot predict`: a model and files of crystals -> a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrpot.cli.options import Device, DType, Model, Precision, check_crystals_out

if TYPE_CHECKING:
    from lrpot.console import Console
    from lrpot.properties.model import PropertyEnsemble, PropertyModel


def predict(
    model: Model,
    files: Annotated[
        list[Path], typer.Argument(help="Crystals in any format that ASE reads: CIF, extxyz, POSCAR, ...")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Table (.csv), or crystals with what is predicted (.extxyz).", show_default="none"),
    ] = None,
    device: Device = "cpu",
    dtype: Precision = DType.float64,
) -> None:
    """Energy (eV), largest force (eV/A), pressure (GPa) and charges (e) of every crystal; of an ensemble also how
    uncertain the energy (eV/atom) and the most uncertain force (eV/A) are. Of a model of properties these; folders
    are read too.
    """
    import torch

    from lrpot.calibration import doubts
    from lrpot.console import Console
    from lrpot.ensemble import Ensemble
    from lrpot.errors import OutputError
    from lrpot.model_file import load_model
    from lrpot.potential import Potential
    from lrpot.prediction import predict_crystals, read_crystals, summary, write_predictions

    if out is not None and out.exists() and any(file.exists() and out.samefile(file) for file in files):
        raise OutputError(f"--out {out}: is also read from; choose another --out")
    check_crystals_out(out)
    console = Console()
    potential = load_model(model, device=device, dtype=getattr(torch, dtype.value))
    if not isinstance(potential, Potential):
        _predict_properties(console, model, potential, files, out)
        return
    rows, structures = read_crystals(potential, files)
    with console.progress("predicting", len(rows), "crystals") as update:
        predictions = predict_crystals(potential, rows, structures, progress=update)
    if isinstance(potential, Ensemble):
        for doubt in doubts(potential):
            console.warn(doubt)
    outside = [p for p in predictions if p.outside_training is not None]
    if outside:
        console.warn(
            f"{len(outside)} of {len(predictions)} crystals lie outside the training set, where the model may be "
            f"wrong; {outside[0].row}: {outside[0].outside_training}"
        )
    header, lines = summary(predictions)
    console.table(str(model), [name.replace("_", " ") for name in header], lines)
    if out is not None:
        write_predictions(predictions, out)
        console.line(f"wrote {out}")


def _predict_properties(
    console: Console, path: Path, model: PropertyModel | PropertyEnsemble, files: list[Path], out: Path | None
) -> None:
    from lrpot.properties.prediction import predict_properties, summary, write_properties

    with console.progress("predicting", None, "crystals") as update:
        found = predict_properties(model, files, progress=update)
    header, lines = summary(found)
    console.table(str(path), header, lines)
    if any(found.unknown):
        console.warn("some have elements that the model was not fitted to (last column); their values are guesses")
    if out is not None:
        write_properties(found, out)
        console.line(f"wrote {out}")
