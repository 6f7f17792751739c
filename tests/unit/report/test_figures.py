"""What the figures of a report hold: the kernel beside Coulomb's, charges by element, errors along their scale."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lrpot.charge_scale import SCALES, ErrorAlongScale
from lrpot.console import Console
from lrpot.data.readers import read_rows, to_structures
from lrpot.model_file import load
from lrpot.report.comparison import Comparison, compare
from lrpot.report.curves import bars, charge_histograms, charge_scale, kernel
from lrpot.report.held_out import held_out
from lrpot.report.markup import number
from lrpot.report.run import read_run
from lrpot.report.sections import network_alone
from lrpot.report.style import log_axis, numbers
from lrpot.units import COULOMB_CONSTANT
from tests.conftest import MakePotential
from tests.unit.report.run_data import HOSTILE, TEST_ROWS
from tests.unit.report.test_comparison import random_comparison

SIX_DIGITS = 1e-5  # relative; what figures keep


@pytest.fixture(scope="module")
def compared(run: Path) -> Comparison:
    return compare(load(run / "model.pt"), held_out(read_run(run), Console(quiet=True))[0])


def test_kernel_beside_coulomb(make_potential: MakePotential) -> None:
    long = make_potential("coulomb").long
    reciprocal, real, difference = kernel(long)
    learned, bare = reciprocal.data[0], reciprocal.data[-1]
    k = torch.tensor(learned["x"], dtype=torch.float64)
    phi = long.reciprocal.phi(k).detach()
    shown = torch.tensor([math.nan if y is None else y for y in learned["y"]], dtype=torch.float64)
    assert phi[-1] == 0.0  # which has no place on a logarithmic axis
    assert shown.isfinite().tolist() == (phi > 0).tolist()
    assert int(shown.isfinite().sum()) > 200
    np.testing.assert_allclose(shown[phi > 0], phi[phi > 0], rtol=10 * SIX_DIGITS, atol=1e-3)
    np.testing.assert_allclose(bare["y"], 2 * math.pi * COULOMB_CONSTANT / k**2, rtol=10 * SIX_DIGITS)
    r = np.array(real.data[0]["x"])
    pair = long.pair_energy(torch.from_numpy(r)).numpy()
    np.testing.assert_allclose(real.data[0]["y"], pair, rtol=10 * SIX_DIGITS)
    np.testing.assert_allclose(real.data[-1]["y"], COULOMB_CONSTANT / r, rtol=10 * SIX_DIGITS)
    np.testing.assert_allclose(difference.data[0]["y"], pair * r / COULOMB_CONSTANT - 1, atol=10 * SIX_DIGITS)
    assert "short waves" in reciprocal.caption


def test_a_kernel_of_both_signs_is_drawn_in_two_curves(make_potential: MakePotential) -> None:
    long = make_potential("free").long
    reciprocal = kernel(long)[0]
    curves = {trace["name"]: trace for trace in reciprocal.data}
    assert set(curves) == {"learned", "learned, negative", "Coulomb"}
    phi = long.reciprocal.phi(torch.tensor(curves["learned"]["x"], dtype=torch.float64)).detach().numpy()
    for name, sign in (("learned", 1), ("learned, negative", -1)):
        shown = np.array([math.nan if y is None else y for y in curves[name]["y"]])
        np.testing.assert_array_equal(np.isfinite(shown), sign * phi > 0)
        drawn = np.isfinite(shown)
        np.testing.assert_allclose(shown[drawn], sign * phi[drawn], rtol=0.01)
    assert "short waves" not in reciprocal.caption


def test_histograms_hold_every_atom_of_an_element(compared: Comparison) -> None:
    q, z = compared.evaluation.charges.numpy(), compared.evaluation.numbers.numpy()
    figures = charge_histograms(compared)
    assert [figure.title for figure in figures] == ["Charges of Na", "Charges of Cl"]
    for figure, element in zip(figures, (11, 17), strict=True):
        (shown,) = figure.data
        assert sum(shown["y"]) == 8 * TEST_ROWS
        centres, half = np.array(shown["x"]), 0.5 * shown["width"]
        assert centres[0] - half == pytest.approx(q[z == element].min(), rel=1e-4)
        assert centres[-1] + half == pytest.approx(q[z == element].max(), rel=1e-4)


def test_charges_that_are_all_the_same_have_no_histogram() -> None:
    found = random_comparison(2, 4)
    found.evaluation.numbers = torch.from_numpy(found.numbers)
    found.evaluation.charges = torch.where(found.evaluation.numbers == 1, 0.5, -0.5)
    assert charge_histograms(found) == []


def test_scale_of_the_charges() -> None:
    along = ErrorAlongScale(square=1e-4, mixed=-2e-4, long=4e-2)
    (figure,) = charge_scale({"forces": along})
    np.testing.assert_allclose(figure.data[0]["y"], [1e3 * along.rmse(s) for s in SCALES], rtol=SIX_DIGITS)
    band = figure.layout["shapes"][1]
    assert (band["x0"], band["x1"]) == (
        pytest.approx(along.best - along.width),
        pytest.approx(along.best + along.width),
    )
    assert f"Best at {along.best:.3f}" in figure.caption


def test_bars_leave_out_what_has_no_label() -> None:
    found = random_comparison(6, 4, formulas=3)
    groups = found.by_formula()
    groups[1].errors.pop("forces")
    mae, rmse = bars(groups, "forces", "formula").data
    assert mae["x"] == rmse["x"] == ["X0", "X2"]
    assert mae["y"][1] == pytest.approx(groups[2].errors["forces"].mae, rel=SIX_DIGITS)
    assert rmse["y"][1] == pytest.approx(groups[2].errors["forces"].rmse, rel=SIX_DIGITS)


def test_what_the_network_has_alone(run: Path, compared: Comparison) -> None:
    """Against the model computed without its long-range part."""
    model = load(run / "model.pt")
    errors = [
        model(structure, parts={"offset", "short"})["forces"] - structure.forces
        for structure in to_structures(read_rows(run.parent / HOSTILE), model.cutoff)
    ]
    alone = 1e3 * float((torch.cat(errors) ** 2).mean().sqrt())
    text = network_alone(read_run(run), compared)
    shown, whole = re.search(r"forces (\S+) instead of (\S+) meV/Å", text).groups()  # type: ignore[union-attr]
    assert shown == number(alone).text
    assert whole == number(compared.by_size()[0].errors["forces"].rmse).text
    assert "After stage 1" not in text  # the charges were there


def test_numbers_for_json() -> None:
    assert numbers([1.23456789, math.nan, math.inf, 0.0]) == [1.23457, None, None, 0.0]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([1.0, 1.5], {"nticks": 7}), ([0.01, 1.0], {"dtick": "D2"}), ([1e-8, 1.0], {"nticks": 7}), ([0.0], {"nticks": 7})],
)
def test_ticks_of_a_logarithmic_axis_keep_apart(values: list[float], ticks: dict[str, object]) -> None:
    found = log_axis("x", values)
    assert {name: found[name] for name in ("dtick", "nticks") if name in found} == ticks
