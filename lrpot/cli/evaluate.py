"""`lrpot evaluate`: errors of a model on labelled structures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrpot.cli.options import Device, DType, Precision


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    data: Annotated[Path, typer.Argument(help="Labelled structures (energy eV, forces eV/A, stress eV/A^3).")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Directory for evaluation-DATA.json and parity-DATA.png.", show_default="beside the model"
        ),
    ] = None,
    device: Device = "cpu",
    dtype: Precision = DType.float64,
) -> None:
    """MAE, RMSE and largest error of energy per atom (eV/atom), forces (eV/A) and stress (eV/A^3); charges (e)."""
    import json

    import torch

    from lrpot import plots
    from lrpot.console import Console
    from lrpot.data.readers import read_rows, to_structures
    from lrpot.errors import DataError
    from lrpot.evaluation import evaluate_structures
    from lrpot.files import check_writable, write_text
    from lrpot.model_file import load
    from lrpot.prediction import check_supported

    console = Console()
    folder = model.parent if out is None else out
    name = data.name.split(".")[0]
    results, picture = folder / f"evaluation-{name}.json", folder / f"parity-{name}.png"
    potential = load(model, device=device, dtype=getattr(torch, dtype.value))
    check_writable(results)
    rows = read_rows(data)
    with console.progress(f"neighbours of {data}", len(rows), "structures") as update:
        structures = to_structures(
            rows,
            potential.cutoff,
            elements=potential.elements,
            check=lambda s: check_supported(potential, s),
            progress=update,
        )
    if not any(label in s for s in structures for label in ("energy", "forces", "stress")):
        raise DataError(f"{data}: no row has an energy, forces or stress to compare with; use lrpot predict")
    with console.progress("evaluating", len(structures), "structures") as update:
        evaluation = evaluate_structures(potential, structures, progress=update)
    errors = evaluation.errors()
    lines = [
        [f"{quantity} ({values['unit']})", *(f"{values[kind]:.3e}" for kind in ("mae", "rmse", "max"))]
        for quantity, values in errors.items()
        if isinstance(values, dict)
    ]
    title = f"{errors['n_structures']} structures, {errors['n_atoms']} atoms"
    console.table(title, ["quantity", "MAE", "RMSE", "max"], lines)
    charges, long_range = evaluation.charges_by_element(), evaluation.long_range()
    if charges:
        kinds = ("mean", "spread", "min", "max")
        rows_of_charges = [[symbol, *(f"{q[kind]:+.4f}" for kind in kinds)] for symbol, q in charges.items()]
        console.table("charges (e)", ["element", *kinds], rows_of_charges)
        console.line(
            f"long range: {long_range['energy_long']:.3g} eV/atom beside {long_range['energy_network']:.3g} eV/atom of "
            f"the network (mean magnitudes), a share of {long_range['share']:.0%}"
        )
    report = {"model": str(model), "data": str(data), **errors, "charges": charges, "long_range": long_range}
    write_text(results, json.dumps(report, indent=1))
    plots.parity(evaluation, picture)
    console.line(f"wrote {results}")
    console.line(f"wrote {picture}")
