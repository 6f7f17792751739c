"""`lrpot eos`: energy against volume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrpot.cli.crystal import (
    Crystal,
    First,
    Overwrite,
    RelaxFirst,
    bring_to_rest,
    check_json,
    check_outputs,
    read_crystal,
    write_record,
)
from lrpot.cli.options import Device, DType, Model, Precision


def eos(
    model: Model,
    structure: Crystal,
    strain: Annotated[float, typer.Option("--strain", help="Volumes go from 1 - this to 1 + this.")] = 0.06,
    points: Annotated[int, typer.Option("--points", help="Number of volumes.")] = 9,
    keep_shape: Annotated[
        bool,
        typer.Option("--keep-shape", help="Only scale the cell; otherwise its shape comes to rest at every volume."),
    ] = False,
    relax: RelaxFirst = First.cell,
    fmax: Annotated[float, typer.Option("--fmax", help="Largest force left, eV/A.")] = 0.002,
    out: Annotated[Path, typer.Option("--out", help="Results (.json); the picture goes beside.")] = Path("eos.json"),
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Precision = DType.float64,
) -> None:
    """Volume (A^3) and energy (eV) at rest, bulk modulus (GPa) and its derivative: a Birch-Murnaghan curve through the
    energies of a crystal at several volumes.
    """
    from lrpot.console import Console
    from lrpot.workflows import pictures
    from lrpot.workflows.eos import check_settings, equation_of_state

    check_settings(strain=strain, points=points)
    check_json(out)
    picture = out.with_suffix(".png")
    check_outputs((out, picture), overwrite=overwrite)
    console = Console()
    atoms = read_crystal(model, structure, device=device, dtype=dtype)
    atoms = bring_to_rest(console, atoms, relax, fmax=fmax)
    with console.progress(f"{len(atoms)} atoms", points, "volumes") as update:
        found = equation_of_state(atoms, strain=strain, points=points, shape=not keep_shape, fmax=fmax, progress=update)
    n, curve = found.n_atoms, found.curve
    lines = [
        [f"{v:.4f}", f"{v / n:.4f}", f"{e / n:.6f}", f"{p:.3f}", f"{curve.pressure(v):.3f}"]
        for v, e, p in zip(found.volume, found.energy, found.pressure, strict=True)
    ]
    header = ["V (A^3)", "V (A^3/atom)", "E (eV/atom)", "P, stress (GPa)", "P, curve (GPa)"]
    console.table(f"{structure}, {atoms.get_chemical_formula()}", header, lines)
    rows = [
        ["V0 (A^3)", f"{curve.v0:.4f}", f"{curve.v0 / n:.4f} per atom"],
        ["E0 (eV)", f"{curve.e0:.6f}", f"{curve.e0 / n:.6f} per atom"],
        ["B0 (GPa)", f"{curve.b0:.3f}", ""],
        ["B0'", f"{curve.b0_prime:.3f}", ""],
        ["curve off by (eV/atom)", f"{found.rms:.1e}", "root mean square"],
    ]
    console.table("Birch-Murnaghan", ["", "", ""], rows)
    write_record(out, model, structure, found.record())
    pictures.equation_of_state(found, picture)
    for file in (out, picture):
        console.line(f"wrote {file}")
