"""`lrpot convert`: models of other programs as model files of lrpot."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Convert models of other programs.", no_args_is_help=True)


class EnergyUnit(StrEnum):
    eV = "eV"
    meV = "meV"
    kcal_mol = "kcal/mol"
    kJ_mol = "kJ/mol"
    Ha = "Ha"


class LengthUnit(StrEnum):
    Ang = "Ang"
    nm = "nm"
    Bohr = "Bohr"


@app.callback()
def convert() -> None:
    """Convert models of other programs."""


@app.command("schnetpack")
def schnetpack(
    model: Annotated[Path, typer.Argument(help="SchNetPack's best_model, a PaiNN potential.")],
    out: Annotated[Path, typer.Argument(help="Model file to write.")],
    elements: Annotated[str, typer.Option("--elements", help="What it was fitted to, such as Na,Cl.")],
    energy_unit: Annotated[EnergyUnit, typer.Option("--energy-unit", help="Of its energies; the file does not say.")],
    length_unit: Annotated[LengthUnit, typer.Option("--length-unit", help="Of its positions.")] = LengthUnit.Ang,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Convert a PaiNN potential of SchNetPack 2.0: the same energies and forces, without long range."""
    from lrpot.console import Console
    from lrpot.errors import OutputError
    from lrpot.interfaces.schnetpack import convert_schnetpack
    from lrpot.model_file import save

    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; add --overwrite to replace it, or choose another name")
    symbols = [symbol.strip() for symbol in elements.split(",") if symbol.strip()]
    potential = convert_schnetpack(
        model, elements=symbols, energy_unit=energy_unit.value, length_unit=length_unit.value
    )
    Console().line(f"wrote {save(potential, out)}")
