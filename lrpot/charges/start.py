"""The charges a fit starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula

from lrpot.charges.born import charges_from_born
from lrpot.charges.charge_file import read_charges, table_charges
from lrpot.charges.prefit import Prefit, PrefitRefused, fit_charges
from lrpot.config import ChargesConfig
from lrpot.data.sources import named
from lrpot.errors import ConfigError
from lrpot.structure import Structure

# Enough equations for some hundred unknowns; more frames change nothing and cost time.
MAX_ATOMS = 6000

# Oxidation states are guessed by trying all: some tenths of a second for so many, years for a large cell with a defect.
MAX_TRIALS = 20_000
# A formula that would take longer is stood for by a close one of at most so many atoms.
MAX_SITES = 24

# Screening makes charges smaller; a factor above one by more than this is no screening.
SAME = 0.05

NO_COULOMB = "it needs a Coulomb kernel with its complement"


@dataclass(frozen=True)
class StartingCharges:
    """Charges before a fit.

    Attributes:
        values: e, by atomic number.
        origin: a sentence on where they come from.
        guessed: whether the forces were asked and did not tell.
    """

    values: dict[int, float]
    origin: str
    guessed: bool = False


def starting_charges(
    config: ChargesConfig,
    structures: Sequence[Structure],
    *,
    coulomb: bool = True,
    source: str | Path | Sequence[Path] | None = None,
) -> StartingCharges:
    """Charges as `config.init` asks; where the prefit refuses, oxidation states, and the reason is told.

    Args:
        config: the section of the configuration.
        structures: training data.
        coulomb: whether the kernel is the whole Coulomb interaction, so that fitted charges mean something to it.
        source: the file or files of the training data, for labels that structures do not hold.
    Raises:
        ConfigError: a table that lacks an element of the data or names something else; Born charges that are nowhere.
    """
    elements = sorted({int(z) for s in structures for z in s.numbers.unique()})
    given = given_charges(config, elements, source)
    if given is not None:
        return given
    fit, refusal = _prefit(config, structures, elements) if coulomb else (None, NO_COULOMB)
    if config.init == "prefit" and fit is not None and refusal is None:
        n_too_large = fit.found.n_too_large
        left_out = f"{n_too_large} left out for large forces; " if n_too_large else ""
        return StartingCharges(
            fit.charges,
            f"linear prefit to {fit.found.n_frames - n_too_large} structures "
            f"({left_out}pair cutoff {fit.best.pair_cutoff:g} A; Coulomb explains {fit.best.explained:.0%} of what "
            f"pair splines leave; rank-one share {fit.best.rank_one:.3f})",
        )
    values, origin = _oxidation(structures, elements)
    factor = fit.scale_of(values) if fit is not None else None
    if factor is not None and factor <= 1.0 + SAME:
        values = {z: factor * charge for z, charge in values.items()}
        origin += f" times {factor:.3f}, the screening factor that fits the forces best"
    elif any(values.values()):
        origin += ", not screened: the forces give no factor"
    if config.init == "prefit":
        origin += f" (the prefit was refused: {refusal})"
    return StartingCharges(values, origin, guessed=coulomb and config.init == "prefit")


def given_charges(
    config: ChargesConfig, elements: Sequence[int], source: str | Path | Sequence[Path] | None
) -> StartingCharges | None:
    """Charges that need no structures; None where the configuration asks for others.

    Args:
        config: the section of the configuration.
        elements: atomic numbers that need a charge.
        source: the file or files of the training data, which may hold Born charges.
    Raises:
        ConfigError: a table or a file that lacks an element or names something else; Born charges that are nowhere.
    """
    if isinstance(config.init, dict):
        return StartingCharges(table_charges(config.init, elements), "the table in model.charges.init")
    if config.init == "zero":
        return StartingCharges(dict.fromkeys(elements, 0.0), "zero")
    if config.init == "born":
        labels = config.born or source
        if labels is None:
            raise ConfigError("model.charges.init = born needs a file of Born charges; set model.charges.born")
        values, origin = charges_from_born(labels)
        table = {chemical_symbols[z]: charge for z, charge in values.items()}
        return StartingCharges(table_charges(table, elements, where=named(labels)), origin)
    if config.init not in ("prefit", "oxidation"):
        return StartingCharges(table_charges(read_charges(config.init), elements, where=config.init), config.init)
    return None


def _prefit(
    config: ChargesConfig, structures: Sequence[Structure], elements: Sequence[int]
) -> tuple[Prefit | None, str | None]:
    """The fit, if there is anything to fit, and why its charges are refused."""
    chosen = _spread(structures)
    pair_cutoff = None if config.pair_cutoff == "auto" else float(config.pair_cutoff)
    try:
        fit = fit_charges(chosen, pair_cutoff=pair_cutoff, sum_molecules=config.sum_molecules)
    except PrefitRefused as refusal:
        return None, str(refusal)
    missing = [chemical_symbols[z] for z in elements if z not in fit.elements]
    return fit, f"no forces of {', '.join(missing)}" if missing else fit.refusal


def _spread(structures: Sequence[Structure]) -> list[Structure]:
    """Periodic structures with forces from all over the list, until they hold MAX_ATOMS atoms."""
    # by their places: the structures of a large set are read one at a time
    usable = {i: s.num_nodes for i, s in enumerate(structures) if "forces" in s and bool(s.pbc.all())}
    if not usable:
        return []
    places, mean = list(usable), sum(usable.values()) / len(usable)
    count = max(1, min(len(places), int(MAX_ATOMS / mean)))
    return [structures[places[i]] for i in np.linspace(0, len(places) - 1, count).round().astype(int)]


def _oxidation(structures: Sequence[Structure], elements: list[int]) -> tuple[dict[int, float], str]:
    """Mean oxidation states of the most frequent composition, by pymatgen's guess."""
    from pymatgen.core import Composition

    formulas = Counter(
        Formula.from_list([chemical_symbols[z] for z in s.numbers.tolist()]).reduce()[0].format("hill")
        for s in structures
    )
    for formula, _ in formulas.most_common(5):
        counts = _countable(Formula(formula).count())
        guesses = Composition(counts).oxi_state_guesses(max_sites=-1) if counts else ()
        if guesses:
            values = {z: float(guesses[0].get(chemical_symbols[z], 0.0)) for z in elements}
            close = Formula.from_dict(counts).format("hill")
            return values, f"oxidation states of {close}{'' if close == formula else f', which is close to {formula}'}"
    return dict.fromkeys(elements, 0.0), "zero (no oxidation states could be guessed)"


def _countable(counts: dict[str, int]) -> dict[str, int]:
    """Atoms by symbol in the stoichiometry closest to this one whose oxidation states can be guessed by trying them
    all: this one, or as for a cell with a defect that of a few atoms; {} if there is none."""
    if _trials(counts) <= MAX_TRIALS:
        return counts
    total = sum(counts.values())
    found, least = {}, np.inf
    for size in range(len(counts), MAX_SITES + 1):
        fewer = {symbol: max(1, round(n * size / total)) for symbol, n in counts.items()}
        sites = sum(fewer.values())
        error = sum(abs(fewer[symbol] / sites - n / total) for symbol, n in counts.items())
        if error < least and _trials(fewer) <= MAX_TRIALS:
            found, least = fewer, error
    return found


def _trials(counts: Mapping[str, int]) -> int:
    """How much pymatgen looks at: each atom in all sets of states of an element's atoms, and all sets of their sums."""
    from pymatgen.core import Element

    sets, sums = 0, 1
    for symbol, n in counts.items():
        states = Element(symbol).icsd_oxidation_states or Element(symbol).common_oxidation_states
        sets += n * comb(n + len(states) - 1, n)
        sums *= 1 + n * (max(states, default=0) - min(states, default=0))
    return sets + sums
