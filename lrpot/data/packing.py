"""Files in any format -> HDF5 shards of a given number of rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ase import Atoms

from lrpot.data.labels import attach_labels, labels_as_given, total_charge
from lrpot.data.readers import Row, check_elements, check_occupancy, stream_rows
from lrpot.data.shards import write_shard
from lrpot.errors import DataError, LrpotError, OutputError


def write_shards(
    folder: Path, files: Sequence[Path], n_rows: int, *, progress: Callable[[int], None] | None = None
) -> list[Path]:
    """Pack the rows of all files, in order, into folder/00000.h5, folder/00001.h5, ...

    Args:
        folder: made if it is not there; must not hold shards.
        n_rows: of every shard but the last; so many are in memory at once.
        progress: called with the number of rows packed.
    Raises:
        DataError: a file that cannot be read, or a row whose labels cannot. OutputError: shards are there already.
    """
    if any(folder.glob("*.h5")):
        raise OutputError(f"{folder}: holds shards already; choose another --out, or remove them")
    written: list[Path] = []
    crystals = _crystals(files)
    while block := list(itertools.islice(crystals, n_rows)):
        written.append(write_shard(folder / f"{len(written):05d}.h5", block))
        if progress is not None:
            progress((len(written) - 1) * n_rows + len(block))
    return written


def _crystals(files: Sequence[Path]) -> Iterator[Atoms]:
    for file in files:
        for row in stream_rows(file):
            try:
                yield _checked(row)
            except LrpotError as error:
                raise DataError(f"{row}: {error}") from error


def _checked(row: Row) -> Atoms:
    """What a shard keeps of a row; what it could not keep is refused."""
    atoms = row.atoms
    check_occupancy(atoms)
    check_elements(atoms.numbers, None)
    packed = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    packed.info["charge"] = total_charge(atoms)
    attach_labels(packed, labels_as_given(atoms))
    return packed
