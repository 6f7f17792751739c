"""PaiNN, the polarizable interaction network, for periodic crystals.

Source: Schütt, Unke, Gastegger, ICML 2021. With the cosine cutoff it is the same function as SchNetPack's PaiNN, and
its parameters have the same names and shapes, so that weights move between the two; a test compares them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.backbones.features import AtomFeatures
from lrpot.errors import ConfigError
from lrpot.smooth import taper

MAX_ATOMIC_NUMBER = 118


class PaiNN(nn.Module):
    """Equivariant message passing with scalar and vector features."""

    centres: Tensor

    def __init__(
        self,
        features: int = 64,
        interactions: int = 3,
        radial_basis: int = 20,
        cutoff: float = 5.0,
        cutoff_function: str = "smooth",
    ) -> None:
        """
        Args:
            features: width F.
            interactions: number of message-passing steps.
            radial_basis: number of Gaussians in the distance.
            cutoff: A.
            cutoff_function: "smooth" (two continuous derivatives, so that MD conserves energy) or "cosine"
                (one continuous derivative; SchNetPack's).
        Raises:
            ConfigError: a value out of range.
        """
        super().__init__()
        for name, value in (("features", features), ("interactions", interactions), ("radial_basis", radial_basis - 1)):
            if value < 1:
                raise ConfigError(f"painn: {name} is too small; raise it")
        if cutoff_function not in ("smooth", "cosine"):
            raise ConfigError(f"painn: cutoff_function = {cutoff_function!r}; choose smooth or cosine")
        self.features = features
        self.cutoff = float(cutoff)
        self.cutoff_function = cutoff_function
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, features)
        self.register_buffer("centres", torch.linspace(0.0, cutoff, radial_basis))
        self.width = cutoff / (radial_basis - 1)
        self.filter_net = _linear(radial_basis, interactions * 3 * features)
        self.interactions = nn.ModuleList(_Interaction(features) for _ in range(interactions))
        self.mixing = nn.ModuleList(_Mixing(features) for _ in range(interactions))

    def forward(self, batch: Data, vectors: Tensor) -> AtomFeatures:
        """Features of every atom.

        Args:
            batch: `numbers` (N,) and `edge_index` (2, E) are read.
            vectors: (E, 3), A, from centre to neighbour, no longer than the cutoff, in the precision of the weights.
        """
        neighbour, centre = batch.edge_index
        distances = torch.linalg.vector_norm(vectors, dim=1)
        directions = (vectors / distances[:, None])[:, :, None]
        gaussians = torch.exp(-0.5 / self.width**2 * (distances[:, None] - self.centres) ** 2)
        filters = self.filter_net(gaussians) * self._cutoff(distances)[:, None]

        scalar = self.embedding(batch.numbers)
        vector = scalar.new_zeros(scalar.shape[0], 3, self.features)
        steps = zip(self.interactions, self.mixing, filters.split(3 * self.features, dim=1), strict=True)
        for step, (interact, mix, weights) in enumerate(steps):
            scalar, vector = interact(scalar, vector, weights, directions, centre, neighbour, first=step == 0)
            scalar, vector = mix(scalar, vector)
        return AtomFeatures(scalar, vector)

    def _cutoff(self, distances: Tensor) -> Tensor:
        if self.cutoff_function == "smooth":
            return taper(distances, self.cutoff)
        inside = (distances < self.cutoff).to(distances.dtype)
        return 0.5 * (torch.cos(distances * (math.pi / self.cutoff)) + 1.0) * inside


class _Interaction(nn.Module):
    """Messages along edges. Source: Schütt et al. 2021, Eqs. 7 and 8."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.interatomic_context_net = nn.Sequential(
            _linear(features, features, activated=True), _linear(features, 3 * features)
        )

    def forward(
        self,
        scalar: Tensor,
        vector: Tensor,
        weights: Tensor,
        directions: Tensor,
        centre: Tensor,
        neighbour: Tensor,
        *,
        first: bool,
    ) -> tuple[Tensor, Tensor]:
        messages = weights * self.interatomic_context_net(scalar)[neighbour]
        to_scalar, along_edge, along_vector = messages.chunk(3, dim=1)
        vector_messages = along_edge[:, None, :] * directions
        if not first:  # the vectors are zero before the first step
            vector_messages = vector_messages + along_vector[:, None, :] * vector[neighbour]
        scalar = scalar.index_add(0, centre, to_scalar)
        vector = vector.index_add(0, centre, vector_messages)
        return scalar, vector


class _Mixing(nn.Module):
    """Scalars and vectors of one atom exchange. Source: Schütt et al. 2021, Eqs. 9 and 10."""

    # keeps the norm of a zero vector differentiable; SchNetPack's value
    EPSILON = 1e-8

    def __init__(self, features: int) -> None:
        super().__init__()
        self.intraatomic_context_net = nn.Sequential(
            _linear(2 * features, features, activated=True), _linear(features, 3 * features)
        )
        self.mu_channel_mix = _linear(features, 2 * features, bias=False)

    def forward(self, scalar: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        v, w = self.mu_channel_mix(vector).chunk(2, dim=2)
        norm = torch.sqrt((v**2).sum(dim=1) + self.EPSILON)
        to_scalar, to_vector, by_product = self.intraatomic_context_net(torch.cat([scalar, norm], dim=1)).chunk(
            3, dim=1
        )
        scalar = scalar + to_scalar + by_product * (v * w).sum(dim=1)
        vector = vector + to_vector[:, None, :] * w
        return scalar, vector


class _Activated(nn.Linear):
    """A layer with its activation inside, so that the next one has the name it has in SchNetPack."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.silu(super().forward(input))


def _linear(inputs: int, outputs: int, *, bias: bool = True, activated: bool = False) -> nn.Linear:
    layer = _Activated(inputs, outputs) if activated else nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
