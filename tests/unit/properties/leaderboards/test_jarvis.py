"""A contribution to the JARVIS-Leaderboard is read back as it reads them."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import zipfile
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from lrpot.errors import ConfigError, DataError, LrpotError, ShapeError
from lrpot.properties.leaderboards.jarvis import About, Benchmark, write_contribution

ABOUT = About(
    model_name="lrpot_regnet",
    team_name="lrpot",
    author_email="author@example.org",
    project_url="https://example.org/paper",
    git_url="https://example.org/code",
    time_taken_seconds=125.5,
    hardware_used="one processor",
    date_submitted=date(2026, 2, 1),
)
IDS = ["JVASP-3", "JVASP-1", "JVASP-2"]
GAP = Benchmark("mbj_bandgap", "dft_3d", IDS, np.array([0.1, 2.0, 1 / 3]), np.array([0.2, 1.5, 2 / 3]))
METAL = Benchmark("slme", "dft_3d", IDS, np.array([0, 1, 1]), np.array([0.2, 0.4, 0.6]), "classification")


def rows_of(path: Path) -> list[list[str]]:
    with zipfile.ZipFile(path) as packed:
        (name,) = packed.namelist()
        assert f"{name}.zip" == path.name
        return list(csv.reader(io.StringIO(packed.read(name).decode())))


def test_a_contribution(tmp_path: Path) -> None:
    folder = write_contribution(tmp_path / "lrpot", [GAP, METAL], ABOUT, [f"echo ran > {tmp_path}/ran"])
    regression = "AI-SinglePropertyPrediction-mbj_bandgap-dft_3d-test-mae.csv.zip"
    classification = "AI-SinglePropertyClass-slme-dft_3d-test-acc.csv.zip"
    assert sorted(path.name for path in folder.iterdir()) == [
        classification,
        regression,
        "metadata.json",
        "run.sh",
    ]
    head, *rows = rows_of(folder / regression)
    assert head == ["id", "target", "prediction"]
    assert [row[0] for row in rows] == IDS
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], dtype=float).T, [GAP.target, GAP.prediction])
    assert rows_of(folder / classification)[1:] == [["JVASP-3", "0", "0"], ["JVASP-1", "1", "0"], ["JVASP-2", "1", "1"]]

    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata.keys() == {
        *("model_name", "project_url", "date_submitted", "author_email", "team_name", "time_taken_seconds"),
        *("language", "os", "software_used", "hardware_used", "git_url"),
    }
    assert (metadata["date_submitted"], metadata["time_taken_seconds"]) == ("02-01-2026", 125.5)
    assert metadata["git_url"] == ["https://example.org/code"]

    subprocess.run([folder / "run.sh"], check=True)
    assert (tmp_path / "ran").read_text() == "ran\n"


def test_equal_predictions_are_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_contribution(tmp_path / "a", [GAP], ABOUT, ["true"]) / f"{GAP.file_name}.zip"
    monkeypatch.setattr("time.time", lambda: os.stat(first).st_mtime + 1e6)
    second = write_contribution(tmp_path / "b", [GAP], ABOUT, ["true"]) / f"{GAP.file_name}.zip"
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("benchmarks", "about", "error", "message"),
    [
        ([GAP], replace(ABOUT, author_email="", git_url=""), ConfigError, "needs author_email, git_url"),
        ([GAP], replace(ABOUT, author_email="me"), ConfigError, "author_email = me: is no address"),
        ([], ABOUT, ConfigError, "needs benchmarks"),
        ([GAP, GAP], ABOUT, ConfigError, "given twice"),
        ([replace(GAP, name="mbj-bandgap")], ABOUT, ConfigError, "'mbj-bandgap': is no name of the leaderboard"),
        ([replace(GAP, dataset="../3d")], ABOUT, ConfigError, "data set '../3d'"),
        ([replace(GAP, target=GAP.target[:2])], ABOUT, ShapeError, r"ids \(3,\), target \(2,\)"),
        ([replace(GAP, ids=["a", "b", "a"])], ABOUT, DataError, "a comes twice"),
        ([replace(GAP, prediction=np.array([1, np.nan, 2]))], ABOUT, DataError, "JVASP-1 has no number"),
        ([replace(METAL, prediction=np.array([0, 1, 2]))], ABOUT, DataError, "prediction 2 is 2, not a probability"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(
    tmp_path: Path, benchmarks: list[Benchmark], about: About, error: type[LrpotError], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_contribution(tmp_path / "made", benchmarks, about, ["true"])
    assert list(tmp_path.iterdir()) == []
