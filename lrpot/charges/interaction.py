"""H of charges that are equilibrated: hardness, Coulomb interaction, overlap of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrpot.charges.gaussian import Overlap
from lrpot.kspace import Electrostatics, GaussianCoulomb, Geometry, k_lattice, reciprocal_cell
from lrpot.kspace.electrostatics import Product

# Wave vectors of which the preconditioner knows: fewer than the first may be none at all in a sphere of that volume.
FEWEST_WAVES, MOST_WAVES = 4, 128
# The rough product: relative error of forces on its mesh, and from how many atoms on it saves time.
ROUGH, ROUGH_FROM = 1e-3, 1000


@dataclass
class Interaction:
    """H of a batch; see `lrpot.charges.minimum.Quadratic`."""

    electrostatics: Electrostatics
    geometry: Geometry
    hardness: Tensor
    width: Tensor
    channels: int

    def __post_init__(self) -> None:
        g = self.geometry
        self.index = g.index
        self.counts = torch.bincount(g.index, minlength=len(g.cell)).tolist()
        self.precision = self.electrostatics.dtype
        complement = self.electrostatics.first_complement
        self.overlap = None if complement is None else Overlap(complement.cutoff, complement.onset)
        weights = tuple(self.electrostatics.reciprocal.parameters())
        self.trained = any(w.requires_grad for w in weights)
        self.weights = weights if self.trained else ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Positions, cells, distances, hardness, widths, and the weights of the kernel while it is trained."""
        g = self.geometry
        return (g.positions, g.cell, g.distances, self.hardness, self.width, *self.weights)

    @property
    def diagonal(self) -> Tensor:
        """(N,), eV/e^2, of H, but without the images of each charge."""
        return self.hardness + (self.electrostatics.own if self.overlap is None else self.overlap.own(self.width))

    @property
    def many_columns(self) -> bool:
        """Whether the product takes several columns at once."""
        return self.channels == 1 or not self.electrostatics.by_channel

    def energy(self, charges: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """(G,), eV, q.H q / 2 of (N,) charges in e."""
        positions, cell, distances, hardness, width, *weights = tensors
        geometry = replace(self.geometry, positions=positions, cell=cell, distances=distances)
        columns = charges[:, None]
        if not self.many_columns:
            columns = torch.cat([columns, columns.new_zeros(len(columns), self.channels - 1)], dim=1)
        energy = self.electrostatics.energy(columns, geometry, weights if self.trained else None)
        if self.overlap is not None:
            energy = energy + self.overlap.energy(charges, width, geometry)
        return energy + geometry.per_structure(0.5 * hardness * charges**2)

    def long_waves(self) -> list[Tensor | None]:
        """See `Quadratic`: 2 sqrt(Phi / V) cos(k.r), sin(k.r) of the shortest wave vectors of each crystal."""
        g = self.geometry
        found: list[Tensor | None] = []
        for n, (count, periodic) in enumerate(zip(self.counts, g.pbc.all(dim=1).tolist(), strict=True)):
            number = min(count // 4, MOST_WAVES)
            if not periodic or number < FEWEST_WAVES:
                found.append(None)
                continue
            start = sum(self.counts[:n])
            found.append(self._waves(g.cell[n].detach(), slice(start, start + count), number))
        return found

    @torch.no_grad()
    def _waves(self, cell: Tensor, rows: slice, number: int) -> Tensor:
        volume = float(torch.linalg.det(cell).abs())
        reciprocal = self.electrostatics.reciprocal
        # one of each pair k, -k: V k^3 / 12 pi^2 of them in a sphere
        k_cutoff = min((12.0 * math.pi**2 * number / volume) ** (1.0 / 3.0), reciprocal.k_cutoff)
        kvectors = k_lattice(cell, k_cutoff).indices.to(cell) @ reciprocal_cell(cell)
        k = torch.linalg.vector_norm(kvectors, dim=1)
        phase = self.geometry.positions[rows].detach() @ kvectors.mT
        # with its complement the sum is that of point charges, with the overlap that of Gaussians
        bare = self.overlap is None
        phi = reciprocal.phi(k).reshape(len(k), -1)[:, 0] if bare else GaussianCoulomb.coulomb / k**2
        amplitude = 2.0 * torch.sqrt(phi.clamp_min(0.0) / volume)
        waves = torch.cat([torch.cos(phase) * amplitude, torch.sin(phase) * amplitude], dim=1)
        if self.overlap is not None:
            form = torch.exp(-0.5 * (self.width[rows, None] * k) ** 2)
            waves = waves * torch.cat([form, form], dim=1)
        return waves

    def product(self) -> Product:
        """(N, X), eV/e, H q of (N, X) charges in e, without derivatives."""
        return self._product(None)

    def rough_product(self) -> Product | None:
        """See `Quadratic`: on a coarser mesh, where there is a mesh."""
        on_mesh = self.electrostatics.reciprocal.engine in ("auto", "nufft") and not self.trained
        return self._product(ROUGH) if on_mesh and max(self.counts) >= ROUGH_FROM else None

    def _product(self, tolerance: float | None) -> Product:
        local, pair = self.hardness, None
        if self.overlap is not None:
            with torch.no_grad():
                local, pair = local + self.overlap.own(self.width), self.overlap.pair(self.width, self.geometry)
        return self.electrostatics.potential(self.geometry, self.channels, local, pair, tolerance)
