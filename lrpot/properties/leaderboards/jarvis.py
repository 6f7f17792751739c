"""A contribution to the JARVIS-Leaderboard: predictions of its test sets, and what it asks about a model.

Source: Choudhary et al., npj Comput. Mater. 10, 93 (2024), and the guide of the repository
usnistgov/jarvis_leaderboard.
"""

from __future__ import annotations

import csv
import io
import json
import platform
import random
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from lrpot.errors import ConfigError, DataError, ShapeError
from lrpot.files import atomic_folder, atomic_path
from lrpot.properties.leaderboards.submission import check_told, requirements
from lrpot.properties.metrics import check_classes, predicted_classes

# A fixed time in the packed files: equal predictions are equal files.
_TIME = (1980, 1, 1, 0, 0, 0)

# Of the shuffle that cuts a data set into parts.
SEED = 123


@dataclass(frozen=True)
class Benchmark:
    """Predictions of the test set of one benchmark.

    Attributes:
        name: the property as the leaderboard calls it, such as formation_energy_peratom.
        dataset: such as dft_3d.
        ids: (n,) of the crystals, such as JVASP-1002.
        target: (n,) labels, in the unit of the leaderboard, or classes 0 and 1.
        prediction: (n,) in the same unit, or probabilities of class 1, which are written as classes.
        kind: "regression" or "classification".
    """

    name: str
    dataset: str
    ids: Sequence[str]
    target: np.ndarray
    prediction: np.ndarray
    kind: str = "regression"

    @property
    def file_name(self) -> str:
        """Of the table, without .zip; its fields are separated by minus signs."""
        if self.kind == "regression":
            return f"AI-SinglePropertyPrediction-{self.name}-{self.dataset}-test-mae.csv"
        return f"AI-SinglePropertyClass-{self.name}-{self.dataset}-test-acc.csv"


@dataclass(frozen=True)
class About:
    """What the leaderboard asks about a model.

    Attributes:
        model_name, team_name: as they are to be listed.
        author_email: who answers questions.
        project_url: of the paper, or of a page about the model. git_url: of its code.
        time_taken_seconds: of training and prediction together.
        hardware_used: such as "1 x NVIDIA H100".
        date_submitted: today, if not given.
    """

    model_name: str
    team_name: str
    author_email: str
    project_url: str
    git_url: str
    time_taken_seconds: float
    hardware_used: str
    date_submitted: date | None = None


def write_contribution(
    folder: str | Path, benchmarks: Sequence[Benchmark], about: About, commands: Sequence[str]
) -> Path:
    """Write a table of each benchmark (.csv.zip), metadata.json and run.sh.

    Args:
        folder: new; in the repository of the leaderboard it stands in jarvis_leaderboard/contributions/.
        benchmarks: one at least.
        about: all but the date must be filled in.
        commands: shell commands that make these predictions anew.
    Returns:
        The folder.
    Raises:
        ConfigError: something is not filled in, or cannot be part of a file name. ShapeError: columns differ in length.
        DataError: an id comes twice, or something is not a number. OutputError: the folder holds files, or cannot be
            written.
    """
    told = {name: value for name, value in vars(about).items() if name != "date_submitted"}
    check_told("a contribution to the JARVIS-Leaderboard", told | {"benchmarks": benchmarks, "commands": commands})
    if "@" not in about.author_email:
        raise ConfigError(f"author_email = {about.author_email}: is no address; give one such as name@example.org")
    if len({benchmark.file_name for benchmark in benchmarks}) < len(benchmarks):
        raise ConfigError("a benchmark is given twice; give each property of a data set once")
    with atomic_folder(folder) as temporary:
        for benchmark in benchmarks:
            write_table(temporary, benchmark)
        metadata = json.dumps(_metadata(about), indent=4, ensure_ascii=False) + "\n"
        (temporary / "metadata.json").write_text(metadata, encoding="utf-8")
        script = temporary / "run.sh"
        script.write_text("\n".join(["#!/bin/bash", "set -e", *commands, ""]), encoding="utf-8")
        script.chmod(script.stat().st_mode | 0o111)
    return Path(folder)


def write_table(folder: Path, benchmark: Benchmark) -> Path:
    """Write id, target and prediction of a benchmark as packed CSV, and say where.

    Raises:
        ConfigError, ShapeError, DataError: as of `write_contribution`.
    """
    name, text = benchmark.file_name, _table(benchmark)
    path = folder / f"{name}.zip"
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(zipfile.ZipInfo(name, _TIME), text, zipfile.ZIP_DEFLATED)
    return path


def official_split(rows: int) -> dict[str, np.ndarray]:
    """Places of the rows that train, validate and test, of all that have the property, in the order of the data.

    Eight, one and one tenth, rounded down, of a shuffle by Python's generator: as ALIGNN draws them (Choudhary and
    DeCost, npj Comput. Mater. 7, 185 (2021)), whose test sets are those of the leaderboard.

    Raises:
        DataError: too few rows for three parts.
    """
    tenth, train = int(0.1 * rows), int(0.8 * rows)
    if not tenth:
        raise DataError(f"{rows} rows with the property are too few to validate and test a tenth each; give 10 or more")
    order = list(range(rows))
    random.Random(SEED).shuffle(order)
    parts = {"train": order[:train], "valid": order[-2 * tenth : -tenth], "test": order[-tenth:]}
    return {part: np.sort(own) for part, own in parts.items()}


def _metadata(about: About) -> dict[str, Any]:
    return {
        "model_name": about.model_name,
        "project_url": about.project_url,
        "date_submitted": (about.date_submitted or date.today()).strftime("%m-%d-%Y"),
        "author_email": about.author_email,
        "team_name": about.team_name,
        "time_taken_seconds": float(about.time_taken_seconds),
        "language": "python",
        "os": platform.system().lower(),
        "software_used": ",".join(requirements()),
        "hardware_used": about.hardware_used,
        "git_url": [about.git_url],
    }


def _table(benchmark: Benchmark) -> str:
    """id, target, prediction as CSV."""
    for what, value in (("property", benchmark.name), ("data set", benchmark.dataset)):
        if not re.fullmatch(r"\w+", value):
            raise ConfigError(f"{what} {value!r}: is no name of the leaderboard; give one such as mbj_bandgap, dft_3d")
    where = benchmark.file_name
    target, prediction = np.asarray(benchmark.target, dtype=float), np.asarray(benchmark.prediction, dtype=float)
    shape = (len(benchmark.ids),)
    if target.shape != shape or prediction.shape != shape:
        raise ShapeError(f"{where}: ids {shape}, target {target.shape}, prediction {prediction.shape}; all are (n,)")
    names, counts = np.unique(np.asarray(benchmark.ids, dtype=str), return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{where}: {names[counts > 1][0]} comes twice; give each crystal once")
    bad = np.flatnonzero(~np.isfinite(target) | ~np.isfinite(prediction))
    if len(bad):
        raise DataError(f"{where}: {benchmark.ids[bad[0]]} has no number; the leaderboard takes no gaps")
    if benchmark.kind == "classification":
        check_classes(target, prediction)
        target, prediction = target.astype(int), predicted_classes(prediction).astype(int)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "target", "prediction"])
    writer.writerows(zip(benchmark.ids, target.tolist(), prediction.tolist(), strict=True))
    return text.getvalue()
