"""Charges that are Gaussians of a width of their own: what they lack to the energy of point charges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lrpot.kspace import Geometry
from lrpot.smooth import taper
from lrpot.units import COULOMB_CONSTANT


@dataclass(frozen=True)
class Overlap:
    """k_e [erf(r / sqrt(2) s) - 1] / r with s^2 = s_i^2 + s_j^2 for each pair inside the cutoff, tapered like the
    complement of the kernel, and k_e / (2 sqrt(pi) s_i) q_i^2 for each charge alone.

    Source: Ko et al., Nat. Commun. 12, 398 (2021), Eqs. 4 and 6 (widths there are standard deviations too).

    Attributes:
        cutoff: A. onset: fraction of it at which the taper begins.
    """

    cutoff: float
    onset: float

    def energy(self, charges: Tensor, widths: Tensor, geometry: Geometry) -> Tensor:
        """(G,), eV, of (N,) charges in e with (N,) widths in A."""
        neighbour, centre = geometry.edge_index
        pair = charges[neighbour] * charges[centre] * self.pair(widths, geometry)
        per_atom = 0.5 * self.own(widths) * charges**2
        return geometry.per_structure(per_atom.index_add(0, centre, 0.5 * pair))

    def pair(self, widths: Tensor, geometry: Geometry) -> Tensor:
        """(E,), eV/e^2."""
        neighbour, centre = geometry.edge_index
        reach = torch.sqrt(2.0 * (widths[neighbour] ** 2 + widths[centre] ** 2))
        bare = -COULOMB_CONSTANT * torch.erfc(geometry.distances / reach) / geometry.distances
        return bare * taper(geometry.distances, self.cutoff, self.onset)

    def own(self, widths: Tensor) -> Tensor:
        """(N,), eV/e^2: second derivative of the energy of a charge alone."""
        return COULOMB_CONSTANT / math.sqrt(math.pi) / widths
