"""Files -> atoms -> structures. Every row that cannot be used is reported with its file, number and reason."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from ase.io.formats import UnknownFileTypeError, filetype
from ase.stress import voigt_6_to_full_3x3_stress

from lrpot.data.labels import charge_labels_of, labels_of, targets_of, total_charge
from lrpot.data.neighbours import NeighbourList, add_edges
from lrpot.data.shards import is_shard, read_shard
from lrpot.data.shells import add_shells
from lrpot.data.sources import check_file, check_lines
from lrpot.data.tables import is_table, read_table
from lrpot.errors import DataError, LrpotError, StructureError, UnknownElementError
from lrpot.structure import MAX_ATOMIC_NUMBER, Structure, make_structure

# An occupancy this close to 1 is 1: files round it.
FULL = 1e-3

# How files are unpacked, by ending.
PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

# A, edges of a `StructureFile`: long enough to tell that two atoms are in one place.
OVERLAP_CHECKED = 0.5


@dataclass(frozen=True)
class Row:
    """One crystal of a file.

    Attributes:
        file: where it was read. number: its place there, from 0. atoms: the crystal with its labels.
    """

    file: Path
    number: int
    atoms: Atoms

    def __str__(self) -> str:
        return f"{self.file}, row {self.number}"


def read_rows(path: str | Path, *, progress: Callable[[int], None] | None = None) -> list[Row]:
    """Every crystal of a file in any format that ASE reads (extxyz, gzipped too, CIF, POSCAR, traj, db, ...).

    Args:
        path: the file.
        progress: called with the number of rows read so far.
    Raises:
        DataError: the file is missing, empty, or not readable as crystals; the message names the row it broke at.
    """
    rows = []
    for row in stream_rows(path):
        rows.append(row)
        if progress is not None:
            progress(len(rows))
    return rows


def stream_rows(path: str | Path) -> Iterator[Row]:
    """The same, one at a time: for files that do not fit in memory.

    Raises:
        DataError: as `read_rows`, once the row is reached.
    """
    path = Path(path)
    check_file(path)
    with unpacked(path) as plain:
        yield from stream_plain(path, plain)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The file, or one with its content unpacked: ASE jumps back at every row, which in a packed file means unpacking
    all that comes before."""
    if path.suffix not in PACKED:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        try:
            with PACKED[path.suffix](path, "rb") as packed, open(plain, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"{path}: cannot be unpacked ({error}); get it anew, or give it unpacked") from error
        yield plain


def stream_plain(path: Path, plain: Path, *, first: int = 0, every: int = 1) -> Iterator[Row]:
    """The rows first, first + every, ... of a file.

    Args:
        path: what the rows are said to come from. plain: the same, unpacked.
    Raises:
        DataError: as `read_rows`, once the row is reached.
    """
    frames = _frames(path, plain, first, every)
    number = first
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                atoms = next(frames, None)
        except UnknownFileTypeError as error:
            raise DataError(f"{path}: is in no format that ASE knows; give a file that ase.io.read reads") from error
        except DataError:
            raise
        except Exception as error:  # each of ASE's many readers fails in a way of its own
            # the text of a KeyError is the bare key; in these files that is an element or a column
            reason = f"unknown name {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise DataError(
                f"{path}: row {number} cannot be read ({type(error).__name__}: {reason[:200]}); "
                "correct that row, or give a file that ase.io.read reads"
            ) from error
        if atoms is None:
            break
        yield Row(path, number, atoms)
        number += every
    if number == 0:
        raise DataError(f"{path}: holds no crystals; nothing to read")


def _frames(path: Path, plain: Path, first: int, every: int) -> Iterator[Atoms]:
    """Lazily, so that whatever a reader says comes with the first row."""
    if is_shard(plain):
        yield from read_shard(plain, first, every)
    elif is_table(plain):
        yield from read_table(path, plain, first, every)
    elif plain.suffix in (".db", ".json") and filetype(str(plain)) in ("db", "json"):
        # ase.io leaves out the columns
        rows = itertools.islice(ase.db.connect(plain).select(), first, None, every)
        yield from (row.toatoms(add_additional_information=True) for row in rows)
    elif filetype(str(plain)) == "extxyz":
        check_lines(path, plain)
        # of all readers only this one leaves out rows without reading them
        yield from ase.io.iread(plain, index=slice(first, None, every), do_not_split_by_at_sign=True)
    else:
        every_frame = ase.io.iread(plain, index=":", do_not_split_by_at_sign=True)
        yield from itertools.islice(every_frame, first, None, every)


class StructureFile:
    """The structures of a file, read anew each time they are iterated over; their edges are short.

    Raises (while iterating):
        DataError, StructureError, UnknownElementError: the first row that cannot be used, with its file and number.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __iter__(self) -> Iterator[Structure]:
        for row in stream_rows(self.path):
            (structure,) = to_structures([row], OVERLAP_CHECKED)
            yield structure


def to_structure(
    atoms: Atoms,
    cutoff: float,
    *,
    elements: Iterable[int] | None = None,
    neighbours: NeighbourList | None = None,
    shells: int | None = None,
    labels: bool = True,
    targets: Sequence[str] = (),
) -> Structure:
    """Atoms with whatever labels they carry -> structure with edges.

    Args:
        atoms: the crystal.
        cutoff: A.
        elements: atomic numbers that the model knows; None allows all.
        neighbours: a list of the same cutoff that is used again, for MD; None finds all edges.
        shells: edges from so many nearest neighbours, in whole shells, in place of all (`add_shells`).
        labels: whether to look for labels (`labels_of`, `charge_labels_of`), which must be sound.
        targets: properties to look for (`targets_of`).
    Raises:
        StructureError: a geometry that cannot be treated. UnknownElementError: an element outside `elements`.
        DataError: a label that is not a number or has the wrong shape, or a stress of what is not periodic.
    """
    check_occupancy(atoms)
    check_elements(atoms.numbers, elements)
    charge = total_charge(atoms)
    known = labels_of(atoms) if labels else {}
    stress = known.get("stress")
    if stress is not None and not atoms.pbc.all():
        raise DataError(
            f"has a stress, but pbc = {atoms.pbc.tolist()}; stress needs all three directions periodic: remove it"
        )
    structure = make_structure(
        atoms.numbers,
        atoms.positions,
        atoms.cell.array,
        atoms.pbc,
        total_charge=charge,
        energy=None if "energy" not in known else float(known["energy"]),
        forces=known.get("forces"),
        stress=None if stress is None else voigt_6_to_full_3x3_stress(stress),
        **(charge_labels_of(atoms, charge) if labels else {}),
        targets=targets_of(atoms, targets) if targets else None,
    )
    if shells is not None:
        return add_shells(structure, shells, cutoff)
    return add_edges(structure, cutoff) if neighbours is None else neighbours.update(structure)


def check_occupancy(atoms: Atoms) -> None:
    """Refuse sites that are shared or partly empty, which ASE reads as if their most frequent element filled them.

    Raises:
        StructureError: names the atom and what occupies its site.
    """
    sites = atoms.info.get("occupancy")
    kinds = atoms.arrays.get("spacegroup_kinds")
    if not isinstance(sites, dict) or kinds is None:
        return
    for atom, kind in enumerate(kinds):
        occupants = sites.get(str(kind), {})
        known = all(isinstance(share, int | float) for share in occupants.values())
        if len(occupants) > 1 or not known or any(not abs(share - 1.0) <= FULL for share in occupants.values()):
            shares = ", ".join(f"{symbol} {share}" for symbol, share in occupants.items())
            raise StructureError(
                f"the site of atom {atom} is occupied in part ({shares}); give an ordered structure instead"
            )


def check_elements(numbers: np.ndarray, elements: Iterable[int] | None) -> None:
    """Refuse placeholders, and elements that a model does not know.

    Raises:
        UnknownElementError: names the atom, its element and what is allowed.
    """
    if len(numbers) and (numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER):
        atom = int(np.flatnonzero((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER))[0])
        raise UnknownElementError(f"atom {atom} is of no element (number {numbers[atom]}); name its element")
    if elements is None:
        return
    known = sorted(elements)
    allowed = np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=bool)
    allowed[known] = True
    unknown = np.flatnonzero(~allowed[numbers])
    if unknown.size:
        symbol = chemical_symbols[numbers[unknown[0]]]
        raise UnknownElementError(
            f"element {symbol} (atom {unknown[0]}) is not known to the model, which was fitted to "
            f"{', '.join(chemical_symbols[z] for z in known)}; use a model that covers {symbol} or fit one"
        )


def to_structures(
    rows: Sequence[Row],
    cutoff: float,
    *,
    elements: Iterable[int] | None = None,
    require: Sequence[str] = (),
    check: Callable[[Structure], object] | None = None,
    skip_bad: Callable[[str], None] | None = None,
    progress: Callable[[int], None] | None = None,
    labels: bool = True,
    shells: int | None = None,
    targets: Sequence[str] = (),
) -> list[Structure]:
    """Rows -> structures; all bad rows are found before any is reported.

    Args:
        rows: from `read_rows`.
        cutoff: A.
        elements: atomic numbers that are allowed; None for all.
        require: labels that each row must have.
        check: raises an LrpotError for a structure that cannot be used for another reason.
        skip_bad: told about each bad row, which is then left out, and how many there were; None makes a bad row an
            error.
        progress: called with the number of rows done.
        labels, shells, targets: as for `to_structure`.
    Raises:
        DataError: bad rows: the first one's file, row, reason and cure, and how many more.
    """
    structures, bad = [], []
    for done, row in enumerate(rows, 1):
        try:
            structures.append(
                checked_structure(
                    row,
                    cutoff,
                    elements=elements,
                    require=require,
                    check=check,
                    labels=labels,
                    shells=shells,
                    targets=targets,
                )
            )
        except LrpotError as error:
            bad.append((row.number, error))
        if progress is not None:
            progress(done)
    if bad:
        tell_bad_rows(rows[0].file, bad, len(rows), skip_bad)
    return structures


def checked_structure(
    row: Row,
    cutoff: float,
    *,
    elements: Iterable[int] | None = None,
    require: Sequence[str] = (),
    check: Callable[[Structure], object] | None = None,
    labels: bool = True,
    shells: int | None = None,
    targets: Sequence[str] = (),
) -> Structure:
    """One row -> structure; arguments as for `to_structures` and `to_structure`.

    Raises:
        LrpotError: the row cannot be used; the message does not name it.
    """
    structure = to_structure(row.atoms, cutoff, elements=elements, labels=labels, shells=shells, targets=targets)
    for label in require:
        if label not in structure:
            raise DataError(f"has no {label}; add it to the file or remove the row")
    if check is not None:
        check(structure)
    structure.row = torch.tensor([row.number])
    return structure


def tell_bad_rows(
    file: Path, bad: Sequence[tuple[int, LrpotError]], n_rows: int, skip_bad: Callable[[str], None] | None
) -> None:
    """Report the rows of a file that cannot be used.

    Args:
        file: where they are. bad: number and reason of each, at least one. n_rows: how many rows there are.
        skip_bad: told about each; None makes a bad row an error.
    Raises:
        DataError, StructureError, UnknownElementError: see `to_structures`.
    """
    number, reason = bad[0]
    if skip_bad is not None:
        for other, error in bad:
            skip_bad(f"{file}, row {other}: {error}")
        if len(bad) == n_rows:
            raise DataError(f"{file}: every row is bad; row {number}: {reason}")
        skip_bad(f"{file}: left out {len(bad)} of {n_rows} rows")
        return
    more = ""
    if len(bad) > 1:
        numbers = ", ".join(str(other) for other, _ in bad[1:11])
        more = f" ({len(bad) - 1} more bad rows: {numbers}{', ...' if len(bad) > 11 else ''})"
    kind = type(reason) if isinstance(reason, (StructureError, UnknownElementError)) else DataError
    raise kind(f"{file}, row {number}: {reason}{more}")
