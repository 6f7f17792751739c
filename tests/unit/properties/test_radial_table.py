"""The table of a function of the distance is that function, with its gradients."""

from __future__ import annotations

import torch

from lrpot.properties.radial_table import RadialTable, interpolation
from lrpot.properties.regnet import NEAREST, POTENTIAL, ReGNet


def test_values_and_gradients_are_those_of_the_network() -> None:
    torch.manual_seed(0)
    network, layer = ReGNet(features=32, blocks=1).double(), torch.nn.Linear(32, 16).double()
    distances = torch.cat([torch.rand(500, dtype=torch.float64) * 9.0 + 0.5, torch.tensor([0.1, 30.0])])
    x = POTENTIAL / distances
    cotangent = torch.randn(len(x), 16, dtype=torch.float64)
    gradients, values = [], []
    for function in (
        lambda: RadialTable(network._edge_features, interpolation(x, NEAREST, 0.0, torch.float64))(layer),
        lambda: layer(network._edge_features(x)),
    ):
        found = function()
        values.append(found.detach())
        parameters = [*network.edge.parameters(), *layer.parameters()]
        gradients.append(torch.autograd.grad(found, parameters, cotangent))
    assert (values[0] - values[1]).abs().max() < 1e-5 * values[1].abs().max()
    for fast, slow in zip(*gradients, strict=True):
        assert (fast - slow).abs().max() < 1e-5 * slow.abs().max()


def test_rows_do_not_depend_on_the_other_edges() -> None:
    x = -torch.rand(50, dtype=torch.float64)
    alone, together = interpolation(x[:1], NEAREST, 0.0, torch.float64), interpolation(x, NEAREST, 0.0, torch.float64)
    assert torch.allclose(alone.x[alone.rows[0]], together.x[together.rows[0]], rtol=0, atol=1e-15)
    assert torch.allclose(alone.weights[0], together.weights[0], rtol=0, atol=1e-12)
