"""Kernels Phi(|k|) of E_long = 1/V sum_k Phi(|k|) |S(k)|^2: physical, learned, and physical times learned.

A kernel is a module from (K,) wave numbers, 1/A, to (K,) values, or to (K, C), one column for each channel of the
charges. It says how it behaves at small k, Phi -> coulomb / k^2, and how far what it has learned reaches, which slabs
need; one that is costly to evaluate can also give a table of itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrpot.errors import ConfigError
from lrpot.units import COULOMB_CONSTANT

# Of the table that stands for a learned function: knots, and error at inference relative to the largest value.
KNOTS = 2048
MAX_KNOTS = 1 << 17
TABLE_ERROR = 1e-12


class Kernel(nn.Module):
    """Phi(|k|).

    Attributes:
        coulomb: its limit at small k is coulomb / k^2; eV A / e^2, a number or (C,).
    """

    coulomb: Any = 0.0

    @property
    def reach(self) -> float:
        """A: beyond it, two charges feel next to nothing but Coulomb interaction or dispersion."""
        return 0.0

    def tabulated(self) -> nn.Module:
        """The same with the weights as they are, quicker to evaluate; itself if it is quick."""
        return self


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
        self.k_cutoff = float(k_cutoff)
        self.register_buffer("frequencies", torch.arange(basis, dtype=torch.float64) * (math.pi / k_cutoff))
        self.first = nn.Linear(basis, hidden)
        self.residual = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.last = nn.Linear(hidden, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def reach(self) -> float:
        """A: beyond it, the function's transform is next to nothing.

        That of one cosine ends at its frequency; the network makes multiples of it, ever weaker. At five times the
        highest about 1e-5 is left.
        """
        return 5.0 * self.frequencies[-1].item()

    def forward(self, k: Tensor) -> Tensor:
        """(K,), dimensionless, from (K,) wave numbers in 1/A."""
        hidden = self.first(torch.cos(k.to(self.frequencies.device)[:, None] * self.frequencies))
        for layer in self.residual:
            hidden = hidden + layer(nn.functional.silu(hidden))
        return self.last(nn.functional.silu(hidden))[:, 0].to(k.device)


class GaussianCoulomb(Kernel):
    """Coulomb interaction of Gaussian charges: Phi = 2 pi k_e / k^2 exp(-sigma^2 k^2 / 2).

    It is the reciprocal half of the Ewald sum with alpha = 1 / (sqrt(2) sigma); `CoulombComplement` is the other half.

    Source: Ewald 1921; Yu et al. 2022 print the same function as Phi_1 in units of k / 2 pi.
    """

    coulomb = 2.0 * math.pi * COULOMB_CONSTANT

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

    @property
    def at_zero(self) -> float:
        """What Phi - coulomb / k^2 goes to at small k, eV A^3 / e^2."""
        return -0.5 * self.sigma**2 * self.coulomb

    def forward(self, k: Tensor) -> Tensor:
        """(K,), eV A^3 / e^2, from (K,) wave numbers in 1/A, none zero."""
        k_squared = k**2
        return self.coulomb * torch.exp(-0.5 * self.sigma**2 * k_squared) / k_squared


class Dispersion(Kernel):
    """The attraction -c_i c_j / r^6, with charges c = sqrt(C6) in eV^1/2 A^3, of which the part

        g(r) = [1 - exp(-x^2) (1 + x^2 + x^4 / 2)] / r^6,  x = beta r

    is smooth: Phi = -(pi^3/2 beta^3 / 6) [(1 - 2 b^2) exp(-b^2) + 2 b^3 sqrt(pi) erfc(b)], b = k / 2 beta, in units in
    which E_long is in eV. `DispersionComplement` is the other half.

    Source: Williams, Acta Cryst. A 27, 452 (1971); Essmann et al., J. Chem. Phys. 103, 8577 (1995), Eq. 5.2; Yu et
    al. 2022, whose Phi_6 drops a factor (docs/theory.md).
    """

    def __init__(self, beta: float) -> None:
        """
        Args:
            beta: splitting parameter, 1/A.
        Raises:
            ConfigError: beta is not positive.
        """
        super().__init__()
        if not beta > 0.0:
            raise ConfigError(f"beta = {beta:g} 1/A: the splitting parameter of the dispersion must be positive")
        self.beta = float(beta)

    @property
    def at_zero(self) -> float:
        """Phi(0), 1/A^3."""
        return -(math.pi**1.5) * self.beta**3 / 6.0

    def forward(self, k: Tensor) -> Tensor:
        """(K,), 1/A^3, for charges in sqrt(eV) A^3, from (K,) wave numbers in 1/A."""
        b = k / (2.0 * self.beta)
        gauss = torch.exp(-(b**2))
        return self.at_zero * ((1.0 - 2.0 * b**2) * gauss + 2.0 * math.sqrt(math.pi) * b**3 * torch.erfc(b))


class LearnedKernel(Kernel):
    """A physical kernel times a learned factor, Phi_prior(k) (1 + FCN(k) - FCN(0)): it starts as the physical one.

    FCN(0) is taken off so that the limit of long waves stays that of the prior. Otherwise a common factor could move
    between kernel and charges, and the charges would mean nothing.

    With `positive` the factor is exp(FCN(k) - FCN(0)), so that Phi keeps the sign of the prior.
    """

    def __init__(self, prior: GaussianCoulomb | Dispersion, fcn: FCN, *, positive: bool = False) -> None:
        super().__init__()
        self.prior = prior
        self.fcn = fcn
        self.positive = positive

    @property
    def coulomb(self) -> float:
        return self.prior.coulomb

    @property
    def reach(self) -> float:
        return self.fcn.reach

    def factor(self, k: Tensor) -> Tensor:
        """(K,), dimensionless, from (K,) wave numbers in 1/A."""
        learned = self.fcn(torch.cat([k, k.new_zeros(1)]))
        learned = learned[:-1] - learned[-1]
        return torch.exp(learned) if self.positive else 1.0 + learned

    def forward(self, k: Tensor) -> Tensor:
        """(K,) from (K,) wave numbers in 1/A, none zero."""
        return self.prior(k) * self.factor(k)

    def tabulated(self) -> nn.Module:
        return _Product(self.prior, EvenTable(self.factor, self.fcn.k_cutoff))


class FreeKernel(Kernel):
    """The learned function alone, as published: Phi(k) = k_e FCN(k) A^2; zero at the start of training.

    With `positive` it is k_e 3 pi^2 / k_cutoff^3 exp(FCN(k)) / A, which starts as an overlap: it costs two unit charges
    at one place about k_e / A, others that are further apart than some 1 / k_cutoff next to nothing.

    Source: Yu et al. 2022, E_long; the positive form is ours.
    """

    def __init__(self, fcn: FCN, *, positive: bool = False) -> None:
        super().__init__()
        self.fcn = fcn
        self.positive = positive

    @property
    def reach(self) -> float:
        return self.fcn.reach

    def forward(self, k: Tensor) -> Tensor:
        """(K,), eV A^3 / e^2, from (K,) wave numbers in 1/A."""
        learned = self.fcn(k)
        if self.positive:
            learned = torch.exp(learned) * (3.0 * math.pi**2 / self.fcn.k_cutoff**3)
        return COULOMB_CONSTANT * learned

    def tabulated(self) -> nn.Module:
        return EvenTable(self.forward, self.fcn.k_cutoff)


class KernelByChannel(Kernel):
    """A kernel of its own for each channel of the charges, as for Coulomb beside dispersion: (K, C) from (K,)."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(kernels)

    @property
    def coulomb(self) -> Tensor:
        """(C,), eV A / e^2: that of each channel."""
        return torch.tensor([kernel.coulomb for kernel in self.kernels], dtype=torch.float64)

    @property
    def reach(self) -> float:
        return max(float(kernel.reach) for kernel in self.kernels)  # type: ignore[arg-type]

    def forward(self, k: Tensor) -> Tensor:
        """(K, C) from (K,) wave numbers in 1/A, none zero."""
        return torch.stack([kernel(k) for kernel in self.kernels], dim=-1)

    def tabulated(self) -> nn.Module:
        return KernelByChannel([kernel.tabulated() for kernel in self.kernels])  # type: ignore[operator]


class _Product(nn.Module):
    def __init__(self, prior: nn.Module, factor: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.factor = factor

    def forward(self, k: Tensor) -> Tensor:
        return self.prior(k) * self.factor(k)


class EvenTable(nn.Module):
    """A function that is even in k and even about k_cutoff, as the FCN is, from a spline: values at `KNOTS` points.

    Quintic B-splines, so four derivatives are continuous, of which stress and its derivatives need two. The values are
    the only thing that is computed with the function itself, and the spline is differentiable in them: training pays
    for a few thousand points in place of every wave vector of every structure. While nothing is trained, knots are
    doubled until the error, measured at three places between each pair, is below `TABLE_ERROR` of the largest value.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], k_cutoff: float) -> None:
        """
        Args:
            function: (K,) from (K,) wave numbers.
            k_cutoff: end of the table, 1/A.
        """
        super().__init__()
        self.knots = KNOTS
        self.step = k_cutoff / KNOTS
        self.coefficients = self._fit(function)
        while not self.coefficients.requires_grad and self.knots < MAX_KNOTS:
            if self.error(function) < TABLE_ERROR:
                break
            self.knots *= 2
            self.step /= 2.0
            self.coefficients = self._fit(function)

    def forward(self, k: Tensor) -> Tensor:
        """(K,) from (K,) wave numbers in 1/A."""
        place = k / self.step
        # beyond the end the function comes back
        place = (place - 2 * self.knots * torch.round(place.detach() / (2 * self.knots))).abs()
        interval = place.detach().floor().clamp(0, self.knots - 1)
        t = place - interval
        c = self.coefficients.to(k.device).index_select(0, interval.long()).unbind(dim=1)
        return c[0] + t * (c[1] + t * (c[2] + t * (c[3] + t * (c[4] + t * c[5]))))

    def error(self, function: Callable[[Tensor], Tensor]) -> float:
        """The largest difference between table and function, relative to the largest value."""
        with torch.no_grad():
            knots = torch.arange(self.knots, dtype=torch.float64, device=self.coefficients.device)
            between = (knots[:, None] + knots.new_tensor([0.2, 0.5, 0.8])).reshape(-1) * self.step
            exact = function(between)
            return float((self(between) - exact).abs().max() / exact.abs().max().clamp(min=1e-300))

    def _fit(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """(knots, 6): in each interval the coefficients of a polynomial in t = 0 ... 1."""
        n = self.knots
        places = torch.arange(n + 1, dtype=torch.float64)
        values = function(places * self.step)
        periodic = torch.cat([values, values[1:-1].flip(0)])
        # the spline's coefficients are its values divided by what a spline does to each harmonic
        angles = places.to(values.device) * (math.pi / n)
        harmonics = (66.0 + 52.0 * torch.cos(angles) + 2.0 * torch.cos(2.0 * angles)) / 120.0
        c = torch.fft.irfft(torch.fft.rfft(periodic) / harmonics, n=2 * n)[: n + 1]
        c = torch.cat([c[1:3].flip(0), c, c[-3:-1].flip(0)])
        return c.unfold(0, 6, 1) @ c.new_tensor(_QUINTIC).T / 120.0


# Row p: what the six B-splines over an interval contribute to t^p.
_QUINTIC = (
    (1.0, 26.0, 66.0, 26.0, 1.0, 0.0),
    (-5.0, -50.0, 0.0, 50.0, 5.0, 0.0),
    (10.0, 20.0, -60.0, 20.0, 10.0, 0.0),
    (-10.0, 20.0, 0.0, -20.0, 10.0, 0.0),
    (5.0, -20.0, 30.0, -20.0, 5.0, 0.0),
    (-1.0, 5.0, -10.0, 10.0, -5.0, 1.0),
)
