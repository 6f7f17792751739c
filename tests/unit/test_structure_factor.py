"""The plain structure factor, with which the faster ways are compared: its definition, symmetries, derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lrpot.kspace import k_lattice, reciprocal_cell, structure_factor

TOLERANCE = 1e-12  # relative to the largest amplitude, float64
DRIFT = 1000.0  # A
DRIFT_TOLERANCE = 1e-10  # k.r = 7e3 keeps 12 of its 16 digits
K_CUTOFF = 7.0  # 1/A


def kvectors(cell: Tensor, k_cutoff: float = K_CUTOFF) -> Tensor:
    return k_lattice(cell, k_cutoff).indices.to(cell.dtype) @ reciprocal_cell(cell)


def random_charges(n_atoms: int, n_channels: int, seed: int = 0) -> Tensor:
    return torch.randn(n_atoms, n_channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def test_it_is_the_definition(random_crystal) -> None:
    s = random_crystal(1, 5)
    q = random_charges(5, 2)
    k = torch.tensor([[0.3, -1.2, 2.2], [0.0, 0.0, 0.0], [-0.3, 1.2, -2.2]], dtype=torch.float64)
    expected = torch.zeros(3, 2, dtype=torch.complex128)
    for n, j in [(n, j) for n in range(3) for j in range(5)]:
        angle = sum(float(k[n, a] * s.positions[j, a]) for a in range(3))
        expected[n] += q[j] * complex(math.cos(angle), -math.sin(angle))
    found = structure_factor(s.positions, q, k)
    assert found.dtype == torch.complex128
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    # at k = 0 it is the net charge, and at -k the conjugate
    torch.testing.assert_close(found[1].real, q.sum(dim=0), rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(found[2], found[0].conj(), rtol=TOLERANCE, atol=0)


def test_drift_by_a_thousand_angstrom_turns_phases_alone(random_crystal) -> None:
    s, q = random_crystal(3, 8), random_charges(8, 2)
    k = kvectors(s.cell[0])
    drift = torch.tensor([DRIFT, -DRIFT, 0.5 * DRIFT], dtype=torch.float64)
    here, there = structure_factor(s.positions, q, k), structure_factor(s.positions + drift, q, k)
    turned = torch.exp(-1j * (k @ drift))[:, None] * here
    assert relative(there, turned) < DRIFT_TOLERANCE
    assert relative(there, here) > 0.1


def test_whole_cells_change_nothing(random_crystal) -> None:
    s, q = random_crystal(4, 6), random_charges(6, 1)
    shifts = torch.randint(-40, 40, (6, 3), generator=torch.Generator().manual_seed(1)).double()
    k = kvectors(s.cell[0])
    moved = structure_factor(s.positions + shifts @ s.cell[0], q, k)
    assert relative(moved, structure_factor(s.positions, q, k)) < 100 * TOLERANCE


@pytest.mark.parametrize("left_handed", [False, True])
def test_first_and_second_derivatives(left_handed: bool, random_crystal) -> None:
    s = random_crystal(2, 2, left_handed=left_handed)
    assert 3 <= len(kvectors(s.cell[0], 2.8)) <= 12

    def amplitude(positions: Tensor, charges: Tensor, cell: Tensor) -> Tensor:
        return torch.view_as_real(structure_factor(positions, charges, kvectors(cell, 2.8)))

    inputs = [x.clone().requires_grad_() for x in (s.positions, random_charges(2, 2), s.cell[0])]
    assert torch.autograd.gradcheck(amplitude, inputs)
    assert torch.autograd.gradgradcheck(amplitude, inputs)


def test_float32_keeps_its_digits(random_crystal) -> None:
    s, q = random_crystal(6, 8), random_charges(8, 1)
    k = kvectors(s.cell[0])
    single = structure_factor(s.positions.float(), q.float(), k.float())
    assert single.dtype == torch.complex64
    assert 0 < relative(single.to(torch.complex128), structure_factor(s.positions, q, k)) < 2e-5
