"""Cells of any size for benchmarks: rattled supercells of ordinary solids, and atoms at random in triclinic cells."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.build import bulk, make_supercell

SOLIDS: tuple[Callable[[], Atoms], ...] = (
    lambda: bulk("NaCl", "rocksalt", a=5.64),
    lambda: bulk("ZnS", "zincblende", a=5.41),
    lambda: bulk("CsCl", "cesiumchloride", a=4.12),
    lambda: bulk("Al", "fcc", a=4.05),
)
VOLUME_PER_ATOM, NEAREST = 20.0, 2.0  # A^3, A; of random cells


def supercell(n_atoms: int, seed: int) -> Atoms:
    """At most so many atoms, and nearly so many, of an ordinary solid, in a sheared cell, rattled."""
    rng = np.random.default_rng([n_atoms, seed])
    unit = SOLIDS[seed % len(SOLIDS)]()
    length = (n_atoms / len(unit)) ** (1.0 / 3.0)
    while True:
        repeats = np.diag(np.rint(length * rng.uniform(0.8, 1.25, 3)).astype(int)) + rng.integers(-1, 2, (3, 3))
        if 0.9 * n_atoms <= len(unit) * abs(np.linalg.det(repeats)) <= n_atoms:
            break
    atoms = make_supercell(unit, repeats)
    atoms.rattle(0.1, rng=rng)
    return atoms


def random_cell(n_atoms: int, seed: int) -> Atoms:
    """Atoms of two elements anywhere in a triclinic cell, but not too close."""
    rng = np.random.default_rng([n_atoms, seed])
    cell = np.diag(rng.uniform(0.8, 1.25, 3)) + np.tril(rng.uniform(-0.4, 0.4, (3, 3)), -1)
    cell *= (n_atoms * VOLUME_PER_ATOM / np.linalg.det(cell)) ** (1.0 / 3.0)
    images = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ cell
    positions = np.empty((0, 3))
    while len(positions) < n_atoms:
        new = rng.random(3) @ cell
        if (np.linalg.norm(new + images[:, None] - positions, axis=2) > NEAREST).all():
            positions = np.vstack([positions, new])
    return Atoms(rng.choice([11, 17], n_atoms), positions, cell=cell, pbc=True)
