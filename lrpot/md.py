"""Molecular dynamics with a model, through ASE."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import write
from ase.io.trajectory import Trajectory
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

from lrpot.analysis import energy_drift
from lrpot.errors import ConfigError, LrpotError

ENSEMBLES = ("nve", "nvt")


class SimulationError(LrpotError):
    """A simulation that left the range of sense; what was recorded before is kept."""


@dataclass
class MDRun:
    """What was recorded of a run, one entry per recorded step.

    Attributes:
        time_fs: fs. potential, kinetic: eV, whole system. temperature: K.
        n_atoms: of the system. seconds_per_step: of wall time.
    """

    n_atoms: int
    time_fs: list[float] = field(default_factory=list)
    potential: list[float] = field(default_factory=list)
    kinetic: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    seconds_per_step: float = 0.0

    @property
    def drift(self) -> float:
        """Slope of the total energy by linear least squares, eV/atom/ps; 0 for fewer than two points."""
        return energy_drift(self.time_fs, np.add(self.potential, self.kinetic).tolist(), self.n_atoms)


def run_md(
    atoms: Atoms,
    *,
    ensemble: str = "nve",
    temperature: float = 300.0,
    steps: int = 1000,
    timestep: float = 1.0,
    friction: float = 0.01,
    interval: int = 10,
    seed: int = 0,
    trajectory: str | Path | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> MDRun:
    """Run MD of atoms that have a calculator; they are left in the last state.

    Args:
        ensemble: "nve" (velocity Verlet) or "nvt" (Langevin).
        temperature: K; of the starting velocities (drawn unless the atoms have some), and of the bath.
        steps: number of steps.
        timestep: fs.
        friction: 1/fs, of the bath.
        interval: steps between recorded frames.
        seed: of velocities and bath.
        trajectory: file for the frames: .traj, or .xyz/.extxyz; None for none.
        progress: called with the steps done and a line on energy and temperature.
    Raises:
        ConfigError: an unknown ensemble or a number out of range.
        SimulationError: energies or positions that are not finite, or atoms hotter than 100 times the target.
    """
    _check(ensemble, temperature, steps, timestep, friction, interval)
    rng = np.random.default_rng(seed)
    if not atoms.has("momenta") or not np.any(atoms.get_momenta()):
        MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
        Stationary(atoms)
    if ensemble == "nve":
        dynamics = VelocityVerlet(atoms, timestep * units.fs)
    else:
        dynamics = Langevin(
            atoms, timestep * units.fs, temperature_K=temperature, friction=friction / units.fs, rng=rng
        )
    run = MDRun(n_atoms=len(atoms))
    frames = _Frames(trajectory)
    started = time.perf_counter()
    hottest = 100.0 * max(temperature, 10.0)

    def record() -> None:
        step = dynamics.get_number_of_steps()
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        now = atoms.get_temperature()
        if not (np.isfinite(potential) and np.isfinite(kinetic)) or now > hottest:
            raise SimulationError(
                f"step {step}: energy {potential:g} eV, temperature {now:g} K; the model is outside its range or the "
                f"time step of {timestep:g} fs is too long; the frames before step {step} are kept"
            )
        run.time_fs.append(step * timestep)
        run.potential.append(float(potential))
        run.kinetic.append(float(kinetic))
        run.temperature.append(float(now))
        frames.write(atoms)
        if progress is not None:
            progress(step, f"{(potential + kinetic) / len(atoms):.6f} eV/atom, {now:.0f} K")

    dynamics.attach(record, interval=interval)
    try:
        dynamics.run(steps)
    finally:
        frames.close()
    run.seconds_per_step = (time.perf_counter() - started) / max(steps, 1)
    return run


class _Frames:
    """Frames go to a file as they come, so that an interruption loses none."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.trajectory = None
        if self.path is not None and self.path.suffix == ".traj":
            self.trajectory = Trajectory(str(self.path), "w")
        elif self.path is not None:
            self.path.unlink(missing_ok=True)

    def write(self, atoms: Atoms) -> None:
        if self.trajectory is not None:
            self.trajectory.write(atoms)
        elif self.path is not None:
            write(self.path, atoms, format="extxyz", append=True)

    def close(self) -> None:
        if self.trajectory is not None:
            self.trajectory.close()


def _check(ensemble: str, temperature: float, steps: int, timestep: float, friction: float, interval: int) -> None:
    if ensemble not in ENSEMBLES:
        raise ConfigError(f"ensemble {ensemble!r} is not known; choose one of {', '.join(ENSEMBLES)}")
    if temperature < 0:
        raise ConfigError(f"temperature = {temperature:g} K: must not be negative")
    for name, value in (("steps", steps), ("timestep", timestep), ("friction", friction), ("interval", interval)):
        if not value > 0:
            raise ConfigError(f"{name} = {value:g}: must be positive")
