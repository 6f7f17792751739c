"""The charges a fit starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ase.data import atomic_numbers, chemical_symbols
from ase.formula import Formula
from torch import nn

from lrpot.charges.prefit import PrefitRefused, prefit_charges
from lrpot.config import ChargesConfig
from lrpot.errors import ConfigError
from lrpot.kspace import CoulombComplement, ReciprocalSum
from lrpot.structure import Structure


@dataclass(frozen=True)
class StartingCharges:
    """Charges in e by atomic number, and a sentence on where they come from."""

    values: dict[int, float]
    origin: str


def starting_charges(
    config: ChargesConfig,
    structures: Sequence[Structure],
    reciprocal: ReciprocalSum,
    complement: nn.Module | None,
) -> StartingCharges:
    """Charges as `config.init` asks; where the prefit refuses, oxidation states, and the reason is told.

    Raises:
        ConfigError: a table that lacks an element of the data or names something else.
    """
    elements = sorted({int(z) for s in structures for z in s.numbers.unique()})
    if isinstance(config.init, dict):
        return StartingCharges(table_charges(config.init, elements), "the table in model.charges.init")
    if config.init == "zero":
        return StartingCharges(dict.fromkeys(elements, 0.0), "zero")
    if config.init == "prefit" and isinstance(complement, CoulombComplement):
        try:
            fit = prefit_charges(structures, reciprocal, complement, pair_cutoff=config.pair_cutoff)
        except PrefitRefused as reason:
            values, origin = _oxidation(structures, elements)
            return StartingCharges(values, f"{origin} (the prefit was refused: {reason})")
        return StartingCharges(
            fit.charges,
            f"linear prefit to {fit.n_structures} structures (pair cutoff {fit.pair_cutoff:g} A; Coulomb explains "
            f"{fit.explained:.0%} of what pair splines leave; rank-one share {fit.rank_one:.3f})",
        )
    values, origin = _oxidation(structures, elements)
    if config.init == "prefit":
        origin += " (the prefit needs a Coulomb kernel with its complement)"
    return StartingCharges(values, origin)


def table_charges(table: Mapping[str, float], elements: Sequence[int]) -> dict[int, float]:
    """Charges in e by atomic number from a table by symbol.

    Raises:
        ConfigError: it lacks one of the elements, or names something else.
    """
    wrong = [symbol for symbol in table if symbol not in atomic_numbers]
    if wrong:
        raise ConfigError(f"model.charges.init: {wrong[0]} is not an element; use symbols such as Na")
    values = {atomic_numbers[symbol]: float(charge) for symbol, charge in table.items()}
    missing = [chemical_symbols[z] for z in elements if z not in values]
    if missing:
        raise ConfigError(f"model.charges.init has no charge for {', '.join(missing)}; add it to the table")
    return {z: values[z] for z in elements}


def _oxidation(structures: Sequence[Structure], elements: list[int]) -> tuple[dict[int, float], str]:
    """Mean oxidation states of the most frequent composition, by pymatgen's guess."""
    from pymatgen.core import Composition

    formulas = Counter(
        Formula.from_list([chemical_symbols[z] for z in s.numbers.tolist()]).reduce()[0].format("hill")
        for s in structures
    )
    for formula, _ in formulas.most_common(5):
        guesses = Composition(formula).oxi_state_guesses(max_sites=-1)
        if guesses:
            values = {z: float(guesses[0].get(chemical_symbols[z], 0.0)) for z in elements}
            return values, f"oxidation states of {formula}"
    return dict.fromkeys(elements, 0.0), "zero (no oxidation states could be guessed)"
