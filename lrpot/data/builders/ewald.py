"""The Ewald sum of fixed point charges in a periodic cell, with forces and stress, in plain numpy.

pymatgen's sum, which labels the Coulomb data set, has no stress and is too slow for dynamics. This one is compared
with it by the tests.

Source: Ewald 1921; stress: Nose and Klein, Mol. Phys. 50, 1055 (1983), Eq. 2.18; charged cells: Hub et al., J. Chem.
Theory Comput. 10, 381 (2014), Eq. 4.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erfc

from lrpot.units import COULOMB_CONSTANT

# Both sums are cut where their terms have fallen to exp(-DEPTH^2), 1e-7.
DEPTH = 4.0

# Atoms times wave vectors whose phases are computed together: as many as the cache of a processor holds.
BLOCK = 30_000


def splitting(cutoff: float) -> tuple[float, float]:
    """alpha (1/A) and the largest |k| (1/A) that belong to a cutoff (A) of the sum over pairs."""
    alpha = DEPTH / cutoff
    return alpha, 2.0 * DEPTH * alpha


def screened(r: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """k_e erfc(alpha r) / r and its derivative by r.

    Args:
        r: (n_pairs,), A. alpha: 1/A.
    Returns:
        (n_pairs,), eV/e^2, and (n_pairs,), eV/(A e^2).
    """
    energy = COULOMB_CONSTANT * erfc(alpha * r) / r
    gaussian = 2.0 * alpha / math.sqrt(math.pi) * np.exp(-((alpha * r) ** 2))
    return energy, -(energy + COULOMB_CONSTANT * gaussian) / r


def smooth_part(
    positions: np.ndarray, cell: np.ndarray, charges: np.ndarray, alpha: float, k_cutoff: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """All of the Coulomb energy but the screened pairs: the sum over k, less the energy of each charge in its own
    Gaussian, less that of a charged cell in the uniform background that neutralises it.

    Args:
        positions: (n_atoms, 3), A; need not be wrapped.
        cell: (3, 3), A, rows are lattice vectors.
        charges: (n_atoms,), e.
        alpha: 1/A. k_cutoff: 1/A.
    Returns:
        energy, eV; forces, (n_atoms, 3), eV/A; derivative of the energy by strain, (3, 3), eV.
    """
    volume = abs(np.linalg.det(cell))
    total = -np.pi * COULOMB_CONSTANT * charges.sum() ** 2 / (2.0 * volume * alpha**2)  # of the background
    forces, by_strain = np.zeros_like(positions), -total * np.eye(3)
    vectors = _half_sphere(cell, k_cutoff)
    for k in np.array_split(vectors, 1 + len(vectors) * len(positions) // BLOCK):
        square = (k**2).sum(axis=1)
        # each k stands for itself and for -k
        kernel = 4.0 * np.pi * COULOMB_CONSTANT / volume * np.exp(-square / (4.0 * alpha**2)) / square
        phases = positions @ k.T
        cosines, sines = np.cos(phases), np.sin(phases)
        real, imaginary = charges @ cosines, charges @ sines
        energies = kernel * (real**2 + imaginary**2)
        total += energies.sum()
        forces += 2.0 * charges[:, None] * ((sines * real - cosines * imaginary) * kernel @ k)
        weights = 2.0 * energies * (1.0 / square + 1.0 / (4.0 * alpha**2))
        by_strain += k.T @ (weights[:, None] * k) - np.eye(3) * energies.sum()
    own = COULOMB_CONSTANT * alpha / math.sqrt(math.pi) * (charges**2).sum()
    return float(total - own), forces, by_strain


def _half_sphere(cell: np.ndarray, k_cutoff: float) -> np.ndarray:
    """(n_k, 3), 1/A: one of each pair k, -k with 0 < |k| < k_cutoff."""
    reciprocal = 2.0 * np.pi * np.linalg.inv(cell).T
    # |k . a_i| = 2 pi |n_i| is at most |k| |a_i|
    limits = np.floor(k_cutoff * np.linalg.norm(cell, axis=1) / (2.0 * np.pi)).astype(int)
    numbers = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in limits), indexing="ij"), axis=-1).reshape(-1, 3)
    k = numbers[len(numbers) // 2 + 1 :] @ reciprocal  # the numbers are point-symmetric about their middle, zero
    return k[(k**2).sum(axis=1) < k_cutoff**2]
