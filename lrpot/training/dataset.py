"""The structures of a fit: read, checked, divided, and recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from lrpot.charges import CHARGES
from lrpot.charges.polarisation import check_born_charges
from lrpot.config import CHARGE_WEIGHTS, DataConfig, FitConfig, TrainingConfig
from lrpot.console import Console
from lrpot.data.cache import load_graphs
from lrpot.data.graph_builder import GraphSettings
from lrpot.data.graphs import GraphFile, Graphs, elements_of
from lrpot.data.published import doubt
from lrpot.data.readers import check_elements, tell_bad_rows
from lrpot.data.sources import expand, named
from lrpot.errors import DataError, LrpotError, UnlabelledError
from lrpot.kspace.boundary import boundary_of
from lrpot.kspace.lattice import MAX_KVECTORS
from lrpot.properties.build import Reach, reach_of
from lrpot.properties.targets import check_values, targets_from
from lrpot.properties.waves import check_waves
from lrpot.structure import CHARGE_LABELS, LABELS, Structure
from lrpot.training.split import PARTS, check_unchanged, divide, groups_of, same_crystals, stored_split


@dataclass(frozen=True)
class FitData:
    """Labelled structures, divided.

    Attributes:
        train, valid, test: structures with edges; `test` may be empty.
        elements: atomic numbers in `train` and those known before, ascending.
        record: files, hashes, counts, labels and the rows of each part.
    """

    train: Graphs
    valid: Graphs
    test: Graphs
    elements: list[int]
    record: dict[str, Any]

    @property
    def source(self) -> list[Path]:
        """The training files, which may hold labels that structures do not."""
        return [file.path for file in self.train.files]


def supervised(training: TrainingConfig) -> list[str]:
    """The labels of the charges that are in the loss of any stage."""
    return [label for label, weight in CHARGE_WEIGHTS.items() if training.weight(weight) > 0]


def check_supervision(config: FitConfig, structure: Structure) -> None:
    """Refuse labels of the charges that a fit is to use and that mean nothing for a structure.

    Raises:
        DataError: a dipole that is not defined. StructureError: Born charges that the charges do not determine.
    """
    labels = [label for label in supervised(config.training) if label in structure]
    if "dipole" in labels and not bool(structure.dipole.isfinite().any()):
        charge = float(structure.total_charge)
        pbc = structure.pbc[0].tolist()
        why = f"a charge of {charge:g} e, where it depends on the origin" if charge else f"pbc = {pbc}"
        raise DataError(
            f"has a dipole, but {why}; only neutral molecules (pbc all False) and slabs have one: set pbc to False for "
            "a molecule in a box, remove the label, or set training.dipole_weight to 0"
        )
    if "born_charges" in labels:
        charges = config.model.charges
        check_born_charges(CHARGES[charges.kind], charges.neutrality, structure.pbc)


def read_data(config: FitConfig, console: Console, *, stored: Path | None = None, known: Sequence[int] = ()) -> FitData:
    """Read and divide the structures that a configuration names.

    Args:
        stored: split.json of a run that is resumed; None divides anew.
        known: atomic numbers that need no training rows, those of a model that the fit starts from.
    Raises:
        DataError, StructureError, UnknownElementError: bad rows, too few, the same in two parts, or others than those
            of the stored split.
    """
    data = config.data
    sources = {part: source for part in PARTS if (source := getattr(data, part))}
    reach = reach_of(config.properties) if config.task == "property" else None
    settings = graph_settings(config, reach)
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
    _check_apart(files)
    for found in loaded.values():
        for line in filter(None, (doubt(file.path, file.sha256) for file in found)):
            console.warn(line)
    if stored is not None:
        check_unchanged(stored, files)
    for file in itertools.chain(*loaded.values()):
        _tell_unlabelled(file, config.properties.targets, console)
    skip = console.warn if data.skip_bad_rows else None
    both = _usable(config, reach, loaded["train"], skip)
    if stored is not None:
        places = stored_split(stored, both.rows)
    else:
        seed = config.training.seed if data.split_seed is None else data.split_seed
        places = divide(data, seed, both.rows, groups_of(data.split, both))
    parts = {part: both.select(places[part]) for part in PARTS}
    split = {part: graphs.rows.tolist() for part, graphs in parts.items() if len(graphs)}
    elements = sorted({*parts["train"].elements, *known})
    of_properties = config.task == "property"
    if not of_properties:
        _check_held_back(data, parts, elements)
    fields = parts["train"].fields
    for label in supervised(config.training):
        if label not in fields:
            raise DataError(
                f"{named(data.train)}: training.{CHARGE_WEIGHTS[label]} is set, but no training row has {label}; add "
                "that label to the file, or set the weight to 0"
            )
    allowed = None if of_properties else elements
    parts |= {part: _usable(config, reach, loaded[part], skip, allowed) for part in sources if part != "train"}
    if of_properties:
        _tell_new_elements(parts, elements, console)
        _tell_leaks(parts, console)
    record = {
        "train": data.train,
        "files": files,
        "structures": {part: len(graphs) for part, graphs in parts.items()},
        "labels": config.properties.targets if of_properties else sorted(fields & set(LABELS + CHARGE_LABELS)),
        "split": split,
    }
    return FitData(**parts, elements=elements, record=record)


def graph_settings(config: FitConfig, reach: Reach | None) -> GraphSettings:
    """What the structures of a fit must have, and which edges.

    Args:
        reach: of the encoder; None for potentials.
    """
    if reach is not None:
        return GraphSettings(
            reach.cutoff,
            shells=reach.shells,
            targets=tuple(config.properties.targets),
            labels=False,
            check=check_labelled,
        )
    return GraphSettings(
        config.model.backbone.cutoff,
        require=("energy",),
        check=None if config.model.kernel.form == "none" else check_boundary,
    )


def check_labelled(structure: Structure) -> None:
    """Leave out a crystal without any of the properties; the processes that build graphs find this by its name."""
    if not bool(structure.targets.isfinite().any()):
        raise UnlabelledError("has none of the targets")


def check_boundary(structure: Structure) -> None:
    """Refuse what the long-range part cannot treat; the processes that build graphs find it by this name."""
    boundary_of(structure.pbc[0])


def _usable(
    config: FitConfig,
    reach: Reach | None,
    files: Sequence[GraphFile],
    skip: Callable[[str], None] | None,
    elements: Sequence[int] | None = None,
) -> Graphs:
    """All structures, once the bad rows are told; rows of none of these elements, or whose labels this fit cannot use,
    are bad too. That is looked at here, so that graphs do not depend on it and fits of other settings find them."""
    kept = []
    targets = targets_from(config.properties)
    # what any value of these targets may be is looked at row by row
    delicate = ["targets"] if any(target.classification or target.log for target in targets) else []
    wave_cutoff = None if reach is None else reach.wave_cutoff
    for file in files:
        bad = [(row, error) for row, error in file.bad if not isinstance(error, UnlabelledError)]
        good = np.ones(len(file.records), dtype=bool)
        doubtful = _of_other_elements(file, elements) | _with_fields(file, supervised(config.training) + delicate)
        if wave_cutoff is not None:
            doubtful |= _with_doubtful_waves(file, wave_cutoff)
        for number in np.flatnonzero(doubtful).tolist():
            structure = file.read(number)
            try:
                check_elements(structure.numbers.numpy(), elements)
                check_supervision(config, structure)
                if reach is not None:
                    check_values(targets, structure.targets[0])
                if wave_cutoff is not None:
                    check_waves(structure, wave_cutoff)
            except LrpotError as error:
                good[number] = False
                bad.append((int(structure.row), error))
        if bad:
            tell_bad_rows(file.path, sorted(bad, key=lambda found: found[0]), file.n_rows, skip)
        kept.append(good)
    return Graphs(files).select(np.flatnonzero(np.concatenate(kept)))


def _check_apart(files: Sequence[Mapping[str, Any]]) -> None:
    """
    Raises:
        DataError: a file, or one of the same content, is of two parts.
    """
    seen: dict[str, Mapping[str, Any]] = {}
    for file in files:
        other = seen.setdefault(file["sha256"], file)
        if other["part"] != file["part"]:
            same = "also" if other["file"] == file["file"] else f"the same as {other['file']} in"
            raise DataError(
                f"{file['file']}: is of data.{file['part']}, and {same} data.{other['part']}; errors on rows that are "
                "trained on say nothing: leave it out of one of them"
            )


def _tell_unlabelled(file: GraphFile, targets: Sequence[str], console: Console) -> None:
    """Say how many rows have nothing to learn from: in a table of many properties most may lack the one asked for."""
    unlabelled = sum(isinstance(error, UnlabelledError) for _, error in file.bad)
    if unlabelled == file.n_rows:
        raise DataError(f"{file.path}: no row has {' or '.join(targets)}; add a number to rows, or leave out that file")
    if unlabelled:
        console.line(f"{file.path}: {unlabelled} of {file.n_rows} rows have none of the targets and are left out")


def _of_other_elements(file: GraphFile, elements: Sequence[int] | None) -> np.ndarray:
    """(number of structures,) bool: which have an element that is none of these."""
    other = [elements is not None and bool(set(elements_of(f)) - set(elements)) for f in file.formulas]
    return np.array(other, dtype=bool)[file.records.columns["formula"]]


def _with_doubtful_waves(file: GraphFile, cutoff: float) -> np.ndarray:
    """(number of structures,) bool: which are not periodic, or may have too many waves."""
    columns = file.records.columns
    volume = columns["volume"] * columns["atoms"]
    return (volume == 0.0) | (volume * cutoff**3 / (12.0 * np.pi**2) > 0.99 * MAX_KVECTORS)


def _with_fields(file: GraphFile, names: Sequence[str]) -> np.ndarray:
    """(number of structures,) bool: which have any of these fields."""
    found = [any(field.name in names for field in layout) for layout in file.records.layouts]
    return np.array(found, dtype=bool)[file.records.columns["layout"]]


def _tell_new_elements(parts: Mapping[str, Graphs], elements: Sequence[int], console: Console) -> None:
    """Say which elements a model of properties will meet for the first time; it knows all of them by their features."""
    new = {part: sorted(set(parts[part].elements) - set(elements)) for part in ("valid", "test")}
    told = [f"{', '.join(chemical_symbols[z] for z in found)} in {part}" for part, found in new.items() if found]
    if told:
        console.warn(f"no training row has these elements: {'; '.join(told)}; predictions there are guesses")


def _tell_leaks(parts: Mapping[str, Graphs], console: Console) -> None:
    """Say how many rows that are held back may be crystals of the training part: their errors look too small."""
    names, volume = (np.concatenate([getattr(parts[part], kind) for part in PARTS]) for kind in ("names", "volume"))
    formulas = np.concatenate([np.array(parts[part].formulas)[parts[part].formula] for part in PARTS])
    groups = same_crystals(names, np.unique(formulas, return_inverse=True)[1], volume)
    train, valid, test = np.split(groups, np.cumsum([len(parts[part]) for part in PARTS])[:-1])
    for part, own in (("validation", valid), ("test", test)):
        shared = int(np.isin(own, train).sum())
        if shared:
            console.warn(
                f"{shared} of {len(own)} {part} rows may be crystals of the training part (same name, or same formula "
                "and volume); errors there look too small: choose data.split structure"
            )


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
