"""Settings of a run, with units and limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from lrpot.errors import ConfigError

CHOICES = {
    "ensemble": ("nve", "nvt", "npt"),
    "thermostat": ("langevin", "bussi", "nose-hoover"),
    "barostat": ("isotropic", "full"),
}

# Settings that not all runs have a use for, which baths (`Settings.bath`) have, and what these are called.
USED_BY = {
    "thermostat": (CHOICES["thermostat"], "nvt"),
    "temperature_end": ((*CHOICES["thermostat"], "npt"), "nvt or npt"),
    "friction": (("langevin",), "nvt with langevin"),
    "tdamp": (("bussi", "nose-hoover", "npt"), "npt, or nvt with bussi or nose-hoover"),
    "barostat": (("npt",), "npt"),
    "pressure": (("npt",), "npt"),
    "pdamp": (("npt",), "npt"),
}

POSITIVE = ("steps", "timestep", "friction", "tdamp", "pdamp", "interval", "save_every")


@dataclass(frozen=True)
class Settings:
    """What decides on a run, beside the atoms and their calculator.

    Attributes:
        ensemble: "nve" (velocity Verlet), "nvt", or "npt" (Martyna, Tobias and Klein, Nose-Hoover chains).
        thermostat: of nvt: "langevin", "bussi" (stochastic rescaling of all velocities) or "nose-hoover" (a chain of
            three). The last two keep the momentum of the whole, which is taken off at the start.
        barostat: of npt: "isotropic" (the cell keeps its shape) or "full" (all lengths and angles change).
        temperature: K; of velocities that are drawn at the start, and of the bath.
        temperature_end: K; the temperature of the bath goes there linearly in the course of the run; None: it stays.
        pressure: GPa, of npt.
        steps: number of steps.
        timestep: fs.
        friction: 1/fs, of the langevin bath.
        tdamp: fs, how quickly the other baths answer; of npt too.
        pdamp: fs, how quickly the cell answers in npt.
        interval: steps between recorded frames.
        seed: of velocities and baths.
        record_stress: compute the stress of recorded frames, and from it the pressure; in npt it is known anyway.
        save_every: steps between states from which a run can go on.
    """

    ensemble: str = "nve"
    thermostat: str = "langevin"
    barostat: str = "isotropic"
    temperature: float = 300.0
    temperature_end: float | None = None
    pressure: float = 0.0
    steps: int = 1000
    timestep: float = 1.0
    friction: float = 0.01
    tdamp: float = 100.0
    pdamp: float = 1000.0
    interval: int = 10
    seed: int = 0
    record_stress: bool = False
    save_every: int = 1000

    def __post_init__(self) -> None:
        # a state is JSON, which has no numbers of NumPy
        for setting in fields(self):
            if (value := getattr(self, setting.name)) is not setting.default:
                object.__setattr__(self, setting.name, _plain(setting.name, value, setting.default))

    def check(self) -> None:
        """
        Raises:
            ConfigError: an unknown choice, a number out of range, or a setting that would do nothing; named, with what
                is allowed.
        """
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} {getattr(self, name)!r} is not known; choose one of {', '.join(known)}")
        for name in POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name):g}: must be finite and positive")
        for name in ("temperature", "temperature_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{name} = {value:g} K: must be finite and not negative")
        if not math.isfinite(self.pressure):
            raise ConfigError(f"pressure = {self.pressure:g} GPa: must be finite")
        for name in self.unused:
            if (value := getattr(self, name)) != getattr(Settings, name):  # the class holds the defaults
                this = f"nvt with {self.bath}" if self.ensemble == "nvt" else self.ensemble
                raise ConfigError(
                    f"{name} = {value} does nothing in {this}; leave it out, or choose {USED_BY[name][1]}"
                )
        if self.keeps_momentum and self.ensemble != "nve" and 0.0 in (self.temperature, self.temperature_end):
            raise ConfigError(
                f"temperature = 0 K: {self.bath} cannot cool to rest; choose the langevin bath, or a small temperature"
            )

    @property
    def bath(self) -> str:
        """What the integrator is called in messages."""
        return self.thermostat if self.ensemble == "nvt" else self.ensemble

    @property
    def unused(self) -> list[str]:
        """Settings that do nothing in this run."""
        return [name for name, (baths, _) in USED_BY.items() if self.bath not in baths]

    @property
    def keeps_momentum(self) -> bool:
        """Whether the momentum of the whole stays what it is."""
        return self.bath != "langevin"

    def target(self, step: int) -> float:
        """K, of the bath from a step on."""
        if self.temperature_end is None:
            return self.temperature
        return self.temperature + (self.temperature_end - self.temperature) * min(step / self.steps, 1.0)


def _plain(name: str, value: Any, default: Any) -> Any:
    """The value of a setting in Python's own type, that of its default; None stands for a float.

    Raises:
        ConfigError: it is no such thing.
    """
    kind = float if default is None else type(default)
    try:
        plain = kind(value)
        if kind is int and plain != value:
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name} = {value!r}: must be {what}") from error
    return plain
