"""A potential on a crystal that is divided among processes: each has the energies of its own atoms.

E is the sum of the energies of atoms, which depend on atoms a few edges away (the halo), and of the long range, for
which each process has its own charges and S(k) is summed over all. A process differentiates the energies of its own
atoms and the whole long range by all atoms that it sees; what belongs to atoms of others goes to their owners.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from lrpot.backbones.messages import positions_only
from lrpot.charges import ChargeModel
from lrpot.errors import ConfigError
from lrpot.interfaces.exchange import Exchange, Fetched, Owners
from lrpot.kspace.derivatives import deformation
from lrpot.kspace.quadratic import OverProcesses
from lrpot.potential import Potential
from lrpot.structure import edge_vectors


@dataclass(frozen=True)
class Share:
    """What a process has of a crystal.

    Attributes:
        batch: its atoms, own ones first, and the edges of all that count; see `lrpot.interfaces.halo`.
        n_own: how many are own.
        n_atoms: of the whole crystal.
        owners: of the others.
    """

    batch: Data
    n_own: int
    n_atoms: int
    owners: Owners

    @property
    def exchange(self) -> Exchange:
        return self.owners.exchange


class Result(NamedTuple):
    """
    Attributes:
        energy: eV, of the whole crystal. forces: (n_own, 3), eV/A.
        stress: (3, 3), eV/A^3, of the whole crystal, or None.
    """

    energy: float
    forces: Tensor
    stress: Tensor | None


def check_shareable(model: Potential) -> None:
    """Find out beforehand whether a crystal may be divided.

    Raises:
        ConfigError: charges that depend on all atoms at once, or an ensemble whose members see unlike edges.
    """
    if len({member.cutoff for member in model.members}) > 1:
        raise ConfigError(
            "the members of the ensemble have cutoffs that differ, which several processes cannot treat; run LAMMPS in "
            "one process"
        )
    for member in model.members:
        if member.long is None:
            continue
        charges = member.long.charges
        if type(charges).energy is not ChargeModel.energy or charges.neutrality != "background":
            raise ConfigError(
                f"charges of kind {type(charges).__name__} with neutrality {charges.neutrality} depend on all atoms at "
                "once, which several processes do not share yet; run LAMMPS in one process"
            )


def evaluate(model: Potential, share: Share, *, stress: bool) -> Result:
    """Energy, forces on the own atoms, and stress; of an ensemble the mean. Every process calls it together.

    Args:
        model: that `check_shareable` allows.
        stress: whether to compute it.
    Raises:
        ConfigError, StructureError: see `lrpot.kspace.ReciprocalSum.shared`.
    """
    results = [_evaluate(member, share, stress) for member in model.members]
    n = len(results)
    return Result(
        sum(result.energy for result in results) / n,
        torch.stack([result.forces for result in results]).mean(dim=0),
        torch.stack([result.stress for result in results if result.stress is not None]).mean(dim=0) if stress else None,
    )


def _evaluate(model: Potential, share: Share, stress: bool) -> Result:
    with torch.enable_grad():
        batch = copy.copy(share.batch)  # shallow: the caller's tensors are left as they are
        positions = batch.positions.detach().requires_grad_()
        strain = torch.zeros_like(batch.cell[0], requires_grad=stress)
        deformed = deformation(strain)
        batch.positions, batch.cell = positions @ deformed, batch.cell @ deformed
        own, whole = _energies(model, batch, share)
        inputs = [positions, strain] if stress else [positions]
        # the zero keeps atoms without neighbours, whose energy is a constant, differentiable
        energy = own + whole + sum(0.0 * x.sum() for x in inputs)
        with positions_only():
            gradients = torch.autograd.grad(energy, inputs, materialize_grads=True)
    slope = gradients[0].cpu()
    returned = share.owners.give_back(slope[share.n_own :].numpy())
    forces = -(slope[: share.n_own] + torch.from_numpy(returned))
    # what only this process has; one sum for all of it
    mine = torch.cat([own.detach().reshape(1), *(gradient.reshape(-1) for gradient in gradients[1:])])
    total = share.exchange.total(mine).cpu()
    volume = float(torch.linalg.det(share.batch.cell[0]).abs())
    return Result(float(total[0] + whole.detach().cpu()), forces, total[1:].reshape(3, 3) / volume if stress else None)


def _energies(model: Potential, batch: Data, share: Share) -> tuple[Tensor, Tensor]:
    """Energies, eV: the sum of those of the own atoms, and that of what all processes have together."""
    n, long = share.n_own, model.long
    vectors = edge_vectors(batch)
    features = model.short.features(batch, vectors)
    own = model.short.offset[batch.numbers[:n]].sum() + model.short(features[:n]).sum()
    if long is None:
        return own, own.new_zeros(())
    charges = long.charges(batch, features).to(long.dtype)
    if long.charges.sees_surroundings:
        # the features of other processes' atoms are complete only there
        charges = torch.cat([charges[:n], Fetched.apply(charges[:n], share.owners)])
    total, first = share.exchange.total, share.exchange.first
    n_mean = max(1, share.n_atoms // share.exchange.size)
    whole = long.reciprocal.shared(batch.positions[:n], charges[:n], batch.cell, n_mean, total, first=first)
    if long.complement is not None:
        distances = torch.linalg.vector_norm(vectors, dim=1)
        pairs = long.complement.per_atom(charges.to(torch.float64), batch.edge_index, distances)  # type: ignore[operator]
        net = OverProcesses.apply(charges[:n].to(torch.float64).sum(dim=0), total)
        volume = torch.linalg.det(batch.cell).abs()
        of_net = long.complement.of_net(net[None], volume if first else volume.detach())  # type: ignore[operator]
        own, whole = own + pairs[:n].sum(), whole + of_net.sum()
    return own, whole
