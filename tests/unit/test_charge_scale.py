"""Errors along the scale of all charges, against models whose charges are really multiplied; best scale, width."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lrpot import plots
from lrpot.build import build_potential
from lrpot.charge_scale import SCALES, ErrorAlongScale, errors_along_scale
from lrpot.charges import CHARGES
from lrpot.config import make_config
from lrpot.data.readers import to_structure
from lrpot.evaluation import Evaluation, evaluate_structures
from lrpot.potential import Potential
from lrpot.structure import Structure
from tests.unit.test_plots import is_picture
from tests.unit.test_training import SMALL
from tests.unit.training_data import ionic_rows

MakePotential = Callable[..., Potential]
RandomCrystal = Callable[..., Structure]


def labelled(random_crystal: RandomCrystal, total_charge: float = 0.0) -> list[Structure]:
    """Crystals of two compositions and random labels, some without forces."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for n in range(6):
        s = random_crystal(40 + n, 4 + n % 2, total_charge=total_charge)
        s.energy = torch.randn(1, dtype=torch.float64, generator=generator)
        if n != 2:
            s.forces = torch.randn(s.num_nodes, 3, dtype=torch.float64, generator=generator)
        found.append(s)
    return found


def multiplied(model: Potential, scale: float) -> Potential:
    """The model with all charges, or what they follow from, times a factor."""
    model = copy.deepcopy(model)
    module = model.long.charges
    with torch.no_grad():
        module.values *= scale
        if module.channels > 1:
            module.latent *= scale
        if module.sees_surroundings:
            module.network.last.weight *= scale
            module.network.last.bias *= scale
    return model


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("charges", CHARGES)
def test_it_is_the_error_with_all_charges_multiplied(
    charges: str, channels: int, random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    model, data = make_potential("coulomb", charges=charges, channels=channels), labelled(random_crystal)
    along = errors_along_scale(model, data, evaluate_structures(model, data))
    shares = torch.stack([torch.bincount(s.numbers, minlength=18) / s.num_nodes for s in data]).double()
    for scale in (0.8, 1.0, 1.15):
        found = evaluate_structures(multiplied(model, scale), data)
        rmse = found.errors()["forces"]["rmse"]
        assert along["forces"].rmse(scale) == pytest.approx(rmse, rel=1e-6)
        left = (found.predicted["energy"] - found.reference["energy"]).numpy()
        left -= shares.numpy() @ np.linalg.lstsq(shares.numpy(), left, rcond=None)[0]
        assert along["energy"].rmse(scale) == pytest.approx(np.sqrt((left**2).mean()), rel=1e-6)


def test_total_charges_are_multiplied_with_equilibrated_ones(
    random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    model, data = make_potential("coulomb", charges="equilibration"), labelled(random_crystal, total_charge=0.5)
    along = errors_along_scale(model, data, evaluate_structures(model, data))
    for s in data:
        s.total_charge = 0.9 * s.total_charge
    rmse = evaluate_structures(multiplied(model, 0.9), data).errors()["forces"]["rmse"]
    assert along["forces"].rmse(0.9) == pytest.approx(rmse, rel=1e-6)


def test_charges_of_the_wrong_size_are_found() -> None:
    """Labels of charges of 0.7 e and a repulsion, which a model without a network leaves: 0.5 e want to be 1.4 times
    as large."""
    model = build_potential(make_config(None, SMALL).model, [11, 17])
    model.long.charges.set_values({11: 0.5, 17: -0.5})
    data = [to_structure(atoms, 4.0) for atoms in ionic_rows(4)]
    for s in data:
        s.forces = (0.7 / 0.5) ** 2 * model(s, parts={"long"})["forces"]
        s.energy = (0.7 / 0.5) ** 2 * model(s, parts={"long"})["energy"] + 3.0 * s.num_nodes
    for along in errors_along_scale(model, data, evaluate_structures(model, data)).values():
        assert along.best == pytest.approx(1.4, abs=1e-6)
        assert along.width < 1e-3


def test_curvature_and_width() -> None:
    along = ErrorAlongScale(square=2.0, mixed=0.3, long=4.0)
    h = 1e-4
    for scale in (0.7, 1.0, along.best):
        second = (along.loss(scale + h) - 2.0 * along.loss(scale) + along.loss(scale - h)) / h**2
        assert along.curvature(scale) == pytest.approx(second, rel=1e-5)
    assert all(along.loss(along.best) < along.loss(along.best + d) for d in (-0.01, 0.01))
    parabola = along.loss(along.best) + 0.5 * along.curvature(along.best) * along.width**2
    assert parabola == pytest.approx(2.0 * along.loss(along.best))
    against = ErrorAlongScale(square=2.0, mixed=5.0, long=4.0)  # best without any charges
    assert against.best == 0.0
    assert against.curvature(0.0) > 0


def test_what_says_nothing_about_charges_is_left_out(
    random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    data = labelled(random_crystal)
    model = make_potential("coulomb")
    # one energy is explained by offsets
    assert list(errors_along_scale(model, data[:1], evaluate_structures(model, data[:1]))) == ["forces"]
    model.long.charges.set_values({})
    assert errors_along_scale(model, data, evaluate_structures(model, data)) == {}
    assert errors_along_scale(make_potential("none"), data, Evaluation()) == {}


def test_picture_and_record(tmp_path: Path) -> None:
    along = {"energy": ErrorAlongScale(1e-4, -1e-5, 2e-3), "forces": ErrorAlongScale(2.0, 9.0, 4.0)}
    assert is_picture(plots.charge_scale(along, tmp_path / "scale.png"))
    record = along["energy"].record()
    assert record["scales"] == list(SCALES)
    assert record["rmse"][SCALES.index(1.0)] == pytest.approx(1e-2)
    assert min(SCALES) == 0.8
    assert max(SCALES) == 1.2
