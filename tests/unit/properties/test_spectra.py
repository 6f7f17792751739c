"""Patterns of one crystal: lines of |Q| where the crystal has them, the picture, and what the command says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from lrpot.errors import ConfigError, StructureError
from lrpot.model_file import save
from lrpot.properties.model import PropertyEnsemble, PropertyModel
from lrpot.properties.spectra import draw, gathered, pseudo_lines, strongest, xray_lines
from tests.helpers_cli import listing, one_error_line, run_cli, save_model
from tests.unit.properties.crystals import doubled, rotated
from tests.unit.properties.property_data import small_model
from tests.unit.test_plots import is_picture

SALT = 5.64  # A


def salt() -> Atoms:
    return bulk("NaCl", "rocksalt", a=SALT)


def model(**diffraction: object) -> PropertyModel:
    return small_model(encoder="prdnet", diffraction={"features": 16, "channels": 3, **diffraction})


def test_lines_are_where_rock_salt_has_them() -> None:
    """Indices all odd or all even, at 2 pi sqrt(h^2 + k^2 + l^2) / a; with the multiplicity of each."""
    pseudo = pseudo_lines(model(k_cutoff=4.0), salt())
    expected = [2.0 * math.pi * math.sqrt(n) / SALT for n in (3, 4, 8, 11, 12)]
    np.testing.assert_allclose(pseudo.q, expected, rtol=1e-6)
    xray = xray_lines(salt(), 4.0)
    np.testing.assert_allclose(xray.q, expected, rtol=1e-6)
    assert xray.q_max == pseudo.q_max == 4.0
    # sodium and chlorine scatter X-rays in phase where indices are even
    assert xray.relative.argmax() == 1
    assert xray.relative.max() == pseudo.relative.max() == 100.0


@pytest.mark.parametrize("change", [doubled, rotated])
def test_lines_are_those_of_the_crystal(change: Callable[[Atoms], Atoms]) -> None:
    """A larger cell has reflections more, all of them extinct."""
    own = small_model(encoder="prdnet", diffraction={"features": 16, "channels": 3, "k_cutoff": 4.0})
    one, other = pseudo_lines(own, salt()), pseudo_lines(own, change(salt()))
    seen = other.relative > 1e-3
    np.testing.assert_allclose(other.q[seen], one.q, rtol=1e-6)
    np.testing.assert_allclose(other.intensity[seen], one.intensity, rtol=1e-3)


def test_reflections_of_one_length_are_one_line() -> None:
    q, intensity = np.array([2.0, 1.0, 2.00001, 3.0]), np.array([[1.0, 2.0], [1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    lines = gathered(q, intensity, 4.0)
    np.testing.assert_allclose(lines.q, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(lines.intensity, [[1.0, 0.0], [4.0, 6.0], [0.0, 0.0]])
    np.testing.assert_allclose(lines.relative, [10.0, 100.0, 0.0])
    xray = gathered(np.array([1.0005, 3.5]), np.array([[2.0], [8.0]]), 4.0)
    assert strongest(lines, xray, 2) == [(2.0, 100.0, 0.0), (1.0, 10.0, 25.0)]


def test_a_picture_of_both(tmp_path: Path) -> None:
    pseudo = pseudo_lines(model(), salt())
    assert is_picture(draw(pseudo, xray_lines(salt(), pseudo.q_max), tmp_path / "salt.png", "NaCl"))


def test_of_an_ensemble_the_first_is_drawn() -> None:
    members = [small_model(encoder="prdnet", seed=seed) for seed in range(2)]
    ensemble = PropertyEnsemble(members).eval()
    np.testing.assert_array_equal(pseudo_lines(ensemble, salt()).intensity, pseudo_lines(members[0], salt()).intensity)


def test_what_has_no_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no diffraction to draw; fit a model with --diffraction on"):
        pseudo_lines(small_model(), salt())
    with pytest.warns(UserWarning, match="for comparison"):
        published = model(variant="published", max_index=2)
    with pytest.raises(ConfigError, match="published diffraction"):
        pseudo_lines(published, salt())
    with pytest.raises(StructureError, match=r"no reflection below \|Q\| = 1 1/A"):
        pseudo_lines(model(k_cutoff=1.0), salt())
    with pytest.raises(StructureError, match=r"has no X-ray pattern .*scattering coefficients for Og"):
        xray_lines(Atoms(["Og"], cell=[4, 4, 4], pbc=True), 4.0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(model(), tmp_path / "gap.pt")
    ase.io.write(tmp_path / "salt.cif", salt())
    assert run_cli("plot", "diffraction", tmp_path / "gap.pt", tmp_path / "salt.cif") == 0
    assert "strongest lines" in capsys.readouterr().out
    assert is_picture(tmp_path / "diffraction-salt.png")


@pytest.mark.parametrize(
    ("name", "crystal", "expected"),
    [
        ("potential", "salt.cif", ("potential.pt: is a potential", "lrpot fit --encoder")),
        ("plain", "salt.cif", ("plain.pt: has no diffraction", "--diffraction on")),
        ("gap", "slab.extxyz", ("slab.extxyz, row 0: ", "periodic in all directions")),
        ("gap", "gone.cif", ("gone.cif: no such file",)),
    ],
)
def test_every_error_is_one_line_and_leaves_nothing(
    name: str, crystal: str, expected: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(model(), tmp_path / "gap.pt")
    save(small_model(), tmp_path / "plain.pt")
    save_model(tmp_path / "potential.pt")
    ase.io.write(tmp_path / "salt.cif", salt())
    slab = salt()
    slab.pbc = (True, True, False)
    ase.io.write(tmp_path / "slab.extxyz", slab)
    before = listing(tmp_path)
    assert run_cli("plot", "diffraction", tmp_path / f"{name}.pt", tmp_path / crystal) == 1
    one_error_line(capsys.readouterr().err, expected)
    assert listing(tmp_path) == before
