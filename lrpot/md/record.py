"""What is recorded of a run: numbers in memory, as a table in a file, and as a line for a person."""

from __future__ import annotations

import csv
import fcntl
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase import Atoms, units
from ase.md.md import MolecularDynamics

from lrpot.analysis import Slope, energy_drift
from lrpot.errors import DataError, OutputError
from lrpot.files import blaming
from lrpot.md.frames import Mark, cut, sync
from lrpot.md.integrators import conserved_energy, degrees_of_freedom, thermal_momenta
from lrpot.md.settings import Settings
from lrpot.md.watch import uncertainties_of
from lrpot.units import GPA

# Columns of the table, and where they go in an `MDRun`. Empty where a run does not know the number.
COLUMNS = {
    "time (fs)": "time_fs",
    "potential (eV)": "potential",
    "kinetic (eV)": "kinetic",
    "temperature (K)": "temperature",
    "conserved (eV)": "conserved",
    "pressure (GPa)": "pressure",
    "volume (A^3)": "volume",
    "force uncertainty (eV/A)": "force_uncertainty",
}

FEMTOSECONDS, SECONDS_PER_DAY = 1e-6, 86400.0  # ns; s


@dataclass
class MDRun:
    """What was recorded of a run, one entry per recorded step, those before an interruption included.

    Attributes:
        n_atoms: of the system.
        time_fs: fs.
        potential: eV, whole system.
        kinetic: eV, whole system.
        temperature: K, of what can hold heat: where the momentum of the whole is kept, its kinetic energy does not
            count, and there are 3 N - 3 degrees of freedom.
        conserved: eV; what the equations of motion conserve: the total energy, and what it exchanged with the bath and
            the cell; empty for the langevin bath and for a bath whose temperature changes.
        pressure: GPa, kinetic part included; empty if it was not asked for.
        volume: A^3, of what repeats in all directions; else empty.
        seconds_per_step: of wall time, since the start or the last interruption.
        force_uncertainty: eV/A, of the most uncertain force; empty without an ensemble.
        uncertain_steps: the steps, recorded or not, at which it was above the limit.
    """

    n_atoms: int
    time_fs: list[float] = field(default_factory=list)
    potential: list[float] = field(default_factory=list)
    kinetic: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    conserved: list[float] = field(default_factory=list)
    pressure: list[float] = field(default_factory=list)
    volume: list[float] = field(default_factory=list)
    seconds_per_step: float = 0.0
    force_uncertainty: list[float] = field(default_factory=list)
    uncertain_steps: list[int] = field(default_factory=list)

    @property
    def drift(self) -> float:
        """Slope of what is conserved by linear least squares, eV/atom/ps; 0 for fewer than two points."""
        return energy_drift(self.time_fs, self.conserved, self.n_atoms) if self.conserved else 0.0


class Recorder:
    """Fills an `MDRun` and the table, and tells how a run is doing."""

    def __init__(self, atoms: Atoms, settings: Settings, path: str | Path | None) -> None:
        self.run = MDRun(len(atoms))
        self.table = None if path is None else _Table(Path(path))
        self.settings = settings
        self.freedom = degrees_of_freedom(atoms, keeps_momentum=settings.keeps_momentum)
        self.slope = Slope()
        self.began: tuple[int, float] | None = None

    def record(self, dynamics: MolecularDynamics) -> str:
        """Take down the state of a run; a line on it."""
        atoms, step, settings = dynamics.atoms, dynamics.get_number_of_steps(), self.settings
        momenta = thermal_momenta(atoms, keeps_momentum=settings.keeps_momentum)
        heat = float((momenta**2 / atoms.get_masses()[:, None]).sum())  # eV, twice the kinetic energy
        values: dict[str, float | None] = {
            "time_fs": step * settings.timestep,
            "potential": float(atoms.get_potential_energy()),
            "kinetic": float(atoms.get_kinetic_energy()),
            "temperature": heat / (self.freedom * units.kB) if self.freedom else 0.0,
            "conserved": conserved_energy(dynamics) if settings.temperature_end is None else None,
            "pressure": _pressure(atoms) if settings.record_stress or settings.ensemble == "npt" else None,
            "volume": float(atoms.get_volume()) if atoms.pbc.all() else None,
        }
        uncertainties = uncertainties_of(atoms)
        values["force_uncertainty"] = None if uncertainties is None else float(uncertainties.max())
        self._add(values)
        if self.table is not None:
            self.table.write(list(values.values()))
        return self._line(step, values)

    def mark(self) -> Mark:
        """See `lrpot.md.frames.Frames.mark`."""
        return {} if self.table is None else self.table.mark()

    def rewind(self, mark: Mark) -> None:
        """Take up what was recorded before a mark.

        Raises:
            OutputError: the table lost some of it. DataError: it cannot be read.
        """
        if self.table is not None and mark:
            for values in self.table.rewind(mark):
                self._add(dict(zip(COLUMNS.values(), values, strict=True)))

    def close(self) -> None:
        if self.table is not None:
            self.table.close()

    def _add(self, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                getattr(self.run, name).append(value)
        if (conserved := values["conserved"]) is not None:
            self.slope.add(self.run.time_fs[-1] / 1000.0, conserved / self.run.n_atoms)

    def _line(self, step: int, values: dict[str, Any]) -> str:
        run, now = self.run, time.perf_counter()
        told = [
            f"{(values['potential'] + values['kinetic']) / run.n_atoms:.6f} eV/atom",
            f"{values['temperature']:.0f} K",
        ]
        if values["pressure"] is not None:
            told.append(f"{values['pressure']:.3f} GPa")
        if values["conserved"] is not None:
            told.append(f"drift {self.slope.slope:.1e} eV/atom/ps")
        self.began = self.began or (step, now)
        if step > self.began[0]:
            seconds = (now - self.began[1]) / (step - self.began[0])
            told.append(f"{self.settings.timestep * FEMTOSECONDS * SECONDS_PER_DAY / seconds:.3g} ns/day")
        if values["force_uncertainty"] is not None:
            told.append(f"uncertainty {values['force_uncertainty']:.3g} eV/A")
        return ", ".join(told)


class _Table:
    """A CSV file, one row per recorded step, every digit kept; locked, so that no second run writes the same files."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 (held for the whole run)
        self.begun = False
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.file.close()
            raise OutputError(f"{path}: another run writes it; wait for that, or choose another --out") from error

    def write(self, values: list[float | None]) -> None:
        with blaming(self.path):
            if not self.begun:
                self.file.truncate(0)
                csv.writer(self.file).writerow(COLUMNS)
                self.begun = True
            csv.writer(self.file).writerow(["" if value is None else repr(value) for value in values])
            self.file.flush()

    def mark(self) -> Mark:
        return {"bytes": sync(self.path)}

    def rewind(self, mark: Mark) -> list[list[float | None]]:
        cut(self.path, mark["bytes"])
        self.begun = True
        with open(self.path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        try:
            if rows[0] != list(COLUMNS):
                raise ValueError
            return [[float(value) if value else None for value in row] for row in rows[1:]]
        except (IndexError, ValueError) as error:
            raise DataError(f"{self.path}: is not the table of that run; put it back, or start anew") from error

    def close(self) -> None:
        empty = self.path.exists() and self.path.stat().st_size == 0
        self.file.close()
        if empty:  # of a run that never began
            self.path.unlink()


def _pressure(atoms: Atoms) -> float:
    """GPa."""
    stress = atoms.get_stress(include_ideal_gas=True)
    return float(-stress[:3].mean() * GPA) if math.isfinite(stress.sum()) else math.nan
