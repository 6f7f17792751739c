"""Trajectories in HDF5, laid out as H5MD 1.1, which MDAnalysis and others read.

A process that is killed while it writes HDF5 leaves a file that nothing can open. So frames go to a plain file of equal
records beside it, NAME.part, and become NAME when the run ends, whatever ends it but a kill; `--resume` finds the part.

Source of the layout: de Buyl, Colberg and Hoefling, Comput. Phys. Commun. 185, 1546 (2014).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from lrpot._version import __version__
from lrpot.errors import ConfigError
from lrpot.files import atomic_path, blaming
from lrpot.md.frames import Mark, cut, sync

# Of each thing in a record: its place in the file, and its unit there.
PLACES = {
    "positions": ("particles/all/position", "Angstrom"),
    "velocities": ("particles/all/velocity", "Angstrom fs-1"),
    "forces": ("particles/all/force", "kJ mol-1 Angstrom-1"),
    "cell": ("particles/all/box/edges", "Angstrom"),
    "potential": ("observables/potential_energy", "eV"),
    "kinetic": ("observables/kinetic_energy", "eV"),
}

# Bytes of a trajectory that are copied at once.
BLOCK = 64 * 2**20


class Hdf5Frames:
    """H5MD, by way of a part."""

    def __init__(self, path: Path) -> None:
        self.h5py = _h5py()
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self.file: Any = None
        self.atoms: Atoms | None = None
        self.begun = False

    def write(self, atoms: Atoms, step: int, time_fs: float) -> None:
        self.file = self.file or open(self.part, "ab" if self.begun else "wb")  # noqa: SIM115 (held for the whole run)
        self.begun = True
        self.atoms = atoms
        record = np.zeros((), _record(len(atoms)))
        record["step"], record["time"] = step, time_fs
        record["positions"], record["cell"] = atoms.positions, atoms.cell.array
        record["velocities"] = atoms.get_velocities() * units.fs
        record["forces"] = atoms.get_forces() * units.mol / units.kJ
        record["potential"], record["kinetic"] = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        with blaming(self.part):
            self.file.write(record.tobytes())
            self.file.flush()

    def mark(self) -> Mark:
        return {"bytes": sync(self.part)}

    def rewind(self, mark: Mark, atoms: Atoms) -> None:
        if not self.part.exists() and self.path.exists():
            self._take_apart()
        cut(self.part, mark["bytes"])
        self.begun = True
        self.atoms = atoms

    def close(self) -> None:
        if self.atoms is None:
            return
        if self.file is not None:
            with suppress(OSError):  # told when it was written
                self.file.close()
        if self.part.stat().st_size % _record(len(self.atoms)).itemsize:
            return  # no room for the last frame; a run that goes on takes up what is there
        records = np.memmap(self.part, _record(len(self.atoms)), "r")
        # no times of its making, so that equal runs are equal files
        with atomic_path(self.path) as temporary, self.h5py.File(temporary, "w") as file:
            self._describe(file)
            for name, (place, unit) in PLACES.items():
                group = file.create_group(place)
                _copy(group, "value", records, name).attrs["unit"] = unit
                _copy(group, "step", records, "step")
                _copy(group, "time", records, "time").attrs["unit"] = "fs"
        del records
        self.part.unlink()

    def _describe(self, file: Any) -> None:
        assert self.atoms is not None
        about = file.create_group("h5md")
        about.attrs["version"] = np.array([1, 1], dtype=np.int32)
        about.create_group("author").attrs["name"] = "unknown"
        creator = about.create_group("creator")
        creator.attrs["name"], creator.attrs["version"] = "lrpot", __version__
        everything = file.create_group("particles/all")
        everything["species"] = self.atoms.numbers.astype(np.int32)
        everything["mass"] = self.atoms.get_masses()
        everything["mass"].attrs["unit"] = "u"
        box = everything.create_group("box")
        box.attrs["dimension"] = np.int32(3)
        box.attrs["boundary"] = ["periodic" if flag else "none" for flag in self.atoms.pbc]

    def _take_apart(self) -> None:
        """The part of a file that was finished, for a run that goes on."""
        with self.h5py.File(self.path, "r") as file, atomic_path(self.part) as temporary:
            groups = {name: file[place] for name, (place, _) in PLACES.items()}
            n_frames, n_atoms = groups["positions"]["value"].shape[:2]
            records = np.memmap(temporary, _record(n_atoms), "w+", shape=(n_frames,))
            sources = {name: group["value"] for name, group in groups.items()}
            sources |= {name: groups["positions"][name] for name in ("step", "time")}
            for block in _blocks(records):
                for name, source in sources.items():
                    records[name][block] = source[block]
            records.flush()


def _record(n_atoms: int) -> np.dtype:
    """What a frame is in a part; in the units of `PLACES`."""
    each = ("<f8", (n_atoms, 3))
    kinds = {"step": "<i8", "time": "<f8", "cell": ("<f8", (3, 3)), "potential": "<f8", "kinetic": "<f8"}
    kinds |= {"positions": each, "velocities": each, "forces": each}
    return np.dtype([(name, *kind) if isinstance(kind, tuple) else (name, kind) for name, kind in kinds.items()])


def _copy(group: Any, name: str, records: np.memmap, field: str) -> Any:
    target = group.create_dataset(name, (len(records), *records[field].shape[1:]), records[field].dtype)
    for block in _blocks(records):
        target[block] = records[field][block]
    return target


def _blocks(records: np.memmap) -> Iterator[slice]:
    step = max(1, BLOCK // records.dtype.itemsize)
    for start in range(0, len(records), step):
        yield slice(start, start + step)


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise ConfigError(
            "a trajectory in HDF5 needs the package h5py, which is not installed; pip install h5py"
        ) from error
