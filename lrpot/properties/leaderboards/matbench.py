"""MatBench v0.1: its folds, and a submission in the format that its own package reads.

Source: Dunn et al., npj Comput. Mater. 6, 138 (2020); folds, identifiers, scores and files as version 0.6 of the
package matbench makes and checks them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lrpot.errors import ConfigError, DataError, ShapeError
from lrpot.files import atomic_folder
from lrpot.properties.leaderboards.submission import check_told, requirements
from lrpot.properties.metrics import check_classes, class_errors, predicted_classes, regression_errors, roc_auc

BENCHMARK = "matbench_v0.1"
VERSION = "0.6"  # of the package whose format this is
N_FOLDS = 5
SEED = 18012019

# Labels of a regression that are smaller than this have no part in the relative error.
SMALLEST_LABEL = 1e-5


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        rows: how many. column: of the labels in the file of MatBench. unit: of them, "" of classes.
    """

    rows: int
    column: str
    unit: str

    @property
    def kind(self) -> str:
        return "regression" if self.unit else "classification"


# Those with structures; the others have compositions alone.
TASKS = {
    "matbench_dielectric": Task(4764, "n", "1"),
    "matbench_jdft2d": Task(636, "exfoliation_en", "meV/atom"),
    "matbench_log_gvrh": Task(10987, "log10(G_VRH)", "log10(GPa)"),
    "matbench_log_kvrh": Task(10987, "log10(K_VRH)", "log10(GPa)"),
    "matbench_mp_e_form": Task(132752, "e_form", "eV/atom"),
    "matbench_mp_gap": Task(106113, "gap pbe", "eV"),
    "matbench_mp_is_metal": Task(106113, "is_metal", ""),
    "matbench_perovskites": Task(18928, "e_form", "eV/unit cell"),
    "matbench_phonons": Task(1265, "last phdos peak", "1/cm"),
}


@dataclass(frozen=True)
class Predictions:
    """Out-of-fold predictions of one task: those of a fold come from a model that has not seen that fold.

    Attributes:
        reference: (rows,) labels in the order of MatBench, in the unit of the task, or classes 0 and 1.
        predicted: (rows,) in the same unit, or probabilities of class 1.
        parameters: whatever of the fit is worth telling, ready for JSON.
    """

    reference: np.ndarray
    predicted: np.ndarray
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class About:
    """What a submission tells of itself.

    Attributes:
        authors: names, separated by commas. algorithm: its short name, which no other submission has.
        algorithm_long: what it is, in a few sentences. bibtex_refs: of the papers behind it. notes: anything else.
    """

    authors: str
    algorithm: str
    algorithm_long: str
    bibtex_refs: str | list[str]
    notes: str = ""


def identifiers(task: str) -> list[str]:
    """Names of the rows of a task, such as mb-jdft2d-001."""
    rows = task_of(task).rows
    return [f"{task.replace('matbench', 'mb').replace('_', '-')}-{n:0{len(str(rows))}d}" for n in range(1, rows + 1)]


def official_folds(task: str, reference: np.ndarray) -> list[np.ndarray]:
    """Rows that test each fold of a task.

    Args:
        reference: (rows,) its labels; those of a classification decide the folds.
    Raises:
        ConfigError: no such task. ShapeError: another number of labels.
    """
    _check_rows(task, reference)
    if task_of(task).kind == "regression":
        return shuffled_folds(len(reference), N_FOLDS, SEED)
    return stratified_folds(reference, N_FOLDS, SEED)


def shuffled_folds(rows: int, folds: int, seed: int) -> list[np.ndarray]:
    """Random folds of equal size; the first ones have a row more if need be. Rows of a fold ascend.

    The same folds as KFold(folds, shuffle=True, random_state=seed) of scikit-learn, whose random numbers are numpy's
    old ones.
    """
    order = np.arange(rows)
    np.random.RandomState(seed).shuffle(order)  # the official folds were drawn with it
    return [np.sort(part) for part in np.array_split(order, folds)]


def stratified_folds(labels: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Random folds with like shares of each class; rows of a fold ascend.

    The same folds as StratifiedKFold(folds, shuffle=True, random_state=seed) of scikit-learn >= 0.22: sorted by class,
    rows are dealt out to the folds in turn, which says how many of a class each fold gets; which ones is shuffled class
    by class. Classes count in the order of their first row.

    Args:
        labels: (rows,) of any kind.
    """
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    classes = np.argsort(np.argsort(first))[inverse]
    dealt = np.sort(classes)
    random = np.random.RandomState(seed)  # the official folds were drawn with it
    fold = np.empty(len(classes), dtype=int)
    for number in range(len(first)):
        shares = [int((dealt[start::folds] == number).sum()) for start in range(folds)]
        turns = np.repeat(np.arange(folds), shares)
        random.shuffle(turns)
        fold[classes == number] = turns
    return [np.flatnonzero(fold == number) for number in range(folds)]


def fold_scores(kind: str, reference: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The scores of one fold that MatBench asks for, of (n,) each.

    MatBench takes rocauc of classes and not of probabilities, where it is the balanced accuracy.
    """
    if kind == "regression":
        errors = regression_errors(reference, predicted)
        large = np.abs(reference) > SMALLEST_LABEL
        relative = np.abs((predicted[large] - reference[large]) / reference[large])
        return {
            "mae": errors["mae"],
            "rmse": errors["rmse"],
            "mape": float(relative.mean()),
            "max_error": errors["max"],
        }
    errors = class_errors(reference, predicted)
    by_classes = roc_auc(reference, predicted_classes(predicted))
    return {
        "accuracy": errors["accuracy"],
        "balanced_accuracy": by_classes,
        "f1": errors["f1"],
        "rocauc": by_classes,
    }


def write_submission(
    folder: str | Path, tasks: Mapping[str, Predictions], about: About, commands: Sequence[str]
) -> Path:
    """Write results.json.gz, info.json, run.py and a README that says what they are and what they score.

    Args:
        folder: new; MatBench calls it matbench_v0.1_ and the name of the algorithm.
        tasks: predictions by the name of the task.
        about: all but `notes` must be filled in.
        commands: shell commands that make these predictions anew.
    Returns:
        The folder.
    Raises:
        ConfigError: no such task, or something is not filled in. ShapeError: another number of rows than the task's.
        DataError: a prediction or a label is not a number. OutputError: the folder holds files, or cannot be written.
    """
    told = {name: getattr(about, name) for name in ("authors", "algorithm", "algorithm_long", "bibtex_refs")}
    check_told("a MatBench submission", told | {"tasks": tasks, "commands": commands})
    results = _all_results(tasks)
    info = {**told, "notes": about.notes, "requirements": {"python": [*requirements(), f"matbench=={VERSION}"]}}
    with atomic_folder(folder) as temporary:
        (temporary / "results.json.gz").write_bytes(gzip.compress(_signed(results).encode()))
        (temporary / "info.json").write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (temporary / "run.py").write_text(_RUN.format(commands=_listed(commands)), encoding="utf-8")
        (temporary / "README.md").write_text(_readme(about, tasks, results, commands), encoding="utf-8")
    return Path(folder)


def results_text(tasks: Mapping[str, Predictions]) -> str:
    """JSON of predictions and scores by fold, as `MatbenchBenchmark.from_file` reads it.

    Args:
        tasks: predictions by the name of the task.
    Raises:
        ConfigError, ShapeError, DataError: as of `write_submission`.
    """
    return _signed(_all_results(tasks))


def task_of(name: str) -> Task:
    """
    Raises:
        ConfigError: no such task, or one without structures.
    """
    if name not in TASKS:
        raise ConfigError(f"MatBench has no task {name} with structures; it has {', '.join(TASKS)}")
    return TASKS[name]


def _check_rows(task: str, values: np.ndarray) -> None:
    if np.shape(values) != (task_of(task).rows,):
        raise ShapeError(f"{task}: got {np.shape(values)}, expected ({task_of(task).rows},), a number for each row")


def _all_results(tasks: Mapping[str, Predictions]) -> dict[str, dict[str, dict[str, Any]]]:
    return {task: _results(task, predictions) for task, predictions in tasks.items()}


def _results(task: str, predictions: Predictions) -> dict[str, dict[str, Any]]:
    """Predictions, parameters and scores by fold."""
    kind = task_of(task).kind
    reference = np.asarray(predictions.reference, dtype=float)
    predicted = np.asarray(predictions.predicted, dtype=float)
    for name, values in (("labels", reference), ("predictions", predicted)):
        _check_rows(task, values)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise DataError(f"{task}: {name}: row {bad[0]} is {values[bad[0]]}; MatBench takes no gaps")
    if kind == "classification":
        check_classes(reference, predicted)
        if min((reference == 0).sum(), (reference == 1).sum()) < N_FOLDS:
            raise DataError(f"{task}: labels have fewer than {N_FOLDS} crystals of a class; give those of the task")
    names = np.array(identifiers(task))
    return {
        f"fold_{number}": {
            "data": dict(zip(names[rows].tolist(), predicted[rows].tolist(), strict=True)),
            "parameters": dict(predictions.parameters),
            "scores": fold_scores(kind, reference[rows], predicted[rows]),
        }
        for number, rows in enumerate(official_folds(task, reference))
    }


def _signed(results: Mapping[str, Any]) -> str:
    """JSON of a benchmark with the hash by which the package tells changes: SHA-256 of the same JSON without it."""
    content: dict[str, Any] = {
        "@module": "matbench.bench",
        "@class": "MatbenchBenchmark",
        "version": VERSION,
        "benchmark_name": BENCHMARK,
        "user_metadata": {},
        "datestamp": datetime.now(UTC).strftime("%Y.%m.%d %H:%M.%S"),
        "tasks": {
            task: {
                "@module": "matbench.task",
                "@class": "MatbenchTask",
                "benchmark_name": BENCHMARK,
                "dataset_name": task,
                "results": folds,
            }
            for task, folds in results.items()
        },
    }
    # keys in order: the package sorts them before it takes the hash
    content["hash"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content, sort_keys=True)


_RUN = '''"""Make the predictions of this submission anew."""

import subprocess

COMMANDS = [
{commands}
]

for command in COMMANDS:
    subprocess.run(command, shell=True, check=True)
'''


def _listed(commands: Sequence[str]) -> str:
    return "\n".join(f"    {command!r}," for command in commands)


def _readme(about: About, tasks: Mapping[str, Predictions], results: Mapping[str, Any], commands: Sequence[str]) -> str:
    lines = [
        f"# {about.algorithm} on MatBench v0.1",
        "",
        about.algorithm_long,
        "",
        f"Authors: {about.authors}",
        "",
        *([about.notes, ""] if about.notes else []),
        "| file | what |",
        "|---|---|",
        "| `results.json.gz` | predictions and scores by fold, as `MatbenchBenchmark.from_file` reads them |",
        "| `info.json` | authors, algorithm, references, requirements |",
        "| `run.py` | makes the predictions anew |",
        "",
        "## Scores",
        "",
        "Means over the five official folds ± their standard deviation.",
    ]
    for task, folds in results.items():
        unit = TASKS[task].unit
        lines += ["", f"### {task}" + (f" ({unit})" if unit else ""), ""]
        scores = [fold["scores"] for fold in folds.values()]
        lines += ["| fold | " + " | ".join(scores[0]) + " |", "|---" * (len(scores[0]) + 1) + "|"]
        lines += [f"| {n} | " + " | ".join(f"{v:.4g}" for v in row.values()) + " |" for n, row in enumerate(scores)]
        columns = [[row[name] for row in scores] for name in scores[0]]
        lines.append("| mean | " + " | ".join(f"{np.mean(c):.4g} ± {np.std(c):.2g}" for c in columns) + " |")
        if TASKS[task].kind == "classification":
            area = roc_auc(np.asarray(tasks[task].reference), np.asarray(tasks[task].predicted))
            lines += ["", f"MatBench takes rocauc of classes; of probabilities, over all rows, it is {area:.4f}."]
    return "\n".join([*lines, "", "## Commands", "", "```bash", *commands, "```", ""])
