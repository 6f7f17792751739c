"""Relaxation: atoms, and if asked for the cell, go to where forces and stress vanish."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import spglib
from ase import Atoms
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS

from lrpot.errors import ConfigError, StructureError, WorkflowError
from lrpot.units import GPA

# What of the cell changes: nothing, its size, its shape at constant volume, or both.
CELLS = ("fixed", "isotropic", "shape", "full")

OPTIMISERS = {"lbfgs": LBFGS, "bfgs": BFGS, "fire": FIRE}

# A; positions this near to those of a symmetry count as symmetric, as in phonopy.
SYMMETRY_PRECISION = 1e-5

Progress = Callable[[int, str], None]


@dataclass
class Relaxation:
    """How a crystal came to rest; lists have one entry per step, the first before any.

    Attributes:
        atoms: the last state, with its calculator.
        converged: whether forces and stress are below their limits.
        energy: eV.
        force: eV/A, of the atom with the largest.
        stress: GPa, the largest component that the cell could still yield to; zeros for a fixed cell.
        space_groups: before and after; None if not periodic in three directions.
    """

    atoms: Atoms
    converged: bool = False
    energy: list[float] = field(default_factory=list)
    force: list[float] = field(default_factory=list)
    stress: list[float] = field(default_factory=list)
    space_groups: tuple[str | None, str | None] = (None, None)

    @property
    def steps(self) -> int:
        """How many were taken."""
        return len(self.energy) - 1

    def record(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        names = ("converged", "energy", "force", "stress", "space_groups")
        return {"n_atoms": len(self.atoms), "cell": self.atoms.cell.tolist()} | {n: getattr(self, n) for n in names}


def relax(
    atoms: Atoms,
    *,
    cell: str = "fixed",
    pressure: float = 0.0,
    fmax: float = 0.01,
    smax: float = 0.01,
    steps: int = 500,
    symmetry: bool = False,
    optimiser: str = "lbfgs",
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Relaxation:
    """Move atoms, and the cell, until forces and stress are small. Constraints of the atoms hold.

    Args:
        atoms: with a calculator; not changed.
        cell: one of `CELLS`.
        pressure: GPa, for a cell that changes its volume.
        fmax: eV/A, the largest force left.
        smax: GPa, the largest component of stress + pressure left in a cell that changes, of the part that it can
            yield to.
        steps: at most so many.
        symmetry: keep the space group that the atoms start with (needs a crystal).
        optimiser: one of `OPTIMISERS`.
        progress: called with steps done and a line on energy, force and stress.
        stop: asked after every step; the relaxation ends there once it says so.
    Raises:
        ConfigError: an unknown choice or a number out of range. StructureError: a cell that is to change, or symmetry,
            without three periodic directions.
        WorkflowError: energy or forces that are not finite.
    """
    _check(atoms, cell, pressure, fmax, smax, steps, symmetry, optimiser)
    relaxed = atoms.copy()
    relaxed.calc = atoms.calc
    if symmetry:
        relaxed.set_constraint([*relaxed.constraints, FixSymmetry(relaxed, symprec=SYMMETRY_PRECISION)])
    target: Any = relaxed
    if cell != "fixed":
        target = FrechetCellFilter(
            relaxed,
            scalar_pressure=pressure / GPA,
            hydrostatic_strain=cell == "isotropic",
            constant_volume=cell == "shape",
        )
    run = Relaxation(relaxed)
    dynamics = OPTIMISERS[optimiser](target, logfile=None)
    # fmax = 0: ASE would judge the cell by an energy that grows with it, and here its stress counts
    for _ in dynamics.irun(fmax=0.0, steps=steps):
        energy, force = float(relaxed.get_potential_energy()), _largest_force(relaxed)
        stress = 0.0 if cell == "fixed" else _largest_stress(relaxed, cell, pressure)
        if not (math.isfinite(energy) and math.isfinite(force) and math.isfinite(stress)):
            raise WorkflowError(
                f"relaxation, step {run.steps + 1}: energy {energy:g} eV, largest force {force:g} eV/A; the model is "
                "outside its range; start from a structure that is nearer to rest"
            )
        run.energy.append(energy)
        run.force.append(force)
        run.stress.append(stress)
        if progress is not None:
            progress(run.steps, f"{energy:.6f} eV, {force:.2g} eV/A" + (f", {stress:.2g} GPa" if stress else ""))
        run.converged = force < fmax and stress < smax
        if run.converged or (stop is not None and stop()):
            break
    if symmetry:
        relaxed.set_constraint([c for c in relaxed.constraints if not isinstance(c, FixSymmetry)])
    run.space_groups = (space_group(atoms), space_group(relaxed))
    return run


def relax_fully(atoms: Atoms, what: str, *, fmax: float, steps: int = 500, **settings: Any) -> Atoms:
    """The relaxed atoms, for a calculation that makes no sense without.

    Args:
        what: is relaxed, in words for the message. fmax, steps, settings: as `relax` takes them.
    Raises:
        WorkflowError: not at rest after so many steps. Others: as `relax`.
    """
    run = relax(atoms, fmax=fmax, steps=steps, **settings)
    if not run.converged:
        raise WorkflowError(
            f"{what} is not at rest after {run.steps} steps: forces up to {run.force[-1]:.2g} eV/A (limit {fmax:g}), "
            f"stress up to {run.stress[-1]:.2g} GPa; relax it first with lrpot relax, or allow larger forces"
        )
    return run.atoms


def space_group(atoms: Atoms) -> str | None:
    """Symbol and number, as in "Fm-3m (225)"; None for what is not periodic in three directions."""
    if not atoms.pbc.all():
        return None
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    return spglib.get_spacegroup(cell, symprec=SYMMETRY_PRECISION)


def _largest_force(atoms: Atoms) -> float:
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


def _largest_stress(atoms: Atoms, cell: str, pressure: float) -> float:
    """GPa, the largest component of stress + pressure along what the cell may do."""
    stress = atoms.get_stress(voigt=False) * GPA + pressure * np.eye(3)
    mean = np.trace(stress) / 3.0
    if cell == "isotropic":
        return abs(float(mean))
    return float(np.abs(stress - mean * np.eye(3) if cell == "shape" else stress).max())


def _check(
    atoms: Atoms, cell: str, pressure: float, fmax: float, smax: float, steps: int, symmetry: bool, optimiser: str
) -> None:
    for name, choice, known in (("cell", cell, CELLS), ("optimiser", optimiser, OPTIMISERS)):
        if choice not in known:
            raise ConfigError(f"{name} = {choice!r} is not known; choose one of {', '.join(known)}")
    if not math.isfinite(pressure):
        raise ConfigError(f"pressure = {pressure:g} GPa: must be finite")
    if pressure and cell in ("fixed", "shape"):
        raise ConfigError(f"pressure = {pressure:g} GPa changes nothing where cell = {cell}; choose full or isotropic")
    for name, value in (("fmax", fmax), ("smax", smax), ("steps", steps)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} = {value:g}: must be finite and positive")
    if (cell != "fixed" or symmetry) and not atoms.pbc.all():
        what = "its symmetry cannot be kept" if cell == "fixed" else f"cell = {cell} cannot be"
        raise StructureError(
            f"{atoms.get_chemical_formula()} is not periodic in all three directions, so {what}; set pbc, or relax the "
            "atoms alone"
        )
