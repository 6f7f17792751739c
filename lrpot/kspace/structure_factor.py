"""S(k) = sum_j q_j exp(-i k.r_j), two ways: the plain sum, and one axis at a time.

Both are ordinary differentiable tensor code, to any order, in positions, charges and cell.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lrpot.kspace.lattice import KLattice


def structure_factor(positions: Tensor, charges: Tensor, kvectors: Tensor) -> Tensor:
    """Fourier amplitude of the charge density as the plain sum over atoms: the oracle of the faster ways.

    Args:
        positions: (N, 3), A; need not be wrapped.
        charges: (N, C), e.
        kvectors: (K, 3), 1/A, including 2 pi.
    Returns:
        (K, C) complex, e.
    Source: Yu et al. 2022, the definition of S(k, r) below E_long.
    """
    phase = kvectors @ positions.T
    return torch.complex(torch.cos(phase) @ charges, -(torch.sin(phase) @ charges))


def structure_factor_separable(fractional: Tensor, charges: Tensor, lattice: KLattice) -> Tensor:
    """The same with the phase split: k.r = 2 pi (n1 f1 + (n2 f2 + n3 f3)), an index of one axis and one of a plane.

    Sine and cosine are taken of N (H + M) phases instead of N K, the sum over atoms is one real matrix product, and
    no N x K array is stored. A product with one column (n2, n3) also gives that of (-n2, -n3), whose phase is the
    opposite.

    Args:
        fractional: (N, 3), positions in units of the lattice vectors.
        charges: (N, C), e.
        lattice: the wave vectors.
    Returns:
        (K, C) complex, e.
    """
    n_atoms, n_channels = charges.shape
    angles = (2.0 * math.pi) * fractional
    row = angles[:, :1] * lattice.rows.to(angles.dtype)
    column = angles[:, 1:] @ lattice.columns.to(angles.dtype).T
    left = torch.stack([torch.cos(row), torch.sin(row)], dim=1)[..., None] * charges[:, None, None, :]
    right = torch.cat([torch.cos(column), torch.sin(column)], dim=1)
    # (2, H, C, 2, M) -> (2, 2, H * M, C): cos cos, cos sin, sin cos, sin sin of row and column
    sums = (left.reshape(n_atoms, -1).T @ right).reshape(2, len(lattice.rows), n_channels, 2, -1)
    sums = sums.permute(0, 3, 1, 4, 2).reshape(2, 2, -1, n_channels)[:, :, lattice.place]
    sign = lattice.sign.to(angles.dtype)[:, None]
    return torch.complex(sums[0, 0] - sign * sums[1, 1], -(sums[1, 0] + sign * sums[0, 1]))
