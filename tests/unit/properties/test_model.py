"""Property models: scales and kinds of targets, ensembles, and the files that keep them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from ase import Atoms

from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError, DataError, ModelFileError
from lrpot.model_file import load, load_model, save
from lrpot.properties.evaluation import evaluate_properties
from lrpot.properties.model import PropertyEnsemble, PropertyModel
from lrpot.structure import Structure, collate
from tests.unit.properties.crystals import doubled, triclinic
from tests.unit.properties.property_data import ENCODERS, HEADS, salts, small_model

# Of float64, over a few layers.
EXACT = 1e-9


def structure_of(model: PropertyModel | PropertyEnsemble, atoms: Atoms) -> Structure:
    return to_structure(atoms, model.cutoff, shells=model.shells, labels=False)


def predicted(model: PropertyModel | PropertyEnsemble, *crystals: Atoms) -> torch.Tensor:
    return model.predict(collate([structure_of(model, atoms) for atoms in crystals])).values


# --- targets and their scales


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_extensive_target_doubles_with_the_cell_and_an_intensive_one_stays(encoder: str, head: str) -> None:
    model = small_model(("gap", "energy"), encoder, head, torch.float64, extensive=["energy"])
    one, two = predicted(model, triclinic(), doubled(triclinic()))
    assert abs(one).min() > 0.1
    assert float(two[0]) == pytest.approx(float(one[0]), rel=EXACT)
    assert float(two[1]) == pytest.approx(2 * float(one[1]), rel=EXACT)


def test_scales_are_mean_and_spread_of_what_is_learned() -> None:
    """Numbers as they are, extensive ones per atom, logarithms; what is missing does not count; classes are left."""
    model = small_model(
        ("gap", "energy", "bulk", "metal"), extensive=["energy"], log=["bulk"], classification=["metal"]
    )
    model.centre.zero_()
    model.scale.fill_(1.0)
    nan = float("nan")
    values = torch.tensor([[1.0, 4.0, 1.0, 0.0], [nan, 9.0, 100.0, 1.0], [3.0, nan, nan, nan]], dtype=torch.float64)
    model.set_scales(values, torch.tensor([2, 3, 5]))
    spread = np.log(100.0) / 2
    assert model.centre.tolist() == pytest.approx([2.0, 2.5, spread, 0.0])
    assert model.scale.tolist() == pytest.approx([2**0.5, 0.5**0.5, spread * 2**0.5, 1.0])


def test_units_and_back() -> None:
    """What is learned of values gives these values again, whatever the kind of target."""
    model = small_model(("gap", "energy", "bulk"), extensive=["energy"], log=["bulk"])
    batch = collate([structure_of(model, atoms) for atoms in (triclinic(), doubled(triclinic()))])
    values = torch.tensor([[0.7, -12.0, 35.0], [1.9, -31.0, 140.0]], dtype=torch.float64)
    torch.testing.assert_close(model.in_units(model.learned(values, batch), batch), values, rtol=1e-12, atol=1e-12)


def test_a_class_comes_as_its_probability() -> None:
    model = small_model(("metal",), classification=["metal"], dtype=torch.float64)
    structure = structure_of(model, triclinic())
    logit = model(structure).values
    torch.testing.assert_close(predicted(model, triclinic()), torch.sigmoid(logit))
    assert abs(logit).item() > 1e-3


@pytest.mark.parametrize(
    ("values", "expected"),
    [([float("nan")] * 3, "no training row has gap"), ([5.0, 5.0, float("nan")], "gap is 5 in all 2 training rows")],
)
def test_a_target_without_anything_to_learn_is_refused(values: list[float], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        small_model().set_scales(torch.tensor(values, dtype=torch.float64)[:, None], torch.tensor([1, 1, 1]))


def test_the_same_for_each_atom_is_no_division_by_rounding() -> None:
    model = small_model(("energy",), extensive=["energy"])
    sizes = torch.tensor([3, 7, 11])
    model.set_scales(0.1 * sizes[:, None].double(), sizes)
    assert float(model.scale) == 1.0
    assert float(model.centre) == pytest.approx(0.1)


# --- ensembles


def test_an_ensemble_is_mean_and_spread_times_factor() -> None:
    members = [small_model(("gap", "bulk"), seed=seed, dtype=torch.float64) for seed in range(3)]
    ensemble = PropertyEnsemble(members, {"bulk": 2.5}).eval()
    values = torch.stack([predicted(member, *salts(2)) for member in members])
    found = ensemble.predict(collate([structure_of(ensemble, atoms) for atoms in salts(2)]))
    torch.testing.assert_close(found.values, values.mean(dim=0))
    assert found.uncertainty is not None
    torch.testing.assert_close(found.uncertainty, values.std(dim=0) * torch.tensor([1.0, 2.5]))
    assert found.uncertainty.min() > 0


@pytest.mark.parametrize(
    ("members", "factors", "expected"),
    [
        (lambda: [small_model()], {}, "an ensemble of 1 model has no spread"),
        (lambda: [small_model(), small_model()], {}, "models 0 and 1 of the ensemble are the same"),
        (lambda: [small_model(), small_model(("bulk",))], {}, "predicts bulk, model 0 gap; join models of the same"),
        (lambda: [small_model(), small_model(log=["gap"])], {}, r"predicts gap \[log\], model 0 gap"),
        (lambda: [small_model(), small_model(encoder="regnet")], {}, "reads other edges than model 0"),
        (lambda: [small_model(), small_model(seed=1)], {"bulk": 1.0}, "the factor of bulk is of no target"),
        (lambda: [small_model(), small_model(seed=1)], {"gap": 0.0}, "the factor of gap"),
    ],
)
def test_models_that_make_no_ensemble(
    members: Callable[[], list[PropertyModel]], factors: dict[str, float], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        PropertyEnsemble(members(), factors)


def test_evaluation_does_not_depend_on_how_crystals_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(dtype=torch.float64)
    structures = [structure_of(model, atoms) for atoms in salts(7)]
    together = evaluate_properties(model, structures)
    monkeypatch.setattr("lrpot.properties.evaluation.MAX_CRYSTALS", 3)
    apart = evaluate_properties(model, structures)
    np.testing.assert_allclose(apart.predicted, together.predicted, rtol=1e-12)
    assert np.isnan(together.reference).all()


# --- files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_model_comes_back_from_its_file(encoder: str, head: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = small_model(("gap", "bulk"), encoder, head, dtype, log=["bulk"], units={"bulk": "GPa"})
    found = load_model(save(model, tmp_path / "model.pt"))
    assert isinstance(found, PropertyModel)
    assert found.targets == model.targets
    assert found.elements == model.elements
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(value.dtype == found.state_dict()[name].dtype for name, value in model.state_dict().items())
    assert torch.equal(predicted(found, *salts(3)), predicted(model, *salts(3)))


def test_an_ensemble_comes_back_from_its_file(tmp_path: Path) -> None:
    ensemble = PropertyEnsemble([small_model(seed=seed) for seed in range(2)], {"gap": 1.7}).eval()
    found = load_model(save(ensemble, tmp_path / "model.pt"))
    assert isinstance(found, PropertyEnsemble)
    assert found.factors == {"gap": 1.7}
    assert torch.equal(predicted(found, *salts(3)), predicted(ensemble, *salts(3)))


def test_another_precision_on_request(tmp_path: Path) -> None:
    path = save(small_model(), tmp_path / "model.pt")
    single, double = load_model(path), load_model(path, dtype=torch.float64)
    assert isinstance(double, PropertyModel)
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    torch.testing.assert_close(predicted(double, *salts(3)), predicted(single, *salts(3)), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


def test_a_potential_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="predicts gap of crystals, not energies and forces; use it with lrpot"):
        load(save(small_model(), tmp_path / "model.pt"))


Parts = tuple[dict[str, Any], dict[str, torch.Tensor]]


def setting(name: str, value: object) -> Callable[[Parts], None]:
    """A model file whose settings say this of the encoder, the head or the properties."""

    def change(parts: Parts) -> None:
        section = parts[0]["models"][0]["config"]["properties"]
        *folders, last = name.split(".")
        for folder in folders:
            section = section[folder]
        section[last] = value

    return change


def about(name: str, value: object) -> Callable[[Parts], None]:
    return lambda parts: parts[0].update({name: value})


def weight(name: str, value: float) -> Callable[[Parts], None]:
    return lambda parts: parts[1][f"0.{name}"].flatten()[:1].fill_(value)


def renumbered(parts: Parts) -> None:
    parts[1]["7.head.extra"] = torch.zeros(1)


def no_weights(parts: Parts) -> None:
    parts[1].clear()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (setting("encoder.features", 10**5), "do not fit each other"),
        (setting("encoder.features", 10**30), "do not fit each other"),
        (setting("encoder.blocks", 10**9), "more layers than it has weights"),
        (setting("encoder.depth", 3), "encoder.*depth"),
        (setting("encoder.name", "other"), "its encoder 'other' is none of this lrpot's; use the lrpot that made it"),
        (setting("head.kind", "experts"), "do not fit each other"),
        (setting("targets", ["gap", "bulk"]), "do not fit each other"),
        (setting("targets", []), "do not fit each other"),
        (about("factors", {"gap": "large"}), r"is damaged \(factors in model.json"),
        (about("factors", None), r"is damaged \(factors in model.json"),
        (about("models", 3), "models in model.json is no list of objects"),
        (about("models", [{}]), "is damaged"),
        (weight("scale", float("nan")), "weight scale is not finite"),
        (renumbered, r"weight '7.head.extra' is of no model in it"),
        (no_weights, "more layers than it has weights"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused_in_one_line(
    change: Callable[[Parts], None], expected: str, tmp_path: Path
) -> None:
    """Nothing of it is built before it is known to be small and whole."""
    path = save(small_model(), tmp_path / "model.pt")
    with zipfile.ZipFile(path) as archive:
        parts = (json.loads(archive.read("model.json")), safetensors.torch.load(archive.read("weights.safetensors")))
    change(parts)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("model.json", json.dumps(parts[0]))
        archive.writestr("weights.safetensors", safetensors.torch.save(parts[1]))
    path.write_bytes(packed.getvalue())
    with pytest.raises(ModelFileError, match=expected) as error:
        load_model(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
