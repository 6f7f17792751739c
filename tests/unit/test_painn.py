"""PaiNN as a whole: with tables and compiled loops as without them, and tables that follow the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from ase.build import bulk
from torch import Tensor, nn
from torch.autograd import grad
from torch_geometric.data import Data

from lrpot.backbones import AtomFeatures, PaiNN
from lrpot.backbones.messages import positions_only
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError
from lrpot.structure import Structure, collate, edge_vectors

CUTOFF = 4.0  # A
FEATURES, INTERACTIONS, RADIAL_BASIS = 7, 3, 12
# Relative to the largest number: the splines' errors of values and slopes, and of curvatures (`lrpot.backbones.painn`).
VALUES, CURVATURES = 1e-11, 1e-9


class Plain(PaiNN):
    """With exact filters in tensor operations, as on a GPU."""

    def _messages(self, batch: Data, vectors: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        return self._plain(batch, vectors)


def make(kind: type[PaiNN] = PaiNN, cutoff_function: str = "smooth", seed: int = 0) -> PaiNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(FEATURES, INTERACTIONS, RADIAL_BASIS, CUTOFF, cutoff_function).double()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, std=0.2)  # biases start at zero and would hide
    return model


def total(features: AtomFeatures) -> Tensor:
    """(), a function of all features whose derivatives depend on them."""
    return features.scalar.sin().sum() + (features.vector**2).sum()


def features_of(model: PaiNN, batch: Structure) -> AtomFeatures:
    return model(batch, edge_vectors(batch).to(model.embedding.weight.dtype))


def moving(batch: Structure) -> Structure:
    moved = batch.clone()
    moved.positions = moved.positions.clone().requires_grad_()
    return moved


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = float(expected.detach().abs().max())
    assert scale > 0.0
    torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance * scale)


@pytest.fixture
def batch(random_crystal) -> Structure:
    return collate([random_crystal(1, 5, cutoff=CUTOFF), random_crystal(2, 3, cutoff=1.0), random_crystal(3, 4)])


# --- tables and loops


@pytest.mark.parametrize("cutoff_function", ["smooth", "cosine"])
def test_features_forces_and_gradients_are_those_of_exact_filters(cutoff_function: str, batch: Structure) -> None:
    found, expected = [], []
    for kind, results in ((PaiNN, found), (Plain, expected)):
        model, moved = make(kind, cutoff_function), moving(batch)
        features = features_of(model, moved)
        by = [moved.positions, *model.parameters()]
        results += [features.scalar, features.vector, *grad(total(features), by)]
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, VALUES)


@pytest.mark.parametrize("promised", [True, False])
def test_training_on_forces_is_that_of_exact_filters(promised: bool, batch: Structure) -> None:
    found, expected = [], []
    for kind, results in ((PaiNN, found), (Plain, expected)):
        model, moved = make(kind), moving(batch)
        energy = total(features_of(model, moved))
        if promised:
            with positions_only():
                (forces,) = grad(energy, moved.positions, create_graph=True)
        else:
            (forces,) = grad(energy, moved.positions, create_graph=True)
        loss = energy**2 + (forces**2).sum()
        results += [forces, *grad(loss, list(model.parameters()))]
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, CURVATURES)


def test_force_constants_are_those_of_exact_filters(random_crystal) -> None:
    """Second derivatives by positions, which no promise covers."""
    crystal = random_crystal(4, 3, cutoff=CUTOFF)
    force_constants = []
    for kind in (PaiNN, Plain):
        model, moved = make(kind), moving(crystal)
        (forces,) = grad(total(features_of(model, moved)), moved.positions, create_graph=True)
        rows = [grad(force, moved.positions, retain_graph=True)[0].flatten() for force in forces.flatten()]
        force_constants.append(torch.stack(rows))
    assert_close(*force_constants, CURVATURES)
    assert_close(force_constants[0], force_constants[0].mT, VALUES)


# --- tables that are kept


def frozen(seed: int = 0) -> PaiNN:
    return make(seed=seed).requires_grad_(False)


def change_in_place(model: PaiNN) -> None:
    model.filter_net.weight.mul_(1.5)


def change_by_data(model: PaiNN) -> None:
    model.filter_net.bias.data.add_(0.1)


def change_through_numpy(model: PaiNN) -> None:
    model.filter_net.weight.numpy()[3, 8] += 0.5  # of the Gaussian at 2.9 A


def load_other_weights(model: PaiNN) -> None:
    model.load_state_dict(make(seed=1).state_dict())


def load_other_centres(model: PaiNN) -> None:
    model.load_state_dict(model.state_dict() | {"centres": model.centres + 0.1})


@pytest.mark.parametrize(
    "change", [change_in_place, change_by_data, change_through_numpy, load_other_weights, load_other_centres]
)
def test_a_table_follows_its_weights(change: Callable[[PaiNN], None], batch: Structure) -> None:
    model = frozen()
    before = features_of(model, batch).scalar
    change(model)
    after = features_of(model, batch).scalar
    exact = make(Plain)
    exact.load_state_dict(model.state_dict())
    assert_close(after, features_of(exact, batch).scalar.detach(), VALUES)
    assert float((after - before).abs().max()) > 1e-3


def test_a_table_is_made_once(batch: Structure, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = frozen(), []
    tabulate = model._tabulate
    monkeypatch.setattr(model, "_tabulate", lambda weights: made.append(1) or tabulate(weights))
    first, second = features_of(model, batch), features_of(model, batch)
    assert torch.equal(first.scalar, second.scalar)
    assert len(made) == 1
    change_in_place(model)
    features_of(model, batch)
    assert len(made) == 2
    with torch.no_grad():  # what is trained is frozen for that long
        features_of(model.requires_grad_(True), batch)
    assert len(made) == 2
    features_of(model, batch)
    features_of(model, batch)
    assert len(made) == 4


def test_a_table_follows_the_precision(batch: Structure) -> None:
    model = frozen()
    exact = features_of(model, batch).scalar
    single = features_of(model.float(), batch).scalar
    assert single.dtype == torch.float32
    assert_close(single.double(), exact, 1e-5)
    # of the rounded weights
    assert_close(features_of(model.double(), batch).scalar, exact, 1e-5)


def test_a_table_made_in_inference_mode_serves_forces_later(batch: Structure) -> None:
    model = frozen()
    with torch.inference_mode():
        features_of(model, batch)
    moved = moving(batch)
    (found,) = grad(total(features_of(model, moved)), moved.positions)
    moved = moving(batch)
    (expected,) = grad(total(features_of(frozen(), moved)), moved.positions)
    assert torch.equal(found, expected)


def test_a_copy_has_tables_of_its_own(batch: Structure) -> None:
    model = frozen()
    before = features_of(model, batch).scalar
    other = copy.deepcopy(model)
    change_in_place(other)
    assert not torch.equal(features_of(other, batch).scalar, before)
    assert torch.equal(features_of(model, batch).scalar, before)


# --- perfect crystals


@pytest.mark.parametrize(("epsilon", "smooth"), [(0.01, True), (1e-8, False)])
def test_epsilon_rounds_the_cusp_at_the_sites_of_a_perfect_crystal(epsilon: float, smooth: bool) -> None:
    """A second difference over its squared step stays the same; at a cusp it grows as the step shrinks."""
    torch.manual_seed(0)
    model = PaiNN(FEATURES, 1, RADIAL_BASIS, CUTOFF, epsilon=epsilon).double()
    crystal = bulk("NaCl", "rocksalt", a=5.64) * (2, 2, 2)

    def energy(x: float) -> float:
        moved = crystal.copy()
        moved.positions[0, 0] += x
        return float(features_of(model, to_structure(moved, CUTOFF)).scalar.sum().detach())

    small, large = ((energy(h) + energy(-h) - 2.0 * energy(0.0)) / h**2 for h in (2e-3, 8e-3))
    assert (abs(small / large - 1.0) < 0.05) is smooth


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 0}, "features is too small"),
        ({"interactions": 0}, "interactions is too small"),
        ({"radial_basis": 1}, "radial_basis is too small"),
        ({"cutoff_function": "sharp"}, "cutoff_function = 'sharp'; choose smooth or cosine"),
        ({"epsilon": 0.0}, r"epsilon = 0: .* raise it"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PaiNN(**settings)
