"""Gallium nitride with point defects, strained and hot, labelled by xTB or by another engine.

======================  ============  ======  ==================================================================
where                   shape         unit    meaning
======================  ============  ======  ==================================================================
`positions`             (n_atoms, 3)  A       not wrapped
`cell`                  (3, 3)        A       rows are lattice vectors of a supercell, strained
energy, forces          (), (n, 3)    eV, A   with an electronic temperature, the free energy and its slope
stress, charges         (6,), (n,)    eV, A,  where the engine has them; the charges are those of Mulliken
                                      e
info row, seed          ()                    both decide everything below
info phase, sites       ()                    wurtzite or zincblende; atoms of the perfect cell
info defect, defects    ()                    its class (`gan_defects`), and which defects stand in the cell
info source             ()                    strain, rattle or md: what moved the atoms
info temperature        ()            K       of which the displacements are; 0 for strain
info energy_offset      ()            eV      what the engine's energy exceeds `energy` by: the error of the cell
info engine, ...        ()                    method or calculator, and its settings
======================  ============  ======  ==================================================================

Atoms around a defect relax, and `md` moves atoms, by a classical potential (`tersoff`): labels cost seconds, and
plausible structures are all that is wanted. Each row is a single calculation by the engine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin
from ase.optimize import FIRE

from lrpot.data.builders.engine import Engine, LabelError, find_engine
from lrpot.data.builders.extxyz import extxyz_text
from lrpot.data.builders.gan_cells import PHASES, Lattice
from lrpot.data.builders.gan_defects import with_defects
from lrpot.data.builders.rows import FailedRow, Progress, check_seed, write_rows
from lrpot.data.builders.tersoff import Tersoff, Wall
from lrpot.errors import ConfigError, DataError

# How often a class of defects and a source are drawn. Any part of a set, from its first row on, is such a mix.
SHARES = {
    "none": 0.16,
    "vacancy": 0.18,
    "antisite": 0.14,
    "interstitial": 0.16,
    "frenkel": 0.10,
    "schottky": 0.08,
    "off_stoichiometric": 0.18,
}
SOURCES = {"strain": 0.2, "rattle": 0.4, "md": 0.4}

# Largest component of the strain tensor, drawn evenly between minus and plus this: of `strain`, and of the others,
# whose cells only breathe as those of a hot crystal do.
STRAIN, THERMAL_STRAIN = 0.03, 0.01
TEMPERATURES = (300.0, 1500.0)  # K, drawn evenly

# `rattle` displaces each atom by itself, as in an Einstein crystal: the variance of a component is k T over this force
# constant, -<F x> / <x^2> of xTB for such displacements.
EINSTEIN = 14.0  # eV/A^2
STRAIN_RATTLE = 0.02  # A, in strained cells, so that no atom stands on a place of symmetry

# The lattices of the classical potential. Its structures are carried over in fractions of the cell.
CLASSICAL = {"wurtzite": Lattice(a=3.1809, c=5.1944, u=0.375), "zincblende": Lattice(a=4.4985)}
# It leaves the neighbours of an antisite Ga 2.1 A away, where the self-consistent field of xTB has no end; at its own
# minimum they are at 2.4 A.
WALL = Wall(k=15.0, R=2.6)
RELAXATION = 50  # steps: the force of a new defect is gone, its place is kept
MD_STEPS, MD_STEP, MD_FRICTION = 200, 1.0, 0.02  # , fs, 1/fs: some periods of the optical phonons


@dataclass(frozen=True)
class Recipe:
    """What decides a row besides its number and the engine; as in `build_gan`."""

    seed: int
    scale: float

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not 0.8 <= self.scale <= 1.25:  # also refuses nan
            raise ConfigError(f"scale = {self.scale}: is no lattice of GaN; give 0.8 to 1.25, 1 for that of xTB")


def build_gan(
    out: Path,
    *,
    n: int,
    seed: int = 0,
    calculator: str | None = None,
    scale: float = 1.0,
    jobs: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[int, FailedRow]:
    """Compute rows 0 to `n` - 1 and write them to an extended XYZ file.

    The file is the same to the byte for any `jobs` on one kind of machine; its first rows are the same for any `n`.
    The same call goes on with an interrupted build. Rows that the engine gave no sound labels for are left out and
    recorded in `<out>.failed.json`. Processes are spawned: a script must call this below
    `if __name__ == "__main__":`.

    Args:
        out: ends in .extxyz or .xyz.
        n: number of structures to compute.
        seed: of everything random.
        calculator: None for xTB by tblite, else `module:factory`, where factory() gives a calculator of ASE.
        scale: lattice constants of that calculator over those of xTB, about which cells are strained.
        jobs: number of processes, of one thread each.
        overwrite: replace `out` if it is there.
        progress: called with (structures done, n).
    Returns:
        The rows that failed.

    Raises:
        ConfigError: an impossible value, or an engine that is not there; nothing has been written.
        OutputError, Interrupted, LrpotError: see `write_rows`.
    """
    out = Path(out)
    recipe = Recipe(seed=seed, scale=float(scale))
    engine = find_engine(calculator)
    record = {
        "builder": "gan",
        **asdict(recipe),
        "engine": engine.name,
        **engine.settings,
        "engine_release": engine.release,
        # another release may draw or move atoms in another way
        "numpy": version("numpy"),
        "ase": version("ase"),
    }
    make_row = partial(_row, recipe, calculator)
    return write_rows(out, make_row, n=n, recipe=record, jobs=jobs, overwrite=overwrite, progress=progress)


def gan_structure(row: int, *, seed: int = 0, calculator: str | None = None, scale: float = 1.0) -> Atoms:
    """One structure with its labels; the table of this module says what it holds.

    Args:
        row: number of the structure in its data set; with `seed`, the seed of its random numbers.
        seed, calculator, scale: as in `build_gan`.

    Raises:
        ConfigError: an impossible value, or an engine that is not there.
        DataError: the engine gave no sound labels.
    """
    engine = find_engine(calculator)
    atoms = _drawn(row, Recipe(seed=seed, scale=scale))
    try:
        return _labelled(atoms, engine)
    except LabelError as error:
        raise DataError(f"row {row}: {error}; take another row or seed") from error


def _row(recipe: Recipe, calculator: str | None, row: int) -> str | FailedRow:
    engine = find_engine(calculator)
    atoms = _drawn(row, recipe)
    try:
        return extxyz_text(_labelled(atoms, engine))
    except LabelError as error:
        return FailedRow(str(error), {**atoms.info, "engine": engine.name, **engine.settings})


def _labelled(atoms: Atoms, engine: Engine) -> Atoms:
    labels = engine.label(atoms)
    # known of xTB alone
    offset = PHASES[atoms.info["phase"]].error * atoms.info["sites"] if engine.release else 0.0
    labels["energy"] = labels["energy"] - offset
    atoms.calc = SinglePointCalculator(atoms, **labels)
    atoms.info |= {"energy_offset": offset, "engine": engine.name, **engine.settings}
    return atoms


def _drawn(row: int, recipe: Recipe) -> Atoms:
    """A structure without labels."""
    random = np.random.default_rng([recipe.seed, row])
    name = str(random.choice(list(PHASES)))
    kind = str(random.choice(list(SHARES), p=list(SHARES.values())))
    source = str(random.choice(list(SOURCES), p=list(SOURCES.values())))
    temperature = 0.0 if source == "strain" else float(random.uniform(*TEMPERATURES))
    phase = PHASES[name]
    atoms, defects = with_defects(phase.crystal(CLASSICAL[name]), phase.void_positions(CLASSICAL[name]), kind, random)
    sites = len(phase.crystal())
    _move_classically(atoms, temperature if source == "md" else 0.0, random, relax=bool(defects))

    largest = STRAIN if source == "strain" else THERMAL_STRAIN
    components = random.uniform(-largest, largest, size=(3, 3))
    strain = np.eye(3) + 0.5 * (components + components.T)
    atoms.set_cell(recipe.scale * phase.crystal().cell.array @ strain, scale_atoms=True)
    if source != "md":
        width = STRAIN_RATTLE if source == "strain" else float(np.sqrt(units.kB * temperature / EINSTEIN))
        atoms.positions += width * random.standard_normal((len(atoms), 3))
    atoms.info = {
        "row": row,
        "seed": recipe.seed,
        "phase": name,
        "sites": sites,
        "defect": kind,
        "defects": "+".join(defects) or "none",
        "source": source,
        "temperature": temperature,
        "scale": recipe.scale,
    }
    return atoms


def _move_classically(atoms: Atoms, temperature: float, random: np.random.Generator, *, relax: bool) -> None:
    """Relax the atoms, and let them move at this temperature, K, in their cell; 0 for none."""
    atoms.calc = Tersoff(WALL)
    if relax:
        FIRE(atoms, logfile=None).run(fmax=0.05, steps=RELAXATION)
    if temperature:
        # half of it turns into potential energy within a period
        widths = np.sqrt(atoms.get_masses() * (units.kB * 2 * temperature))
        atoms.set_momenta(widths[:, None] * random.standard_normal((len(atoms), 3)))
        Langevin(
            atoms,
            MD_STEP * units.fs,
            temperature_K=temperature,
            friction=MD_FRICTION / units.fs,
            fixcm=False,
            rng=random,
        ).run(MD_STEPS)
        atoms.set_momenta(None)
    atoms.calc = None
