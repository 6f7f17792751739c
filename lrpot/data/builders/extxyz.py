"""Extended XYZ with every digit. ASE reads it, but writes positions and forces with 8 decimals only."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress


def extxyz_text(atoms: Atoms) -> str:
    """One structure with its labels as the lines of an extended XYZ file.

    Numbers are written as Python's `repr`: the shortest text that reads back as the same double. `atoms.info`
    comes first in the comment line.

    Args:
        atoms: positions and cell in A; `atoms.calc` holds `energy` (eV) and `forces` ((n_atoms, 3), eV/A), and may
            hold `stress` ((6,), eV/A^3, Voigt order) and `charges` ((n_atoms,), e); `atoms.info` holds Python's own
            int, float and str (without quotes).
    Source: the format is that of https://github.com/libAtoms/extxyz.
    """
    results = atoms.calc.results
    header = {
        **atoms.info,
        "energy": float(results["energy"]),
        "pbc": " ".join("FT"[periodic] for periodic in atoms.pbc.tolist()),
        "Lattice": _numbers(atoms.cell.array),
        "Properties": "species:S:1:pos:R:3:forces:R:3",
    }
    columns = [atoms.positions, results["forces"]]
    if "stress" in results:
        header["stress"] = _numbers(voigt_6_to_full_3x3_stress(results["stress"]))
    if "charges" in results:
        header["Properties"] += ":charges:R:1"
        columns.append(results["charges"][:, None])
    lines = [str(len(atoms)), " ".join(f"{key}={_value(value)}" for key, value in header.items())]
    lines += [f"{symbol} {_numbers(row)}" for symbol, row in zip(atoms.symbols, np.hstack(columns), strict=True)]
    return "\n".join(lines) + "\n"


def _numbers(values: np.ndarray) -> str:
    return " ".join(map(repr, values.ravel().tolist()))


def _value(value: int | float | str) -> str:
    if isinstance(value, str):
        return f'"{value}"' if " " in value else value
    return repr(value)
