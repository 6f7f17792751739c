"""What a reciprocal sum with a physical kernel lacks in real space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from lrpot.errors import ConfigError
from lrpot.kspace.kernel import Dispersion, GaussianCoulomb
from lrpot.kspace.neutrality import net_charge
from lrpot.kspace.pair_table import PairTable
from lrpot.smooth import taper
from lrpot.units import COULOMB_CONSTANT


class _Complement(nn.Module):
    """Pairs inside the cutoff, the energy of each charge in its own smooth field, and the k = 0 term."""

    def __init__(self, cutoff: float, onset: float) -> None:
        super().__init__()
        if not 0.0 <= onset < 1.0:
            raise ConfigError(f"onset = {onset:g}: must lie between 0 and 1, 1 not included (a fraction of the cutoff)")
        self.cutoff = float(cutoff)
        self.onset = float(onset)

    def forward(self, charges: Tensor, volume: Tensor, batch: Tensor, edge_index: Tensor, distances: Tensor) -> Tensor:
        """Energies.

        Args:
            charges: (N, C), e.
            volume: (G,), A^3, of a cell that repeats in all directions; infinite for a slab or a molecule.
            batch: (N,) the structure of each atom.
            edge_index: (2, E) neighbour and centre; every pair in both directions.
            distances: (E,), A.
        Returns:
            (G,) float64, eV.
        """
        charges = charges.to(torch.float64)
        per_atom = self.per_atom(charges, edge_index, distances)
        total = per_atom.new_zeros(len(volume)).index_add(0, batch, per_atom)
        return total + self.of_net(net_charge(charges, batch, len(volume)), volume)

    def per_atom(self, charges: Tensor, edge_index: Tensor, distances: Tensor) -> Tensor:
        """(N,), eV, all but the k = 0 term: half of the energy of each pair, to the centre of an edge, and the energy
        of each charge in its own field.

        Args:
            charges: (N, C), e, float64. edge_index, distances: as of `forward`.
        """
        pairs = self.table.per_atom(charges, edge_index, distances)
        return pairs + self.own_field * (charges**2).sum(dim=1)

    def of_net(self, net: Tensor, volume: Tensor) -> Tensor:
        """(G,), eV: the k = 0 term, of the (G, C) sums of the charges."""
        return self.net_charge / volume * (net**2).sum(dim=1)

    def pair(self, distances: Tensor) -> Tensor:
        """(E,), eV / e^2: the energy of two unit charges that the reciprocal half lacks, at distances in A."""
        return self.bare(distances) * taper(distances, self.cutoff, self.onset)

    @cached_property
    def table(self) -> PairTable:
        """`pair`, for sums over many."""
        return PairTable(self.pair, self.bare, self.power, self.length, (self.onset * self.cutoff, self.cutoff))

    own_field: float
    net_charge: float
    power: int  # of 1 / r in `bare`
    length: float  # A, over which the rest of it varies

    def bare(self, distances: Tensor) -> Tensor:
        """(E,), eV / e^2: `pair` without its taper, at distances (E,) in A."""
        raise NotImplementedError


class CoulombComplement(_Complement):
    """What a reciprocal sum with a Gaussian Coulomb kernel lacks to the whole Coulomb energy of point charges.

    sum_{i<j} q_i q_j k_e erfc(alpha r) / r over pairs inside the cutoff, minus the energy of each Gaussian in its own
    field, minus the energy of a charged cell's Gaussians in the uniform background that neutralises it. The pair term
    goes smoothly to zero at the cutoff.

    Source: Ewald 1921; charged cells: Hub et al., J. Chem. Theory Comput. 10, 381 (2014), Eq. 4.
    """

    power = 1

    def __init__(self, kernel: GaussianCoulomb, cutoff: float, *, onset: float = 0.9) -> None:
        """
        Args:
            kernel: the kernel of the reciprocal half.
            cutoff: A; the edges given to `forward` must reach that far.
            onset: the fraction of the cutoff at which the pair term begins to be tapered.
        """
        super().__init__(cutoff, onset)
        self.alpha = kernel.alpha
        self.length = 1.0 / self.alpha
        self.own_field = -COULOMB_CONSTANT * self.alpha / math.sqrt(math.pi)
        self.net_charge = kernel.at_zero

    def bare(self, distances: Tensor) -> Tensor:
        return COULOMB_CONSTANT * torch.erfc(self.alpha * distances) / distances


class DispersionComplement(_Complement):
    """What a reciprocal sum with the dispersion kernel lacks to -sum_{i<j} c_i c_j / r^6.

    -c_i c_j exp(-x^2) (1 + x^2 + x^4 / 2) / r^6 with x = beta r over pairs inside the cutoff, plus the energy of each
    atom in its own smooth field, plus the k = 0 term, which no background cancels.

    Source: Essmann et al., J. Chem. Phys. 103, 8577 (1995), Eq. 5.1 - 5.3.
    """

    power = 6

    def __init__(self, kernel: Dispersion, cutoff: float, *, onset: float = 0.9) -> None:
        """As for `CoulombComplement`."""
        super().__init__(cutoff, onset)
        self.beta = kernel.beta
        self.length = 1.0 / self.beta
        self.own_field = self.beta**6 / 12.0
        self.net_charge = kernel.at_zero

    def bare(self, distances: Tensor) -> Tensor:
        square = (self.beta * distances) ** 2
        return -torch.exp(-square) * (1.0 + square + 0.5 * square**2) / distances**6


class ComplementByChannel(nn.Module):
    """The complement of a `KernelByChannel`: one for each channel."""

    def __init__(self, complements: Sequence[nn.Module]) -> None:
        super().__init__()
        self.complements = nn.ModuleList(complements)

    def forward(self, charges: Tensor, volume: Tensor, batch: Tensor, edge_index: Tensor, distances: Tensor) -> Tensor:
        """Energies.

        Args:
            charges: (N, C), e, a column for each of them.
            volume: (G,), A^3, of a cell that repeats in all directions; infinite for a slab or a molecule.
            batch: (N,) index of the structure of each atom.
            edge_index: (2, E) indices of neighbour and centre; every pair in both directions.
            distances: (E,), A.
        Returns:
            (G,) float64, eV.
        """
        return self._sum("forward", charges, volume, batch, edge_index, distances)

    def per_atom(self, charges: Tensor, edge_index: Tensor, distances: Tensor) -> Tensor:
        """(N,), eV, all but the k = 0 term; arguments as of `forward`."""
        return self._sum("per_atom", charges, edge_index, distances)

    def of_net(self, net: Tensor, volume: Tensor) -> Tensor:
        """(G,), eV: the k = 0 term, of the sums of the charges (G, C), e, in volumes (G,), A^3."""
        return self._sum("of_net", net, volume)

    def _sum(self, method: str, charges: Tensor, *rest: Tensor) -> Tensor:
        energies = [
            getattr(complement, method)(charges[:, channel : channel + 1], *rest)
            for channel, complement in enumerate(self.complements)
        ]
        return torch.stack(energies).sum(dim=0)


def splitting(cutoff: float, k_cutoff: float) -> tuple[float, float]:
    """The width at which both halves of an Ewald sum are cut at the same depth.

    erfc(alpha r_c) and exp(-k_c^2 / 4 alpha^2) have the same exponent r_c k_c / 2 when alpha = sqrt(k_c / (2 r_c)).

    Args:
        cutoff: r_c, A.
        k_cutoff: k_c, 1/A.
    Returns:
        sigma (A) of `GaussianCoulomb`, and the relative size exp(-r_c k_c / 2) of what is left out.
    """
    alpha = math.sqrt(k_cutoff / (2.0 * cutoff))
    return 1.0 / (math.sqrt(2.0) * alpha), math.exp(-0.5 * cutoff * k_cutoff)
