"""Charges by element as a YAML file: what `lrpot charges` writes and a fit starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase.data import atomic_numbers, chemical_symbols

from lrpot.charges.prefit import Prefit
from lrpot.errors import ConfigError
from lrpot.files import write_text

DIGITS = 6  # of what is written; charges are never known better


def write_charges(fit: Prefit, path: str | Path, source: str) -> None:
    """Write charges, uncertainties (e), quality and settings.

    Args:
        fit: charges that are not refused. path: a YAML file. source: what they were fitted to.
    """
    best, found = fit.best, fit.found
    record: dict[str, Any] = {
        "charges": _table(fit.charges),
        "uncertainties": _table(fit.uncertainties),
        "quality": {
            "rank_one_share": _round(best.rank_one),
            "explained_by_charges": _round(best.explained),
            "explained_by_longer_splines": _round(best.longer),
            "blocks_won_against_longer_splines": _round(best.wins),
            "spread_over_pair_cutoffs": _round(fit.spread),
            "net_charge_of_molecules": {name: _round(charge) for name, charge in fit.molecules.items()},
            "free_charges": _table(dict(zip(fit.elements, best.free.tolist(), strict=True))),
            "by_pair_cutoff": [
                {"pair_cutoff": _round(at.pair_cutoff), **_table(dict(zip(fit.elements, at.charges, strict=True)))}
                for at in fit.cutoffs
            ],
        },
        "settings": {
            "data": source,
            "pair_cutoff": _round(best.pair_cutoff),
            "molecules": "auto" if fit.sum_molecules else "off",
            "frames": found.n_frames - found.n_too_large,
            "frames_left_out_for_large_forces": found.n_too_large,
            "largest_rms_force": _round(found.largest_size),
            "frames_without_forces_or_period": found.n_unusable,
        },
    }
    write_text(path, yaml.safe_dump(record, sort_keys=False))


def read_charges(path: str | Path) -> dict[str, float]:
    """Charges in e by symbol.

    Raises:
        ConfigError: the file is missing, is no YAML, or has no table of charges.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file of charges; make it with lrpot charges DATA --out {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: is not a YAML file; make it with lrpot charges DATA --out {path}") from error
    table = content.get("charges") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"{path}: has no table of charges, such as charges: {{Na: 0.8, Cl: -0.8}}; add it")
    for symbol, charge in table.items():
        if isinstance(charge, bool) or not isinstance(charge, int | float) or not np.isfinite(charge):
            raise ConfigError(f"{path}: the charge of {symbol} is {str(charge)[:40]}; give a number, e")
    return {str(symbol): float(charge) for symbol, charge in table.items()}


def table_charges(
    table: Mapping[str, float], elements: Sequence[int], *, where: str = "model.charges.init"
) -> dict[int, float]:
    """Charges in e by atomic number from a table by symbol.

    Args:
        table: e, by symbol. elements: atomic numbers that need a charge. where: its name in messages.
    Raises:
        ConfigError: it lacks one of the elements, or names something else.
    """
    wrong = [symbol for symbol in table if symbol not in atomic_numbers]
    if wrong:
        raise ConfigError(f"{where}: {wrong[0]} is not an element; use symbols such as Na")
    values = {atomic_numbers[symbol]: float(charge) for symbol, charge in table.items()}
    missing = [chemical_symbols[z] for z in elements if z not in values]
    if missing:
        raise ConfigError(f"{where} has no charge for {', '.join(missing)}; add it to the table")
    return {z: values[z] for z in elements}


def _table(values: Mapping[int, float]) -> dict[str, float | None]:
    return {chemical_symbols[z]: _round(value) for z, value in values.items()}


def _round(value: float) -> float | None:
    return round(float(value), DIGITS) if np.isfinite(value) else None
