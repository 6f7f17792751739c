"""Tables of crystals with properties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.db import connect
from pymatgen.core import Lattice, Structure

from lrpot.data.readers import read_rows, to_structure, to_structures
from lrpot.errors import DataError, StructureError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, a in (("one.cif", 5.6), ("two.vasp", 5.7), ("three.extxyz", 5.8)):
        bulk("NaCl", "rocksalt", a=a).write(tmp_path / name)
    return tmp_path


def test_a_table_without_names(folder: Path) -> None:
    (folder / "id_prop.csv").write_text("one,1.5\ntwo.vasp,-2\n\nthree,3e-1\n")
    rows = read_rows(folder / "id_prop.csv")
    assert [row.atoms.info["target"] for row in rows] == [1.5, -2.0, 0.3]
    assert [row.atoms.info["id"] for row in rows] == ["one", "two.vasp", "three"]
    assert [row.atoms.get_volume() for row in rows] == pytest.approx([a**3 / 4 for a in (5.6, 5.7, 5.8)], rel=1e-6)


def test_names_and_gaps(folder: Path) -> None:
    (folder / "id_prop.csv").write_text("file,gap,bulk modulus\none,1.5,\ntwo,nan,30\nthree,0,na\n")
    structures = [
        to_structure(row.atoms, 4.0, targets=("gap", "bulk modulus")) for row in read_rows(folder / "id_prop.csv")
    ]
    found = np.stack([structure.targets[0].numpy() for structure in structures])
    assert np.array_equal(found, [[1.5, np.nan], [np.nan, 30.0], [0.0, np.nan]], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("../one,1\n", "leads out of the folder"),
        ("four,1\n", "no file four beside it"),
        ("one,1\ntwo,1,2\n", "row 1 has 3 fields, expected 2"),
        ("one\n", "single field"),
        ("", "is empty"),
    ],
)
def test_tables_that_are_refused(folder: Path, text: str, message: str) -> None:
    (folder / "id_prop.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(folder / "id_prop.csv")


def test_a_property_that_is_no_number_is_a_bad_row(folder: Path) -> None:
    (folder / "id_prop.csv").write_text("file,gap\none,1.5\ntwo,large\n")
    (_, row) = read_rows(folder / "id_prop.csv")
    with pytest.raises(DataError, match="gap = 'large' is not a number"):
        to_structure(row.atoms, 4.0, targets=("gap",))


def crystal(a: float) -> Structure:
    return Structure(Lattice.cubic(a), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_json_of_matbench(tmp_path: Path) -> None:
    content = {
        "index": ["mb-1", "mb-2"],
        "columns": ["structure", "e_form"],
        "data": [[crystal(4.1).as_dict(), -1.25], [crystal(4.2).as_dict(), None]],
    }
    (tmp_path / "matbench.json").write_text(json.dumps(content))
    rows = read_rows(tmp_path / "matbench.json")
    assert [row.atoms.info["id"] for row in rows] == ["mb-1", "mb-2"]
    assert [row.atoms.get_volume() for row in rows] == pytest.approx([4.1**3, 4.2**3])
    assert rows[0].atoms.info["e_form"] == -1.25
    assert "e_form" not in rows[1].atoms.info


def test_json_of_jarvis(tmp_path: Path) -> None:
    lattice = (3.3 * np.eye(3)).tolist()
    atoms = {"lattice_mat": lattice, "coords": [[0, 0, 0]], "elements": ["Po"], "cartesian": False}
    content = [{"jid": "JVASP-1", "atoms": atoms, "gap": "na", "formation_energy_peratom": 0.5}]
    (tmp_path / "jarvis.json").write_text(json.dumps(content))
    (row,) = read_rows(tmp_path / "jarvis.json")
    assert row.atoms.info == {"id": "JVASP-1", "jid": "JVASP-1", "formation_energy_peratom": 0.5}
    assert row.atoms.get_chemical_formula() == "Po"


def test_a_data_base_of_ase_is_no_table(tmp_path: Path) -> None:
    with connect(tmp_path / "rows.json") as rows:
        rows.write(bulk("NaCl", "rocksalt", a=5.6), gap=1.5, index=3)
    (row,) = read_rows(tmp_path / "rows.json")
    assert to_structure(row.atoms, 4.0, targets=("gap",)).targets.item() == 1.5


def test_shared_sites_are_refused(tmp_path: Path) -> None:
    shared = Structure(Lattice.cubic(4.0), [{"Na": 0.7, "K": 0.3}, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    (tmp_path / "mp.json").write_text(json.dumps([{"material_id": "mp-1", "structure": shared.as_dict(), "gap": 1.0}]))
    with pytest.raises(StructureError, match=r"site of atom 0 is occupied in part \(Na 0.7, K 0.3\)"):
        to_structures(read_rows(tmp_path / "mp.json"), 4.0)
