"""What the settings of a fit do: kinds of loss, averaged weights, steps of several batches, bfloat16, stages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpot import fit, load
from lrpot.backbones import BACKBONES, AtomFeatures, register
from lrpot.build import build_potential
from lrpot.config import REGISTERED_BACKBONES, FitConfig, TrainingConfig, make_config
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError, DataError
from lrpot.potential import Potential
from lrpot.structure import Structure, collate
from lrpot.training.baseline import store_known
from lrpot.training.ema import AveragedWeights
from lrpot.training.loss import penalty
from lrpot.training.module import StageModule
from lrpot.training.stages import plan
from tests.unit.training_data import SMALL, ionic_rows, metrics, write_ionic_rows

ONE_STAGE = {"model.kernel.form": "none", "training.dtype": "float64"}

# What bfloat16, with 8 bits, may change in forces of random networks: products of some layers, 0.4 % each.
BF16_FORCES = 0.05


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    return [to_structure(atoms, 4.0) for atoms in ionic_rows(4)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 rows train, 2 validate, 2 test."""
    return write_ionic_rows(tmp_path_factory.mktemp("data") / "rows.extxyz", n=16)


def config(**settings: object) -> FitConfig:
    return make_config(None, SMALL | {f"training.{name}": value for name, value in settings.items()})


# --- loss


@pytest.mark.parametrize(
    ("settings", "costs", "slopes"),
    [
        ({}, [0.25, 9.0], [-1.0, 6.0]),  # as it always was
        ({"loss": "mse"}, [0.25, 9.0], [-1.0, 6.0]),
        ({"loss": "mae"}, [0.5, 3.0], [-1.0, 1.0]),
        ({"loss": "huber"}, [0.25, 5.0], [-1.0, 2.0]),
        ({"loss": "huber", "huber_threshold": 0.25}, [0.1875, 1.4375], [-0.5, 0.5]),
    ],
)
def test_what_an_error_costs(settings: dict[str, Any], costs: list[float], slopes: list[float]) -> None:
    """Two errors, by hand."""
    errors = torch.tensor([-0.5, 3.0], dtype=torch.float64, requires_grad=True)
    cost = penalty(errors, TrainingConfig(**settings))
    assert cost.tolist() == pytest.approx(costs, rel=1e-12)
    (slope,) = torch.autograd.grad(cost.sum(), [errors])
    assert slope.tolist() == pytest.approx(slopes, rel=1e-12)


@pytest.mark.parametrize("label", ["energy", "forces"])
@pytest.mark.parametrize(("loss", "bounded"), [("mse", False), ("mae", True), ("huber", True)])
def test_a_wrong_label_pulls_only_so_far(structures: list[Structure], loss: str, bounded: bool, label: str) -> None:
    """With magnitudes, the gradient does not know how wrong a very wrong label is."""
    weights = {"energy_weight": float(label == "energy"), "force_weight": float(label == "forces")}
    settings = config(loss=loss, dtype="float64", **weights)
    torch.manual_seed(0)
    model = build_potential(settings.model, [11, 17]).set_precision(torch.float64)
    torch.nn.init.normal_(model.short.readout.last.weight)
    gradients = []
    for wrong in (1e3, 1e4):
        batch = collate(structures[:1])  # alone, a structure keeps its energy
        store_known(model, [batch], set())
        batch[label] = batch[label].clone()
        batch[label].view(-1)[0] += wrong
        module = StageModule(model, plan(settings)[0], settings.training, [], {label: 0.1}, 1e-3)
        value, _ = module._loss(batch, create_graph=True)
        found = torch.autograd.grad(value, [p for p in model.short.parameters() if p.requires_grad], allow_unused=True)
        gradients.append(torch.cat([g.reshape(-1) for g in found if g is not None]))
    change = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    assert (change < 1e-9) if bounded else (change > 5.0)


# --- averaged weights


def test_average_of_weights_by_hand() -> None:
    module = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    frozen = nn.Linear(1, 1, bias=False)
    module.register_module("frozen", frozen.requires_grad_(False))
    averaged = AveragedWeights(module, 0.5)
    expected = start = module.weight.item()
    for step in range(1, 21):
        with torch.no_grad():
            module.weight.fill_(start + step)
        averaged.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (start + step)
    before, untouched = module.weight.item(), frozen.weight._version
    averaged.swap_in()
    assert module.weight.item() == pytest.approx(expected, rel=1e-12)
    averaged.swap_out()
    assert module.weight.item() == before
    assert averaged.averages.keys() == {"weight"}
    assert frozen.weight._version == untouched


def test_without_averaging_the_weights_are_their_own() -> None:
    module = nn.Linear(2, 2)
    averaged = AveragedWeights(module, 0.0)
    before = module.weight._version
    averaged.update()
    averaged.swap_in()
    averaged.swap_out()
    assert module.weight._version == before
    assert averaged.averages == {}


def test_the_saved_model_has_the_averaged_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights after each step are put down, and their average is worked out anew."""
    name, seen = "short.readout.last.bias", []
    step = StageModule.optimizer_step

    def noted(self: StageModule, *args: Any, **kwargs: Any) -> None:
        if not seen:
            seen.append(self.model.state_dict()[name].clone())
        step(self, *args, **kwargs)
        seen.append(self.model.state_dict()[name].clone())

    monkeypatch.setattr(StageModule, "optimizer_step", noted)
    settings = SMALL | ONE_STAGE | {"training.max_epochs": 1, "training.ema": 0.9, "training.lr": 1e-4}
    result = fit(data, out=tmp_path / "run", settings=settings, verbose=False)
    assert len(seen) == 1 + 3
    expected = seen[0]
    for number, value in enumerate(seen[1:], 1):
        decay = (1 + number) / (10 + number)  # the steps are too few for 0.9
        expected = decay * expected + (1 - decay) * value
    found = load(tmp_path / "run/model.pt").state_dict()[name]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
    assert not torch.equal(found, seen[-1])
    assert result.stages[-1]["epochs"] == 1


# --- steps of several batches


@pytest.mark.parametrize(("one", "several"), [(8, (2, 4)), (12, (4, 5))])
def test_accumulated_batches_step_as_one(data: Path, tmp_path: Path, one: int, several: tuple[int, int]) -> None:
    """12 structures in steps of 8 and 4, and all in one step, though that waits for more batches than an epoch has: of
    one batch each, and of several. Forces alone, whose loss is a mean over structures of one size, so that the order of
    the sums is all that differs."""
    settings = SMALL | ONE_STAGE | {"training.energy_weight": 0.0, "training.max_epochs": 3}
    shapes = {"one": (one, 1), "several": several}
    for name, (size, count) in shapes.items():
        steps = {"training.batch_size": size, "training.accumulate": count}
        fit(data, out=tmp_path / name, settings=settings | steps, verbose=False)
    found = [metrics(tmp_path / name) for name in shapes]
    assert len(found[0]) == 4
    for left, right in zip(*found, strict=True):
        assert left["lr"] == right["lr"]  # warm-up and fall are by steps
        assert float(left["loss"]) == pytest.approx(float(right["loss"]), rel=1e-9)
    weights = [load(tmp_path / f"{name}/model.pt").state_dict() for name in shapes]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-6, atol=1e-8)


# --- bfloat16


@pytest.mark.parametrize("messages", ["compiled", "plain"])
def test_forces_of_painn_in_bfloat16(structures: list[Structure], messages: str) -> None:
    model = _random_potential("painn")
    if messages == "plain":  # what other devices use
        model.short.backbone._messages = model.short.backbone._plain
    _check_bfloat16(model, structures)


@pytest.mark.parametrize("backbone", ["dimenet++", "equivariant"])
def test_forces_in_bfloat16(structures: list[Structure], backbone: str) -> None:
    _check_bfloat16(_random_potential(backbone), structures)


def _random_potential(backbone: str) -> Potential:
    config = make_config(None, {"model.backbone.name": backbone, "model.backbone.features": 8})
    torch.manual_seed(0)
    model = build_potential(config.model, [11, 17]).set_precision(torch.float32)
    nn.init.normal_(model.short.readout.last.weight)
    assert model.long is not None
    model.long.charges.set_values({11: 0.5, 17: -0.5})
    return model


def _check_bfloat16(model: Potential, structures: list[Structure]) -> None:
    """Forces and their slopes by the weights are near those in full precision, and the long range is not touched."""
    found: list[dict[str, Tensor]] = []
    for mixed in (False, True):
        model.short.mixed_precision = mixed
        model.zero_grad()
        output = model(collate(structures), create_graph=True)
        output["forces"].square().sum().backward()
        slopes = torch.cat([p.grad.reshape(-1) for p in model.short.parameters() if p.grad is not None])
        found.append({**output, "slopes": slopes})
    full, bf16 = found
    assert {output[name].dtype for output in found for name in ("energy", "forces")} == {torch.float64}
    assert torch.equal(full["energy_long"], bf16["energy_long"])
    short = model(collate(structures), parts={"short"})["forces"]
    change = (bf16["forces"] - full["forces"]).norm() / short.norm()
    assert 1e-6 < change < BF16_FORCES  # more than nothing: the lower precision is at work
    assert (bf16["slopes"] - full["slopes"]).norm() < 2 * BF16_FORCES * full["slopes"].norm()


def test_a_fit_in_bfloat16_ends_as_near_as_one_in_full_precision(data: Path, tmp_path: Path) -> None:
    ends = {}
    for precision in ("full", "bf16"):
        # three times longer steps drive fits apart by a tenth, whatever the rounding that begins it
        settings = SMALL | {"model.kernel.form": "none", "training.max_epochs": 12, "training.lr": 0.01}
        settings |= {"training.batch_size": 2, "training.precision": precision}
        result = fit(data, out=tmp_path / precision, settings=settings, verbose=False)
        losses = [float(record["loss"]) for record in metrics(tmp_path / precision)]
        assert min(losses) < 0.7 * losses[0]
        ends[precision] = result.stages[-1]["validation"]["forces"]["mae"]
        assert load(tmp_path / precision / "model.pt").short.readout.last.weight.dtype == torch.float32
    assert ends["full"] != ends["bf16"]
    assert ends["bf16"] == pytest.approx(ends["full"], rel=0.1)


class Mixing(nn.Module):
    """A backbone that adds a product of matrices to a sum in the precision of its weights, which autocast cannot."""

    def __init__(self, cutoff: float = 4.0) -> None:
        super().__init__()
        self.cutoff, self.features = cutoff, 4
        self.layer = nn.Linear(3, 4)

    def forward(self, batch: Any, vectors: Tensor) -> AtomFeatures:
        zeros = vectors.new_zeros(len(batch.numbers), 4)
        return AtomFeatures(zeros.index_add(0, batch.edge_index[1], self.layer(vectors)), None)


@pytest.fixture
def mixing() -> Iterator[None]:
    register("mixing", Mixing)
    yield
    del BACKBONES["mixing"], REGISTERED_BACKBONES["mixing"]


@pytest.mark.usefixtures("mixing")
def test_a_backbone_without_bfloat16_is_refused_before_work_starts(data: Path, tmp_path: Path) -> None:
    settings = {"model.backbone.name": "mixing", "model.kernel.form": "none", "training.precision": "bf16"}
    with pytest.raises(ConfigError, match=r"training.precision: the backbone cannot work in bf16 \(.*precision full"):
        fit(data, out=tmp_path / "run", settings=settings, verbose=False)
    assert not (tmp_path / "run").exists()


def test_bfloat16_beside_float64_is_refused() -> None:
    with pytest.raises(ConfigError, match="bf16 is beside dtype float32; with float64, choose precision full"):
        config(precision="bf16", dtype="float64")


# --- settings by stage


def test_stages_have_settings_of_their_own(data: Path, tmp_path: Path) -> None:
    """Epochs, rates, batches and weights of stage 2 alone; what stage 1 leaves is the same without them."""
    base = SMALL | {"training.max_epochs": 1}
    fit(data, out=tmp_path / "plain", settings=base, verbose=False)
    own = {"lr_long": 3e-3, "batch_size": 12, "energy_weight": 2.0, "force_weight": 2.0}
    settings = base | {f"training.per_stage.2.{name}": value for name, value in own.items()}
    settings["training.per_stage.3.max_epochs"] = 2
    result = fit(data, out=tmp_path / "own", settings=settings, verbose=False)
    assert [stage["epochs"] for stage in result.stages[1:]] == [1, 1, 2]
    plain, found = (
        {(int(r["stage"]), int(r["epoch"])): r for r in metrics(tmp_path / name)} for name in ("plain", "own")
    )
    assert [found[1, epoch] for epoch in (0, 1)] == [plain[1, epoch] for epoch in (0, 1)]
    assert float(found[2, 0]["loss"]) == pytest.approx(2.0 * float(plain[2, 0]["loss"]), rel=1e-12)
    # a single step, at the end of the warm-up and the beginning of the fall
    assert float(found[2, 1]["lr"]) == 3e-3
    assert make_config(tmp_path / "own/config.yaml").training.per_stage[2].lr_long == 3e-3


def test_the_weights_of_the_last_epoch_are_kept_if_so_asked(data: Path, tmp_path: Path) -> None:
    """Steps so large that the last epoch is not the best."""
    found = {}
    for keep in ("best", "last"):
        settings = SMALL | ONE_STAGE | {"training.max_epochs": 3, "training.lr": 3.0, "training.keep": keep}
        result = fit(data, out=tmp_path / keep, settings=settings, verbose=False)
        history = [float(record["energy"]) for record in metrics(tmp_path / keep)]
        found[keep] = result.stages[-1]["validation"]["energy"]["mae"], history
    assert found["last"][0] == pytest.approx(found["last"][1][-1], rel=1e-6)
    assert found["best"][0] == pytest.approx(min(found["best"][1]), rel=1e-6)
    assert found["best"][0] < found["last"][0]


def test_a_label_of_one_stage_is_looked_for(data: Path, tmp_path: Path) -> None:
    settings = SMALL | {"training.per_stage.2.charge_weight": 1.0}
    with pytest.raises(DataError, match=r"training.charge_weight is set, but no training row has charges"):
        fit(data, out=tmp_path / "run", settings=settings, verbose=False)


def test_settings_of_a_stage() -> None:
    found = config(per_stage={2: {"lr": "1e-3", "charge_weight": 3.0}}, lr=7e-3).training
    assert [found.for_stage(number).lr for number in (1, 2, 3)] == pytest.approx([7e-3, 1e-3, 1.4e-3])
    assert found.for_stage(2).per_stage == {}
    assert found.weight("charge_weight") == 3.0
    assert found.for_stage(1).weight("charge_weight") == 0.0


def test_the_last_stage_is_gentle_with_a_fitted_network() -> None:
    """Unless it is told otherwise, or all stages are: those of a fine-tuning are."""
    assert config(lr=1e-3).training.for_stage(3).lr == pytest.approx(2e-4)
    assert config(lr=1e-3, per_stage={3: {"lr": 2e-3}}).training.for_stage(3).lr == 2e-3
    assert config(**{"lr": 1e-3, "stages": 3, "finetune.model": "a.pt"}).training.for_stage(3).lr == 1e-3


def test_settings_of_stages_in_files(tmp_path: Path) -> None:
    """Numbers as YAML writes them and as names with dots write them are the same stage."""
    (tmp_path / "c.yaml").write_text("training: {per_stage: {2: {lr: 1.0e-3, max_epochs: 7}}}")
    found = make_config(tmp_path / "c.yaml", {"training.per_stage.2.max_epochs": 5, "training.per_stage.3.loss": "mae"})
    assert found.training.per_stage[2].model_dump() == {"max_epochs": 5, "lr": 1e-3}
    assert found.training.per_stage[3].model_dump() == {"loss": "mae"}
    (tmp_path / "again.yaml").write_text(found.to_yaml())
    assert make_config(tmp_path / "again.yaml") == found
    assert "null" not in json.dumps(found.model_dump(mode="json")["training"]["per_stage"])


def test_every_setting_of_a_stage_is_one_of_the_fit_with_the_same_limits() -> None:
    """So that no setting of a stage is checked in another way than that of the fit."""
    stage = make_config(None, {"training.per_stage": {1: {}}}).training.per_stage[1]
    for name in type(stage).model_fields:
        for value in (-1, 0, 0.5, 1, 2, "auto", "mae", "plateau", "nothing"):
            accepted = []
            for setting in (f"training.{name}", f"training.per_stage.1.{name}"):
                try:
                    make_config(None, {setting: value})
                    accepted.append(True)
                except ConfigError:
                    accepted.append(False)
            assert accepted[0] == accepted[1], (name, value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_stage": {4: {"lr": 1.0}}}, r"there is no stage 4; did you mean 3\? Stages are 1, 2 and 3"),
        ({"per_stage": {0: {"lr": 1.0}}}, r"there is no stage 0; did you mean 1\?"),
        ({"per_stage.4.lr": 1.0}, r"training.per_stage.4.lr does not exist; did you mean training.per_stage.\d.lr\?"),
        ({"per_stage.2.lrr": 1.0}, r"per_stage.2.lrr does not exist; did you mean training.per_stage.2.lr\?"),
        ({"per_stage": {2: {"max_epoch": 1}}}, r"per_stage.2.max_epoch does not exist; did you mean max_epochs\?"),
        ({"per_stage.2.seed": 1}, r"training.per_stage.2.seed does not exist; did you mean training.seed\?"),
        ({"per_stage.2.lr": -1.0}, r"training.per_stage.2.lr = -1.0: Input should be greater than 0"),
        ({"per_stage": 3}, r"training.per_stage = 3: expected settings by number of a stage"),
        ({"per_stage.2.lr": 1.0, "stages": 1}, r"per_stage names stage 2, but training.stages is 1; name stage 1"),
        ({"ema": 1.0}, r"training.ema = 1.0: Input should be less than 1"),
        ({"loss": "l1"}, r"training.loss = 'l1': Input should be 'mse', 'mae' or 'huber'"),
        ({"accumulate": 0}, r"training.accumulate = 0: Input should be greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_a_stage_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"names stage 3, but with kernel.form none there is one stage"):
        make_config(None, {"model.kernel.form": "none", "training.per_stage.3.lr": 1.0})
    with pytest.raises(ConfigError, match=r"names stage 2, but a fit of properties has one; name stage 1"):
        make_config(None, {"task": "property", "training.per_stage.2.lr": 1.0})
