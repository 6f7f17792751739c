"""S(k) = sum_j q_j exp(-i k.r_j) as the plain sum: ordinary differentiable tensor code, to any order."""

from __future__ import annotations

import torch
from torch import Tensor


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
