"""Derivatives of features: against finite differences, twice, and at the cutoff."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor

from lrpot.errors import ContractError
from lrpot.structure import Structure, edge_vectors
from lrpot.testing.bench import Bench, gradient

# Limits are relative to the norm of the gradient.
GRADIENT = 1e-6  # central differences of a step of STEP
SECOND_GRADIENT = 1e-5  # the same of a quadratic function of gradients
STEP = 1e-5  # of unit vectors of directions

# Distances of the edge that is about to cross the cutoff, from it, in cutoffs.
NEAR_CUTOFF = (2e-3, 1e-3)
PROJECTIONS = 8  # one alone may happen to be zero there
NOTHING = 1e-12  # relative: influence that is rounding


def gradients(bench: Bench) -> float:
    """By autograd and by central differences, along a random direction."""
    s = bench.crystals[0]
    vectors = edge_vectors(s)
    direction = bench.random(vectors.shape)
    direction = direction / torch.linalg.vector_norm(direction)
    exact = gradient(bench, s)[1]
    ends = [bench.project(bench.run(s, vectors + sign * STEP * direction)) for sign in (1.0, -1.0)]
    numerical = (ends[0] - ends[1]) / (2.0 * STEP)
    scale = torch.linalg.vector_norm(exact).clamp_min(1e-300)
    return float((numerical - (exact * direction).sum()).abs() / scale)


def second_gradients(bench: Bench) -> float:
    """A loss of forces by the weights: by autograd and by central differences, along a random direction."""
    s, model = bench.crystals[0], copy.deepcopy(bench.model)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise ContractError("it has no weights to train")

    def loss(*, differentiable: bool) -> Tensor:
        vectors = edge_vectors(s).requires_grad_()
        (gradient,) = torch.autograd.grad(bench.project(model(s, vectors)), vectors, create_graph=differentiable)
        return (gradient**2).sum()

    exact = torch.autograd.grad(loss(differentiable=True), weights, allow_unused=True, materialize_grads=True)
    norm = math.sqrt(sum(float((g**2).sum()) for g in exact))
    direction = [bench.random(weight.shape) for weight in weights]
    length = math.sqrt(sum(float((d**2).sum()) for d in direction))
    direction = [d / length for d in direction]
    ends = []
    for moves in (1.0, -2.0):  # from the start to one side, from there to the other
        with torch.no_grad():
            for weight, d in zip(weights, direction, strict=True):
                weight.add_(moves * STEP * d)
        # without a graph, so that a gradient that is another one with it is found out
        ends.append(float(loss(differentiable=False)))
    numerical = (ends[0] - ends[1]) / (2.0 * STEP)
    analytic = sum(float((g * d).sum()) for g, d in zip(exact, direction, strict=True))
    return abs(numerical - analytic) / max(norm, 1e-300)


def decay_at_cutoff(bench: Bench) -> tuple[float, float]:
    """With which power of its distance from the cutoff an edge loses its influence on features and gradients.

    Two clusters whose only link is one pair of atoms; once with that edge and once without it.
    """
    rng = np.random.default_rng(bench.seed)
    cluster = np.array([[0.0, 0.0, 0.0], [0.45, 0.1, 0.2], [0.3, -0.4, -0.1]]) + 0.05 * rng.random((3, 3)) * [
        [0.0], [1.0], [1.0]
    ]  # fmt: skip
    numbers = [bench.elements[i % len(bench.elements)] for i in range(6)]
    influence = []
    for near in NEAR_CUTOFF:
        positions = np.concatenate([cluster * [-1.0, 1.0, 1.0], cluster + np.array([1.0 - near, 0.0, 0.0])])
        positions *= bench.cutoff
        linked = bench.with_edges(numbers, positions, np.zeros((3, 3)), periodic=False)
        across = (linked.edge_index < 3).sum(dim=0) == 1
        if int(across.sum()) != 2:
            raise AssertionError("the clusters have more than one link")
        apart = linked.clone()
        apart.edge_index, apart.edge_shift = linked.edge_index[:, ~across], linked.edge_shift[~across]
        with_edge, without = (_forces(bench, s) for s in (linked, apart))
        influence.append(
            [float((a - b).norm() / a.norm().clamp_min(1e-300)) for a, b in zip(with_edge, without, strict=True)]
        )
    far, close = influence
    return _order(far[0], close[0]), _order(far[1], close[1])


def _forces(bench: Bench, structure: Structure) -> tuple[Tensor, Tensor]:
    """PROJECTIONS functions of the features, and their gradients by the positions."""
    moved = structure.clone()
    moved.positions = moved.positions.clone().requires_grad_()
    output = bench.model(moved, edge_vectors(moved))
    values = torch.stack([bench.project(output, which) for which in range(PROJECTIONS)])
    gradients = [torch.autograd.grad(value, moved.positions, retain_graph=True)[0] for value in values]
    return values.detach(), torch.stack(gradients)


def _order(far: float, close: float) -> float:
    """p of an influence that goes like (distance from the cutoff)^p."""
    if close < NOTHING:
        return math.inf
    return math.log(far / close) / math.log(NEAR_CUTOFF[0] / NEAR_CUTOFF[1])
