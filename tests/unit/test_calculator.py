"""LRCalculator gives ASE the numbers of the potential, computes them once, and refuses what the model cannot treat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.stress import full_3x3_to_voigt_6_stress

from lrpot import LRCalculator
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError, DataError, ModelFileError, StructureError, UnknownElementError
from lrpot.potential import Potential
from tests.helpers_cli import rock_salt, save_model, small_model

DIFFERENCE_TOLERANCE = 1e-6  # eV/A and eV/A^3, of central differences in float64
SINGLE_TOLERANCE = 1e-5  # relative, of a network in float32
DRIFT = 2e-6  # eV/atom, of the total energy over a run of 40 fs at 0.5 fs; rounding is 1e-13, the integrator 1e-6


@pytest.fixture(params=["coulomb", "none"])
def calculator(request: pytest.FixtureRequest) -> LRCalculator:
    return LRCalculator(small_model(request.param))


@pytest.fixture
def atoms() -> Atoms:
    return rock_salt()


def counted(calculator: LRCalculator) -> list[dict[str, Any]]:
    """The arguments of every evaluation of the model from now on."""
    calls: list[dict[str, Any]] = []
    forward = calculator.model.forward

    def count(batch: object, **kwargs: Any) -> object:
        calls.append(kwargs)
        return forward(batch, **kwargs)

    calculator.model.forward = count  # type: ignore[method-assign]
    return calls


# --- numbers


def test_numbers_are_those_of_the_potential(calculator: LRCalculator, atoms: Atoms) -> None:
    potential = calculator.model
    expected = potential(to_structure(atoms, potential.cutoff), stress=True)
    atoms.calc = calculator
    assert atoms.get_potential_energy() == float(expected["energy"])
    assert atoms.get_potential_energy(force_consistent=True) == float(expected["energy"])
    np.testing.assert_array_equal(atoms.get_forces(), expected["forces"].numpy())
    np.testing.assert_array_equal(atoms.get_stress(), full_3x3_to_voigt_6_stress(expected["stress"][0].numpy()))
    np.testing.assert_array_equal(atoms.get_stress(voigt=False), expected["stress"][0].numpy())
    assert calculator.results["energy_short"] == float(expected["energy_short"])
    assert calculator.results["energy_long"] == float(expected["energy_long"])
    assert ("charges" in calculator.results) == ("charges" in expected)
    if "charges" in expected:
        np.testing.assert_array_equal(atoms.get_charges(), expected["charges"].sum(dim=1).numpy())


def test_results_and_their_types(atoms: Atoms) -> None:
    atoms.calc = LRCalculator(small_model())
    atoms.get_stress()
    results = atoms.calc.results
    expected = {"energy", "free_energy", "energy_short", "energy_long", "forces", "stress", "charges"}
    assert results.keys() == expected
    assert results["energy"] == pytest.approx(results["energy_short"] + results["energy_long"], rel=1e-14)
    assert results["energy_long"] != 0
    for name in ("forces", "stress", "charges"):
        assert results[name].dtype == np.float64
    assert results["forces"].shape == (16, 3)
    assert results["stress"].shape == (6,)
    np.testing.assert_allclose(results["charges"], np.where(atoms.numbers == 11, 0.8, -0.8))


def test_forces_and_stress_are_slopes_of_the_energy(calculator: LRCalculator, atoms: Atoms) -> None:
    atoms.calc = calculator
    some = [0, 3, 10]
    forces = calculate_numerical_forces(atoms, eps=1e-3, iatoms=some)
    np.testing.assert_allclose(atoms.get_forces()[some], forces, atol=DIFFERENCE_TOLERANCE)
    stress = calculate_numerical_stress(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_stress(), stress, atol=DIFFERENCE_TOLERANCE)
    assert np.abs(stress).max() > 1e-3


def test_pressure_has_the_sign_of_ase(atoms: Atoms) -> None:
    atoms.calc = LRCalculator(small_model())
    energies = []
    for scale in (0.999, 1.001):
        squeezed = atoms.copy()
        squeezed.set_cell(atoms.cell.array * scale, scale_atoms=True)
        squeezed.calc = atoms.calc
        energies.append(squeezed.get_potential_energy())
    slope = (energies[1] - energies[0]) / (atoms.get_volume() * (1.001**3 - 0.999**3))
    assert atoms.get_stress()[:3].mean() == pytest.approx(slope, rel=1e-4)


def test_float32(atoms: Atoms) -> None:
    atoms.calc = LRCalculator(small_model(), dtype="float32")
    assert atoms.calc.model.short.readout.last.weight.dtype == torch.float32
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    atoms.calc = LRCalculator(small_model())
    assert energy != atoms.get_potential_energy()
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=SINGLE_TOLERANCE)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=SINGLE_TOLERANCE)
    np.testing.assert_allclose(stress, atoms.get_stress(), atol=SINGLE_TOLERANCE)


def test_a_file_and_a_model_give_the_same(tmp_path: Path, atoms: Atoms) -> None:
    path = save_model(tmp_path / "m.pt")
    energies = []
    for model in (path, str(path), small_model()):
        atoms.calc = LRCalculator(model)
        energies.append(atoms.get_potential_energy())
    assert len(set(energies)) == 1


# --- when it computes


def test_nothing_is_computed_twice(calculator: LRCalculator, atoms: Atoms) -> None:
    atoms.calc = calculator
    calls = counted(calculator)
    for _ in range(2):
        atoms.get_potential_energy()
        atoms.get_forces()
    assert [call["stress"] for call in calls] == [False]
    for _ in range(2):
        atoms.get_stress()
        atoms.get_forces()
        atoms.get_potential_energy()
    assert [call["stress"] for call in calls] == [False, True]


@pytest.mark.parametrize("change", ["positions", "cell", "numbers", "pbc", "charge"])
def test_every_change_is_noticed(change: str, atoms: Atoms) -> None:
    calculator = LRCalculator(small_model("none" if change == "pbc" else "coulomb", neutrality="shift"))
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    calls = counted(calculator)
    if change == "positions":
        atoms.positions[3, 1] += 1e-6
    elif change == "cell":
        atoms.set_cell(atoms.cell.array * 1.01)
    elif change == "numbers":
        atoms.numbers[[0, 1]] = atoms.numbers[[1, 0]]
    elif change == "pbc":
        atoms.pbc = [True, True, False]
    else:
        atoms.info["charge"] = 1.0
    after = atoms.get_potential_energy()
    assert len(calls) == 1
    assert after != before
    other = atoms.copy()
    other.calc = LRCalculator(small_model("none" if change == "pbc" else "coulomb", neutrality="shift"))
    assert other.get_potential_energy() == after


def test_two_crystals_share_a_calculator(calculator: LRCalculator) -> None:
    one, other = rock_salt(seed=1), rock_salt(seed=2)
    one.calc = other.calc = calculator
    energies = [one.get_potential_energy(), other.get_potential_energy(), one.get_potential_energy()]
    assert energies[0] == energies[2] != energies[1]


def test_atoms_are_left_as_they_are(calculator: LRCalculator, atoms: Atoms) -> None:
    before = atoms.copy()
    atoms.calc = calculator
    atoms.get_stress()
    forces = atoms.get_forces()
    assert atoms == before
    assert atoms.info == before.info
    assert atoms.arrays.keys() == before.arrays.keys()
    forces += 1.0  # what is handed out is a copy
    assert np.abs(atoms.get_forces() - forces).min() > 0.5


def test_whole_cells_make_no_difference(calculator: LRCalculator, atoms: Atoms) -> None:
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.positions += np.random.default_rng(0).integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-10)


def test_the_model_is_not_trained_by_using_it(calculator: LRCalculator, atoms: Atoms) -> None:
    atoms.calc = calculator
    atoms.get_stress()
    assert all(p.grad is None and not p.requires_grad for p in calculator.model.parameters())


# --- at work in ASE


def test_relaxation_of_positions_and_cell(calculator: LRCalculator, atoms: Atoms) -> None:
    atoms.calc = calculator
    energy, volume = atoms.get_potential_energy(), atoms.get_volume()
    optimizer = BFGS(FrechetCellFilter(atoms), logfile=None)
    optimizer.run(fmax=1e-3, steps=6)
    assert atoms.get_potential_energy() < energy
    assert atoms.get_volume() != volume


def test_total_energy_is_conserved(atoms: Atoms) -> None:
    atoms.calc = LRCalculator(small_model())
    rng = np.random.default_rng(0)
    atoms.set_momenta(rng.normal(size=(16, 3)) * np.sqrt(atoms.get_masses()[:, None] * units.kB * 100.0))
    start, energies = atoms.get_total_energy(), []
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    dynamics.run(80)
    exchanged = abs(atoms.get_kinetic_energy() - 16 * 1.5 * units.kB * 100.0) / 16
    drift = np.abs(np.array(energies) - start).max() / 16
    assert drift < DRIFT
    assert exchanged > 100 * drift  # it moved


def test_one_atom_in_its_cell() -> None:
    atoms = bulk("Na", "sc", a=4.5)
    atoms.calc = LRCalculator(small_model())
    assert np.isfinite(atoms.get_potential_energy())
    np.testing.assert_allclose(atoms.get_forces(), 0.0, atol=1e-12)


@pytest.mark.parametrize("pbc", [[True, True, False], [False] * 3], ids=str)
def test_slabs_and_molecules(pbc: list[bool], atoms: Atoms) -> None:
    atoms.calc = LRCalculator(small_model())
    crystal = atoms.get_potential_energy()
    atoms.pbc = pbc
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    assert abs(energy - crystal) > 0.1
    some = [0, 7]
    numerical = calculate_numerical_forces(atoms, eps=1e-3, iatoms=some)
    np.testing.assert_allclose(forces[some], numerical, atol=DIFFERENCE_TOLERANCE)
    cell = atoms.cell.array
    cell[[not flag for flag in pbc]] *= 3.0
    atoms.set_cell(cell)
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-9)
    with pytest.raises(StructureError, match="stress is defined only for a crystal that is periodic"):
        atoms.get_stress()


# --- refusals


def test_partly_periodic_crystals(atoms: Atoms) -> None:
    atoms.pbc = [True, False, False]
    atoms.calc = LRCalculator(small_model())
    with pytest.raises(StructureError, match=r"pbc = \[True, False, False\]: a chain, .* is not supported"):
        atoms.get_potential_energy()
    atoms.calc = LRCalculator(small_model("none"))
    assert np.isfinite(atoms.get_potential_energy())
    with pytest.raises(StructureError, match="stress is defined only for a crystal that is periodic"):
        atoms.get_stress()


def test_unknown_element(calculator: LRCalculator, atoms: Atoms) -> None:
    atoms.calc = calculator
    atoms.get_potential_energy()
    atoms.symbols[5] = "K"
    for _ in range(2):  # the numbers of the crystal before must not be handed out for this one
        with pytest.raises(UnknownElementError, match=r"element K \(atom 5\) is not known to the model.* Na, Cl"):
            atoms.get_potential_energy()
    atoms.symbols[5] = "Na"
    assert np.isfinite(atoms.get_potential_energy())


def test_broken_geometry_and_charge(calculator: LRCalculator, atoms: Atoms) -> None:
    atoms.calc = calculator
    atoms.positions[2] = np.nan
    with pytest.raises(StructureError, match="the position of atom 2 is not a finite number"):
        atoms.get_forces()
    atoms = rock_salt()
    atoms.calc = calculator
    atoms.positions[1] = atoms.positions[0] + 0.01
    with pytest.raises(StructureError, match="atoms 0 and 1 are"):
        atoms.get_forces()
    atoms = rock_salt()
    atoms.calc = calculator
    atoms.info["charge"] = "plus"
    with pytest.raises(DataError, match="charge = 'plus' is not a number"):
        atoms.get_forces()


def test_arguments(tmp_path: Path) -> None:
    for dtype in ("float16", "double"):
        with pytest.raises(ConfigError, match=f"dtype = '{dtype}' is not known; use float64 or float32"):
            LRCalculator(small_model(), dtype=dtype)
    for model in (small_model(), save_model(tmp_path / "m.pt")):
        with pytest.raises(ConfigError, match="device 'tpu' is not known"):
            LRCalculator(model, device="tpu")
    with pytest.raises(ModelFileError, match="no such file"):
        LRCalculator(tmp_path / "nowhere.pt")
    with pytest.raises(TypeError, match="dytpe"):
        LRCalculator(small_model(), dytpe="float32")  # type: ignore[call-arg]


@pytest.mark.gpu
def test_on_a_gpu(atoms: Atoms) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    results = []
    for device in ("cpu", "cuda"):
        model: Potential = small_model()
        atoms.calc = LRCalculator(model, device=device)
        atoms.get_stress()
        results.append(atoms.calc.results)
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-9, atol=1e-10, err_msg=name)
