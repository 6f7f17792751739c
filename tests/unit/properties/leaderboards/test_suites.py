"""Every suite: the official folds are run to their ends, resumed, and written in the form of the suite."""

from __future__ import annotations

import csv
import gzip
import json
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from monty.json import MontyEncoder
from pymatgen.io.ase import AseAtomsAdaptor

from lrpot.errors import ConfigError, DataError
from lrpot.properties.leaderboards import matbench, unconv
from lrpot.properties.leaderboards.jarvis import official_split
from lrpot.properties.leaderboards.suites import suite_task
from tests.helpers_cli import run_cli
from tests.unit.properties.property_data import SMALL, no_pictures, salts, write_table

SET = [f"{name}={json.dumps(value)}" for name, value in {**SMALL, "training.max_epochs": 1}.items()]

ROWS = 20


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    yield from no_pictures()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predictions(run: Path) -> list[dict[str, str]]:
    with open(run / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_unconv(path: Path) -> None:
    rows = [[AseAtomsAdaptor.get_structure(atoms).as_dict(), atoms.info["gap"]] for atoms in salts(ROWS)]
    path.write_text(json.dumps({"columns": ["structure", "target"], "data": rows}, cls=MontyEncoder))


def run(*words: object) -> int:
    return run_cli("benchmark", *words, "--encoder", "cgcnn", "--out", "run", "--set", *SET)


def test_unconv_writes_and_resumes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unconv.TASKS, "unconvbench_defected", unconv.Task(ROWS, "eV"))
    write_unconv(here / "ub_unconvbench_defected.json")
    words = ("unconv", "ub_unconvbench_defected.json")
    assert run(*words) == 0
    file = here / "run" / "unconvbench_results.json.gz"
    found = json.loads(gzip.decompress(file.read_bytes()))["tasks"]["unconvbench_defected"]["results"]
    table = predictions(here / "run")
    for number, rows in enumerate(unconv.folds_of(ROWS)):
        wanted = [float(table[row]["target_predicted"]) for row in rows]
        np.testing.assert_allclose(found["unconvbench_defected"][f"fold_{number}"], wanted, rtol=1e-9)
        assert {table[row]["fold"] for row in rows} == {str(number + 1)}
    file.unlink()
    before = [(here / "run" / f"fold-{n}" / "model.pt").stat().st_mtime_ns for n in range(1, 6)]
    assert run(*words, "--resume") == 0
    assert file.exists()
    assert [(here / "run" / f"fold-{n}" / "model.pt").stat().st_mtime_ns for n in range(1, 6)] == before


def test_other_rows_than_those_of_unconvbench_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_unconv(here / "own.json")
    assert run("unconv", "own.json", "--task", "unconvbench_defected") == 0
    assert "unconvbench_defected has 530 rows, these data 20" in " ".join("".join(capsys.readouterr()).split())
    assert not (here / "run" / "unconvbench_results.json.gz").exists()
    assert len(predictions(here / "run")) == ROWS


@pytest.mark.parametrize("split", ["structure", "random"])
def test_rows_that_a_fold_leaves_out_are_told(split: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twins, of which one is tested: the suite trains on the other."""
    data = write_table(here / "data", [*salts(ROWS - 2), *salts(2)], ("gap",))
    words = ("--task", "unconvbench_defected", f"--set=data.split={split}")
    assert run("unconv", data, *words) == 0
    told = " ".join("".join(capsys.readouterr()).split())
    parts = [json.loads((here / "run" / f"fold-{n}.json").read_text()) for n in range(1, 6)]
    trained = [len(part["train"]) + len(part["valid"]) for part in parts]
    assert ("rows may be crystals that a fold tests" in told) == (split == "structure")
    assert (min(trained) < ROWS - 4) == (split == "structure")


def test_matbench(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matbench.TASKS, "matbench_jdft2d", matbench.Task(ROWS, "gap", "meV/atom"))
    data = write_table(here / "data", salts(ROWS), ("gap", "bulk"))
    assert run("matbench", data, "--task", "matbench_jdft2d") == 0
    content = json.loads(gzip.decompress((here / "run" / "results.json.gz").read_bytes()))
    folds = content["tasks"]["matbench_jdft2d"]["results"]
    table = predictions(here / "run")
    names = matbench.identifiers("matbench_jdft2d")
    found = {name: value for fold in folds.values() for name, value in fold["data"].items()}
    assert [found[name] for name in names] == pytest.approx([float(row["gap_predicted"]) for row in table])


def test_jarvis_tests_the_rows_of_the_leaderboard(here: Path) -> None:
    data = write_table(here / "data", salts(ROWS), ("gap",))
    assert run("jarvis", data, "--task", "gap") == 0
    order = list(range(ROWS))
    random.seed(123)
    random.shuffle(order)
    with zipfile.ZipFile(here / "run" / "AI-SinglePropertyPrediction-gap-dft_3d-test-mae.csv.zip") as archive:
        lines = archive.read(archive.namelist()[0]).decode().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [f"salt-{n}" for n in sorted(order[-2:])]
    stored = json.loads((here / "run" / "fold-1.json").read_text())
    assert (stored["train"], stored["valid"]) == (sorted(order[:16]), sorted(order[16:18]))


def test_parts_of_jarvis_have_the_published_sizes() -> None:
    """44,578 / 5,572 / 5,572 of the 55,723 formation energies."""
    assert [len(own) for own in official_split(55723).values()] == [44578, 5572, 5572]
    with pytest.raises(DataError, match="9 rows with the property are too few"):
        official_split(9)


def test_a_task_is_found_by_the_name_of_its_file() -> None:
    assert suite_task("matbench", None, Path("matbench_jdft2d.json.gz")).name == "matbench_jdft2d"
    assert suite_task("unconv", None, Path("ub_unconvbench_qmof.json")).name == "unconvbench_qmof"
    with pytest.raises(ConfigError, match="MatBench has no task crystals with structures"):
        suite_task("matbench", None, Path("crystals.csv"))
    with pytest.raises(ConfigError, match="name the property"):
        suite_task("jarvis", None, Path("jdft_3d.json"))
