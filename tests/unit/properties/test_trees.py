"""Trees as a head: grown by scikit-learn, walked by lrpot; what their fits leave."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch_geometric.data import Batch

from lrpot import fit
from lrpot.config import make_config, without_effect
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError, ModelFileError
from lrpot.model_file import ModelInfo, load_model, save, symbols
from lrpot.properties.build import build_property_model
from lrpot.properties.features import CrystalFeatures
from lrpot.properties.model import PropertyModel
from lrpot.properties.statistics import Statistics
from lrpot.properties.trees import STEPS, TreesHead, steps
from lrpot.structure import collate
from tests.helpers_cli import run_cli
from tests.unit.properties import property_data
from tests.unit.properties.crystals import CHANGES, CRYSTALS
from tests.unit.properties.property_data import salts, write_table

sklearn_ensemble = pytest.importorskip("sklearn.ensemble")
without_pictures = pytest.fixture(autouse=True)(property_data.no_pictures)

# Sums of a few dozen numbers of about one, in another order.
ROUNDING = 1e-12

TREES = {"properties.encoder.name": "statistics", "properties.head.kind": "trees", "properties.head.trees": 20}


def drawn(n: int = 80, inputs: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics (n, inputs), and two targets of them: a number and a class."""
    generator = torch.Generator().manual_seed(seed)
    graph = torch.randn(n, inputs, dtype=torch.float64, generator=generator)
    number = graph[:, 0] * graph[:, 1] + graph[:, 2].abs()
    return graph, torch.stack([number, (number > 0.5).double()], dim=1)


def grown(graph: torch.Tensor, wanted: torch.Tensor, seed: int = 0, **settings: Any) -> TreesHead:
    n = wanted.shape[1]
    head = TreesHead(graph.shape[1], [False] * n, [False] * n, **{"trees": 20, **settings}).double()
    head.grow(graph, wanted, seed)
    return head


def model_of(*targets: str, training: list[Atoms] | None = None, **properties: Any) -> PropertyModel:
    """A model whose trees are grown from salts, in float64."""
    section = {
        "targets": list(targets),
        "encoder": {"name": "statistics"},
        "head": {"kind": "trees", "trees": 20},
        **properties,
    }
    config = make_config({"task": "property", "properties": section})
    elements = [3, 9, 11, 17, 19, 35, 37, 53, 55]
    model = build_property_model(config.properties, elements).set_precision(torch.float64).eval()
    rows = salts() if training is None else training
    structures = [to_structure(atoms, model.cutoff, labels=False) for atoms in rows]
    batch = collate(structures)
    values = torch.tensor([[float(atoms.info[name]) for name in targets] for atoms in rows], dtype=torch.float64)
    model.set_scales(values, torch.tensor([len(atoms) for atoms in rows]))
    assert isinstance(model.encoder, Statistics)
    assert isinstance(model.head, TreesHead)
    model.encoder.standardise(structures)
    with torch.no_grad():
        model.head.grow(model.encoder(batch).graph, model.learned(values, batch), seed=0)
    model.info = ModelInfo(config=config.model_dump(mode="json"), elements=symbols(elements))
    return model


def predicted(model: PropertyModel, *crystals: Atoms) -> torch.Tensor:
    return model.predict(collate([to_structure(atoms, model.cutoff, labels=False) for atoms in crystals])).values


# --- walking


@pytest.mark.parametrize(("max_features", "min_leaf"), [(1.0, 1), (0.4, 3)])
def test_predictions_are_those_of_scikit_learn(max_features: float, min_leaf: int) -> None:
    graph, wanted = drawn()
    new, _ = drawn(seed=1)
    head = grown(graph, wanted, seed=3, max_features=max_features, min_leaf=min_leaf)
    forest = sklearn_ensemble.ExtraTreesRegressor(
        20, max_features=max_features, min_samples_leaf=min_leaf, random_state=3
    )
    forest.fit((graph * STEPS).round().numpy(), wanted[:, 0].numpy())
    expected = forest.predict((new * STEPS).round().numpy())
    np.testing.assert_allclose(head.means(new)[:, 0].numpy(), expected, rtol=0, atol=ROUNDING)


def test_probabilities_are_means_of_the_shares_at_leaves() -> None:
    graph, wanted = drawn()
    new, _ = drawn(seed=1)
    head = TreesHead(graph.shape[1], [False], [True], trees=20, min_leaf=4).double()
    head.grow(graph, wanted[:, 1:], seed=3)
    forest = sklearn_ensemble.ExtraTreesRegressor(20, min_samples_leaf=4, random_state=3)
    forest.fit((graph * STEPS).round().numpy(), wanted[:, 1].numpy())
    expected = forest.predict((new * STEPS).round().numpy())
    assert 0.0 < expected.min() < 0.5 < expected.max() < 1.0
    found = head(CrystalFeatures(new, None), Batch())
    np.testing.assert_allclose(found.values[:, 0].sigmoid().numpy(), expected, rtol=0, atol=ROUNDING)


def test_rows_without_a_label_teach_the_other_targets() -> None:
    """Trees of a target are those that its labelled rows alone would give."""
    graph, wanted = drawn()
    wanted[::3, 0] = torch.nan
    known = wanted[:, 0].isfinite()
    both, alone = grown(graph, wanted), grown(graph[known], wanted[known, :1])
    assert torch.equal(both.means(graph)[:, :1], alone.means(graph))
    whole = grown(graph, wanted[:, 1:])
    assert torch.equal(both.means(graph)[:, 1:], whole.means(graph))


def test_before_they_are_grown_trees_say_the_mean_of_the_training_set() -> None:
    """Of a class, that both are as likely."""
    graph, _ = drawn()
    found = TreesHead(6, [False, False], [False, True], trees=3).means(graph)
    assert torch.equal(found, torch.tensor([[0.0, 0.5]]).expand(80, 2))


def test_the_seed_decides() -> None:
    graph, wanted = drawn()
    new, _ = drawn(seed=1)
    one, same, other = (grown(graph, wanted, seed).means(new) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_steps_are_finer_than_what_crystals_differ_by_and_coarser_than_rounding() -> None:
    graph = torch.linspace(-5.0, 5.0, 1001, dtype=torch.float64)
    assert torch.equal(steps(graph), steps(graph * (1.0 + 1e-14)))
    assert len(steps(graph).unique()) == 1001


# --- crystals


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_predictions_do_not_depend_on_how_a_crystal_is_written(change: Callable[[Atoms], Atoms]) -> None:
    model = model_of("gap", "bulk")
    for make in (*CRYSTALS.values(), lambda: salts()[3]):
        torch.testing.assert_close(predicted(model, change(make())), predicted(model, make()), rtol=ROUNDING, atol=0.0)


def test_a_batch_says_what_its_crystals_say_alone() -> None:
    model = model_of("gap", "metal", classification=["metal"])
    crystals = salts(6, seed=4)
    together = predicted(model, *crystals)
    torch.testing.assert_close(together, torch.cat([predicted(model, atoms) for atoms in crystals]), rtol=0, atol=1e-14)


def test_extensive_targets_are_sums_over_atoms() -> None:
    rows = salts()
    for number, atoms in enumerate(rows):
        rows[number] = atoms if number % 2 else atoms.repeat((1, 1, 2))
        rows[number].info = {**atoms.info, "total": atoms.info["gap"] * len(rows[number])}
    model = model_of("total", training=rows, extensive=["total"])
    assert float(predicted(model, rows[0])) == pytest.approx(rows[0].info["total"], rel=ROUNDING)
    assert float(predicted(model, rows[0].repeat(2))) == pytest.approx(8 * rows[0].info["total"], rel=ROUNDING)


def test_logarithms_are_what_trees_average() -> None:
    rows = salts()
    model = model_of("bulk", training=rows, log=["bulk"])
    for atoms in rows[:3]:
        assert float(predicted(model, atoms)) == pytest.approx(atoms.info["bulk"], rel=1e-10)


# --- files


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_file_holds_the_same_model(dtype: torch.dtype, tmp_path: Path) -> None:
    model = model_of("gap", "bulk").set_precision(dtype)
    crystals = salts(8, seed=4)
    path = save(model, tmp_path / "model.pt")
    again = load_model(path)
    assert isinstance(again, PropertyModel)
    assert again.head.value.dtype == dtype  # type: ignore[union-attr]
    assert torch.equal(predicted(again, *crystals), predicted(model, *crystals))


def test_a_model_is_loaded_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gap")
    path = save(model, tmp_path / "model.pt")
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    assert torch.equal(predicted(load_model(path), salts()[0]), predicted(model, salts()[0]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "place", "entry", "reason"),
    [
        ("branches", (0, 0), 0, "leads back"),
        ("branches", (0, 1), 10**6, "leads back, or nowhere"),
        ("feature", (0,), 49, "none of the 49"),
        ("roots", (0, 0), -1, "none of the"),
    ],
)
def test_trees_that_end_nowhere_are_refused(
    name: str, place: tuple[int, ...], entry: int, reason: str, tmp_path: Path
) -> None:
    model = model_of("gap")
    getattr(model.head, name)[place] = entry
    with pytest.raises(ModelFileError, match=reason):
        load_model(save(model, tmp_path / "model.pt"))


def test_nodes_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    model = model_of("gap")
    assert isinstance(model.head, TreesHead)
    model.head.value = model.head.value[:-1].clone()
    with pytest.raises(ModelFileError, match="not those of feature"):
        load_model(save(model, tmp_path / "model.pt"))


# --- fits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("data"), salts(), ("gap", "bulk", "metal"))


def run(data: Path, out: Path, **settings: Any) -> Any:
    own = {name.replace("__", "."): value for name, value in settings.items()}
    return fit(data, out=out, settings={"task": "property", **TREES, **own}, verbose=False)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_fit_finds_what_a_mean_does_not(data: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path / "run", properties__targets="gap")
    start, end = (stage["validation"]["gap"]["mae"] for stage in result.stages)
    assert end < 0.5 * start
    assert "epochs" not in result.stages[-1]
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_from_a_fit_to_a_screening(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By commands, with three targets, one of them a class."""
    out, found = tmp_path / "run", tmp_path / "found.csv"
    words = ["--encoder", "statistics", "--head", "trees", "--classification", "metal", "--set", "properties.log=bulk"]
    assert run_cli("fit", data, *words, "properties.head.trees=20", "--out", out) == 0
    assert "no effect" not in capsys.readouterr().err
    assert run_cli("predict", out / "model.pt", data.parent, "--out", found) == 0
    said = {Path(row["file"]).stem: row for row in table(found)}
    for row in table(out / "test.csv"):
        for name, column in (("gap", "gap"), ("bulk", "bulk"), ("metal", "probability of metal")):
            assert float(said[row["id"]][column]) == pytest.approx(float(row[f"{name}_predicted"]), rel=1e-5)
    assert run_cli("screen", out / "model.pt", data.parent, "--where", "gap > 1", "--out", tmp_path / "best.csv") == 0
    capsys.readouterr()
    assert run_cli("info", out / "model.pt") == 0
    assert "kind trees, trees 20, max_features 1.0, min_leaf 1" in capsys.readouterr().out


def test_a_fit_that_was_stopped_before_its_trees_ends_with_the_same(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "whole")
    run(data, tmp_path / "stopped")
    stopped = tmp_path / "stopped"
    for file in ("stages/1.json", "stages/1.pt", "model.pt", "results.json"):
        (stopped / file).unlink()
    fit(out=stopped, resume=True, verbose=False)
    weights = [load_model(out / "model.pt").state_dict() for out in (tmp_path / "whole", stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_ensemble_of_other_seeds(data: Path, tmp_path: Path) -> None:
    model = run(data, tmp_path / "run", properties__targets="gap", training__ensemble=2).model
    one, other = (member.head.value for member in model.members)
    assert not torch.equal(one, other)
    assert [row["gap_uncertainty"] for row in table(tmp_path / "run" / "test.csv")]


def test_folds(data: Path, tmp_path: Path) -> None:
    words = ["--encoder", "statistics", "--head", "trees", "--target", "gap", "--folds", "3"]
    assert run_cli("cv", data, *words, "--out", tmp_path, "--set", "properties.head.trees=20") == 0
    errors = json.loads((tmp_path / "results.json").read_text())["all"]["gap"]
    assert errors["n"] == 24


# --- refusals


def test_trees_read_statistics_alone() -> None:
    with pytest.raises(ConfigError, match="trains no encoder, so regnet would stay random"):
        make_config({"task": "property", "properties": {"head": {"kind": "trees"}}})
    section: dict[str, Any] = {"encoder": {"name": "statistics"}, "head": {"kind": "trees"}}
    with pytest.raises(ConfigError, match="trains no diffraction"):
        make_config({"task": "property", "properties": {**section, "diffraction": {"use": "on"}}})
    with pytest.raises(ConfigError, match=r"set training\.pretrain_epochs to 0"):
        make_config({"task": "property", "properties": section, "training": {"pretrain_epochs": 2}})
    assert make_config({"task": "property", "properties": section}).properties.encoder.layers == 0  # type: ignore[union-attr]


def test_settings_that_trees_do_not_heed_are_told() -> None:
    section = {"encoder": {"name": "statistics", "dropout": 0.3}, "head": {"kind": "trees"}}
    config = make_config({"task": "property", "properties": section, "training": {"lr": 0.1, "seed": 3}})
    (line,) = without_effect(config)
    assert line.startswith("properties.encoder.dropout, training.lr: no effect")
    section["head"] = {"trees": 7}
    (line,) = without_effect(make_config({"task": "property", "properties": section}))
    assert line == "properties.head.trees: no effect, since properties.head.kind is not trees"


def test_without_scikit_learn_no_work_is_begun(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ConfigError, match=r"pip install 'lrpot\[trees\]'"):
        run(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
