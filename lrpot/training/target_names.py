"""Which properties a fit is to learn, where the user names none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lrpot.config import FitConfig, make_config
from lrpot.data.cache import LARGE
from lrpot.data.readers import stream_rows
from lrpot.data.sources import expand, named, total_size
from lrpot.errors import ConfigError, DataError

NUMBER = (int, float, np.number, np.bool_)

# Rows in which properties are looked for.
LOOKED_AT = 200

# Names that a message gives.
SHOWN = 12

# What crystals carry beside properties.
NO_PROPERTIES = ("id", "charge", "occupancy", "spacegroup", "unit_cell")


def with_targets(config: FitConfig) -> FitConfig:
    """The configuration with its targets named: those given, if there are such, or all of id_prop.csv, or the only one.

    Raises:
        ConfigError: there are several, and a name is needed. DataError: there is none, or none of a given name.
    """
    assert config.data.train is not None
    path = expand(config.data.train)[0]
    where = named(config.data.train)
    given = config.properties.targets
    if given and total_size(path) > LARGE:
        return config  # reading may take minutes; rows without any target are told later
    found = numbers_in(path)
    if given:
        unknown = [name for name in given if name not in found]
        if unknown and found:
            raise DataError(f"{where}: no row has {unknown[0]}; there are {_listed(found)}")
        return config
    if not found:
        raise DataError(f"{where}: no row has a property; add one, or name a file such as id_prop.csv")
    if len(found) > 1 and path.suffix != ".csv":
        raise ConfigError(
            f"{where}: has the properties {_listed(found)}; name what to learn, such as --target {found[0]!r}"
        )
    return make_config(config, {"properties.targets": found})


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def numbers_in(path: Path) -> list[str]:
    """Names of what the first rows of a file have as single numbers, in their order."""
    names: dict[str, None] = {}
    for row in itertools.islice(stream_rows(path), LOOKED_AT):
        info = dict(row.atoms.info.get("key_value_pairs", {})) | row.atoms.info
        for name, value in info.items():
            if name not in NO_PROPERTIES and isinstance(value, NUMBER):
                names[name] = None
        if row.atoms.calc is not None:
            names |= {name: None for name, value in row.atoms.calc.results.items() if isinstance(value, NUMBER)}
    return list(names)
