"""Phonons by finite displacements: forces from a calculator, all else from phonopy, and in its formats."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from phonopy import Phonopy
from phonopy.file_IO import write_BORN, write_FORCE_CONSTANTS
from phonopy.structure.atoms import PhonopyAtoms
from phonopy.structure.cells import guess_primitive_matrix

from lrpot.errors import ConfigError, StructureError, WorkflowError
from lrpot.files import atomic_path, write_text
from lrpot.units import PLANCK
from lrpot.workflows.nac import LongWaves
from lrpot.workflows.relax import SYMMETRY_PRECISION, Progress

# A: supercells are at least this wide unless their size is given.
MIN_WIDTH = 12.0

# eV/A; larger forces on the undisplaced atoms, and the harmonic part is not that about a minimum.
AT_REST = 0.05

# THz; below minus this a mode is unstable and not just rounded.
UNSTABLE = -0.05

# Directions (of reciprocal lattice vectors) along which waves become long.
DIRECTIONS = ((1, 0, 0), (0, 1, 0), (0, 0, 1))

# THz; frequencies that differ by less are one in a table.
SAME = 1e-3


@dataclass
class Phonons:
    """Force constants and what follows from them.

    Attributes:
        phonopy: with force constants and, if there are any, the parameters of long waves; to go on with.
        force_drift: eV/A^2, the largest sum of force constants over all atoms before the acoustic sum rule was imposed.
        residual_force: eV/A, the largest on the undisplaced atoms.
        long_waves: what the splitting at Gamma comes from; None without.
    """

    phonopy: Phonopy
    force_drift: float
    residual_force: float
    long_waves: LongWaves | None = None

    def at_gamma(self) -> np.ndarray:
        """(3 n,), THz, ascending, without long-range splitting; an imaginary frequency is negative."""
        return np.asarray(self.phonopy.run_qpoints([[0, 0, 0]]).frequencies[0])

    def toward_gamma(self, direction: Sequence[float]) -> np.ndarray:
        """(3 n,), THz, ascending, the limit of long waves along a direction of reciprocal lattice vectors."""
        return np.asarray(self.phonopy.run_qpoints([[0, 0, 0]], nac_q_direction=direction).frequencies[0])

    def set_long_waves(self, long_waves: LongWaves | None) -> None:
        """From now on with this splitting at Gamma; None for none. `run` is to be called again."""
        self.long_waves = long_waves
        self.phonopy.nac_params = None if long_waves is None else long_waves.parameters

    def run(self, *, mesh: float, points: int = 51) -> None:
        """Band structure along the standard path, and density of states, kept in `phonopy`.

        Args:
            mesh: A; q points are so dense that those of a cell this wide would be exact.
            points: of q on each leg of the path.
        """
        self.phonopy.auto_band_structure(npoints=points)
        self.phonopy.run_mesh(mesh)
        self.phonopy.run_total_dos()

    @property
    def lowest(self) -> float:
        """THz, on path and mesh, after `run`; negative if imaginary."""
        bands = np.concatenate(self.phonopy.band_structure.frequencies)
        return float(min(bands.min(), self.phonopy.mesh.frequencies.min()))

    @property
    def zero_point_energy(self) -> float:
        """eV per primitive cell, after `run`: half of the sum of the frequencies above zero."""
        mesh = self.phonopy.mesh
        positive = np.clip(mesh.frequencies, 0.0, None).sum(axis=1)
        return 0.5 * PLANCK * float(mesh.weights @ positive) / float(mesh.weights.sum())

    def splittings(self) -> dict[tuple[int, int, int], np.ndarray]:
        """Frequencies (3 n,) towards Gamma, THz, by direction, each that differs from those before; empty without."""
        found: dict[tuple[int, int, int], np.ndarray] = {}
        for direction in DIRECTIONS if self.long_waves is not None else ():
            frequencies = self.toward_gamma(direction)
            if all(np.abs(frequencies - other).max() > SAME for other in found.values()):
                found[direction] = frequencies
        return found

    def record(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        long_waves = None
        if self.long_waves is not None:
            long_waves = {
                "source": self.long_waves.source,
                "born_charges_e": self.long_waves.born.tolist(),
                "dielectric": self.long_waves.dielectric.tolist(),
                "toward_gamma_THz": {
                    " ".join(map(str, direction)): f.tolist() for direction, f in self.splittings().items()
                },
            }
        return {
            "symbols": self.phonopy.primitive.symbols,
            "supercell": np.asarray(self.phonopy.supercell_matrix).tolist(),
            "n_atoms_supercell": len(self.phonopy.supercell),
            "n_displacements": len(self.phonopy.displacements),
            "gamma_THz": self.at_gamma().tolist(),
            "long_waves": long_waves,
            "lowest_THz": self.lowest,
            "zero_point_energy_eV": self.zero_point_energy,
            "residual_force": self.residual_force,
            "force_drift": self.force_drift,
        }

    def write(self, folder: str | Path) -> list[Path]:
        """phonopy_params.yaml (crystal, displacements, forces, force constants, Born charges), FORCE_CONSTANTS, BORN,
        band.yaml and total_dos.dat in phonopy's formats, and phonons.json; after `run`."""
        folder = Path(folder)
        phonon = self.phonopy
        writers: dict[str, Callable[[str], Any]] = {
            "phonopy_params.yaml": lambda name: phonon.save(name, settings={"force_constants": True}),
            "FORCE_CONSTANTS": lambda name: write_FORCE_CONSTANTS(
                phonon.force_constants, filename=name, p2s_map=phonon.primitive.p2s_map
            ),
            "band.yaml": lambda name: phonon.write_yaml_band_structure(filename=name),
            "total_dos.dat": lambda name: phonon.write_total_dos(filename=name),
        }
        if (waves := self.long_waves) is not None:
            writers["BORN"] = lambda name: write_BORN(phonon.primitive, waves.born, waves.dielectric, filename=name)
        for name, write in writers.items():
            with atomic_path(folder / name) as temporary:
                write(str(temporary))
        if waves is None:
            (folder / "BORN").unlink(missing_ok=True)  # of an older run; phonopy would read it
        write_text(folder / "phonons.json", json.dumps(self.record(), indent=1) + "\n")
        return [folder / name for name in (*writers, "phonons.json")]


def phonons(
    atoms: Atoms,
    *,
    supercell: Sequence[int] | None = None,
    distance: float = 0.01,
    progress: Progress | None = None,
) -> Phonons:
    """Force constants by finite displacements, with the acoustic sum rule and all symmetries imposed.

    Args:
        atoms: with a calculator, at rest; not changed. phonopy knows right-handed cells only: of a left-handed cell it
            gets the same crystal with all three vectors reversed.
        supercell: how often the cell is repeated along its vectors; None for the fewest that make it `MIN_WIDTH` wide.
        distance: A, of each displacement.
        progress: called with the displacements done and a line.
    Raises:
        ConfigError: a number out of range. StructureError: not periodic in three directions.
        WorkflowError: forces on the undisplaced atoms, or forces that are not finite.
    """
    check_settings(supercell=supercell, distance=distance)
    if not atoms.pbc.all():
        raise StructureError(
            f"{atoms.get_chemical_formula()} is not periodic in all three directions, so it has no bands; set pbc"
        )
    repeats = fewest_repeats(atoms, MIN_WIDTH) if supercell is None else list(supercell)
    right_handed = atoms.copy()
    # exchanging two vectors would do too, but then neither repeats nor directions would be those of the caller
    right_handed.set_cell(atoms.cell.array * atoms.cell.handedness)
    unitcell = PhonopyAtoms(
        symbols=right_handed.get_chemical_symbols(),
        cell=right_handed.cell.array,
        scaled_positions=right_handed.get_scaled_positions(),
        masses=right_handed.get_masses(),
    )
    # "auto" would do the same, and warn of it
    primitive = guess_primitive_matrix(unitcell, symprec=SYMMETRY_PRECISION)
    phonon = Phonopy(unitcell, np.diag(repeats), primitive_matrix=primitive, symprec=SYMMETRY_PRECISION)
    phonon.generate_displacements(distance=distance)
    rest = _forces(phonon.supercell, atoms)
    residual = float(np.linalg.norm(rest, axis=1).max())
    if not residual < AT_REST:
        raise WorkflowError(
            f"forces up to {residual:.2g} eV/A act on the undisplaced atoms (at most {AT_REST:g}); relax the crystal "
            "first with lrpot relax"
        )
    forces = []
    for cell in phonon.supercells_with_displacements:
        forces.append(_forces(cell, atoms))
        if progress is not None:
            progress(len(forces), f"{len(cell)} atoms")
    phonon.forces = np.array(forces)
    if not np.isfinite(phonon.forces).all():
        raise WorkflowError("a displaced crystal has forces that are not finite; the model is outside its range")
    phonon.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
    drift = float(np.abs(phonon.force_constants.sum(axis=1)).max())
    phonon.symmetrize_force_constants(use_symfc_projector=True, show_drift=False)
    return Phonons(phonon, drift, residual)


def check_settings(*, supercell: Sequence[int] | None, distance: float) -> None:
    """Find out before any work whether `phonons` takes these.

    Raises:
        ConfigError: a number out of range.
    """
    if not 0 < distance < 1:
        raise ConfigError(f"distance = {distance:g} A: must be positive and less than 1")
    if supercell is not None and (len(supercell) != 3 or min(supercell) < 1):
        raise ConfigError(f"supercell = {supercell}: give three numbers of 1 or more")


def fewest_repeats(atoms: Atoms, width: float) -> list[int]:
    """How often a cell is to be repeated along each vector so that its planes are `width` (A) apart."""
    distances = 1.0 / np.linalg.norm(atoms.cell.reciprocal(), axis=1)
    # a cell that is just as wide must not be doubled by the last digit
    return [max(1, math.ceil(width / d - 1e-6)) for d in distances]


def supercell_of(phonon: Phonopy) -> tuple[Atoms, list[int]]:
    """The supercell as atoms, and which of them are those of the primitive cell."""
    return _atoms(phonon.supercell), [int(index) for index in phonon.primitive.p2s_map]


def _forces(cell: PhonopyAtoms, like: Atoms) -> np.ndarray:
    """(N, 3), eV/A, by the calculator of other atoms."""
    atoms = _atoms(cell)
    atoms.calc = like.calc
    if "charge" in like.info:  # of the cell that is repeated
        atoms.info["charge"] = like.info["charge"] * len(atoms) / len(like)
    return atoms.get_forces()


def _atoms(cell: PhonopyAtoms) -> Atoms:
    return Atoms(cell.symbols, scaled_positions=cell.scaled_positions, cell=cell.cell, masses=cell.masses, pbc=True)
