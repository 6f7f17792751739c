"""`lrpot elastic`: elastic constants."""

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


def elastic(
    model: Model,
    structure: Crystal,
    strain: Annotated[float, typer.Option("--strain", help="Largest component of each strain.")] = 0.005,
    clamped: Annotated[bool, typer.Option("--clamped", help="Atoms only follow the strain.")] = False,
    relax: RelaxFirst = First.cell,
    fmax: Annotated[float, typer.Option("--fmax", help="Largest force left in a strained cell, eV/A.")] = 1e-4,
    out: Annotated[Path, typer.Option("--out", help="Results (.json); the picture goes beside.")] = Path(
        "elastic.json"
    ),
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Precision = DType.float64,
) -> None:
    """Stiffness (GPa) from the stress of strained cells; bulk, shear and Young's modulus (Voigt, Reuss, Hill) and
    Poisson's ratio; and whether the crystal is stable. Axes are those of the file; its symmetry is imposed.
    """
    from lrpot.console import Console
    from lrpot.workflows import pictures
    from lrpot.workflows.elastic import VOIGT, check_settings, elastic_constants

    check_settings(strain=strain)
    check_json(out)
    picture = out.with_suffix(".png")
    check_outputs((out, picture), overwrite=overwrite)
    console = Console()
    atoms = read_crystal(model, structure, device=device, dtype=dtype)
    atoms = bring_to_rest(console, atoms, relax, fmax=fmax)
    with console.progress(f"{len(atoms)} atoms", 12, "strained cells") as update:
        found = elastic_constants(atoms, strain=strain, relax_atoms=not clamped, fmax=fmax, progress=update)
    names = ["xyz"[a] + "xyz"[b] for a, b in VOIGT]
    lines = [[name, *(f"{value:.3f}" for value in row)] for name, row in zip(names, found.stiffness, strict=True)]
    console.table(f"stiffness (GPa), {structure}, {atoms.get_chemical_formula()}", ["", *names], lines)
    if found.stable:
        averages = found.averages()
        moduli = [("bulk modulus", averages.bulk), ("shear modulus", averages.shear)]
        rows = [[name, *(f"{value:.3f}" for value in values)] for name, values in moduli]
        rows += [
            ["Young's modulus", "", "", f"{averages.young:.3f}"],
            ["Poisson's ratio", "", "", f"{averages.poisson:.4f}"],
            ["universal anisotropy", "", "", f"{averages.anisotropy:.4f}"],
        ]
        console.table("of a polycrystal (GPa)", ["", "Voigt", "Reuss", "Hill"], rows)
        console.line(f"stable: the smallest eigenvalue of the stiffness is {found.eigenvalues[0]:.3f} GPa")
    else:
        console.warn(
            f"unstable: the smallest eigenvalue of the stiffness is {found.eigenvalues[0]:.3f} GPa; there are no moduli"
        )
    console.line(f"imposing the symmetry changed the constants by up to {found.asymmetry:.2g} GPa")
    write_record(out, model, structure, found.record())
    pictures.elastic_constants(found, picture)
    for file in (out, picture):
        console.line(f"wrote {file}")
