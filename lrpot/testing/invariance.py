"""What must not change features: batches, order, rotation, wrapping, supercells; and atoms with few neighbours.

Each check returns a figure that must not exceed its limit, or raises ContractError.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrpot.backbones import AtomFeatures
from lrpot.backbones.coupling import spherical_harmonics
from lrpot.errors import ContractError
from lrpot.structure import Structure, collate, edge_vectors
from lrpot.testing.bench import Bench, check_finite, difference, gradient, larger, take

BLIND = 1e-6  # relative: a smaller answer to edges that shrink by up to a tenth is none


def sees_neighbours(bench: Bench) -> float:
    """The limit over the answer, so that a small figure is a good one."""
    s = bench.crystals[0]
    moved = edge_vectors(s) * (1.0 - 0.1 * torch.rand(s.edge_index.shape[1], 1, generator=bench.generator).double())
    return BLIND / max(difference(bench.run(s), bench.run(s, moved)), 1e-300)


def batch_is_single(bench: Bench) -> float:
    parts = [*bench.crystals, bench.lonely, bench.one_atom]
    together = bench.run(collate(parts))
    worst, first = 0.0, 0
    for part in parts:
        last = first + part.num_nodes
        worst = larger(worst, difference(bench.run(part), take(together, slice(first, last))))
        first = last
    return worst


def one_atom_cell(bench: Bench) -> float:
    """Only images of the atom itself are its neighbours; as two atoms in a doubled cell it is the same."""
    if bench.one_atom.edge_index.shape[1] == 0:
        raise AssertionError("the one-atom cell is too large")
    for values in gradient(bench, bench.one_atom):
        check_finite(values)
    return _doubled(bench, bench.one_atom)


def lonely_atom(bench: Bench) -> float:
    for values in gradient(bench, collate([bench.crystals[0], bench.lonely])):
        check_finite(values)
    return 0.0


def no_edges(bench: Bench) -> float:
    batch = collate([bench.lonely, bench.lonely])
    output = bench.run(batch)
    if tuple(output.scalar.shape) != (2, bench.features):
        raise ContractError(f"scalar features have shape {tuple(output.scalar.shape)}, expected (2, {bench.features})")
    for values in (output.scalar, *gradient(bench, batch)):
        check_finite(values)
    return 0.0


def permutation(bench: Bench) -> float:
    s = bench.crystals[0]
    order = torch.randperm(s.num_nodes, generator=bench.generator)
    other = bench.with_edges(s.numbers[order], s.positions[order], s.cell[0])
    return difference(take(bench.run(s), order), bench.run(other))


def order_of_edges(bench: Bench) -> float:
    s = bench.crystals[0]
    order = torch.randperm(s.edge_index.shape[1], generator=bench.generator)
    order = order[torch.argsort(s.edge_index[1, order], stable=True)]
    other = s.clone()
    other.edge_index, other.edge_shift = s.edge_index[:, order], s.edge_shift[order]
    return difference(bench.run(s), bench.run(other))


def _turned(bench: Bench, *, mirrored: bool) -> float:
    s = bench.crystals[0]
    turn = torch.linalg.qr(bench.random((3, 3)))[0]
    if (torch.linalg.det(turn) < 0) != mirrored:
        turn = -turn
    here = bench.run(s)
    there = bench.run(s, edge_vectors(s) @ turn)
    vector = None if here.vector is None else torch.einsum("naf,ab->nbf", here.vector, turn)
    irreps = None if here.irreps is None else here.irreps @ _wigner(bench, turn.T).T
    return difference(AtomFeatures(here.scalar, vector, irreps), there)


def _wigner(bench: Bench, turn: Tensor) -> Tensor:
    """(dim, dim): what a rotation or reflection (3, 3) of columns does to `irreps`.

    By what it does to the harmonics of many directions, for e3nn's own matrices are in single precision.
    """
    from e3nn import o3  # loads for more than a second; few backbones need it

    irreps = o3.Irreps(bench.model.irreps_out)
    sign = torch.linalg.det(turn).sign()
    lmax = max(irreps.ls)
    directions = torch.nn.functional.normalize(bench.random((10 * (lmax + 1) ** 2, 3)), dim=1)
    before, after = (spherical_harmonics(d, lmax) for d in (directions, directions @ (sign * turn).T))
    blocks = []
    for times, (order, parity) in irreps:
        columns = slice(order**2, (order + 1) ** 2)
        matrix = torch.linalg.lstsq(before[:, columns], after[:, columns]).solution.T
        blocks += [matrix if sign > 0 else parity * matrix] * times
    return torch.block_diag(*blocks)


def rotation(bench: Bench) -> float:
    return _turned(bench, mirrored=False)


def reflection(bench: Bench) -> float:
    return _turned(bench, mirrored=True)


def wrapping(bench: Bench) -> float:
    s = bench.crystals[0]
    whole = torch.randint(-3, 4, (s.num_nodes, 3), generator=bench.generator).double()
    moved = s.positions + whole @ s.cell[0] + bench.random((3,))
    return difference(bench.run(s), bench.run(bench.with_edges(s.numbers, moved, s.cell[0])))


def _doubled(bench: Bench, s: Structure) -> float:
    larger = bench.with_edges(
        s.numbers.repeat(2),
        torch.cat([s.positions, s.positions + s.cell[0, 0]]),
        s.cell[0] * torch.tensor([[2.0], [1.0], [1.0]], dtype=torch.float64),
    )
    return difference(take(bench.run(s), torch.arange(s.num_nodes).repeat(2)), bench.run(larger))


def supercell(bench: Bench) -> float:
    return _doubled(bench, bench.crystals[0])
