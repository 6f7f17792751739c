"""The sum as it is written down, over all wave vectors and atoms at once: differentiable to any order, the oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from lrpot.kspace.lattice import k_lattice, reciprocal_cell
from lrpot.kspace.plan import Phi, volume_of
from lrpot.kspace.structure_factor import structure_factor
from lrpot.kspace.system import System


def dense_energy(system: System, phi: Phi, k_cutoff: float) -> Tensor:
    """The sum over wave vectors of every structure, in the precision of the charges.

    Args:
        system: the batch.
        phi: (K,) or (K, C) kernel with envelope, eV A^3/e^2, from (K,) wave numbers.
        k_cutoff: 1/A.
    Returns:
        (G,) float64, eV; zero for molecules.
    Raises:
        StructureError: a cell without volume, with no wave vector below the cutoff, or with too many.
    """
    energies = [system.positions.new_zeros(())] * len(system)
    for g, cell in enumerate(system.cells.unbind()):
        if g in system.molecules:
            continue
        volume_of(cell.detach(), g)  # refuses a cell that has none
        kvectors = k_lattice(cell, k_cutoff).indices.to(cell.dtype) @ reciprocal_cell(cell)
        amplitude = structure_factor(*system.of_structure(g), kvectors)
        power = (amplitude.real**2 + amplitude.imag**2).to(torch.float64)
        weights = phi(torch.linalg.vector_norm(kvectors, dim=1)).reshape(len(kvectors), -1)
        # one of each pair k, -k
        energies[g] = 2.0 / torch.linalg.det(cell).abs() * (weights.to(torch.float64) * power).sum()
    return torch.stack(energies)
