"""`lrpot screen`: a property model and many crystals -> those that fulfil conditions, the best first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lrpot.cli.crystal import Overwrite
from lrpot.cli.options import Device, DType, check_crystals_out


def screen(
    model: Annotated[Path, typer.Argument(help="Model file of `lrpot fit --encoder ...`.")],
    files: Annotated[
        list[Path], typer.Argument(help="Crystals: folders, or files in any format that ASE reads.", metavar="FILES...")
    ],
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            help="Condition such as 'gap>1.5 and bulk<100', on targets, NAME_uncertainty, n_atoms, n_elements; may be "
            "repeated: all must hold.",
            show_default="none",
        ),
    ] = None,
    top: Annotated[int | None, typer.Option("--top", help="How many at most.", show_default="all")] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="NAME",
            help="Column to sort by, ascending; -NAME: descending.",
            show_default="that of the first condition",
        ),
    ] = None,
    contains: Annotated[
        str | None, typer.Option("--contains", help="Elements that must be there: Li,O.", show_default="any")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Elements beside which none may be there.", show_default="all")
    ] = None,
    without: Annotated[
        str | None, typer.Option("--without", help="Elements that must not be there.", show_default="none")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Table (.csv), or crystals (.extxyz), of those found.", show_default="none"),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Annotated[DType, typer.Option("--dtype", help="Precision of the network.")] = DType.float32,
) -> None:
    """Predict crystals and list those that fulfil conditions, the best first. Crystals that cannot be used are told and
    left out.
    """
    import torch

    from lrpot.console import Console
    from lrpot.errors import ModelFileError
    from lrpot.model_file import load_model
    from lrpot.potential import Potential
    from lrpot.properties.prediction import files_of, predict_properties, summary, table_columns, write_properties
    from lrpot.properties.screening import select

    check_crystals_out(out, files, overwrite=overwrite)
    console = Console()
    loaded = load_model(model, device=device, dtype=getattr(torch, dtype.value))
    if isinstance(loaded, Potential):
        raise ModelFileError(f"{model}: is a potential; screening needs a model of lrpot fit --encoder ...")
    rules: dict[str, Any] = {
        "top": top,
        "sort": sort,
        "contains": _symbols(contains),
        "only": _symbols(only),
        "without": _symbols(without),
    }
    # a condition that cannot be read is told before hours of work
    select(dict.fromkeys(table_columns(loaded), torch.empty(0).numpy()), where or (), elements=[], **rules)
    paths = files_of(files)
    with console.progress("predicting", None, "crystals") as update:
        found = predict_properties(loaded, paths, skip_bad=console.warn, progress=update)
    symbols = [set(row.atoms.symbols) for row in found.rows]
    chosen = found.chosen(select(found.columns(), where or (), elements=symbols, **rules))
    header, lines = summary(chosen)
    console.table(f"{len(chosen.rows)} of {len(found.rows)} crystals", header, lines)
    if any(chosen.unknown):
        console.warn("some have elements that the model was not fitted to (last column); their values are guesses")
    if out is not None:
        write_properties(chosen, out)
        console.line(f"wrote {out}")


def _symbols(words: str | None) -> list[str]:
    return [] if words is None else [word.strip() for word in words.split(",") if word.strip()]
