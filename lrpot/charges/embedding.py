"""One charge per element."""

from __future__ import annotations

from lrpot.charges.model import ChargeModel


class EmbeddingCharges(ChargeModel):
    """q_j = Emb(z_j), learned.

    neutrality "background" keeps the charges; a charged cell then lies in a uniform background, and the k = 0 term
    that is left out of the sum is that background. "shift" takes off the mean, q_j - mean(q) + Q / N, as published: in
    a cell with a vacancy that changes S(k) at every k.

    Source: Yu et al. 2022, q_j = Embedding(z_j) - q_neutral.
    """
