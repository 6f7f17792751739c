"""What Gamma alone costs: energies of perfect GaN by the shape of the cell, and labels in a cell against a double one.

    pip install 'lrpot[xtb]'
    OMP_NUM_THREADS=1 python datasets/gan/label_error.py shapes      energies of perfect crystals, ten minutes
    OMP_NUM_THREADS=1 python datasets/gan/label_error.py doubled     energies and forces of the same atoms, as long

Doubled along one vector, a cell holds the same crystal, and a converged method would give the same energy per atom,
forces and charges. What differs is what no model that sees the surroundings of an atom can learn from either.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from ase import Atoms

from lrpot.data.builders.engine import find_engine
from lrpot.data.builders.gan_cells import PHASES, Phase

CUBIC = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))  # the cube of zincblende, in primitive vectors


def blocks(*shape: int, of: tuple[tuple[int, int, int], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))) -> np.ndarray:
    return np.diag(shape) @ np.array(of)


SHAPES = {
    "wurtzite": {
        "2 x 2 x 1": blocks(2, 2, 1),
        "2 x 2 x 2": blocks(2, 2, 2),
        "3 x 3 x 1": blocks(3, 3, 1),
        "3 x 2 x 2": blocks(3, 2, 2),
        "3 x 3 x 2": blocks(3, 3, 2),
        "compact": np.array([[-1, -2, -1], [1, 2, -1], [2, 0, -1]]),
        "compact, the set's": np.array(PHASES["wurtzite"].vectors),
        "compact, larger": np.array([[-1, -3, -1], [1, 3, -1], [3, 1, -1]]),
        "4 x 4 x 2": blocks(4, 4, 2),
    },
    "zincblende": {
        "2 x 2 x 2": blocks(2, 2, 2),
        "cubes, 2 x 2 x 1": blocks(2, 2, 1, of=CUBIC),
        "compact": np.array([[1, 1, 1], [-1, 3, -1], [-1, -1, 3]]),
        "compact, the set's": np.array(PHASES["zincblende"].vectors),
        "3 x 3 x 3": blocks(3, 3, 3),
        "cubes, 2 x 2 x 2": blocks(2, 2, 2, of=CUBIC),
        "4 x 4 x 4": blocks(4, 4, 4),
    },
}


def shapes() -> None:
    engine = find_engine(None)
    print("phase | cell | atoms | nearest image (A) | E (eV/atom)")
    for name, cells in SHAPES.items():
        for label, vectors in cells.items():
            phase = PHASES[name]
            atoms = Phase(phase.ase_name, tuple(map(tuple, vectors)), phase.voids, phase.lattice, 0.0).crystal()
            image = nearest_image(atoms)
            energy = engine.label(atoms)["energy"] / len(atoms)
            print(f"{name} | {label} | {len(atoms)} | {image:.1f} | {energy:.4f}", flush=True)


def nearest_image(atoms: Atoms) -> float:
    """Distance between an atom and its nearest image, A."""
    numbers = np.array([n for n in np.ndindex(7, 7, 7) if n != (3, 3, 3)]) - 3
    return float(np.linalg.norm(numbers @ atoms.cell.array, axis=1).min())


def cases(crystal: Atoms) -> Iterator[tuple[str, Atoms]]:
    yield "perfect", crystal
    atoms = crystal.copy()
    atoms.rattle(0.08, seed=1)
    yield "displaced by 0.08 A", atoms
    atoms = crystal.copy()
    atoms.set_cell(1.02 * crystal.cell.array, scale_atoms=True)
    yield "all lengths +2 %", atoms
    for species in ("N", "Ga"):
        atoms = crystal.copy()
        atoms.rattle(0.04, seed=3)
        del atoms[int(np.flatnonzero(atoms.symbols == species)[0])]
        yield f"displaced by 0.04 A, V_{species}", atoms


def doubled() -> None:
    engine = find_engine(None)
    print("phase | case | difference of E (meV/atom), that of the perfect crystal off | of F, mean (meV/A) | largest")
    for name, phase in PHASES.items():
        perfect = 0.0
        for case, atoms in cases(phase.crystal()):
            one, two = engine.label(atoms), engine.label(atoms * (1, 1, 2))
            energy = 1e3 * (two["energy"] / 2 - one["energy"]) / len(atoms)
            perfect = energy if case == "perfect" else perfect
            forces = 1e3 * np.abs(two["forces"].reshape(2, -1, 3) - one["forces"])
            print(f"{name} | {case} | {energy - perfect:+.2f} | {forces.mean():.0f} | {forces.max():.0f}", flush=True)


if __name__ == "__main__":
    {"shapes": shapes, "doubled": doubled}[sys.argv[1]]()
