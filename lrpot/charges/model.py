"""What every charge model is: values by element, a network of the surroundings where it sees them, and an energy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.data.readers import check_elements
from lrpot.errors import ConfigError
from lrpot.kspace.electrostatics import Electrostatics, Geometry
from lrpot.kspace.neutrality import NEUTRALITY, shift
from lrpot.structure import MAX_ATOMIC_NUMBER, batch_index

# e, of channels beyond the first when the charges get their start: at zero the energy would be stationary.
LATENT_START = 0.01


class ChargeModel(nn.Module):
    """Charges (N, C) of the atoms of a batch. The first channel is the charge; others, if any, are what training makes
    of them.

    Attributes:
        values: (M,) of each element, e.
        latent: (M, C - 1) of each element in the other channels, e; only if there are any.
        sees_surroundings: whether `forward` needs the features of the atoms.
    """

    row: Tensor
    sees_surroundings = False

    def __init__(
        self,
        elements: list[int],
        *,
        features: int = 0,
        channels: int = 1,
        hidden: int = 32,
        neutrality: str = "background",
    ) -> None:
        """
        Args:
            elements: atomic numbers, ascending.
            features: F, of each atom, for models that see the surroundings.
            channels: C.
            hidden: width of the network that reads the features.
            neutrality: "background" or "shift"; see `EmbeddingCharges`.
        Raises:
            ConfigError: an unknown neutrality.
        """
        super().__init__()
        if neutrality not in NEUTRALITY:
            raise ConfigError(f"neutrality = {neutrality!r}; choose one of {', '.join(NEUTRALITY)}")
        self.neutrality = neutrality
        self.channels = channels
        self.elements = list(elements)
        row = torch.full((MAX_ATOMIC_NUMBER + 1,), -1)
        row[elements] = torch.arange(len(elements))
        self.register_buffer("row", row, persistent=False)
        self.values = nn.Parameter(torch.zeros(len(elements), dtype=torch.float64))
        if channels > 1:
            self.latent = nn.Parameter(torch.zeros(len(elements), channels - 1, dtype=torch.float64))
        if self.sees_surroundings:
            self.network = Surroundings(features, hidden, channels)

    @classmethod
    def is_local(cls, neutrality: str) -> bool:
        """Whether a charge changes with near atoms only, and not with all of its structure."""
        return not cls.sees_surroundings or neutrality == "background"

    def set_values(self, charges: Mapping[int, float]) -> None:
        """Start from charges in e by atomic number; an element that is missing gets zero. Other channels start at
        small random numbers, or at zero beside charges that are all zero."""
        with torch.no_grad():
            for row, element in enumerate(self.elements):
                self.values[row] = charges.get(element, 0.0)
            if self.channels > 1:
                self.latent.normal_(std=LATENT_START if any(charges.values()) else 0.0)

    def by_element(self) -> dict[int, float]:
        """Charges in e by atomic number, as far as the element alone decides on them."""
        return dict(zip(self.elements, self.values.tolist(), strict=True))

    def freeze_surroundings(self) -> None:
        """Do not train the network of the surroundings."""
        if self.sees_surroundings:
            self.network.requires_grad_(False)

    def forward(self, batch: Data, features: Tensor | None = None) -> Tensor:
        """(N, C), e, from the features (N, F) of the atoms."""
        values = self.of_atoms(batch, features)
        if self.neutrality == "shift":
            index, n_structures = batch_index(batch), batch.cell.shape[0]
            first = shift(values[:, :1], index, n_structures, batch.total_charge)
            values = torch.cat([first, values[:, 1:]], dim=1)
        return values

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

        Args:
            batch: structures, with edges.
            features: (N, F) features of the atoms.
            electrostatics: what the charges interact by.
            geometry: where they are.
            first_derivatives: that of the energy is all that will be asked for, which may be cheaper.
        Raises:
            StructureError: see `ReciprocalSum.forward`. UnknownElementError: see `rows`.
        """
        charges = self(batch, features).to(electrostatics.dtype)
        return electrostatics.energy(charges, geometry), charges

    def energies(
        self, batch: Data, features: Tensor | None, electrostatics: Electrostatics, geometry: Geometry
    ) -> Tensor:
        """(N,) eV, float64: the share of each atom in `energy`, half of its charges times the potentials they are in;
        not differentiable. Arguments as of `forward` and `energy`.

        Raises:
            StructureError: see `ReciprocalSum.forward`.
        """
        charges = self(batch, features).to(electrostatics.dtype)
        return shares(charges, electrostatics, geometry)

    def rows(self, batch: Data) -> Tensor:
        """Where the element of each atom stands among `elements`.

        Args:
            batch: structures.
        Returns:
            (N,) index, from 0.
        Raises:
            UnknownElementError: an atom of none of them, which it names.
        """
        row = self.row[batch.numbers]
        if bool((row < 0).any()):
            check_elements(batch.numbers.cpu().numpy(), self.elements)
        return row

    def of_atoms(self, batch: Data, features: Tensor | None) -> Tensor:
        """(N, C), e: the values of the elements and what the network adds, from the features (N, F) of the atoms."""
        row = self.rows(batch)
        values = self.values[row][:, None]
        if self.channels > 1:
            values = torch.cat([values, self.latent[row]], dim=1)
        if self.sees_surroundings:
            assert features is not None
            values = values + self.network(features)
        return values


def shares(charges: Tensor, electrostatics: Electrostatics, geometry: Geometry) -> Tensor:
    """(N,) eV, float64: sum_c q_ic (dE/dq_ic) / 2, which add up to E, a quadratic form of charges (N, C)."""
    with torch.enable_grad():
        charges = charges.detach().requires_grad_()
        energy = electrostatics.energy(charges, geometry).sum()
        (potential,) = torch.autograd.grad(energy, charges)
    return 0.5 * (charges.detach() * potential).to(torch.float64).sum(dim=1)


class Surroundings(nn.Module):
    """Features of an atom -> what its surroundings change, in float64; zero at first."""

    def __init__(self, features: int, hidden: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden, dtype=torch.float64)
        self.last = nn.Linear(hidden, channels, dtype=torch.float64)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C) from (N, F)."""
        return self.last(nn.functional.silu(self.first(features.to(torch.float64))))
