"""Charges that see the surroundings of their atom."""

from __future__ import annotations

from lrpot.charges.model import ChargeModel


class EnvironmentCharges(ChargeModel):
    """q_j = Emb(z_j) + MLP(h_j), h_j the backbone's scalar features of atom j; neutrality as of `EmbeddingCharges`.

    A charge knows no more than the backbone sees: charge that moves over longer distances needs `EquilibratedCharges`.

    Source: "3G" in the terms of Ko et al., Nat. Commun. 12, 398 (2021), but learned from energies and forces.
    """

    sees_surroundings = True
