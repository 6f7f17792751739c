"""Every program that drives a model gets the same numbers: LAMMPS in one and two processes, i-PI, torch-sim, ASE."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

from lrpot import LRCalculator
from lrpot.data.neighbours import add_edges
from lrpot.structure import make_structure
from tests.unit.lammps_cases import CASES, salt

ROOT = Path(__file__).parents[2]
STEPS = 100  # of 1 fs
FORCES = 1e-6  # eV/A, between programs at the same positions
TRAJECTORY = 1e-5  # A, after STEPS
ROUNDING = 1e-10  # relative or absolute, of one process beside many
LAMMPS_CONSTANTS = 1e-6  # relative, of a pressure: LAMMPS turns eV/A^3 into bar by a rounded constant
PATIENCE = 300.0  # s
# What one process computes as it does without LAMMPS, so that one look at it is enough.
BY_ONE = ("nacl", "skewed", "overlap", "equilibration", "shift")
REFUSED_BY_TWO = {"equilibration": "EquilibratedCharges", "shift": "neutrality shift"}

pytestmark = pytest.mark.slow  # starts Python anew


def needs(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install 'lrpot[test]'")


def command(name: str) -> str:
    """A program that came with a package: beside Python, or wherever the shell finds it."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{name} is not on the PATH: pip install 'lrpot[test]'")
    return found


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


@dataclass(frozen=True)
class Run:
    """NVE from rest: (N, 3) forces at the start, eV/A, and positions at the end, A."""

    forces: np.ndarray
    positions: np.ndarray


@pytest.fixture(scope="module")
def reference() -> Run:
    """ASE's."""
    atoms = salt()
    atoms.calc = LRCalculator("nacl.pt", skin=0.5)
    forces = atoms.get_forces()
    VelocityVerlet(atoms, units.fs).run(STEPS)
    assert np.abs(atoms.positions - salt().positions).max() > 0.1
    return Run(forces, atoms.positions)


def distance(one: np.ndarray, other: np.ndarray, atoms: Atoms) -> float:
    """A, the largest between two sets of positions, wherever they were wrapped."""
    fractional = (one - other) @ np.linalg.inv(atoms.cell.array)
    return float(np.abs((fractional - np.rint(fractional)) @ atoms.cell.array).max())


# --- LAMMPS


@pytest.fixture(scope="module")
def lammps(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of what one and two processes found."""
    needs("lammps", "mpi4py")
    folders = {}
    for n in (1, 2):
        folders[n] = tmp_path_factory.mktemp(f"lammps-{n}")
        names = CASES if n > 1 else BY_ONE
        job = [sys.executable, "-W", "error::UserWarning", "-m", "tests.unit.lammps_cases", str(folders[n]), *names]
        start = [command("mpiexec"), "-n", str(n)] if n > 1 else []
        done = subprocess.run(
            [*start, *job], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.parametrize(
    ("name", "processes"),
    [
        *((name, 1) for name in BY_ONE if name != "overlap"),
        *((name, 2) for name in CASES if name not in (*REFUSED_BY_TWO, "overlap")),
    ],
)
def test_lammps_has_the_numbers_of_the_model(name: str, processes: int, lammps: dict[int, Path]) -> None:
    """Energy, forces and stress where LAMMPS ended, also after atoms have changed from process to process."""
    found = np.load(lammps[processes] / f"{name}.npz")
    model = CASES[name].model().set_precision(torch.float64)
    numbers = CASES[name].atoms().numbers
    batch = add_edges(make_structure(numbers, found["positions"], found["cell"], [True] * 3), model.cutoff)
    expected = model(batch, stress=True)
    assert float(found["energy"]) == pytest.approx(float(expected["energy"]), rel=ROUNDING)
    np.testing.assert_allclose(found["forces"], expected["forces"].detach().numpy(), atol=ROUNDING)
    assert np.abs(found["forces"]).max() > 1e-3
    if "virial" not in dict(CASES[name].settings):
        stress = expected["stress"][0].detach().numpy()[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        np.testing.assert_allclose(found["stress"], stress, atol=LAMMPS_CONSTANTS * np.abs(stress).max())


def test_one_and_two_processes_of_lammps_move_atoms_alike(lammps: dict[int, Path]) -> None:
    """Among them 20 steps at constant pressure, of 63 charged atoms of which no process sees all."""
    for name in ("nacl", "skewed"):
        one, two = (np.load(lammps[n] / f"{name}.npz") for n in (1, 2))
        np.testing.assert_allclose(two["cell"], one["cell"], atol=ROUNDING)
        np.testing.assert_allclose(two["positions"], one["positions"], atol=ROUNDING)
    atoms = CASES["skewed"].atoms()
    assert distance(one["positions"], atoms.positions, atoms) > 0.5
    assert np.abs(one["cell"] - atoms.cell.array).max() > 1e-3
    assert one["seen"] == len(atoms)
    assert two["seen"] < len(atoms)


@pytest.mark.parametrize("processes", [1, 2])
def test_lammps_moves_atoms_as_ase_does(processes: int, lammps: dict[int, Path], reference: Run) -> None:
    found = np.load(lammps[processes] / "nacl.npz")
    assert distance(found["positions"], reference.positions, salt()) < TRAJECTORY


def test_what_lammps_cannot_do_is_said_in_one_line(lammps: dict[int, Path]) -> None:
    for n in (1, 2):
        text = (lammps[n] / "overlap.txt").read_text()
        assert text.startswith("StructureError: step 0: atoms 8 and 21 are 0.05 A apart; ")
    for name, words in REFUSED_BY_TWO.items():
        assert (lammps[1] / f"{name}.npz").exists()
        text = (lammps[2] / f"{name}.txt").read_text()
        assert text.startswith("ConfigError: ")
        assert words in text
        assert "one process" in text


# --- i-PI


def test_ipi(tmp_path: Path, reference: Run) -> None:
    """The input and the client of calculators/ipi, as processes of their own on a unix socket."""
    needs("ipi")
    folder = ROOT / "calculators" / "ipi"
    address = f"lrpot-test-{os.getpid()}"
    text = (folder / "input.xml").read_text().replace("<address>lrpot<", f"<address>{address}<")
    assert address in text
    (tmp_path / "input.xml").write_text(text)
    ase.io.write(tmp_path / "start.extxyz", salt())
    with (
        (tmp_path / "server.log").open("w") as log,
        subprocess.Popen(
            [command("i-pi"), "input.xml"], cwd=tmp_path, env=environment(), stdout=log, stderr=log
        ) as server,
    ):
        try:
            done = subprocess.run(
                [sys.executable, folder / "client.py", "nacl.pt", "start.extxyz", "--socket", address],
                cwd=tmp_path,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            assert done.returncode == 0, done.stderr + (tmp_path / "server.log").read_text()
            server.wait(timeout=PATIENCE)
        finally:
            server.kill()
    assert done.stdout == f"i-PI has ended; {STEPS + 1} configurations were computed\n"
    start = ase.io.read(tmp_path / "run.forces_0.extxyz", index=0)
    forces = start.calc.results["forces"] if start.calc else start.arrays["forces"]
    np.testing.assert_allclose(forces, reference.forces, atol=FORCES)
    end = ase.io.read(tmp_path / "run.positions_0.extxyz", index=-1)
    assert distance(end.positions, reference.positions, salt()) < TRAJECTORY


# --- torch-sim


def test_torch_sim(reference: Run) -> None:
    """Two cells in one batch, the second one with its atoms in another order."""
    needs("torch_sim")
    import torch_sim

    from lrpot.interfaces.torch_sim import TorchSimModel

    order = np.random.default_rng(0).permutation(64)
    cells = [salt(), salt()[order]]
    model = TorchSimModel("nacl.pt", skin=0.5, compute_stress=False)
    state = torch_sim.io.atoms_to_state(cells, torch.device("cpu"), torch.float64)
    forces = model(state)["forces"].numpy()
    np.testing.assert_allclose(forces[:64], reference.forces, atol=FORCES)
    np.testing.assert_allclose(forces[64:], reference.forces[order], atol=FORCES)
    moved = torch_sim.integrate(
        state, model, integrator=torch_sim.integrators.nve, n_steps=STEPS, temperature=0.0, timestep=0.001
    )
    positions = moved.positions.numpy()
    assert distance(positions[:64], reference.positions, salt()) < TRAJECTORY
    assert distance(positions[64:], reference.positions[order], salt()) < TRAJECTORY
