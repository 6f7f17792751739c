"""Charges that flow until no exchange lowers the energy."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from ase.data import covalent_radii
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.charges.gaussian import Overlap
from lrpot.charges.interaction import Interaction
from lrpot.charges.minimum import fixed_minimum, minimum
from lrpot.charges.model import ChargeModel, shares
from lrpot.kspace import Electrostatics, Geometry

# eV/e^2, before training: stiffer than most atoms, so that a fit starts near the charges it was given.
START_HARDNESS = 5.0


class EquilibratedCharges(ChargeModel):
    """The charges that minimise

        E(q) = sum_j chi_j q_j + J_j q_j^2 / 2 + E_Coulomb(q)      with sum_j q_j = Q,      chi_j = Emb(z_j) + MLP(h_j)

    in every structure. E_Coulomb is what the charges interact by everywhere in lrpot, reciprocal sum and complement;
    where there is a Coulomb complement they are Gaussians of the width s(z), else the kernel itself smears them. The
    minimum E(q), not E_Coulomb alone, is their energy: it is stationary, so that forces need no derivative of the
    charges, and the work of polarising an atom is counted. Hardness J(z) and widths are learned and positive.

    Further channels are charges of the surroundings as in `EnvironmentCharges`.

    Source: Rappe and Goddard, J. Phys. Chem. 95, 3358 (1991); chi from a network: Ghasemi et al., Phys. Rev. B 92,
    045131 (2015), whose energy is this minimum too; Ko et al., Nat. Commun. 12, 398 (2021), who add E_Coulomb alone.
    """

    sees_surroundings = True

    def __init__(
        self,
        elements: list[int],
        *,
        features: int = 0,
        channels: int = 1,
        hidden: int = 32,
        neutrality: str = "background",
    ) -> None:
        """As of `ChargeModel`; the charges add up to the total charge with either neutrality."""
        super().__init__(elements, features=features, channels=channels, hidden=hidden, neutrality=neutrality)
        # softplus(x) = J; log s
        start = math.log(math.expm1(START_HARDNESS))
        self.raw_hardness = nn.Parameter(torch.full((len(elements),), start, dtype=torch.float64))
        self.log_width = nn.Parameter(torch.log(torch.from_numpy(covalent_radii[elements])))

    @property
    def hardness(self) -> Tensor:
        """(M,), eV/e^2, J of each element."""
        return nn.functional.softplus(self.raw_hardness)

    @property
    def width(self) -> Tensor:
        """(M,), A, standard deviation of each element's Gaussian."""
        return torch.exp(self.log_width)

    @classmethod
    def is_local(cls, neutrality: str) -> bool:
        """Never: what flows to one atom comes from all others."""
        return False

    def set_values(self, charges: Mapping[int, float], potential: Mapping[int, float] | None = None) -> None:
        """Start from electronegativities with which atoms carry given charges, in e by atomic number.

        Args:
            potential: eV/e by atomic number, mean dE/dq but for chi where all atoms carry these charges; without it,
                that of each atom alone.
        """
        super().set_values(charges)
        with torch.no_grad():
            alone = (self.hardness + Overlap(0.0, 0.0).own(self.width)) * self.values
            for row, element in enumerate(self.elements):
                self.values[row] = -alone[row] if potential is None else -potential.get(element, 0.0)

    def by_element(self) -> dict[int, float]:
        """Charges in e, by atomic number, of atoms alone: -chi / (J + k_e / (sqrt(pi) s))."""
        with torch.no_grad():
            alone = -self.values / (self.hardness + Overlap(0.0, 0.0).own(self.width))
        return dict(zip(self.elements, alone.tolist(), strict=True))

    def energy(
        self,
        batch: Data,
        features: Tensor | None,
        electrostatics: Electrostatics,
        geometry: Geometry,
        *,
        first_derivatives: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Energies (G,), eV, and charges (N, C), e.

        Raises:
            StructureError: see `ReciprocalSum.forward`.
            ConvergenceError: no equilibrium, or none was found.
        """
        site = self.of_atoms(batch, features)
        quadratic = self.quadratic(batch, electrostatics, geometry)
        solve = fixed_minimum if first_derivatives or not torch.is_grad_enabled() else minimum
        energy, charges = solve(quadratic, site[:, 0], batch.total_charge)
        charges = charges[:, None]
        if self.channels > 1:
            others = site[:, 1:]
            energy = energy + electrostatics.energy(torch.cat([torch.zeros_like(charges), others], dim=1), geometry)
            charges = torch.cat([charges, others], dim=1)
        return energy, charges

    def energies(
        self, batch: Data, features: Tensor | None, electrostatics: Electrostatics, geometry: Geometry
    ) -> Tensor:
        """(N,) eV: q_i (chi_i + (H q)_i / 2), as of `ChargeModel.energies`.

        Raises:
            StructureError, ConvergenceError: see `energy`.
        """
        with torch.no_grad():
            site = self.of_atoms(batch, features)
            charges = self.energy(batch, features, electrostatics, geometry)[1].to(torch.float64)
            first, others = charges[:, 0], charges[:, 1:]
            found = first * (site[:, 0] + 0.5 * self.potential(batch, first, electrostatics, geometry))
        if self.channels > 1:
            found = found + shares(
                torch.cat([torch.zeros_like(first)[:, None], others], dim=1), electrostatics, geometry
            )
        return found

    def potential(self, batch: Data, charges: Tensor, electrostatics: Electrostatics, geometry: Geometry) -> Tensor:
        """(N,), eV/e: dE/dq but for chi, of charges (N,), e."""
        return self.quadratic(batch, electrostatics, geometry).product()(charges[:, None])[:, 0]

    def quadratic(self, batch: Data, electrostatics: Electrostatics, geometry: Geometry) -> Interaction:
        """H of a batch."""
        row = self.rows(batch)
        return Interaction(electrostatics, geometry, self.hardness[row], self.width[row], self.channels)
