"""Labels that ASE's atoms carry: of the energy, of the charges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from lrpot.errors import DataError

# Labels with a row for each atom.
PER_ATOM = ("charges", "born_charges")


def labels_of(atoms: Atoms) -> dict[str, np.ndarray]:
    """energy (eV), forces (N, 3) (eV/A) and stress (6,) (eV/A^3, Voigt order), where the atoms carry them.

    Labels are taken from the attached calculator's results (ASE's readers put them there).

    Raises:
        DataError: a label that is not finite or has the wrong shape.
    """
    labels = {}
    results = {} if atoms.calc is None else atoms.calc.results
    expected = {"energy": (), "forces": (len(atoms), 3), "stress": (6,)}
    for name, shape in expected.items():
        if results.get(name) is None:
            continue
        value = _numbers(results[name], name)
        if name == "stress" and value.shape in ((3, 3), (9,)):
            value = value.reshape(3, 3)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        if value.shape != shape:
            raise DataError(f"{name} has shape {value.shape}, expected {shape}; correct the label")
        if not np.isfinite(value).all():
            what = f"the force on atom {int(np.argwhere(~np.isfinite(value))[0][0])}" if name == "forces" else name
            raise DataError(f"{what} is not a finite number; correct it or remove the row")
        labels[name] = value
    return labels


def charge_labels_of(atoms: Atoms, total: float) -> dict[str, np.ndarray]:
    """charges (N,), dipole (3,) and born_charges (N, 3, 3), where the atoms carry them, as `Structure` holds them.

    `charges` (e) and `dipole` (e A) are ASE's names: in the results of a calculator, which is where its readers put a
    column or an entry of that name, else in `arrays` and `info`. `arrays["initial_charges"]` is what a calculation
    started from and no label. `arrays["born_charges"]` (N, 3, 3) or (N, 9) is dP_a/dr_b, a first, in e; with
    `info["dielectric"]` (3, 3) it is divided by the square root of a third of the trace, which is what ions far apart
    feel of it. The acoustic sum rule is imposed: what the tensors add up to beyond the total charge is taken off
    evenly.

    Args:
        atoms: the crystal.
        total: charge, e.
    Raises:
        DataError: a label that is not finite or has the wrong shape, or an impossible dielectric constant.
    """
    labels = _charge_labels_as_given(atoms)
    if "dipole" in labels:
        directions = open_directions(atoms.cell.array, atoms.pbc)
        # the dipole of what carries a charge depends on where one measures from
        defined = directions.any(axis=1) & (total == 0.0)
        labels["dipole"] = np.where(defined, directions @ labels["dipole"], np.nan)
    if "born_charges" in labels:
        born = labels["born_charges"]
        born = born - (born.sum(axis=0) - total * np.eye(3)) / len(atoms)
        labels["born_charges"] = born / np.sqrt(_dielectric_constant(labels.pop("dielectric", None)))
    return labels


def targets_of(atoms: Atoms, names: Sequence[str]) -> np.ndarray:
    """(T,) the properties of these names in `info`, or among the results of a calculator; nan where there is none.

    Raises:
        DataError: one that is not a finite number.
    """
    known = dict(atoms.info.get("key_value_pairs", {})) | atoms.info  # ASE's data bases keep their columns apart
    if atoms.calc is not None:
        known |= atoms.calc.results
    found = np.full(len(names), np.nan)
    for place, name in enumerate(names):
        if known.get(name) is None:
            continue
        value = _numbers(known[name], name)
        if value.size != 1 or not np.isfinite(value).all():
            raise DataError(f"{name} = {str(known[name])[:40]} is not one finite number; correct it or remove the row")
        found[place] = value.item()
    return found


def labels_as_given(atoms: Atoms) -> dict[str, np.ndarray]:
    """All labels before anything is made of them, for files that keep them: those of `labels_of`; charges (N,), e;
    dipole (3,), e A, along x, y, z; born_charges (N, 3, 3), e, and with them dielectric (3, 3).

    Raises:
        DataError: as `labels_of` and `charge_labels_of`.
    """
    labels = labels_of(atoms) | _charge_labels_as_given(atoms)
    _dielectric_constant(labels.get("dielectric"))
    return labels


def attach_labels(atoms: Atoms, labels: dict[str, np.ndarray]) -> None:
    """Give atoms without labels those that `labels_as_given` is to find."""
    results = dict(labels)
    if "born_charges" in results:
        atoms.arrays["born_charges"] = results.pop("born_charges")
    if "dielectric" in results:
        atoms.info["dielectric"] = results.pop("dielectric")
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)


def open_directions(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The orthonormal directions along which a dipole is defined, because nothing repeats along them.

    Args:
        cell: (3, 3), A, rows are lattice vectors. pbc: (3,) bool.
    Returns:
        (3, 3), rows: x, y, z of a molecule; the normal of a slab, then zeros; zeros for a crystal or a chain.
    """
    directions = np.zeros((3, 3))
    if not pbc.any():
        return np.eye(3)
    if pbc.sum() == 2:
        axis = int(np.flatnonzero(~pbc)[0])
        normal = np.cross(cell[(axis + 1) % 3], cell[(axis + 2) % 3])
        length = np.linalg.norm(normal)
        # vectors that span nothing are refused, with reasons, where edges are sought
        directions[0] = normal / length if length > 0 else 0.0
    return directions


def total_charge(atoms: Atoms) -> float:
    """`atoms.info["charge"]`, e; zero without it.

    Raises:
        DataError: it is not one finite number.
    """
    value = _numbers(atoms.info.get("charge", 0.0), "charge")
    if value.size != 1 or not np.isfinite(value).all():
        raise DataError(f"charge = {str(value.tolist())[:40]} is not one finite number; give the total charge in e")
    return float(value.item())


def _charge_labels_as_given(atoms: Atoms) -> dict[str, np.ndarray]:
    results = {} if atoms.calc is None else atoms.calc.results
    n = len(atoms)
    labels: dict[str, np.ndarray] = {}
    charges = _first(results.get("charges"), atoms.arrays.get("charges"))
    if charges is not None:
        labels["charges"] = _finite(charges, "charges", (n,))
    dipole = _first(results.get("dipole"), atoms.info.get("dipole"))
    if dipole is not None:
        labels["dipole"] = _finite(dipole, "dipole", (3,))
    if "born_charges" in atoms.arrays:
        labels["born_charges"] = _finite(atoms.arrays["born_charges"], "born_charges", (n, 3, 3))
        if atoms.info.get("dielectric") is not None:
            labels["dielectric"] = _finite(atoms.info["dielectric"], "dielectric", (3, 3))
    return labels


def _dielectric_constant(tensor: np.ndarray | None) -> float:
    """tr eps / 3, or 1 without one."""
    if tensor is None:
        return 1.0
    constant = float(np.trace(tensor)) / 3.0
    if constant < 1.0:
        raise DataError(f"dielectric has a third of the trace of {constant:g}, less than vacuum; correct it")
    return constant


def _finite(value: object, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a label in this shape; tensors may come as rows of nine."""
    array = _numbers(value, name)
    flat = (*shape[:-2], 9) if shape[-2:] == (3, 3) else shape
    if array.shape not in (shape, flat):
        raise DataError(f"{name} has shape {array.shape}, expected {shape}; correct the label")
    if not np.isfinite(array).all():
        where = f" of atom {int(np.argwhere(~np.isfinite(array))[0][0])}" if name in PER_ATOM else ""
        raise DataError(f"{name}{where} holds something that is not a finite number; correct it or remove the row")
    return array.reshape(shape)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _numbers(value: object, name: str) -> np.ndarray:
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise DataError(f"{name} = {str(value)[:40]!r} is not a number; correct it or remove the row") from None
