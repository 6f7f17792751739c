"""Charges from Born effective charges: Z* / sqrt(eps_inf), what two ions far apart in the crystal feel of each other.

Sources: tr Z* / 3 of each element, and eps_inf = tr eps / 3; Gonze and Lee, Phys. Rev. B 55, 10355 (1997).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms
from ase.data import atomic_numbers

from lrpot.data.readers import Row, stream_rows
from lrpot.data.sources import named
from lrpot.errors import ConfigError

FORMAT = "{symbols: [Na, Cl], born_charges: (2, 3, 3), dielectric: (3, 3)}"


def charges_from_born(source: str | Path | Sequence[Path]) -> tuple[dict[int, float], str]:
    """Charges in e by atomic number, and a word on where they come from.

    Args:
        source: a YAML or JSON file with symbols, born_charges (N, 3, 3), e, and dielectric (3, 3), or files of
            structures with arrays["born_charges"] (N, 3, 3) or (N, 9) and info["dielectric"] (3, 3); rows without them
            are passed over.
    Raises:
        ConfigError: nothing of the kind is in it, or shapes that do not belong together.
        DataError: structures that cannot be read.
    """
    paths = [Path(source)] if isinstance(source, (str, Path)) else list(source)
    if len(paths) == 1 and paths[0].suffix in (".yaml", ".yml", ".json"):
        atoms = read_tables(paths[0])
        return _screened([_tensors(atoms, str(paths[0]))]), f"Born charges of {paths[0]}"
    labelled = [_tensors(row.atoms, str(row)) for path in paths for row in _labelled(stream_rows(path))]
    if not labelled:
        raise ConfigError(
            f"{named(paths)}: no row has arrays born_charges (N, 3, 3) and info dielectric (3, 3); name a file of "
            "them: --set model.charges.born=FILE"
        )
    return _screened(labelled), f"Born charges of {len(labelled)} rows of {named(paths)}"


def _labelled(rows: Iterable[Row]) -> Iterable[Row]:
    return (row for row in rows if "born_charges" in row.atoms.arrays and "dielectric" in row.atoms.info)


def read_tables(path: Path) -> Atoms:
    """Atoms without places, whose info has born_charges and dielectric as a YAML or JSON file gives them.

    Raises:
        ConfigError: not such a file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file of Born charges; check the path") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as {path.suffix[1:].upper()}; expected {FORMAT}") from error
    names = ("symbols", "born_charges", "dielectric")
    missing = [name for name in names if not isinstance(content, dict) or name not in content]
    if missing:
        raise ConfigError(f"{path}: has no {missing[0]}; expected {FORMAT}")
    symbols = content["symbols"]
    if not isinstance(symbols, list) or not symbols or any(symbol not in atomic_numbers for symbol in symbols):
        raise ConfigError(f"{path}: symbols = {str(symbols)[:60]} is not a list of elements; expected {FORMAT}")
    atoms = Atoms(symbols)
    atoms.info = {name: content[name] for name in names[1:]}
    return atoms


def _tensors(atoms: Atoms, where: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Atomic numbers (N,), tr Z* / 3 (N,), tr eps / 3."""
    try:
        born = np.asarray(atoms.arrays.get("born_charges", atoms.info.get("born_charges")), dtype=float)
        dielectric = np.asarray(atoms.info["dielectric"], dtype=float)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: born_charges or dielectric hold something else than numbers") from None
    n = len(atoms)
    if born.size != 9 * n or dielectric.size != 9:
        raise ConfigError(
            f"{where}: born_charges have shape {born.shape} and dielectric {dielectric.shape}; "
            f"expected {(n, 3, 3)} and (3, 3)"
        )
    screening = float(np.trace(dielectric.reshape(3, 3))) / 3.0
    if not (np.isfinite(born).all() and screening >= 1.0):
        raise ConfigError(f"{where}: dielectric constant {screening:g} or a Born charge is impossible; correct it")
    charges = np.trace(born.reshape(n, 3, 3), axis1=1, axis2=2) / 3.0
    # acoustic sum rule: a rigid shift of the crystal makes no dipole
    return atoms.numbers, charges - charges.mean(), screening


def _screened(labelled: list[tuple[np.ndarray, np.ndarray, float]]) -> dict[int, float]:
    by_element = defaultdict(list)
    for numbers, charges, screening in labelled:
        for z, charge in zip(numbers.tolist(), charges.tolist(), strict=True):
            by_element[z].append(charge / np.sqrt(screening))
    return {z: float(np.mean(charges)) for z, charges in sorted(by_element.items())}
