"""PaiNN, the polarizable interaction network, for periodic crystals.

Source: Schütt, Unke, Gastegger, ICML 2021. With the cosine cutoff it is the same function as SchNetPack's PaiNN, and
its parameters have the same names and shapes, so that weights move between the two; a test compares them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.backbones.features import AtomFeatures
from lrpot.backbones.messages import FusedMessages, plain_messages
from lrpot.backbones.radial import ROWS, spline_coefficients
from lrpot.errors import ConfigError
from lrpot.smooth import taper
from lrpot.structure import MAX_ATOMIC_NUMBER

# Intervals of the filters' splines per width of a Gaussian. With 8 Gaussians or more: values of the basis to 1e-8 and
# 1e-14, slopes to 3e-7 and 2e-12, curvatures to 1e-5 and 5e-10 of the largest (tests/unit/test_radial.py).
INTERVALS = {torch.float32: 8, torch.float64: 96}


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
        epsilon: float = 0.01,
    ) -> None:
        """
        Args:
            features: width F.
            interactions: number of message-passing steps.
            radial_basis: number of Gaussians in the distance.
            cutoff: A.
            cutoff_function: "smooth" (two continuous derivatives, so that MD conserves energy) or "cosine"
                (one continuous derivative; SchNetPack's).
            epsilon: norms of vectors are sqrt(|v|^2 + epsilon). Next to nothing, as published (1e-8 in SchNetPack), it
                leaves a cusp of the energy where vectors vanish, as they do at the sites of many perfect crystals.
        Raises:
            ConfigError: a value out of range.
        """
        super().__init__()
        for name, value in (("features", features), ("interactions", interactions), ("radial_basis", radial_basis - 1)):
            if value < 1:
                raise ConfigError(f"painn: {name} is too small; raise it")
        if not epsilon > 0:
            raise ConfigError(f"painn: epsilon = {epsilon:g}: the norm of a zero vector has no derivative; raise it")
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
        self.mixing = nn.ModuleList(_Mixing(features, epsilon) for _ in range(interactions))
        # what follows from centres and weights, beside what it follows from
        self._splines: tuple[tuple[object, ...], Tensor] = ((), torch.empty(0))
        self._tables = (torch.empty(0), torch.empty(0), torch.empty(0))

    def forward(self, batch: Data, vectors: Tensor) -> AtomFeatures:
        """Features of every atom.

        Args:
            batch: `numbers` (N,) and `edge_index` (2, E) are read.
            vectors: (E, 3), A, from centre to neighbour, in the precision of the weights; beyond the cutoff, an edge
                has no effect.
        """
        scalar = self.embedding(batch.numbers)
        vector = None
        send = self._messages(batch, vectors)
        for step, (interact, mix) in enumerate(zip(self.interactions, self.mixing, strict=True)):
            scalar, vector = send(step, interact(scalar), scalar, vector)
            scalar, vector = mix(scalar, vector)
        return AtomFeatures(scalar, vector)

    def _messages(self, batch: Data, vectors: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        """The messages of a step: (step, phi, scalar, vector) -> scalar, vector."""
        return (self._fused if vectors.device.type == "cpu" else self._plain)(batch, vectors)

    def _fused(self, batch: Data, vectors: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        tables = self._filter_tables()
        intervals = tables.shape[1] - ROWS + 1
        edges = FusedMessages(batch.edge_index, vectors, len(batch.numbers), self.cutoff, intervals)
        return lambda step, *features: edges(tables[step], *features)

    def _plain(self, batch: Data, vectors: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        neighbour, centre = batch.edge_index
        basis = self._tapered_basis(torch.linalg.vector_norm(vectors, dim=1))
        filters = torch.nn.functional.linear(basis[:, :-1], self.filter_net.weight)
        filters = (filters + basis[:, -1:] * self.filter_net.bias).split(3 * self.features, dim=1)
        return lambda step, *features: plain_messages(filters[step], vectors, neighbour, centre, *features)

    def _filter_tables(self) -> Tensor:
        """(interactions, K + 5, 3F): the filters of each step as splines."""
        weights = torch.cat([self.filter_net.weight, self.filter_net.bias[:, None]], dim=1)
        if weights.requires_grad:
            return self._tabulate(weights)
        # tensors made in inference mode could not serve a later call that is differentiated
        with torch.inference_mode(False), torch.no_grad():
            spline = self._spline(weights.dtype)
            known_spline, known, tables = self._tables
            # compared by value, for weights can change in ways that leave no trace on the tensor
            if known_spline is not spline or not torch.equal(known, weights):
                tables = self._tabulate(weights)
                self._tables = (spline, weights.clone(), tables)
        return tables

    def _tabulate(self, weights: Tensor) -> Tensor:
        return self._spline(weights.dtype) @ weights.view(len(self.interactions), 3 * self.features, -1).mT

    def _spline(self, dtype: torch.dtype) -> Tensor:
        """(K + 5, radial_basis + 1): splines of the functions of `_tapered_basis`."""
        key = (dtype, *self.centres.tolist())  # loaded weights may bring other centres
        if self._splines[0] != key:
            intervals = INTERVALS[dtype] * (len(self.centres) - 1)
            spline = spline_coefficients(self._tapered_basis, self.cutoff, intervals).to(dtype)
            self._splines = (key, spline)
        return self._splines[1]

    def _tapered_basis(self, distances: Tensor) -> Tensor:
        """(E, radial_basis + 1): the Gaussians and 1, times the cutoff function, at (E,) distances."""
        gaussians = torch.exp(-0.5 / self.width**2 * (distances[:, None] - self.centres.to(distances.dtype)) ** 2)
        return torch.cat([gaussians, torch.ones_like(gaussians[:, :1])], dim=1) * self._cutoff(distances)[:, None]

    def _cutoff(self, distances: Tensor) -> Tensor:
        if self.cutoff_function == "smooth":
            return taper(distances, self.cutoff)
        inside = (distances < self.cutoff).to(distances.dtype)
        return 0.5 * (torch.cos(distances * (math.pi / self.cutoff)) + 1.0) * inside


class _Interaction(nn.Module):
    """What an atom sends along its edges. Source: Schütt et al. 2021, Eqs. 7 and 8."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.interatomic_context_net = nn.Sequential(
            _linear(features, features, activated=True), _linear(features, 3 * features)
        )

    def forward(self, scalar: Tensor) -> Tensor:
        """(N, 3F) from (N, F)."""
        return self.interatomic_context_net(scalar)


class _Mixing(nn.Module):
    """Scalars and vectors of one atom exchange. Source: Schütt et al. 2021, Eqs. 9 and 10."""

    def __init__(self, features: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.intraatomic_context_net = nn.Sequential(
            _linear(2 * features, features, activated=True), _linear(features, 3 * features)
        )
        self.mu_channel_mix = _linear(features, 2 * features, bias=False)

    def forward(self, scalar: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        v, w = self.mu_channel_mix(vector).chunk(2, dim=2)
        norm = torch.sqrt((v**2).sum(dim=1) + self.epsilon)
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
