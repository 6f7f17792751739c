"""MatBench: its folds are the official ones, and a submission is what its package makes, row by row."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest

from lrpot.errors import ConfigError, DataError, LrpotError, OutputError, ShapeError
from lrpot.properties.leaderboards.matbench import (
    SEED,
    TASKS,
    About,
    Predictions,
    fold_scores,
    identifiers,
    official_folds,
    shuffled_folds,
    stratified_folds,
    write_submission,
)

REAL_DATA = "LRPOT_REAL_DATA"  # environment: a folder of labelled sets that are not part of the project
# of json.dumps of the rows that each official fold tests
OFFICIAL_JDFT2D = "06e5ed441c178be7d12cae45e2e36c035c8ecdd6c67b9d6c356eb8200266e89d"
ABOUT = About("A. Author, B. Author", "lrpot-regnet", "A network.", "@article{x}", "Nothing else.")
COMMANDS = ["lrpot cv jdft2d.json --encoder regnet"]


def predictions(task: str, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    rows = TASKS[task].rows
    if TASKS[task].kind == "regression":
        reference = rng.normal(size=rows)
        return Predictions(reference, reference + 0.1 * rng.normal(size=rows), {"epochs": 300, "widths": [64, 32]})
    reference = (rng.random(rows) < 0.4).astype(float)
    return Predictions(reference, np.clip(0.2 * reference + 0.8 * rng.random(rows), 0, 1))


def membership(folds: list[np.ndarray], rows: int) -> str:
    """The fold of each row, as digits."""
    fold = np.full(rows, -1)
    for number, members in enumerate(folds):
        assert (fold[members] == -1).all()
        assert (np.diff(members) > 0).all()
        fold[members] = number
    return "".join(map(str, fold))


def jdft2d() -> Path:
    if REAL_DATA not in os.environ:
        pytest.skip(f"{REAL_DATA} names no folder of real data sets")
    folder = Path(os.environ[REAL_DATA]) / "matbench_jdft2d"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    return folder


def test_folds_of_regressions_have_not_moved() -> None:
    """The digest of folds that were compared with the official ones (the test below does so where they are)."""
    text = json.dumps([rows.tolist() for rows in official_folds("matbench_jdft2d", np.zeros(636))])
    assert hashlib.sha256(text.encode()).hexdigest() == OFFICIAL_JDFT2D


def test_folds_of_jdft2d_are_the_official_ones() -> None:
    expected = json.loads((jdft2d() / "matbench_folds.json").read_text())["test_folds"]
    assert [rows.tolist() for rows in official_folds("matbench_jdft2d", np.zeros(636))] == expected


def test_the_mean_of_the_training_labels_scores_as_published() -> None:
    """The dummy of the leaderboard: MAE 67.2851 ± 10.1832, RMSE 126.8446 meV/atom."""
    reference = np.array(
        [atoms.info["exfoliation_en"] for atoms in ase.io.read(jdft2d() / "matbench_jdft2d.xyz.gz", ":")]
    )
    scores = []
    for rows in official_folds("matbench_jdft2d", reference):
        predicted = np.full(len(rows), np.delete(reference, rows).mean())
        scores.append(fold_scores("regression", reference[rows], predicted))
    mae, rmse = ([score[name] for score in scores] for name in ("mae", "rmse"))
    rounded = 5e-5  # of four digits
    assert np.mean(mae) == pytest.approx(67.2851, abs=rounded)
    assert np.std(mae) == pytest.approx(10.1832, abs=rounded)
    assert np.mean(rmse) == pytest.approx(126.8446, abs=rounded)


def test_folds_are_those_of_scikit_learn() -> None:
    """Its algorithms (1.x) on the same input, with the seed of MatBench."""
    assert membership(shuffled_folds(23, 5, SEED), 23) == "41211142340342300132002"
    labels = np.array(list("bbabcabbabbcbabababcbba"))
    assert membership(stratified_folds(labels, 5, SEED), 23) == "10441401032023411302322"


def test_classes_are_spread_evenly() -> None:
    task = "matbench_mp_is_metal"
    labels = predictions(task).reference
    folds = official_folds(task, labels)
    membership(folds, len(labels))
    for kind in (0, 1):
        assert np.ptp([(labels[rows] == kind).sum() for rows in folds]) <= 1


def test_identifiers() -> None:
    names = identifiers("matbench_jdft2d")
    assert (names[0], names[-1], len(names)) == ("mb-jdft2d-001", "mb-jdft2d-636", 636)
    assert identifiers("matbench_mp_e_form")[0] == "mb-mp-e-form-000001"


def test_scores_are_their_definitions() -> None:
    reference, predicted = np.array([1.0, -2.0, 1e-6, 4.0]), np.array([1.5, -2.0, 1.0, 3.0])
    assert fold_scores("regression", reference, predicted) == pytest.approx(
        {
            "mae": (0.5 + 0 + (1 - 1e-6) + 1) / 4,
            "rmse": ((0.25 + 0 + (1 - 1e-6) ** 2 + 1) / 4) ** 0.5,
            "mape": (0.5 / 1 + 0 + 1 / 4) / 3,  # labels next to zero do not count
            "max_error": 1.0,
        },
        rel=1e-12,
    )
    labels, probabilities = np.array([1, 1, 1, 0, 0]), np.array([0.9, 0.8, 0.1, 0.6, 0.4])
    found = fold_scores("classification", labels, probabilities)
    balanced = (2 / 3 + 1 / 2) / 2
    assert found == pytest.approx(
        {"accuracy": 3 / 5, "balanced_accuracy": balanced, "f1": 2 / 3, "rocauc": balanced}, rel=1e-12
    )


def test_a_submission_holds_what_the_package_asks_for(tmp_path: Path) -> None:
    tasks = {task: predictions(task) for task in ("matbench_jdft2d", "matbench_mp_is_metal")}
    folder = write_submission(tmp_path / "matbench_v0.1_lrpot", tasks, ABOUT, COMMANDS)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "info.json", "results.json.gz", "run.py"]
    content = json.loads(gzip.decompress((folder / "results.json.gz").read_bytes()))

    stated = content.pop("hash")
    ordered = json.dumps(content, sort_keys=True).encode()
    assert stated == hashlib.sha256(ordered).hexdigest()
    assert content.keys() == {
        *("@module", "@class", "version", "benchmark_name", "user_metadata", "datestamp", "tasks"),
    }
    for task, given in tasks.items():
        entry = content["tasks"][task]
        assert entry.keys() == {"@module", "@class", "benchmark_name", "dataset_name", "results"}
        assert (entry["benchmark_name"], entry["dataset_name"]) == ("matbench_v0.1", task)
        assert list(entry["results"]) == [f"fold_{n}" for n in range(5)]
        place = {name: row for row, name in enumerate(identifiers(task))}
        seen = []
        for rows, fold in zip(official_folds(task, given.reference), entry["results"].values(), strict=True):
            assert fold.keys() == {"data", "parameters", "scores"}
            assert [place[name] for name in fold["data"]] == rows.tolist()
            assert list(fold["data"].values()) == given.predicted[rows].tolist()  # every digit
            assert all(type(value) is float for value in fold["scores"].values())
            seen += fold["data"]
        assert sorted(seen) == sorted(place)
    assert content["tasks"]["matbench_jdft2d"]["results"]["fold_3"]["parameters"] == {"epochs": 300, "widths": [64, 32]}

    info = json.loads((folder / "info.json").read_text())
    assert {name: info[name] for name in ("authors", "algorithm", "notes")} == {
        "authors": "A. Author, B. Author",
        "algorithm": "lrpot-regnet",
        "notes": "Nothing else.",
    }
    assert any(line.startswith("torch==") and "+" not in line for line in info["requirements"]["python"])
    scores = [fold["scores"]["mae"] for fold in content["tasks"]["matbench_jdft2d"]["results"].values()]
    assert f"| mean | {np.mean(scores):.4g} ± " in (folder / "README.md").read_text()


def test_run_py_runs_the_commands(tmp_path: Path) -> None:
    commands = [f"echo 'it''s \"quoted\"' > {tmp_path}/one", f"cp {tmp_path}/one {tmp_path}/two"]
    task = "matbench_jdft2d"
    folder = write_submission(tmp_path / "made", {task: predictions(task)}, ABOUT, commands)
    subprocess.run([sys.executable, folder / "run.py"], check=True)
    assert (tmp_path / "two").read_text() == 'its "quoted"\n'


GIVEN = predictions("matbench_jdft2d")
METAL = predictions("matbench_mp_is_metal")


@pytest.mark.parametrize(
    ("tasks", "about", "error", "message"),
    [
        ({"matbench_jdft2d": GIVEN}, replace(ABOUT, authors=" ", bibtex_refs=""), ConfigError, "authors, bibtex_refs"),
        ({}, ABOUT, ConfigError, "a MatBench submission needs tasks"),
        ({"matbench_steels": GIVEN}, ABOUT, ConfigError, "no task matbench_steels with structures; it has matbench_"),
        ({"matbench_phonons": GIVEN}, ABOUT, ShapeError, r"matbench_phonons: got \(636,\), expected \(1265,\)"),
        (
            {"matbench_jdft2d": replace(GIVEN, predicted=np.where(np.arange(636) == 7, np.nan, 1.0))},
            ABOUT,
            DataError,
            "matbench_jdft2d: predictions: row 7 is nan",
        ),
        (
            {"matbench_mp_is_metal": replace(METAL, reference=np.ones_like(METAL.reference))},
            ABOUT,
            DataError,
            "fewer than 5 crystals of a class",
        ),
        (
            {"matbench_mp_is_metal": replace(METAL, predicted=2 * METAL.reference)},
            ABOUT,
            DataError,
            "is 2, not a probability",
        ),
    ],
    ids=["nothing told", "no task", "unknown task", "rows", "gap", "one class", "no probability"],
)
def test_bad_input_is_told_before_anything_is_written(
    tmp_path: Path, tasks: dict[str, Predictions], about: About, error: type[LrpotError], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_submission(tmp_path / "made", tasks, about, COMMANDS)
    assert list(tmp_path.iterdir()) == []


def test_what_a_folder_holds_stays(tmp_path: Path) -> None:
    (tmp_path / "results.json.gz").write_text("mine")
    with pytest.raises(OutputError, match="already holds files"):
        write_submission(tmp_path, {"matbench_jdft2d": GIVEN}, ABOUT, COMMANDS)
    assert (tmp_path / "results.json.gz").read_text() == "mine"
