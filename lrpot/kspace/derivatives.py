"""Energies with their first derivatives: by the engines themselves, the fast road of inference, or by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lrpot.kspace.derived import Derived
from lrpot.kspace.system import System


class Derivatives(NamedTuple):
    """
    Attributes:
        energy: (G,), float64, eV. forces: (N, 3), eV/A.
        potential: (N, C), eV/e, dE/dq.
        stress: (G, 3, 3), float64, eV/A^3, positive under tension; None where it was not asked for.
    """

    energy: Tensor
    forces: Tensor
    potential: Tensor
    stress: Tensor | None


def by_engines(system: System, derived: Derived, *, stress: bool) -> Derivatives:
    """Of a batch of crystals, whose engines give the gradient along with the energy; forces are in float64.

    Args:
        system: without molecules and slabs. derived: what follows from the kernel. stress: whether to compute it.
    Raises:
        StructureError: a cell without volume, with no wave vector below the cutoff, or with too many.
    """
    strain = None
    if stress:
        # a tensor made in inference mode cannot be differentiated
        with torch.inference_mode(False), torch.enable_grad():
            cells = system.cells.clone()
            strain = torch.zeros_like(cells, requires_grad=True)
            plan = derived.plan(system.with_cells(cells @ deformation(strain)))
    else:
        plan = derived.plan(system)
    with torch.no_grad():
        fractional = system.fractional(plan.inverse)
        found = [
            part.engine.evaluate(
                part.of_atoms(fractional), part.of_atoms(system.charges), part.weights.detach(), power=stress
            )
            for part in plan.parts
        ]
        if len(found) == 1 and plan.parts[0].atoms is None:
            energy, gradient = found[0]
            slope, potential = gradient.fractional.flatten(0, 1), gradient.charges.flatten(0, 1)
        else:
            energy = fractional.new_zeros(len(system), dtype=torch.float64)
            slope, potential = torch.zeros_like(fractional), torch.zeros_like(system.charges)
            for part, (one, gradient) in zip(plan.parts, found, strict=True):
                energy[part.structures] = one
                slope[part.rows()] = gradient.fractional.flatten(0, 1)
                potential[part.rows()] = gradient.charges.flatten(0, 1)
        forces = -system.slope(slope, plan.inverse)
    if strain is None:
        return Derivatives(energy, forces, potential, None)
    # positions in fractions of the cell stay under strain, so that the weights alone depend on it
    powers = [gradient.power for _, gradient in found]
    virial = torch.zeros_like(system.cells)
    if plan.parts:
        with torch.inference_mode(False):
            (virial,) = torch.autograd.grad([part.weights for part in plan.parts], strain, powers)
    return Derivatives(energy, forces, potential, virial / _volumes(system.cells))


def by_autograd(
    energies: Callable[..., Tensor],
    positions: Tensor,
    charges: Tensor,
    cell: Tensor,
    batch: Tensor | None,
    pbc: Tensor | None,
    *,
    stress: bool,
) -> Derivatives:
    """Of any batch, by differentiation of `energies`; arguments and errors as of `ReciprocalSum.forward`."""
    with torch.inference_mode(False), torch.enable_grad():
        cells = cell.reshape(-1, 3, 3).double().clone()
        positions, charges = positions.clone().requires_grad_(), charges.clone().requires_grad_()
        strain = torch.zeros_like(cells, requires_grad=True)
        deformed = deformation(strain)
        index = torch.zeros_like(positions[:, 0], dtype=torch.int64) if batch is None else batch
        moved = torch.einsum("na,nab->nb", positions.double(), deformed[index])
        inputs = [positions, charges, strain]
        energy = energies(moved, charges, cells @ deformed, batch, pbc)
        # the zero keeps the energy of no atoms, a constant, differentiable
        total = energy.sum() + sum(0.0 * x.sum() for x in inputs)
        slope, potential, virial = torch.autograd.grad(total, inputs)
    return Derivatives(energy.detach(), -slope, potential, virial / _volumes(cells) if stress else None)


def deformation(strain: Tensor) -> Tensor:
    """(..., 3, 3): what rows of positions and lattice vectors are multiplied with under a strain (..., 3, 3).

    The strain is made symmetric, so that nothing turns, and a derivative by it is symmetric too.
    """
    return torch.eye(3, dtype=strain.dtype, device=strain.device) + 0.5 * (strain + strain.mT)


def _volumes(cells: Tensor) -> Tensor:
    return torch.linalg.det(cells).abs()[:, None, None]
