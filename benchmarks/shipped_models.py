"""Models that come with lrpot, used, beside the method that labelled their data.

    python benchmarks/shipped_models.py [NAME ...] [--only WORD]     (goes on where it was stopped)

Lattice, bulk modulus, phonons and vacancies are computed twice, by the same code and in the same supercell: with the
model and with the labelling method. The dynamics, of more atoms than the fit saw, is the model's alone; forces of some
of its frames are computed by both where the labels are cheap. Phonons need phonopy (pip install 'lrpot[phonons]'),
and GaN tblite (pip install 'lrpot[xtb]').
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.calculators.calculator import Calculator
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from phonopy import Phonopy
from phonopy.harmonic.dynmat_to_fc import get_commensurate_points
from phonopy.structure.atoms import PhonopyAtoms
from timing import RESULTS, machine, write

from lrpot import LRCalculator
from lrpot.data.builders.engine import find_engine
from lrpot.data.builders.gan_cells import PHASES
from lrpot.data.builders.tosi_fumi import TosiFumi
from lrpot.md import run_md
from lrpot.shipped import read_card, shipped_models
from lrpot.units import GPA

RESULT = RESULTS / "shipped_models.json"
TIGHT, LOOSE = 1e-3, 1e-2  # eV/A: largest force that a relaxed crystal may have, and one with a vacancy
SCALES = np.linspace(0.98, 1.02, 7)  # of the lattice, for the bulk modulus
DISPLACEMENT = 0.02  # A, of the phonons' finite differences
PICOSECONDS, TIMESTEP, INTERVAL = 10.0, 2.0, 50  # of the dynamics: fs, steps between frames
REACH = 8.0  # A, of g(r)


@dataclass(frozen=True)
class Dynamics:
    """A run at one temperature (K), in a cell of `volume` times that of the relaxed crystal."""

    temperature: float
    volume: float = 1.0


@dataclass(frozen=True)
class Case:
    """How a model is checked.

    Attributes:
        labels: makes the calculator that labelled its data.
        unit: a cell of the crystal. supercell: in which all but the dynamics is computed, rows in its vectors.
        lattice: lattice constants, A, from the lattice vectors of the unit cell.
        large: a cell for the dynamics, with the lattice vectors and positions of a relaxed unit cell.
        dynamics: runs. labelled: frames of each whose forces are labelled too.
    """

    labels: Callable[[], Calculator]
    unit: Atoms
    supercell: np.ndarray
    lattice: Callable[[np.ndarray], dict[str, float]]
    large: Callable[[Atoms], Atoms]
    dynamics: dict[str, Dynamics]
    labelled: int


CASES = {
    "nacl": Case(
        labels=TosiFumi,
        unit=bulk("NaCl", "rocksalt", a=5.64),
        supercell=np.diag((4, 4, 4)),
        lattice=lambda cell: {"a": (4.0 * abs(np.linalg.det(cell))) ** (1 / 3)},
        large=lambda unit: bulk("NaCl", "rocksalt", a=(4.0 * unit.get_volume()) ** (1 / 3), cubic=True) * (4, 4, 4),
        dynamics={"crystal": Dynamics(300.0), "melt": Dynamics(1400.0, volume=1.4)},
        labelled=5,
    ),
    "gan": Case(
        labels=lambda: find_engine(None).make(),
        unit=bulk("GaN", "wurtzite", a=3.19, c=5.19, u=0.377),
        # that of the data, for tight binding at Gamma depends on it
        supercell=np.array(PHASES["wurtzite"].vectors),
        lattice=lambda cell: {"a": float(np.linalg.norm(cell[0])), "c": float(np.linalg.norm(cell[2]))},
        large=lambda unit: unit * (6, 6, 4),
        dynamics={"crystal": Dynamics(300.0)},
        labelled=0,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CASES)} (default: all that come with lrpot)")
    parser.add_argument("--only", default="", help="checks whose name holds this word")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULT.read_text())["models"] if RESULT.is_file() else {}
    for name in arguments.names or shipped_models():
        sha256 = read_card(name).sha256
        if results.get(name, {}).get("sha256") != sha256:
            # what the labelling method gives does not depend on the model
            labels = {key: value for key, value in results.get(name, {}).items() if key == "labels"}
            results[name] = {"sha256": sha256, "dynamics": {}, **labels}
        for check in checks(name):
            if arguments.only in check and check not in (results[name] | results[name]["dynamics"]):
                started = time.perf_counter()
                check_one(name, check, results[name])
                write("shipped_models", {"machine": machine(), "models": results})
                print(f"{name}, {check}: {time.perf_counter() - started:.0f} s", flush=True)


def checks(name: str) -> list[str]:
    return ["labels", "model", *CASES[name].dynamics]


def check_one(name: str, check: str, found: dict[str, Any]) -> None:
    """Do one check and put what it finds in its place."""
    case = CASES[name]
    if check == "labels":
        found[check] = measure(case, case.labels)
    elif check == "model":
        found[check] = measure(case, lambda: LRCalculator(f"{name}.pt"))
    else:
        crystal = relaxed_unit(case, LRCalculator(f"{name}.pt"))
        found["dynamics"][check] = simulate(
            case, case.dynamics[check], case.large(crystal), LRCalculator(f"{name}.pt", skin=0.5)
        )


def measure(case: Case, make: Callable[[], Calculator]) -> dict[str, Any]:
    """Lattice constants (A), bulk modulus (GPa), frequencies (THz), vacancies (eV)."""
    calculator = make()
    unit = relaxed_unit(case, calculator)
    return {
        "lattice": case.lattice(unit.cell.array),
        "bulk modulus": bulk_modulus(make_supercell(unit, case.supercell), calculator),
        "phonons": frequencies(unit, case.supercell, calculator),
        "vacancies": vacancies(make_supercell(unit, case.supercell), calculator),
    }


def relaxed_unit(case: Case, calculator: Calculator) -> Atoms:
    """The unit cell at zero stress, as it is in the supercell."""
    atoms = make_supercell(case.unit, case.supercell)
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=TIGHT, steps=200)
    unit = atoms[: len(case.unit)]
    unit.set_cell(np.linalg.solve(case.supercell, atoms.cell.array))
    return unit


def bulk_modulus(crystal: Atoms, calculator: Calculator) -> float:
    """GPa, by Birch and Murnaghan; atoms are relaxed at every volume, the shape of the cell is kept."""
    volumes, energies = [], []
    for scale in SCALES:
        atoms = crystal.copy()
        atoms.set_cell(scale * atoms.cell.array, scale_atoms=True)
        energies.append(relaxed_energy(atoms, calculator, TIGHT))
        volumes.append(atoms.get_volume())
    return float(EquationOfState(volumes, energies, eos="birchmurnaghan").fit()[2]) * GPA


def relaxed_energy(atoms: Atoms, calculator: Calculator, fmax: float) -> float:
    """eV, with the atoms relaxed in a fixed cell."""
    atoms.calc = calculator
    BFGS(atoms, logfile=None).run(fmax=fmax, steps=300)
    return float(atoms.get_potential_energy())


def frequencies(unit: Atoms, supercell: np.ndarray, calculator: Calculator) -> list[list[float]]:
    """THz, ascending at each wave vector that the supercell holds, for which its force constants are exact; those of
    unstable modes are negative. Longitudinal waves at Gamma lack the field that only an infinite crystal has."""
    cell = PhonopyAtoms(unit.get_chemical_symbols(), cell=unit.cell.array, positions=unit.positions)
    # phonopy has lattice vectors in columns
    phonons = Phonopy(cell, supercell_matrix=supercell.T, primitive_matrix="P")
    phonons.generate_displacements(distance=DISPLACEMENT)
    forces = []
    for moved in phonons.supercells_with_displacements:
        atoms = Atoms(moved.symbols, cell=moved.cell, positions=moved.positions, pbc=True, calculator=calculator)
        forces.append(atoms.get_forces())
    phonons.forces = np.array(forces)
    phonons.produce_force_constants()
    phonons.symmetrize_force_constants()
    found = [phonons.get_frequencies(q) for q in get_commensurate_points(phonons.supercell_matrix)]
    return np.round(found, 4).tolist()


def vacancies(crystal: Atoms, calculator: Calculator) -> dict[str, float]:
    """Formation energies, eV, of one vacancy of each kind: far apart (in a cell each), and side by side.

    No chemical potential is needed, for what is taken out makes one more formula unit of the crystal.
    """
    n_atoms = len(crystal)
    perfect = relaxed_energy(crystal.copy(), calculator, LOOSE)
    first = 0
    distances = crystal.get_distances(first, range(n_atoms), mic=True)
    distances[crystal.numbers == crystal.numbers[first]] = np.inf
    second = int(distances.argmin())

    def energy(*missing: int) -> float:
        atoms = crystal.copy()
        del atoms[list(missing)]
        return relaxed_energy(atoms, calculator, LOOSE)

    return {
        "apart": energy(first) + energy(second) - 2.0 * perfect * (n_atoms - 1) / n_atoms,
        "pair": energy(first, second) - perfect * (n_atoms - 2) / n_atoms,
    }


def simulate(case: Case, run: Dynamics, atoms: Atoms, calculator: Calculator) -> dict[str, Any]:
    """NVT dynamics; what is averaged, is so over its second half."""
    atoms.set_cell(run.volume ** (1 / 3) * atoms.cell.array, scale_atoms=True)
    atoms.calc = calculator
    steps = round(1e3 * PICOSECONDS / TIMESTEP)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "md.traj"
        done = run_md(
            atoms,
            ensemble="nvt",
            temperature=run.temperature,
            steps=steps,
            timestep=TIMESTEP,
            interval=INTERVAL,
            trajectory=file,
            progress=lambda step, note: print(step, note, flush=True) if step % 500 == 0 else None,
        )
        frames = read(file, ":")
    half = frames[len(frames) // 2 :]
    temperatures = done.temperature[len(frames) // 2 :]
    distances = [neighbor_list("d", frame, REACH) for frame in frames]
    found = {
        "atoms": len(atoms),
        "picoseconds": steps * TIMESTEP / 1e3,
        "bath (K)": run.temperature,
        "temperature (K)": float(np.mean(temperatures)),
        "first peak of g(r) (A)": first_peak(np.concatenate(distances[len(frames) // 2 :])),
        "nearest atoms (A)": float(min(d.min() for d in distances)),
    }
    if case.labelled:
        found["forces (eV/A)"] = force_errors(half[:: max(1, len(half) // case.labelled)], case.labels())
    return found


def first_peak(distances: np.ndarray) -> float:
    """A: where g(r) of all atoms is highest."""
    counts, edges = np.histogram(distances, bins=160, range=(0.0, REACH))
    middles = (edges[1:] + edges[:-1]) / 2.0
    return float(middles[(counts / middles**2).argmax()])


def force_errors(frames: list[Atoms], labels: Calculator) -> dict[str, float]:
    """Of the model's forces, which the frames hold."""
    differences, sizes = [], []
    for frame in frames:
        labelled = frame.copy()
        labelled.calc = labels
        forces = labelled.get_forces()
        differences.append((frame.get_forces() - forces).ravel())
        sizes.append(forces.ravel())
    return {
        "mae": float(np.abs(np.concatenate(differences)).mean()),
        "rms of the labels": float(np.sqrt((np.concatenate(sizes) ** 2).mean())),
    }


if __name__ == "__main__":
    main()
