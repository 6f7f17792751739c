"""An ensemble is the mean of its members, its uncertainties are their spread, and its file holds them all."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError

from lrpot import LRCalculator, load, predict
from lrpot.charge_scale import errors_along_scale
from lrpot.data.readers import to_structure
from lrpot.ensemble import Calibration, Ensemble
from lrpot.errors import ConfigError, ModelFileError
from lrpot.evaluation import evaluate_structures
from lrpot.model_file import ModelInfo, save
from lrpot.prediction import write_predictions
from lrpot.structure import collate
from tests.helpers_cli import rock_salt, small_model, write_crystals
from tests.unit.training_data import ionic_rows

SEEDS = (0, 1, 2, 3)
SAME = 1e-12  # relative and in eV, eV/A: sums in another order, in float64
FACTORS = {"energy": 3.0, "forces": 2.0}


def members(form: str = "coulomb") -> list[object]:
    return [small_model(form, seed=seed) for seed in SEEDS]


@pytest.fixture(params=["coulomb", "none"])
def ensemble(request: pytest.FixtureRequest) -> Ensemble:
    return Ensemble(members(request.param)).eval()


# --- numbers


def test_results_are_means_over_single_calculators(ensemble: Ensemble) -> None:
    atoms, results = rock_salt(), []
    for model in [*ensemble.members, ensemble]:
        atoms.calc = LRCalculator(model)
        atoms.get_stress()
        results.append(atoms.calc.results)
    *single, mean = results
    for name, value in mean.items():
        if name.endswith("_uncertainty"):
            continue
        expected = np.mean([one[name] for one in single], axis=0)
        np.testing.assert_allclose(value, expected, rtol=SAME, atol=SAME, err_msg=name)
    assert mean.keys() == single[0].keys() | {"energy_uncertainty", "forces_uncertainty"}
    energies = np.array([one["energy"] for one in single])
    forces = np.array([one["forces"] for one in single])
    assert mean["energy_uncertainty"] == pytest.approx(np.std(energies, ddof=1) / 16, rel=1e-9)
    covariance = np.einsum("mia,mib->iab", forces - forces.mean(axis=0), forces - forces.mean(axis=0)) / (
        len(SEEDS) - 1
    )
    np.testing.assert_allclose(mean["forces_uncertainty"], np.sqrt(np.trace(covariance, axis1=1, axis2=2)), rtol=1e-9)
    assert mean["forces_uncertainty"].min() > 1e-3


def test_forces_are_the_slope_of_the_mean_energy(ensemble: Ensemble) -> None:
    atoms = rock_salt()
    atoms.calc = LRCalculator(ensemble)
    force, step = atoms.get_forces()[3, 1], 1e-4
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[3, 1] += sign * step
        moved.calc = atoms.calc
        energies.append(moved.get_potential_energy())
    assert force == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=1e-6)


def test_uncertainties_turn_with_the_crystal_and_do_not_grow_with_it() -> None:
    """Of equal cells side by side, energy per atom and forces are as uncertain as of one."""
    ensemble = Ensemble(members()).eval()
    atoms = rock_salt()
    turned, twice = atoms.copy(), atoms.repeat((2, 1, 1))
    turned.rotate(37.0, (1, 2, 3), rotate_cell=True)
    found = [ensemble(to_structure(a, ensemble.cutoff)) for a in (atoms, turned, twice)]
    for other, forces in ((found[1], found[1]["forces_uncertainty"]), (found[2], found[2]["forces_uncertainty"][:16])):
        torch.testing.assert_close(other["energy_uncertainty"], found[0]["energy_uncertainty"], rtol=1e-8, atol=0)
        torch.testing.assert_close(forces, found[0]["forces_uncertainty"], rtol=1e-8, atol=0)


def test_a_batch_gives_what_its_structures_give(ensemble: Ensemble) -> None:
    structures = [to_structure(rock_salt(n, seed=n), ensemble.cutoff) for n in (2, 1, 3)]
    batch = ensemble(collate(structures), stress=True)
    single = [ensemble(structure, stress=True) for structure in structures]
    for name, value in batch.items():
        torch.testing.assert_close(value, torch.cat([one[name] for one in single]), rtol=1e-10, atol=1e-10)


def test_calibration_multiplies_the_spread() -> None:
    plain, scaled = Ensemble(members()), Ensemble(members(), Calibration(FACTORS, 7))
    structure = to_structure(rock_salt(), plain.cutoff)
    one, other = plain(structure), scaled(structure)
    for name, value in one.items():
        factor = {"energy_uncertainty": 3.0, "forces_uncertainty": 2.0}.get(name, 1.0)
        torch.testing.assert_close(other[name], factor * value, rtol=1e-14, atol=0)


def test_members_of_other_cutoffs_and_kinds(make_potential, random_crystal) -> None:
    """Each sees edges up to its own cutoff; what only some have is left out, and of charges only the first channel
    is common."""
    models = [
        make_potential("coulomb", cutoff=4.0, channels=2),
        make_potential("coulomb", cutoff=5.0, seed=1),
        make_potential("coulomb", cutoff=4.0, charges="environment", seed=2),
    ]
    ensemble = Ensemble(models)
    assert ensemble.cutoff == 5.0
    longest = []
    for model in models:
        model.short.backbone.register_forward_pre_hook(
            lambda _, inputs: longest.append(inputs[1].norm(dim=1).max().item())
        )
    found = ensemble(random_crystal(0, cutoff=5.0), stress=True)
    assert [length < model.cutoff for length, model in zip(longest, models, strict=True)] == [True] * 3
    assert longest[1] > 4.5
    single = [model(random_crystal(0, cutoff=model.cutoff), stress=True) for model in models]
    for name in ("energy", "energy_short", "energy_long", "forces", "stress"):
        expected = torch.stack([one[name] for one in single]).mean(dim=0)
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-10)
    charges = torch.stack([one["charges"][:, 0] for one in single]).mean(dim=0)
    torch.testing.assert_close(found["charges"], charges[:, None], rtol=1e-12, atol=0)
    mixed = Ensemble([*models, make_potential("none")])(random_crystal(0, cutoff=5.0))
    assert "charges" not in mixed
    assert mixed["energy_long"].item() == pytest.approx(3 / 4 * found["energy_long"].item(), rel=1e-10)


def test_the_graph_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrpot.interfaces import ase as interface

    made = []
    monkeypatch.setattr(interface, "to_structure", lambda *a, **k: made.append(1) or to_structure(*a, **k))
    atoms = rock_salt()
    atoms.calc = LRCalculator(Ensemble(members()))
    atoms.get_forces()
    assert len(made) == 1


def test_the_batch_is_left_as_it_is(make_potential, random_crystal) -> None:
    ensemble = Ensemble([make_potential(cutoff=4.0), make_potential(cutoff=5.0, seed=1)])
    structure = random_crystal(0, cutoff=5.0)
    before = copy.deepcopy(structure)
    ensemble(structure, stress=True)
    assert structure.keys() == before.keys()
    for name in ("positions", "cell", "edge_index", "edge_shift"):
        assert torch.equal(structure[name], before[name]), name


# --- where it is used


def test_properties_of_a_calculator(tmp_path: Path) -> None:
    atoms = rock_salt()
    atoms.calc = LRCalculator(save(Ensemble(members()), tmp_path / "m.pt"))
    energy, forces = (atoms.calc.get_property(f"{name}_uncertainty", atoms) for name in ("energy", "forces"))
    assert isinstance(energy, float)
    assert forces.shape == (16,)
    single = LRCalculator(small_model())
    for name in ("energy_uncertainty", "forces_uncertainty"):
        assert name not in single.implemented_properties
        with pytest.raises(PropertyNotImplementedError):
            single.get_property(name, atoms)


def test_predictions_have_uncertainties(tmp_path: Path) -> None:
    import ase.io

    path = write_crystals(tmp_path / "crystals.extxyz")
    for model in (Ensemble(members()), small_model()):
        predictions = predict(model, path)
        written = ase.io.read(write_predictions(predictions, tmp_path / "p.extxyz"), ":")
        for prediction, atoms in zip(predictions, written, strict=True):
            if len(model.members) == 1:
                assert prediction.energy_uncertainty is prediction.forces_uncertainty is None
                assert "energy_uncertainty" not in atoms.info
                assert "force_uncertainty" not in atoms.arrays
                continue
            expected = model(to_structure(prediction.row.atoms, model.cutoff))
            assert prediction.energy_uncertainty == pytest.approx(expected["energy_uncertainty"].item(), rel=1e-9)
            np.testing.assert_allclose(prediction.forces_uncertainty, expected["forces_uncertainty"], rtol=1e-9)
            assert atoms.info["energy_uncertainty"] == pytest.approx(prediction.energy_uncertainty, rel=1e-6)
            np.testing.assert_allclose(atoms.arrays["force_uncertainty"], prediction.forces_uncertainty, atol=1e-7)


def test_evaluation_has_an_uncertainty_beside_every_error() -> None:
    structures = [to_structure(atoms, 4.0) for atoms in ionic_rows(3, stress=True)]
    del structures[1]["forces"]
    ensemble = Ensemble(members())
    found = evaluate_structures(ensemble, structures)
    assert found.uncertainty.keys() == {"energy", "forces"}
    for name, value in found.uncertainty.items():
        assert value.shape == found.predicted[name].shape
    expected = ensemble(collate([structures[0], structures[2]]))["forces_uncertainty"]
    sums = (found.uncertainty["forces"].reshape(-1, 3) ** 2).sum(dim=1).sqrt()
    torch.testing.assert_close(sums, expected, rtol=1e-9, atol=0)
    assert evaluate_structures(small_model(), structures).uncertainty == {}


def test_parts_of_the_energy_are_means_too() -> None:
    structures = [to_structure(atoms, 4.0) for atoms in ionic_rows(2)]
    ensemble = Ensemble(members())
    for n, member in enumerate(ensemble.members):
        member.short.offset[11] = -float(n)
    found = evaluate_structures(ensemble, structures)
    single = [evaluate_structures(member, structures) for member in ensemble.members]
    for name in ("energy_long", "energy_network", "charges"):
        expected = torch.stack([getattr(one, name) for one in single]).mean(dim=0)
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-10, atol=1e-10)


def test_the_scale_of_the_charges_of_all_members() -> None:
    """L(s) of an ensemble is the error that it has once the charges of every member are multiplied by s."""
    structures = [to_structure(atoms, 4.0) for atoms in ionic_rows(3)]
    ensemble = Ensemble(members())
    along = errors_along_scale(ensemble, structures, evaluate_structures(ensemble, structures))["forces"]
    for member in ensemble.members:
        member.long.charges.set_values({11: 1.1 * 0.8, 17: -1.1 * 0.8})
    found = evaluate_structures(ensemble, structures).errors()["forces"]["rmse"]
    assert along.rmse(1.1) == pytest.approx(found, rel=1e-9)


def test_one_network_is_not_to_be_had_of_it() -> None:
    ensemble = Ensemble(members())
    for part in ("short", "long"):
        with pytest.raises(ConfigError, match=r"^an ensemble of 4 models has not one .*give the file of one of them"):
            getattr(ensemble, part)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ensemble.nothing


# --- what is refused


def test_members_that_do_not_belong_together(make_potential) -> None:
    with pytest.raises(ConfigError, match="an ensemble of 1 model has no spread; give two or more"):
        Ensemble([small_model()])
    with pytest.raises(ConfigError, match="models 0 and 2 of the ensemble are the same"):
        Ensemble([small_model(), small_model(seed=1), small_model()])
    with pytest.raises(
        ConfigError, match=r"model 1 of the ensemble knows the elements \[3, 9\], model 0 knows \[11, 17\]"
    ):
        Ensemble([make_potential(), make_potential(elements=(3, 9))])
    other = small_model(seed=1)
    other.info.units = {**other.info.units, "energy": "Ha"}
    with pytest.raises(ConfigError, match=r"model 1 of the ensemble has the units .*join models of the same units"):
        Ensemble([small_model(), other])


@pytest.mark.parametrize(
    "wrong",
    [({"energy": 0.0}, 3), ({"energy": float("nan")}, 3), ({"forces": float("inf")}, 3), ({"stress": 1.0}, 3), ({}, 0)],
    ids=str,
)
def test_impossible_calibrations(wrong: tuple[dict[str, float], int]) -> None:
    with pytest.raises(ValueError, match="factors must be of energy and forces"):
        Calibration(*wrong)


# --- files


def test_the_file_brings_back_the_same_numbers(ensemble: Ensemble, tmp_path: Path) -> None:
    ensemble.calibration = Calibration(FACTORS, 7)
    path = save(ensemble, tmp_path / "m.pt")
    again = load(path)
    assert isinstance(again, Ensemble)
    assert not again.training
    assert again.calibration == ensemble.calibration
    assert [member.info for member in again.members] == [member.info for member in ensemble.members]
    assert isinstance(again.members[0].info, ModelInfo)
    structure = to_structure(rock_salt(), ensemble.cutoff)
    one, other = ensemble(structure, stress=True), again(structure, stress=True)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    assert save(again, tmp_path / "n.pt").read_bytes() == path.read_bytes()


def test_precision_of_all_members(tmp_path: Path) -> None:
    again = load(save(Ensemble(members()), tmp_path / "m.pt"), dtype=torch.float32)
    assert {member.short.readout.last.weight.dtype for member in again.members} == {torch.float32}


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = save(Ensemble(members("none")), tmp_path / "m.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    for length in [*range(0, len(content), len(content) // 20), len(content) - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"cut\.pt: "):
            load(cut)


def test_a_member_without_info_is_not_saved(tmp_path: Path) -> None:
    ensemble = Ensemble(members("none"))
    ensemble.members[2].info = None
    with pytest.raises(ModelFileError, match=r"set model\.info"):
        save(ensemble, tmp_path / "m.pt")
    assert not (tmp_path / "m.pt").exists()
