"""Equation of state: energy against volume, and the Birch-Murnaghan curve through it.

In x = V^(-2/3) that curve is a polynomial of the third degree, so the best one is found by linear least squares.
Source: F. Birch, Phys. Rev. 71, 809 (1947).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from ase import Atoms

from lrpot.errors import ConfigError, StructureError, WorkflowError
from lrpot.units import GPA
from lrpot.workflows.relax import Progress, relax_fully

# A polynomial of four coefficients says nothing of fewer points.
FEWEST_POINTS = 5

Volume = TypeVar("Volume", float, np.ndarray)


@dataclass(frozen=True)
class BirchMurnaghan:
    """The curve.

    Attributes:
        v0: A^3, volume at rest.
        e0: eV, energy there.
        b0: GPa, bulk modulus.
        b0_prime: its derivative by pressure.
    """

    v0: float
    e0: float
    b0: float
    b0_prime: float

    def energy(self, volume: Volume) -> Volume:
        """eV, at volumes in A^3."""
        x = (self.v0 / volume) ** (2 / 3)
        shape = (x - 1.0) ** 3 * self.b0_prime + (x - 1.0) ** 2 * (6.0 - 4.0 * x)
        return self.e0 + 9.0 / 16.0 * self.v0 * self.b0 / GPA * shape

    def pressure(self, volume: Volume) -> Volume:
        """GPa, at volumes in A^3."""
        x = (self.v0 / volume) ** (1 / 3)
        return 1.5 * self.b0 * (x**7 - x**5) * (1.0 + 0.75 * (self.b0_prime - 4.0) * (x**2 - 1.0))


@dataclass(frozen=True)
class EquationOfState:
    """What was computed, and the curve through it.

    Attributes:
        n_atoms: of the cell.
        volume: A^3.
        energy: eV.
        pressure: GPa, by the stress.
        curve: fitted to the energies.
        rms: eV/atom, how far they are from it.
    """

    n_atoms: int
    volume: list[float]
    energy: list[float]
    pressure: list[float]
    curve: BirchMurnaghan
    rms: float

    def record(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return asdict(self)


def equation_of_state(
    atoms: Atoms,
    *,
    strain: float = 0.06,
    points: int = 9,
    shape: bool = True,
    fmax: float = 0.002,
    progress: Progress | None = None,
) -> EquationOfState:
    """Energies of a crystal at volumes around its own, each with its atoms at rest.

    Args:
        atoms: with a calculator, near its volume at rest; not changed.
        strain: the volumes go from 1 - strain to 1 + strain of that of the atoms.
        points: how many.
        shape: whether the shape of the cell comes to rest too, at constant volume.
        fmax: eV/A, the largest force left.
        progress: called with the points done and a line on the last.
    Raises:
        ConfigError: a number out of range. StructureError: not periodic in three directions.
        WorkflowError: atoms that do not come to rest, or no minimum among these volumes.
    """
    check_settings(strain=strain, points=points)
    if not atoms.pbc.all():
        raise StructureError(
            f"{atoms.get_chemical_formula()} is not periodic in all three directions, so it has no volume; set pbc"
        )
    volumes, energies, pressures = [], [], []
    for number, factor in enumerate(np.linspace(1.0 - strain, 1.0 + strain, points), start=1):
        scaled = atoms.copy()
        scaled.calc = atoms.calc
        scaled.set_cell(atoms.cell * factor ** (1 / 3), scale_atoms=True)
        cell = "shape" if shape else "fixed"
        relaxed = relax_fully(scaled, f"the crystal at {factor:.3g} of its volume", cell=cell, fmax=fmax, symmetry=True)
        volumes.append(float(relaxed.get_volume()))
        energies.append(float(relaxed.get_potential_energy()))
        pressures.append(float(-relaxed.get_stress()[:3].mean() * GPA))
        if progress is not None:
            progress(number, f"{volumes[-1]:.2f} A^3, {energies[-1]:.6f} eV")
    curve = fit_birch_murnaghan(volumes, energies)
    off = curve.energy(np.array(volumes)) - energies
    return EquationOfState(
        len(atoms), volumes, energies, pressures, curve, float(np.sqrt(np.mean(off**2)) / len(atoms))
    )


def check_settings(*, strain: float, points: int) -> None:
    """Find out before any work whether `equation_of_state` takes these.

    Raises:
        ConfigError: a number out of range.
    """
    if not 0 < strain < 0.5:
        raise ConfigError(f"strain = {strain:g}: volumes must change by more than 0 and less than 0.5")
    if points < FEWEST_POINTS:
        raise ConfigError(f"points = {points}: the curve has four parameters; take {FEWEST_POINTS} points or more")


def fit_birch_murnaghan(volume: Sequence[float], energy: Sequence[float]) -> BirchMurnaghan:
    """The best curve by linear least squares.

    Args:
        volume: A^3, at least `FEWEST_POINTS`. energy: eV, at these.
    Raises:
        WorkflowError: it has no minimum between the smallest and the largest volume.
    """
    v, e = np.asarray(volume, dtype=float), np.asarray(energy, dtype=float)
    if len(v) < FEWEST_POINTS:
        raise WorkflowError(f"{len(v)} volumes are not enough for an equation of state; {FEWEST_POINTS} are")
    scale = v.mean() ** (-2 / 3)  # near 1, polynomials are fitted without loss of digits
    x = v ** (-2 / 3) / scale
    polynomial = np.polynomial.Polynomial.fit(x, e - e.mean(), 3).convert()
    slope, bend = polynomial.deriv(), polynomial.deriv(2)
    rest = [r.real for r in slope.roots() if abs(r.imag) < 1e-12 and x.min() <= r.real <= x.max() and bend(r.real) > 0]
    if not rest:
        downhill = "larger" if e[v.argmax()] < e[v.argmin()] else "smaller"
        raise WorkflowError(
            f"the energy has no minimum between {v.min():.2f} and {v.max():.2f} A^3 (it falls towards {downhill} "
            "volumes); relax the cell first with lrpot relax --cell full, or widen --strain"
        )
    x0, cubic = float(rest[0]), float(polynomial.deriv(3)(rest[0])) / 6.0
    v0 = float((x0 * scale) ** -1.5)
    # B = V d2E/dV2, where dE/dx = 0 and dx/dV = -2/3 x/V
    b0 = float(4.0 / 9.0 * bend(x0) * x0**2 / v0)
    b0_prime = 4.0 + 16.0 * cubic * x0**3 / (9.0 * v0 * b0)
    return BirchMurnaghan(v0, float(polynomial(x0) + e.mean()), b0 * GPA, b0_prime)
