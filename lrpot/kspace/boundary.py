"""What takes the place of the periodic sum, or is added to it, where a structure does not repeat in all directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lrpot.errors import StructureError

# Of the field of a slab what is left at its neighbour, across the gap, relative.
SLAB_IMAGES = 1e-8
# Numbers that are held at once; what has more is computed in blocks, and again in the backward pass.
HELD = 1 << 21
# Of the polynomials of a table, each for a distance over which no wave turns by more than a radian: exact to rounding.
DEGREE = 11
# A: no kernel is taken for smoother in k than a function of this reach.
LEAST_REACH = 10.0


class Boundary(Enum):
    """Along which lattice vectors a structure repeats: all three, two, none."""

    PERIODIC = 3
    SLAB = 2
    ISOLATED = 0


def boundary_of(pbc: Tensor) -> Boundary:
    """From (3,) bool.

    Raises:
        StructureError: periodic in one direction only.
    """
    count = int(pbc.sum())
    if count == 1:
        raise StructureError(
            f"pbc = {pbc.tolist()}: a chain, periodic in one direction only, is not supported; the long-range part "
            "knows crystals (three), slabs (two) and molecules (none). Make one more direction periodic, with vacuum"
        )
    return Boundary(count)


def slab_box(positions: Tensor, cell: Tensor, axis: int, reach: float) -> Tensor:
    """A box with vacuum in place of a slab's cell.

    The gap is so wide that fields with a wave vector in the plane have died out across it: exp(-|G| gap) is at most
    `SLAB_IMAGES`, and what a kernel has learned does not reach that far.

    Args:
        positions: (N, 3), A. cell: (3, 3), A. axis: of the vector that does not repeat, which may be anything.
        reach: of the kernel, A.
    Returns:
        (3, 3), A, differentiable in the two vectors that repeat.
    """
    one, other = cell[(axis + 1) % 3], cell[(axis + 2) % 3]
    normal = torch.linalg.cross(one, other)
    area = torch.linalg.vector_norm(normal)
    if not bool(area > 1e-6 * torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other)):
        raise StructureError("the two periodic lattice vectors of a slab are parallel or zero; check cell and pbc")
    normal = normal / area
    gap = max(-math.log(SLAB_IMAGES) / _shortest_reciprocal(one, other), reach)
    # in steps, so that the wave vectors stay the same while atoms move
    step = 0.25 * gap
    length = step * math.ceil((extent_of((positions @ normal)[:, None]) + gap) / step)
    rows = list(cell.unbind())
    rows[axis] = normal * length
    return torch.stack(rows)


def slab_energy(
    positions: Tensor,
    charges: Tensor,
    box: Tensor,
    axis: int,
    coulomb: Tensor | float,
    phi: Callable[[Tensor], Tensor],
    k_cutoff: float,
    onset: float,
    kernel_reach: float,
) -> Tensor:
    """What the sum over the wave vectors of the box lacks to the energy of a single slab.

    A single slab has an integral along the normal, the box a sum without k = 0. The two differ for wave vectors
    without a part in the plane, (1/pi A) int_0^k_cutoff Phi |S|^2 dk against (2/V) sum_n Phi |S|^2, where Phi is
    singular. For charges that attract as 1/r this is the energy of the slab's dipole; with the net charge Q the part
    coulomb Q^2 / k^2 has the finite integral -coulomb Q^2 / k_cutoff, which is -2 pi k_e |z| / A per pair.

    Source: its Coulomb part is that of Yeh and Berkowitz, J. Chem. Phys. 111, 3155 (1999); for a charged slab of
    Ballenegger, Arnold and Cerda, J. Chem. Phys. 131, 094107 (2009), Eq. 29.

    Args:
        positions: (N, 3), A. charges: (N, C), e. box, axis: see `slab_box`.
        coulomb: of the kernel; Phi -> coulomb / k^2.
        phi, k_cutoff, onset, kernel_reach: see `radial_form`.
    Returns:
        (), float64, eV.
    """
    charges = charges.to(torch.float64)
    length = torch.linalg.vector_norm(box[axis].detach())
    area = torch.linalg.det(box).abs() / length
    height = positions @ (box[axis] / length)
    k, weight = _quadrature(k_cutoff, onset, extent_of(height[:, None]), kernel_reach)
    spacing = 2.0 * math.pi / float(length)
    waves = spacing * torch.arange(1, math.ceil(k_cutoff / spacing), dtype=torch.float64)
    k = torch.cat([k, waves]).to(height.device)
    weight = torch.cat([weight, torch.full_like(waves, -spacing)]).to(height.device)

    def amplitude(height: Tensor, charges: Tensor) -> Tensor:
        """(2, K, C): S(k), real and imaginary part."""
        phase = height[:, None] * k
        return torch.stack([torch.cos(phase).mT @ charges, torch.sin(phase).mT @ charges])

    size = max(1, HELD // len(k))
    if len(height) <= size:
        total = amplitude(height, charges)
    else:
        total = charges.new_zeros(2, len(k), charges.shape[1])
        for start in range(0, len(height), size):
            rows = slice(start, start + size)
            total = total + checkpoint(amplitude, height[rows], charges[rows], use_reentrant=False)
    net = torch.as_tensor(coulomb, dtype=torch.float64, device=height.device) * charges.sum(dim=0) ** 2
    singular = (weight > 0.0)[:, None] * net / k[:, None] ** 2
    along_normal = (weight[:, None] * (_columns(phi(k)) * (total**2).sum(dim=0) - singular)).sum()
    return (along_normal - net.sum() / k_cutoff) / (math.pi * area)


@dataclass(frozen=True)
class RadialForm:
    """The energy of two unit charges at a distance, u, eV/e^2: (P,) or (P, C) from (P,) distances in A.

    Attributes:
        function: u.
        held: numbers that it holds for each distance.
    """

    function: Callable[[Tensor], Tensor]
    held: int

    def __call__(self, distance: Tensor) -> Tensor:
        return self.function(distance)


def isolated_energy(positions: Tensor, charges: Tensor, pair: RadialForm) -> Tensor:
    """sum_{i<j} q_i q_j u(r_ij) + sum_i q_i^2 u(0) / 2: what the sum over wave vectors becomes in an endless box.

    Args:
        positions: (N, 3), A. charges: (N, C), e.
        pair: u; see `radial_form`.
    Returns:
        (), float64, eV.
    """
    charges = charges.to(torch.float64)

    def block(positions: Tensor, charges: Tensor, rows: slice) -> Tensor:
        n_atoms = len(positions)
        one, other = torch.meshgrid(
            torch.arange(n_atoms, device=positions.device)[rows],
            torch.arange(n_atoms, device=positions.device),
            indexing="ij",
        )
        upper = other > one
        one, other = one[upper], other[upper]
        distance = torch.linalg.vector_norm(positions[one] - positions[other], dim=1)
        return (charges[one] * charges[other] * _columns(pair(distance))).sum()

    at_zero = _columns(pair(positions.new_zeros(1, dtype=torch.float64)))
    energy = 0.5 * (charges**2 * at_zero).sum()
    size = max(1, HELD // (pair.held * max(len(positions), 1)))
    if len(positions) <= size:
        return energy + block(positions, charges, slice(None))
    for start in range(0, len(positions), size):
        rows = slice(start, start + size)
        energy = energy + checkpoint(block, positions, charges, rows, use_reentrant=False)
    return energy


def isolated_matrix(positions: Tensor, pair: RadialForm) -> Tensor:
    """The matrix of `isolated_energy`, u(r_ij): (n, n) or (n, n, C), eV/e^2.

    Args:
        positions: (n, 3), A. pair: as of `isolated_energy`.
    """
    size = max(1, HELD // (pair.held * max(len(positions), 1)))
    rows = []
    for some in positions.split(size):
        distance = torch.linalg.vector_norm(some[:, None] - positions, dim=2)
        found = pair(distance.reshape(-1))
        rows.append(found.reshape(*distance.shape, *found.shape[1:]))
    return torch.cat(rows)


def radial_form(
    phi: Callable[[Tensor], Tensor], k_cutoff: float, onset: float, reach: float, kernel_reach: float
) -> RadialForm:
    """u(r) = 1/pi^2 int k^2 Phi(k) sin(kr)/(kr) dk.

    Args:
        phi: (K,) or (K, C) kernel with envelope, eV A^3/e^2, from (K,) wave numbers in 1/A.
        k_cutoff: 1/A. onset: fraction of it at which the envelope begins, where Phi is not smooth.
        reach: the longest distance that will be asked for, A.
        kernel_reach: of the kernel, A, which says how fast it varies with k.
    """
    k, weight = _quadrature(k_cutoff, onset, reach, kernel_reach)
    density = _columns(phi(k)) * (weight * k**2)[:, None] / math.pi**2

    def pair(distance: Tensor) -> Tensor:
        wave = torch.sinc(distance[:, None] * (k / math.pi).to(distance.device))
        found = wave @ density.to(distance.device)
        return found if density.shape[1] > 1 else found[:, 0]

    return RadialForm(pair, len(k))


def tabulated(exact: RadialForm, k_cutoff: float, reach: float) -> RadialForm:
    """The same from a table, for distances up to `reach`, A; not differentiable in the kernel.

    Polynomials in equal intervals, through the values at Chebyshev's points.
    """
    intervals = math.ceil(reach * k_cutoff)
    step = reach / intervals
    nodes = np.cos(math.pi * (np.arange(DEGREE + 1) + 0.5) / (DEGREE + 1))  # from -1 to 1
    r = torch.from_numpy(((np.arange(intervals)[:, None] + 0.5 + 0.5 * nodes) * step).ravel())
    with torch.no_grad():
        values = torch.cat([_columns(exact(some)) for some in r.split(max(1, HELD // exact.held))])
    by_node = values.cpu().numpy().reshape(intervals, DEGREE + 1, -1)
    coefficients = torch.from_numpy(np.linalg.solve(np.vander(nodes, increasing=True), by_node))

    def pair(distance: Tensor) -> Tensor:
        place = distance / step
        interval = place.detach().floor().clamp(max=intervals - 1)
        x = (2.0 * (place - interval) - 1.0)[:, None]
        of_interval = coefficients.to(distance.device)[interval.long()]
        found = of_interval[:, DEGREE]
        for power in range(DEGREE - 1, -1, -1):
            found = of_interval[:, power] + x * found
        return found if found.shape[1] > 1 else found[:, 0]

    # the coefficients, and what each step of the polynomial keeps for the backward pass
    return RadialForm(pair, 3 * (DEGREE + 1) * coefficients.shape[2])


def _quadrature(k_cutoff: float, onset: float, reach: float, kernel_reach: float) -> tuple[Tensor, Tensor]:
    """(K,) nodes and weights, 1/A, of int_0^k_cutoff: exact to rounding for a kernel times cos(k reach).

    By Gauss and Legendre on both sides of the onset, with enough points for the oscillations.
    """
    fastest = reach + max(kernel_reach, LEAST_REACH)
    nodes, weights = [], []
    for low, high in ((0.0, onset * k_cutoff), (onset * k_cutoff, k_cutoff)):
        if high > low:
            x, w = _legendre(48 + 16 * math.ceil((high - low) * fastest / 24.0))
            nodes.append(low + 0.5 * (high - low) * (x + 1.0))
            weights.append(0.5 * (high - low) * w)
    return torch.from_numpy(np.concatenate(nodes)), torch.from_numpy(np.concatenate(weights))


@lru_cache(maxsize=32)
def _legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(n)


def extent_of(coordinates: Tensor) -> float:
    """A: the diagonal of the smallest box around (N, X) coordinates."""
    coordinates = coordinates.detach()
    if len(coordinates) == 0:
        return 0.0
    return float(torch.linalg.vector_norm(coordinates.amax(dim=0) - coordinates.amin(dim=0)))


def _columns(values: Tensor) -> Tensor:
    return values if values.ndim == 2 else values[:, None]


def _shortest_reciprocal(one: Tensor, other: Tensor) -> float:
    """|G| of the shortest reciprocal vector of a lattice in the plane, 1/A."""
    a, b = one.detach().double().cpu().numpy(), other.detach().double().cpu().numpy()
    # Lagrange's reduction; the shortest reciprocal vector belongs to the longer of the reduced pair
    if np.dot(a, a) > np.dot(b, b):
        a, b = b, a
    while True:
        b = b - round(float(np.dot(a, b) / np.dot(a, a))) * a
        if np.dot(b, b) >= np.dot(a, a):
            break
        a, b = b, a
    area = float(np.linalg.norm(np.cross(a, b)))
    return 2.0 * math.pi * float(np.linalg.norm(a)) / area
