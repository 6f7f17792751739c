"""`lrpot evaluate`: errors of a model on labelled structures, and what its charges are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrpot.cli.crystal import Overwrite
from lrpot.cli.options import Device, DType, Model, Precision

if TYPE_CHECKING:
    from lrpot.charge_scale import ErrorAlongScale
    from lrpot.console import Console
    from lrpot.evaluation import Evaluation
    from lrpot.properties.model import PropertyEnsemble, PropertyModel

# The scales in the table; the picture has more.
SHOWN = (0.8, 0.9, 1.0, 1.1, 1.2)


def evaluate(
    model: Model,
    data: Annotated[Path, typer.Argument(help="Labelled structures (eV, eV/A, eV/A^3; charges e).")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Directory for evaluation-DATA.json and pictures.", show_default="beside the model"),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Precision = DType.float64,
) -> None:
    """MAE, RMSE and largest error of energy per atom (eV/atom), forces (eV/A), stress (eV/A^3), and of charges (e),
    dipoles (e A) and Born charges (e) where they are labelled; the charges, and how well the data determine them. Of an
    ensemble also how well its uncertainties match its errors.
    """
    import json

    import torch

    from lrpot import plots
    from lrpot.calibration import doubts, quality, quality_record, quality_table
    from lrpot.charge_scale import errors_along_scale
    from lrpot.console import Console
    from lrpot.data.readers import read_rows, to_structures
    from lrpot.ensemble import Ensemble
    from lrpot.errors import DataError
    from lrpot.evaluation import QUANTITIES, evaluate_structures
    from lrpot.files import check_writable, write_text
    from lrpot.model_file import load_model
    from lrpot.potential import Potential
    from lrpot.prediction import check_supported

    console = Console()
    folder = model.parent if out is None else out
    name = data.name.split(".")[0]
    results, picture = folder / f"evaluation-{name}.json", folder / f"parity-{name}.png"
    if not overwrite:
        _check_same(results, model, data)
    potential = load_model(model, device=device, dtype=getattr(torch, dtype.value))
    check_writable(results)
    if not isinstance(potential, Potential):
        _evaluate_properties(console, model, potential, data, results)
        return
    rows = read_rows(data)
    with console.progress(f"neighbours of {data}", len(rows), "structures") as update:
        structures = to_structures(
            rows,
            potential.cutoff,
            elements=potential.elements,
            check=lambda s: check_supported(potential, s),
            progress=update,
        )
    if not any(label in s for s in structures for label in QUANTITIES):
        raise DataError(f"{data}: no row has an energy, forces or any other label to compare with; use lrpot predict")
    with console.progress("evaluating", len(structures), "structures") as update:
        evaluation = evaluate_structures(potential, structures, progress=update)
    along_scale = errors_along_scale(potential, structures, evaluation)
    uncertainty = quality(evaluation, len(potential.members))
    errors = evaluation.errors()
    lines = [
        [f"{quantity} ({values['unit']})", *(f"{values[kind]:.3e}" for kind in ("mae", "rmse", "max"))]
        for quantity, values in errors.items()
        if isinstance(values, dict)
    ]
    title = f"{errors['n_structures']} structures, {errors['n_atoms']} atoms"
    console.table(title, ["quantity", "MAE", "RMSE", "max"], lines)
    if any("born_charges" in s for s in structures) and "born_charges" not in errors:
        console.warn("Born charges are not compared: this model has no charges, or they flow through the whole crystal")
    if shifted := evaluation.stress_doubt():
        console.warn(shifted)
    if not errors.keys() & set(QUANTITIES):
        raise DataError(f"{data}: no label in it is one that this model predicts; use lrpot predict")
    charges, long_range = evaluation.charges_by_element(), evaluation.long_range()
    if charges:
        kinds = ("mean", "spread", "min", "max")
        rows_of_charges = [[symbol, *(f"{q[kind]:+.4f}" for kind in kinds)] for symbol, q in charges.items()]
        console.table("charges (e)", ["element", *kinds], rows_of_charges)
        console.line(
            f"long range: {long_range['energy_long']:.3g} eV/atom beside {long_range['energy_network']:.3g} eV/atom of "
            f"the network (mean magnitudes), a share of {long_range['share']:.0%}"
        )
    if uncertainty:
        console.table("uncertainties beside errors", *quality_table(uncertainty))
    if isinstance(potential, Ensemble):
        for doubt in doubts(potential):
            console.warn(doubt)
    _tell_sums(console, evaluation)
    _tell_scale(console, along_scale)
    report = {
        "model": str(model),
        "data": str(data),
        **errors,
        "pressure_offset": evaluation.pressure_offset(),
        "charges": charges,
        "long_range": long_range,
        "acoustic_sum": evaluation.acoustic_sum(),
        "uncertainty": quality_record(uncertainty),
        "charge_scale": {name: along.record() for name, along in along_scale.items()},
    }
    write_text(results, json.dumps(report, indent=1))
    written = [results, plots.parity(evaluation, picture)]
    if along_scale:
        written.append(plots.charge_scale(along_scale, folder / f"charge-scale-{name}.png"))
    if uncertainty:
        written.append(plots.calibration(evaluation, len(potential.members), folder / f"calibration-{name}.png"))
    for file in written:
        console.line(f"wrote {file}")


def _check_same(results: Path, model: Path, data: Path) -> None:
    """An evaluation may be repeated; one of other data, or of another model, has the same name and is kept.

    Raises:
        OutputError: such an evaluation, or what cannot be read as one, is there.
    """
    import json

    from lrpot.errors import OutputError

    if not results.exists():
        return
    try:
        older = json.loads(results.read_text(encoding="utf-8"))
        same = [Path(older[name]).resolve() for name in ("model", "data")] == [model.resolve(), data.resolve()]
        of = f"of {older['model']} on {older['data']}"
    except (OSError, ValueError, KeyError, TypeError):
        same, of = False, "that cannot be read"
    if not same:
        raise OutputError(
            f"{results}: holds results {of}; add --overwrite to replace them, or choose another directory with --out"
        )


def _evaluate_properties(
    console: Console, path: Path, model: PropertyModel | PropertyEnsemble, data: Path, results: Path
) -> None:
    """Errors of a property model on crystals that have any of its targets."""
    import json

    from lrpot.data.readers import read_rows, to_structures
    from lrpot.data.tables import name_of
    from lrpot.errors import DataError
    from lrpot.files import write_text
    from lrpot.properties.evaluation import evaluate_properties, gates_text
    from lrpot.properties.pictures import draw
    from lrpot.properties.tables import errors_table, save_predictions

    names = [target.name for target in model.targets]
    rows = read_rows(data)
    with console.progress(f"neighbours of {data}", len(rows), "crystals") as update:
        structures = to_structures(
            rows,
            model.cutoff,
            check=model.check,
            progress=update,
            labels=False,
            shells=model.shells,
            targets=names,
        )
    with console.progress("evaluating", len(structures), "crystals") as update:
        found = evaluate_properties(model, structures, progress=update)
    errors = found.errors()
    if not errors.keys() & set(names):
        raise DataError(f"{data}: no row has {' or '.join(names)} to compare with; use lrpot predict")
    console.table(f"{data}, {len(rows)} crystals", *errors_table(found))
    if found.experts:
        console.line(gates_text(found))
    report = {"model": str(path), "data": str(data), **errors, "gates": found.gate_usage()}
    write_text(results, json.dumps(report, indent=1))
    table = save_predictions(
        found, [row.number for row in rows], [name_of(row.atoms.info) for row in rows], results.with_suffix(".csv")
    )
    for file in (results, table, *draw(found, results.parent, name=results.stem.removeprefix("evaluation-"))):
        console.line(f"wrote {file}")


def _tell_sums(console: Console, evaluation: Evaluation) -> None:
    """The acoustic sum rule of the predicted Born charges."""
    sums = evaluation.acoustic_sum()
    if sums:
        console.line(
            f"acoustic sum rule: the Born charges of a structure add up to its total charge within {sums['rms']:.2e} e "
            f"(root mean square; largest {sums['max']:.2e} e)"
        )


def _tell_scale(console: Console, along_scale: dict[str, ErrorAlongScale]) -> None:
    """How well the data determine the charges."""
    from lrpot.evaluation import UNITS

    if not along_scale:
        return
    columns = ["all charges times", *(f"{name} RMSE ({UNITS[name]})" for name in along_scale)]
    rows = [[f"{s:g}", *(f"{along.rmse(s):.3e}" for along in along_scale.values())] for s in SHOWN]
    console.table("how well the data determine the charges, with the network frozen", columns, rows)
    for name, along in along_scale.items():
        console.line(
            f"{name}: best with the charges times {along.best:.3f}; the mean square error is twice as large "
            f"{along.width:.2g} away from there (curvature {along.curvature(along.best):.2e} ({UNITS[name]})^2)"
        )
    console.line(
        "with the network frozen means: it does not give way. Fitted together with the charges it can take over a part "
        "of what they do, and then the data determine them less well than this"
    )
