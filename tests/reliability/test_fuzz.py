"""A small run of benchmarks/fuzz.py, and what its large runs have found."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import zipfile
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch

from lrpot.config import DataConfig, parse_settings
from lrpot.data.readers import read_rows, to_structures
from lrpot.data.shards import write_shard
from lrpot.errors import ConfigError, DataError, ModelFileError, StructureError
from lrpot.md.state import read_state
from lrpot.model_file import load, save
from lrpot.training.checkpoint import NEWEST, PREVIOUS, TwoCheckpoints, usable_checkpoint
from lrpot.training.split import divide
from tests.helpers_cli import small_model
from tests.unit.training_data import ionic_rows, write_ionic_rows

ROOT = Path(__file__).parents[2]
INPUTS = 20  # of each kind


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("fuzz")


@pytest.mark.slow
def test_spoiled_files_are_refused_or_read_right(fuzz: ModuleType) -> None:
    kinds = fuzz.kinds()
    results = list(fuzz.run_all(fuzz.tasks_of(kinds, INPUTS * len(kinds)), seed=7))
    assert len(results) == INPUTS * len(kinds)
    assert [result for result in results if result.outcome not in (fuzz.REFUSED, fuzz.READ)] == []
    assert {result.outcome for result in results} == {fuzz.REFUSED, fuzz.READ}


def test_sound_files_are_read(fuzz: ModuleType, tmp_path: Path) -> None:
    """The control: what is spoiled is all that is wrong with them."""
    for kind in fuzz.kinds():
        for sound in kind.valid:
            for name, content in (*kind.beside, (kind.file, sound)):
                (tmp_path / name).write_bytes(content)
            kind.judge(tmp_path / kind.file, sound)


def wrongly_read(path: Path, sound: bytes) -> None:
    raise importlib.import_module("fuzz_kinds").WrongSuccess("always")


def dies(path: Path, sound: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("judge", "outcome"), [(wrongly_read, "wrong success"), (dies, "crash")])
def test_a_failure_is_seen_and_the_others_go_on(judge, outcome: str, fuzz: ModuleType) -> None:
    kind = next(kind for kind in fuzz.kinds() if kind.name == "charges (YAML)")
    bad = type(kind)("bad", kind.file, kind.valid, kind.spoil, judge)
    results = list(fuzz.run_all([(bad, 0), (kind, 0), (bad, 1)], seed=0))
    assert [result.outcome for result in results][::2] == [outcome] * 2
    assert results[1].outcome in (fuzz.REFUSED, fuzz.READ)


# --- what large runs have found


def test_rows_after_a_blank_line_are_not_lost(tmp_path: Path) -> None:
    path = write_ionic_rows(tmp_path / "rows.extxyz", 3)
    lines = path.read_text().splitlines()
    lines[18] = ""  # the number of atoms of row 1
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"rows\.extxyz: row 1 begins with a blank line .* remove that line"):
        read_rows(path)


@pytest.mark.parametrize("count", ["17", "99999999999", "9" * 30])
def test_a_count_beyond_the_end_of_the_file_is_told_at_once(count: str, tmp_path: Path) -> None:
    path = write_ionic_rows(tmp_path / "rows.extxyz", 1)
    path.write_text(path.read_text().replace("16", count, 1))
    with pytest.raises(DataError, match=r"row 0 cannot be read \(it says that it has .* lines are missing\)"):
        read_rows(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("numbers", [11.5] * 32, "numbers is of type float64, expected whole numbers"),
        ("positions", np.full((32, 3), b"x"), "positions is of type .*, expected numbers"),
        ("atoms", [33, -1], "a row has less than no atoms"),
    ],
)
def test_shards_of_the_wrong_types(name: str, value: object, message: str, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "rows.h5", ionic_rows(2))
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = value
    with pytest.raises(DataError, match=message):
        read_rows(path)


def test_a_split_beyond_64_bits(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": [0, 2**63], "valid": [1]}))
    with pytest.raises(ConfigError, match="is no list of rows"):
        divide(DataConfig(train="data.extxyz", split=str(path)), 0, np.arange(3), np.arange(3))


def test_a_changed_bit_in_a_checkpoint_is_seen(tmp_path: Path) -> None:
    weights = {"weights": torch.arange(100.0)}
    for _ in range(2):
        TwoCheckpoints().save_checkpoint(weights, tmp_path / NEWEST)
    newest = tmp_path / NEWEST
    content = newest.read_bytes()
    place = content.index(weights["weights"].numpy().tobytes())
    newest.write_bytes(content[: place + 40] + b"\x01" + content[place + 41 :])
    told: list[str] = []
    assert usable_checkpoint(tmp_path, told.append) == tmp_path / PREVIOUS
    assert "going back to the one before" in told[0]


def test_a_changed_bit_in_a_state_of_md_is_seen(fuzz: ModuleType, tmp_path: Path) -> None:
    kind = next(kind for kind in fuzz.kinds() if kind.name == "state of MD")
    path = tmp_path / "md.state"
    path.write_bytes(kind.valid[0])
    read_state(path)
    content = bytearray(kind.valid[0])
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not the state of a run, or damaged"):
        read_state(path)


def test_an_occupancy_that_is_no_number(tmp_path: Path) -> None:
    (row, *_) = read_rows(Path(__file__).parents[1] / "bad_inputs" / "shared_site.cif")
    for site in row.atoms.info["occupancy"].values():
        site.update(dict.fromkeys(site, "?"))
    with pytest.raises(StructureError, match=r"atom 0 is occupied in part"):
        to_structures([row], 4.0)


def test_names_of_any_length_make_short_messages(tmp_path: Path) -> None:
    long = "a" * 5000
    with pytest.raises(ConfigError) as word:
        parse_settings([long])
    (tmp_path / "id_prop.csv").write_text(f"{long},1.0\n")
    with pytest.raises(DataError) as table:
        read_rows(tmp_path / "id_prop.csv")
    path = save(small_model("none"), tmp_path / "m.pt")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    about = json.loads(members["model.json"])
    about["config"]["model"]["kernel"][long] = 1
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in (members | {"model.json": json.dumps(about).encode()}).items():
            archive.writestr(name, content)
    path.write_bytes(packed.getvalue())
    with pytest.raises(ModelFileError) as model:
        load(path)
    assert [len(str(error.value)) < 500 for error in (word, table, model)] == [True] * 3
