"""UnconvBench 1.0.1: its tasks, its folds, and results in the form in which its own package writes them.

Source: Wang et al., CrysToGraph (2024), Table 1, and the package unconvbench of the same authors. Its files are JSON of
pandas' "split" tables, a structure and a target in each row; `lrpot.data.tables` reads them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from lrpot.errors import ConfigError, DataError, ShapeError
from lrpot.properties.leaderboards.matbench import shuffled_folds

BENCHMARK = "unconvbench-1.0.1"
VERSION = "1.0.1"
N_FOLDS = 5
SEED = 42


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        rows: how many. unit: of the labels.
    """

    rows: int
    unit: str


# In the order of the package.
TASKS = {
    "unconvbench_supercon": Task(1058, "K"),
    "unconvbench_exfoliation": Task(4527, "eV/atom"),
    "unconvbench_2d_gap": Task(3520, "eV"),
    "unconvbench_2d_e_tot": Task(3520, "eV"),
    "unconvbench_co2_adsp": Task(13765, "wt%"),
    "unconvbench_qmof": Task(5106, "eV"),
    "unconvbench_defected": Task(530, "eV/atom"),
    "unconvbench_src_bulk": Task(530, "eV/atom"),
    "unconvbench_bulk_s": Task(5000, "eV/atom"),
    "unconvbench_bulk_m": Task(5000, "eV/atom"),
    "unconvbench_bulk_l": Task(5000, "eV/atom"),
}


def task_of(name: str) -> Task:
    """
    Raises:
        ConfigError: no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"UnconvBench has no task {name}; it has {', '.join(TASKS)}")
    return TASKS[name]


def folds_of(rows: int) -> list[np.ndarray]:
    """Rows that test each fold of a task with so many rows."""
    return shuffled_folds(rows, N_FOLDS, SEED)


def results(task: str, predicted: np.ndarray) -> str:
    """JSON that the package reads: predictions by fold, in the order in which it names the rows of a fold.

    Args:
        predicted: (rows,), in the unit of the task; those of a fold from a model that has not seen it.
    Raises:
        ConfigError: no such task. ShapeError: another number of rows. DataError: a prediction is no number.
    """
    if predicted.shape != (task_of(task).rows,):
        raise ShapeError(f"{task}: got {predicted.shape}, expected ({TASKS[task].rows},), a number for each row")
    bad = np.flatnonzero(~np.isfinite(predicted))
    if len(bad):
        raise DataError(f"{task}: row {bad[0]} is {predicted[bad[0]]}; UnconvBench takes no gaps")
    # each task of the package holds the results of all of them
    found: dict[str, dict[str, list[float]]] = {
        name: {f"fold_{number}": [] for number in range(N_FOLDS)} for name in TASKS
    }
    for number, rows in enumerate(folds_of(len(predicted))):
        found[task][f"fold_{number}"] = predicted[rows].tolist()
    content: dict[str, Any] = {
        "@module": "unconvbench.bench",
        "@class": "UnconvbenchBenchmark",
        "version": VERSION,
        "benchmark_name": BENCHMARK,
        "user_metadata": {},
        "datestamp": datetime.now(UTC).strftime("%Y.%m.%d %H:%M.%S"),
        "tasks": {
            task: {
                "@module": "unconvbench.task",
                "@class": "Task",
                "benchmark_name": BENCHMARK,
                "dataset_name": task,
                "results": found,
            }
        },
    }
    # keys in order: the package sorts them before it takes the hash
    content["hash"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content, sort_keys=True)
