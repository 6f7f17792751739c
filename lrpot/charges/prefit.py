"""Effective charges from forces before any network, by linear least squares.

Forces are fitted by a short spline for every pair of elements and by the Coulomb field of every pair of elements; the
coefficients of the last are the products q_a q_b. A short pair potential cannot imitate the long range as a
message-passing network can, so the products come out physical. They are then fitted again as true products of charges
that make the cells neutral. Forces and fields are summed over molecules first, where all that happens inside cancels.

Source: the ancestor is force matching of fixed-charge models, Ercolessi and Adams, Europhys. Lett. 26, 583 (1994).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from scipy.optimize import least_squares

from lrpot.charges.force_features import Layout, products, symmetric
from lrpot.charges.normal_equations import NormalEquations, Reduced, eliminate, normal_equations, residual_variance
from lrpot.charges.survey import Survey, formula, neutral_charges, survey
from lrpot.config import PAIR_CUTOFF_RANGE
from lrpot.console import Console
from lrpot.errors import ConfigError, DataError
from lrpot.structure import Structure

PAIR_CUTOFFS = (3.5, 4.0, 4.5, 5.0)  # A, that are tried
SPACING = 0.25  # of the knots
LONGER = 1.0  # by which the splines are lengthened that are to do without charges

MAX_ELEMENTS = 16  # 136 pairs: some gigabytes of normal equations

# Below or above these the data do not determine charges. A liquid, whose molecules polarise each other, leaves most of
# its forces to neither splines nor charges.
MIN_EXPLAINED = 0.05
MIN_WINS = 0.75
MIN_ADVANTAGE = 1.1
MIN_RANK_ONE = 0.5
MAX_SPREAD = 0.35
MAX_UNCERTAINTY = 0.2


class PrefitRefused(DataError):
    """The data do not determine charges; the message says by which measure."""


@dataclass(frozen=True)
class AtCutoff:
    """The fit with splines of one reach.

    Attributes:
        pair_cutoff: A.
        charges, uncertainties: (M,), e; neutral; one standard deviation (jackknife over blocks of frames). Zero where
            the best scale of any charges is imaginary.
        products: (M, M), e^2, q_a q_b as fitted freely.
        free: (M,), e, charges of their leading eigenvector, which nothing makes neutral.
        rank_one: share of the leading eigenvalue, 1 for true products, negative if it is negative.
        explained: share of what splines leave of forces that were held out, explained by the charges.
        longer: the same share explained by splines that are longer by 1 A, instead of the charges.
        wins: share of the blocks of frames of which charges leave less than longer splines do.
        errors: eV/A, root mean square on held-out forces: splines alone, longer splines, splines and charges.
        reduced: the equations without the splines.
    """

    pair_cutoff: float
    charges: np.ndarray
    uncertainties: np.ndarray
    products: np.ndarray
    free: np.ndarray
    rank_one: float
    explained: float
    longer: float
    wins: float
    errors: tuple[float, float, float]
    reduced: Reduced

    @property
    def wins_clearly(self) -> bool:
        """Charges explain what splines of the next lengths cannot."""
        return self.wins >= MIN_WINS and self.explained >= MIN_ADVANTAGE * self.longer


@dataclass(frozen=True)
class Prefit:
    """Charges and how well the data determine them.

    Attributes:
        elements: atomic numbers, ascending; the order of all arrays.
        best: the fit at the chosen pair cutoff.
        cutoffs: the fits at all pair cutoffs, ascending.
        spread: over all of them, the largest relative deviation of the charges from the chosen ones.
        molecules: net charge (e) of each kind that was summed, from the charges that nothing makes neutral.
        refusal: why these are no charges; None if they are.
        found: counts. equations: the linear problem.
        sum_molecules: whether molecules were looked for.
    """

    elements: tuple[int, ...]
    best: AtCutoff
    cutoffs: tuple[AtCutoff, ...]
    spread: float
    molecules: dict[str, float]
    refusal: str | None
    found: Survey
    equations: NormalEquations
    sum_molecules: bool

    @property
    def charges(self) -> dict[int, float]:
        """e, by atomic number."""
        return dict(zip(self.elements, self.best.charges.tolist(), strict=True))

    @property
    def uncertainties(self) -> dict[int, float]:
        """e, by atomic number."""
        return dict(zip(self.elements, self.best.uncertainties.tolist(), strict=True))

    def scale_of(self, charges: Mapping[int, float]) -> float | None:
        """The factor by which these charges (e, by atomic number) fit best; None if zero fits better than any."""
        of_products = products(np.array([charges.get(z, 0.0) for z in self.elements]))
        square = _best_square(self.best.reduced, of_products)
        return float(np.sqrt(square)) if square > 0 else None


def fit_charges(
    frames: Iterable[Structure],
    *,
    pair_cutoff: float | None = None,
    sum_molecules: bool = True,
    console: Console | None = None,
) -> Prefit:
    """Charges of every element from labelled structures, and their quality.

    The frames are looked at twice and one at a time: anything that can be iterated twice will do, such as a
    `StructureFile`.

    Args:
        frames: with forces; edges are not needed.
        pair_cutoff: reach of the splines, A; None tries several and takes the one at which the charges are determined
            best: the longest at which charges still explain clearly more than longer splines do.
        sum_molecules: forces are summed over molecules (see `lrpot.charges.molecules`).
        console: shows how far it is.
    Raises:
        PrefitRefused: nothing can be fitted: no forces in periodic cells, one element, no forces that differ from zero.
        ConfigError: a pair cutoff out of range.
        DataError: frames that can be iterated over only once.
    """
    if iter(frames) is frames:
        raise DataError("the frames can be read only once, but are needed twice; give a list or a StructureFile")
    console = console or Console(quiet=True)
    spacing, knots = _knots(pair_cutoff)
    reach = spacing * (max(knots) + round(LONGER / spacing))
    with console.progress("first look", None, "frames") as update:
        found = survey(frames, sum_molecules=sum_molecules, progress=update)
    _check(found)
    layout = Layout(found.elements, spacing, round(reach / spacing))
    with console.progress("fields and splines", found.n_frames + found.n_unusable, "frames") as update:
        equations = normal_equations(frames, layout, found, sum_molecules=sum_molecules, progress=update)
    neutral = neutral_charges(found)
    cutoffs = tuple(_fit_at(equations, n, neutral) for n in knots)
    best = _choose(cutoffs) if pair_cutoff is None else cutoffs[1]
    spread = _spread(best, cutoffs)
    return Prefit(
        elements=found.elements,
        best=best,
        cutoffs=cutoffs,
        spread=spread,
        molecules=_net_charges(equations, best.free),
        refusal=_refusal(best, spread, found),
        found=found,
        equations=equations,
        sum_molecules=sum_molecules,
    )


def _knots(pair_cutoff: float | None) -> tuple[float, list[int]]:
    """Spacing of the knots, A, and the reaches that are tried, in spacings."""
    if pair_cutoff is None:
        return SPACING, [round(cutoff / SPACING) for cutoff in PAIR_CUTOFFS]
    low, high = PAIR_CUTOFF_RANGE
    if not low <= pair_cutoff <= high:
        raise ConfigError(f"pair cutoff = {pair_cutoff:g} A: choose {low:g} to {high:g} A")
    n = round(pair_cutoff / SPACING)
    return pair_cutoff / n, [n - 2, n, n + 2]


def _check(found: Survey) -> None:
    if not found.n_frames:
        raise PrefitRefused("no periodic structure with forces to fit charges to")
    if len(found.elements) < 2:
        raise PrefitRefused("one element only: in a neutral crystal its charge is zero")
    if len(found.elements) > MAX_ELEMENTS:
        raise PrefitRefused(f"{len(found.elements)} elements; the prefit takes {MAX_ELEMENTS} at most")
    if not any(found.force_sizes):
        raise PrefitRefused("all forces are zero: displaced atoms are needed")


def _fit_at(equations: NormalEquations, knots: int, neutral: np.ndarray) -> AtCutoff:
    layout, total = equations.layout, equations.blocks.sum(axis=0)
    n = len(layout.elements)
    noise = residual_variance(equations, knots)
    reduced = eliminate(total, layout, knots, noise=noise)
    fitted_products = reduced.products()
    charges = _neutral_fit(reduced, neutral, _leading(symmetric(np.nan_to_num(fitted_products), n))[0])
    charges *= _sign(layout.elements, charges)
    # products that nothing depends on are those of the charges
    free_products = symmetric(np.where(np.isnan(fitted_products), products(charges), fitted_products), n)
    free, share = _leading(free_products)
    free *= _sign(layout.elements, free)
    longer_knots = knots + round(LONGER / layout.spacing)
    without = np.zeros(layout.n_pairs)
    moved, errors = [], []
    held = [block for block in equations.blocks if block[-1, -1] > 0]
    for block in held if len(held) > 1 else []:
        fitted = eliminate(total - block, layout, knots, noise=noise)
        others = _neutral_fit(fitted, neutral, charges)
        moved.append(others if others @ charges >= 0 else -others)
        longer = eliminate(total - block, layout, longer_knots, noise=noise)
        left = (
            fitted.squared_error(without, block),
            longer.squared_error(without, block),
            fitted.squared_error(products(others), block),
        )
        errors.append(left)
    by_block = np.array(errors).reshape(-1, 3)
    squares = by_block.sum(axis=0)
    alone = max(float(squares[0]), 1e-300)
    return AtCutoff(
        pair_cutoff=knots * layout.spacing,
        charges=charges,
        uncertainties=_jackknife(np.array(moved).reshape(-1, n)),
        products=free_products,
        free=free,
        rank_one=share,
        explained=1.0 - float(squares[2]) / alone,
        longer=1.0 - float(squares[1]) / alone,
        wins=float((by_block[:, 2] < by_block[:, 1]).mean()) if len(by_block) else 0.0,
        errors=tuple(np.sqrt(squares / equations.n_equations)),
        reduced=reduced,
    )


def _leading(matrix: np.ndarray) -> tuple[np.ndarray, float]:
    """Charges (M,) whose products are the largest positive part of a matrix of products, and the share of its largest
    part, negative if that is negative."""
    eigenvalues, eigenvectors = np.linalg.eigh(matrix)
    largest = eigenvalues[np.abs(eigenvalues).argmax()]
    share = float(largest / np.abs(eigenvalues).sum()) if largest else 0.0
    return eigenvectors[:, -1] * np.sqrt(max(eigenvalues[-1], 0.0)), share


def _neutral_fit(reduced: Reduced, neutral: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Charges (M,) in the span of `neutral` (M, M') whose products fit best, from a first guess; zero if none is
    better than zero."""
    direction = neutral.T @ start
    if not np.abs(direction).max(initial=0.0) > 1e-3:
        direction = np.ones(neutral.shape[1])
    scale = np.sqrt(max(_best_square(reduced, products(neutral @ direction)), 0.0))
    if neutral.shape[1] < 2:
        return neutral @ direction * scale
    # |L' p - L^-1 b|^2 is the squared error but for a constant
    values, vectors = np.linalg.eigh(reduced.matrix)
    kept = values > 1e-12 * values.max(initial=0.0)
    root = vectors[:, kept] * np.sqrt(values[kept])
    target = (vectors[:, kept] / np.sqrt(values[kept])).T @ reduced.vector

    def residual(u: np.ndarray) -> np.ndarray:
        return root.T @ products(neutral @ u) - target

    guess = direction * (scale if scale > 0 else 0.1 / np.abs(neutral @ direction).max())
    return neutral @ least_squares(residual, guess, xtol=1e-12, ftol=1e-12, gtol=1e-12).x


def _best_square(reduced: Reduced, of_products: np.ndarray) -> float:
    """t^2 for which t^2 times these products (P,) fit best."""
    power = float(of_products @ reduced.matrix @ of_products)
    return float(of_products @ reduced.vector) / power if power > 0 else 0.0


def _jackknife(left_out: np.ndarray) -> np.ndarray:
    """(M,) standard deviations from the results (B, M) without each block; nan from one block."""
    n = len(left_out)
    if n < 2:
        return np.full(left_out.shape[1], np.nan)
    return np.sqrt((n - 1) * left_out.var(axis=0))


def _choose(cutoffs: tuple[AtCutoff, ...]) -> AtCutoff:
    """The longest at which charges win clearly and count: what short splines lack falsifies the charges, and splines
    that are too long imitate them."""
    winners = [fit for fit in cutoffs if fit.wins_clearly and fit.explained >= MIN_EXPLAINED]
    return winners[-1] if winners else max(cutoffs, key=lambda fit: fit.explained - fit.longer)


def _spread(best: AtCutoff, fits: tuple[AtCutoff, ...]) -> float:
    size = float(np.abs(best.charges).max())
    deviation = max(float(np.abs(fit.charges - best.charges).max()) for fit in fits)
    return deviation / size if size > 0 else np.inf


def _net_charges(equations: NormalEquations, free: np.ndarray) -> dict[str, float]:
    charge = dict(zip(equations.layout.elements, free.tolist(), strict=True))
    return {
        formula(kind): sum(n * charge[z] for z, n in kind)
        for kind, count in equations.molecules.most_common(5)
        if count > 0.01 * equations.molecules.total()
    }


def _refusal(best: AtCutoff, spread: float, found: Survey) -> str | None:
    """Why these are no charges, and how many frames had no say in that."""
    reason = _reason(best, spread)
    if reason is None or not found.n_too_large:
        return reason
    return (
        f"{reason}; {found.n_too_large} of {found.n_frames} frames were left out, for root mean square forces above "
        f"{found.largest_size:.3g} eV/A"
    )


def _reason(best: AtCutoff, spread: float) -> str | None:
    size = float(np.abs(best.charges).max())
    if best.rank_one < MIN_RANK_ONE or size == 0.0:
        return (
            f"the fitted products q_a q_b are no products: squares {_numbers(best.products.diagonal())} e^2, "
            f"eigenvalues {_numbers(np.linalg.eigvalsh(best.products))} e^2"
        )
    if best.explained < MIN_EXPLAINED:
        return f"a Coulomb field explains only {max(best.explained, 0.0):.0%} of what pair splines leave"
    if not best.wins_clearly:
        return (
            f"a Coulomb field explains {best.explained:.0%} of what pair splines leave, but splines that are longer by "
            f"{LONGER:g} A explain {best.longer:.0%} without charges, and more in {1.0 - best.wins:.0%} of the data"
        )
    if best.charges.min() >= 0 or best.charges.max() <= 0:
        return f"all fitted charges have one sign ({_numbers(best.charges)} e)"
    if not float(np.max(best.uncertainties)) <= MAX_UNCERTAINTY * size:
        return f"the charges are uncertain by {float(np.max(best.uncertainties)) / size:.0%}; more frames may help"
    if spread > MAX_SPREAD:
        return f"the charges change by {spread:.0%} with the pair cutoff"
    return None


def _sign(elements: tuple[int, ...], charges: np.ndarray) -> float:
    """Products do not tell +q from -q: the more electronegative elements get the negative charges."""
    from pymatgen.core import Element

    electronegativity = np.nan_to_num([Element.from_Z(z).X for z in elements], nan=2.0)
    return -1.0 if np.dot(charges, electronegativity - electronegativity.mean()) > 0 else 1.0


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:+.3f}" for value in values)


def words(charges: Mapping[int, float]) -> str:
    """Charges by atomic number -> "Na +0.655, Cl -0.655"."""
    return ", ".join(f"{chemical_symbols[z]} {q:+.3f}" for z, q in charges.items())
