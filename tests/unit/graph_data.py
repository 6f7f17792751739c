"""Rows for tests of the data pipeline: sizes, periodicities and labels of many kinds; no potential is needed."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from lrpot.data.readers import read_rows, to_structures
from lrpot.structure import Structure

CUTOFF = 4.0  # A


def varied_rows(n: int, *, seed: int = 0) -> list[Atoms]:
    """Rattled crystals of 2 to 16 atoms of two compounds, slabs among them; some lack forces, some have a stress or
    labels of charges."""
    rng, of_charges = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    rows = []
    for number in range(n):
        name, a = (("NaCl", 5.6), ("KCl", 6.3))[number % 2]
        atoms = bulk(name, "rocksalt", a=a).repeat((1 + number % 2, 1 + number % 3, 1 + number // 3 % 2))
        atoms.positions += 0.1 * rng.normal(size=(len(atoms), 3)) + 3.0 * a * rng.integers(-2, 3)
        results = {"energy": float(rng.normal())}
        if number % 5:
            results["forces"] = rng.normal(size=(len(atoms), 3))
        if number % 7 == 3:
            atoms.pbc = [True, True, False]
        elif number % 3 == 0:
            results["stress"] = rng.normal(size=6)
        if number % 4 == 1:
            atoms.info["charge"] = 1.0
        if number % 4 == 0:
            results["charges"] = of_charges.normal(size=len(atoms))
        if number % 5 == 3:
            results["dipole"] = of_charges.normal(size=3)
        if number % 3 == 1:
            atoms.arrays["born_charges"] = of_charges.normal(size=(len(atoms), 9))
            if number % 2:
                atoms.info["dielectric"] = 3.0 * np.eye(3) + of_charges.normal(size=(3, 3))
        atoms.calc = SinglePointCalculator(atoms, **results)
        rows.append(atoms)
    return rows


def write_varied(path: Path, n: int, *, seed: int = 0) -> Path:
    ase.io.write(path, varied_rows(n, seed=seed), format="extxyz")
    return path


def read_slowly(*paths: Path) -> list[Structure]:
    """The oracle: every row through ASE and vesin, one after the other, in memory."""
    return [structure for path in paths for structure in to_structures(read_rows(path), CUTOFF)]


def assert_same_structure(a: Structure, b: Structure, *, but: tuple[str, ...] = ()) -> None:
    """The same fields, types and bits."""
    left, right = a.to_dict(), b.to_dict()
    assert left.keys() - set(but) == right.keys() - set(but)
    for name, value in left.items():
        if name in but:
            continue
        if isinstance(value, torch.Tensor):
            assert (value.dtype, value.shape) == (right[name].dtype, right[name].shape), name
            # components of a dipole that are not defined are nan, which equals nothing
            assert value.numpy().tobytes() == right[name].numpy().tobytes(), name
        else:
            assert value == right[name], name
