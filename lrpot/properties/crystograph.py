"""CrysToGraph: attention between neighbouring atoms and neighbouring edges, and then between all atoms of a crystal.

Source: Wang et al., "CrysToGraph: A Comprehensive Predictive Model for Crystal Materials Properties and the Benchmark"
(2024). Angles of edges in the axes of the laboratory change when a crystal is rotated, and the code that belongs to the
paper sums over atoms where the paper has a softmax; `variant` says which form is computed.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from lrpot.backbones.edge_pairs import EdgeRows
from lrpot.data.shells import FARTHEST
from lrpot.errors import ConfigError
from lrpot.properties.basis import Gaussians
from lrpot.properties.checks import INVARIANT, check_heads, check_variant
from lrpot.properties.crystal_attention import CrystalAttention
from lrpot.properties.elements import ElementEmbedding
from lrpot.properties.features import CrystalFeatures, mean_over_atoms
from lrpot.properties.neighbour_attention import (
    AtomNeighbourhoods,
    EdgeNeighbourhoods,
    EdgeUpdate,
    NeighbourAttention,
)
from lrpot.properties.walks import EIGENVECTORS, PUBLISHED_STEPS, STEPS, published_encoding, walk_returns
from lrpot.structure import Structure, batch_index, edge_vectors

# A, of the longest bond of ions; longer edges are known by being that.
LONGEST_BOND = 8.0

# Of a head, when it attends to edges and not to atoms.
EDGE_HEAD = 24

# Numbers that each kind of positional encoding has.
ENCODINGS = {"none": 0, "bloch": STEPS, "published": EIGENVECTORS + PUBLISHED_STEPS}


class Block(nn.Module):
    """eTGC: edges attend to edges, then atoms to atoms, whose attention scales the edges.

    What edges of the line graph, the angles, are known by stays as it is from block to block: so the paper's code has
    it, while its text has them follow the attention.
    """

    def __init__(self, features: int, edge_features: int, angles: int, heads: int) -> None:
        super().__init__()
        self.of_edges = NeighbourAttention(edge_features, angles, heads, EDGE_HEAD)
        self.of_atoms = NeighbourAttention(features, edge_features, heads, features // heads)
        self.update = EdgeUpdate(edge_features, heads, features // heads)

    def forward(
        self, x: Tensor, e: Tensor, angles: Tensor, atoms: AtomNeighbourhoods, edges: EdgeNeighbourhoods
    ) -> tuple[Tensor, Tensor]:
        """Atoms (N, features) and edges (E, edge_features).

        Args:
            x, e: the same before. angles: (N, Q, K, angles). atoms, edges: the graph and its line graph.
        """
        e, _ = self.of_edges(e, angles, edges)
        x, weights = self.of_atoms(x, atoms.arriving.spread(e)[:, None], atoms)
        return x, self.update(e, atoms.arriving.collect(weights[:, 0].mT))


class CrysToGraph(nn.Module):
    """Blocks of attention to neighbours, layers of attention to all atoms of the crystal, and a mean over atoms."""

    def __init__(
        self,
        features: int = 256,
        blocks: int = 3,
        layers: int = 1,
        neighbours: int = 12,
        edge_features: int = 76,
        heads: int = 8,
        basis: int = 41,
        angle_basis: int = 30,
        encoding: str = "none",
        variant: str = "invariant",
    ) -> None:
        """
        Args:
            features: width of atoms. blocks: of attention to neighbours. layers: of attention to all atoms.
            neighbours: nearest ones of each atom, in whole shells. edge_features: width of edges.
            heads: of each attention. basis: Gaussians in the distance. angle_basis: in the cosine between edges.
            encoding: what atoms are told of their place before they attend to all others: "none"; "bloch", returns of
                walks to the same image; "published", which changes with the cell (see `lrpot.properties.walks`).
            variant: "invariant"; "published", edges also know their angles with the axes of the laboratory; "released",
                and the attention to all atoms is a plain sum, as in the paper's code.
        Raises:
            ConfigError: an encoding or a variant that is not known; features that the heads cannot share.
        """
        check_variant("crystograph", variant, (INVARIANT, "published", "released"))
        if encoding not in ENCODINGS:
            raise ConfigError(f"crystograph: encoding = {encoding!r}; choose one of {', '.join(ENCODINGS)}")
        if encoding == "published":
            warnings.warn(
                "crystograph: encoding published is for comparison with the paper; it changes with the choice of the "
                "cell and the order of the atoms; use none or bloch",
                stacklevel=2,
            )
        check_heads("crystograph", features, heads)
        super().__init__()
        self.features = self.atom_features = features
        self.shells, self.cutoff, self.wave_cutoff = neighbours, FARTHEST, None
        self.variant, self.encoding = variant, encoding
        self.embedding = ElementEmbedding(features)
        self.basis = Gaussians(0.0, LONGEST_BOND, basis)
        self.polar, self.azimuth = Gaussians(0.0, 3.2, 17), Gaussians(-3.2, 3.2, 17)
        of_axes = 0 if variant == INVARIANT else self.polar.centres.numel() + self.azimuth.centres.numel()
        self.edge = nn.Linear(basis + 1 + of_axes, edge_features)
        self.angle_basis = Gaussians(-1.4, 1.5, angle_basis)
        self.blocks = nn.ModuleList(Block(features, edge_features, angle_basis, heads) for _ in range(blocks))
        self.from_edges = nn.Linear(edge_features, features, bias=False) if layers else None
        self.from_places = (
            nn.Linear(ENCODINGS[encoding], features, bias=False) if layers and encoding != "none" else None
        )
        self.layers = nn.ModuleList(
            CrystalAttention(features, heads, features // heads, summed=variant == "released") for _ in range(layers)
        )
        self.norm = nn.LayerNorm(features)

    def forward(self, batch: Data) -> CrystalFeatures:
        """Features (G, `features`) of the crystals and (N, `features`) of the atoms.

        Args:
            batch: crystals with edges, such as `lrpot.data.shells.add_shells` gives.
        """
        x = self._of_neighbours(batch)
        for layer in self.layers:
            x = layer(x, batch)
        return CrystalFeatures(self.norm(mean_over_atoms(x, batch)), x)

    def attention(self, structure: Structure) -> Tensor:
        """(layers, heads, N, N): how much each atom (rows) of one crystal attends to each; rows add up to one.

        Args:
            structure: one crystal with edges.
        """
        x, found = self._of_neighbours(structure), []
        for layer in self.layers:
            assert isinstance(layer, CrystalAttention)
            found.append(layer.weights(x))
            x = layer(x, structure)
        return torch.stack(found)

    def prepared(self, structure: Structure) -> dict[str, Tensor]:
        """Fields that depend on a crystal alone, for `Graphs.attach`: a fit makes them once.

        `forward` finds the same without them.

        Args:
            structure: one crystal with edges, where the network is.
        Returns:
            `place` (N, P), the positional encoding; nothing without one.
        """
        return {} if self.from_places is None else {"place": self._place(structure)}

    def prepared_size(self, atoms: np.ndarray) -> int:
        """Bytes that it brings, of crystals of so many atoms (n,)."""
        width = 0 if self.from_places is None else ENCODINGS[self.encoding]
        return int(atoms.astype(np.int64).sum()) * width * self.embedding.linear.weight.element_size()

    def _of_neighbours(self, batch: Data) -> Tensor:
        """(N, features) after all blocks, with what atoms are told before they attend to all others."""
        x = self.embedding(batch.numbers)
        arriving = EdgeRows(batch.edge_index[1], len(x))
        atoms = AtomNeighbourhoods(batch, arriving)
        edges = EdgeNeighbourhoods(batch, arriving, atoms.absent)
        e = self.edge(self._edge_inputs(batch).to(x.dtype))
        angles = self.angle_basis(edges.cosines(batch).to(x.dtype))
        for block in self.blocks:
            x, e = block(x, e, angles, atoms, edges)
        if self.from_edges is not None:
            # the mean, for whole shells have different numbers of edges
            counts = torch.bincount(batch.edge_index[1], minlength=len(x)).clamp(min=1)
            sums = e.new_zeros(len(x), e.shape[1]).index_add(0, batch.edge_index[1], e)
            x = x + self.from_edges(sums / counts[:, None])
        if self.from_places is not None:
            x = x + self.from_places(self._places(batch))
        return x

    def _edge_inputs(self, batch: Data) -> Tensor:
        """(E, inputs) of the distance; of the published form also of the direction."""
        vectors = edge_vectors(batch)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        far = (distances > LONGEST_BOND)[:, None].to(distances.dtype)
        columns = [self.basis(distances), far]
        if self.variant != INVARIANT:
            polar = torch.arccos((vectors[:, 2] / distances).clamp(-1.0, 1.0))
            columns += [self.polar(polar), self.azimuth(torch.atan2(vectors[:, 1], vectors[:, 0]))]
        return torch.cat(columns, dim=1)

    def _places(self, batch: Data) -> Tensor:
        """(N, P) positional encodings; in training, eigenvectors of the published one with random signs."""
        if "place" in batch:
            places = batch.place
        else:
            crystals = [batch.get_example(n) for n in range(len(batch.cell))] if isinstance(batch, Batch) else [batch]
            places = torch.cat([self._place(structure) for structure in crystals])
        if self.encoding == "published" and self.training:
            signs = torch.ones(len(batch.cell), places.shape[1], dtype=places.dtype, device=places.device)
            signs[:, :EIGENVECTORS] -= 2.0 * torch.randint_like(signs[:, :EIGENVECTORS], 2)
            places = places * signs[batch_index(batch)]
        return places

    def _place(self, structure: Structure) -> Tensor:
        found = walk_returns(structure) if self.encoding == "bloch" else published_encoding(structure)
        return found.to(self.embedding.linear.weight.dtype)
