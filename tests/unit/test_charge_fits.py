"""Fits with every charge model: what each stage changes, where charges start, what is reported."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import ase.io
import pytest
import torch

from lrpot import fit, load
from lrpot.build import build_potential
from lrpot.charges import CHARGES, EquilibratedCharges
from lrpot.config import make_config
from lrpot.data.readers import to_structure
from lrpot.evaluation import evaluate_structures
from lrpot.report.run import read_run
from lrpot.structure import Structure, collate_with_gaps
from lrpot.training.baseline import set_start, store_known
from lrpot.training.module import StageModule
from lrpot.training.stages import Stage, plan
from lrpot.training.summary import charges_of
from tests.helpers_cli import run_cli
from tests.unit.test_training import SMALL
from tests.unit.training_data import CHARGE, ionic_rows, write_ionic_rows

SEEING = ["environment", "equilibration"]
NETWORK = "long.charges.network.last.weight"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ionic_rows(tmp_path_factory.mktemp("data") / "rows.extxyz", n=16, stress=True)


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    return [to_structure(atoms, 4.0) for atoms in ionic_rows(6, stress=True)]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["published", "physical-start", "physics-first"])
@pytest.mark.parametrize("charges", SEEING)
def test_each_stage_changes_its_own_part(charges: str, schedule: str, data: Path, tmp_path: Path) -> None:
    settings = SMALL | {"model.charges.kind": charges, "training.schedule": schedule, "training.lr_long": 1e-2}
    result = fit(data, out=tmp_path / "run", settings=settings, verbose=False)
    assert [stage["stage"] for stage in result.stages] == [0, 1, 2, 3]
    weights = [load(tmp_path / f"run/stages/{n}.pt").state_dict() for n in range(3)]
    first, second = (
        {name for name in before if not torch.equal(before[name], after[name])} for before, after in pairwise(weights)
    )
    first.discard("short.offset")
    second -= {"short.offset", "short.scale"}
    network = {name for name in weights[0] if name.startswith("long.charges.network")}
    assert network
    trained = {"long.charges.values", NETWORK, "long.reciprocal.kernel.fcn.last.weight"}
    if schedule == "physics-first":
        # features will still change: no network of them in charges that are then frozen
        assert not first & network
        assert {name.split(".")[0] for name in first - {"short.scale"}} == {"long"}
        assert {name.split(".")[0] for name in second} == {"short"}
    else:
        assert not first & network
        assert trained <= second
        assert {name.split(".")[0] for name in second} == {"long"}


@pytest.mark.slow
@pytest.mark.parametrize("charges", CHARGES)
def test_fit_starts_with_the_charges_of_the_data(charges: str, data: Path, tmp_path: Path) -> None:
    settings = SMALL | {"model.charges.kind": charges, "training.max_epochs": 1}
    result = fit(data, out=tmp_path / "run", settings=settings, verbose=False)
    start = result.stages[0]["charges"]
    assert start["Na"] == pytest.approx(CHARGE, abs=0.02)
    assert start["Cl"] == pytest.approx(-CHARGE, abs=0.02)
    # physical-start: they are there from the first stage on
    assert result.stages[1]["charges"]["Na"] == pytest.approx(start["Na"], abs=1e-6)


def test_the_network_comes_before_charges_that_the_forces_do_not_tell(tmp_path: Path) -> None:
    """A schedule that was asked for stays."""
    rows = ionic_rows(16)
    for atoms in rows:
        atoms.pbc = False  # no Coulomb field of a crystal to see charges by
    ase.io.write(tmp_path / "rows.extxyz", rows)
    settings = SMALL | {"training.max_epochs": 1}
    result = fit(tmp_path / "rows.extxyz", out=tmp_path / "run", settings=settings, verbose=False)
    charges = [stage["charges"]["Na"] for stage in result.stages]
    assert charges[0] > 0.5
    assert charges[1] == 0.0
    assert charges[2] > 0.5
    told = "; schedule published, for the forces do not tell the charges"
    assert told in (tmp_path / "run/fit.log").read_text()
    assert read_run(tmp_path / "run").plan[0].title == "real space, no long range"
    own = settings | {"training.schedule": "physical-start"}
    result = fit(tmp_path / "rows.extxyz", out=tmp_path / "own", settings=own, verbose=False)
    assert result.stages[1]["charges"]["Na"] == charges[0]
    assert told not in (tmp_path / "own/fit.log").read_text()


@pytest.mark.parametrize("charges", SEEING)
def test_frozen_charges_stay_what_they_were_computed_to_be(charges: str, structures: list[Structure]) -> None:
    """While the network is fitted beside frozen charges, these must not follow its features."""
    model = build_potential(make_config(None, SMALL | {"model.charges.kind": charges}).model, [11, 17])
    set_start(model, {11: CHARGE, 17: -CHARGE}, structures)
    store_known(model, structures, {"long"})
    known = structures[0].known_forces.clone()
    with torch.no_grad():
        for parameter in model.short.backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    store_known(model, structures, {"long"})
    torch.testing.assert_close(structures[0].known_forces, known, rtol=0, atol=1e-9)


def test_stage_without_surroundings_freezes_their_network() -> None:
    config = make_config(None, SMALL | {"model.charges.kind": "environment"})
    model = build_potential(config.model, [11, 17])
    for surroundings in (False, True):
        stage = Stage("x", frozenset({"long"}), frozenset({"short"}), surroundings=surroundings)
        StageModule(model, stage, config.training, [], {"energy": 1.0}, 1e-3)
        assert model.long.charges.values.requires_grad
        assert all(p.requires_grad == surroundings for p in model.long.charges.network.parameters())


def test_published_schedule_counts_the_total_charge_of_equilibrated_ones() -> None:
    """Without electronegativities a charged structure keeps a long-range energy, which stage 1 must know."""
    for charges, frozen in (("embedding", frozenset()), ("equilibration", frozenset({"long"}))):
        settings = SMALL | {"model.charges.kind": charges, "training.schedule": "published"}
        assert plan(make_config(None, settings))[0].frozen == frozen


@pytest.mark.parametrize("charges", SEEING)
def test_loss_falls_with_charges_that_differ_from_site_to_site(charges: str, structures: list[Structure]) -> None:
    """A few steps of gradient descent on forces through the solution and the features."""
    config = make_config(None, SMALL | {"model.charges.kind": charges})
    torch.manual_seed(0)
    model = build_potential(config.model, [11, 17])
    set_start(model, {11: 0.5, 17: -0.5}, structures)
    store_known(model, structures, set())
    module = StageModule(model, plan(config)[-1], config.training, structures, {"energy": 1.0, "forces": 0.1}, 1e-3)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch = collate_with_gaps(structures[:2])
    losses = []
    for _ in range(10):
        loss, _ = module._loss(batch, create_graph=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_evaluation_tells_charges_and_the_share_of_the_long_range(structures: list[Structure]) -> None:
    model = build_potential(make_config(None, SMALL | {"model.charges.kind": "equilibration"}).model, [11, 17])
    set_start(model, {11: CHARGE, 17: -CHARGE}, structures)
    model.short.offset.fill_(3.0)
    found = evaluate_structures(model, structures)
    q = torch.cat([model(s)["charges"][:, 0] for s in structures])
    numbers = torch.cat([s.numbers for s in structures])
    by_element = found.charges_by_element()
    assert list(by_element) == ["Na", "Cl"]
    for z, symbol in ((11, "Na"), (17, "Cl")):
        mine = q[numbers == z]
        expected = {"mean": mine.mean(), "spread": mine.std(correction=0), "min": mine.min(), "max": mine.max()}
        assert by_element[symbol] == pytest.approx({k: v.item() for k, v in expected.items()}, abs=1e-12)
        assert by_element[symbol]["spread"] > 1e-3
    assert charges_of(model, found) == {symbol: values["mean"] for symbol, values in by_element.items()}
    # the network is still zero, and offsets do not count
    long_range = found.long_range()
    assert long_range["share"] == pytest.approx(1.0)
    assert long_range["energy_network"] < 1e-12
    assert long_range["energy_long"] == pytest.approx(
        sum(abs(model(s)["energy_long"].item()) / s.num_nodes for s in structures) / len(structures)
    )


def test_evaluation_without_charges(structures: list[Structure]) -> None:
    model = build_potential(make_config(None, SMALL | {"model.kernel.form": "none"}).model, [11, 17])
    found = evaluate_structures(model, structures)
    assert found.charges_by_element() == {}
    assert found.long_range() == {}
    assert charges_of(model, found) == {}


@pytest.mark.slow
def test_an_interrupted_fit_goes_on_with_its_charges(data: Path, tmp_path: Path) -> None:
    """Stage 1 takes the charges from the file of the start, electronegativities and all."""
    settings = SMALL | {"model.charges.kind": "equilibration", "model.charges.channels": 2, "training.max_epochs": 1}
    whole = fit(data, out=tmp_path / "a", settings=settings, verbose=False)
    fit(data, out=tmp_path / "b", settings=settings, verbose=False)
    for file in ("stages/1.json", "stages/2.json", "stages/3.json", "model.pt"):
        (tmp_path / "b" / file).unlink()
    again = fit(out=tmp_path / "b", resume=True, verbose=False)
    assert json.dumps(again.test) == json.dumps(whole.test)


@pytest.mark.slow
def test_the_command_line_asks_for_a_charge_model(data: Path, tmp_path: Path) -> None:
    settings = [f"{name}={value}" for name, value in (SMALL | {"training.max_epochs": 1}).items()]
    assert run_cli("fit", data, "--out", tmp_path / "run", "--charges", "equilibration", "--set", *settings) == 0
    assert isinstance(load(tmp_path / "run/model.pt").long.charges, EquilibratedCharges)


def test_the_command_line_refuses_an_unknown_charge_model(data: Path, tmp_path: Path) -> None:
    assert run_cli("fit", data, "--out", tmp_path / "run", "--charges", "flexible") == 2
    assert not (tmp_path / "run").exists()
