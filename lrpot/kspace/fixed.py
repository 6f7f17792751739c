"""The potential of charges that change, at atoms that stay where they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lrpot.kspace.plan import Plan
from lrpot.kspace.system import System


def potential_of(
    system: System, plan: Plan, matrix: Callable[[Tensor], Tensor], slab: Callable[[int, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """dE/dq as a function of the charges, with all that does not depend on them done once.

    Args:
        system: the batch. plan: of its crystals and boxes of slabs.
        matrix: (n, n) or (n, n, C), eV/e^2, the interactions within a molecule, from its (n, 3) positions.
        slab: (), eV, what the box of slab g lacks, from its (n, C) charges.
    Returns:
        (N, C), eV/e, from (N, C) charges in e; not differentiable.
    """
    fractional = system.fractional(plan.inverse)
    engines = [
        (part, part.engine.potential(part.of_atoms(fractional), part.weights.detach().to(fractional.dtype)))
        for part in plan.parts
    ]
    matrices = {g: matrix(system.of_structure(g)[0]) for g in system.molecules}

    @torch.no_grad()
    def potential(charges: Tensor) -> Tensor:
        found = torch.zeros_like(charges)
        for part, engine in engines:
            found[part.rows()] = engine(part.of_atoms(charges)).flatten(0, 1)
        for g, interactions in matrices.items():
            rows = system.rows(g)
            equation = "ij,jc->ic" if interactions.ndim == 2 else "ijc,jc->ic"
            found[rows] = torch.einsum(equation, interactions, charges[rows].to(interactions)).to(found)
        for g in system.slabs:
            rows = system.rows(g)
            # few numbers: the derivative of an energy is simple and fast enough
            with torch.inference_mode(False), torch.enable_grad():
                columns = charges[rows].clone().requires_grad_()
                (lacking,) = torch.autograd.grad(slab(g, columns), columns)
            found[rows] += lacking
        return found

    return potential
