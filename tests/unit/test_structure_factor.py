"""The structure factor by phases of each axis against the plain sum, with first and second derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lrpot.kspace import k_lattice, reciprocal_cell, structure_factor, structure_factor_separable

TOLERANCE = 1e-12  # relative to the largest amplitude, float64
DRIFT = 1000.0  # A
DRIFT_TOLERANCE = 1e-10  # k.r = 7e3 keeps 12 of its 16 digits
K_CUTOFF = 7.0  # 1/A


def fractional(positions: Tensor, cell: Tensor) -> Tensor:
    f = positions @ torch.linalg.inv(cell)
    return f - torch.floor(f.detach())


def both(positions: Tensor, charges: Tensor, cell: Tensor, k_cutoff: float = K_CUTOFF) -> tuple[Tensor, Tensor]:
    lattice = k_lattice(cell, k_cutoff)
    kvectors = lattice.indices.to(cell.dtype) @ reciprocal_cell(cell)
    dense = structure_factor(positions, charges, kvectors)
    return structure_factor_separable(fractional(positions, cell), charges, lattice), dense


def random_charges(n_atoms: int, n_channels: int, seed: int = 0) -> Tensor:
    return torch.randn(n_atoms, n_channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("n_atoms", [1, 2, 9])
@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("unwrapped", [False, True])
def test_separable_equals_dense(
    n_channels: int, n_atoms: int, left_handed: bool, unwrapped: bool, random_crystal
) -> None:
    s = random_crystal(n_atoms, n_atoms, left_handed=left_handed, unwrapped=unwrapped)
    separable, dense = both(s.positions, random_charges(n_atoms, n_channels), s.cell[0])
    assert separable.shape == dense.shape
    assert separable.shape[1] == n_channels
    assert separable.dtype == dense.dtype == torch.complex128
    assert relative(separable, dense) < TOLERANCE


def test_dense_is_the_definition(random_crystal) -> None:
    s = random_crystal(1, 5)
    q = random_charges(5, 2)
    k = torch.tensor([[0.3, -1.2, 2.2], [0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.zeros(2, 2, dtype=torch.complex128)
    for j in range(5):
        for n in range(2):
            angle = sum(float(k[n, a] * s.positions[j, a]) for a in range(3))
            expected[n] += q[j] * complex(math.cos(angle), -math.sin(angle))
    torch.testing.assert_close(structure_factor(s.positions, q, k), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_drift_by_a_thousand_angstrom_turns_phases_alone(axis: int, random_crystal) -> None:
    s = random_crystal(3, 8)
    q = random_charges(8, 2)
    drift = torch.zeros(3, dtype=torch.float64)
    drift[axis] = DRIFT
    separable, dense = both(s.positions + drift, q, s.cell[0])
    assert relative(separable, dense) < DRIFT_TOLERANCE
    assert relative(separable.abs(), both(s.positions, q, s.cell[0])[0].abs()) < DRIFT_TOLERANCE


def test_whole_cells_change_nothing(random_crystal) -> None:
    s = random_crystal(4, 6)
    q = random_charges(6, 1)
    shifts = torch.randint(-40, 40, (6, 3), generator=torch.Generator().manual_seed(1)).double()
    moved = s.positions + shifts @ s.cell[0]
    assert relative(both(moved, q, s.cell[0])[0], both(s.positions, q, s.cell[0])[0]) < 100 * TOLERANCE


def test_gradients_of_both_are_equal(random_crystal) -> None:
    s = random_crystal(5, 6, unwrapped=True)
    weights = random_charges(len(k_lattice(s.cell[0], K_CUTOFF)), 2, seed=1)
    gradients = []
    for which in (0, 1):
        inputs = [x.clone().requires_grad_() for x in (s.positions, random_charges(6, 2), s.cell[0])]
        amplitude = both(*inputs)[which]
        power = amplitude.real**2 + 0.3 * amplitude.imag**2 + 0.1 * amplitude.real
        gradients.append(torch.autograd.grad((weights * power).sum(), inputs))
    for separable, dense in zip(*gradients, strict=True):
        assert relative(separable, dense) < TOLERANCE


@pytest.mark.parametrize("which", [0, 1], ids=["separable", "dense"])
@pytest.mark.parametrize("left_handed", [False, True])
def test_first_and_second_derivatives(which: int, left_handed: bool, random_crystal) -> None:
    s = random_crystal(2, 2, left_handed=left_handed)
    lattice = k_lattice(s.cell[0], 2.8)
    assert 3 <= len(lattice) <= 12

    def amplitude(positions: Tensor, charges: Tensor, cell: Tensor) -> Tensor:
        return torch.view_as_real(both(positions, charges, cell, 2.8)[which])

    inputs = [x.clone().requires_grad_() for x in (s.positions, random_charges(2, 2), s.cell[0])]
    assert torch.autograd.gradcheck(amplitude, inputs)
    assert torch.autograd.gradgradcheck(amplitude, inputs)


def test_float32_charges_keep_six_digits(random_crystal) -> None:
    s = random_crystal(6, 8)
    lattice = k_lattice(s.cell[0], K_CUTOFF)
    q = random_charges(8, 1)
    single = structure_factor_separable(fractional(s.positions, s.cell[0]).float(), q.float(), lattice)
    assert single.dtype == torch.complex64
    assert relative(single.to(torch.complex128), both(s.positions, q, s.cell[0])[1]) < 2e-5


def test_on_a_perfect_crystal_extinct_reflections_have_finite_gradients() -> None:
    # CsCl with equal charges is bcc: half of the amplitudes vanish
    cell = 4.1 * torch.eye(3, dtype=torch.float64)
    positions = torch.tensor([[0.0, 0.0, 0.0], [2.05, 2.05, 2.05]], dtype=torch.float64, requires_grad=True)
    separable, _ = both(positions, torch.ones(2, 1, dtype=torch.float64), cell)
    power = separable.real**2 + separable.imag**2
    assert int((power < 1e-20).sum()) > 10
    (gradient,) = torch.autograd.grad(power.sum(), positions)
    assert bool(torch.isfinite(gradient).all())
