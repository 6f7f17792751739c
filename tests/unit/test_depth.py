"""How far a network sees is found for any of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.data import Data

from lrpot.backbones.depth import CHAIN, depth_of
from lrpot.backbones.features import AtomFeatures
from lrpot.errors import ConfigError
from tests.conftest import MakePotential


@pytest.mark.parametrize("name", ["painn", "equivariant"])
@pytest.mark.parametrize("interactions", [1, 3])
def test_each_step_of_messages_is_an_edge(name: str, interactions: int, make_potential: MakePotential) -> None:
    settings = {"name": name, "features": 8, "interactions": interactions, "cutoff": 3.5}
    model = make_potential("none", backbone=settings).requires_grad_(False)
    assert depth_of(model.short.backbone, [11, 17]) == interactions


def test_dimenet_sees_one_edge_more(make_potential: MakePotential) -> None:
    """Its first messages know both ends of their edge."""
    settings = {"name": "dimenet++", "features": 8, "interactions": 2, "cutoff": 3.5}
    model = make_potential("none", backbone=settings)
    assert depth_of(model.short.backbone, [11, 17]) == 3


class _SeesAll(nn.Module):
    cutoff, features = 4.0, 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, batch: Data, vectors: torch.Tensor) -> AtomFeatures:
        everything = (vectors**2).sum() * self.weight
        return AtomFeatures(everything.expand(len(batch.numbers), 2), None)


def test_a_network_that_sees_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"sees {CHAIN - 1} or more edges far"):
        depth_of(_SeesAll(), [11])
