"""The potential as a function of the charges: the derivative of the energy, whatever engine, boundary or blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lrpot.kspace import ReciprocalSum, nufft, separable
from lrpot.kspace.kernel import Kernel
from lrpot.kspace.taps import CompiledTaps, TensorTaps
from lrpot.structure import Structure, collate
from tests.unit.reciprocal_data import K_CUTOFF, by_channel, free, learned, without_table
from tests.unit.test_potential import SLABS, with_pbc

TOLERANCE = 1e-12  # relative to the largest potential
RandomCrystal = Callable[..., Structure]
BOUNDARIES = {
    "crystals": [[True] * 3] * 3,
    "slab": [SLABS[2]],
    "molecule": [[False] * 3],
    "all": [[True] * 3, SLABS[0], [False] * 3],
}


def batch_of(random_crystal: RandomCrystal, boundary: str) -> Structure:
    flags = BOUNDARIES[boundary]
    return collate([with_pbc(random_crystal(seed, 4 + seed, unwrapped=True), pbc) for seed, pbc in enumerate(flags)])


def compare(reciprocal: ReciprocalSum, batch: Structure, charges: Tensor) -> None:
    """With the derivative of the energy by autograd, for two sets of charges."""
    inputs = batch.positions, batch.cell, batch.batch, batch.pbc
    potential = reciprocal.potential_of(*inputs, charges.dtype)
    for scale in (1.0, -0.3):
        given = (scale * charges).requires_grad_()
        energy = reciprocal(batch.positions, given, *inputs[1:])
        (expected,) = torch.autograd.grad(energy.sum(), given)
        found = potential(given.detach())
        assert not found.requires_grad
        assert float((found - expected).abs().max()) < TOLERANCE * float(expected.abs().max())


def random_charges(batch: Structure, channels: int = 1) -> Tensor:
    return torch.randn(batch.num_nodes, channels, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("engine", ["separable", "nufft", "dense"])
@pytest.mark.parametrize("kernel", [learned, free, by_channel])
def test_potential_is_the_slope_of_the_energy(
    kernel: Callable[[], Kernel], engine: str, boundary: str, random_crystal: RandomCrystal
) -> None:
    batch = batch_of(random_crystal, boundary)
    reciprocal = ReciprocalSum(without_table(kernel()).requires_grad_(False), K_CUTOFF, engine=engine)
    compare(reciprocal, batch, random_charges(batch, 3 if kernel is by_channel else 2))


@pytest.mark.parametrize("boundary", ["crystals", "all"])
@pytest.mark.parametrize("neutrality", ["background", "shift"])
@pytest.mark.parametrize("subtract_self", [False, True])
def test_neutrality_and_self_energy(
    subtract_self: bool, neutrality: str, boundary: str, random_crystal: RandomCrystal
) -> None:
    batch = batch_of(random_crystal, boundary)
    kernel = without_table(learned()).requires_grad_(False)
    reciprocal = ReciprocalSum(kernel, K_CUTOFF, neutrality=neutrality, subtract_self=subtract_self)
    compare(reciprocal, batch, random_charges(batch, 2))


def test_while_the_kernel_is_trained(random_crystal: RandomCrystal) -> None:
    batch = batch_of(random_crystal, "all")
    compare(ReciprocalSum(without_table(learned()), K_CUTOFF), batch, random_charges(batch))


def test_blocks_of_phases(random_crystal: RandomCrystal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separable, "BLOCK", 1000)
    batch = collate([random_crystal(0, 9)])
    kernel = without_table(learned()).requires_grad_(False)
    compare(ReciprocalSum(kernel, K_CUTOFF, engine="separable"), batch, random_charges(batch, 2))


@pytest.mark.parametrize("taps", [CompiledTaps, TensorTaps])
def test_both_ways_of_the_mesh(taps: type, random_crystal: RandomCrystal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nufft, "CompiledTaps", taps)
    batch = collate([random_crystal(0, 9)])
    kernel = without_table(learned()).requires_grad_(False)
    compare(ReciprocalSum(kernel, K_CUTOFF, engine="nufft"), batch, random_charges(batch, 2))


def test_single_precision(random_crystal: RandomCrystal) -> None:
    batch = batch_of(random_crystal, "crystals")
    reciprocal = ReciprocalSum(learned().requires_grad_(False), K_CUTOFF)
    charges = random_charges(batch)
    double = reciprocal.potential_of(batch.positions, batch.cell, batch.batch, batch.pbc, torch.float64)(charges)
    single = reciprocal.potential_of(batch.positions, batch.cell, batch.batch, batch.pbc, torch.float32)(
        charges.float()
    )
    assert single.dtype == torch.float32
    assert 0 < float((single - double).abs().max()) < 1e-5 * float(double.abs().max())
