"""What every backbone returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AtomFeatures(NamedTuple):
    """Features of N atoms.

    Attributes:
        scalar: (N, F), invariant under rotation.
        vector: (N, 3, F), rotates with the crystal; None if the backbone has none.
        irreps: (N, dim) in e3nn's layout, of the irreps that the backbone's `irreps_out` names, for readouts of
            tensors (`lrpot.tensors`); None if the backbone has none.
    """

    scalar: Tensor
    vector: Tensor | None
    irreps: Tensor | None = None
