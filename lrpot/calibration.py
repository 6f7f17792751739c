"""How well the uncertainties of an ensemble match its errors, and the factors that make them.

Of M members the spread s is an estimate from few numbers, so an error e over s is not Gaussian but follows Student's t
with as many degrees of freedom as there are independent numbers in s: M - 1 for an energy; 3 (M - 1) for a component of
a force, as the spreads of the three components are pooled into one, which does not depend on the axes. Equations in
`docs/theory.md`, section 13.

Source: Imbalzano et al., J. Chem. Phys. 154, 074102 (2021), who scale the spread by the likelihood of Gaussian errors
and take off the bias of a finite ensemble; Student's t has that correction in it, and two and three members suffice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from lrpot.ensemble import Calibration, Ensemble
from lrpot.errors import DataError
from lrpot.evaluation import UNITS, Evaluation, evaluate_structures
from lrpot.properties.evaluation import PropertyEvaluation
from lrpot.structure import Structure

# Fewer members than this hardly say how much they differ.
FEW_MEMBERS = 3

# Relative standard error of a factor above which it is told to be doubtful.
DOUBTFUL = 0.25

# Relative to the mean spread: rounding, such as of forces that vanish by symmetry.
ROUNDING = 1e-9

# What is said of uncertainties without factors.
PLAIN_SPREAD = (
    "the uncertainties are the plain spread of the members, mostly too small; calibrate them with labelled structures: "
    "lrpot ensemble ... --calibrate DATA"
)

# Levels of confidence at which fractions of errors are compared.
LEVELS = np.arange(0.05, 1.0, 0.05)

# Relative change of the factor at which its iteration ends, and the most steps it may take.
CONVERGED, STEPS = 1e-10, 10_000


@dataclass(frozen=True)
class Quality:
    """Errors beside the uncertainties that were predicted of them.

    Attributes:
        uncertainty, rmse: root mean squares, in the unit of the quantity.
        within: fractions of the errors within 1 and 2 uncertainties.
        expected: what they are if the uncertainties are right: Student's t.
        miscalibration: mean difference between such fractions and what is expected, over levels of confidence from 5
            to 95 %; 0 is perfect, 0.5 the worst.
        rank: Spearman's correlation of the sizes of errors and uncertainties; None where either is constant.
        factor: what the uncertainties would have to be multiplied by to fit these errors best; None for no error.
    """

    uncertainty: float
    rmse: float
    within: tuple[float, float]
    expected: tuple[float, float]
    miscalibration: float
    rank: float | None
    factor: float | None


def calibrate(model: Ensemble, structures: Sequence[Structure]) -> Calibration:
    """Fit the factors of an ensemble to labelled structures that no member was trained on, and set them.

    Args:
        structures: with edges up to the model's cutoff.
    Raises:
        DataError: no labels to compare with, or members that agree everywhere.
    """
    before, model.calibration = model.calibration, None
    try:
        found = evaluate_structures(model, structures)
    finally:
        model.calibration = before
    factors = {}
    for name, spread in found.uncertainty.items():
        factor = spread_factor(_errors(found, name), spread.numpy(), dof(name, len(model.members)))
        if factor is not None:
            factors[name] = factor
    if not factors:
        raise DataError(
            "the uncertainties cannot be calibrated: no structure has an energy or forces, or the members agree "
            "everywhere; give labelled structures, or members that differ"
        )
    model.calibration = Calibration(factors, found.n_structures)
    return model.calibration


def spread_factors(found: PropertyEvaluation, members: int) -> dict[str, float]:
    """The factors of an ensemble of so many property models, by target; of numbers, not of classes, whose probability
    says itself how sure it is.

    Args:
        found: of structures that no member was trained on, with the plain spread.
    """
    factors = {}
    assert found.uncertainty is not None
    for place, target in enumerate(found.targets):
        errors = found.predicted[:, place] - found.reference[:, place]
        known = errors == errors
        if target.classification or not known.any():
            continue
        factor = spread_factor(errors[known], found.uncertainty[known, place], members - 1)
        if factor is not None:
            factors[target.name] = factor
    return factors


def doubts(model: Ensemble) -> list[str]:
    """What to say of the uncertainties of a model that are not to be relied on."""
    if model.calibration is None:
        return [*few_members(len(model.members)), PLAIN_SPREAD]
    return [*few_members(len(model.members)), *few_structures(model.calibration.n_structures, len(model.members))]


def few_members(members: int) -> list[str]:
    """A line if an ensemble is small."""
    return [f"{members} members say little about their spread; four are usual"] if members < FEW_MEMBERS else []


def few_structures(n: int, members: int) -> list[str]:
    """A line if n structures are few to calibrate so many members on."""
    error = factor_error(n, members)
    if error <= DOUBTFUL:
        return []
    return [
        f"uncertainties calibrated on {n} structures: their size is known to about {error:.0%} only; calibrate on more "
        "(in a fit: data.valid_fraction, or --valid)"
    ]


def spread_factor(errors: np.ndarray, spreads: np.ndarray, dof: int) -> float | None:
    """The scale c of the errors in units of the spread: errors / spreads = c t, most likely if t is Student's.

    Args:
        errors, spreads: (n,), in one unit; spreads of rounding are left out.
        dof: degrees of freedom of t. For many, c^2 is the mean of (error / spread)^2.
    Returns:
        c; None without any spread or any error.
    """
    used = spreads > ROUNDING * math.sqrt(float((spreads**2).mean()))
    squares = (errors[used] / spreads[used]) ** 2
    if not squares.any():
        return None
    square = float(squares.mean())
    for _ in range(STEPS):  # the steps of expectation maximisation, which always raise the likelihood
        new = float(((dof + 1) * squares / (dof + squares / square)).mean())
        if abs(new - square) <= CONVERGED * square:
            break
        square = new
    return math.sqrt(new)


def factor_error(n: int, members: int) -> float:
    """Relative standard error of the factor of energies from n independent structures: of the Fisher information."""
    nu = dof("energy", members)
    return math.sqrt((nu + 3) / (2 * nu * n))


def dof(quantity: str, members: int) -> int:
    """Degrees of freedom of the spread of a quantity."""
    return (members - 1) * (3 if quantity == "forces" else 1)


def fractions_within(errors: np.ndarray, uncertainties: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(L,): fractions of the errors (n,) within so many uncertainties (n,), for `sizes` (L,)."""
    ratios = np.sort(np.abs(errors) / np.maximum(uncertainties, np.finfo(np.float64).tiny))
    return np.searchsorted(ratios, sizes, side="right") / len(ratios)


def expected_sizes(levels: np.ndarray, dof: int) -> np.ndarray:
    """(L,): within how many uncertainties fractions (L,) of the errors are expected."""
    return stats.t.ppf(0.5 * (1.0 + levels), dof)


def quality(evaluation: Evaluation, members: int) -> dict[str, Quality]:
    """How well the uncertainties of an ensemble of so many members match its errors.

    Returns:
        by quantity that has labels and of which the members do not all say the same.
    """
    result = {}
    for name, uncertainty in evaluation.uncertainty.items():
        if not bool(uncertainty.any()):
            continue
        errors, sigma, nu = _errors(evaluation, name), uncertainty.numpy(), dof(name, members)
        one, two = fractions_within(errors, sigma, np.array([1.0, 2.0]))
        expected = 1.0 - 2.0 * stats.t.sf([1.0, 2.0], nu)
        observed = fractions_within(errors, sigma, expected_sizes(LEVELS, nu))
        sizes = (errors, sigma)
        if name == "forces":  # one uncertainty for the whole vector
            sizes = np.linalg.norm(errors.reshape(-1, 3), axis=1), sigma[::3]
        result[name] = Quality(
            uncertainty=_rms(sigma),
            rmse=_rms(errors),
            within=(float(one), float(two)),
            expected=(float(expected[0]), float(expected[1])),
            miscalibration=float(np.abs(observed - LEVELS).mean()),
            rank=_rank_correlation(np.abs(sizes[0]), sizes[1]),
            factor=spread_factor(errors, sigma, nu),
        )
    return result


def quality_table(found: dict[str, Quality]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of a table of it."""
    columns = [
        "quantity",
        "uncertainty",
        "RMSE",
        "within 1 (expected)",
        "within 2 (expected)",
        "miscalibration",
        "rank",
    ]
    columns.append("best factor")
    lines = []
    for name, q in found.items():
        line = [f"{name} ({UNITS[name]})", f"{q.uncertainty:.3e}", f"{q.rmse:.3e}"]
        line += [f"{got:.0%} ({expected:.0%})" for got, expected in zip(q.within, q.expected, strict=True)]
        line += [
            f"{q.miscalibration:.3f}",
            "" if q.rank is None else f"{q.rank:+.2f}",
            "" if q.factor is None else f"{q.factor:.2f}x",
        ]
        lines.append(line)
    return columns, lines


def quality_record(found: dict[str, Quality]) -> dict[str, dict[str, object]]:
    """It, for JSON."""
    return {name: asdict(q) for name, q in found.items()}


def _errors(evaluation: Evaluation, name: str) -> np.ndarray:
    return (evaluation.predicted[name] - evaluation.reference[name]).numpy()


def _rms(values: np.ndarray) -> float:
    return math.sqrt(float((values**2).mean()))


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return None
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])
