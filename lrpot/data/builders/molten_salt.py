"""NaCl from the cold crystal to the melt, with vacancies, labelled by the potential of Fumi and Tosi.

Rows go round through four kinds:

======== ==========================================================================================================
strained crystal at a random strain, its atoms displaced at random
hot      crystal after molecular dynamics at 100-1100 K, in a cell that has expanded with the temperature
vacancy  the same without one Na, one Cl, or one of each
melt     crystal molten at 4000 K and cooled to 1000-2000 K, in a cell of 15-70 % more volume
======== ==========================================================================================================

Each row holds energy (eV), forces (eV/A), stress (eV/A^3), and in its info: `row`, `seed`, `supercell`, `kind`,
`net_charge` (e; cells with a missing ion have the uniform background that neutralises them), `temperature` (K, of the
dynamics; 0 without). Dynamics amplify rounding, so a row is the same to the last digit only on the same processor with
the same versions of numpy and ASE.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin

from lrpot.data.builders.extxyz import extxyz_text
from lrpot.data.builders.rows import Progress, check_seed, write_rows
from lrpot.data.builders.tosi_fumi import CHARGES, TosiFumi
from lrpot.errors import ConfigError

KINDS = ("strained", "hot", "vacancy", "melt")

LATTICE_CONSTANT = 5.620  # A, where the static crystal of this potential has no stress
EXPANSION = 4.5e-5  # 1/K, linear; experiment has 4.0e-5 at room temperature and more in the heat
# Standard deviations of the strains along x, y and z, of cold crystals (-1.5 to 5 GPa) and of the others.
STRAIN, HOT_STRAIN = 0.03, 0.01
LARGEST_RATTLE = 0.15  # A
CRYSTAL_TEMPERATURES = (100.0, 1100.0)  # K; this NaCl melts at about 1070 K
MELT_TEMPERATURES = (1000.0, 2000.0)  # K
MELTING_TEMPERATURE = 4000.0  # K; a perfect crystal is gone within a picosecond
MELT_VOLUMES = (1.15, 1.7)  # of the melt over that of the crystal; at 1100 K and no pressure it is about 1.35
TIMESTEP = 3.0  # fs
STEPS = 100  # of the dynamics; a lattice vibration takes 100 to 200 fs
FRICTION = 0.02  # 1/fs


@dataclass(frozen=True)
class Recipe:
    """What decides a row besides its number."""

    supercell: int
    seed: int

    def __post_init__(self) -> None:
        if self.supercell < 1:
            raise ConfigError(f"supercell = {self.supercell}: give at least 1 cubic cell along each axis")
        check_seed(self.seed)


def build_molten_salt(
    out: Path,
    *,
    n: int,
    supercell: int = 2,
    seed: int = 0,
    jobs: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Compute `n` structures and write them to an extended XYZ file.

    The same call goes on with an interrupted build. Processes are spawned: a script must call this below
    `if __name__ == "__main__":`.

    Args:
        out: ends in .extxyz or .xyz.
        n: number of structures.
        supercell: cubic cells along each axis; N gives 8 N^3 atoms.
        seed: of all that is random.
        jobs: number of processes.
        overwrite: replace `out` if it is there.
        progress: called with (structures done, n).

    Raises:
        ConfigError: an impossible value; nothing has been written.
        OutputError, Interrupted, LrpotError: see `write_rows`.
    """
    out = Path(out)
    recipe = Recipe(supercell=supercell, seed=seed)
    record = {
        "builder": "molten salt",
        **asdict(recipe),
        "steps": STEPS,
        "numpy": version("numpy"),
        "ase": version("ase"),
    }
    make_row = partial(_row_text, recipe)
    write_rows(out, make_row, n=n, recipe=record, jobs=jobs, overwrite=overwrite, progress=progress)
    return out


def salt_structure(row: int, *, supercell: int = 2, seed: int = 0) -> Atoms:
    """One labelled structure; the text of this module says what it holds.

    Args:
        row: number of the structure in its data set; decides its kind, and with `seed` all that is random.
        supercell, seed: as in `build_molten_salt`.
    Raises:
        ConfigError: an impossible value.
    """
    return _labelled(row, Recipe(supercell=supercell, seed=seed))


def _row_text(recipe: Recipe, row: int) -> str:
    return extxyz_text(_labelled(row, recipe))


def _labelled(row: int, recipe: Recipe) -> Atoms:
    random = np.random.default_rng([recipe.seed, row])
    kind = KINDS[row % len(KINDS)]
    crystal = bulk("NaCl", "rocksalt", a=LATTICE_CONSTANT, cubic=True) * ((recipe.supercell,) * 3)
    atoms, temperature = _SAMPLERS[kind](crystal, random)
    atoms.calc = TosiFumi()
    results = {name: atoms.calc.get_property(name, atoms) for name in ("energy", "forces", "stress")}
    charge = sum(CHARGES[number] for number in atoms.numbers)
    labelled = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=True)
    # not `charge`, which readers take as the total to which a model's own charges must sum
    labelled.info = {"row": row, **asdict(recipe), "kind": kind, "temperature": temperature, "net_charge": charge}
    labelled.calc = SinglePointCalculator(labelled, **results)
    return labelled


def _strained(crystal: Atoms, random: np.random.Generator) -> tuple[Atoms, float]:
    atoms = _strain(crystal, STRAIN, random)
    atoms.positions += random.uniform(0.0, LARGEST_RATTLE) * random.standard_normal((len(atoms), 3))
    return atoms, 0.0


def _hot(crystal: Atoms, random: np.random.Generator, missing: tuple[int, ...] = ()) -> tuple[Atoms, float]:
    temperature = random.uniform(*CRYSTAL_TEMPERATURES)
    atoms = _strain(crystal, HOT_STRAIN, random, scale=1.0 + EXPANSION * temperature)
    del atoms[list(missing)]
    _run(atoms, temperature, random)
    return atoms, temperature


def _vacancy(crystal: Atoms, random: np.random.Generator) -> tuple[Atoms, float]:
    sodium, chlorine = (int(random.choice(np.flatnonzero(crystal.numbers == number))) for number in CHARGES)
    missing = ((sodium,), (chlorine,), (sodium, chlorine))[random.integers(3)]
    return _hot(crystal, random, missing)


def _melt(crystal: Atoms, random: np.random.Generator) -> tuple[Atoms, float]:
    temperature = random.uniform(*MELT_TEMPERATURES)
    atoms = _strain(crystal, HOT_STRAIN, random, scale=random.uniform(*MELT_VOLUMES) ** (1 / 3))
    _run(atoms, MELTING_TEMPERATURE, random)
    _run(atoms, temperature, random)
    return atoms, temperature


_SAMPLERS = {"strained": _strained, "hot": _hot, "vacancy": _vacancy, "melt": _melt}


def _strain(atoms: Atoms, size: float, random: np.random.Generator, scale: float = 1.0) -> Atoms:
    """The crystal, `scale` times as long, under a random strain: `size` is the standard deviation of its diagonal."""
    atoms = atoms.copy()
    strain = random.normal(0.0, size, (3, 3))
    atoms.set_cell(scale * atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2.0), scale_atoms=True)
    return atoms


def _run(atoms: Atoms, temperature: float, random: np.random.Generator) -> None:
    """A short run of Langevin dynamics, K; the atoms are left where it ends."""
    atoms.calc = TosiFumi()
    momenta = np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None] * random.standard_normal((len(atoms), 3))
    atoms.set_momenta(momenta)
    friction = FRICTION / units.fs
    Langevin(atoms, TIMESTEP * units.fs, temperature_K=temperature, friction=friction, fixcm=False, rng=random).run(
        STEPS
    )
