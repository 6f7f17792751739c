"""Equation of state: the fit against known curves and ASE's fit, the workflow against stress."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.eos import EquationOfState as AseEquation
from ase.units import GPa

from lrpot.errors import ConfigError, StructureError, WorkflowError
from lrpot.workflows.eos import BirchMurnaghan, equation_of_state, fit_birch_murnaghan
from tests.helpers_cli import one_error_line, run_cli

CURVE = BirchMurnaghan(v0=44.4, e0=-8.05, b0=27.0, b0_prime=4.6)
PRESSURE_TOLERANCE = 5e-3  # GPa, between the stress and the slope of a curve of four parameters


def test_a_curve_is_found_again() -> None:
    volume = np.linspace(41.0, 48.0, 7)
    found = fit_birch_murnaghan(volume.tolist(), CURVE.energy(volume).tolist())
    assert found.v0 == pytest.approx(CURVE.v0, rel=1e-9)
    assert found.e0 == pytest.approx(CURVE.e0, rel=1e-12)
    assert found.b0 == pytest.approx(CURVE.b0, rel=1e-7)
    assert found.b0_prime == pytest.approx(CURVE.b0_prime, rel=1e-5)


def test_pressure_is_the_slope_of_the_energy_and_b0_its_own() -> None:
    step = 1e-3
    for volume in (41.0, 44.4, 48.0):
        slope = -(CURVE.energy(volume + step) - CURVE.energy(volume - step)) / (2 * step) / GPa
        assert CURVE.pressure(volume) == pytest.approx(slope, abs=1e-6)
    slope = (CURVE.pressure(44.4 + step) - CURVE.pressure(44.4 - step)) / (2 * step)
    assert -44.4 * slope == pytest.approx(CURVE.b0, rel=1e-6)


def test_noisy_energies_as_by_ase() -> None:
    volume = np.linspace(41.0, 48.0, 9)
    energy = CURVE.energy(volume) + 1e-4 * np.random.default_rng(0).normal(size=9)
    v0, e0, b0 = AseEquation(volume, energy, eos="birchmurnaghan").fit()
    found = fit_birch_murnaghan(volume.tolist(), energy.tolist())
    assert found.v0 == pytest.approx(v0, rel=1e-5)
    assert found.e0 == pytest.approx(e0, abs=1e-6)
    assert found.b0 == pytest.approx(b0 / GPa, rel=1e-4)


def test_salt(salt: Atoms) -> None:
    found = equation_of_state(salt, points=7)
    assert found.curve.v0 == pytest.approx(salt.get_volume(), rel=1e-3)
    assert found.volume[0] == pytest.approx(0.94 * salt.get_volume())
    np.testing.assert_allclose([found.curve.pressure(v) for v in found.volume], found.pressure, atol=PRESSURE_TOLERANCE)
    assert 3.0 < found.curve.b0_prime < 6.0
    assert found.rms < 1e-5


def test_a_cell_with_a_shape_of_its_own_comes_to_rest_at_every_volume(salt: Atoms) -> None:
    """A rhombohedral cell: squeezed along its long diagonal it costs energy, which its shape gives back."""
    bent = salt.copy()
    bent.calc = salt.calc
    bent.set_cell(salt.cell.array @ (np.eye(3) + 0.01 * (1 - np.eye(3))), scale_atoms=True)
    free, held = (equation_of_state(bent, points=5, shape=shape) for shape in (True, False))
    assert max(free.energy) < max(held.energy)
    assert all(f < h for f, h in zip(free.energy, held.energy, strict=True))
    assert free.curve.e0 == pytest.approx(salt.get_potential_energy(), abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strain": 0.6}, "strain = 0.6: volumes must change by more than 0 and less than 0.5"),
        ({"points": 4}, "points = 4: the curve has four parameters; take 5 points or more"),
    ],
)
def test_refusals(settings: dict[str, float], message: str, salt: Atoms) -> None:
    with pytest.raises(ConfigError, match=message):
        equation_of_state(salt, **settings)  # type: ignore[arg-type]


def test_no_minimum_in_reach(salt: Atoms) -> None:
    salt.set_cell(0.95 * salt.cell.array, scale_atoms=True)
    with pytest.raises(WorkflowError, match=r"no minimum between .*it falls towards larger volumes"):
        equation_of_state(salt, points=5, strain=0.02)
    with pytest.raises(WorkflowError, match="3 volumes are not enough"):
        fit_birch_murnaghan([1.0, 2.0, 3.0], [1.0, 0.0, 1.0])


def test_a_slab_has_no_volume(slab: Atoms) -> None:
    with pytest.raises(StructureError, match="Cu3 is not periodic in all three directions, so it has no volume"):
        equation_of_state(slab)


def test_command(tmp_path: Path, salt: Atoms, capsys: pytest.CaptureFixture[str]) -> None:
    ase.io.write(tmp_path / "salt.vasp", salt)
    out = tmp_path / "eos.json"
    words = ("eos", "nacl.pt", tmp_path / "salt.vasp", "--points", 5, "--out", out)
    assert run_cli(*words) == 0
    curve = json.loads(out.read_text())["curve"]
    assert f"{curve['b0']:.3f}" in capsys.readouterr().out
    assert curve["v0"] == pytest.approx(salt.get_volume(), rel=1e-3)
    assert (tmp_path / "eos.png").read_bytes().startswith(b"\x89PNG")
    assert run_cli(*words) == 1
    one_error_line(capsys.readouterr().err, ["eos.json: exists already; add --overwrite"])


@pytest.mark.parametrize(
    "words",
    [("eos", "--points", 4), ("eos", "--strain", 0.6), ("elastic", "--strain", 0.2), ("phonons", "--distance", 2)],
)
def test_commands_refuse_a_number_before_anything_is_read(
    words: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, option, value = words
    assert run_cli(command, "nowhere.pt", "nowhere.cif", option, value, "--out", tmp_path / "out.json") == 1
    one_error_line(capsys.readouterr().err, [f"{str(option).removeprefix('--')} = {value}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["eos", "elastic"])
def test_results_are_never_where_the_picture_goes(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(command, "nacl.pt", tmp_path / "salt.vasp", "--out", tmp_path / "results.png") == 1
    one_error_line(capsys.readouterr().err, ["results.png: unknown ending '.png'; use .json"])
    assert not list(tmp_path.iterdir())
