"""What the commands about one crystal share: its arguments, its calculator, its relaxation, its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ase import Atoms

    from lrpot.cli.options import DType
    from lrpot.console import Console

Crystal = Annotated[Path, typer.Argument(help="Crystal in any format that ASE reads (the last row of the file).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace older results.")]


class First(StrEnum):
    """What comes to rest before anything is computed."""

    none = "none"
    atoms = "atoms"
    cell = "cell"


RelaxFirst = Annotated[
    First,
    typer.Option("--relax", help="What comes to rest first, its space group kept: none, atoms, or cell and atoms."),
]


def read_crystal(model: Path, structure: Path, *, device: str, dtype: DType) -> Atoms:
    """The last crystal of a file, with the model as its calculator.

    Raises:
        LrpotError: names the file and the row of what the model cannot treat.
    """
    import torch

    from lrpot.interfaces.ase import LRCalculator
    from lrpot.model_file import load
    from lrpot.prediction import read_crystals

    potential = load(model, device=device, dtype=getattr(torch, dtype.value))
    (row,), _ = read_crystals(potential, structure, last=True)
    row.atoms.calc = LRCalculator(potential, device=device, dtype=dtype.value)
    return row.atoms


def check_json(out: Path) -> None:
    """
    Raises:
        ConfigError: another ending than .json, such as that of the picture which goes beside.
    """
    from lrpot.errors import ConfigError

    if out.suffix != ".json":
        raise ConfigError(f"--out {out}: unknown ending {out.suffix!r}; use .json")


def check_outputs(files: Sequence[Path], *, overwrite: bool) -> None:
    """Find out before any work whether results can be written.

    Raises:
        OutputError: one is there already, or cannot be written.
    """
    from lrpot.errors import OutputError
    from lrpot.files import check_writable

    for file in files:
        check_writable(file)
        if file.exists() and not overwrite:
            raise OutputError(f"{file}: exists already; add --overwrite to replace it, or choose another --out")


def write_record(out: Path, model: Path, structure: Path, record: Mapping[str, Any]) -> None:
    """The numbers of a calculation as JSON, and what they are of."""
    import json

    from lrpot.files import write_text

    write_text(out, json.dumps({"model": str(model), "structure": str(structure), **record}, indent=1) + "\n")


def bring_to_rest(console: Console, atoms: Atoms, first: First, *, fmax: float) -> Atoms:
    """The crystal that a calculation is about.

    Raises:
        WorkflowError: it does not come to rest. StructureError: a cell that is to change and does not repeat.
    """
    from lrpot.workflows.relax import relax_fully

    if first is First.none:
        return atoms
    cell = "full" if first is First.cell else "fixed"
    before = atoms.get_volume() if atoms.pbc.all() else 0.0
    with console.progress("relaxing", None, "steps") as update:
        relaxed = relax_fully(
            atoms, "the crystal", cell=cell, fmax=fmax, symmetry=bool(atoms.pbc.all()), progress=update
        )
    line = f"relaxed {first.value}: {relaxed.get_potential_energy() / len(relaxed):.6f} eV/atom"
    if first is First.cell:
        line += f", volume {before:.3f} -> {relaxed.get_volume():.3f} A^3"
    console.line(line)
    return relaxed
