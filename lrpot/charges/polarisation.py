"""Dipoles of charges, and how they change when an atom moves: Born effective charges.

With P_a = sum_j q_j r_ja of charges q(R),

    Z_iab = dP_a / dr_ib = q_i delta_ab + sum_j (r_j - r_i)_a dq_j / dr_ib

where the moving atom is the origin, which matters only where the charges add up to something else after the move than
before. In what repeats, r_j - r_i is the nearest image, the mean of them if several are equally near: what assumes that
a charge hardly depends on an atom half a cell away.

Source: Gonze and Lee, Phys. Rev. B 55, 10355 (1997), Eq. 9 (Z as a derivative of the polarisation); the acoustic sum
rule: Pick, Cohen, Martin, Phys. Rev. B 1, 910 (1970).
"""

from __future__ import annotations

import numpy as np
import torch
from ase.geometry import complete_cell
from ase.geometry.minkowski_reduction import minkowski_reduce
from torch import Tensor
from torch_geometric.data import Data

from lrpot.charges.model import ChargeModel
from lrpot.data.labels import open_directions
from lrpot.errors import StructureError
from lrpot.structure import batch_index

# Images whose distances differ by less than this (A) are equally near.
EQUALLY_NEAR = 1e-6


def dipoles(batch: Data, charges: Tensor) -> Tensor:
    """Dipole of each structure along its open directions, about the mean of its positions.

    Args:
        batch: structures.
        charges: (N,), e.
    Returns:
        (G, 3), e A: the components that the label `dipole` has; zero along directions that are not open.
    """
    index = batch_index(batch)
    zeros = batch.positions.new_zeros(len(batch.cell), 3)
    positions = batch.positions.detach()
    counts = torch.bincount(index, minlength=len(batch.cell))[:, None]
    centred = positions - (zeros.index_add(0, index, positions) / counts)[index]
    whole = zeros.index_add(0, index, charges.to(positions.dtype)[:, None] * centred)
    cells, pbc = batch.cell.detach().cpu().numpy(), batch.pbc.cpu().numpy()
    directions = np.stack([open_directions(cell, flags) for cell, flags in zip(cells, pbc, strict=True)])
    return torch.einsum("gab,gb->ga", torch.from_numpy(directions).to(whole), whole)


def charge_quantities(batch: Data, output: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the output of a potential says of the labels of charges: charges (N,), dipole (G, 3), born_charges
    (N, 3, 3); without what it lacks, and without dipoles where nobody has labels of them."""
    if "charges" not in output:
        return {}
    charges = output["charges"][:, 0]
    found = {"charges": charges}
    if "dipole" in batch:
        found["dipole"] = dipoles(batch, charges)
    if "born_charges" in output:
        found["born_charges"] = output["born_charges"]
    return found


def has_born_charges(model: type[ChargeModel], neutrality: str, pbc: Tensor) -> bool:
    """Whether charges of this kind determine the Born charges of structures.

    Args:
        model, neutrality: the kind. pbc: (G, 3) bool.
    """
    return model.is_local(neutrality) or not bool(pbc.any())


def check_born_charges(model: type[ChargeModel], neutrality: str, pbc: Tensor) -> None:
    """Refuse structures where they do not.

    Args:
        model, neutrality, pbc: see `has_born_charges`.
    Raises:
        StructureError: charges that answer everywhere at once, in a structure that repeats.
    """
    if not has_born_charges(model, neutrality, pbc):
        raise StructureError(
            "Born charges of a structure that repeats need charges that depend on near atoms only; those of this model "
            "flow through the whole cell, and the dipole that this makes has no origin there: set pbc to False for a "
            "molecule, or choose charges.kind = embedding or environment with neutrality = background"
        )


def born_charges(
    model: ChargeModel, batch: Data, charges: Tensor, positions: Tensor, *, of: Tensor, create_graph: bool = False
) -> Tensor:
    """Born effective charges from charges that are a differentiable function of positions.

    What does not repeat takes four backward passes, what repeats as many as the largest structure has atoms; charges
    of the elements alone take none.

    Args:
        model: where the charges come from.
        batch: structures.
        charges: (N,), e. positions: (N, 3), A, what they were computed from.
        of: (G,) bool, which structures.
        create_graph: keep the result differentiable by the parameters.
    Returns:
        (N, 3, 3) float64, e, [i, a, b] = dP_a / dr_ib; nan for atoms of other structures.
    Raises:
        StructureError: see `check_born_charges`.
    """
    check_born_charges(type(model), model.neutrality, batch.pbc[of])
    index, charges = batch_index(batch), charges.to(positions.dtype)
    found = charges[:, None, None] * torch.eye(3).to(positions)
    if model.sees_surroundings:
        repeats = batch.pbc.any(dim=1)
        if bool((of & ~repeats).any()):
            flow = _flow_of_molecules(batch, charges, positions, create_graph=create_graph)
            found = found + flow.masked_fill(repeats[index][:, None, None], 0.0)
        if bool((of & repeats).any()):
            found = found + flow_by_atoms(batch, charges, positions, of=of & repeats, create_graph=create_graph)
    return found.masked_fill(~of[index][:, None, None], torch.nan)


def _flow_of_molecules(batch: Data, charges: Tensor, positions: Tensor, *, create_graph: bool) -> Tensor:
    """(N, 3, 3): sum_j (r_j - r_i)_a dq_j / dr_ib, in two terms, where no images are to be chosen."""
    index = batch_index(batch)
    fixed = positions.detach()
    counts = torch.bincount(index, minlength=len(batch.cell))[:, None]
    # about the middle, where the two terms cancel least
    middle = fixed.new_zeros(len(counts), 3).index_add(0, index, fixed) / counts
    fixed = fixed - middle[index]
    of_sum = _gradient(charges.sum(), positions, create_graph=create_graph)
    of_dipole = [_gradient((charges * fixed[:, a]).sum(), positions, create_graph=create_graph) for a in range(3)]
    return torch.stack(of_dipole, dim=1) - fixed[:, :, None] * of_sum[:, None, :]


def flow_by_atoms(batch: Data, charges: Tensor, positions: Tensor, *, of: Tensor, create_graph: bool = False) -> Tensor:
    """(N, 3, 3): the same sum, one j after the other, with nearest images; zero for structures outside `of` (G,)."""
    index, fixed = batch_index(batch), positions.detach()
    counts = torch.bincount(index, minlength=len(batch.cell))
    first = torch.cumsum(counts, 0) - counts
    images = {int(g): _Images(batch.cell[g], batch.pbc[g]) for g in of.nonzero()[:, 0]}
    found = fixed.new_zeros(len(fixed), 3, 3)
    for n in range(int(counts[of].max())):
        present = [g for g in images if n < int(counts[g])]
        atoms = first[present] + n
        gradient = _gradient(charges[atoms].sum(), positions, create_graph=create_graph)
        vectors = torch.zeros_like(fixed)
        for g, atom in zip(present, atoms.tolist(), strict=True):
            own = slice(int(first[g]), int(first[g] + counts[g]))
            vectors[own] = images[g].nearest(fixed[atom] - fixed[own])
        # other structures do not know this atom, but their own
        found = found + vectors[:, :, None] * gradient[:, None, :]
    return found


def acoustic_sum(batch: Data, tensors: Tensor) -> Tensor:
    """(G, 3, 3), e: what Born charges (N, 3, 3) add up to in each structure: its total charge, were they perfect."""
    return tensors.new_zeros(len(batch.cell), 3, 3).index_add(0, batch_index(batch), tensors)


class _Images:
    """Which image of a vector is the shortest, for any cell."""

    def __init__(self, cell: Tensor, pbc: Tensor) -> None:
        flags = pbc.cpu().numpy()
        whole = complete_cell(np.where(flags[:, None], cell.detach().cpu().numpy(), 0.0))
        reduced, _ = minkowski_reduce(whole, pbc=flags)
        self.cell = torch.as_tensor(np.array(reduced), dtype=cell.dtype, device=cell.device)
        self.pbc = pbc.to(cell.dtype)
        steps = [torch.tensor([-1.0, 0.0, 1.0] if flag else [0.0]).to(cell) for flag in flags]
        # in a reduced cell the shortest image of a wrapped vector is one of these
        self.shifts = torch.cartesian_prod(*steps) @ self.cell

    def nearest(self, vectors: Tensor) -> Tensor:
        """(M, 3) -> (M, 3), A; the mean where several images are equally near."""
        whole = torch.round(torch.linalg.solve(self.cell.T, vectors.T).T) * self.pbc
        images = (vectors - whole @ self.cell)[:, None] + self.shifts
        distances = torch.linalg.vector_norm(images, dim=2)
        nearest = (distances < distances.amin(dim=1, keepdim=True) + EQUALLY_NEAR).to(images.dtype)
        return torch.einsum("ms,msa->ma", nearest, images) / nearest.sum(dim=1, keepdim=True)


def _gradient(value: Tensor, positions: Tensor, *, create_graph: bool) -> Tensor:
    """(N, 3), d value / d positions; the graph stays for the next."""
    # the zero is for structures whose charges depend on no position, such as those of a single atom
    total = value + 0.0 * positions.sum()
    (gradient,) = torch.autograd.grad(total, positions, retain_graph=True, create_graph=create_graph)
    return gradient
