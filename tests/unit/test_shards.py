"""HDF5 shards keep what rows hold, and say what is wrong with them."""

from __future__ import annotations

import importlib
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest

from lrpot.data import shards
from lrpot.data.labels import charge_labels_of, labels_as_given, total_charge
from lrpot.data.packing import write_shards
from lrpot.data.readers import read_rows
from lrpot.data.shards import read_shard, write_shard
from lrpot.errors import DataError, LrpotError, OutputError
from lrpot.structure import CHARGE_LABELS, LABELS
from tests.helpers_cli import run_cli
from tests.unit.graph_data import varied_rows, write_varied


def test_rows_come_back(tmp_path: Path) -> None:
    rows = varied_rows(20)
    back = list(read_shard(write_shard(tmp_path / "a.h5", rows)))
    assert len(back) == 20
    for a, b in zip(rows, back, strict=True):
        for name in ("numbers", "positions", "pbc"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
        assert np.array_equal(a.cell.array, b.cell.array)
        assert total_charge(a) == total_charge(b)
        for labels_of in (labels_as_given, lambda atoms: charge_labels_of(atoms, total_charge(atoms))):
            left, right = labels_of(a), labels_of(b)
            assert left.keys() == right.keys()
            assert all(np.array_equal(left[name], right[name], equal_nan=True) for name in left)
    assert set().union(*(labels_as_given(atoms) for atoms in rows)) == set(shards.LABELS)


def test_a_shard_holds_every_label_that_a_structure_has() -> None:
    assert set(LABELS + CHARGE_LABELS) <= set(shards.LABELS)


def test_labels_that_are_named_otherwise_are_kept_where_readers_put_them(tmp_path: Path) -> None:
    """Charges and dipoles from arrays and info, stresses as tensors: a shard writes each in one way."""
    (atoms,) = varied_rows(1)
    results = dict(atoms.calc.results)
    xx, yy, zz, yz, xz, xy = results["stress"]
    atoms.calc.results["stress"] = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    atoms.arrays["charges"] = atoms.calc.results.pop("charges")
    atoms.info["dipole"] = [0.1, 0.2, 0.3]
    (back,) = read_shard(write_shard(tmp_path / "a.h5", [atoms]))
    assert np.array_equal(back.calc.results["charges"], results["charges"])
    assert np.array_equal(back.calc.results["stress"], results["stress"])
    assert back.calc.results["dipole"].tolist() == [0.1, 0.2, 0.3]


def test_some_rows_are_read_from_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BLOCK", 4)
    rows = varied_rows(11)
    write_shard(tmp_path / "a.h5", rows)
    for first, every in ((0, 1), (1, 3), (2, 5), (10, 2), (11, 2)):
        found = list(read_shard(tmp_path / "a.h5", first, every))
        assert [atoms.get_potential_energy() for atoms in found] == [
            atoms.get_potential_energy() for atoms in rows[first::every]
        ]


def test_a_set_is_cut_into_shards_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_varied(tmp_path / "a.extxyz", 5), write_varied(tmp_path / "b.extxyz", 4, seed=1)
    assert run_cli("data", "shards", a, b, "--out", tmp_path / "set", "--rows", 4) == 0
    assert "3 shards of up to 4 rows" in capsys.readouterr().out
    files = sorted((tmp_path / "set").glob("*.h5"))
    assert [len(read_rows(file)) for file in files] == [4, 4, 1]
    energies = [row.atoms.get_potential_energy() for file in files for row in read_rows(file)]
    assert energies == [row.atoms.get_potential_energy() for file in (a, b) for row in read_rows(file)]
    with pytest.raises(OutputError, match="holds shards already"):
        write_shards(tmp_path / "set", [a], 4)


def test_a_row_that_a_shard_could_not_keep_is_refused(tmp_path: Path) -> None:
    crystals = varied_rows(2)
    crystals[1].info["charge"] = "plus"
    ase.io.write(tmp_path / "a.extxyz", crystals, format="extxyz")
    with pytest.raises(DataError, match=r"a.extxyz, row 1: charge = 'plus' is not a number"):
        write_shards(tmp_path / "set", [tmp_path / "a.extxyz"], 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": None}, "has no data set 'cell'"),
        ({"forces": np.zeros((3, 3))}, r"forces has shape \(3, 3\), expected"),
        ({"born_charges": np.zeros((3, 9))}, r"born_charges has shape \(3, 9\), expected \(\d+, 3, 3\)"),
        ({"charges": np.full(16, np.nan)}, "row 0: charges of atom 0 holds something that is not a finite number"),
        ({"labelled_energy": np.ones(2, bool)}, r"labelled_energy has shape \(2,\), expected \(3,\)"),
        ({"energy": np.array([0.0, np.nan, 0.0])}, "row 1: energy is not a finite number"),
    ],
)
def test_shards_that_are_not_right(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    write_shard(tmp_path / "a.h5", varied_rows(3))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        for name, values in change.items():
            del file[name]
            if values is not None:
                file[name] = values
    with pytest.raises(LrpotError, match=message):
        write_shards(tmp_path / "again", [tmp_path / "a.h5"], 10)


def test_a_shard_that_was_cut_short(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.h5", varied_rows(20))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"a.h5: is not HDF5, or was cut short"):
        list(read_shard(path))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shard(tmp_path / "a.h5", varied_rows(1))

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(DataError, match=r"a.h5: HDF5 needs the package h5py, .* pip install h5py"):
        read_rows(path)
