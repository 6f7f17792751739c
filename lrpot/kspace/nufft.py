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
from scipy.special import iv
from torch import Tensor

from lrpot.errors import ConfigError
from lrpot.kspace.quadratic import Gradient

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
POINT_COST = 2.0

TAPS = 1 << 20  # atoms times points of the window that are handled at once
KEPT_TAPS = 1 << 24  # that are kept while the charges of fixed atoms are sought: 256 MB in float64


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


def choose_mesh(phi: Callable[[Tensor], Tensor], k_cutoff: float, tolerance: float, density: float = 0.05) -> Mesh:
    """The cheapest mesh whose forces are wrong by no more than the tolerance.

    Args:
        phi: (K,) or (K, C) kernel with envelope from (K,) wave numbers, 1/A.
        k_cutoff: 1/A.
        tolerance: relative root-mean-square error of the forces in a crystal whose atoms are 0.1 A off their sites.
            In a perfect crystal, whose forces vanish, they are wrong by as much as in that one.
        density: atoms per A^3.
    Raises:
        ConfigError: no mesh is that accurate.
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
    if best is None:
        raise ConfigError(
            f"tolerance = {tolerance:g} is out of reach of engine nufft with this kernel; raise it, or use separable"
        )
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
    return np.sqrt((of_images + of_missing) @ (k**2 * power) / total)


class Nufft:
    """The sum of one structure on a mesh. Weights have the shape (1, C or 1, M1, M2, M3 // 2 + 1, 2): see `modes`."""

    def __init__(self, lengths: list[float], mesh: Mesh, device: torch.device, dtype: torch.dtype) -> None:
        """
        Args:
            lengths: of the three lattice vectors, A.
            mesh: from `choose_mesh`.
        """
        # fewer points than the window is wide would make an atom meet itself; an even number, so that a transform of
        # real numbers is at its fastest
        sizes = [2 * next_fast_len(math.ceil(max(length / mesh.spacing, mesh.width) / 2)) for length in lengths]
        self.sizes = tuple(sizes)
        self.width = mesh.width
        self.shape = mesh.shape
        polynomials = torch.from_numpy(_polynomials(mesh.width, mesh.shape)).to(device, dtype)
        powers = torch.arange(len(polynomials), device=device, dtype=dtype)
        self.polynomials = polynomials  # (D + 1, w)
        # by mesh coordinate; the polynomials run over [-1, 1] in one step of the mesh
        self.slopes = 2.0 * (powers[1:, None] * polynomials[1:])
        self.counts = torch.tensor(sizes, device=device, dtype=dtype)
        padded = [size + mesh.width for size in sizes]
        steps = torch.arange(mesh.width, device=device)
        self.strides = torch.tensor([padded[1] * padded[2], padded[2], 1], device=device)
        self.offsets = ((steps[:, None, None] * padded[1] + steps[:, None]) * padded[2] + steps).reshape(-1)
        self.padded = tuple(padded)

    def modes(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The integer wave vectors of the mesh and what their weights must be multiplied with.

        Returns:
            (M1, M2, M3 // 2 + 1, 3) float64 indices; (M1, M2, M3 // 2 + 1) float64, one over the square of the
            window's transform, zero at the edge of the band, where a mode stands for itself and its opposite. Weights
            repeat each factor for the real and the imaginary part of S.
        """
        axes, factors = [], []
        for axis, size in enumerate(self.sizes):
            index = np.fft.rfftfreq(size, 1.0 / size) if axis == 2 else np.fft.fftfreq(size, 1.0 / size)
            factor = window_transform(self.width, self.shape, index / size) ** -2.0
            factor[np.abs(index) >= size / 2] = 0.0
            axes.append(torch.from_numpy(index).to(device))
            factors.append(torch.from_numpy(factor).to(device))
        indices = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return indices, factors[0][:, None, None] * factors[1][:, None] * factors[2]

    def evaluate(self, fractional: Tensor, charges: Tensor, weights: Tensor, *, power: bool) -> tuple[Tensor, Gradient]:
        """Energies (1,), float64, eV, and their gradient (see `Gradient`)."""
        fractional, charges = fractional[0], charges[0]
        n_atoms, n_channels = charges.shape
        density = charges.new_zeros(n_channels, math.prod(self.padded))
        size = max(1, TAPS // len(self.offsets))
        blocks = [slice(n, n + size) for n in range(0, n_atoms, size)]
        windows = [self._window(fractional[block]) for block in blocks]
        # one array for all blocks: a new one each time costs more than what is written into it
        buffer = self.offsets.new_empty(min(size, n_atoms), len(self.offsets))
        for block, (first, values, _) in zip(blocks, windows, strict=True):
            x, y, z = values.unbind(dim=1)
            plane = (y[:, :, None] * z[:, None]).flatten(1)[:, None]
            place = (first * self.strides).sum(dim=1)
            places = torch.add(place[:, None], self.offsets, out=buffer[: len(place)]).view(-1)
            for channel in range(n_channels):
                spread = (x * charges[block, channel, None])[:, :, None] * plane
                density[channel].scatter_add_(0, places, spread.reshape(-1))
        amplitude = torch.fft.rfftn(self._folded(density), dim=(1, 2, 3))
        # real times complex is slow, real and imaginary part times their weights are not
        parts = torch.view_as_real(amplitude)
        response = torch.view_as_complex(parts * weights[0].to(charges.dtype))
        field = self._unfolded(torch.fft.irfftn(response, s=self.sizes, dim=(1, 2, 3), norm="forward"))
        by_fractional, by_charges = torch.zeros_like(fractional), torch.empty_like(charges)
        for block, (first, values, slopes) in zip(blocks, windows, strict=True):
            x, y, z = torch.stack([values, slopes], dim=2).unbind(dim=1)  # (n, 2, w)
            place = (first * self.strides).sum(dim=1)
            places = torch.add(place[:, None], self.offsets, out=buffer[: len(place)]).view(-1)
            for channel in range(n_channels):
                around = field[channel].index_select(0, places).view(-1, self.width, self.width**2)
                # rows: value and slope along x; then y, then z
                in_x = torch.bmm(x, around).view(-1, 2 * self.width, self.width)
                in_xz = torch.bmm(in_x, z.mT).view(-1, 2, self.width, 2)  # (n, x, y', z)
                in_all = torch.einsum("nxwz,nyw->nxyz", in_xz, y)
                by_charges[block, channel] = in_all[:, 0, 0, 0]
                gradient = torch.stack([in_all[:, 1, 0, 0], in_all[:, 0, 1, 0], in_all[:, 0, 0, 1]], dim=1)
                by_fractional[block] += charges[block, channel, None] * gradient
        # the response is half the derivative
        energy = torch.sum(charges.double() * by_charges.double()).reshape(1)
        square = None
        if power:
            square = (parts**2).to(weights.dtype)
            # a mode with n3 > 0 stands for its opposite too
            square[..., 1:, :] *= 2.0
            square = square[None].sum_to_size(weights.shape)
        return energy, Gradient(2.0 * (by_fractional * self.counts)[None], 2.0 * by_charges[None], square)

    def potential(self, fractional: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """(1, n, C), eV/e, from charges (1, n, C); see `quadratic.Engine`. Windows are kept unless they are many."""
        fractional = fractional[0]
        size = max(1, TAPS // len(self.offsets))
        blocks = [slice(n, n + size) for n in range(0, len(fractional), size)]
        few = len(fractional) * len(self.offsets) <= KEPT_TAPS
        kept = [self._taps(fractional[block]) for block in blocks] if few else None
        # new arrays of this size cost more than what is written into them
        buffer = fractional.new_empty(min(size, len(fractional)), len(self.offsets))

        def potential(charges: Tensor) -> Tensor:
            columns = charges[0].mT
            density = charges.new_zeros(len(columns), math.prod(self.sizes))
            for n, block in enumerate(blocks):
                places, taps = kept[n] if kept else self._taps(fractional[block])
                for channel, values in enumerate(columns):
                    spread = torch.mul(values[block, None], taps, out=buffer[: len(taps)])
                    density[channel].scatter_add_(0, places, spread.view(-1))
            amplitude = torch.fft.rfftn(density.view(-1, *self.sizes), dim=(1, 2, 3))
            torch.view_as_real(amplitude).mul_(weights[0])
            field = torch.fft.irfftn(amplitude, s=self.sizes, dim=(1, 2, 3), norm="forward").flatten(1)
            found = torch.empty_like(charges)
            for n, block in enumerate(blocks):
                places, taps = kept[n] if kept else self._taps(fractional[block])
                around = buffer[: len(taps)]
                for channel in range(len(columns)):
                    torch.index_select(field[channel], 0, places, out=around.view(-1))
                    found[0, block, channel] = 2.0 * torch.bmm(around[:, None], taps[:, :, None])[:, 0, 0]
            return found

        return potential

    def differentiate(self, *arguments: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        raise ConfigError("engine nufft has first derivatives only; use engine = separable to train on forces")

    def _taps(self, fractional: Tensor) -> tuple[Tensor, Tensor]:
        """The points of the mesh, not padded, in each atom's window (n w^3,), and the window there (n, w^3)."""
        first, values, _ = self._window(fractional)
        x, y, z = values.unbind(dim=1)
        taps = (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None]).flatten(1)
        steps = first[..., None] + torch.arange(self.width, device=first.device)
        a, b, c = torch.remainder(steps, self.counts.to(torch.int64)[:, None]).unbind(dim=1)
        rows = a[:, :, None] * self.sizes[1] + b[:, None]
        return (rows[..., None] * self.sizes[2] + c[:, None, None]).view(-1), taps

    def _window(self, fractional: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The point of the mesh at which each atom's window begins (n, 3), its values and slopes (n, 3, w)."""
        begin = fractional * self.counts - 0.5 * self.width
        first = torch.floor(begin)
        t = 2.0 * (begin - first) - 1.0
        powers = torch.ones_like(t)[..., None].expand(-1, -1, len(self.polynomials)).clone()
        powers[..., 1:] = t[..., None]
        powers = torch.cumprod(powers, dim=-1)
        values = powers @ self.polynomials
        slopes = powers[..., :-1] @ self.slopes
        # the window's first point is the one after its beginning
        return torch.remainder(first.to(torch.int64) + 1, self.counts.to(torch.int64)), values, slopes

    def _folded(self, density: Tensor) -> Tensor:
        """(C, M1, M2, M3): what was spread beyond the end of an axis is added at its beginning."""
        density = density.view(-1, *self.padded)
        for axis, size in enumerate(self.sizes, start=1):
            density.narrow(axis, 0, self.width).add_(density.narrow(axis, size, self.width))
            density = density.narrow(axis, 0, size)
        return density

    def _unfolded(self, field: Tensor) -> Tensor:
        """(C, padded): the beginning of each axis repeated after its end."""
        padded = field.new_empty(len(field), *self.padded)
        one, two, three = self.sizes
        padded[:, :one, :two, :three] = field
        padded[:, :one, :two, three:] = padded[:, :one, :two, : self.width]
        padded[:, :one, two:] = padded[:, :one, : self.width]
        padded[:, one:] = padded[:, : self.width]
        return padded.view(len(field), -1)


def window(width: int, shape: float, x: np.ndarray) -> np.ndarray:
    """The spreading window at mesh coordinates x from its middle; zero beyond +-width / 2."""
    beta = math.pi * width * shape
    inner = np.clip(1.0 - (2.0 * np.asarray(x) / width) ** 2, 0.0, None)
    return inner * iv(2, beta * np.sqrt(inner)) / iv(2, beta)


def window_transform(width: int, shape: float, frequency: np.ndarray) -> np.ndarray:
    """int window(x) cos(2 pi f x) dx at frequencies f in periods per mesh point."""
    nodes, weights = np.polynomial.legendre.leggauss(24 + 8 * width)
    x = 0.25 * width * (nodes + 1.0)  # half of it: the window is even
    values = 0.5 * width * weights * window(width, shape, x)
    return np.cos(2.0 * math.pi * np.multiply.outer(frequency, x)) @ values


@lru_cache(maxsize=len(WIDTHS))
def _transform_samples(width: int) -> np.ndarray:
    """(S, 5001): for each of SHAPES the squared transform at 0, 0.001, ..., 5 periods per mesh point."""
    frequency = np.linspace(0.0, 5.0, 5001)
    return np.stack([window_transform(width, shape, frequency) for shape in SHAPES]) ** 2


def _nearest(frequency: np.ndarray) -> np.ndarray:
    return np.rint(1000.0 * np.abs(frequency)).astype(int)


@lru_cache(maxsize=64)
def _polynomials(width: int, shape: float) -> np.ndarray:
    """(D + 1, w): the window at each of its points, as polynomials in the place of its beginning within one step.

    They interpolate at points that include both ends of the step, so that the window stays continuous.
    """
    check = np.linspace(-1.0, 1.0, 101)
    # point a stands at a + 1 - (t + 1) / 2 from the beginning, which lies width / 2 from the middle
    columns = np.arange(width) + 1.0 - 0.5 * width
    exact = window(width, shape, columns - 0.5 * (check[:, None] + 1.0))
    for degree in range(4, 25):
        nodes = -np.cos(math.pi * np.arange(degree + 1) / degree)
        values = window(width, shape, columns - 0.5 * (nodes[:, None] + 1.0))
        found = np.linalg.solve(np.vander(nodes, increasing=True), values)
        error = np.abs(np.vander(check, degree + 1, increasing=True) @ found - exact).max()
        # a window of w points reaches 10^(1 - w) at best
        if error < 10.0 ** (-1 - width):
            break
    return found
