"""ReGNet: message passing on the graph of a crystal, and a filter in its reciprocal space after every step.

Source: Nie, Xiao, Ji and Gao, "ReGNet: Reciprocal Space-Aware Long-Range Modeling and Multi-Property Prediction for
Crystals" (2025), with the message passing of PotNet (Lin et al., ICML 2023) that it builds on. Both leave parts open,
and the filter as it is printed is not a function of the crystal; `variant` says which form is computed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.data.shells import FARTHEST
from lrpot.errors import ConfigError
from lrpot.kspace.lattice import reciprocal_cell
from lrpot.properties.basis import BatchNorm, Gaussians, Residual
from lrpot.properties.checks import INVARIANT, check_variant
from lrpot.properties.elements import ElementEmbedding
from lrpot.properties.features import CrystalFeatures, mean_over_atoms
from lrpot.properties.radial_table import RadialTable, interpolation
from lrpot.properties.wave_filter import MOST_PAIRS, WaveFilter, prepared, wave_filters
from lrpot.structure import Structure, batch_index, edge_vectors

# An edge is known by -0.75 A / distance; no edge is shorter than 0.1 A.
POTENTIAL = -0.75
NEAREST = POTENTIAL / 0.1

# Filters in |k| of a block.
FILTERS = 8


class GatedMessages(nn.Module):
    """h_i + BN(sum_j sigmoid(BN(A(h_i, h_j, v_ij))) B(h_i, h_j, v_ij)), with two-layer networks A and B.

    The first layers act on h_i, h_j and v_ij apart: twice a product of the atoms and, since v is a function of the
    distance alone, a row of a table for each edge, in place of one of three times the width.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.centre = nn.Linear(features, 2 * features)
        self.neighbour = nn.Linear(features, 2 * features, bias=False)
        self.edge = nn.Linear(features, 2 * features, bias=False)
        self.gate = nn.Linear(features, features)
        self.message = nn.Linear(features, features)
        self.gate_norm = BatchNorm(features)
        self.norm = BatchNorm(features)

    def forward(self, h: Tensor, edge_index: Tensor, table: RadialTable) -> Tensor:
        """(N, features).

        Args:
            h: (N, features). edge_index: (2, E). table: v as a function of the distance.
        """
        neighbour, centre = edge_index
        first = table(self.edge) + self.centre(h).index_select(0, centre)
        first = nn.functional.silu(first + self.neighbour(h).index_select(0, neighbour))
        gate, message = first.chunk(2, dim=1)
        gated = torch.sigmoid(self.gate_norm(self.gate(gate))) * self.message(message)
        return torch.relu(h + self.norm(torch.zeros_like(h).index_add(0, centre, gated)))


class ReciprocalFilter(nn.Module):
    """u_i = c / V sum_k 2 w(|k|) Re[e^{ik.r_i} S(k)], S(k) = sum_j h_j e^{-ik.r_j}; each group of features has its w.

    The mean over the volume, every wave inside a sphere and a filter of |k| alone make it the same in any cell.
    """

    def __init__(self, features: int, k_cutoff: float, basis: int) -> None:
        """
        Args:
            features: width. k_cutoff: 1/A. basis: functions of |k|.
        """
        super().__init__()
        self.filters = nn.Parameter(torch.randn(basis, FILTERS) * basis**-0.5)
        self.before = Residual(features)
        self.after = nn.Sequential(nn.Linear(features, features), Residual(features))
        self.last = nn.Linear(features, features, bias=False)
        # a block that starts as nothing; it must earn its part
        nn.init.zeros_(self.last.weight)
        # the number of waves in the half sphere grows with the volume: about one for the sum at the start
        self.strength = 12.0 * math.pi**2 / k_cutoff**3

    @property
    def weights(self) -> Tensor:
        """(basis, FILTERS): c w of each group as a sum of the basis."""
        return self.strength * self.filters

    def forward(self, h: Tensor, filtered: WaveFilter) -> Tensor:
        """(N, features) to be added.

        Args:
            h: (N, features). filtered: `weights` at work.
        """
        return self.last(nn.functional.silu(self.after(filtered(self.before(h)))))


def published_filter(batch: Data, phase: str) -> WaveFilter:
    """The filter as it is printed: u_j = Re sum_m e^{i p_mj} sum_l h_l e^{-i p_ml}, with three phases m at each atom.

    Args:
        batch: crystals.
        phase: "literal": p_mj = b_m . f_j, a Cartesian reciprocal basis vector times fractional coordinates; it changes
            when the crystal is rotated, moved, or described by another cell. "threewave": p_mj = 2 pi f_mj; it changes
            with the cell.
    """
    index = batch_index(batch)
    fractional = torch.linalg.solve(batch.cell[index].mT, batch.positions[:, :, None])[:, :, 0]
    phases = 2.0 * math.pi * fractional
    if phase == "literal":
        phases = torch.einsum("nmc,nc->nm", reciprocal_cell(batch.cell)[index], fractional)

    def filtered(h: Tensor) -> Tensor:
        turn = torch.polar(torch.ones_like(phases), phases).to(torch.complex(h, h).dtype)
        waves_of = torch.einsum("nm,nf->nmf", turn.conj(), h.to(turn.dtype))
        sums = waves_of.new_zeros(len(batch.cell), *waves_of.shape[1:]).index_add(0, index, waves_of)
        return torch.einsum("nm,nmf->nf", turn, sums[index]).real

    return filtered


class PublishedFilter(nn.Module):
    """A linear layer on `published_filter`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.last = nn.Linear(features, features)

    def forward(self, h: Tensor, filtered: WaveFilter) -> Tensor:
        """(N, features) to be added."""
        return self.last(filtered(h))


class ReGNet(nn.Module):
    """Blocks of gated messages and reciprocal filters on two streams of atom features, fused at the end of each."""

    def __init__(
        self,
        features: int = 256,
        blocks: int = 3,
        neighbours: int = 16,
        k_cutoff: float = 4.0,
        reciprocal: bool = True,
        waves: int = 128,
        basis: int = 256,
        wave_basis: int = 16,
        variant: str = "invariant",
    ) -> None:
        """
        Args:
            features: width. blocks: steps. neighbours: nearest ones of each atom, in whole shells. k_cutoff: 1/A.
            reciprocal: whether there are filters; without them it is the message passing alone.
            waves: width of the stream that is filtered; `features` in the paper, which takes more of its time than
                the messages.
            basis: Gaussians in -0.75 / d on -4 ... 4. wave_basis: Gaussians in |k|.
            variant: "invariant", or what is printed: "literal" or "threewave" (see `published_filter`).
        """
        check_variant("regnet", variant, ("invariant", "literal", "threewave"))
        if waves % FILTERS:
            raise ConfigError(f"regnet: waves = {waves} is no multiple of its {FILTERS} filters; choose another width")
        super().__init__()
        self.features = self.atom_features = features
        self.shells, self.cutoff, self.wave_cutoff = neighbours, FARTHEST, float(k_cutoff) if reciprocal else None
        self.waves = waves
        self.k_cutoff = float(k_cutoff)
        self.embedding = ElementEmbedding(features)
        self.basis = Gaussians(-4.0, 4.0, basis)
        self.edge = nn.Linear(basis, features)
        self.messages = nn.ModuleList(GatedMessages(features) for _ in range(blocks))
        self.variant = variant
        self.filters = nn.ModuleList(
            ReciprocalFilter(waves, k_cutoff, wave_basis) if variant == INVARIANT else PublishedFilter(waves)
            for _ in range(blocks if reciprocal else 0)
        )
        self.wave_basis = Gaussians(0.0, self.k_cutoff, wave_basis)
        self.first = nn.Linear(features, waves) if reciprocal else None
        self.fuse = nn.ModuleList(nn.Linear(features + waves, features) for _ in self.filters)
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in self.filters)

    def forward(self, batch: Data) -> CrystalFeatures:
        """Features (G, `features`) of the crystals and (N, `features`) of the atoms.

        Args:
            batch: crystals with edges, such as `lrpot.data.shells.add_shells` gives.
        Raises:
            StructureError: see `lrpot.properties.waves.waves`.
        """
        local = self.embedding(batch.numbers)
        distances = torch.linalg.vector_norm(edge_vectors(batch), dim=1)
        table = RadialTable(self._edge_features, interpolation(POTENTIAL / distances, NEAREST, 0.0, local.dtype))
        if self.first is None:
            for pass_on in self.messages:
                local = pass_on(local, batch.edge_index, table)
            return CrystalFeatures(mean_over_atoms(local, batch), local)
        whole = torch.sigmoid(self.first(local))
        blocks = zip(self.messages, self.filters, self._filters_of(batch), self.fuse, self.norms, strict=True)
        for pass_on, block, filtered, fuse, norm in blocks:
            local = pass_on(local, batch.edge_index, table)
            whole = whole + block(whole, filtered)
            local = norm(local + fuse(torch.cat([local, whole], dim=1)))
        return CrystalFeatures(mean_over_atoms(local, batch), local)

    def prepared(self, structure: Structure) -> dict[str, Tensor]:
        """Fields that depend on a crystal alone, for `Graphs.attach`: a fit makes them once.

        `forward` finds the same without them. They belong to this network's `k_cutoff` and `wave_basis`.

        Args:
            structure: one crystal, where the network is.
        Returns:
            `wave_pairs` (A^2, wave_basis), or nothing without filters; see `lrpot.properties.wave_filter.prepared`.
        Raises:
            StructureError: see `lrpot.properties.waves.waves`.
        """
        weights = self._wave_weights()
        return prepared(structure, self.k_cutoff, self.wave_basis, weights, self.waves) if weights else {}

    def prepared_size(self, atoms: np.ndarray) -> int:
        """Bytes that it brings at most, of crystals of so many atoms (n,)."""
        pairs = atoms.astype(np.int64) ** 2
        width = self.wave_basis.centres.numel() * self.embedding.linear.weight.element_size()
        return int(pairs[pairs <= MOST_PAIRS].sum()) * width if self._wave_weights() else 0

    def _filters_of(self, batch: Data) -> list[WaveFilter]:
        if self.variant == INVARIANT:
            return wave_filters(batch, self.k_cutoff, self.wave_basis, self._wave_weights(), self.waves)
        return [published_filter(batch, self.variant)] * len(self.filters)

    def _wave_weights(self) -> list[Tensor]:
        """Of the filters of each block; none of the published ones."""
        return [block.weights for block in self.filters if isinstance(block, ReciprocalFilter)]

    def _edge_features(self, x: Tensor) -> Tensor:
        """(X, features) from -0.75 / distance."""
        return nn.functional.softplus(self.edge(self.basis(x)))
