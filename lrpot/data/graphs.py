"""Structures with edges that stay on disk: an index in memory, each structure read when it is asked for."""

from __future__ import annotations

import bisect
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import torch
from ase.data import atomic_numbers
from ase.formula import Formula
from torch import Tensor
from torch_geometric.data import Batch

import lrpot.errors as errors
from lrpot.data.records import DamagedRecords, Records, RecordWriter, encode
from lrpot.data.stacking import stack
from lrpot.errors import LrpotError
from lrpot.structure import Structure

# What `columns` of a file of graphs are: number of atoms and of edges, row in the file of crystals, reduced formula,
# what the crystal is called, and A^3 per atom (0 without a cell that is periodic in all directions).
COLUMNS = {
    "atoms": np.uint32,
    "edges": np.uint32,
    "row": np.int64,
    "formula": np.uint32,
    "name": np.uint32,
    "volume": np.float64,
}


class GraphFile:
    """The structures of one file of crystals, with edges.

    Attributes:
        path: of the file of crystals.
        records: the structures.
        formulas: reduced formulas, by the number in the column `formula`. names: likewise; "" for none.
        n_rows: rows of the file of crystals, bad ones included.
        sha256: of the file of crystals.
    """

    def __init__(self, path: Path, file: IO[bytes], name: str) -> None:
        """
        Args:
            path: of the file of crystals. file, name: as for `Records`.
        Raises:
            DamagedRecords: see `Records`, or the records are no graphs.
        """
        self.path = path
        self.records = Records(file, name)
        about = self.records.about
        if about.get("kind") != "graphs":
            raise DamagedRecords("holds no graphs")
        self.key: dict[str, Any] = about["key"]
        self.formulas: list[str] = about["formulas"]
        self.names: list[str] = about["names"]
        self.n_rows: int = about["n_rows"]
        self.sha256: str = about["sha256"]
        self._bad: list[tuple[int, str, str]] = about["bad"]

    @property
    def bad(self) -> list[tuple[int, LrpotError]]:
        """Number and reason of each row that is no structure."""
        return [(row, getattr(errors, kind)(reason)) for row, kind, reason in self._bad]

    def read(self, number: int) -> Structure:
        """A structure by its place among the good ones; `row` is that of the file."""
        fields = self.records.read(number)
        fields["row"] = torch.from_numpy(self.records.columns["row"][number : number + 1].copy())
        # item by item: as arguments of the class they take a quarter longer
        structure = Structure()
        structure["num_nodes"] = len(fields["numbers"])
        for name, value in fields.items():
            structure[name] = value
        return structure


class Graphs(Sequence[Structure]):
    """Structures of one or more files, in any choice and order.

    Attributes:
        files: where they are.
        position: (n,) place of each among the structures of all files.
        rows: (n,) row of each; rows count on from one file to the next.
        atoms, edges: (n,) number of atoms and of edges of each.
        formula: (n,) number of its reduced formula in `formulas`.
        names: (n,) what each is called, "" for none. volume: (n,) A^3 per atom, 0 without a cell.
    """

    def __init__(self, files: Sequence[GraphFile], position: np.ndarray | None = None) -> None:
        """
        Args:
            position: None for all structures.
        """
        self.files = list(files)
        self._starts = [0, *itertools.accumulate(len(file.records) for file in self.files)]
        self._first_rows = np.cumsum([0, *(file.n_rows for file in self.files)])
        self.position = np.arange(self._starts[-1]) if position is None else np.asarray(position, dtype=np.int64)
        self.formulas = sorted({formula for file in self.files for formula in file.formulas})
        self._attached: list[Records] = []
        self._attached_starts = [0]
        # of every field, in a batch
        self._dtypes = {"row": "<i8"}
        for file in self.files:
            self._dtypes |= file.records.dtypes

    @cached_property
    def atoms(self) -> np.ndarray:
        return self._column(lambda n, file: file.records.columns["atoms"])

    @cached_property
    def edges(self) -> np.ndarray:
        return self._column(lambda n, file: file.records.columns["edges"])

    @cached_property
    def rows(self) -> np.ndarray:
        return self._column(lambda n, file: file.records.columns["row"] + self._first_rows[n])

    @cached_property
    def formula(self) -> np.ndarray:
        place = {formula: number for number, formula in enumerate(self.formulas)}
        return self._column(
            lambda n, file: np.array([place[formula] for formula in file.formulas])[file.records.columns["formula"]]
        )

    @cached_property
    def names(self) -> np.ndarray:
        return self._column(lambda n, file: np.array(file.names)[file.records.columns["name"]])

    @cached_property
    def volume(self) -> np.ndarray:
        return self._column(lambda n, file: file.records.columns["volume"])

    @property
    def elements(self) -> list[int]:
        """Atomic numbers, ascending."""
        return sorted({z for number in np.unique(self.formula) for z in elements_of(self.formulas[number])})

    @property
    def fields(self) -> set[str]:
        """The fields that any of the structures has."""
        layouts = [layout for file in self.files for layout in file.records.layouts]
        before = np.cumsum([0, *(len(file.records.layouts) for file in self.files)])
        found = self._column(lambda n, file: file.records.columns["layout"] + before[n])
        return {field.name for number in np.unique(found) for field in layouts[number]}

    def select(self, chosen: Sequence[int] | np.ndarray) -> Graphs:
        """Some of these structures, by their places here; without what is attached."""
        return Graphs(self.files, self.position[np.asarray(chosen, dtype=np.int64)])

    def attach(
        self,
        values: Iterable[Mapping[str, Tensor]],
        *,
        part: range | None = None,
        gather: Callable[[IO[bytes]], Sequence[IO[bytes]]] = lambda own: [own],
    ) -> None:
        """Give each structure further fields, which replace those attached before.

        Args:
            values: one for each structure of the part, in order; they go to a file without a name that ends with this
                object.
            part: places of the structures that these are for; None for all.
            gather: the files of all parts, in order, from that of this one.
        """
        part = range(len(self)) if part is None else part
        with ExitStack() as files:
            own = files.enter_context(tempfile.TemporaryFile())
            writer = RecordWriter(own)
            for n_atoms, fields in zip(self.atoms[part.start : part.stop].tolist(), values, strict=True):
                writer.add(*encode(fields, n_atoms))
            writer.finish({}, {})
            parts = [files.enter_context(file) for file in gather(own)]
            self._attached = [Records(file, "a temporary file") for file in parts]
        self._attached_starts = [0, *itertools.accumulate(len(records) for records in self._attached)]
        for records in self._attached:
            self._dtypes |= records.dtypes

    def __len__(self) -> int:
        return len(self.position)

    @overload
    def __getitem__(self, place: int) -> Structure: ...

    @overload
    def __getitem__(self, place: slice) -> list[Structure]: ...

    def __getitem__(self, place: int | slice) -> Structure | list[Structure]:
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"structure {place} of {len(self)}")
        number, position = self._find(place)
        structure = self.files[number].read(position)
        if number:
            structure.row += int(self._first_rows[number])
        if self._attached:
            number, position = _locate(self._attached_starts, place % len(self))
            for name, value in self._attached[number].read(position).items():
                structure[name] = value
        return structure

    def batch(self, places: Sequence[int]) -> Batch:
        """Some structures as one batch, with nan where one lacks a label that another has."""
        structures = []
        for place in places:
            number, position = self._find(place)
            records = self.files[number].records
            fields = records.read_arrays(position)
            fields["row"] = records.columns["row"][position : position + 1] + self._first_rows[number]
            if self._attached:
                number, position = _locate(self._attached_starts, place)
                fields |= self._attached[number].read_arrays(position)
            structures.append(fields)
        return stack(structures, self._dtypes)

    # what a DataLoader asks for in place of one structure after the other
    __getitems__ = batch

    def _find(self, place: int) -> tuple[int, int]:
        """The file of a structure, and its place there."""
        return _locate(self._starts, int(self.position[place]))

    def __iter__(self) -> Iterator[Structure]:
        return (self[n] for n in range(len(self)))

    def _column(self, of_file: Any) -> np.ndarray:
        """A column of all files, for the chosen structures."""
        columns = [of_file(n, file) for n, file in enumerate(self.files)]
        # one file in its own order needs no copy: the column stays on disk
        if len(columns) == 1 and np.array_equal(self.position, np.arange(self._starts[-1])):
            return columns[0]
        return np.concatenate(columns)[self.position]


def _locate(starts: list[int], place: int) -> tuple[int, int]:
    """The part that holds a place, when they begin at these, and the place in it."""
    part = bisect.bisect_right(starts, place) - 1
    return part, place - starts[part]


def elements_of(formula: str) -> list[int]:
    """Atomic numbers in a formula."""
    return [atomic_numbers[symbol] for symbol in Formula(formula).count()]
