"""Stages, baseline, loss scales, schedules and warnings of a fit."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write
from torch_geometric.data import Batch

from lrpot import fit, load
from lrpot.build import POOR_SUM, build_potential
from lrpot.config import FitConfig, make_config
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError, DataError, TrainingError
from lrpot.evaluation import evaluate_structures
from lrpot.structure import Structure, collate, collate_with_gaps
from lrpot.training.baseline import composition, fit_baseline, relative_step, residual_scales, store_known
from lrpot.training.batches import EpochShuffle
from lrpot.training.epochs import EpochModule, Term
from lrpot.training.module import StageModule
from lrpot.training.parallel import ALONE
from lrpot.training.stages import Stage, plan
from tests.unit.training_data import CHARGE, SMALL, ionic_rows, write_ionic_rows


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    return [to_structure(atoms, 4.0) for atoms in ionic_rows(10, stress=True)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ionic_rows(tmp_path_factory.mktemp("data") / "rows.extxyz", n=16, stress=True)


def config(**settings: object) -> FitConfig:
    return make_config(None, SMALL | {name.replace("__", "."): value for name, value in settings.items()})


@pytest.mark.parametrize(
    ("settings", "trained", "frozen"),
    [
        ({"training__schedule": "published"}, ["short", "long", "long+short"], ["", "short", ""]),
        ({"training__schedule": "physical-start"}, ["short", "long", "long+short"], ["long", "short", ""]),
        ({"training__schedule": "physics-first"}, ["long", "short", "long+short"], ["short", "long", ""]),
        ({"training__schedule": "long-range-only"}, ["long"], ["short"]),
        ({"training__stages": 1}, ["long+short"], [""]),
        ({"model__kernel__form": "none"}, ["short"], [""]),
        ({"model__kernel__form": "free"}, ["short", "long", "long+short"], ["", "short", ""]),
    ],
)
def test_plan(settings: dict[str, object], trained: list[str], frozen: list[str]) -> None:
    stages = plan(config(**settings))
    assert ["+".join(sorted(stage.trained)) for stage in stages] == trained
    assert ["+".join(sorted(stage.frozen)) for stage in stages] == frozen
    assert stages[0].baseline


def test_baseline_of_additive_energies_is_exact(structures: list[Structure]) -> None:
    """Energies that are sums over atoms leave nothing; elements in different ratios are told apart."""
    model = build_potential(config().model, [11, 17])
    rows = []
    for n, structure in enumerate(structures[:4]):
        part = to_structure(ionic_rows(1)[0][: 10 + n], 4.0)
        counts = [(part.numbers == z).sum() for z in (11, 17)]
        part.energy = torch.tensor([2.5 * counts[0] - 1.25 * counts[1]], dtype=torch.float64)
        part.forces = structure.forces[: part.num_nodes]
        rows.append(part)
    store_known(model, rows, set())
    fit_baseline(model, rows)
    assert model.short.offset[[11, 17]].tolist() == pytest.approx([2.5, -1.25], abs=1e-10)
    assert model.short.offset[1:11].abs().max() == 0
    forces = torch.cat([row.forces for row in rows])
    assert float(model.short.scale) == pytest.approx(float((forces**2).mean().sqrt()), rel=1e-12)


def test_known_parts_are_the_frozen_predictions(structures: list[Structure]) -> None:
    model = build_potential(config().model, [11, 17])
    model.long.charges.set_values({11: 0.5, 17: -0.5})
    store_known(model, structures, {"long"})
    output = model(collate(structures), stress=True, parts={"long"})
    known = collate(structures)
    for label in ("energy", "forces", "stress"):
        torch.testing.assert_close(known[f"known_{label}"], output[label], rtol=1e-12, atol=1e-12)


def test_residual_scales_and_relative_step(structures: list[Structure]) -> None:
    model = build_potential(config().model, [11, 17])
    model.long.charges.set_values({11: CHARGE, 17: -CHARGE})
    store_known(model, structures, {"long"})
    scales = residual_scales(structures)
    forces = torch.cat([s.forces - s.known_forces for s in structures])
    assert scales["forces"] == pytest.approx(float((forces**2).mean().sqrt()), rel=1e-12)
    assert set(scales) == {"energy", "forces", "stress"}
    long_range = torch.cat([s.known_forces for s in structures])
    expected = scales["forces"] / float((long_range**2).mean().sqrt())
    assert expected < 1
    assert relative_step(model, structures) == pytest.approx(expected, rel=1e-12)
    without_forces = [s.clone() for s in structures]
    for structure in without_forces:
        del structure.forces
    left, size = (
        torch.stack([energy / s.num_nodes for s, energy in zip(structures, energies, strict=True)]).std(correction=0)
        for energies in ([s.energy - s.known_energy for s in structures], [s.known_energy for s in structures])
    )
    assert relative_step(model, without_forces) == pytest.approx(float(left / size), rel=1e-9)
    model.long.charges.set_values({11: 1e-5, 17: -1e-5})
    assert relative_step(model, structures) == 1.0


def test_energies_count_within_bounds_that_forces_set(structures: list[Structure]) -> None:
    """Between displacements of 0.01 and 0.2 A, however far apart the energies lie."""
    store_known(build_potential(config().model, [11, 17]), structures, set())
    for spread, expected in ((0.0, 0.01), (0.02, 0.02), (9.0, 0.2)):
        forces = residual_scales(structures)["forces"]
        for n, structure in enumerate(structures):
            structure.energy = torch.full_like(structure.energy, (-1) ** n * spread * forces * structure.num_nodes)
        assert residual_scales(structures)["energy"] == pytest.approx(expected * forces, rel=1e-9)


def test_stage_trains_only_its_part() -> None:
    model = build_potential(config().model, [11, 17])
    training = config().training
    StageModule(model, Stage("x", frozenset({"long"}), frozenset({"short"})), training, [], {"energy": 1.0}, 1e-3)
    assert not any(p.requires_grad for p in model.short.parameters())
    assert all(p.requires_grad for p in model.long.parameters())


def test_what_offsets_take_up_is_taken_off_a_batch(structures: list[Structure]) -> None:
    """Equal compositions lose their mean; a single structure keeps all."""
    model = build_potential(config().model, [11, 17])
    module = StageModule(model, plan(config())[0], config().training, [], {"energy": 1.0}, 1e-3)
    batch = collate(structures[:4])
    energies = torch.tensor([1.0, 2.0, -4.0, 3.0], dtype=torch.float64)
    expected = (energies - energies.mean()) * (4 / 3) ** 0.5
    torch.testing.assert_close(module._without_offsets(energies, batch), expected)
    torch.testing.assert_close(module._without_offsets(energies + 7.0, batch), expected)
    single = collate(structures[:1])
    torch.testing.assert_close(module._without_offsets(energies[:1], single), energies[:1])


def test_what_offsets_take_up_of_several_compositions_is_a_ridge_regression() -> None:
    """Beside the normal equations with the mean free and a penalty of one on what differs by element."""
    model = build_potential(config().model, [11, 17])
    module = StageModule(model, plan(config())[0], config().training, [], {"energy": 1.0}, 1e-3)
    kept = ([0, 1, 2], [0, 1], [0, 8], [1, 2, 3, 8, 9], list(range(16)))
    batch = collate([to_structure(ionic_rows(1)[0][atoms], 4.0) for atoms in kept])
    shares = torch.stack([composition(model, to_structure(ionic_rows(1)[0][atoms], 4.0))[0] for atoms in kept])
    assert shares.std(dim=0).min() > 0.1
    energies = torch.tensor([1.0, 2.0, -4.0, 3.0, 0.5], dtype=torch.float64)
    known = torch.cat([torch.ones(5, 1, dtype=torch.float64), shares - shares.mean(dim=0)], dim=1)
    penalty = torch.diag(torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64))
    left = torch.eye(5, dtype=torch.float64) - known @ torch.linalg.solve(known.T @ known + penalty, known.T)
    expected = left @ energies * (5.0 / left.square().sum()).sqrt()
    torch.testing.assert_close(module._without_offsets(energies, batch), expected)


def test_the_energy_of_the_only_defect_of_a_batch_stays(structures: list[Structure]) -> None:
    """One ion less in one of four cells: an offset could explain its energy alone, and must not."""
    model = build_potential(config().model, [11, 17])
    module = StageModule(model, plan(config())[0], config().training, [], {"energy": 1.0}, 1e-3)
    vacancy = to_structure(ionic_rows(1)[0][1:], 4.0)
    energies = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    left = module._without_offsets(energies, collate([*structures[:3], vacancy]))
    assert left[3] - left[:3].mean() > 0.99  # of 1 by which they differ, times the scaling


def test_offsets_follow_the_charges(structures: list[Structure]) -> None:
    """Before each validation they are what fits best, here exactly: the energies differ by a constant per atom."""
    model = build_potential(config().model, [11, 17])
    for structure in structures:
        structure.known_energy = structure.energy - 0.25 * structure.num_nodes
    module = StageModule(model, plan(config())[0], config().training, structures, {"energy": 1.0}, 1e-3)
    module.on_validation_epoch_start()
    assert model.short.offset[[11, 17]].tolist() == pytest.approx([0.25, 0.25], abs=1e-12)


def test_offsets_are_fitted_to_rows_from_all_over(structures: list[Structure], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the order of compositions: vacancies last."""
    monkeypatch.setattr("lrpot.training.module.OFFSETS_FROM", 4)
    model = build_potential(config().model, [11, 17])
    rows = [*structures[:8], *(to_structure(ionic_rows(1)[0][n:], 4.0) for n in (1, 3, 5, 7))]
    for row in rows:
        left = (row.numbers == 11).sum() * 0.5 - (row.numbers == 17).sum() * 0.125
        row.energy, row.known_energy = left.reshape(1).double(), torch.zeros(1, dtype=torch.float64)
    module = StageModule(model, plan(config())[0], config().training, rows, {"energy": 1.0}, 1e-3)
    module.on_validation_epoch_start()
    assert model.short.offset[[11, 17]].tolist() == pytest.approx([0.5, -0.125], abs=1e-9)


def test_total_charge_weight_adds_what_the_charges_lack_to_the_total_charge(structures: list[Structure]) -> None:
    """Two cells of eight Na and eight Cl of which one is said to be charged, against sums by hand."""
    weighted = config(model__charges__kind="environment", training__total_charge_weight=3.0)
    model = build_potential(weighted.model, [11, 17])
    model.long.charges.set_values({11: 0.5, 17: -0.4})
    batch = [copy.copy(structure) for structure in structures[:2]]
    batch[1].total_charge = torch.tensor([-1.0], dtype=torch.float64)
    store_known(model, batch, set())
    loss = {}
    for name, training in (("without", config().training), ("with", weighted.training)):
        module = StageModule(model, plan(weighted)[-1], training, [], {"energy": 1.0}, 1e-3)
        loss[name], _ = module._loss(collate(batch), create_graph=True)
    expected = 3.0 * 0.5 * (0.8**2 + 1.8**2)
    assert (loss["with"] - loss["without"]).item() == pytest.approx(expected, rel=1e-9)
    (slope,) = torch.autograd.grad(loss["with"] - loss["without"], [model.long.charges.values])
    # d/dq of 3/2 (8 (q_Na + q_Cl) - Q)^2, summed over both
    assert slope.tolist() == pytest.approx([3.0 * 8 * (0.8 + 1.8)] * 2, rel=1e-9)


def test_total_charge_weight_needs_charges() -> None:
    with pytest.raises(ConfigError, match=r"total_charge_weight needs charges, but kernel.form is none"):
        config(model__kernel__form="none", training__total_charge_weight=1.0)


def test_rows_without_a_label_leave_the_others_in_the_loss(structures: list[Structure]) -> None:
    """A batch in which one row lacks forces has the loss of the forces of the others."""
    model = build_potential(config().model, [11, 17])
    batch = [copy.copy(structure) for structure in structures[:3]]
    store_known(model, batch, set())
    scales = {"energy": 1.0, "forces": 0.1}
    module = StageModule(model, plan(config())[0], config().training, [], scales, 1e-3)
    _, whole = module._loss(collate_with_gaps(batch[1:]), create_graph=False)
    del batch[0]["forces"], batch[0]["known_forces"]
    loss, errors = module._loss(collate_with_gaps(batch), create_graph=False)
    assert errors["forces"] == pytest.approx(whole["forces"], rel=1e-12)
    assert torch.isfinite(loss)
    assert "forces" not in batch[0]


@pytest.mark.parametrize("same_file", [True, False])
def test_rows_of_one_part_are_of_no_other(data: Path, tmp_path: Path, same_file: bool) -> None:
    other = data if same_file else tmp_path / "copy.extxyz"
    if not same_file:
        other.write_bytes(data.read_bytes())
    message = "also data.train" if same_file else f"the same as {data} in data.train"
    with pytest.raises(DataError, match=re.escape(f"{other}: is of data.test, and {message}; errors on rows")):
        fit(data, out=tmp_path / "run", settings=SMALL | {"data.test": str(other)}, verbose=False)
    assert not (tmp_path / "run").exists()


def test_the_size_of_batches_changes_nothing_in_a_validation(structures: list[Structure]) -> None:
    """Rows of other sizes, and a label that one of them lacks: means are over all numbers, however they are shared."""
    model = build_potential(config().model, [11, 17])
    rows = [copy.copy(structures[0]), to_structure(ionic_rows(2, seed=1)[1].repeat((2, 1, 1)), 4.0)]
    rows[1].energy = torch.tensor([-100.0], dtype=torch.float64)
    rows[1].forces = torch.randn(rows[1].num_nodes, 3, dtype=torch.float64)
    rows += [copy.copy(structure) for structure in structures[1:4]]
    store_known(model, rows, set())
    records = []
    for batches in ([rows], [rows[:1], rows[1:]], [[row] for row in rows]):
        scales = {"energy": 1.0, "forces": 0.1, "stress": 0.01}
        module = StageModule(copy.deepcopy(model), plan(config())[0], config().training, rows, scales, 1e-3)
        module.on_validation_epoch_start()
        for batch in batches:
            module.validation_step(collate_with_gaps(batch), 0)
        module.on_validation_epoch_end()
        records.append({name: value for name, value in module.history[0].items() if name != "seconds"})
    assert records[0].keys() == {"epoch", "lr", "loss", "energy", "forces", "stress"}
    assert records[1] == pytest.approx(records[0], rel=1e-10)
    assert records[2] == pytest.approx(records[0], rel=1e-10)


def test_slow_and_steady_improvement_is_one() -> None:
    """Less than `min_improvement` in an epoch, more in several."""
    losses = iter(0.9995**n for n in range(20))

    class Falling(EpochModule):
        def _terms(self, batch: Batch, *, create_graph: bool) -> dict[str, Term]:
            return {"it": Term(torch.tensor(next(losses)), None, 1)}

    model = build_potential(config().model, [11, 17])
    module = Falling(model, "fit", config(training__min_improvement=1e-3).training, ALONE)
    stale = []
    for _ in range(20):
        module.validation_step(Batch(), 0)
        module.averaged.swap_in()
        module.on_validation_epoch_end()
        stale.append(module.stale_epochs)
    assert max(stale) == 2
    assert module.best_loss == module.history[-1]["loss"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_fits_what_a_processor_fits(data: Path, tmp_path: Path) -> None:
    whole = [
        fit(data, out=tmp_path / device, settings=SMALL | {"training.device": device}, verbose=False)
        for device in ("cpu", "cuda")
    ]
    for one, other in zip(*(result.stages for result in whole), strict=True):
        assert other["validation"]["forces"]["mae"] == pytest.approx(one["validation"]["forces"]["mae"], rel=1e-3)


def test_epoch_shuffle_depends_on_seed_and_epoch_only() -> None:
    first, second = EpochShuffle(20, seed=3), EpochShuffle(20, seed=3)
    first.set_epoch(5)
    second.set_epoch(5)
    assert list(first) == list(second)
    second.set_epoch(6)
    assert list(first) != list(second)
    assert sorted(second) == list(range(20))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_stage_two_freezes_the_backbone(data: Path, tmp_path: Path, ema: float) -> None:
    """Charges start wrong, so that stage 2 has something to mend; the backbone stays as stage 1 left it."""
    settings = SMALL | {"model.charges.init": {"Na": 0.5, "Cl": -0.5}, "training.max_epochs": 10, "training.ema": ema}
    fit(data, out=tmp_path / "run", settings=settings, verbose=False)
    before, after = (load(tmp_path / f"run/stages/{n}.pt").state_dict() for n in (1, 2))
    for name, value in before.items():
        assert name.startswith("long.") or name == "short.offset" or torch.equal(value, after[name]), name
    assert not torch.equal(before["long.charges.values"], after["long.charges.values"])


def test_no_stage_ends_worse_than_it_began(data: Path, tmp_path: Path) -> None:
    result = fit(data, out=tmp_path / "run", settings=SMALL, verbose=False)
    for number in range(1, 4):
        entry = json.loads((tmp_path / f"run/stages/{number}.json").read_text())
        losses = [record["loss"] for record in entry["history"]]
        assert min(losses) <= losses[0]
    assert result.stages[0]["title"] == "start"
    assert result.test["forces"]["mae"] > 0


def test_prefit_charges_are_those_of_the_data(data: Path, tmp_path: Path) -> None:
    result = fit(data, out=tmp_path / "run", settings=SMALL, verbose=False)
    assert result.stages[0]["charges"]["Na"] == pytest.approx(CHARGE, abs=0.02)


@pytest.mark.parametrize("schedule", ["published", "physics-first"])
def test_model_after_each_stage_is_whole(data: Path, tmp_path: Path, schedule: str) -> None:
    """The errors that a stage reports are those of the model that it saved, also before charges are switched on."""
    fit(data, out=tmp_path / "run", settings=SMALL | {"training.schedule": schedule}, verbose=False)
    split = json.loads((tmp_path / "run/split.json").read_text())
    rows = [atoms for n, atoms in enumerate(ionic_rows(16, stress=True)) if n in split["valid"]]
    for number in (1, 2, 3):
        entry = json.loads((tmp_path / f"run/stages/{number}.json").read_text())
        model = load(tmp_path / f"run/stages/{number}.pt")
        errors = evaluate_structures(model, [to_structure(atoms, 4.0) for atoms in rows]).errors()
        # float32 network; labels went through a text file
        assert errors["forces"]["mae"] == pytest.approx(entry["validation"]["forces"]["mae"], rel=1e-3)
        assert errors["energy"]["mae"] == pytest.approx(entry["validation"]["energy"]["mae"], rel=1e-3)
    charges = json.loads((tmp_path / "run/stages/1.json").read_text())["charges"]
    assert (charges["Na"] == 0.0) == (schedule == "published")


def test_the_long_range_alone_leaves_the_network_zero(tmp_path: Path) -> None:
    """As for energies that are a sum over wave vectors, without forces."""
    rows = ionic_rows(8)
    for atoms in rows:
        del atoms.calc.results["forces"]
    write(tmp_path / "rows.extxyz", rows)
    alone = {"training.schedule": "long-range-only", "model.charges.init": {"Na": 0.6, "Cl": -0.6}}
    result = fit(tmp_path / "rows.extxyz", out=tmp_path / "run", settings=SMALL | alone, verbose=False)
    start, end = result.stages
    assert end["charges"] != start["charges"]
    assert end["validation"]["energy"]["mae"] < start["validation"]["energy"]["mae"]
    output = result.model(to_structure(rows[0], 4.0), parts={"short"})
    assert output["energy"].item() == 0.0


def test_one_stage_and_other_kernels(data: Path, tmp_path: Path) -> None:
    for n, settings in enumerate(
        (
            {"training.stages": 1},
            {"model.kernel.form": "free", "model.kernel.envelope": 1.0, "model.charges.neutrality": "shift"},
            {"model.kernel.form": "none"},
            {"model.kernel.complement": "none", "model.charges.init": {"Na": 0.5, "Cl": -0.5}},
        )
    ):
        result = fit(data, out=tmp_path / str(n), settings=SMALL | settings, verbose=False)
        assert np.isfinite(result.test["energy"]["mae"])
        assert len(result.stages) == {0: 2, 1: 4, 2: 2, 3: 4}[n]


def test_not_finite_loss_stops_before_the_step_and_names_rows(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = StageModule._loss

    def broken(self: StageModule, batch: object, *, create_graph: bool) -> object:
        value, errors = loss(self, batch, create_graph=create_graph)
        return (value * float("nan") if create_graph and self.current_epoch == 1 else value), errors

    monkeypatch.setattr(StageModule, "_loss", broken)
    with pytest.raises(TrainingError, match=r"not finite in .*, epoch 1, for rows \d+"):
        fit(data, out=tmp_path / "run", settings=SMALL, verbose=False)
    assert (tmp_path / "run/checkpoints/1/newest.ckpt").exists()
    assert not (tmp_path / "run/model.pt").exists()


def test_clash_of_settings_is_told_before_the_directory_is_made(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"leave out .* of the Coulomb sum"):
        fit(data, out=tmp_path / "run", settings=SMALL | {"model.kernel.k_cutoff": 2.0}, verbose=False)
    assert not (tmp_path / "run").exists()


def test_width_of_the_coulomb_kernel() -> None:
    """Where it is given, both halves still make the Coulomb sum, or the cutoffs are said to be too short for it."""
    structure = to_structure(ionic_rows(1)[0], 8.0)
    energies = []
    for sigma in ("auto", 1.5, 1.9):
        model = build_potential(config(model__backbone__cutoff=8.0, model__kernel__sigma=sigma).model, [11, 17])
        assert model.long is not None
        model.long.charges.set_values({11: 1.0, 17: -1.0})
        energies.append(model(structure, parts={"long"})["energy"].item())
    assert energies[1:] == pytest.approx([energies[0]] * 2, rel=POOR_SUM)
    assert energies[1] != energies[2]
    for sigma, complement in ((0.1, "coulomb"), (2.0, "coulomb"), (0.1, "none")):
        settings = config(model__kernel__sigma=sigma, model__kernel__complement=complement)
        with pytest.raises(ConfigError, match=r"leaves out more than 1e-03 .*; choose \d\.\d+ .*, or auto"):
            build_potential(settings.model, [11, 17])
    wide = build_potential(config(model__kernel__sigma=2.0, model__kernel__complement="none").model, [11, 17])
    assert wide.long is not None
    assert wide.long.reciprocal.kernel.prior.sigma == 2.0  # type: ignore[union-attr]


def test_charges_of_zero_are_warned_of(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(data, out=tmp_path / "run", settings=SMALL | {"model.charges.init": "zero", "training.max_epochs": 1})
    assert "charges that are zero stay zero" in capsys.readouterr().err


def test_too_few_structures(tmp_path: Path) -> None:
    path = write_ionic_rows(tmp_path / "one.extxyz", n=1)
    with pytest.raises(DataError, match="too few"):
        fit(path, out=tmp_path / "run", settings=SMALL, verbose=False)
    assert not (tmp_path / "run").exists()
