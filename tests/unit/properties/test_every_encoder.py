"""Every encoder goes the whole way by commands: as it is, in its published form, and with diffraction beside it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers_cli import run_cli
from tests.unit.properties import property_data
from tests.unit.properties.property_data import ENCODERS, salts, write_table

ROWS = 12

# Steps so large that after a few of them predictions differ.
TRAINING = ("training.max_epochs=2", "training.batch_size=4", "training.lr=0.05", "training.warmup_epochs=0")

# Settings beside those of the encoder: its own, and those of diffraction.
DIFFRACTION = {"use": "on", "features": 8, "channels": 2, "basis": 4, "shells": 4, "k_cutoff": 3.0}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (name, {}, {}) for name in ENCODERS},
    **{f"{name}, diffraction": (name, {}, DIFFRACTION) for name in ENCODERS},
    "literal": ("regnet", {"variant": "literal"}, {}),
    "released": ("crystograph", {"variant": "released", "encoding": "published"}, {}),
    "walks": ("crystograph", {"encoding": "bloch"}, {}),
    "axes": ("moce", {"variant": "published"}, {}),
    "miller": ("prdnet", {}, {"use": "on", "features": 8, "variant": "published", "max_index": 2}),
}
PUBLISHED = {"literal", "released", "axes", "miller"}


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    yield from property_data.no_pictures()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("data"), salts(ROWS))


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def words_of(case: str) -> list[str]:
    """Options that say which model it is, and that it is small."""
    name, own, diffraction = CASES[case]
    sections = {"encoder": {**ENCODERS[name], **own}, "diffraction": diffraction}
    settings = [f"properties.{s}.{key}={json.dumps(value)}" for s in sections for key, value in sections[s].items()]
    return ["--encoder", name, "--set", *settings, *TRAINING]


@pytest.mark.filterwarnings("ignore:.*is for comparison with the paper")  # Python's, which a command does not show
@pytest.mark.parametrize("case", CASES)
def test_from_a_fit_to_a_screening(case: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model predicts the same when fitted and when it comes from its file, and says if it is a printed form."""
    run, found, best = tmp_path / "run", tmp_path / "found.csv", tmp_path / "best.csv"
    assert run_cli("fit", data, *words_of(case), "--out", run) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert ("for comparison with the paper" in told) == (case in PUBLISHED)
    assert run_cli("predict", run / "model.pt", data.parent, "--out", found) == 0
    predicted = {Path(row["file"]).stem: float(row["gap"]) for row in rows_of(found)}
    assert len(predicted) == ROWS
    for row in rows_of(run / "test.csv"):
        assert predicted[row["id"]] == pytest.approx(float(row["gap_predicted"]), rel=1e-5)
    middle = sum(sorted(predicted.values())[ROWS // 2 - 1 : ROWS // 2 + 1]) / 2
    assert run_cli("screen", run / "model.pt", data.parent, "--where", f"gap > {middle}", "--out", best) == 0
    assert {Path(row["file"]).stem for row in rows_of(best)} == {n for n, gap in predicted.items() if gap > middle}


@pytest.mark.filterwarnings("ignore:.*is for comparison with the paper")
@pytest.mark.parametrize("case", ["prdnet", "crystograph", "axes"])
def test_folds_of_a_suite(case: str, data: Path, tmp_path: Path) -> None:
    """Every crystal is predicted by `lrpot benchmark`, and by `lrpot cv`."""
    words = (*words_of(case), "--target", "gap")
    assert run_cli("benchmark", "unconv", data, "--task", "unconvbench_defected", "--out", tmp_path / "b", *words) == 0
    assert run_cli("cv", data, "--folds", 2, "--out", tmp_path / "cv", *words) == 0
    for run, folds in (("b", 5), ("cv", 2)):
        table = rows_of(tmp_path / run / "predictions.csv")
        assert len(table) == ROWS
        assert {row["fold"] for row in table} == {str(n) for n in range(1, folds + 1)}
        assert all(math.isfinite(float(row["gap_predicted"])) for row in table)
