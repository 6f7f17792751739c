"""Invariant descriptor of a crystal in reciprocal space, alone or beside a network on its graph.

Source: Yu, Hong, Chen, Gong and Xiang, "Capturing long-range interaction with reciprocal space neural network", the
part on properties: S(k) of learned charges, h_long = sum_k FCN(|k|, |S| / V) |S / V|^2, beside the features of a
short-range network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.data.readers import OVERLAP_CHECKED
from lrpot.errors import ConfigError
from lrpot.properties.basis import Gaussians, Residual
from lrpot.properties.checks import check_variant
from lrpot.properties.features import CrystalFeatures, atom_counts, mean_over_atoms
from lrpot.properties.waves import Waves, envelope, joined, waves
from lrpot.structure import MAX_ATOMIC_NUMBER, batch_index, edge_vectors

# Below any reflection that is seen; the square root of zero has no derivative.
_EXTINCT = 1e-12


class ReciprocalDescriptor(nn.Module):
    """Charges by element -> |S(k)|^2 of each kind of charge -> one vector of a crystal.

    Every term depends on |k| and |S / V| alone: it is the same for a crystal that is moved, rotated, mirrored,
    renumbered, or described by another cell; in a larger cell the waves that are added are extinct.
    """

    scale: Tensor

    def __init__(
        self,
        charges: int = 8,
        k_cutoff: float = 4.0,
        basis: int = 32,
        hidden: int = 32,
        layers: int = 1,
        outputs: int = 4,
        variant: str = "invariant",
    ) -> None:
        """
        Args:
            charges: kinds of charge C. k_cutoff: 1/A. basis: Gaussians in |k|. hidden: width of the network.
            layers: residual layers. outputs: numbers for each kind of charge.
            variant: "invariant", or "published": without an envelope, so that a wave that crosses the cutoff under
                strain leaves a step; and |S| / V itself goes into the network.
        """
        check_variant("yu", variant, ("invariant", "published"))
        super().__init__()
        self.k_cutoff = float(k_cutoff)
        self.variant = variant
        self.features = charges * outputs
        self.charges = nn.Embedding(MAX_ATOMIC_NUMBER + 1, charges)
        self.basis = Gaussians(0.0, self.k_cutoff, basis)
        self.network = nn.Sequential(
            nn.Linear(basis + 1, hidden),
            nn.SiLU(),
            *(Residual(hidden) for _ in range(layers)),
            nn.Linear(hidden, outputs),
        )
        # what is usual of |S / V|^2, 1/A^6: of independent atoms of charge 1, at 20 A^3 each, 10 in a cell
        self.register_buffer("scale", torch.tensor(10.0 / 200.0**2))

    def forward(self, batch: Data) -> Tensor:
        """(G, features).

        Raises:
            StructureError: see `lrpot.properties.waves.waves`.
        """
        charges = self.charges(batch.numbers)
        total = mean_over_atoms(charges, batch) * atom_counts(batch)[:, None]
        found = waves(batch, self.k_cutoff, charges.dtype)
        parts = [self._of_block(block, charges, total[block.crystals]) for block in found]
        return joined(parts, [block.crystals for block in found])

    def _of_block(self, found: Waves, charges: Tensor, total: Tensor) -> Tensor:
        """(G, features) of the crystals of a block, from charges of all atoms and the sums of theirs (G, C)."""
        cosines, sines = found.sums(charges)
        volume = found.volume[:, None, None]
        power = torch.cat([cosines**2 + sines**2, total[:, None] ** 2], dim=1) / volume**2 / self.scale
        # k = 0 too: it tells how dense a crystal is, which no other wave does
        zero = found.k.new_zeros(len(found.k), 1)
        k = torch.cat([found.k, zero], dim=1)
        weight = torch.cat([found.weight, zero + 1.0], dim=1)
        # crystals have numbers of waves of their own: the network sees no padding
        crystal, place = weight.nonzero(as_tuple=True)
        k, weight, power = (part[crystal, place] for part in (k, weight, power))
        if self.variant == "invariant":
            weight = weight * envelope(k, self.k_cutoff)
            # not the square root, whose derivative is infinite at a reflection that is extinct
            strength = torch.log1p(power)
        else:
            strength = (power + _EXTINCT).sqrt()
        known = self.basis(k)[:, None].expand(*power.shape, -1)
        values = self.network(torch.cat([known, strength[..., None]], dim=-1))
        terms = (weight[:, None] * power)[..., None] * values
        return terms.new_zeros(len(total), *terms.shape[1:]).index_add(0, crystal, terms).flatten(1)


class ReciprocalPotential(nn.Module):
    """1/V sum_k FCN(|k|) |S(k)|^2 per atom, of each kind of learned charge: the long-range part of a potential.

    The paper adds it to properties for comparison; it knows less than the descriptor, whose terms see |S| too.
    """

    def __init__(
        self, charges: int = 8, k_cutoff: float = 4.0, basis: int = 32, hidden: int = 32, layers: int = 1
    ) -> None:
        """
        Args:
            charges: kinds of charge; the mean over the atoms of a crystal is taken off each. The others: as of
                `ReciprocalDescriptor`.
        """
        super().__init__()
        self.k_cutoff = float(k_cutoff)
        self.features = charges
        self.charges = nn.Embedding(MAX_ATOMIC_NUMBER + 1, charges)
        self.basis = Gaussians(0.0, self.k_cutoff, basis)
        self.network = nn.Sequential(
            nn.Linear(basis, hidden), nn.SiLU(), *(Residual(hidden) for _ in range(layers)), nn.Linear(hidden, charges)
        )

    def forward(self, batch: Data) -> Tensor:
        """(G, features).

        Raises:
            StructureError: see `lrpot.properties.waves.waves`.
        """
        charges = self.charges(batch.numbers)
        charges = charges - mean_over_atoms(charges, batch)[batch_index(batch)]
        found = waves(batch, self.k_cutoff, charges.dtype)
        parts = []
        for block in found:
            cosines, sines = block.sums(charges)
            kernel = self.network(self.basis(block.k)) * (block.weight * envelope(block.k, self.k_cutoff))[..., None]
            parts.append((kernel * (cosines**2 + sines**2)).sum(dim=1) / block.volume[:, None])
        return joined(parts, [block.crystals for block in found]) / atom_counts(batch)[:, None]


class Yu(nn.Module):
    """Features of a backbone, averaged over atoms, beside the reciprocal descriptor; or either alone."""

    def __init__(
        self, backbone: nn.Module | None, descriptor: ReciprocalDescriptor | ReciprocalPotential | None
    ) -> None:
        """
        Args:
            backbone: see `lrpot.backbones`; its `cutoff` (A) is how far edges must reach.
            descriptor: what stands beside it, or None.
        Raises:
            ConfigError: neither.
        """
        super().__init__()
        if backbone is None and descriptor is None:
            raise ConfigError("encoder yu has neither a backbone nor a descriptor; give it one of them")
        self.backbone = backbone
        self.descriptor = descriptor
        own = 0 if backbone is None else int(backbone.features)  # type: ignore[arg-type]
        self.atom_features = own
        self.features = own + (0 if descriptor is None else descriptor.features)
        self.shells = None
        # the descriptor needs no edges; short ones tell that two atoms are in one place
        self.cutoff = OVERLAP_CHECKED if backbone is None else float(backbone.cutoff)  # type: ignore[arg-type]
        self.wave_cutoff = None if descriptor is None else descriptor.k_cutoff

    def forward(self, batch: Data) -> CrystalFeatures:
        """Features (G, `features`) of the crystals, and (N, F) of the backbone.

        Args:
            batch: crystals, with edges up to the backbone's cutoff.
        Raises:
            StructureError: see `lrpot.properties.waves.waves`.
        """
        parts, atom = [], None
        if self.backbone is not None:
            dtype = next(self.backbone.parameters()).dtype
            atom = self.backbone(batch, edge_vectors(batch).to(dtype)).scalar
            parts.append(mean_over_atoms(atom, batch))
        if self.descriptor is not None:
            parts.append(self.descriptor(batch))
        return CrystalFeatures(torch.cat(parts, dim=1), atom)
