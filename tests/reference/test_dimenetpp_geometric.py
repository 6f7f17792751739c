"""Our DimeNet++ is torch_geometric's for a molecule, weight for weight: energies and forces.

torch_geometric's forward builds edges and triplets with packages of its own; here both come from plain loops, and its
basis functions get zeros of the Bessel functions that it would round to single precision.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.nn.models import dimenet, dimenet_utils

from lrpot.backbones import DimeNetPlusPlus
from lrpot.backbones.spherical_bessel import bessel_zeros
from lrpot.data.neighbours import add_edges
from lrpot.structure import Structure, edge_vectors, make_structure

CUTOFF = 3.0  # A; shorter than the molecule is long
FEATURES, INTERACTIONS, WIDTHS, ORDERS, RADIAL, EXPONENT = 12, 2, (8, 4, 16), 5, 3, 5
TOLERANCE = 1e-10  # relative to the largest number


def plain_edges(positions: Tensor, r: float, batch: None, max_num_neighbors: int) -> Tensor:
    n = len(positions)
    assert n <= max_num_neighbors
    distances = torch.cdist(positions.detach(), positions.detach())
    return torch.tensor([(j, i) for i in range(n) for j in range(n) if i != j and distances[i, j] < r]).T


def plain_triplets(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, ...]:
    edges = list(zip(*edge_index.tolist(), strict=True))
    found = [
        (i, j, k, kj, ji) for ji, (j, i) in enumerate(edges) for kj, (k, end) in enumerate(edges) if end == j and k != i
    ]
    return (edge_index[1], edge_index[0], *torch.tensor(found).T)


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[DimeNetPlusPlus, torch.nn.Module]]:
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(dimenet, "radius_graph", plain_edges)
        patch.setattr(dimenet, "triplets", plain_triplets)
        patch.setattr(dimenet_utils, "Jn_zeros", bessel_zeros)
        torch.manual_seed(2)
        theirs = dimenet.DimeNetPlusPlus(
            FEATURES,
            1,
            INTERACTIONS,
            *WIDTHS,
            ORDERS,
            RADIAL,
            cutoff=CUTOFF,
            envelope_exponent=EXPONENT,
            output_initializer="glorot_orthogonal",
        ).double()
        ours = DimeNetPlusPlus(FEATURES, INTERACTIONS, *WIDTHS, RADIAL, ORDERS, EXPONENT, CUTOFF).double()
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
        weights = dict(theirs.state_dict())
        # they know fewer elements
        rows = weights["emb.emb.weight"]
        weights["emb.emb.weight"] = torch.cat([rows, ours.emb.emb.weight.data[len(rows) :]])
        # they give one number per atom, ours FEATURES of them: the others stay random
        for name, value in ours.state_dict().items():
            if value.shape != weights[name].shape:
                assert name.endswith(".lin.weight")
                weights[name] = torch.cat([weights[name], value[1:]])
        ours.load_state_dict(weights)
        yield ours, theirs


def molecule() -> Structure:
    """Atoms 0 to 3 stand in a line; others at all angles, and an atom out of reach of most."""
    line = [[0.0, 0.0, 0.0], [1.3, 0.0, 0.0], [2.5, 0.0, 0.0], [3.6, 0.0, 0.0]]
    rest = np.random.default_rng(0).uniform((-1.0, 1.4, -0.5), (3.0, 5.4, 3.5), (4, 3))
    positions = np.vstack([line, rest, [[6.2, 0.4, 0.0]]])
    return make_structure([6, 7, 8, 1, 11, 17, 94, 6, 1], positions, np.zeros((3, 3)), [False] * 3)


@pytest.mark.parametrize("straight", [False, True])
def test_energy_and_forces_are_the_same(straight: bool, both: tuple[DimeNetPlusPlus, torch.nn.Module]) -> None:
    ours, theirs = both
    s = molecule()
    if not straight:
        s.positions[1:3, 1] += 0.05
    s = add_edges(s, CUTOFF)
    assert 0 < s.edge_index.shape[1] < s.num_nodes * (s.num_nodes - 1)
    s.positions.requires_grad_()
    energies = ours(s, edge_vectors(s)).scalar[:, 0].sum(), theirs(s.numbers, s.positions)[0]
    forces = [torch.autograd.grad(energy, s.positions)[0] for energy in energies]
    for one, other in (energies, forces):
        scale = float(other.detach().abs().max())
        assert scale > 1e-2
        assert float((one - other).detach().abs().max()) < TOLERANCE * scale
