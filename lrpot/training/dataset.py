"""The structures of a fit: read, checked, divided, and recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from lrpot.config import DataConfig, FitConfig
from lrpot.console import Console
from lrpot.data.cache import load_graphs
from lrpot.data.graph_builder import GraphSettings
from lrpot.data.graphs import GraphFile, Graphs, elements_of
from lrpot.data.readers import check_elements, tell_bad_rows
from lrpot.data.sources import expand
from lrpot.errors import DataError, UnknownElementError
from lrpot.kspace.boundary import boundary_of
from lrpot.structure import LABELS, Structure
from lrpot.training.split import PARTS, check_unchanged, divide, named, stored_split


@dataclass(frozen=True)
class FitData:
    """Labelled structures, divided.

    Attributes:
        train, valid, test: structures with edges; `test` may be empty.
        elements: atomic numbers in `train`, ascending.
        record: files, hashes, counts, labels and the rows of each part.
    """

    train: Graphs
    valid: Graphs
    test: Graphs
    elements: list[int]
    record: dict[str, Any]

    @property
    def source(self) -> Path:
        """The first training file, which may hold labels that structures do not."""
        return self.train.files[0].path


def read_data(config: FitConfig, console: Console, *, stored: Path | None = None) -> FitData:
    """Read and divide the structures that a configuration names.

    Args:
        stored: split.json of a run that is resumed; None divides anew.
    Raises:
        DataError, StructureError, UnknownElementError: bad rows, too few, or others than those of the stored split.
    """
    data = config.data
    sources = {part: source for part in PARTS if (source := getattr(data, part))}
    settings = GraphSettings(
        config.model.backbone.cutoff,
        require=("energy",),
        check=None if config.model.kernel.form == "none" else check_boundary,
    )
    loaded = {
        part: [
            load_graphs(path, settings, cache=data.cache, jobs=data.jobs, console=console) for path in expand(source)
        ]
        for part, source in sources.items()
    }
    files = [
        {"part": part, "file": str(file.path), "sha256": file.sha256, "rows": file.n_rows}
        for part, found in loaded.items()
        for file in found
    ]
    if stored is not None:
        check_unchanged(stored, files)
    skip = console.warn if data.skip_bad_rows else None
    both = _usable(loaded["train"], skip)
    if stored is not None:
        places = stored_split(stored, both.rows)
    else:
        places = divide(data, config.training.seed, both.rows, both.formula)
    parts = {part: both.select(places[part]) for part in PARTS}
    split = {part: graphs.rows.tolist() for part, graphs in parts.items() if len(graphs)}
    elements = parts["train"].elements
    _check_held_back(data, parts, elements)
    parts |= {part: _usable(loaded[part], skip, elements) for part in sources if part != "train"}
    record = {
        "train": data.train,
        "files": files,
        "structures": {part: len(graphs) for part, graphs in parts.items()},
        "labels": sorted(parts["train"].fields & set(LABELS)),
        "split": split,
    }
    return FitData(**parts, elements=elements, record=record)


def check_boundary(structure: Structure) -> None:
    """Refuse what the long-range part cannot treat; the processes that build graphs find it by this name."""
    boundary_of(structure.pbc[0])


def _usable(
    files: Sequence[GraphFile], skip: Callable[[str], None] | None, elements: Sequence[int] | None = None
) -> Graphs:
    """All structures, once the bad rows are told; with `elements`, a row of another element is a bad row too."""
    kept = []
    for file in files:
        bad, good = file.bad, np.ones(len(file.records), dtype=bool)
        for number in _of_other_elements(file, elements):
            good[number] = False
            try:
                check_elements(file.read(number).numbers.numpy(), elements)
            except UnknownElementError as error:
                bad.append((int(file.records.columns["row"][number]), error))
        if bad:
            tell_bad_rows(file.path, sorted(bad, key=lambda found: found[0]), file.n_rows, skip)
        kept.append(good)
    return Graphs(files).select(np.flatnonzero(np.concatenate(kept)))


def _of_other_elements(file: GraphFile, elements: Sequence[int] | None) -> list[int]:
    """Numbers of the structures with an element that is none of these."""
    if elements is None:
        return []
    other = [bool(set(elements_of(formula)) - set(elements)) for formula in file.formulas]
    return np.flatnonzero(np.array(other, dtype=bool)[file.records.columns["formula"]]).tolist()


def _check_held_back(data: DataConfig, parts: Mapping[str, Graphs], elements: Sequence[int]) -> None:
    for part in ("valid", "test"):
        graphs = parts[part]
        for number in np.unique(graphs.formula):
            unknown = sorted(set(elements_of(graphs.formulas[number])) - set(elements))
            if unknown:
                row = graphs.rows[np.flatnonzero(graphs.formula == number)[0]]
                raise DataError(
                    f"{named(data.train)}: row {row} is held back, but no training row has its element "
                    f"{chemical_symbols[unknown[0]]}; add such rows, change training.seed, or name data.valid and "
                    "data.test"
                )
