"""How many edges away a backbone sees."""

from __future__ import annotations

import math

import torch
from torch import nn

from lrpot.data.neighbours import add_edges
from lrpot.errors import ConfigError
from lrpot.structure import edge_vectors, make_structure

# Atoms of the chain; a network that sees to its end may see farther.
CHAIN = 12
# Of its bonds, in cutoffs: atoms two bonds apart, at an angle of 120 degrees, are no neighbours any more.
BOND = 0.6


def depth_of(backbone: nn.Module, elements: list[int]) -> int:
    """How many edges away an atom can lie and still change the scalar features of another: the steps of its messages.

    It is found by differentiation, so that it holds for any backbone: in a zigzag chain of atoms, of which only
    neighbours share an edge, the features of the first depend on this many others.

    Args:
        backbone: see `lrpot.backbones`. elements: atomic numbers, of which the chain is made.
    Raises:
        ConfigError: the end of the chain is still seen.
    """
    steps = torch.arange(CHAIN, dtype=torch.float64)
    bond = BOND * float(backbone.cutoff)  # type: ignore[arg-type]
    zeros = torch.zeros_like(steps)
    positions = torch.stack([steps * math.cos(math.pi / 6), (steps % 2) * 0.5, zeros], dim=1) * bond
    numbers = [elements[n % len(elements)] for n in range(CHAIN)]
    chain = add_edges(make_structure(numbers, positions, torch.zeros(3, 3), [False] * 3), backbone.cutoff)  # type: ignore[arg-type]
    weight = next(backbone.parameters())
    chain = chain.to(weight.device)
    with torch.enable_grad():
        chain.positions.requires_grad_()
        first = backbone(chain, edge_vectors(chain).to(weight.dtype)).scalar[0]
        # weights that are all different, so that no features cancel
        seed = torch.linspace(0.5, 1.5, len(first), dtype=first.dtype, device=first.device)
        (slope,) = torch.autograd.grad((seed * first).sum(), chain.positions)
    depth = int(slope.abs().sum(dim=1).nonzero().max())
    if depth == CHAIN - 1:
        raise ConfigError(f"the network sees {depth} or more edges far; how far is not known, so use one process")
    return depth
