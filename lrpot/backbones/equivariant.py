"""An E(3)-equivariant network: features are tensors of every order up to lmax and of both parities.

Source: Batzner et al., Nature Communications 13, 2453 (2022) (NequIP), text and Fig. 1. Sums over neighbours are scaled
by the coordination number of each atom, a smooth one, where NequIP has the mean over the data set. All features of one
irrep are a block (N, 2 l + 1, F), and all products with harmonics that start from one irrep are one matrix per edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.backbones.coupling import Irrep, Product, name_of, product_matrix, spherical_harmonics
from lrpot.backbones.features import AtomFeatures
from lrpot.errors import ConfigError
from lrpot.smooth import taper
from lrpot.structure import MAX_ATOMIC_NUMBER

SCALAR: Irrep = (0, 1)
VECTOR: Irrep = (1, -1)

Blocks = dict[Irrep, Tensor]


class Equivariant(nn.Module):
    """Message passing by tensor products with spherical harmonics.

    Attributes:
        irreps_out: what the columns of `AtomFeatures.irreps` are, such as "32x0e+32x1o".
    """

    def __init__(
        self,
        features: int = 32,
        lmax: int = 1,
        interactions: int = 3,
        radial_basis: int = 8,
        radial_hidden: int = 64,
        tensors: bool = False,
        cutoff: float = 5.0,
    ) -> None:
        """
        Args:
            features: width F of every irrep.
            lmax: highest order of features and harmonics.
            interactions: number of message-passing steps.
            radial_basis: number of Bessel functions in the distance.
            radial_hidden: width of the network that makes the weights of the products.
            tensors: whether the last step keeps vectors and tensors; energies need scalars only.
            cutoff: A.
        Raises:
            ConfigError: a value out of range.
        """
        super().__init__()
        sizes = {"features": features, "interactions": interactions, "radial_basis": radial_basis}
        for name, value in {**sizes, "radial_hidden": radial_hidden, "lmax": lmax + 1}.items():
            if value < 1:
                raise ConfigError(f"equivariant: {name} is too small; raise it")
        self.features = features
        self.lmax = lmax
        self.cutoff = float(cutoff)
        self.radial_basis = radial_basis
        self.tensors = tensors
        steps = _irreps_of_steps(lmax, interactions, tensors)
        self.irreps = steps[-1]
        self.irreps_out = "+".join(f"{features}x{name_of(irrep)}" for irrep in self.irreps)
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, features)
        self.steps = nn.ModuleList(
            _Step(before, after, lmax, features, radial_basis, radial_hidden) for before, after in pairwise(steps)
        )

    def forward(self, batch: Data, vectors: Tensor) -> AtomFeatures:
        """Features of every atom.

        Args:
            batch: `numbers` (N,) and `edge_index` (2, E) are read.
            vectors: (E, 3), A, from centre to neighbour, no longer than the cutoff, in the precision of the weights.
        """
        distances = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        inside = taper(distances, self.cutoff)
        edges = _Edges(batch.edge_index, vectors / distances, self.lmax)
        radial = bessel(distances, self.radial_basis, self.cutoff) * inside
        coordination = inside.new_zeros(batch.numbers.shape[0], 1).index_add(0, edges.centre, inside)
        # a sum of messages that know nothing of each other grows as the root of their number; 1: no neighbours
        scale = torch.rsqrt(1.0 + coordination)[:, :, None]

        blocks = {SCALAR: self.embedding(batch.numbers)[:, None, :]}
        for step in self.steps:
            blocks = step(blocks, batch.numbers, edges, radial, scale)
        scalar = blocks[SCALAR][:, 0]
        if not self.tensors:
            return AtomFeatures(scalar, None)
        irreps = torch.cat([blocks[irrep].mT.flatten(1) for irrep in self.irreps], dim=1)
        return AtomFeatures(scalar, blocks.get(VECTOR), irreps)


def bessel(distances: Tensor, n: int, cutoff: float) -> Tensor:
    """Spherical Bessel functions of order 0 that vanish at the cutoff, with mean square 1 over the sphere.

    Args:
        distances: (E, 1), A, not zero.
        n: how many.
        cutoff: A.
    Returns:
        (E, n). Source: Gasteiger et al., ICLR 2020, Eq. 7, there with another norm.
    """
    waves = torch.arange(1, n + 1, dtype=distances.dtype, device=distances.device) * (math.pi / cutoff)
    return math.sqrt(2.0 / 3.0) * cutoff * torch.sin(waves * distances) / distances


class _Edges:
    """The edges of a batch, and the product matrices that all steps share."""

    def __init__(self, edge_index: Tensor, directions: Tensor, lmax: int) -> None:
        self.neighbour, self.centre = edge_index
        self.harmonics = spherical_harmonics(directions, lmax)
        self._matrices: dict[tuple[int, tuple[Product, ...]], Tensor] = {}

    def matrix(self, l1: int, products: tuple[Product, ...]) -> Tensor:
        key = (l1, products)
        if key not in self._matrices:
            self._matrices[key] = product_matrix(self.harmonics, l1, products)
        return self._matrices[key]


class Messages(nn.Module):
    """The products of neighbours' features with harmonics, weighted path by path and channel by channel, summed.

    It is e3nn's `TensorProduct` with "uvu" paths and external weights, followed by the sum over neighbours. A path is
    (irrep of the neighbour, order of the harmonic, irrep of the message).

    Attributes:
        paths: by irrep of the neighbour: the order of the harmonic and the irrep of the message, in the order in which
            the weights are laid out.
    """

    def __init__(self, before: Iterable[Irrep], after: Iterable[Irrep], lmax: int) -> None:
        super().__init__()
        self.paths = {irrep: _paths(irrep, after, lmax) for irrep in before}
        self.n_paths = sum(map(len, self.paths.values()))
        self.arriving = {irrep: sum(out == irrep for p in self.paths.values() for _, out in p) for irrep in after}

    def forward(self, blocks: Blocks, edges: _Edges, weights: Tensor) -> Blocks:
        """
        Args:
            blocks: (N, 2 l + 1, F) by irrep.
            edges: E of them.
            weights: (E, n_paths, F).
        Returns:
            (N, P, 2 l + 1, F) by irrep; P is the number of paths that arrive there.
        """
        sums: dict[Irrep, list[Tensor]] = {irrep: [] for irrep in self.arriving}
        first_path = 0
        for (order, parity), paths in self.paths.items():
            if not paths:
                continue
            neighbours = blocks[order, parity].index_select(0, edges.neighbour)
            matrix = edges.matrix(order, tuple((harmonic, out[0]) for harmonic, out in paths))
            # one column times one row is a product without a sum, for which torch.bmm is slow
            products = matrix * neighbours if order == 0 else torch.bmm(matrix, neighbours)
            first_row = 0
            for irrep in dict.fromkeys(out for _, out in paths):
                n, width = sum(out == irrep for _, out in paths), 2 * irrep[0] + 1
                rows = products[:, first_row : first_row + n * width].unflatten(1, (n, width))
                messages = rows * weights[:, first_path : first_path + n, None]
                empty = messages.new_zeros(blocks[order, parity].shape[0], *messages.shape[1:])
                sums[irrep].append(empty.index_add(0, edges.centre, messages))
                first_row, first_path = first_row + n * width, first_path + n
        return {irrep: torch.cat(parts, dim=1) for irrep, parts in sums.items()}


class _Step(nn.Module):
    """One message-passing step. Source: Batzner et al. 2022, Fig. 1b and c; gate: Weiler et al., NeurIPS 2018."""

    def __init__(
        self, before: list[Irrep], after: list[Irrep], lmax: int, features: int, radial_basis: int, radial_hidden: int
    ) -> None:
        super().__init__()
        self.features = features
        self.messages = Messages(before, after, lmax)
        self.radial = nn.Sequential(
            _linear(radial_basis, radial_hidden),
            _Activation(),
            _linear(radial_hidden, radial_hidden),
            _Activation(),
            _linear(radial_hidden, self.messages.n_paths * features),
        )
        self.gated = [irrep for irrep in after if irrep[0] > 0]
        widths = {irrep: features * (1 + len(self.gated)) if irrep == SCALAR else features for irrep in after}
        self.outgoing = nn.ModuleDict({name_of(irrep): _linear(features, features) for irrep in before})
        self.arriving = nn.ModuleDict(
            {name_of(irrep): _linear(self.messages.arriving[irrep] * features, widths[irrep]) for irrep in after}
        )
        self.own = nn.ModuleDict(
            {name_of(irrep): _linear(features, widths[irrep]) for irrep in after if irrep in before}
        )
        self.element = nn.ModuleDict({name: nn.Embedding(MAX_ATOMIC_NUMBER + 1, features) for name in self.own})
        self.activation = _Activation()

    def forward(self, blocks: Blocks, numbers: Tensor, edges: _Edges, radial: Tensor, scale: Tensor) -> Blocks:
        weights = self.radial(radial).unflatten(1, (self.messages.n_paths, self.features))
        outgoing = {irrep: self.outgoing[name_of(irrep)](block) for irrep, block in blocks.items()}
        sums = self.messages(outgoing, edges, weights)
        mixed = {}
        for irrep, arrived in sums.items():
            name = name_of(irrep)
            mixed[irrep] = self.arriving[name](arrived.transpose(1, 2).flatten(2)) * scale
            if name in self.own:
                mixed[irrep] = mixed[irrep] + self.own[name](blocks[irrep] * self.element[name](numbers)[:, None])
        gated = self._gate(mixed)
        return {irrep: block + blocks[irrep] if irrep in blocks else block for irrep, block in gated.items()}

    def _gate(self, blocks: Blocks) -> Blocks:
        """An activation of its own for each channel of a scalar; a tensor is scaled by a function of scalars."""
        scalar, gates = blocks[SCALAR].tensor_split([self.features], dim=2)
        gates = torch.sigmoid(gates)
        after = {}
        for irrep, block in blocks.items():
            if irrep == SCALAR:
                after[irrep] = self.activation(scalar)
            elif irrep[0] == 0:  # a pseudo-scalar: the activation must be odd, or its parity would be lost
                after[irrep] = torch.tanh(block)
            else:
                first = self.gated.index(irrep) * self.features
                after[irrep] = block * gates[:, :, first : first + self.features]
        return after


class _Activation(nn.Module):
    """SiLU, scaled so that inputs of unit variance give outputs of unit second moment."""

    def __init__(self) -> None:
        super().__init__()
        points, weights = np.polynomial.hermite_e.hermegauss(64)
        silu = points / (1.0 + np.exp(-points))
        self.scale = float((weights @ silu**2 / weights.sum()) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * nn.functional.silu(x)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Without a bias: a tensor must not have one, and the radial weights must vanish at the cutoff."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer


def _paths(irrep: Irrep, after: Iterable[Irrep], lmax: int) -> list[tuple[int, Irrep]]:
    """(order of the harmonic, irrep of the message) of all products that start from an irrep."""
    order, parity = irrep
    return [
        (harmonic, out)
        for out in after
        for harmonic in range(abs(order - out[0]), min(order + out[0], lmax) + 1)
        if out[1] == parity * (-1) ** harmonic
    ]


def _irreps_of_steps(lmax: int, interactions: int, tensors: bool) -> list[list[Irrep]]:
    """The irreps before the first step and after each: all that the elements reach and that reach the output."""
    every = [(order, parity * (-1) ** order) for order in range(lmax + 1) for parity in (1, -1)]
    reached = [[SCALAR]]
    for _ in range(interactions):
        reached.append([irrep for irrep in every if any(_paths(old, [irrep], lmax) for old in reached[-1])])
    needed = [reached[-1] if tensors else [SCALAR]]
    for irreps in reversed(reached[:-1]):
        # its own later self is one of them: a product with the harmonic of order 0
        needed.append([irrep for irrep in irreps if _paths(irrep, needed[-1], lmax)])
    return needed[::-1]
