"""The long-range energy of charges at fixed places: a quadratic form, as an energy and as a potential."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lrpot.kspace.complement import ComplementByChannel, CoulombComplement
from lrpot.kspace.energy import ReciprocalSum
from lrpot.kspace.kernel import KernelByChannel

# (N, X) potentials of (N, X) columns of charges.
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Geometry:
    """Where the atoms of a batch are.

    Attributes:
        positions: (N, 3), A.
        cell: (G, 3, 3), A.
        pbc: (G, 3) bool.
        index: (N,) the structure of each atom, ascending.
        edge_index: (2, E) neighbour and centre.
        distances: (E,), A.
    """

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    index: Tensor
    edge_index: Tensor
    distances: Tensor

    @property
    def volume(self) -> Tensor:
        """(G,), A^3; infinite where there is no background because not all directions repeat."""
        return torch.linalg.det(self.cell).abs().masked_fill(~self.pbc.all(dim=1), torch.inf)

    def per_structure(self, values: Tensor) -> Tensor:
        """(G,) sums of (N,) values, in any unit."""
        return values.new_zeros(len(self.cell)).index_add(0, self.index, values)


@dataclass(frozen=True)
class Electrostatics:
    """A reciprocal sum with its complement.

    Attributes:
        reciprocal: the sum over wave vectors.
        complement: its real-space half, for a kernel with a physical prior.
        dtype: of phases and structure factors.
    """

    reciprocal: ReciprocalSum
    complement: nn.Module | None
    dtype: torch.dtype = torch.float64

    def energy(self, charges: Tensor, geometry: Geometry, weights: Sequence[Tensor] | None = None) -> Tensor:
        """(G,), eV, of (N, C) charges in e.

        Args:
            charges: (N, C), e.
            geometry: where they are.
            weights: stand in for the parameters of the reciprocal sum, in their order and of the same shape and units.
        Raises:
            StructureError: see `ReciprocalSum.forward`.
        """
        g = geometry
        inputs = g.positions, charges.to(self.dtype), g.cell, g.index, g.pbc
        if weights is None:
            energy = self.reciprocal(*inputs)
        else:
            names = [name for name, _ in self.reciprocal.named_parameters()]
            energy = functional_call(self.reciprocal, dict(zip(names, weights, strict=True)), inputs)
        if self.complement is not None:
            energy = energy + self.complement(charges, g.volume, g.index, g.edge_index, g.distances)
        return energy

    def potential(
        self,
        geometry: Geometry,
        channels: int,
        local: Tensor | None = None,
        pair: Tensor | None = None,
        tolerance: float | None = None,
    ) -> Product:
        """The potential of the first channel at each atom, dE/dq in eV/e, as a function of its charges (N, X), with all
        that does not depend on the charges done once; not differentiated.

        Args:
            channels: C; with a kernel for each channel, X must be 1.
            local: (N,), eV/e^2, further interactions of a charge with itself.
            pair: (E,), eV/e^2, the same along edges.
            tolerance: of engine nufft; if given, the sum over wave vectors is rough, and in float32.
        """
        g = geometry
        dtype = self.dtype if tolerance is None else torch.float32
        long = self.reciprocal.potential_of(g.positions, g.cell, g.index, g.pbc, dtype, tolerance=tolerance)
        first = self.first_complement
        local = torch.zeros_like(g.positions[:, 0]) if local is None else local.detach()
        net = None
        if first is not None:
            with torch.no_grad():
                short = first.pair(g.distances)
                pair = short if pair is None else short + pair.detach()
                net = 2.0 * first.net_charge / g.volume
                local = local + 2.0 * first.own_field

        def product(charges: Tensor) -> Tensor:
            given = charges.to(dtype)
            if self.by_channel:
                given = torch.cat([given, given.new_zeros(len(given), channels - 1)], dim=1)
            found = long(given)[:, : charges.shape[1]].to(charges.dtype) + local[:, None] * charges
            if pair is not None:
                found.index_add_(0, g.edge_index[1], pair[:, None] * charges[g.edge_index[0]])
            if net is not None:
                total = charges.new_zeros(len(g.cell), charges.shape[1]).index_add(0, g.index, charges)
                found = found + (net[:, None] * total)[g.index]
            return found

        return product

    @property
    def own(self) -> float:
        """eV/e^2: second derivative of the energy of a charge alone, by the kernel of the first channel."""
        with torch.no_grad():
            return float(self.reciprocal.real_space(torch.zeros(1, dtype=torch.float64)).reshape(-1)[0])

    @property
    def by_channel(self) -> bool:
        """Whether each channel of the charges has a kernel of its own."""
        return isinstance(self.reciprocal.kernel, KernelByChannel)

    @property
    def first_complement(self) -> CoulombComplement | None:
        """That of the first channel, or None."""
        complement = self.complement
        if isinstance(complement, ComplementByChannel):
            complement = complement.complements[0]
        return complement if isinstance(complement, CoulombComplement) else None
