"""The state of a run in a file: all that the next step depends on, to the last bit. Nothing in it is unpickled."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from ase import Atoms
from ase.io.jsonio import encode
from safetensors import SafetensorError, safe_open

from lrpot.data.labels import total_charge
from lrpot.errors import ConfigError, DataError, OutputError
from lrpot.files import atomic_path

VERSION = 2
NAME, CHECKSUM = "lrpot.md", "crc32"  # of the JSON that is the only metadata, and in it of the sum over all the rest
OF_INTEGRATOR = "integrator."  # before the paths of its numbers

# Settings that may change when a run goes on: they decide what is done and kept from then on, not what comes next.
FREE = ("steps", "save_every")


@dataclass(frozen=True)
class State:
    """A run between two steps.

    Attributes:
        positions, momenta: (N, 3), A and ASE's units. cell: (3, 3), A. numbers: (N,) atomic numbers.
        integrator: its numbers, the step and the bath among them (`lrpot.md.integrators.numbers_of`).
        about: settings, what atoms they are, the state of the random numbers, marks of all files, whatever else the
            caller wants kept; JSON.
    """

    positions: np.ndarray
    momenta: np.ndarray
    cell: np.ndarray
    numbers: np.ndarray
    integrator: Mapping[str, np.ndarray]
    about: Mapping[str, Any]

    def give_to(self, atoms: Atoms) -> None:
        """Let the atoms of that run go on from here."""
        atoms.set_cell(self.cell)
        atoms.set_positions(self.positions, apply_constraint=False)
        atoms.set_momenta(self.momenta, apply_constraint=False)


def write_state(path: str | Path, state: State) -> None:
    """Replace the state in a file; the older one stays whole until the new one is on disk.

    Raises:
        OutputError: it cannot be written.
    """
    arrays = {"positions": state.positions, "momenta": state.momenta, "cell": state.cell, "numbers": state.numbers}
    arrays |= {f"{OF_INTEGRATOR}{name}": value for name, value in state.integrator.items()}
    arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    about = {"version": VERSION, **state.about}
    content = safetensors.numpy.save(arrays, {NAME: json.dumps({CHECKSUM: _checksum(about, arrays), **about})})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_state(path: str | Path) -> State:
    """
    Raises:
        OutputError: there is none. DataError: it is something else, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise OutputError(f"{path}: no run has left a state there; start it without --resume")
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads(file.metadata()[NAME])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        checksum = about.pop(CHECKSUM, None)
        if about["version"] != VERSION:
            raise DataError(f"{path}: was written by another version of lrpot; go on with that one")
        if checksum != _checksum(about, arrays):
            raise ValueError("numbers or settings are not those that were written")
        del about["version"]
        integrator = {
            name.removeprefix(OF_INTEGRATOR): arrays.pop(name)
            for name in list(arrays)
            if name.startswith(OF_INTEGRATOR)
        }
        return State(**arrays, integrator=integrator, about=about)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is not the state of a run, or damaged; start anew with --overwrite") from error


def _checksum(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> int:
    """A sum that changes with any bit: safetensors has none, and a wrong digit would go on unseen."""
    total = zlib.crc32(json.dumps(about).encode())
    for name in sorted(arrays):
        total = zlib.crc32(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes(), total)
    return total


def check_same(path: str | Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with something that would lead elsewhere.

    Args:
        before, now: what the run was made with, by name.
    Raises:
        ConfigError: names each difference.
    """
    ramp = now.get("temperature_end") is not None  # which depends on the number of steps
    free = ("save_every",) if ramp else FREE
    names = [name for name in {**before, **now} if name not in free]
    different = [name for name in names if before.get(name) != now.get(name)]
    if different:
        was = ", ".join(f"{name} = {before.get(name)}, not {now.get(name)}" for name in different)
        raise ConfigError(f"{path}: that run has {was}; give the same, or start anew with --overwrite")


def identity_of(atoms: Atoms) -> dict[str, Any]:
    """What a run takes from its atoms and never changes, beside their elements; JSON."""
    return {
        "masses": atoms.get_masses().tolist(),
        "pbc": atoms.pbc.tolist(),
        "total charge": total_charge(atoms),
        "constraints": [
            # those of the user's own need not tell what they hold
            json.loads(encode(held.todict())) if hasattr(held, "todict") else type(held).__name__
            for held in atoms.constraints
        ],
    }


def check_atoms(path: str | Path, saved: State, atoms: Atoms) -> None:
    """Refuse to go on with other atoms.

    Raises:
        DataError: names what differs.
    """
    if not np.array_equal(saved.numbers, atoms.numbers):
        raise DataError(f"{path}: belongs to a run of other atoms; give the same structure and supercell")
    before = saved.about["atoms"]
    different = [name for name, now in identity_of(atoms).items() if before[name] != now]
    if different:
        raise DataError(
            f"{path}: belongs to a run of atoms with other {', '.join(different)}; give the same structure, or start "
            "anew with --overwrite"
        )
