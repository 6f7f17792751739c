"""CrysToGraph as its equations are printed, with scatter, softmax and dense batches of torch_geometric.

What the tests compare `lrpot.properties.crystograph` with, number by number, and `property_speed.py` second by second.

Source: Wang et al., "CrysToGraph: A Comprehensive Predictive Model for Crystal Materials Properties and the Benchmark"
(2024), eqs. 2-15.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import scatter, softmax, to_dense_batch

from lrpot.properties.basis import BatchNorm
from lrpot.properties.crystograph import EDGE_HEAD, LONGEST_BOND, CrysToGraph
from lrpot.properties.features import CrystalFeatures, mean_over_atoms
from lrpot.properties.neighbour_attention import EdgeUpdate, NeighbourAttention
from lrpot.structure import batch_index, edge_vectors


class PlainLayer(nn.Module):
    """eTGC on a list of edges, eqs. 2-9; edges themselves only if they are to be updated."""

    def __init__(self, features: int, edge_features: int, heads: int, width: int, updated: bool) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.q, self.k, self.v = (nn.Linear(features, heads * width, bias=False) for _ in range(3))
        self.e = nn.Linear(edge_features, heads * width, bias=False)
        self.ke = nn.Parameter(torch.randn(heads, width, 3 * width) * (3 * width) ** -0.5)
        self.ve = nn.Parameter(torch.randn(heads, width, 3 * width) * (3 * width) ** -0.5)
        self.on = nn.Linear(heads * width, features, bias=False)
        self.norm = nn.LayerNorm(features)
        self.forth = _feed_forward(features, 4, BatchNorm(features))
        if updated:
            self.oe = nn.Linear(heads * width, edge_features, bias=False)
            self.edge_norm = nn.LayerNorm(edge_features)
            self.edge_forth = _feed_forward(edge_features, 4, BatchNorm(edge_features))
        self.updated = updated

    def forward(self, x: Tensor, e: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        source, centre = index
        q, k, v, own = (
            values.unflatten(1, (self.heads, self.width)) for values in (self.q(x), self.k(x), self.v(x), self.e(e))
        )
        key = torch.einsum("hdf,ehf->ehd", self.ke, torch.cat([k[centre], k[source], own], dim=2))
        value = torch.einsum("hdf,ehf->ehd", self.ve, torch.cat([v[centre], v[source], own], dim=2))
        weights = softmax((q[centre] * key).sum(dim=2) / math.sqrt(self.width), centre, num_nodes=len(x))
        message = scatter(weights[..., None] * value, centre, dim=0, dim_size=len(x))
        x = x + self.norm(self.on(message.flatten(1)))
        x = x + self.forth(x)
        if self.updated:
            e = e + self.edge_norm(self.oe((weights[..., None] * own).flatten(1)))
            e = e + self.edge_forth(e)
        return x, e

    def put_into(self, fast: NeighbourAttention, update: EdgeUpdate | None) -> None:
        """Give lrpot's layer the products of these matrices."""
        key, value = (self._parts(weight) for weight in (self.ke, self.ve))

        def through(part: Tensor, linear: nn.Linear) -> Tensor:
            return part @ linear.weight.unflatten(0, (self.heads, self.width))

        _copy(fast.query, self.q)
        fast.key.weight.copy_(through(key[1], self.k).flatten(0, 1))
        fast.value.weight.copy_(through(value[1], self.v).flatten(0, 1))
        fast.own_value.weight.copy_(through(value[0], self.v).flatten(0, 1))
        fast.edge_key.copy_(through(key[2], self.e))
        fast.edge_value.copy_(through(value[2], self.e).mT)
        _copy(fast.last, self.on), _copy(fast.norm, self.norm), _copy_forth(fast.forth, self.forth)
        if update is not None:
            _copy(update.first, self.e), _copy(update.last, self.oe), _copy(update.norm, self.edge_norm)
            _copy_forth(update.forth, self.edge_forth)

    def _parts(self, weight: Tensor) -> Sequence[Tensor]:
        """What acts on the centre, the neighbour and the edge."""
        return weight.split(self.width, dim=2)


class PlainAttention(nn.Module):
    """GwT, eqs. 12-15, on crystals padded to the largest."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(features, features, bias=False) for _ in range(4))
        self.norm = nn.LayerNorm(features)
        self.forth = _feed_forward(features, 2, nn.LayerNorm(features))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        padded, there = to_dense_batch(x, index)
        q, k, v = (linear(padded).unflatten(2, (self.heads, -1)).transpose(1, 2) for linear in (self.q, self.k, self.v))
        logits = (q @ k.mT / math.sqrt(q.shape[3])).masked_fill(~there[:, None, None], -math.inf)
        mixed = (logits.softmax(dim=3) @ v).transpose(1, 2).flatten(2)[there]
        x = x + self.norm(self.o(mixed))
        return x + self.forth(x)


class PlainCrysToGraph(nn.Module):
    """On explicit lists of edges and of pairs of edges."""

    def __init__(self, fast: CrysToGraph) -> None:
        """
        Args:
            fast: whose settings these are; what is linear in the inputs of edges, embeddings and the last norm are its
                own modules.
        """
        super().__init__()
        self.shared = [fast]  # a list: its parameters are not this module's
        features, heads, e = fast.features, fast.blocks[0].of_atoms.heads, fast.edge.out_features
        angles = fast.angle_basis.centres.numel()
        self.edges = nn.ModuleList(PlainLayer(e, angles, heads, EDGE_HEAD, False) for _ in fast.blocks)
        self.atoms = nn.ModuleList(PlainLayer(features, e, heads, features // heads, True) for _ in fast.blocks)
        self.layers = nn.ModuleList(PlainAttention(features, heads) for _ in fast.layers)

    def forward(self, batch: Data) -> CrystalFeatures:
        """As of `CrysToGraph`, of a batch whose edges are sorted by centre."""
        (fast,) = self.shared
        x = fast.embedding(batch.numbers)
        vectors = edge_vectors(batch)
        distances = vectors.norm(dim=1)
        e = fast.edge(torch.column_stack([fast.basis(distances), (distances > LONGEST_BOND).double()]).to(x.dtype))
        pairs = line_graph(batch.edge_index, len(x))
        cosines = -(vectors[pairs[0]] * vectors[pairs[1]]).sum(dim=1) / distances[pairs].prod(dim=0)
        angles = fast.angle_basis(cosines.to(x.dtype))
        for of_edges, of_atoms in zip(self.edges, self.atoms, strict=True):
            e, _ = of_edges(e, angles, pairs)
            x, e = of_atoms(x, e, batch.edge_index)
        x = x + fast.from_edges(scatter(e, batch.edge_index[1], dim=0, dim_size=len(x), reduce="mean"))
        for layer in self.layers:
            x = layer(x, batch_index(batch))
        return CrystalFeatures(fast.norm(mean_over_atoms(x, batch)), x)

    @torch.no_grad()
    def put_into_shared(self) -> None:
        """Give `fast` weights with which it is this network."""
        (fast,) = self.shared
        for block, of_edges, of_atoms in zip(fast.blocks, self.edges, self.atoms, strict=True):
            of_edges.put_into(block.of_edges, None)
            of_atoms.put_into(block.of_atoms, block.update)
        for layer, plain in zip(fast.layers, self.layers, strict=True):
            layer.query_key_value.weight.copy_(torch.cat([plain.q.weight, plain.k.weight, plain.v.weight]))
            _copy(layer.last, plain.o), _copy(layer.norm, plain.norm), _copy_forth(layer.forth, plain.forth)


def line_graph(edge_index: Tensor, n_atoms: int) -> Tensor:
    """(2, T) edges (k -> j) and (j -> i) for each pair that meets at j, of edges (2, E) sorted by centre."""
    neighbour, centre = edge_index
    counts = torch.bincount(centre, minlength=n_atoms)
    first = counts.cumsum(0) - counts
    arriving = counts[neighbour]
    leaving = torch.arange(len(centre)).repeat_interleave(arriving)
    place = torch.arange(len(leaving)) - (arriving.cumsum(0) - arriving)[leaving]
    return torch.stack([first[neighbour[leaving]] + place, leaving])


def _feed_forward(features: int, widen: int, norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, widen * features), nn.GELU(), nn.Linear(widen * features, features), norm)


def _copy(to: nn.Module, source: nn.Module) -> None:
    to.load_state_dict(source.state_dict())


def _copy_forth(to: nn.Module, source: nn.Sequential) -> None:
    _copy(to.first, source[0]), _copy(to.second, source[2]), _copy(to.norm, source[3])
