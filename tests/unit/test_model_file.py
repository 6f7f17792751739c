"""Model files: the same numbers come back, equal models make equal files, and a failing save harms nothing."""

from __future__ import annotations

import errno
import os
import zipfile
from datetime import datetime
from pathlib import Path

import pytest
import torch

from lrpot import archive, load
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError, ModelFileError, OutputError
from lrpot.model_file import UNITS, ModelInfo, check_device, save
from lrpot.potential import Potential
from tests.helpers_cli import listing, rock_salt, small_model


@pytest.fixture(params=["coulomb", "free", "none"])
def model(request: pytest.FixtureRequest) -> Potential:
    return small_model(request.param)


def test_round_trip_is_exact(model: Potential, tmp_path: Path) -> None:
    again = load(save(model, tmp_path / "m.pt"))
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype, name
        assert torch.equal(before[name], after[name]), name
    structure = to_structure(rock_salt(), model.cutoff)
    one, other = model(structure, stress=True), again(structure, stress=True)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_what_a_loaded_model_knows(model: Potential, tmp_path: Path) -> None:
    again = load(save(model, tmp_path / "m.pt"))
    assert isinstance(again, torch.nn.Module)
    assert not again.training
    assert again.elements == [11, 17]
    assert again.cutoff == 4.0
    assert again.info == model.info
    info = again.info
    assert isinstance(info, ModelInfo)
    assert info.elements == ["Na", "Cl"]
    assert info.config["model"]["backbone"]["features"] == 8
    assert info.units == UNITS
    assert {"length": "A", "energy": "eV", "forces": "eV/A", "stress": "eV/A^3", "charge": "e"}.items() <= UNITS.items()
    assert info.version
    assert datetime.fromisoformat(info.created).tzinfo is not None


def test_info_keeps_stages_and_data(tmp_path: Path) -> None:
    model = small_model()
    assert isinstance(model.info, ModelInfo)
    model.info.stages = [{"stage": 1, "title": "real space", "validation": {"energy": {"mae": 1e-3}}}]
    model.info.data = {"train": "a.extxyz", "structures": {"train": 8}}
    assert load(save(model, tmp_path / "m.pt")).info == model.info


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    one, other = save(small_model(), tmp_path / "a.pt"), save(small_model(), tmp_path / "b.pt")
    assert one.read_bytes() == other.read_bytes()
    assert save(small_model(seed=1), tmp_path / "c.pt").read_bytes() != one.read_bytes()
    assert save(load(one), tmp_path / "d.pt").read_bytes() == one.read_bytes()


def test_nothing_is_compressed_or_pickled(model: Potential, tmp_path: Path) -> None:
    with zipfile.ZipFile(save(model, tmp_path / "m.pt")) as archive:
        assert sorted(archive.namelist()) == ["model.json", "weights.safetensors"]
        assert {item.compress_type for item in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_of_the_network(model: Potential, tmp_path: Path, dtype: torch.dtype) -> None:
    again = load(save(model, tmp_path / "m.pt"), dtype=dtype)
    assert again.short.readout.last.weight.dtype == dtype
    assert {p.dtype for p in again.short.backbone.parameters()} == {dtype}
    assert again.short.offset.dtype == torch.float64
    if again.long is not None:
        assert {p.dtype for p in again.long.parameters()} == {torch.float64}
    kept = load(save(again, tmp_path / "again.pt"))  # None: that of the file
    assert kept.short.readout.last.weight.dtype == dtype


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "", "meta", "cuda:99"])
def test_devices_that_are_not_there(tmp_path: Path, name: str) -> None:
    path = save(small_model("none"), tmp_path / "m.pt")
    with pytest.raises(ConfigError, match=r"^device '.*use c") as error:
        load(path, device=name)
    assert "\n" not in str(error.value)
    assert check_device("cpu") == torch.device("cpu")


@pytest.mark.gpu
def test_device(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    model = load(save(small_model(), tmp_path / "m.pt"), device="cuda")
    assert {p.device.type for p in model.parameters()} == {"cuda"}


def test_a_model_without_info_is_not_saved(tmp_path: Path) -> None:
    model = small_model()
    model.info = None
    with pytest.raises(ModelFileError, match=r"set model\.info to a ModelInfo"):
        save(model, tmp_path / "m.pt")
    assert listing(tmp_path) == []


def test_the_old_file_survives_a_save_that_fails_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(small_model(), tmp_path / "m.pt")
    old = path.read_bytes()
    written = zipfile.ZipFile.writestr

    def full_disk(self: zipfile.ZipFile, item: zipfile.ZipInfo, data: bytes) -> None:
        if item.filename == "weights.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(self, item, data)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full_disk)
    with pytest.raises(OutputError, match=r"m\.pt: cannot be written \(No space left on device\)"):
        save(small_model(seed=1), path)
    assert path.read_bytes() == old
    assert listing(tmp_path) == ["m.pt"]


def test_the_old_file_survives_a_crash_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(small_model(), tmp_path / "m.pt")
    old = path.read_bytes()

    def crash(_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(archive.safetensors.torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        save(small_model(seed=1), path)
    assert path.read_bytes() == old
    assert listing(tmp_path) == ["m.pt"]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = save(small_model("none"), tmp_path / "m.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    for length in [*range(0, len(content), len(content) // 40), len(content) - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"cut\.pt: "):
            load(cut)


def test_a_flipped_byte_is_refused_or_changes_no_number(tmp_path: Path) -> None:
    """The archive has checksums; bytes outside them (dates, flags) decide nothing."""
    model = small_model("none")
    content = save(model, tmp_path / "m.pt").read_bytes()
    bad = tmp_path / "bad.pt"
    refused = 0
    for place in range(0, len(content), max(len(content) // 60, 1)):
        flipped = bytearray(content)
        flipped[place] ^= 0x10
        bad.write_bytes(flipped)
        try:
            again = load(bad)
        except ModelFileError:
            refused += 1
        else:
            assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert refused > 40
