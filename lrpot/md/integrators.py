"""ASE's integrators: made, told another temperature, asked what they conserve; their numbers out and in again.

All that lrpot knows of the insides of `ase.md` stands in this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet

from lrpot.errors import ConfigError, DataError
from lrpot.md.settings import Settings
from lrpot.units import GPA

_CHAINED = (NoseHooverChainNVT, IsotropicMTKNPT, MTKNPT)


def prepare(atoms: Atoms, settings: Settings, rng: np.random.Generator) -> None:
    """Give atoms the velocities that a run starts with, unless they have some.

    Raises:
        ConfigError: atoms that the integrator of these settings cannot treat.
    """
    _check_atoms(atoms, settings)
    if settings.ensemble != "nve" and settings.keeps_momentum and not atoms.constraints:
        atoms.set_momenta(_about_centre(atoms))  # these baths would take what the whole does for heat
    if not atoms.has("momenta") or not np.any(atoms.get_momenta()):
        draw_momenta(atoms, settings.temperature, rng)


def make_dynamics(atoms: Atoms, settings: Settings, rng: np.random.Generator) -> MolecularDynamics:
    """The integrator of a run of atoms that have velocities."""
    timestep, kelvin, tdamp = settings.timestep * units.fs, settings.temperature, settings.tdamp * units.fs
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    if settings.bath == "langevin":
        # fixcm: held, the centre of mass would not sample the ensemble
        friction = settings.friction / units.fs
        return Langevin(atoms, timestep, temperature_K=kelvin, friction=friction, fixcm=False, rng=rng)
    if settings.bath == "bussi":
        dynamics = Bussi(atoms, timestep, kelvin, tdamp, rng=rng)
        dynamics.ndof = degrees_of_freedom(atoms, keeps_momentum=True)
        dynamics.target_kinetic_energy = 0.5 * dynamics.temp * dynamics.ndof
        return dynamics
    if settings.bath == "nose-hoover":
        return _without_centre(NoseHooverChainNVT(atoms, timestep, kelvin, tdamp))
    kind = IsotropicMTKNPT if settings.barostat == "isotropic" else MTKNPT
    pressure, pdamp = settings.pressure / GPA, settings.pdamp * units.fs
    return _without_centre(kind(atoms, timestep, kelvin, pressure, tdamp, pdamp))


def draw_momenta(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Maxwell-Boltzmann momenta at that temperature (K) whose sum is zero; one atom alone stays at rest."""
    if len(atoms) > 1:
        masses = atoms.get_masses()[:, None]
        atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature))
        atoms.set_momenta(_about_centre(atoms))


def degrees_of_freedom(atoms: Atoms, *, keeps_momentum: bool) -> int:
    """How many of the kinetic energy k T / 2 belongs to: three less where the whole cannot take up heat."""
    free = atoms.get_number_of_degrees_of_freedom()
    return max(free - 3, 0) if keeps_momentum and not atoms.constraints else free


def thermal_momenta(atoms: Atoms, *, keeps_momentum: bool) -> np.ndarray:
    """(N, 3), ASE's units: without those of the whole where it cannot take up heat; see `degrees_of_freedom`."""
    return _about_centre(atoms) if keeps_momentum and not atoms.constraints else atoms.get_momenta()


def set_temperature(dynamics: MolecularDynamics, kelvin: float) -> None:
    """Another temperature of the bath, K; the inertia of the baths stays what it was at the first."""
    if isinstance(dynamics, Langevin):
        dynamics.set_temperature(temperature_K=kelvin)
    elif isinstance(dynamics, Bussi):
        dynamics.temp = units.kB * kelvin
        dynamics.target_kinetic_energy = 0.5 * dynamics.temp * dynamics.ndof
    else:
        for part in _parts(dynamics):
            part._kT = units.kB * kelvin


def conserved_energy(dynamics: MolecularDynamics) -> float | None:
    """eV: what stays the same at a constant temperature of the bath, or None if nothing does."""
    atoms = dynamics.atoms
    if isinstance(dynamics, Langevin):
        return None
    if isinstance(dynamics, _CHAINED):
        return float(dynamics.get_conserved_energy())
    taken = dynamics.transferred_energy if isinstance(dynamics, Bussi) else 0.0
    return float(atoms.get_potential_energy() + atoms.get_kinetic_energy() - taken)


def numbers_of(dynamics: MolecularDynamics) -> dict[str, np.ndarray]:
    """Every number and array that an integrator holds, by the path of its attribute."""
    return dict(_numbers(dynamics))


def set_numbers(dynamics: MolecularDynamics, numbers: Mapping[str, np.ndarray]) -> None:
    """Give an integrator the numbers of another of its kind.

    Raises:
        DataError: it holds others, as that of another version of ASE may.
    """
    for path, value in numbers_of(dynamics).items():
        if path not in numbers or numbers[path].shape != value.shape:
            raise DataError(
                "the state was written by another version of ASE; go on with that one, or start anew with --overwrite"
            )
    for path, value in numbers.items():
        *parents, name = path.split(".")
        part = dynamics
        for parent in parents:
            part = getattr(part, parent)
        setattr(part, name, value.copy() if value.ndim else value.item())


def _numbers(part: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in vars(part).items():
        if isinstance(value, (int, float, np.ndarray, np.number)) and not isinstance(value, bool):
            yield f"{path}{name}", np.array(value)
        elif type(value).__module__.startswith("ase.md."):
            yield from _numbers(value, f"{path}{name}.")


def _parts(dynamics: MolecularDynamics) -> list[Any]:
    """An integrator with Nose-Hoover chains, its thermostat and its barostat."""
    return [dynamics, dynamics._thermostat, *([dynamics._barostat] if hasattr(dynamics, "_barostat") else [])]


def _without_centre(dynamics: MolecularDynamics) -> MolecularDynamics:
    """Let an integrator count the degrees of freedom of one atom less.

    ASE counts three for each atom. With the centre of mass at rest three of them hold no heat, and the others would
    get theirs: of 64 atoms at 300 K, 305 K.
    """
    n_atoms = len(dynamics.atoms)
    for part in _parts(dynamics):
        part._num_atoms_global = n_atoms - 1
    dynamics._thermostat._Q[0] *= (n_atoms - 1) / n_atoms
    return dynamics


def _about_centre(atoms: Atoms) -> np.ndarray:
    """(N, 3), momenta seen from the centre of mass."""
    momenta, masses = atoms.get_momenta(), atoms.get_masses()[:, None]
    return momenta - masses * momenta.sum(axis=0) / masses.sum()


def _check_atoms(atoms: Atoms, settings: Settings) -> None:
    if settings.ensemble == "npt" and not atoms.pbc.all():
        raise ConfigError(
            f"npt needs a crystal that repeats in all directions, and pbc = {atoms.pbc.tolist()}; use nvt"
        )
    if settings.bath in ("npt", "nose-hoover") and atoms.constraints:
        raise ConfigError(
            f"{settings.bath} cannot hold atoms in place, and the structure has constraints; remove them, or use nvt "
            "with the langevin or bussi bath"
        )
    if settings.ensemble != "nve" and settings.keeps_momentum and len(atoms) < 2:
        raise ConfigError(f"{settings.bath} needs two atoms or more; use the langevin bath, or a supercell")
