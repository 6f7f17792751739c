"""Property models by commands: the whole way, and what a user is told where it ends."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms

from lrpot.model_file import load_model, save
from lrpot.properties.leaderboards import matbench as matbench_suite
from lrpot.properties.leaderboards.jarvis import official_split
from tests.helpers_cli import listing, one_error_line, run_cli, save_model
from tests.unit.properties import property_data
from tests.unit.properties.property_data import ENCODERS, SMALL, salts, small_model, write_table

without_pictures = pytest.fixture(autouse=True)(property_data.no_pictures)

BAD_INPUTS = Path(__file__).parents[2] / "bad_inputs"
SET = ("--set", *(f"{name}={value}" for name, value in SMALL.items()))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """id_prop.csv (gap, bulk, metal) beside CIFs, gap.pt, other.pt, two.pt (gap and bulk), potential.pt."""
    folder = tmp_path_factory.mktemp("sound")
    write_table(folder / "data", salts(), ("gap", "bulk", "metal"))
    save(small_model(), folder / "gap.pt")
    save(small_model(seed=1), folder / "other.pt")
    save(small_model(("gap", "bulk")), folder / "two.pt")
    save_model(folder / "potential.pt")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_from_a_folder_of_cifs_to_a_screening(sound: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fit an ensemble, look at it, predict, screen, evaluate; of numbers, logarithms and classes."""
    words = ("--encoder", "cgcnn", "--classification", "metal", "--head", "experts", "--ensemble", 2)
    assert run_cli("fit", sound / "data" / "id_prop.csv", *words, "--out", "run", *SET, "properties.log=bulk") == 0
    assert {"model.pt", "config.yaml", "results.json", "test.csv", "member-1", "member-2"} <= set(listing(here / "run"))
    capsys.readouterr()
    assert run_cli("info", "run/model.pt") == 0
    told = capsys.readouterr().out
    for expected in ("gap, bulk [log], metal [classification]", "2 models", "cgcnn", "kind experts"):
        assert expected in told
    assert run_cli("predict", "run/model.pt", sound / "data", "--out", "all.csv") == 0
    table = rows_of(here / "all.csv")
    assert len(table) == 24
    assert all(0 < float(row["probability of metal"]) < 1 for row in table)
    assert all(float(row["bulk"]) > 0 and float(row["gap_uncertainty"]) > 0 for row in table)
    words = ("--where", "n_elements == 2 and gap_uncertainty > 0", "--without", "Cs", "--top", 3)
    assert run_cli("screen", "run/model.pt", sound / "data", *words, "--out", "best.csv") == 0
    assert len(rows_of(here / "best.csv")) == 3
    assert run_cli("evaluate", "run/model.pt", sound / "data" / "id_prop.csv", "--out", "errors") == 0
    assert json.loads((here / "errors" / "evaluation-id_prop.json").read_text())["gap"]["n"] == 24


def test_models_that_were_fitted_before_are_joined_and_calibrated(
    sound: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the factor, the size of the uncertainties is that of the errors; without one a user is warned."""
    for seed in range(3):
        save(small_model(seed=seed), here / f"{seed}.pt")
    words = ("ensemble", "0.pt", "1.pt", "2.pt")
    assert run_cli(*words, "--out", "plain.pt") == 0
    assert "plain spread of the members" in capsys.readouterr().err
    assert run_cli(*words, "--out", "joined.pt", "--calibrate", sound / "data" / "id_prop.csv") == 0
    told = capsys.readouterr()
    assert "plain spread" not in told.err
    factor = load_model(here / "joined.pt").factors["gap"]
    assert f"spread of 3 models, calibrated on 24 structures: gap x {factor:.3f}" in told.out
    for name in ("plain", "joined"):
        assert run_cli("predict", f"{name}.pt", sound / "data", "--out", f"{name}.csv") == 0
    plain, joined = (rows_of(here / f"{name}.csv") for name in ("plain", "joined"))
    for one, other in zip(plain, joined, strict=True):
        assert float(other["gap"]) == float(one["gap"])
        # two digits are printed
        assert float(other["gap_uncertainty"]) == pytest.approx(factor * float(one["gap_uncertainty"]), rel=0.1)
    labels = {atoms.get_chemical_formula(): atoms.info["gap"] for atoms in salts()}
    errors = [float(row["gap"]) - labels[row["formula"]] for row in joined]
    ratios = np.abs(errors) / [float(row["gap_uncertainty"]) for row in joined]
    # of Student's t with two degrees of freedom half of all are below 0.82
    assert 0.5 < np.median(ratios) < 1.3


def test_screening_finds_what_prediction_says(sound: Path, here: Path) -> None:
    assert run_cli("predict", sound / "gap.pt", sound / "data", "--out", "all.csv") == 0
    table = rows_of(here / "all.csv")
    middle = sum(float(row["gap"]) for row in table) / len(table)
    words = ("--where", f"gap > {middle}", "--without", "Cs", "--top", 3, "--dtype", "float64")
    assert run_cli("screen", sound / "gap.pt", sound / "data", *words, "--out", "best.csv") == 0
    wanted = [row for row in table if float(row["gap"]) > middle and "Cs" not in row["formula"]]
    wanted.sort(key=lambda row: -float(row["gap"]))
    assert [row["file"] for row in rows_of(here / "best.csv")] == [row["file"] for row in wanted[:3]]


def test_predictions_as_crystals(sound: Path, here: Path) -> None:
    assert run_cli("predict", sound / "gap.pt", sound / "data", "--out", "all.extxyz") == 0
    found = ase.io.read(here / "all.extxyz", ":")
    assert run_cli("predict", sound / "gap.pt", "all.extxyz", "--out", "again.csv") == 0
    for atoms, row in zip(found, rows_of(here / "again.csv"), strict=True):
        assert atoms.info["gap_predicted"] == pytest.approx(float(row["gap"]), rel=1e-4)


def test_cross_validation_is_no_run_of_a_leaderboard(
    sound: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folds are not the official ones, though it has as many rows as the task."""
    folds = [list(range(start, 24, 3)) for start in range(3)]
    (here / "folds.json").write_text(json.dumps({"test": folds}))
    data = sound / "data" / "id_prop.csv"
    words = ("--encoder", "cgcnn", "--target", "gap", "--fold-file", "folds.json", "--out", "cv", *SET)
    assert run_cli("cv", data, *words) == 0
    table = rows_of(here / "cv" / "predictions.csv")
    assert [row["fold"] for row in table] == [str(1 + n % 3) for n in range(24)]
    assert "+-" in capsys.readouterr().out
    about = {"authors": "A. Author", "algorithm": "a", "algorithm_long": "all of it", "bibtex_refs": ["@misc{a}"]}
    (here / "about.yaml").write_text(json.dumps(about))
    monkeypatch.setitem(matbench_suite.TASKS, "matbench_jdft2d", matbench_suite.Task(24, "gap", "meV/atom"))
    words = ("--task", "matbench_jdft2d", "--about", "about.yaml", "--out", "submission")
    assert run_cli("export", "matbench", "cv", *words) == 1
    told = ("cv: is not of lrpot benchmark with suite matbench", "lrpot benchmark matbench DATA --task matbench_jdft2d")
    one_error_line(capsys.readouterr().err, told)
    assert not (here / "submission").exists()


def test_a_contribution_to_a_leaderboard(sound: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = sound / "data" / "id_prop.csv"
    assert run_cli("benchmark", "jarvis", data, "--task", "gap", "--encoder", "cgcnn", "--out", "run", *SET) == 0
    names = ("model_name", "team_name", "author_email", "project_url", "git_url", "hardware_used")
    own = {"author_email": "a@example.org", "time_taken_seconds": 5}
    (here / "about.yaml").write_text(json.dumps(dict.fromkeys(names, "x") | own))
    words = ("export", "jarvis", "run", "--property", "gap", "--dataset", "dft_3d", "--about", "about.yaml")
    assert run_cli(*words, "--out", "contribution") == 0
    with zipfile.ZipFile(next((here / "contribution").glob("*.csv.zip"))) as archive:
        lines = archive.read(archive.namelist()[0]).decode().splitlines()
    tested = official_split(24)["test"]
    assert [line.split(",")[0] for line in lines[1:]] == [f"salt-{row}" for row in tested]
    told = {
        "model_name: x\nteam_name:\n": ("needs team_name", "git_url", "give what is missing"),
        "time_taken_seconds: two hours\n": ("about.yaml: time_taken_seconds = 'two hours'", "valid number"),
        "date_submitted: soon\n": ("about.yaml: date_submitted = 'soon'", "valid date"),
        "team_name: [a, b]\n": ("about.yaml: team_name = ['a', 'b']", "valid string"),
    }
    for text, expected in told.items():
        capsys.readouterr()
        (here / "about.yaml").write_text(text)
        assert run_cli(*words, "--out", "other") == 1
        one_error_line(capsys.readouterr().err, expected)
    capsys.readouterr()
    assert run_cli(*words[:6], "other_set", *words[7:], "--out", "other") == 1
    one_error_line(capsys.readouterr().err, ("run: is not of lrpot benchmark", "task gap", "dataset other_set"))
    assert not (here / "other").exists()


def dictionary(atoms: Atoms) -> dict[str, object]:
    """As pymatgen writes a structure."""
    places = zip(atoms.symbols, atoms.get_scaled_positions().tolist(), strict=True)
    return {
        "lattice": {"matrix": atoms.cell.tolist()},
        "sites": [{"species": [{"element": element, "occu": 1}], "abc": place} for element, place in places],
    }


def matbench(path: Path, crystals: Sequence[Atoms]) -> str:
    table = {"index": list(range(len(crystals))), "columns": ["structure", "gap pbe"]}
    rows = [[dictionary(atoms), atoms.info["gap"]] for atoms in crystals]
    (path / "matbench.json").write_text(json.dumps({**table, "data": rows}))
    return "matbench.json"


def jarvis(path: Path, crystals: Sequence[Atoms]) -> str:
    entries = []
    for number, atoms in enumerate(crystals):
        own = {"lattice_mat": atoms.cell.tolist(), "coords": atoms.positions.tolist(), "cartesian": True}
        own["elements"] = list(atoms.symbols)
        gap = atoms.info["gap"] if number % 3 else "na"
        entries.append({"jid": f"JVASP-{number}", "atoms": own, "gap pbe": gap})
    (path / "jarvis.json").write_text(json.dumps(entries))
    return "jarvis.json"


def materials_project(path: Path, crystals: Sequence[Atoms]) -> str:
    entries = [
        {"material_id": f"mp-{number}", "structure": dictionary(atoms), "gap pbe": atoms.info["gap"]}
        for number, atoms in enumerate(crystals)
    ]
    (path / "mp.json").write_text(json.dumps(entries))
    return "mp.json"


def data_base(path: Path, crystals: Sequence[Atoms]) -> str:
    with ase.db.connect(path / "rows.db") as base:
        for atoms in crystals:
            base.write(atoms, data={}, gap_pbe=atoms.info["gap"])
    return "rows.db"


@pytest.mark.parametrize("write", [matbench, jarvis, materials_project, data_base])
def test_every_format_is_fitted(write: Callable[[Path, Sequence[Atoms]], str], here: Path) -> None:
    """The only number there is the target."""
    name = write(here, salts())
    assert run_cli("fit", name, "--encoder", "cgcnn", "--out", "run", *SET, "training.max_epochs=1") == 0
    tested = rows_of(here / "run" / "test.csv")
    crystals = salts()
    label = next(column for column in tested[0] if column in ("gap pbe", "gap_pbe"))
    for row in tested:
        assert float(row[label]) == pytest.approx(crystals[int(row["row"])].info["gap"])


# --- what is told


@pytest.mark.filterwarnings("ignore:regnet. variant threewave")  # Python's warning, which a command does not show
def test_forms_that_are_not_functions_of_the_crystal_are_told(
    sound: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"variant": "threewave", **ENCODERS["regnet"]}
    settings = [f"properties.encoder.{name}={value}" for name, value in small.items()]
    words = ("--encoder", "regnet", "--target", "gap", "--out", "run", "--set", "training.max_epochs=1", *settings)
    assert run_cli("fit", sound / "data" / "id_prop.csv", *words) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "threewave" in line]
    assert len(told) == 1
    assert told[0].startswith("warning: ")


CASES: dict[str, tuple[str, ...]] = {
    "fit {data} --encoder cgcnn --target gpa": ("id_prop.csv: no row has gpa", "there are gap, bulk, metal"),
    "fit {crystals} --encoder cgcnn": ("crystals.extxyz: has the properties gap, bulk", "--target 'gap'"),
    "fit {data} --encoder cgcnn --target gap --classification gap": (
        "row 1: gap = 1.4, but a class is 0 or 1",
        "learn it as",
    ),
    "fit {data} --encoder cgcnn --target gap --set properties.extensive=bulk": ("bulk, which is none of the targets",),
    "fit {cifs} --encoder cgcnn": ("is a directory", "name the file in it"),
    "fit nowhere.csv --encoder cgcnn": ("nowhere.csv: no such file", "check the path"),
    "fit {disordered} --encoder cgcnn": ("disordered.csv, row 0: ", "Na 0.75, K 0.25", "ordered structure"),
    "fit {missing} --encoder cgcnn": ("missing.csv: no file gone beside it", "add it"),
    "fit {damaged} --encoder cgcnn": ("damaged.csv: damaged.cif cannot be read", "correct that file"),
    "fit {outside} --encoder cgcnn": ("outside.csv: '../secret' leads out of the folder", "put the file beside it"),
    "fit {short} --encoder cgcnn": ("short.csv: row 1 has 1 fields, expected 2", "correct it"),
    "fit {packed} --encoder cgcnn": ("packed.csv.gz: is packed", "unpack it"),
    "fit {data} --encoder cgcnn --from {gap}": ("--from", "is of task potential"),
    "fit {data} --from {gap}": ("gap.pt: predicts gap of crystals", "use it with lrpot predict or lrpot screen"),
    "cv {data} --encoder cgcnn --folds 1": ("folds = 1", "choose 2 or more"),
    "cv {data} --encoder cgcnn --folds 100": ("too few for 100 folds", "lower --folds"),
    "cv {data} --encoder cgcnn --fold-file nowhere.json": ("nowhere.json: no such file", "check the path"),
    "screen {gap} {empty}": ("empty: holds no files of crystals", "name the files themselves"),
    "screen {gap} {cifs} --where gpa>1": ("there is no column gpa", "did you mean gap"),
    "screen {gap} {cifs} --where gap>>1": ("'gap>>1' is no comparison", "gap > 1.5"),
    "screen {gap} {cifs} --sort gpa": ("gpa", "gap"),
    "screen {gap} {cifs} --out found.txt": ("unknown ending '.txt'", "use .csv or .extxyz"),
    "screen {potential} {cifs}": ("potential.pt: is a potential", "needs a model of lrpot fit --encoder"),
    "predict {gap} {cif}": ("shared_site.cif, row 0: ", "Na 0.75, K 0.25"),
    "evaluate {gap} {cif2}": ("salt-1.cif: no row has gap to compare with", "use lrpot predict"),
    "ensemble {gap} {two} --out e.pt": ("predicts gap, bulk, model 0 gap", "join models of the same targets"),
    "ensemble {gap} {gap} --out e.pt": ("models 0 and 1 of the ensemble are the same",),
    "ensemble {gap} {potential} --out e.pt": ("potential.pt: is a potential", "join models of one kind"),
    "ensemble {gap} {other} --out e.pt --calibrate {cif2}": (
        "salt-1.cif: the uncertainties cannot be calibrated",
        "no row has a number for gap",
        "give labelled crystals",
    ),
    "ensemble {gap} {other} --out e.pt --calibrate nowhere.csv": ("nowhere.csv: no such file", "check the path"),
    "md {gap} {cif2} --steps 1": ("gap.pt: predicts gap of crystals", "use it with lrpot predict"),
    "report {properties}": ("properties: is a fit of properties", "of a potential", "parity.png", "test.csv"),
    "plot kernel {potential} --out k.foo": ("--out k.foo: unknown ending '.foo'", "use .png, .pdf or .svg"),
    "plot diffraction {gap} {cif2} --out k": ("--out k: unknown ending ''", "use .png, .pdf or .svg"),
    "plot attention {gap} {cif2} --out k.csv": ("--out k.csv: unknown ending '.csv'", "use .png, .pdf or .svg"),
    "report {gap}": ("gap.pt: holds no run", "name the directory"),
    "export matbench nowhere --task matbench_jdft2d --about a.yaml --out o": ("nowhere/config.yaml: no such file",),
}


@pytest.fixture(scope="module")
def inputs(sound: Path) -> dict[str, Path]:
    folder = sound / "bad"
    folder.mkdir()
    shutil.copy(BAD_INPUTS / "shared_site.cif", folder)
    shutil.copy(sound / "data" / "salt-1.cif", folder)
    (folder / "damaged.cif").write_text("no crystal at all\n")
    tables = {
        "disordered": "shared_site,1.0\nsalt-1,2.0\n",
        "missing": "salt-1,1.0\ngone,2.0\n",
        "damaged": "damaged,1.0\nsalt-1,2.0\n",
        "outside": "../secret,1.0\nsalt-1,2.0\n",
        "short": "salt-1,1.0\nsalt-1\n",
    }
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)
    (folder / "packed.csv.gz").write_bytes(gzip.compress(b"salt-1,1.0\n"))
    (folder / "empty").mkdir()
    (folder / "properties").mkdir()
    (folder / "properties" / "config.yaml").write_text("task: property\n")
    ase.io.write(folder / "crystals.extxyz", salts(3))
    return {
        **{name: folder / f"{name}.csv" for name in tables},
        "packed": folder / "packed.csv.gz",
        "empty": folder / "empty",
        "properties": folder / "properties",
        "crystals": folder / "crystals.extxyz",
        "cif": folder / "shared_site.cif",
        "cif2": folder / "salt-1.cif",
        "cifs": sound / "data",
        "data": sound / "data" / "id_prop.csv",
        **{name: sound / f"{name}.pt" for name in ("gap", "other", "two", "potential")},
    }


@pytest.mark.parametrize("command", CASES)
def test_every_error_is_one_line_and_leaves_nothing(
    command: str, inputs: dict[str, Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(*(word.format(**inputs) for word in command.split())) == 1
    one_error_line(capsys.readouterr().err, CASES[command])
    assert listing(here) == []


@pytest.mark.parametrize("command", ["predict", "screen"])
def test_what_is_read_is_never_replaced(
    command: str, sound: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a file that is named nor one of a folder, even with --overwrite; older results only with it."""
    (here / "folder").mkdir()
    ase.io.write(here / "folder" / "some.extxyz", salts(3))
    before = (here / "folder" / "some.extxyz").read_bytes()
    for read in ("folder/some.extxyz", "folder"):
        words = (command, sound / "gap.pt", read, "--out", "folder/../folder/some.extxyz", "--overwrite")
        assert run_cli(*words) == 1
        one_error_line(capsys.readouterr().err, ("some.extxyz: is also read from", "choose another --out"))
    assert (here / "folder" / "some.extxyz").read_bytes() == before
    words = (command, sound / "gap.pt", "folder", "--out", "folder/found.csv")
    assert run_cli(*words) == 0
    (here / "folder" / "found.csv").write_text("older\n")
    capsys.readouterr()
    assert run_cli(*words) == 1
    one_error_line(capsys.readouterr().err, ("found.csv: exists already", "--overwrite"))
    assert (here / "folder" / "found.csv").read_text() == "older\n"
    assert run_cli(*words, "--overwrite") == 0
    assert len(rows_of(here / "folder" / "found.csv")) == 3


def test_screening_goes_on_past_what_cannot_be_used(
    inputs: dict[str, Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("screen", inputs["gap"], inputs["cif"], inputs["cif2"]) == 0
    printed = capsys.readouterr()
    assert "1 of 1 crystals" in printed.out
    assert printed.err.startswith(f"warning: {inputs['cif']}, row 0: ")
