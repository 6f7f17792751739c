"""Fits of property models: what is learned, from which rows, and what a user is told."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms

from lrpot import fit
from lrpot.config import make_config
from lrpot.console import Console
from lrpot.data.cache import load_graphs
from lrpot.data.graphs import Graphs
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError, DataError, StructureError
from lrpot.properties.build import reach_of
from lrpot.structure import collate
from lrpot.training.cross_validation import cross_validate
from lrpot.training.dataset import graph_settings, read_data
from lrpot.training.property_module import PropertyModule
from lrpot.training.split import same_crystals
from lrpot.training.target_names import with_targets
from tests.unit.properties import property_data
from tests.unit.properties.crystals import sheared_cell
from tests.unit.properties.property_data import SMALL, salts, small_model, write_table

without_pictures = pytest.fixture(autouse=True)(property_data.no_pictures)


def run(data: Path, out: Path, **settings: Any) -> Any:
    own = {name.replace("__", "."): value for name, value in settings.items()}
    return fit(data, out=out, settings={"task": "property", **SMALL, **own}, verbose=False)


def table(run: Path, name: str = "test.csv") -> list[dict[str, str]]:
    with open(run / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("data"), salts(), ("gap", "bulk", "metal"))


# --- learning


def test_a_fit_finds_what_a_mean_does_not(data: Path, tmp_path: Path) -> None:
    result = run(
        data,
        tmp_path / "run",
        properties__targets="gap",
        training__max_epochs=30,
        training__lr=1e-2,
        training__warmup_epochs=2,
        properties__encoder__features=16,
    )
    start, end = (stage["validation"]["gap"]["mae"] for stage in result.stages)
    assert end < 0.5 * start


def test_losses_are_means_over_the_labels_that_are_there() -> None:
    """Each target counts alike, however few of its labels a batch has; rows without one have no part in it."""
    model = small_model(("gap", "bulk"), dtype=torch.float64)
    module = PropertyModule(model, make_config(None, {"task": "property", "training.loss": "mae"}).training)
    structures = [to_structure(atoms, model.cutoff, shells=model.shells, labels=False) for atoms in salts(3)]
    nan = float("nan")
    wanted = torch.tensor([[1.0, nan], [2.0, 5.0], [4.0, nan]], dtype=torch.float64)
    for structure, own in zip(structures, wanted, strict=True):
        structure.targets = own[None]
    batch = collate(structures)
    found = model(batch).values.detach()
    errors = (found - (wanted - model.centre) / model.scale).abs()
    expected = (errors[:, 0].mean() + errors[1, 1]) / 2
    loss, reported = module._loss(batch, create_graph=False)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    assert reported["bulk"] == pytest.approx(float(errors[1, 1] * model.scale[1]), rel=1e-12)
    counts = {name: term.n for name, term in module._terms(batch, create_graph=False).items()}
    assert counts == {"gap": 3, "bulk": 1}


def test_labels_of_the_test_part_change_no_weight(tmp_path: Path) -> None:
    """Neither means and spreads nor the choice of an epoch look at them."""
    rows = salts()
    first = run(write_table(tmp_path / "a", rows), tmp_path / "run-a")
    tested = json.loads((tmp_path / "run-a" / "split.json").read_text())["test"]
    for row in tested:
        rows[row].info["gap"] = 1000.0 + row
    second = run(write_table(tmp_path / "b", rows), tmp_path / "run-b")
    assert table(tmp_path / "run-b")[0]["gap"].startswith("10")
    one, other = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_missing_labels_are_neither_learned_nor_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows without a single one are left out and counted; the others teach what they have."""
    rows = salts()
    for number, atoms in enumerate(rows):
        if number % 2:
            del atoms.info["bulk"]
        if number in (3, 5):
            del atoms.info["gap"]
    data = write_table(tmp_path / "data", rows, ("gap", "bulk"))
    settings = {"task": "property", **SMALL, "data.test_fraction": 0.3, "training.seed": 1}
    fit(data, out=tmp_path / "run", settings=settings)
    assert f"{data}: 2 of 24 rows have none of the targets and are left out" in capsys.readouterr().out
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert sorted(split["train"] + split["valid"] + split["test"]) == [n for n in range(24) if n not in (3, 5)]
    results = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    lines = table(tmp_path / "run")
    assert results["bulk"]["n"] == sum(line["bulk"] != "" for line in lines) < len(lines) == results["gap"]["n"]


# --- names of targets


def test_targets_are_all_columns_of_a_table_or_the_only_number_of_a_file(data: Path, tmp_path: Path) -> None:
    def named(path: Path) -> list[str]:
        return with_targets(make_config(None, {"task": "property", "data.train": str(path)})).properties.targets

    assert named(data) == ["gap", "bulk", "metal"]
    one = [Atoms(atoms, info={"gap": atoms.info["gap"]}) for atoms in salts(3)]
    ase.io.write(tmp_path / "one.extxyz", one)
    assert named(tmp_path / "one.extxyz") == ["gap"]
    ase.io.write(tmp_path / "several.extxyz", salts(3))
    with pytest.raises(ConfigError, match="has the properties gap, bulk, metal; name what to learn, such as --target"):
        named(tmp_path / "several.extxyz")


def test_a_target_that_few_rows_have_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrpot.training.target_names.LOOKED_AT", 2)
    rows = salts(5)
    for atoms in rows[:4]:
        del atoms.info["bulk"]
    data = write_table(tmp_path / "data", rows, ("gap", "bulk"))
    config = make_config(None, {"task": "property", "data.train": str(data), "properties.targets": "bulk"})
    assert with_targets(config).properties.targets == ["bulk"]


def test_a_number_that_looks_like_a_class_is_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(data, tmp_path / "run", properties__targets="metal")
    fit(
        data,
        out=tmp_path / "loud",
        settings={"task": "property", **SMALL, "properties.targets": "metal", "training.max_epochs": 1},
    )
    assert "if it is a class, add --classification metal" in capsys.readouterr().err


# --- parts


def groups(crystals: list[Atoms]) -> np.ndarray:
    names = np.array([atoms.info.get("id", "") for atoms in crystals])
    formula = np.unique([str(atoms.symbols.formula.reduce()[0]) for atoms in crystals], return_inverse=True)[1]
    volume = np.array([atoms.get_volume() / len(atoms) for atoms in crystals])
    return same_crystals(names, formula, volume)


def test_rows_of_one_crystal_stay_together() -> None:
    """By name; by formula and volume, whatever the cell; through a third row; and no others."""
    one, other, third = salts(3)
    renamed = one * (2, 1, 1)
    renamed.info = {"id": "else"}
    moved = sheared_cell(other)
    moved.info = {}
    strained = third.copy()
    strained.info = {}
    strained.set_cell(third.cell * 1.01, scale_atoms=True)
    same_name = salts(5)[4]
    same_name.info = {"id": "else"}
    found = groups([one, other, third, renamed, moved, strained, same_name]).tolist()
    assert found[0] == found[3] == found[6]
    assert found[1] == found[4]
    assert len(set(found)) == 4


@pytest.mark.parametrize("seed", range(3))
def test_a_crystal_in_two_tables_is_in_one_part(seed: int, tmp_path: Path) -> None:
    """Tables of two properties name some of the same crystals, or hold them in another cell under another name."""
    gaps = write_table(tmp_path / "data", salts(20), ("gap",), "gap.csv")
    others = salts(20)[:12]
    for atoms in others[6:]:
        atoms.info["id"] = f"other-{atoms.info['id']}"
    doubles = others[:6] + [Atoms(atoms.repeat((1, 2, 1)), info=atoms.info) for atoms in others[6:]]
    bulks = write_table(tmp_path / "data", doubles, ("bulk",), "bulk.csv")
    settings = {
        "task": "property",
        **SMALL,
        "data.train": [str(gaps), str(bulks)],
        "data.valid_fraction": 0.3,
        "data.test_fraction": 0.3,
        "properties.targets": ["gap", "bulk"],
        "training.seed": seed,
    }
    split = read_data(make_config(None, settings), Console(quiet=True)).record["split"]
    assert sorted(row for rows in split.values() for row in rows) == list(range(32))
    crystal = {**{n: n for n in range(20)}, **{20 + n: n for n in range(12)}}
    parts = [{crystal[row] for row in rows} for rows in split.values()]
    assert len(parts) == 3
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]


def test_a_crystal_that_is_trained_on_and_tested_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = salts()
    known = [
        Atoms(atoms.repeat((2, 1, 1)), info={**atoms.info, "id": f"again-{n}"}) for n, atoms in enumerate(rows[:2])
    ]
    train, test = write_table(tmp_path / "train", rows[:16]), write_table(tmp_path / "test", known + rows[16:])
    settings = {"task": "property", **SMALL, "data.train": str(train), "data.test": str(test)}
    config = with_targets(make_config(None, settings))
    split = read_data(config, Console()).record["split"]
    told = capsys.readouterr().err
    shared = len({0, 1} & set(split["train"]))
    assert shared
    assert f"{shared} of 10 test rows may be crystals of the training part" in told


def test_a_run_keeps_which_rows_it_used(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "run", properties__targets="gap")
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert sorted(split["train"] + split["valid"] + split["test"]) == list(range(24))
    assert [int(line["row"]) for line in table(tmp_path / "run")] == split["test"]
    assert [line["id"] for line in table(tmp_path / "run")] == [f"salt-{row}" for row in split["test"]]
    assert split["files"][0]["file"] == str(data)


# --- cross-validation


def test_every_crystal_is_predicted_once_by_a_model_that_has_not_seen_it(data: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "properties.targets": "gap"}
    found = cross_validate(data, out=tmp_path / "cv", folds=3, settings=settings, verbose=False)
    assert found.rows.tolist() == list(range(24))
    for number in (1, 2, 3):
        split = json.loads((tmp_path / "cv" / f"fold-{number}" / "split.json").read_text())
        assert split["test"] == found.rows[found.fold == number].tolist()
        assert not set(split["test"]) & set(split["train"] + split["valid"])
    maes = [fold["gap"]["mae"] for fold in found.folds]
    assert found.spread("gap", "mae") == pytest.approx((np.mean(maes), np.std(maes, ddof=1)))
    whole = json.loads((tmp_path / "cv" / "results.json").read_text())["all"]["gap"]["mae"]
    gaps = np.array([atoms.info["gap"] for atoms in salts()])
    assert whole == pytest.approx(np.abs(found.whole.predicted[:, 0] - gaps).mean(), rel=1e-6)


# --- files that change


def test_a_changed_cif_beside_a_table_is_noticed(tmp_path: Path) -> None:
    """By the cache, which would give its old graph, and by a run that goes on."""
    rows = salts()
    data = write_table(tmp_path / "data", rows)
    settings = {"task": "property", **SMALL, "data.train": str(data), "properties.targets": "gap"}
    config = make_config(None, settings)
    wanted, cache = graph_settings(config, reach_of(config.properties)), str(tmp_path / "cache")
    before = Graphs([load_graphs(data, wanted, cache=cache)])[0]
    run(data, tmp_path / "run")
    (tmp_path / "run" / "model.pt").unlink()
    strained = rows[0].copy()
    strained.info = {}
    strained.set_cell(1.05 * strained.cell, scale_atoms=True)
    file = data.parent / "salt-0.cif"
    ase.io.write(file, strained)
    os.utime(file, ns=(1, 1))  # of an age of its own, however coarse the clock
    after = Graphs([load_graphs(data, wanted, cache=cache)])[0]
    np.testing.assert_allclose(after.cell, 1.05 * before.cell, rtol=1e-6)
    with pytest.raises(DataError, match=r"id_prop.csv: was changed since the run began; put back"):
        fit(out=tmp_path / "run", resume=True, verbose=False)


# --- what cannot be learned from


@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        ([5.0] * 24, {}, "id_prop.csv: gap is 5 in all .* training rows that have it: there is nothing to learn"),
        ([0, 1, 2] * 8, {"classification": "gap"}, "row 2: gap = 2, but a class is 0 or 1; correct it"),
        ([1.0, -1.0] * 12, {"log": "gap"}, "row 1: gap = -1 has no logarithm; correct it, or take gap out"),
        (["na"] * 24, {"targets": "gap"}, "id_prop.csv: no row has gap"),
        (["na"] * 24, {}, "id_prop.csv: no row has a property"),
        ([1.0, "wide"] * 12, {}, "row 1: gap = 'wide' is not a number"),
    ],
)
def test_labels_that_cannot_be_learned(
    values: list[object], settings: dict[str, object], expected: str, tmp_path: Path
) -> None:
    rows = salts()
    for atoms, value in zip(rows, values, strict=True):
        atoms.info["gap"] = value
    own = {f"properties__{name}": value for name, value in settings.items()}
    with pytest.raises(DataError, match=expected) as error:
        run(write_table(tmp_path / "data", rows), tmp_path / "run", **own)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_molecule_is_told_where_there_are_waves(tmp_path: Path) -> None:
    rows = salts()
    rows[7].pbc = False
    ase.io.write(tmp_path / "rows.extxyz", rows)
    with pytest.raises(StructureError, match=r"rows.extxyz, row 7: reciprocal space needs a crystal that is periodic"):
        run(
            tmp_path / "rows.extxyz",
            tmp_path / "run",
            properties__encoder__name="regnet",
            properties__encoder__waves=8,
            properties__targets="gap",
        )
