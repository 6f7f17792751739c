"""Forces as a linear function of what the prefit looks for: pair splines and products of charges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch

from lrpot.kspace import CoulombComplement, GaussianCoulomb, k_lattice, reciprocal_cell, splitting
from lrpot.structure import Structure, edge_vectors

# What both halves of the Ewald sum leave out, relative.
TOLERANCE = 1e-7

# Numbers in one table of phases; more wave vectors are taken in portions.
MAX_PHASES = 4_000_000


@dataclass(frozen=True)
class Layout:
    """The columns of the linear problem.

    First the splines, `n_splines` for each pair of elements, then one column for each product q_a q_b. Pairs are
    ordered as `combinations_with_replacement(elements, 2)`.

    The splines are cubic B-splines on knots of equal distance: number m is not zero between knots m and m + 4. Those
    of a shorter reach are some of those of a longer one, so that one table serves all.

    Attributes:
        elements: atomic numbers, ascending.
        spacing: A, between knots.
        n_knots: the longest reach in spacings.
    """

    elements: tuple[int, ...]
    spacing: float
    n_knots: int

    @property
    def reach(self) -> float:
        """A, of the longest splines."""
        return self.spacing * self.n_knots

    @property
    def n_splines(self) -> int:
        """Of each pair of elements."""
        return self.n_knots - 3

    @property
    def n_pairs(self) -> int:
        return len(self.elements) * (len(self.elements) + 1) // 2

    @property
    def n_columns(self) -> int:
        return self.n_pairs * (self.n_splines + 1)

    @property
    def coulomb(self) -> np.ndarray:
        """(P,) columns of the products."""
        return np.arange(self.n_pairs * self.n_splines, self.n_columns)

    def splines(self, knots: int) -> np.ndarray:
        """Columns of the splines that end at this knot or before."""
        first = np.arange(self.n_pairs)[:, None] * self.n_splines
        return (first + np.arange(min(knots - 3, self.n_splines))).reshape(-1)

    def pair_of(self) -> np.ndarray:
        """(M, M) the number of each pair of elements."""
        n = len(self.elements)
        table = np.zeros((n, n), dtype=int)
        for number, (a, b) in enumerate(combinations_with_replacement(range(n), 2)):
            table[a, b] = table[b, a] = number
        return table


def force_features(structure: Structure, layout: Layout, group: np.ndarray) -> np.ndarray:
    """The force on every group of atoms, for each unknown equal to one.

    Args:
        structure: periodic, with edges up to the layout's reach.
        layout: elements and splines.
        group: (N,) the molecule of each atom, from 0; its inner forces cancel.
    Returns:
        (n_groups, 3, n_columns), eV/A per unit of each unknown.
    """
    element = np.searchsorted(layout.elements, structure.numbers.numpy())
    n_groups = int(group.max()) + 1
    features = np.zeros((n_groups, 3, layout.n_columns))
    features[..., : layout.coulomb[0]] = _spline_forces(structure, layout, group, element, n_groups)
    fields = coulomb_fields(structure, element, len(layout.elements), layout.reach)
    pair = layout.pair_of()
    for b in range(len(layout.elements)):
        # as the indices stand apart, numpy puts the atoms first: (N, 3)
        place: Any = (group, slice(None), layout.coulomb[pair[element, b]])
        np.add.at(features, place, fields[:, b])
    return features


def sum_groups(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n_groups, 3) from (N, 3)."""
    return np.stack([np.bincount(group, values[:, axis]) for axis in range(3)], axis=1)


def _spline_forces(
    structure: Structure, layout: Layout, group: np.ndarray, element: np.ndarray, n_groups: int
) -> np.ndarray:
    """(n_groups, 3, P * n_splines) forces of cubic B-splines of the distance."""
    vectors = edge_vectors(structure).numpy()
    distances = np.linalg.norm(vectors, axis=1)
    neighbour, centre = structure.edge_index.numpy()
    # within a group both atoms of a pair are summed over, as are an atom and its image
    kept = (distances < layout.reach) & (group[neighbour] != group[centre])
    vectors, distances, neighbour, centre = vectors[kept], distances[kept], neighbour[kept], centre[kept]
    width = layout.n_pairs * layout.n_splines
    first = layout.pair_of()[element[neighbour], element[centre]] * layout.n_splines
    interval = np.minimum((distances / layout.spacing).astype(int), layout.n_knots - 1)
    along = vectors / distances[:, None]
    forces = np.zeros(3 * n_groups * width)
    for place, slope in enumerate(_slopes(distances / layout.spacing - interval)):
        spline = interval - place
        inside = (spline >= 0) & (spline < layout.n_splines)
        column = (first + spline)[inside]
        for axis in range(3):
            row = 3 * group[centre[inside]] + axis
            weight = slope[inside] / layout.spacing * along[inside, axis]
            forces += np.bincount(row * width + column, weight, minlength=len(forces))
    return forces.reshape(n_groups, 3, width)


def _slopes(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Derivatives of the four cubic B-splines of unit knots that are not zero at x in [0, 1), in the interval of the
    spline: its first, second, third and fourth."""
    return (
        0.5 * x**2,
        0.5 + x - 1.5 * x**2,
        -2.0 * x + 1.5 * x**2,
        -0.5 * (1.0 - x) ** 2,
    )


def coulomb_fields(structure: Structure, element: np.ndarray, n_elements: int, cutoff: float) -> np.ndarray:
    """The field of all atoms of one element with unit charges, in a uniform background, at every atom.

    Args:
        structure: periodic, with edges up to the cutoff.
        element: (N,) the element of each atom, from 0.
        n_elements: M. cutoff: of the real-space half of the Ewald sum, A.
    Returns:
        (N, M, 3), eV/(e A) per e.
    """
    k_cutoff = -2.0 * math.log(TOLERANCE) / cutoff
    kernel = GaussianCoulomb(splitting(cutoff, k_cutoff)[0])
    fields = _real_space(structure, element, n_elements, CoulombComplement(kernel, cutoff))
    kvectors = k_lattice(structure.cell[0], k_cutoff).indices.to(torch.float64) @ reciprocal_cell(structure.cell[0])
    weights = 4.0 / structure.cell[0].det().abs() * kernel(kvectors.norm(dim=1))
    portion = max(1, MAX_PHASES // structure.num_nodes)
    for start in range(0, len(kvectors), portion):
        part = slice(start, start + portion)
        fields += _reciprocal(
            structure.positions.numpy(), element, n_elements, kvectors[part].numpy(), weights[part].numpy()
        )
    return fields


def _real_space(
    structure: Structure, element: np.ndarray, n_elements: int, complement: CoulombComplement
) -> np.ndarray:
    vectors = edge_vectors(structure)
    distances = vectors.norm(dim=1)
    inside = distances < complement.cutoff
    vectors, distances = vectors[inside], distances[inside].requires_grad_()
    (slope,) = torch.autograd.grad(complement.bare(distances).sum(), distances)
    pull = (vectors * (slope / distances.detach())[:, None]).numpy()
    neighbour, centre = structure.edge_index[:, inside].numpy()
    place = centre * n_elements + element[neighbour]
    size = structure.num_nodes * n_elements
    columns = [np.bincount(place, pull[:, axis], minlength=size) for axis in range(3)]
    return np.stack(columns, axis=1).reshape(structure.num_nodes, n_elements, 3)


def _reciprocal(
    positions: np.ndarray, element: np.ndarray, n_elements: int, kvectors: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """E_b(r) = sum_k w k Im(S_b exp(i k.r)): minus the gradient of the energy of S_b and a unit charge at r."""
    phase = positions @ kvectors.T
    cosine, sine = np.cos(phase), np.sin(phase)
    weighted = weights[:, None] * kvectors
    fields = np.empty((len(positions), n_elements, 3))
    for b in range(n_elements):
        of_element = element == b
        # S_b = sum cos - i sum sin
        real, imaginary = cosine[of_element].sum(axis=0), sine[of_element].sum(axis=0)
        fields[:, b] = sine @ (real[:, None] * weighted) - cosine @ (imaginary[:, None] * weighted)
    return fields


def symmetric(coefficients: Sequence[float] | np.ndarray, n: int) -> np.ndarray:
    """(M, M) from the coefficients of the pairs, (P,)."""
    matrix = np.zeros((n, n))
    for value, (a, b) in zip(coefficients, combinations_with_replacement(range(n), 2), strict=True):
        matrix[a, b] = matrix[b, a] = value
    return matrix


def products(charges: np.ndarray) -> np.ndarray:
    """(P,) q_a q_b of every pair of elements."""
    return np.array([a * b for a, b in combinations_with_replacement(charges, 2)])
