"""Kernels Phi(|k|) of E_long = 1/V sum_k Phi(|k|) |S(k)|^2: physical, learned, and physical times learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrpot.errors import ConfigError
from lrpot.units import COULOMB_CONSTANT


class FCN(nn.Module):
    """The learned function of |k|: a residual network on an even basis, zero at the start of training.

    The basis cos(pi n k / k_cutoff), n = 0, 1, ..., is even and smooth in k. A larger cell has smaller |k| than any
    cell that was trained on; there the function goes on flat, instead of following the slope of the last data.

    Source: Yu et al. 2022, Fig. 2 (multilayer perceptrons and residual layers); the basis is ours.
    """

    frequencies: Tensor

    def __init__(self, k_cutoff: float, basis: int = 16, hidden: int = 32, layers: int = 2) -> None:
        """
        Args:
            k_cutoff: 1/A.
            basis: number of cosines.
            hidden: width of the network.
            layers: number of residual layers.
        """
        super().__init__()
        self.register_buffer("frequencies", torch.arange(basis, dtype=torch.float64) * (math.pi / k_cutoff))
        self.first = nn.Linear(basis, hidden)
        self.residual = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.last = nn.Linear(hidden, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, k: Tensor) -> Tensor:
        """(K,), dimensionless, from (K,) wave numbers in 1/A."""
        hidden = self.first(torch.cos(k[:, None] * self.frequencies))
        for layer in self.residual:
            hidden = hidden + layer(nn.functional.silu(hidden))
        return self.last(nn.functional.silu(hidden))[:, 0]


class GaussianCoulomb(nn.Module):
    """Coulomb interaction of Gaussian charges: Phi = 2 pi k_e / k^2 exp(-sigma^2 k^2 / 2).

    It is the reciprocal half of the Ewald sum with alpha = 1 / (sqrt(2) sigma); `CoulombComplement` is the other half.

    Source: Ewald 1921; Yu et al. 2022 print the same function as Phi_1 in units of k / 2 pi.
    """

    def __init__(self, sigma: float) -> None:
        """
        Args:
            sigma: standard deviation of each charge's Gaussian, A.
        Raises:
            ConfigError: sigma is not positive.
        """
        super().__init__()
        if not sigma > 0.0:
            raise ConfigError(f"sigma = {sigma:g} A: the width of a Gaussian charge must be positive")
        self.sigma = float(sigma)

    @property
    def alpha(self) -> float:
        """Ewald's splitting parameter, 1/A."""
        return 1.0 / (math.sqrt(2.0) * self.sigma)

    def forward(self, k: Tensor) -> Tensor:
        """(K,), eV A^3 / e^2, from (K,) wave numbers in 1/A, none zero."""
        k_squared = k**2
        return (2.0 * math.pi * COULOMB_CONSTANT) * torch.exp(-0.5 * self.sigma**2 * k_squared) / k_squared


class LearnedKernel(nn.Module):
    """A physical kernel times a learned factor, Phi_prior(k) (1 + FCN(k) - FCN(0)): it starts as the physical one.

    FCN(0) is taken off so that the limit of long waves stays that of the prior. Otherwise a common factor could move
    between kernel and charges, and the charges would mean nothing.
    """

    def __init__(self, prior: GaussianCoulomb, fcn: FCN) -> None:
        super().__init__()
        self.prior = prior
        self.fcn = fcn

    def forward(self, k: Tensor) -> Tensor:
        """(K,), eV A^3 / e^2, from (K,) wave numbers in 1/A, none zero."""
        factor = self.fcn(torch.cat([k, k.new_zeros(1)]))
        return self.prior(k) * (1.0 + factor[:-1] - factor[-1])


class FreeKernel(nn.Module):
    """The learned function alone, as published: Phi(k) = k_e FCN(k) A^2; zero at the start of training.

    Source: Yu et al. 2022, E_long.
    """

    def __init__(self, fcn: FCN) -> None:
        super().__init__()
        self.fcn = fcn

    def forward(self, k: Tensor) -> Tensor:
        """(K,), eV A^3 / e^2, from (K,) wave numbers in 1/A."""
        return COULOMB_CONSTANT * self.fcn(k)
