"""Supercells that know their total charge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms


def repeated(atoms: Atoms, repeats: int | Sequence[int]) -> Atoms:
    """A supercell, by `Atoms.repeat`, which by itself keeps the charge of one cell.

    Args:
        atoms: the cell.
        repeats: along each lattice vector; one number: along all.
    Returns:
        new atoms, without the calculator; `info["charge"]` in e.
    """
    supercell = atoms.repeat(repeats)
    charge_as(supercell, atoms)
    return supercell


def charge_as(supercell: Atoms, cell: Atoms) -> None:
    """Give a supercell the charge (`info["charge"]`, e) of all the cells that it is made of; none if they have none."""
    if "charge" in cell.info:
        supercell.info["charge"] = cell.info["charge"] * len(supercell) / len(cell)
