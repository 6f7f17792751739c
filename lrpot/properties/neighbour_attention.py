"""Attention of the nodes of a graph to their neighbours: eTGC, the step of CrysToGraph, on atoms and on edges.

Source: Wang et al., "CrysToGraph: A Comprehensive Predictive Model for Crystal Materials Properties and the Benchmark",
eqs. 2-9.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.backbones.edge_pairs import EdgeRows
from lrpot.properties.basis import BatchNorm
from lrpot.structure import edge_vectors

# An expanded feature of the paper's feed-forward networks over its own.
WIDEN = 4


class Neighbourhoods(Protocol):
    """Who attends to whom, as B blocks of Q nodes that all see the same K neighbours.

    Attributes:
        absent: (B, 1, 1, K) bool, where a block has fewer neighbours.
    """

    absent: Tensor

    def nodes(self, values: Tensor) -> Tensor:
        """(B, Q, ...) from what each node has."""

    def neighbours(self, values: Tensor) -> Tensor:
        """(B, K, ...) from what each node has."""

    def collect(self, rows: Tensor) -> Tensor:
        """What each node has from (B, Q, ...)."""


class AtomNeighbourhoods:
    """Each atom and the atoms that its edges come from: B = N, Q = 1."""

    def __init__(self, batch: Data, arriving: EdgeRows) -> None:
        """
        Args:
            batch: crystals with edges. arriving: these, by centre.
        """
        self.arriving = arriving
        self.sources = arriving.spread(batch.edge_index[0] + 1)  # 0: no neighbour
        self.absent = ~arriving.spread(torch.ones_like(batch.edge_index[0], dtype=torch.bool))[:, None, None]

    def nodes(self, values: Tensor) -> Tensor:
        return values[:, None]

    def neighbours(self, values: Tensor) -> Tensor:
        # zero where there is none, for an atom alone attends to that
        values = nn.functional.pad(values, (0, 0, 1, 0))
        return values.index_select(0, self.sources.flatten()).unflatten(0, self.sources.shape)

    def collect(self, rows: Tensor) -> Tensor:
        return rows[:, 0]


class EdgeNeighbourhoods:
    """The line graph: each edge (j -> i) and the edges (k -> j) that end where it begins, (i -> j) among them.

    All edges that leave an atom see the same edges, those that arrive at it: B = N, and no list of pairs is made.
    """

    def __init__(self, batch: Data, arriving: EdgeRows, absent: Tensor) -> None:
        """
        Args:
            batch: crystals with edges. arriving: these, by centre. absent: as of `AtomNeighbourhoods`.
        """
        self.arriving, self.absent = arriving, absent
        self.leaving = EdgeRows(batch.edge_index[0], arriving.n_atoms)

    def nodes(self, values: Tensor) -> Tensor:
        return self.leaving.spread(values)

    def neighbours(self, values: Tensor) -> Tensor:
        return self.arriving.spread(values)

    def collect(self, rows: Tensor) -> Tensor:
        return self.leaving.collect(rows)

    def cosines(self, batch: Data) -> Tensor:
        """(N, Q, K), of the angle at j between the edges to i and to k; without meaning beside padding."""
        vectors = edge_vectors(batch)
        directions = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        # both point from centre to neighbour: from i to j, and from j to k
        return -self.leaving.spread(directions) @ self.arriving.spread(directions).mT


class FeedForward(nn.Module):
    """x + norm(W2 gelu(W1 x))."""

    def __init__(self, features: int, norm: nn.Module, widen: int = WIDEN) -> None:
        super().__init__()
        self.first = nn.Linear(features, widen * features)
        self.second = nn.Linear(widen * features, features)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(N, features)."""
        return x + self.norm(self.second(nn.functional.gelu(self.first(x))))


class NeighbourAttention(nn.Module):
    """x_i + LN(W sum_j a_ji v_ji), then a feed-forward network; a_ji = softmax_j(q_i . k_ji / sqrt(d)) for each head.

    The paper's keys and values are linear in node, neighbour and edge, k_ji = W_ke [W_k x_i, W_k x_j, W_e e_ji]: here
    each product of two matrices is one matrix. The part of x_i in the keys is the same for all j and leaves the softmax
    as it is, so it is not there; since the weights add up to one, its part of the values stands outside the sum. What
    an edge adds to a key is found from the query, and to a value from the mean edge: nothing as wide as a value is
    made of any edge.
    """

    def __init__(self, features: int, edge_features: int, heads: int, width: int) -> None:
        """
        Args:
            features: width of the nodes. edge_features: of the edges. heads: how many. width: of each.
        """
        super().__init__()
        self.heads, self.width = heads, width
        self.query = nn.Linear(features, heads * width, bias=False)
        self.key = nn.Linear(features, heads * width, bias=False)
        self.value = nn.Linear(features, heads * width, bias=False)
        self.own_value = nn.Linear(features, heads * width, bias=False)
        self.edge_key = nn.Parameter(torch.randn(heads, width, edge_features) * edge_features**-0.5)
        self.edge_value = nn.Parameter(torch.randn(heads, edge_features, width) * edge_features**-0.5)
        self.last = nn.Linear(heads * width, features, bias=False)
        self.norm = nn.LayerNorm(features)
        self.forth = FeedForward(features, BatchNorm(features))

    def forward(self, x: Tensor, edges: Tensor, graph: Neighbourhoods) -> tuple[Tensor, Tensor]:
        """Nodes (X, features), and the attention (B, Q, heads, K).

        Args:
            x: (X, features). edges: (B, Q, K, edge_features). graph: who sees whom.
        """
        query = graph.nodes(self.query(x)).unflatten(-1, (self.heads, self.width)) * self.width**-0.5
        key = graph.neighbours(self.key(x)).unflatten(-1, (self.heads, self.width))
        value = graph.neighbours(self.value(x)).unflatten(-1, (self.heads, self.width))
        of_edges = torch.einsum("bqhd,hdf->bqhf", query, self.edge_key) @ edges.mT
        logits = of_edges + (query.transpose(1, 2) @ key.permute(0, 2, 3, 1)).transpose(1, 2)
        # no infinity: an atom alone has no neighbour at all
        weights = logits.masked_fill(graph.absent, torch.finfo(logits.dtype).min).softmax(dim=-1)
        found = (weights.transpose(1, 2) @ value.transpose(1, 2)).transpose(1, 2)
        found = found + torch.einsum("bqhf,hfd->bqhd", weights @ edges, self.edge_value)
        hidden = graph.collect(found.flatten(2)) + self.own_value(x)
        return self.forth(x + self.norm(self.last(hidden))), weights


class EdgeUpdate(nn.Module):
    """e_ji + LN(W a_ji e'_ji), e' = W_e e, then a feed-forward network; each head scales its share of e'."""

    def __init__(self, edge_features: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.first = nn.Linear(edge_features, heads * width, bias=False)
        self.last = nn.Linear(heads * width, edge_features, bias=False)
        self.norm = nn.LayerNorm(edge_features)
        self.forth = FeedForward(edge_features, BatchNorm(edge_features))

    def forward(self, e: Tensor, weights: Tensor) -> Tensor:
        """(E, edge_features).

        Args:
            e: (E, edge_features). weights: (E, heads).
        """
        scaled = self.first(e).unflatten(1, (self.heads, self.width)) * weights[..., None]
        return self.forth(e + self.norm(self.last(scaled.flatten(1))))
