"""A file of crystals -> a file of graphs, by one or more processes, in one pass and in bounded memory."""

from __future__ import annotations

import itertools
import multiprocessing
from array import array
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula

from lrpot.data.graphs import COLUMNS
from lrpot.data.processes import quiet_children
from lrpot.data.readers import checked_structure, stream_plain, unpacked
from lrpot.data.records import Layout, RecordWriter, encode
from lrpot.data.sources import content_hash, fingerprint
from lrpot.data.tables import name_of
from lrpot.errors import DataError, LrpotError, StructureError, UnknownElementError, UnlabelledError
from lrpot.structure import Structure


@dataclass(frozen=True)
class GraphSettings:
    """What decides the graphs of a file.

    Attributes:
        cutoff: A.
        shells: edges from so many nearest neighbours, in whole shells; None: from all within the cutoff.
        targets: properties that structures shall carry, where rows have them.
        labels: whether structures shall carry energies and the like.
        require: labels that each row must have.
        check: raises an LrpotError for a structure that cannot be used for another reason; a function of a module, for
            other processes must find it by its name.
    """

    cutoff: float
    require: tuple[str, ...] = ()
    shells: int | None = None
    targets: tuple[str, ...] = ()
    labels: bool = True
    check: Callable[[Structure], object] | None = None

    def key(self) -> dict[str, Any]:
        """The same in types of JSON."""
        check = None if self.check is None else f"{self.check.__module__}.{self.check.__qualname__}"
        own = {"cutoff": self.cutoff, "shells": self.shells, "targets": list(self.targets), "labels": self.labels}
        return own | {"require": list(self.require), "check": check}


class Graph(NamedTuple):
    """A structure as a record."""

    row: int
    layout: Layout
    record: bytes
    atoms: int
    edges: int
    formula: str
    name: str
    volume: float


class BadRow(NamedTuple):
    """A row that is no structure: class and message of the reason."""

    row: int
    kind: str
    reason: str


def build_graphs(
    path: Path,
    settings: GraphSettings,
    file: IO[bytes],
    *,
    key: dict[str, Any] | None = None,
    jobs: int = 1,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the graphs of all rows of a file; what `GraphFile` reads.

    Processes are spawned where there is more than one job: a script must then call this below
    `if __name__ == "__main__":`.

    Args:
        path: the file of crystals. file: empty, open for writing.
        key: what the graphs will be known by.
        jobs: number of processes.
        progress: called with the number of rows done.
    Raises:
        DataError: the file cannot be read, or was changed meanwhile. LrpotError: a process died.
    """
    before = fingerprint(path)
    writer = RecordWriter(file)
    columns: dict[str, Any] = {name: array("d" if kind is np.float64 else "Q") for name, kind in COLUMNS.items()}
    formulas: dict[str, int] = {}
    names: dict[str, int] = {}
    bad: list[BadRow] = []
    done = 0
    with unpacked(path) as plain, closing(_graphs(path, plain, settings, jobs)) as graphs:
        for graph in graphs:
            if isinstance(graph, BadRow):
                bad.append(graph)
            else:
                writer.add(graph.layout, graph.record)
                formula = formulas.setdefault(graph.formula, len(formulas))
                name = names.setdefault(graph.name, len(names))
                values = (graph.atoms, graph.edges, graph.row, formula, name, graph.volume)
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
            done += 1
            if progress is not None:
                progress(done)
    about = {
        "kind": "graphs",
        "key": key,
        "formulas": list(formulas),
        "names": list(names),
        "bad": bad,
        "n_rows": done,
        "sha256": content_hash(path),
    }
    if fingerprint(path) != before:
        raise DataError(f"{path}: was changed while it was read; run the command again once it is complete")
    writer.finish({name: np.array(values, dtype=COLUMNS[name]) for name, values in columns.items()}, about)


def reduced_formula(numbers: np.ndarray) -> str:
    """Formula in Hill's order, of the smallest whole numbers."""
    elements, counts = np.unique(numbers, return_counts=True)
    named = {chemical_symbols[z]: int(count) for z, count in zip(elements, counts, strict=True)}
    return str(Formula.from_dict(named).reduce()[0].format("hill"))


def _graphs(path: Path, plain: Path, settings: GraphSettings, jobs: int) -> Generator[Graph | BadRow, None, None]:
    """In the order of the rows. Process j of J makes each J-th row and sends it through its own pipe."""
    if jobs == 1:
        yield from _some_graphs(path, plain, settings, 0, 1)
        return
    workers: list[tuple[BaseProcess, Connection]] = []
    try:
        with quiet_children():
            for job in range(jobs):
                workers.append(_start(path, plain, settings, job, jobs))  # noqa: PERF401 (each is known once started)
        for row in itertools.count():
            process, results = workers[row % jobs]
            try:
                graph = results.recv()
            except EOFError:
                process.join()
                raise LrpotError(
                    f"{path}, row {row}: its process ended with exit code {process.exitcode}; if memory ran out, lower "
                    'data.jobs; a script must call a fit with data.jobs > 1 below `if __name__ == "__main__":`'
                ) from None
            if isinstance(graph, DataError):
                raise graph
            if graph is None:
                return
            yield graph
    finally:
        for process, results in workers:
            process.terminate()
            process.join()
            results.close()


def _some_graphs(path: Path, plain: Path, settings: GraphSettings, first: int, every: int) -> Iterator[Graph | BadRow]:
    for row in stream_plain(path, plain, first=first, every=every):
        try:
            structure = checked_structure(
                row,
                settings.cutoff,
                require=settings.require,
                check=settings.check,
                labels=settings.labels,
                shells=settings.shells,
                targets=settings.targets,
            )
        except LrpotError as error:
            told = (StructureError, UnknownElementError, UnlabelledError)
            kind = type(error) if isinstance(error, told) else DataError
            yield BadRow(row.number, kind.__name__, str(error))
            continue
        n_edges = structure.edge_index.shape[1]
        # the row stands in the index, and `num_nodes` is the length of the numbers
        fields = {name: value for name, value in structure.to_dict().items() if name not in ("row", "num_nodes")}
        layout, record = encode(fields, len(structure.numbers), n_edges)
        formula = reduced_formula(structure.numbers.numpy())
        name = name_of(row.atoms.info) if settings.targets else ""
        yield Graph(row.number, layout, record, len(structure.numbers), n_edges, formula, name, _volume(structure))


def _volume(structure: Structure) -> float:
    """A^3 per atom, 0 without a cell that is periodic in all directions."""
    if not bool(structure.pbc.all()):
        return 0.0
    return abs(float(np.linalg.det(structure.cell[0].numpy()))) / len(structure.numbers)


def _start(path: Path, plain: Path, settings: GraphSettings, first: int, every: int) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of running threads
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_graphs, args=(path, plain, settings, first, every, sender), daemon=True)
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    return process, results


def _send_graphs(path: Path, plain: Path, settings: GraphSettings, first: int, every: int, sender: Connection) -> None:
    try:
        try:
            for graph in _some_graphs(path, plain, settings, first, every):
                sender.send(graph)
            sender.send(None)
        except DataError as error:
            sender.send(error)
    except BrokenPipeError:  # the parent was killed, or needs no more
        return
