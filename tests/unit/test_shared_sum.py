"""The reciprocal sum of a crystal whose atoms are divided: each process gets the energy and its own derivatives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lrpot.errors import ConfigError
from lrpot.kspace import GaussianCoulomb, ReciprocalSum
from tests.conftest import RandomCrystal

ROUNDING = 1e-12


def divided(parts: int, work: Callable[[int, Callable[[Tensor], Tensor]], Any]) -> list[Any]:
    """work(part, total) in threads that wait for each other where they sum."""
    barrier = threading.Barrier(parts, timeout=60)
    shared: list[Any] = [None] * parts
    found: list[Any] = [None] * parts

    def run(part: int) -> None:
        def total(values: Tensor) -> Tensor:
            shared[part] = values.detach().clone()
            barrier.wait()
            summed = torch.stack(shared).sum(dim=0)
            barrier.wait()
            return summed

        found[part] = work(part, total)

    threads = [threading.Thread(target=run, args=(part,)) for part in range(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("engine", ["separable", "nufft"])
@pytest.mark.parametrize("subtract_self", [False, True])
@pytest.mark.parametrize("bounds", [(0, 4, 9), (0, 0, 9), (0, 9)])
def test_parts_add_up(engine: str, subtract_self: bool, bounds: tuple[int, ...], random_crystal: RandomCrystal) -> None:
    """Also where one process has no atom, and where one has all."""
    crystal = random_crystal(3, 9)
    charges = torch.linspace(-1.0, 1.1, 18, dtype=torch.float64).reshape(9, 2)
    rsum = ReciprocalSum(GaussianCoulomb(sigma=1.0), 3.0, engine=engine, subtract_self=subtract_self)

    def inputs(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        return crystal.positions[rows].clone().requires_grad_(), charges[rows].clone().requires_grad_(), strain

    def moved(positions: Tensor, strain: Tensor) -> tuple[Tensor, Tensor]:
        deformation = torch.eye(3, dtype=torch.float64) + strain
        return positions @ deformation, crystal.cell @ deformation

    def part(n: int, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        positions, q, strain = inputs(slice(bounds[n], bounds[n + 1]))
        r, cell = moved(positions, strain)
        energy = rsum.shared(r, q, cell, 9 // (len(bounds) - 1), total, first=n == 0)
        return energy.detach(), *torch.autograd.grad(energy, (positions, q, strain))

    positions, q, strain = inputs(slice(None))
    r, cell = moved(positions, strain)
    whole = rsum(r, q, cell).sum()
    expected = torch.autograd.grad(whole, (positions, q, strain))
    found = divided(len(bounds) - 1, part)
    for energy, *_ in found:
        torch.testing.assert_close(energy, whole.detach(), rtol=ROUNDING, atol=ROUNDING)
    for n in (0, 1):
        torch.testing.assert_close(torch.cat([f[n + 1] for f in found]), expected[n], rtol=ROUNDING, atol=ROUNDING)
    summed = torch.stack([f[3] for f in found]).sum(dim=0)
    torch.testing.assert_close(summed, expected[2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("settings", [{"engine": "dense"}, {"neutrality": "shift"}, {"neutrality": "error"}])
def test_what_needs_all_charges_at_once_is_refused(settings: dict[str, str], random_crystal: RandomCrystal) -> None:
    crystal = random_crystal(3, 4)
    rsum = ReciprocalSum(GaussianCoulomb(sigma=1.0), 3.0, **settings)
    with pytest.raises(ConfigError, match="cannot be divided among processes; use one process"):
        rsum.shared(crystal.positions, crystal.positions[:, :1], crystal.cell, 4, lambda values: values, first=True)
