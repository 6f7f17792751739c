"""A backbone of the user's own: its arguments are settings, its models are files, and both say when it is missing."""

from __future__ import annotations

from collections.abc import Iterator

import ase.io
import numpy as np
import pytest
import torch
from torch import nn

from lrpot import LRCalculator, fit
from lrpot.backbones import BACKBONES, AtomFeatures, PaiNN, register
from lrpot.config import REGISTERED_BACKBONES, field_names, make_config
from lrpot.errors import ConfigError, ModelFileError
from lrpot.model_file import load
from lrpot.smooth import taper
from tests.helpers_cli import rock_salt, small_model


class Mine(nn.Module):
    """Densities of neighbours by element. Its table of centres cannot be built without memory, as many cannot."""

    def __init__(self, width: int, cutoff: float = 4.0, centres: list[float] | None = None) -> None:
        super().__init__()
        self.cutoff, self.features = cutoff, width
        self.centres = torch.linspace(1.0, cutoff, width).tolist() if centres is None else centres
        self.weights = nn.Embedding(119, width)

    def forward(self, batch, vectors):
        neighbour, centre = batch.edge_index
        distances = torch.linalg.vector_norm(vectors, dim=1)[:, None]
        basis = torch.exp(-((distances - distances.new_tensor(self.centres)) ** 2)) * taper(distances, self.cutoff)
        here = self.weights(batch.numbers)
        return AtomFeatures(here.index_add(0, centre, basis * here[neighbour]), None)


@pytest.fixture(autouse=True)
def mine() -> Iterator[None]:
    register("mine", Mine)
    yield
    for registry in (BACKBONES, REGISTERED_BACKBONES):
        for name in [name for name in registry if name == "mine"]:
            del registry[name]


def forget() -> None:
    del BACKBONES["mine"], REGISTERED_BACKBONES["mine"]


def test_arguments_are_settings_with_types_and_defaults() -> None:
    section = make_config(None, {"model.backbone.name": "mine", "model.backbone.width": 6}).model.backbone
    assert section.model_dump() == {"name": "mine", "width": 6, "cutoff": 4.0, "centres": None}
    assert "model.backbone.width" in field_names()
    config = make_config({"model": {"backbone": {"name": "mine", "width": 3, "centres": [1.0, 2.0, 3.0]}}})
    assert make_config(config) == config
    assert make_config(config).model_dump(mode="json")["model"]["backbone"]["centres"] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "width: Field required; settings of mine are name, width, cutoff, centres"),
        ({"width": "wide"}, "width: .*valid integer"),
        ({"width": 4, "depth": 2}, "depth: .*settings of mine are name, width"),
        ({"width": 4, "cutoff": -1.0}, "model.backbone.cutoff = -1.0: Input should be greater than 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config({"model": {"backbone": {"name": "mine"} | settings}})


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"'yours': choose one of 'painn'.*, a backbone of your own after lrpot\.back"
    ):
        make_config(None, {"model.backbone.name": "yours"})
    with pytest.raises(ConfigError, match=r"no backbone '.registered.' is registered"):
        make_config(None, {"model.backbone.name": "(registered)"})


def test_names_of_lrpot_cannot_be_taken() -> None:
    with pytest.raises(ConfigError, match="'painn' belongs to lrpot; register yours under another name"):
        register("painn", Mine)
    assert BACKBONES["painn"] is PaiNN


class Untyped(nn.Module):
    def __init__(self, width, cutoff: float) -> None: ...


class Anything(nn.Module):
    def __init__(self, cutoff: float, **rest: int) -> None: ...


class NoCutoff(nn.Module):
    def __init__(self, width: int) -> None: ...


class TakesAModule(nn.Module):
    def __init__(self, cutoff: float, inner: nn.Module) -> None: ...


class UnknownType(nn.Module):
    def __init__(self, cutoff: Length) -> None: ...  # noqa: F821


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (Untyped, "argument width has no type; write it as width: int"),
        (Anything, "argument rest has no type"),
        (NoCutoff, "needs an argument cutoff: float"),
        (TakesAModule, "Unable to generate pydantic-core schema .* use int, float, str"),
        (UnknownType, "name 'Length' is not defined; give its arguments types"),
    ],
)
def test_classes_that_cannot_have_settings_are_refused(backbone: type[nn.Module], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register("bad", backbone)
    assert "bad" not in BACKBONES
    assert "bad" not in REGISTERED_BACKBONES


def test_fit_save_load_and_compute(tmp_path) -> None:
    teacher, rows = LRCalculator(small_model()), []
    for seed in range(6):
        atoms = rock_salt(seed=seed)
        atoms.calc = teacher
        atoms.get_forces()
        rows.append(atoms)
    ase.io.write(tmp_path / "rows.extxyz", rows)
    settings = {
        "model.backbone.name": "mine",
        "model.backbone.width": 6,
        "model.kernel.tolerance": 1e-5,
        "model.kernel.hidden": 8,
        "training.max_epochs": 2,
    }
    result = fit(tmp_path / "rows.extxyz", out=tmp_path / "run", settings=settings, verbose=False)
    assert len(result.stages) == 4  # the start and three stages
    model = load(result.path)
    assert isinstance(model.short.backbone, Mine)
    forces = [rows[0].copy() for _ in range(2)]
    for atoms, source in zip(forces, (result.path, result.model), strict=True):
        atoms.calc = LRCalculator(source)
    assert np.abs(forces[0].get_forces()).max() > 1e-2
    np.testing.assert_array_equal(forces[0].get_forces(), forces[1].get_forces())

    forget()
    with pytest.raises(
        ModelFileError, match=r"model\.pt: its backbone 'mine' is none of lrpot's; import the module that"
    ):
        load(result.path)
