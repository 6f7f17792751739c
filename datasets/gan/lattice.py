"""What `lrpot/data/builders/gan_cells.py` ships: lattices at the lowest energy of xTB, and errors of the cells.

    pip install 'lrpot[xtb]'
    OMP_NUM_THREADS=1 python datasets/gan/lattice.py

For each phase a, c and u are relaxed by BFGS in the cell of the set. Its error is the energy per atom there less that
in 128 atoms, where the result depends on the shape by some 5 meV/atom only. It takes about ten minutes.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from scipy.optimize import minimize

from lrpot.data.builders.engine import Engine, find_engine
from lrpot.data.builders.gan_cells import PHASES, Lattice, Phase

# Cells of 128 atoms, in vectors of the primitive cell.
LARGE = {"wurtzite": ((4, 0, 0), (0, 4, 0), (0, 0, 2)), "zincblende": ((4, 0, 0), (0, 4, 0), (0, 0, 4))}
# At which a lattice is relaxed: eV/atom per A of a and c, and per unit of u.
GRADIENT = 2e-4
# Inverse curvatures by a, c and u, about, so that the first step is a small one: A^2 atom/eV, and atom/eV.
STEPS = (0.2, 0.5, 0.0035)


def slopes(atoms: Atoms, stress: np.ndarray, forces: np.ndarray, lattice: Lattice) -> list[float]:
    """Derivatives of the energy, eV/atom, by a (A) alone for zincblende, by a, c (A) and u for wurtzite."""
    density = atoms.get_volume() / len(atoms)
    if lattice.c is None:
        return [density * stress[:3].sum() / lattice.a]
    # the N of `ase.build.bulk` stand at (1/2 - u) c and (1 - u) c
    by_u = lattice.c * forces[atoms.symbols == "N", 2].sum() / len(atoms)
    return [density * stress[:2].sum() / lattice.a, density * stress[2] / lattice.c, by_u]


def relaxed(engine: Engine, phase: Phase) -> Lattice:
    def energy(parameters: np.ndarray) -> tuple[float, list[float]]:
        lattice = Lattice(*map(float, parameters))
        atoms = phase.crystal(lattice)
        labels = engine.label(atoms)
        print(lattice, f"{labels['energy'] / len(atoms):.5f} eV/atom", flush=True)
        return labels["energy"] / len(atoms), slopes(atoms, labels["stress"], labels["forces"], lattice)

    start = [value for value in (phase.lattice.a, phase.lattice.c, phase.lattice.u) if value is not None]
    options = {"gtol": GRADIENT, "hess_inv0": np.diag(STEPS[: len(start)])}
    found = minimize(energy, start, jac=True, method="BFGS", options=options)
    return Lattice(*map(float, found.x))


def main() -> None:
    engine = find_engine(None)
    for name, phase in PHASES.items():
        lattice = relaxed(engine, phase)
        per_atom = []
        for vectors in (phase.vectors, LARGE[name]):
            atoms = Phase(phase.ase_name, vectors, phase.voids, lattice, 0.0).crystal()
            per_atom.append(engine.label(atoms)["energy"] / len(atoms))
            print(f"{name}, {len(atoms)} atoms: {per_atom[-1]:.5f} eV/atom", flush=True)
        print(f"{name}: {lattice}, error {per_atom[0] - per_atom[1]:.5f} eV/atom", flush=True)


if __name__ == "__main__":
    main()
