"""Engines for tests of the GaN builder, quick and of no physics, as `--calculator` names them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.calculators.lj import LennardJones


class _Odd(LennardJones):
    """Cannot treat an odd number of atoms, as a program without open shells."""

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        if atoms is not None and len(atoms) % 2:
            raise CalculationFailed(f"{len(atoms)} atoms:\nnot converged")
        super().calculate(atoms, properties, system_changes)


class _Constant(Calculator):
    """The same force on all atoms."""

    implemented_properties = ("energy", "forces", "charges")
    force = 0.0

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        count = len(self.atoms)
        self.results = {"energy": 1.0, "forces": np.full((count, 3), self.force), "charges": np.arange(count) / 7}


def odd() -> Calculator:
    return _Odd()


def charges() -> Calculator:
    return _Constant()


def absurd() -> Calculator:
    calculator = _Constant()
    calculator.force = 1e3
    return calculator


def nan() -> Calculator:
    calculator = _Constant()
    calculator.force = float("nan")
    return calculator


class _EnergyOnly(_Constant):
    implemented_properties = ("energy",)


def energy_only() -> Calculator:
    return _EnergyOnly()


def broken() -> Calculator:
    raise RuntimeError("no licence")
