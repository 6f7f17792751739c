"""The structures that a model predicts worst, for the 3-D view."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors

from lrpot.report.comparison import SHOWN_UNITS, Comparison
from lrpot.report.style import numbers

# How many of each kind are shown, and at most how many atoms of each.
SHOWN = 10
MAX_ATOMS = 1500


def worst(comparison: Comparison) -> dict[str, Any]:
    """The structures with the largest error of a force on an atom, and those with the largest error of the energy per
    atom.

    Returns:
        structures: what `_structure` says of each. forces, energy: their numbers in that list, the worst first; empty
        without labels.
    """
    orders = {
        "forces": _largest(comparison.largest_force_errors),
        "energy": _largest(np.abs(comparison.energy_errors)),
    }
    chosen = list(dict.fromkeys(orders["forces"] + orders["energy"]))
    return {
        "structures": [_structure(comparison, number) for number in chosen],
        **{name: [chosen.index(number) for number in order] for name, order in orders.items()},
    }


def elements_of(pages: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Colour and radius (A) of every element in the 3-D views, by symbol; jmol's colours, covalent radii."""
    symbols = {symbol for page in pages for found in page["structures"] for symbol in found["symbols"]}
    known = {symbol: chemical_symbols.index(symbol) for symbol in sorted(symbols)}
    return {
        symbol: {
            "colour": "#" + "".join(f"{round(255 * float(part)):02x}" for part in jmol_colors[z]),
            "radius": float(covalent_radii[z]),
        }
        for symbol, z in known.items()
    }


def _largest(values: np.ndarray) -> list[int]:
    """The places of the `SHOWN` largest numbers, the largest first; nan is none."""
    order = np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable")[:SHOWN]
    return [int(place) for place in order if np.isfinite(values[place])]


def _structure(comparison: Comparison, number: int) -> dict[str, Any]:
    """A structure as the view draws it: positions (A) in its cell, errors of the forces (meV/A)."""
    structure = comparison.part.structures[number]
    factor = SHOWN_UNITS["forces"][0]
    positions, cell = _wrapped(structure.positions.numpy(), structure.cell[0].numpy(), structure.pbc[0].numpy())
    errors = factor * comparison.force_errors[comparison.atoms_of(number)]
    size = np.linalg.norm(errors, axis=1)
    kept = np.arange(len(positions))
    if len(kept) > MAX_ATOMS:  # those around the worst
        centre = positions[np.nanargmax(size)] if np.isfinite(size).any() else positions.mean(axis=0)
        kept = np.sort(np.argsort(np.linalg.norm(positions - centre, axis=1), kind="stable")[:MAX_ATOMS])
    labelled = bool(np.isfinite(size).all())
    energy = SHOWN_UNITS["energy"][0] * float(comparison.energy_errors[number])
    return {
        "where": comparison.where(number),
        "file": comparison.part.files[comparison.part.file[number]],
        "row": int(comparison.part.row[number]),
        "formula": str(comparison.formulas[number]),
        "atoms": len(positions),
        "energy_error": energy if np.isfinite(energy) else None,
        "largest_force_error": float(size.max()) if labelled else None,
        "force_rmse": float(np.sqrt((errors**2).mean())) if labelled else None,
        "numbers": kept.tolist(),
        "symbols": [chemical_symbols[z] for z in structure.numbers[kept].tolist()],
        "positions": [numbers(row) for row in positions[kept]],
        "force_errors": [numbers(row) for row in errors[kept]] if labelled else None,
        "cell": [numbers(row) for row in cell],
    }


def _wrapped(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 3) moved into the cell along the directions that repeat, and the vectors of these (0-3, 3), A."""
    if not pbc.any():
        return positions, cell[:0]
    # directions that do not repeat need a vector of some kind for the inverse
    whole = np.where(pbc[:, None], cell, 0.0)
    if not pbc.all():
        missing = np.linalg.svd(whole)[2][pbc.sum() :]
        whole[~pbc] = missing
    fractional = positions @ np.linalg.inv(whole)
    fractional[:, pbc] %= 1.0
    return fractional @ whole, cell[pbc]
