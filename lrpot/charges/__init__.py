"""Charges: where the q of S(k) come from."""

from lrpot.charges.embedding import EmbeddingCharges
from lrpot.charges.environment import EnvironmentCharges
from lrpot.charges.equilibration import EquilibratedCharges
from lrpot.charges.model import ChargeModel

CHARGES: dict[str, type[ChargeModel]] = {
    "embedding": EmbeddingCharges,
    "environment": EnvironmentCharges,
    "equilibration": EquilibratedCharges,
}
"""By the name in the settings, `model.charges.kind`."""

__all__ = ["CHARGES", "ChargeModel", "EmbeddingCharges", "EnvironmentCharges", "EquilibratedCharges"]
