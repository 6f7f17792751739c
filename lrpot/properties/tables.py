"""Evaluations of property models as tables: errors for people; predictions beside labels as CSV, written and read."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lrpot.errors import DataError
from lrpot.files import write_csv
from lrpot.properties.evaluation import PropertyEvaluation
from lrpot.properties.targets import Target

_NUMBERS = ("mae", "rmse", "max", "r2")
_CLASSES = ("accuracy", "f1", "roc_auc")

# How errors are headed.
_TITLES = {"mae": "MAE", "rmse": "RMSE", "max": "max", "r2": "R2", "accuracy": "accuracy", "f1": "F1", "roc_auc": "AUC"}


def errors_table(found: PropertyEvaluation) -> tuple[list[str], list[list[str]]]:
    """Columns and lines: the errors of each target that has labels."""
    errors = found.errors()
    targets = [target for target in found.targets if target.name in errors]
    classes = any(target.classification for target in targets)
    numbers = any(not target.classification for target in targets)
    kinds = (_NUMBERS if numbers else ()) + (_CLASSES if classes else ())
    lines = []
    for target in targets:
        own = errors[target.name]
        lines.append([target.label, str(own["n"]), *(f"{own[kind]:.4g}" if kind in own else "" for kind in kinds)])
    return ["target", "crystals", *(_TITLES[kind] for kind in kinds)], lines


def save_predictions(
    found: PropertyEvaluation,
    rows: Sequence[int],
    names: Sequence[str],
    path: Path,
    more: Mapping[str, Sequence[object]] | None = None,
) -> Path:
    """Write CSV of row, id, n_atoms, and of each target its label, its prediction and, of an ensemble, its uncertainty.

    Args:
        rows, names: (n,) of the crystals; "" for no name. more: further columns (n,), which come after n_atoms.
    """
    more = more or {}
    header = ["row", "id", "n_atoms", *more]
    for target in found.targets:
        header += [target.name, f"{target.name}_predicted"]
        header += [f"{target.name}_uncertainty"] if found.uncertainty is not None else []
    lines = []
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        line = [str(row), name, str(found.atoms[place]), *(str(values[place]) for values in more.values())]
        for column in range(len(found.targets)):
            known = found.reference[place, column]
            line.append("" if known != known else f"{known:.10g}")
            line.append(f"{found.predicted[place, column]:.10g}")
            if found.uncertainty is not None:
                line.append(f"{found.uncertainty[place, column]:.4g}")
        lines.append(line)
    write_csv(path, header, lines)
    return path


def read_predictions(path: Path, targets: Sequence[Target]) -> tuple[PropertyEvaluation, list[int], list[str]]:
    """What `save_predictions` wrote: predictions beside labels, rows and names.

    Raises:
        DataError: no such file, or no such table.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))

        def column(suffix: str) -> np.ndarray:
            return np.array([[float(line[target.name + suffix] or "nan") for target in targets] for line in lines])

        uncertainty = column("_uncertainty") if f"{targets[0].name}_uncertainty" in lines[0] else None
        atoms = np.array([int(line["n_atoms"]) for line in lines])
        found = PropertyEvaluation(tuple(targets), column(""), column("_predicted"), uncertainty, None, atoms)
        return found, [int(line["row"]) for line in lines], [line["id"] for line in lines]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; is the fit finished?") from None
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        raise DataError(f"{path}: is no table of predictions of {targets[0].name}; make it anew") from error
