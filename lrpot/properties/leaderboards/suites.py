"""Suites of benchmarks as one thing: what a task learns, which rows it tests, and the file that it wants of results."""

from __future__ import annotations

import gzip
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lrpot.errors import ConfigError
from lrpot.files import atomic_path
from lrpot.properties.evaluation import PropertyEvaluation
from lrpot.properties.leaderboards import jarvis, matbench, unconv
from lrpot.properties.targets import Target

# Places of the rows of each part: those that a fold tests, and, if a suite says so, those that train and validate.
Fold = dict[str, np.ndarray]


class SuiteTask(ABC):
    """One task of a suite."""

    suite: ClassVar[str]  # as the command line calls it

    def __init__(self, name: str) -> None:
        self.name = name

    def record(self) -> dict[str, str]:
        """What a run keeps of it, so that an export can tell its folds from others."""
        return {"suite": self.suite, "task": self.name}

    def settings(self) -> dict[str, Any]:
        """What the task says of the fit, by the names of settings."""
        return {}

    @abstractmethod
    def folds(self, labels: np.ndarray) -> list[Fold]:
        """The official ones, of the labels (rows,).

        Raises:
            ConfigError: no such task. ShapeError: the data are not those of the task.
        """

    def note(self, rows: int) -> str:
        """What must be said of data with so many rows; "" for nothing."""
        return ""

    @abstractmethod
    def write(self, out: Path, found: PropertyEvaluation, names: Sequence[str]) -> Path | None:
        """Write predictions, in the order of the rows, as the suite wants them; None if the data are not the task's."""


class MatBenchTask(SuiteTask):
    """Five folds; results.json.gz."""

    suite = "matbench"

    def settings(self) -> dict[str, Any]:
        task = matbench.task_of(self.name)
        if task.kind == "classification":
            return {"properties.targets": [task.column], "properties.classification": [task.column]}
        return {"properties.targets": [task.column], "properties.units": {task.column: task.unit}}

    def folds(self, labels: np.ndarray) -> list[Fold]:
        return [{"test": places} for places in matbench.official_folds(self.name, labels)]

    def write(self, out: Path, found: PropertyEvaluation, names: Sequence[str]) -> Path:
        predictions = matbench.Predictions(found.reference[:, 0], found.predicted[:, 0])
        return _packed(out / "results.json.gz", matbench.results_text({self.name: predictions}))


class UnconvTask(SuiteTask):
    """Five folds; a packed JSON. The rows of other data are cut into folds in the same way, without such a file."""

    suite = "unconv"

    def folds(self, labels: np.ndarray) -> list[Fold]:
        unconv.task_of(self.name)
        return [{"test": places} for places in unconv.folds_of(len(labels))]

    def note(self, rows: int) -> str:
        wanted = unconv.task_of(self.name).rows
        if rows == wanted:
            return ""
        return (
            f"{self.name} has {wanted} rows, these data {rows}: folds are drawn in the same way, but hold "
            "other crystals than the official ones, and no file for UnconvBench is written"
        )

    def write(self, out: Path, found: PropertyEvaluation, names: Sequence[str]) -> Path | None:
        if self.note(len(found.predicted)):
            return None
        return _packed(out / "unconvbench_results.json.gz", unconv.results(self.name, found.predicted[:, 0]))


class JarvisTask(SuiteTask):
    """One split into rows that train, validate and test; a packed table."""

    suite = "jarvis"

    def __init__(self, name: str, dataset: str) -> None:
        """
        Args:
            name: the property, as the leaderboard and the data call it. dataset: such as dft_3d.
        """
        super().__init__(name)
        self.dataset = dataset

    def record(self) -> dict[str, str]:
        return {**super().record(), "dataset": self.dataset}

    def settings(self) -> dict[str, Any]:
        return {"properties.targets": [self.name]}

    def folds(self, labels: np.ndarray) -> list[Fold]:
        return [jarvis.official_split(len(labels))]

    def write(self, out: Path, found: PropertyEvaluation, names: Sequence[str]) -> Path:
        target: Target = found.targets[0]
        columns = found.reference[:, 0], found.predicted[:, 0]
        benchmark = jarvis.Benchmark(self.name, self.dataset, names, *columns, target.kind)
        return jarvis.write_table(out, benchmark)


def suite_task(suite: str, task: str | None, data: Path, dataset: str = "dft_3d") -> SuiteTask:
    """The task of a suite: "matbench", "unconv" or "jarvis".

    Args:
        task: its name; if None, that of the file, without endings and the ub_ of UnconvBench.
        dataset: of JARVIS.
    Raises:
        ConfigError: a task of JARVIS without a name, or no such task.
    """
    if suite == "jarvis":
        if task is None:
            raise ConfigError("name the property, as the leaderboard does: --task formation_energy_peratom")
        return JarvisTask(task, dataset)
    name = task or data.name.split(".")[0].removeprefix("ub_")
    if suite == "matbench":
        matbench.task_of(name)
        return MatBenchTask(name)
    unconv.task_of(name)
    return UnconvTask(name)


def _packed(path: Path, text: str) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode()))
    return path
