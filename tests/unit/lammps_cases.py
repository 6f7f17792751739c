"""Simulations that one and several processes must agree on, and the job that runs them in LAMMPS.

mpiexec -n 2 python -m tests.unit.lammps_cases FOLDER NAME ...    writes FOLDER/NAME.npz or, if refused, NAME.txt
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from lrpot.ensemble import Ensemble
from lrpot.errors import LrpotError
from lrpot.interfaces.lammps import LammpsModel, open_lammps
from lrpot.model_file import load
from lrpot.potential import Potential
from tests.conftest import _make_potential as make_potential
from tests.helpers_cli import small_model

SPECIES = ("Na", "Cl")
MASSES = (22.98976928, 35.45)
BAR = 1.602176634e6  # per eV/A^3
AMU_K = 0.8314462618  # k_B in amu (A/ps)^2 / K
NETWORK = {"features": 8, "interactions": 2, "cutoff": 3.5}


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        model, atoms: how to make them.
        run: LAMMPS's commands.
        settings: of LammpsModel.
    """

    model: Callable[[], Potential]
    atoms: Callable[[], Atoms]
    run: tuple[str, ...] = ("run 0",)
    settings: tuple[tuple[str, Any], ...] = ()


def salt(n: int = 2) -> Atoms:
    """8 n^3 atoms, moved from their places, at rest."""
    atoms = bulk("NaCl", "rocksalt", a=5.62, cubic=True) * (n, n, n)
    atoms.rattle(0.1, seed=1)
    atoms.wrap()
    atoms.positions = np.round(atoms.positions, 6)  # as they are in a file
    return atoms


def heat(atoms: Atoms, temperature: float) -> None:
    """Velocities, A/ps, to atoms without."""
    speed = np.sqrt(AMU_K * temperature / np.where(atoms.numbers == 11, *MASSES))
    velocities = np.random.default_rng(2).normal(size=(len(atoms), 3)) * speed[:, None]
    atoms.arrays["velocities"] = velocities - velocities.mean(axis=0)


def skewed_with_vacancy() -> Atoms:
    """63 hot atoms, charged, in a cell without right angles: long enough that no process sees all of it, and in the
    other directions shorter than the halo is wide."""
    corners = np.stack(np.meshgrid(range(16), range(2), range(2), indexing="ij"), axis=-1).reshape(-1, 3)
    moves = np.random.default_rng(4).uniform(-0.08, 0.08, corners.shape)
    symbols = ["NaCl"[2 * n : 2 * n + 2] for n in corners.sum(axis=1) % 2]
    atoms = Atoms(symbols, cell=[[44.0, 0.0, 0.0], [1.3, 5.7, 0.0], [-0.9, 0.7, 5.9]], pbc=True)
    atoms.set_scaled_positions((corners + 0.5 + moves) / [16, 2, 2])
    heat(atoms, 3000.0)
    del atoms[5]
    return atoms


def half_empty() -> Atoms:
    """16 atoms in one half of a box, so that the process of the other half has none."""
    atoms = bulk("NaCl", "rocksalt", a=5.62, cubic=True) * (2, 1, 1)
    atoms.rattle(0.1, seed=3)
    atoms.wrap()
    atoms.set_cell([30.0, 5.62, 5.62])
    return atoms


def overlapping() -> Atoms:
    atoms = salt()
    atoms.positions[7] = atoms.positions[20] + [0.05, 0.0, 0.0]
    return atoms


def with_engine(engine: str) -> Potential:
    model = small_model()
    model.long.reciprocal.engine = engine
    return model


def backbone(**settings: object) -> Potential:
    return make_potential(backbone={"features": 8, "interactions": 1, "cutoff": 3.5, **settings})


NPT = ("fix move all npt temp 3000 3000 0.05 aniso 0 0 0.5", "run 20")
CASES = {
    "nacl": Case(
        lambda: load("nacl.pt"),
        salt,
        ("fix move all nve", "run 100"),
        (("virial", False),),
    ),
    "skewed": Case(
        lambda: make_potential(charges="environment", channels=2, backbone=NETWORK), skewed_with_vacancy, NPT
    ),
    "nufft": Case(lambda: with_engine("nufft"), salt),
    "free": Case(lambda: make_potential("free", backbone=NETWORK), lambda: salt(1)),
    "short": Case(lambda: make_potential("none", backbone=NETWORK), lambda: salt(1)),
    "dimenet": Case(lambda: backbone(name="dimenet++"), lambda: salt(1)),
    "equivariant": Case(lambda: backbone(name="equivariant", interactions=2), lambda: salt(1)),
    "ensemble": Case(lambda: Ensemble([small_model(seed=0), small_model(seed=1)]), lambda: salt(1)),
    "empty": Case(small_model, half_empty, ("fix move all nve", "run 2")),
    "overlap": Case(small_model, overlapping),
    "equilibration": Case(lambda: make_potential(charges="equilibration", backbone=NETWORK), lambda: salt(1)),
    "shift": Case(lambda: small_model(neutrality="shift"), lambda: salt(1)),
}


def simulate(case: Case) -> dict[str, np.ndarray]:
    """What LAMMPS has at the end: cell, positions, forces, energy, stress without what velocities add to it, and the
    number of atoms that the first process saw."""
    atoms = case.atoms()
    lmp = open_lammps("-screen", "none", "-log", "none")
    try:
        fill(lmp, atoms)
        model = LammpsModel(lmp, case.model(), species=SPECIES, **dict(case.settings))
        for line in case.run:
            model.command(line)
        low, high, xy, yz, xz, _, _ = lmp.extract_box()
        x, y, z = np.subtract(high, low)
        pressure = [lmp.get_thermo(name) for name in ("pxx", "pyy", "pzz", "pyz", "pxz", "pxy")]
        return {
            "cell": np.array([[x, 0, 0], [xy, y, 0], [xz, yz, z]]),
            "positions": gathered(lmp, "x"),
            "forces": gathered(lmp, "f"),
            "energy": np.array(lmp.get_thermo("pe")),
            "stress": -np.array(pressure) / BAR,
            "seen": np.array(len(model.structure.numbers)),
        }
    finally:
        lmp.close()


def fill(lmp: Any, atoms: Atoms) -> None:
    (x, _, _), (xy, y, _), (xz, yz, z) = atoms.cell.array.tolist()
    lmp.commands_string(
        f"""
        units metal
        atom_modify map array
        box tilt large
        region box prism 0 {x!r} 0 {y!r} 0 {z!r} {xy!r} {xz!r} {yz!r}
        create_box 2 box
        mass 1 {MASSES[0]}
        mass 2 {MASSES[1]}
        timestep 0.001
        compute virial all pressure NULL virial
        thermo_modify press virial
        """
    )
    types = [SPECIES.index(symbol) + 1 for symbol in atoms.symbols]
    velocities = atoms.arrays.get("velocities", np.zeros((len(atoms), 3)))
    numbers = list(range(1, len(atoms) + 1))
    lmp.create_atoms(len(atoms), numbers, types, atoms.positions.ravel().tolist(), velocities.ravel().tolist())


def gathered(lmp: Any, name: str) -> np.ndarray:
    return np.array(lmp.gather_atoms(name, 1, 3)).reshape(-1, 3)


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for name in sys.argv[2:]:
        try:
            found = simulate(CASES[name])
        except LrpotError as error:
            (out / f"{name}.txt").write_text(f"{type(error).__name__}: {error}")
        else:
            np.savez(out / f"{name}.npz", **found)


if __name__ == "__main__":
    main()
