"""What ends a run: a state without sense, or forces that are too uncertain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from lrpot.errors import ConfigError, LrpotError
from lrpot.md.frames import open_frames
from lrpot.md.integrators import thermal_momenta

# What a run does at a step that is too uncertain.
ON_UNCERTAIN = ("stop", "flag")

# How many times the target the temperature of all, or of one atom, may be; targets lower than these (K) count as these.
TOO_HOT = 100.0
COLDEST, COLDEST_ATOM = 10.0, 100.0


class SimulationError(LrpotError):
    """A simulation that left the range of sense; what was recorded before is kept."""


def fault(atoms: Atoms, target: float, *, keeps_momentum: bool) -> str | None:
    """What is wrong with the state of a run, and with which atom; None if nothing is.

    Args:
        target: K. An atom of a Maxwell-Boltzmann distribution has 100 times its mean energy once in 10^65 looks.
        keeps_momentum: what the whole does is then no heat.
    """
    forces, momenta = atoms.get_forces(), atoms.get_momenta()
    broken = ~(np.isfinite(forces).all(axis=1) & np.isfinite(momenta).all(axis=1))
    if broken.any():
        atom = int(broken.argmax())
        return f"the force on atom {atom} ({atoms.symbols[atom]}) or its velocity is not finite"
    if not np.isfinite(energy := atoms.get_potential_energy()):
        return f"the potential energy is {energy:g} eV"
    if not np.isfinite(atoms.cell.array).all():
        return "the cell is not finite"
    momenta = thermal_momenta(atoms, keeps_momentum=keeps_momentum)
    each = (momenta**2).sum(axis=1) / atoms.get_masses() / (3.0 * units.kB)  # K
    atom = int(each.argmax())
    named = f"atom {atom} ({atoms.symbols[atom]})"
    if (now := each.mean()) > TOO_HOT * max(target, COLDEST):
        return f"the temperature is {now:.3g} K, and {named} is the fastest"
    if each[atom] > TOO_HOT * max(target, COLDEST_ATOM):
        return f"{named} moves as fast as at {each[atom]:.3g} K"
    return None


def uncertainties_of(atoms: Atoms) -> np.ndarray | None:
    """(N,), eV/A, of the forces that were computed last; None without an ensemble."""
    return getattr(atoms.calc, "results", {}).get("forces_uncertainty")


class Watch:
    """Looks whether a step is too uncertain, and keeps its frame."""

    def __init__(self, limit: float, action: str, path: str | Path | None) -> None:
        if not 0 < limit < np.inf:
            raise ConfigError(f"max_uncertainty = {limit:g} eV/A: must be finite and positive")
        if action not in ON_UNCERTAIN:
            raise ConfigError(f"on_uncertain = {action!r} is not known; choose one of {', '.join(ON_UNCERTAIN)}")
        if path is not None and Path(path).suffix not in (".extxyz", ".xyz"):
            # the others have no place for the uncertainties
            raise ConfigError(f"uncertain = {path}: unknown ending {Path(path).suffix!r}; use .extxyz or .xyz")
        self.limit = limit
        self.action = action
        self.path = path
        self.frames = open_frames(path)

    def exceeded(self, atoms: Atoms, step: int) -> bool:
        """Whether a force is more uncertain than the limit.

        Raises:
            SimulationError: it is, and the run is to stop there.
        """
        uncertainties = uncertainties_of(atoms)
        assert uncertainties is not None
        atom = int(uncertainties.argmax())
        if uncertainties[atom] <= self.limit:
            return False
        frame = atoms.copy()
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        frame.arrays["force_uncertainty"] = uncertainties.copy()
        frame.info["step"] = step
        self.frames.write(frame, step, 0.0)
        if self.action == "stop":
            kept = f"; the frames before step {step} are kept" if step else ""
            kept += "" if self.path is None else f"; that frame is in {self.path}"
            raise SimulationError(
                f"step {step}: the uncertainty of the force on atom {atom} ({atoms.symbols[atom]}) is "
                f"{uncertainties[atom]:.3g} eV/A, more than {self.limit:g}; add such structures to the training set, "
                f"or raise the limit{kept}"
            )
        return True
