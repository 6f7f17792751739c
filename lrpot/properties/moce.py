"""MoCE: three networks of attention that see a crystal in different ways, and a gate that mixes them.

Source: "MoCE: Mixture of Experts Representation for Robust Crystal Material Property Prediction" (2025), with the
attention of Crystalformer (Taniai et al., ICLR 2024) that it builds on. Angles with the vectors of a cell and a choice
of the K best atoms of a cell, as printed, are no functions of the crystal; `variant` says which form is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.properties.angles import CellAngles, NeighbourAngles
from lrpot.properties.basis import Gaussians
from lrpot.properties.checks import INVARIANT, check_heads, check_variant
from lrpot.properties.elements import ElementEmbedding
from lrpot.properties.features import CrystalFeatures, mean_over_atoms
from lrpot.properties.images import Images
from lrpot.structure import batch_index

# How far an atom sees, A: Crystalformer's r_0; its b, of a widest r_0 / sqrt(b); its beta, how fast widths change.
NARROW, WIDEST, CHANGE = 1.4, 0.5, 0.1

# Of the dynamic graph as printed: atoms of the cell that an atom is connected to; the paper does not say how many.
TOP = 8

# Width of the network of the distance.
RADIAL = 32


class Attention(nn.Module):
    """Queries, keys and values of the atoms (N, heads, D), and what becomes of the heads."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first = nn.Linear(features, 3 * features)
        self.last = nn.Linear(features, features)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.first(x).unflatten(1, (3, self.heads, -1)).unbind(dim=1)
        return query, key, value

    def joined(self, heads: Tensor) -> Tensor:
        """(N, features) of (N, heads, D)."""
        return self.last(heads.flatten(1))


class ImageAttention(Attention):
    """sum_jn a_ijn (v_j + W e_ijn) over all images n, a = softmax(q_i.k_j / sqrt(D) - Theta(r_ijn^2) / 2 sigma_i^2).

    Of the angular expert Theta is r^2, and e are Gaussians of the distance and angles. The distance expert has no e,
    and Theta is learned; it is never negative, so that what is far away never counts more than what is near.
    """

    def __init__(self, features: int, heads: int, encoding: int, learned_distance: bool) -> None:
        """
        Args:
            encoding: width of e. learned_distance: whether Theta is learned from e, in place of values that see it.
        """
        super().__init__(features, heads)
        self.width = nn.Linear(features, heads)
        self.theta: nn.Module | None = None
        self.encode: nn.Parameter | None = None
        if learned_distance:
            self.theta = nn.Sequential(nn.Linear(encoding, RADIAL), nn.SiLU(), nn.Linear(RADIAL, heads), nn.Softplus())
            self.slope = nn.Parameter(torch.full((heads,), 1.0).expm1().log())  # softplus of it is 1
        else:
            self.encode = nn.Parameter(torch.randn(heads, encoding, features // heads) * encoding**-0.5)

    def forward(self, x: Tensor, images: Images, encoding: Tensor) -> Tensor:
        """(N, features).

        Args:
            x: (N, features), normalised. encoding: e (N, M, `encoding`).
        """
        query, key, value = self.parts(x)
        reach = nn.functional.elu(CHANGE / (1.0 - WIDEST) * self.width(x)) * (1.0 - WIDEST) + 1.0
        square = images.distance[:, :, None] ** 2
        if self.theta is not None:
            square = nn.functional.softplus(self.slope) * square + self.theta(encoding)
        logits = images.of_images(images.scores(query, key)) - square * reach[:, None] / (2.0 * NARROW**2)
        weights = torch.softmax(logits + images.log_weight[:, :, None], dim=1)
        found = images.weighted(images.of_pairs(weights), value)
        if self.encode is not None:
            # linear in e: its mean over the images comes before the product with the weights
            found = found + torch.einsum("nhe,hed->nhd", weights.mT @ encoding, self.encode)
        return self.joined(found)


class DynamicGraph(Attention):
    """Attention between the atoms of a crystal wherever they are, of which weak connections are dropped.

    a_ij = alpha / n + (1 - alpha) relu(s_ij - threshold) / sum_j relu(s_ij - threshold), s_ij the softmax of
    q_i.k_j / sqrt(D) over its largest value. Copies of an atom in a larger cell share what one had. It knows elements
    and no positions: what an atom is like for what there is in the crystal.

    As printed, alpha + (1 - alpha) sigmoid(softmax) of the `TOP` largest is taken, which changes with the cell.
    """

    def __init__(self, features: int, heads: int, threshold: float, published: bool) -> None:
        """
        Args:
            threshold: share of the strongest connection of an atom below which another is dropped.
        """
        super().__init__(features, heads)
        self.threshold = threshold
        self.published = published
        self.static = nn.Parameter(torch.zeros(heads))  # alpha = sigmoid of it

    def forward(self, x: Tensor, images: Images, encoding: Tensor) -> Tensor:
        """(N, features), of x (N, features), normalised; `encoding` is not needed."""
        query, key, value = self.parts(x)
        graph = [self._connected(scores) for scores in images.scores(query, key)]
        return self.joined(images.weighted(graph, value))

    def _connected(self, scores: Tensor) -> Tensor:
        """(G', n, n, H), how much each atom takes of each, from the scores."""
        alpha, n = torch.sigmoid(self.static), scores.shape[2]
        if self.published:
            fused = alpha + (1.0 - alpha) * torch.sigmoid(torch.softmax(scores, dim=2))
            best = fused.topk(min(TOP, n), dim=2)
            return torch.zeros_like(fused).scatter(2, best.indices, best.values)
        kept = torch.relu(torch.exp(scores - scores.amax(dim=2, keepdim=True)) - self.threshold)
        # the strongest connection is kept: the sum is never zero
        return alpha / n + (1.0 - alpha) * kept / kept.sum(dim=2, keepdim=True)


class Block(nn.Module):
    """x + attention(norm(x)), then x + network(norm(x)) with a hidden layer four times as wide."""

    def __init__(self, features: int, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.norm = nn.LayerNorm(features)
        self.network = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, 4 * features), nn.SiLU(), nn.Linear(4 * features, features)
        )

    def forward(self, x: Tensor, images: Images, encoding: Tensor) -> Tensor:
        """(N, features); `encoding` (N, M, ...) is that of the expert."""
        x = x + self.attention(self.norm(x), images, encoding)
        return x + self.network(x)


class MoCE(nn.Module):
    """Three stacks of blocks on the same atoms, and the mean of what they find, weighted by a gate for each crystal.

    Attributes:
        experts: what the stacks are called, in the order of `CrystalFeatures.gates`.
    """

    experts = ("angles", "distances", "dynamic graph")

    def __init__(
        self,
        features: int = 128,
        heads: int = 8,
        blocks: int = 4,
        reach: float = 8.0,
        basis: int = 64,
        degree: int = 5,
        threshold: float = 0.1,
        variant: str = "invariant",
    ) -> None:
        """
        Args:
            features: width, a multiple of `heads`. blocks: of each expert. reach: A, of the farthest image.
            basis: Gaussians in the distance. degree: highest order of Legendre polynomials of angles.
            threshold: see `DynamicGraph`.
            variant: "invariant", or "published": angles with the vectors of the cell and the printed dynamic graph.
        """
        check_variant("moce", variant, (INVARIANT, "published"))
        check_heads("moce", features, heads)
        super().__init__()
        published = variant != INVARIANT
        self.features = self.atom_features = features
        self.shells, self.cutoff, self.wave_cutoff = None, float(reach), None
        self.embedding = ElementEmbedding(features)
        self.basis = Gaussians(0.0, reach, basis)
        self.angles = CellAngles() if published else NeighbourAngles(features, degree)
        encoding = basis + self.angles.size
        self.stacks = nn.ModuleList(
            nn.ModuleList(Block(features, attention) for attention in stack)
            for stack in (
                [ImageAttention(features, heads, encoding, learned_distance=False) for _ in range(blocks)],
                [ImageAttention(features, heads, basis, learned_distance=True) for _ in range(blocks)],
                [DynamicGraph(features, heads, threshold, published) for _ in range(blocks)],
            )
        )
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in self.stacks)
        self.gate = nn.Sequential(
            nn.Linear(len(self.stacks) * features, features), nn.SiLU(), nn.Linear(features, len(self.stacks))
        )

    def forward(self, batch: Data) -> CrystalFeatures:
        """Features (G, `features`) of the crystals and (N, `features`) of the atoms, and gates (G, 3).

        Args:
            batch: crystals with all edges up to the reach.
        """
        first = self.embedding(batch.numbers)
        images = Images(batch, self.cutoff, first.dtype)
        radial = self.basis(images.distance)
        encodings = (torch.cat([radial, self.angles(first, images, batch)], dim=2), radial, radial)
        atoms = []
        for stack, norm, encoding in zip(self.stacks, self.norms, encodings, strict=True):
            x = first
            for block in stack:  # type: ignore[attr-defined]
                x = block(x, images, encoding)
            atoms.append(norm(x))
        gates = torch.softmax(self.gate(torch.cat([mean_over_atoms(own, batch) for own in atoms], dim=1)), dim=1)
        # the same whether mixed before the mean over atoms or after it
        mixed = torch.einsum("ne,nef->nf", gates[batch_index(batch)], torch.stack(atoms, dim=1))
        return CrystalFeatures(mean_over_atoms(mixed, batch), mixed, gates)
