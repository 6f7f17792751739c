"""Fits that are told of charges, dipoles and Born charges: loss, scales, refusals, reports, collapsed charges."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from lrpot import fit
from lrpot.build import build_potential
from lrpot.charges import CHARGES
from lrpot.config import FitConfig, make_config
from lrpot.console import Console
from lrpot.data.cache import load_graphs
from lrpot.data.graph_builder import GraphSettings
from lrpot.data.graphs import Graphs
from lrpot.data.readers import to_structure
from lrpot.data.shards import write_shard
from lrpot.errors import ConfigError, DataError, StructureError
from lrpot.evaluation import Evaluation, evaluate_structures
from lrpot.model_file import save
from lrpot.potential import Potential
from lrpot.structure import CHARGE_LABELS, Structure, collate_with_gaps
from lrpot.training.baseline import charge_scales, residual_scales, set_start, store_known
from lrpot.training.dataset import read_data
from lrpot.training.module import StageModule
from lrpot.training.stages import Stage, plan
from lrpot.training.summary import charge_sizes, charge_warnings, idle_warnings
from tests.helpers_cli import run_cli, small_model
from tests.unit.test_training import SMALL
from tests.unit.training_data import CHARGE, ionic_rows

LONG = Stage("long", frozenset({"long"}))
WEIGHTS = {"charge_weight": 2.0, "dipole_weight": 3.0, "born_weight": 5.0}


def config(**settings: object) -> FitConfig:
    return make_config(None, SMALL | {name.replace("__", "."): value for name, value in settings.items()})


def crystals(n: int, charge: float = CHARGE) -> list[Atoms]:
    """With charges, and Born charges of a crystal of dielectric constant 4."""
    rows = ionic_rows(n)
    for atoms in rows:
        signs = np.where(atoms.numbers == 11, 1.0, -1.0)
        atoms.arrays["charges"] = charge * signs
        atoms.arrays["born_charges"] = 2.0 * charge * signs[:, None] * np.eye(3).reshape(9)
        atoms.info["dielectric"] = 4.0 * np.eye(3)
    return rows


def molecules(n: int, seed: int = 0) -> list[Atoms]:
    """Squares of two pairs, with energies, forces, and dipoles of charges of 0.7 e."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        atoms = Atoms("NaClNaCl", [[0, 0, 0], [2.8, 0, 0], [2.8, 2.8, 0], [0, 2.8, 0]])
        atoms.positions += 0.3 * rng.normal(size=(4, 3))
        dipole = CHARGE * np.array([1, -1, 1, -1]) @ atoms.positions
        results = {"energy": float(rng.normal()), "forces": rng.normal(size=(4, 3)), "dipole": dipole}
        atoms.calc = SinglePointCalculator(atoms, **results)
        rows.append(atoms)
    return rows


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    return [to_structure(atoms, 4.0) for atoms in [*crystals(2), *molecules(2)]]


def started(kind: str = "embedding", charge: float = 0.5) -> Potential:
    torch.manual_seed(0)
    model = build_potential(config(model__charges__kind=kind).model, [11, 17]).set_precision(torch.float64)
    set_start(model, {11: charge, 17: -charge}, [to_structure(atoms, 4.0) for atoms in molecules(2)])
    if model.long.charges.sees_surroundings:
        torch.nn.init.normal_(model.long.charges.network.last.weight, std=0.1)
    return model


# --- the loss


def test_the_loss_is_the_weighted_square_of_what_is_wrong(structures: list[Structure]) -> None:
    """Rows without a label, here dipoles of crystals and the rest of molecules, do not count."""
    model = started()
    store_known(model, structures, set())
    training = config(**{f"training__{name}": value for name, value in WEIGHTS.items()}).training
    scales = {"charges": 0.1, "dipole": 0.2, "born_charges": 0.3}
    module = StageModule(model, LONG, training, [], scales, 1e-3)
    loss, errors = module._loss(collate_with_gaps(structures), create_graph=True)
    wrong = CHARGE - 0.5
    dipoles = torch.cat([s.dipole for s in structures[2:]]) * wrong / CHARGE
    squares = {"charges": wrong**2, "dipole": float((dipoles**2).mean()), "born_charges": wrong**2 / 3}
    assert errors["charges"] == pytest.approx(wrong)
    assert errors["dipole"] == pytest.approx(float(dipoles.abs().mean()))
    assert errors["born_charges"] == pytest.approx(wrong / 3)
    weights = dict(zip(scales, WEIGHTS.values(), strict=True))
    assert loss.item() == pytest.approx(sum(weights[x] * squares[x] / scales[x] ** 2 for x in scales))
    loss.backward()
    assert bool((model.long.charges.values.grad * torch.tensor([-1.0, 1.0]) > 0).all())


def test_labels_without_a_weight_do_not_count(structures: list[Structure]) -> None:
    assert {getattr(make_config().training, name) for name in WEIGHTS} == {0.0}
    model = started()
    store_known(model, structures, set())
    module = StageModule(model, LONG, config().training, [], {"energy": 1.0, "forces": 1.0}, 1e-3)
    _, errors = module._loss(collate_with_gaps(structures), create_graph=False)
    assert set(errors) == {"energy", "forces"}


def test_scales_are_what_is_left_of_the_labels(structures: list[Structure]) -> None:
    scales = charge_scales(started(), structures, CHARGE_LABELS, {"long"})
    dipoles = torch.cat([s.dipole for s in structures[2:]]) * (CHARGE - 0.5) / CHARGE
    assert scales["charges"] == pytest.approx(CHARGE - 0.5)
    assert scales["dipole"] == pytest.approx(float((dipoles**2).mean().sqrt()))
    assert scales["born_charges"] == pytest.approx((CHARGE - 0.5) / 3**0.5)
    perfect = charge_scales(started(charge=CHARGE), structures, ["charges"], {"long"})
    assert perfect == {"charges": pytest.approx(0.01 * CHARGE)}
    assert charge_scales(started(), structures, CHARGE_LABELS, {"short"}) == {}
    assert charge_scales(started(), structures[2:], ["charges"], {"long"}) == {}
    assert charge_scales(started(), structures, [], {"long"}) == {}


def test_graphs_on_disk_are_fitted_like_structures_in_memory(tmp_path: Path) -> None:
    """Shards hold every label to the bit, and so does what is read from them row by row."""
    rows = [*crystals(2), *molecules(2)]
    memory = [to_structure(atoms, 4.0) for atoms in rows]
    shards = [write_shard(tmp_path / f"{n}.h5", found) for n, found in enumerate((rows[:1], rows[1:]))]
    disk = Graphs([load_graphs(path, GraphSettings(4.0), cache=str(tmp_path / "cache")) for path in shards])
    assert set(CHARGE_LABELS) < disk.fields
    model, training = started(), config(**{f"training__{name}": value for name, value in WEIGHTS.items()}).training
    found = []
    for structures in (memory, disk):
        store_known(model, structures, {"short"})
        scales = residual_scales(structures) | charge_scales(model, structures, CHARGE_LABELS, {"long"})
        module = StageModule(model, LONG, training, structures, scales, 1e-3)
        loss, errors = module._loss(collate_with_gaps(list(structures)), create_graph=False)
        found.append((scales, float(loss), errors))
    assert found[0] == found[1]
    assert set(found[0][0]) == set(found[0][2]) == {"energy", "forces", *CHARGE_LABELS}


def test_fits_of_other_weights_share_their_graphs(tmp_path: Path) -> None:
    """What a loss makes of labels is no matter of the graphs: bad rows for one fit are good ones for another."""
    rows = molecules(8)
    for n in (2, 5):
        rows[n].info["charge"] = 1
    write_shard(tmp_path / "rows.h5", rows)
    settings = {"data__train": str(tmp_path / "rows.h5"), "data__cache": str(tmp_path / "cache")}
    plain = read_data(config(**settings), Console(quiet=True))
    told = read_data(config(**settings, data__skip_bad_rows=True, training__dipole_weight=1.0), Console(quiet=True))
    assert len(list((tmp_path / "cache").glob("*.graphs"))) == 1
    for data, bad in ((plain, set()), (told, {2, 5})):
        kept = [row for part in (data.train, data.valid, data.test) for row in part.rows.tolist()]
        assert set(kept) == set(range(8)) - bad
    with pytest.raises(DataError, match=r"rows.h5, row 2: has a dipole, but a charge of 1 e.*\(1 more bad rows: 5\)"):
        read_data(config(**settings, training__dipole_weight=1.0), Console(quiet=True))


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        pytest.param(
            kind, label, marks=[pytest.mark.slow] if (kind, label) == ("equilibration", "born_charges") else []
        )
        for kind in CHARGES
        for label in CHARGE_LABELS
    ],
)
def test_every_kind_of_charges_learns_from_every_label(kind: str, label: str, structures: list[Structure]) -> None:
    chosen = [copy.copy(s) for s in (structures[2:] if label == "dipole" else structures[:1])]
    if kind == "equilibration" and label == "born_charges":
        chosen = [to_structure(atoms, 4.0) for atoms in molecules(1)]
        chosen[0].born_charges = torch.eye(3).double() * torch.tensor([CHARGE, -CHARGE] * 2)[:, None, None]
    model = started(kind)
    store_known(model, chosen, set())
    training = config(**{f"training__{name}": 1.0 for name in WEIGHTS}).training
    scales = charge_scales(model, chosen, [label], {"long"})
    module = StageModule(model, plan(config())[-1], training, [], scales, 1e-3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss, errors = module._loss(collate_with_gaps(chosen), create_graph=True)
        assert set(errors) == {label}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# --- whole fits


def test_a_fit_is_told_of_charges_and_tells_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = crystals(8, charge=0.9)
    del rows[3].arrays["charges"], rows[5].arrays["born_charges"]
    ase.io.write(tmp_path / "rows.extxyz", rows, format="extxyz")
    settings = SMALL | {"model.charges.init": {"Na": 0.5, "Cl": -0.5}, "training.lr_long": 0.05}
    settings |= {"training.charge_weight": 100.0, "training.born_weight": 100.0, "training.max_epochs": 3}
    result = fit(tmp_path / "rows.extxyz", out=tmp_path / "run", settings=settings)
    shown = capsys.readouterr().out
    assert "charges (e)" in shown
    assert "born_charges (e)" in shown
    start, end = result.stages[0], result.stages[-1]
    assert start["validation"]["charges"]["mae"] == pytest.approx(0.4, abs=1e-6)
    assert end["validation"]["charges"]["mae"] < 0.2
    assert end["validation"]["born_charges"]["mae"] < start["validation"]["born_charges"]["mae"]
    assert start["charge_sizes"]["Na"] == pytest.approx(0.5)
    metrics = (tmp_path / "run/metrics.csv").read_text()
    assert "charges" in metrics.splitlines()[0]
    assert "born_charges" in json.loads((tmp_path / "run/results.json").read_text())["test"]


@pytest.mark.slow
def test_a_fit_of_molecules_to_their_dipoles(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "rows.extxyz", molecules(16), format="extxyz")
    settings = SMALL | {"model.charges.kind": "environment", "model.charges.init": {"Na": 0.2, "Cl": -0.2}}
    # a charge that all atoms have in common makes no dipole
    settings |= {"model.charges.neutrality": "shift"}
    settings |= {"training.dipole_weight": 100.0, "training.lr_long": 0.05, "training.max_epochs": 10}
    result = fit(tmp_path / "rows.extxyz", out=tmp_path / "run", settings=settings, verbose=False)
    errors = [stage["validation"]["dipole"]["mae"] for stage in result.stages]
    assert errors[-1] < 0.3 * errors[0]
    assert result.stages[-1]["charges"]["Na"] == pytest.approx(CHARGE, abs=0.15)


# --- refusals


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_without_charges_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{name} needs charges, but kernel\.form is none"):
        config(model__kernel__form="none", **{f"training__{name}": 1.0})


@pytest.mark.parametrize(
    ("weight", "kind", "rows", "error", "message"),
    [
        ("charge_weight", "embedding", "molecules", DataError, "training.charge_weight is set, but no training row"),
        ("dipole_weight", "embedding", "box", DataError, "row 0: has a dipole, but pbc = [True, True, True]; only"),
        ("dipole_weight", "embedding", "ion", DataError, "row 0: has a dipole, but a charge of 1 e, where it depends"),
        ("born_weight", "equilibration", "crystals", StructureError, "row 0: Born charges of a structure that repeats"),
    ],
)
def test_labels_that_mean_nothing_are_refused(
    weight: str, kind: str, rows: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    found = crystals(4) if rows == "crystals" else molecules(4)
    for atoms in found:
        if rows == "box":
            atoms.set_cell([15.0, 15.0, 15.0])
            atoms.pbc = True
        if rows == "ion":
            atoms.info["charge"] = 1
    ase.io.write(tmp_path / "rows.extxyz", found, format="extxyz")
    settings = {"data__train": str(tmp_path / "rows.extxyz"), "model__charges__kind": kind}
    with pytest.raises(error) as e:
        read_data(config(**settings, **{f"training__{weight}": 1.0}), Console(quiet=True))
    assert message in str(e.value)
    assert "\n" not in str(e.value)
    if rows != "molecules":  # nobody is told of labels that are not used
        assert len(read_data(config(**settings), Console(quiet=True)).train) == 4 - 1


# --- reports


def test_errors_of_charges_dipoles_and_born_charges(structures: list[Structure]) -> None:
    found = evaluate_structures(started(), structures)
    errors = found.errors()
    assert list(found.reference) == ["energy", "forces", *CHARGE_LABELS]
    assert errors["charges"]["mae"] == pytest.approx(CHARGE - 0.5)
    assert errors["charges"]["unit"] == errors["born_charges"]["unit"] == "e"
    assert errors["born_charges"]["max"] == pytest.approx(CHARGE - 0.5)
    assert errors["dipole"]["unit"] == "e A"
    dipoles = torch.cat([s.dipole for s in structures[2:]])
    assert errors["dipole"]["rmse"] == pytest.approx(float((dipoles**2).mean().sqrt()) * (CHARGE - 0.5) / CHARGE)
    assert found.acoustic_sum()["max"] < 1e-12
    assert evaluate_structures(started(), structures[2:]).acoustic_sum() == {}


def test_born_charges_that_equilibrated_charges_cannot_give_are_left_out(structures: list[Structure]) -> None:
    found = evaluate_structures(started("equilibration"), structures)
    assert "born_charges" not in found.reference
    assert set(found.reference) == {"energy", "forces", "charges", "dipole"}


def test_the_command_reports_what_charges_are_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(small_model(), tmp_path / "m.pt")
    ase.io.write(tmp_path / "rows.extxyz", [*crystals(3), *molecules(2)], format="extxyz")
    assert run_cli("evaluate", tmp_path / "m.pt", tmp_path / "rows.extxyz", "--out", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    for words in (
        "dipole (e A)",
        "born_charges (e)",
        "acoustic sum rule: the Born charges of a structure add up to its total charge within",
        "with the network frozen",
        "forces: best with the charges times",
        "it does not give way",
    ):
        assert words in shown
    report = json.loads((tmp_path / "out/evaluation-rows.json").read_text())
    assert report["acoustic_sum"]["max"] < 1e-9
    assert set(report["charge_scale"]) == {"energy", "forces"}
    assert report["charge_scale"]["forces"]["best"] >= 0
    assert (tmp_path / "out/charge-scale-rows.png").is_file()


def test_the_command_says_when_nothing_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(small_model("none"), tmp_path / "m.pt")
    rows = crystals(2)
    for atoms in rows:
        atoms.calc = None
    ase.io.write(tmp_path / "rows.extxyz", rows, format="extxyz")
    assert run_cli("evaluate", tmp_path / "m.pt", tmp_path / "rows.extxyz", "--out", tmp_path / "out") == 1
    assert "no label in it is one that this model predicts" in capsys.readouterr().err


# --- charges that collapsed


def entries(*sizes: float) -> list[dict[str, object]]:
    return [{"stage": n, "charge_sizes": {"Na": size, "Cl": size / 2}} for n, size in enumerate(sizes)]


@pytest.mark.parametrize("kind", CHARGES)
def test_collapsed_charges_are_told_for_every_kind(kind: str) -> None:
    physical = config(model__charges__kind=kind)
    (warning,) = charge_warnings(entries(0.9, 0.9, 0.02), physical)
    assert "collapsed to zero (root mean square Na 0.02000, Cl 0.01000 e; they started at up to 0.90 e)" in warning
    assert "training.charge_weight" in warning
    published = config(model__charges__kind=kind, training__schedule="published")
    (warning,) = charge_warnings(entries(0.9, 0.0, 0.02), published)
    assert "use --schedule physical-start" in warning
    # the data and not the user put the network first
    guess = entries(0.9, 0.0, 0.02)
    guess[0]["guessed"] = True
    (warning,) = charge_warnings(guess, physical)
    assert "training.charge_weight" in warning
    at_once = config(model__charges__kind=kind, training__stages=1)
    assert len(charge_warnings(entries(0.9, 0.02), at_once)) == 1
    first = config(model__charges__kind=kind, training__schedule="physics-first")
    assert len(charge_warnings(entries(0.9, 0.02), first)) == 1


def test_a_long_range_that_brings_nothing_is_told() -> None:
    """Where stage 1 had none to compare with, and neither energies nor forces are better at the end."""

    def done(*errors: tuple[float, float], guessed: bool = False) -> list[dict]:
        units = {"energy": "eV/atom", "forces": "eV/A"}
        validation = [
            {name: {"mae": mae, "unit": unit} for (name, unit), mae in zip(units.items(), pair, strict=True)}
            for pair in errors
        ]
        return [{"stage": n, "guessed": guessed, "validation": entry} for n, entry in enumerate(validation)]

    start, alone, worse, better = (9.0, 9.0), (1.0, 2.0), (1.0, 2.5), (1.5, 1.9)
    published = config(training__schedule="published")
    (told,) = idle_warnings(done(start, alone, alone, worse), published)
    assert "had energy 1 eV/atom, forces 2 eV/A before it, and has energy 1 eV/atom, forces 2.5 eV/A with it" in told
    assert len(idle_warnings(done(start, alone, alone, worse, guessed=True), config())) == 1
    assert idle_warnings(done(start, alone, alone, better), published) == []
    assert idle_warnings(done(start, alone, worse), published) == []  # there is a stage to come
    assert idle_warnings(done(start, alone, alone, worse), config()) == []  # physical-start
    assert idle_warnings(done(start, worse), config(model__kernel__form="none")) == []


def test_charges_that_did_not_collapse_are_not_warned_of() -> None:
    assert charge_warnings(entries(0.9), config()) == []
    assert charge_warnings(entries(0.9, 0.9, 0.85), config()) == []
    assert charge_warnings(entries(0.0, 0.0, 0.0), config()) == []  # they started at zero
    # the first stage of both fits no charges
    for schedule in ("published", "physical-start"):
        assert charge_warnings(entries(0.9, 0.0), config(training__schedule=schedule)) == []
    resumed = [{"stage": 0}, *entries(0.9, 0.02)[1:]]
    assert charge_warnings(resumed, config(training__stages=1)) == []
    none = [{"stage": n, "charge_sizes": {}} for n in range(2)]
    assert charge_warnings(none, config(model__kernel__form="none")) == []


def test_charges_of_both_signs_have_a_size() -> None:
    """An element whose charges average to zero has not collapsed."""
    numbers = torch.tensor([6, 6, 8])
    found = Evaluation(numbers=numbers, charges=torch.tensor([0.4, -0.4, 0.1], dtype=torch.float64))
    assert charge_sizes(found) == pytest.approx({"C": 0.4, "O": 0.1})
