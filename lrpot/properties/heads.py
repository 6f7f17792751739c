"""Heads: features of a crystal -> numbers for one or more targets.

`SharedHead` reads each target off the same features with a network of its own; `ExpertsHead` lets each target mix a few
of many networks (ReGNet-MT of Nie et al., 2025), with gates after Shazeer et al., ICLR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.errors import ConfigError
from lrpot.properties.features import CrystalFeatures
from lrpot.structure import batch_index

# Of the loss that keeps all experts in use, Shazeer's CV^2 of importance and of load.
BALANCE_WEIGHT = 0.01


class HeadOutput(NamedTuple):
    """What a head finds.

    Attributes:
        values: (G, T). balance: a number to be added to the loss; zero for heads without experts.
        gates: (G, T, experts), how much each target takes of each expert; None without experts.
    """

    values: Tensor
    balance: Tensor
    gates: Tensor | None = None


class TargetReadout(nn.Module):
    """One target: intensive, of the features of the crystal; or extensive, a sum over atoms."""

    def __init__(self, graph_features: int, atom_features: int, extensive: bool) -> None:
        """
        Args:
            graph_features, atom_features: widths. extensive: whether the target grows with the cell.
        """
        super().__init__()
        self.extensive = extensive
        width = graph_features + (atom_features if extensive else 0)
        last = nn.Linear(64, 1)
        # so that a fit begins at the mean of the training set
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, 64), nn.SiLU(), last)

    def forward(self, features: CrystalFeatures, batch: Data) -> Tensor:
        """(G,)."""
        if not self.extensive:
            return self.network(features.graph)[:, 0]
        index = batch_index(batch)
        own = features.graph[index]
        if features.atom is not None:
            own = torch.cat([features.atom, own], dim=1)
        each = self.network(own)[:, 0]
        return each.new_zeros(len(features.graph)).index_add(0, index, each)


class SharedHead(nn.Module):
    """A readout of its own for each target, on the same features."""

    def __init__(self, graph_features: int, atom_features: int, extensive: Sequence[bool]) -> None:
        """
        Args:
            graph_features, atom_features: widths (0 without features of atoms). extensive: of each target.
        """
        super().__init__()
        self.readouts = nn.ModuleList(TargetReadout(graph_features, atom_features, each) for each in extensive)

    def forward(self, features: CrystalFeatures, batch: Data) -> HeadOutput:
        values = torch.stack([readout(features, batch) for readout in self.readouts], dim=1)
        return HeadOutput(values, values.new_zeros(()))


class ExpertsHead(nn.Module):
    """Each target mixes the `top` experts that its own router ranks highest for a crystal.

    The largest logits are kept and softmaxed, so that gates add up to one. The printed order (`published=True`)
    softmaxes all logits and keeps the largest of those, which then add up to less.
    """

    def __init__(
        self,
        graph_features: int,
        atom_features: int,
        extensive: Sequence[bool],
        experts: int = 15,
        top: int = 4,
        widen: int = 3,
        published: bool = False,
    ) -> None:
        """
        Args:
            experts: how many. top: how many of them a target takes. widen: hidden width of an expert over its own.
            The others: as of `SharedHead`, and what is printed (see above).
        Raises:
            ConfigError: fewer than two experts; or a target is to take none, or more than there are.
        """
        if experts < 2:
            raise ConfigError(f"experts = {experts}: choose 2 or more, or head shared, which has none")
        if not 1 <= top <= experts:
            raise ConfigError(f"experts: top = {top}, but there are {experts}; choose 1 to {experts}")
        super().__init__()
        n, width, hidden = len(extensive), graph_features, widen * graph_features
        self.top = top
        self.published = published
        self.router = nn.Parameter(torch.zeros(n, width, experts))
        self.noise = nn.Parameter(torch.zeros(n, width, experts))
        self.first = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.first_bias = nn.Parameter(torch.zeros(experts, 1, hidden))
        self.second = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)
        self.second_bias = nn.Parameter(torch.zeros(experts, 1, width))
        self.readouts = nn.ModuleList(TargetReadout(width, atom_features, each) for each in extensive)

    def forward(self, features: CrystalFeatures, batch: Data) -> HeadOutput:
        gates, balance = self.gates(features.graph)
        hidden = nn.functional.silu(
            torch.baddbmm(self.first_bias, features.graph.expand(len(self.first), -1, -1), self.first)
        )
        outputs = torch.baddbmm(self.second_bias, hidden, self.second)
        mixed = torch.einsum("gte,egf->tgf", gates, outputs)
        values = [
            readout(features._replace(graph=features.graph + own), batch)
            for readout, own in zip(self.readouts, mixed, strict=True)
        ]
        return HeadOutput(torch.stack(values, dim=1), balance, gates)

    def gates(self, graph: Tensor) -> tuple[Tensor, Tensor]:
        """(G, T, experts) gates, zero but for the experts taken, and the loss of their balance."""
        clean = torch.einsum("gf,tfe->gte", graph, self.router)
        spread = nn.functional.softplus(torch.einsum("gf,tfe->gte", graph, self.noise)) + 1e-2
        logits = clean + torch.randn_like(clean) * spread if self.training else clean
        taken = logits.topk(self.top, dim=2)
        if self.published:
            kept = torch.softmax(logits, dim=2).gather(2, taken.indices)
        else:
            kept = torch.softmax(taken.values, dim=2)
        gates = torch.zeros_like(logits).scatter(2, taken.indices, kept)
        if not self.training:
            return gates, gates.new_zeros(())
        importance = _variation(gates.sum(dim=0))
        return gates, BALANCE_WEIGHT * (importance + _variation(self._load(clean, logits, spread)))

    def _load(self, clean: Tensor, noisy: Tensor, spread: Tensor) -> Tensor:
        """(T, experts): the expected number of crystals that take each expert, were its noise drawn again."""
        if self.top == noisy.shape[2]:
            return torch.ones_like(noisy).sum(dim=0)
        best = noisy.topk(self.top + 1, dim=2).values
        inside = noisy > best[..., self.top : self.top + 1]
        # what an expert must exceed: the last one that is taken, or, for those taken, the first one that is not
        threshold = torch.where(inside, best[..., self.top, None], best[..., self.top - 1, None])
        return torch.special.ndtr((clean - threshold) / spread).sum(dim=0)


def _variation(values: Tensor) -> Tensor:
    """Squared coefficient of variation over experts, mean over targets, of (T, experts)."""
    return (values.var(dim=1) / (values.mean(dim=1) ** 2 + 1e-10)).mean()
