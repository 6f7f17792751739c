"""Charges from forces and energies before any network, by linear least squares.

The labels are fitted by an offset per element, a short spline for every pair of elements, and the whole Coulomb energy
of every pair of elements; the coefficients of the last are the products q_a q_b. A short pair potential cannot imitate
the long range as a message-passing network can, so the products come out physical. They are then fitted again as true
products of neutral charges.

Source: the ancestor is force matching of fixed-charge models, Ercolessi and Adams, Europhys. Lett. 26, 583 (1994).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
from scipy.interpolate import BSpline
from scipy.linalg import null_space
from scipy.optimize import least_squares

from lrpot.errors import DataError
from lrpot.kspace import CoulombComplement, ReciprocalSum
from lrpot.structure import Structure, edge_vectors

# Enough equations for a few dozen unknowns; more rows change nothing and cost time.
MAX_ATOMS = 4000
SPLINES = 10

# Below these the Coulomb part explains too little, or its products are too far from products, to be charges.
MIN_EXPLAINED = 0.15
MIN_RANK_ONE = 0.5


class PrefitRefused(DataError):
    """The data do not determine charges; the message says by which measure."""


@dataclass(frozen=True)
class Prefit:
    """Charges and how well the data determine them.

    Attributes:
        charges: e, by atomic number.
        products: (M, M), e^2, q_a q_b as fitted freely, elements ascending.
        rank_one: share of the largest eigenvalue of `products`, 1 for true products.
        explained: how much of what the splines leave the Coulomb part explains, relative, 0 to 1.
        pair_cutoff: A, the reach of the splines.
        n_structures: used.
    """

    charges: dict[int, float]
    products: np.ndarray
    rank_one: float
    explained: float
    pair_cutoff: float
    n_structures: int


def prefit_charges(
    structures: Sequence[Structure],
    reciprocal: ReciprocalSum,
    complement: CoulombComplement,
    *,
    pair_cutoff: float = 4.5,
) -> Prefit:
    """Charges of every element from labelled structures.

    Args:
        structures: with energies and forces, and edges up to the complement's cutoff.
        reciprocal, complement: the two halves of the Coulomb energy (the kernel's learned factor still zero).
        pair_cutoff: reach of the splines, A. Keep it short: a long one imitates the Coulomb field. It is widened in
            steps of 0.5 A, at most to the complement's cutoff, while a pair of elements has no pair inside.
    Returns:
        the charges and their quality.
    Raises:
        PrefitRefused: no forces, one element only, or quality measures below their limits.
    """
    usable = [s for s in structures if "forces" in s and bool(s.pbc.all())]
    if not usable:
        raise PrefitRefused("no periodic structure with forces to fit charges to")
    chosen = _spread(usable)
    elements = sorted({int(z) for s in chosen for z in s.numbers})
    if len(elements) < 2:
        raise PrefitRefused("one element only: in a neutral crystal its charge is zero")
    pair_cutoff = _widened(chosen, elements, pair_cutoff, complement.cutoff)
    blocks = [_equations(s, elements, reciprocal, complement, pair_cutoff) for s in chosen]
    short, coulomb, target = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    # what offsets and splines explain is projected out; the Coulomb coefficients see only the rest
    basis = _orthonormal(short)
    target = target - basis @ (basis.T @ target)
    coulomb = coulomb - basis @ (basis.T @ coulomb)

    products = _symmetric(np.linalg.lstsq(coulomb, target, rcond=None)[0], len(elements))
    eigenvalues, eigenvectors = np.linalg.eigh(products)
    rank_one = float(eigenvalues[-1] / np.abs(eigenvalues).sum()) if eigenvalues.any() else 0.0
    if products.diagonal().min() < 0 or rank_one < MIN_RANK_ONE:
        raise PrefitRefused(
            f"the fitted products q_a q_b are no products: squares {_numbers(products.diagonal())} e^2, "
            f"eigenvalues {_numbers(eigenvalues)} e^2"
        )
    charges = _as_charges(coulomb, target, eigenvectors[:, -1] * np.sqrt(eigenvalues[-1]), _neutral(chosen, elements))
    left = target - coulomb @ _products(charges)
    explained = 1.0 - float(left @ left) / max(float(target @ target), 1e-300)
    if explained < MIN_EXPLAINED:
        raise PrefitRefused(f"a Coulomb field explains only {max(explained, 0.0):.0%} of what pair splines leave")
    if charges.min() >= 0 or charges.max() <= 0:
        raise PrefitRefused(f"all fitted charges have one sign ({_numbers(charges)} e)")
    charges = charges * _sign(elements, charges)
    return Prefit(
        charges=dict(zip(elements, charges.tolist(), strict=True)),
        products=products,
        rank_one=rank_one,
        explained=explained,
        pair_cutoff=pair_cutoff,
        n_structures=len(chosen),
    )


def _spread(structures: Sequence[Structure]) -> list[Structure]:
    """Structures from all over the list, until they hold MAX_ATOMS atoms."""
    mean = sum(s.num_nodes for s in structures) / len(structures)
    count = max(1, min(len(structures), int(MAX_ATOMS / mean)))
    return [structures[i] for i in np.linspace(0, len(structures) - 1, count).round().astype(int)]


def _widened(structures: Sequence[Structure], elements: list[int], cutoff: float, limit: float) -> float:
    while cutoff < limit:
        found = set()
        for structure in structures:
            inside = torch.linalg.vector_norm(edge_vectors(structure), dim=1) < cutoff
            pairs = structure.numbers[structure.edge_index[:, inside]]
            found |= set(map(tuple, torch.unique(pairs.T, dim=0).tolist()))
        if all(pair in found for pair in combinations_with_replacement(elements, 2)):
            break
        cutoff = min(cutoff + 0.5, limit)
    return min(cutoff, limit)


def _equations(
    structure: Structure,
    elements: list[int],
    reciprocal: ReciprocalSum,
    complement: CoulombComplement,
    pair_cutoff: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of one structure: forces, and the energy if it is labelled, so that an error of the energy per atom in
    eV weighs like the same number of eV/A in all force components."""
    n_atoms = structure.num_nodes
    weight = np.sqrt(3.0 * n_atoms) / n_atoms
    counts = np.array([[float((structure.numbers == z).sum()) for z in elements]])
    spline_energy, spline_forces = _splines(structure, elements, pair_cutoff)
    coulomb_energy, coulomb_forces = _coulomb(structure, elements, reciprocal, complement)
    offsets = np.zeros((3 * n_atoms, len(elements)))
    short = np.hstack([offsets, spline_forces])
    coulomb = coulomb_forces
    target = structure.forces.numpy().reshape(-1)
    if "energy" in structure:
        short = np.vstack([short, weight * np.hstack([counts, spline_energy[None]])])
        coulomb = np.vstack([coulomb, weight * coulomb_energy[None]])
        target = np.append(target, weight * float(structure.energy[0]))
    return short, coulomb, target


def _splines(structure: Structure, elements: list[int], cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Energies (P * SPLINES,) and forces (3N, P * SPLINES) of cubic B-splines, which vanish smoothly at the cutoff."""
    vectors = edge_vectors(structure).numpy()
    distances = np.linalg.norm(vectors, axis=1)
    inside = distances < cutoff
    vectors, distances = vectors[inside], distances[inside]
    neighbour, centre = structure.edge_index.numpy()[:, inside]
    # the last basis functions of a uniform knot row that ends three knots after the cutoff would be cut off
    step = cutoff / (SPLINES + 3)
    knots = step * np.arange(SPLINES + 4)
    kinds = {pair: n for n, pair in enumerate(combinations_with_replacement(elements, 2))}
    numbers = structure.numbers.numpy()
    kind = np.array(
        [kinds[min(a, b), max(a, b)] for a, b in zip(numbers[neighbour], numbers[centre], strict=True)], dtype=int
    )
    n_atoms, n_columns = len(numbers), len(kinds) * SPLINES
    energy = np.zeros(n_columns)
    forces = np.zeros((n_atoms, 3, n_columns))
    for m in range(SPLINES):
        spline = BSpline.basis_element(knots[m : m + 5], extrapolate=False)
        value, slope = np.nan_to_num(spline(distances)), np.nan_to_num(spline.derivative()(distances))
        column = kind * SPLINES + m
        np.add.at(energy, column, 0.5 * value)
        np.add.at(forces.transpose(0, 2, 1), (centre, column), (slope / distances)[:, None] * vectors)
    return energy, forces.reshape(3 * n_atoms, n_columns)


def _coulomb(
    structure: Structure, elements: list[int], reciprocal: ReciprocalSum, complement: CoulombComplement
) -> tuple[np.ndarray, np.ndarray]:
    """Energies (P,) and forces (3N, P) whose coefficients are the products q_a q_b, in the order of the pairs.

    The energy is quadratic in the charges: that of a and b together, less that of each alone, is their interaction.
    """
    is_element = structure.numbers[:, None] == torch.tensor(elements)
    results = {}
    for a, b in combinations_with_replacement(range(len(elements)), 2):
        positions = structure.positions.clone().requires_grad_()
        moved = structure.clone()
        moved.positions = positions
        charges = (is_element[:, a] | is_element[:, b]).to(torch.float64)[:, None]
        index = torch.zeros_like(structure.numbers)
        distances = torch.linalg.vector_norm(edge_vectors(moved), dim=1)
        volume = torch.linalg.det(structure.cell).abs()
        energy = reciprocal(positions, charges, structure.cell, index) + complement(
            charges, volume, index, structure.edge_index, distances
        )
        (gradient,) = torch.autograd.grad(energy.sum(), positions)
        results[a, b] = np.append(-gradient.numpy().reshape(-1), energy.item())
    columns = [
        results[a, b] if a == b else results[a, b] - results[a, a] - results[b, b]
        for a, b in combinations_with_replacement(range(len(elements)), 2)
    ]
    table = np.stack(columns, axis=1)
    return table[-1], table[:-1]


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the column space; columns that are nearly dependent are left out."""
    norms = np.linalg.norm(columns, axis=0)
    columns = columns[:, norms > 0] / norms[norms > 0]
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, singular > 1e-10 * singular.max(initial=0.0)]


def _symmetric(coefficients: np.ndarray, n: int) -> np.ndarray:
    matrix = np.zeros((n, n))
    for value, (a, b) in zip(coefficients, combinations_with_replacement(range(n), 2), strict=True):
        matrix[a, b] = matrix[b, a] = value
    return matrix


def _products(charges: np.ndarray) -> np.ndarray:
    return np.array([a * b for a, b in combinations_with_replacement(charges, 2)])


def _neutral(structures: Sequence[Structure], elements: list[int]) -> np.ndarray:
    """(M, M') basis of the charges that make every composition neutral; of all charges where only zero would do.

    With the compositions of defects next to that of the perfect crystal, charges fixed by element cannot make all
    cells neutral; the most frequent composition decides then.
    """
    compositions = [tuple(int((s.numbers == z).sum()) for z in elements) for s in structures]
    basis = null_space(np.array(sorted(set(compositions)), dtype=float), rcond=1e-9)
    if basis.shape[1] == 0:
        most = max(set(compositions), key=compositions.count)
        basis = null_space(np.array([most], dtype=float))
    return basis


def _as_charges(coulomb: np.ndarray, target: np.ndarray, start: np.ndarray, neutral: np.ndarray) -> np.ndarray:
    """Charges (M,) in the span of `neutral` whose products fit best, from a first guess."""

    def residual(u: np.ndarray) -> np.ndarray:
        return target - coulomb @ _products(neutral @ u)

    guess = neutral.T @ start
    if not np.any(np.abs(guess) > 1e-3):
        guess = np.full(neutral.shape[1], 0.3)
    return neutral @ least_squares(residual, guess, method="trf", xtol=1e-15, ftol=1e-15, gtol=1e-15).x


def _sign(elements: list[int], charges: np.ndarray) -> float:
    """Products do not tell +q from -q: the more electronegative elements get the negative charges."""
    from pymatgen.core import Element

    electronegativity = np.array([Element.from_Z(z).X for z in elements])
    electronegativity = np.nan_to_num(electronegativity, nan=2.0)
    return -1.0 if np.dot(charges, electronegativity - electronegativity.mean()) > 0 else 1.0


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:+.3f}" for value in values)
