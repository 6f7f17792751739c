"""Labelled rows that are quick to compute and to fit: charges of 0.7 e and a short-ranged repulsion."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from lrpot.build import build_potential
from lrpot.config import make_config
from lrpot.data.readers import to_structure

CHARGE = 0.7


# A network and a fit as small as they can be.
SMALL: dict[str, Any] = {
    "model.backbone.features": 8,
    "model.backbone.interactions": 1,
    "model.backbone.radial_basis": 6,
    "model.backbone.cutoff": 4.0,
    "model.kernel.tolerance": 1e-5,
    "model.kernel.hidden": 8,
    "training.max_epochs": 2,
    "training.batch_size": 4,
}


def ionic_rows(n: int, *, stress: bool = False, seed: int = 0) -> list[Atoms]:
    """Rattled and strained rock salt of 16 atoms; energies (eV), forces (eV/A) and, if asked for, stress (eV/A^3)."""
    rng = np.random.default_rng(seed)
    coulomb = build_potential(make_config(None, {"model.backbone.cutoff": 4.0}).model, [11, 17])
    assert coulomb.long is not None
    coulomb.long.charges.set_values({11: CHARGE, 17: -CHARGE})
    rows = []
    for _ in range(n):
        atoms = bulk("NaCl", "rocksalt", a=5.6).repeat(2)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.01 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += 0.08 * rng.normal(size=(len(atoms), 3))
        output = coulomb(to_structure(atoms, 4.0), stress=True, parts={"long"})
        energy, forces, pair_stress = _repulsion(atoms)
        results = {
            "energy": energy + output["energy"].item(),
            "forces": forces + output["forces"].numpy(),
        }
        if stress:
            full = pair_stress + output["stress"][0].numpy()
            results["stress"] = full[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        atoms.calc = SinglePointCalculator(atoms, **results)
        rows.append(atoms)
    return rows


def write_ionic_rows(path: Path, n: int, **kwargs: bool | int) -> Path:
    ase.io.write(path, ionic_rows(n, **kwargs), format="extxyz")  # type: ignore[arg-type]
    return path


def metrics(run: Path) -> list[dict[str, str]]:
    """metrics.csv of a run without the seconds, which no two runs share."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    for record in records:
        assert float(record.pop("seconds")) >= 0.0
    return records


def no_pictures() -> Iterator[None]:
    """The body of a fixture: fits without pictures, which take as long as a small fit."""
    from lrpot import plots

    with pytest.MonkeyPatch.context() as patch:
        for name in ("parity", "learning_curves", "kernel"):
            patch.setattr(plots, name, lambda _, path: path)
        yield


def _repulsion(atoms: Atoms, b: float = 400.0, rho: float = 0.3) -> tuple[float, np.ndarray, np.ndarray]:
    """b exp(-r / rho) between all pairs within 4 A, where it is below 1 meV."""
    structure = to_structure(atoms.copy(), 4.0)
    from lrpot.structure import edge_vectors

    vectors = edge_vectors(structure).numpy()
    centre = structure.edge_index[1].numpy()
    r = np.linalg.norm(vectors, axis=1)
    energy = b * np.exp(-r / rho)
    along = -energy / rho / r
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, centre, along[:, None] * vectors)
    stress = 0.5 * np.einsum("e,ea,eb->ab", along, vectors, vectors) / atoms.get_volume()
    return 0.5 * float(energy.sum()), forces, stress
