"""Kernels and charges that the tests of the reciprocal sum share, and all first and second derivatives of a sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from lrpot.kspace import (
    FCN,
    Dispersion,
    FreeKernel,
    GaussianCoulomb,
    KernelByChannel,
    LearnedKernel,
    ReciprocalSum,
)
from lrpot.kspace.kernel import Kernel
from lrpot.structure import Structure, collate

K_CUTOFF = 6.0  # 1/A

KernelT = TypeVar("KernelT", bound=Kernel)


def learned(seed: int = 0, k_cutoff: float = K_CUTOFF) -> LearnedKernel:
    """Coulomb times a random factor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fcn = FCN(k_cutoff, basis=8, hidden=8).double()
        nn.init.normal_(fcn.last.weight)
    return LearnedKernel(GaussianCoulomb(0.6), fcn)


def free(seed: int = 0, k_cutoff: float = K_CUTOFF) -> FreeKernel:
    """A random function, as large at the cutoff as anywhere."""
    return FreeKernel(learned(seed, k_cutoff).fcn)


def by_channel(k_cutoff: float = K_CUTOFF) -> KernelByChannel:
    """For three channels: learned Coulomb, dispersion, a free function."""
    return KernelByChannel([learned(1, k_cutoff), Dispersion(0.4), free(2, k_cutoff)])


def without_table(kernel: KernelT) -> KernelT:
    """The same, evaluated itself wherever a table of it would be: for comparisons to rounding."""
    kernel.tabulated = lambda *_: kernel  # type: ignore[method-assign]
    return kernel


def charges_of(structure: Structure, n_channels: int = 1, seed: int = 0) -> Tensor:
    """(N, C), e, random; they do not add up to zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(structure.num_nodes, n_channels, generator=generator, dtype=torch.float64)


def relative(one: Tensor, other: Tensor) -> float:
    """The largest difference over the largest number."""
    return ((one - other).abs().max() / other.abs().max()).item()


@dataclass
class Inputs:
    """What a reciprocal sum takes: positions (N, 3), charges (N, C), cells (G, 3, 3), batch (N,)."""

    positions: Tensor
    charges: Tensor
    cell: Tensor
    batch: Tensor | None = None

    @property
    def index(self) -> Tensor:
        return torch.zeros(len(self.positions), dtype=torch.int64) if self.batch is None else self.batch


def inputs_of(structures: Structure | Sequence[Structure], n_channels: int = 1, seed: int = 0) -> Inputs:
    if isinstance(structures, Structure):
        return Inputs(structures.positions, charges_of(structures, n_channels, seed), structures.cell)
    batch = collate(list(structures))
    charges = torch.cat([charges_of(s, n_channels, seed + n) for n, s in enumerate(structures)])
    return Inputs(batch.positions, charges, batch.cell, batch.batch)


def strained(cell: Tensor, positions: Tensor, index: Tensor, strain: Tensor) -> tuple[Tensor, Tensor]:
    deformation = torch.eye(3, dtype=torch.float64) + 0.5 * (strain + strain.mT)
    return cell @ deformation, torch.einsum("na,nab->nb", positions, deformation[index])


def first_derivatives(reciprocal: ReciprocalSum, x: Inputs) -> dict[str, Tensor]:
    """Energies and, by plain autograd, forces, stress and the potential at each atom."""
    strain = torch.zeros_like(x.cell, requires_grad=True)
    positions, charges = x.positions.clone().requires_grad_(), x.charges.clone().requires_grad_()
    cell, moved = strained(x.cell, positions, x.index, strain)
    energy = reciprocal(moved, charges, cell, x.batch)
    slope, potential, virial = torch.autograd.grad(energy.sum(), [positions, charges, strain])
    stress = virial / torch.linalg.det(x.cell).abs()[:, None, None]
    return {"energy": energy.detach(), "forces": -slope, "potential": potential, "stress": stress}


def all_derivatives(reciprocal: ReciprocalSum, x: Inputs, *, second: bool = True) -> dict[str, Tensor]:
    """Energies, their gradient by positions, charges, cell and weights of the kernel, and the gradient of a random
    linear functional of all of these, which holds every second derivative."""
    generator = torch.Generator().manual_seed(7)
    weights = list(reciprocal.kernel.parameters())
    inputs = [x.positions.clone(), x.charges.clone(), x.cell.clone()]
    inputs = [value.requires_grad_() for value in inputs]
    energy = reciprocal(*inputs, x.batch)
    factor = torch.randn(len(energy), generator=generator, dtype=torch.float64)
    first = torch.autograd.grad((factor * energy).sum(), [*inputs, *weights], create_graph=second)
    names = ["positions", "charges", "cell"]
    found = {"energy": energy.detach(), **{name: value.detach() for name, value in zip(names, first, strict=False)}}
    found["weights"] = _flat(first[3:])
    if second:
        functional = sum(
            (torch.randn(value.shape, generator=generator, dtype=value.dtype) * value).sum() for value in first
        )
        # weights that the functional does not reach (a constant that cancels) have no gradient
        of_first = torch.autograd.grad(functional, [*inputs, *weights], materialize_grads=True, allow_unused=True)
        found |= {f"second by {name}": value for name, value in zip(names, of_first, strict=False)}
        found["second by weights"] = _flat(of_first[3:])
    return found


def _flat(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for value in values]) if values else torch.zeros(1)
