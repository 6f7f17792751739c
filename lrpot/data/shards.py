"""Labelled crystals in HDF5: for sets that are too large for text, cut into files of a convenient size.

The atoms of all rows follow each other; `atoms` says how many belong to each row.

===================  ===============  =========================================================
data set             shape            meaning, unit
===================  ===============  =========================================================
atoms                (G,)             number of atoms of each row
numbers              (sum N,)         atomic numbers
positions            (sum N, 3)       A
cell                 (G, 3, 3)        rows are lattice vectors, A
pbc                  (G, 3)           periodic along each lattice vector
charge               (G,)             total charge, e
energy               (G,)             eV
forces               (sum N, 3)       eV/A
stress               (G, 6)           eV/A^3, ASE's sign and order (xx yy zz yz xz xy)
charges              (sum N,)         e
dipole               (G, 3)           e A, along x, y, z
born_charges         (sum N, 3, 3)    e, [i, a, b] = dP_a / dr_ib, not screened
dielectric           (G, 3, 3)        dielectric tensor that belongs to the Born charges
===================  ===============  =========================================================

`charge` and the labels may be missing. Where only some rows have a label, `labelled_energy`, (G,) bool, says which, and
so on for the others. `lrpot/data/labels.py` says what is made of the labels of charges.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from lrpot.data.labels import attach_labels, labels_as_given
from lrpot.errors import DataError
from lrpot.files import atomic_path

SUFFIXES = (".h5", ".hdf5")

# What a label has of each row, or of each atom.
LABELS: dict[str, tuple[int, ...]] = {
    "energy": (),
    "forces": (3,),
    "stress": (6,),
    "charges": (),
    "dipole": (3,),
    "born_charges": (3, 3),
    "dielectric": (3, 3),
}
PER_ATOM = ("forces", "charges", "born_charges")

# Rows that are read at once: one by one, each would cost five calls of HDF5.
BLOCK = 256


def is_shard(path: Path) -> bool:
    return path.suffix in SUFFIXES


def write_shard(path: Path, rows: Iterable[Atoms]) -> Path:
    """Write labelled crystals, all in memory at once.

    Args:
        path: ends in .h5 or .hdf5. rows: with labels where `labels_as_given` looks for them.
    Raises:
        DataError: h5py is missing, there are no rows, or a label is not sound. OutputError: the file cannot be
            written.
    """
    h5py = _h5py(path)
    crystals = list(rows)
    if not crystals:
        raise DataError(f"{path}: no rows to write; give at least one")
    labels = [labels_as_given(atoms) for atoms in crystals]
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["atoms"] = np.array([len(atoms) for atoms in crystals])
        file["numbers"] = np.concatenate([atoms.numbers for atoms in crystals]).astype(np.uint8)
        file["positions"] = np.concatenate([atoms.positions for atoms in crystals])
        file["cell"] = np.stack([atoms.cell.array for atoms in crystals])
        file["pbc"] = np.stack([atoms.pbc for atoms in crystals])
        file["charge"] = np.array([float(atoms.info.get("charge", 0.0)) for atoms in crystals])
        for name, width in LABELS.items():
            labelled = np.array([name in found for found in labels])
            if not labelled.any():
                continue
            shapes = [(len(atoms) if name in PER_ATOM else 1, *width) for atoms in crystals]
            file[name] = np.concatenate(
                [
                    found[name].reshape(shape) if name in found else np.full(shape, np.nan)
                    for found, shape in zip(labels, shapes, strict=True)
                ]
            )
            file[f"labelled_{name}"] = labelled
    return path


def read_shard(path: Path, first: int = 0, every: int = 1) -> Iterator[Atoms]:
    """The rows first, first + every, ... of a shard, with their labels.

    Raises:
        DataError: h5py is missing, or the file is no shard or was cut short.
    """
    h5py = _h5py(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: is not HDF5, or was cut short; get it anew, or write it again") from error
    with file:
        missing = [name for name in ("atoms", "numbers", "positions", "cell", "pbc") if name not in file]
        if missing:
            raise DataError(f"{path}: has no data set {missing[0]!r}; lrpot/data/shards.py says what a shard holds")
        _check_types(path, file)
        counts = file["atoms"][:]
        starts = np.concatenate([[0], np.cumsum(counts)])
        _check_lengths(path, file, len(counts), int(starts[-1]))
        for begin in range(0, len(counts), BLOCK):
            end = min(begin + BLOCK, len(counts))
            chosen = [row for row in range(begin, end) if row >= first and (row - first) % every == 0]
            if chosen:
                block = _block(file, begin, end, starts)
                yield from (_atoms(block, row - begin, starts[begin : end + 1] - starts[begin]) for row in chosen)


def _check_types(path: Path, file: Any) -> None:
    kinds = {"atoms": "iu", "numbers": "iu", "pbc": "biu"} | {f"labelled_{name}": "biu" for name in LABELS}
    for name in file:
        expected = kinds.get(name, "f")
        if name in kinds.keys() | {"positions", "cell", "charge", *LABELS} and file[name].dtype.kind not in expected:
            what = "numbers" if expected == "f" else "whole numbers"
            raise DataError(f"{path}: {name} is of type {file[name].dtype}, expected {what}; write the shard again")
    if (file["atoms"][:] < 0).any():
        raise DataError(f"{path}: a row has less than no atoms; write the shard again")


def _check_lengths(path: Path, file: Any, n_rows: int, n_atoms: int) -> None:
    expected = {
        "numbers": (n_atoms,),
        "positions": (n_atoms, 3),
        "cell": (n_rows, 3, 3),
        "pbc": (n_rows, 3),
        "charge": (n_rows,),
        **{name: (n_atoms if name in PER_ATOM else n_rows, *width) for name, width in LABELS.items()},
        **{f"labelled_{name}": (n_rows,) for name in LABELS},
    }
    for name, shape in expected.items():
        if name in file and file[name].shape != shape:
            raise DataError(
                f"{path}: {name} has shape {file[name].shape}, expected {shape} for {n_rows} rows of {n_atoms} atoms "
                "together; write the shard again"
            )


def _block(file: Any, begin: int, end: int, starts: np.ndarray) -> dict[str, np.ndarray]:
    atoms, rows = slice(starts[begin], starts[end]), slice(begin, end)
    of_atoms = ("numbers", "positions", *PER_ATOM)
    of_rows = ("cell", "pbc", "charge", *(name for name in LABELS if name not in PER_ATOM))
    block = {name: file[name][atoms] for name in of_atoms if name in file}
    block |= {name: file[name][rows] for name in of_rows if name in file}
    for name in LABELS:
        if name in file:
            flags = f"labelled_{name}"
            block[flags] = file[flags][rows] if flags in file else np.ones(end - begin, bool)
    return block


def _atoms(block: dict[str, np.ndarray], row: int, starts: np.ndarray) -> Atoms:
    own = slice(starts[row], starts[row + 1])
    atoms = Atoms(block["numbers"][own], block["positions"][own], cell=block["cell"][row], pbc=block["pbc"][row])
    if "charge" in block:
        atoms.info["charge"] = float(block["charge"][row])
    labels = {
        name: block[name][own if name in PER_ATOM else row]
        for name in LABELS
        if name in block and block[f"labelled_{name}"][row]
    }
    attach_labels(atoms, labels)
    return atoms


def _h5py(path: Path) -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError:
        raise DataError(f"{path}: HDF5 needs the package h5py, which is not installed; pip install h5py") from None
