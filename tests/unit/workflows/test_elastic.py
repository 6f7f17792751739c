"""Elastic constants against derivatives of the energy, the equation of state and closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from lrpot.errors import ConfigError, StructureError, WorkflowError
from lrpot.units import GPA
from lrpot.workflows.elastic import VOIGT, ElasticConstants, elastic_constants, symmetrised
from lrpot.workflows.eos import equation_of_state
from lrpot.workflows.pictures import young
from lrpot.workflows.relax import relax
from tests.helpers_cli import run_cli

STEP = 0.005  # strain, of energies
ENERGY_TOLERANCE = 2e-3  # relative, of second differences at that strain
STRAIN_TOLERANCE = 1e-3  # relative: what the square of a strain of 0.5 % adds depends on its direction
BULK_TOLERANCE = 2e-3  # relative, between stress at 0.5 % and energies within 6 % of the volume


@pytest.fixture(scope="module")
def constants(relaxed_salt: Atoms) -> ElasticConstants:
    return elastic_constants(relaxed_salt)


def cubic(c11: float, c12: float, c44: float) -> np.ndarray:
    stiffness = np.zeros((6, 6))
    stiffness[:3, :3] = c12 + (c11 - c12) * np.eye(3)
    stiffness[3:, 3:] = c44 * np.eye(3)
    return stiffness


def curvature(atoms: Atoms, column: int) -> float:
    """GPa: second difference of the energy by one strain in Voigt notation, atoms clamped."""
    energies = []
    for amount in (-STEP, 0.0, STEP):
        a, b = VOIGT[column]
        deformation = np.eye(3)
        deformation[a, b] += amount / 2
        deformation[b, a] += amount / 2
        moved = atoms.copy()
        moved.calc = atoms.calc
        moved.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
        energies.append(moved.get_potential_energy())
    return (energies[0] - 2 * energies[1] + energies[2]) / STEP**2 / atoms.get_volume() * GPA


def test_salt(constants: ElasticConstants, relaxed_salt: Atoms) -> None:
    c = constants.stiffness
    np.testing.assert_allclose(c, cubic(c[0, 0], c[0, 1], c[3, 3]), atol=1e-8)
    np.testing.assert_allclose(c, constants.raw, atol=1e-3)
    assert constants.stable
    # in rock salt no atom moves within its strained cell
    for column in (0, 4):
        assert c[column, column] == pytest.approx(curvature(relaxed_salt, column), rel=ENERGY_TOLERANCE)


def test_bulk_modulus_is_that_of_the_equation_of_state(constants: ElasticConstants, relaxed_salt: Atoms) -> None:
    b0 = equation_of_state(relaxed_salt, points=7).curve.b0
    assert constants.averages().bulk == pytest.approx((b0, b0, b0), rel=BULK_TOLERANCE)


def test_a_crystal_turned_is_a_tensor_turned(constants: ElasticConstants, relaxed_salt: Atoms) -> None:
    """Averages are the same; Young's modulus along the old axes too."""
    turned = relaxed_salt.copy()
    turned.calc = relaxed_salt.calc
    turned.rotate(37.0, (1.0, 2.0, -0.5), rotate_cell=True)
    found = elastic_constants(turned)
    assert np.abs(found.stiffness - constants.stiffness).max() > 0.1
    for name in ("bulk", "shear", "young", "poisson"):
        expected = getattr(constants.averages(), name)
        assert getattr(found.averages(), name) == pytest.approx(expected, rel=STRAIN_TOLERANCE), name
    axis = Atoms("H", positions=[(1.0, 0.0, 0.0)])
    axis.rotate(37.0, (1.0, 2.0, -0.5))
    old = young(constants.stiffness, np.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(young(found.stiffness, axis.positions), old, rtol=STRAIN_TOLERANCE)


def test_atoms_that_move_make_a_crystal_softer() -> None:
    """Two kinds of planes in a hexagonal crystal: clamped atoms resist more, never less."""
    atoms = bulk("Cu", "hcp", a=2.55, c=4.16)
    atoms.calc = EMT()
    settings = {"fmax": 1e-4}
    residual = float(np.abs(atoms.get_stress()).max() * GPA)
    with pytest.raises(WorkflowError, match=f"under a stress of {residual:.2g} GPa"):
        elastic_constants(atoms, **settings)
    rest = relax(atoms, cell="full", symmetry=True, fmax=1e-4, smax=0.01, steps=200).atoms
    relaxed, clamped = (elastic_constants(rest, relax_atoms=r, **settings) for r in (True, False))
    # hexagonal: shear in the plane belongs to the two others
    for c in (relaxed.stiffness, clamped.stiffness):
        assert c[5, 5] == pytest.approx((c[0, 0] - c[0, 1]) / 2, rel=1e-6)
    assert np.linalg.eigvalsh(clamped.stiffness - relaxed.stiffness).min() > -1e-2
    assert clamped.stiffness[5, 5] > relaxed.stiffness[5, 5] + 1.0
    assert clamped.stiffness[5, 5] == pytest.approx(curvature(rest, 5), rel=ENERGY_TOLERANCE)


def test_averages_of_a_cubic_crystal_are_the_closed_forms(relaxed_salt: Atoms) -> None:
    c11, c12, c44 = 50.0, 15.0, 13.0
    averages = ElasticConstants(cubic(c11, c12, c44), cubic(c11, c12, c44), relaxed_salt, 0.0).averages()
    b = (c11 + 2 * c12) / 3
    voigt = (c11 - c12 + 3 * c44) / 5
    reuss = 5 * (c11 - c12) * c44 / (4 * c44 + 3 * (c11 - c12))
    g = (voigt + reuss) / 2
    assert averages.bulk == pytest.approx((b, b, b))
    assert averages.shear == pytest.approx((voigt, reuss, g))
    assert averages.young == pytest.approx(9 * b * g / (3 * b + g))
    assert averages.poisson == pytest.approx((3 * b - 2 * g) / (6 * b + 2 * g))
    assert averages.anisotropy == pytest.approx(5 * voigt / reuss - 5)


def test_young_of_an_isotropic_solid_is_the_same_everywhere() -> None:
    b, g = 30.0, 20.0
    directions = np.random.default_rng(0).normal(size=(20, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    found = young(cubic(b + 4 * g / 3, b - 2 * g / 3, g), directions)
    np.testing.assert_allclose(found, 9 * b * g / (3 * b + g), rtol=1e-12)


def test_symmetry_leaves_three_constants_of_a_cube(relaxed_salt: Atoms) -> None:
    noise = np.random.default_rng(0).normal(size=(6, 6))
    found = symmetrised(cubic(50.0, 15.0, 13.0) + noise, relaxed_salt)
    np.testing.assert_allclose(found, cubic(found[0, 0], found[0, 1], found[3, 3]), atol=1e-10)
    assert found[3, 3] == pytest.approx(13.0 + np.diag(noise)[3:].mean(), abs=1e-10)


def test_an_unstable_crystal_has_no_moduli(relaxed_salt: Atoms) -> None:
    found = ElasticConstants(cubic(10.0, 15.0, 13.0), cubic(10.0, 15.0, 13.0), relaxed_salt, 0.0)
    assert not found.stable
    assert found.record()["averages"] is None
    with pytest.raises(WorkflowError, match="smallest eigenvalue of its stiffness is -5 GPa"):
        found.averages()


def test_refusals(salt: Atoms, slab: Atoms) -> None:
    with pytest.raises(ConfigError, match=r"strain = 0\.2: must be positive and less than 0.1"):
        elastic_constants(salt, strain=0.2)
    with pytest.raises(StructureError, match="so it has no elastic constants"):
        elastic_constants(slab)


def test_command(tmp_path: Path, salt: Atoms, capsys: pytest.CaptureFixture[str]) -> None:
    ase.io.write(tmp_path / "salt.cif", salt)
    out = tmp_path / "elastic.json"
    assert run_cli("elastic", "nacl.pt", tmp_path / "salt.cif", "--out", out) == 0
    text = capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["stable"]
    assert f"{record['averages']['bulk'][2]:.3f}" in text
    assert "stable: the smallest eigenvalue" in text
    assert (tmp_path / "elastic.png").read_bytes().startswith(b"\x89PNG")
