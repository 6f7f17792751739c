"""Molecular dynamics with a model, through ASE."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.io.trajectory import Trajectory
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet

from lrpot.analysis import energy_drift
from lrpot.errors import ConfigError, LrpotError, StructureError

ENSEMBLES = ("nve", "nvt")

# What a run does at a step that is too uncertain.
ON_UNCERTAIN = ("stop", "flag")


class SimulationError(LrpotError):
    """A simulation that left the range of sense; what was recorded before is kept."""


@dataclass
class MDRun:
    """What was recorded of a run, one entry per recorded step.

    Attributes:
        time_fs: fs. potential, kinetic: eV, whole system. temperature: K.
        n_atoms: of the system. seconds_per_step: of wall time.
        force_uncertainty: eV/A, of the most uncertain force; empty without an ensemble.
        uncertain_steps: the steps, recorded or not, at which it was above the limit.
    """

    n_atoms: int
    time_fs: list[float] = field(default_factory=list)
    potential: list[float] = field(default_factory=list)
    kinetic: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    seconds_per_step: float = 0.0
    force_uncertainty: list[float] = field(default_factory=list)
    uncertain_steps: list[int] = field(default_factory=list)

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
    max_uncertainty: float | None = None,
    on_uncertain: str = "stop",
    uncertain: str | Path | None = None,
    progress: Callable[[int, str], None] | None = None,
    stop: Callable[[], bool] | None = None,
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
        trajectory: file for the frames: .traj, or .xyz/.extxyz; None for none. An older file stays until the first
            frame is known.
        max_uncertainty: eV/A; the largest uncertainty of a force that is let pass, looked for at every step. Needs the
            calculator of an ensemble.
        on_uncertain: "stop" at a step above it, or "flag": count it and go on.
        uncertain: file for the frames of such steps, .xyz/.extxyz, with `force_uncertainty` of each atom; None for
            none.
        progress: called with the steps done and a line on energy, temperature and uncertainty.
        stop: asked after every step; the run ends there once it says so.
    Raises:
        ConfigError: an unknown ensemble, a number out of range, or a limit for uncertainties that are not told.
        SimulationError: an uncertainty above its limit, forces or velocities that are not finite, atoms that collide,
            or a temperature of 100 times the target (looked for at every step); the frames before it are kept.
    """
    _check(ensemble, temperature, steps, timestep, friction, interval)
    watch = None if max_uncertainty is None else _Watch(max_uncertainty, on_uncertain, uncertain)
    rng = np.random.default_rng(seed)
    if not atoms.has("momenta") or not np.any(atoms.get_momenta()):
        _draw_momenta(atoms, temperature, rng)
    if ensemble == "nve":
        dynamics = VelocityVerlet(atoms, timestep * units.fs)
    else:
        dynamics = Langevin(
            atoms,
            timestep * units.fs,
            temperature_K=temperature,
            friction=friction / units.fs,
            fixcm=False,  # held, the centre of mass would not sample the ensemble
            rng=rng,
        )
    run = MDRun(n_atoms=len(atoms))
    frames = _Frames(trajectory)
    started = time.perf_counter()
    hottest = 100.0 * max(temperature, 10.0)

    def failure(step: int, what: str) -> SimulationError:
        return SimulationError(
            f"step {step}: {what}; the model is outside its range or the time step of {timestep:g} fs is too long; "
            f"the frames before step {step} are kept"
        )

    def check() -> None:
        step = dynamics.get_number_of_steps()
        if fault := _fault(atoms, hottest):
            raise failure(step, fault)
        if watch is not None and watch.exceeded(atoms, step):
            run.uncertain_steps.append(step)

    def record() -> None:
        step = dynamics.get_number_of_steps()
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        now = atoms.get_temperature()
        run.time_fs.append(step * timestep)
        run.potential.append(float(potential))
        run.kinetic.append(float(kinetic))
        run.temperature.append(float(now))
        frames.write(atoms)
        note = f"{(potential + kinetic) / len(atoms):.6f} eV/atom, {now:.0f} K"
        if (uncertainties := _uncertainties(atoms)) is not None:
            run.force_uncertainty.append(float(uncertainties.max()))
            note += f", uncertainty {run.force_uncertainty[-1]:.3g} eV/A"
        if progress is not None:
            progress(step, note)

    dynamics.attach(check, interval=1)
    dynamics.attach(record, interval=interval)
    atoms.get_forces()  # whatever is wrong with the start is told as such
    if watch is not None and _uncertainties(atoms) is None:
        raise ConfigError(
            "max_uncertainty needs the calculator of an ensemble; this one does not say how uncertain it is. Fit one "
            "with lrpot fit --ensemble 4, or join models with lrpot ensemble"
        )
    try:
        for _ in dynamics.irun(steps):
            if stop is not None and stop():
                break
    except StructureError as error:
        raise failure(dynamics.get_number_of_steps() + 1, str(error).split(";")[0]) from error
    finally:
        frames.close()
    run.seconds_per_step = (time.perf_counter() - started) / max(dynamics.get_number_of_steps(), 1)
    return run


def _draw_momenta(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Maxwell-Boltzmann momenta at that temperature (K) whose sum is zero; one atom alone stays at rest."""
    if len(atoms) > 1:
        masses = atoms.get_masses()[:, None]
        atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature))
        Stationary(atoms)


def _fault(atoms: Atoms, hottest: float) -> str | None:
    """What is wrong with the state of a run, and with which atom; None if nothing is."""
    forces, velocities = atoms.get_forces(), atoms.get_velocities()
    broken = ~(np.isfinite(forces).all(axis=1) & np.isfinite(velocities).all(axis=1))
    if broken.any():
        atom = int(broken.argmax())
        return f"the force on atom {atom} ({atoms.symbols[atom]}) or its velocity is not finite"
    if not np.isfinite(energy := atoms.get_potential_energy()):
        return f"the potential energy is {energy:g} eV"
    if (now := atoms.get_temperature()) > hottest:
        atom = int(np.linalg.norm(velocities, axis=1).argmax())
        return f"the temperature is {now:.3g} K, and atom {atom} ({atoms.symbols[atom]}) is the fastest"
    return None


def _uncertainties(atoms: Atoms) -> np.ndarray | None:
    """(N,), eV/A, of the forces that were computed last; None without an ensemble."""
    return getattr(atoms.calc, "results", {}).get("forces_uncertainty")


class _Watch:
    """Looks whether a step is too uncertain, and keeps its frame."""

    def __init__(self, limit: float, action: str, path: str | Path | None) -> None:
        if not 0 < limit < np.inf:
            raise ConfigError(f"max_uncertainty = {limit:g} eV/A: must be finite and positive")
        if action not in ON_UNCERTAIN:
            raise ConfigError(f"on_uncertain = {action!r} is not known; choose one of {', '.join(ON_UNCERTAIN)}")
        self.limit = limit
        self.action = action
        self.frames = _Frames(path)

    def exceeded(self, atoms: Atoms, step: int) -> bool:
        """Whether a force is more uncertain than the limit.

        Raises:
            SimulationError: it is, and the run is to stop there.
        """
        uncertainties = _uncertainties(atoms)
        assert uncertainties is not None
        atom = int(uncertainties.argmax())
        if uncertainties[atom] <= self.limit:
            return False
        frame = atoms.copy()
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        frame.arrays["force_uncertainty"] = uncertainties.copy()
        frame.info["step"] = step
        self.frames.write(frame)
        if self.action == "stop":
            kept = f"; the frames before step {step} are kept" if step else ""
            kept += "" if self.frames.path is None else f"; that frame is in {self.frames.path}"
            raise SimulationError(
                f"step {step}: the uncertainty of the force on atom {atom} ({atoms.symbols[atom]}) is "
                f"{uncertainties[atom]:.3g} eV/A, more than {self.limit:g}; add such structures to the training set, "
                f"or raise the limit{kept}"
            )
        return True


class _Frames:
    """Frames go to a file as they come, so that an interruption loses none; the first replaces an older file."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.trajectory: Any = None
        self.begun = False

    def write(self, atoms: Atoms) -> None:
        if self.path is None:
            return
        if self.path.suffix != ".traj":
            write(self.path, atoms, format="extxyz", append=self.begun)
        else:
            self.trajectory = self.trajectory or Trajectory(str(self.path), "w")
            self.trajectory.write(atoms)
        self.begun = True

    def close(self) -> None:
        if self.trajectory is not None:
            self.trajectory.close()


def _check(ensemble: str, temperature: float, steps: int, timestep: float, friction: float, interval: int) -> None:
    if ensemble not in ENSEMBLES:
        raise ConfigError(f"ensemble {ensemble!r} is not known; choose one of {', '.join(ENSEMBLES)}")
    if not 0 <= temperature < np.inf:
        raise ConfigError(f"temperature = {temperature:g} K: must be finite and not negative")
    for name, value in (("steps", steps), ("timestep", timestep), ("friction", friction), ("interval", interval)):
        if not 0 < value < np.inf:
            raise ConfigError(f"{name} = {value:g}: must be finite and positive")
