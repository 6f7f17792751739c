"""Crystals with properties as other packages keep them: id_prop.csv beside a folder of files, and JSON of structures.

id_prop.csv (CGCNN, ALIGNN)  a line for each crystal: a file, or its name without an ending, then one or more numbers.
                             A first line of names is one if its second field is no number; without one the numbers are
                             called `target`, or `target_1`, `target_2`, ... Files lie beside the table.
JSON                         a table of pandas in the orientation "split" with a column `structure` of pymatgen's
                             dictionaries (MatBench), or of two columns, the first of which is that (UnconvBench); or a
                             list of objects that hold `atoms` (JARVIS-DFT) or `structure` (Materials Project) and
                             properties.

Every crystal comes as ASE's atoms, its properties in `info`; what is empty, null, nan or "na" is left out.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from lrpot.errors import DataError

# Tried in this order after the bare name.
ENDINGS = ("", ".cif", ".vasp", ".poscar", ".POSCAR", ".extxyz", ".xyz", ".json")

# How a property that is not known is written.
MISSING = ("", "na", "n/a", "nan", "none", "null")

# How JSON of this module begins: a list, or a table of pandas.
_TABLE = re.compile(r'\s*(\[|\{\s*"(index|columns|data)")')

# What names a crystal.
_IDS = ("id", "jid", "material_id", "mp_id", "mpid")


def name_of(info: Mapping[str, Any]) -> str:
    """What a crystal is called, by what it carries; "" for nothing."""
    return next((str(info[name]) for name in _IDS if info.get(name) is not None), "")


def is_table(plain: Path) -> bool:
    """Whether a file is a table of this module; a data base of ASE may end in .json too."""
    if plain.suffix == ".csv":
        return True
    if plain.suffix != ".json":
        return False
    with open(plain, encoding="utf-8", errors="replace") as file:
        return _TABLE.match(file.read(4096)) is not None


def read_table(path: Path, plain: Path, first: int, every: int) -> Iterator[Atoms]:
    """The rows first, first + every, ... of a table.

    Args:
        path: of the table, beside which the files lie. plain: the same, unpacked.
    Raises:
        DataError: the table, or the file of a row, cannot be read.
    """
    rows = _csv_rows(path, plain) if plain.suffix == ".csv" else _json_rows(path, plain)
    yield from (make() for make in itertools.islice(rows, first, None, every))


def _csv_rows(path: Path, plain: Path) -> Iterator[Any]:
    if path.suffix != ".csv":
        raise DataError(f"{path}: is packed; unpack it, so that changes of the files that it names are noticed")
    with open(plain, newline="", encoding="utf-8-sig") as file:
        lines: Iterator[list[str]] = (line for line in csv.reader(file) if any(field.strip() for field in line))
        head = next(lines, None)
        if head is None:
            return
        if len(head) < 2:
            raise DataError(f"{path}: its first line has a single field; expected a file and its properties: id,number")
        if _is_value(head[1]):
            names = ["target"] if len(head) == 2 else [f"target_{n}" for n in range(1, len(head))]
            lines = itertools.chain([head], lines)
        else:
            names = [name.strip() for name in head[1:]]
        for number, fields in enumerate(lines):
            if len(fields) != len(names) + 1:
                raise DataError(f"{path}: row {number} has {len(fields)} fields, expected {len(names) + 1}; correct it")
            yield lambda fields=fields: _with_info(
                _file_of(path, fields[0].strip()),
                {"id": fields[0].strip(), **dict(zip(names, fields[1:], strict=True))},
            )


def listed_files(table: Path) -> list[Path]:
    """The files that a table names and that are there, in its order; none of a file that is no such table."""
    if table.suffix != ".csv":
        return []
    with open(table, newline="", encoding="utf-8-sig", errors="replace") as file:
        names = [line[0].strip() for line in csv.reader(file) if line]
    return [found for name in names if (found := _found(table, name)) is not None]


def _found(table: Path, name: str) -> Path | None:
    """The file of a name in a table; nothing outside of its folder."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        return None
    return next((file for ending in ENDINGS if (file := table.parent / (name + ending)).is_file()), None)


def _file_of(table: Path, name: str) -> Atoms:
    file = _found(table, name)
    if file is not None:
        try:
            return ase.io.read(file, do_not_split_by_at_sign=True)
        except Exception as error:  # each of ASE's many readers fails in a way of its own
            reason = f"{type(error).__name__} {' '.join(str(error).split())}".strip()[:200]
            raise DataError(f"{table}: {file.name} cannot be read ({reason}); correct that file") from error
    if Path(name).is_absolute() or ".." in Path(name).parts or not name:
        raise DataError(f"{table}: {_shown(name)!r} leads out of the folder of the table; put the file beside it")
    tried = ", ".join(filter(None, ENDINGS))
    raise DataError(f"{table}: no file {_shown(name)} beside it (tried the endings {tried}); add it")


def _shown(name: str) -> str:
    """A name for a message of one line."""
    return " ".join(name.split())[:80]


def _json_rows(path: Path, plain: Path) -> Iterator[Any]:
    try:
        content = json.loads(plain.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON ({str(error)[:80]}); get it anew") from error
    if isinstance(content, dict):
        columns = content.get("columns")
        if isinstance(columns, list) and len(columns) == 2 and "structure" not in columns:
            columns = ["structure", columns[1]]  # UnconvBench goes by the order alone
        if not isinstance(columns, list) or "structure" not in columns:
            raise DataError(f"{path}: is a table without a column structure; see lrpot.data.tables for what is read")
        names = content.get("index") or range(len(content["data"]))
        entries = (
            {"id": n, **dict(zip(columns, row, strict=True))} for n, row in zip(names, content["data"], strict=True)
        )
    else:
        entries = iter(content)
    for entry in entries:
        if not isinstance(entry, Mapping) or not ("structure" in entry or "atoms" in entry):
            raise DataError(f"{path}: an entry has neither structure nor atoms; see lrpot.data.tables for what is read")
        yield lambda entry=entry: _entry_atoms(entry)


def _entry_atoms(entry: Mapping[str, Any]) -> Atoms:
    info = {name: value for name, value in entry.items() if name not in ("structure", "atoms")}
    info.setdefault("id", name_of(entry))
    if "structure" in entry:
        return _with_info(_from_pymatgen(entry["structure"]), info)
    found = entry["atoms"]
    place = {"positions" if found.get("cartesian") else "scaled_positions": found["coords"]}
    return _with_info(Atoms(found["elements"], cell=found["lattice_mat"], pbc=True, **place), info)


def _from_pymatgen(content: Mapping[str, Any]) -> Atoms:
    """Atoms of the most frequent element of each site; `info["occupancy"]` says which sites are shared."""
    species, kinds = [], {}
    for number, site in enumerate(content["sites"]):
        shares = {entry["element"]: float(entry["occu"]) for entry in site["species"]}
        species.append(max(shares, key=shares.__getitem__))
        kinds[str(number)] = shares
    atoms = Atoms(
        species,
        scaled_positions=[site["abc"] for site in content["sites"]],
        cell=content["lattice"]["matrix"],
        pbc=True,
    )
    atoms.info["occupancy"] = kinds
    atoms.set_array("spacegroup_kinds", np.arange(len(atoms)))
    return atoms


def _with_info(atoms: Atoms, properties: Mapping[str, Any]) -> Atoms:
    """Numbers as numbers, and nothing that is missing."""
    for name, value in properties.items():
        if name == "id":
            atoms.info["id"] = str(value)
        elif isinstance(value, str):
            if value.strip().lower() not in MISSING:
                atoms.info[name] = float(value) if _is_value(value) else value
        elif isinstance(value, (bool, int, float)) and not math.isnan(value):
            atoms.info[name] = float(value)
    return atoms


def _is_value(text: str) -> bool:
    """Whether a field is a number, or says that there is none."""
    if text.strip().lower() in MISSING:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
