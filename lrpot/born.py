"""Born effective charges of a crystal or a molecule, as a model's charges give them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from lrpot.charges.polarisation import acoustic_sum, check_born_charges
from lrpot.data.labels import total_charge
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError
from lrpot.potential import Potential


@dataclass(frozen=True)
class BornCharges:
    """Born effective charges of one structure.

    Attributes:
        tensors: (N, 3, 3), e, [i, a, b] = dP_a / dr_ib. Where the model learned charges that are screened by the
            electrons, so are these: Z* is larger by the square root of the dielectric constant.
        acoustic_sum: (3, 3), e, what the model's own tensors add up to, less the total charge: zero if a rigid shift
            of everything makes no dipole.
    """

    tensors: np.ndarray
    acoustic_sum: np.ndarray


def born_charges(model: Potential, atoms: Atoms, *, sum_rule: bool = False) -> BornCharges:
    """Born effective charges by the derivatives of a model's charges; equations in `lrpot.charges.polarisation`.

    In a cell that repeats, a charge must hardly depend on atoms half the cell away: take a supercell about twice as
    wide as the network sees (its cutoff times its message-passing steps).

    Args:
        model: with charges; any precision.
        atoms: the structure.
        sum_rule: take the mean of what is too much in the sum off each tensor, so that the sum rule holds.
    Raises:
        ConfigError: a model without charges.
        StructureError: charges that flow through a structure that repeats, or a geometry that cannot be treated.
        UnknownElementError: an element that the model does not know.
    Source: the sum rule: Pick, Cohen, Martin, Phys. Rev. B 1, 910 (1970).
    """
    if model.long is None:
        raise ConfigError("Born charges need a model with charges; fit one with model.kernel.form = coulomb")
    structure = to_structure(atoms, model.cutoff, elements=model.elements, labels=False)
    charges = model.long.charges
    check_born_charges(type(charges), charges.neutrality, structure.pbc)
    device = next(model.parameters()).device
    output = model(structure.to(device), forces=False, born_charges=True)
    excess = acoustic_sum(structure, output["born_charges"])[0].cpu().numpy() - total_charge(atoms) * np.eye(3)
    tensors = output["born_charges"].cpu().numpy()
    return BornCharges(tensors - excess / len(tensors) if sum_rule else tensors, excess)
