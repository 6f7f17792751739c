"""Trajectories: frames go to a file as they come, and a file is cut back to what it was when a state was saved."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ase import Atoms
from ase.io import write
from ase.io.trajectory import Trajectory

from lrpot.errors import ConfigError, OutputError
from lrpot.files import blaming

# Bytes at the head of a .traj that change with every frame: how many there are, and where it says where they are.
TRAJ_HEAD = 48

# What a file was at some time: its length, and whatever else is needed to cut it back.
Mark = dict[str, Any]


class Frames(Protocol):
    """A trajectory being written. The first frame replaces an older file."""

    def write(self, atoms: Atoms, step: int, time_fs: float) -> None:
        """
        Raises:
            OutputError: no room left, or no right to write there.
        """

    def mark(self) -> Mark:
        """What is there now, once it is safe on disk."""

    def rewind(self, mark: Mark, atoms: Atoms) -> None:
        """Go on behind what was there at a mark.

        Raises:
            OutputError: the file has lost some of that.
        """

    def close(self) -> None: ...


def open_frames(path: str | Path | None) -> Frames:
    """A trajectory in the format of the ending; None: one that keeps nothing.

    Raises:
        ConfigError: an unknown ending, or HDF5 without h5py.
    """
    if path is None:
        return Nothing()
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path}: unknown ending {path.suffix!r}; use {', '.join(FORMATS)}")
    return FORMATS[path.suffix](path)


class Nothing:
    """No trajectory."""

    def write(self, atoms: Atoms, step: int, time_fs: float) -> None:
        pass

    def mark(self) -> Mark:
        return {}

    def rewind(self, mark: Mark, atoms: Atoms) -> None:
        pass

    def close(self) -> None:
        pass


class ExtxyzFrames:
    """Extended XYZ."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun = False

    def write(self, atoms: Atoms, step: int, time_fs: float) -> None:
        with blaming(self.path):
            write(self.path, atoms, format="extxyz", append=self.begun)
        self.begun = True

    def mark(self) -> Mark:
        return {"bytes": sync(self.path) if self.begun else 0}

    def rewind(self, mark: Mark, atoms: Atoms) -> None:
        self.begun = mark["bytes"] > 0
        if self.begun:
            cut(self.path, mark["bytes"])
        else:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        pass


class TrajFrames:
    """ASE's binary format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: Any = None
        self.mode = "w"

    def write(self, atoms: Atoms, step: int, time_fs: float) -> None:
        with blaming(self.path):
            self.file = self.file or Trajectory(str(self.path), self.mode)
            self.file.write(atoms)

    def mark(self) -> Mark:
        length = sync(self.path)
        with open(self.path, "rb") as file:
            return {"bytes": length, "head": file.read(TRAJ_HEAD).hex()}

    def rewind(self, mark: Mark, atoms: Atoms) -> None:
        cut(self.path, mark["bytes"])
        with open(self.path, "r+b") as file:
            file.write(bytes.fromhex(mark["head"]))
        self.mode = "a"

    def close(self) -> None:
        if self.file is None:
            return
        with blaming(self.path):
            try:
                self.file.close()
            except OSError:
                with suppress(OSError):
                    self.file.backend.fd.close()  # ASE leaves it open when there is no room for what it holds back
                raise


def _hdf5(path: Path) -> Frames:
    from lrpot.md.hdf5 import Hdf5Frames  # h5py is an extra

    return Hdf5Frames(path)


FORMATS: dict[str, Callable[[Path], Frames]] = {
    ".traj": TrajFrames,
    ".extxyz": ExtxyzFrames,
    ".xyz": ExtxyzFrames,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".h5md": _hdf5,
}


def sync(path: Path) -> int:
    """Bytes of a file, all of which are on disk now."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def cut(path: Path, length: int) -> None:
    """Cut a file to so many bytes.

    Raises:
        OutputError: it has fewer, or is not there.
    """
    present = path.stat().st_size if path.is_file() else 0
    if present < length:
        raise OutputError(
            f"{path}: has {present} bytes and had {length} when the state was saved; put it back, or start anew with "
            "--overwrite"
        )
    os.truncate(path, length)
