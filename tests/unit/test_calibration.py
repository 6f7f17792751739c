"""Factors of uncertainties come out as they went in, and the measures of them say what is so."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy import stats

from lrpot import plots
from lrpot.calibration import (
    LEVELS,
    calibrate,
    dof,
    doubts,
    expected_sizes,
    factor_error,
    fractions_within,
    quality,
    quality_table,
    spread_factor,
)
from lrpot.data.readers import to_structure
from lrpot.ensemble import Calibration, Ensemble
from lrpot.errors import DataError
from lrpot.evaluation import Evaluation
from tests.helpers_cli import rock_salt, small_model
from tests.unit.training_data import ionic_rows

FACTOR = 2.5  # by which the spread of the synthetic members is too small


def synthetic(n: int, members: int, *, seed: int = 0, factor: float = FACTOR) -> Evaluation:
    """n structures of two atoms whose members differ by a spread of their own, and whose errors are `factor` times
    as large; forces vary alike in x, y and z."""
    rng = np.random.default_rng(seed)

    def drawn(shape: tuple[int, ...], spread: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        values = spread * rng.normal(size=(members, *shape))
        error = factor * spread * rng.normal(size=shape)
        return torch.from_numpy(error).reshape(-1), values.var(axis=0, ddof=1)

    energy, energy_variance = drawn((n,), rng.uniform(1e-3, 5e-3, n))
    forces, force_variance = drawn((2 * n, 3), rng.uniform(1e-2, 9e-2, 2 * n)[:, None])
    pooled = np.sqrt(force_variance.mean(axis=1))
    return Evaluation(
        reference={"energy": torch.zeros(n).double(), "forces": torch.zeros(6 * n).double()},
        predicted={"energy": energy, "forces": forces},
        uncertainty={
            "energy": torch.from_numpy(np.sqrt(energy_variance)),
            "forces": torch.from_numpy(pooled.repeat(3)),
        },
        n_structures=n,
        n_atoms=2 * n,
    )


@pytest.mark.parametrize("members", [2, 3, 4, 8, 30])
def test_a_known_factor_is_found_from_any_number_of_members(members: int) -> None:
    evaluation = synthetic(4000, members)
    for name, allowed in (("energy", 4 * factor_error(4000, members)), ("forces", 0.03)):
        found = spread_factor(
            evaluation.predicted[name].numpy(), evaluation.uncertainty[name].numpy(), dof(name, members)
        )
        assert found == pytest.approx(FACTOR, rel=allowed), name


def test_the_factor_is_the_most_likely_one() -> None:
    errors, spreads = (x["energy"].numpy() for x in (synthetic(50, 4).predicted, synthetic(50, 4).uncertainty))
    found = spread_factor(errors, spreads, 3)
    likelihood = {c: stats.t.logpdf(errors, 3, scale=c * spreads).sum() for c in (0.99 * found, found, 1.01 * found)}
    assert max(likelihood, key=likelihood.get) == found


def test_of_many_members_it_is_the_mean_square() -> None:
    """The limit of Gaussian errors: c^2 = <(error / spread)^2>."""
    evaluation = synthetic(300, 10_000)
    errors, spreads = evaluation.predicted["energy"].numpy(), evaluation.uncertainty["energy"].numpy()
    assert spread_factor(errors, spreads, 9999) == pytest.approx(np.sqrt(((errors / spreads) ** 2).mean()), rel=1e-3)


def test_the_mean_square_of_few_members_is_biased_and_this_is_not() -> None:
    """<(e/s)^2> = c^2 (M - 1) / (M - 3), which Imbalzano et al. divide by; here that is not needed."""
    members = 8
    evaluation = synthetic(40_000, members)
    errors, spreads = evaluation.predicted["energy"].numpy(), evaluation.uncertainty["energy"].numpy()
    bias = (members - 1) / (members - 3)
    assert ((errors / spreads) ** 2).mean() == pytest.approx(FACTOR**2 * bias, rel=0.05)
    assert spread_factor(errors, spreads, members - 1) == pytest.approx(FACTOR, rel=0.02)


def test_of_four_members_it_scatters_less_than_the_corrected_mean_square() -> None:
    likely, corrected = [], []
    for seed in range(200):
        evaluation = synthetic(100, 4, seed=seed)
        errors, spreads = evaluation.predicted["energy"].numpy(), evaluation.uncertainty["energy"].numpy()
        likely.append(spread_factor(errors, spreads, 3))
        corrected.append(np.sqrt(((errors / spreads) ** 2).mean() / 3))
    assert np.std(likely) < 0.5 * np.std(corrected)


def test_its_standard_error() -> None:
    found = []
    for seed in range(200):
        evaluation = synthetic(30, 4, seed=seed)
        found.append(spread_factor(evaluation.predicted["energy"].numpy(), evaluation.uncertainty["energy"].numpy(), 3))
    # the standard error of a standard deviation from 200 numbers is 5 %, and 30 structures are not many
    assert np.std(np.log(found)) == pytest.approx(factor_error(30, 4), rel=0.2)


def test_rounding_says_nothing() -> None:
    """Forces that vanish by symmetry have errors and spreads of rounding, in any proportion."""
    evaluation = synthetic(500, 4)
    errors, spreads = evaluation.predicted["forces"].numpy(), evaluation.uncertainty["forces"].numpy()
    expected = spread_factor(errors, spreads, 9)
    more = np.append(errors, [1e-14, 0.0, 1e-15]), np.append(spreads, [1e-17, 0.0, 1e-16])
    assert spread_factor(*more, 9) == pytest.approx(expected, rel=1e-12)
    assert spread_factor(np.zeros(3), np.ones(3), 9) is None
    assert spread_factor(np.ones(3), np.zeros(3), 9) is None


def test_quality_of_right_and_of_wrong_uncertainties() -> None:
    evaluation = synthetic(20_000, 4)
    raw = quality(evaluation, 4)
    for name in evaluation.uncertainty:
        evaluation.uncertainty[name] *= FACTOR
    right = quality(evaluation, 4)
    for name, q in right.items():
        assert q.within == pytest.approx(q.expected, abs=0.015)  # four standard errors of a fraction
        assert q.miscalibration < 0.02 < 0.15 < raw[name].miscalibration
        assert q.factor == pytest.approx(1.0, rel=0.06)
        assert raw[name].factor == pytest.approx(FACTOR * q.factor, rel=1e-6)
        assert raw[name].within[0] < 0.5 * q.within[0]
        assert q.uncertainty == pytest.approx(FACTOR * raw[name].uncertainty, rel=1e-12)
        assert 0.2 < q.rank < 0.8
        assert raw[name].rank == pytest.approx(q.rank, abs=1e-12)
    assert right["energy"].expected == pytest.approx(1 - 2 * stats.t.sf([1, 2], 3))
    assert right["forces"].expected == pytest.approx(1 - 2 * stats.t.sf([1, 2], 9))
    columns, lines = quality_table(right)
    assert {len(line) for line in lines} == {len(columns)}


def test_fractions_and_expected_sizes() -> None:
    errors, sigma = np.array([0.5, -1.0, 3.0, 0.0]), np.array([1.0, 1.0, 1.0, 0.0])
    assert fractions_within(errors, sigma, np.array([0.0, 0.5, 1.0, 2.9, 3.0])).tolist() == [0.25, 0.5, 0.75, 0.75, 1.0]
    # of many degrees of freedom: the normal distribution
    np.testing.assert_allclose(expected_sizes(LEVELS, 10**6), stats.norm.ppf((1 + LEVELS) / 2), rtol=1e-4)


def test_rank_of_what_does_not_vary() -> None:
    evaluation = synthetic(10, 4)
    evaluation.uncertainty["energy"][:] = 1.0
    assert quality(evaluation, 4)["energy"].rank is None
    assert quality(Evaluation(), 4) == {}


def test_calibrating_an_ensemble() -> None:
    structures = [to_structure(atoms, 4.0) for atoms in ionic_rows(6)]
    ensemble = Ensemble(small_model(seed=seed) for seed in range(3))
    found = calibrate(ensemble, structures)
    assert ensemble.calibration is found
    assert found.n_structures == 6
    assert found.factors.keys() == {"energy", "forces"}
    assert found.factors["forces"] > 1.0  # small models of random weights are far from these labels
    again = calibrate(ensemble, structures)
    assert again.factors == pytest.approx(found.factors, rel=1e-12)  # the factors before play no part


def test_nothing_to_calibrate_with() -> None:
    ensemble = Ensemble([small_model(seed=seed) for seed in range(3)], Calibration({"energy": 2.0}, 5))
    with pytest.raises(DataError, match="cannot be calibrated: no structure has an energy or forces"):
        calibrate(ensemble, [to_structure(rock_salt(), 4.0)])
    assert ensemble.calibration == Calibration({"energy": 2.0}, 5)


@pytest.mark.parametrize(
    ("members", "calibration", "words"),
    [
        (2, Calibration({"energy": 1.0}, 1000), ["2 members say little"]),
        (3, None, ["not calibrated|plain spread"]),
        (
            4,
            Calibration({"energy": 1.0}, 10),
            ["calibrated on 10 structures: their size is known to about 32% only; calibrate on more"],
        ),
        (4, Calibration({"energy": 1.0}, 100), []),
    ],
)
def test_doubts(members: int, calibration: Calibration | None, words: list[str]) -> None:
    ensemble = Ensemble([small_model("none", seed=seed) for seed in range(members)], calibration)
    found = doubts(ensemble)
    assert len(found) == len(words)
    for line, expected in zip(found, words, strict=True):
        assert re.search(expected, line)


@pytest.mark.parametrize("n", [1, 400])
def test_picture(tmp_path: Path, n: int) -> None:
    picture = imread(plots.calibration(synthetic(n, 4), 4, tmp_path / "calibration.png"))
    assert picture.shape[0] > 500
    assert picture.std() > 0.05
