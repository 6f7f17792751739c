"""A property model and files of crystals in, a table of predictions out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase.data import chemical_symbols

from lrpot.data.readers import Row, stream_rows, to_structure
from lrpot.data.tables import name_of
from lrpot.errors import DataError, LrpotError
from lrpot.files import atomic_path, write_csv
from lrpot.properties.evaluation import evaluate_properties
from lrpot.properties.model import PropertyEnsemble, PropertyModel
from lrpot.properties.targets import Target
from lrpot.structure import Structure

# Endings of files in a folder that are read as crystals.
ENDINGS = (".cif", ".vasp", ".poscar", ".extxyz", ".xyz", ".traj", ".db", ".json", ".h5", ".gz")


@dataclass(frozen=True)
class PropertyPredictions:
    """Predictions of n crystals.

    Attributes:
        rows: file, number and atoms of each.
        targets: what is predicted.
        values: (n, T), in the units of the data; of a class its probability.
        uncertainty: (n, T), or None if the model is no ensemble.
        unknown: of each crystal, symbols of elements that the model was not fitted to.
    """

    rows: list[Row]
    targets: tuple[Target, ...]
    values: np.ndarray
    uncertainty: np.ndarray | None
    unknown: list[tuple[str, ...]]

    def columns(self) -> dict[str, np.ndarray]:
        """Numbers by name, (n,) each: targets in units of the data, their uncertainties as NAME_uncertainty, n_atoms,
        n_elements."""
        found = {target.name: self.values[:, place] for place, target in enumerate(self.targets)}
        if self.uncertainty is not None:
            found |= {f"{t.name}_uncertainty": self.uncertainty[:, place] for place, t in enumerate(self.targets)}
        found["n_atoms"] = np.array([len(row.atoms) for row in self.rows], dtype=float)
        found["n_elements"] = np.array([len(set(row.atoms.numbers)) for row in self.rows], dtype=float)
        return found

    def chosen(self, places: Sequence[int] | np.ndarray) -> PropertyPredictions:
        """Those at some places, (m,) indices, in this order."""
        rows = [self.rows[n] for n in places]
        uncertainty = None if self.uncertainty is None else self.uncertainty[places]
        unknown = [self.unknown[n] for n in places]
        return PropertyPredictions(rows, self.targets, self.values[places], uncertainty, unknown)


def predict_properties(
    model: PropertyModel | PropertyEnsemble,
    files: str | Path | Sequence[str | Path],
    *,
    skip_bad: Callable[[str], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> PropertyPredictions:
    """Predict every crystal of some files and folders; crystals are read as they are needed.

    Args:
        files: one or more, in any format that ASE reads; of a folder, all files of crystals in it.
        skip_bad: told about each crystal that cannot be used, which is then left out; None makes it an error.
        progress: called with the number of crystals done.
    Raises:
        DataError, StructureError: name the file, the row and what is wrong with it.
    """
    rows: list[Row] = []
    found = evaluate_properties(model, _structures(model, files_of(files), rows, skip_bad), progress=progress)
    if not rows:
        raise DataError("no crystal could be used; see the reasons above")
    known = set(model.elements)
    unknown = [tuple(chemical_symbols[z] for z in sorted(set(row.atoms.numbers.tolist()) - known)) for row in rows]
    return PropertyPredictions(rows, model.targets, found.predicted, found.uncertainty, unknown)


def table_columns(model: PropertyModel | PropertyEnsemble) -> list[str]:
    """Names of `PropertyPredictions.columns` of a model."""
    names = [target.name for target in model.targets]
    spreads = [f"{name}_uncertainty" for name in names] if len(model.members) > 1 else []
    return [*names, *spreads, "n_atoms", "n_elements"]


def files_of(files: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files, and those of crystals in the place of each folder, by name; without the tables of their properties.

    Raises:
        DataError: a folder without crystals.
    """
    found = []
    for path in [Path(files)] if isinstance(files, (str, Path)) else map(Path, files):
        if not path.is_dir():
            found.append(path)
            continue
        inside = [f for f in sorted(path.iterdir()) if f.suffix.lower() in ENDINGS or f.name.startswith("POSCAR")]
        if not inside:
            raise DataError(f"{path}: holds no files of crystals ({', '.join(ENDINGS)}); name the files themselves")
        found += inside
    return found


def _structures(
    model: PropertyModel | PropertyEnsemble,
    files: Sequence[Path],
    rows: list[Row],
    skip_bad: Callable[[str], None] | None,
) -> Iterator[Structure]:
    """Structures without labels; their rows are put into `rows`."""
    for path in files:
        try:
            for row in stream_rows(path):
                try:
                    structure = to_structure(row.atoms, model.cutoff, shells=model.shells, labels=False)
                    model.check(structure)
                except LrpotError as error:
                    told = type(error)(f"{row}: {error}")
                    if skip_bad is None:
                        raise told from error
                    skip_bad(str(told))
                    continue
                rows.append(row)
                yield structure
        except LrpotError as error:
            if skip_bad is None:
                raise
            skip_bad(str(error))


def summary(found: PropertyPredictions) -> tuple[list[str], list[list[str]]]:
    """Column names and one line of text per crystal."""
    header = ["file", "row", "id", "formula"]
    for target in found.targets:
        header.append(f"probability of {target.name}" if target.classification else target.label)
        header += [f"{target.name}_uncertainty"] if found.uncertainty is not None else []
    new = any(found.unknown)
    header += ["new elements"] if new else []
    lines = []
    for place, row in enumerate(found.rows):
        line = [str(row.file), str(row.number), name_of(row.atoms.info), row.atoms.get_chemical_formula()]
        for column in range(len(found.targets)):
            line.append(f"{found.values[place, column]:.6g}")
            if found.uncertainty is not None:
                line.append(f"{found.uncertainty[place, column]:.2g}")
        lines.append([*line, " ".join(found.unknown[place])] if new else line)
    return header, lines


def write_properties(found: PropertyPredictions, path: str | Path) -> Path:
    """Write them as .csv (the table of `summary`) or .extxyz (crystals that carry what is predicted in `info`)."""
    path = Path(path)
    if path.suffix == ".csv":
        write_csv(path, *summary(found))
        return path
    crystals = []
    for place, row in enumerate(found.rows):
        atoms = row.atoms.copy()
        atoms.calc = None
        for column, target in enumerate(found.targets):
            atoms.info[f"{target.name}_predicted"] = float(found.values[place, column])
            if found.uncertainty is not None:
                atoms.info[f"{target.name}_uncertainty"] = float(found.uncertainty[place, column])
        crystals.append(atoms)
    with atomic_path(path) as temporary:
        ase.io.write(temporary, crystals, format="extxyz")
    return path
