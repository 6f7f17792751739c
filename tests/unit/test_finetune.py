"""Fits that start from a model: what they take over, more elements, other levels of energies, rates by layer."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch import nn

from lrpot import fit, load
from lrpot.backbones import DimeNetPlusPlus, Equivariant, PaiNN
from lrpot.build import build_potential
from lrpot.config import FitConfig, make_config
from lrpot.data.readers import to_structure
from lrpot.ensemble import Ensemble
from lrpot.errors import ConfigError, ModelFileError, UnknownElementError
from lrpot.evaluation import evaluate_structures
from lrpot.model_file import ModelInfo, save, symbols
from lrpot.potential import PARTS, Potential
from lrpot.structure import Structure
from lrpot.training.baseline import refit_offsets, store_known
from lrpot.training.finetune import read_start, relatives, with_elements
from lrpot.training.layers import freeze_deepest, parameter_depths, parameter_groups
from lrpot.training.stages import plan
from tests.helpers_cli import small_model
from tests.unit.training_data import ionic_rows, no_pictures

pictures = pytest.fixture(no_pictures, scope="module", autouse=True)

CUTOFF = 4.0
NETWORKS: dict[str, dict[str, Any]] = {
    "painn": {"features": 8, "interactions": 2, "radial_basis": 6},
    "dimenet++": {"features": 8, "interactions": 2, "triplet_features": 4, "basis_features": 4, "output_features": 8},
    "equivariant": {"features": 4, "interactions": 2, "radial_hidden": 8},
}
NA, CL, K, BR, TI = 11, 17, 19, 35, 22

# Energies of another method: another level for each element (eV), and a little more of everything.
LEVEL, MORE = {"Na": 2.5, "Cl": -1.25, "K": 4.0}, 1.08


# So that a few seconds of training change what they can.
LONGER = {"training.max_epochs": 6, "training.batch_size": 2, "training.lr": 4e-3, "training.energy_weight": 0.1}


def model_of(
    backbone: str = "painn", elements: tuple[int, ...] = (NA, CL), section: Mapping[str, Any] | None = None
) -> Potential:
    """A potential in which every part is at work, with `info`; `section` are further settings `model`."""
    small = {"kernel": {"tolerance": 1e-5, "hidden": 8}}
    network = {"backbone": {"name": backbone, "cutoff": CUTOFF, **NETWORKS[backbone]}}
    config = make_config({"model": {**small, **network, **(section or {})}})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        potential = build_potential(config.model, elements)
        nn.init.normal_(potential.short.readout.last.weight, std=0.3)
        nn.init.normal_(potential.short.offset)
        if potential.long is not None:
            nn.init.normal_(potential.long.reciprocal.kernel.fcn.last.weight, std=0.1)
            potential.long.charges.set_values({z: 0.4 * (-1) ** n for n, z in enumerate(elements)})
            if potential.long.charges.sees_surroundings:
                nn.init.normal_(potential.long.charges.network.last.weight, std=0.3)
    potential.info = ModelInfo({"model": config.model.model_dump(mode="json")}, symbols(potential.elements))
    return potential.eval()


def of_another_method(rows: list[Atoms], symbol: str = "Na") -> list[Atoms]:
    """The rows with labels of that method, some with another element in the place of sodium."""
    found = []
    for atoms in rows:
        results = atoms.calc.results
        other = atoms.copy()
        other.symbols[[s == "Na" for s in atoms.symbols]] = symbol
        level = sum(LEVEL[s] for s in other.symbols)
        other.calc = SinglePointCalculator(
            other, energy=MORE * results["energy"] + level, forces=MORE * results["forces"]
        )
        found.append(other)
    return found


@pytest.fixture(scope="module")
def rows() -> list[Atoms]:
    return ionic_rows(24)


@pytest.fixture(scope="module")
def fitted(rows: list[Atoms], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was really fitted."""
    folder = tmp_path_factory.mktemp("fitted")
    ase.io.write(folder / "rows.extxyz", rows, format="extxyz")
    network = {f"model.backbone.{name}": value for name, value in NETWORKS["painn"].items()}
    settings = {"model.backbone.cutoff": CUTOFF, "model.kernel.tolerance": 1e-5, "model.kernel.hidden": 8}
    training = {"training.stages": 1, "training.max_epochs": 8}
    return fit(folder / "rows.extxyz", out=folder / "run", settings=network | settings | training, verbose=False).path


@pytest.fixture(scope="module")
def other_data(rows: list[Atoms], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "rows.extxyz"
    ase.io.write(path, of_another_method(rows), format="extxyz")
    return path


def stage(run: Path, number: int) -> dict[str, Any]:
    return json.loads((run / "stages" / f"{number}.json").read_text())


# --- what a fit takes over


def test_it_starts_at_the_error_of_the_model_and_improves(
    fitted: Path, other_data: Path, tmp_path: Path, rows: list[Atoms]
) -> None:
    run = tmp_path / "run"
    settings = LONGER | {"training.finetune.layer_decay": 0.9}
    result = fit(other_data, from_model=fitted, out=run, settings=settings, verbose=False)
    assert [entry["title"] for entry in result.stages] == ["start", "fine-tuning"]
    places = json.loads((run / "split.json").read_text())["valid"]
    other = [to_structure(atoms, CUTOFF) for atoms in of_another_method([rows[n] for n in places])]
    old = evaluate_structures(load(fitted), other).errors()
    start, end = (stage(run, n)["validation"] for n in (0, 1))
    # float32 network; labels went through a text file
    assert start["forces"]["mae"] == pytest.approx(old["forces"]["mae"], rel=1e-3)
    assert old["energy"]["mae"] == pytest.approx((LEVEL["Na"] + LEVEL["Cl"]) / 2, rel=0.3)
    assert start["energy"]["mae"] < 0.01  # eV/atom: the level has been found
    assert end["forces"]["mae"] < 0.75 * start["forces"]["mae"]
    info = result.model.info
    assert isinstance(info, ModelInfo)
    assert info.config["model"] == load(fitted).info.config["model"]  # type: ignore[union-attr]
    assert info.record["from"]["model"] == str(fitted)


def test_three_stages_freeze_what_they_say(fitted: Path, other_data: Path, tmp_path: Path) -> None:
    settings = LONGER | {"training.max_epochs": 3, "training.stages": 3}
    result = fit(other_data, from_model=fitted, out=tmp_path / "run", settings=settings, verbose=False)
    assert len(result.stages) == 4
    start, first, second = (load(tmp_path / f"run/stages/{n}.pt").state_dict() for n in (0, 1, 2))
    assert torch.equal(start["short.scale"], first["short.scale"])
    for name in start:
        if name.startswith("long."):
            assert torch.equal(start[name], first[name]), name
        elif name != "short.offset":
            assert torch.equal(first[name], second[name]), name
    assert not torch.equal(start["short.readout.first.weight"], first["short.readout.first.weight"])
    assert not torch.equal(first["long.charges.values"], second["long.charges.values"])


def test_frozen_layers_stay(fitted: Path, other_data: Path, tmp_path: Path) -> None:
    settings = LONGER | {"training.finetune.freeze_layers": 2}
    result = fit(other_data, from_model=fitted, out=tmp_path / "run", settings=settings, verbose=False)
    before, after = load(fitted).state_dict(), result.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    backbone = {name.removeprefix("short.backbone.") for name in changed if name.startswith("short.backbone.")}
    assert {".".join(name.split(".")[:2]) for name in backbone} == {"interactions.1", "mixing.1"}
    assert "short.readout.first.weight" in changed
    assert "long.charges.values" in changed


def test_a_model_without_long_range(other_data: Path, tmp_path: Path) -> None:
    """Such as those that are converted from SchNetPack: their info holds nothing but the section `model`."""
    network = {"cutoff": CUTOFF, "cutoff_function": "cosine", **NETWORKS["painn"]}
    model = model_of(section={"kernel": {"form": "none"}, "backbone": network})
    path = save(model, tmp_path / "converted.pt")
    result = fit(other_data, from_model=path, out=tmp_path / "run", settings={"training.max_epochs": 1}, verbose=False)
    assert result.model.long is None
    assert result.model.short.backbone.cutoff_function == "cosine"


def test_elements_that_the_data_lack_stay(
    rows: list[Atoms], other_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may even be in the validation file."""
    valid = tmp_path / "valid.extxyz"
    ase.io.write(valid, of_another_method(rows[:2], "K"), format="extxyz")
    model = model_of(elements=(NA, CL, K))
    path = save(model, tmp_path / "model.pt")
    settings = LONGER | {"training.max_epochs": 2, "training.lr_long": 1e-2, "data.valid": str(valid)}
    result = fit(other_data, from_model=path, out=tmp_path / "run", settings=settings)
    assert "not in the training data: K; their energies stay" in capsys.readouterr().out
    assert result.model.elements == [NA, CL, K]
    assert result.model.short.offset[K] == model.short.offset[K]
    assert result.model.short.offset[NA] != model.short.offset[NA]
    charges = result.model.long.charges.by_element(), model.long.charges.by_element()
    assert charges[0][K] == charges[1][K]
    assert charges[0][NA] != charges[1][NA]


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (None, {"model.backbone.features": 64}, r"model\.backbone\.features = 64 contradicts .*model\.pt, which has 8"),
        (None, {"model.kernel.form": "none"}, r"model\.kernel\.form = none contradicts .* leave this one out"),
        (None, {"model.backbone.name": "equivariant"}, r"model\.backbone\.name = equivariant contradicts"),
        ({"model": {"charges": {"init": {"Na": 1.0, "Cl": -1.0}}}}, {}, r"model\.charges\.init = .* has prefit"),
        ({"model": {"backbone": {"cutoff": 5.0}}}, {}, r"model\.backbone\.cutoff = 5\.0 contradicts .* has 4\.0"),
    ],
)
def test_settings_of_another_model_are_refused(
    tmp_path: Path, config: dict[str, Any] | None, settings: dict[str, Any], message: str
) -> None:
    path = save(model_of(), tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=message):
        read_start(config, settings, path)


def test_settings_that_agree_are_not_refused(tmp_path: Path) -> None:
    path = save(model_of("equivariant"), tmp_path / "model.pt")
    same = {"model.backbone.name": "equivariant", "model.backbone.features": 4}
    for config, settings in (({"training": {"lr": 1e-4}}, same), (FitConfig(), {}), (None, {})):
        resolved, start = read_start(config, settings, path)
        assert resolved.model.model_dump(mode="json") == start.info.config["model"]  # type: ignore[union-attr]


def test_the_order_of_three_stages() -> None:
    settings = {"training.finetune.model": "m.pt", "training.stages": 3}
    trained = [sorted(s.trained) for s in plan(make_config(None, settings))]
    assert trained == [["short"], ["long"], ["long", "short"]]
    turned = [sorted(s.trained) for s in plan(make_config(None, settings | {"training.schedule": "physics-first"}))]
    assert turned == [["long"], ["short"], ["long", "short"]]


def test_a_model_in_the_directory_of_the_run(other_data: Path, tmp_path: Path) -> None:
    """--overwrite removes the file, but it has been read by then."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").touch()
    path = save(model_of(), tmp_path / "run" / "model.pt")
    fit(
        other_data, from_model=path, out=path.parent, settings={"training.max_epochs": 1}, overwrite=True, verbose=False
    )
    assert (path.parent / "start.pt").exists()


def test_no_model_no_run(other_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        fit(other_data, from_model=tmp_path / "m.pt", out=tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


def test_an_ensemble_is_no_start(tmp_path: Path) -> None:
    path = save(Ensemble(small_model(seed=seed) for seed in range(2)), tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=r"model\.pt: is an ensemble of 2 models, .*/member-1/model\.pt"):
        read_start(None, {}, path)


# --- levels of energies


def test_offsets_go_where_the_labels_are(rows: list[Atoms]) -> None:
    """Two compositions tell the levels of both elements apart; that of an element that is absent stays."""
    model = model_of(elements=(NA, CL, K)).set_precision(torch.float64)
    structures: list[Structure] = []
    for n, atoms in enumerate(rows[:4]):
        structure = to_structure(atoms[: 16 - n], CUTOFF)
        structure.energy = model(structure)["energy"] + sum(LEVEL[s] for s in atoms[: 16 - n].symbols)
        structure.forces = torch.zeros_like(structure.positions)
        structures.append(structure)
    before = model.short.offset.clone()
    store_known(model, structures, PARTS)
    moved = refit_offsets(model, structures)
    assert moved == pytest.approx({NA: LEVEL["Na"], CL: LEVEL["Cl"], K: 0.0}, abs=1e-9)
    assert (model.short.offset - before)[[NA, CL, K]].tolist() == pytest.approx(list(moved.values()), abs=1e-12)


# --- new elements


def crystal(rows: list[Atoms], symbol: str = "Na") -> Structure:
    atoms = rows[0].copy()
    atoms.symbols[[s == "Na" for s in atoms.symbols]] = symbol
    return to_structure(atoms, CUTOFF)


@pytest.mark.parametrize("backbone", list(NETWORKS))
@pytest.mark.parametrize("kind", ["embedding", "environment", "equilibration"])
def test_new_elements_change_nothing_for_the_old_ones(backbone: str, kind: str, rows: list[Atoms]) -> None:
    """And a crystal with a new element has the energy of one with its relative, to the last bit."""
    model = model_of(backbone, section={"charges": {"kind": kind, "channels": 2}})
    grown, new = with_elements(model, [NA, CL, K, TI])
    assert new == {K: [NA], TI: [NA, CL]}
    assert grown.elements == [NA, CL, K, TI]
    before, after = model(crystal(rows)), grown(crystal(rows))
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    with_new = grown(crystal(rows, "K"))
    for name, value in before.items():
        if name.startswith("energy"):
            level = 8 * (grown.short.offset[K] - grown.short.offset[NA])
            assert level == 0
        assert torch.equal(value, with_new[name]), name


def test_a_new_element_without_relatives_is_the_mean(rows: list[Atoms]) -> None:
    model = model_of()
    grown, _ = with_elements(model, [NA, CL, TI])
    table = grown.short.backbone.embedding.weight
    torch.testing.assert_close(table[TI], table[[NA, CL]].mean(dim=0))
    assert grown.short.offset[TI] == model.short.offset[[NA, CL]].mean()
    assert grown.long.charges.by_element()[TI] == pytest.approx(0.0, abs=1e-12)
    assert torch.isfinite(grown(crystal(rows, "Ti"))["energy"]).all()


@pytest.mark.parametrize(
    ("element", "known", "like"),
    [
        (K, [NA, CL], [NA]),
        (BR, [NA, CL, 53], [CL]),
        (NA, [1, 3, 37], [3]),
        (TI, [NA, CL], [NA, CL]),
        (58, [21, 57, CL], [57]),  # a lanthanide: group 3
    ],
)
def test_relatives(element: int, known: list[int], like: list[int]) -> None:
    assert relatives(element, known) == like


def test_new_elements_are_refused_or_trained(
    fitted: Path, rows: list[Atoms], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [*of_another_method(rows[:12]), *of_another_method(rows[12:], "K")]
    data, run = tmp_path / "rows.extxyz", tmp_path / "run"
    ase.io.write(data, both, format="extxyz")
    settings: dict[str, Any] = dict(LONGER)
    refusal = r"rows\.extxyz: has K, but .*model\.pt knows only Na, Cl; add --new-elements"
    with pytest.raises(UnknownElementError, match=refusal):
        fit(data, from_model=fitted, out=run, settings=settings, verbose=False)
    assert not run.exists()
    settings["training.finetune.new_elements"] = True
    result = fit(data, from_model=fitted, out=run, settings=settings)
    assert "new element K starts as Na" in capsys.readouterr().out
    assert result.model.elements == [NA, CL, K]
    start, end = (stage(run, n) for n in (0, 1))
    assert start["charges"]["K"] == start["charges"]["Na"] != 0.0
    assert start["validation"]["energy"]["mae"] < 0.01  # eV/atom
    assert end["validation"]["forces"]["mae"] < 0.75 * start["validation"]["forces"]["mae"]
    assert end["charges"]["K"] != end["charges"]["Na"]
    saved = load(result.path)
    assert saved.elements == [NA, CL, K]
    assert np.isfinite(float(saved(crystal(rows, "K"))["energy"]))


# --- rates by layer


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (
            PaiNN(8, 3, 6),
            {"embedding.weight": 4, "filter_net.weight": 4, "interactions.0": 3, "mixing.0": 3, "mixing.2": 1},
        ),
        (
            DimeNetPlusPlus(8, 2, 4, 4, 8),
            {"emb.emb": 4, "output_blocks.0": 3, "interaction_blocks.0": 2, "output_blocks.2": 1},
        ),
        (Equivariant(4, 1, 3, 4, 8), {"embedding.weight": 4, "steps.0": 3, "steps.0.element": 3, "steps.2": 1}),
    ],
    ids=list(NETWORKS),
)
def test_depths(backbone: nn.Module, expected: dict[str, int]) -> None:
    depths = parameter_depths(backbone)
    assert depths.keys() == {name for name, _ in backbone.named_parameters()}
    for start, depth in expected.items():
        found = {value for name, value in depths.items() if name.startswith(start)}
        assert found == {depth}, start


class Plain(nn.Module):
    """A backbone whose layers are in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(3, 2), nn.Linear(2, 2)


class Told(Plain):
    def parameter_depths(self) -> dict[str, int]:
        return {"last.weight": 1, "last.bias": 1, "table.weight": 2}


class Half(Plain):
    def parameter_depths(self) -> dict[str, int]:
        return {"last.weight": 1, "last.bias": 3}


def test_depths_of_other_backbones() -> None:
    assert set(parameter_depths(Plain()).values()) == {1}
    assert parameter_depths(Told())["table.weight"] == 2
    assert parameter_depths(Half())["table.weight"] == 3


@pytest.mark.parametrize(("layers", "trained"), [(0, 4), (1, 3), (3, 1), (9, 0)])
def test_the_deepest_layers_are_frozen(layers: int, trained: int) -> None:
    backbone = PaiNN(8, 3, 6)
    freeze_deepest(backbone, layers)
    depths = parameter_depths(backbone)
    assert len({depths[name] for name, p in backbone.named_parameters() if p.requires_grad}) == trained


def test_learning_rates_fall_with_the_depth() -> None:
    model = model_of()
    model.short.backbone.mixing.requires_grad_(False)
    groups = parameter_groups(model, 1e-2, 1e-4, 0.5)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, trained)) == sorted(id(p) for group in groups for p in group["params"])
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    backbone = model.short.backbone
    assert rates[id(model.long.charges.values)] == 1e-4
    assert rates[id(model.short.readout.last.weight)] == 1e-2
    assert rates[id(backbone.interactions[1].interatomic_context_net[0].weight)] == 1e-2 * 0.5
    assert rates[id(backbone.interactions[0].interatomic_context_net[0].weight)] == 1e-2 * 0.25
    assert rates[id(backbone.embedding.weight)] == 1e-2 * 0.125
    assert groups[-1]["lr"] == 1e-2  # what the history of a fit tells
    assert [group["lr"] for group in parameter_groups(model, 1e-2, 1e-4, 1.0)] == [1e-4, 1e-2]


def test_the_model_is_left_as_it_is() -> None:
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    with_elements(model, [NA, CL, K])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert with_elements(model, [NA, CL])[0] is model
