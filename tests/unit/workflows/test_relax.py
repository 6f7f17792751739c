"""Relaxation: where it ends, what it keeps, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from lrpot.errors import ConfigError, StructureError, WorkflowError
from lrpot.units import GPA
from lrpot.workflows.relax import relax, relax_fully, space_group
from tests.helpers_cli import one_error_line, rock_salt, run_cli

ENERGY_TOLERANCE = 1e-5  # eV/atom, of atoms whose forces are below 0.01 eV/A
FMAX, SMAX = 0.01, 0.01  # eV/A, GPa


def strained(calculator: Calculator) -> Atoms:
    """Sixteen atoms in a triclinic cell, none of them at rest."""
    atoms = rock_salt(2)
    atoms.calc = calculator
    return atoms


def pressure(atoms: Atoms) -> float:
    """GPa."""
    return float(-atoms.get_stress()[:3].mean() * GPA)


@pytest.mark.parametrize("optimiser", ["lbfgs", "bfgs", "fire"])
def test_a_distorted_crystal_finds_its_rest(optimiser: str, calculator: Calculator, relaxed_salt: Atoms) -> None:
    atoms = strained(calculator)
    before = atoms.copy()
    run = relax(atoms, cell="full", fmax=FMAX, smax=SMAX, optimiser=optimiser)
    assert run.converged
    assert run.atoms.get_potential_energy() / 16 == pytest.approx(
        relaxed_salt.get_potential_energy() / 2, abs=ENERGY_TOLERANCE
    )
    assert np.linalg.norm(run.atoms.get_forces(), axis=1).max() == run.force[-1] < FMAX
    assert np.abs(run.atoms.get_stress()).max() * GPA == pytest.approx(run.stress[-1])
    assert run.stress[-1] < SMAX < run.stress[0]
    assert run.energy[-1] < run.energy[0]
    assert len(run.energy) == len(run.force) == len(run.stress) == run.steps + 1
    assert (atoms.positions == before.positions).all()
    assert (atoms.cell.array == before.cell.array).all()


def test_a_fixed_cell_stays(calculator: Calculator) -> None:
    atoms = strained(calculator)
    run = relax(atoms, fmax=FMAX)
    assert run.converged
    assert (run.atoms.cell.array == atoms.cell.array).all()
    assert run.stress == [0.0] * len(run.stress)


@pytest.mark.parametrize("cell", ["full", "isotropic"])
def test_pressure_is_reached(cell: str, salt: Atoms) -> None:
    run = relax(salt, cell=cell, pressure=2.0, fmax=FMAX, smax=SMAX)
    assert run.converged
    assert pressure(run.atoms) == pytest.approx(2.0, abs=SMAX)
    assert run.atoms.get_volume() < salt.get_volume()


def test_an_isotropic_cell_keeps_its_shape_and_a_shape_its_volume(calculator: Calculator) -> None:
    atoms = strained(calculator)
    scaled = relax(atoms, cell="isotropic", fmax=FMAX, smax=SMAX).atoms
    ratio = scaled.cell.array @ np.linalg.inv(atoms.cell.array)
    np.testing.assert_allclose(ratio, ratio[0, 0] * np.eye(3), atol=1e-10)
    assert abs(pressure(scaled)) < SMAX
    shaped = relax(atoms, cell="shape", fmax=FMAX, smax=SMAX)
    assert shaped.converged
    assert shaped.atoms.get_volume() == pytest.approx(atoms.get_volume(), rel=1e-6)
    stress = shaped.atoms.get_stress(voigt=False) * GPA
    assert np.abs(stress - np.trace(stress) / 3 * np.eye(3)).max() < SMAX


def test_symmetry_is_kept_only_if_asked_for() -> None:
    """A square of copper in a cell that would rather be a cube's face: kept tetragonal, left free it may not be."""
    atoms = bulk("Cu", cubic=True, a=3.7)
    atoms.set_cell(atoms.cell.array @ np.diag([1.0, 1.0, 1.05]), scale_atoms=True)
    atoms.calc = EMT()
    run = relax(atoms, cell="full", symmetry=True, fmax=1e-3, smax=0.1)
    before, after = run.space_groups
    assert before == space_group(atoms) == "I4/mmm (139)"
    a, b, c = run.atoms.cell.lengths()
    assert a == pytest.approx(b, abs=1e-12)
    assert c == pytest.approx(a, rel=0.02)
    assert after in ("I4/mmm (139)", "Fm-3m (225)")
    assert not run.atoms.constraints


def test_constraints_of_the_atoms_hold(calculator: Calculator) -> None:
    atoms = strained(calculator)
    atoms.set_constraint(FixAtoms([3]))
    run = relax(atoms, fmax=FMAX, symmetry=True)
    # the identity, as an operation of symmetry, rounds
    np.testing.assert_allclose(run.atoms.positions[3], atoms.positions[3], atol=1e-12)
    assert np.abs(run.atoms.positions[4] - atoms.positions[4]).max() > 1e-3
    assert len(run.atoms.constraints) == 1


def test_it_stops_when_told_and_after_its_steps(calculator: Calculator) -> None:
    atoms = strained(calculator)
    assert relax(atoms, fmax=1e-6, steps=3).steps == 3
    asked: list[int] = []
    run = relax(atoms, fmax=1e-6, progress=lambda step, note: asked.append(step), stop=lambda: len(asked) == 2)
    assert asked == [0, 1]
    assert not run.converged
    with pytest.raises(WorkflowError, match="the crystal is not at rest after 3 steps: forces up to"):
        relax_fully(atoms, "the crystal", fmax=1e-6, steps=3)


class Broken(Calculator):
    """Forces that are not finite."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (as ASE declares it)

    def calculate(self, atoms: Atoms, properties: Sequence[str], system_changes: Sequence[str]) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.full((len(atoms), 3), np.nan)}


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"cell": "cubic"}, ConfigError, "cell = 'cubic' is not known; choose one of fixed"),
        ({"optimiser": "newton"}, ConfigError, "optimiser = 'newton' is not known"),
        ({"fmax": 0.0}, ConfigError, "fmax = 0: must be finite and positive"),
        ({"smax": -1.0}, ConfigError, "smax = -1: must be"),
        ({"steps": 0}, ConfigError, "steps = 0: must be"),
        ({"pressure": np.inf, "cell": "full"}, ConfigError, "pressure = inf GPa: must be finite"),
        ({"pressure": 1.0}, ConfigError, "pressure = 1 GPa changes nothing where cell = fixed"),
        ({"cell": "full"}, StructureError, "Cu3 is not periodic in all three directions, so cell = full cannot be"),
        ({"symmetry": True}, StructureError, "so its symmetry cannot be kept"),
    ],
)
def test_refusals(settings: dict[str, object], kind: type[Exception], message: str, slab: Atoms) -> None:
    with pytest.raises(kind, match=message):
        relax(slab, **settings)  # type: ignore[arg-type]


def test_forces_that_are_not_finite_end_it() -> None:
    atoms = bulk("Cu")
    atoms.calc = Broken()
    with pytest.raises(WorkflowError, match="relaxation, step 0: energy 0 eV, largest force nan eV/A"):
        relax(atoms)


# --- lrpot relax


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ase.io.write(tmp_path / "start.extxyz", rock_salt(2))
    out = tmp_path / "rest.cif"
    assert run_cli("relax", "nacl.pt", tmp_path / "start.extxyz", "--cell", "full", "--out", out) == 0
    text = capsys.readouterr().out
    assert "space group" in text
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["converged"]
    assert record["force"][-1] < FMAX
    assert f"{record['energy'][-1]:.6f}" in text
    found = ase.io.read(out)
    assert found.get_volume() == pytest.approx(abs(np.linalg.det(record["cell"])), rel=1e-4)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "rest.wrong"), "ASE writes no crystal by this name; use .extxyz"),
        (("--out", "rest.json"), "ASE writes no crystal by this name"),
        (("--out", "old.extxyz"), "old.extxyz: exists already; add --overwrite"),
        (("--pressure", "1"), "pressure = 1 GPa changes nothing"),
        (("--steps", "2"), "not at rest after 2 steps: forces up to"),
    ],
)
def test_command_refusals(
    words: Sequence[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    ase.io.write("start.extxyz", rock_salt(2))
    Path("old.extxyz").write_text("old")
    assert run_cli("relax", "nacl.pt", "start.extxyz", *words) == 1
    one_error_line(capsys.readouterr().err, [message])
    assert Path("old.extxyz").read_text() == "old"
