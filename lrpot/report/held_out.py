"""The structures that a report is about: those that a run held back, or a file of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrpot.console import Console
from lrpot.data.graphs import Graphs
from lrpot.data.readers import read_rows, to_structures
from lrpot.errors import DataError
from lrpot.evaluation import QUANTITIES
from lrpot.potential import Potential
from lrpot.prediction import check_supported
from lrpot.report.run import Run
from lrpot.structure import Structure
from lrpot.training.dataset import read_data
from lrpot.training.run import SPLIT


@dataclass(frozen=True)
class Part:
    """Labelled structures with edges.

    Attributes:
        name: for people. described: what follows "structures" in a sentence.
        structures: n of them.
        files: that they come from.
        file: (n,) number in `files`. row: (n,) row in that file, from 0.
    """

    name: str
    described: str
    structures: Sequence[Structure]
    files: list[str]
    file: np.ndarray
    row: np.ndarray


def held_out(run: Run, console: Console) -> list[Part]:
    """The test and the validation structures of a run, those first that the fit has never looked at.

    Raises:
        DataError: the data files are missing, or not those that the run began with.
    """
    if not run.split:
        raise DataError(f"{run.path / SPLIT}: is not there, so the rows that were held back are not known")
    data = read_data(run.config, console, stored=run.path / SPLIT)
    parts = (("test", "held back to test", data.test), ("validation", "held back to validate", data.valid))
    return [_of_graphs(name, described, graphs) for name, described, graphs in parts if len(graphs)]


def from_file(path: Path, model: Potential, console: Console) -> Part:
    """All structures of a file.

    Raises:
        DataError: bad rows, or none with a label.
    """
    rows = read_rows(path)
    with console.progress(f"neighbours of {path}", len(rows), "structures") as update:
        structures = to_structures(
            rows, model.cutoff, elements=model.elements, check=lambda s: check_supported(model, s), progress=update
        )
    if not any(label in structure for structure in structures for label in QUANTITIES):
        raise DataError(f"{path}: no row has an energy, forces or any other label to compare with; add labels")
    row = np.array([row.number for row in rows])
    return Part(path.name, f"in {path.name}", structures, [str(path)], np.zeros(len(rows), dtype=np.int64), row)


def _of_graphs(name: str, described: str, graphs: Graphs) -> Part:
    first = np.cumsum([0, *(file.n_rows for file in graphs.files)])
    file = np.searchsorted(first, graphs.rows, side="right") - 1
    return Part(name, described, graphs, [str(file.path) for file in graphs.files], file, graphs.rows - first[file])
