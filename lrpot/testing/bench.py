"""The backbone under test, the crystals that it sees, and how features are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.backbones import AtomFeatures
from lrpot.data.neighbours import add_edges
from lrpot.errors import ContractError
from lrpot.structure import Structure, edge_vectors, make_structure

SAME = 1e-10  # relative to the largest feature: the same sums in another order

NOISE = 0.1  # standard deviation of what is added to every weight
NEIGHBOURS = 14.0  # of an atom within the cutoff, on average
NEAREST = 0.4  # of the cutoff: no two atoms of a crystal are closer


class Bench:
    """The backbone under test with noise on its weights, and crystals of its size."""

    def __init__(self, make: Callable[[], nn.Module], elements: tuple[int, ...], seed: int) -> None:
        self.make = make
        self.elements = elements
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = make().double().eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(NOISE * self.random(parameter.shape))
        self.cutoff, self.features = attributes(self.model)
        self.crystals = [self.crystal(n, seed + n) for n in (5, 3)]
        self.one_atom = self.crystal(1, seed)
        self.lonely = self.with_edges(elements[:1], np.zeros((1, 3)), np.zeros((3, 3)), periodic=False)

    def random(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)

    def crystal(self, n: int, seed: int) -> Structure:
        """n atoms in a random triclinic cell, with edges."""
        rng = np.random.default_rng(seed)
        cell = np.diag(rng.uniform(0.9, 1.1, 3)) @ (np.eye(3) + np.tril(rng.uniform(-0.3, 0.3, (3, 3)), -1))
        volume = n * 4.0 / 3.0 * np.pi * self.cutoff**3 / NEIGHBOURS
        cell = cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
        cell *= (volume / abs(np.linalg.det(cell))) ** (1 / 3)
        images = np.array(list(product((-1, 0, 1), repeat=3))) @ cell
        positions = np.empty((0, 3))
        while len(positions) < n:
            new = rng.random(3) @ cell
            nearest = np.linalg.norm(new + images[:, None] - positions, axis=2).min(initial=np.inf)
            if nearest > NEAREST * self.cutoff:
                positions = np.vstack([positions, new])
        return self.with_edges([self.elements[i % len(self.elements)] for i in range(n)], positions, cell)

    def with_edges(
        self, numbers: Sequence[int] | Tensor, positions: object, cell: object, *, periodic: bool = True
    ) -> Structure:
        return add_edges(make_structure(numbers, positions, cell, [periodic] * 3), self.cutoff)

    def run(self, batch: Data, vectors: Tensor | None = None) -> AtomFeatures:
        with torch.no_grad():
            return self.model(batch, edge_vectors(batch) if vectors is None else vectors)

    def project(self, features: AtomFeatures, which: int = 0) -> Tensor:
        """(), a random function of all features; `which` of many. Atoms weigh differently: in a plain sum what an edge
        gives to both its ends may cancel.
        """
        generator = torch.Generator().manual_seed(self.seed + which)
        total = features.scalar.new_zeros(())
        for values in features:
            if values is not None:
                weights = torch.randn(values.shape, generator=generator, dtype=torch.float64)
                total = total + (weights.to(values) * values).sum()
        return total


def attributes(model: nn.Module) -> tuple[float, int]:
    cutoff, features = getattr(model, "cutoff", None), getattr(model, "features", None)
    if not isinstance(cutoff, float) or not cutoff > 0.0:
        raise ContractError(f"attribute cutoff is {cutoff!r}; set self.cutoff to a positive float, A")
    if not isinstance(features, int) or features < 1:
        raise ContractError(f"attribute features is {features!r}; set self.features to the width, a positive int")
    return cutoff, features


def difference(one: AtomFeatures, other: AtomFeatures) -> float:
    """The largest difference of two sets of features, relative to the largest feature."""
    worst = 0.0
    for name, a, b in zip(AtomFeatures._fields, one, other, strict=True):
        if a is None or b is None:
            if a is not b:
                raise ContractError(f"it has {name} features at one time and none at another")
            continue
        if a.shape != b.shape:
            raise ContractError("its features have another shape the second time")
        if a.numel():
            # crystals of high symmetry have vectors and tensors of zero, which are compared with the scalars' size
            scale = float(torch.maximum(a.abs().max(), one.scalar.abs().max()))
            worst = larger(worst, float((a.double() - b.double()).abs().max()) / max(scale, 1e-300))
    return worst


def larger(a: float, b: float) -> float:
    """The larger one; not a number if either is not."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def take(features: AtomFeatures, atoms: Tensor | slice) -> AtomFeatures:
    return AtomFeatures._make(None if values is None else values[atoms] for values in features)


def check_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ContractError("features or gradients are not finite")


def gradient(bench: Bench, batch: Data) -> tuple[Tensor, Tensor]:
    """The projected features and their gradient by the edge vectors."""
    vectors = edge_vectors(batch).detach().requires_grad_()
    total = bench.project(bench.model(batch, vectors)) + 0.0 * vectors.sum()
    (gradient,) = torch.autograd.grad(total, vectors)
    return total.detach(), gradient
