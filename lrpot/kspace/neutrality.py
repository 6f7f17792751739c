"""What is done about charges that do not add up to zero."""

from __future__ import annotations

import torch
from torch import Tensor

from lrpot.errors import StructureError

NEUTRALITY = ("background", "shift")


def net_charge(charges: Tensor, index: Tensor, n_structures: int) -> Tensor:
    """(G, C), e, from (N, C) charges and (N,) the structure of each atom."""
    return charges.new_zeros(n_structures, charges.shape[1]).index_add(0, index, charges)


def shift(charges: Tensor, index: Tensor, n_structures: int, total: Tensor | None = None) -> Tensor:
    """Charges less their mean excess over the total: q_j - mean(q) + Q / N.

    In a cell with a vacancy that changes S(k) at every k; a uniform background does not.

    Args:
        charges: (N, C), e. index: (N,) the structure of each atom.
        total: (G,), e; zero if left out.
    Source: Yu et al. 2022, q_neutral.
    """
    excess = net_charge(charges, index, n_structures)
    if total is not None:
        excess = excess - total[:, None]
    count = torch.bincount(index, minlength=n_structures).clamp(min=1)
    return charges - (excess / count[:, None])[index]


def check_neutral(charges: Tensor, index: Tensor, n_structures: int) -> None:
    """
    Raises:
        StructureError: the charges of a structure do not add up to zero, to the rounding of their precision.
    """
    charges = charges.detach()
    net = net_charge(charges, index, n_structures).abs()
    scale = net_charge(charges.abs(), index, n_structures)
    charged = (net > 100.0 * torch.finfo(charges.dtype).eps * scale).any(dim=1)
    if bool(charged.any()):
        first = int(charged.nonzero()[0])
        raise StructureError(
            f'structure {first}: charges add up to {net[first].max():.3g} e and neutrality = "error"; '
            'mend the charges, or choose neutrality = "background"'
        )
