"""Charges: where the q of S(k) come from."""

from lrpot.charges.embedding import EmbeddingCharges

CHARGES = {"embedding": EmbeddingCharges}

__all__ = ["CHARGES", "EmbeddingCharges"]
