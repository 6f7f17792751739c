"""`lrpot relax`: atoms, and if asked for the cell, come to rest."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrpot.cli.crystal import Crystal, Overwrite, check_outputs, read_crystal, write_record
from lrpot.cli.options import Device, DType, Model, Precision

if TYPE_CHECKING:
    from ase import Atoms

    from lrpot.workflows.relax import Relaxation


class Cell(StrEnum):
    fixed = "fixed"
    isotropic = "isotropic"
    shape = "shape"
    full = "full"


class Optimiser(StrEnum):
    lbfgs = "lbfgs"
    bfgs = "bfgs"
    fire = "fire"


def relax(
    model: Model,
    structure: Crystal,
    cell: Annotated[
        Cell,
        typer.Option("--cell", help="What the cell may do: fixed, isotropic (its size), shape (at its volume), full."),
    ] = Cell.fixed,
    pressure: Annotated[float, typer.Option("--pressure", help="GPa.")] = 0.0,
    fmax: Annotated[float, typer.Option("--fmax", help="Largest force left, eV/A.")] = 0.01,
    smax: Annotated[
        float, typer.Option("--smax", help="Largest component of stress + pressure left in a cell that changes, GPa.")
    ] = 0.01,
    steps: Annotated[int, typer.Option("--steps", help="At most so many.")] = 500,
    symmetry: Annotated[bool, typer.Option("--symmetry", help="Keep the space group of the start.")] = False,
    optimiser: Annotated[Optimiser, typer.Option("--optimiser", help="ASE's lbfgs, bfgs or fire.")] = Optimiser.lbfgs,
    out: Annotated[
        Path, typer.Option("--out", help="Relaxed crystal, in a format that ASE writes by this name.")
    ] = Path("relaxed.extxyz"),
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Precision = DType.float64,
) -> None:
    """Move the atoms, and with --cell the cell, until forces and stress are small. Writes the crystal, and beside it
    energy, force and stress of every step as JSON and as a picture.
    """
    from lrpot.console import Console
    from lrpot.errors import Interrupted, WorkflowError
    from lrpot.interrupts import finish_step_on_ctrl_c
    from lrpot.workflows import pictures
    from lrpot.workflows import relax as workflow

    record, picture = out.with_suffix(".json"), out.with_suffix(".png")
    _check_format(out)
    check_outputs((out, record, picture), overwrite=overwrite)
    atoms = read_crystal(model, structure, device=device, dtype=dtype)
    console = Console()
    with (
        console.progress(f"relaxing {len(atoms)} atoms", steps, "steps", at_most=True) as update,
        finish_step_on_ctrl_c(console.warn) as interrupted,
    ):
        run = workflow.relax(
            atoms,
            cell=cell.value,
            pressure=pressure,
            fmax=fmax,
            smax=smax,
            steps=steps,
            symmetry=symmetry,
            optimiser=optimiser.value,
            progress=update,
            stop=interrupted,
        )
    console.table(str(structure), ["", "before", "after"], _rows(atoms, run))
    _write_crystal(run.atoms, out)
    write_record(record, model, structure, run.record())
    pictures.relaxation(run, picture)
    for file in (out, record, picture):
        console.line(f"wrote {file}")
    if interrupted():
        raise Interrupted(f"stopped by Ctrl-C after {run.steps} steps; {out} holds the last")
    if not run.converged:
        raise WorkflowError(
            f"not at rest after {run.steps} steps: forces up to {run.force[-1]:.2g} eV/A (--fmax {fmax:g}), stress up "
            f"to {run.stress[-1]:.2g} GPa (--smax {smax:g}); go on from {out}, with more --steps or another --optimiser"
        )


def _rows(before: Atoms, run: Relaxation) -> list[list[str]]:
    from lrpot.units import GPA

    after = run.atoms
    rows = [
        ["energy (eV)", f"{run.energy[0]:.6f}", f"{run.energy[-1]:.6f}"],
        ["largest force (eV/A)", f"{run.force[0]:.2e}", f"{run.force[-1]:.2e}"],
    ]
    if before.pbc.all():
        pressure = [f"{-atoms.get_stress()[:3].mean() * GPA:.4f}" for atoms in (before, after)]
        rows += [
            ["pressure (GPa)", *pressure],
            ["volume (A^3)", f"{before.get_volume():.4f}", f"{after.get_volume():.4f}"],
            ["a, b, c (A)", *(" ".join(f"{x:.4f}" for x in atoms.cell.lengths()) for atoms in (before, after))],
            ["angles (deg)", *(" ".join(f"{x:.2f}" for x in atoms.cell.angles()) for atoms in (before, after))],
            ["space group", *(group or "-" for group in run.space_groups)],
        ]
    return [*rows, ["steps", "", str(run.steps)]]


def _check_format(out: Path) -> None:
    """Find out before any work whether ASE writes files of that name.

    Raises:
        ConfigError: it does not.
    """
    from ase.io.formats import filetype, ioformats

    from lrpot.errors import ConfigError

    try:
        known = ioformats[filetype(str(out), read=False)].can_write
    except (KeyError, ValueError):
        known = False
    if not known or out.suffix in (".json", ".png"):
        raise ConfigError(f"--out {out}: ASE writes no crystal by this name; use .extxyz, .cif, .vasp or .traj")


def _write_crystal(atoms: Atoms, out: Path) -> None:
    import ase.io
    from ase.io.formats import filetype

    from lrpot.files import atomic_path

    with atomic_path(out) as temporary:
        ase.io.write(temporary, atoms, format=filetype(str(out), read=False))
