"""Trajectories in HDF5 hold what those of ASE hold, where H5MD says, in the units that it names."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT

from lrpot.errors import ConfigError
from lrpot.md import frames, hdf5, run_md
from tests.helpers_cli import listing

PER_FORCE = units.kJ / units.mol  # eV/A of one kJ/mol/A


def test_the_same_frames_as_in_a_traj(tmp_path: Path) -> None:
    for name in ("md.traj", "md.h5"):
        atoms = bulk("Cu", cubic=True)
        atoms.calc = EMT()
        run_md(atoms, ensemble="npt", steps=6, interval=3, timestep=2.0, trajectory=tmp_path / name)
    expected = ase.io.read(tmp_path / "md.traj", ":")
    assert listing(tmp_path) == ["md.h5", "md.traj"]  # and no part
    with h5py.File(tmp_path / "md.h5") as file:
        assert file["h5md"].attrs["version"].tolist() == [1, 1]
        everything = file["particles/all"]
        assert everything["species"][:].tolist() == [29] * 4
        assert list(everything["box"].attrs["boundary"]) == ["periodic"] * 3
        assert everything["position/step"][:].tolist() == [0, 3, 6]
        assert everything["position/time"][:].tolist() == [0.0, 6.0, 12.0]
        assert everything["position/time"].attrs["unit"] == "fs"  # text, not bytes: readers compare it
        assert everything["velocity/value"].attrs["unit"] == "Angstrom fs-1"
        for n, atoms in enumerate(expected):
            np.testing.assert_array_equal(everything["position/value"][n], atoms.positions)
            np.testing.assert_array_equal(everything["box/edges/value"][n], atoms.cell.array)
            np.testing.assert_allclose(everything["velocity/value"][n], atoms.get_velocities() * units.fs, rtol=1e-12)
            np.testing.assert_allclose(everything["force/value"][n] * PER_FORCE, atoms.get_forces(), rtol=1e-12)
            assert file["observables/potential_energy/value"][n] == atoms.get_potential_energy()


def test_a_finished_file_is_taken_up_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trajectory may be larger than the memory."""

    def read(source: h5py.Dataset, key: object) -> np.ndarray:
        found = plain(source, key)
        sizes.append(found.nbytes)
        return found

    def run(steps: int, *, resume: bool) -> None:
        atoms = bulk("Cu", cubic=True)
        atoms.calc = EMT()
        files = {"trajectory": tmp_path / "md.h5", "state": tmp_path / "md.state"}
        run_md(atoms, steps=steps, interval=1, resume=resume, **files)

    sizes: list[int] = []
    plain = h5py.Dataset.__getitem__
    monkeypatch.setattr(hdf5, "BLOCK", 1024)  # two frames of four atoms
    run(20, resume=False)
    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__getitem__", read)
        run(22, resume=True)
    assert 0 < max(sizes) <= 1024
    with h5py.File(tmp_path / "md.h5") as file:
        assert file["particles/all/position/step"][:].tolist() == list(range(23))
        positions = file["particles/all/position/value"][:]
    assert all(np.abs(after - before).max() > 1e-4 for before, after in pairwise(positions))


def test_endings_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"md\.dcd: unknown ending '\.dcd'; use \.traj, \.extxyz, \.xyz, \.h5"):
        frames.open_frames(tmp_path / "md.dcd")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match="needs the package h5py, which is not installed; pip install h5py"):
        frames.open_frames(tmp_path / "md.h5")
