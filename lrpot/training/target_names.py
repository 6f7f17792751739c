"""Which properties a fit is to learn, where the user names none."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from lrpot.config import FitConfig, make_config
from lrpot.data.cache import LARGE
from lrpot.data.readers import stream_rows
from lrpot.data.sources import expand, named, total_size
from lrpot.errors import ConfigError, DataError

NUMBER = (int, float, np.number, np.bool_)

# Rows of a file in which properties are looked for.
LOOKED_AT = 200

# Names that a message gives.
SHOWN = 12

# What crystals carry beside properties.
NO_PROPERTIES = ("id", "index", "charge", "occupancy", "spacegroup", "unit_cell")


def with_targets(config: FitConfig) -> FitConfig:
    """The configuration with its targets named: those given, if there are such, or all of id_prop.csv, or the only one.

    Raises:
        ConfigError: there are several, and a name is needed. DataError: there is none, or none
            of a given name.
    """
    assert config.data.train is not None
    files, where = expand(config.data.train), named(config.data.train)
    given = config.properties.targets
    if given and sum(map(total_size, files)) > LARGE:
        return config  # reading may take minutes; rows without any target are told later
    found: list[str] = []
    for path in files:
        found = list(dict.fromkeys([*found, *numbers_in(path, wanted=given)]))
    if given:
        unknown = [name for name in given if name not in found]
        if unknown:
            there = f"there are {_listed(found)}" if found else "there is no property at all"
            raise DataError(f"{where}: no row has {unknown[0]}; {there}")
        return config
    if not found:
        raise DataError(f"{where}: no row has a property; add one, or name a file such as id_prop.csv")
    if len(found) > 1 and not all(path.suffix == ".csv" for path in files):
        raise ConfigError(
            f"{where}: has the properties {_listed(found)}; name what to learn, such as --target {found[0]!r}"
        )
    return make_config(config, {"properties.targets": found})


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def numbers_in(path: Path, wanted: Collection[str] = ()) -> list[str]:
    """Names of what the first rows of a file have as single numbers, in their order.

    Args:
        wanted: names that are looked for in all rows, until all are found.
    """
    names: dict[str, None] = {}
    for number, row in enumerate(stream_rows(path)):
        if number >= LOOKED_AT and set(wanted) <= names.keys():
            break
        known = dict(row.atoms.info.get("key_value_pairs", {})) | row.atoms.info
        if row.atoms.calc is not None:
            known |= row.atoms.calc.results
        numbers = [name for name, value in known.items() if isinstance(value, NUMBER) and name not in NO_PROPERTIES]
        names |= dict.fromkeys(numbers)
    return list(names)
