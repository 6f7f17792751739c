"""DimeNet++, directional message passing, for periodic crystals.

Source: Gasteiger, Giri, Margraf, Günnemann 2020 (arXiv:2011.14115). The parameters have the names and shapes of
torch_geometric's DimeNetPlusPlus, but for more elements, and the function is the same; a test compares them.

No list of triplets is made. The basis in which a triplet k -> j -> i is expanded is a sum over l of a function of d_kj
times P_l(cos theta), and the layers that follow are linear, so the sum over k is a product of two matrices per atom j:
Legendre polynomials, shared by all blocks, times what the arriving edges carry.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch_geometric.data import Data
from torch_geometric.nn.models.dimenet import BesselBasisLayer, InteractionPPBlock, OutputPPBlock

from lrpot.backbones.edge_pairs import EdgeRows, legendre_of_pairs, reverse_pairs
from lrpot.backbones.features import AtomFeatures
from lrpot.backbones.spherical_bessel import SphericalBesselBasis
from lrpot.errors import ConfigError
from lrpot.structure import MAX_ATOMIC_NUMBER

# Of the published network.
RESIDUALS_BEFORE_SKIP, RESIDUALS_AFTER_SKIP, OUTPUT_LAYERS = 1, 2, 3


class DimeNetPlusPlus(nn.Module):
    """Messages along edges, changed by the messages that arrive where they start, according to the angle."""

    def __init__(
        self,
        features: int = 128,
        interactions: int = 4,
        triplet_features: int = 64,
        basis_features: int = 8,
        output_features: int = 256,
        radial_basis: int = 6,
        spherical_basis: int = 7,
        envelope_exponent: int = 5,
        cutoff: float = 5.0,
    ) -> None:
        """
        Args:
            features: width F of messages and of what comes out for each atom.
            interactions: number of message-passing steps.
            triplet_features: width in which messages meet.
            basis_features: width in which the bases are embedded.
            output_features: width of the output blocks.
            radial_basis: number of Bessel functions in the distance, for each order.
            spherical_basis: number of orders l of Legendre polynomials, from 0.
            envelope_exponent: the envelope leaves 1 / d as d^envelope_exponent and has two continuous derivatives.
            cutoff: A.
        Raises:
            ConfigError: a value out of range.
        """
        super().__init__()
        for name, value, least in (
            ("features", features, 1),
            ("interactions", interactions, 1),
            ("triplet_features", triplet_features, 1),
            ("basis_features", basis_features, 1),
            ("output_features", output_features, 1),
            ("radial_basis", radial_basis, 1),
            ("spherical_basis", spherical_basis, 2),
            ("envelope_exponent", envelope_exponent, 2),
        ):
            if value < least:
                raise ConfigError(f"dimenet++: {name} = {value} is too small; raise it to {least} or more")
        self.features = features
        self.cutoff = float(cutoff)
        self.spherical_basis = spherical_basis
        activation = nn.SiLU()
        self.rbf = BesselBasisLayer(radial_basis, cutoff, envelope_exponent)
        self.sbf = SphericalBesselBasis(spherical_basis, radial_basis, cutoff, envelope_exponent)
        self.emb = _Embedding(radial_basis, features, activation)
        self.output_blocks = nn.ModuleList(
            # not the published zeros: a readout that is zero follows, and both would keep each other there
            OutputPPBlock(
                radial_basis, features, output_features, features, OUTPUT_LAYERS, activation, "glorot_orthogonal"
            )
            for _ in range(interactions + 1)
        )
        self.interaction_blocks = nn.ModuleList(
            _Interaction(
                features,
                triplet_features,
                basis_features,
                spherical_basis,
                radial_basis,
                RESIDUALS_BEFORE_SKIP,
                RESIDUALS_AFTER_SKIP,
                activation,
            )
            for _ in range(interactions)
        )

    def forward(self, batch: Data, vectors: Tensor) -> AtomFeatures:
        """Features of every atom.

        Args:
            batch: `numbers` (N,), `edge_index` (2, E) and `edge_shift` (E, 3) are read.
            vectors: (E, 3), A, from centre to neighbour, in the precision of the weights.
        """
        neighbour, centre = batch.edge_index
        n_atoms = batch.numbers.shape[0]
        distances = torch.linalg.vector_norm(vectors, dim=1)
        radial = self.rbf(distances)
        leaving, arriving = EdgeRows(neighbour, n_atoms), EdgeRows(centre, n_atoms)
        excluded = reverse_pairs(batch, leaving, arriving)
        directions = vectors / distances[:, None]
        legendre = legendre_of_pairs(directions, leaving, arriving, excluded, self.spherical_basis)
        spherical = arriving.spread(self.sbf(distances))

        messages = self.emb(batch.numbers, radial, centre, neighbour)
        scalar = self.output_blocks[0](messages, radial, centre, num_nodes=n_atoms)
        for interact, output in zip(self.interaction_blocks, self.output_blocks[1:], strict=True):
            messages = interact(messages, radial, spherical, legendre, leaving, arriving)
            scalar = scalar + output(messages, radial, centre, num_nodes=n_atoms)
        return AtomFeatures(scalar, None)


class _Embedding(nn.Module):
    """First messages, from both elements and the distance. Source: Gasteiger et al., ICLR 2020, embedding block."""

    def __init__(self, radial_basis: int, features: int, activation: nn.Module) -> None:
        super().__init__()
        self.act = activation
        self.emb = nn.Embedding(MAX_ATOMIC_NUMBER + 1, features)
        self.lin_rbf = nn.Linear(radial_basis, features)
        self.lin = nn.Linear(3 * features, features)
        nn.init.uniform_(self.emb.weight, -math.sqrt(3.0), math.sqrt(3.0))

    def forward(self, numbers: Tensor, radial: Tensor, centre: Tensor, neighbour: Tensor) -> Tensor:
        # the layer's product by parts: those of the elements are taken once per atom, not once per edge
        of_centre, of_neighbour, of_radial = self.lin.weight.chunk(3, dim=1)
        atoms = self.emb(numbers)
        edges = linear(self.act(self.lin_rbf(radial)), of_radial, self.lin.bias)
        return self.act(edges + linear(atoms, of_centre)[centre] + linear(atoms, of_neighbour)[neighbour])


class _Interaction(InteractionPPBlock):
    """New messages. Parameters are torch_geometric's; the sum over triplets is done as the module's text says."""

    def forward(
        self,
        messages: Tensor,
        radial: Tensor,
        spherical: Tensor,
        legendre: Tensor,
        leaving: EdgeRows,
        arriving: EdgeRows,
    ) -> Tensor:
        """
        Args:
            messages: (E, F). radial: (E, n).
            spherical: (N, M_arriving, L, n). legendre: (N, M_leaving, M_arriving, L).
            leaving, arriving: the edges by neighbour and by centre.
        Returns:
            (E, F).
        """
        own = self.act(self.lin_ji(messages))
        arrived = self.act(self.lin_kj(messages)) * linear(radial, self.lin_rbf2.weight @ self.lin_rbf1.weight)
        arrived = arriving.spread(self.act(self.lin_down(arrived)))
        # both layers as one (L n, T) for T triplet features; order by order on a diagonal it gives T factors for each l
        basis = (self.lin_sbf2.weight @ self.lin_sbf1.weight).mT
        orders = spherical.shape[2]
        factors = (spherical.flatten(2) @ torch.block_diag(*basis.chunk(orders))).unflatten(2, (orders, -1))
        waves = factors * arrived[:, :, None]
        met = leaving.collect(legendre.flatten(2) @ waves.flatten(1, 2))

        hidden = own + self.act(self.lin_up(met))
        for layer in self.layers_before_skip:
            hidden = layer(hidden)
        hidden = self.act(self.lin(hidden)) + messages
        for layer in self.layers_after_skip:
            hidden = layer(hidden)
        return hidden
