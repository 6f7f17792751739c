"""The linear problem of the prefit as sums over frames, so that no more than one frame is in memory.

Frames are dealt to blocks in the order of the file. What is fitted without a block can be tested on it, and how much
the charges move when a block is left out is their uncertainty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from lrpot.charges.force_features import Layout, force_features, sum_groups
from lrpot.charges.survey import Survey, force_size, usable_frames
from lrpot.structure import Structure

# Frames that follow each other are alike, so blocks are stretches of the file, each with as many frames that are not
# relaxed: those would agree with any charges. Fewer frames are divided by atoms.
BLOCKS = 10

# Added to a diagonal of ones: columns that are nearly dependent.
RIDGE = 1e-12

# Power of a Coulomb column relative to the largest, below which it is what the Ewald sum leaves out.
FELT = 1e-10

# eV; how large the coefficients of splines are expected to be. Without that, splines that hardly any distance reaches
# fit the noise, and are wild on other frames.
SPLINE_SIZE = 1.0


@dataclass(frozen=True)
class NormalEquations:
    """Sums of products of columns, the last column being the labels.

    Attributes:
        layout: the columns.
        blocks: (BLOCKS, n_columns + 1, n_columns + 1), (eV/A)^2 for unit unknowns.
        n_equations: force components.
        molecules: how many molecules have each composition, as ((number, count), ...).
    """

    layout: Layout
    blocks: np.ndarray
    n_equations: int
    molecules: Counter[tuple[tuple[int, int], ...]]


def normal_equations(
    frames: Iterable[Structure],
    layout: Layout,
    found: Survey,
    *,
    sum_molecules: bool,
    progress: Callable[[int], None],
) -> NormalEquations:
    """Look at every frame a second time and add up its equations.

    Args:
        frames: the same as of the survey.
        layout: the columns.
        found: the survey.
        sum_molecules, progress: as of `survey`.
    """
    blocks = np.zeros((BLOCKS, layout.n_columns + 1, layout.n_columns + 1))
    n_equations, number, n_telling = 0, -1, found.n_telling
    smallest, largest = found.smallest_size, found.largest_size
    kinds: Counter[tuple[tuple[int, int], ...]] = Counter()
    for seen, usable in enumerate(usable_frames(frames, layout.reach, sum_molecules=sum_molecules), 1):
        progress(seen)
        if usable is None:
            continue
        structure, group = usable
        size = force_size(structure, group)
        if size > largest:
            continue
        number += size >= smallest
        labels = sum_groups(structure.forces.numpy(), group)
        rows = np.concatenate([force_features(structure, layout, group), labels[..., None]], axis=2)
        n_equations += labels.size
        kinds.update(_molecules(structure, group))
        place = max(number, 0) + np.arange(len(rows)) / len(rows)
        block = (BLOCKS * place / n_telling).astype(int)
        for b in np.unique(block):
            part = rows[block == b].reshape(-1, layout.n_columns + 1)
            blocks[b] += part.T @ part
    return NormalEquations(layout, blocks, n_equations, kinds)


def _molecules(structure: Structure, group: np.ndarray) -> Iterator[tuple[tuple[int, int], ...]]:
    """The composition of every group of more than one atom."""
    order = np.argsort(group, kind="stable")
    for members in np.split(structure.numbers.numpy()[order], np.cumsum(np.bincount(group))[:-1]):
        if len(members) > 1:
            yield tuple(sorted(Counter(members.tolist()).items()))


@dataclass(frozen=True)
class Reduced:
    """What splines leave of the Coulomb columns and of the labels.

    Attributes:
        left: (P + 1, P + 1), (eV/A)^2; the labels are last.
        coefficients: (n_splines, P + 1) of the splines that take the rest.
        splines: (n_splines,) their columns. coulomb: (P,) those of the products.
    """

    left: np.ndarray
    coefficients: np.ndarray
    splines: np.ndarray
    coulomb: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """(P, P)."""
        return self.left[:-1, :-1]

    @property
    def vector(self) -> np.ndarray:
        """(P,)."""
        return self.left[:-1, -1]

    def products(self) -> np.ndarray:
        """(P,) e^2, fitted freely; nan where nothing depends on them: the only atom of its kind in every cell."""
        power = self.matrix.diagonal()
        felt = power > FELT * power.max(initial=0.0)
        scale = np.sqrt(power[felt])
        inner = self.matrix[np.ix_(felt, felt)] / np.outer(scale, scale)
        found = np.full(len(power), np.nan)
        found[felt] = np.linalg.lstsq(inner, self.vector[felt] / scale, rcond=1e-10)[0] / scale
        return found

    def squared_error(self, of_products: np.ndarray, sums: np.ndarray) -> float:
        """(eV/A)^2, of this fit with these products (P,), on other frames' sums."""
        splines = self.coefficients[:, -1] - self.coefficients[:, :-1] @ of_products
        columns = np.concatenate([self.splines, self.coulomb, [len(sums) - 1]])
        unknowns = np.concatenate([splines, of_products, [-1.0]])
        # rounding may leave less than nothing of a perfect fit
        return max(float(unknowns @ sums[np.ix_(columns, columns)] @ unknowns), 0.0)


def residual_variance(equations: NormalEquations, knots: int) -> float:
    """(eV/A)^2, what splines of this reach and free products leave of a force component, mean square."""
    reduced = eliminate(equations.blocks.sum(axis=0), equations.layout, knots)
    left = reduced.left[-1, -1] - np.nan_to_num(reduced.products()) @ reduced.vector
    return max(float(left), 0.0) / equations.n_equations


def eliminate(sums: np.ndarray, layout: Layout, knots: int, *, noise: float = 0.0) -> Reduced:
    """Fit splines of this reach to the Coulomb columns and to the labels.

    Args:
        sums: (n_columns + 1, n_columns + 1) of one block or of several.
        layout: the columns. knots: reach of the splines in spacings.
        noise: (eV/A)^2, mean square error of a label; the larger, the less is believed of few distances.
    """
    splines = layout.splines(knots)
    splines = splines[sums.diagonal()[splines] > 0]
    rest = np.append(layout.coulomb, len(sums) - 1)
    scale = 1.0 / np.sqrt(sums.diagonal()[splines])
    inner = sums[np.ix_(splines, splines)] * np.outer(scale, scale) + np.diag(noise / SPLINE_SIZE**2 * scale**2)
    cross = sums[np.ix_(splines, rest)] * scale[:, None]
    solution = cho_solve(cho_factor(inner + RIDGE * np.eye(len(inner))), cross)
    left = sums[np.ix_(rest, rest)] - cross.T @ solution
    return Reduced(0.5 * (left + left.T), scale[:, None] * solution, splines, layout.coulomb)
