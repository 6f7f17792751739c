"""What is done about charges that do not add up to zero."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lrpot.errors import ConfigError, StructureError
from lrpot.kspace import GaussianCoulomb, ReciprocalSum
from lrpot.kspace.neutrality import check_neutral, net_charge, shift

INDEX = torch.tensor([0, 0, 0, 2, 2, 3])  # structure 1 has no atom
CHARGES = torch.tensor([[1.0, 0.5], [-0.5, 0.5], [0.2, -1.0], [2.0, 0.0], [1.0, 3.0], [-0.7, 0.1]], dtype=torch.float64)
CELL = torch.tensor([[5.0, 0.4, 0.0], [-0.8, 6.0, 0.3], [0.2, 0.5, 5.5]], dtype=torch.float64)


def crystal(net: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    charges = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    return torch.rand(7, 3, generator=generator, dtype=torch.float64) @ CELL, charges - charges.mean(dim=0) + net / 7.0


def summed(neutrality: str, engine: str = "separable") -> ReciprocalSum:
    return ReciprocalSum(GaussianCoulomb(1.0), 4.0, neutrality=neutrality, engine=engine)


def test_net_charge_by_structure_and_channel() -> None:
    expected = [[0.7, 0.0], [0.0, 0.0], [3.0, 3.0], [-0.7, 0.1]]
    torch.testing.assert_close(net_charge(CHARGES, INDEX, 4), torch.tensor(expected, dtype=torch.float64))


def test_shift_takes_off_the_mean_and_nothing_else() -> None:
    shifted = shift(CHARGES, INDEX, 4)
    assert float(net_charge(shifted, INDEX, 4).abs().max()) < 1e-15
    for g in (0, 2, 3):
        taken = (CHARGES - shifted)[g == INDEX]
        torch.testing.assert_close(taken, CHARGES[g == INDEX].mean(dim=0).expand_as(taken))
    torch.testing.assert_close(shift(shifted, INDEX, 4), shifted)


def test_shift_to_a_total() -> None:
    total = torch.tensor([1.0, 0.0, -2.0, 0.5], dtype=torch.float64)
    net = net_charge(shift(CHARGES, INDEX, 4, total), INDEX, 4)
    torch.testing.assert_close(net, total[:, None].expand(4, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_check_passes_rounding_and_no_more(dtype: torch.dtype) -> None:
    """A thousand charges that cancel leave the rounding of their sum."""
    generator = torch.Generator().manual_seed(1)
    charges = torch.randn(1000, 1, generator=generator, dtype=dtype)
    charges = torch.cat([charges, -charges])[torch.randperm(2000, generator=generator)]
    index = torch.zeros(2000, dtype=torch.int64)
    check_neutral(charges, index, 1)
    charges[5] += 0.1 if dtype == torch.float32 else 1e-9
    with pytest.raises(StructureError, match="charges add up to"):
        check_neutral(charges, index, 1)


def test_check_names_the_structure_and_its_charge() -> None:
    with pytest.raises(StructureError, match=r'structure 0: charges add up to 0\.7 e.*"error"'):
        check_neutral(CHARGES, INDEX, 4)
    with pytest.raises(StructureError, match=r"structure 2: charges add up to 3 e"):
        check_neutral(CHARGES * (INDEX != 0)[:, None], INDEX, 4)
    # channels that cancel each other are not neutral
    with pytest.raises(StructureError, match=r"structure 0: charges add up to 1 e"):
        check_neutral(torch.tensor([[1.0, -1.0]]), torch.tensor([0]), 1)
    with pytest.raises(StructureError, match=r"structure 0: charges add up to 2 e"):
        check_neutral(torch.tensor([[-2.0]]), torch.tensor([0]), 1)
    check_neutral(torch.zeros(3, 2), torch.tensor([0, 0, 1]), 2)


# --- in the sum


@pytest.mark.parametrize("engine", ["dense", "separable", "nufft"])
def test_shift_is_the_sum_of_shifted_charges(engine: str) -> None:
    positions, charges = crystal(net=1.5)
    neutral = charges - charges.mean(dim=0)
    shifting = summed("shift", engine)
    found, potential = shifting.energy_forces(positions, charges, CELL), shifting.potential(positions, charges, CELL)
    energy, forces = summed("background", engine).energy_forces(positions, neutral, CELL)
    assert found[0].item() == pytest.approx(energy.item(), rel=1e-12)
    torch.testing.assert_close(found[1], forces, rtol=1e-11, atol=1e-12)
    # a charge that is added is added to nothing: the potential sums up to zero
    assert float(potential.sum(dim=0).abs().max()) < 1e-10 * float(potential.abs().max())
    assert energy.item() != pytest.approx(summed("background", engine)(positions, charges, CELL).item(), rel=1e-3)


def test_background_leaves_charges_as_they_are() -> None:
    """Uniform, so it acts on nothing: only k = 0 is missing. A constant added to all charges does act."""
    positions, charges = crystal(net=1.5)
    k = torch.cartesian_prod(*[torch.arange(-6, 7, dtype=torch.float64)] * 3) @ (
        2.0 * math.pi * torch.linalg.inv(CELL).mT
    )
    length = torch.linalg.vector_norm(k, dim=1)
    k = k[(length > 1e-9) & (length < 4.0)]
    amplitude = torch.exp(-1j * (k @ positions.T).to(torch.complex128)) @ charges.to(torch.complex128)
    reciprocal = ReciprocalSum(GaussianCoulomb(1.0), 4.0)
    phi = reciprocal.phi(torch.linalg.vector_norm(k, dim=1))
    expected = (phi[:, None] * amplitude.abs() ** 2).sum() / torch.linalg.det(CELL)
    assert reciprocal(positions, charges, CELL).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("pbc", [[True] * 3, [True, True, False], [False] * 3])
def test_error_refuses_what_is_charged(pbc: list[bool]) -> None:
    flags = torch.tensor(pbc)
    positions, charges = crystal(net=0.0)
    neutral = summed("error")(positions, charges, CELL, pbc=flags)
    assert neutral.item() == pytest.approx(summed("background")(positions, charges, CELL, pbc=flags).item())
    with pytest.raises(StructureError, match="structure 0: charges add up to 1e-06 e"):
        summed("error")(positions, crystal(net=1e-6)[1], CELL, pbc=flags)


def test_names_that_are_not_known_are_refused() -> None:
    with pytest.raises(ConfigError, match="neutrality = 'none'; choose one of background, shift, error"):
        summed("none")
