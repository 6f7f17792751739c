"""The model system of Yu et al.: rattled rock salt, held by Coulomb's law between fixed charges alone.

Labels are the Ewald energy and forces of pymatgen. For each structure:

======================  ============  =====  ============================================================
where                   shape         unit   meaning
======================  ============  =====  ============================================================
`positions`             (n_atoms, 3)  A      lattice sites + Gaussian displacements, not wrapped
`cell`                  (3, 3)        A      rows are lattice vectors: `supercell` times the primitive ones
energy, forces          (), (n, 3)    eV, A  total Ewald energy; charged cells with the uniform background
info energy_reciprocal  ()            eV     sum over k of that energy. It depends on `eta`: no observable
info net_charge         ()            e      0, or -1 / +1 where a Na / Cl is missing
info row, seed          ()                   both decide the displacements, and the site of a vacancy
info supercell, defect  ()                   as asked for
info rattle             ()            A      standard deviation of each Cartesian displacement
info eta                ()            1/A^2  splitting of the Ewald sum
======================  ============  =====  ============================================================

Source: Yu et al. 2022 (arXiv:2211.16684), Table 2 and the text before it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from lrpot.data.builders.extxyz import extxyz_text
from lrpot.data.builders.rows import Progress, check_seed, write_rows
from lrpot.errors import ConfigError
from lrpot.units import COULOMB_CONSTANT

LATTICE_CONSTANT = 5.64  # A, cubic cell: the conventional experimental value at room temperature
CHARGES = {"Na": 1, "Cl": -1}  # e
DEFECTS = ("none", "vacancy")

# One splitting for all sizes: pymatgen's default depends on the number of atoms and the volume, so that
# `energy_reciprocal` would be another quantity for each size. Among settings that agree with any other
# splitting to 1e-10 these are the quickest for 54 and for 432 atoms.
ETA = 0.1  # 1/A^2: the charges are screened by exp(-eta r^2)
ACC_FACTOR = 12.0  # significant digits of each of the two sums

# Nothing keeps point charges apart. At this rattle two neighbours, 2.82 A apart, come closer than 0.5 A in
# less than one of 1e10 draws; its rms displacement, 15 % of their distance, is already that of a melt.
MAX_RATTLE = 0.25  # A


@dataclass(frozen=True)
class Recipe:
    """What decides a row besides its number; units as in `build_nacl`."""

    supercell: int
    rattle: float
    seed: int
    defect: str

    def __post_init__(self) -> None:
        if self.supercell < 1:
            raise ConfigError(f"supercell = {self.supercell}: give at least 1 primitive cell per vector")
        if not 0 <= self.rattle <= MAX_RATTLE:  # also refuses nan
            raise ConfigError(
                f"rattle = {self.rattle} A: beyond {MAX_RATTLE} A atoms may overlap; give 0 to {MAX_RATTLE} A"
            )
        check_seed(self.seed)
        if self.defect not in DEFECTS:
            raise ConfigError(f"defect = {self.defect!r}: is unknown; give one of {', '.join(DEFECTS)}")


def build_nacl(
    out: Path,
    *,
    n: int,
    supercell: int = 3,
    rattle: float = 0.1,
    seed: int = 0,
    defect: str = "none",
    jobs: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Compute `n` rattled NaCl crystals with Ewald labels and write them to an extended XYZ file.

    The file is the same to the byte for any `jobs`; its first rows are the same for any `n`. The same call
    goes on with an interrupted build. Processes are spawned: a script must call this below
    `if __name__ == "__main__":`.

    Args:
        out: ends in .extxyz or .xyz.
        n: number of structures.
        supercell: primitive cells along each lattice vector; N gives 2 N^3 atoms.
        rattle: standard deviation of the displacement along x, y and z, A.
        seed: of displacements and vacancies.
        defect: "none", or "vacancy": one Na or Cl, chosen at random, is missing.
        jobs: number of processes.
        overwrite: replace `out` if it is there.
        progress: called with (structures done, n).

    Raises:
        ConfigError: an impossible value; nothing has been written.
        OutputError, Interrupted, LrpotError: see `write_rows`.
    """
    out = Path(out)
    recipe = Recipe(supercell=supercell, rattle=float(rattle), seed=seed, defect=defect)
    record = {
        "builder": "nacl",
        **asdict(recipe),
        "lattice_constant": LATTICE_CONSTANT,
        "eta": ETA,
        "acc_factor": ACC_FACTOR,
        # another release may sum in another order, and the file would depend on where it was interrupted
        "numpy": version("numpy"),
        "pymatgen": version("pymatgen"),
    }
    make_row = partial(_row_text, recipe)
    write_rows(out, make_row, n=n, recipe=record, jobs=jobs, overwrite=overwrite, progress=progress)
    return out


def nacl_structure(row: int, *, supercell: int = 3, rattle: float = 0.1, seed: int = 0, defect: str = "none") -> Atoms:
    """One rattled NaCl crystal with its Ewald labels; the table of this module says what it holds.

    The vacancy is drawn after the displacements: row i with a vacancy is row i without, less one atom.

    Args:
        row: number of the structure in its data set; with `seed`, the seed of its random numbers.
        supercell, rattle, seed, defect: as in `build_nacl`.

    Raises:
        ConfigError: an impossible value.
    """
    return _labelled(row, Recipe(supercell=supercell, rattle=rattle, seed=seed, defect=defect))


def atoms_per_structure(supercell: int, defect: str) -> int:
    """Number of atoms in each structure of a data set."""
    return 2 * supercell**3 - (defect == "vacancy")


def _row_text(recipe: Recipe, row: int) -> str:
    return extxyz_text(_labelled(row, recipe))


def _labelled(row: int, recipe: Recipe) -> Atoms:
    atoms = _rattled(row, recipe)
    energy, energy_reciprocal, forces = _ewald(atoms)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    atoms.info = {
        "row": row,
        **asdict(recipe),
        "eta": ETA,
        # not `charge`: readers take that as the total to which a model's own charges must sum, while here
        # each ion keeps its charge and the background neutralises the cell
        "net_charge": float(sum(CHARGES[symbol] for symbol in atoms.symbols)),
        "energy_reciprocal": energy_reciprocal,
    }
    return atoms


def _rattled(row: int, recipe: Recipe) -> Atoms:
    random = np.random.default_rng([recipe.seed, row])
    atoms = bulk("NaCl", "rocksalt", a=LATTICE_CONSTANT) * ((recipe.supercell,) * 3)
    atoms.positions += recipe.rattle * random.standard_normal((len(atoms), 3))
    if recipe.defect == "vacancy":
        del atoms[int(random.integers(len(atoms)))]
    return atoms


def _ewald(atoms: Atoms, *, eta: float = ETA) -> tuple[float, float, np.ndarray]:
    """Total and reciprocal energy (eV) and forces ((n_atoms, 3), eV/A) of the fixed charges.

    For a charged cell the total holds the energy of the uniform neutralising background,
    -pi C Q^2 / (2 V eta), C = e^2 / (4 pi epsilon_0), without which it would depend on `eta`. Being uniform,
    the background exerts no force.
    """
    from pymatgen.analysis.ewald import EwaldSummation
    from pymatgen.core import Species, Structure

    species = {symbol: Species(symbol, charge) for symbol, charge in CHARGES.items()}
    crystal = Structure(
        atoms.cell.array,
        [species[symbol] for symbol in atoms.symbols],
        atoms.positions,
        coords_are_cartesian=True,
    )
    ewald = EwaldSummation(crystal, eta=eta, acc_factor=ACC_FACTOR, compute_forces=True)
    scale = COULOMB_CONSTANT / EwaldSummation.CONV_FACT  # which follows the version of scipy, in the tenth digit
    return scale * float(ewald.total_energy), scale * float(ewald.reciprocal_space_energy), scale * ewald.forces
