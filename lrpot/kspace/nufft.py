"""S(k) by a non-uniform fast Fourier transform: O(N log N), to a tolerance.

Charges are spread onto a regular mesh with a window w points wide, and the mesh is transformed; the transform of the
window is divided out. What is wrong then is that a wave vector outside the mesh's band looks like one inside. How
much that costs depends on the kernel: where Phi(k) is small an error is cheap. So the mesh is not made finer than this
kernel needs it, which is what makes it several times smaller than a transform whose every mode is accurate.

The gradient is the exact derivative of the energy on the mesh, not an interpolated field: molecular dynamics conserves
this energy, whatever the tolerance. First derivatives only.

Source: the window is the generalised Kaiser-Bessel function of Lewitt, J. Opt. Soc. Am. A 7, 1834 (1990), with m = 2,
whose value and slope vanish at its ends; the transform is that of Dutt and Rokhlin, SIAM J. Sci. Comput. 14, 1368
(1993); derivatives of the mesh energy as in Essmann et al., J. Chem. Phys. 103, 8577 (1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from lrpot.errors import ConfigError
from lrpot.kspace.quadratic import Gradient, Total, unshared
from lrpot.kspace.taps import CompiledTaps, Grid, Taps, TensorTaps
from lrpot.kspace.window import window_transform

WIDTHS = range(4, 17)
# Spacings that are tried, times k_cutoff; at pi the mesh's band just holds the sphere.
SPACINGS = np.linspace(1.0, 4.0, 31)
SHAPES = np.arange(0.40, 1.0, 0.05)  # the window's beta over pi times its width

# The error was at most 9.3 times the estimate (see `_errors`), 1.0 times on average, in 4928 cases: ten crystals with
# lattice constants of 4 to 7 A and boxes of water, seven kernels, tolerances of 1e-2 to 1e-8. The worst are sparse
# crystals of narrow Gaussians, whose atoms feel less of each other than the estimate believes; Gaussians of 0.55 A,
# narrower than any that belong to a cutoff beyond 2.5 A, reach 14 times. Some of them: tests/unit/test_nufft.py.
SAFETY = 10.0
DISPLACEMENT = 0.1  # A
REPULSION = 0.6  # A

# What a point of the mesh costs in units of one atom's share in one point: benchmarks/kspace.py.
POINT_COST = 6.0


@dataclass(frozen=True)
class Mesh:
    """How fine a mesh and how wide a window.

    Attributes:
        spacing: at most this far apart, A.
        width: points per axis.
        shape: beta / (pi width) of the window.
        error: estimate of the relative error of the forces.
    """

    spacing: float
    width: int
    shape: float
    error: float


def choose_mesh(
    phi: Callable[[Tensor], Tensor], k_cutoff: float, tolerance: float, density: float = 0.05
) -> Mesh | None:
    """The cheapest mesh whose forces are wrong by no more than the tolerance; None where there is none.

    Args:
        phi: (K,) or (K, C) kernel with envelope from (K,) wave numbers, 1/A.
        k_cutoff: 1/A.
        tolerance: relative root-mean-square error of the forces in a crystal whose atoms are 0.1 A off their sites.
            In a perfect crystal, whose forces vanish, they are wrong by as much as in that one.
        density: atoms per A^3.
    """
    k = (np.arange(96) + 0.5) * (k_cutoff / 96)
    with torch.no_grad():
        values = phi(torch.from_numpy(k)).reshape(len(k), -1).numpy()
    power = (values**2).sum(axis=1)
    best, cost = None, math.inf
    for width in WIDTHS:
        # the coarsest spacing that will do, by halving: the error grows with the spacing
        found, low, high = None, -1, len(SPACINGS)
        while high - low > 1:
            middle = (low + high) // 2
            spacing = SPACINGS[middle] / k_cutoff
            errors = _errors(k, power, spacing, width)
            if SAFETY * errors.min() <= tolerance:
                found = Mesh(float(spacing), width, float(SHAPES[errors.argmin()]), float(errors.min()))
                low = middle
            else:
                high = middle
        if found is not None:
            found_cost = density * width**3 + POINT_COST / found.spacing**3
            if found_cost < cost:
                best, cost = found, found_cost
    return best


def _errors(k: np.ndarray, power: np.ndarray, spacing: float, width: int) -> np.ndarray:
    """Relative error of forces for each of SHAPES, from first principles with a model of the crystal.

    Of the charge density at wave vector k a share r_m = w(k + 2 pi m / h) / w(k) arrives from, or goes to, its images,
    where w is the window's transform: an error k r_m of the force by what arrives, |k + 2 pi m / h| r_m by what goes.
    All of |S|^2 = N makes errors, but for what neutrality takes away at small k (1 - exp(-k^2 l^2), l = REPULSION);
    only displaced atoms feel a force (1 - exp(-k^2 u^2), u = DISPLACEMENT). Directions are averaged.
    """
    cosine = (np.arange(12) + 0.5) / 12
    x = k[:, None] * cosine * (spacing / (2.0 * math.pi))  # periods per mesh point along one axis
    share_of_force = -np.expm1(-((k * DISPLACEMENT) ** 2))
    share_of_error = -np.expm1(-((k * REPULSION) ** 2))[:, None]
    samples = _transform_samples(width)
    wrong = np.zeros((len(SHAPES), *x.shape))
    for image in (-3, -2, -1, 1, 2, 3):
        ratio = samples[:, _nearest(x + image)] / samples[:, _nearest(x)]
        there = (2.0 * math.pi * image / spacing) ** 2 + 4.0 * math.pi * image / spacing * k[:, None] * cosine
        wrong += ratio * ((k[:, None] ** 2 + there) * share_of_error + k[:, None] ** 2)
    inside = x < 0.5
    # three axes; a wave vector outside the band of any of them is missing
    of_images = 3.0 * np.where(inside, wrong, 0.0).mean(axis=2)
    of_missing = np.minimum(3.0 * (~inside).mean(axis=1), 1.0) * share_of_force * k**2
    total = np.sum(k**2 * power * k**2 * share_of_force)
    if total == 0.0:  # a kernel that is zero, as at the start of a fit: nothing can be wrong
        return np.zeros(len(SHAPES))
    return np.sqrt((of_images + of_missing) @ (k**2 * power) / total)


class Nufft:
    """The sum of one structure on a mesh. Weights have the shape (1, C or 1, M1, M2, M3 // 2 + 1, 2): see `modes`."""

    total: Total = staticmethod(unshared)

    def __init__(self, lengths: list[float], mesh: Mesh, device: torch.device, dtype: torch.dtype) -> None:
        """
        Args:
            lengths: of the three lattice vectors, A.
            mesh: from `choose_mesh`.
        """
        # fewer points than the window is wide would make an atom meet itself; an even number, so that a transform of
        # real numbers is at its fastest
        sizes = [2 * next_fast_len(math.ceil(max(length / mesh.spacing, mesh.width) / 2)) for length in lengths]
        self.grid = Grid(tuple(sizes), mesh.width, mesh.shape, device, dtype)
        self.shape = mesh.shape
        self.taps: type[Taps] = CompiledTaps if device.type == "cpu" else TensorTaps

    @property
    def nbytes(self) -> int:
        return self.grid.polynomials.nbytes + self.grid.counts.nbytes

    def modes(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The integer wave vectors of the mesh and what their weights must be multiplied with.

        Returns:
            (M1, M2, M3 // 2 + 1, 3) float64 indices; (M1, M2, M3 // 2 + 1) float64, one over the square of the
            window's transform, zero at the edge of the band, where a mode stands for itself and its opposite. Weights
            repeat each factor for the real and the imaginary part of S.
        """
        axes, factors = [], []
        for axis, size in enumerate(self.grid.sizes):
            index = np.fft.rfftfreq(size, 1.0 / size) if axis == 2 else np.fft.fftfreq(size, 1.0 / size)
            factor = window_transform(self.grid.width, self.shape, index / size) ** -2.0
            factor[np.abs(index) >= size / 2] = 0.0
            axes.append(torch.from_numpy(index).to(device))
            factors.append(torch.from_numpy(factor).to(device))
        indices = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return indices, factors[0][:, None, None] * factors[1][:, None] * factors[2]

    def evaluate(self, fractional: Tensor, charges: Tensor, weights: Tensor, *, power: bool) -> tuple[Tensor, Gradient]:
        """Energies (1,), float64, eV, and their gradient (see `Gradient`)."""
        charges = charges[0]
        taps = self.taps(fractional[0], self.grid)
        amplitude = torch.fft.rfftn(self.total(taps.spread(charges)), dim=(1, 2, 3))
        square = None
        if power:
            square = (torch.view_as_real(amplitude) ** 2).to(weights.dtype)
            # a mode with n3 > 0 stands for its opposite too
            square[..., 1:, :] *= 2.0
            square = square[None].sum_to_size(weights.shape)
        by_charges, by_mesh = taps.gather(self._field(amplitude, weights), charges)
        # the response is half the derivative
        energy = self.total(torch.sum(charges.double() * by_charges.double()).reshape(1))
        return energy, Gradient(2.0 * (by_mesh * self.grid.counts)[None], 2.0 * by_charges[None], square)

    def potential(self, fractional: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """(1, n, C), eV/e, from charges (1, n, C); see `quadratic.Engine`."""
        taps = self.taps(fractional[0], self.grid)

        def potential(charges: Tensor) -> Tensor:
            amplitude = torch.fft.rfftn(taps.spread(charges[0]), dim=(1, 2, 3))
            return 2.0 * taps.look_up(self._field(amplitude, weights))[None]

        return potential

    def _field(self, amplitude: Tensor, weights: Tensor) -> Tensor:
        """(C, M1, M2, M3), eV/e, from (C, M1, M2, M3 // 2 + 1), which are overwritten."""
        # real times complex is slow, real and imaginary part times their weights are not
        torch.view_as_real(amplitude).mul_(weights[0].to(self.grid.counts.dtype))
        return torch.fft.irfftn(amplitude, s=self.grid.sizes, dim=(1, 2, 3), norm="forward")

    def differentiate(self, *arguments: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        raise ConfigError("engine nufft has first derivatives only; use engine = separable to train on forces")


@lru_cache(maxsize=len(WIDTHS))
def _transform_samples(width: int) -> np.ndarray:
    """(S, 5001): for each of SHAPES the squared transform at 0, 0.001, ..., 5 periods per mesh point."""
    frequency = np.linspace(0.0, 5.0, 5001)
    return np.stack([window_transform(width, shape, frequency) for shape in SHAPES]) ** 2


def _nearest(frequency: np.ndarray) -> np.ndarray:
    return np.rint(1000.0 * np.abs(frequency)).astype(int)
