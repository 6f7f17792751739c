"""Readouts of tensors: features of an equivariant backbone -> dipoles, polarizabilities, Born charges.

Every readout sums, for each irrep that its tensor consists of, the channels of that irrep with coefficients that a
small network computes from the scalars of the same atom. The irreps are then put together to a Cartesian tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.backbones import AtomFeatures
from lrpot.backbones.coupling import Irrep, coupling, name_of
from lrpot.errors import ConfigError
from lrpot.structure import batch_index

# The irreps of a Cartesian tensor: a polar vector; a symmetric matrix; any matrix.
POLAR: tuple[Irrep, ...] = ((1, -1),)
SYMMETRIC: tuple[Irrep, ...] = ((0, 1), (2, 1))
GENERAL: tuple[Irrep, ...] = ((0, 1), (1, 1), (2, 1))


class AtomTensors(nn.Module):
    """Features of each atom -> one tensor per atom, of the given irreps."""

    def __init__(self, irreps_in: str, irreps: Iterable[Irrep], quantity: str) -> None:
        """
        Args:
            irreps_in: `irreps_out` of the backbone, such as "32x0e+32x1o".
            irreps: of the tensor.
            quantity: what it is, for messages.
        Raises:
            ConfigError: the backbone lacks an irrep that the tensor needs.
        """
        super().__init__()
        self.places = _places(irreps_in)
        self.irreps = tuple(irreps)
        missing = [name_of(irrep) for irrep in ((0, 1), *self.irreps) if irrep not in self.places]
        if missing:
            raise ConfigError(
                f"{quantity}: the backbone gives {irreps_in or 'no irreps'}, without {', '.join(missing)}; set tensors "
                f"to true, lmax to {max(order for order, _ in self.irreps)} or more and interactions to 2 or more"
            )
        features = self._channels((0, 1))
        self.coefficients = nn.ModuleDict(
            {
                name_of(irrep): nn.Sequential(
                    nn.Linear(features, features), nn.SiLU(), nn.Linear(features, self._channels(irrep))
                )
                for irrep in self.irreps
            }
        )

    def forward(self, features: AtomFeatures) -> list[Tensor]:
        """(N, 2 l + 1) for each of the irreps.

        Raises:
            ConfigError: the features hold no irreps.
        """
        if features.irreps is None:
            raise ConfigError("the backbone returns scalars only; set its tensors to true")
        scalar = self._block(features.irreps, (0, 1))[:, :, 0]
        return [
            torch.einsum(
                "nf,nfc->nc",
                self.coefficients[name_of(irrep)](scalar) / math.sqrt(self._channels(irrep)),
                self._block(features.irreps, irrep),
            )
            for irrep in self.irreps
        ]

    def _channels(self, irrep: Irrep) -> int:
        return self.places[irrep][1]

    def _block(self, irreps: Tensor, irrep: Irrep) -> Tensor:
        first, channels = self.places[irrep]
        return irreps[:, first : first + channels * (2 * irrep[0] + 1)].unflatten(1, (channels, -1))


class DipoleReadout(nn.Module):
    """The dipole of each structure that its atoms' surroundings induce: a sum over atoms, without that of charges."""

    def __init__(self, irreps_in: str) -> None:
        """
        Args:
            irreps_in: `irreps_out` of the backbone; needs 1o.
        """
        super().__init__()
        self.atoms = AtomTensors(irreps_in, POLAR, "dipole")

    def forward(self, batch: Data, features: AtomFeatures) -> Tensor:
        """(G, 3), in the unit of the labels, such as e A."""
        (vectors,) = self.atoms(features)
        return _sum_of_atoms(batch, vectors)


class PolarizabilityReadout(nn.Module):
    """The polarizability of each structure, or with `intensive` a crystal's dielectric tensor; symmetric."""

    def __init__(self, irreps_in: str, *, intensive: bool = False) -> None:
        """
        Args:
            irreps_in: `irreps_out` of the backbone; needs 0e and 2e.
            intensive: the mean over atoms, which a supercell leaves as it is, in place of the sum.
        """
        super().__init__()
        self.intensive = intensive
        self.atoms = AtomTensors(irreps_in, SYMMETRIC, "polarizability")

    def forward(self, batch: Data, features: AtomFeatures) -> Tensor:
        """(G, 3, 3), in the unit of the labels, such as A^3, or none for a dielectric tensor."""
        total = _sum_of_atoms(batch, cartesian(self.atoms(features), SYMMETRIC))
        return total / _atoms_of(batch, total)[:, None, None] if self.intensive else total


class BornChargeReadout(nn.Module):
    """The Born effective charge of each atom; those of a structure add up to zero."""

    def __init__(self, irreps_in: str) -> None:
        """
        Args:
            irreps_in: `irreps_out` of the backbone; needs 0e, 1e and 2e.
        """
        super().__init__()
        self.atoms = AtomTensors(irreps_in, GENERAL, "Born charges")

    def forward(self, batch: Data, features: AtomFeatures) -> Tensor:
        """(N, 3, 3), e; [n, a, b] is the derivative of the polarisation along a by the displacement along b, or the
        transpose: whichever the labels are.

        Source of the sum rule: Pick, Cohen, Martin, Physical Review B 1, 910 (1970).
        """
        charges = cartesian(self.atoms(features), GENERAL)
        total = _sum_of_atoms(batch, charges)
        mean = total / _atoms_of(batch, total)[:, None, None]
        return charges - mean[batch_index(batch)]


def cartesian(parts: list[Tensor], irreps: tuple[Irrep, ...]) -> Tensor:
    """A matrix from its irreps, orthonormal: the sum of squares is the same on both sides.

    Args:
        parts: (N, 2 l + 1) for each of the irreps.
        irreps: of even parity, each order at most once.
    Returns:
        (N, 3, 3). It is the change of basis of e3nn's `CartesianTensor`, up to the signs of whole irreps.
    """
    components = torch.cat(parts, dim=1)
    basis = _basis(tuple(order for order, _ in irreps), components.dtype, components.device)
    return (components @ basis).unflatten(1, (3, 3))


@cache
@torch.inference_mode(False)
def _basis(orders: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(sum of 2 l + 1, 9)."""
    return torch.cat([coupling(1, 1, order).flatten(0, 1).T for order in orders]).to(device, dtype)


def _places(irreps: str) -> dict[Irrep, tuple[int, int]]:
    """First column and number of channels of each irrep in e3nn's layout."""
    places, column = {}, 0
    for term in irreps.split("+") if irreps else ():
        channels, _, name = term.partition("x")
        order = int(name[:-1])
        places[order, 1 if name.endswith("e") else -1] = (column, int(channels))
        column += int(channels) * (2 * order + 1)
    return places


def _sum_of_atoms(batch: Data, values: Tensor) -> Tensor:
    return values.new_zeros(batch.cell.shape[0], *values.shape[1:]).index_add(0, batch_index(batch), values)


def _atoms_of(batch: Data, like: Tensor) -> Tensor:
    """(G,) number of atoms."""
    return torch.bincount(batch_index(batch), minlength=batch.cell.shape[0]).to(like.dtype)
