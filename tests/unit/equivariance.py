"""What tests of equivariance share."""

from __future__ import annotations

from torch import Tensor

from lrpot.data.neighbours import add_edges
from lrpot.structure import Structure, make_structure

CUTOFF = 4.0  # A
TOLERANCE = 1e-10  # relative to the largest number


def rebuilt(s: Structure, *, numbers=None, positions=None, cell=None) -> Structure:
    numbers = s.numbers if numbers is None else numbers
    positions = s.positions if positions is None else positions
    return add_edges(make_structure(numbers, positions, s.cell[0] if cell is None else cell, [True] * 3), CUTOFF)


def assert_near(one: Tensor, other: Tensor, tolerance: float = TOLERANCE) -> None:
    assert one.shape == other.shape
    scale = float(other.abs().max())
    assert scale > 1e-3  # else everything would be near
    assert float((one - other).abs().max()) < tolerance * scale
