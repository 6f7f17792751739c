"""The GaN builder: structures are what they are said to be, labels are those of the engine, failures are told."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms, units
from ase.build import bulk
from typer.testing import CliRunner

from lrpot.cli.data import app
from lrpot.data.builders import gan
from lrpot.data.builders.engine import MAX_FORCE, XTB, XTB_SETTINGS, find_engine
from lrpot.data.builders.extxyz import extxyz_text
from lrpot.data.builders.gan import build_gan, gan_structure
from lrpot.data.builders.gan_cells import PHASES
from lrpot.data.builders.gan_defects import CLASSES
from lrpot.data.readers import read_rows, to_structures
from lrpot.errors import ConfigError, DataError, OutputError

RECORD = Path(__file__).parents[2] / "datasets" / "gan"
LJ = "ase.calculators.lj:LennardJones"
ENGINES = "tests.unit.gan_engines"
ROWS = 5

# Of xTB: between builds of its linear algebra, a few times what its convergence leaves.
ENERGY_TOLERANCE = 1e-4  # eV
FORCE_TOLERANCE = 5e-3  # eV/A
STRESS_TOLERANCE = 2e-4  # eV/A^3
STEP = 2e-3  # A, and of the strain


def small(tmp_path: Path, name: str = "gan.extxyz", **settings: object) -> Path:
    """A quick build."""
    build_gan(tmp_path / name, **{"n": ROWS, "calculator": LJ, **settings})
    return tmp_path / name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def drawn() -> list[Atoms]:
    return [gan._drawn(row, gan.Recipe(seed=5, scale=1.0)) for row in range(25)]


def composition(defects: str) -> Counter[str]:
    """Atoms that these defects add to a cell."""
    added: Counter[str] = Counter({"Ga": 0, "N": 0})
    for name in defects.split("+") if defects != "none" else []:
        what, where = name.split("_")
        added[what] += what != "V"
        if where != "i":
            added[where] -= 1
    del added["V"]
    return added


# --- structures


def test_atoms_are_those_that_the_defects_leave(drawn: list[Atoms]) -> None:
    assert {atoms.info["defect"] for atoms in drawn} == set(CLASSES)
    for atoms in drawn:
        half = atoms.info["sites"] // 2
        expected = {symbol: half + n for symbol, n in composition(atoms.info["defects"]).items()}
        assert atoms.symbols.formula.count() == expected
        assert atoms.info["sites"] == len(PHASES[atoms.info["phase"]].crystal())
        if atoms.info["defect"] == "off_stoichiometric":
            assert expected["Ga"] != expected["N"]
        if atoms.info["defect"] in ("none", "frenkel", "schottky"):
            assert expected["Ga"] == expected["N"]


def test_rows_are_a_mix_of_phases_and_sources(drawn: list[Atoms]) -> None:
    assert {atoms.info["phase"] for atoms in drawn} == set(PHASES)
    assert {atoms.info["source"] for atoms in drawn} == set(gan.SOURCES)
    assert sum(gan.SHARES.values()) == pytest.approx(1)
    assert tuple(gan.SHARES) == CLASSES


def test_no_atoms_overlap(drawn: list[Atoms]) -> None:
    for atoms in drawn:
        distances = atoms.get_all_distances(mic=True) + 9 * np.eye(len(atoms))
        assert distances.min() > 0.9, atoms.info  # A; the bond of N2 is 1.1


def test_cells_are_strained_as_much_as_said(drawn: list[Atoms]) -> None:
    largest: dict[str, float] = {}
    for atoms in drawn:
        reference = PHASES[atoms.info["phase"]].crystal().cell.array
        strain = np.linalg.solve(reference, atoms.cell.array) - np.eye(3)
        np.testing.assert_allclose(strain, strain.T, atol=1e-12)
        largest[atoms.info["source"]] = max(largest.get(atoms.info["source"], 0.0), np.abs(strain).max())
    assert gan.THERMAL_STRAIN < largest.pop("strain") <= gan.STRAIN
    assert max(largest.values()) <= gan.THERMAL_STRAIN


@pytest.mark.slow
def test_displacements_grow_with_the_temperature() -> None:
    """Of a perfect crystal: rms displacement in fractions of the cell, times what each temperature predicts."""
    ratios: dict[str, list[float]] = {"rattle": [], "md": []}
    for row in range(120):
        random = np.random.default_rng([0, row])
        name, kind, source = (str(random.choice(list(x), p=p)) for x, p in _draws())
        if kind != "none" or source == "strain":
            continue
        atoms = gan._drawn(row, gan.Recipe(seed=0, scale=1.0))
        assert (atoms.info["phase"], atoms.info["source"]) == (name, source)
        ideal = PHASES[name].crystal()
        move = (atoms.get_scaled_positions(wrap=False) - ideal.get_scaled_positions(wrap=False)) @ ideal.cell.array
        move -= move.mean(axis=0)
        ratios[source].append(move.std() / np.sqrt(units.kB * atoms.info["temperature"] / gan.EINSTEIN))
    # 3 x 40 numbers each, of several rows; strain of 1 % is no displacement in fractions of the cell
    assert np.mean(ratios["rattle"]) == pytest.approx(1, abs=0.05)
    # neighbours that move together make it larger than in an Einstein crystal
    assert 1.0 < np.mean(ratios["md"]) < 2.0


def _draws() -> list[tuple[list[str], list[float] | None]]:
    return [
        (list(PHASES), None),
        (list(gan.SHARES), list(gan.SHARES.values())),
        (list(gan.SOURCES), list(gan.SOURCES.values())),
    ]


def test_scale_is_that_of_all_lengths(drawn: list[Atoms]) -> None:
    atoms = gan._drawn(0, gan.Recipe(seed=5, scale=1.02))
    np.testing.assert_allclose(atoms.cell.array, 1.02 * drawn[0].cell.array, rtol=1e-12)


# --- rows


def test_a_row_depends_on_seed_and_number_alone(whole: Path) -> None:
    rows = ase.io.read(whole, ":")
    assert [atoms.info["row"] for atoms in rows] == list(range(ROWS))
    again = gan_structure(ROWS - 1, calculator=LJ)
    np.testing.assert_array_equal(rows[-1].positions, again.positions)
    assert rows[-1].get_potential_energy() == again.get_potential_energy()
    assert not np.array_equal(again.cell.array, gan_structure(ROWS - 1, calculator=LJ, seed=1).cell.array)


def leave_partial(tmp_path: Path, content: bytes) -> None:
    """What a build leaves behind when it dies: its recipe, and rows with this content."""
    with pytest.raises(KeyError):  # dies after the recipe is written, before the first row
        small(tmp_path, progress=lambda done, n: {}[done])
    (tmp_path / "gan.extxyz.partial").write_bytes(content)


def test_a_build_that_was_cut_ends_the_same(tmp_path: Path, whole: Path) -> None:
    leave_partial(tmp_path, whole.read_bytes()[:-100])
    seen: list[int] = []
    assert small(tmp_path, progress=lambda done, n: seen.append(done)).read_bytes() == whole.read_bytes()
    assert seen == [ROWS - 1, ROWS]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"calculator": f"{ENGINES}:charges"}, f"engine = {LJ}, not {ENGINES}:charges"),
        ({"scale": 1.1}, "scale = 1.0, not 1.1"),
    ],
)
def test_rows_of_another_recipe_are_not_continued(
    tmp_path: Path, whole: Path, change: dict[str, object], named: str
) -> None:
    leave_partial(tmp_path, whole.read_bytes())
    with pytest.raises(OutputError, match=named):
        small(tmp_path, **change)
    assert (tmp_path / "gan.extxyz.partial").read_bytes() == whole.read_bytes()


def test_labels_are_those_of_the_engine(whole: Path) -> None:
    engine = find_engine(LJ)
    for atoms in ase.io.read(whole, ":2"):
        labels = engine.label(atoms)
        assert set(labels) == {"energy", "forces", "stress"}
        for name, value in labels.items():
            np.testing.assert_allclose(atoms.calc.get_property(name), value, rtol=1e-10, atol=1e-12)
        assert atoms.info["energy_offset"] == 0


def test_charges_are_written_where_there_are_any(tmp_path: Path) -> None:
    atoms = gan_structure(0, calculator=f"{ENGINES}:charges")
    out = tmp_path / "row.extxyz"
    out.write_text(extxyz_text(atoms))
    np.testing.assert_array_equal(ase.io.read(out).get_charges(), np.arange(len(atoms)) / 7)
    (structure,) = to_structures(read_rows(out), cutoff=3.0)
    np.testing.assert_array_equal(structure.charges.numpy(), np.arange(len(atoms)) / 7)


def test_stress_and_all_digits_are_read_back(tmp_path: Path) -> None:
    """The stress stands in the file as a matrix, in a triclinic cell of six different components."""
    atoms = gan_structure(1, calculator=LJ)
    out = tmp_path / "row.extxyz"
    out.write_text(extxyz_text(atoms))
    again = ase.io.read(out)
    assert len(set(atoms.get_stress())) == 6
    np.testing.assert_array_equal(again.get_stress(), atoms.get_stress())
    np.testing.assert_array_equal(again.get_forces(), atoms.get_forces())
    assert again.info == atoms.info


@pytest.mark.slow
def test_rows_that_the_engine_fails_at_are_told(tmp_path: Path) -> None:
    out = tmp_path / "gan.extxyz"
    words = ["gan", "--out", str(out), "--n", "6", "--calculator", f"{ENGINES}:odd"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    kept = ase.io.read(out, ":")
    failed = json.loads((tmp_path / "gan.extxyz.failed.json").read_text())
    assert all(len(atoms) % 2 == 0 for atoms in kept)
    assert {atoms.info["row"] for atoms in kept} | {row["row"] for row in failed} == set(range(6))
    assert failed
    assert kept
    for row in failed:
        assert row["reason"].startswith("CalculationFailed: ")
        assert row["reason"].endswith(" atoms: not converged")
        assert {"seed", "phase", "defect", "defects", "source", "temperature", "engine"} <= row["settings"].keys()
    assert result.stdout.startswith(f"{out}: {len(kept)} rows; ")
    assert result.stdout.count("\n") == 1
    assert f"{len(failed)} of 6 rows failed and are left out (row {failed[0]['row']}: " in result.stderr
    assert f"{out}.failed.json has all" in result.stderr


@pytest.mark.parametrize(
    ("name", "reason"),
    [("absurd", f"the force on atom 0 is 1732 eV/A, beyond {MAX_FORCE:g}"), ("nan", "forces is not finite")],
)
def test_nonsense_is_no_label(name: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"row 3: {reason}; take another row or seed"):
        gan_structure(3, calculator=f"{ENGINES}:{name}")


# --- xTB


def test_forces_and_stress_of_xtb_are_slopes_of_its_energy() -> None:
    """Also where a level of a vacancy is filled by a part: the energy is the free energy."""
    atoms = bulk("GaN", "zincblende", a=4.45, cubic=True)
    atoms.set_cell(atoms.cell.array @ [[1.02, 0.03, 0], [0, 0.99, -0.02], [0.01, 0, 1]], scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    del atoms[1]
    engine = find_engine(None)
    labels = engine.label(atoms)
    assert labels["charges"].sum() == pytest.approx(0, abs=1e-6)
    moved, strained = [], []
    for step in (-STEP, STEP):
        moved.append(atoms.copy())
        moved[-1].positions[3, 1] += step
        strained.append(atoms.copy())
        shear = np.eye(3) + step * np.array([[0, 0, 0.5], [0, 0, 0], [0.5, 0, 1]])
        strained[-1].set_cell(atoms.cell.array @ shear, scale_atoms=True)
    slopes = [np.diff([engine.label(x)["energy"] for x in pair])[0] / (2 * STEP) for pair in (moved, strained)]
    assert slopes[0] == pytest.approx(-labels["forces"][3, 1], abs=FORCE_TOLERANCE)
    # the derivative by the strain: sigma_zz + sigma_xz, of Voigt order xx yy zz yz xz xy
    stress = labels["stress"][2] + labels["stress"][4]
    assert slopes[1] / atoms.get_volume() == pytest.approx(stress, abs=STRESS_TOLERANCE)


# --- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"jobs": 0}, "jobs = 0"),
        ({"scale": 3.0}, "scale = 3.0: is no lattice of GaN"),
        ({"scale": float("nan")}, "scale = nan"),
        ({"name": "gan.json"}, "extxyz"),
        ({"calculator": "emt"}, "calculator = emt: gives no calculator .+ give module:factory"),
        ({"calculator": "no_such_module:calc"}, "No module named 'no_such_module'"),
        ({"calculator": f"{ENGINES}:nothing"}, "has no attribute 'nothing'"),
        ({"calculator": f"{ENGINES}:broken"}, "RuntimeError: no licence"),
        ({"calculator": "json:JSONDecoder"}, "implemented_properties"),
        ({"calculator": f"{ENGINES}:energy_only"}, "has no forces; name one that has"),
    ],
)
def test_nonsense_is_refused_in_one_line(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        small(tmp_path, **settings)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_without_tblite_the_cure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["gan", "--out", str(tmp_path / "gan.extxyz")])
    assert isinstance(result.exception, ConfigError)
    assert "pip install 'lrpot[xtb]'" in str(result.exception)
    assert "--calculator" in str(result.exception)
    assert not list(tmp_path.iterdir())


# --- the committed sample


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return yaml.safe_load((RECORD / "record.yaml").read_text())


@pytest.fixture(scope="module")
def sample() -> list[Atoms]:
    return ase.io.read(RECORD / "sample.extxyz.gz", ":")


def test_sample_is_what_its_record_says(record: dict[str, Any], sample: list[Atoms]) -> None:
    for name, value in XTB_SETTINGS.items():
        assert record["settings"][name] == value
    assert record["settings"]["method"] == XTB
    (described,) = record["samples"]
    assert {path.name for path in RECORD.glob("*.gz")} == {described["file"]}
    assert hashlib.sha256((RECORD / described["file"]).read_bytes()).hexdigest() == described["sha256"]
    assert len(sample) == described["rows"]
    sizes = [len(atoms) for atoms in sample]
    assert [min(sizes), max(sizes)] == described["atoms"]
    rows = [atoms.info["row"] for atoms in sample]
    assert rows == [row for row in range(rows[-1] + 1) if row not in described["failed"]]
    assert {atoms.info["defect"] for atoms in sample} == set(CLASSES)


def test_sample_has_all_labels_and_offsets(sample: list[Atoms]) -> None:
    for atoms in sample:
        assert {"energy", "forces", "stress", "charges"} <= atoms.calc.results.keys()
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() <= MAX_FORCE
        assert atoms.get_charges().sum() == pytest.approx(0, abs=1e-6)
        expected = PHASES[atoms.info["phase"]].error * atoms.info["sites"]
        assert atoms.info["energy_offset"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_a_row_of_the_sample_can_be_made_again(sample: list[Atoms]) -> None:
    kept = min(sample, key=len)
    made = gan_structure(kept.info["row"])
    # an MD run may magnify the last digit; structures without one are the same
    assert made.info == kept.info
    np.testing.assert_allclose(made.positions, kept.positions, atol=1e-6)
    assert made.get_potential_energy() == pytest.approx(kept.get_potential_energy(), abs=ENERGY_TOLERANCE)
    np.testing.assert_allclose(made.get_forces(), kept.get_forces(), atol=FORCE_TOLERANCE)
    np.testing.assert_allclose(made.get_stress(), kept.get_stress(), atol=STRESS_TOLERANCE)
    np.testing.assert_allclose(made.get_charges(), kept.get_charges(), atol=1e-4)


# --- command


@pytest.mark.slow
def test_command_makes_the_same_file_and_prints_one_line(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "command.extxyz"
    words = ["gan", "--out", str(out), "--n", str(ROWS), "--calculator", LJ, "--jobs", "2"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.startswith(f"{out}: {ROWS} rows; ")
    assert result.stdout.endswith(" structures/s\n")
    assert out.read_bytes() == whole.read_bytes()


def test_help_names_units_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from lrpot.cli.data import app; app(['gan', '--help'], standalone_mode=False);"
        "print([name for name in ('torch', 'ase', 'tblite', 'numpy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
    assert "forces (eV/A)" in run.stdout
